"""One poller for all who wait: what it asks, whom it tells, and that nobody hangs."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from airflow_ml_provider.core.polling import Pace
from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError, UnauthorizedError
from airflow_ml_provider.models.kfp import WaitOutcome
from airflow_ml_provider.triggers import kfp_poller
from airflow_ml_provider.triggers.kfp_poller import KfpPoller
from tests.triggers.virtual_time import RunsInMemory, in_virtual_time

PACE = Pace(quick_s=2.0)
Waits = Callable[..., asyncio.Task[WaitOutcome]]


def with_poller(runs: RunsInMemory, work: Callable[[KfpPoller, Waits], Coroutine[Any, Any, Any]]) -> Any:
    """Give a test a poller in virtual time; at the end nothing may be left of it."""

    async def main() -> Any:
        poller = KfpPoller.of("kfp", "", runs.connect, PACE)
        runs.clock = poller._now

        def wait(run_id: str, **options: Any) -> asyncio.Task[WaitOutcome]:
            return asyncio.create_task(KfpPoller.of("kfp").wait(run_id, **options))

        result = await work(poller, wait)
        await asyncio.sleep(2)
        return result

    result = in_virtual_time(main)
    assert runs.open == 0, "the client was not closed"
    assert KfpPoller._all == {}
    return result


async def until(moment: float) -> None:
    await asyncio.sleep(moment - asyncio.get_running_loop().time())


def test_an_end_is_told_within_one_interval() -> None:
    runs = RunsInMemory()
    runs.start("a")

    async def work(_: KfpPoller, wait: Waits) -> float:
        task = wait("a")
        await until(31.0)
        runs.end("a", "FAILED")
        told = await task
        assert (told.outcome, told.state) == ("ended", "FAILED")
        return asyncio.get_running_loop().time() - 31.0

    assert with_poller(runs, work) <= 2 * 1.2


@pytest.mark.parametrize("ahead_s", [-86_400.0, -100.0, 100.0, 86_400.0])
def test_an_engine_whose_clock_is_wrong_is_understood(ahead_s: float) -> None:
    runs = RunsInMemory(ahead_s)
    runs.start("a", "b")

    async def work(_: KfpPoller, wait: Waits) -> float:
        first, second = wait("a"), wait("b")
        await until(30.0)
        runs.end("a")
        await first
        assert asyncio.get_running_loop().time() < 30 + 62
        await until(131.0)
        runs.end("b")
        await second
        return asyncio.get_running_loop().time() - 131

    assert with_poller(runs, work) <= 131 * 0.05 * 1.2


def test_what_had_ended_long_before_is_told_by_the_first_look() -> None:
    runs = RunsInMemory()
    runs.start("a")
    runs.clock = lambda: time.time() - 90_000
    runs.end("a")

    async def work(_: KfpPoller, wait: Waits) -> float:
        await wait("a")
        return asyncio.get_running_loop().time()

    assert with_poller(runs, work) <= 5


def test_two_hundred_waiters_cost_what_two_cost() -> None:
    def requests(number: int) -> list[str]:
        runs = RunsInMemory()
        runs.start(*(str(each) for each in range(number)))

        async def work(poller: KfpPoller, wait: Waits) -> None:
            tasks = [wait(str(each)) for each in range(number)]
            await until(600.0)
            assert KfpPoller.of("kfp") is poller
            for each in range(number):
                runs.end(str(each))
            assert {told.outcome for told in await asyncio.gather(*tasks)} == {"ended"}

        with_poller(runs, work)
        assert runs.connections == 1
        return runs.asked

    few, many = requests(2), requests(200)
    assert abs(many.count("since") - few.count("since")) <= 2
    assert many.count("look") <= 2 * few.count("look") + 2
    assert len(many) <= 600


def test_runs_that_are_large_are_looked_at_by_few() -> None:
    runs = RunsInMemory()
    runs.page_size = 7
    runs.start(*(names := [f"run-{number}" for number in range(40)]))

    async def work(_: KfpPoller, wait: Waits) -> None:
        tasks = [wait(each) for each in names]
        await until(150.0)
        for each in names:
            runs.end(each)
        await asyncio.gather(*tasks)

    with_poller(runs, work)
    assert max(runs.looked) == 7
    assert sum(runs.looked) >= 80, "all of them, more than once"


def test_a_deleted_run_is_gone_after_two_looks() -> None:
    runs = RunsInMemory()
    runs.start("a")

    async def work(_: KfpPoller, wait: Waits) -> tuple[str, float]:
        task = wait("a")
        await until(30.0)
        del runs.rows["a"]
        return (await task).outcome, asyncio.get_running_loop().time()

    outcome, at = with_poller(runs, work)
    assert outcome == "gone"
    assert 40 <= at <= 90


def test_a_run_stuck_in_canceling_is_told_as_such() -> None:
    runs = RunsInMemory()
    runs.start("a")

    async def work(_: KfpPoller, wait: Waits) -> tuple[str, float]:
        task = wait("a", stuck_s=600)
        runs.end("a", "CANCELING", report=False)
        return (await task).outcome, asyncio.get_running_loop().time()

    outcome, at = with_poller(runs, work)
    assert outcome == "stuck"
    assert 600 <= at <= 670


def test_who_leaves_leaves_the_others_alone_and_the_last_one_ends_it() -> None:
    runs = RunsInMemory()
    runs.start("a", "b")

    async def work(poller: KfpPoller, wait: Waits) -> None:
        tasks = [wait("a"), wait("a"), wait("b")]
        await until(20.0)
        tasks[0].cancel()
        await until(40.0)
        assert tasks[0].cancelled()
        runs.end("a")
        assert (await tasks[1]).outcome == "ended"
        assert not tasks[2].done()
        tasks[2].cancel()
        await until(60.0)
        assert poller._task is None
        asked = len(runs.asked)
        await until(600.0)
        assert len(runs.asked) == asked

    with_poller(runs, work)


def test_a_poller_that_has_ended_can_be_used_again() -> None:
    runs = RunsInMemory()
    runs.start("a", "b")

    async def work(poller: KfpPoller, _: Waits) -> None:
        for run_id in ("a", "b"):
            task = asyncio.create_task(poller.wait(run_id))
            await asyncio.sleep(0.1)
            runs.end(run_id)
            assert (await task).outcome == "ended"

    with_poller(runs, work)


@pytest.mark.parametrize(
    "error",
    [RemoteUnavailableError("503"), UnauthorizedError("401"), ConfigError("403"), KeyError("a bug"), TypeError()],
    ids=["503", "401", "403", "bug", "empty"],
)
def test_an_outage_shorter_than_the_patience_is_borne(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    runs = RunsInMemory()
    runs.start("a")

    async def work(_: KfpPoller, wait: Waits) -> str:
        task = wait("a", patience_s=300)
        await until(30.0)
        runs.error = error
        await until(300.0)
        assert not task.done()
        runs.error = None
        runs.end("a")
        return (await task).outcome

    with caplog.at_level(logging.INFO):
        assert with_poller(runs, work) == "ended"
    assert len([each for each in caplog.records if "could not be asked" in each.message]) <= 6
    assert "answers again" in caplog.text
    assert len(runs.asked) <= 40, "it slowed down"
    assert runs.connections >= 4, "the connection is read again after an error"


def test_patience_runs_out_for_everybody_at_his_own_time() -> None:
    runs = RunsInMemory()
    runs.start("a", "b", "late")
    ends: dict[str, float] = {}

    async def work(_: KfpPoller, wait: Waits) -> None:
        tasks = {"a": wait("a", patience_s=100), "b": wait("b", patience_s=200)}
        await until(10.0)
        runs.error = UnauthorizedError("401, says Kubernetes")
        await until(60.0)
        tasks["late"] = wait("late", patience_s=100)
        for run_id, task in tasks.items():
            task.add_done_callback(lambda _, run_id=run_id: ends.setdefault(run_id, asyncio.get_running_loop().time()))
        for told in await asyncio.gather(*tasks.values()):
            assert told.outcome == "unreachable"
            assert "401, says Kubernetes" in told.message

    with_poller(runs, work)
    assert ends["a"] == pytest.approx(112, abs=3)
    assert ends["late"] == pytest.approx(160, abs=2)
    assert ends["b"] == pytest.approx(212, abs=3)


def test_a_deadline_is_kept_to_the_second_while_the_server_is_away() -> None:
    runs = RunsInMemory()
    runs.error = RemoteUnavailableError("away")

    async def work(_: KfpPoller, wait: Waits) -> float:
        told = await wait("a", deadline=time.time() + 77, patience_s=1000)
        assert told.outcome == "deadline"
        return asyncio.get_running_loop().time()

    assert with_poller(runs, work) == pytest.approx(77, abs=0.5)


def test_a_poller_that_breaks_tells_everybody(caplog: pytest.LogCaptureFixture) -> None:
    runs = RunsInMemory()
    runs.start("a", "b")

    async def work(poller: KfpPoller, wait: Waits) -> None:
        tasks = [wait("a"), wait("b")]
        await until(10.0)
        poller._deadlines.append(None)  # type: ignore[arg-type]  # what can only be a bug
        for told in await asyncio.gather(*tasks):
            assert told.outcome == "unreachable"
            assert "The poller has broken: TypeError" in told.message

    with_poller(runs, work)
    assert "has broken" in caplog.text


def test_a_feed_hears_of_runs_that_nobody_waits_for() -> None:
    runs = RunsInMemory()

    async def work(poller: KfpPoller, _: Waits) -> list[str]:
        heard: list[str] = []

        async def listen() -> None:
            async for found in poller.finished():
                heard.extend(each.run_id for each in found)

        task = asyncio.create_task(listen())
        await until(30.0)
        runs.end("of somebody", "FAILED")
        await until(40.0)
        task.cancel()
        await until(50.0)
        return heard

    assert set(with_poller(runs, work)) == {"of somebody"}


class TestOnThreads:
    def test_nothing_blocks_the_event_loop(self) -> None:
        runs = RunsInMemory()
        runs.start("a")
        runs.gate = threading.Event()

        async def main() -> tuple[str, int]:
            task = asyncio.create_task(KfpPoller.of("kfp", "", runs.connect, Pace(quick_s=0.05, gap_s=0.05)).wait("a"))
            ticks = 0
            while not task.done():
                await asyncio.sleep(0.01)
                ticks += 1
                if ticks == 20:
                    runs.clock = time.time
                    runs.end("a")
                    assert runs.gate is not None
                    runs.gate.set()
            return task.result().outcome, ticks

        with blockbuster_ctx():
            outcome, ticks = asyncio.run(main())
        assert outcome == "ended"
        assert ticks >= 20

    def test_an_answer_to_a_question_asked_before_is_no_news(self) -> None:
        runs = RunsInMemory()
        runs.clock = time.time
        runs.end("a", "FAILED")
        runs.gate = threading.Event()

        async def main() -> list[str]:
            poller = KfpPoller.of("kfp", "", runs.connect, Pace(quick_s=0.02, gap_s=0.02, sweep_s=0.5))
            first = asyncio.create_task(poller.wait("a"))
            while not runs.asked:  # noqa: ASYNC110  (a thread fills it)
                await asyncio.sleep(0.01)
            second = asyncio.create_task(poller.wait("a"))  # the run was retried on the server in the meantime
            await asyncio.sleep(0.05)
            runs.start("a")
            assert runs.gate is not None
            runs.gate.set()
            await asyncio.sleep(0.3)
            assert not second.done()
            runs.end("a", "SUCCEEDED")
            return [str((await first).state), str((await second).state)]

        assert asyncio.run(main())[1] == "SUCCEEDED"

    def test_a_request_that_never_ends_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kfp_poller, "HANG_S", 0.2)
        runs = RunsInMemory()
        runs.start("a")
        runs.gate = threading.Event()

        async def main() -> WaitOutcome:
            poller = KfpPoller.of("kfp", "", runs.connect, Pace(quick_s=0.05, gap_s=0.05))
            task = asyncio.create_task(poller.wait("a", patience_s=0.3))
            told = await task
            assert runs.gate is not None
            runs.gate.set()
            return told

        told = asyncio.run(main())
        assert told.outcome == "unreachable"
        assert "no answer and no error" in told.message
