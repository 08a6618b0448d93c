"""What changes in MLflow's model registry, as events of an asset: "the champion has moved" starts a DAG."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Hashable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_ml_provider.core.watch import check_watched, read_tags, version_value
from airflow_ml_provider.core.watch_memory import AliasMemory, AliasMove, VersionMemory
from airflow_ml_provider.exceptions import AirflowMLError, ConfigError, RemoteUnavailableError
from airflow_ml_provider.models.watch import SeenVersion, Tags
from airflow_ml_provider.triggers.mlflow_line import MlflowLine
from airflow_ml_provider.triggers.mlflow_memory import WatcherMemory
from airflow_ml_provider.triggers.mlflow_poller import Interest, MlflowPoller, Poll

if TYPE_CHECKING:
    from airflow_ml_provider.triggers.mlflow_stream import PollProducer

log = logging.getLogger(__name__)

SHORTEST_S, LONGEST_S = 1.0, 86_400.0
RETRIES, RETRY_S = 2, 10.0
"""How often a version is asked for again at once; after that, with the next poll."""
SCHEMA = 1
"""Version of the payloads' form."""


class _RegistryEventTrigger(BaseEventTrigger):
    """
    What both triggers have in common: one stream for all watchers of a server, and a memory in the asset's state store.

    A restart of the triggerer tells what has changed meanwhile, and nothing twice but an event of its last 2 s, from Airflow 3.3
    on; before, the watching begins anew.
    """

    def __init__(self, *, model: str, mlflow_conn_id: str, poll_interval_s: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        check_watched(model)
        if not SHORTEST_S <= poll_interval_s <= LONGEST_S:
            raise ConfigError(
                f"{type(self).__name__}: poll_interval_s={poll_interval_s!r} must be from {SHORTEST_S:.0f} to {LONGEST_S:.0f} s."
            )
        self.model = model
        self.mlflow_conn_id = mlflow_conn_id
        self.poll_interval_s = float(poll_interval_s)

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """
        Watch, before Airflow 3.3; the poller is shared there too, and nothing is remembered over a restart.

        :return: Events without end.
        """
        async for event in self.filter_shared_stream(_unconfirmed(self.mlflow_conn_id)):
            yield event

    def shared_stream_key(self) -> Hashable:
        """
        Name the stream that all watchers of a server share.

        :return: The key.
        """
        return ("airflow-ml-mlflow-registry", self.mlflow_conn_id)

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> PollProducer:
        """
        Make what gives that stream, and hears which events Airflow has in its database.

        :param kwargs: Arguments of one of the watchers.
        :return: The producer.
        """
        from airflow_ml_provider.triggers.mlflow_stream import PollProducer

        return PollProducer(kwargs["mlflow_conn_id"])

    def _watched(self, tags: Tags | None) -> Interest:
        return Interest(self.model, tags, self.poll_interval_s)

    def _memory(self, *parts: object) -> WatcherMemory:
        """Find what this watcher has told, in the stores that Airflow 3.3 gives it."""
        digest = hashlib.sha256(repr((self.mlflow_conn_id, self.model, *parts)).encode()).hexdigest()[:16]
        what = f"{type(self).__name__} of model {self.model!r}"
        return WatcherMemory(getattr(self, "asset_state_store", None), f"mlflow-{digest}", what)


class MlflowModelAliasTrigger(_RegistryEventTrigger):
    """
    Fires when an alias of a registered model stands for another version than at the poll before.

    ``AssetWatcher(name="champion", trigger=MlflowModelAliasTrigger(model="churn", alias="champion"))``. Where it stands when the
    watching begins is no event. Every state that a poll sees is told once; an alias that moves there and back between two polls
    has not moved. A model that was deleted and made again is news, whatever its version. While the server is away it is waited
    for. From Airflow 3.3 on, what was told is kept in the asset's state store, and what moved while no triggerer ran is told when
    one runs. It is kept once Airflow has the event in its database, some 2 s later: a triggerer that is killed in between tells
    that event again, with the same ``change_id``.

    The payload is ``{"schema", "change_id", "model", "alias", "version", "previous_version", "run_id", "source", "tags"}``, texts
    but for the number ``schema`` and the dictionary ``tags``; ``previous_version`` is empty where there was none.

    :param model: Name of the registered model; one that does not exist yet is waited for.
    :param alias: The alias.
    :param removals: Whether an alias that is taken away is an event too, with an empty ``version``.
    :param mlflow_conn_id: Connection of the server.
    :param poll_interval_s: Seconds between two polls, 1 to 86,400; of all watchers of a server the shortest counts.
    :raises ConfigError: no model or alias can have that name, or the interval is out of its range; a retry never helps.
    """

    def __init__(
        self,
        *,
        model: str,
        alias: str,
        removals: bool = False,
        mlflow_conn_id: str = "mlflow_default",
        poll_interval_s: float = 10.0,
    ) -> None:
        super().__init__(model=model, mlflow_conn_id=mlflow_conn_id, poll_interval_s=poll_interval_s)
        check_watched(model, alias)
        self.alias = alias
        self.removals = removals

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """
        Say how to make it again.

        :return: Class path and arguments, plain JSON.
        """
        names = ("model", "alias", "removals", "mlflow_conn_id", "poll_interval_s")
        path = f"{MlflowModelAliasTrigger.__module__}.{MlflowModelAliasTrigger.__name__}"
        return path, {name: getattr(self, name) for name in names}

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Poll]) -> AsyncIterator[TriggerEvent]:
        """
        Make events of the stream.

        :param shared_stream: The polls.
        :return: An event for each move.
        """
        async with self._memory("alias", self.alias) as kept, MlflowLine.of(self.mlflow_conn_id) as line:
            stands = await kept.recall(AliasMemory)
            owed: deque[tuple[AliasMove, AliasMemory]] = deque()
            with MlflowPoller.of(self.mlflow_conn_id).watching(self._watched(None)):
                async for poll in shared_stream:
                    await kept.written()
                    if not poll.snapshot.covers(self.model):
                        continue
                    seen = AliasMemory.of(poll.snapshot.models.get(self.model), self.alias)
                    if stands is None:
                        stands = seen
                        await kept.write(seen)
                    elif move := stands.moved(seen):
                        stands = stands.after(seen)
                        owed.append((move, stands))
                    told, events = None, 0
                    while owed and (payload := await self._payload(*owed[0], line)) is not None:
                        told = owed.popleft()[1]
                        if payload:
                            events += 1
                            yield TriggerEvent(payload)  # type: ignore[no-untyped-call]  # Airflow's
                    if told is not None:
                        await kept.write(told, poll.noted if events else None)

    async def _payload(self, move: AliasMove, memory: AliasMemory, line: MlflowLine) -> dict[str, Any] | None:
        """Write the event of a move; empty for one that is none, None while its version cannot be read."""
        version = SeenVersion(model=self.model, version=move.version)
        if not move.version and not self.removals:
            return {}
        if move.version:
            try:
                version = await _version(line, self.model, move.version) or version
            except RemoteUnavailableError as error:
                log.warning(
                    "Version %s of %r, which an alias has moved to, waits for MLflow: %s", move.version, self.model, error
                )
                return None
        return _payload(version, self.alias, memory.model_dump()) | {"alias": self.alias, "previous_version": move.previous}


