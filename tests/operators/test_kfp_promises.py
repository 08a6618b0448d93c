"""The table "Which run a try works with" of docs/kfp-runs.md, row by row, in DAG runs against the fake server over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pendulum
import pytest
from airflow.sdk import DAG

from airflow_ml_provider.models.kfp import KfpRunOptions, PipelineRun, WaitOutcome
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator
from airflow_ml_provider.testing import FakeKfpServer
from tests.airflow_runs import Outcome

START = pendulum.datetime(2024, 1, 1)
CHURN = str(Path(__file__).parents[2] / "dags/pipelines/churn.yaml")
QUICK = KfpRunOptions(poll_interval_s=0.1, settle_s=1)
Meanwhile = Callable[[FakeKfpServer, str], Any]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfpServer]:
    with FakeKfpServer() as server:
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url}))
        yield server


class Crashing(KfpRunPipelineOperator):
    """Loses its worker when it begins to wait for the first time; what becomes of its run meanwhile is the test's."""

    meanwhile: Meanwhile
    server: FakeKfpServer
    crashes = 1

    def _wait(self, submission: Any, run: PipelineRun, deadline: float | None) -> WaitOutcome:
        cls = type(self)
        if cls.crashes:
            cls.crashes -= 1
            cls.meanwhile(cls.server, run.run_id)
            cls.server.auto(seconds=0.2)  # what is started from now on succeeds
            raise OSError("the worker is gone")
        return super()._wait(submission, run, deadline)


def resumed(server: FakeKfpServer, run_id: str, *states: str) -> None:
    """Say how it stands, and that it succeeds when somebody waits for it."""
    for state in states:
        server.report(run_id, state)
    server.engine.plan(server.store.clock() + 1, lambda _: server.finish(run_id))


def deleted(server: FakeKfpServer, run_id: str) -> None:
    httpx.delete(f"{server.url}/apis/v2beta1/runs/{run_id}").raise_for_status()


def terminated(server: FakeKfpServer, run_id: str) -> None:
    httpx.post(f"{server.url}/apis/v2beta1/runs/{run_id}:terminate").raise_for_status()


def archived(server: FakeKfpServer, run_id: str) -> None:
    httpx.post(f"{server.url}/apis/v2beta1/runs/{run_id}:archive").raise_for_status()
    resumed(server, run_id)


SAME, ANOTHER = 1, 2
TABLE: list[tuple[str, Meanwhile, dict[str, Any], int, int]] = [
    ("PENDING", resumed, {}, SAME, 0),
    ("RUNNING", lambda server, run_id: resumed(server, run_id, "RUNNING"), {}, SAME, 0),
    ("PAUSED", lambda server, run_id: resumed(server, run_id, "RUNNING", "PAUSED"), {}, SAME, 0),
    ("going backwards", lambda server, run_id: resumed(server, run_id, "RUNNING", "PENDING"), {}, SAME, 0),
    ("archived", archived, {}, SAME, 0),
    ("SUCCEEDED", lambda server, run_id: server.finish(run_id), {}, SAME, 0),
    ("SKIPPED", lambda server, run_id: server.finish(run_id, "SKIPPED"), {}, SAME, 0),
    ("FAILED, resumed", lambda server, run_id: server.finish(run_id, "FAILED"), {"on_retry": "resume"}, SAME, 1),
    ("FAILED, new", lambda server, run_id: server.finish(run_id, "FAILED"), {"on_retry": "new"}, ANOTHER, 0),
    ("CANCELED", lambda server, run_id: server.finish(run_id, "CANCELED"), {}, ANOTHER, 0),
    ("CANCELING", terminated, {}, ANOTHER, 0),
    ("deleted", deleted, {}, ANOTHER, 0),
]


@pytest.mark.parametrize(("found", "meanwhile", "arguments", "runs", "repeated"), TABLE, ids=[each[0] for each in TABLE])
def test_the_next_try_after_a_crash_works_with(
    run_dag: Callable[..., Outcome],
    unique: str,
    server: FakeKfpServer,
    found: str,
    meanwhile: Meanwhile,
    arguments: dict[str, Any],
    runs: int,
    repeated: int,
) -> None:
    class Here(Crashing):
        """Of this test."""

    Here.meanwhile, Here.server = staticmethod(meanwhile), server
    with DAG(unique, schedule=None, start_date=START) as made:
        given: dict[str, Any] = {"pipeline": CHURN, "arguments": {"day": "2024-01-01"}, "options": QUICK, "deferrable": False}
        Here(task_id="train", retries=1, retry_delay=timedelta(0), **given, **arguments)
    outcome = run_dag(made, logical_date=START)
    assert outcome.task("train") == "success"
    assert len(server.workflows) == runs == len({each.run_id for each in server.workflows})
    assert outcome.xcom("train")["run_id"] == server.workflows[-1].run_id
    assert sum(each.path.endswith(":retry") for each in server.requests) == repeated
    assert Here.crashes == 0


@pytest.mark.parametrize("state", ["SUCCEEDED", "SKIPPED"])
def test_a_good_end_is_the_state_that_is_returned(
    run_dag: Callable[..., Outcome], unique: str, server: FakeKfpServer, state: str
) -> None:
    server.auto(seconds=0.2, state=state)
    with DAG(unique, schedule=None, start_date=START) as made:
        given: dict[str, Any] = {"pipeline": CHURN, "arguments": {"day": "2024-01-01"}, "options": QUICK}
        KfpRunPipelineOperator(task_id="train", deferrable=False, **given)
    assert run_dag(made, logical_date=START).xcom("train")["state"] == state
