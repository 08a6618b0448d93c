"""
One poller for all who wait in one event loop for pods of one namespace.

One list in each interval serves them all; a pod that the list lacks is asked for by its name. Who waits gets the news, decides by
itself (:mod:`airflow_ml_provider.core.pods`) and reads its own log, from its own asyncio task: only there does Airflow know whose
log a line belongs to. Logs are read on a few threads of their own, so a server that hangs holds up neither Airflow's threads nor
the event loop.

**Memory**: at most ``LOGS_AT_ONCE`` readings are held at a time, until their lines are written; each has 256 KiB at first and
4 MiB at most (:mod:`airflow_ml_provider.core.pod_log`), and its lines as text beside it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from airflow_ml_provider.core.pod_adoption import MANAGED, READ
from airflow_ml_provider.core.pod_events import PodEvent
from airflow_ml_provider.core.pod_log import LogCursor
from airflow_ml_provider.exceptions import RemoteUnavailableError
from airflow_ml_provider.hooks.kubernetes import KubernetesAccess
from airflow_ml_provider.jobs.pods import PodJobs
from airflow_ml_provider.models.pod import PodSnapshot
from airflow_ml_provider.triggers.threads import in_thread

log = logging.getLogger(__name__)

Connect = Callable[[], PodJobs]
"""Reads the connection and gives a client; called on a thread, again after each error."""

GAP_S = 1.0
"""Seconds between two lists: a hundred who join at once cost two."""
BACKOFF_CAP_S = 30.0
REQUEST_S = 20.0
"""Seconds that one request may take."""
HANG_S = 120.0
"""Seconds after which a question that has neither answered nor failed is given up, with its thread."""
LOOKS_PER_ROUND = 20
"""Pods that are asked for by name after one list; the others come after the next."""
LOGS_AT_ONCE = 4
LOG_EVERY_S = 60.0

_threads = ThreadPoolExecutor(LOGS_AT_ONCE, thread_name_prefix="pod-log")
_turns: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


@dataclass(frozen=True)
class PodNews:
    """
    What one round has found of one pod.

    :param pod: The pod; None when the server has none of that name.
    :param missed: Where it has none: how the pod went, since it was last seen, oldest first.
    :param error: Why nothing is known; None when the server has answered.
    """

    pod: PodSnapshot | None = None
    error: str | None = None
    missed: tuple[PodSnapshot, ...] = ()


@dataclass(eq=False)
class PodMember:
    """
    One who waits; made by :meth:`PodPoller.join`.

    :param name: The pod.
    :param poll_interval_s: Seconds between two lists that it wants.
    :param since: When it came: what was asked before proves nothing to it.
    :param version: ``version`` of the pod when it was last seen; empty where it never was.
    """

    name: str
    poll_interval_s: float
    since: float
    version: str = ""
    _news: PodNews | None = None
    _came: asyncio.Event = field(default_factory=asyncio.Event)

    def tell(self, news: PodNews) -> None:
        """
        Give it the newest news; older ones that it has not taken are dropped.

        :param news: The news.
        """
        self._news = news
        self.version = news.pod.version if news.pod is not None else self.version
        self._came.set()

    async def news(self, within_s: float | None) -> PodNews | None:
        """
        Wait for news.

        :param within_s: Seconds at most; None for as long as it takes.
        :return: The news; None when the time was up.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._came.wait()
        self._came.clear()
        found, self._news = self._news, None
        return found


