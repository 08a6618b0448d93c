"""What a step reads, writes and logs while it runs, and what becomes of its record when it ends."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from airflow.providers.common.compat.sdk import redact

from airflow_ml_provider.config import Settings
from airflow_ml_provider.core.model_names import alias_in
from airflow_ml_provider.core.signature import StepParameter
from airflow_ml_provider.core.wiring import refs_of
from airflow_ml_provider.exceptions import (
    ArtifactError,
    ConfigError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SupersededError,
)
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.models.artifact import Artifact, MetricPoint, Metrics, load_metrics
from airflow_ml_provider.models.reference import ArtifactRef, StepOutputs
from airflow_ml_provider.models.run import OutputFile, RunStatus, StepRecord
from airflow_ml_provider.operators.attempt import redacted_text
from airflow_ml_provider.tracking.artifacts import ArtifactStore
from airflow_ml_provider.tracking.delivery import ERROR, Delivery, in_words
from airflow_ml_provider.tracking.metrics import MetricFeed
from airflow_ml_provider.tracking.record import Recorder, write_metrics
from airflow_ml_provider.tracking.runs import STATE, RunTree, now_ms

log = logging.getLogger(__name__)
A = TypeVar("A", bound=Artifact)


class Keeper(Protocol):
    """Keeps the result of a step for later ones; told when it ends well."""

    def seal(self, record: StepRecord) -> Mapping[str, str]:
        """
        Take down the result, the outputs being stored; may be called again for the same record.

        :param record: What the step did.
        :return: Tags that the run is to have before it is closed.
        """

    def write(self) -> None:
        """Keep the result, the run being closed; never raises."""


class StepSession:
    """
    What a step reads, writes and logs while it runs.

    :param api: The MLflow server.
    :param settings: The section ``[ml]``.
    :param record: What the step has to tell; its nested run is open.
    :param scratch: Folder for inputs and outputs, removed when the step ends.
    :param artifact_root: Where outputs go; None means the MLflow run's own artifacts.
    """

    def __init__(
        self, api: MlflowApi, settings: Settings, record: StepRecord, scratch: Path, artifact_root: str | None = None
    ) -> None:
        self.api = api
        self.settings = settings
        self.record = record
        self.scratch = scratch
        self.artifact_root = artifact_root
        self.recorder = Recorder(api, ArtifactStore(api))
        self.metrics = MetricFeed(api, record)
        self.delivery = Delivery(self.recorder, record, settings)
        self.killed = False
        self.taken: dict[str, list[tuple[int, ArtifactRef]]] = {}
        """Per artifact parameter what came for it: place among the record's inputs, and reference; nothing for None."""
        self.made_by = record.run.run_id
        """The nested run that made the outputs; that of an earlier step where its result stands for this one's."""
        self.keeper: Keeper | None = None
        self.registered: Mapping[str, Any] | None = None
        """The version that the step has registered, or moved an alias to, for assets and OpenLineage."""
        self._supervisor = os.getppid()
        self._outputs: dict[str, Artifact] = {}
        self.fetched: dict[int, str] = {}
        """Local place of an input that was fetched, by its place among the record's."""
        self._metadata: dict[int, dict[str, Any]] = {}

    # What a step reads

    def read(self, name: str, value: object, kind: type[A], *, optional: bool = False) -> A | None:
        """
        Take one artifact input; its bytes come when ``.path`` is first touched.

        :param name: Name of the parameter, for the record and for messages.
        :param value: Reference from XCom, or a URI.
        :param kind: Wanted type.
        :param optional: Whether an alias that does not exist yet is None.
        :return: The artifact; None only for a missing alias.
        :raises ConfigError: it is not a reference to that type, or the alias does not exist; a retry never helps.
        :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry is safe.
        """
        return self.read_parameter(StepParameter.input(name, kind, optional=optional), value)  # type: ignore[return-value]  # many=False gives no list

    def read_parameter(self, parameter: StepParameter, value: object) -> Artifact | list[Artifact] | None:
        """
        Take what a parameter of a step declares; as :meth:`read`, and a list for ``Input[list[...]]``.

        :param parameter: An artifact input.
        :param value: Reference from XCom, a URI, or a sequence of these.
        :return: The artifact or artifacts; None only for an alias that does not exist yet.
        :raises ConfigError: it is not what is declared; a retry never helps.
        """
        bound = [self._bind(parameter, index, ref) for index, ref in self._resolved(parameter, value)]
        return bound if parameter.many else next(iter(bound), None)

    def read_refs(self, parameter: StepParameter, value: object) -> list[ArtifactRef]:
        """
        Take what a parameter declares without a place for its bytes here: they are fetched elsewhere.

        :param parameter: An artifact input.
        :param value: As for :meth:`read_parameter`.
        :return: References that name bytes, with the digest as far as one is recorded; none for a missing alias.
        :raises ConfigError: it is not what is declared; a retry never helps.
        :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry is safe.
        """
        return [ref for _, ref in self._resolved(parameter, value)]

    def _resolved(self, parameter: StepParameter, value: object) -> list[tuple[int, ArtifactRef]]:
        """Resolve what came, and put it on record; gives the place in the record and the reference."""
        refs = refs_of(self.record.attempt.identity.task_id, parameter, value)
        self.taken[parameter.name] = found = []
        named = [parameter]
        if parameter.many:
            named = [replace(parameter, name=f"{parameter.name}[{index}]") for index in range(len(refs))]
        for each, ref in zip(named, refs, strict=True):
            resolved = self._resolve(each, ref)
            if resolved is not None:
                # A template may have put a password into the place of an input from outside; MLflow shows what is recorded.
                self.record.inputs.append(resolved.model_copy(update={"uri": str(redact(resolved.uri))}))
                found.append((len(self.record.inputs) - 1, resolved))
        return found

    def _resolve(self, parameter: StepParameter, ref: ArtifactRef) -> ArtifactRef | None:
        try:
            found = patiently(f"look up {ref.uri}", lambda: self.recorder.store.resolve(ref), self.settings.patience_s)
        except RemoteNotFoundError as error:
            if parameter.optional and alias_in(ref.uri):
                log.info("%s: %s does not exist yet, so it is None.", parameter.name, ref.uri)
                return None
            raise ConfigError(
                f"parameter {parameter.name!r}: there is no {ref.uri} ({error}). Promote a model first, or declare "
                f"{parameter.wanted} | None to run without one."
            ) from error
        return found.model_copy(update={"name": parameter.name})

    def _bind(self, parameter: StepParameter, index: int, ref: ArtifactRef) -> Artifact:
        return _make_input(parameter.artifact or Artifact, self, ref, index)

    def fetch(self, ref: ArtifactRef, index: int) -> str:
        """
        Bring an input here and verify it, once; called when ``.path`` is first touched.

        :param ref: Its reference.
        :param index: Its place among the record's inputs, which learns the digest that was seen.
        :return: The local file or directory.
        :raises ArtifactError: it is gone or was changed; a retry does not help.
        :raises RemoteUnavailableError: the store did not answer within the patience; a retry is safe.
        """
        if index in self.fetched:
            return self.fetched[index]
        folder = self._folder_of(ref, index)
        local, written = patiently(f"fetch {ref.name}", lambda: self.recorder.store.fetch(ref, folder), self.settings.patience_s)
        if ref.sha256 is None:
            log.info("%s: nobody has recorded a digest of %s; it is sha256 %s now.", ref.name, ref.uri, written.sha256)
            seen = {"sha256": written.sha256, "size": written.size}
            self.record.inputs[index] = self.record.inputs[index].model_copy(update=seen)
            for refs in self.taken.values():
                refs[:] = [(place, each.model_copy(update=seen) if place == index else each) for place, each in refs]
        self.fetched[index] = str(local)
        return str(local)

    def metadata_of(self, ref: ArtifactRef, index: int) -> dict[str, Any]:
        """
        Read the metadata of an input, once.

        :param ref: Its reference.
        :param index: Its place among the record's inputs.
        :return: What its maker set.
        :raises ArtifactError: it is not where it was.
        :raises RemoteUnavailableError: the store did not answer; a retry is safe.
        """
        if index not in self._metadata:
            local = self._folder_of(ref, index) / ".metadata.json"
            self._metadata[index] = self.recorder.store.read_metadata(ref, local)
        return self._metadata[index]

    def _folder_of(self, ref: ArtifactRef, index: int) -> Path:
        folder = self.scratch / "inputs" / f"{index + 1}-{ref.name}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    # What a step writes

    def write(self, name: str, kind: type[A]) -> A:
        """
        Give a place for one output; it is stored when the step ends well.

        :param name: Name of the output.
        :param kind: Its type.
        :return: The artifact to write to.
        """
        folder = self.scratch / "outputs" / name
        folder.mkdir(parents=True)
        extra: dict[str, Any] = {"log": self.metrics.add} if issubclass(kind, Metrics) else {}
        artifact = kind(name, path=str(folder / name), metadata={}, **extra)
        self._outputs[name] = artifact
        return artifact

    def log_metrics(self, values: Mapping[str, float], *, model_id: str | None = None) -> None:
        """
        Record numbers of the step itself.

        :param values: Value per metric.
        :param model_id: LoggedModel that they are about; None for none.
        """
        for key, value in values.items():
            self.metrics.add(MetricPoint(key=key, value=float(value), timestamp_ms=now_ms(), model_id=model_id))

    def log_params(self, values: Mapping[str, Any]) -> None:
        """
        Record parameters of the step, secrets masked.

        :param values: JSON value per name.
        """
        self.record.params |= redacted_text(values)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """
        Set tags on the nested run when the step ends.

        :param tags: Value per key.
        """
        self.record.tags |= tags

    def log_json(self, name: str, value: Any) -> None:
        """
        Keep a JSON document among the run's artifacts, also when the step then fails.

        :param name: Its name, without ending.
        :param value: JSON value.
        """
        file = self.scratch / f"{name}.json"
        file.write_text(json.dumps(value, indent=2, default=str))
        self.record.outputs.append(self._collect(Artifact(name, path=str(file), metadata={})))

    def outputs(self) -> dict[str, Any]:
        """
        Say what was stored, for XCom.

        :return: Plain JSON of :class:`~airflow_ml_provider.models.reference.StepOutputs`.
        """
        refs = {each.name: each.stored for each in self.record.outputs if each.stored is not None}
        return StepOutputs.of(self.made_by, refs).to_json()

    # How a step ends

    def succeed(self, state: str = "success") -> None:
        """
        Store the outputs and close the run; waits for MLflow within the patience, the record safe in the spool.

        :param state: Airflow's state, for the tag.
        :raises ArtifactError: an output was never written, or could not be stored; says what to mend.
        :raises SupersededError: a later try has taken over, or the supervisor of this one is gone.
        :raises RemoteUnavailableError: patience has run out; says where the record lies; a retry is safe.
        """
        if state != "skipped":  # a step that skips itself need not have written anything
            self.record.outputs += [self._collect(artifact) for artifact in self._outputs.values()]
        self._end("FINISHED", state)
        if self.keeper is not None:
            self.recorder.seal = self.keeper.seal
        self.delivery.succeed()
        if self.keeper is not None:
            self.keeper.write()
        for output in self.record.outputs:
            if self.made_by == self.record.run.run_id and (ref := output.stored):
                log.info("Stored %s %s: %s (%s bytes, sha256 %s)", ref.type, ref.name, ref.uri, ref.size, ref.sha256)

    def fail(self, error: BaseException, state: str) -> None:
        """
        Close the run of a step that failed, with the metrics that it had logged; never raises over the step's own error.

        :param error: Why.
        :param state: Airflow's state, for the tag.
        """
        if self.record.status == "FINISHED":  # it had ended well; its record is kept and says so
            return
        try:
            self._end("FAILED", state)
        except SupersededError as superseded:
            log.warning("%s", superseded)
            return
        self.record.tags[ERROR] = in_words(error)
        self.delivery.fail()

    def kill(self) -> None:
        """Close the run of a step that is being killed: few short requests, sent once, since there are seconds left."""
        if self.record.status != "RUNNING":
            return  # it has ended already: Airflow also calls this after an execution_timeout
        self.killed = True
        hasty = self.api.hasty()
        try:
            tree = RunTree(hasty)
            tree.check_current(self.record.run.run_id, self.record.attempt)
            tree.close(self.record.run.run_id, "KILLED", tags={STATE: "killed"})
        except (RemoteUnavailableError, RemoteNotFoundError, SupersededError, ConfigError) as error:
            log.warning("The run of the killed step stays open until `airflow-ml reconcile`: %s", error)
        finally:
            hasty.close()

    def require_current(self) -> None:
        """
        Refuse to go on where a later try has taken over; to be asked before something outside of the run is changed.

        :raises SupersededError: this try was killed, lost its supervisor, or was overtaken.
        """
        self._require_supervised()
        self.recorder.tree.check_current(self.record.run.run_id, self.record.attempt)

    def _end(self, status: RunStatus, state: str) -> None:
        self.metrics.stop()
        self._require_supervised()
        self.record.status = status
        self.record.end_time_ms = now_ms()
        self.record.tags[STATE] = state

    def _require_supervised(self) -> None:
        if self.killed or os.getppid() != self._supervisor:
            raise SupersededError(
                f"step {self.record.attempt.identity.label!r}: this try was killed or lost its supervisor, so Airflow counts "
                "it as failed whatever it returns. It records nothing more."
            )

    def _collect(self, artifact: Artifact) -> OutputFile:
        """Check that an output was written, and say where it goes."""
        local, metadata = Path(os.path.normpath(artifact.path)), _plain(artifact)
        if isinstance(artifact, Metrics) and metadata and not local.exists():
            local = local.with_suffix(".json")
            write_metrics(local, metadata)
        if not local.exists() or (local.is_dir() and all(each.is_dir() for each in local.rglob("*"))):
            raise ArtifactError(
                f"output {artifact.name!r} ({artifact.type_name}) was never written: there is nothing at {artifact.path}. "
                + ("Call its log_metric." if isinstance(artifact, Metrics) else "Write a file or a directory at its .path.")
            )
        attempt = self.record.attempt
        own = local.name.split(".")[0] == artifact.name
        target = f"try-{attempt.try_number}/{local.name if own else f'{artifact.name}/{local.name}'}"
        if self.artifact_root:
            # The run's id sets a DAG run that was deleted and made again apart from its earlier life.
            target = f"{self.artifact_root.rstrip('/')}/{attempt.identity.path}/{self.record.run.run_id[:12]}/{target}"
        return OutputFile(name=artifact.name, type=artifact.type_name, path=str(local), target=target, metadata=metadata)


def _plain(artifact: Artifact) -> dict[str, Any]:
    """Write metadata as plain JSON, which is what MLflow, the spool and the next step can keep."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(dict(artifact.metadata), default=str))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the metadata of output {artifact.name!r} is not plain JSON ({error}). Use texts as keys, and numbers, texts, lists "
            "and dictionaries of these as values."
        ) from error
    return plain


def _make_input(kind: type[Artifact], session: StepSession, ref: ArtifactRef, index: int) -> Artifact:
    """Bind a reference to an artifact that fetches itself."""

    def metadata() -> dict[str, Any]:
        if kind is Metrics:
            return load_metrics(Path(artifact.path).read_text())
        return session.metadata_of(ref, index)

    artifact = kind(ref.name, uri=ref.uri, fetch=lambda: session.fetch(ref, index), fetch_metadata=metadata)
    return artifact
