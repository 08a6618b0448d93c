"""A person is asked between the gate and the promotion, by Airflow's own operator."""

from __future__ import annotations

from pathlib import Path

import pendulum
from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk import dag, task

from airflow_ml_provider import Metrics, Model, Output
from airflow_ml_provider.operators.gate import ModelGateOperator
from airflow_ml_provider.operators.promotion import PromoteModelOperator


@task.ml
def train(model: Output[Model], metrics: Output[Metrics]) -> None:
    """Make a model that is good enough."""
    Path(model.path).write_text("weights")
    metrics.log_metric("auc", 0.9)


@dag(schedule=None, start_date=pendulum.datetime(2024, 1, 1))
def approval() -> None:
    """Train, judge, ask, promote."""
    fit = train()
    champion = "models:/approved@champion"
    gate = ModelGateOperator(
        task_id="gate", challenger=fit["model"], champion=champion, metrics=fit["metrics"], rules=["auc >= 0.7"]
    )
    ask = ApprovalOperator(
        task_id="ask",
        subject="Promote {{ ti.xcom_pull(task_ids='gate')['challenger'] }}?",
        body="{{ ti.xcom_pull(task_ids='gate')['reasons'] | join(' ') }}",
    )
    gate >> ask >> PromoteModelOperator(task_id="promote", model=fit["model"], name="approved")


approval()
