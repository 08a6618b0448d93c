"""Calls that block, made from an event loop that must not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(call: Callable[[], T]) -> T:
    """
    Call something that blocks on a thread, from which Airflow's supervisor can be asked too.

    ``asyncio.to_thread`` is not enough before Airflow 3.2: there a connection is read with ``async_to_sync``, which finds the
    event loop only from a thread of ``sync_to_async``. And that one, when cancelled, waits for its thread; this one does not.

    :param call: The call.
    :return: What it returns.
    """
    from asgiref.sync import sync_to_async

    task = asyncio.ensure_future(sync_to_async(call, thread_sensitive=False)())
    task.add_done_callback(look_away)
    return await asyncio.shield(task)


def look_away(task: asyncio.Task[Any]) -> None:
    """
    Take the error of a task, which nobody may wait for any more; asyncio would complain.

    :param task: The task, done.
    """
    if not task.cancelled():
        task.exception()
