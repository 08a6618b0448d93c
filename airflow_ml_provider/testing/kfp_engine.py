"""The workflow engine and the agent that reports it: workflows run by the clock, and rows of runs follow when a report comes."""

from __future__ import annotations

import copy
import functools
import heapq
import itertools
import random
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_ml_provider.testing.kfp_answers import KfpError, moment
from airflow_ml_provider.testing.kfp_graph import Graph
from airflow_ml_provider.testing.kfp_parameters import name_of
from airflow_ml_provider.testing.kfp_store import Store
from airflow_ml_provider.testing.kfp_values import PHASES, Run, Workflow

SIGNS = "2456789bcdfghjklmnpqrstvwxz"
FOREIGN_ENDS = frozenset({"CANCELED", "SKIPPED"})
"""Ends that this server never tells of; others may."""
WORDS = {"PENDING": "Pending", "RUNNING": "Running", "SUCCEEDED": "Succeeded", "FAILED": "Failed", "ERROR": "Error"}


@dataclass(frozen=True)
class Fate:
    """
    What becomes of a workflow by itself.

    :param seconds: From its creation to its end.
    :param state: How it ends.
    :param failed_task: The task that fails.
    :param error: What the engine says of it.
    :param log: What its container wrote.
    :param late_s: From the end to the report of it.
    :param steps: Seconds after the creation and a state, in the place of all the others.
    """

    seconds: float
    state: str = "SUCCEEDED"
    failed_task: str | None = None
    error: str = ""
    log: str = ""
    late_s: float = 0.0
    steps: tuple[tuple[float, str], ...] = ()


