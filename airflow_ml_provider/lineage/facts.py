"""
What is told of a step to others than MLflow: what it has read and made, with what MLflow knows of that.

Asset events and OpenLineage's are written from these values. They are gathered once a step's record is closed, by requests that
are sent once and given up after 2 s: what cannot be had is left out, and fails no step.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.lineage.reading import Model, Reader
from airflow_ml_provider.lineage.values import model_tags, number
from airflow_ml_provider.models.reference import ArtifactRef, model_id_of
from airflow_ml_provider.models.run import OutputFile, StepIdentity, StepRecord
from airflow_ml_provider.tracking.artifacts import SHA256, SIZE
from airflow_ml_provider.tracking.cache_index import CACHED_FROM
from airflow_ml_provider.tracking.lineage_tags import TRAINED_ON, made_by, numbers_in
from airflow_ml_provider.tracking.runs import Run, tags_of

log = logging.getLogger(__name__)

METRICS_KEPT = 50


@dataclass(frozen=True)
class FileFacts:
    """
    What a file on this machine says of itself.

    :param columns: Type per column of a table.
    :param rows: Number of its rows; None when unknown.
    :param framework: What a model was made with; empty when unknown.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    rows: int | None = None
    framework: str = ""


NOTHING = FileFacts()


@dataclass(frozen=True)
class Known:
    """
    An artifact with what is known of it.

    :param ref: The artifact.
    :param maker: Step that made it, ``dag.task`` or ``dag.task[3]``; empty for data from outside.
    :param output: Name of the maker's output.
    :param model_id: Its LoggedModel; empty for none.
    :param numbers: Those of its metadata.
    :param file: What its file says.
    :param metrics: Of a model: of its training, and those logged of it since.
    """

    ref: ArtifactRef
    maker: str = ""
    output: str = ""
    model_id: str = ""
    numbers: Mapping[str, float] = field(default_factory=dict)
    file: FileFacts = NOTHING
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def rows(self) -> int | None:
        """Number of its rows: by its file, else by its metadata; None when unknown."""
        said = self.numbers.get("rows")
        if self.file.rows is not None or said is None or said < 0:
            return self.file.rows
        return int(said)


@dataclass(frozen=True)
class StepFacts:
    """
    What is told of a task.

    :param server: The MLflow server.
    :param inputs: What it has read.
    :param outputs: What it has made.
    :param record: The record of a step; None for a task that is about MLflow itself.
    :param run: Its nested run as MLflow has it; None where there is none, or it could not be read.
    :param registered: Version that it has registered or moved an alias to: ``name``, ``version``, and what else is known.
    :param assets: Path of the asset that an output is, ``datasets/flights``, by the output's name.
    """

    server: MlflowServer
    inputs: Sequence[Known] = ()
    outputs: Sequence[Known] = ()
    record: StepRecord | None = None
    run: Run | None = None
    registered: Mapping[str, Any] | None = None
    assets: Mapping[str, str] = field(default_factory=dict)

    @property
    def tags(self) -> Mapping[str, str]:
        """Tags of the nested run, as far as they are known."""
        return (tags_of(self.run) if self.run else {}) | (self.record.tags if self.record else {})

    @property
    def cached_from(self) -> str:
        """Run whose result stands for this step's; empty for none."""
        return self.tags.get(CACHED_FROM, "")

    @property
    def metrics(self) -> Mapping[str, float]:
        """Latest value per metric of the nested run."""
        return _metrics_of(self.run) if self.run else {}


def step_facts(
    api: MlflowApi, record: StepRecord, registered: Mapping[str, Any] | None, look: Callable[[str, int], FileFacts]
) -> StepFacts:
    """
    Gather what is told of a step.

    :param api: The server.
    :param record: Its record, closed.
    :param registered: Version that it has registered; None for none.
    :param look: Reads what a file says: that of ``"inputs"`` or ``"outputs"``, at its place in the record.
    :return: The facts; where MLflow does not answer at once, those that the record has.
    """
    refs = [*record.inputs, *(each.stored for each in record.outputs if each.stored)]
    ids = [model_id_of(each.uri) for each in refs] + [each.model_id or "" for each in record.outputs]
    found = _ask(api, [record.run.run_id, *(each.run_id for each in refs)], ids)
    inputs = [found.read(ref, look("inputs", place)) for place, ref in enumerate(record.inputs)]
    outputs = [
        found.made(record.attempt.identity, each, look("outputs", place))
        for place, each in enumerate(record.outputs)
        if each.stored is not None
    ]
    return StepFacts(api.server, inputs, outputs, record, found.runs.get(record.run.run_id), registered)


