"""Waiting in a worker: values in, values out, with a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest

from airflow_ml_provider.exceptions import (
    AirflowMLError,
    ConfigError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    UnauthorizedError,
)
from airflow_ml_provider.jobs.kfp_wait import STOP_PAUSES_S, stop_run, wait_for_run
from airflow_ml_provider.models.kfp import PipelineRun, RunState, WaitOutcome


class Jobs:
    """A server with one run, which does what the test says at each moment."""

    def __init__(self, at: Callable[[float], str | AirflowMLError | None]) -> None:
        self.at = at
        self.now = 0.0
        self.looks: list[float] = []
        self.stops: list[float] = []
        self.refuse: list[AirflowMLError] = []

    def look(self, run_id: str) -> PipelineRun | None:
        self.looks.append(self.now)
        found = self.at(self.now)
        if isinstance(found, AirflowMLError):
            raise found
        return None if found is None else PipelineRun(run_id=run_id, state=RunState(found), created_at=datetime.now(UTC))

    def cancel(self, run_id: str) -> None:
        self.stops.append(self.now)
        if self.refuse:
            raise self.refuse.pop(0)

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += max(seconds, 0.01)

    def wait(self, **options: object) -> WaitOutcome:
        return wait_for_run(self, "a", clock=lambda: self.now, sleep=self.sleep, jitter=lambda: 0.0, **options)  # type: ignore[arg-type]


def ends_at(moment: float, state: str = "SUCCEEDED") -> Callable[[float], str]:
    return lambda now: state if now >= moment else "RUNNING"


def always(_: float) -> str:
    return "RUNNING"


def test_it_asks_quickly_at_first_and_slowly_later() -> None:
    jobs = Jobs(ends_at(7200))
    told = jobs.wait(poll_interval_s=2)
    assert (told.outcome, told.state) == ("ended", "SUCCEEDED")
    assert jobs.looks[:4] == [0, 2, 4, 6]
    assert 7200 <= jobs.now <= 7220
    assert len(jobs.looks) < 450


def test_an_outage_shorter_than_the_patience_is_borne() -> None:
    jobs = Jobs(lambda now: UnauthorizedError("401") if 100 <= now < 390 else ends_at(400, "FAILED")(now))
    assert jobs.wait(patience_s=300).state == "FAILED"


@pytest.mark.parametrize("error", [RemoteUnavailableError("503"), UnauthorizedError("401"), ConfigError("403")])
def test_a_longer_one_is_told_when_the_patience_is_over(error: AirflowMLError) -> None:
    jobs = Jobs(lambda now: "RUNNING" if now < 50 else error)
    told = jobs.wait(patience_s=100)
    assert (told.outcome, told.state, jobs.stops) == ("unreachable", "RUNNING", [])
    assert 150 <= jobs.now <= 156


def test_a_deleted_run_is_gone_after_two_looks() -> None:
    jobs = Jobs(lambda now: "RUNNING" if now < 50 else None)
    assert jobs.wait().outcome == "gone"
    assert 60 <= jobs.now <= 66


def test_the_deadline_is_kept_to_the_second_and_the_run_is_stopped() -> None:
    jobs = Jobs(always)
    told = jobs.wait(deadline=1234.0)
    assert (told.outcome, told.stopped, jobs.now, jobs.stops) == ("deadline", True, 1234.0, [1234.0])


def test_what_ends_with_its_deadline_has_ended() -> None:
    jobs = Jobs(ends_at(1234.0))
    assert (jobs.wait(deadline=1234.0).outcome, jobs.stops) == ("ended", [])


def test_a_run_may_be_left_running_at_the_deadline() -> None:
    jobs = Jobs(always)
    assert (jobs.wait(deadline=10.0, stop_on_timeout=False).stopped, jobs.stops) == (False, [])


def test_a_terminate_is_repeated_while_the_server_is_away() -> None:
    jobs = Jobs(always)
    jobs.refuse = [RemoteUnavailableError("500"), UnauthorizedError("401")]
    assert jobs.wait(deadline=10.0).stopped
    assert len(jobs.stops) == 3


def test_a_terminate_that_never_works_is_told() -> None:
    jobs = Jobs(always)
    jobs.refuse = [RemoteUnavailableError("500 from Kubernetes")] * 99
    told = jobs.wait(deadline=10.0)
    assert (told.outcome, told.stopped, len(jobs.stops)) == ("deadline", False, len(STOP_PAUSES_S) + 1)
    assert "may go on: 500 from Kubernetes" in told.message


@pytest.mark.parametrize(("error", "problem"), [(RemoteNotFoundError("404"), None), (ConfigError("403 no"), "403 no")])
def test_what_asking_again_cannot_mend_is_asked_once(error: AirflowMLError, problem: str | None) -> None:
    jobs = Jobs(always)
    jobs.refuse = [error]
    assert stop_run(jobs, "a", sleep=jobs.sleep) == problem
    assert len(jobs.stops) == 1
