"""When a read is sent again: bounded, with jitter, and no earlier than the server asked for."""

from __future__ import annotations

import logging
import time
from email.utils import parsedate_to_datetime

from tenacity import RetryCallState, wait_exponential, wait_random

log = logging.getLogger(__name__)

LONGEST_PAUSE_S = 60.0
"""Seconds that a ``Retry-After`` can make one read wait."""
_backoff = wait_exponential(multiplier=0.5, max=5.0) + wait_random(0.0, 0.5)


class Pace:
    """How long to wait between the attempts of one request: tenacity's ``wait``."""

    def __init__(self) -> None:
        self.asked_s = 0.0

    def asked(self, retry_after: str | None) -> None:
        """
        Remember what the server asked for.

        :param retry_after: The header ``Retry-After`` of the last answer, None for none.
        """
        self.asked_s = min(seconds_of(retry_after), LONGEST_PAUSE_S)

    def __call__(self, state: RetryCallState) -> float:
        """Seconds to wait after an attempt."""
        return max(_backoff(state), self.asked_s)


def seconds_of(retry_after: str | None) -> float:
    """
    Read a ``Retry-After`` header.

    :param retry_after: Seconds or a date; None for no header.
    :return: Seconds from now, 0 for none or one that is not understood.
    """
    if not retry_after:
        return 0.0
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def log_repetition(state: RetryCallState) -> None:
    """
    Tell in the log why a request is sent again, for tenacity.

    :param state: The last attempt.
    """
    error = state.outcome.exception() if state.outcome else None
    wait = state.next_action.sleep if state.next_action else 0.0
    log.warning("%s Trying again in %.1f s (attempt %d).", error, wait, state.attempt_number + 1)
