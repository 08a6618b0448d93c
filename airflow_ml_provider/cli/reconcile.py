"""``airflow-ml reconcile``: bring MLflow's open runs to what Airflow's database says of them."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator

from airflow_ml_provider.exceptions import AirflowMLError
from airflow_ml_provider.tracking.reconcile import Finding


def run(args: Namespace) -> int:
    """
    Settle every DAG run that has an open MLflow run, and say what was done.

    Run it where Airflow's metadata database can be read, as for Airflow's own commands.

    :param args: ``dry_run`` changes nothing; ``conn_id`` of the MLflow server; ``experiment`` is a name, or None for all.
    :return: Exit code: 0, or 1 when something could not be read, so that not everything is known to be settled.
    """
    # As Airflow's own commands do: connections may come from the metadata database here.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    done: list[Finding] = []
    try:
        for finding in _settle(args):
            done.append(finding)
            print(finding)
    except AirflowMLError as error:
        print(f"airflow-ml reconcile: {error}", file=sys.stderr)
        return 1
    finally:
        print(_summary(done, dry_run=args.dry_run))
    return 1 if any(each.problem for each in done) else 0


def _settle(args: Namespace) -> Iterator[Finding]:
    from airflow_ml_provider.config import ui_address
    from airflow_ml_provider.hooks.mlflow import MlflowHook
    from airflow_ml_provider.listeners.runs import read_database
    from airflow_ml_provider.tracking.reconcile import Reconciler
    from airflow_ml_provider.tracking.runs import RunTree

    api = MlflowHook(args.conn_id).api()
    try:
        reconciler = Reconciler(RunTree(api), read_database, home=ui_address(), dry_run=args.dry_run)
        yield from reconciler.walk(args.experiment)
    finally:
        api.close()


def _summary(done: list[Finding], *, dry_run: bool) -> str:
    count, problems = Counter(each.action for each in done), sum(each.problem for each in done)
    would = "to close" if dry_run else "closed"
    text = f"{count['closed']} {would}, {count['moved']} moved, {count['left']} left open"
    return f"{text}, of which {problems} because Airflow could not be read" if problems else text
