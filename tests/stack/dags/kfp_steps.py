"""A pipeline's run as a task, waited for in every way; the server in the tests decides what becomes of it."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pendulum
from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator
from airflow_ml_provider.triggers.kfp import KfpRunEventTrigger

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


class Scene(KfpRunPipelineOperator):
    """Takes its arguments from the DAG run's configuration: one run plays scenes side by side, each on a server of its own."""

    def __init__(self, *, lane: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lane = lane

    def pre_execute(self, context: Any) -> None:
        conf = dict(context["dag_run"].conf.get(f"lane_{self.lane}") or {})
        if not conf:
            raise AirflowSkipException("nothing is played here")
        os.environ.update(conf.pop("environment", {}))  # of this task's process alone
        self.kfp_conn_id = f"kfp_{self.lane}"
        self.options = OPTIONS.model_copy(update={"kubernetes_conn_id": f"kubernetes_{self.lane}", **conf.pop("options", {})})
        vars(self).update(conf)


with DAG("kfp_scenes", schedule=None, start_date=pendulum.datetime(2024, 1, 1)) as made:
    same: dict[str, Any] = {"pipeline": "pipelines/one_step.yaml", "experiment": "stack", "retries": 2}
    Scene.partial(task_id="run", retry_delay=timedelta(seconds=1), **same).expand(lane=list(range(8)))
globals()["kfp_scenes"] = made


@task
def read(triggering_asset_events: Any = None) -> list[dict[str, Any]]:
    return [each.extra["payload"] for events in triggering_asset_events.values() for each in events]


watcher = AssetWatcher(name="one-step", trigger=KfpRunEventTrigger(kfp_conn_id="kfp_watched", pipeline="one-step"))
# Airflow begins to watch when it reads the file of a DAG that is not paused.
on: dict[str, Any] = {"schedule": [Asset("one-step", watchers=[watcher])], "is_paused_upon_creation": False}
with DAG("kfp_watched", start_date=pendulum.datetime(2024, 1, 1), **on) as made:
    read()
globals()["kfp_watched"] = made
