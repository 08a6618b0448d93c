"""One DAG run with a pipeline's run in it, seen from both sides, and many of them side by side."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from airflow_ml_provider.testing import FakeKfpServer, Workflow
from demo.processes import snapshot
from tests.stack.conftest import Site, until

ONE_RUN = r"/runs/[0-9a-f-]{36}$"
CREATE = r"/apis/v2beta1/runs$"
CARRIERS = r"/recurringruns$"
SCENES = "kfp_scenes"
T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """
    What is left of a DAG run.

    :param state: State of the task.
    :param workflows: Workflows that were started.
    :param creates: Creates that were sent.
    :param running: Workflows that have not ended and that nobody has stopped.
    :param carriers: Recurring runs that are left.
    """

    state: str = "success"
    workflows: int = 1
    creates: int = 1
    running: int = 0
    carriers: int = 0


class Case:
    """
    One task in one DAG run, and what it has started on a server.

    :param site: The stack.
    :param dag_id: Its DAG.
    :param run_id: Its DAG run; None starts one.
    :param lane: Which of the scenes that go on side by side; None for a DAG with one task.
    """

    def __init__(self, site: Site, dag_id: str, run_id: str | None = None, lane: int | None = None) -> None:
        self.site, self.dag_id = site, dag_id
        self.map_index = -1 if lane is None else lane
        self.server = site.kfp if lane is None else site.lanes[lane]
        self.before = {each.name for each in self.server.workflows}
        self.carriers_before = set(self.server.store.recurring)
        self.asked = len(self.server.requests)
        self.run_id = run_id or site.start(dag_id)

    @property
    def workflows(self) -> list[Workflow]:
        return [each for each in self.server.workflows if each.name not in self.before]

    @property
    def carriers(self) -> set[str]:
        return set(self.server.store.recurring) - self.carriers_before

    @property
    def state(self) -> tuple[str, int]:
        return self.site.task_state(self.dag_id, self.run_id, "run", self.map_index)

    def started(self) -> Workflow:
        found: list[Workflow] = until("a workflow", lambda: self.workflows)
        return found[-1]

    def polling(self) -> Workflow:
        """Wait until the task asks about its run itself, in a worker."""
        found = self.started()
        until("a poll", lambda: self.was_asked("GET", ONE_RUN, after=found.created_at + 1))
        return found

    def deferred(self) -> Workflow:
        """Wait until the task has handed its run over to the triggerer."""
        found = self.started()
        until("deferred", lambda: self.state[0] == "deferred")
        now = time.time()
        until("the triggerer's question", lambda: self.was_asked("GET", CREATE, after=now))
        until("the executor's word", lambda: self.site.heard(self.run_id, "run", self.state[1], self.map_index))
        return found

    def waiting(self) -> Workflow:
        """Wait until the task waits, in its way."""
        return self.polling() if self.dag_id == "kfp_waits" else self.deferred()

    def was_asked(self, method: str, path: str, after: float = 0.0) -> bool:
        return self.count(method, path, after) > 0

    def count(self, method: str, path: str, after: float = 0.0) -> int:
        new = self.server.requests[self.asked :]
        return sum(each.method == method and re.search(path, each.path) is not None and each.at >= after for each in new)

    def worker(self) -> int:
        """Find the process that runs the task's code."""
        return int(until("the worker", lambda: self.site.worker(self.dag_id, self.run_id, "run", self.map_index)))

    def kill_worker(self, signum: int = signal.SIGKILL) -> None:
        os.kill(self.worker(), signum)

    def lose_machine(self) -> None:
        """Kill the task and what watches over it: nobody is left to tell Airflow."""
        pid = self.worker()
        os.kill(snapshot()[pid].parent, signal.SIGKILL)
        os.kill(pid, signal.SIGKILL)

    def mark(self, state: str) -> None:
        """Mark the task, and wait until its process is gone: what it starts, it has started then."""
        pid = self.worker()
        with self.site.writing():
            self.site.airflow.set_task_state(self.dag_id, self.run_id, "run", state, map_index=self.map_index)
        until("the end of the process", lambda: pid not in snapshot())

    def clear(self) -> None:
        chosen = {"dry_run": False, "dag_run_id": self.run_id, "only_failed": False, "task_ids": [["run", self.map_index]]}
        with self.site.writing():
            self.site.airflow.call("POST", f"/dags/{self.dag_id}/clearTaskInstances", body=chosen)

    def tried_again(self) -> None:
        until("the next try", lambda: self.state[0] == "up_for_retry" or self.state[1] >= 2)

    def ends(self, state: str = "success") -> None:
        assert self.site.finish(self.dag_id, self.run_id) == state

    def result(self) -> Any:
        return self.site.airflow.xcom(self.dag_id, self.run_id, "run", map_index=self.map_index)

    def log(self, try_number: int = 1) -> str:
        named = {"try_number": try_number, "map_index": self.map_index}
        return str(self.site.airflow.task_log(self.dag_id, self.run_id, "run", **named))

    def creates(self) -> int:
        return self.count("POST", CREATE)

    def outcome(self) -> Outcome:
        """Wait for the end of the task, and see what is left; no success without the server's."""
        state = until("an end", lambda: self.state[0] in {"success", "failed"} and self.state[0])
        if state == "success" and (result := self.result()) is not None:
            assert result["state"] == "SUCCEEDED"
            assert self.server.store.runs[result["run_id"]].state == "SUCCEEDED"
        running = [each for each in self.workflows if not (each.ended or each.stopped or each.deleted)]
        return Outcome(state, len(self.workflows), self.creates(), len(running), len(self.carriers))


Scene = Callable[[FakeKfpServer], Generator[dict[str, Any], Case, T]]
"""Makes the server ready, says with which arguments the task is to run, and plays on with it."""


def side_by_side(site: Site, scenes: Mapping[str, Scene[T]]) -> dict[str, T | Exception]:
    """
    Play scenes, as many at once as there are servers, in one DAG run: most of their time is waiting.

    :param site: The stack.
    :param scenes: What to play, by name.
    :return: What came of it, by name.
    """
    rest = iter(scenes.items())
    found: dict[str, T | Exception] = {}
    while turn := list(islice(rest, len(site.lanes))):
        opened = [scene(server) for (_, scene), server in zip(turn, site.lanes, strict=False)]
        conf = {f"lane_{lane}": next(each) for lane, each in enumerate(opened)}
        run_id = site.start(SCENES, conf=conf)
        cases = [Case(site, SCENES, run_id, lane) for lane in range(len(turn))]
        with ThreadPoolExecutor(len(turn)) as pool:
            found |= dict(zip([name for name, _ in turn], pool.map(_play, opened, cases), strict=True))
        for each in site.lanes:
            each.up()
            each.clear_faults()
    return found


def _play(scene: Generator[Any, Case, T], case: Case) -> T | Exception:
    try:
        scene.send(case)
    except StopIteration as end:
        value: T = end.value
        return value
    except Exception as error:  # noqa: BLE001  (whoever asks for this one raises it)
        return error
    raise AssertionError("a scene has one task")
