"""What a failed step in a pod gets from Airflow 3.3: a retry at once, one after a while, or none, by what has gone wrong."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from airflow_ml_provider._compat import has_retry_policies
from airflow_ml_provider.exceptions import (
    AirflowMLError,
    ImagePullError,
    NodeLostError,
    PodDeletedError,
    PodError,
    PodEvictedError,
    PodNotStartedError,
    PodOutOfMemoryError,
    PodPreemptedError,
    PodUnreachableError,
    StepStoreError,
)

if TYPE_CHECKING:
    from airflow.sdk.definitions.retry_policy import RetryPolicy

DEFAULT = "airflow_ml_provider.operators.pod_retry_policy.PodRetryPolicy"
"""By its name: its module is imported on Airflow 3.3 and later alone."""
AT_ONCE = timedelta(0)
A_WHILE = timedelta(minutes=2)
DELAYS: tuple[tuple[type[AirflowMLError], timedelta], ...] = (
    (PodPreemptedError, AT_ONCE),
    (NodeLostError, AT_ONCE),
    (PodEvictedError, AT_ONCE),
    (PodDeletedError, AT_ONCE),
    (PodOutOfMemoryError, AT_ONCE),
    (ImagePullError, A_WHILE),
    (PodNotStartedError, A_WHILE),
    (StepStoreError, A_WHILE),
    (PodUnreachableError, A_WHILE),
)
"""How long to wait before a retry that can help; what waits for something to come back waits longer."""


def retry_delay(error: BaseException) -> timedelta | None:
    """
    Say how long to wait before a step is tried again, other than the task's own ``retry_delay``.

    :param error: What the task has raised.
    :return: The delay; None to leave it to the task.
    """
    if not isinstance(error, PodError) or not error.curable:
        return None
    return next((delay for kind, delay in DELAYS if isinstance(error, kind)), None)


def is_default_policy(policy: object) -> bool:
    """
    Tell the policy of :func:`default_retry_policy` from one of the user's.

    :param policy: A policy.
    :return: Whether it is ours, and not made anew of it.
    """
    return f"{type(policy).__module__}.{type(policy).__name__}" == DEFAULT


def default_retry_policy() -> RetryPolicy | None:
    """
    Make the policy of an operator that was given none.

    :return: The policy; None before Airflow 3.3, where ``retries`` and ``retry_delay`` decide, and what no retry mends fails at
        once all the same.
    """
    if not has_retry_policies():
        return None
    from airflow_ml_provider.operators.pod_retry_policy import PodRetryPolicy

    return PodRetryPolicy()
