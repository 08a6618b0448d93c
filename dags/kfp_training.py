"""A Kubeflow pipeline every night: waited for without a worker's slot, judged by its metrics, promoted when it is good enough."""

# [START kfp_training]
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import dag, task

from airflow_ml_provider import Metrics, Model
from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.operators.gate import ModelGateOperator
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator
from airflow_ml_provider.operators.promotion import PromoteModelOperator

MODEL = "churn"


@task
def report(run: Any) -> None:
    print(f"Run {run['run_id']} {run['state']}: {run['url']}")


@dag(schedule="0 3 * * *", start_date=pendulum.datetime(2026, 1, 1), catchup=False, max_active_runs=1)
def kfp_training() -> None:
    train = KfpRunPipelineOperator(
        task_id="train",
        pipeline="pipelines/churn.yaml",
        arguments={"day": "{{ (logical_date or dag_run.run_after) | ds }}", "n_estimators": 300},
        outputs={"model": Model, "metrics": Metrics},
        experiment="churn",
        deferrable=True,
        timeout=timedelta(hours=6),
        options=KfpRunOptions(results_root="s3://kfp_store@mlpipeline/v2/artifacts"),
        retries=2,
    )
    gate = ModelGateOperator(
        task_id="gate",
        challenger=train.output["model"],
        champion=f"models:/{MODEL}@champion",
        metrics=train.output["metrics"],
        rules=["auc >= 0.7"],
    )
    promote = PromoteModelOperator(task_id="promote", model=train.output["model"], name=MODEL)
    gate >> promote >> report(train.output)


kfp_training()
# [END kfp_training]
