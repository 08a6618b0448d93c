"""Stopping runs from a triggerer: a few at a time, each within a stated time, whatever the server does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import TYPE_CHECKING, TypeVar

from airflow_ml_provider.models.kfp import PipelineRun
from airflow_ml_provider.triggers.kfp_poller import KfpPoller, connected
from airflow_ml_provider.triggers.marks import turn
from airflow_ml_provider.triggers.threads import in_thread

if TYPE_CHECKING:
    from airflow_ml_provider.jobs.kfp import Cancelled, KfpJobs

log = logging.getLogger(__name__)
T = TypeVar("T")

STOP_WITHIN_S = 60.0
"""Seconds after its deadline within which a run is stopped, or its task is told that it could not be."""
KILL_WITHIN_S = 600.0
"""Seconds in which the run of a killed task is stopped; nobody waits for that."""
LOOK_WITHIN_S = 15.0
ANSWER_S = 20.0
"""Seconds to wait for the answer to one terminate; 13 were seen while Kubernetes did not answer the server."""
HOPELESS = 2
"""Stops that failed in a row on one connection, after which each run is asked for once only."""
HOPELESS_S = 60.0
"""Seconds after the last of them in which that holds."""
END_WITHIN_S = 60.0
"""Seconds in which a run that was stopped is expected to end; then its carrier can go."""


@dataclass
class _Trouble:
    """Stops that failed in a row on one connection."""

    failed: int = 0
    at: float = -inf

    def hopeless(self, now: float) -> bool:
        return self.failed >= HOPELESS and now - self.at < HOPELESS_S


_troubles: dict[tuple[asyncio.AbstractEventLoop, str], _Trouble] = {}


async def stop(conn_id: str, namespace: str, run_id: str, *, within_s: float) -> str | None:
    """
    Have a run terminated, asking again while the server does not do it; many that are stopped at once take turns.

    :param conn_id: Connection of the server.
    :param namespace: Namespace of the run; empty for the connection's own.
    :param run_id: The run; one that is gone, or has ended, is as good as stopped.
    :param within_s: Seconds after which it is given up, whether it had its turn or not.
    :return: None when the server has agreed, else why it has not.
    """
    from airflow_ml_provider.jobs import kfp_wait

    loop, problem = asyncio.get_running_loop(), f"the server did not get round to it within {within_s:.0f} s."
    end, trouble = loop.time() + within_s, _trouble_of(conn_id)
    for pause in (0.0, *kfp_wait.STOP_PAUSES_S):
        if loop.time() + pause >= end:
            break
        await asyncio.sleep(pause)
        answer = await in_turn(("stop", conn_id), partial(_stop_once, conn_id, namespace, run_id), end - loop.time())
        if answer is None:
            break
        again, found = answer
        if not again:
            trouble.failed = 0
            return found
        problem = found or problem
        if trouble.hopeless(loop.time()):
            break
    trouble.failed, trouble.at = trouble.failed + 1, loop.time()
    return problem


async def look(conn_id: str, namespace: str, run_id: str, *, listed: bool) -> PipelineRun | None:
    """
    Look at a run once.

    :param conn_id: Connection of the server.
    :param namespace: Namespace of the run; empty for the connection's own.
    :param run_id: The run.
    :param listed: Whether to look among the runs of the namespace; else by its id, wherever it is.
    :return: The run; None when it was not found, for whatever reason.
    """
    return await in_turn(("look", conn_id), partial(_look, conn_id, namespace, run_id, listed=listed), LOOK_WITHIN_S)


async def wait_for_end(conn_id: str, namespace: str, run_id: str) -> bool:
    """
    Wait for the end of a run that was stopped, with all who wait for the server; not for long.

    :param conn_id: Connection of the server.
    :param namespace: Namespace of the run; empty for the connection's own.
    :param run_id: The run.
    :return: Whether it has ended, or is gone.
    """
    deadline = asyncio.get_running_loop().time() + END_WITHIN_S
    waiting = KfpPoller.of(conn_id, namespace).wait(run_id, poll_interval_s=2.0, patience_s=END_WITHIN_S)
    try:
        async with asyncio.timeout_at(deadline):
            return (await waiting).outcome in {"ended", "gone"}
    except TimeoutError:
        return False


async def delete_carriers(conn_id: str, namespace: str, run_id: str) -> None:
    """
    Delete the carriers of a run that was stopped, when it has ended.

    Never before: Kubernetes deletes the workflow with its carrier, and nobody would ever report the end of the run.

    :param conn_id: Connection of the server.
    :param namespace: Namespace of the run; empty for the connection's own.
    :param run_id: The run.
    """
    if not await wait_for_end(conn_id, namespace, run_id):
        log.warning(
            "Run %s was stopped and has not ended within %.0f s. Its carrier, a disabled recurring run of that name, stays.",
            run_id,
            END_WITHIN_S,
        )
        return
    await in_turn(("carriers", conn_id), partial(_delete_carriers, conn_id, namespace, run_id), END_WITHIN_S)


async def in_turn(kind: tuple[str, str], call: Callable[[], T], within_s: float) -> T | None:
    """
    Call something that blocks on a thread, a few of a kind at a time; a thread that hangs keeps its place until it ends.

    :param kind: Those of one kind take turns.
    :param call: What to call; it does not raise.
    :param within_s: Seconds to wait for its turn and its answer.
    :return: What it returned, None when the time was up before.
    """
    places, end = turn(kind), asyncio.get_running_loop().time() + within_s
    try:
        async with asyncio.timeout_at(end):
            await places.acquire()
        task = asyncio.ensure_future(in_thread(call))
        task.add_done_callback(lambda _: places.release())
        async with asyncio.timeout_at(end):
            return await asyncio.shield(task)
    except TimeoutError:
        return None


class _Quick:
    """Runs of a server, of which no answer to a terminate is waited for too long."""

    def __init__(self, jobs: KfpJobs) -> None:
        self._jobs = jobs

    def cancel(self, run_id: str) -> Cancelled:
        return self._jobs.cancel(run_id, timeout_s=ANSWER_S)


def _trouble_of(conn_id: str) -> _Trouble:
    loop = asyncio.get_running_loop()
    for each in [each for each in _troubles if each[0].is_closed()]:
        del _troubles[each]
    return _troubles.setdefault((loop, conn_id), _Trouble())


def _stop_once(conn_id: str, namespace: str, run_id: str) -> tuple[bool, str | None]:
    from airflow_ml_provider.jobs.kfp_wait import stop_once

    try:
        with connected(conn_id, namespace) as jobs:
            return stop_once(_Quick(jobs), run_id)
    except Exception as error:  # noqa: BLE001  (no connection, for example: told, not raised)
        return True, str(error)


def _look(conn_id: str, namespace: str, run_id: str, *, listed: bool) -> PipelineRun | None:
    try:
        with connected(conn_id, namespace) as jobs:
            return jobs.find([run_id]).get(run_id) if listed else jobs.look(run_id)
    except Exception as error:  # noqa: BLE001  (the operator looks again)
        log.warning("Could not look at KFP run %s: %s", run_id, error)
        return None


def _delete_carriers(conn_id: str, namespace: str, run_id: str) -> None:
    from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog

    try:
        with connected(conn_id, namespace) as jobs:
            catalog = KfpCatalog(jobs.api, namespace)
            for each in catalog.carriers(run_id):
                catalog.delete_recurring_run(each)
    except Exception as error:  # noqa: BLE001  (nothing depends on it)
        log.warning("The carrier of run %s, a disabled recurring run of that name, is left behind: %s", run_id, error)
