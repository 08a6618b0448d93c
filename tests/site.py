"""A running Airflow and MLflow, seen from both sides: what the tests of the stack and of the cluster ask of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.tracking.runs import Run, RunTree, run_id_of
from demo.airflow_api import AirflowApi
from demo.processes import snapshot
from demo.stack import LocalStack

QUIET_S = 0.6
FRESH_S = 1.0
"""Age of an answer that does for another one who asks: many wait for tasks of the same DAG run."""
ENDED = frozenset({"success", "failed", "skipped", "upstream_failed", "removed"})


def until(what: str, look: Callable[[], Any], limit_s: float = 180.0, pause_s: float = 0.25) -> Any:
    """Look until there is something to see."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if seen := look():
            return seen
        time.sleep(pause_s)
    raise TimeoutError(f"waited {limit_s:.0f} s in vain: {what}")


def _in_words(line: str) -> str:
    """Give what a line of a log says, with the errors that belong to it."""
    try:
        found = json.loads(line)
    except ValueError:
        return line
    errors = [f"{each['exc_type']}: {each['exc_value']}" for each in found.get("error_detail") or ()]
    return "\n  ".join([str(found.get("event", "")), *errors])


@dataclass
class Site:
    """
    A running stack.

    :param stack: Its processes.
    :param airflow: Client of its Airflow.
    :param mlflow: Client of its MLflow.
    """

    stack: LocalStack
    airflow: AirflowApi
    mlflow: MlflowApi
    turn: Lock = field(default_factory=Lock)
    seen: dict[tuple[str, str], tuple[float, list[Any]]] = field(default_factory=dict)

    def start(self, dag_id: str, **kwargs: Any) -> str:
        """Start a run of a DAG; give its id."""
        if self.airflow.wait_for_dag(dag_id, timeout_s=180)["is_paused"]:
            with self.writing():
                self.airflow.pause(dag_id, paused=False)
        with self.writing():
            return str(self.airflow.trigger(dag_id, **kwargs)["dag_run_id"])

    @contextmanager
    def writing(self, limit_s: float = 20.0) -> Iterator[None]:
        """
        Write through Airflow's API when nobody else does: wait until its log is still for a moment.

        It writes its own log of actions in its event loop, and waits there for SQLite's lock. When a worker's request holds that
        lock and needs the event loop to let go of it, all of Airflow stands still for half a minute.
        """
        log, end = self.stack.log_file("api-server"), time.monotonic() + limit_s
        with self.turn:
            while time.time() - log.stat().st_mtime < QUIET_S and time.monotonic() < end:
                time.sleep(0.05)
            yield
            time.sleep(0.1)  # it answers before it commits

    def instances(self, dag_id: str, run_id: str) -> list[Any]:
        """List the tasks of a DAG run; an answer does for all who ask within a moment."""
        with self.turn:
            at, found = self.seen.get((dag_id, run_id), (0.0, []))
            if time.monotonic() - at > FRESH_S:
                found = self.airflow.task_instances(dag_id, run_id)
                self.seen[dag_id, run_id] = time.monotonic(), found
        return found

    def task_state(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> tuple[str, int]:
        """Give the state and the try of a task."""
        named = (task_id, map_index)
        (found,) = [each for each in self.instances(dag_id, run_id) if (each["task_id"], each["map_index"]) == named]
        return str(found["state"]), int(found["try_number"])

    def worker(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> int | None:
        """Find the process that runs a task: Airflow names it after the task instance."""
        for each in self.instances(dag_id, run_id):
            if (each["task_id"], each["map_index"], each["state"]) == (task_id, map_index, "running"):
                for pid in snapshot():
                    try:
                        line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
                    except OSError:
                        continue
                    if f"airflow worker -- {each['id']}" in line:  # not its parent, which is of the executor
                        return pid
        return None

    def heard(self, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> bool:
        """Whether the executor has reported a task's first half: Airflow 3.3 fails a task that goes on before that."""
        word = f"task_id='{task_id}', run_id='{run_id}', try_number={try_number}, map_index={map_index})"
        lines = self.stack.log_file("scheduler").read_text().splitlines()
        return any("Received executor event" in line and word in line for line in lines)

    def log_text(self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1) -> str:
        """Read the log of a try from its files, worker's and triggerer's, in words: asking Airflow for it costs a second."""
        place = f"dag_id={dag_id}/run_id={run_id}/task_id={task_id}" + (f"/map_index={map_index}" if map_index >= 0 else "")
        files = sorted((self.stack.state_dir / "airflow/logs" / place).glob(f"attempt={try_number}.log*"))
        return "\n".join(_in_words(line) for each in files for line in each.read_text().splitlines())

    def finish(self, dag_id: str, run_id: str, limit_s: float = 400) -> str:
        """Wait for the end of a DAG run; give its state."""
        return str(self.airflow.wait_for_run(dag_id, run_id, timeout_s=limit_s)["state"])

    def run_of(self, dag_id: str, name: str) -> Run:
        """Find the one nested run of a task, in a DAG that was run once."""
        tree = RunTree(self.mlflow)
        named = f"attributes.run_name = '{name}' and tags.`mlflow.parentRunId` != ''"
        (found,) = tree.search([tree.experiment_id(dag_id)], named)
        return tree.get(run_id_of(found))
