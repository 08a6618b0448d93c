"""
When to ask a server about the runs that somebody waits for, and what its answers mean. Pure: time is an argument, epoch seconds.

Two loops use it: a worker's, which waits for one run, and the poller of a triggerer, which waits for thousands and asks in two
ways. The **fast path**, "what has finished since T", costs the same for one run and for ten thousand; T follows the workflow
engine's clock (:class:`EngineClock`), never this machine's. The **look**, by id in pieces, comes once for a run that joins and
then about once a minute: it finds what never gets a finish time (deleted, stuck), what ended before it joined, and late reports.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Literal

from airflow_ml_provider.models.kfp import PipelineRun, RunState, WaitOutcome

Outcome = Literal["ended", "deadline", "gone", "unreachable", "stuck"]
CONFIRM_S = 10.0
"""Seconds between the two looks that prove a run to be gone."""
APPEAR_S = 120.0
"""Seconds that a run which was never seen may take to appear: an orphan becomes a run with the agent's next report."""
ROWS_PER_PAGE, ROWS_AGAIN = 200, 100
"""Of one answer, unless they are large; and most ends that are asked for again, beside those of the last ``SURE_S``."""
SURE_S = 5.0
"""Seconds by which a report is late on any busy server; usually it is one."""
SMALLEST_BATCH, ONE_PAGE = 5, (1, ROWS_PER_PAGE)
JITTER = 0.1
"""Largest part by which a pause is shortened: pollers that started together drift apart."""


@dataclass(frozen=True)
class Pace:
    """
    How often to ask.

    :param quick_s: Seconds between two questions while a run is young.
    :param share: Part of the time waited so far that may pass until the next question.
    :param slowdown: How many times ``quick_s`` that becomes at most.
    :param sweep_s: Seconds after which a run is looked at by its id again.
    :param gap_s: Seconds between any two requests of one poller: its budget.
    :param backoff_cap_s: Longest pause after errors.
    :param overlap_s: Seconds by which the engine's reports may be late without being missed by the fast path; fewer, down to
        ``SURE_S``, where so much ends that they would fill more than a page, which then would cost the next question its turn.
    :param skew_s: Seconds by which the engine's clock may differ from ours before anything was learned of it.
    :param batch: Ids in one look: the URL stays below the 8 kB that proxies take.
    """

    quick_s: float = 5.0
    share: float = 0.05
    slowdown: float = 10.0
    sweep_s: float = 60.0
    gap_s: float = 1.0
    backoff_cap_s: float = 60.0
    overlap_s: float = 30.0
    skew_s: float = 300.0
    batch: int = 150

    def interval_s(self, age_s: float, jitter: float = 0.0) -> float:
        """
        Say how long to pause between two good answers.

        :param age_s: Seconds waited so far.
        :param jitter: From 0 (the whole pause) to 1 (a tenth less).
        :return: Seconds.
        """
        return min(max(age_s * self.share, self.quick_s), self.quick_s * self.slowdown) * (1 - JITTER * jitter)

    def backoff_s(self, failures: int, jitter: float = 0.0) -> float:
        """
        Say how long to pause after errors.

        :param failures: Errors in a row, at least 1.
        :param jitter: From 0 (the whole pause) to 1 (a tenth less).
        :return: Seconds: twice as many for each error, up to ``backoff_cap_s``.
        """
        return min(self.quick_s * 2.0 ** min(failures, 20), self.backoff_cap_s) * (1 - JITTER * jitter)


