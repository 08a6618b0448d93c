"""The triggers in a real triggerer: a deferred sensor's, whose connection is in the database."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.watch import AliasQuestion, MetricQuestion, RunQuestion, VersionQuestion
from airflow_ml_provider.triggers.mlflow import MlflowWatchTrigger
from tests.servers import connection
from tests.triggers.test_triggerer import Triggerer, _nobody_else_defers

__all__ = ["_nobody_else_defers"]


@pytest.fixture
def _in_database(airflow_db: None, mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put the connection into the database: the runner must ask its supervisor for it."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    monkeypatch.delenv("AIRFLOW_CONN_MLFLOW_DEFAULT", raising=False)
    with create_session() as session:
        session.add(Connection.from_json(connection(mlflow_server), "mlflow_default"))
    yield
    with create_session() as session:
        session.query(Connection).filter_by(conn_id="mlflow_default").delete()


@pytest.mark.usefixtures("_nobody_else_defers", "_in_database")
def test_each_is_told_what_it_waits_for_and_the_others_wait_on(mlflow_api: MlflowApi, unique: str) -> None:
    experiment_id = mlflow_api.post("experiments/create", {"name": unique})["experiment_id"]
    run_id = mlflow_api.post("runs/create", {"experiment_id": experiment_id})["run"]["info"]["run_id"]
    mlflow_api.post("registered-models/create", {"name": unique})
    questions = [
        MetricQuestion(run_id=run_id, rule="auc >= 0.8"),
        VersionQuestion(model=unique, tags=(("stage", "ready"),)),
        AliasQuestion(model=unique, alias="champion"),
        RunQuestion(run_id=run_id),
        RunQuestion(run_id=run_id),
    ]
    triggers = [MlflowWatchTrigger(question=each.model_dump(mode="json"), poll_interval_s=0.5) for each in questions]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Airflow itself
        triggerer = Triggerer(unique[:200], triggers)  # type: ignore[arg-type]
        try:
            mlflow_api.post("runs/log-metric", {"run_id": run_id, "key": "auc", "value": 0.9, "timestamp": 1})
            triggerer.turn_until(lambda: triggerer.task(0).state == "scheduled")
            assert {triggerer.task(number).state for number in range(1, 5)} == {"deferred"}
            body = {"name": unique, "source": "s3://b/k", "tags": [{"key": "stage", "value": "ready"}]}
            mlflow_api.post("model-versions/create", body)
            mlflow_api.post("registered-models/alias", {"name": unique, "alias": "champion", "version": "1"})
            triggerer.mark(4, "failed")
            mlflow_api.post("runs/update", {"run_id": run_id, "status": "FAILED"})
            triggerer.turn_until(lambda: {triggerer.task(number).state for number in range(4)} == {"scheduled"})
        finally:
            triggerer.stop()
    told = [triggerer.task(number).next_kwargs["event"] for number in range(4)]
    assert [each["outcome"] for each in told] == ["seen", "seen", "seen", "failed"]
    assert (told[1]["value"]["version"], told[2]["value"]["alias"]) == ("1", "champion")
