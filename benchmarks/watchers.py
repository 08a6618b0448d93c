"""Triggers that say when they have seen an alias move; for benchmarks.watching, whose triggerer imports them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from airflow_ml_provider.exceptions import AirflowMLError
from airflow_ml_provider.triggers.mlflow import MlflowModelAliasTrigger

_number = count(1)
_open: list[Any] = []


class OneScan(MlflowModelAliasTrigger):
    """This package's own trigger."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """
        Say how to make it again.

        :return: Class path and arguments.
        """
        return f"{__name__}.OneScan", super().serialize()[1]

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """
        Watch as it always does.

        :param shared_stream: What each poll has seen.
        :return: Its events, with ``seen_at``.
        """
        _say_when_all_run()
        async for event in super().filter_shared_stream(shared_stream):
            yield TriggerEvent({"seen_at": time.time(), **event.payload})  # type: ignore[no-untyped-call]  # Airflow's


class OneGetPerModel(BaseEventTrigger):
    """
    What a trigger does that knows only of its own model, with one client for all of them.

    :param model: Name of the registered model.
    :param alias: The alias.
    :param poll_interval_s: Seconds between two questions.
    """

    def __init__(self, model: str, alias: str, poll_interval_s: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.model = model
        self.alias = alias
        self.poll_interval_s = poll_interval_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """
        Say how to make it again.

        :return: Class path and arguments.
        """
        names = ("model", "alias", "poll_interval_s")
        return f"{__name__}.OneGetPerModel", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """
        Ask once per interval.

        :return: An event for each move, with ``seen_at``.
        """
        _say_when_all_run()
        stands: str | None = None
        version: str | None
        while True:
            try:
                version = await asyncio.to_thread(partial(_look, self.model, self.alias))
            except AirflowMLError:
                version = stands  # an error is not to end it
            if stands not in {None, version}:
                yield TriggerEvent({"seen_at": time.time(), "model": self.model})  # type: ignore[no-untyped-call]  # Airflow's
            stands = version
            await asyncio.sleep(self.poll_interval_s)


def _look(model: str, alias: str) -> str:
    from airflow_ml_provider.hooks.mlflow import MlflowHook

    if not _open:
        _open.append(MlflowHook().api())  # for as long as the process lives
    return str(_open[0].get("registered-models/alias", name=model, alias=alias)["model_version"]["version"])


def _say_when_all_run() -> None:
    file, _, number = os.environ["BENCH_WHEN_ALL_RUN"].rpartition(":")
    if next(_number) == int(number):
        Path(file).touch()
