"""A pipeline of steps; read by the KFP SDK, in an interpreter without Airflow."""

# [START churn_pipeline]
from churn_steps import gather, score, train
from kfp import dsl

from airflow_ml_provider import as_kfp_component

gather_rows = as_kfp_component(gather, base_image="python:3.11")
train_model = as_kfp_component(train, base_image="python:3.11")
score_model = as_kfp_component(score, base_image="python:3.11")


@dsl.pipeline
def churn(rows: int = 3, rate: float = 0.5) -> dict:
    table = gather_rows(rows=rows).outputs["table"]
    trained = train_model(table=table, rate=rate)
    scored = score_model(model=trained.outputs["model"], metrics=trained.outputs["metrics"], factors=[1.0, 2.0])
    return scored.outputs["Output"]


# [END churn_pipeline]
