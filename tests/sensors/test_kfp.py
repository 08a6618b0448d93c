"""The sensor in DAG runs, against the fake server over HTTP, in each of the three ways of waiting."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, TaskDeferred
from airflow.sdk import DAG

from airflow_ml_provider.config import Settings
from airflow_ml_provider.core import polling
from airflow_ml_provider.core.kfp_package import read_package
from airflow_ml_provider.exceptions import ConfigError, RemoteJobError, RemoteUnavailableError
from airflow_ml_provider.hooks.kfp import KfpApi
from airflow_ml_provider.hooks.kfp_server import BearerAuth, KfpServer
from airflow_ml_provider.jobs import kfp_wait
from airflow_ml_provider.jobs.kfp import KfpJobs
from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog
from airflow_ml_provider.models.kfp import RunState, WaitOutcome
from airflow_ml_provider.sensors.kfp import STUCK_S, KfpRunSensor
from airflow_ml_provider.testing import FakeKfpServer
from airflow_ml_provider.triggers.kfp import MARKS
from tests.airflow_runs import Outcome
from tests.jobs.conftest import SPEC, Store

START = pendulum.datetime(2024, 1, 1)
NOWHERE = "00000000-0000-0000-0000-000000000000"
WAYS: dict[str, dict[str, Any]] = {
    "poke": {"deferrable": False},
    "reschedule": {"deferrable": False, "mode": "reschedule"},
    "deferred": {"deferrable": True},
}
EACH_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
IN_PLACE = pytest.mark.parametrize("way", [WAYS["poke"], WAYS["deferred"]], ids=["poke", "deferred"])


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfpServer]:
    with FakeKfpServer() as server:
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url}))
        monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "4")
        monkeypatch.setenv("AIRFLOW__ML__HTTP_TIMEOUT_S", "2")
        monkeypatch.setenv("AIRFLOW__ML__HTTP_RETRIES", "0")
        yield server


@pytest.fixture
def jobs(server: FakeKfpServer) -> Iterator[KfpJobs]:
    with KfpApi(KfpServer("kfp_default", server.url), Settings(http_timeout_s=2, http_retries=0)) as api:
        yield KfpJobs(api)


@pytest.fixture
def run_id(jobs: KfpJobs) -> str:
    """A run that somebody else has started."""
    return jobs.submit({"display_name": "theirs", "pipeline_spec": SPEC}).run_id


@pytest.fixture
def wait(run_dag: Callable[..., Outcome], unique: str, server: FakeKfpServer) -> Callable[..., Outcome]:
    nights = itertools.count()

    def run(**arguments: Any) -> Outcome:
        with DAG(unique, schedule=None, start_date=START) as made:
            KfpRunSensor(task_id="wait", **({"poke_interval": 0.5, "timeout": 30} | arguments))
        return run_dag(made, logical_date=START.add(days=next(nights)))

    return run


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: caplog.text + capsys.readouterr().out


@pytest.fixture
def quickly_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second look, which proves that a run is gone, comes after one second; tests/core has the ten."""
    for module in (polling, kfp_wait):
        monkeypatch.setattr(module, "CONFIRM_S", 1.0)


@pytest.fixture
def later() -> Iterator[Callable[..., None]]:
    """Do something while the sensor waits."""
    timers = []

    def start(seconds: float, call: Callable[..., Any], *args: Any) -> None:
        timers.append(threading.Timer(seconds, call, args))
        timers[-1].start()

    yield start
    for each in timers:
        each.cancel()
        each.join()


def stops(server: FakeKfpServer) -> list[str]:
    return [each.path for each in server.requests if each.path.endswith(":terminate") or each.method == "DELETE"]


