from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.run import DagRunIdentity
from airflow_ml_provider.testing import FakeKfpServer
from airflow_ml_provider.tracking.runs import Run, RunTree, run_id_of
from demo.airflow_api import AirflowApi
from demo.processes import snapshot
from demo.stack import LocalStack
from tests import servers
from tests.stack.alert_case import Ears, listening

HERE = Path(__file__).parent
DAGS = HERE.parent.parent / "dags"
LANES = 8
"""Servers for scenes that go on side by side, each with a connection of its own."""

QUIET_S = 0.6


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
    watched: FakeKfpServer
    lanes: list[FakeKfpServer]
    signals: Path
    turn: Lock = field(default_factory=Lock)
    seen: dict[str, tuple[float, list[Any]]] = field(default_factory=dict)

    def start(self, dag_id: str, **kwargs: Any) -> str:
        if self.airflow.wait_for_dag(dag_id, timeout_s=180)["is_paused"]:
            with self.writing():
                self.airflow.pause(dag_id, paused=False)
        with self.writing():
            return str(self.airflow.trigger(dag_id, **kwargs)["dag_run_id"])

    @contextmanager
    def writing(self) -> Iterator[None]:
        """
        Write through Airflow's API when nobody else does: wait until its log is still for a moment.

        It writes its own log of actions in its event loop, and waits there for SQLite's lock. When a worker's request holds that
        lock and needs the event loop to let go of it, all of Airflow stands still for half a minute.
        """
        log, end = self.stack.log_file("api-server"), time.monotonic() + 20
        with self.turn:
            while time.time() - log.stat().st_mtime < QUIET_S and time.monotonic() < end:
                time.sleep(0.05)
            yield
            time.sleep(0.1)  # it answers before it commits

    def signal(self, name: str) -> None:
        (self.signals / name).write_text("go")

    def reached(self, name: str) -> int:
        """Wait until a step says that it is there; return its process id."""
        file = self.signals / name
        return int(until(f"step at {name}", lambda: file.exists() and file.read_text()))

    def task_state(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> tuple[str, int]:
        named = (task_id, map_index)
        (found,) = [each for each in self.instances(dag_id, run_id) if (each["task_id"], each["map_index"]) == named]
        return str(found["state"]), int(found["try_number"])

    def instances(self, dag_id: str, run_id: str) -> list[Any]:
        """List the tasks of a DAG run; one answer is for all who wait for one, about any run of the DAG."""
        asked = time.monotonic()
        with self.turn:
            at, found = self.seen.get(dag_id, (0.0, []))
            if at < asked:
                at, found = time.monotonic(), self.airflow.task_instances(dag_id, "~")
                self.seen[dag_id] = at, found
        return [each for each in found if each["dag_run_id"] == run_id]

    def worker(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> int | None:
        """Find the process that runs a task: Airflow names it after the task instance."""
        for each in self.instances(dag_id, run_id):
            if (each["task_id"], each["map_index"], each["state"]) == (task_id, map_index, "running"):
                for pid in snapshot():
                    try:
                        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                    except OSError:
                        continue
                    if line.strip("\0 ") == f"airflow worker -- {each['id']}":  # the supervisor's has more words
                        return pid
        return None

    def heard(self, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> bool:
        """Whether the executor has reported a task's first half: Airflow 3.3 fails a task that goes on before that."""
        word = f"task_id='{task_id}', run_id='{run_id}', try_number={try_number}, map_index={map_index})"
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


def kfp_connections(servers: Mapping[str, FakeKfpServer]) -> dict[str, str]:
    """Name servers to Airflow, and the Kubernetes behind each, which knows its workflows."""
    environment = {}
    for name, server in servers.items():
        cluster = {"name": "fake", "cluster": {"server": server.url}}
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "users": [{"name": "me", "user": {}}]}
        config |= {"contexts": [{"name": "c", "context": {"cluster": "fake", "user": "me"}}], "current-context": "c"}
        kubernetes = {"conn_type": "kubernetes", "extra": {"kube_config": json.dumps(config)}}
        environment[f"AIRFLOW_CONN_KFP_{name}"] = json.dumps({"conn_type": "kfp", "host": server.url})
        environment[f"AIRFLOW_CONN_KUBERNETES_{name}"] = json.dumps(kubernetes)
    return environment


def migrated(shared: Path, airflow_home: Path) -> None:
    """Leave what the stack finds when it was started here before: its database is that of all workers, migrated once."""
    airflow_home.mkdir(parents=True)
    shutil.copy(servers.migrated_database(shared), airflow_home / "airflow.db")
    (airflow_home / "migrated").write_text(version("apache-airflow-core"))


@pytest.fixture(scope="package")
def kfp() -> Iterator[list[FakeKfpServer]]:
    """Servers: the usual one, the one that an asset watches, the lanes."""
    with ExitStack() as opened:
        yield [opened.enter_context(FakeKfpServer()) for _ in range(2 + LANES)]


@pytest.fixture(scope="package")
def ears() -> Iterator[Ears]:
    """Where alerts arrive."""
    with listening() as found:
        yield found


@pytest.fixture(scope="package")
def site(kfp: list[FakeKfpServer], ears: Ears) -> Iterator[Site]:
    """A real Airflow (scheduler, DAG processor, triggerer, API server) and a real MLflow, shared by these tests."""
    shared = Path(os.environ["AIRFLOW_ML_TEST_HOME"])
    home = Path(tempfile.mkdtemp(prefix="stack-", dir=shared))
    signals = home / "signals"
    signals.mkdir()
    environment = {
        "TEST_SIGNALS": str(signals),
        "AIRFLOW_HOME": str(home / "state" / "airflow"),
        **kfp_connections(dict(zip(("DEFAULT", "WATCHED", *map(str, range(LANES))), kfp, strict=True))),
        **ears.environment(),
        "AIRFLOW__CORE__PARALLELISM": "10",  # scenes side by side, some of which hold a worker
        "AIRFLOW__ML__PATIENCE_S": "180",
        "AIRFLOW__ML__HTTP_TIMEOUT_S": "20",
        "AIRFLOW__ML__HTTP_RETRIES": "1",
        "AIRFLOW__ML__SPOOL": str(home / "spool"),
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",  # the files do not change
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "10",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "15",
        "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "3",
    }
    stack = LocalStack(home / "state", dags=(DAGS, HERE / "dags"), environment=environment)
    migrated(shared, home / "state" / "airflow")
    with servers.running(stack, Settings(http_timeout_s=30, http_retries=3)) as (airflow, mlflow):
        yield Site(stack, airflow, mlflow, kfp[0], kfp[1], kfp[2:], signals)
