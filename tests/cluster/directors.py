"""How a group of cases is played: what is made ready before, and the faults that hit all of its pods at once."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

from tests.cluster.actions import ACTIONS, Play
from tests.cluster.dags.pod_cases import CASES, PLAYED
from tests.cluster.gates import Gates
from tests.cluster.kube import FAULT, GPUS, Kube
from tests.site import Site

AWAY_S = 60.0
STOPPED_S = 30.0
GIVEN = {"FAULT": FAULT, "GPUS": GPUS}
"""The commands that a case may need."""


@dataclass
class Group:
    """
    Cases that are played in one DAG run.

    :param plays: Each task by case and way.
    :param acts: What is done to it, under way.
    """

    plays: dict[tuple[str, str], Play]
    acts: dict[tuple[str, str], Future[None]] = field(default_factory=dict)

    def __getitem__(self, named: tuple[str, str]) -> Play:
        return self.plays[named]

    def all(self, *names: str) -> list[Play]:
        return [each for (name, _), each in self.plays.items() if name in names]


@dataclass
class Stage:
    """
    Where groups are played, each when it is first asked for.

    :param site: Airflow and MLflow.
    :param kube: The cluster.
    :param gates: Where programs wait.
    :param pool: Threads of those who act.
    """

    site: Site
    kube: Kube
    gates: Gates
    pool: ThreadPoolExecutor
    groups: dict[str, Group] = field(default_factory=dict)
    runs: dict[str, str] = field(default_factory=dict)

    def group(self, name: str) -> Group:
        """Start what was not started; a whole cluster's faults are over when this returns."""
        if name not in self.groups:
            for named, way in PLAYED:
                if CASES[named].slot and CASES[named].group == name:
                    self._offer(named, way)
            run_id = self.site.start(f"pods_{name}")
            mine = [each for each in PLAYED if CASES[each[0]].group == name]
            group = Group({each: Play(self.site, self.kube, self.gates, run_id, *each) for each in mine})
            for each in mine:
                group.acts[each] = self.pool.submit(ACTIONS[CASES[each[0]].act], group[each])
            self.groups[name] = group
            {"together": lambda _: None, "away": self._api_server_away, "node": self._node_lost}[name](group)
        return self.groups[name]

    def _offer(self, name: str, way: str) -> None:
        from tests.cluster.dags.pod_cases import resource_of

        resource = resource_of(name, way)
        self.kube.offer({resource: "1"})
        if "quota" in name:
            self.kube.ration(resource)

    def _api_server_away(self, group: Group) -> None:
        """Kill the triggerer, and after that let the API server be away for a minute."""
        pods = {each.task: each.waiting() for each in group.plays.values()}
        self.site.stack.kill("triggerer")
        unread = group["unread_deferred", "defers"]
        unread.go()
        unread.until("the end of its program", lambda: pods[unread.task].over_at)
        self.kube.delete(pods[unread.task].name)
        unread.gone(pods[unread.task])
        self.site.stack.restart("triggerer")
        unread.ended()
        with self._fault(("stop", "apiserver"), ("start", "apiserver")):
            time.sleep(10)
            for each in group.all("ends_meanwhile", "fails_meanwhile"):
                each.go()
            time.sleep(AWAY_S - 10)
        for each in group.all("adopted"):
            each.go()

    def _node_lost(self, group: Group) -> None:
        """Stop the kubelet for a while, which harms nothing; then lose the node."""
        for each in group.plays.values():
            each.waiting()
        with self._fault(("stop", "kubelet"), ("start", "kubelet")):
            time.sleep(STOPPED_S)
        for each in group.all("survives"):
            each.go()
            each.ended()
        with self._fault(("lose", "node"), ("start", "kubelet")):
            for each in group.all("lost"):
                each.ended()
        for each in group.all("lost_once"):
            each.waiting(2)
            each.go(2)

    @contextmanager
    def _fault(self, breaks: tuple[str, str], mends: tuple[str, str]) -> Iterator[None]:
        try:
            self.kube.fault(*breaks)
            yield
        finally:
            self.kube.fault(*mends)
            self.kube.repaired()
