"""Steps that wait for a file, so that a test can strike while they run."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import dag, task

from airflow_ml_provider import Dataset, Input, Metrics, Output

SIGNALS = Path(os.environ.get("TEST_SIGNALS", "."))
WAIT_LIMIT_S = 240


def reach(name: str) -> None:
    """Tell the test that this place is reached, and by whom."""
    (SIGNALS / name).write_text(str(os.getpid()))


def wait_for(name: str) -> None:
    until = time.monotonic() + WAIT_LIMIT_S
    while not (SIGNALS / name).exists():
        if time.monotonic() > until:
            raise TimeoutError(name)
        time.sleep(0.1)


@task.ml
def work(case: str, table: Output[Dataset], metrics: Output[Metrics], ti: Any = None) -> None:
    """Write what says which try wrote it."""
    import mlflow

    number = ti.try_number
    mlflow.log_param("user_param", "the same in each try")
    metrics.log_metric(f"started_{number}", number)
    reach(f"{case}-running-{number}")
    wait_for(f"{case}-go-{number}")
    metrics.log_metric("result", number, step=number)
    table.path += ".txt"
    Path(table.path).write_text(f"try {number}")
    reach(f"{case}-written-{number}")


@task.ml
def read(table: Input[Dataset]) -> str:
    """Return what the step before has written."""
    return Path(table.path).read_text()


@dag(schedule=None, start_date=pendulum.datetime(2024, 1, 1), default_args={"retries": 1, "retry_delay": timedelta(seconds=1)})
def faults() -> None:
    """One step to strike at, one that shows what is left."""
    read(work(case="{{ run_id }}")["table"])


faults()
