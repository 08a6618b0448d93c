from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.run import DagRunIdentity
from airflow_ml_provider.testing import FakeKfpServer
from airflow_ml_provider.tracking.runs import Run, RunTree, run_id_of
from demo.airflow_api import AirflowApi
from demo.processes import snapshot
from demo.stack import LocalStack

HERE = Path(__file__).parent
DAGS = HERE.parent.parent / "dags"


def until(what: str, look: Callable[[], Any], limit_s: float = 180.0) -> Any:
    """Look until there is something to see."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if seen := look():
            return seen
        time.sleep(0.25)
    raise TimeoutError(f"waited {limit_s:.0f} s in vain: {what}")


@dataclass
class Site:
    """A running stack, seen from both sides."""

    stack: LocalStack
    airflow: AirflowApi
    mlflow: MlflowApi
    kfp: FakeKfpServer
    signals: Path

    def start(self, dag_id: str, **kwargs: Any) -> str:
        self.airflow.wait_for_dag(dag_id, timeout_s=180)
        self.airflow.pause(dag_id, paused=False)
        return str(self.airflow.trigger(dag_id, **kwargs)["dag_run_id"])

    def signal(self, name: str) -> None:
        (self.signals / name).write_text("go")

    def reached(self, name: str) -> int:
        """Wait until a step says that it is there; return its process id."""
        file = self.signals / name
        return int(until(f"step at {name}", lambda: file.exists() and file.read_text()))

    def task_state(self, dag_id: str, run_id: str, task_id: str) -> tuple[str, int]:
        (found,) = [each for each in self.airflow.task_instances(dag_id, run_id) if each["task_id"] == task_id]
        return str(found["state"]), int(found["try_number"])

    def worker(self, dag_id: str, run_id: str, task_id: str) -> int | None:
        """Find the process that runs a task: Airflow names it after the task instance."""
        for each in self.airflow.task_instances(dag_id, run_id):
            if each["task_id"] == task_id and each["state"] == "running":
                for pid in snapshot():
                    try:
                        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                    except OSError:
                        continue
                    if each["id"] in line and "airflow worker -- " in line:
                        return pid
        return None

    def heard(self, run_id: str, task_id: str) -> bool:
        """Whether the executor has reported a task's first half: Airflow 3.3 fails a task that goes on before that."""
        word = f"task_id='{task_id}', run_id='{run_id}', try_number="
        lines = self.stack.log_file("scheduler").read_text().splitlines()
        return any("Received executor event" in line and word in line for line in lines)

    def finish(self, dag_id: str, run_id: str, limit_s: float = 400) -> str:
        return str(self.airflow.wait_for_run(dag_id, run_id, timeout_s=limit_s)["state"])

    def parent(self, dag_id: str, run_id: str) -> Run:
        tree = RunTree(self.mlflow)
        (run,) = tree.find_parents(tree.experiment_id(dag_id), DagRunIdentity(dag_id=dag_id, run_id=run_id))
        return run

    def nested(self, dag_id: str, run_id: str) -> dict[str, Run]:
        tree = RunTree(self.mlflow)
        filter_string = f"tags.`mlflow.parentRunId` = '{run_id_of(self.parent(dag_id, run_id))}'"
        found = tree.search([tree.experiment_id(dag_id)], filter_string)
        return {str(each["info"]["run_name"]): tree.get(run_id_of(each)) for each in found}


@pytest.fixture(scope="session")
def kfp() -> Iterator[FakeKfpServer]:
    with FakeKfpServer() as server:
        yield server


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory, kfp: FakeKfpServer) -> Iterator[Site]:
    """A real Airflow (scheduler, DAG processor, triggerer, API server) and a real MLflow, shared by these tests."""
    home = tmp_path_factory.mktemp("stack")
    signals = home / "signals"
    signals.mkdir()
    environment = {
        "TEST_SIGNALS": str(signals),
        "AIRFLOW_HOME": str(home / "state" / "airflow"),
        "AIRFLOW_CONN_KFP_DEFAULT": json.dumps({"conn_type": "kfp", "host": kfp.url}),
        "AIRFLOW__ML__PATIENCE_S": "180",
        "AIRFLOW__ML__HTTP_TIMEOUT_S": "20",
        "AIRFLOW__ML__HTTP_RETRIES": "1",
        "AIRFLOW__ML__SPOOL": str(home / "spool"),
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    }
    stack = LocalStack(home / "state", dags=(DAGS, HERE / "dags"), environment=environment)
    kept = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("AIRFLOW")}  # dag.test()'s, not ours
    try:
        stack.start()
    finally:
        os.environ.update(kept)
    try:
        server = MlflowServer("mlflow_default", stack.mlflow_url)
        settings = Settings(http_timeout_s=30, http_retries=3)
        with stack.api() as airflow, MlflowApi(server, settings) as mlflow:
            yield Site(stack, airflow, mlflow, kfp, signals)
    finally:
        stack.stop()