class TestARun:
    @EACH_WAY
    def test_that_has_succeeded_gives_its_reference(self, wait, server, run_id, way):
        server.finish(run_id)
        result = wait(run_id="{{ '" + run_id + "' }}", **way).xcom("wait")
        assert result | {"experiment_id": ""} == {
            "version": 1,
            "run_id": run_id,
            "state": "SUCCEEDED",
            "url": f"{server.url}/#/runs/details/{run_id}",
            "experiment_id": "",
            "pipeline_id": "",
            "pipeline_version_id": "",
        }

    @IN_PLACE
    def test_that_goes_on_is_waited_for(self, wait, server, run_id, way, later):
        later(2, server.finish, run_id)
        assert wait(run_id=run_id, **way).xcom("wait")["state"] == "SUCCEEDED"

    @EACH_WAY
    def test_that_has_failed_fails_the_task_and_names_its_own(self, wait, server, run_id, way, said):
        server.finish(run_id, "FAILED", failed_task="step", log="CUDA out of memory\n")
        assert wait(run_id=run_id, **way).task("wait") == "failed"
        text = said()
        assert "Task step FAILED" in text
        assert "CUDA out of memory" in text

    @IN_PLACE
    def test_that_fails_while_it_is_waited_for_is_told_the_same(self, wait, server, run_id, way, later, said):
        later(2, server.finish, run_id, "FAILED", "step")
        assert wait(run_id=run_id, **way).task("wait") == "failed"
        assert "Task step FAILED" in said()

    @pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
    @EACH_WAY
    def test_that_has_failed_skips_a_task_that_may_fail(self, wait, server, run_id, way, option):
        server.finish(run_id, "FAILED")
        assert wait(run_id=run_id, **way, **{option: True}).task("wait") == "skipped"

    def test_that_is_gone_fails_the_task(self, wait, said, quickly_gone):
        assert wait(run_id=NOWHERE, deferrable=False).task("wait") == "failed"
        assert f"has no run {NOWHERE}: it was deleted there. Its end is not known" in said()

    def test_that_is_deleted_while_it_is_waited_for_fails_the_task(self, wait, jobs, run_id, later, said, quickly_gone):
        later(1, jobs.delete, run_id)
        assert wait(run_id=run_id, deferrable=True).task("wait") == "failed"
        assert "was deleted there" in said()

    def test_of_another_namespace_is_not_told_as_deleted(self, wait, said, quickly_gone, monkeypatch):
        with FakeKfpServer(multi_user=True, tokens={"t": "ada"}) as server:
            server.auto(None)
            with KfpApi(KfpServer("c", server.url, namespace="a", auth=BearerAuth(token="t")), Settings(http_retries=0)) as api:
                catalog = KfpCatalog(api)
                version = catalog.upload(read_package(json.dumps(SPEC), source="one.json"))
                body = {"pipeline_version_reference": version.reference, "experiment_id": catalog.experiment_id("e")}
                run_id = KfpJobs(api).submit(body | {"display_name": "theirs"}).run_id
            connection = {"conn_type": "kfp", "host": server.url, "password": "t"}
            monkeypatch.setenv(
                "AIRFLOW_CONN_KFP_DEFAULT", json.dumps(connection | {"extra": {"auth": "bearer", "namespace": "b"}})
            )
            assert wait(run_id=run_id, deferrable=True, retries=1).task("wait") == "failed"
            assert "is on the server, but not among the runs of namespace 'b'. Give namespace=" in said()
            assert "was deleted there" not in said().split("RemoteJobError")[-1]
            event = WaitOutcome(run_id=run_id, outcome="gone").model_dump(mode="json")
            server.finish(run_id)
            found = KfpRunSensor(task_id="wait", run_id=run_id, deferrable=True).execute_complete({}, event)
            assert (found["run_id"], found["state"]) == (run_id, "SUCCEEDED")

    def test_is_asked_for_whatever_another_release_says_of_it(self, server, run_id):
        server.finish(run_id)
        event = {"version": 9, "run_id": run_id, "outcome": "finished", "state": "FINE", "stopped": None}
        assert KfpRunSensor(task_id="wait", run_id=run_id).execute_complete({}, event)["state"] == "SUCCEEDED"

    def test_that_will_never_be_reported_is_given_up_over_reschedules(self, server, jobs, run_id):
        sensor = KfpRunSensor(task_id="wait", run_id=run_id, deferrable=False, mode="reschedule")
        context: Any = {"ti": SimpleNamespace(try_number=2), "task_state_store": Store()}
        server.lose("kubernetes")
        with pytest.raises(RemoteUnavailableError):
            jobs.cancel(run_id)
        assert not sensor.poke(context)
        (key,) = context["task_state_store"]
        assert key == "kfp_canceling.2"
        server.restore()
        server.report(run_id, "RUNNING")
        assert not sensor.poke(context)
        assert context["task_state_store"] == {key: 0.0}
        jobs.cancel(run_id)
        context["task_state_store"].set(key, time.time() - STUCK_S - 1)
        with pytest.raises(RemoteJobError, match=rf"{run_id} is CANCELING and is waited for no longer \(stuck\)"):
            sensor.poke(context)

    def test_that_was_repeated_after_its_end_is_waited_for_again(self, server, jobs, run_id):
        server.finish(run_id, "FAILED")
        event = WaitOutcome(run_id=run_id, outcome="ended", state=RunState.FAILED).model_dump(mode="json")
        jobs.retry(run_id)  # by somebody, before the operator looks
        sensor = KfpRunSensor(task_id="wait", run_id=run_id, deferrable=True, timeout=30)
        with pytest.raises(TaskDeferred) as deferred:
            sensor.execute_complete({}, event, deadline=12345.0)
        assert deferred.value.trigger.deadline == 12345.0
        assert deferred.value.kwargs == {"deadline": 12345.0}


