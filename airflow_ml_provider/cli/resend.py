"""``airflow-ml resend``: what a step could not send to MLflow."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from airflow_ml_provider.cli.connection import open_api
from airflow_ml_provider.cli.main import complain
from airflow_ml_provider.exceptions import AirflowMLError, RemoteNotFoundError, SupersededError
from airflow_ml_provider.tracking import spool
from airflow_ml_provider.tracking.record import Recorder


def run(args: Namespace) -> int:
    """
    Send records; one that fails does not keep the others back.

    :param args: ``paths`` and ``conn_id``.
    :return: 0 if all are through, 1 if one is not.
    """
    failed = 0
    for path in args.paths:
        try:
            print(_resend(_absolute(path), args.conn_id), flush=True)
        except SupersededError as error:
            failed = 1
            complain(
                f"{path}: not sent, since it would overwrite what came after: {error} It stays; delete it if nobody needs it."
            )
        except RemoteNotFoundError as error:
            failed = 1
            complain(f"{path}: not sent: {error} Restore the run in MLflow (mlflow runs restore), then send again; it stays.")
        except AirflowMLError as error:
            failed = 1
            complain(f"{path}: not sent: {error}")
    return failed


def _resend(place: str, conn_id: str | None) -> str:
    with open_api(conn_id or spool.read(place).conn_id) as api:
        record = spool.resend(place, Recorder(api))
        attempt, run = record.attempt, record.run
        made = ", ".join(output.name for output in record.outputs) or "none"
        return (
            f"sent: {attempt.identity.label}, try {attempt.try_number} of {attempt.identity.dag_id} "
            f"{attempt.identity.run_id} ({record.status.lower()}; outputs: {made}) "
            f"to {api.server.run_page(run.experiment_id, run.run_id)}"
        )


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).absolute())
