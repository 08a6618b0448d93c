"""
Finding or making the pod of a task instance, never two at once, and parting with it.

What to do with the pods that are found is decided in :mod:`airflow_ml_provider.core.pod_adoption`. A pod's name is derived, so a
create whose answer was lost, or that two workers send, finds the pod that is there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_ml_provider._compat import StateStore
from airflow_ml_provider.core.pod_adoption import KEY, READ, PodPlan, Remembered, choose, has_ended, labels_of, pod_name
from airflow_ml_provider.core.pod_verdict import ended
from airflow_ml_provider.core.submission import Generation
from airflow_ml_provider.exceptions import AirflowMLError, ConfigError, RemoteJobError, RemoteUnavailableError
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.jobs.pods import OnFinish, PodJobs, QuotaExceededError
from airflow_ml_provider.models.pod import PodEnd, PodOutcome, PodSnapshot
from airflow_ml_provider.models.pod_options import MAIN
from airflow_ml_provider.models.run import StepIdentity

log = logging.getLogger(__name__)
T = TypeVar("T")

MEMORY_KEY = "ml_pod"
"""Of the task state store."""
CLEAR_WITHIN_S = 120.0
"""Seconds beyond its grace period that a pod may take to be gone; one whose node is lost takes for ever."""
QUOTA_PAUSE_S = 15.0
STOP_WITHIN_S = 4.0
"""Seconds in which a killed task tries to delete its pod; Airflow kills it for good soon after."""

MakeBody = Callable[[Generation], Mapping[str, Any]]
"""Makes the JSON of a pod; its name, namespace and the labels of identity and generation are set here."""


@dataclass
class PodSubmission:
    """
    Finds or makes the pod of a task instance.

    :param jobs: Pods of the namespace.
    :param memory: Where it is remembered, over crashes and retries, which pod was made: Airflow's task state store.
    :param identity: The task instance.
    :param clears: Airflow's ``max_tries``.
    :param on_finish: What becomes of the pod in the end.
    :param capacity_timeout_s: Seconds to wait while a quota refuses the pod.
    :param patience_s: Seconds to wait for an API server that is away.
    :param deadline: Epoch seconds at which the waiting ends in any case; None for never.
    :param clock: Epoch seconds.
    :param sleep: Waits; seconds.
    """

    jobs: PodJobs
    memory: StateStore
    identity: StepIdentity
    clears: int
    on_finish: OnFinish = "delete_pod"
    capacity_timeout_s: float = 3600.0
    patience_s: float = 300.0
    deadline: float | None = None
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = field(default=time.sleep)
    pod: PodSnapshot | None = None
    """The pod that the task works with, once there is one."""
    killed: bool = False
    refused_s: float = 0.0
    """Seconds that a quota has made us wait; what is left of ``capacity_timeout_s`` is for the scheduler."""
    _note: str = ""

    def plan(self) -> PodPlan:
        """
        Look for the pods of the task instance, and decide.

        :return: The plan; its ``lost`` names a pod whose end nobody has read and that is gone: what it has stored is in MLflow.
        :raises SupersededError: there is a pod of a later clear.
        :raises RemoteUnavailableError: the API server did not answer within the patience; a retry is safe.
        """
        found = patiently("look for the step's pods", lambda: self.jobs.find({KEY: self.identity.key}), self.patience_s)
        return choose(found, self.clears, Remembered.from_json(self.memory.get(MEMORY_KEY)))

    def start(self, body: MakeBody, plan: PodPlan | None = None) -> PodSnapshot | PodOutcome:
        """
        Take up the pod that an earlier try has left, or make one.

        :param body: Makes the JSON of the pod; called only where one is made.
        :param plan: What :meth:`plan` has said just now; None to ask.
        :return: The pod, in whatever state it is; an outcome where none was made: ``no_room`` when a quota has refused it
            for too long, ``node_lost`` when a pod of before cannot be got rid of, ``deadline``.
        :raises ConfigError: the API server refuses the pod; nothing was made, a retry never helps.
        :raises SupersededError: there is a pod of a later clear.
        :raises RemoteJobError: the task was killed meanwhile.
        :raises RemoteUnavailableError: the API server did not answer within the patience; a retry is safe.
        """
        began, plan = self.clock(), plan or self.plan()
        while True:
            self._heed_kill()
            self.sweep(plan.over)
            found: PodSnapshot | PodOutcome | None
            if plan.action == "adopt" and plan.pod is not None:
                log.info("Pod %s is there already (%s); it is taken up.", plan.pod.name, plan.pod.phase)
                found = self._work_with(plan.pod, plan.generation)
            else:
                found = self._see_off(plan, began) if plan.action == "clear" else self._create(plan.generation, body)
            if found is not None:
                return found
            plan = self.plan()

    def mark_read(self, pod: PodSnapshot) -> PodSnapshot | None:
        """
        Note that the end of a pod was read, so that no later try takes it up.

        :param pod: The pod; one that is gone is no error.
        :return: The pod as it is now; None for one that is gone, or of which nothing was heard.
        """
        self._remember_read()
        return self._quietly("mark as read", pod, lambda: self.jobs.label(pod.name, {READ: "true"}, uid=pod.uid))

    def finish(self, pod: PodSnapshot, *, succeeded: bool) -> None:
        """
        Part with a pod: delete it, or mark it as read, as ``on_finish`` says; an API server that is away is waited for.

        What is kept is a pod that has ended: one that waits or runs is deleted, as nobody will wait for it any more.

        :param pod: The pod, as it was last seen; one that is gone is no error.
        :param succeeded: Whether the step has succeeded, which is not what the pod's phase says.
        """
        if self.on_finish == "delete_pod" or (self.on_finish == "delete_succeeded_pod" and succeeded):
            self._remember_read()
            self._quietly("delete", pod, lambda: self._delete(pod))
            return
        kept = self.mark_read(pod)  # what it answers is newer than what is known of the pod here
        if kept is not None and not ended(kept, MAIN, None):
            log.info("Pod %s has not ended, and nobody waits for it any more. It is deleted, whatever is to be kept.", pod.name)
            self._quietly("delete", pod, lambda: self._delete(pod))

    def stop_at_once(self) -> None:
        """
        Delete the pod in the seconds that a killed task has, over connections of its own; one in the making too.

        One that has ended is deleted as well, unless ``on_finish`` keeps it: nobody else will come for it.
        """
        self.killed = True
        end, problem = time.monotonic() + STOP_WITHIN_S, ""
        jobs = self.jobs.again(timeout_s=STOP_WITHIN_S / 2)
        while time.monotonic() < end:
            try:
                mine = [self.pod] if self.pod else jobs.find({KEY: self.identity.key})
                for each in mine:
                    if not has_ended(each) or self._is_done_with(each):
                        log.info("The task was killed. Pod %s is deleted.", each.name)
                        jobs.delete(each.name, uid=each.uid)
            except AirflowMLError as error:
                problem = str(error)
                self.sleep(0.3)
            else:
                jobs.close()
                return
        log.warning("The step's pod could not be deleted: %s Delete it by hand.", problem)

    def _create(self, generation: Generation, body: MakeBody) -> PodSnapshot | PodOutcome | None:
        """Send one create; None to look again: what became of it is asked, never assumed."""
        name, made = pod_name(self.identity, generation), dict(body(generation))
        labels = labels_of(self.identity, generation)
        given = {key: value for key, value in made["metadata"].items() if key != "generateName"}
        own = {"name": name, "namespace": self.jobs.namespace, "labels": {**(given.get("labels") or {}), **labels}}
        try:
            pod = patiently(f"make pod {name}", lambda: self._send({**made, "metadata": given | own}), self.patience_s)
        except QuotaExceededError as error:
            return self._refused(name, str(error))
        if pod.labels.get(KEY) != self.identity.key:
            raise ConfigError(f"pod {name} exists in namespace {self.jobs.namespace!r} and is not this task's. Delete it.")
        if pod.deleted_at is not None or READ in pod.labels:  # one of before, which only its name has told of
            return None
        log.info("Pod %s was made in namespace %s.", name, self.jobs.namespace)
        found = self._work_with(pod, generation)
        self._heed_kill()
        return found

    def _send(self, body: Mapping[str, Any]) -> PodSnapshot:
        self._heed_kill()
        return self.jobs.create(body)

    def _refused(self, name: str, message: str) -> PodOutcome | None:
        """Wait while a quota refuses the pod."""
        self._tell(f"No room in the quota for pod {name} yet, waiting up to {self.capacity_timeout_s:.0f} s: {message}")
        if (over := self._over(name, message)) is not None:
            return over
        pause = min(QUOTA_PAUSE_S, max(1.0, self.capacity_timeout_s - self.refused_s))
        self._pause(pause)
        self.refused_s += pause
        return None

    def _over(self, name: str, message: str) -> PodOutcome | None:
        place = {"pod": name, "namespace": self.jobs.namespace}
        if self.deadline is not None and self.clock() >= self.deadline:
            text = f"Pod {name} was not made before the task's time was up: {message}"
            return PodOutcome(end=PodEnd.DEADLINE, message=text, gone=True, **place)
        if self.refused_s >= self.capacity_timeout_s:
            text = f"A quota has refused pod {name} for {self.refused_s:.0f} s (capacity_timeout): {message}"
            return PodOutcome(end=PodEnd.NO_ROOM, message=text, gone=True, **place)
        return None

    def _see_off(self, plan: PodPlan, began: float) -> PodOutcome | None:
        """Have the pods of before deleted, and wait for a moment; None to look again."""
        for each in plan.in_the_way:
            if each.deleted_at is None:
                log.info("Pod %s is of before and still runs. It is deleted before another is made.", each.name)
                patiently(f"delete pod {each.name}", lambda pod=each: self._delete(pod), self.patience_s)  # type: ignore[misc]
        names = ", ".join(each.name for each in plan.in_the_way)
        self._tell(f"Waiting until {names} is gone: two pods of one step must not run at once.")
        limit = max((each.deletion_grace_s or 30 for each in plan.in_the_way), default=0) + CLEAR_WITHIN_S
        if self.clock() - began >= limit:
            stuck = plan.in_the_way[0]
            text = (
                f"Pod {names} of an earlier try was deleted and is still there after {limit:.0f} s; its node {stuck.node!r} may "
                "be lost. Nothing was made, as two would run at once. If the node is gone for good, delete the node or force the "
                "deletion of the pod; then a retry helps."
            )
            return PodOutcome(
                end=PodEnd.NODE_LOST, pod=stuck.name, namespace=stuck.namespace, uid=stuck.uid, node=stuck.node, message=text
            )
        if (over := self._over(names, "a pod of an earlier try is still there")) is not None:
            return over
        self._pause(1.0)
        return None

    def _delete(self, pod: PodSnapshot) -> None:
        self.jobs.delete(pod.name, uid=pod.uid)

    def sweep(self, over: Iterable[PodSnapshot]) -> None:
        """
        Part with pods that ended while nobody looked; those that are kept are marked.

        :param over: The pods; those that are marked already are left alone.
        """
        for each in over:
            if each.deleted_at is not None or READ in each.labels:
                continue
            if self._is_done_with(each):
                self._quietly("delete", each, lambda pod=each: self._delete(pod))  # type: ignore[misc]
            else:
                self._quietly("mark as read", each, lambda pod=each: self.jobs.label(pod.name, {READ: "true"}, uid=pod.uid))  # type: ignore[misc]

    def _is_done_with(self, pod: PodSnapshot) -> bool:
        """Say whether a pod that has ended, and that no task has kept, is one to delete."""
        deletes = self.on_finish == "delete_pod" or (self.on_finish == "delete_succeeded_pod" and pod.phase == "Succeeded")
        return deletes and READ not in pod.labels

    def _work_with(self, pod: PodSnapshot, generation: Generation) -> PodSnapshot:
        self.pod = pod
        self._remember(Remembered(generation, pod.uid))
        return pod

    def _remember(self, what: Remembered) -> None:
        self.memory.set(MEMORY_KEY, what.to_json())

    def _remember_read(self) -> None:
        found = Remembered.from_json(self.memory.get(MEMORY_KEY))
        if found is not None and not found.read:
            self._remember(Remembered(found.generation, found.uid, read=True))

    def _quietly(self, verb: str, pod: PodSnapshot, call: Callable[[], T]) -> T | None:
        """Do what must not change the task's result: a pod that is left behind is told of, and found by the next try."""
        try:
            return patiently(f"{verb} pod {pod.name}", call, self.patience_s)
        except (RemoteUnavailableError, ConfigError) as error:
            log.warning("Could not %s pod %s: %s", verb, pod.name, error)
            return None

    def _pause(self, seconds: float) -> None:
        left = seconds if self.deadline is None else self.deadline - self.clock()
        self.sleep(max(0.0, min(seconds, left)))

    def _tell(self, note: str) -> None:
        if note != self._note:
            self._note = note
            log.info("%s", note)

    def _heed_kill(self) -> None:
        """Airflow lets a killed task go on for seconds: what it makes then would be nobody's."""
        if self.killed:
            self.stop_at_once()
            raise RemoteJobError(f"the task was killed, and its pod {self.pod.name if self.pod else ''} was deleted.")