class Engine:
    """
    Runs workflows and reports them.

    Nothing here has a thread: whatever is due is done, with the time at which it was due, before the next look at the server.

    :param store: The tables.
    :param grace_s: Age in seconds below which a workflow without a run is left alone.
    """

    def __init__(self, store: Store, grace_s: float) -> None:
        self.store = store
        self.grace_s = grace_s
        self.fate: Fate | None = None
        self.fates: dict[str, Fate | None] = {}
        self.missed: list[Workflow] = []
        self.due: list[tuple[float, int, Callable[[float], None]]] = []
        self.count = itertools.count()
        self.final: list[Callable[[Run], None]] = []
        self.cached: frozenset[str] = frozenset()

    def start(self, spec: dict[str, Any], run_id: str, display_name: str, namespace: str, recurring_run_id: str) -> Workflow:
        """
        Make a Workflow object.

        :param spec: The pipeline.
        :param run_id: Value of its label.
        :param display_name: Name that was asked for.
        :param namespace: Where it runs.
        :param recurring_run_id: Its owner, empty for none.
        :return: The workflow.
        """
        name = self.new_name(spec)
        owner = self.store.recurring.get(recurring_run_id)
        workflow = Workflow(name, str(uuid.uuid4()), run_id, namespace, self.store.clock(), spec)
        workflow.display_name, workflow.recurring_run_id = display_name, recurring_run_id
        workflow.cached = self.cached
        workflow.owner = owner.workflow_name if owner else ""
        self.store.add_workflow(workflow)
        self.schedule(workflow)
        self.collect_ownerless(workflow)
        return workflow

    def collect_ownerless(self, *workflows: Workflow) -> None:
        """
        Delete workflows whose owner is gone, running or not: Kubernetes keeps nothing whose only owner is not there.

        Their runs are never reported again.

        :param workflows: Workflows; none for every one that there is.
        """
        for each in workflows or self.store.workflows:
            owner = self.store.recurring.get(each.recurring_run_id)
            if each.recurring_run_id and (owner is None or owner.object_gone):
                each.deleted = True

    def new_name(self, spec: dict[str, Any]) -> str:
        """
        Make up the name of a workflow.

        :param spec: The pipeline.
        :return: Name of the pipeline and five signs.
        """
        return f"{name_of(spec) or 'pipeline'}-{''.join(random.choices(SIGNS, k=5))}"  # noqa: S311  (a name, no secret)

    def schedule(self, workflow: Workflow) -> None:
        """
        Plan what becomes of a workflow by itself from now on.

        :param workflow: The workflow.
        """
        workflow.fate += 1
        fate, turn, now = self.fate_of(workflow), workflow.fate, self.store.clock()
        if fate is None:
            return
        steps = fate.steps or ((fate.seconds / 2, "RUNNING"), (fate.seconds, fate.state))
        for number, (seconds, state) in enumerate(steps):
            late_s = fate.late_s if number == len(steps) - 1 else 0.0
            self.plan(now + seconds, functools.partial(self.step, workflow, fate, turn, state, late_s))

    def fate_of(self, workflow: Workflow) -> Fate | None:
        """
        Tell what becomes of a workflow.

        :param workflow: The workflow.
        :return: What was said for its pipeline, else for all; None for nothing by itself.
        """
        return self.fates.get(name_of(workflow.spec), self.fate)

    def step(self, workflow: Workflow, fate: Fate, turn: int, state: str, late_s: float, at: float) -> None:
        """
        Take one step of a fate, unless something else has happened to the workflow meanwhile.

        :param workflow: The workflow.
        :param fate: Its fate.
        :param turn: Number of the fate; a stop, a retry or a deletion begins another one.
        :param state: Where the workflow stands then.
        :param late_s: Seconds until it is reported.
        :param at: When it was due.
        """
        if workflow.fate != turn or workflow.deleted:
            return
        self.move(workflow, state, fate.failed_task, fate.error, fate.log, at=at)
        self.plan(at + late_s, lambda _: self.quietly(workflow))

    def plan(self, at: float, what: Callable[[float], None]) -> None:
        """
        Do something later.

        :param at: When.
        :param what: What, called with the time at which it was due.
        """
        heapq.heappush(self.due, (at, next(self.count), what))

    def advance(self) -> None:
        """Do what is due."""
        while self.due and self.due[0][0] <= self.store.clock():
            at, _, what = heapq.heappop(self.due)
            what(at)

    def move(
        self,
        workflow: Workflow,
        state: str,
        failed_task: str | None = None,
        error: str = "",
        log: str = "",
        *,
        at: float | None = None,
    ) -> None:
        """
        Let a workflow go on, without telling the server.

        :param workflow: The workflow.
        :param state: Where it stands then.
        :param failed_task: The task that fails.
        :param error: What the engine says of it.
        :param log: What the container wrote.
        :param at: When, None for now.
        """
        now = int(self.store.clock() if at is None else at)
        phase, graph = WORDS.get(state, state), Graph(workflow, now)
        if workflow.stopped and phase == "Failed":
            graph.stop()
        elif phase == "Running":
            graph.run()
        elif phase == "Succeeded":
            graph.succeed(log)
        elif phase in {"Failed", "Error"}:
            graph.fail(phase, failed_task, error, log)
        workflow.phase = phase
        workflow.version += 1
        workflow.finished_at = now if workflow.ended or phase in FOREIGN_ENDS else None

    def quietly(self, workflow: Workflow) -> None:
        """
        Report a workflow as the agent does, which repeats what is refused for now.

        :param workflow: The workflow.
        """
        if self.store.lost & {"database", "kubernetes"}:
            self.missed.append(workflow)
            return
        try:
            self.report(workflow)
        except KfpError as refused:
            if refused.short != "Service unavailable":
                return
            if workflow.run_id in self.store.runs:
                self.missed.append(workflow)
            else:
                self.plan(workflow.created_at + self.grace_s, lambda _: self.quietly(workflow))

    def catch_up(self) -> None:
        """Repeat the reports that could not be made while something was away."""
        missed, self.missed = self.missed, []
        for each in missed:
            self.quietly(each)

    def report(self, workflow: Workflow) -> None:
        """
        Bring a workflow's state into the row of its run.

        :param workflow: The workflow.
        :raises KfpError: 503 for a young orphan, 404 for an old one, which is deleted with it.
        """
        if workflow.deleted or "database" in self.store.lost:
            return
        run = self.store.runs.get(workflow.run_id) or self.recover(workflow)
        if run is None:
            self.collect(workflow)
            return
        run.workflow = workflow
        state = PHASES.get(workflow.phase, workflow.phase)
        if workflow.stopped and not workflow.ended:
            state = "CANCELING"
        self.write(run, state, workflow.finished_at or 0)
        self.take_nodes(run, workflow)
        self.store.touch(run)
        if workflow.ended:
            workflow.persisted = True
            for each in self.final:
                each(run)

    def take_nodes(self, run: Run, workflow: Workflow) -> None:
        """
        Copy the nodes of a workflow into the row; those of another workflow with the same id stay beside them.

        :param run: The row.
        :param workflow: The workflow.
        """
        nodes = [copy.copy(each) for each in workflow.nodes.values()]
        for each in nodes:
            each.history = list(each.history)
        random.Random(workflow.name).shuffle(nodes)  # noqa: S311  (the server's order is of no use, and so is this one)
        own = {each.task_id for each in nodes}
        others = [each for each in run.nodes or () if each.task_id not in own]
        run.nodes = [*others, *nodes] or None

    def write(self, run: Run, state: str, finished_at: int) -> None:
        """
        Write a state into a row.

        :param run: The row.
        :param state: The state.
        :param finished_at: End of the workflow, 0 for none.
        """
        if run.state_history[-1:] == [] or run.state_history[-1].get("state") != state:
            run.state_history.append({"update_time": moment(self.store.now), "state": state})
        run.state = state
        run.finished_at = finished_at
        self.store.touch(run)

    def recover(self, workflow: Workflow) -> Run | None:
        """
        Make a row for an orphan of a recurring run, from what the recurring run says.

        :param workflow: The orphan.
        :return: The row, None for an orphan that belongs to no recurring run.
        """
        recurring = self.store.recurring.get(workflow.recurring_run_id)
        if recurring is None:
            return None
        run = Run(workflow.run_id, workflow.name, self.store.now, recurring.experiment_id, recurring.namespace)
        run.pipeline_id, run.pipeline_version_id = recurring.pipeline_id, recurring.pipeline_version_id
        run.pipeline_spec, run.runtime_config = recurring.pipeline_spec, recurring.runtime_config
        run.scheduled_at, run.service_account = int(workflow.created_at), ""
        run.recurring_run_id = recurring.recurring_run_id
        self.store.put_run(run)
        return run

    def collect(self, workflow: Workflow) -> None:
        """
        Delete an orphan that nothing belongs to, when it is old enough.

        :param workflow: The orphan.
        :raises KfpError: 503 while it is young, 404 when it has been deleted.
        """
        age = self.store.clock() - workflow.created_at
        if age < self.grace_s:
            within = f"workflow {workflow.name} is within GC grace period ({int(age)}s old, threshold {_span(self.grace_s)})"
            text = (
                f"Failed to report workflow: ServiceUnavailable: Skipping GC for workflow {workflow.name} - will retry: {within}"
            )
            raise KfpError(14, text, "Service unavailable")
        workflow.deleted = True
        where = f'name="{workflow.name}" namespace="{workflow.namespace}" runId="{workflow.run_id}"'
        gone = f"Run {workflow.run_id} not found"
        way = f"Failed to report workflow: Failed to report workflow {where}: Failed to fetch run {workflow.run_id}"
        raise KfpError(5, f"{way}: ResourceNotFoundError: {gone}", gone)


def _span(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"
