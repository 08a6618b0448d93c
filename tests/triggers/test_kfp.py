"""What waits for one run: one event whatever happens, as plain JSON, and no blocked event loop."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from airflow_ml_provider.core import polling
from airflow_ml_provider.core.kfp_package import read_package
from airflow_ml_provider.hooks.kfp import KfpHook
from airflow_ml_provider.jobs import kfp_wait
from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog
from airflow_ml_provider.models.kfp import WaitOutcome
from airflow_ml_provider.testing import FakeKfpServer
from airflow_ml_provider.triggers import kfp as module
from airflow_ml_provider.triggers import kfp_stop
from airflow_ml_provider.triggers.kfp import KfpRunTrigger
from airflow_ml_provider.triggers.kfp_poller import KfpPoller

SPEC: dict[str, Any] = {
    "components": {"comp-a": {"executorLabel": "exec-a"}},
    "deploymentSpec": {"executors": {"exec-a": {"container": {"image": "python:3.11", "command": ["true"]}}}},
    "pipelineInfo": {"name": "one-step"},
    "root": {"dag": {"tasks": {"a": {"cachingOptions": {}, "componentRef": {"name": "comp-a"}, "taskInfo": {"name": "a"}}}}},
    "schemaVersion": "2.1.0",
    "sdkVersion": "kfp-2.17.0",
}


def start_run(name: str = "train") -> str:
    """Start a run on the server of the connection."""
    with KfpHook().api() as api:
        return str(api.post("/apis/v2beta1/runs", {"display_name": name, "pipeline_spec": SPEC})["run_id"])


def start_in(conn_id: str) -> str:
    """Start a run in the namespace of a connection."""
    with KfpHook(conn_id).api() as api:
        experiment = KfpCatalog(api).experiment_id("e")
        version = KfpCatalog(api).upload(read_package(json.dumps(SPEC), source="one.json"))
        body = {"display_name": "n", "pipeline_version_reference": version.reference, "experiment_id": experiment}
        return str(api.post("/apis/v2beta1/runs", body)["run_id"])


def start_with_carrier() -> tuple[str, str]:
    """Start a run as the operator does with exactly_once="carrier"; the ids of both."""
    run_id = str(uuid.uuid4())
    with KfpHook().api() as api:
        catalog = KfpCatalog(api)
        version = catalog.upload(read_package(json.dumps(SPEC), source="one.json")).reference
        body = {"pipeline_version_reference": version, "experiment_id": catalog.experiment_id("e")}
        carrier = catalog.create_recurring_run(
            body | {"display_name": run_id, "max_concurrency": "1", "mode": "DISABLE", "no_catchup": True}
        )
        api.post("/apis/v2beta1/runs", body | {"display_name": "n", "run_id": run_id, "recurring_run_id": carrier})
    return run_id, carrier


def wait_for(look: Any) -> None:
    """Look until there is something to see."""
    end = time.monotonic() + 10
    while not look():
        assert time.monotonic() < end
        time.sleep(0.05)


def carriers() -> list[str]:
    with KfpHook().api() as api:
        return [each["recurring_run_id"] for each in api.get("/apis/v2beta1/recurringruns").get("recurringRuns") or ()]


@pytest.fixture
def told_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Airflow says that the task was marked as failed."""

    async def state(*_: Any) -> str:
        return "failed"

    monkeypatch.setattr(module, "task_state", state)


async def events_of(trigger: KfpRunTrigger) -> list[dict[str, Any]]:
    return [event.payload async for event in trigger.run()]


def watch(trigger: KfpRunTrigger, *, after_s: float = 0.3, then: Any = lambda: None) -> list[dict[str, Any]]:
    """Run a trigger to its end, with something that happens in between; blocking the event loop is an error."""

    async def main() -> list[dict[str, Any]]:
        task = asyncio.create_task(events_of(trigger))
        await asyncio.sleep(after_s)
        await asyncio.to_thread(then)
        return await task

    with blockbuster_ctx():
        events = asyncio.run(main())
    assert KfpPoller._all == {}
    return events


def quick(run_id: str, **options: Any) -> KfpRunTrigger:
    return KfpRunTrigger(run_id=run_id, poll_interval_s=0.1, **options)


@pytest.mark.parametrize("state", ["SUCCEEDED", "FAILED"])
def test_an_end_is_one_event_of_plain_json(kfp: FakeKfpServer, state: str) -> None:
    run_id = start_run()
    (event,) = watch(quick(run_id), then=lambda: kfp.finish(run_id, state=state))
    assert json.loads(json.dumps(event)) == event
    assert event == {
        "version": 1,
        "run_id": run_id,
        "outcome": "ended",
        "state": state,
        "stopped": False,
        "message": f"Run {run_id} ended as {state}.",
        "deadline": None,
    }


