"""
Three steps in pods of their own sizes, and one in the worker: prepare on 2 cores, describe on 16, train on 4 GPUs, evaluate.

Needs the connections ``kubernetes_default`` and ``mlflow_default``, a cluster with that much room, and an MLflow server that
pods reach. Elsewhere it parses, and says what is missing when it runs. For a small cluster set ``GPU_TRAINING_SIZE=small``;
``GPU_TRAINING_IMAGE`` names another image with Python.
"""

# [START gpu_training]
import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import dag, task

from airflow_ml_provider import Dataset, GpuRequest, Input, Metrics, Model, Output, PodOptions, ml_pod_task

IMAGE = os.environ.get("GPU_TRAINING_IMAGE", "python:3.12-slim")
SMALL = os.environ.get("GPU_TRAINING_SIZE") == "small"


def size(cpu: float, memory_gib: float) -> dict[str, Any]:
    """Ask for what a step needs; on a small cluster, for enough for fewer rows."""
    return {"cpu": 0.1, "memory_gib": 0.125} if SMALL else {"cpu": cpu, "memory_gib": memory_gib}


@ml_pod_task(image=IMAGE, **size(cpu=2, memory_gib=4))
def prepare(rows: int, seed: int, points: Output[Dataset]) -> None:
    """Draw points, and say of each whether it lies inside of an ellipse."""
    import random
    from pathlib import Path

    draw, half = random.Random(seed), 0.5  # noqa: S311  (points, not secrets)
    places = [(draw.uniform(-1, 1), draw.uniform(-1, 1)) for _ in range(rows)]
    points.path += ".csv"
    Path(points.path).write_text("".join(f"{x},{y},{int(x * x + 2 * y * y < half)}\n" for x, y in places))
    points.metadata["rows"] = rows


@ml_pod_task(image=IMAGE, **size(cpu=16, memory_gib=64))
def features(points: Input[Dataset], learn: Output[Dataset], held_out: Output[Dataset]) -> None:
    """Square the coordinates, which is all that a linear model lacks here, and keep every fifth point for the end."""
    from pathlib import Path

    rows = [line.split(",") for line in Path(points.path).read_text().splitlines()]
    squared = [f"{float(x) ** 2},{float(y) ** 2},{inside}\n" for x, y, inside in rows]
    Path(held_out.path).write_text("".join(squared[::5]))
    Path(learn.path).write_text("".join(each for number, each in enumerate(squared) if number % 5))


@ml_pod_task(
    image=IMAGE,
    gpu=GpuRequest(count=4, shared_memory_gib=0.0625 if SMALL else 16),
    **size(cpu=16, memory_gib=128),
    capacity_timeout=timedelta(hours=6),
    memory_on_oom=1.5,
    retries=3,
    deferrable=True,
    options=PodOptions(spot=True),
)
def train(learn: Input[Dataset], epochs: int, model: Output[Model], metrics: Output[Metrics]) -> None:
    """Fit a logistic regression by gradient descent; after a preemption, go on from the last checkpoint."""
    import json
    import tempfile
    from math import exp, log
    from pathlib import Path

    import airflow_ml_step  # type: ignore[import-not-found]  # it is in every step's container

    rows = [[float(each) for each in line.split(",")] for line in Path(learn.path).read_text().splitlines()]
    state = Path(tempfile.mkdtemp(), "state.json")  # the working directory may be another user's
    begin, u, v, bias = 0, 0.0, 0.0, 0.0
    if checkpoint := airflow_ml_step.last_checkpoint():
        begin, u, v, bias = json.loads(Path(checkpoint).read_text())
        print(f"Going on after epoch {begin}.")
    for epoch in range(begin + 1, epochs + 1):
        guesses = [1 / (1 + exp(-(u * x + v * y + bias))) for x, y, _ in rows]
        errors = [guess - row[2] for guess, row in zip(guesses, rows, strict=False)]
        rate = 8 / len(rows)
        u -= rate * sum(error * row[0] for error, row in zip(errors, rows, strict=False))
        v -= rate * sum(error * row[1] for error, row in zip(errors, rows, strict=False))
        bias -= rate * sum(errors)
        metrics.log_metric("loss", -sum(log(1 - abs(error)) for error in errors) / len(rows), step=epoch)
        if epoch % 20 == 0:
            print(f"Epoch {epoch} of {epochs}.", flush=True)
            state.write_text(json.dumps([epoch, u, v, bias]))
            airflow_ml_step.save_checkpoint(str(state), epoch)
    model.path += ".json"
    Path(model.path).write_text(json.dumps([u, v, bias]))


@task.ml
def evaluate(model: Input[Model], held_out: Input[Dataset]) -> dict[str, float]:
    """Count how many of the points that were kept for the end are told right."""
    import json
    from pathlib import Path

    u, v, bias = json.loads(Path(model.path).read_text())
    rows = [[float(each) for each in line.split(",")] for line in Path(held_out.path).read_text().splitlines()]
    accuracy = sum((u * x + v * y + bias > 0) == bool(inside) for x, y, inside in rows) / len(rows)
    print(f"{accuracy:.1%} of {len(rows)} points are told right.")
    return {"accuracy": accuracy}


@dag(schedule=None, start_date=pendulum.datetime(2026, 1, 1), catchup=False, default_args={"retries": 1})
def gpu_training() -> None:
    made = prepare(rows=2_000 if SMALL else 200_000, seed=1)
    described = features(points=made["points"])
    fitted = train(learn=described["learn"], epochs=100)
    evaluate(model=fitted["model"], held_out=described["held_out"])


gpu_training()
# [END gpu_training]
