"""
What MLflow knows of a step in a pod: the plan (what it was given), the manifest (what it has told), the record made of both.

The container writes to MLflow itself, so everything that it may write to exists before it starts: its run, and a pending
LoggedModel for each model. The plan lies beside the manifest, so whoever finds the pod's end can finish the step: the worker that
made the pod, one that took it up, or one that comes when the pod is gone.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_ml_provider.exceptions import ArtifactError, ConfigError, RemoteNotFoundError
from airflow_ml_provider.models.artifact import MetricPoint
from airflow_ml_provider.models.pod_step import StepManifest, StepWritten
from airflow_ml_provider.models.reference import METADATA_SUFFIX, ArtifactRef
from airflow_ml_provider.models.run import OpenRun, OutputFile, StepRecord, mlflow_name
from airflow_ml_provider.tracking.artifacts import ArtifactStore
from airflow_ml_provider.tracking.places import Written, place_for
from airflow_ml_provider.tracking.record import MODEL_TYPES, Recorder

log = logging.getLogger(__name__)

MANIFEST, PLAN = "manifest.json", "plan.json"
"""What is kept of every try, beside its outputs."""
POD, NODE, GPU, END, EXIT_CODE = "airflow.pod", "airflow.pod.node", "airflow.pod.gpu", "airflow.pod.end", "airflow.pod.exit_code"
"""Tags of a nested run: ``namespace/name``, what it ran on, what became of it."""
IMAGE = "airflow.image"
"""Tag of a nested run: image that it ran in, as it was named."""
MEMORY_GIB, CHECKPOINT = "airflow.pod.memory_gib", "airflow.pod.checkpoint"
"""GiB that the next try is given after one that ran out of memory; the last complete checkpoint."""
WAITING = "airflow.pod.waiting"
"""``<try>/<clears>`` while there is a pod whose end was not read: known on every Airflow, and when the pod is gone."""


class PlannedOutput(BaseModel):
    """
    An output that a pod was asked for.

    :param type: Name of its artifact type.
    :param root: URI of the folder that it is stored in, as references name it.
    :param model_id: LoggedModel that was made for it; empty for what is no model.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    type: str
    root: str
    model_id: str = ""

    @property
    def elsewhere(self) -> str:
        """The root where it lies in an object store, empty where MLflow keeps it."""
        return "" if self.root.startswith(("runs:/", "models:/")) else self.root


class StepPlan(BaseModel):
    """
    What a pod was given, kept in MLflow as ``try-N/plan.json`` before it is made.

    :param version: Of this shape.
    :param try_number: Try that made the pod; its manifest and its outputs are that try's.
    :param tells: Whether the container writes a manifest; a plain pod has an exit code alone.
    :param beside: Whether what tells runs beside the program, and so does not know how that has ended.
    :param params: Parameters for the record, secrets masked.
    :param inputs: Artifacts that it reads, in order; of a list ``name[0]``, ``name[1]``, ...
    :param outputs: Per name what it is to write.
    :param memory_gib: GiB that it was given; None where nothing was said.
    :param cache: What is needed to keep its result for later runs; empty for no cache, and in plans of earlier releases.
    """

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    try_number: int
    tells: bool = True
    beside: bool = False
    params: dict[str, str] = Field(default_factory=dict)
    inputs: list[ArtifactRef] = Field(default_factory=list)
    outputs: dict[str, PlannedOutput] = Field(default_factory=dict)
    memory_gib: float | None = None
    cache: dict[str, Any] = Field(default_factory=dict)


def plan_outputs(
    recorder: Recorder, record: StepRecord, outputs: Mapping[str, str], artifact_root: str | None
) -> dict[str, PlannedOutput]:
    """
    Choose the places of a pod's outputs, and make the LoggedModels.

    :param recorder: The MLflow server.
    :param record: Of the try; its parameters become the models'.
    :param outputs: Artifact type per name.
    :param artifact_root: URI in an object store, below which they are stored; None means MLflow's own store.
    :return: Place per name.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe, and makes other models.
    """
    attempt, run_id = record.attempt, record.run.run_id
    folder = f"runs:/{run_id}/try-{attempt.try_number}"
    if artifact_root:
        folder = f"{artifact_root.rstrip('/')}/{attempt.identity.path}/{run_id[:12]}/try-{attempt.try_number}"
    planned = {}
    for name, kind in outputs.items():
        if kind in MODEL_TYPES:
            model_id = recorder.make_model(record, name)
            root = f"{folder}/{name}" if artifact_root else f"models:/{model_id}"
            planned[name] = PlannedOutput(type=kind, root=root, model_id=model_id)
        else:
            planned[name] = PlannedOutput(type=kind, root=folder)
    return planned


