"""
Telling MLflow what a step did: one function that can be repeated until it is through, at once or from the spool.

What belongs to one try alone (uploads, models) is sent first; what the tries of a step share (parameters, metrics, the
run's status) only after a look whether this try is still the current one.
"""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from airflow_ml_provider.exceptions import ArtifactError, ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.hooks.mlflow_api import DeniedError
from airflow_ml_provider.models.artifact import MetricPoint, dump_metrics
from airflow_ml_provider.models.reference import METADATA_SUFFIX, ArtifactRef, model_id_of
from airflow_ml_provider.models.run import OutputFile, StepRecord
from airflow_ml_provider.tracking.artifacts import ELSEWHERE, FILE, METADATA, SHA256, SIZE, ArtifactStore
from airflow_ml_provider.tracking.lineage_tags import LEAST, TRAINED, TRAINED_ON, lineage_tags, made_by, trained_on_metrics
from airflow_ml_provider.tracking.places import Written
from airflow_ml_provider.tracking.runs import PAIRS_PER_BATCH, TRY, Run, RunTree, as_pairs, batches, now_ms, tags_of

log = logging.getLogger(__name__)

METRICS_PER_BATCH = 1000
"""MLflow's limit of points in one log-batch request."""
DIGEST_LENGTH = 36
"""MLflow's limit for the digest of a dataset; the whole sha256 stands in its source."""
SOURCE_RUN, SOURCE_URI = "airflow.source_run_id", "airflow.uri"
"""Tags of a dataset input: run that made it, and where it is."""
INPUT_TAG_LENGTH = 500
"""MLflow's limit for the value of an input's tag."""
MODEL_TYPES = {"Model"}


