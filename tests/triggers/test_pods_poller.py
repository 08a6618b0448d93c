"""One poller for all who wait: how often it asks, whom it tells, and that nobody hangs. In virtual time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import pytest

from airflow_ml_provider.core.pod_log import LogCursor
from airflow_ml_provider.exceptions import RemoteUnavailableError
from airflow_ml_provider.hooks.kubernetes import KubernetesAccess
from airflow_ml_provider.models.pod import ContainerStatus, PodSnapshot
from airflow_ml_provider.triggers import pod_poller
from airflow_ml_provider.triggers.pod_poller import LOOKS_PER_ROUND, PodMember, PodNews, PodPoller, log_turn
from tests.triggers.virtual_time import in_virtual_time

WAY = KubernetesAccess(conn_id="k")


class PodsInMemory:
    """What the poller asks; counts, and fails when it is told to."""

    def __init__(self, *names: str) -> None:
        self.pods = {name: running(name) for name in names}
        self.hidden: set[str] = set()
        self.past: dict[tuple[str, str], list[PodSnapshot]] = {}
        self.fails: Exception | None = None
        self.meanwhile: Callable[[], object] = lambda: None
        self.lists: list[float] = []
        self.looks: list[str] = []
        self.open = 0

    def connect(self) -> Any:
        self.open += 1
        return self

    def find(self, labels: Any, *, without: Any, fresh: bool, names: Collection[str]) -> list[PodSnapshot]:
        self.lists.append(asyncio.get_running_loop().time())
        self.meanwhile()
        if self.fails is not None:
            raise self.fails
        return [each for name, each in self.pods.items() if name in names and name not in self.hidden]

    def look(self, name: str) -> PodSnapshot | None:
        self.looks.append(name)
        return self.pods.get(name)

    def since(self, name: str, version: str) -> list[PodSnapshot]:
        return self.past.get((name, version), [])

    def read_log(self, name: str, container: str, cursor: LogCursor) -> bytes:
        return b"2030-01-01T00:00:00.5Z line\n"

    def read_lines(self, name: str, container: str, cursor: LogCursor, *, complete: bool = False) -> tuple[list[str], LogCursor]:
        return cursor.take(self.read_log(name, container, cursor), complete=complete)

    def close(self) -> None:
        self.open -= 1


def running(name: str) -> PodSnapshot:
    return PodSnapshot(name=name, namespace="n", uid=name, containers=[ContainerStatus(name="base", state="running")])


def with_poller(pods: PodsInMemory, work: Callable[[PodPoller], Coroutine[Any, Any, Any]]) -> Any:
    async def main() -> Any:
        result = await work(PodPoller.of(WAY, "n", pods.connect))
        await asyncio.sleep(200)
        return result

    result = in_virtual_time(main)
    assert PodPoller._all == {}
    return result


async def next_news(member: PodMember, within_s: float = 1000.0) -> PodNews:
    found = await member.news(within_s)
    assert found is not None
    return found


def test_a_hundred_who_wait_cost_what_one_costs() -> None:
    def lists(number: int) -> int:
        pods = PodsInMemory(*(str(each) for each in range(number)))

        async def work(poller: PodPoller) -> None:
            members = [poller.join(str(each), 2.0) for each in range(number)]
            await asyncio.sleep(60.5)
            for each in members:
                assert (await next_news(each)).pod == running(each.name)
                poller.leave(each)

        with_poller(pods, work)
        assert pods.looks == []
        assert pods.open == 0, "the client was not closed"
        return len(pods.lists)

    assert lists(1) == lists(100) <= 32


def test_one_who_comes_later_has_news_within_a_second_and_none_from_before_it_came() -> None:
    pods = PodsInMemory("a", "b")

    async def work(poller: PodPoller) -> None:
        first = poller.join("a", 60.0)
        await next_news(first)
        await asyncio.sleep(20)
        second = poller.join("b", 60.0)
        began = asyncio.get_running_loop().time()
        assert (await next_news(second)).pod == running("b")
        assert asyncio.get_running_loop().time() - began <= 1.1
        poller.leave(first)
        poller.leave(second)

    with_poller(pods, work)
    assert len(pods.lists) == 2


def test_an_answer_to_what_was_asked_before_one_came_is_no_news_to_it() -> None:
    pods = PodsInMemory("a")

    async def work(poller: PodPoller) -> None:
        late: list[PodMember] = []

        def meanwhile() -> None:
            pods.meanwhile = lambda: None
            poller.loop.selector.passed += 0.5  # type: ignore[attr-defined]  # the answer takes its time
            late.append(poller.join("a", 2.0))

        pods.meanwhile = meanwhile
        first = poller.join("a", 2.0)
        await next_news(first)
        assert len(pods.lists) == 1
        assert (await next_news(late[0])).pod == running("a")
        assert len(pods.lists) == 2
        poller.leave(first)
        poller.leave(late[0])

    with_poller(pods, work)


def test_what_a_list_lacks_is_asked_for_by_name_a_few_at_a_time() -> None:
    names = [str(each) for each in range(LOOKS_PER_ROUND + 5)]
    pods = PodsInMemory(*names)
    pods.hidden = set(names)
    del pods.pods["0"]

    async def work(poller: PodPoller) -> None:
        members = [poller.join(each, 2.0) for each in names]
        await asyncio.sleep(0.5)
        assert len(pods.looks) == LOOKS_PER_ROUND
        for each in members:
            assert (await next_news(each)).pod == pods.pods.get(each.name)
            poller.leave(each)

    with_poller(pods, work)


def test_how_a_pod_went_between_two_looks_is_told_from_where_it_was_seen_last() -> None:
    pods = PodsInMemory("a")
    pods.pods["a"] = running("a").model_copy(update={"version": "7"})
    going = running("a").model_copy(update={"deletion_grace_s": 30})

    async def work(poller: PodPoller) -> None:
        member = poller.join("a", 2.0, "3")
        assert (await next_news(member)).missed == ()
        del pods.pods["a"]
        pods.past = {("a", "3"): [running("a")], ("a", "7"): [going]}
        assert await next_news(member) == PodNews(None, missed=(going,))
        poller.leave(member)

    with_poller(pods, work)


def test_errors_are_told_slow_the_poller_down_and_are_over_when_they_are_over(caplog: pytest.LogCaptureFixture) -> None:
    pods = PodsInMemory("a")

    async def work(poller: PodPoller) -> None:
        member = poller.join("a", 2.0)
        pods.fails = RemoteUnavailableError("the API server is away")
        assert (await next_news(member)).error == "the API server is away"
        await asyncio.sleep(300)
        assert len(pods.lists) < 20
        pods.fails = None
        while (await next_news(member)).error:
            pass
        poller.leave(member)

    with caplog.at_level(logging.INFO):
        with_poller(pods, work)
    assert pods.open >= 2, "after an error the connection is read again"
    assert caplog.text.count("could not be asked for 1 pods") <= 7
    assert caplog.text.count("answers again") == 1


def test_a_poller_that_breaks_tells_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pods = PodsInMemory("a")

    async def work(poller: PodPoller) -> None:
        member = poller.join("a", 2.0)
        sound = poller._round

        async def broken() -> None:
            poller._round = sound  # type: ignore[method-assign]
            raise ZeroDivisionError

        poller._round = broken  # type: ignore[method-assign]
        assert "ZeroDivisionError" in str((await next_news(member)).error)
        assert (await next_news(member)).pod is not None
        poller.leave(member)

    with_poller(pods, work)


def test_a_request_that_neither_answers_nor_fails_is_given_up() -> None:
    pods = PodsInMemory("a")

    async def never(_: object) -> Any:
        await asyncio.get_running_loop().create_future()

    async def work(poller: PodPoller) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pod_poller, "in_thread", never)
            member = poller.join("a", 2.0)
            assert "no answer and no error for 120 s" in str((await next_news(member)).error)
        assert (await next_news(member)).pod is not None
        poller.leave(member)

    with_poller(pods, work)


def test_a_log_is_read_with_the_pollers_client_and_not_without() -> None:
    pods = PodsInMemory("a")

    async def work(poller: PodPoller) -> None:
        with pytest.raises(RemoteUnavailableError):
            await poller.read_log("a", "base", LogCursor())
        member = poller.join("a", 2.0)
        await next_news(member)
        async with log_turn():
            lines, cursor = await poller.read_log("a", "base", LogCursor())
        assert lines == ["line"]
        assert cursor.since
        poller.leave(member)

    with_poller(pods, work)


def test_no_more_than_four_logs_are_held_at_a_time() -> None:
    held = most = 0

    async def one() -> None:
        nonlocal held, most
        async with log_turn():
            held += 1
            most = max(most, held)
            await asyncio.sleep(1)
            held -= 1

    async def main() -> None:
        await asyncio.gather(*(one() for _ in range(50)))

    in_virtual_time(main)
    assert most == 4
