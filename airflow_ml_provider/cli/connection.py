"""Reading an Airflow connection outside of a task: from the environment, a secrets backend, or Airflow's database."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowHook

PROCESS_CONTEXT = "_AIRFLOW_PROCESS_CONTEXT"
"""What tells Airflow's task SDK where it runs; ``server`` may read the database, as in Airflow's own commands."""


@contextmanager
def open_api(conn_id: str) -> Iterator[MlflowApi]:
    """
    Open the MLflow server of a connection.

    :param conn_id: Airflow connection.
    :return: Its client, closed with the block.
    :raises ConfigError: there is no such connection, or Airflow's database that should hold it cannot be read.
    """
    os.environ.setdefault(PROCESS_CONTEXT, "server")
    try:
        api = MlflowHook(conn_id).api()
    except ConfigError as error:
        if isinstance(error.__cause__, AirflowNotFoundException) and os.environ[PROCESS_CONTEXT] == "server":
            _check_database(conn_id)
        raise
    with closing(api):
        yield api


def _check_database(conn_id: str) -> None:
    """Tell a missing connection from a database that cannot be read; Airflow answers both alike."""
    from airflow.models.connection import Connection
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with create_session() as session:
            session.execute(select(Connection.id).limit(1)).first()
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error)
        raise ConfigError(
            f"connection {conn_id!r} is not in the environment, and Airflow's database cannot be read: {reason}. Set "
            f"AIRFLOW_CONN_{conn_id.upper()}, or AIRFLOW_HOME or [database] sql_alchemy_conn to those of your Airflow."
        ) from error
