"""Events of our assets in Airflow's database, from real DAG runs on a real MLflow: what they hold, and when there is none."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pendulum
from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, dag

from airflow_ml_provider import Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.assets.mlflow import dataset_asset, model_asset
from airflow_ml_provider.hooks.mlflow import MlflowHook
from airflow_ml_provider.operators.gate import ModelGateOperator
from airflow_ml_provider.operators.mlflow_models import MlflowRegisterModelOperator
from airflow_ml_provider.operators.promotion import PromoteModelOperator
from tests.airflow_runs import Outcome
from tests.assets.events import events_of, unpause, waiting_for

START = pendulum.datetime(2024, 1, 1)


def experiment_of(name: str) -> str:
    with MlflowHook().api() as api:
        found: str = api.get("experiments/get-by-name", experiment_name=name)["experiment"]["experiment_id"]
    return found


def night(model: str, data: str) -> DAG:
    @ml_task(cache=True, outlets=[dataset_asset(data)])
    def features(rows: int, table: Output[Dataset]) -> None:
        Path(table.path).write_text("a" * rows)
        table.metadata["rows"] = rows

    @ml_task(outlets=[dataset_asset(f"{data}-part")])
    def part(place: int, table: Output[Dataset]) -> None:
        Path(table.path).write_text(str(place))

    @ml_task(cache=True)
    def train(table: Input[Dataset], fitted: Output[Model], metrics: Output[Metrics]) -> None:
        Path(fitted.path).write_text(f"model of {Path(table.path).stat().st_size}")
        metrics.log_metric("auc", 0.93)

    @dag(dag_id=model, schedule=None, start_date=START)
    def nightly() -> None:
        fit = train(table=features(rows=3)["table"])
        part.expand(place=[0, 1])
        PromoteModelOperator(task_id="promote", model=fit["fitted"], name=model, outlets=[model_asset(model)])

    return nightly()


def test_events_hold_what_was_made_and_none_is_sent_where_nothing_moved(
    run_dag: Callable[..., Outcome], unique: str, mlflow_url: str
) -> None:
    data, model = dataset_asset(f"{unique} data"), model_asset(unique)
    with DAG(f"{unique}-next", schedule=[model], start_date=START) as following:
        EmptyOperator(task_id="deploy")
    run_dag(following)  # by hand, so that Airflow knows it
    unpause(following.dag_id)
    dags = [night(unique, data.says.name) for _ in range(2)]
    first, second = (run_dag(each, logical_date=START.add(days=day)) for day, each in enumerate(dags))
    assert (first.state, second.state) == ("success", "success")

    made, trained = first.xcom("features"), first.xcom("train")
    told = {
        "name": f"{unique} data",
        "output": "table",
        "uri": f"runs:/{made['run_id']}/try-1/table",
        "sha256": made["outputs"]["table"]["sha256"],
        "size": 3,
        "rows": 3,
        "mlflow_run_id": made["run_id"],
        "url": f"{mlflow_url}/#/experiments/{experiment_of(unique)}/runs/{made['run_id']}",
        "numbers": {"rows": 3},
    }
    assert events_of(data.uri) == [("features", -1, told), ("features", -1, told | {"cached": True})], "a cache hit is news too"
    parts = events_of(dataset_asset(f"{unique} data-part").uri)
    assert {(task_id, index, extra["sha256"]) for task_id, index, extra in parts} == {
        ("part", index, hashlib.sha256(str(index).encode()).hexdigest()) for index in (0, 1)
    }

    version = {
        "name": unique,
        "version": "1",
        "alias": "champion",
        "uri": f"models:/{unique}/1",
        "model_id": trained["outputs"]["fitted"]["uri"].split("/")[1],
        "sha256": trained["outputs"]["fitted"]["sha256"],
        "size": len("model of 3"),
        "mlflow_run_id": trained["run_id"],
        "url": f"{mlflow_url}/#/models/{unique}/versions/1",
        "metrics": {"auc": 0.93},
    }
    assert events_of(model.uri) == [("promote", -1, version)], "the second night has moved nothing"
    assert waiting_for(model.uri) == [f"{unique}-next"], "the next run of the scheduler starts it"


def test_no_event_is_sent_of_what_was_skipped_rejected_or_has_failed(run_dag: Callable[..., Outcome], unique: str) -> None:
    @ml_task(outlets=[model_asset(f"{unique}-fitted")])
    def train(fitted: Output[Model], metrics: Output[Metrics]) -> None:
        Path(fitted.path).write_text(unique)
        metrics.log_metric("auc", 0.5)

    @ml_task(outlets=[dataset_asset(f"{unique}-broken")])
    def broken(table: Output[Dataset]) -> None:
        Path(table.path).write_text("half")
        raise ValueError("the other half is missing")

    @ml_task(outlets=[dataset_asset(f"{unique}-skipped")])
    def skipped(table: Output[Dataset]) -> None:
        raise AirflowSkipException("nothing to do")

    names = [unique, f"{unique}-fitted", f"{unique}-copy"]
    with DAG(unique, schedule=None, start_date=START) as dag:
        fit = train()
        broken()
        skipped()
        gate = ModelGateOperator(
            task_id="gate",
            challenger=fit["fitted"],
            champion=f"models:/{unique}@champion",
            metrics=fit["metrics"],
            rules=["auc >= 0.9"],
            outlets=[model_asset(unique)],
        )
        promote = PromoteModelOperator(task_id="promote", model=fit["fitted"], name=unique, outlets=[model_asset(unique)])
        gate >> promote
        MlflowRegisterModelOperator(
            task_id="register", name=names[2], source=fit["fitted"], aliases=["shadow"], outlets=[model_asset(names[2])]
        )
    states = run_dag(dag).tasks
    assert states == {
        ("train", -1): "success",
        ("broken", -1): "failed",
        ("skipped", -1): "skipped",
        ("gate", -1): "success",
        ("promote", -1): "skipped",
        ("register", -1): "success",
    }
    (promoted, fitted, copied), data = ([events_of(model_asset(each).uri) for each in names], ["broken", "skipped"])
    assert promoted == []
    assert [events_of(dataset_asset(f"{unique}-{each}").uri) for each in data] == [[], []]
    assert [(extra["name"], extra.get("version"), extra["metrics"]) for _, _, extra in fitted] == [
        (f"{unique}-fitted", None, {"auc": 0.5})
    ]
    assert [(extra["version"], *extra["aliases"], extra["sha256"]) for _, _, extra in copied] == [
        ("1", "shadow", fitted[0][2]["sha256"])
    ]
