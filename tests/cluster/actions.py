"""What is done to a step while it goes on; each action by the name that the table gives it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from demo.errors import DemoError
from tests.cluster.dags.pod_cases import CASES, Case, resource_of, task_id
from tests.cluster.gates import Gates
from tests.cluster.kube import ENOUGH, Kube, Seen
from tests.site import ENDED, Site, until

LIMIT_S = 300.0
BEGUN = "it runs"
"""What most programs of the table write first."""


@dataclass
class Play:
    """
    One task of the table in one DAG run, from all sides.

    :param site: Airflow and MLflow.
    :param kube: The cluster.
    :param gates: Where its program waits.
    :param run_id: The DAG run.
    :param name: The case.
    :param way: How the task waits.
    """

    site: Site
    kube: Kube
    gates: Gates
    run_id: str
    name: str
    way: str

    @property
    def case(self) -> Case:
        return CASES[self.name]

    @property
    def dag_id(self) -> str:
        return f"pods_{self.case.group}"

    @property
    def task(self) -> str:
        return task_id(self.name, self.way)

    @property
    def resource(self) -> str:
        return resource_of(self.name, self.way)

    @property
    def state(self) -> tuple[str, int]:
        return self.site.task_state(self.dag_id, self.run_id, self.task)

    @property
    def pods(self) -> list[Seen]:
        return self.kube.watcher.pods(self.dag_id, self.task)

    def log(self, try_number: int = 1) -> str:
        return self.site.log_text(self.dag_id, self.run_id, self.task, try_number)

    def unsaid(self, try_number: int) -> list[str]:
        """Name what the log of a try should say, and does not."""
        log = self.log(try_number)
        return [each for each in self.case.words if each not in log]

    def waiting(self, try_number: int = 1) -> Seen:
        """Wait until its program stands at the gate and the task waits for it, in its way; give the pod."""
        self.until("its program at the gate", lambda: self.gates.reached(f"{self.task}/{try_number}/go"))
        if self.way == "defers":
            self.until("deferred", lambda: self.state == ("deferred", try_number))
            self.until("the executor's word", lambda: self.site.heard(self.run_id, self.task, try_number))
            if BEGUN in self.case.words:  # a pod that goes before the triggerer has looked once takes its log with it
                self.until("the first line in its log", lambda: BEGUN in self.log(try_number))
        return self.pods[-1]

    def until(self, what: str, look: Callable[[], Any], limit_s: float = LIMIT_S) -> Any:
        def look_once() -> Any:
            if self.gates.closed:
                raise InterruptedError(f"{self.task}: the tests are over")
            try:
                return look()
            except DemoError:  # Airflow's API is busy
                return None

        try:
            return until(f"{self.task}: {what}", look_once, limit_s, pause_s=0.5)
        except TimeoutError as error:
            error.add_note(self.so_far())
            raise

    def so_far(self) -> str:
        """What is to be seen of it, for whoever has waited in vain."""
        with suppress(DemoError):
            state, try_number = self.state
            conditions = [each.last.get("status", {}).get("conditions") for each in self.pods]
            return f"state {state}, try {try_number}\n{self.log(max(try_number, 1))[-2000:]}\npods: {conditions}"
        return "Airflow does not answer"

    def go(self, try_number: int = 1) -> None:
        self.gates.open(f"{self.task}/{try_number}/go")

    def gone(self, pod: Seen) -> None:
        self.until("the end of its pod", lambda: pod.gone_at is not None, 90)

    def ended(self) -> tuple[str, int]:
        found: tuple[str, int] = self.until("its end", lambda: self.state if self.state[0] in ENDED else None, 400)
        return found

    def worker(self) -> int:
        return int(self.until("its worker", lambda: self.site.worker(self.dag_id, self.run_id, self.task)))


def nothing(play: Play) -> None:
    """Leave it to itself."""


def director(play: Play) -> None:
    """Whoever plays the whole group does it."""


def opens(play: Play) -> None:
    for number in range(1, play.case.tries + 1):
        play.waiting(number)
        play.go(number)


def evicts(play: Play) -> None:
    play.kube.evict(play.waiting().name)


def evicts_once(play: Play) -> None:
    play.kube.evict(play.waiting().name)
    play.waiting(2)
    play.go(2)


def preempts(play: Play) -> None:
    play.waiting()
    name = play.kube.preempt(play.resource)
    play.until("the pod that took its place", lambda: play.kube.phase(name) == "Succeeded", 90)


def makes_room(play: Play) -> None:
    for way in play.case.ways:  # there is room for all of them at once
        other = replace(play, way=way)
        play.until("the scheduler's reason in the log", lambda other=other: "Insufficient nvidia.com/gpu" in other.log())
    play.until("a place on the node", partial(_has_room, play), 90)
    play.waiting()
    play.go()


def _has_room(play: Play) -> bool:
    """Give the node GPUs enough, and another one at each look: the scheduler looks at a pod again when its node has changed."""
    play.kube.gpus(ENOUGH + next(play.kube.spare))
    with suppress(TimeoutError):
        return bool(until("its node", lambda: play.pods[-1].last["spec"].get("nodeName"), 10))
    return False


def allows(play: Play) -> None:
    play.until("the quota in its log", lambda: "No room in the quota" in play.log())
    play.kube.allow(play.resource)
    play.waiting()
    play.go()


def deletes(play: Play) -> None:
    play.kube.delete(play.waiting().name)


def deletes_at_once(play: Play) -> None:
    play.kube.delete(play.waiting().name, grace_s=0)


def freezes_and_deletes(play: Play) -> None:
    """Let the pod end well and go while its worker does not look."""
    pod, worker = play.waiting(), play.worker()
    os.kill(worker, signal.SIGSTOP)
    play.go()
    play.until("the end of its program", lambda: pod.over_at)
    play.kube.delete(pod.name)
    play.gone(pod)
    os.kill(worker, signal.SIGCONT)


def marks(play: Play) -> None:
    play.waiting()
    with play.site.writing(2):
        play.site.airflow.set_task_state(play.dag_id, play.run_id, play.task, "failed")


def clears(play: Play) -> None:
    first = play.waiting()
    with play.site.writing(2):
        play.site.airflow.clear(play.dag_id, play.run_id, [play.task])
    play.waiting(2)
    assert first.gone_at is not None, "two pods at once"
    play.go(2)


def kills_worker(play: Play) -> None:
    """Kill it while it waits; its pod ends only after the next try has taken it up."""
    pod = play.waiting()
    os.kill(play.worker(), signal.SIGKILL)
    play.until("the next try", lambda: play.state == ("running", 2))
    play.until("the pod taken up", lambda: f"{pod.name} is there already" in play.log(2), 60)
    play.go()


def kills_worker_and_deletes(play: Play) -> None:
    """Let the pod end well and go while nobody has the task."""
    pod = play.waiting()
    os.kill(play.worker(), signal.SIGKILL)
    play.go()
    play.until("the end of its program", lambda: pod.over_at)
    play.kube.delete(pod.name)
    play.gone(pod)


def kills_worker_after(play: Play) -> None:
    """Kill the worker that reads the result of a pod that has ended."""
    play.waiting()
    play.go()
    os.kill(play.worker(), signal.SIGKILL)


ACTIONS: dict[str, Callable[[Play], None]] = {
    each.__name__: each
    for each in (
        nothing,
        director,
        opens,
        evicts,
        evicts_once,
        preempts,
        makes_room,
        allows,
        deletes,
        deletes_at_once,
        freezes_and_deletes,
        marks,
        clears,
        kills_worker,
        kills_worker_and_deletes,
        kills_worker_after,
    )
}
