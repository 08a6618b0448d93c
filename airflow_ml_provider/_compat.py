"""The only place that knows which Airflow is installed: names that moved, and what older releases lack."""

from __future__ import annotations

import importlib
from typing import Any


def redact(value: Any, name: str | None = None) -> Any:
    """
    Hide what Airflow's own masker would hide in a log.

    :param value: Any JSON value; texts that contain a known secret are masked too.
    :param name: Name of the value; a name such as ``password`` masks it whole.
    :return: The same shape, secrets replaced by ``***``.
    """
    return _first_of("airflow.sdk._shared.secrets_masker", "airflow.sdk.execution_time.secrets_masker").redact(value, name)


def read_option(section: str, option: str) -> str | None:
    """
    Read one option of Airflow's configuration, environment variables included.

    :param section: Section.
    :param option: Option.
    :return: Its text, None where it is not set.
    """
    value = _first_of("airflow.sdk.configuration", "airflow.configuration").conf.get(section, option, fallback=None)
    return None if value is None else str(value)


def _first_of(*modules: str) -> Any:
    """Import the first module that this Airflow has; newest name first."""
    for name in modules[:-1]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    return importlib.import_module(modules[-1])
