"""MLflow runs that tasks start, fill, end, search, delete and restore themselves, beside the runs of steps."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from airflow_ml_provider.core.tracking_values import check_artifact_path, check_run_id, check_uri, shown, tags_filter
from airflow_ml_provider.exceptions import ArtifactError, ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.models.run import Attempt, RunStatus, params_as_text
from airflow_ml_provider.tracking.artifacts import MADE_BY_RUN, ArtifactStore
from airflow_ml_provider.tracking.experiments import VIEWS, pages_of
from airflow_ml_provider.tracking.lineage_tags import read_tags
from airflow_ml_provider.tracking.record import dataset_input
from airflow_ml_provider.tracking.runs import (
    KEY,
    PAIRS_PER_BATCH,
    PARENT,
    RUN_NAME_LENGTH,
    TI_ID,
    TRY,
    Run,
    RunTree,
    as_pairs,
    batches,
    now_ms,
    run_id_of,
    status_of,
    tags_of,
)

log = logging.getLogger(__name__)

STARTED_BY = "airflow.started_by"
"""Tag: the task that started the run, for people. Not the tags of steps, so that no sweep ends a run which is to stay open."""
METRICS_PER_BATCH = 1000
NOTE = "mlflow.note.content"


class RunRecords:
    """
    The runs of one MLflow server, as tasks handle them.

    :param api: The server.
    """

    def __init__(self, api: MlflowApi) -> None:
        self.api = api
        self.tree = RunTree(api)

    def start(
        self, experiment_id: str, attempt: Attempt, name: str, *, tags: Mapping[str, str], parent_run_id: str | None
    ) -> dict[str, Any]:
        """
        Make a run, or open again the one that an earlier try of this task has made.

        :param experiment_id: Where.
        :param attempt: The try; the run carries its key.
        :param name: Name of the run; what is longer than 250 characters is cut.
        :param tags: Value per key.
        :param parent_run_id: Run to nest it below; None for none.
        :return: The run, as plain JSON.
        :raises RemoteNotFoundError: there is no such parent.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe and finds what was made.
        """
        own = {KEY: attempt.identity.key, TRY: str(attempt.try_number), TI_ID: attempt.ti_id}
        own[STARTED_BY] = f"{attempt.identity.dag_id} {attempt.identity.run_id} {attempt.identity.label}"
        if parent_run_id:
            self.tree.get(check_run_id(parent_run_id))
            own[PARENT] = parent_run_id
        written = dict(tags) | own
        run = self.tree.find_nested(experiment_id, attempt)
        if run is None:
            body = {"experiment_id": experiment_id, "run_name": name[:RUN_NAME_LENGTH], "start_time": now_ms()}
            body |= {"tags": as_pairs(written)}
            run = self.api.post("runs/create", body, repeatable=False)["run"]
        else:
            log.info("An earlier try has started run %s: it is taken up.", run_id_of(run))
            for some in batches(written.items(), PAIRS_PER_BATCH):
                self.tree.set_tags(run_id_of(run), dict(some))
            if status_of(run) != "RUNNING":
                self.tree.close(run_id_of(run), "RUNNING")
        return self.plain(self.tree.get(run_id_of(run)))

    def finish(self, run_id: str, status: RunStatus) -> dict[str, Any]:
        """
        End a run; one that has ended so keeps the time at which it did.

        :param run_id: Its id.
        :param status: ``FINISHED``, ``FAILED`` or ``KILLED``.
        :return: The run, as plain JSON.
        :raises RemoteNotFoundError: there is no such run.
        """
        run = self.tree.get(check_run_id(run_id))
        if status_of(run) != status:
            self.tree.close(run_id, status)
        return self.plain(self.tree.get(run_id))

    def search(
        self,
        experiment_ids: Sequence[str],
        filter_string: str = "",
        *,
        tags: Mapping[str, Any] | None = None,
        order_by: Sequence[str] = (),
        view: str = "active",
        max_results: int = 100,
    ) -> list[dict[str, Any]]:
        """
        Search runs.

        :param experiment_ids: Where.
        :param filter_string: In MLflow's search language; empty for all.
        :param tags: Values that tags must have; they never become a part of the language.
        :param order_by: In that language; by default the newest first.
        :param view: ``active``, ``deleted`` or ``all``.
        :param max_results: How many at most.
        :return: The runs, as plain JSON.
        :raises ConfigError: MLflow does not take the filter or the order; a retry never helps.
        """
        body = {"experiment_ids": list(experiment_ids), "filter": tags_filter(filter_string, tags), "run_view_type": VIEWS[view]}
        body |= {"order_by": list(order_by)} if order_by else {}
        return [self.plain(each) for each in pages_of(self.api, "runs/search", body, "runs", max_results)]

    def delete(self, run_id: str) -> dict[str, Any]:
        """
        Delete a run, softly: it can be restored until ``mlflow gc``. One that is gone is left alone.

        :param run_id: Its id.
        :return: The run as it is now, as plain JSON; with its id alone when the server has none.
        """
        try:
            run = self.tree.get(check_run_id(run_id))
        except RemoteNotFoundError:
            log.info("There is no run %s: nothing to delete.", run_id)
            return {"run_id": run_id, "lifecycle_stage": "gone"}
        if run["info"]["lifecycle_stage"] == "active":
            self.api.post("runs/delete", {"run_id": run_id})
        return self.plain(self.tree.get(run_id))

    def restore(self, run_id: str) -> dict[str, Any]:
        """
        Bring a deleted run back; one that is not deleted is left alone.

        :param run_id: Its id.
        :return: The run, as plain JSON.
        :raises RemoteNotFoundError: there is no such run; ``mlflow gc`` may have removed it for good.
        """
        run = self.tree.get(check_run_id(run_id))
        if run["info"]["lifecycle_stage"] != "active":
            self.api.post("runs/restore", {"run_id": run_id})
        return self.plain(self.tree.get(run_id))

    def log_values(self, run_id: str, parameters: Mapping[str, Any], tags: Mapping[str, Any]) -> None:
        """
        Log parameters and tags; the same ones again change nothing.

        :param run_id: The run.
        :param parameters: JSON value per name.
        :param tags: Value per key.
        :raises ConfigError: a parameter is on record with another value, which MLflow never changes; a retry never helps.
        :raises RemoteNotFoundError: there is no such run.
        """
        has = {each["key"]: each.get("value", "") for each in self.tree.get(check_run_id(run_id))["data"].get("params", [])}
        text = params_as_text(parameters)
        for name, value in text.items():
            if has.get(name, value) != value:
                raise ConfigError(
                    f"run {run_id}: parameter {name!r} is {shown(has[name])} on record, and MLflow never changes one. Log "
                    f"{shown(value)} under another name, or as a tag."
                )
        new = {name: value for name, value in text.items() if name not in has}
        for some in batches(new.items(), PAIRS_PER_BATCH):
            self.api.post("runs/log-batch", {"run_id": run_id, "params": as_pairs(dict(some))})
        for some in batches(((key, str(value)) for key, value in tags.items()), PAIRS_PER_BATCH):
            self.tree.set_tags(run_id, dict(some))

    def log_metrics(self, run_id: str, metrics: Mapping[str, Any], step: int) -> None:
        """
        Log one point per metric; a point of that step and value that is there already is not logged again.

        :param run_id: The run.
        :param metrics: Number per name.
        :param step: Position on the curves.
        :raises ConfigError: a value is no number; a retry never helps.
        """
        points = {name: _number(name, value) for name, value in metrics.items()}
        known = {each["key"] for each in self.tree.get(check_run_id(run_id))["data"].get("metrics", [])}
        left = [name for name in points if name not in known or not self._has_point(run_id, name, points[name], step)]
        at_ms = now_ms()
        for some in batches(left, METRICS_PER_BATCH):
            written = [{"key": name, "value": points[name], "timestamp": at_ms, "step": step} for name in some]
            self.api.post("runs/log-batch", {"run_id": run_id, "metrics": written}, repeatable=True)

    def log_artifacts(self, run_id: str, artifacts: Mapping[str, Any], texts: Mapping[str, Any]) -> list[str]:
        """
        Store files, folders, and texts among a run's artifacts; what is at a path already is written over.

        :param run_id: The run.
        :param artifacts: Per path in the run, a local file or folder, a reference to an artifact, or its URI.
        :param texts: Per path in the run, a text, or a JSON value.
        :return: The URIs of what was stored.
        :raises ConfigError: a path climbs, or a source is none; nothing was stored, a retry never helps.
        :raises ArtifactError: a source is missing; a retry helps only after it was made.
        """
        wanted = {check_artifact_path(path): _source(path, source) for path, source in artifacts.items()}
        written = {check_artifact_path(path): _text(path, value) for path, value in texts.items()}
        store, stored = ArtifactStore(self.api), []
        root = store.root_of(f"runs:/{check_run_id(run_id)}") if wanted or written else ""
        with tempfile.TemporaryDirectory(prefix="airflow-ml-") as folder:
            for number, (path, source) in enumerate(wanted.items()):
                local = _fetched(store, source, Path(folder) / str(number)) if isinstance(source, ArtifactRef) else source
                store.store(root, path, local)
                stored.append(f"runs:/{run_id}/{path}")
            for path, text in written.items():
                local = Path(folder) / "text"
                local.write_text(text, encoding="utf-8")
                store.store(root, path, local)
                stored.append(f"runs:/{run_id}/{path}")
        return stored

    def log_datasets(self, run_id: str, datasets: Sequence[Any]) -> None:
        """
        Name datasets that a run has read; those that it names already are left alone.

        :param run_id: The run.
        :param datasets: References to artifacts, or ``{"name", "uri", "digest", "context"}``, the last two as wanted.
        :raises ConfigError: one lacks its name or its URI; a retry never helps.
        """
        read = [_dataset(each) for each in datasets]
        run = self.tree.get(check_run_id(run_id))
        said = tags_of(run).get(TRY, "")
        number = int(said) if said.isdecimal() else 1
        rows = [
            dataset_input(ref, number, digest=_digest(ref, more), context=str(more.get("context") or "")) for ref, more in read
        ]
        has = {(each["dataset"]["name"], each["dataset"]["digest"]) for each in run.get("inputs", {}).get("dataset_inputs", [])}
        new = [each for each in rows if (each["dataset"]["name"], each["dataset"]["digest"]) not in has]
        if new:
            self.api.post("runs/log-inputs", {"run_id": run_id, "datasets": new}, repeatable=False)
        keys = read_tags([ref for ref, _ in read], number, tags_of(run), add=True)  # by which lineage finds the reader
        for some in batches(keys.items(), PAIRS_PER_BATCH):
            self.tree.set_tags(run_id, dict(some))

    def plain(self, run: Run) -> dict[str, Any]:
        """
        Write a run as plain JSON.

        :param run: As MLflow answers it.
        :return: Its ids, state, times (milliseconds since the epoch), last metrics, parameters and tags; numbers that JSON
            has not (NaN) are texts.
        """
        info, data = run["info"], run.get("data", {})
        return {
            "run_id": run_id_of(run),
            "run_name": info.get("run_name", ""),
            "experiment_id": str(info["experiment_id"]),
            "status": status_of(run),
            "lifecycle_stage": info.get("lifecycle_stage", ""),
            "start_time_ms": info.get("start_time"),
            "end_time_ms": info.get("end_time"),
            "artifact_uri": info.get("artifact_uri", ""),
            "metrics": {each["key"]: _finite(each.get("value", 0.0)) for each in data.get("metrics", [])},
            "params": {each["key"]: each.get("value", "") for each in data.get("params", [])},
            "tags": tags_of(run) if "data" in run else {},
            "url": self.api.server.run_page(str(info["experiment_id"]), run_id_of(run)),
        }

    def _has_point(self, run_id: str, name: str, value: float | str, step: int) -> bool:
        asked: dict[str, Any] = {"run_id": run_id, "metric_key": name, "max_results": 25_000}
        while True:
            answer = self.api.get("metrics/get-history", **asked)
            for each in answer.get("metrics", []):
                if int(each.get("step", 0)) == step and str(_finite(each.get("value", 0.0))) == str(value):
                    return True
            if not answer.get("next_page_token"):
                return False
            asked["page_token"] = answer["next_page_token"]


def _finite(value: Any) -> float | str:
    """Write what JSON has no number for as the text that MLflow takes."""
    number = float(value)
    if math.isnan(number):
        return "NaN"
    if abs(number) >= sys.float_info.max:  # as which MLflow keeps infinity
        return "Infinity" if number > 0 else "-Infinity"
    return number


def _number(name: str, value: Any) -> float | str:
    try:
        return _finite(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"metric {shown(name)} must be a number, not {shown(value)}. Log texts as parameters or tags."
        ) from error


def _source(path: str, source: Any) -> Path | ArtifactRef:
    if ArtifactRef.looks_like(source):
        return ArtifactRef.from_json(source)
    text = str(source) if isinstance(source, str | Path) else ""
    if "://" in text or text.startswith(("runs:/", "models:/")):
        return ArtifactRef(type="Artifact", name="artifact", uri=check_uri(text))
    local = Path(text)
    if not text or not local.is_absolute():
        raise ConfigError(f"artifact {shown(path)}: {shown(source)} is no absolute path, no URI and no reference to an artifact.")
    if not local.exists():
        raise ArtifactError(f"artifact {shown(path)}: there is nothing at {local} on this worker. Write it there first.")
    return local


def _fetched(store: ArtifactStore, ref: ArtifactRef, folder: Path) -> Path:
    folder.mkdir()
    local, _ = store.fetch(store.resolve(ref), folder)
    return local


def _text(path: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"text {shown(path)} is neither a text nor plain JSON ({error}).") from error


def _dataset(given: Any) -> tuple[ArtifactRef, Mapping[str, Any]]:
    """Read one dataset: what it is, and what its row says other than for a step."""
    if ArtifactRef.looks_like(given):
        return ArtifactRef.from_json(given), {}
    if not isinstance(given, Mapping) or not given.get("name") or not given.get("uri"):
        raise ConfigError(f"dataset {shown(given)} must be a reference to an artifact, or have a name and a uri.")
    uri, digest = check_uri(given["uri"]), str(given.get("digest") or "")
    sha256 = digest if re.fullmatch("[0-9a-f]{64}", digest) else None
    run = MADE_BY_RUN.match(uri)
    return ArtifactRef(type="Dataset", name=str(given["name"]), uri=uri, sha256=sha256, run_id=run[1] if run else None), given


def _digest(ref: ArtifactRef, said: Mapping[str, Any]) -> str:
    """Take what is said of its digest; without one its address stands for it, so that two are told apart."""
    return str(said.get("digest") or ref.sha256 or hashlib.sha256(ref.uri.encode()).hexdigest()[:16])
