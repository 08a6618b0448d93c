"""Waiting in the triggerer: for a run of our own, and for runs that anybody has started."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection, Coroutine
from functools import partial
from typing import Any, Literal

from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_ml_provider.models.kfp import PipelineRun, WaitOutcome
from airflow_ml_provider.triggers.kfp_events import KfpRunEventTrigger
from airflow_ml_provider.triggers.kfp_poller import KfpPoller, connected, in_thread

__all__ = ["KfpRunEventTrigger", "KfpRunTrigger"]

log = logging.getLogger(__name__)

MARKS: dict[str | None, Literal["kill", "success", "clear", "none"]] = {
    "failed": "kill",
    "skipped": "kill",  # a DAG run's timeout
    "upstream_failed": "kill",
    "removed": "kill",
    "success": "success",
    None: "clear",
    "scheduled": "clear",
    "queued": "clear",
    "running": "clear",
    "restarting": "clear",
    "deferred": "none",  # it waits elsewhere: Airflow has given the trigger to another triggerer, as after a stalled heartbeat
    "up_for_retry": "none",  # its next try takes the run up again
    "up_for_reschedule": "none",
}
"""What a person did, by the state of a task whose trigger was killed; a state that is not here is no reason to stop a run."""

ASK_STATE_S = 10.0
STOPS_AT_ONCE = 3
"""Terminates in flight: each may hold a thread for 13 s, and one user's mark can stop a thousand tasks."""

_detached: set[asyncio.Task[Any]] = set()
_asked: dict[tuple[str, str, str], asyncio.Task[dict[str, str | None]]] = {}
_turns: dict[asyncio.AbstractEventLoop, asyncio.Semaphore] = {}


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

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """
        Say how to make it again.

        :return: Class path and arguments, plain JSON.
        """
        names = ("kfp_conn_id", "run_id", "namespace", "deadline", "poll_interval_s", "patience_s", "stuck_s", "stop_on_timeout")
        arguments = {name: getattr(self, name) for name in (*names, "leave_running")}
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
        yield TriggerEvent(told.model_dump(mode="json"))  # type: ignore[no-untyped-call]  # Airflow's

    async def on_kill(self) -> None:
        """
        Stop the run if a person has killed, marked or cleared the task; called by Airflow 3.3 and later.

        Airflow calls it too when it has given the trigger to another triggerer, so the task's state is asked for first, and
        without an answer the run goes on. What is begun here goes on when Airflow's limit of 30 s ends the wait for it.
        """
        await _detach(self._kill())

    async def _kill(self) -> None:
        mark = MARKS.get(await self._task_state(), "none")
        if mark == "none" or mark in self.leave_running:
            log.warning("The trigger of KFP run %s was removed (%s); the run is not stopped.", self.run_id, mark)
            return
        log.info("The task was killed, marked or cleared. KFP run %s is stopped.", self.run_id)
        problem = await _stop(self.kfp_conn_id, self.namespace, self.run_id)
        if problem is not None:
            log.error("KFP run %s could not be stopped and goes on: %s", self.run_id, problem)

    async def _at_deadline(self, told: WaitOutcome) -> WaitOutcome:
        """Look once more, as what ends a run may come with its deadline, and stop it."""
        from airflow_ml_provider.jobs.kfp_wait import with_stop

        async with _turn():
            found = await in_thread(self._look)
        if found is not None and found.state.ended:
            message = f"Run {self.run_id} ended as {found.state}."
            return WaitOutcome(run_id=self.run_id, outcome="ended", state=found.state, message=message)
        if not self.stop_on_timeout:
            return told
        return with_stop(told, await _stop(self.kfp_conn_id, self.namespace, self.run_id))

    def _look(self) -> PipelineRun | None:
        try:
            with connected(self.kfp_conn_id, self.namespace) as jobs:
                return jobs.find([self.run_id]).get(self.run_id)
        except Exception as error:  # noqa: BLE001  (it is stopped all the same, and the operator looks again)
            log.warning("Could not look at KFP run %s: %s", self.run_id, error)
            return None

    async def _task_state(self) -> str | None:
        """Ask Airflow for the state of the task; ``unknown`` without an answer."""
        ti: Any = self.task_instance
        for _ in range(2):
            try:
                states = await asyncio.wait_for(asyncio.shield(_states_of(ti.dag_id, ti.run_id, ti.task_id)), ASK_STATE_S)
            except Exception as error:  # noqa: BLE001  (whatever it is, it is no reason to stop a run)
                log.warning("Airflow did not tell the state of the task of KFP run %s: %r", self.run_id, error)
            else:
                return states.get(ti.task_id if ti.map_index < 0 else f"{ti.task_id}_{ti.map_index}", "removed")
        return "unknown"


def _states_of(dag_id: str, run_id: str, task_id: str) -> asyncio.Task[dict[str, str | None]]:
    """Ask for the states of all instances of a task at once: a mark may have killed a thousand of them together."""
    key = (dag_id, run_id, task_id)

    async def ask() -> dict[str, str | None]:
        await asyncio.sleep(0.05)  # for the others
        del _asked[key]  # who comes now may have been marked after the answer was made
        return await in_thread(partial(_ask_states, *key))

    if key not in _asked or _asked[key].get_loop() is not asyncio.get_running_loop():
        _asked[key] = asyncio.get_running_loop().create_task(ask())
    return _asked[key]


def _ask_states(dag_id: str, run_id: str, task_id: str) -> dict[str, str | None]:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    return dict(RuntimeTaskInstance.get_task_states(dag_id=dag_id, run_ids=[run_id], task_ids=[task_id]).get(run_id, {}))


async def _detach(work: Coroutine[Any, Any, None]) -> None:
    """Wait for something that goes on when nobody waits for it any more."""
    task = asyncio.get_running_loop().create_task(work)
    _detached.add(task)
    task.add_done_callback(_detached.discard)
    await asyncio.shield(task)


async def _stop(conn_id: str, namespace: str, run_id: str) -> str | None:
    """Have a run terminated, asking again while the server does not do it, a few at a time."""
    from airflow_ml_provider.jobs.kfp_wait import STOP_PAUSES_S

    problem: str | None = None
    for pause in (0.0, *STOP_PAUSES_S):
        await asyncio.sleep(pause)
        async with _turn():
            again, problem = await in_thread(partial(_stop_once, conn_id, namespace, run_id))
        if not again:
            break
    return problem


def _stop_once(conn_id: str, namespace: str, run_id: str) -> tuple[bool, str | None]:
    from airflow_ml_provider.jobs.kfp_wait import stop_once

    try:
        with connected(conn_id, namespace) as jobs:
            return stop_once(jobs, run_id)
    except Exception as error:  # noqa: BLE001  (no connection, for example: told, not raised)
        return True, str(error)


def _turn() -> asyncio.Semaphore:
    loop = asyncio.get_running_loop()
    for each in [each for each in _turns if each.is_closed()]:
        del _turns[each]
    return _turns.setdefault(loop, asyncio.Semaphore(STOPS_AT_ONCE))
