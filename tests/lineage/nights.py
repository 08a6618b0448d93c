"""Nights on record: DAG runs written to a real MLflow by the code that steps use."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.artifact import MetricPoint
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.models.run import Attempt, OutputFile, StepIdentity, StepRecord
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.registry import ModelRegistry
from airflow_ml_provider.tracking.runs import RunTree, now_ms

COMMIT = "4" * 40


class Counted(MlflowApi):
    """Keeps the names of what it asks for."""

    sent: list[str]

    def _send(self, method: str, url: str, **rest: Any) -> Any:
        self.sent.append(url.rpartition("/mlflow/")[2])
        return super()._send(method, url, **rest)


@dataclass
class Night:
    """
    One DAG run whose steps are recorded one by one.

    :param api: A real server.
    :param folder: For the files of the steps.
    :param dag_id: DAG, and experiment.
    :param run_id: DAG run.
    :param commit: Commit of its code.
    :param salt: Part of the bytes of all outputs; the same bytes on nights with the same.
    """

    api: MlflowApi
    folder: Path
    dag_id: str
    run_id: str = "scheduled__2013-12-30"
    commit: str = COMMIT
    salt: str = ""
    runs: dict[str, str] = field(default_factory=dict)
    table: ArtifactRef | None = None

    def open(self, task_id: str, try_number: int = 1, map_index: int = -1) -> StepRecord:
        """Open the run of a step, as an attempt of it does."""
        identity = StepIdentity(dag_id=self.dag_id, run_id=self.run_id, task_id=task_id, map_index=map_index)
        tags = {
            "airflow.log_url": f"http://localhost:8080/dags/{self.dag_id}/runs/{self.run_id}/tasks/{task_id}?try_number=1",
            "airflow.logical_date": "2013-12-30T02:00:00+00:00",
            "mlflow.source.git.commit": self.commit,
        }
        attempt = Attempt(identity=identity, try_number=try_number, ti_id=str(uuid.uuid4()), tags=tags)
        run = RunTree(self.api).open(self.dag_id, attempt)
        self.runs[identity.label] = run.run_id
        return StepRecord(conn_id="mlflow_default", attempt=attempt, run=run)

    def step(
        self,
        task_id: str,
        reads: list[ArtifactRef] | None = None,
        makes: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
        metrics: dict[str, float] | None = None,
        *,
        try_number: int = 1,
        map_index: int = -1,
        rows: int | None = None,
        taken: dict[str, ArtifactRef] | None = None,
    ) -> dict[str, ArtifactRef]:
        """Record a step that ended well; ``makes`` is type per output, ``taken`` what a cache hit took over."""
        record = self.open(task_id, try_number, map_index)
        record.params, record.inputs = params or {}, reads or []
        record.metrics = [MetricPoint(key=key, value=value, timestamp_ms=now_ms()) for key, value in (metrics or {}).items()]
        record.outputs = [self.output(record, name, kind) for name, kind in (makes or {}).items()]
        for each in record.outputs:
            each.metadata = {"rows": rows} if rows is not None and each.type == "Dataset" else {}
        for name, ref in (taken or {}).items():
            model_id = ref.uri.removeprefix("models:/").split("/")[0] if ref.uri.startswith("models:/") else None
            taken_over = OutputFile(name=name, type=ref.type, path="", target="", model_id=model_id, stored=ref)
            record.outputs.append(taken_over)
            record.tags["airflow.cached_from"] = ref.run_id or ""
        record.status, record.end_time_ms = "FINISHED", now_ms()
        Recorder(self.api).send(record)
        return {each.name: each.stored for each in record.outputs if each.stored is not None}

    def output(self, record: StepRecord, name: str, kind: str) -> OutputFile:
        """Write an output; the same bytes for the same step and name, on any night."""
        local = self.folder / record.run.run_id / f"{name}.bin"
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_text(json.dumps([record.attempt.identity.label, name, *filter(None, [self.salt])]))
        return OutputFile(name=name, type=kind, path=str(local), target=f"try-{record.attempt.try_number}/{local.name}")

    def whole(self, name: str | None = None, *, rows: int | None = None) -> ArtifactRef:
        """Record validate -> features -> train, and register the model as champion if it gets a name."""
        raw = self.step("validate", makes={"flights": "Dataset", "weather": "Dataset"}, params={"day": "2013-12-30"})
        known = self.step("features", list(raw.values()), {"table": "Dataset"}, {"day": "2013-12-30"}, rows=rows)
        self.table = known["table"]
        fit = self.step("train", [known["table"]], {"model": "Model"}, {"max_iter": "300"}, {"loss": 0.25})
        if name:
            self.register(name, fit["model"])
        return fit["model"]

    def register(self, name: str, model: ArtifactRef) -> str:
        """Register a model, and make it the champion; gives its version."""
        model_id = model.uri.removeprefix("models:/").split("/")[0]
        registry = ModelRegistry(self.api)
        version = registry.register(name, f"models:/{model_id}", run_id=model.run_id or "", model_id=model_id)
        registry.promote(name, version.version)
        return version.version


def outside(name: str = "raw") -> ArtifactRef:
    """Data that no run has made."""
    return ArtifactRef(type="Dataset", name=name, uri=f"s3://bucket/{name}.csv", sha256="a" * 64, size=7)
