"""Waiting in the triggerer for something on an MLflow server, and its changes as events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_ml_provider.core.watch import Vigil
from airflow_ml_provider.exceptions import AirflowMLError, ConfigError
from airflow_ml_provider.models.watch import WatchOutcome, read_question
from airflow_ml_provider.tracking.watch import look
from airflow_ml_provider.triggers.mlflow_events import MlflowModelAliasTrigger, MlflowModelVersionTrigger
from airflow_ml_provider.triggers.mlflow_line import MlflowLine

__all__ = ["MlflowModelAliasTrigger", "MlflowModelVersionTrigger", "MlflowWatchTrigger"]

log = logging.getLogger(__name__)
LOG_EVERY_S = 60.0


class MlflowWatchTrigger(BaseTrigger):
    """
    Waits for one thing on an MLflow server and fires one event: a ``WatchOutcome`` as plain JSON.

    It fires also when the server is away for too long, and at the deadline, which it keeps itself: a timeout of the deferral
    would never reach the sensor. Its arguments hold no secret; the connection is read in the triggerer.

    :param question: What is waited for, plain JSON of a question of ``models.watch``.
    :param mlflow_conn_id: Connection of the server; all that wait for it share a client.
    :param deadline: Epoch seconds at which the waiting ends; None for never.
    :param poll_interval_s: Seconds between two looks.
    :param patience_s: Seconds of errors in a row that are borne.
    """

    def __init__(
        self,
        *,
        question: dict[str, Any],
        mlflow_conn_id: str = "mlflow_default",
        deadline: float | None = None,
        poll_interval_s: float = 10.0,
        patience_s: float = 300.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.question = question
        self.mlflow_conn_id = mlflow_conn_id
        self.deadline = deadline
        self.poll_interval_s = poll_interval_s
        self.patience_s = patience_s

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """
        Say how to make it again.

        :return: Class path and arguments, plain JSON.
        """
        names = ("question", "mlflow_conn_id", "deadline", "poll_interval_s", "patience_s")
        path = f"{MlflowWatchTrigger.__module__}.{MlflowWatchTrigger.__name__}"
        return path, {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """
        Wait.

        :return: One event.
        """
        try:
            told = await self._wait()
        except ConfigError as error:  # what is asked for is not of this release
            told = WatchOutcome(outcome="refused", message=str(error))
        yield TriggerEvent(told.model_dump(mode="json"))  # type: ignore[no-untyped-call]  # Airflow's

    async def _wait(self) -> WatchOutcome:
        question, vigil = read_question(self.question), Vigil(self.deadline, self.patience_s)
        logged_at = 0.0
        async with MlflowLine.of(self.mlflow_conn_id) as line:
            while True:
                try:
                    sight = await line.ask(partial(look, question))
                    told = vigil.on_sight(sight, time.time())
                except AirflowMLError as error:
                    told = vigil.on_error(error, time.time())
                    if time.time() - logged_at >= LOG_EVERY_S:
                        logged_at = time.time()
                        log.warning("Could not look; it is tried again: %s", error)
                if told is not None:
                    return told
                await asyncio.sleep(vigil.pause_s(self.poll_interval_s, time.time()))