def registry_facts(api: MlflowApi, version: Mapping[str, Any]) -> StepFacts:
    """
    Gather what is told of a task that has registered a version, or moved an alias to one.

    :param api: The server.
    :param version: ``name``, ``version``, and as far as they are known ``source``, ``run_id``, ``sha256`` of what was registered.
    :return: The facts.
    """
    source, run_id = str(version.get("source") or ""), version.get("run_id") or None
    if not source:
        return StepFacts(api.server, registered=version)
    ref = ArtifactRef(type="Model", name="model", uri=source, run_id=run_id, sha256=version.get("sha256") or None)
    found = _ask(api, [run_id], [model_id_of(ref.uri)])
    return StepFacts(api.server, [found.read(ref, NOTHING)], registered=version)


def label_of(identity: StepIdentity) -> str:
    """
    Name a step as the maker of its outputs.

    :param identity: The task instance.
    :return: ``dag.task``, ``dag.task[3]`` for an instance of a mapped one.
    """
    return f"{identity.dag_id}.{identity.label}"


@dataclass(frozen=True)
class _Found:
    """What MLflow knows: runs and LoggedModels by id."""

    runs: Mapping[str, Run] = field(default_factory=dict)
    models: Mapping[str, Model] = field(default_factory=dict)

    def made(self, identity: StepIdentity, output: OutputFile, file: FileFacts) -> Known:
        """Describe an output; one of a cache hit is as much this step's as the earlier one's."""
        ref, model_id = output.stored, output.model_id or ""
        if ref is None:
            raise AssertionError("only what was stored is told of")
        maker = self.runs.get(ref.run_id or "")
        return Known(
            ref=ref,
            maker=label_of(identity),
            output=output.name,
            model_id=model_id,
            numbers=numbers_in(output.metadata) or _entry(maker, ref)[1],
            file=_with_metadata(file, output.metadata),
            metrics=_model_metrics(maker, self.models.get(model_id)) if model_id else {},
        )

    def read(self, ref: ArtifactRef, file: FileFacts) -> Known:
        """Describe an input, by the step that made it where one of ours did."""
        model_id = model_id_of(ref.uri)
        model = self.models.get(model_id)
        if model and ref.sha256 is None:
            tags = model_tags(model)
            ref = ref.model_copy(update={"sha256": tags.get(SHA256), "size": number(tags.get(SIZE))})
        maker = self.runs.get(ref.run_id or "")
        output, numbers = _entry(maker, ref)
        return Known(
            ref=ref,
            maker=_maker(maker) if maker and output else "",
            output=output,
            model_id=model_id,
            numbers=numbers,
            file=file,
            metrics=_model_metrics(maker, model) if ref.type == "Model" else {},
        )


def _ask(api: MlflowApi, run_ids: Iterable[str | None], model_ids: Iterable[str]) -> _Found:
    hasty = api.hasty()
    try:
        reader = Reader(hasty)
        runs = reader.runs(filter(None, run_ids))
        return _Found(runs, reader.models(filter(None, model_ids)))
    except Exception as error:  # noqa: BLE001  (whatever it is, the step has ended)
        log.info("Less is told of this step to assets and OpenLineage, as MLflow did not say more: %s", error)
        return _Found()
    finally:
        hasty.close()


def _entry(maker: Run | None, ref: ArtifactRef) -> tuple[str, Mapping[str, float]]:
    """Find the output of its maker that an artifact is, and the numbers of its metadata; empty where it is not on record."""
    for each in made_by(tags_of(maker)) if maker else ():
        if _place(each.facts["uri"]) == _place(ref.uri):
            return each.name, each.numbers
    return "", {}


def _place(uri: str) -> str:
    """Name a place; a model is named by its id, with its only file or without."""
    return model_id_of(uri) or uri.rstrip("/")


def _maker(run: Run) -> str:
    tags = tags_of(run)
    dag_id, task_id, index = (tags.get(f"airflow.{key}", "") for key in ("dag_id", "task_id", "map_index"))
    if not (dag_id and task_id):
        return ""
    return label_of(StepIdentity(dag_id=dag_id, run_id="", task_id=task_id, map_index=int(index) if index.isdecimal() else -1))


def _model_metrics(maker: Run | None, model: Model | None) -> dict[str, float]:
    points = (model or {}).get("data", {}).get("metrics", [])
    return dict([*(_metrics_of(maker) if maker else {}).items(), *_finite(points).items()][-METRICS_KEPT:])


def _metrics_of(run: Run) -> dict[str, float]:
    points = [each for each in run["data"].get("metrics", []) if not each["key"].startswith(TRAINED_ON)]
    return dict(list(_finite(points).items())[:METRICS_KEPT])


def _finite(points: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Read metrics; infinities and NaN are texts in MLflow's JSON, and nothing in that of others."""
    found = {str(each["key"]): float(each["value"]) for each in points}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _with_metadata(file: FileFacts, metadata: Mapping[str, Any]) -> FileFacts:
    """Add what the author says: ``metadata["schema"] = {"day": "date"}``, ``metadata["framework"] = "torch"``."""
    schema, framework = metadata.get("schema"), metadata.get("framework")
    columns = {str(key): str(value) for key, value in schema.items()} if isinstance(schema, Mapping) else file.columns
    return FileFacts(columns, file.rows, framework if isinstance(framework, str) and framework else file.framework)
