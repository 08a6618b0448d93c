"""
The metrics of a step that still runs: kept in its record, and sent in batches on the way.

Whatever MLflow answers, or does not, the user's function goes on: what was not taken waits for the end of the step.
"""

from __future__ import annotations

import logging
import time
from threading import Lock

from airflow_ml_provider.exceptions import AirflowMLError, SupersededError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.artifact import MetricPoint
from airflow_ml_provider.models.run import StepRecord, mlflow_name
from airflow_ml_provider.tracking.record import METRICS_PER_BATCH, Recorder

log = logging.getLogger(__name__)

FLUSH_EVERY_S = 5.0
PAUSE_S = 30.0
"""How long nothing is sent after a batch that MLflow did not take, counted from when that was known."""


class MetricFeed:
    """
    Takes points from the threads of a step, and sends them while it runs.

    :param api: The MLflow server. It is asked in haste: a flush is two requests of 2 s at most, sent once.
    :param record: What the step has to tell; its ``metrics`` are what was not sent yet.
    """

    def __init__(self, api: MlflowApi, record: StepRecord) -> None:
        self.record = record
        self._api = api
        self._recorder: Recorder | None = None
        self._stopped = False
        self._flushed_at = time.monotonic()
        self._paused_until = 0.0
        # Around append and flush: of two flushes at once, each would take from the list what the other has sent.
        self._lock = Lock()

    def add(self, point: MetricPoint) -> None:
        """
        Keep one point, and send a batch where one is due.

        :param point: The point.
        :raises SupersededError: a later try has taken over; nothing else is raised.
        """
        name = mlflow_name(point.key)
        if name != point.key:
            log.warning("MLflow takes no metric named %r; it is kept as %r.", point.key, name)
        with self._lock:
            self.record.metrics.append(point.model_copy(update={"key": name}))
            if self._due():
                self._flush()

    def stop(self) -> None:
        """Send nothing more: the step has ended, and what waits is sent with its record."""
        with self._lock:
            self._stopped = True
            if self._recorder is not None:
                self._recorder.api.close()

    def _due(self) -> bool:
        now = time.monotonic()
        if self._stopped or now < self._paused_until:
            return False
        return len(self.record.metrics) >= METRICS_PER_BATCH or now - self._flushed_at >= FLUSH_EVERY_S

    def _flush(self) -> None:
        self._recorder = self._recorder or Recorder(self._api.hasty())
        try:
            self._recorder.flush_metrics(self.record)
        except SupersededError:
            raise
        except AirflowMLError as error:  # a refusal too: during a rollout, an ingress answers 404 for MLflow
            self._paused_until = time.monotonic() + PAUSE_S
            log.warning("%s The metrics are kept and sent when the step ends.", error)
        finally:
            self._flushed_at = time.monotonic()
