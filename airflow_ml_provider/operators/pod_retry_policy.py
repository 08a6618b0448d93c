"""The retry policy of steps in pods; imported on Airflow 3.3 and later alone, which has retry policies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.sdk.definitions.retry_policy import RetryDecision, RetryPolicy

from airflow_ml_provider.exceptions import PodError
from airflow_ml_provider.operators.pod_retry import retry_delay

if TYPE_CHECKING:
    from airflow.sdk import Context


class PodRetryPolicy(RetryPolicy):
    """
    Tries again at once after a preemption, a lost node, an eviction, and after a while where a server was away.

    What no retry mends (a program that failed, no room, a deadline) fails at once, without it too. It never gives more tries
    than ``retries``, and leaves everything else to the task's own settings.
    """

    def evaluate(
        self,
        exception: BaseException,
        try_number: int,  # noqa: ARG002  (Airflow's signature)
        max_tries: int,  # noqa: ARG002
        context: Context | None = None,  # noqa: ARG002
    ) -> RetryDecision:
        """
        Decide about a failure.

        :param exception: What the task has raised.
        :param try_number: Not looked at.
        :param max_tries: Not looked at: Airflow keeps to it.
        :param context: Not looked at.
        :return: No retry, a retry with a delay of its own, or the task's own settings.
        """
        reason = f"{type(exception).__name__}: {exception}"
        if isinstance(exception, PodError) and not exception.curable:
            return RetryDecision.fail(reason)
        delay = retry_delay(exception)
        return RetryDecision.default() if delay is None else RetryDecision.retry(delay, reason)

    def serialize(self) -> dict[str, Any]:
        """
        Write the policy, which has no settings.

        :return: Its kind.
        """
        return {"__type": f"{PodRetryPolicy.__module__}.{PodRetryPolicy.__name__}"}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> PodRetryPolicy:  # noqa: ARG003  (Airflow's signature)
        """
        Read it again.

        :param data: What :meth:`serialize` gave.
        :return: The policy.
        """
        return cls()
