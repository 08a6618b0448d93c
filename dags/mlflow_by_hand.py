"""A run of one's own in MLflow, for a training that runs elsewhere: filled, held to a rule, ended; and a look at what is old."""

# [START mlflow_by_hand]
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import dag

from airflow_ml_provider.operators.mlflow_cleanup import MlflowCleanUpRunsOperator
from airflow_ml_provider.operators.mlflow_runs import MlflowFinishRunOperator, MlflowLogOperator, MlflowStartRunOperator
from airflow_ml_provider.sensors.mlflow import MlflowMetricSensor


@dag(schedule="@weekly", start_date=pendulum.datetime(2026, 1, 1), catchup=False)
def mlflow_by_hand() -> None:
    start: Any = MlflowStartRunOperator(task_id="start", run_name="night {{ run_id }}", parameters={"depth": 6})
    log = MlflowLogOperator(task_id="log", run_id=start.output["run_id"], metrics={"auc": 0.83}, texts={"notes.md": "fine"})
    good = MlflowMetricSensor(task_id="good", run_id=start.output["run_id"], rule="auc >= 0.8", timeout=3600)
    finish = MlflowFinishRunOperator(task_id="finish", run_id=start.output["run_id"])
    clean_up = MlflowCleanUpRunsOperator(  # without delete=True it says what it would delete
        task_id="clean_up", experiments=["{{ dag.dag_id }}"], older_than=timedelta(days=90), keep_last=30
    )
    start >> log >> good >> finish.as_teardown(setups=start)
    good >> clean_up


mlflow_by_hand()
# [END mlflow_by_hand]
