"""
One poller for all who wait in one event loop for runs of one server.

A triggerer has one event loop, so thousands of deferred tasks share one poller for each connection and namespace. What to ask,
and when, is decided by :class:`~airflow_ml_provider.core.polling.PollPlan`; here is what surrounds it: members that come and go,
the blocking client on a thread, and the promise that nobody hangs. The connection is read on the thread too, as that asks
Airflow's supervisor.
"""

from __future__ import annotations

import asyncio
import contextvars
import heapq
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeVar

from airflow_ml_provider.core.polling import Pace, PollPlan, Request, Waiting
from airflow_ml_provider.models.kfp import PipelineRun, WaitOutcome
from airflow_ml_provider.triggers.threads import in_thread, look_away

if TYPE_CHECKING:
    from airflow_ml_provider.jobs.kfp import KfpJobs

log = logging.getLogger(__name__)
T = TypeVar("T")

HANG_S = 120.0
"""Seconds after which a request that has neither answered nor failed is given up, with its thread."""
LOG_EVERY_S = 60.0


class PolledJobs(Protocol):
    """What the poller needs of the runs of a server; each call blocks."""

    @property
    def page_size(self) -> int:
        """Runs that one answer should hold, by the size of those that came."""
        ...

    @property
    def pages(self) -> int:
        """Pages of lists that were asked for so far."""
        ...

    def find(self, run_ids: Iterable[str]) -> Mapping[str, PipelineRun]:
        """
        Ask for many runs.

        :param run_ids: Ids.
        :return: Run per id; what the server does not have is left out.
        """
        ...

    def finished_since(self, moment: datetime) -> Iterable[PipelineRun]:
        """
        Ask what has ended since a moment of the engine's clock.

        :param moment: The moment.
        :return: The runs, those of others too.
        """
        ...


Connect = Callable[[], AbstractContextManager[PolledJobs]]
"""Reads the connection and gives a client; called on a thread, again after each error."""


_Found = tuple[list[PipelineRun], tuple[int, int]]
"""Runs; and what they cost: requests, and how many such runs one answer holds."""


@dataclass(eq=False)
class _Member:
    waiting: Waiting
    told: asyncio.Future[WaitOutcome]


