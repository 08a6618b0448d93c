"""Nights on record: DAG runs written to a real MLflow by the code that steps use."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.artifact import MetricPoint
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.models.run import Attempt, OutputFile, StepIdentity, StepRecord
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.registry import ModelRegistry
from airflow_ml_provider.tracking.runs import RunTree, now_ms

COMMIT = "4" * 40


@dataclass
class Night:
    """
    One DAG run whose steps are recorded one by one.

    :param api: A real server.
    :param folder: For the files of the steps.
    :param dag_id: DAG, and experiment.
    :param run_id: DAG run.
    """

    api: MlflowApi
    folder: Path
    dag_id: str
    run_id: str = "scheduled__2013-12-30"
    runs: dict[str, str] = field(default_factory=dict)

    def open(self, task_id: str, try_number: int = 1) -> StepRecord:
        """Open the run of a step, as an attempt of it does."""
        identity = StepIdentity(dag_id=self.dag_id, run_id=self.run_id, task_id=task_id)
        tags = {
            "airflow.log_url": f"http://localhost:8080/dags/{self.dag_id}/runs/{self.run_id}/tasks/{task_id}?try_number=1",
            "airflow.logical_date": "2013-12-30T02:00:00+00:00",
            "mlflow.source.git.commit": COMMIT,
        }
        attempt = Attempt(identity=identity, try_number=try_number, ti_id=str(uuid.uuid4()), tags=tags)
        run = RunTree(self.api).open(self.dag_id, attempt)
        self.runs[task_id] = run.run_id
        return StepRecord(conn_id="mlflow_default", attempt=attempt, run=run)

    def step(
        self,
        task_id: str,
        reads: list[ArtifactRef] | None = None,
        makes: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
        metrics: dict[str, float] | None = None,
    ) -> dict[str, ArtifactRef]:
        """Record a step that ended well; ``makes`` is type per output."""
        record = self.open(task_id)
        record.params, record.inputs = params or {}, reads or []
        record.metrics = [MetricPoint(key=key, value=value, timestamp_ms=now_ms()) for key, value in (metrics or {}).items()]
        record.outputs = [self.output(record, name, kind) for name, kind in (makes or {}).items()]
        record.status, record.end_time_ms = "FINISHED", now_ms()
        Recorder(self.api).send(record)
        return {each.name: each.stored for each in record.outputs if each.stored is not None}

    def output(self, record: StepRecord, name: str, kind: str) -> OutputFile:
        """Write an output; the same bytes for the same step and name, on any night."""
        local = self.folder / record.run.run_id / f"{name}.bin"
        local.parent.mkdir(parents=True, exist_ok=True)
        local.write_text(json.dumps([record.attempt.identity.task_id, name]))
        return OutputFile(name=name, type=kind, path=str(local), target=f"try-1/{local.name}")

    def whole(self, name: str | None = None) -> ArtifactRef:
        """Record validate -> features -> train, and register the model as champion if it gets a name."""
        raw = self.step("validate", makes={"flights": "Dataset", "weather": "Dataset"}, params={"day": "2013-12-30"})
        known = self.step("features", list(raw.values()), {"table": "Dataset"}, {"day": "2013-12-30"})
        fit = self.step("train", [known["table"]], {"model": "Model"}, {"max_iter": "300"}, {"loss": 0.25})
        if name:
            model_id = fit["model"].uri.removeprefix("models:/").split("/")[0]
            registry = ModelRegistry(self.api)
            version = registry.register(name, f"models:/{model_id}", run_id=self.runs["train"], model_id=model_id)
            registry.promote(name, version.version)
        return fit["model"]


def outside(name: str = "raw") -> ArtifactRef:
    """Data that no run has made."""
    return ArtifactRef(type="Dataset", name=name, uri=f"s3://bucket/{name}.csv", sha256="a" * 64, size=7)
