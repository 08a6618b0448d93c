from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import ArtifactError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.artifact import MetricPoint
from airflow_ml_provider.models.run import OutputFile, StepRecord
from airflow_ml_provider.tracking import spool
from airflow_ml_provider.tracking.artifacts import ArtifactStore
from airflow_ml_provider.tracking.delivery import Delivery
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.runs import status_of

POINT = MetricPoint(key="auc", value=0.7, timestamp_ms=1)


class BrokenStore(ArtifactStore):
    """A store whose client raises an error of its own kind."""

    def __init__(self, api: MlflowApi, error: BaseException) -> None:
        super().__init__(api)
        self.error = error

    def store(self, *_: Any, **__: Any) -> Any:
        raise self.error


@pytest.fixture
def ended(make_record: Callable[..., StepRecord], make_output: Callable[..., OutputFile]) -> StepRecord:
    return make_record(metrics=[POINT], outputs=[make_output("table.csv", "Dataset", b"rows")])


def deliver(record: StepRecord, api: MlflowApi, error: BaseException, place: Path) -> Delivery:
    return Delivery(Recorder(api, BrokenStore(api, error)), record, Settings(patience_s=0, spool=str(place)))


@pytest.mark.parametrize("error", [RuntimeError("of a client"), OSError(5, "Input/output error"), ImportError("no boto3")])
def test_whatever_storing_raises_the_record_is_kept_and_the_run_is_closed(
    ended: StepRecord, mlflow_api: MlflowApi, tmp_path: Path, error: Exception, recorder: Recorder
) -> None:
    delivery = deliver(ended, mlflow_api, error, tmp_path / "spool")
    with pytest.raises(ArtifactError, match=rf"{type(error).__name__}: .* airflow-ml resend file://{tmp_path}/spool/"):
        delivery.succeed()
    assert (ended.status, ended.tried) == ("RUNNING", True)
    ended.status = "FAILED"
    delivery.fail()
    assert status_of(recorder.tree.get(ended.run.run_id)) == "FAILED"

    record = spool.resend(delivery.kept_at, recorder)
    run = recorder.tree.get(record.run.run_id)
    assert (status_of(run), run["data"]["metrics"][0]["value"]) == ("FINISHED", 0.7)
    assert record.outputs[0].stored is not None


def test_a_step_that_is_stopped_while_it_stores_leaves_its_record(
    ended: StepRecord, mlflow_api: MlflowApi, tmp_path: Path
) -> None:
    delivery = deliver(ended, mlflow_api, KeyboardInterrupt(), tmp_path / "spool")
    with pytest.raises(KeyboardInterrupt):
        delivery.succeed()
    assert spool.read(delivery.kept_at).status == "FINISHED"
