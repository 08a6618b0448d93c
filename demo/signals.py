"""The signals that end the demo: one exception, held back where a start or a stop must not be cut in two."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

__all__ = ["StopRequested", "deferred", "stop_on_signal"]

# Ctrl-C, a polite end, a closed terminal.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequested(BaseException):
    """Somebody asked the demo to end."""


@contextmanager
def stop_on_signal() -> Iterator[None]:
    """
    Raise :class:`StopRequested` at the first signal to end, and ignore the further ones.

    Set even where the signal was ignored before, as Ctrl-C is for what a script starts in the background.
    """
    asked = False

    def ask(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if not asked:
            asked = True
            raise StopRequested

    before = {number: signal.signal(number, ask) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


@contextmanager
def deferred() -> Iterator[None]:
    """Hold back the signals to end until the ``with`` statement is left; a process started in it has its own."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []

    def keep(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, keep) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        for held in caught[:1]:
            signal.raise_signal(held)
