"""
A model as an asset of Airflow: one DAG promotes it, and the other one starts by itself with what is new.

``fit_line`` says what it makes by ``outlets``; ``use_line`` is scheduled on the model. An event is sent only when the champion
has moved, and names the version.
"""

# [START models_as_assets]
import json
from pathlib import Path
from statistics import linear_regression
from typing import Any

from airflow.sdk import dag, task

from airflow_ml_provider import Dataset, Input, Metrics, Model, Output
from airflow_ml_provider.assets.mlflow import dataset_asset, model_asset
from airflow_ml_provider.operators.promotion import PromoteModelOperator

LINE, POINTS = model_asset("line"), dataset_asset("points")


@task.ml(outlets=[POINTS])
def measure(slope: float, table: Output[Dataset]) -> None:
    table.path += ".json"
    Path(table.path).write_text(json.dumps({"x": [0, 1, 2], "y": [1, 1 + slope, 1 + 2 * slope]}))
    table.metadata.update(rows=3, schema={"x": "integer", "y": "number"})


@task.ml
def fit(table: Input[Dataset], model: Output[Model], metrics: Output[Metrics]) -> None:
    points = json.loads(Path(table.path).read_text())
    slope, intercept = linear_regression(points["x"], points["y"])
    Path(model.path).write_text(json.dumps({"slope": slope, "intercept": intercept}))
    metrics.log_metric("slope", slope)


@dag(schedule=None, params={"slope": 2.0})
def fit_line() -> None:
    fitted = fit(table=measure(slope="{{ params.slope }}")["table"])
    PromoteModelOperator(task_id="promote", model=fitted["model"], name="line", outlets=[LINE])


@task
def read_version(triggering_asset_events: Any = None) -> str:
    """Say which version to use: that of the newest event; by hand, the champion of now."""
    events = sorted((triggering_asset_events or {}).get(LINE, []), key=lambda each: each.timestamp)
    if not events:
        return "models:/line@champion"
    print(events[-1].extra)  # name, version, alias, uri, sha256, metrics, mlflow_run_id, url
    return str(events[-1].extra["uri"])


@task.ml
def predict(model: Input[Model], x: float) -> float:
    line = json.loads(Path(model.path).read_text())
    return float(line["slope"] * x + line["intercept"])


@dag(schedule=[LINE])
def use_line() -> None:
    version: Any = read_version()
    predict(model=version, x=10)


fit_line()
use_line()
# [END models_as_assets]