class Recorder:
    """
    Sends the record of a step to one MLflow server.

    :param api: The server.
    :param store: Its artifacts; None makes one.
    """

    def __init__(self, api: MlflowApi, store: ArtifactStore | None = None) -> None:
        self.api = api
        self.tree = RunTree(api)
        self.store = store or ArtifactStore(api)
        self.seal: Callable[[StepRecord], Mapping[str, str]] | None = None
        """Gives tags that are known only once the outputs are stored, and belong to the run before it is closed."""

    def send(self, record: StepRecord) -> None:
        """
        Send everything; after an error, call it again with the same record: what is through is not doubled.

        :param record: What the step did. Its outputs get their references, its metrics are emptied as they are sent.
        :raises SupersededError: a later try has taken over; its uploads are kept, the run is not touched.
        :raises RemoteUnavailableError: a server did not answer; a retry is safe.
        :raises RemoteNotFoundError: the run was deleted in MLflow.
        """
        self.store_outputs(record)
        if self.seal is not None:
            record.tags |= self.seal(record)
        self.log(record)

    def store_outputs(self, record: StepRecord) -> None:
        """
        Upload what was not uploaded yet; the first half of :meth:`send`.

        :param record: What the step did. Its outputs get their references.
        :raises ArtifactError: a file is gone, or a place cannot be written.
        :raises RemoteUnavailableError: a server did not answer; a retry is safe.
        """
        try:
            for output in record.outputs:
                if output.stored is None:
                    output.stored = self._store(record, output)
        except BaseException:
            record.tried = True
            raise

    def log(self, record: StepRecord) -> None:
        """
        Log parameters, metrics and lineage, and close the run; the second half of :meth:`send`.

        :param record: What the step did. Its metrics are emptied as they are sent.
        :raises SupersededError: a later try has taken over; the run is not touched.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        """
        run = self.tree.check_current(record.run.run_id, record.attempt)
        params, moved = _split_params(record, run)
        self._log_params(record, params)
        self._log_lineage(record, run)
        self._read_numbers(record)
        edges = lineage_tags(record.inputs, record.outputs, record.attempt.try_number, tags_of(run), record.run.run_id)
        if TRAINED in edges:
            record.metrics += [each for each in self._trained_on(record, run) if each not in record.metrics]
        self._log_points(record)
        *first, last = [*batches((record.tags | moved | edges).items(), PAIRS_PER_BATCH)] or [()]
        for some in first:
            self.tree.set_tags(record.run.run_id, dict(some))
        self.tree.close(record.run.run_id, record.status, end_time_ms=record.end_time_ms, tags=dict(last))

    def flush_metrics(self, record: StepRecord) -> None:
        """
        Send one batch of the metrics that wait, while the step runs: two requests, whatever has gathered.

        :param record: What the step did so far; its metrics are emptied as they are sent.
        :raises SupersededError: a later try has taken over.
        :raises RemoteUnavailableError: MLflow did not answer; what was not sent waits.
        """
        self.tree.check_current(record.run.run_id, record.attempt)
        self._log_batch(record)

    def _log_params(self, record: StepRecord, params: dict[str, str]) -> None:
        for some in batches(params.items(), PAIRS_PER_BATCH):
            self.api.post("runs/log-batch", {"run_id": record.run.run_id, "params": as_pairs(dict(some))})

    def _log_points(self, record: StepRecord) -> None:
        while record.metrics:
            self._log_batch(record)

    def _log_batch(self, record: StepRecord) -> None:
        some = record.metrics[:METRICS_PER_BATCH]
        self.api.post("runs/log-batch", {"run_id": record.run.run_id, "metrics": [_point(each) for each in some]})
        del record.metrics[: len(some)]

    def _log_lineage(self, record: StepRecord, run: Run) -> None:
        """Name the datasets and models that were read, and the models that were made; MLflow takes each model once."""
        number = record.attempt.try_number
        datasets = [dataset_input(each, number) for each in record.inputs if not model_id_of(each.uri)]
        models = {model_id_of(each.uri) for each in record.inputs} - {"", *_model_ids(run, "inputs", "model_inputs")}
        if datasets or models:
            self._log_inputs(record.run.run_id, datasets, [{"model_id": each} for each in models])
        made = {each.model_id for each in record.outputs} - {None, *_model_ids(run, "outputs", "model_outputs")}
        if made:
            body = {"run_id": record.run.run_id, "models": [{"model_id": each, "step": 0} for each in made]}
            self.api.post("runs/outputs", body, repeatable=False)

    def _log_inputs(self, run_id: str, datasets: list[dict[str, Any]], models: list[dict[str, Any]]) -> None:
        """Name what was read. MLflow lets a model be named by who may edit it alone: a reader's step does not fail over it."""
        body = {"run_id": run_id, "datasets": datasets, "models": models}
        try:
            self.api.post("runs/log-inputs", body, repeatable=False)
        except DeniedError as error:
            if not models:
                raise
            log.warning("The models that were read are not named as inputs of the MLflow run, but in its tags: %s", error)
            if datasets:
                self.api.post("runs/log-inputs", body | {"models": []}, repeatable=False)

    def _read_numbers(self, record: StepRecord) -> None:
        """Read what a container has stored as metadata of its outputs; what cannot be had is not on record, and fails no step."""
        for output in record.outputs:
            ref = output.stored
            if ref and ref.metadata and not output.metadata and ref.type != "Metrics" and ref.run_id == record.run.run_id:
                with tempfile.TemporaryDirectory(prefix="airflow-ml-") as folder, suppress(ArtifactError, ConfigError):
                    found: Any = self.store.read_metadata(ref, Path(folder) / "metadata.json")
                    output.metadata = found if isinstance(found, dict) else {}

    def _trained_on(self, record: StepRecord, run: Run) -> list[MetricPoint]:
        """Say of a step that has made a model which numbers its data has, where MLflow compares them: one request per maker."""
        makers = {each.run_id for each in record.inputs if each.metadata and each.run_id}
        uris = {each.uri for each in record.inputs}
        known: list[dict[str, float]] = []
        for run_id in sorted(filter(None, makers)):
            with suppress(RemoteNotFoundError, ConfigError):
                made = made_by(tags_of(self.tree.get(run_id)))
                known += [each.numbers for each in made if each.facts["uri"] in uris]
        known += _of_earlier_tries(run, {name for each in known for name in each})
        when = record.end_time_ms or now_ms()
        return [MetricPoint(key=key, value=value, timestamp_ms=when) for key, value in trained_on_metrics(known).items()]

    def _store(self, record: StepRecord, output: OutputFile) -> ArtifactRef:
        local = Path(output.path)
        if not local.exists():
            raise ArtifactError(f"output {output.name!r}: {local} is gone before it was stored. Run the step again.")
        metadata = self._store_metadata(record, output)
        if output.type in MODEL_TYPES:
            return self._store_model(record, output, local, metadata)
        suffix = "/" if local.is_dir() else ""
        if "://" in output.target:
            written = self.store.store(output.target, "", local, of_mlflow=False)
            uri = output.target + suffix
        else:
            written = self.store.store(record.run.artifact_uri, output.target, local)
            uri = f"runs:/{record.run.run_id}/{output.target}{suffix}"
        return _ref(record, output, uri, written, metadata)

    def _store_metadata(self, record: StepRecord, output: OutputFile) -> str | None:
        """Keep metadata as a file beside the artifact; that of Metrics is the artifact itself."""
        if not output.metadata or output.type == "Metrics":
            return None
        path = f"try-{record.attempt.try_number}/{output.name}{METADATA_SUFFIX}"
        with tempfile.TemporaryDirectory(prefix="airflow-ml-") as folder:
            local = Path(folder) / "metadata.json"
            local.write_text(json.dumps(output.metadata, indent=2, default=str))
            self.store.store(record.run.artifact_uri, path, local)
        return f"runs:/{record.run.run_id}/{path}"

    def _store_model(self, record: StepRecord, output: OutputFile, local: Path, metadata: str | None) -> ArtifactRef:
        if output.model_id is None:
            output.model_id = self._find_model(record, output) or self.make_model(record, output.name)
        model_uri = f"models:/{output.model_id}"
        if "://" in output.target:
            written = self.store.store(output.target, "", local, of_mlflow=False)
            uri = output.target + ("/" if local.is_dir() else "")
        else:
            file = local.name if local.is_file() else ""
            written = self.store.store(self.store.root_of(model_uri), file, local)
            uri = f"{model_uri}/{file}" if file else model_uri
        elsewhere = output.target if "://" in output.target else ""
        self.finish_model(output.model_id, written, local.name if local.is_file() else "", elsewhere, metadata)
        return _ref(record, output, uri, written, metadata)

    def _find_model(self, record: StepRecord, output: OutputFile) -> str | None:
        """Find the LoggedModel that an earlier sending of this try has made: its answer, or the note of it, was lost."""
        if not record.tried:
            return None
        of_this_try = f"source_run_id = '{record.run.run_id}' AND tags.`{TRY}` = '{record.attempt.try_number}'"
        clauses = f"{of_this_try} AND name = '{logged_name(output.name)}'"
        body = {"experiment_ids": [record.run.experiment_id], "filter": clauses, "max_results": 1}
        found = self.api.post("logged-models/search", body).get("models", [])
        return str(found[0]["info"]["model_id"]) if found else None

    def make_model(self, record: StepRecord, name: str) -> str:
        """
        Make a LoggedModel, which is pending until :meth:`finish_model`; sent once, as MLflow takes no name for a key.

        :param record: Step that makes it; its parameters become the model's.
        :param name: Name of the output.
        :return: The model's id.
        :raises RemoteUnavailableError: MLflow did not answer, and may have made it.
        """
        body = {
            "experiment_id": record.run.experiment_id,
            "name": logged_name(name),
            "source_run_id": record.run.run_id,
            "params": as_pairs(dict(islice(record.params.items(), PAIRS_PER_BATCH))),
            "tags": as_pairs(_model_tags(record)),
        }
        made = self.api.post("logged-models", body, repeatable=False)["model"]["info"]
        return str(made["model_id"])

    def finish_model(self, model_id: str, written: Written, file: str, elsewhere: str, metadata: str | None) -> None:
        """
        Say that all of a model is stored.

        :param model_id: The LoggedModel.
        :param written: Its digest, empty when nobody has read it, and its bytes.
        :param file: Name of its single file; empty for a directory.
        :param elsewhere: URI of its bytes in an object store; empty where MLflow keeps them.
        :param metadata: URI of its metadata; None for none.
        """
        tags = {SHA256: written.sha256, SIZE: str(written.size), FILE: file}
        if not written.sha256:  # an empty one would be taken for the digest of other bytes
            del tags[SHA256]
        if elsewhere:
            tags[ELSEWHERE] = elsewhere
        if metadata:
            tags[METADATA] = metadata
        path = f"logged-models/{model_id}"
        self.api.patch(f"{path}/tags", {"model_id": model_id, "tags": as_pairs(tags)})
        self.api.patch(path, {"model_id": model_id, "status": "LOGGED_MODEL_READY"})