@dataclass
class Waiting:
    """
    One waiter for one run; it is told once, and what the run does afterwards is not its business.

    :param run_id: The run.
    :param since: When the waiting began; answers to questions sent before prove nothing.
    :param deadline: When it ends in any case; None for never.
    :param patience_s: Seconds of errors in a row that are borne.
    :param stuck_s: Seconds that a run may be CANCELING.
    :param seen: Whether the run is known to exist.
    """

    run_id: str
    since: float
    deadline: float | None = None
    patience_s: float = 300.0
    stuck_s: float = 600.0
    seen: bool = False
    state: RunState = RunState.UNSPECIFIED
    _canceling_at: float | None = None
    _absent_at: float | None = None

    def on_run(self, run: PipelineRun | None, now: float) -> WaitOutcome | None:
        """
        Take in what a look has found.

        :param run: The run; None when the server answered and has none.
        :param now: When it answered.
        :return: The verdict; None to go on waiting, as for every state that is not known to be final.
        """
        if run is None:
            return self._on_absence(now)
        self.seen, self.state, self._absent_at = True, run.state, None
        if run.state.ended:
            return self._told("ended", f"Run {self.run_id} ended as {run.state}.")
        if run.state is not RunState.CANCELING:
            self._canceling_at = None
            return None
        self._canceling_at = now if self._canceling_at is None else self._canceling_at
        if now - self._canceling_at < self.stuck_s:
            return None
        return self._told(
            "stuck",
            f"Run {self.run_id} is CANCELING since {now - self._canceling_at:.0f} s at least (limit {self.stuck_s:.0f} s). Its "
            "workflow is probably gone from Kubernetes, and nobody will report its end. Delete the run on the server.",
        )

    def on_time(self, now: float, failing_since: float | None = None, error: str = "") -> WaitOutcome | None:
        """
        Take in that time has passed.

        :param now: The time.
        :param failing_since: When the errors in a row began; None while the server answers.
        :param error: The newest of them, for the message.
        :return: The verdict; None to go on waiting.
        """
        if self.deadline is not None and now >= self.deadline:
            return self._told("deadline", f"Run {self.run_id} had not ended when its time was up.")
        if failing_since is None or now - max(failing_since, self.since) < self.patience_s:
            return None
        return self._told(
            "unreachable",
            f"The server has answered nothing about run {self.run_id} for {now - max(failing_since, self.since):.0f} s (patience "
            f"{self.patience_s:.0f} s). The run goes on, and a retry finds it again. Newest error: {error or 'none'}",
        )

    def _on_absence(self, now: float) -> WaitOutcome | None:
        first = self._absent_at is None
        self._absent_at = now if self._absent_at is None else self._absent_at
        if first or now - self._absent_at < CONFIRM_S * (1 - JITTER) or not (self.seen or now - self.since >= APPEAR_S):
            return None
        how = "was deleted there" if self.seen else "never appeared"
        return self._told("gone", f"The server answers, and has no run {self.run_id}: it {how}.")

    def _told(self, outcome: Outcome, message: str) -> WaitOutcome:
        return WaitOutcome(run_id=self.run_id, outcome=outcome, state=self.state, message=message)


@dataclass
class EngineClock:
    """
    A lower bound of the workflow engine's clock, learned from the finish times that it writes.

    A finish time that was read at some moment proves that the engine's clock had reached it by then, and it has gone on since. So
    the bound is right whatever this machine's clock says, however late the report was; before the first it is ours less a margin.

    :param skew_s: The margin. A finish time further ahead of us is not believed: the fast path lists too much, and loses nothing.
    """

    skew_s: float
    _read: float | None = None
    _at: float = 0.0

    def bound(self, now: float) -> float:
        """
        Say what the engine's clock had reached.

        :param now: A moment of this machine's clock.
        :return: The bound at that moment.
        """
        return now - self.skew_s if self._read is None else self._read + (now - self._at)

    def learn(self, finished_at: float, now: float) -> None:
        """
        Take in a finish time.

        :param finished_at: By the engine's clock.
        :param now: When it was read.
        """
        if self.bound(now) < finished_at <= now + self.skew_s:
            self._read, self._at = finished_at, now

    def rewind(self, finished_at: float, now: float) -> None:
        """
        Go back: the fast path has missed this one, so it asked for too late a time.

        :param finished_at: By the engine's clock.
        :param now: When it was read.
        """
        self._read, self._at = finished_at, now


