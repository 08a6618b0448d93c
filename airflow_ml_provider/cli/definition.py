"""The commands for Airflow's own command line; imported at every ``airflow`` call, so it imports nothing heavy."""

from __future__ import annotations

from typing import Any


def get_commands() -> list[Any]:
    """
    List the commands for ``airflow ml``.

    :return: Airflow's group of commands.
    """
    return []
