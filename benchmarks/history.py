"""Years of nights on record: rows written into MLflow's own SQLite database, as steps would have by REST in hours."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_ml_provider.models.reference import ArtifactRef, model_id_of
from airflow_ml_provider.models.run import OutputFile
from airflow_ml_provider.tracking.lineage_tags import TRAINED, lineage_tags

DAGS = 10
PARTS, FEATURES = 6, 8
TASKS = 20
START_MS, DAY_MS = 1_400_000_000_000, 86_400_000
ROWS_AT_ONCE = 300
"""Nights that are written together."""
Rows = dict[str, list[dict[str, Any]]]


@dataclass
class Night:
    """
    One DAG run of 20 tasks: raw data in 6 parts, joined, 8 features of it, a table of them, a model, an evaluation, a report.

    :param experiment_id: Of its DAG, in MLflow.
    :param dag: Number of the DAG.
    :param number: Number of the night.
    :param model: Model of the night before, which the evaluation reads too; None in the first.
    """

    experiment_id: int
    dag: int
    number: int
    model: ArtifactRef | None
    rows: Rows = field(default_factory=lambda: defaultdict(list))

    @property
    def dag_id(self) -> str:
        """Name of DAG, experiment and registered model."""
        return f"flights-{self.dag}"

    @property
    def run_id(self) -> str:
        """Id of the DAG run."""
        return f"scheduled__{self.number:05}"

    def write(self) -> ArtifactRef:
        """
        Make the rows.

        :return: The model.
        """
        self._run("", -1, 0, {})
        raw_file = ArtifactRef(
            type="Dataset", name="source", uri=place_of(self.dag), sha256=_digest("source", self.dag, self.number), size=9_000
        )
        raw = self._step("extract", -1, 1, [raw_file], "raw", rows=self.number)
        parts = [self._step("clean", each, 2 + each, [raw], "part", rows=9) for each in range(PARTS)]
        joined = self._step("join", -1, 8, _list(parts, "parts"), "joined", rows=self.number)
        features = [self._step(f"feature_{each}", -1, 9 + each, [joined], "feature", rows=9) for each in range(FEATURES)]
        table = self._step("table", -1, 17, _list(features, "features"), "table", rows=self.number)
        model = self._step("train", -1, 18, [table], "model", kind="Model")
        reads = [model, table, *([self.model.model_copy(update={"name": "champion"})] if self.model else [])]
        scores = self._step("evaluate", -1, 19, reads, "scores")
        self._step("report", -1, 20, [scores], "page")
        return model

    def _step(
        self,
        task: str,
        index: int,
        minute: int,
        reads: Sequence[ArtifactRef],
        makes: str,
        *,
        kind: str = "Dataset",
        rows: int = 0,
    ) -> ArtifactRef:
        run_id = _digest("run", self.dag, self.number, task, index)[:32]
        sha256 = _digest(run_id, makes)
        model_id = f"m-{sha256[:32]}" if kind == "Model" else None
        uri = f"models:/{model_id}/model.bin" if model_id else f"runs:/{run_id}/try-1/{makes}.bin"
        made = ArtifactRef(type=kind, name=makes, uri=uri, sha256=sha256, size=12_345, run_id=run_id)
        metadata = {"rows": rows} if rows else {}
        output = OutputFile(name=makes, type=kind, path="", target="", metadata=metadata, model_id=model_id, stored=made)
        identity = {"airflow.task_id": task, "airflow.map_index": str(index), "airflow.try_number": "1"}
        tags = identity | lineage_tags(reads, [output], 1, {}, run_id)
        self._run(task if index < 0 else f"{task}[{index}]", index, minute, tags, run_id)
        for each in reads:
            self._read(run_id, each)
        if model_id:
            self._model(run_id, model_id, sha256)
        return made

    def _run(self, name: str, index: int, minute: int, tags: dict[str, str], run_id: str = "") -> None:
        run_id = run_id or _digest("run", self.dag, self.number)[:32]
        start = START_MS + self.number * DAY_MS + minute * 60_000 + self.dag
        self.rows["SqlRun"].append({
            "run_uuid": run_id, "name": name or self.run_id, "source_type": "UNKNOWN", "status": "FINISHED", "start_time": start,
            "end_time": start + 50_000, "lifecycle_stage": "active", "experiment_id": self.experiment_id, "user_id": "airflow",
            "artifact_uri": f"mlflow-artifacts:/{self.experiment_id}/{run_id}/artifacts",
        })  # fmt: skip
        every = {
            "airflow.key": _digest(self.dag, self.number, name)[:32], "airflow.dag_id": self.dag_id,
            "airflow.run_id": self.run_id,
            "airflow.state": "success", "airflow.ti_id": run_id, "airflow.operator": "@task.ml", "airflow.version": "3.3.2",
            "airflow.logical_date": "2014-05-13T00:00:00+00:00", "airflow_ml_provider.version": "0.1.0",
            "airflow.log_url": f"http://localhost:8080/dags/{self.dag_id}/runs/{self.run_id}/tasks/{name}?try_number=1",
            "mlflow.runName": name or self.run_id, "mlflow.source.git.commit": "4" * 40,
        }  # fmt: skip
        if name:
            every["mlflow.parentRunId"] = _digest("run", self.dag, self.number)[:32]
        self.rows["SqlTag"] += [{"run_uuid": run_id, "key": key, "value": value} for key, value in (every | tags).items()]
        values = {"max_iter": "300", "night": str(self.number), "index": str(index)}
        self.rows["SqlParam"] += [{"run_uuid": run_id, "key": key, "value": value} for key, value in values.items()]
        metrics = {"loss": 0.25, "seconds": float(minute), "rows": float(self.number)}
        if TRAINED in tags:
            metrics |= {"trained_on.rows": float(self.number)}
        for key, value in metrics.items():
            latest = {"run_uuid": run_id, "key": key, "value": value, "timestamp": start, "step": 0, "is_nan": False}
            self.rows["SqlLatestMetric"].append(latest)

    def _read(self, run_id: str, ref: ArtifactRef) -> None:
        if model_id := model_id_of(ref.uri):
            self._input("RUN_INPUT", run_id, "MODEL_INPUT", model_id)
            return
        dataset = _digest("dataset", self.experiment_id, ref.name, ref.sha256)[:32]
        self.rows["SqlDataset"].append({
            "dataset_uuid": dataset, "experiment_id": self.experiment_id, "name": ref.name, "digest": (ref.sha256 or "")[:36],
            "dataset_source_type": "airflow",
            "dataset_source": json.dumps({"uri": ref.uri, "sha256": ref.sha256, "size": ref.size, "run_id": ref.run_id}),
        })  # fmt: skip
        key = self._input("DATASET", dataset, "RUN", run_id)
        tags = {"mlflow.data.context": ref.name, "airflow.try_number": "1", "airflow.uri": ref.uri}
        tags |= {"airflow.source_run_id": ref.run_id} if ref.run_id else {}
        self.rows["SqlInputTag"] += [{"input_uuid": key, "name": name, "value": value} for name, value in tags.items()]

    def _input(self, source_type: str, source: str, target_type: str, target: str) -> str:
        key = _digest(source_type, source, target)[:32]
        self.rows["SqlInput"].append({
            "input_uuid": key, "source_type": source_type, "source_id": source, "destination_type": target_type,
            "destination_id": target, "step": 0,
        })  # fmt: skip
        return key

    def _model(self, run_id: str, model_id: str, sha256: str) -> None:
        when = START_MS + self.number * DAY_MS
        self.rows["SqlLoggedModel"].append({
            "model_id": model_id, "experiment_id": self.experiment_id, "name": "model", "creation_timestamp_ms": when,
            "artifact_location": f"mlflow-artifacts:/{self.experiment_id}/models/{model_id}", "last_updated_timestamp_ms": when,
            "status": 2, "lifecycle_stage": "active", "source_run_id": run_id,
        })  # fmt: skip
        version = str(self.number + 1)
        tags = {"airflow.sha256": sha256, "airflow.size": "12345", "airflow.try_number": "1"}
        tags["mlflow.modelVersions"] = json.dumps([{"name": self.dag_id, "version": version}])
        one = {"model_id": model_id, "experiment_id": self.experiment_id}
        self.rows["SqlLoggedModelTag"] += [one | {"tag_key": key, "tag_value": value} for key, value in tags.items()]
        self._input("RUN_OUTPUT", run_id, "MODEL_OUTPUT", model_id)
        self.rows["SqlModelVersion"].append({
            "workspace": "default", "name": self.dag_id, "version": int(version), "source": f"models:/{model_id}",
            "run_id": run_id,
            "creation_time": when, "last_updated_time": when, "status": "READY", "current_stage": "None",
        })  # fmt: skip


def place_of(dag: int) -> str:
    """
    Name the raw data of a DAG, which lies at one place each night, with other bytes.

    :param dag: Number of the DAG.
    :return: Its URI.
    """
    return f"s3://flights/{dag}/raw.csv"


def write_history(database: Path, experiment_ids: Sequence[int], runs: int) -> int:
    """
    Fill the database of a server.

    :param database: The SQLite file, made by MLflow.
    :param experiment_ids: Of the DAGs.
    :param runs: How many, about: those of DAG runs count too.
    :return: Nights of each DAG.
    """
    from mlflow.store.model_registry.dbmodels import models as registry
    from mlflow.store.tracking.dbmodels import models as tracking
    from sqlalchemy import create_engine, insert

    nights = max(2, runs // ((TASKS + 1) * DAGS))
    engine = create_engine(f"sqlite:///{database}")
    for some in _written(experiment_ids, nights):
        with engine.begin() as connection:
            for name, rows in some.items():
                table = getattr(tracking, name, None) or getattr(registry, name)
                connection.execute(insert(table).prefix_with("OR IGNORE"), rows)
    with engine.begin() as connection:
        aliases = [
            {"workspace": "default", "name": f"flights-{dag}", "alias": "champion", "version": nights} for dag in range(DAGS)
        ]
        connection.execute(insert(registry.SqlRegisteredModelAlias), aliases)
    engine.dispose()
    return nights


def _written(experiment_ids: Sequence[int], nights: int) -> Iterator[Rows]:
    gathered: Rows = defaultdict(list)
    gathered["SqlRegisteredModel"] = [{"workspace": "default", "name": f"flights-{dag}"} for dag in range(DAGS)]
    before: dict[int, ArtifactRef] = {}
    for number in range(nights):
        for dag, experiment_id in enumerate(experiment_ids):
            night = Night(experiment_id, dag, number, before.get(dag))
            before[dag] = night.write()
            for name, rows in night.rows.items():
                gathered[name] += rows
        if len(gathered["SqlRun"]) > ROWS_AT_ONCE * TASKS:
            yield gathered
            gathered = defaultdict(list)
    yield gathered


def _list(refs: Sequence[ArtifactRef], name: str) -> list[ArtifactRef]:
    return [ref.model_copy(update={"name": f"{name}[{index}]"}) for index, ref in enumerate(refs)]


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