def test_at_the_deadline_the_run_is_stopped_and_the_event_says_so(kfp: FakeKfpServer) -> None:
    run_id = start_run()
    deadline = time.time() + 0.8
    (event,) = watch(quick(run_id, deadline=deadline))
    assert (event["outcome"], event["stopped"], event["deadline"]) == ("deadline", True, deadline)
    assert [each for each in kfp.requests if each.path.endswith(f"{run_id}:terminate")]
    assert WaitOutcome.model_validate(event).stopped


def test_at_the_deadline_a_run_may_be_left_running(kfp: FakeKfpServer) -> None:
    run_id = start_run()
    (event,) = watch(quick(run_id, deadline=time.time() + 0.5, stop_on_timeout=False))
    assert (event["outcome"], event["stopped"]) == ("deadline", False)
    assert not [each for each in kfp.requests if "terminate" in each.path]


def test_what_ended_just_before_its_deadline_has_ended(kfp: FakeKfpServer) -> None:
    run_id = start_run()
    kfp.finish(run_id)
    (event,) = watch(quick(run_id, deadline=time.time() - 100))
    assert (event["outcome"], event["state"]) == ("ended", "SUCCEEDED")


def test_a_terminate_that_the_server_refuses_is_told(kfp: FakeKfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfp_wait, "STOP_PAUSES_S", (0.05, 0.05))
    run_id = start_run()
    kfp.fault("status-500", method="POST", path="terminate", times=9)
    (event,) = watch(quick(run_id, deadline=time.time() + 0.3))
    assert (event["outcome"], event["stopped"]) == ("deadline", False)
    assert "could not be terminated and may go on" in event["message"]
    assert len([each for each in kfp.requests if "terminate" in each.path]) == 3


def test_many_stops_that_the_server_does_not_answer_are_told_in_time(kfp: FakeKfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kfp_stop, "STOP_WITHIN_S", 2.0)
    run_ids = [start_run(str(number)) for number in range(30)]
    kfp.fault("slow", method="POST", path="terminate", times=999, seconds=0.7)
    kfp.lose("kubernetes")
    deadline = time.time() + 0.5

    async def main() -> list[list[dict[str, Any]]]:
        return await asyncio.gather(*(events_of(quick(each, deadline=deadline)) for each in run_ids))

    events = asyncio.run(main())
    assert time.time() - deadline < 8
    assert {(each["outcome"], each["stopped"]) for (each,) in events} == {("deadline", False)}
    assert all("could not be terminated and may go on" in each["message"] for (each,) in events)


def test_after_two_stops_that_failed_the_next_is_tried_once_and_one_that_works_ends_that(
    kfp: FakeKfpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kfp_wait, "STOP_PAUSES_S", (0.05, 0.05))
    run_ids = [start_run(str(number)) for number in range(6)]
    kfp.fault("status-500", method="POST", path="terminate", times=7)

    def tries() -> list[int]:
        return [len([each for each in kfp.requests if each.path.endswith(f"{run_id}:terminate")]) for run_id in run_ids]

    async def main() -> list[str | None]:
        problems = [await kfp_stop.stop("kfp_default", "", each, within_s=30) for each in run_ids[:4]]
        kfp.fault("status-500", method="POST", path="terminate", times=2)
        return [*problems, await kfp_stop.stop("kfp_default", "", run_ids[4], within_s=30)]

    problems = asyncio.run(main())
    assert tries() == [3, 3, 1, 1, 3, 0]
    assert [each is None for each in problems] == [False, False, False, True, True]


def test_a_server_that_hangs_does_not_hold_up_the_stops_of_another(kfp: FakeKfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    run_ids = [start_run(str(number)) for number in range(6)]
    with FakeKfpServer() as other:
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps({"conn_type": "kfp", "host": other.url}))
        kfp.fault("slow", method="POST", path="terminate", times=99, seconds=2)

        async def main() -> float:
            others = [asyncio.create_task(kfp_stop.stop("kfp_default", "", each, within_s=9)) for each in run_ids]
            await asyncio.sleep(0.3)
            begun = time.monotonic()
            await kfp_stop.stop("other", "", "absent", within_s=9)
            took = time.monotonic() - begun
            await asyncio.gather(*others)
            return took

        assert asyncio.run(main()) < 1.5


def test_a_run_that_no_list_has_is_looked_for_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "CONFIRM_S", 0.5)
    with FakeKfpServer(multi_user=True, tokens={"t": "ada"}) as server:
        server.auto(None)
        for name, namespace in (("mine", "a"), ("wrong", "b")):
            extra = {"auth": "bearer", "namespace": namespace}
            connection = {"conn_type": "kfp", "host": server.url, "password": "t", "extra": extra}
            monkeypatch.setenv(f"AIRFLOW_CONN_{name.upper()}", json.dumps(connection))
        run_id = start_in("mine")
        (event,) = watch(quick(run_id, kfp_conn_id="wrong", namespace="b"))
        assert (event["outcome"], event["state"]) == ("gone", "PENDING")
        assert "has run" in event["message"]
        assert "namespace 'b'" in event["message"]
        (event,) = watch(quick(run_id, kfp_conn_id="wrong", namespace="b"), then=lambda: server.finish(run_id))
        assert (event["outcome"], event["state"]) == ("ended", "SUCCEEDED")


