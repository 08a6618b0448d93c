"""A pipeline on the worker's own machine, whose component sleeps until somebody ends it."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import DAG

from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator


class Here(KfpRunPipelineOperator):
    """Takes its surroundings from the DAG run's configuration, and sleeps in its first try alone."""

    def pre_execute(self, context: Any) -> None:
        conf = context["dag_run"].conf
        os.environ.update(conf["environment"])  # of this task's process alone
        self.pipeline = conf["pipelines"][min(context["ti"].try_number, len(conf["pipelines"])) - 1]
        self.arguments = {"note": conf["note"]} if "sleeps" in self.pipeline else {}


with DAG("kfp_local_here", schedule=None, start_date=pendulum.datetime(2024, 1, 1)) as made:
    Here(task_id="run", pipeline="x.yaml", kfp_conn_id="kfp_here", retries=1, retry_delay=timedelta(seconds=1))