class MlflowModelVersionTrigger(_RegistryEventTrigger):
    """
    Fires for every version of a registered model that appears, or that gets the tags which are asked for.

    ``AssetWatcher(name="ready", trigger=MlflowModelVersionTrigger(model="churn", tags={"stage": "ready"}))``. Versions that are
    there, with their tags, when the watching begins are no events. Each version is told once, also when it loses a tag and gets
    it again; several that come between two polls are an event each. The last 2,000 are remembered. A tag that a version gets when
    1,000 newer ones have it is seen up to some polls later. For what is promised otherwise see :class:`MlflowModelAliasTrigger`.

    The payload is ``{"schema", "change_id", "model", "version", "run_id", "source", "tags"}``.

    :param model: Name of the registered model; one that does not exist yet is waited for.
    :param tags: Tags that the version must have, values compared exactly; None for any version.
    :param mlflow_conn_id: Connection of the server.
    :param poll_interval_s: Seconds between two polls, 1 to 86,400; of all watchers of a server the shortest counts.
    :raises ConfigError: no model can have that name, a tag cannot be searched for, or the interval is out of its range; a retry
        never helps.
    """

    def __init__(
        self,
        *,
        model: str,
        tags: Mapping[str, str] | None = None,
        mlflow_conn_id: str = "mlflow_default",
        poll_interval_s: float = 10.0,
    ) -> None:
        super().__init__(model=model, mlflow_conn_id=mlflow_conn_id, poll_interval_s=poll_interval_s)
        self.tags = dict(read_tags(tags))

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """
        Say how to make it again.

        :return: Class path and arguments, plain JSON.
        """
        names = ("model", "tags", "mlflow_conn_id", "poll_interval_s")
        path = f"{MlflowModelVersionTrigger.__module__}.{MlflowModelVersionTrigger.__name__}"
        return path, {name: getattr(self, name) for name in names}

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Poll]) -> AsyncIterator[TriggerEvent]:
        """
        Make events of the stream.

        :param shared_stream: The polls.
        :return: An event for each version that is new.
        """
        tags = read_tags(self.tags)
        async with self._memory("version", tags) as kept:
            memory = await kept.recall(VersionMemory)
            with MlflowPoller.of(self.mlflow_conn_id).watching(self._watched(tags)):
                async for poll in shared_stream:
                    await kept.written()
                    if not poll.snapshot.covers(self.model, tags):
                        continue
                    found, begins = poll.snapshot.versions[tags].get(self.model, {}).values(), memory is None
                    memory = memory or VersionMemory()
                    news = memory.news(found)
                    memory.take(news)
                    for each in () if begins else news:
                        yield TriggerEvent(_payload(each, each.created_ms))  # type: ignore[no-untyped-call]  # Airflow's
                    if news or begins:
                        await kept.write(memory, None if begins else poll.noted)


async def _unconfirmed(conn_id: str) -> AsyncIterator[Poll]:
    async for snapshot in MlflowPoller.of(conn_id).snapshots():
        yield Poll(snapshot)


async def _version(line: MlflowLine, model: str, version: str) -> SeenVersion | None:
    """Read the version that an alias stands for; None when it is gone already or may not be read, which is told all the same."""
    from airflow_ml_provider.tracking.watch import find_version

    for left in reversed(range(RETRIES + 1)):
        try:
            return await line.ask(partial(find_version, model=model, version=version))
        except RemoteUnavailableError:
            if not left:
                raise
            await asyncio.sleep(RETRY_S)
        except AirflowMLError as error:
            log.warning("Could not read version %s of %r; the move is told without its run and tags: %s", version, model, error)
            break
    return None


def _payload(version: SeenVersion, *change: object) -> dict[str, Any]:
    """Write an event; ``change_id`` is the same whenever the same change is told again."""
    told = repr((version.model, version.version, *change))
    change_id = hashlib.sha256(told.encode()).hexdigest()[:32]
    return {"schema": SCHEMA, "change_id": change_id, **version_value(version)}
