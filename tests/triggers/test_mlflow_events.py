"""Moves of aliases and new versions as events, on a real MLflow: each once, whatever the server and the triggerer do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.triggers import mlflow_events, mlflow_poller
from airflow_ml_provider.triggers.mlflow import MlflowModelAliasTrigger, MlflowModelVersionTrigger
from airflow_ml_provider.triggers.mlflow_line import MlflowLine
from airflow_ml_provider.triggers.mlflow_poller import MlflowPoller
from tests.mlflow_proxy import MlflowProxy
from tests.servers import connection

LIMIT_S, QUICK_S = 25.0, 0.2
SEARCH, VERSIONS = "registered-models/search", "model-versions/search"


class Registry:
    """What people do in MLflow."""

    def __init__(self, api: MlflowApi) -> None:
        self.api = api

    def make(self, name: str, versions: int = 2, alias: str = "champion") -> str:
        self.api.post("registered-models/create", {"name": name})
        for _ in range(versions):
            self.add(name)
        if versions and alias:
            self.move(name, "1", alias)
        return name

    def add(self, name: str, **tags: str) -> str:
        body = {"name": name, "source": "s3://b/k", "tags": [{"key": key, "value": each} for key, each in tags.items()]}
        return str(self.api.post("model-versions/create", body)["model_version"]["version"])

    def move(self, name: str, version: str, alias: str = "champion") -> None:
        self.api.post("registered-models/alias", {"name": name, "alias": alias, "version": version})

    def take_away(self, name: str, alias: str = "champion") -> None:
        self.api.delete("registered-models/alias", {"name": name, "alias": alias})

    def tag(self, name: str, version: str, key: str, value: str) -> None:
        self.api.post("model-versions/set-tag", {"name": name, "version": version, "key": key, "value": value})

    def delete(self, name: str) -> None:
        self.api.delete("registered-models/delete", {"name": name})


class Store(dict[str, Any]):
    """What Airflow 3.3 gives a watcher: the state of its asset."""

    async def aget(self, key: str) -> Any:
        return self.get(key)

    async def aset(self, key: str, value: Any) -> None:
        self[key] = json.loads(json.dumps(value))


class Watcher:
    """
    A trigger that is listened to.

    :param trigger: The trigger.
    :param proxy: The server; what it is asked tells that a poll is over.
    :param what: Which of its questions the trigger asks.
    """

    def __init__(self, trigger: Any, proxy: MlflowProxy, what: str = SEARCH) -> None:
        self.trigger, self.proxy, self.what = trigger, proxy, what
        self.heard: list[dict[str, Any]] = []

    async def __aenter__(self) -> Watcher:
        self.task = asyncio.create_task(self._listen())
        await self.polls()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def _listen(self) -> None:
        async with aclosing(self.trigger.run()) as events:
            async for event in events:
                self.heard.append(event.payload)

    async def polls(self, number: int = 2) -> None:
        """Wait until so many polls have begun since now; so the one before the last is over."""
        before = self.proxy.count(self.what)
        await self.until(lambda: self.proxy.count(self.what) >= before + number)

    async def hears(self, number: int) -> list[dict[str, Any]]:
        """Wait for so many events, and for another poll that tells nothing more."""
        await self.until(lambda: len(self.heard) >= number)
        await self.polls(3)
        return self.heard

    async def until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not done():
                assert not self.task.done(), self.task.exception()
                await asyncio.sleep(0.05)


@pytest.fixture
def proxy(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowProxy]:
    with MlflowProxy(mlflow_server.url) as proxy:
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(replace(mlflow_server, url=proxy.url)))
        monkeypatch.setattr(mlflow_events, "SHORTEST_S", QUICK_S)
        monkeypatch.setattr(mlflow_poller, "GATHER_S", QUICK_S)
        yield proxy
    assert MlflowPoller._all == {}
    assert MlflowLine._all == {}


@pytest.fixture
def registry(mlflow_api: MlflowApi) -> Registry:
    return Registry(mlflow_api)


def alias_trigger(model: str, **given: Any) -> MlflowModelAliasTrigger:
    store = given.pop("store", None)
    trigger = MlflowModelAliasTrigger(**{"model": model, "alias": "champion", "poll_interval_s": QUICK_S} | given)
    trigger.asset_state_store = store
    return trigger


def version_trigger(model: str, store: Any = None, **tags: str) -> MlflowModelVersionTrigger:
    trigger = MlflowModelVersionTrigger(model=model, tags=tags, poll_interval_s=QUICK_S)
    trigger.asset_state_store = store
    return trigger


class TestAnAlias:
    def test_that_moves_is_an_event_and_where_it_stood_before_is_none(self, registry, proxy, unique):
        name = registry.make(unique)
        registry.tag(name, "2", "stage", "it's ready \N{ROCKET}")

        async def main() -> list[dict[str, Any]]:
            async with Watcher(alias_trigger(name), proxy) as watcher:
                registry.move(name, "2")
                return await watcher.hears(1)

        (event,) = asyncio.run(main())
        assert len(event.pop("change_id")) == 32
        assert event == {
            "schema": 1,
            "model": name,
            "alias": "champion",
            "version": "2",
            "previous_version": "1",
            "run_id": "",
            "source": "s3://b/k",
            "tags": {"stage": "it's ready \N{ROCKET}"},
        }
        assert json.loads(json.dumps(event)) == event

    def test_that_moves_there_and_back_over_polls_is_an_event_each_with_ids_of_their_own(self, registry, proxy, unique):
        name = registry.make(unique)

        async def main() -> list[dict[str, Any]]:
            async with Watcher(alias_trigger(name), proxy) as watcher:
                for number, version in enumerate("212"):
                    registry.move(name, version)
                    await watcher.hears(number + 1)
                return watcher.heard

        events = asyncio.run(main())
        assert [(each["previous_version"], each["version"]) for each in events] == [("1", "2"), ("2", "1"), ("1", "2")]
        assert len({each["change_id"] for each in events}) == 3

    @pytest.mark.parametrize(("removals", "told"), [(False, ["2"]), (True, ["", "2"])])
    def test_that_is_taken_away_is_told_only_to_who_asked_for_it(self, registry, proxy, unique, removals, told):
        name = registry.make(unique)

        async def main() -> list[str]:
            async with Watcher(alias_trigger(name, removals=removals), proxy) as watcher:
                registry.take_away(name)
                await watcher.polls(3)
                registry.move(name, "2")
                return [each["version"] for each in await watcher.hears(len(told))]

        assert asyncio.run(main()) == told

    def test_of_a_model_that_is_made_later_is_an_event(self, registry, proxy, unique):
        async def main() -> list[dict[str, Any]]:
            async with Watcher(alias_trigger(unique), proxy) as watcher:
                registry.make(unique)
                return await watcher.hears(1)

        (event,) = asyncio.run(main())
        assert (event["version"], event["previous_version"]) == ("1", "")

    def test_of_a_model_that_was_deleted_and_made_again_while_nobody_watched_is_an_event(self, registry, proxy, unique):
        registry.make(unique)
        store = Store()

        async def watch(events: int) -> list[dict[str, Any]]:
            async with Watcher(alias_trigger(unique, store=store), proxy) as watcher:
                return await watcher.hears(events)

        assert asyncio.run(watch(0)) == []
        registry.delete(unique)
        registry.make(unique)
        (event,) = asyncio.run(watch(1))
        assert (event["version"], event["previous_version"]) == ("1", "")

    def test_that_moved_while_no_triggerer_ran_is_told_by_the_next_one_and_once(self, registry, proxy, unique):
        name, store = registry.make(unique), Store()

        async def watch(events: int) -> list[dict[str, Any]]:
            async with Watcher(alias_trigger(name, store=store), proxy) as watcher:
                return list(await watcher.hears(events))

        assert asyncio.run(watch(0)) == []
        registry.move(name, "2")
        (event,) = asyncio.run(watch(1))
        assert (event["version"], event["previous_version"]) == ("2", "1")
        assert asyncio.run(watch(0)) == []
        (kept,) = store.values()
        assert (kept["version"], kept["moves"]) == ("2", 1)

    def test_that_is_told_before_a_crash_is_told_again_by_the_same_id(self, registry, proxy, unique):
        name, store = registry.make(unique), Store()

        async def watch() -> list[dict[str, Any]]:
            async with Watcher(alias_trigger(name, store=store), proxy) as watcher:
                registry.move(name, "2")
                return await watcher.hears(1)

        async def begin() -> None:
            async with Watcher(alias_trigger(name, store=store), proxy) as watcher:
                await watcher.hears(0)

        asyncio.run(begin())
        before = dict(store)
        (first,) = asyncio.run(watch())
        store.update(before)  # as if the triggerer had been killed before it wrote
        (second,) = asyncio.run(watch())
        assert first == second

    def test_that_moves_while_the_server_is_away_is_told_when_it_is_back(self, registry, proxy, unique, monkeypatch):
        name = registry.make(unique)

        async def main(status: int) -> list[str]:
            async with Watcher(alias_trigger(name), proxy) as watcher:
                proxy.away = status
                await watcher.polls(1)
                registry.move(name, "2" if status == 503 else "1")
                await watcher.polls(1)
                assert watcher.heard == []
                proxy.away = None
                return [each["version"] for each in await watcher.hears(1)]

        assert asyncio.run(main(503)) == ["2"]
        assert asyncio.run(main(401)) == ["1"], "a login that is refused may be mended"

    def test_whose_version_cannot_be_read_now_is_told_with_its_run_later(self, registry, proxy, unique, monkeypatch):
        name = registry.make(unique)
        monkeypatch.setattr(mlflow_events, "RETRY_S", 0.2)
        real = proxy.answer

        def no_versions(method: str, target: str, body: bytes) -> tuple[int, bytes]:
            if "model-versions/get" in target and proxy.count("model-versions/get") < 2:
                proxy.asked.append(("model-versions/get", {}))
                return 503, b"busy"
            return real(method, target, body)

        proxy.answer = no_versions

        async def main() -> list[dict[str, Any]]:
            async with Watcher(alias_trigger(name), proxy) as watcher:
                registry.move(name, "2")
                return await watcher.hears(1)

        (event,) = asyncio.run(main())
        assert event["source"] == "s3://b/k"
        assert proxy.count("model-versions/get") == 3

    def test_of_two_assets_with_one_watcher_is_remembered_for_both(self, registry, proxy, unique):
        from types import SimpleNamespace

        name, one, two = registry.make(unique), Store(), Store()
        both = SimpleNamespace(_by_name={"one": one, "two": two}, _by_uri={})

        async def main() -> None:
            async with Watcher(alias_trigger(name, store=both), proxy) as watcher:
                await watcher.hears(0)

        asyncio.run(main())
        assert one == two
        assert len(one) == 1


class TestAVersion:
    def test_that_is_registered_is_an_event_and_those_that_were_there_are_none(self, registry, proxy, unique):
        name = registry.make(unique)

        async def main() -> list[dict[str, Any]]:
            async with Watcher(version_trigger(name), proxy, VERSIONS) as watcher:
                registry.add(name, stage="ready")
                registry.add(name)
                return await watcher.hears(2)

        events = asyncio.run(main())
        assert [(each["version"], each["tags"]) for each in events] == [("3", {"stage": "ready"}), ("4", {})]
        assert set(events[0]) == {"schema", "change_id", "model", "version", "run_id", "source", "tags"}

    def test_that_gets_its_tag_late_is_an_event_once(self, registry, proxy, unique):
        name = registry.make(unique)
        value = "it's; DROP TABLE model_versions --"
        registry.tag(name, "1", "stage", value)

        async def main() -> list[str]:
            async with Watcher(version_trigger(name, stage=value), proxy, VERSIONS) as watcher:
                registry.add(name, stage="other")
                registry.tag(name, "2", "stage", value)
                await watcher.hears(1)
                registry.tag(name, "2", "stage", "other")
                await watcher.polls(3)
                registry.tag(name, "2", "stage", value)
                return [each["version"] for each in await watcher.hears(1)]

        assert asyncio.run(main()) == ["2"]

    def test_that_came_while_no_triggerer_ran_is_told_by_the_next_one_and_once(self, registry, proxy, unique):
        name, store = registry.make(unique), Store()

        async def watch(events: int) -> list[str]:
            async with Watcher(version_trigger(name, store), proxy, VERSIONS) as watcher:
                return [each["version"] for each in await watcher.hears(events)]

        assert asyncio.run(watch(0)) == []
        registry.add(name)
        assert asyncio.run(watch(1)) == ["3"]
        assert asyncio.run(watch(0)) == []

    def test_of_a_model_that_was_deleted_and_made_again_is_an_event(self, registry, proxy, unique):
        registry.make(unique, versions=1)

        async def main() -> list[str]:
            async with Watcher(version_trigger(unique), proxy, VERSIONS) as watcher:
                registry.delete(unique)
                registry.make(unique, versions=1)
                return [each["version"] for each in await watcher.hears(1)]

        assert asyncio.run(main()) == ["1"]

    def test_older_than_a_page_is_seen_in_its_turn(self, registry, proxy, unique):
        name = registry.make(unique, versions=5)
        proxy.rows = 1

        async def main() -> list[str]:
            async with Watcher(version_trigger(name, stage="ready"), proxy, VERSIONS) as watcher:
                for version in "54321":
                    registry.tag(name, version, "stage", "ready")
                return [each["version"] for each in await watcher.hears(5)]

        assert sorted(asyncio.run(main())) == list("12345")


class TestTogether:
    @pytest.mark.airflow("3.3")
    def test_watchers_of_one_server_share_a_stream_and_few_requests(self, registry, proxy, unique):
        from airflow.triggers.shared_stream import SharedStreamManager

        names = [registry.make(f"{unique}-{number}") for number in range(5)]

        async def main() -> list[str]:
            manager = SharedStreamManager(log=__import__("structlog").get_logger())
            heard: list[str] = []

            async def watch(number: int, trigger: Any) -> None:
                key = trigger.shared_stream_key()
                stream: AsyncIterator[Any] = manager.subscribe(trigger_id=number, trigger=trigger, key=key)
                try:
                    async for event in trigger.filter_shared_stream(stream):
                        heard.append(f"{type(trigger).__name__[11:]} {event.payload['model'][-1]} {event.payload['version']}")
                        return
                finally:
                    await manager.unsubscribe(number, key)

            triggers = [*map(alias_trigger, names), *map(version_trigger, names)]
            tasks = [asyncio.create_task(watch(number, each)) for number, each in enumerate(triggers)]
            async with asyncio.timeout(LIMIT_S):
                while proxy.count(VERSIONS) < 2:  # noqa: ASYNC110  (the proxy has threads of its own)
                    await asyncio.sleep(0.05)
                for each in names:
                    registry.move(each, "2")
                    registry.add(each)
                await asyncio.gather(*tasks)
            await asyncio.sleep(0.1)
            return sorted(heard)

        told = asyncio.run(main())
        assert told == [
            *(f"AliasTrigger {number} 2" for number in range(5)),
            *(f"VersionTrigger {number} 3" for number in range(5)),
        ]
        assert proxy.count(SEARCH) - proxy.count(VERSIONS) in {0, 1}, "one of each a poll"
        assert proxy.count("model-versions/get") == 5, "one more for each move"
        registry_calls = [path for path, _ in proxy.asked if "/registered-models/" in path or "/model-versions/" in path]
        assert len(registry_calls) == proxy.count(SEARCH) + proxy.count(VERSIONS) + 5

    @pytest.mark.full
    def test_a_registry_of_many_pages_is_read_whole(self, registry, proxy, unique):
        names = [registry.make(f"{unique}-{number}") for number in range(4)]
        proxy.takes_lists, proxy.rows = False, 2  # as an older server

        async def main() -> list[str]:
            triggers = [alias_trigger(each) for each in names]
            watchers = [Watcher(each, proxy) for each in triggers]
            async with watchers[0], watchers[1], watchers[2], watchers[3]:
                await watchers[0].until(lambda: proxy.count(SEARCH) > 20)
                for each in names:
                    registry.move(each, "2")
                await watchers[0].until(lambda: all(each.heard for each in watchers))
                return [each["model"] for watcher in watchers for each in watcher.heard]

        assert asyncio.run(main()) == names

    @pytest.mark.full
    def test_a_model_that_slips_through_the_pages_has_not_lost_its_alias(self, registry, proxy, unique):
        names = [registry.make(f"{unique}-{number}") for number in range(3)]
        proxy.takes_lists, proxy.rows = False, 2
        real, cut = proxy.answer, []

        def slipping(method: str, target: str, body: bytes) -> tuple[int, bytes]:
            status, content = real(method, target, body)
            if "filter=" not in target and SEARCH in target and unique.encode() in content and cut:
                answer = json.loads(content)
                answer["registered_models"] = [each for each in answer["registered_models"] if each["name"] not in cut]
                content = json.dumps(answer).encode()
            return status, content

        proxy.answer = slipping

        async def main() -> list[dict[str, Any]]:
            trigger, other = alias_trigger(names[1], removals=True), Watcher(alias_trigger(names[2]), proxy)
            async with Watcher(trigger, proxy) as watcher, other:
                await watcher.until(lambda: proxy.count(SEARCH) > 12)
                cut.append(names[1])
                before = len(proxy.asked)
                await watcher.until(lambda: any("filter" in query for _, query in proxy.asked[before:]))
                await watcher.polls(6)
                return watcher.heard

        assert asyncio.run(main()) == []


class TestArguments:
    def test_are_plain_and_make_the_same_trigger(self):
        for trigger in (
            MlflowModelAliasTrigger(model="Modell \N{ROCKET}", alias="champion", removals=True, poll_interval_s=5),
            MlflowModelVersionTrigger(model="m", tags={"b": "1", "a": "é"}, mlflow_conn_id="other"),
        ):
            path, arguments = trigger.serialize()
            assert path == f"airflow_ml_provider.triggers.mlflow_events.{type(trigger).__name__}"
            assert json.loads(json.dumps(arguments)) == arguments
            assert type(trigger)(**arguments).serialize() == (path, arguments)
        assert arguments["tags"] == {"a": "é", "b": "1"}

    @pytest.mark.parametrize(
        "given",
        [
            {"model": "a/b"},
            {"model": "x' OR name LIKE '%"},
            {"model": "x" * 10_000},
            {"alias": "v2"},
            {"alias": "../x"},
            {"poll_interval_s": 0},
            {"poll_interval_s": float("nan")},
            {"poll_interval_s": 1e9},
        ],
    )
    def test_that_cannot_be_are_refused_when_the_file_is_read(self, given: dict[str, Any]):
        with pytest.raises(ConfigError) as refused:
            MlflowModelAliasTrigger(**{"model": "m", "alias": "champion"} | given)
        assert len(str(refused.value)) < 500

    def test_hold_no_tag_that_cannot_be_searched_for(self):
        with pytest.raises(ConfigError, match="cannot be written in MLflow's search"):
            MlflowModelVersionTrigger(model="m", tags={"a`b": "x"})
