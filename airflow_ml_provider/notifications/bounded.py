"""Doing several things at once for a bounded time: what hangs is left behind in a thread that holds up nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

K = TypeVar("K")


class Bound:
    """
    A span of time that begins now.

    :param limit_s: Its length in seconds.
    """

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.ends_at = time.monotonic() + limit_s

    def left_s(self) -> float:
        """
        Say what is left.

        :return: Seconds, 0 when it is over.
        """
        return max(0.0, self.ends_at - time.monotonic())

    def part(self, share: float) -> Bound:
        """
        Set aside a part of the whole, for what comes first.

        :param share: Between 0 and 1, of the whole length.
        :return: A bound that ends when that much of the whole has passed, which may be now.
        """
        spent_s = self.limit_s - self.left_s()
        return Bound(max(0.0, self.limit_s * share - spent_s))

    def at_least(self, least_s: float) -> Bound:
        """
        Keep a least span for what comes last, however long that before it took.

        :param least_s: Seconds.
        :return: This bound, or a longer one that ends when that much has passed from now.
        """
        if self.left_s() >= least_s:
            return self
        longer = Bound(least_s)
        longer.limit_s += time.monotonic() - self.ends_at + self.limit_s
        return longer


def run_together(calls: Mapping[K, Callable[[], None]], bound: Bound) -> set[K]:
    """
    Make each call in a thread of its own, and wait for them as long as the bound allows.

    The threads are daemons: neither a dead resolver nor a server that answers a byte at a time keeps the process alive.
    A call must not ask Airflow for anything, since Airflow's line to its supervisor is made for the calling thread; and it
    must not raise.

    :param calls: The calls, each under a name.
    :param bound: How long to wait.
    :return: Names of the calls that have not come to an end.
    """
    threads = {key: threading.Thread(target=call, name=f"airflow-ml-alert-{key}", daemon=True) for key, call in calls.items()}
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(bound.left_s())
    return {key for key, thread in threads.items() if thread.is_alive()}
