"""The graph of a workflow: which nodes a pipeline has, and how they stand when it waits, runs, ends or fails."""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from airflow_ml_provider.testing.kfp_parameters import pipeline_of
from airflow_ml_provider.testing.kfp_values import Node, Workflow


@lru_cache(maxsize=256)
def _hash(text: str) -> int:
    return zlib.crc32(text.encode())


def tasks_of(spec: Mapping[str, Any]) -> dict[str, list[str]]:
    """
    Read the tasks of a pipeline in an order in which they can run.

    :param spec: The pipeline.
    :return: Name of each task of the root, and the names of those that it waits for. A task that holds a graph of its own
        counts as one.
    """
    tasks = ((pipeline_of(spec).get("root") or {}).get("dag") or {}).get("tasks") or {}
    waits = {name: sorted(_before(task) & set(tasks)) for name, task in tasks.items()}
    order: dict[str, list[str]] = {}
    while len(order) < len(waits):
        free = sorted(each for each in waits if each not in order and all(one in order for one in waits[each]))
        if not free:  # a ring, which a real server refuses when it runs
            free = sorted(set(waits) - set(order))
        order.update({each: waits[each] for each in free})
    return order


def _before(task: Mapping[str, Any]) -> set[str]:
    names = set(task.get("dependentTasks") or ())
    inputs = task.get("inputs") or {}
    for each in [*(inputs.get("parameters") or {}).values(), *(inputs.get("artifacts") or {}).values()]:
        source = each.get("taskOutputParameter") or each.get("taskOutputArtifact") or {}
        names |= {source["producerTask"]} if "producerTask" in source else set()
    return names


class Graph:
    """
    Moves the nodes of one workflow.

    :param workflow: The workflow.
    :param now: Seconds since 1970, for what changes.
    """

    def __init__(self, workflow: Workflow, now: int) -> None:
        self.workflow = workflow
        self.now = now
        self.tasks = tasks_of(workflow.spec)

    def node_id(self, *path: str) -> str:
        """
        Name a node as the engine does.

        :param path: Names from the root down.
        :return: Name of the workflow and a number; the workflow's own name for the workflow itself.
        """
        return f"{self.workflow.name}-{_hash('.'.join(path))}" if path else self.workflow.name

    def set(self, path: tuple[str, ...], phase: str, *children: tuple[str, ...], message: str = "") -> Node:
        """
        Bring a node to a phase, making it when it is not there.

        :param path: Names from the root down, empty for the workflow itself.
        :param phase: The engine's word.
        :param children: Paths of what comes after it.
        :param message: What the engine says of it.
        :return: The node.
        """
        node_id = self.node_id(*path)
        node = self.workflow.nodes.get(node_id)
        if node is None:
            name = path[-1] if path else self.workflow.name
            node = Node(node_id, name, phase, str(uuid.uuid4()), self.now)
            self.workflow.nodes[node_id] = node
        node.children = [self.node_id(*each) for each in children]
        node.message = message
        node.move(phase, self.now)
        return node

    def frame(self, phase: str) -> None:
        """
        Set the nodes around the tasks.

        :param phase: Phase of the workflow.
        """
        first = [("root", f"{each}-driver") for each, waits in self.tasks.items() if not waits]
        self.set((), phase, ("root-driver",))
        self.set(("root-driver",), "Succeeded", ("root",))
        self.set(("root",), phase, *first)

    def task(self, name: str, phase: str, *, log: str = "", message: str = "") -> None:
        """
        Set the three nodes of a task.

        :param name: The task.
        :param phase: Its phase; ``Omitted`` makes no executor, ``Skipped`` is a task served from the cache.
        :param log: What its container wrote.
        :param message: What the engine says of it.
        """
        after = [("root", f"{each}-driver") for each, waits in self.tasks.items() if name in waits]
        executor = ("root", name, "executor")
        driver = phase if phase in {"Omitted", "Pending"} else "Succeeded"
        own = "Succeeded" if phase == "Skipped" else phase
        self.set(("root", f"{name}-driver"), driver, ("root", name))
        if phase in {"Omitted", "Pending"}:
            self.set(("root", name), own, *([] if phase == "Pending" else after))
            return
        self.set(("root", name), own, executor)
        self.set(executor, phase, *after, message=message).log = log

    def phases(self) -> dict[str, str]:
        """
        Tell how the tasks stand.

        :return: Name and phase of each task that has a node.
        """
        nodes = self.workflow.nodes
        found = {each: nodes.get(self.node_id("root", each)) for each in self.tasks}
        return {name: node.phase for name, node in found.items() if node is not None}

    def run(self) -> None:
        """Start it: the first tasks run, or those that a retry repeats."""
        done = {name for name, phase in self.phases().items() if phase == "Succeeded"}
        self.frame("Running")
        for name, waits in self.tasks.items():
            if name not in done and done.issuperset(waits):
                self.task(name, "Running")

    def succeed(self, log: str = "") -> None:
        """
        End it well.

        :param log: What every container wrote.
        """
        self.frame("Succeeded")
        for name in self.tasks:
            self.task(name, "Skipped" if name in self.workflow.cached else "Succeeded", log=log)

    def fail(self, phase: str, failed_task: str | None, error: str, log: str) -> None:
        """
        End it badly: one task fails, those that wait for it are left out, the others are done.

        :param phase: ``Failed`` or ``Error``.
        :param failed_task: The task that fails; None for the first that runs, or the first of all.
        :param error: What the engine says of its container; the API shows it nowhere.
        :param log: What that container wrote.
        """
        running = [name for name, each in self.phases().items() if each == "Running"]
        failed = failed_task or next(iter(running or self.tasks), None)
        self.frame(phase)
        out = {failed}
        for name, waits in self.tasks.items():
            if name == failed:
                self.task(name, phase, log=log, message=error)
            elif out.intersection(waits):
                out.add(name)
                self.task(name, "Omitted", message="omitted: depends condition not met")
            else:
                self.task(name, "Succeeded")

    def stop(self) -> None:
        """End it after a terminate: what runs fails, nothing more is started. One that never ran has no nodes."""
        if not self.workflow.nodes:
            return
        self.frame("Failed")
        for name, phase in self.phases().items():
            if phase == "Running":
                self.task(name, "Failed", message="workflow shutdown with strategy:  Terminate")
