"""
Walking from a model back to the raw data: one request per run and per model, each at most once.

Only ids are followed, which MLflow finds by primary key; nothing is searched for.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote

from airflow_ml_provider.exceptions import RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.lineage import DatasetRead, Gap, Lineage, LoggedModel, ModelURI, ModelVersion, StepRun
from airflow_ml_provider.tracking.artifacts import SHA256, SIZE
from airflow_ml_provider.tracking.runs import TRY, RunTree, run_id_of, status_of, tags_of

DEPTH_LIMIT = 50
"""Steps from the model to the farthest run that is looked at: a model that is tuned further each night has no end."""
_MADE_BY_TRY = re.compile(r"/try-(\d+)/")
SOURCE_RUN, SOURCE_URI = "airflow.source_run_id", "airflow.uri"
"""Tags of a dataset input; MLflow keeps one source per name and digest in an experiment, the first, but tags per run."""
GIT_COMMIT = "mlflow.source.git.commit"

V = TypeVar("V")


def trace(api: MlflowApi, uri: str, *, depth_limit: int = DEPTH_LIMIT) -> Lineage:
    """
    Follow a model back to the raw data.

    :param api: The server.
    :param uri: ``models:/<name>@<alias>``, ``models:/<name>/<version>``, ``models:/<model id>`` or ``runs:/<run>/<path>``.
    :param depth_limit: Steps from the model to the farthest run that is looked at, 1 or more.
    :return: The way. What is gone from MLflow on the way is a gap in it, not an error.
    :raises ConfigError: the URI has none of these forms; a retry never helps.
    :raises RemoteNotFoundError: what the URI names does not exist.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    asked, walk = ModelURI.parse(uri), _Walk(api, depth_limit)
    version = _read_version(api, asked) if asked.name else None
    source = ModelURI.parse(version.source) if version and version.source.startswith("models:/m-") else asked
    model = None
    if source.model_id:
        model = walk.read_model(source.model_id)
        if model is None and version is None:
            raise RemoteNotFoundError(f"there is no model {source.model_id} in MLflow at {api.server.url}.")
    run_id = asked.run_id or (model and model.run_id) or (version and version.run_id) or None
    if run_id:
        walk.follow(run_id)
    if asked.run_id and not walk.steps:
        raise RemoteNotFoundError(f"there is no run {asked.run_id} in MLflow at {api.server.url}.")
    return Lineage(
        uri=uri,
        model_version=version,
        model=model,
        run_id=run_id,
        steps=tuple(walk.steps),
        models=tuple(walk.models),
        gaps=tuple(walk.gaps),
    )


class _Walk:
    """Breadth first over runs, each run and each model read once, so a cycle ends."""

    def __init__(self, api: MlflowApi, depth_limit: int) -> None:
        self.api = api
        self.tree = RunTree(api)
        self.depth_limit = depth_limit
        self.steps: list[StepRun] = []
        self.models: list[LoggedModel] = []
        self.gaps: list[Gap] = []
        self._seen: set[str] = set()
        self._tries: dict[str, str] = {}
        """Which try of a run made what led there; the tries of a step share its run."""

    def follow(self, run_id: str) -> None:
        """Read a run and all that lie behind it."""
        waiting = deque([(run_id, 1)])
        while waiting:
            current, depth = waiting.popleft()
            if current in self._seen:
                continue
            self._seen.add(current)
            if depth > self.depth_limit:
                self._miss(current, f"farther than {self.depth_limit} steps; go on with: airflow-ml lineage runs:/{current}")
                continue
            step = self._read_step(current)
            if step is not None:
                self.steps.append(step)
                waiting.extend((each, depth + 1) for each in self._behind(step))

    def read_model(self, model_id: str) -> LoggedModel | None:
        """Read a model; one that is gone is a gap."""
        self._seen.add(model_id)
        try:
            found = self.api.get(f"logged-models/{model_id}")["model"]
        except RemoteNotFoundError:
            self._miss(model_id, "model deleted in MLflow")
            return None
        model, number = _model(found), _pairs(found["info"].get("tags", [])).get(TRY)
        if model.run_id and number:
            self._tries.setdefault(model.run_id, number)
        return model

    def _behind(self, step: StepRun) -> list[str]:
        """Name the runs that made what a step has read."""
        runs = [each.run_id for each in step.datasets if each.run_id]
        for each in step.datasets:
            if each.run_id and (made := _MADE_BY_TRY.search(each.uri or "")):
                self._tries.setdefault(each.run_id, made[1])
        for model_id in step.models:
            if model_id not in self._seen:
                model = self.read_model(model_id)
                if model is not None:
                    self.models.append(model)
                    runs += [model.run_id] if model.run_id else []
        return runs

    def _read_step(self, run_id: str) -> StepRun | None:
        try:
            return _step(self.api.server.url, self.tree.get(run_id), self._tries.get(run_id))
        except RemoteNotFoundError:
            self._miss(run_id, "run deleted in MLflow for good; what it had read is not known any more")
            return None

    def _miss(self, key: str, reason: str) -> None:
        self.gaps.append(Gap(id=key, reason=reason))