def keep_plan(store: ArtifactStore, run: OpenRun, plan: StepPlan) -> None:
    """
    Store the plan of a try, before its pod is made.

    :param store: Artifacts of the server.
    :param run: Nested run.
    :param plan: The plan.
    :raises RemoteUnavailableError: the store did not answer; a retry is safe.
    """
    with tempfile.TemporaryDirectory(prefix="airflow-ml-") as folder:
        local = Path(folder) / PLAN
        local.write_text(plan.model_dump_json(indent=2, exclude_defaults=True))
        store.store(run.artifact_uri, f"try-{plan.try_number}/{PLAN}", local)


def read_plan(store: ArtifactStore, run: OpenRun, try_number: int) -> StepPlan:
    """
    Read what the pod of a try was given.

    :param store: Artifacts of the server.
    :param run: Nested run.
    :param try_number: The try that made the pod.
    :return: The plan.
    :raises ArtifactError: there is none; a clear of the task makes a new pod.
    :raises ConfigError: another release wrote it; a retry never helps.
    :raises RemoteUnavailableError: the store did not answer; a retry is safe.
    """
    content = _read(store, run, f"try-{try_number}/{PLAN}")
    if content is None:
        raise ArtifactError(
            f"run {run.run_id} has no try-{try_number}/{PLAN}, which says what its pod was given. Somebody has removed it: clear "
            "the task, which makes a new pod."
        )
    try:
        return StepPlan.model_validate_json(content)
    except ValidationError as error:
        raise ConfigError(
            f"try-{try_number}/{PLAN} of run {run.run_id} cannot be read by this release: {error.errors()[0]['msg']}. Clear the "
            "task, which makes a new pod."
        ) from error


def read_manifest(store: ArtifactStore, run: OpenRun, try_number: int, sha256: str = "") -> StepManifest | None:
    """
    Read what the pod of a try has told.

    :param store: Artifacts of the server.
    :param run: Nested run.
    :param try_number: The try that made the pod.
    :param sha256: Digest that its termination message names; empty where it is not known.
    :return: The manifest; None where the store says that there is none.
    :raises ArtifactError: it is not the one that the termination message names; a retry of the read does not help.
    :raises ConfigError: it is of another version; a retry never helps.
    :raises RemoteUnavailableError: the store did not answer; a retry is safe.
    """
    content = _read(store, run, f"try-{try_number}/{MANIFEST}")
    if content is None:
        return None
    seen = hashlib.sha256(content).hexdigest()
    if sha256 and seen != sha256:
        raise ArtifactError(
            f"try-{try_number}/{MANIFEST} of run {run.run_id} has sha256 {seen}; the pod's termination message names {sha256}. "
            "It was changed in the store after the pod had written it, so what it says is not taken. Retry the task."
        )
    return StepManifest.read_text(content)


def missing_outputs(plan: StepPlan, manifest: StepManifest | None) -> list[str]:
    """
    Name the outputs that were asked for and not stored.

    :param plan: What was asked for.
    :param manifest: What was told; None for nothing.
    :return: Names in order.
    """
    return [name for name in plan.outputs if manifest is None or name not in manifest.outputs]


