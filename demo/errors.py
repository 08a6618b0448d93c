"""The one error of the demo: a message for the person at the terminal."""

from __future__ import annotations

__all__ = ["DemoError"]


class DemoError(RuntimeError):
    """
    The demo cannot go on; the message says what, and what to do about it.

    It is printed as it is, without a traceback, so it must be readable alone.
    """
