"""What MLflow answers about runs, models and versions, as nodes of a graph; values only, nothing is asked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from airflow_ml_provider.hooks.mlflow import MlflowServer
from airflow_ml_provider.models.lineage import DatasetNode, ModelNode, RunNode, Step, VersionNode
from airflow_ml_provider.tracking.artifacts import ELSEWHERE, FILE, SHA256, SIZE
from airflow_ml_provider.tracking.cache_index import CACHED_FROM
from airflow_ml_provider.tracking.lineage_tags import (
    MARK,
    OTHERS,
    RUN_ID,
    Made,
    as_json,
    as_object,
    key_of_digest,
    key_of_run,
    key_of_uri,
    name_in_tag,
    tries_in,
)
from airflow_ml_provider.tracking.pod_record import IMAGE
from airflow_ml_provider.tracking.record import SOURCE_RUN, SOURCE_URI
from airflow_ml_provider.tracking.runs import TRY, Run, run_id_of, status_of, tags_of

GIT_COMMIT = "mlflow.source.git.commit"
MODEL_VERSIONS = "mlflow.modelVersions"
"""Tag that MLflow sets on a LoggedModel when a version is registered of it."""
_MADE_BY_TRY = re.compile(r"/try-([0-9]{1,9})/")
_LARGEST = 2**63 - 1

V = TypeVar("V")


def run_node(server: MlflowServer, run: Run, try_number: int | None = None) -> RunNode:
    """
    Read a run.

    :param server: Where it is.
    :param run: As MLflow answers it.
    :param try_number: The try whose parameters are meant; None for the last on record, whose all the rest is.
    :return: Its node.
    """
    info, tags = run["info"], tags_of(run)
    return RunNode(
        run_id=run_id_of(run),
        url=server.run_page(str(info["experiment_id"]), run_id_of(run)),
        name=info.get("run_name") or run_id_of(run),
        status=status_of(run),
        deleted=info.get("lifecycle_stage") == "deleted",
        step=step_of(tags),
        logical_date=tags.get("airflow.logical_date"),
        log_url=tags.get("airflow.log_url"),
        git_commit=tags.get(GIT_COMMIT),
        image=tags.get(IMAGE),
        cached_from=tags.get(CACHED_FROM),
        started=moment(info.get("start_time")),
        ended=moment(info.get("end_time")),
        params=_sorted(params_of_try(run, try_number)),
        metrics=_metrics(run["data"].get("metrics", [])),
    )


def params_of_try(run: Run, try_number: int | None = None) -> dict[str, str]:
    """
    Read the parameters of a try: MLflow never changes one, so what a later try has changed stands in tags of that try.

    :param run: As MLflow answers it.
    :param try_number: The try; None for the last.
    :return: Value per name.
    """
    tags = tags_of(run)
    start = f"try-{tags.get(TRY) if try_number is None else try_number}.param."
    own = {key.removeprefix(start): value for key, value in tags.items() if key.startswith(start)}
    return pairs(run["data"].get("params", [])) | own


def step_of(tags: Mapping[str, str], try_number: int | None = None) -> Step | None:
    """
    Say what a run is in Airflow.

    :param tags: Its tags.
    :param try_number: The try that is meant; None for the last on record.
    :return: The step; None for a run that is none.
    """
    dag_id, dag_run_id, task_id = (tags.get(f"airflow.{each}") for each in ("dag_id", "run_id", "task_id"))
    if not (dag_id and dag_run_id and task_id):
        return None
    index = number(tags.get("airflow.map_index"))
    return Step(
        dag_id=dag_id,
        dag_run_id=dag_run_id,
        task_id=task_id,
        map_index=-1 if index is None else index,
        try_number=number(tags.get(TRY)) if try_number is None else try_number,
    )


def model_node(found: Mapping[str, Any]) -> ModelNode:
    """
    Read a LoggedModel.

    :param found: As MLflow answers it.
    :return: Its node.
    """
    info, tags = found["info"], model_tags(found)
    return ModelNode(
        model_id=info["model_id"],
        name=info.get("name", ""),
        sha256=tags.get(SHA256),
        size=number(tags.get(SIZE)),
        created=moment(info.get("creation_timestamp_ms")),
        metrics=_metrics(found.get("data", {}).get("metrics", [])),
        run_id=info.get("source_run_id") or None,
        try_number=number(tags.get(TRY)),
    )


def model_elsewhere(found: Mapping[str, Any]) -> DatasetNode | None:
    """
    Say where a LoggedModel lies whose bytes are in an object store: who reads it there reads a place, and not the LoggedModel.

    :param found: As MLflow answers it.
    :return: The place, as its maker has put it on record; None for a model that lies in MLflow.
    """
    node, tags = model_node(found), model_tags(found)
    if not tags.get(ELSEWHERE) or not node.run_id:
        return None
    uri = tags[ELSEWHERE].rstrip("/") + ("" if tags.get(FILE) else "/")
    digest = (node.sha256 or "")[:36]
    return DatasetNode(name=node.name, uri=uri, digest=digest, sha256=node.sha256, size=node.size, run_id=node.run_id)


def model_tags(found: Mapping[str, Any]) -> dict[str, str]:
    """
    Read the tags of a LoggedModel.

    :param found: As MLflow answers it.
    :return: Value per tag.
    """
    return pairs(found["info"].get("tags", []))


def versions_in(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """
    Read which versions were registered of a LoggedModel.

    :param found: As MLflow answers it.
    :return: Name and number of each.
    """
    try:
        listed = as_json(model_tags(found).get(MODEL_VERSIONS, "[]"))
        return [(str(each["name"]), str(each["version"])) for each in listed]
    except (TypeError, KeyError):
        return []


def version_node(found: Mapping[str, Any], aliases: Iterable[str] | None = None) -> VersionNode:
    """
    Read a registered version.

    :param found: As MLflow answers it.
    :param aliases: Its aliases, where that answer does not tell them.
    :return: Its node.
    """
    return VersionNode(
        name=found["name"],
        version=str(found["version"]),
        aliases=tuple(found.get("aliases", []) if aliases is None else aliases),
        source=found.get("source", ""),
        run_id=found.get("run_id") or None,
        created=moment(found.get("creation_timestamp")),
        tags=_sorted(pairs(found.get("tags", []))),
    )


def dataset_read(found: Mapping[str, Any]) -> DatasetNode:
    """
    Read a dataset input of a run.

    :param found: As MLflow answers it.
    :return: Its node, with the name of the input.
    """
    tags, dataset = pairs(found.get("tags", [])), found["dataset"]
    source = as_object(dataset.get("source", ""))
    ours = source if dataset.get("source_type") == "airflow" else {}
    # With tags of ours, the source is not asked who made it: it may be that of another run that read the same bytes.
    tagged = SOURCE_RUN in tags or SOURCE_URI in tags
    run_id = tags.get(SOURCE_RUN) if tagged else ours.get("run_id")
    uri = tags.get(SOURCE_URI) or source.get("uri") or source.get("url")
    return DatasetNode(
        name=dataset["name"],
        digest=dataset.get("digest", ""),
        uri=str(uri) if uri else None,
        sha256=_text(ours.get("sha256")),
        size=number(ours.get("size")),
        # Ids of others are looked up, and quoted in searches.
        run_id=run_id if isinstance(run_id, str) and RUN_ID.fullmatch(run_id) else None,
    )


def dataset_made(made: Made, run_id: str) -> DatasetNode:
    """
    Read an output that is no model.

    :param made: As the run's tags tell it.
    :param run_id: The run.
    :return: Its node, with the name of the output.
    """
    facts = made.facts
    maker = facts.get("run_id")
    return DatasetNode(
        name=made.name,
        digest=str(facts.get("sha256", ""))[:36],
        uri=facts["uri"],
        sha256=_text(facts.get("sha256")),
        size=number(facts.get("size")),
        numbers=made.numbers,
        run_id=maker if isinstance(maker, str) and RUN_ID.fullmatch(maker) else run_id,
    )


def inputs_of_try(run: Run, try_number: int | None) -> list[Mapping[str, Any]]:
    """
    Leave out what only other tries of the step have read; what they have read alike is on record once, for the first.

    :param run: As MLflow answers it.
    :param try_number: The try; None for the last.
    :return: Dataset inputs.
    """
    tags, read = tags_of(run), run.get("inputs", {}).get("dataset_inputs", [])
    wanted = number(tags.get(TRY)) if try_number is None else try_number
    if MARK in tags and wanted is not None:
        return [each for each in read if _was_read_by(tags, dataset_read(each), wanted)]
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for each in read:
        by_name.setdefault(str(each["dataset"]["name"]), []).append(each)
    chosen: list[Mapping[str, Any]] = []
    for group in by_name.values():
        chosen += [each for each in group if pairs(each.get("tags", [])).get(TRY) == str(wanted)] or group
    return chosen


def _was_read_by(tags: Mapping[str, str], node: DatasetNode, try_number: int) -> bool:
    """Say whether the tags of a run know of a try that has read something; what no tag of ours tells of counts for all."""
    by_run = key_of_run(node.run_id) if node.run_id else key_of_uri(node.uri or "")
    key = key_of_digest(node.sha256) if node.sha256 else by_run  # a try may have read another output of the same run
    names = tries_in(tags[key]).get(try_number, "").split(",") if key in tags else [OTHERS]
    return not {name_in_tag(node.name), OTHERS}.isdisjoint(names)


def models_made(run: Run) -> list[str]:
    """
    Say which LoggedModels a run has made.

    :param run: As MLflow answers it.
    :return: Their ids.
    """
    return [str(each["model_id"]) for each in run.get("outputs", {}).get("model_outputs", [])]


def try_in(uri: str | None) -> int | None:
    """
    Say which try has made something.

    :param uri: Where it is.
    :return: Number of the try; None when the URI does not say.
    """
    found = _MADE_BY_TRY.search(uri or "")
    return int(found[1]) if found else None


def pairs(entries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """
    Read what MLflow answers as a list of keys and values.

    :param entries: The list.
    :return: Value per key.
    """
    return {each["key"]: str(each.get("value", "")) for each in entries}


def number(value: Any) -> int | None:
    """
    Read a whole number.

    :param value: Anything.
    :return: The number; None when it is none, or has more than 64 bits, which no size and no time has.
    """
    try:
        found = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if abs(found) <= _LARGEST else None


def _metrics(entries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Read metrics; MLflow writes NaN and infinities as the texts that ``float`` reads."""
    ordered = sorted(entries, key=lambda each: (int(each.get("step", 0)), int(each.get("timestamp", 0))))
    return _sorted({each["key"]: float(each.get("value", 0)) for each in ordered})


def _sorted(values: Mapping[str, V]) -> dict[str, V]:
    return dict(sorted(values.items()))


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def moment(milliseconds: Any) -> datetime | None:
    """
    Read a time; MLflow keeps any whole number as one, also of years that no calendar has.

    :param milliseconds: Since the epoch.
    :return: The time; None for none.
    """
    value = number(milliseconds)
    try:
        return datetime.fromtimestamp(value / 1000, UTC) if value else None
    except (ValueError, OverflowError, OSError):
        return None
