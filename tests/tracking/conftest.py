from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.run import Attempt, OutputFile, StepIdentity, StepRecord
from airflow_ml_provider.tracking.record import Recorder


@pytest.fixture
def recorder(mlflow_api: MlflowApi) -> Recorder:
    return Recorder(mlflow_api)


@pytest.fixture
def make_record(recorder: Recorder, unique: str) -> Callable[..., StepRecord]:
    """Open a nested run on the real server and start the record of a try."""

    def make(number: int = 1, task_id: str = "train", **fields: Any) -> StepRecord:
        identity = StepIdentity(dag_id=unique, run_id="scheduled__1", task_id=task_id)
        tags = {"airflow.logical_date": "2013-11-06T07:00:00+00:00"}
        attempt = Attempt(identity=identity, try_number=number, ti_id=f"ti-{task_id}-{number}", tags=tags)
        run = recorder.tree.open(unique, attempt)
        return StepRecord(conn_id="mlflow_default", attempt=attempt, run=run, status="FINISHED", end_time_ms=1000, **fields)

    return make


@pytest.fixture
def make_output(tmp_path: Path) -> Callable[..., OutputFile]:
    """Write a file or a directory, as a step would."""

    def make(name: str, kind: str, content: bytes | dict[str, bytes], target: str | None = None, **fields: Any) -> OutputFile:
        local = tmp_path / name
        if isinstance(content, bytes):
            local.write_bytes(content)
        else:
            for path, each in content.items():
                (local / path).parent.mkdir(parents=True, exist_ok=True)
                (local / path).write_bytes(each)
        return OutputFile(
            name=name.split(".", maxsplit=1)[0], type=kind, path=str(local), target=target or f"try-1/{name}", **fields
        )

    return make