class KfpPoller:
    """
    Polls while it has members; :meth:`of` finds it or makes it.

    :param name: For the log.
    :param connect: Gives a client.
    :param pace: How often to ask.
    """

    _all: ClassVar[dict[tuple[int, str, str], KfpPoller]] = {}

    def __init__(self, name: str, connect: Connect, pace: Pace | None = None) -> None:
        self.name = name
        self._connect = connect
        self._plan = PollPlan(pace or Pace())
        self.loop = asyncio.get_running_loop()
        self._epoch = time.time() - self.loop.time()
        self._members: dict[str, list[_Member]] = {}
        self._feeds: set[asyncio.Queue[list[PipelineRun]]] = set()
        self._deadlines: list[tuple[float, int, _Member]] = []
        self._number = itertools.count()
        self._patience_at = inf
        self._error = ""
        self._logged_at = -inf
        self._wake = asyncio.Event()
        self._line = _Line(connect)
        self._request: Request | None = None
        self._asked: asyncio.Task[_Found] | None = None
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, conn_id: str, namespace: str = "", connect: Connect | None = None, pace: Pace | None = None) -> KfpPoller:
        """
        Find the poller of the running event loop, or make it.

        :param conn_id: Connection of the server.
        :param namespace: Namespace of the runs; empty for the connection's own.
        :param connect: For tests: gives a client, when a poller is made.
        :param pace: For tests: how often to ask, when a poller is made.
        :return: The poller.
        """
        cls._all = {key: each for key, each in cls._all.items() if not each.loop.is_closed()}
        key = (id(asyncio.get_running_loop()), conn_id, namespace)
        if key not in cls._all:
            name = f"connection {conn_id!r}" + (f", namespace {namespace!r}" if namespace else "")
            cls._all[key] = cls(name, connect or partial(connected, conn_id, namespace), pace)
        return cls._all[key]

    async def wait(
        self,
        run_id: str,
        *,
        deadline: float | None = None,
        poll_interval_s: float | None = None,
        patience_s: float = 300.0,
        stuck_s: float = 600.0,
    ) -> WaitOutcome:
        """
        Wait for one run, with all others who wait.

        :param run_id: The run, which is known to exist.
        :param deadline: Epoch seconds at which the waiting ends; None for never.
        :param poll_interval_s: Seconds between two questions while it is young; None for the usual.
        :param patience_s: Seconds of errors in a row that are borne.
        :param stuck_s: Seconds that it may be CANCELING.
        :return: What came of it; a server that is away raises nothing.
        """
        now = self._now()
        until = None if deadline is None else now + deadline - time.time()  # our clock does not jump with the machine's
        member = _Member(Waiting(run_id, now, until, patience_s, stuck_s, seen=True), self.loop.create_future())
        self._members.setdefault(run_id, []).append(member)
        self._plan.join(run_id, now, poll_interval_s)
        if until is not None:
            heapq.heappush(self._deadlines, (until, next(self._number), member))
        if self._plan.failing_since is not None:
            self._patience_at = min(self._patience_at, now + patience_s)
        self._start()
        try:
            return await member.told
        finally:
            self._leave(member)

    async def finished(self) -> AsyncIterator[list[PipelineRun]]:
        """
        Hear of all runs that finish, whoever started them; the same run is named again for a while.

        :return: Runs, as each answer names them; it never ends by itself.
        """
        queue: asyncio.Queue[list[PipelineRun]] = asyncio.Queue()
        self._feeds.add(queue)
        self._plan.listen(self._now())
        self._start()
        try:
            while True:
                yield await queue.get()
        finally:
            self._feeds.discard(queue)
            self._plan.feeds -= 1
            self._end_if_unused()

    def _now(self) -> float:
        return self._epoch + self.loop.time()

    def _start(self) -> None:
        if self._task is None:  # in a context of its own: it would write into the log of the task that came first
            self._task = self.loop.create_task(self._run(), name=f"KFP poller, {self.name}", context=contextvars.Context())
        self._wake.set()

    def _leave(self, member: _Member) -> None:
        run_id = member.waiting.run_id
        rest = [each for each in self._members.get(run_id, ()) if each is not member]
        if rest:
            self._members[run_id] = rest
        elif self._members.pop(run_id, None):
            self._plan.leave(run_id)
        if len(self._deadlines) > 2 * len(self._members) + 100:  # of those who have left, mostly
            self._deadlines = [each for each in self._deadlines if not each[2].told.done()]
            heapq.heapify(self._deadlines)
        self._end_if_unused()

    def _end_if_unused(self) -> None:
        if not self._members and not self._feeds:
            KfpPoller._all = {key: each for key, each in KfpPoller._all.items() if each is not self}
            self._wake.set()

    async def _run(self) -> None:
        while self._members or self._feeds:
            try:
                await self._step()
            except Exception as error:
                log.exception("The poller of %s has broken; it begins anew.", self.name)
                self._begin_anew(error)
                await asyncio.sleep(self._plan.pace.gap_s)
        self._task = None  # who comes from here on starts it anew
        line, self._line, asked, self._asked, self._request = self._line, _Line(self._connect), self._asked, None, None
        if asked is not None:
            await asyncio.wait({asked})
        await in_thread(line.close)

    async def _step(self) -> None:
        if self._request is None and (request := self._plan.take(self._now())):
            self._request = request
            self._asked = asyncio.create_task(in_thread(partial(self._line.ask, request)))
            self._asked.add_done_callback(self._on_answer)
        request, asked = self._request, self._asked
        if request and asked and asked.done():
            self._request = self._asked = None
            self._take_in(request, asked)
        elif request and self._now() - request.sent >= HANG_S:
            self._line, self._request, self._asked = _Line(self._connect), None, None
            self._take_error(request, f"no answer and no error for {HANG_S:.0f} s")
        self._check_time()
        await self._pause(self._plan.next_at() if self._request is None else self._request.sent + HANG_S)

    def _on_answer(self, asked: asyncio.Task[_Found]) -> None:
        look_away(asked)
        self._wake.set()

    async def _pause(self, until: float) -> None:
        deadline = self._deadlines[0][0] if self._deadlines else inf
        pause = min(until, deadline, self._patience_at) - self._now()
        try:
            async with asyncio.timeout(pause if pause < inf else None):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    def _take_in(self, request: Request, asked: asyncio.Task[_Found]) -> None:
        try:
            rows, cost = asked.result()
            self._plan.answered(request, rows, self._now(), random.random(), cost)  # noqa: S311  (jitter)
        except Exception as error:  # noqa: BLE001  (whatever it is, who waits must not hang)
            self._take_error(request, str(error) or type(error).__name__)
            return
        if self._error:
            log.info("The KFP server of %s answers again.", self.name)
        self._error, self._patience_at = "", inf
        self._tell(request, {each.run_id: each for each in rows})
        ended = [each for each in rows if each.state.ended]
        for queue in self._feeds if request.kind == "since" else ():
            queue.put_nowait(ended)

    def _take_error(self, request: Request, error: str) -> None:
        self._plan.failed(request, self._now(), random.random())  # noqa: S311  (jitter)
        self._error, now = error, self._now()
        self._check_patience()
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            log.warning("The KFP server of %s could not be asked for %d runs: %s", self.name, len(self._members), error)

    def _tell(self, request: Request, rows: Mapping[str, PipelineRun]) -> None:
        """Tell the members what was found of their runs; what was asked before they came proves nothing to them."""
        now = self._now()
        for run_id in request.run_ids or rows:
            for member in list(self._members.get(run_id, ())):
                if member.waiting.since <= request.sent:
                    self._settle(member, member.waiting.on_run(rows.get(run_id), now))

    def _settle(self, member: _Member, outcome: WaitOutcome | None) -> None:
        if outcome is not None:
            if not member.told.done():
                member.told.set_result(outcome)
            self._leave(member)

    def _check_time(self) -> None:
        now = self._now()
        while self._deadlines and (self._deadlines[0][0] <= now or self._deadlines[0][2].told.done()):
            member = heapq.heappop(self._deadlines)[2]
            self._settle(member, member.waiting.on_time(now))
        if self._patience_at <= now:
            self._check_patience()

    def _check_patience(self) -> None:
        """See who has lost patience, and when the next one will; only while the server does not answer."""
        now, failing_since, self._patience_at = self._now(), self._plan.failing_since, inf
        if failing_since is None:
            return
        for member in [each for members in self._members.values() for each in members]:
            waiting = member.waiting
            self._settle(member, waiting.on_time(now, failing_since, self._error))
            if not member.told.done():
                self._patience_at = min(self._patience_at, max(failing_since, waiting.since) + waiting.patience_s)
        self._patience_at = max(self._patience_at, now + self._plan.pace.gap_s)

    def _begin_anew(self, error: Exception) -> None:
        """Let nobody hang who has waited in a poller that has broken."""
        self._deadlines, self._plan = [], PollPlan(self._plan.pace, feeds=len(self._feeds))
        for member in [each for members in self._members.values() for each in members]:
            run_id = member.waiting.run_id
            message = f"The poller has broken: {error!r}. Run {run_id} goes on, and a retry finds it again."
            self._settle(member, WaitOutcome(run_id=run_id, outcome="unreachable", message=message))