def fill_record(record: StepRecord, plan: StepPlan, manifest: StepManifest | None) -> None:
    """
    Put into a step's record what its pod was given and what it has told; safe to repeat.

    :param record: Record of the try that finishes the step, which need not be the one that made the pod.
    :param plan: What the pod was given.
    :param manifest: What it has told; None for nothing, and then its parameters and inputs are on record all the same.
    """
    read = manifest.read if manifest else {}
    record.params = plan.params | record.params
    record.inputs = [_with_digest(each, read) for each in plan.inputs]
    if manifest is None:
        return
    record.params |= {mlflow_name(key): value for key, value in manifest.params.items()}
    record.metrics = [
        MetricPoint(key=mlflow_name(key), value=float(value), timestamp_ms=timestamp, step=step)
        for key, value, timestamp, step in manifest.unsent
    ]
    record.outputs = [
        _output(record.run.run_id, plan, name, written) for name, written in manifest.outputs.items() if name in plan.outputs
    ]


def settle_models(recorder: Recorder, plan: StepPlan, record: StepRecord) -> None:
    """
    Say of each LoggedModel that was made for the pod whether it is whole; safe to repeat.

    :param recorder: The MLflow server.
    :param plan: What the pod was given.
    :param record: Its record, filled.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    stored = {each.name: each.stored for each in record.outputs}
    for name, planned in plan.outputs.items():
        ref = stored.get(name)
        if not planned.model_id:
            continue
        if ref is None:
            _abandon(recorder, planned.model_id)
            continue
        written = Written(ref.sha256 or "", ref.size or 0)
        file = ref.uri.removeprefix(planned.root).strip("/")
        recorder.finish_model(planned.model_id, written, file, planned.elsewhere, ref.metadata)


def abandon_models(recorder: Recorder, plan: StepPlan) -> None:
    """
    Say of the LoggedModels of a pod that was never made, or is given up, that nothing will come.

    :param recorder: The MLflow server.
    :param plan: What the pod was to be given.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    for planned in plan.outputs.values():
        if planned.model_id:
            _abandon(recorder, planned.model_id)


def _abandon(recorder: Recorder, model_id: str) -> None:
    try:
        recorder.api.patch(f"logged-models/{model_id}", {"model_id": model_id, "status": "LOGGED_MODEL_UPLOAD_FAILED"})
    except RemoteNotFoundError:
        log.info("LoggedModel %s, which was never filled, was deleted already.", model_id)


def _with_digest(ref: ArtifactRef, read: Mapping[str, tuple[str, int]]) -> ArtifactRef:
    """Add the digest that the container has seen of an input, where nobody had recorded one."""
    if ref.sha256 is not None or ref.name not in read:
        return ref
    sha256, size = read[ref.name]
    return ref.model_copy(update={"sha256": sha256, "size": size})


def _output(run_id: str, plan: StepPlan, name: str, written: StepWritten) -> OutputFile:
    planned = plan.outputs[name]
    folder, _, file = written.file.rpartition("/")
    if folder not in {"", name} or file in {".", ".."}:
        raise ConfigError(f"the step's manifest names {written.file!r} as the file of output {name!r}, which is no place for it.")
    metadata = f"runs:/{run_id}/try-{plan.try_number}/{name}{METADATA_SUFFIX}" if written.metadata else None
    ref = ArtifactRef(
        type=planned.type,
        name=name,
        uri=_uri(planned, name, written.file),
        sha256=written.sha256,
        size=written.size,
        run_id=run_id,
        metadata=None if planned.type == "Metrics" else metadata,
    )
    return OutputFile(name=name, type=planned.type, path="", target="", model_id=planned.model_id or None, stored=ref)


def _uri(planned: PlannedOutput, name: str, file: str) -> str:
    """Name what was stored as the worker's own steps name it: folders end in a slash, and whole LoggedModels do not."""
    if file:
        return f"{planned.root}/{file}"
    if not planned.model_id:
        return f"{planned.root}/{name}/"
    return f"{planned.root}/" if planned.elsewhere else planned.root


def _read(store: ArtifactStore, run: OpenRun, path: str) -> bytes | None:
    """Read a small file of a run; None only where the store answers that there is none."""
    with tempfile.TemporaryDirectory(prefix="airflow-ml-") as scratch:
        local = Path(scratch) / "file"
        try:
            place_for(store.api, run.artifact_uri, of_mlflow=True).read(path, local)
        except RemoteNotFoundError:
            return None
        return local.read_bytes()
