"""Waiting for one run in the process of a worker, and stopping one; what the answers mean is decided in core.polling."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from airflow_ml_provider.core.polling import CONFIRM_S, Pace, Waiting
from airflow_ml_provider.exceptions import AirflowMLError, ConfigError, RemoteNotFoundError, UnauthorizedError
from airflow_ml_provider.jobs.kfp import Cancelled
from airflow_ml_provider.models.kfp import PipelineRun, WaitOutcome

log = logging.getLogger(__name__)

STOP_PAUSES_S = (2.0, 5.0, 10.0, 15.0)
"""Seconds between two tries to have a run terminated; one answer takes up to 13 s when Kubernetes does not follow."""


class Stops(Protocol):
    """Terminates runs."""

    def cancel(self, run_id: str) -> Cancelled:
        """
        Ask for it; one that has ended is left as it is.

        :param run_id: The run.
        :return: What came of it.
        """
        ...


class LooksAndStops(Stops, Protocol):
    """What waiting needs of the runs of a server."""

    def look(self, run_id: str) -> PipelineRun | None:
        """
        Ask for one run.

        :param run_id: The run.
        :return: The run, None when the server has none.
        """
        ...


def wait_for_run(
    jobs: LooksAndStops,
    run_id: str,
    *,
    deadline: float | None = None,
    poll_interval_s: float = 5.0,
    patience_s: float = 300.0,
    stuck_s: float = 600.0,
    stop_on_timeout: bool = True,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    jitter: Callable[[], float] = random.random,
) -> WaitOutcome:
    """
    Wait until a run has ended, or will not be waited for any longer.

    :param jobs: Runs of the server.
    :param run_id: The run, which is known to exist.
    :param deadline: Epoch seconds at which it is stopped; None for never.
    :param poll_interval_s: Seconds between two looks while it is young; with its age up to tenfold.
    :param patience_s: Seconds of errors in a row, of whatever kind, that are borne.
    :param stuck_s: Seconds that it may be CANCELING.
    :param stop_on_timeout: Whether the server is asked to terminate it at the deadline.
    :param clock: Epoch seconds.
    :param sleep: Waits.
    :param jitter: A number from 0 to 1 at each call.
    :return: What came of it; it never raises for a server that is away.
    """
    loop = _Loop(jobs, Waiting(run_id, clock(), deadline, patience_s, stuck_s, seen=True), Pace(quick_s=poll_interval_s), clock)
    while (told := loop.look()) is None:
        sleep(loop.pause_s(jitter()))
    if told.outcome == "deadline" and stop_on_timeout:
        return with_stop(told, stop_run(jobs, run_id, sleep=sleep))
    return told


@dataclass
class _Loop:
    """What is remembered between two looks."""

    jobs: LooksAndStops
    waiting: Waiting
    pace: Pace
    clock: Callable[[], float]
    failing_since: float | None = None
    failures: int = 0
    absent: bool = False

    def look(self) -> WaitOutcome | None:
        """Look once, and say what follows."""
        run_id, before, told, error = self.waiting.run_id, self.waiting.state, None, ""
        try:
            run = self.jobs.look(run_id)
        except AirflowMLError as problem:
            self.failing_since = self.clock() if self.failing_since is None else self.failing_since
            self.failures, error = self.failures + 1, str(problem)
            log.warning("Could not look at run %s: %s Waiting for it all the same.", run_id, error)
        else:
            self.failing_since, self.failures, self.absent = None, 0, run is None
            told = self.waiting.on_run(run, self.clock())
            if self.waiting.state is not before:
                log.info("Run %s is %s.", run_id, self.waiting.state)
        return told or self.waiting.on_time(self.clock(), self.failing_since, error)

    def pause_s(self, jitter: float) -> float:
        """Say how long to wait: never past the deadline, nor past the end of the patience."""
        now, waiting = self.clock(), self.waiting
        if self.failing_since is not None:
            pause = min(self.pace.backoff_s(self.failures, jitter), self.failing_since + waiting.patience_s - now)
        else:
            pause = CONFIRM_S if self.absent else self.pace.interval_s(now - waiting.since, jitter)
        return max(0.0, pause if waiting.deadline is None else min(pause, waiting.deadline - now))


def with_stop(told: WaitOutcome, problem: str | None) -> WaitOutcome:
    """
    Say in an outcome what came of terminating the run.

    :param told: That the time is up.
    :param problem: None when the server has agreed, else why not.
    :return: The outcome, with ``stopped`` and a longer message.
    """
    if problem is None:
        return told.model_copy(update={"stopped": True, "message": f"{told.message} The server was asked to terminate it."})
    return told.model_copy(update={"message": f"{told.message} It could not be terminated and may go on: {problem}"})


def stop_run(jobs: Stops, run_id: str, *, sleep: Callable[[float], None] = time.sleep) -> str | None:
    """
    Have a run terminated, asking again while the server does not do it: a terminate may be repeated.

    :param jobs: Runs of the server.
    :param run_id: The run; one that is gone, or has ended, is as good as stopped.
    :param sleep: Waits.
    :return: None when the server has agreed, else why it has not.
    """
    for pause in STOP_PAUSES_S:
        again, problem = stop_once(jobs, run_id)
        if not again:
            return problem
        sleep(pause)
    return stop_once(jobs, run_id)[1]


def stop_once(jobs: Stops, run_id: str) -> tuple[bool, str | None]:
    """
    Ask once to have a run terminated.

    :param jobs: Runs of the server.
    :param run_id: The run.
    :return: Whether asking again can help, and the problem, if there is one.
    """
    try:
        if jobs.cancel(run_id) == "canceling":
            return True, f"run {run_id} is CANCELING, and whether Kubernetes was told so is not known."
    except RemoteNotFoundError:
        return False, None
    except AirflowMLError as error:
        log.warning("Could not terminate run %s: %s", run_id, error)
        refused = isinstance(error, ConfigError) and not isinstance(error, UnauthorizedError)
        return not refused, str(error)
    return False, None
