"""Triggers that say when they have seen the end of their run; for benchmarks.polling, whose triggerer imports them."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_ml_provider.triggers.kfp import KfpRunTrigger
from airflow_ml_provider.triggers.kfp_poller import connected

_number = count(1)
_open: list[Any] = []


class OnePoller(KfpRunTrigger):
    """This package's own trigger."""

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """
        Wait as it always does.

        :return: One event, with ``seen_at``.
        """
        _say_when_all_run()
        async for event in super().run():
            yield TriggerEvent({"seen_at": time.time(), **event.payload})  # type: ignore[no-untyped-call]  # Airflow's


class OneGetPerRun(BaseTrigger):
    """
    What a trigger does that knows only of its own run, with one client for all of them.

    :param run_id: The run.
    :param poll_interval_s: Seconds between two questions.
    """

    def __init__(self, run_id: str, poll_interval_s: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.run_id = run_id
        self.poll_interval_s = poll_interval_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """
        Say how to make it again.

        :return: Class path and arguments.
        """
        return f"{__name__}.OneGetPerRun", {"run_id": self.run_id, "poll_interval_s": self.poll_interval_s}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """
        Ask until it has ended, first after an interval: the run has just been started.

        :return: One event, with ``seen_at``.
        """
        _say_when_all_run()
        ended = False
        while not ended:
            await asyncio.sleep(self.poll_interval_s)
            ended = (await asyncio.to_thread(partial(_look, self.run_id))).state.ended
        yield TriggerEvent({"seen_at": time.time()})  # type: ignore[no-untyped-call]  # Airflow's


def _look(run_id: str) -> Any:
    if not _open:
        context = connected("kfp_default")
        _open.extend([context.__enter__(), context])  # for as long as the process lives
    return _open[0].look(run_id)


def _say_when_all_run() -> None:
    file, _, number = os.environ["BENCH_WHEN_ALL_RUN"].rpartition(":")
    if next(_number) == int(number):
        Path(file).touch()