def logged_name(output: str) -> str:
    """
    Name the LoggedModel of an output.

    :param output: Name of the output, with a dot where it is that of a task of a pipeline, which MLflow refuses.
    :return: The name, another one for each output.
    """
    return output.replace(".", " ")


def write_metrics(path: Path, values: dict[str, Any]) -> None:
    """
    Write the file of an ``Output[Metrics]``.

    :param path: Where.
    :param values: Last value per metric, and what else the step has put into its metadata.
    """
    path.write_text(dump_metrics(values))


def _ref(record: StepRecord, output: OutputFile, uri: str, written: Written, metadata: str | None) -> ArtifactRef:
    return ArtifactRef(
        type=output.type,
        name=output.name,
        uri=uri,
        sha256=written.sha256,
        size=written.size,
        run_id=record.run.run_id,
        metadata=metadata,
    )


def _split_params(record: StepRecord, run: Run) -> tuple[dict[str, str], dict[str, str]]:
    """Keep the parameters that are new; those that an earlier try has logged with another value become tags of the try."""
    earlier = {each["key"]: each["value"] for each in run["data"].get("params", [])}
    new = {key: value for key, value in record.params.items() if key not in earlier}
    changed = {key: value for key, value in record.params.items() if earlier.get(key, value) != value}
    return new, {f"try-{record.attempt.try_number}.param.{key}": value for key, value in changed.items()}