class _Line:
    """
    One client, used by one thread at a time; after an error the connection is read again, as somebody may have mended it.

    :param connect: Gives a client.
    """

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._open = ExitStack()
        self._jobs: PolledJobs | None = None

    def ask(self, request: Request) -> _Found:
        try:
            if self._jobs is None:
                self._jobs = self._open.enter_context(self._connect())
            jobs, before = self._jobs, self._jobs.pages
            if request.kind == "look":
                rows = list(jobs.find(request.run_ids).values())
            else:
                rows = list(jobs.finished_since(datetime.fromtimestamp(request.moment, UTC)))
            return rows, (jobs.pages - before, jobs.page_size)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._jobs = None
        self._open.close()


@contextmanager
def connected(conn_id: str, namespace: str = "") -> Iterator[KfpJobs]:
    """
    Read the connection and give a client that asks each question once: how often to repeat one is the plan's to say.

    :param conn_id: Connection of the server.
    :param namespace: Namespace of the runs; empty for the connection's own.
    :return: The runs of the server.
    """
    from airflow_ml_provider.config import load_settings
    from airflow_ml_provider.hooks.kfp import KfpHook
    from airflow_ml_provider.jobs.kfp import KfpJobs

    settings = load_settings().model_copy(update={"http_retries": 0})
    with KfpHook(conn_id).api(settings) as api:
        yield KfpJobs(api, namespace)
