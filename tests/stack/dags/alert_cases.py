"""DAGs that fail, each in its way, and tell of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import dag, task

from airflow_ml_provider import Metrics, Model, Output
from airflow_ml_provider.notifications.alerts import ml_alert, ml_alerts
from airflow_ml_provider.operators.gate import ModelGateOperator
from airflow_ml_provider.operators.promotion import PromoteModelOperator

SIGNALS = Path(os.environ.get("TEST_SIGNALS", "."))
START = pendulum.datetime(2024, 1, 1)
WEBHOOK: dict[str, Any] = {"slack": "slack_hook", "email": "ml-team@example.com", "smtp_conn_id": "smtp_alerts"}
BOT: dict[str, Any] = WEBHOOK | {"slack": "slack_bot", "slack_channel": "#ml-alerts"}
SILENT: dict[str, Any] = WEBHOOK | {"slack": "slack_silent", "smtp_conn_id": "smtp_silent"}
TOLD = ml_alert(**WEBHOOK)
HANGING_S = "2"
MANY = 200
COMMON: dict[str, Any] = {"schedule": None, "start_date": START, "is_paused_upon_creation": False}


def stamp(name: str) -> Callable[[Any], None]:
    """Make a callback that writes down when it was called."""

    def write(context: Any) -> None:
        (SIGNALS / name).write_text(str(time.monotonic()))

    return write


@task
def raises() -> None:
    raise ValueError("the loss is not a number after 3 steps\nand this is for whoever reads the log")


@task
def waits() -> None:
    time.sleep(300)


@task
def goes_on() -> None:
    """Never starts, since what it waits for fails."""


@task
def retried(ti: Any = None) -> None:
    raise OSError(f"no room on the disk in try {ti.try_number}")


@task
def hangs() -> None:
    os.environ["AIRFLOW__ML__ALERT_TIMEOUT_S"] = HANGING_S  # the callback runs in this process
    raise ValueError("nobody answers")


@task.ml
def fit(model: Output[Model], metrics: Output[Metrics]) -> None:
    Path(model.path).write_text("a model")
    metrics.log_metric("auc", 0.71)


@dag(**COMMON, default_args={"on_failure_callback": TOLD})
def alert_tasks() -> None:
    """Each task that fails is told by itself: the DAG has no callback that would tell of the end."""
    raises() >> goes_on()
    retried.override(retries=1, retry_delay=timedelta(seconds=1))()
    waits.override(task_id="out_of_time", execution_timeout=timedelta(seconds=2))()
    stamps = [stamp("hanging-began"), ml_alert(**SILENT), stamp("hanging-ended")]
    hangs.override(on_failure_callback=stamps)()
    fitted = fit()
    PromoteModelOperator(task_id="refused", model=fitted["model"], name="{{ 'fraud/scores' }}", retries=3)
    ModelGateOperator(
        task_id="closed_gate",
        challenger=fitted["model"],
        champion="models:/alert-cases@champion",
        metrics=fitted["metrics"],
        rules=["auc >= 0.74"],
        otherwise="fail",
        retries=3,
    )


@task
def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@task
def lost() -> None:
    """Kill what watches over the task, and the task: nobody is left to tell Airflow."""
    os.kill(os.getppid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


@dag(**COMMON, **ml_alerts(**BOT))
def alert_killed() -> None:
    """Its last try is killed: no callback of the task is called."""
    killed()


@dag(**COMMON, **ml_alerts(**BOT))
def alert_lost() -> None:
    """Airflow's scheduler finds out by the heartbeats that do not come."""
    lost()


@dag(**COMMON, dagrun_timeout=timedelta(seconds=3), **ml_alerts(**WEBHOOK))
def alert_timed_out() -> None:
    """The DAG run as a whole is too slow."""
    waits()


@task
def reach(name: str) -> None:
    """Wait for the test."""
    while not (SIGNALS / name).exists():
        time.sleep(0.1)


@dag(**COMMON, **ml_alerts(**WEBHOOK, late_after=timedelta(seconds=2)))
def alert_late() -> None:
    """It ends well, and late."""
    reach("late-go")


@task
def fails_if_asked(params: Any = None) -> None:
    if params["fail"]:
        raise ValueError("the table of this night is empty")


@dag(**COMMON, max_active_runs=1, params={"fail": True}, **ml_alerts(**WEBHOOK, rules={"retry": {"severity": "info"}}))
def alert_recovered() -> None:
    """It fails in one night and works in the next ones, one after the other; the retry is told as well."""
    fails_if_asked.override(retries=1, retry_delay=timedelta(seconds=1))()


@task
def fails(number: int) -> None:
    raise ValueError("the table is empty" if number % 2 else "the table has no column 'label'")


@dag(**COMMON, max_active_tasks=8, **ml_alerts(**BOT))
def alert_many() -> None:
    """Many fail at once."""
    fails.override(priority_weight=1, max_active_tis_per_dagrun=8).expand(number=list(range(MANY)))


alert_tasks()
alert_killed()
alert_lost()
alert_timed_out()
alert_late()
alert_recovered()
alert_many()
