"""Runs that anybody has started, as events: each once, whatever the server and the triggerer do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.kfp import KfpHook
from airflow_ml_provider.models.kfp import PipelineRun, RunState
from airflow_ml_provider.testing import FakeKfpServer
from airflow_ml_provider.triggers.kfp import KfpRunEventTrigger
from airflow_ml_provider.triggers.kfp_events import LATE_S, REMEMBERED, STORE_KEY, _Told
from airflow_ml_provider.triggers.kfp_poller import KfpPoller
from tests.triggers.test_kfp import SPEC, start_run, wait_for

NOW = 1_800_000_000


def finished(run_id: str, at: float, state: RunState = RunState.SUCCEEDED) -> PipelineRun:
    return PipelineRun(run_id=run_id, state=state, finished_at=datetime.fromtimestamp(at, UTC))


class Store(dict[str, Any]):
    """What Airflow 3.3 gives a watcher: the state of its asset."""

    async def aget(self, key: str) -> Any:
        return self.get(key)

    async def aset(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


def wait_until_asked(kfp: FakeKfpServer) -> None:
    """Wait until the server was asked once more what has finished, and has answered."""

    def lists() -> int:
        return len([each for each in kfp.requests if each.path.endswith("/runs") and each.method == "GET"])

    before = lists()
    wait_for(lambda: lists() > before)
    time.sleep(0.2)


async def hear(trigger: KfpRunEventTrigger, number: int, then: Any, within_s: float = 8) -> list[dict[str, Any]]:
    """Watch, let something happen, and hear so many events."""
    heard: list[dict[str, Any]] = []

    async def listen() -> None:
        async with aclosing(trigger.run()) as events:  # type: ignore[type-var]
            async for event in events:
                heard.append(event.payload)
                if len(heard) == number:
                    return

    task = asyncio.create_task(listen())
    await asyncio.sleep(0.6)
    await asyncio.to_thread(then)
    try:
        await asyncio.wait_for(task, within_s)
        await asyncio.sleep(0)
    except TimeoutError:
        pass
    return heard


def register(name: str) -> str:
    """Upload a pipeline and start a run of it."""
    with KfpHook().api() as api:
        api.upload("/apis/v2beta1/pipelines/upload", json.dumps(SPEC).encode(), f"{name}.yaml", name=name)
        pipeline = api.get(f"/apis/v2beta1/pipelines/names/{name}")["pipeline_id"]
        body = {"display_name": f"a run of {name}", "pipeline_version_reference": {"pipeline_id": pipeline}}
        return str(api.post("/apis/v2beta1/runs", body)["run_id"])


def test_a_run_that_ends_later_is_an_event_and_one_that_had_ended_is_none(kfp: FakeKfpServer) -> None:
    before, after, failed = start_run("before"), start_run("after"), start_run("failed")
    kfp.finish(before)

    def happen() -> None:
        kfp.finish(failed, state="FAILED")
        kfp.finish(after)

    (event,) = asyncio.run(hear(KfpRunEventTrigger(), 1, happen))
    assert (event["version"], event["run_id"], event["name"], event["state"]) == (1, after, "after", "SUCCEEDED")
    assert json.loads(json.dumps(event)) == event
    assert KfpPoller._all == {}


@pytest.mark.full
def test_a_pipeline_is_meant_by_its_name(kfp: FakeKfpServer) -> None:
    mine, other, inline = register("churn"), register("other"), start_run()

    def happen() -> None:
        for each in (other, inline, mine):
            kfp.finish(each)

    events = asyncio.run(hear(KfpRunEventTrigger(pipeline="churn"), 1, happen))
    assert [each["run_id"] for each in events] == [mine]


def test_what_ended_while_nobody_watched_is_told_and_nothing_twice(kfp: FakeKfpServer) -> None:
    first, second = start_run(), start_run()
    trigger, store = KfpRunEventTrigger(), Store()
    trigger.asset_state_store = store  # type: ignore[assignment]
    heard = asyncio.run(hear(trigger, 1, lambda: kfp.finish(first)))
    assert [each["run_id"] for each in heard] == [first]
    ended_at = datetime.fromisoformat(heard[0]["finished_at"]).timestamp()
    memory = _Told(
        runs={first: (ended_at, "SUCCEEDED")}
    )  # as its own write may have been lost with the triggerer, it is written here
    memory.newest = max(memory.newest, _Told.model_validate(store[STORE_KEY]).newest if STORE_KEY in store else 0.0)
    store[STORE_KEY] = memory.model_dump(mode="json")
    kfp.finish(second)
    again = KfpRunEventTrigger()
    again.asset_state_store = store  # type: ignore[assignment]
    heard = asyncio.run(hear(again, 1, lambda: None))
    assert [each["run_id"] for each in heard] == [second]


@pytest.mark.airflow("3.3")
def test_watchers_of_one_server_share_a_stream(kfp: FakeKfpServer) -> None:
    from airflow.triggers.shared_stream import SharedStreamManager

    run_id = start_run()
    before = len(kfp.requests)

    async def main() -> list[str]:
        manager = SharedStreamManager(log=__import__("structlog").get_logger())
        heard: list[str] = []

        async def watch(number: int) -> None:
            trigger = KfpRunEventTrigger(states=["SUCCEEDED"])
            key = trigger.shared_stream_key()
            stream: AsyncIterator[Any] = manager.subscribe(trigger_id=number, trigger=trigger, key=key)
            try:
                async for event in trigger.filter_shared_stream(stream):
                    heard.append(event.payload["run_id"])
                    return
            finally:
                await manager.unsubscribe(number, key)

        tasks = [asyncio.create_task(watch(number)) for number in range(3)]
        await asyncio.sleep(0.6)
        await asyncio.to_thread(kfp.finish, run_id)
        await asyncio.wait_for(asyncio.gather(*tasks), 10)
        await asyncio.sleep(0.1)
        return heard

    assert asyncio.run(main()) == [run_id] * 3
    assert len(kfp.requests) - before <= 3 + 5, "three look back, one asks"
    assert KfpPoller._all == {}


def test_what_is_stored_makes_the_same_trigger() -> None:
    path, arguments = KfpRunEventTrigger(pipeline="churn", states={"FAILED", "CANCELED"}).serialize()
    assert json.loads(json.dumps(arguments)) == arguments
    assert KfpRunEventTrigger(**arguments).serialize() == (path, arguments)
    assert arguments["states"] == ["CANCELED", "FAILED"], "the same words in another order are the same watcher"


@pytest.mark.full
def test_a_run_that_failed_and_was_repeated_tells_its_success(kfp: FakeKfpServer) -> None:
    run_id, marker = start_run(), start_run("marker")

    def happen() -> None:
        kfp.finish(run_id, state="FAILED")
        wait_until_asked(kfp)
        with KfpHook().api() as api:
            api.post(f"/apis/v2beta1/runs/{run_id}:retry")
        kfp.finish(run_id)
        kfp.finish(marker)

    events = asyncio.run(hear(KfpRunEventTrigger(), 2, happen))
    assert {(each["run_id"], each["state"]) for each in events} == {(run_id, "SUCCEEDED"), (marker, "SUCCEEDED")}


def test_what_ends_while_the_server_is_away_at_the_beginning_is_told(kfp: FakeKfpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__ML__HTTP_RETRIES", "0")
    before, run_id = start_run("before"), start_run()
    kfp.finish(before)
    time.sleep(1.1)  # finish times are whole seconds
    kfp.down()

    def happen() -> None:
        time.sleep(1.1)
        kfp.finish(run_id)
        kfp.up()

    events = asyncio.run(hear(KfpRunEventTrigger(), 1, happen, within_s=25))
    assert [each["run_id"] for each in events] == [run_id]


@pytest.mark.parametrize("name", ["churn\N{ROCKET}", "churn\ud800", "x" * 129])
def test_a_name_that_no_pipeline_can_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="the pipeline's name"):
        KfpRunEventTrigger(pipeline=name)


def test_a_state_that_never_ends_a_run_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has 'RUNNING'. The final states are SUCCEEDED, SKIPPED, FAILED, CANCELED"):
        KfpRunEventTrigger(states=["RUNNING"])


class TestMemory:
    def test_the_same_run_is_news_once(self) -> None:
        told = _Told()
        assert [each.run_id for each in told.take([finished("b", NOW + 1), finished("a", NOW)])] == ["a", "b"]
        assert told.take([finished("a", NOW), finished("b", NOW + 1)]) == []

    def test_a_run_that_was_repeated_is_news_again_and_its_first_end_is_not(self) -> None:
        told = _Told()
        assert len(told.take([finished("a", NOW, RunState.FAILED)])) == 1
        assert [each.state for each in told.take([finished("a", NOW + 60)])] == ["SUCCEEDED"]
        assert told.take([finished("a", NOW, RunState.FAILED), finished("a", NOW + 60)]) == []
        assert len(told.take([finished("b", NOW, RunState.FAILED)])) == 1
        assert len(told.take([finished("b", NOW)])) == 1, "repeated within the second"

    def test_what_an_older_release_kept_is_understood(self) -> None:
        told = _Told.model_validate({"version": 1, "newest": NOW, "floor": NOW - LATE_S, "runs": {"a": NOW}})
        assert told.take([finished("a", NOW)]) == []
        assert len(told.take([finished("a", NOW + 5)])) == 1
        assert _Told.model_validate(json.loads(told.model_dump_json())) == told

    def test_a_late_report_is_news_and_a_very_late_one_is_not(self) -> None:
        told = _Told()
        told.take([finished("a", NOW)])
        assert len(told.take([finished("late", NOW - LATE_S + 1)])) == 1
        assert told.take([finished("very late", NOW - LATE_S)]) == []

    def test_it_stays_small_and_what_it_forgets_is_no_news_later(self) -> None:
        told = _Told()
        many = [finished(str(number), NOW + number / 10) for number in range(2 * REMEMBERED)]
        assert len(told.take(many)) == len(many)
        assert len(told.runs) == REMEMBERED
        assert told.take(many) == []
        assert len(told.model_dump_json()) < 64_000
