"""Two typed steps with nothing but the standard library: some data, and a line through it."""

# [START first_steps]
import json
from pathlib import Path
from statistics import linear_regression

from airflow.sdk import dag, task

from airflow_ml_provider import Dataset, Input, Metrics, Model, Output


@task.ml
def measure(rows: int, table: Output[Dataset]) -> None:
    table.path += ".json"
    Path(table.path).write_text(json.dumps({"x": list(range(rows)), "y": [2 * x + 1 for x in range(rows)]}))
    table.metadata["rows"] = rows


@task.ml(retries=2)
def train(table: Input[Dataset], model: Output[Model], metrics: Output[Metrics]) -> None:
    points = json.loads(Path(table.path).read_text())
    slope, intercept = linear_regression(points["x"], points["y"])
    Path(model.path).write_text(json.dumps({"slope": slope, "intercept": intercept}))
    metrics.log_metric("slope", slope)


@dag(schedule=None)
def first_steps() -> None:
    train(table=measure(rows=100)["table"])


first_steps()
# [END first_steps]
