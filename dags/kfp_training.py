"""A Kubeflow pipeline every night: waited for without a worker's slot, found again after a crash, stopped with its task."""

# [START kfp_training]
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import dag, task

from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator


@task
def report(run: Any) -> None:
    print(f"Run {run['run_id']} {run['state']}: {run['url']}")


@dag(schedule="0 3 * * *", start_date=pendulum.datetime(2026, 1, 1), catchup=False, max_active_runs=1)
def kfp_training() -> None:
    train = KfpRunPipelineOperator(
        task_id="train",
        pipeline="pipelines/churn.yaml",
        arguments={"day": "{{ (logical_date or dag_run.run_after) | ds }}", "n_estimators": 300},
        experiment="churn",
        deferrable=True,
        timeout=timedelta(hours=6),
        retries=2,
    )
    report(train.output)


kfp_training()
# [END kfp_training]
