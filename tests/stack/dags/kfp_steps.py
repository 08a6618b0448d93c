"""A pipeline's run as a task, waited for in every way; the server in the tests decides what becomes of it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import DAG

from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator

OPTIONS = KfpRunOptions(poll_interval_s=0.5, settle_s=3)
PATIENT = KfpRunOptions(poll_interval_s=0.5, settle_s=10)
WAYS: dict[str, dict[str, Any]] = {
    "kfp_waits": {"deferrable": False},
    "kfp_defers": {"deferrable": True},
    "kfp_carried": {"deferrable": True, "exactly_once": "carrier", "options": PATIENT},
    "kfp_hurried": {"deferrable": True, "timeout": timedelta(seconds=4), "retries": 0},
    "kfp_left": {"deferrable": True, "leave_running": ["clear", "success"]},
}

for name, arguments in WAYS.items():
    with DAG(name, schedule=None, start_date=pendulum.datetime(2024, 1, 1)) as made:
        KfpRunPipelineOperator(
            task_id="run",
            pipeline="pipelines/one_step.yaml",
            experiment="stack",
            retry_delay=timedelta(seconds=1),
            **{"retries": 2, "options": OPTIONS, **arguments},
        )
    globals()[name] = made
