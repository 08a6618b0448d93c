"""Runs that anybody has started, as events of an asset: "pipeline X succeeded" starts a DAG."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Hashable, Iterable
from datetime import UTC, datetime
from functools import partial
from math import inf
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent
from pydantic import BaseModel, ValidationError, field_validator

from airflow_ml_provider.core.kfp_names import check_pipeline_name
from airflow_ml_provider.core.polling import Pace
from airflow_ml_provider.exceptions import AirflowMLError, ConfigError, RemoteNotFoundError
from airflow_ml_provider.models.kfp import PipelineRun, RunState
from airflow_ml_provider.triggers.kfp_poller import KfpPoller, connected
from airflow_ml_provider.triggers.threads import in_thread

log = logging.getLogger(__name__)

ENDS = tuple(str(each) for each in RunState if each.ended)
STORE_KEY = "kfp-runs"
REMEMBERED = 500
"""Runs that are remembered as told; the value stays below the 64 kB at which Airflow warns."""
LATE_S = 600.0
"""Seconds by which a report may be late and still become an event."""
SAVE_EVERY_S = 60.0
RETRY_S = 10.0
GAP_TRIES = 10
"""Times that what has finished before the stream is asked for, each after the server has answered another question."""


class _Told(BaseModel):
    """
    What an asset's watcher remembers over restarts of the triggerer.

    :param version: Of this shape.
    :param newest: Newest finish time seen, epoch seconds of the engine's clock.
    :param floor: What finished up to then is no news, remembered or not.
    :param runs: Finish time and state of what was seen to end, or had ended before the watching began, by run.
    """

    version: int = 2
    newest: float = 0.0
    floor: float = 0.0
    runs: dict[str, tuple[float, str]] = {}

    @field_validator("runs", mode="before")
    @classmethod
    def _with_states(cls, found: Any) -> Any:
        """Read what version 1 wrote, which had the finish times alone."""
        return {key: [at, ""] if isinstance(at, (int, float)) else at for key, at in found.items()}

    def take(self, found: Iterable[PipelineRun]) -> list[PipelineRun]:
        """
        Take in runs that have finished.

        :param found: Runs, some of them known.
        :return: Those that are new, oldest first; a run that was repeated on the server and has ended anew is new again.
        """
        fresh = []
        for each in sorted(found, key=_finished):
            if _finished(each) > self.floor and self._is_news(each):
                fresh.append(each)
                self.runs[each.run_id] = _finished(each), str(each.state)
                self.newest = max(self.newest, _finished(each))
        kept = sorted(self.runs.items(), key=lambda each: each[1])
        forgotten = [at for _, (at, _state) in kept[:-REMEMBERED]]
        self.floor = max([self.floor, self.newest - LATE_S, *forgotten])
        self.runs = {run_id: end for run_id, end in kept if end[0] > self.floor}
        return fresh

    def _is_news(self, run: PipelineRun) -> bool:
        """Tell an end from one that comes again, and from the late report of the end before a repetition."""
        at, state = self.runs.get(run.run_id, (-inf, ""))
        return _finished(run) > at or (_finished(run) == at and state not in {"", str(run.state)})


class KfpRunEventTrigger(BaseEventTrigger):
    """
    Fires for every run that ends after the watching began, whoever started it, and again for one that is repeated and ends anew.

    ``AssetWatcher(name="churn", trigger=KfpRunEventTrigger(pipeline="churn"))``. From Airflow 3.3 on all watchers of a server
    share one stream, and what was told is kept in the asset's state store, so a restart of the triggerer loses nothing; a crash
    in the wrong second can fire for a run twice. The payload is
    ``{"version", "run_id", "name", "state", "pipeline_id", "pipeline_version_id", "experiment_id", "finished_at"}``.

    :param kfp_conn_id: Connection of the server.
    :param namespace: Namespace of the runs; empty for the connection's own.
    :param pipeline: Name or id of a registered pipeline; empty for any. A run that has its spec inline belongs to none.
    :param experiment: Id of an experiment; empty for any.
    :param states: Final states that fire.
    :raises ConfigError: one of ``states`` is none, or no pipeline can have that name; a retry never helps.
    """

    def __init__(
        self,
        *,
        kfp_conn_id: str = "kfp_default",
        namespace: str = "",
        pipeline: str = "",
        experiment: str = "",
        states: Collection[str] = ("SUCCEEDED",),
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.kfp_conn_id = kfp_conn_id
        self.namespace = namespace
        self.pipeline = pipeline
        self.experiment = experiment
        self.states = sorted(states)
        if pipeline:
            check_pipeline_name(pipeline)
        for each in self.states:
            if each not in ENDS:
                raise ConfigError(
                    f"KfpRunEventTrigger: states={self.states!r} has {each!r}. The final states are {', '.join(ENDS)}."
                )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """
        Say how to make it again.

        :return: Class path and arguments, plain JSON.
        """
        names = ("kfp_conn_id", "namespace", "pipeline", "experiment", "states")
        return f"{KfpRunEventTrigger.__module__}.{KfpRunEventTrigger.__name__}", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """
        Watch, before Airflow 3.3; the poller is shared there too.

        :return: Events without end.
        """
        async for event in self.filter_shared_stream(KfpPoller.of(self.kfp_conn_id, self.namespace).finished()):
            yield event

    def shared_stream_key(self) -> Hashable:
        """
        Name the stream that all watchers of a server share.

        :return: The key.
        """
        return ("airflow-ml-kfp-runs", self.kfp_conn_id, self.namespace)

    @classmethod
    async def open_shared_stream(cls, kwargs: dict[str, Any]) -> AsyncIterator[list[PipelineRun]]:
        """
        Open that stream.

        :param kwargs: Arguments of one of the watchers.
        :return: Runs that have finished, without end; the same run comes more than once.
        """
        async for runs in KfpPoller.of(kwargs["kfp_conn_id"], kwargs["namespace"]).finished():
            yield runs

    async def filter_shared_stream(self, shared_stream: AsyncIterator[list[PipelineRun]]) -> AsyncIterator[TriggerEvent]:
        """
        Make events of the stream.

        :param shared_stream: Runs that have finished.
        :return: An event for each run that is meant, once.
        """
        told, meant, begun = await self._recall(), _Pipelines(self), datetime.now(UTC).timestamp()
        saved, at_once = told.newest if told else 0.0, True
        async for found in self._with_gap(shared_stream, begun - 2 * Pace().skew_s if told is None else told.newest - LATE_S):
            if found is None:
                at_once = False
                continue
            if told is None:  # what is there already is no event
                told = _Told(floor=0.0 if at_once else begun)
                told.take(found if at_once else ())
            fired = False
            for each in told.take(found):
                if (
                    each.state in self.states
                    and self.experiment in {"", each.experiment_id}
                    and await meant.has(each.pipeline_id)
                ):
                    fired = True
                    yield TriggerEvent(_payload(each))  # type: ignore[no-untyped-call]  # Airflow's
            if fired or told.newest - saved >= SAVE_EVERY_S:
                saved = told.newest
                await self._remember(told)

    async def _with_gap(self, stream: AsyncIterator[list[PipelineRun]], moment: float) -> AsyncIterator[list[PipelineRun] | None]:
        """Put before the stream what has finished since a moment; None while the server does not tell it."""
        since = datetime.fromtimestamp(moment, UTC)
        for _ in range(GAP_TRIES):
            if (gap := await self._gap(since)) is not None:
                yield gap
                break
            yield None
            if await anext(stream, None) is None:  # the server answers again, and what it has named is in the gap too
                break
        async for each in stream:
            yield each

    async def _gap(self, since: datetime) -> list[PipelineRun] | None:
        try:
            return await in_thread(partial(self._finished_since, since))
        except AirflowMLError as error:
            log.warning("Could not ask for the runs that finished since %s; it is asked again: %s", since, error)
            return None

    def _finished_since(self, moment: datetime) -> list[PipelineRun]:
        with connected(self.kfp_conn_id, self.namespace) as jobs:
            return [each for each in jobs.finished_since(moment) if each.state.ended]

    async def _recall(self) -> _Told | None:
        store = getattr(self, "asset_state_store", None)  # Airflow 3.3 puts it there
        try:
            found = await store.aget(STORE_KEY) if store is not None else None
            return _Told.model_validate(found) if found else None
        except (ValidationError, ValueError) as error:  # more than one asset has this watcher, for example
            log.warning("What this watcher has told cannot be read; it begins anew: %s", error)
            return None

    async def _remember(self, told: _Told) -> None:
        store = getattr(self, "asset_state_store", None)
        if store is None:
            return
        try:
            await store.aset(STORE_KEY, told.model_dump(mode="json"))
        except Exception as error:  # noqa: BLE001  (an event is worth more than the memory of it)
            log.warning("What this watcher has told could not be kept: %s", error)


class _Pipelines:
    """Tells the runs of one pipeline, which has an id, from others; its name is looked up when an id is new to us."""

    def __init__(self, trigger: KfpRunEventTrigger) -> None:
        self.trigger = trigger
        self.others: set[str] = set()
        self.own = {trigger.pipeline}

    async def has(self, pipeline_id: str) -> bool:
        if not self.trigger.pipeline or pipeline_id in self.own:
            return True
        if pipeline_id and pipeline_id not in self.others:
            self.own.add(await self._find())
            self.others.add(pipeline_id)
        return pipeline_id in self.own

    async def _find(self) -> str:
        while True:
            try:
                return await in_thread(self._ask)
            except AirflowMLError as error:
                log.warning("Could not look up pipeline %r: %s", self.trigger.pipeline, error)
                await asyncio.sleep(RETRY_S)

    def _ask(self) -> str:
        from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog

        try:
            with connected(self.trigger.kfp_conn_id, self.trigger.namespace) as jobs:
                return KfpCatalog(jobs.api, self.trigger.namespace).version(self.trigger.pipeline).pipeline_id
        except RemoteNotFoundError:  # not yet: then the run is not one of its
            return self.trigger.pipeline


def _finished(run: PipelineRun) -> float:
    return run.finished_at.timestamp() if run.finished_at else 0.0


def _payload(run: PipelineRun) -> dict[str, Any]:
    return {
        "version": 1,
        "run_id": run.run_id,
        "name": run.name,
        "state": str(run.state),
        "pipeline_id": run.pipeline_id,
        "pipeline_version_id": run.version_id,
        "experiment_id": run.experiment_id,
        "finished_at": run.finished_at.isoformat() if run.finished_at else "",
    }