def _of_earlier_tries(run: Run, names: Collection[str]) -> list[dict[str, float]]:
    """Read the numbers of what earlier tries were trained on: MLflow searches the latest, so it has to stand for all of them."""
    said = {each["key"]: float(each["value"]) for each in run["data"].get("metrics", []) if each["key"].startswith(TRAINED_ON)}
    return [{name: said[key] for name in names if (key := f"{TRAINED_ON}{name}{end}") in said} for end in ("", LEAST)]


def _model_ids(run: Run, side: str, kind: str) -> set[str]:
    """Read which models a run names already."""
    return {str(each["model_id"]) for each in run.get(side, {}).get(kind, [])}


def _model_tags(record: StepRecord) -> dict[str, str]:
    identity = record.attempt.identity
    tags = {"airflow.dag_id": identity.dag_id, "airflow.run_id": identity.run_id, "airflow.task_id": identity.task_id}
    tags[TRY] = str(record.attempt.try_number)
    if "airflow.logical_date" in record.attempt.tags:
        tags["airflow.logical_date"] = record.attempt.tags["airflow.logical_date"]
    return tags


def dataset_input(ref: ArtifactRef, try_number: int, *, digest: str = "", context: str = "") -> dict[str, Any]:
    """
    Write an artifact that was read as MLflow's dataset input.

    :param ref: What was read.
    :param try_number: The try that has read it.
    :param digest: What others call its digest; empty takes its sha256.
    :param context: What it was read for; empty takes its name.
    :return: JSON of the input.
    """
    source = {"uri": ref.uri, "sha256": ref.sha256, "size": ref.size, "run_id": ref.run_id}
    # An experiment keeps one source per name and digest, the first: equal bytes of another DAG run would lead there.
    tags = {"mlflow.data.context": (context or ref.name)[:INPUT_TAG_LENGTH], SOURCE_RUN: ref.run_id or "", TRY: str(try_number)}
    tags |= {SOURCE_URI: ref.uri} if len(ref.uri) <= INPUT_TAG_LENGTH else {}
    return {
        "tags": as_pairs({key: value for key, value in tags.items() if value}),
        "dataset": {
            "name": ref.name,
            "digest": (digest or ref.sha256 or "unknown")[:DIGEST_LENGTH],
            "source_type": "airflow",
            "source": json.dumps({key: value for key, value in source.items() if value is not None}),
        },
    }


def _point(point: MetricPoint) -> dict[str, Any]:
    """Write a point as MLflow's JSON takes it: NaN and infinities are texts there."""
    value: float | str = point.value
    if math.isnan(point.value):
        value = "NaN"
    elif math.isinf(point.value):
        value = "Infinity" if point.value > 0 else "-Infinity"
    written = {"key": point.key, "value": value, "timestamp": point.timestamp_ms, "step": point.step}
    return written | ({"model_id": point.model_id} if point.model_id else {})
