"""What a person did to a task whose trigger was killed, and the means to act on it after Airflow has stopped waiting for that."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Hashable
from functools import partial
from typing import Any, Literal

from airflow_ml_provider.triggers.threads import in_thread

log = logging.getLogger(__name__)

Mark = Literal["kill", "success", "clear", "none"]

MARKS: dict[str | None, Mark] = {
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
_turns: dict[tuple[asyncio.AbstractEventLoop, Hashable], asyncio.Semaphore] = {}


async def task_state(ti: Any, what: str) -> str | None:
    """
    Ask Airflow for the state of the task whose trigger was killed.

    :param ti: The trigger's ``task_instance``.
    :param what: What the task waits for, for the log: ``KFP run 1b2c``.
    :return: The state, None when it has none; ``unknown`` without an answer.
    """
    for _ in range(2):
        try:
            states = await asyncio.wait_for(asyncio.shield(_states_of(ti.dag_id, ti.run_id, ti.task_id)), ASK_STATE_S)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is no reason to stop a run)
            log.warning("Airflow did not tell the state of the task of %s: %r", what, error)
        else:
            return states.get(ti.task_id if ti.map_index < 0 else f"{ti.task_id}_{ti.map_index}", "removed")
    return "unknown"


async def detach(work: Coroutine[Any, Any, None]) -> None:
    """
    Wait for something that goes on when nobody waits for it any more.

    :param work: What is to be done.
    """
    task = asyncio.get_running_loop().create_task(work)
    _detached.add(task)
    task.add_done_callback(_detached.discard)
    await asyncio.shield(task)


def turn(kind: Hashable = "") -> asyncio.Semaphore:
    """
    Give what lets a few requests that stop something go on at once, of all triggers of the event loop.

    :param kind: Those of one kind take turns; one server that hangs is not to hold up what concerns another.
    :return: The semaphore of the running loop.
    """
    loop = asyncio.get_running_loop()
    for each in [each for each in _turns if each[0].is_closed()]:
        del _turns[each]
    return _turns.setdefault((loop, kind), asyncio.Semaphore(STOPS_AT_ONCE))


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