class TestACarrier:
    def test_goes_when_a_run_has_ended_whose_task_was_marked_failed(self, kfp: FakeKfpServer, told_state: None) -> None:
        run_id, carrier = start_with_carrier()
        trigger = quick(run_id, carrier=True)

        async def main() -> None:
            killed = asyncio.create_task(trigger.on_kill())
            await asyncio.to_thread(wait_for, lambda: kfp.runs[0].state == "CANCELING")
            await asyncio.sleep(1.5)
            assert carriers() == [carrier], "without it nobody would report the end"
            await asyncio.to_thread(kfp.finish, run_id, "FAILED")
            await killed

        asyncio.run(main())
        assert carriers() == []
        assert KfpPoller._all == {}

    def test_stays_when_the_run_does_not_end(
        self, kfp: FakeKfpServer, told_state: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(kfp_stop, "END_WITHIN_S", 0.5)
        run_id, carrier = start_with_carrier()
        asyncio.run(quick(run_id, carrier=True).on_kill())
        assert carriers() == [carrier]
        assert f"Run {run_id} was stopped and has not ended" in caplog.text

    def test_is_left_to_the_operator_at_the_deadline_when_the_run_has_ended(self, kfp: FakeKfpServer) -> None:
        run_id, _ = start_with_carrier()
        kfp.auto(1)
        kfp.engine.plan(kfp.store.clock() + 3, lambda _: kfp.finish(run_id, "FAILED"))
        (event,) = watch(quick(run_id, carrier=True, deadline=time.time() + 0.5))
        assert (event["outcome"], event["stopped"]) == ("deadline", True)
        assert kfp.runs[0].state == "FAILED"


def test_a_server_that_is_away_longer_than_the_patience_is_an_event(kfp: FakeKfpServer) -> None:
    run_id = start_run()
    kfp.down()
    (event,) = watch(quick(run_id, patience_s=0.5))
    assert event["outcome"] == "unreachable"


def test_a_missing_connection_is_an_event_after_the_patience() -> None:
    (event,) = watch(KfpRunTrigger(run_id="a", kfp_conn_id="missing", poll_interval_s=0.1, patience_s=0.3))
    assert event["outcome"] == "unreachable"
    assert "there is no connection 'missing'" in event["message"]


def test_what_is_stored_makes_the_same_trigger_and_holds_no_secret(kfp: FakeKfpServer) -> None:
    trigger = KfpRunTrigger(
        run_id="a",
        kfp_conn_id="other",
        namespace="team",
        deadline=1.5,
        patience_s=7,
        leave_running=("clear",),
        carrier=True,
        stop_on_timeout=False,
    )
    path, arguments = trigger.serialize()
    assert path == "airflow_ml_provider.triggers.kfp.KfpRunTrigger"
    assert json.loads(json.dumps(arguments)) == arguments
    assert "s3cret" not in json.dumps(arguments)
    assert KfpRunTrigger(**arguments).serialize() == (path, arguments)


def test_a_row_of_an_older_release_still_makes_a_trigger() -> None:
    arguments = KfpRunTrigger(run_id="a").serialize()[1]
    for name in set(arguments) - {"run_id"}:
        fewer = {key: value for key, value in arguments.items() if key != name}
        assert KfpRunTrigger(**fewer).serialize()[1] == arguments


def test_a_cancelled_trigger_ends_at_once_and_stops_nothing(kfp: FakeKfpServer) -> None:
    run_id = start_run()
    trigger = quick(run_id)

    async def main() -> None:
        task = asyncio.create_task(events_of(trigger))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await trigger.cleanup()

    asyncio.run(main())
    assert not [each for each in kfp.requests if "terminate" in each.path]


def test_two_hundred_triggers_share_one_poller_and_each_gets_its_event(kfp: FakeKfpServer) -> None:
    run_ids = [start_run(str(number)) for number in range(200)]
    before = len(kfp.requests)

    async def main() -> tuple[list[list[dict[str, Any]]], int]:
        tasks = [asyncio.create_task(events_of(quick(each))) for each in run_ids]
        await asyncio.sleep(0.2)
        pollers = len(KfpPoller._all)
        await asyncio.to_thread(lambda: [kfp.finish(each) for each in run_ids])
        return await asyncio.gather(*tasks), pollers

    with blockbuster_ctx():
        events, pollers = asyncio.run(main())
    assert pollers == 1
    assert [[each["run_id"] for each in told] for told in events] == [[each] for each in run_ids]
    assert len(kfp.requests) - before <= 6


@pytest.mark.parametrize(
    ("state", "mark"),
    [("failed", "kill"), ("skipped", "kill"), ("success", "success"), (None, "clear"), ("queued", "clear"), ("deferred", "none")],
)
def test_the_state_of_the_task_says_what_a_person_did(state: str | None, mark: str) -> None:
    assert module.MARKS[state] == mark
