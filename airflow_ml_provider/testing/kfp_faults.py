"""Faults that a test orders: which request they hit, how often, and what they do to it."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass

from airflow_ml_provider.testing.kfp_values import Request

AROUND = frozenset({"reset", "hang", "slow", "lost-before", "lost-after", "hang-after"})
INSIDE = frozenset({"lost-between", "orphan-500"})
CREATE = r"^/apis/v2beta1/runs$"


@dataclass
class Fault:
    """
    One order.

    :param kind: See :meth:`~airflow_ml_provider.testing.FakeKfpServer.fault`.
    :param method: Method that it waits for, None for any.
    :param path: Regular expression that is searched in the path, None for any.
    :param left: How often it still strikes.
    :param seconds: How long it hangs, 0 for until the server stops.
    """

    kind: str
    method: str | None
    path: str | None
    left: int
    seconds: float

    def hits(self, request: Request) -> bool:
        """
        Say whether it is meant for a request.

        :param request: The request.
        :return: Whether method and path fit.
        """
        return (self.method is None or self.method == request.method) and (
            self.path is None or re.search(self.path, request.path) is not None
        )


class Faults:
    """The orders that stand, in the order in which they were given."""

    def __init__(self) -> None:
        self.guard = threading.Lock()
        self.orders: list[Fault] = []

    def add(self, kind: str, method: str | None, path: str | None, times: int, seconds: float) -> None:
        """
        Order one.

        :param kind: What happens.
        :param method: Method, None for any.
        :param path: Part of the path, None for any.
        :param times: How often.
        :param seconds: How long.
        :raises ValueError: the kind is not known.
        """
        if kind not in AROUND | INSIDE and not re.fullmatch(r"status-[1-5]\d\d", kind):
            raise ValueError(f"fault {kind!r} is not known; use status-<number> or one of {sorted(AROUND | INSIDE)}")
        if path is None and (kind.startswith("lost-") or kind in {"orphan-500", "hang-after"}):
            method, path = method or "POST", CREATE
        with self.guard:
            self.orders.append(Fault(kind, method, path, times, seconds))

    def clear(self) -> None:
        """Take every order back."""
        with self.guard:
            self.orders.clear()

    def take(self, request: Request) -> Fault | None:
        """
        Find what strikes a request, and count it.

        :param request: The request.
        :return: The first order that fits, None for none.
        """
        with self.guard:
            for each in self.orders:
                if each.hits(request):
                    each.left -= 1
                    if each.left <= 0:
                        self.orders.remove(each)
                    return each
        return None