@dataclass(frozen=True)
class Request:
    """
    One question to the server.

    :param kind: ``since`` is the fast path, ``look`` a piece of the sweep, or a first look.
    :param sent: When it was sent; what joined later is not told by its answer.
    :param run_ids: What to look for.
    :param moment: What has finished since then, by the engine's clock.
    """

    kind: Literal["since", "look"]
    sent: float
    run_ids: tuple[str, ...] = ()
    moment: float = 0.0


@dataclass
class PollPlan:
    """
    Decides which question is next, for any number of runs, within the budget; ``failing_since`` is None while the server answers.

    :param pace: How often.
    :param feeds: Number of those who want to hear of every run that finishes, waited for or not.
    """

    pace: Pace = field(default_factory=Pace)
    feeds: int = 0
    failing_since: float | None = None
    failures: int = 0
    _members: dict[str, tuple[float, float]] = field(default_factory=dict)  # when it joined and its quick interval, by run
    _look_at: dict[str, float] = field(default_factory=dict)
    _looks: list[tuple[float, str]] = field(default_factory=list)  # a heap over _look_at; what differs from it is out of date
    _looked: set[str] = field(default_factory=set)
    _batch: int = 0
    _fit: int = ROWS_PER_PAGE  # how many rows one answer holds, by their size
    _slot: float = -inf
    _since_at: float = -inf
    _since_failures: int = 0
    _asked: tuple[float, float] | None = None  # when the newest answered question of the fast path was sent, and its moment
    _again_from: float = -inf  # when the oldest of the newest ends ended that are asked for once more
    _turn: Literal["since", "look"] = "look"

    def __post_init__(self) -> None:
        self.clock, self._batch = EngineClock(self.pace.skew_s), self.pace.batch

    def join(self, run_id: str, now: float, quick_s: float | None = None) -> None:
        """
        Wait for one run more; a run that is waited for already is looked at once more.

        :param run_id: The run.
        :param now: The time.
        :param quick_s: Its own interval while it is young, None for the usual one.
        """
        quick = quick_s or self.pace.quick_s
        self._members[run_id] = (now, quick)
        self._since_at = min(self._since_at, now + quick)
        self._plan_look(run_id, now + min(quick, self.pace.quick_s))

    def leave(self, run_id: str) -> None:
        """
        Wait for it no longer.

        :param run_id: The run; one that is not waited for is no error.
        """
        self._members.pop(run_id, None)
        self._look_at.pop(run_id, None)
        self._looked.discard(run_id)

    def listen(self, now: float) -> None:
        """
        Ask on behalf of one more who wants to hear of every run.

        :param now: The time.
        """
        self.feeds += 1
        self._since_at = min(self._since_at, now + self.pace.quick_s)

    def next_at(self) -> float:
        """
        Say when the next question is due.

        :return: The time, infinity for never; it may have passed.
        """
        return self._next()[0]

    def take(self, now: float) -> Request | None:
        """
        Take the question that is due; one at a time.

        :param now: The time.
        :return: The question, None when none is due.
        """
        at, kind = self._next()
        if now < at:
            return None
        self._slot, self._turn = now + self.pace.gap_s, kind
        if kind == "look":
            return Request("look", now, tuple(self._piece(now)))
        bound = self.clock.bound(now if self._asked is None else self._asked[0])
        return Request("since", now, moment=max(bound - self.pace.overlap_s, min(bound - SURE_S, self._again_from)))

    def answered(
        self, request: Request, rows: Iterable[PipelineRun], now: float, jitter: float = 0.0, cost: tuple[int, int] = ONE_PAGE
    ) -> None:
        """
        Take in an answer.

        :param request: The question.
        :param rows: The runs that came.
        :param now: When they came.
        :param jitter: From 0 to 1.
        :param cost: Requests that it took, each of which is paid for; and how many such rows one answer holds, by their size.
        """
        rows, self.failures, self.failing_since, self._fit = list(rows), 0, None, cost[1]
        self._slot = max(self._slot, request.sent + cost[0] * self.pace.gap_s)
        if request.kind == "since":
            self._asked, self._since_failures = (request.sent, request.moment), 0
            again = max(min(ROWS_AGAIN, self._fit // 2), 1)
            newest = heapq.nlargest(again, (at for at in map(_ended_at, rows) if at < inf))
            self._again_from = newest[-1] if len(newest) == again else self._again_from
            self._since_at = request.sent + self._interval_s(now, jitter)
        else:
            self._batch = min(self.pace.batch, self._batch + SMALLEST_BATCH)
            self._check_fast_path(rows, now)
            self._plan_next_looks(request, {each.run_id for each in rows}, now, jitter)
        for each in rows:
            self.clock.learn(_ended_at(each), now)

    def failed(self, request: Request, now: float, jitter: float = 0.0) -> None:
        """
        Take in that a question was not answered; looks become smaller, as a proxy may refuse their length.

        :param request: The question.
        :param now: When it failed.
        :param jitter: As for :meth:`answered`.
        """
        self.failures, self.failing_since = self.failures + 1, now if self.failing_since is None else self.failing_since
        pace = replace(self.pace, quick_s=min((quick for _, quick in self._members.values()), default=self.pace.quick_s))
        self._slot = max(self._slot, now + pace.backoff_s(self.failures, jitter))
        if request.kind == "since":
            self._since_failures += 1
            self._since_at = now + pace.backoff_s(self._since_failures, jitter)
            return
        self._batch = max(SMALLEST_BATCH, self._batch // 2)
        for run_id in request.run_ids:
            if run_id in self._members:
                self._plan_look(run_id, request.sent)

    def _next(self) -> tuple[float, Literal["since", "look"]]:
        """Say what comes next: a look goes where it delays no question of the fast path, or right behind one."""
        while self._looks and self._look_at.get(self._looks[0][1]) != self._looks[0][0]:
            heapq.heappop(self._looks)
        look = max(self._slot, self._looks[0][0]) if self._looks else inf
        since = max(self._slot, self._since_at) if self._members or self.feeds else inf
        if look < inf and (look + self.pace.gap_s <= since or (self._turn == "since" and look <= self._slot)):
            return look, "look"
        return since, "since"

    def _plan_look(self, run_id: str, at: float) -> None:
        self._look_at[run_id] = at
        heapq.heappush(self._looks, (at, run_id))

    def _piece(self, now: float) -> list[str]:
        """Take what is due, and fill up with what will be due soon: fewer, fuller requests."""
        taken: list[str] = []
        while self._looks and len(taken) < min(self._batch, self._fit) and self._looks[0][0] <= now + self.pace.sweep_s / 2:
            at, run_id = heapq.heappop(self._looks)
            if self._look_at.get(run_id) == at:
                del self._look_at[run_id]
                taken.append(run_id)
        return taken

    def _plan_next_looks(self, request: Request, found: set[str], now: float, jitter: float) -> None:
        for run_id in request.run_ids:
            joined = self._members.get(run_id, (inf,))[0]
            if joined > request.sent:  # it left, or came anew: then its own look is planned already
                continue
            self._looked.add(run_id)
            self._plan_look(run_id, now + (self.pace.sweep_s * (1 - JITTER * jitter) if run_id in found else CONFIRM_S))

    def _check_fast_path(self, rows: Iterable[PipelineRun], now: float) -> None:
        """See whether a look has found what the fast path should have: an end before the moment that it asked for."""
        first = min((_ended_at(each) for each in rows if each.run_id in self._looked), default=inf)
        if self._asked is not None and first < self._asked[1]:
            self.clock.rewind(first, now)

    def _interval_s(self, now: float, jitter: float) -> float:
        share, slowdown = self.pace.share, self.pace.slowdown
        each = (min(max((now - joined) * share, quick), quick * slowdown) for joined, quick in self._members.values())
        return min(self.pace.quick_s if self.feeds else inf, min(each, default=inf)) * (1 - JITTER * jitter)


def _ended_at(run: PipelineRun) -> float:
    """Say when it ended, by the engine's clock; infinity for not yet."""
    return run.finished_at.timestamp() if run.state.ended and run.finished_at is not None else inf
