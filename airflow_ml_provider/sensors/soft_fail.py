"""What ``soft_fail`` of our sensors means: a wait in vain is skipped, a wrong connection, name or rule is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException
from airflow.sdk import BaseSensorOperator


def unsoftened(sensor: BaseSensorOperator, wait: Callable[..., Any], *args: Any) -> Any:
    """
    Wait, and fail for what no wait mends: with ``soft_fail``, Airflow skips for that too.

    :param sensor: The sensor.
    :param wait: Airflow's own way of waiting, or of going on.
    :param args: What it is given.
    :return: What it returns.
    :raises AirflowFailException: something that the DAG's author has said is wrong; a retry never helps.
    """
    try:
        return wait(*args)
    except AirflowSkipException as skipped:
        wrong = skipped.__cause__
        if not (sensor.soft_fail and isinstance(wrong, AirflowFailException)):
            raise
    raise wrong  # out of the handler: else each of the two would be the other's reason, without end
