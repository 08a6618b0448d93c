"""What waits for one run: one event whatever happens, as plain JSON, and no blocked event loop."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from airflow_ml_provider.hooks.kfp import KfpHook
from airflow_ml_provider.models.kfp import WaitOutcome
from airflow_ml_provider.testing import FakeKfpServer
from airflow_ml_provider.triggers import kfp as module
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
    }


def test_at_the_deadline_the_run_is_stopped_and_the_event_says_so(kfp: FakeKfpServer) -> None:
    run_id = start_run()
    (event,) = watch(quick(run_id, deadline=time.time() + 0.8))
    assert (event["outcome"], event["stopped"]) == ("deadline", True)
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
    from airflow_ml_provider.jobs import kfp_wait

    monkeypatch.setattr(kfp_wait, "STOP_PAUSES_S", (0.05, 0.05))
    run_id = start_run()
    kfp.fault("status-500", method="POST", path="terminate", times=9)
    (event,) = watch(quick(run_id, deadline=time.time() + 0.3))
    assert (event["outcome"], event["stopped"]) == ("deadline", False)
    assert "could not be terminated and may go on" in event["message"]
    assert len([each for each in kfp.requests if "terminate" in each.path]) == 3


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
