"""What a watcher remembers as told: nothing that Airflow has not in its database, and nothing is forgotten without a word."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
from airflow.triggers.shared_stream import AdvanceItem, AdvanceOutcome, SharedStreamManager

from airflow_ml_provider.core.watch_memory import AliasMemory
from airflow_ml_provider.triggers import mlflow_events, mlflow_memory
from airflow_ml_provider.triggers.mlflow_memory import WatcherMemory
from airflow_ml_provider.triggers.mlflow_poller import Interest, MlflowPoller
from airflow_ml_provider.triggers.mlflow_stream import PollProducer
from tests.mlflow_proxy import MlflowProxy
from tests.triggers.test_mlflow_events import SEARCH, Registry, Store, alias_trigger, proxy, registry, version_trigger

__all__ = ["proxy", "registry"]

LIMIT_S = 20.0


class Triggerer:
    """
    What Airflow's triggerer does with watchers, but for its database: the test says when an event is in it.

    :param proxy: The server; what it is asked tells that a poll is over.
    :param triggers: The watchers.
    """

    def __init__(self, proxy: MlflowProxy, *triggers: Any) -> None:
        self.proxy = proxy
        self.triggers = triggers
        self.heard: list[dict[str, Any]] = []
        self.manager = SharedStreamManager(log=structlog.get_logger(), ack_timeout=LIMIT_S)
        self._seqs: list[int] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        self.tasks = [asyncio.create_task(self._run(number, each)) for number, each in enumerate(self.triggers)]
        try:
            yield
        finally:  # as a kill: nobody is asked
            for each in self.tasks:
                each.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _run(self, number: int, trigger: Any) -> None:
        key = trigger.shared_stream_key()
        stream = self.manager.subscribe(trigger_id=number, trigger=trigger, key=key)
        try:
            async for event in trigger.filter_shared_stream(stream):
                seq = self.manager.bind_pending_event(trigger_id=number, key=key)
                assert seq is not None, "Airflow says nothing of this event"
                self._seqs.append(seq)
                self.heard.append(event.payload)
        finally:
            await self.manager.unsubscribe(number, key)

    def note(self) -> None:
        """Have all events in Airflow's database."""
        self.manager.confirm_persisted(self._seqs)
        self._seqs = []

    async def until(self, done: Callable[[], object]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not done():
                assert not [each for each in self.tasks if each.done()], [each.exception() for each in self.tasks]
                await asyncio.sleep(0.05)

    async def polls(self, number: int = 2) -> None:
        before = self.proxy.count(SEARCH)
        await self.until(lambda: self.proxy.count(SEARCH) >= before + number)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again after a moment."""
    monkeypatch.setattr(mlflow_memory, "RECALL_PAUSES_S", (0.1,))
    monkeypatch.setattr(mlflow_events, "RETRY_S", 0.1)


class TestAnEvent:
    def test_is_remembered_when_airflow_has_it_and_not_before(self, registry: Registry, proxy: MlflowProxy, unique: str) -> None:
        name, store = registry.make(unique), Store()

        async def main() -> None:
            triggerer = Triggerer(proxy, alias_trigger(name, store=store), alias_trigger(name, alias="other"))
            async with triggerer.running():
                await triggerer.until(lambda: store)
                registry.move(name, "2")
                await triggerer.until(lambda: triggerer.heard)
                await triggerer.polls(3)
                assert _version(store) == "1", "not in Airflow's database yet"
                triggerer.note()
                await triggerer.until(lambda: _version(store) == "2")
            assert len(triggerer.heard) == 1

        asyncio.run(main())

    def test_that_airflow_has_not_got_is_told_again_by_the_same_id(
        self, registry: Registry, proxy: MlflowProxy, unique: str
    ) -> None:
        name, store, versions = registry.make(unique), Store(), Store()

        async def main() -> list[str]:
            triggerer = Triggerer(proxy, alias_trigger(name, store=store), version_trigger(name, versions))
            async with triggerer.running():
                await triggerer.until(lambda: store and versions)
                if not told:
                    registry.move(name, "2")
                    registry.add(name)
                await triggerer.until(lambda: len(triggerer.heard) == 2)
                if told:
                    triggerer.note()
                    await triggerer.until(lambda: _version(store) == "2" and "3" in next(iter(versions.values()))["told"])
            return sorted(each["change_id"] for each in triggerer.heard)

        told: list[str] = []
        told = asyncio.run(main())
        assert asyncio.run(main()) == told

        async def nothing() -> None:
            triggerer = Triggerer(proxy, alias_trigger(name, store=store), version_trigger(name, versions))
            async with triggerer.running():
                await triggerer.polls(4)
            assert triggerer.heard == []

        asyncio.run(nothing())

    def test_waits_for_the_one_before_it(self, registry: Registry, proxy: MlflowProxy, unique: str) -> None:
        name, store = registry.make(unique, versions=3), Store()

        async def main() -> None:
            triggerer = Triggerer(proxy, alias_trigger(name, store=store))
            async with triggerer.running():
                await triggerer.until(lambda: store)
                registry.move(name, "2")
                await triggerer.until(lambda: triggerer.heard)
                registry.move(name, "3")
                await triggerer.polls(4)
                assert len(triggerer.heard) == 1, "of two that are not in the database, the first would be lost by a kill"
                triggerer.note()
                await triggerer.until(lambda: len(triggerer.heard) == 2)
            assert [each["version"] for each in triggerer.heard] == ["2", "3"]
            assert _version(store) == "2"

        asyncio.run(main())

    @pytest.mark.usefixtures("proxy")
    @pytest.mark.parametrize("by", ["the stream's end", "a watcher that has failed"])
    def test_without_airflows_word_is_not_remembered_and_keeps_nobody_waiting(
        self, registry: Registry, unique: str, caplog: pytest.LogCaptureFixture, by: str
    ) -> None:
        name, store = registry.make(unique), Store()

        async def main() -> None:
            producer, poller = PollProducer("mlflow_default"), MlflowPoller.of("mlflow_default")
            async with WatcherMemory(store, "key", "this watcher") as kept:
                with poller.watching(Interest(name, None, 1.0)):
                    stream = producer.open_stream()
                    poll, _ = await anext(stream)
                    await kept.write(AliasMemory(version="2"), poll.noted)
                    if by == "the stream's end":
                        await producer.aclose()
                    else:
                        await producer.advance([AdvanceItem(poll, AdvanceOutcome(acked=1, failed=1))])
                    async with asyncio.timeout(LIMIT_S):
                        await kept.written()
                await stream.aclose()  # type: ignore[attr-defined]  # a generator

        with caplog.at_level(logging.WARNING):
            asyncio.run(main())
        assert store == {}
        assert "this watcher: Airflow has not confirmed an event" in caplog.text


class TestAStoreThatCannotBeRead:
    class Broken(Store):
        failing = 3

        async def aget(self, key: str) -> Any:
            if self.failing:
                self.failing -= 1
                raise RuntimeError("no database")
            return await super().aget(key)

    @pytest.mark.usefixtures("quick")
    def test_is_waited_for_and_no_change_is_lost(
        self, registry: Registry, proxy: MlflowProxy, unique: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        name, store = registry.make(unique), self.Broken()
        store.failing = 0

        async def main(events: int) -> None:
            triggerer = Triggerer(proxy, alias_trigger(name, store=store))
            async with triggerer.running():
                await triggerer.until(lambda: store and len(triggerer.heard) == events)

        asyncio.run(main(0))
        registry.move(name, "2")
        store.failing = 3
        with caplog.at_level(logging.WARNING):
            asyncio.run(main(1))
        said = [each.getMessage() for each in caplog.records if "cannot be read" in each.getMessage()]
        assert len(said) == 3
        assert f"model {name!r}" in said[0]

    @pytest.mark.usefixtures("quick")
    def test_for_too_long_makes_it_begin_anew_and_say_what_is_lost(
        self,
        registry: Registry,
        proxy: MlflowProxy,
        unique: str,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(mlflow_memory, "RECALL_S", 0.3)
        name, store = registry.make(unique), self.Broken()

        async def main() -> None:
            triggerer = Triggerer(proxy, alias_trigger(name, store=store))
            async with triggerer.running():
                await triggerer.until(lambda: store)

        with caplog.at_level(logging.ERROR):
            asyncio.run(main())
        assert "WHAT HAS CHANGED SINCE IT WAS WATCHED LAST IS NOT TOLD" in caplog.text

    @pytest.mark.usefixtures("quick")
    def test_because_another_release_wrote_it_is_said(
        self, registry: Registry, proxy: MlflowProxy, unique: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        name, store = registry.make(unique), Store()

        async def main() -> None:
            triggerer = Triggerer(proxy, alias_trigger(name, store=store))
            async with triggerer.running():
                await triggerer.until(lambda: store and isinstance(next(iter(store.values()))["moves"], int))

        asyncio.run(main())
        (key,) = store
        store[key] = {"version": {"of": "tomorrow"}, "moves": "x"}
        with caplog.at_level(logging.ERROR):
            asyncio.run(main())
        assert "not of this release" in caplog.text


@pytest.mark.usefixtures("quick")
def test_a_state_whose_version_cannot_be_read_is_told_later_though_the_alias_has_moved_on(
    registry: Registry, proxy: MlflowProxy, unique: str
) -> None:
    name, real, busy = registry.make(unique, versions=3), proxy.answer, [True]

    def no_versions(method: str, target: str, body: bytes) -> tuple[int, bytes]:
        return (503, b"busy") if "model-versions/get" in target and busy else real(method, target, body)

    proxy.answer = no_versions  # type: ignore[method-assign]

    async def main() -> list[tuple[str, str, str]]:
        triggerer = Triggerer(proxy, alias_trigger(name, store=(store := Store())))
        async with triggerer.running():
            await triggerer.until(lambda: store)
            for version in "23":
                registry.move(name, version)
                await triggerer.polls(8)
            assert triggerer.heard == []
            assert _version(store) == "1"
            busy.clear()
            await triggerer.until(lambda: len(triggerer.heard) == 2)
            triggerer.note()
            await triggerer.until(lambda: _version(store) == "3")
        return [(each["previous_version"], each["version"], each["source"]) for each in triggerer.heard]

    assert asyncio.run(main()) == [("1", "2", "s3://b/k"), ("2", "3", "s3://b/k")]


def _version(store: Store) -> str:
    (kept,) = store.values()
    return str(kept["version"])
