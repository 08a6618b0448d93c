"""Waiting for a server that is away, within a stated time, and saying so while it lasts."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_exponential, wait_random

from airflow_ml_provider.exceptions import RemoteUnavailableError

log = logging.getLogger(__name__)
T = TypeVar("T")


def patiently(what: str, call: Callable[[], T], patience_s: float) -> T:
    """
    Call until it does not raise :class:`RemoteUnavailableError`.

    :param what: For the log, "open the run of train".
    :param call: What may be repeated.
    :param patience_s: Seconds after which the error is raised; 0 calls once.
    :return: What ``call`` returned.
    :raises RemoteUnavailableError: patience has run out; a retry is safe.
    """

    def tell(state: RetryCallState) -> None:
        left = max(0.0, patience_s - (state.seconds_since_start or 0.0))
        error = state.outcome.exception() if state.outcome else None
        log.warning("Could not %s: %s Waiting, for %.0f s more at most ([ml] patience_s).", what, error, left)

    pause_s = min(1.0, patience_s / 20)
    return Retrying(
        stop=stop_after_delay(patience_s),
        wait=wait_exponential(multiplier=pause_s, max=10.0) + wait_random(0.0, pause_s),
        retry=retry_if_exception_type(RemoteUnavailableError),
        before_sleep=tell,
        reraise=True,
    )(call)