class TestTheTime:
    @IN_PLACE
    def test_that_is_up_fails_the_task_and_leaves_the_run_alone(self, wait, server, run_id, way, said):
        assert wait(run_id=run_id, **(way | {"timeout": 1})).task("wait") == "failed"
        assert "AirflowSensorTimeout" in said()
        assert (stops(server), server.runs[0].state) == ([], "PENDING")

    @IN_PLACE
    def test_that_is_up_skips_a_task_that_may_fail(self, wait, run_id, way):
        assert wait(run_id=run_id, **(way | {"timeout": 1}), soft_fail=True).task("wait") == "skipped"

    def test_that_is_up_while_the_server_is_away_ends_the_waiting(self, wait, server, run_id, said, monkeypatch):
        monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "300")
        server.down()
        assert wait(run_id=run_id, deferrable=False, timeout=2).task("wait") == "failed"
        assert "AirflowSensorTimeout" in said()


class TestAServer:
    @EACH_WAY
    @pytest.mark.parametrize("kind", ["status-500", "status-503", "status-401", "reset"])
    def test_that_does_not_answer_once_fails_nothing(self, wait, server, run_id, way, kind):
        server.finish(run_id)
        server.fault(kind, method="GET")
        assert wait(run_id=run_id, **way).task("wait") == "success"

    @IN_PLACE
    def test_that_is_away_for_less_than_the_patience_fails_nothing(self, wait, server, run_id, way, later, monkeypatch):
        monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "20")
        later(1, server.down)
        later(3, server.up)
        later(4, server.finish, run_id)
        assert wait(run_id=run_id, **way).task("wait") == "success"

    @IN_PLACE
    def test_that_stays_away_fails_the_task_even_if_it_may_fail(self, wait, server, run_id, way, said, monkeypatch):
        monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "1")
        server.down()
        assert wait(run_id=run_id, **way, soft_fail=True).task("wait") == "failed"
        assert "patience 1 s" in said()
        assert wait(run_id=run_id, **way, never_fail=True).task("wait") == "skipped"

    @EACH_WAY
    def test_that_nobody_has_named_fails_the_task_even_if_it_may_fail(self, wait, run_id, way, said):
        assert wait(run_id=run_id, kfp_conn_id="nowhere", soft_fail=True, retries=1, **way).task("wait") == "failed"
        assert "there is no connection 'nowhere'" in said()

    def test_that_nobody_names_any_longer_fails_a_resumed_task_even_if_it_may_fail(self, run_id):
        sensor = KfpRunSensor(task_id="wait", run_id=run_id, kfp_conn_id="nowhere", soft_fail=True, deferrable=True)
        event = {"run_id": run_id, "outcome": "ended", "state": "SUCCEEDED"}
        with pytest.raises(AirflowFailException, match="there is no connection 'nowhere'"):
            sensor.resume_execution("execute_complete", {"event": event}, {})


class TestDeferring:
    def test_never_stops_the_run_whatever_a_person_does_to_the_task(self, server, run_id):
        sensor = KfpRunSensor(task_id="wait", run_id=run_id, deferrable=True, timeout=60, poke_interval=20)
        with pytest.raises(TaskDeferred) as deferred:
            sensor.execute({})
        _, arguments = deferred.value.trigger.serialize()
        assert arguments["stop_on_timeout"] is False
        assert set(MARKS.values()) - {"none"} <= set(arguments["leave_running"])
        assert (arguments["poll_interval_s"], arguments["patience_s"]) == (2.0, 4.0)
        assert json.dumps(arguments)


class TestBadInput:
    @EACH_WAY
    def test_of_a_template_is_refused_and_not_retried(self, wait, server, way, said):
        assert wait(run_id="{{ none }}", retries=1, **way).task("wait") == "failed"
        assert "run_id='None' is none. Give the id of a run." in said()
        assert server.requests == []

    def test_is_refused_when_the_file_is_read(self):
        with pytest.raises(ConfigError, match="task 'wait': run_id='' is none"):
            KfpRunSensor(task_id="wait", run_id="")
        # Airflow's own word for it, which is no ValueError before 3.2.
        with pytest.raises(Exception, match="The mode must be one of"):
            KfpRunSensor(task_id="wait", run_id="x", mode="sleep")