class PodPoller:
    """
    Polls while it has members; :meth:`of` finds it or makes it.

    :param name: For the log.
    :param connect: Gives a client.
    """

    _all: ClassVar[dict[tuple[int, KubernetesAccess, str], PodPoller]] = {}

    def __init__(self, name: str, connect: Connect) -> None:
        self.name = name
        self.loop = asyncio.get_running_loop()
        self._connect = connect
        self._jobs: PodJobs | None = None
        self._epoch = time.time() - self.loop.time()
        self._members: set[PodMember] = set()
        self._wake = asyncio.Event()
        self._failures = 0
        self._logged_at = -LOG_EVERY_S
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, access: KubernetesAccess, namespace: str, connect: Connect | None = None) -> PodPoller:
        """
        Find the poller of the running event loop, or make it.

        :param access: How the cluster is reached.
        :param namespace: Namespace of the pods.
        :param connect: For tests: gives a client, when a poller is made.
        :return: The poller.
        """
        cls._all = {key: each for key, each in cls._all.items() if not each.loop.is_closed()}
        key = (id(asyncio.get_running_loop()), access, namespace)
        if key not in cls._all:
            name = f"connection {access.conn_id!r}, namespace {namespace!r}"
            cls._all[key] = cls(name, connect or partial(connected, access, namespace))
        return cls._all[key]

    def now(self) -> float:
        """
        Tell the time; it does not jump with the machine's clock.

        :return: Epoch seconds.
        """
        return self._epoch + self.loop.time()

    def join(self, pod: str, poll_interval_s: float, version: str = "") -> PodMember:
        """
        Wait for one pod more.

        :param pod: Its name.
        :param poll_interval_s: Seconds between two lists; the shortest of all who wait counts.
        :param version: ``version`` of the pod when it was last seen; empty where that is not known.
        :return: Who waits; give it back to :meth:`leave`.
        """
        member = PodMember(pod, poll_interval_s, self.loop.time(), version)
        self._members.add(member)
        if self._task is None:  # in a context of its own: it would write into the log of the task that came first
            self._task = self.loop.create_task(self._run(), name=f"pod poller, {self.name}", context=contextvars.Context())
        self._wake.set()
        return member

    def leave(self, member: PodMember) -> None:
        """
        Wait for it no longer; the last one ends the poller.

        :param member: As :meth:`join` gave it.
        """
        self._members.discard(member)
        if not self._members:
            PodPoller._all = {key: each for key, each in PodPoller._all.items() if each is not self}
            self._wake.set()

    async def read_log(
        self, pod: str, container: str, cursor: LogCursor, *, complete: bool = False
    ) -> tuple[list[str], LogCursor]:
        """
        Read a piece of a log, on a thread; call it, and write what it gives, inside of :func:`log_turn`.

        :param pod: The pod.
        :param container: The container.
        :param cursor: Where to begin.
        :param complete: Whether the container has ended.
        :return: The new lines, and where to go on.
        :raises AirflowMLError: as :meth:`PodJobs.read_log`.
        """
        jobs = self._jobs
        if jobs is None:
            raise RemoteUnavailableError(f"Kubernetes of {self.name} does not answer.")
        read = partial(jobs.read_lines, pod, container, cursor, complete=complete)
        return await self.loop.run_in_executor(_threads, read)

    async def events(self, pod: str, uid: str) -> list[PodEvent]:
        """
        Read what the cluster's parts have said of a pod, on a thread.

        :param pod: The pod.
        :param uid: Its uid.
        :return: Its events.
        :raises AirflowMLError: as :meth:`PodJobs.events`.
        """
        jobs = self._jobs
        if jobs is None:
            raise RemoteUnavailableError(f"Kubernetes of {self.name} does not answer.")
        return await self.loop.run_in_executor(_threads, jobs.events, pod, uid)

    async def _run(self) -> None:
        while self._members:
            began = self.loop.time()
            try:
                await self._round()
            except Exception as error:
                log.exception("The poller of %s has broken; it begins anew.", self.name)
                self._fail(began, repr(error))
            await self._pause(began)
        self._task = None  # who comes from here on starts it anew
        jobs, self._jobs = self._jobs, None
        if jobs is not None:
            await in_thread(jobs.close)

    async def _round(self) -> None:
        sent = self.loop.time()
        known = sorted(self._members, key=lambda each: each.version)  # of two who wait for one pod, the one that has seen it
        names = {each.name: each.version for each in known}
        try:
            async with asyncio.timeout(HANG_S):
                self._jobs, found = await in_thread(partial(_ask, self._jobs, self._connect, names))
        except Exception as error:  # noqa: BLE001  (whatever it is, who waits must not hang)
            hung = isinstance(error, TimeoutError) and not str(error)
            self._fail(sent, f"no answer and no error for {HANG_S:.0f} s" if hung else str(error) or type(error).__name__)
            return
        if self._failures:
            log.info("Kubernetes of %s answers again.", self.name)
        self._failures = 0
        for member in list(self._members):
            if member.since <= sent and member.name in found:
                member.tell(found[member.name])

    def _fail(self, sent: float, error: str) -> None:
        self._jobs = None  # the connection is read again: somebody may have mended it, or renewed a token
        self._failures += 1
        if self.loop.time() - self._logged_at >= LOG_EVERY_S:
            self._logged_at = self.loop.time()
            log.warning("Kubernetes of %s could not be asked for %d pods: %s", self.name, len(self._members), error)
        for member in list(self._members):
            if member.since <= sent:
                member.tell(PodNews(error=error))

    async def _pause(self, began: float) -> None:
        """Wait for the next list: as long as is wanted, longer after errors and slow answers, less for one who has just come."""
        ended = self.loop.time()
        while self._members:
            wanted = min(each.poll_interval_s for each in self._members)
            if self._failures:
                backoff = max(wanted, min(wanted * 2.0 ** min(self._failures - 1, 10), BACKOFF_CAP_S))
                until = ended + backoff * random.uniform(0.9, 1.0)  # noqa: S311  (jitter)
            else:
                wanted = min(wanted, GAP_S) if any(each.since > began for each in self._members) else wanted
                until = max(began + wanted, ended + min(wanted, ended - began))  # at most half of the time it is asked
            left = until - self.loop.time()
            if left <= 0:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._wake.wait()
            self._wake.clear()


def log_turn() -> asyncio.Semaphore:
    """
    Give what lets a few logs be read and written at once, of all pollers of the event loop: it bounds the memory.

    :return: The semaphore of the running loop.
    """
    loop = asyncio.get_running_loop()
    for each in [each for each in _turns if each.is_closed()]:
        del _turns[each]
    return _turns.setdefault(loop, asyncio.Semaphore(LOGS_AT_ONCE))


def connected(access: KubernetesAccess, namespace: str) -> PodJobs:
    """
    Read the connection and give a client; blocks.

    :param access: How the cluster is reached.
    :param namespace: Namespace of the pods.
    :return: The pods of the namespace.
    """
    return PodJobs(access.client(), namespace, REQUEST_S)


def _ask(jobs: PodJobs | None, connect: Connect, names: Mapping[str, str]) -> tuple[PodJobs, dict[str, PodNews]]:
    """Ask for all at once, and for each that the list lacks; those for whom no time was left are not in the answer."""
    jobs, wanted = jobs or connect(), set(names)
    rows = jobs.find({MANAGED: "true"}, without=[READ], fresh=False, names=wanted)
    found = {each.name: PodNews(each) for each in rows}
    missing = list(wanted - set(found))
    for name in random.sample(missing, min(LOOKS_PER_ROUND, len(missing))):
        pod = jobs.look(name)
        found[name] = PodNews(pod, missed=tuple(jobs.since(name, names[name])) if pod is None else ())
    return jobs, found