def _read_version(api: MlflowApi, asked: ModelURI) -> ModelVersion:
    name = asked.name or ""
    try:
        if asked.alias:
            found = api.get("registered-models/alias", name=name, alias=asked.alias)["model_version"]
        else:
            found = api.get("model-versions/get", name=name, version=asked.number or "")["model_version"]
    except RemoteNotFoundError as error:
        raise RemoteNotFoundError(f"{error} What there is: {api.server.url}/#/models/{quote(name)}") from error
    return ModelVersion(
        name=found["name"],
        version=str(found["version"]),
        aliases=tuple(found.get("aliases", [])),
        source=found.get("source", ""),
        run_id=found.get("run_id") or None,
        created=_time(found.get("creation_timestamp")),
        tags=_sorted(_pairs(found.get("tags", []))),
    )


def _model(found: Mapping[str, Any]) -> LoggedModel:
    info = found["info"]
    tags = _pairs(info.get("tags", []))
    return LoggedModel(
        model_id=info["model_id"],
        name=info.get("name", ""),
        sha256=tags.get(SHA256),
        size=_number(tags.get(SIZE)),
        created=_time(info.get("creation_timestamp_ms")),
        metrics=_metrics(found.get("data", {}).get("metrics", [])),
        run_id=info.get("source_run_id") or None,
    )


def _step(server_url: str, run: dict[str, Any], number: str | None) -> StepRun:
    info, tags, inputs = run["info"], tags_of(run), run.get("inputs", {})
    read = _of_try(inputs.get("dataset_inputs", []), number or tags.get(TRY))
    return StepRun(
        run_id=run_id_of(run),
        url=f"{server_url}/#/experiments/{info['experiment_id']}/runs/{run_id_of(run)}",
        name=info.get("run_name") or run_id_of(run),
        status=status_of(run),
        deleted=info.get("lifecycle_stage") == "deleted",
        dag_id=tags.get("airflow.dag_id"),
        dag_run_id=tags.get("airflow.run_id"),
        task_id=tags.get("airflow.task_id"),
        map_index=_number(tags.get("airflow.map_index")),
        try_number=_number(tags.get(TRY)),
        logical_date=tags.get("airflow.logical_date"),
        log_url=tags.get("airflow.log_url"),
        git_commit=tags.get(GIT_COMMIT),
        started=_time(info.get("start_time")),
        ended=_time(info.get("end_time")),
        params=_sorted(_pairs(run["data"].get("params", []))),
        metrics=_metrics(run["data"].get("metrics", [])),
        # MLflow keeps no order among them.
        datasets=tuple(sorted((_dataset(each) for each in read), key=lambda each: (each.name, each.digest))),
        models=tuple(sorted(each["model_id"] for each in inputs.get("model_inputs", []))),
    )


def _of_try(inputs: Iterable[Mapping[str, Any]], number: str | None) -> list[Mapping[str, Any]]:
    """Leave out what only other tries of the step have read; what they have read alike is on record once, for the first."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for each in inputs:
        by_name.setdefault(str(each["dataset"]["name"]), []).append(each)
    chosen: list[Mapping[str, Any]] = []
    for group in by_name.values():
        chosen += [each for each in group if _pairs(each.get("tags", [])).get(TRY) == number] or group
    return chosen


def _dataset(found: Mapping[str, Any]) -> DatasetRead:
    tags, dataset = _pairs(found.get("tags", [])), found["dataset"]
    source = _source(dataset.get("source", ""))
    ours = source if dataset.get("source_type") == "airflow" else {}
    # With tags of ours, the source is not asked who made it: it may be that of another run that read the same bytes.
    tagged = SOURCE_RUN in tags or SOURCE_URI in tags
    return DatasetRead(
        name=dataset["name"],
        digest=dataset.get("digest", ""),
        uri=tags.get(SOURCE_URI) or source.get("uri") or source.get("url"),
        sha256=ours.get("sha256"),
        size=_number(ours.get("size")),
        run_id=tags.get(SOURCE_RUN) if tagged else ours.get("run_id"),
    )


def _source(text: str) -> dict[str, Any]:
    """Read the source of a dataset; others write texts of many kinds, of which only JSON objects tell us something."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return {key: value for key, value in found.items() if value} if isinstance(found, dict) else {}


def _pairs(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    return {each["key"]: str(each.get("value", "")) for each in entries}


def _metrics(entries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Read metrics; MLflow writes NaN and infinities as the texts that ``float`` reads."""
    ordered = sorted(entries, key=lambda each: (int(each.get("step", 0)), int(each.get("timestamp", 0))))
    return _sorted({each["key"]: float(each.get("value", 0)) for each in ordered})


def _sorted(values: Mapping[str, V]) -> dict[str, V]:
    return dict(sorted(values.items()))


def _number(value: Any) -> int | None:
    try:
        return int(value)
    except (TypeError, ValueError):
        return None


def _time(milliseconds: Any) -> datetime | None:
    value = _number(milliseconds)
    return datetime.fromtimestamp(value / 1000, UTC) if value else None
