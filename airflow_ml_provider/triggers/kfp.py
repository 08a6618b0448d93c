"""Waiting in the triggerer: for a run of our own, and for runs that anybody has started."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_ml_provider.models.kfp import RunState, WaitOutcome
from airflow_ml_provider.triggers import kfp_stop
from airflow_ml_provider.triggers.kfp_events import KfpRunEventTrigger
from airflow_ml_provider.triggers.kfp_poller import KfpPoller
from airflow_ml_provider.triggers.marks import MARKS, detach, task_state

__all__ = ["KfpRunEventTrigger", "KfpRunTrigger"]

log = logging.getLogger(__name__)


class KfpRunTrigger(BaseTrigger):
    """
    Waits for one run, with all others that wait for the same server, and fires one event: a ``WaitOutcome`` as plain JSON.

    It fires also when the server is away, when the run is gone, and at the deadline, which it keeps itself: a timeout of the
    deferral would never reach the operator. Its arguments hold no secret; the connection is read in the triggerer.

    :param kfp_conn_id: Connection of the server.
    :param run_id: The run.
    :param namespace: Namespace of the run; empty for the connection's own.
    :param deadline: Epoch seconds at which the run is stopped; None for never.
    :param poll_interval_s: Seconds between two questions while the run is young; with its age up to tenfold.
    :param patience_s: Seconds of errors in a row that are borne.
    :param stuck_s: Seconds that the run may be CANCELING.
    :param stop_on_timeout: Whether the server is asked to terminate the run at the deadline.
    :param leave_running: Marks after which the run is not stopped, of ``clear`` and ``success``.
    :param carrier: Whether the run has a carrier, which is deleted when we have stopped the run and it has ended.
    """

    def __init__(
        self,
        *,
        kfp_conn_id: str = "kfp_default",
        run_id: str,
        namespace: str = "",
        deadline: float | None = None,
        poll_interval_s: float = 5.0,
        patience_s: float = 300.0,
        stuck_s: float = 600.0,
        stop_on_timeout: bool = True,
        leave_running: Collection[str] = (),
        carrier: bool = False,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Airflow's
        self.kfp_conn_id = kfp_conn_id
        self.run_id = run_id
        self.namespace = namespace
        self.deadline = deadline
        self.poll_interval_s = poll_interval_s
        self.patience_s = patience_s
        self.stuck_s = stuck_s
        self.stop_on_timeout = stop_on_timeout
        self.leave_running = list(leave_running)
        self.carrier = carrier

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """
        Say how to make it again.

        :return: Class path and arguments, plain JSON.
        """
        names = ("kfp_conn_id", "run_id", "namespace", "deadline", "poll_interval_s", "patience_s", "stuck_s", "stop_on_timeout")
        arguments = {name: getattr(self, name) for name in (*names, "leave_running", "carrier")}
        return f"{KfpRunTrigger.__module__}.{KfpRunTrigger.__name__}", arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """
        Wait.

        :return: One event.
        """
        told = await KfpPoller.of(self.kfp_conn_id, self.namespace).wait(
            self.run_id,
            deadline=self.deadline,
            poll_interval_s=self.poll_interval_s,
            patience_s=self.patience_s,
            stuck_s=self.stuck_s,
        )
        if told.outcome == "deadline":
            told = await self._at_deadline(told)
        elif told.outcome == "gone":
            told = await self._if_gone(told)
        told = told.model_copy(update={"deadline": self.deadline})
        yield TriggerEvent(told.model_dump(mode="json"))  # type: ignore[no-untyped-call]  # Airflow's

    async def on_kill(self) -> None:
        """
        Stop the run if a person has killed, marked or cleared the task; called by Airflow 3.3 and later.

        Airflow calls it too when it has given the trigger to another triggerer, so the task's state is asked for first, and
        without an answer the run goes on. What is begun here goes on when Airflow's limit of 30 s ends the wait for it.
        """
        await detach(self._kill())

    async def _kill(self) -> None:
        mark = MARKS.get(await task_state(self.task_instance, f"KFP run {self.run_id}"), "none")
        if mark == "none" or mark in self.leave_running:
            log.warning("The trigger of KFP run %s was removed (%s); the run is not stopped.", self.run_id, mark)
            return
        log.info("The task was killed, marked or cleared. KFP run %s is stopped.", self.run_id)
        problem = await kfp_stop.stop(*self._place, within_s=kfp_stop.KILL_WITHIN_S)
        if problem is not None:
            log.error("KFP run %s could not be stopped and goes on: %s", self.run_id, problem)
        elif self.carrier:
            await kfp_stop.delete_carriers(*self._place)

    @property
    def _place(self) -> tuple[str, str, str]:
        return self.kfp_conn_id, self.namespace, self.run_id

    async def _at_deadline(self, told: WaitOutcome) -> WaitOutcome:
        """Look once more, as what ends a run may come with its deadline, and stop it."""
        from airflow_ml_provider.jobs.kfp_wait import with_stop

        found = await kfp_stop.look(*self._place, listed=True)
        if found is not None and found.state.ended:
            return self._ended(found.state)
        if not self.stop_on_timeout:
            return told
        told = with_stop(told, await kfp_stop.stop(*self._place, within_s=kfp_stop.STOP_WITHIN_S))
        if told.stopped and self.carrier:  # the operator deletes it, which it can do only when the run has ended
            await kfp_stop.wait_for_end(*self._place)
        return told

    async def _if_gone(self, told: WaitOutcome) -> WaitOutcome:
        """Look by its id for what no list had: the lists are of one namespace."""
        found = await kfp_stop.look(*self._place, listed=False)
        if found is None:
            return told
        if found.state.ended:
            return self._ended(found.state)
        message = f"The server has run {self.run_id}, but not among the runs of namespace {self.namespace!r}."
        return told.model_copy(update={"state": found.state, "message": message})

    def _ended(self, state: RunState) -> WaitOutcome:
        message = f"Run {self.run_id} ended as {state}."
        return WaitOutcome(run_id=self.run_id, outcome="ended", state=state, message=message)
