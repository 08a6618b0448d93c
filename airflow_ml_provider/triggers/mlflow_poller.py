"""
One poller for all watchers of one MLflow server's registry in one event loop, whatever their number.

Watchers say what they watch; each poll asks for all of it together, as a
:class:`~airflow_ml_provider.tracking.watch_scan.RegistryScan`, and gives everybody the same snapshot. What is news in it is each
watcher's own business: it remembers what it has told.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import ClassVar

from airflow_ml_provider.exceptions import AirflowMLError
from airflow_ml_provider.models.watch import Tags
from airflow_ml_provider.tracking.watch_scan import RegistryScan, Snapshot, Wanted
from airflow_ml_provider.triggers.mlflow_line import MlflowLine

log = logging.getLogger(__name__)

JITTER = 0.1
"""Largest part by which a pause is shortened: pollers that started together drift apart."""
GATHER_S = 1.0
"""Seconds after which a watcher that has joined is asked for: those that start together are asked for together."""
BACKOFF_CAP_S = 60.0
"""Longest pause after errors, if the interval is not longer."""
HANG_S = 300.0
"""Seconds after which a poll that has neither answered nor failed is given up, with its thread."""
LOG_EVERY_S = 60.0


@dataclass(frozen=True)
class Interest:
    """
    What one watcher watches.

    :param model: Name of the registered model.
    :param tags: Tags of its versions; None for its aliases.
    :param interval_s: Seconds between two polls; the shortest of all watchers counts.
    """

    model: str
    tags: Tags | None
    interval_s: float


@dataclass(frozen=True, eq=False)
class Poll:
    """
    What a poll has seen, as a watcher gets it.

    :param snapshot: It.
    :param noted: Done when nobody makes events of it any more; whether all of them are in Airflow's database. None where
        nobody says so, before Airflow 3.3.
    """

    snapshot: Snapshot
    noted: asyncio.Future[bool] | None = None


class MlflowPoller:
    """
    Polls while it has listeners and something is watched; :meth:`of` finds it or makes it.

    :param conn_id: Connection of the server.
    """

    _all: ClassVar[dict[tuple[int, str], MlflowPoller]] = {}

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self.loop = asyncio.get_running_loop()
        self._interests: Counter[Interest] = Counter()
        self._feeds: set[asyncio.Queue[Snapshot]] = set()
        self._due = -inf
        self._wake = asyncio.Event()
        self._scan = RegistryScan()
        self._failures = 0
        self._logged_at = -inf
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, conn_id: str) -> MlflowPoller:
        """
        Find the poller of the running event loop, or make it.

        :param conn_id: Connection of the server.
        :return: The poller.
        """
        cls._all = {key: each for key, each in cls._all.items() if not each.loop.is_closed()}
        key = (id(asyncio.get_running_loop()), conn_id)
        return cls._all.setdefault(key, cls(conn_id))

    @contextmanager
    def watching(self, interest: Interest) -> Iterator[None]:
        """
        Have something asked for while the block lasts; the snapshots come from :meth:`snapshots`, perhaps somebody else's.

        :param interest: What.
        """
        self._interests[interest] += 1
        self._due = min(self._due, self.loop.time() + GATHER_S)
        self._wake.set()
        try:
            yield
        finally:
            self._interests -= Counter([interest])
            self._leave()

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """
        Listen.

        :return: What each poll has seen, without end; while the server is away, nothing.
        """
        feed: asyncio.Queue[Snapshot] = asyncio.Queue()
        self._feeds.add(feed)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"MLflow poller of {self.conn_id}")
        try:
            while True:
                yield await feed.get()
        finally:
            self._feeds.discard(feed)
            self._leave()

    def _leave(self) -> None:
        self._wake.set()
        if not self._feeds and not self._interests:
            self._all.pop((id(self.loop), self.conn_id), None)

    async def _run(self) -> None:
        async with MlflowLine.of(self.conn_id) as line:
            while self._feeds:
                await self._pause()
                if self._feeds and self._interests and self.loop.time() >= self._due:
                    await self._poll(line)
        self._task = None  # who comes from here on starts it anew

    async def _poll(self, line: MlflowLine) -> None:
        started, wanted = self.loop.time(), self._wanted()
        interval = min(each.interval_s for each in self._interests) * (1 - JITTER * random.random())  # noqa: S311  (jitter)
        self._due = started + interval
        try:
            async with asyncio.timeout(HANG_S):
                snapshot = await line.ask(partial(self._scan.scan, wanted=wanted))
        except TimeoutError:
            self._scan = RegistryScan()  # the old one is still in its thread
            self._take_error(f"no answer and no error for {HANG_S:.0f} s", interval)
            return
        except AirflowMLError as error:
            self._take_error(str(error), interval)
            return
        except Exception as error:
            log.exception("The watch over connection %r has broken; it begins anew.", self.conn_id)
            self._scan = RegistryScan()
            self._take_error(repr(error), interval)
            return
        if self._failures:
            log.info("MLflow of connection %r answers again.", self.conn_id)
        self._failures = 0
        for feed in self._feeds:
            feed.put_nowait(snapshot)

    def _take_error(self, error: str, interval: float) -> None:
        self._failures += 1
        now, pause = self.loop.time(), min(interval * 2.0 ** min(self._failures, 20), max(BACKOFF_CAP_S, interval))
        self._due = now + pause
        if now - self._logged_at >= LOG_EVERY_S:
            self._logged_at = now
            log.warning("MLflow of connection %r could not be watched; next try in %.0f s: %s", self.conn_id, pause, error)

    async def _pause(self) -> None:
        """Sleep until the next poll is due, or somebody comes or goes."""
        self._wake.clear()
        due = self._due if self._interests else inf
        try:
            async with asyncio.timeout_at(due if due < inf else None):
                await self._wake.wait()
        except TimeoutError:
            pass

    def _wanted(self) -> Wanted:
        versions: dict[Tags, set[str]] = {}
        for each in self._interests:
            if each.tags is not None:
                versions.setdefault(each.tags, set()).add(each.model)
        models = frozenset(each.model for each in self._interests if each.tags is None)
        return Wanted(models, {tags: frozenset(names) for tags, names in versions.items()})
