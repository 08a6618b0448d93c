"""The only place that knows which Airflow is installed: names that moved, and what older releases lack."""

from __future__ import annotations

from typing import Any


def redact(value: Any, name: str | None = None) -> Any:
    """
    Hide what Airflow's own masker would hide in a log.

    :param value: Any JSON value; texts that contain a known secret are masked too.
    :param name: Name of the value; a name such as ``password`` masks it whole.
    :return: The same shape, secrets replaced by ``***``.
    """
    try:
        from airflow.sdk._shared.secrets_masker import redact as airflow_redact
    except ImportError:  # Airflow 3.1
        from airflow.sdk.execution_time.secrets_masker import redact as airflow_redact
    return airflow_redact(value, name)


def read_option(section: str, option: str) -> str | None:
    """
    Read one option of Airflow's configuration, environment variables included.

    :param section: Section.
    :param option: Option.
    :return: Its text, None where it is not set.
    """
    try:
        from airflow.sdk import conf
    except ImportError:  # Airflow 3.1
        from airflow.configuration import conf
    value = conf.get(section, option, fallback=None)
    return None if value is None else str(value)
