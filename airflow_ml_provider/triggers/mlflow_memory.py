"""What a watcher of the registry has told, kept in the state stores of its assets: read before it watches, written after."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any, Self, TypeVar

from pydantic import BaseModel, ValidationError

log = logging.getLogger(__name__)
Memory = TypeVar("Memory", bound=BaseModel)

RECALL_PAUSES_S = (3.0, 10.0, 30.0, 60.0)
"""Seconds between the questions for what was told; the last one counts from then on."""
RECALL_S = 3600.0
"""Seconds for which it is asked for: what cannot be read is not the same as nothing."""


class WatcherMemory:
    """
    The memory of one watcher, to be used in an ``async with``; at its end, what could not be written by then is left.

    So it is told again by the next triggerer, rather than never.

    :param stores: As Airflow gives them to a trigger; None before Airflow 3.3, where nothing is remembered.
    :param key: Name of the value: an asset may have more watchers than this one.
    :param what: What is watched, for messages.
    """

    def __init__(self, stores: Any, key: str, what: str) -> None:
        # A watcher of two assets is one trigger, and the store that Airflow gives it refuses to choose.
        several = [*getattr(stores, "_by_name", {}).values(), *getattr(stores, "_by_uri", {}).values()]
        self._stores: list[Any] = [] if stores is None else several or [stores]
        self._key = key
        self._what = what
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        if self._task is not None:
            self._task.cancel()

    async def recall(self, form: type[Memory]) -> Memory | None:
        """
        Read what was told; while the store cannot be read, wait.

        :param form: Its shape.
        :return: It; None for a watcher that begins anew.
        """
        for pause_s in _pauses():
            try:
                return await self._read(form)
            except ValidationError as error:
                self._say_begins_anew(f"what is kept of it is not of this release ({error})")
                return None
            except Exception as error:  # noqa: BLE001  (Airflow's store raises what its server answers)
                log.warning(
                    "%s waits %.0f s: what it has told cannot be read, and nothing is forgotten: %s", self._what, pause_s, error
                )
                await asyncio.sleep(pause_s)
        self._say_begins_anew(f"what is kept of it could not be read for {RECALL_S:.0f} s")
        return None

    async def write(self, memory: BaseModel, noted: asyncio.Future[bool] | None = None) -> None:
        """
        Write down what was told.

        :param memory: What.
        :param noted: When it is done, and whether it came to that, Airflow has the events in its database: it is waited for in
            the background. None writes at once.
        """
        if not self._stores:
            return
        if noted is None:
            await self._write(memory)
        else:
            self._task = asyncio.create_task(self._write_when(noted, memory))

    async def written(self) -> None:
        """Wait for what is written in the background: one change at a time, so that no more than one can be told twice."""
        if self._task is not None:
            await self._task
            self._task = None

    async def _read(self, form: type[Memory]) -> Memory | None:
        found = [value for each in self._stores if (value := await each.aget(self._key))]
        return form.model_validate(found[0]) if found else None

    async def _write_when(self, noted: asyncio.Future[bool], memory: BaseModel) -> None:
        if await asyncio.shield(noted):  # of all watchers: the cancellation of one is not to cancel it
            await self._write(memory)
        else:
            log.warning("%s: Airflow has not confirmed an event; a restart of the triggerer may tell it again.", self._what)

    async def _write(self, memory: BaseModel) -> None:
        for each in self._stores:
            try:
                await each.aset(self._key, memory.model_dump(mode="json"))
            except Exception as error:  # noqa: BLE001  (an event is worth more than the memory of it)
                log.warning("%s: its event could not be kept; a restart of the triggerer tells it again: %s", self._what, error)

    def _say_begins_anew(self, why: str) -> None:
        log.error("%s is watched anew, as %s: WHAT HAS CHANGED SINCE IT WAS WATCHED LAST IS NOT TOLD.", self._what, why)


def _pauses() -> Iterator[float]:
    """Give the pauses, until their sum is what is borne."""
    waited, number = 0.0, 0
    while waited < RECALL_S:
        pause_s = RECALL_PAUSES_S[min(number, len(RECALL_PAUSES_S) - 1)]
        yield pause_s
        waited, number = waited + pause_s, number + 1
