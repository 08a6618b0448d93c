"""Waiting for one pod in the triggerer: its log into the task's log while it runs, and one event with what became of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Mapping
from functools import partial
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_ml_provider.core.pod_log import LogCursor
from airflow_ml_provider.core.pods import PodWatch
from airflow_ml_provider.exceptions import AirflowMLError, RemoteNotFoundError
from airflow_ml_provider.hooks.kubernetes import KubernetesAccess
from airflow_ml_provider.jobs.pod_wait import EVENTS_UNREAD, is_refused
from airflow_ml_provider.models.pod import PodEnd, PodOutcome, PodSnapshot
from airflow_ml_provider.triggers.marks import MARKS, detach, task_state, turn
from airflow_ml_provider.triggers.pod_poller import REQUEST_S, PodNews, PodPoller, connected, log_turn
from airflow_ml_provider.triggers.threads import in_thread

__all__ = ["PodTrigger"]

log = logging.getLogger(__name__)

MOST_QUIET = 6
"""How many times ``log_interval_s`` may pass between two readings of a log in which nothing is written."""
LINES_AT_ONCE = 50
"""Lines that are written before others get their turn."""
PIECES_AT_ONCE = 8
LAST_READINGS, LAST_PAUSE_S = 3, 1.0
DRAIN_S_PER_LETTER, MOST_DRAIN_S, LETTERS_AROUND = 0.1 / 4096, 5.0, 200
"""
The triggerer's main process takes 4 KiB of all lines at a turn, and closes a task's log when it learns that its trigger has
ended, whatever is still under way: so a trigger ends only when its lines have had the time to arrive.
"""
DELETE_PAUSES_S = (0.0, 2.0, 5.0, 10.0, 15.0)
"""Seconds before each request to delete the pod of a task that a person has ended."""
LIMITS = ("capacity_timeout_s", "startup_timeout_s", "deadline", "patience_s")
NO_KUBELET = {PodEnd.NODE_LOST, PodEnd.UNREACHABLE}
NAMES = (
    *("pod", "namespace", "uid", "access", "container", "sidecar", "limits", "poll_interval_s", "log_interval_s"),
    *("log_prefix", "cursor", "leave_running"),
)


class PodTrigger(BaseTrigger):
    """
    Waits for one pod, with all others that wait in the same namespace, and fires one event: a ``PodOutcome`` as plain JSON.

    It fires also when the API server is away, when the pod is gone, and at the deadline; it deletes nothing then, which is the
    operator's to do. Its arguments hold no secret; the connection is read in the triggerer.

    :param pod: Name of the pod.
    :param namespace: Its namespace.
    :param uid: Its uid; empty to take the first one's.
    :param access: How the cluster is reached, as ``KubernetesAccess`` writes itself: ``conn_id``, ``in_cluster``,
        ``cluster_context``, ``config_file`` (a path on the triggerer's machine); what is missing has its default.
    :param container: Main container, whose log is read.
    :param sidecar: Container that stores outputs; None where there is none.
    :param limits: ``capacity_timeout_s``, ``startup_timeout_s``, ``deadline`` and ``patience_s`` of :class:`PodWatch`; what is
        missing has its default.
    :param poll_interval_s: Seconds between two lists of the namespace's pods.
    :param log_interval_s: Seconds between two readings of the log, up to sixfold while nothing is written; None reads no log.
    :param log_prefix: Whether ``[container]`` stands before each line.
    :param cursor: Where it was looked at before: ``version`` of the pod's snapshot, by which it is known how a pod went that is
        gone at the first look; and what ``LogCursor`` writes of its log.
    :param leave_running: Marks after which the pod is not deleted, of ``clear`` and ``success``.
    """

    def __init__(
        self,
        *,
        pod: str,
        namespace: str = "default",
        uid: str = "",
        access: Mapping[str, Any] | None = None,
        container: str = "base",
        sidecar: str | None = None,
        limits: Mapping[str, Any] | None = None,
        poll_interval_s: float = 2.0,
        log_interval_s: float | None = 10.0,
        log_prefix: bool = True,
        cursor: Mapping[str, Any] | None = None,
        leave_running: Collection[str] = (),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.pod = pod
        self.namespace = namespace
        self.uid = uid
        self.access = dict(access or {})
        self.container = container
        self.sidecar = sidecar
        self.limits = dict(limits or {})
        self.poll_interval_s = poll_interval_s
        self.log_interval_s = log_interval_s
        self.log_prefix = log_prefix
        self.cursor = dict(cursor or {})
        self.leave_running = list(leave_running)

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """
        Say how to make it again.

        :return: Class path and arguments, plain JSON.
        """
        return f"{PodTrigger.__module__}.{PodTrigger.__name__}", {name: getattr(self, name) for name in NAMES}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """
        Wait.

        :return: One event.
        """
        told = await _Waiting(self, PodPoller.of(self._way(), self.namespace)).wait()
        yield TriggerEvent(told.model_dump(mode="json"))  # type: ignore[no-untyped-call]  # Airflow's

    async def on_kill(self) -> None:
        """
        Delete the pod if a person has killed, marked or cleared the task; called by Airflow 3.3 and later.

        Airflow calls it too when it has given the trigger to another triggerer, so the task's state is asked for first, and
        without an answer the pod goes on. What is begun here goes on when Airflow's limit of 30 s ends the wait for it.
        """
        await detach(self._kill())

    async def _kill(self) -> None:
        mark = MARKS.get(await task_state(self.task_instance, f"pod {self.pod}"), "none")
        if mark == "none" or mark in self.leave_running:
            log.warning("The trigger of pod %s was removed (%s); the pod is not deleted.", self.pod, mark)
            return
        log.info("The task was killed, marked or cleared. Pod %s is deleted.", self.pod)
        problem: str | None = None
        for pause in DELETE_PAUSES_S:
            await asyncio.sleep(pause)
            async with turn():
                problem = await in_thread(partial(_delete, self._way(), self.namespace, self.pod, self.uid))
            if problem is None:
                return
        log.error("Pod %s could not be deleted and goes on: %s", self.pod, problem)

    def _way(self) -> KubernetesAccess:
        return KubernetesAccess.model_validate(self.access)


class _Waiting:
    """
    One trigger while it waits; lives in the trigger's own asyncio task, so that what it logs is in the task's log.

    :param trigger: The trigger.
    :param poller: Brings the news.
    """

    def __init__(self, trigger: PodTrigger, poller: PodPoller) -> None:
        self.trigger = trigger
        self.poller = poller
        limits = {name: value for name, value in trigger.limits.items() if name in LIMITS}
        self.watch = PodWatch(
            container=trigger.container,
            sidecar=trigger.sidecar,
            now=poller.now(),
            uid=trigger.uid,
            name=f"{trigger.namespace}/{trigger.pod}",
            **limits,
        )
        self.cursor = LogCursor.from_json(trigger.cursor)
        self.pod: PodSnapshot | None = None
        self.pause_s = trigger.log_interval_s
        self.read_at = poller.now()
        self.drained_at = poller.now()
        self.note = ""
        self.failing = False

    async def wait(self) -> PodOutcome:
        """
        Wait.

        :return: What became of the pod, with where its log was read to.
        """
        member = self.poller.join(self.trigger.pod, self.trigger.poll_interval_s, self.trigger.cursor.get("version", ""))
        try:
            while True:
                told = self._take(await member.news(self._within_s()))
                if told is None and self.watch.wants_events(self.poller.now()):
                    told = await self._ask_events()
                usual = self.trigger.poll_interval_s  # the poller has a pace of its own after errors
                member.poll_interval_s = usual if self.failing else max(usual, self.watch.pause_s(self.poller.now(), usual))
                if self.watch.note != self.note:
                    self.note = self.watch.note
                    log.info("Pod %s: %s", self.trigger.pod, self.note)
                if told is not None:
                    done = await self._read_rest(told)
                    await asyncio.sleep(min(MOST_DRAIN_S, max(0.0, self.drained_at - self.poller.now())))
                    return told.model_copy(update={"log": self.cursor.to_json() | ({"done": True} if done else {})})
                if self._readable() and self.pause_s is not None and self.poller.now() >= self.read_at:
                    await self._read_some()
        finally:
            self.poller.leave(member)

    def _take(self, news: PodNews | None) -> PodOutcome | None:
        now = self.poller.now()
        if news is None:
            late = self.watch.deadline is not None and now >= self.watch.deadline + self._late_s()
            return self.watch.on_error("no answer and no error yet", now) if late else None
        self.failing = news.error is not None
        if news.error is not None:
            return self.watch.on_error(news.error, now)
        if news.pod is not None and news.pod.deleted_at is not None:
            self.read_at = now  # it and its log will be gone in a moment
        if (told := self.watch.on_past(news.missed, now)) is not None:
            return told
        self.pod = news.pod or self.pod
        return self.watch.on_pod(news.pod, now)

    async def _ask_events(self) -> PodOutcome | None:
        """Look in the pod's events for what keeps it from starting; what cannot be read is no reason to wait less."""
        try:
            events = await self.poller.events(self.trigger.pod, self.watch.uid)
        except AirflowMLError as error:
            log.info(EVENTS_UNREAD, self.trigger.pod, error)
            return self.watch.on_events(None, self.poller.now()) if is_refused(error) else None
        return self.watch.on_events(events, self.poller.now())

    def _late_s(self) -> float:
        """Give the answer that is under way at the deadline a chance to come."""
        return self.trigger.poll_interval_s + REQUEST_S

    def _within_s(self) -> float | None:
        """Say when to wake without news: to read the log, or because the time is up and nobody answers."""
        moments = [] if self.watch.deadline is None else [self.watch.deadline + self._late_s()]
        if self.pause_s is not None and self._readable():
            moments.append(self.read_at)
        return max(0.0, min(moments) - self.poller.now()) if moments else None

    def _state(self) -> str:
        found = self.pod.container(self.trigger.container) if self.pod is not None else None
        return "waiting" if found is None else found.state

    def _readable(self) -> bool:
        """Whether to read before the end is told: of a pod that is told to go, what has ended is read while it is there."""
        leaves = self.pod is not None and self.pod.deleted_at is not None
        return self._state() == "running" or (leaves and self._state() == "terminated")

    async def _read_some(self) -> None:
        """Read what is new; a log that is far behind is gone on with after the next look at the news."""
        before = self.cursor.newest
        try:
            await self._read(complete=self._state() == "terminated", pieces=PIECES_AT_ONCE)
        except AirflowMLError as error:
            if is_refused(error) and not self.watch.is_just_back(self.poller.now()):
                log.warning("The log of pod %s cannot be read: %s", self.trigger.pod, error)
                self.pause_s = None
                return
            log.debug("The log of pod %s cannot be read now: %s", self.trigger.pod, error)
        usual = self.trigger.log_interval_s or 0.0
        quiet = self.cursor.newest == before
        self.pause_s = min((self.pause_s or usual) * 2, usual * MOST_QUIET) if quiet else usual
        self.read_at = self.poller.now() + (0.0 if self.cursor.behind else self.pause_s)

    async def _read_rest(self, told: PodOutcome) -> bool:
        """Read what was written since; say whether nothing is left."""
        if self.pause_s is None or told.gone or self._state() == "waiting":
            return True
        for reading in range(1 if told.end in NO_KUBELET else LAST_READINGS):
            await asyncio.sleep(LAST_PAUSE_S * reading)
            try:
                await self._read(complete=self._state() == "terminated")
            except RemoteNotFoundError:
                return True
            except AirflowMLError as error:
                log.warning("The end of the log of pod %s could not be read: %s", self.trigger.pod, error)
            else:
                return True
        return False

    async def _read(self, *, complete: bool, pieces: int | None = None) -> None:
        names, read = (self.trigger.pod, self.trigger.container), 0
        while pieces is None or read < pieces:
            async with log_turn():
                lines, self.cursor = await self.poller.read_log(*names, self.cursor, complete=complete)
                read += 1
                await self._write(lines)
            if not self.cursor.behind:
                return

    async def _write(self, lines: list[str]) -> None:
        form = f"[{self.trigger.container}] %s" if self.trigger.log_prefix else "%s"
        for number, line in enumerate(lines, 1):
            log.info(form, line)
            spent = (len(line) + LETTERS_AROUND) * DRAIN_S_PER_LETTER
            self.drained_at = max(self.drained_at, self.poller.now()) + spent
            if number % LINES_AT_ONCE == 0:
                await asyncio.sleep(0)


def _delete(access: KubernetesAccess, namespace: str, pod: str, uid: str) -> str | None:
    """Ask once for the pod to be deleted; the problem, None when it is as good as gone."""
    try:
        jobs = connected(access, namespace)
        try:
            jobs.delete(pod, uid=uid)
        finally:
            jobs.close()
    except Exception as error:  # noqa: BLE001  (no connection, for example: told, not raised)
        return str(error) or type(error).__name__
    return None
