"""
The polls of one server as Airflow's shared stream, and Airflow's word on the events that were made of them; from 3.3 on.

Airflow 3.3's shared streams say when every event that was made of an item is in Airflow's database (their ack mode, in the
docstring of ``airflow.triggers.base.BaseEventTrigger``). Only then may a watcher remember an event as told: a triggerer that is
killed before loses none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from airflow.triggers.shared_stream import AdvanceItem, SharedStreamProducer

from airflow_ml_provider.triggers.mlflow_poller import MlflowPoller, Poll


class PollProducer(SharedStreamProducer):
    """
    What gives the polls to Airflow's shared stream, and is told what became of them.

    :param conn_id: Connection of the server.
    """

    def __init__(self, conn_id: str) -> None:
        self.conn_id = conn_id
        self._open: dict[Poll, asyncio.Future[bool]] = {}

    async def open_stream(self) -> AsyncIterator[tuple[Poll, Poll]]:
        """
        Give the polls.

        :return: Each twice: for the watchers, and for :meth:`advance`.
        """
        async for snapshot in MlflowPoller.of(self.conn_id).snapshots():
            noted = asyncio.get_running_loop().create_future()
            poll = Poll(snapshot, noted)
            self._open[poll] = noted
            yield poll, poll

    async def advance(self, batch: Sequence[AdvanceItem]) -> None:
        """
        Hear that all watchers are done with polls, and that Airflow has their events.

        :param batch: Airflow's items: the poll, and how many watchers have failed over it.
        """
        for poll, outcome in batch:
            self._end(poll, all_noted=not outcome.failed)

    async def aclose(self) -> None:
        """Leave nobody waiting for a word that will not come."""
        for poll in list(self._open):
            self._end(poll, all_noted=False)

    def _end(self, poll: Poll, *, all_noted: bool) -> None:
        noted = self._open.pop(poll, None)
        if noted is not None and not noted.done():
            noted.set_result(all_noted)
