"""``airflow-ml rollback``: the champion and the one before it swap."""

from __future__ import annotations

from argparse import Namespace

from airflow_ml_provider.cli.connection import open_api
from airflow_ml_provider.tracking.registry import ModelRegistry


def run(args: Namespace) -> int:
    """
    Roll back.

    :param args: ``name``, ``alias``, ``previous_alias`` and ``conn_id``.
    :return: 0.
    :raises ConfigError: there is no champion, or none before it; a retry never helps.
    """
    with open_api(args.conn_id) as api:
        done = ModelRegistry(api).rollback(args.name, alias=args.alias, previous_alias=args.previous_alias)
    print(f"{done.name}@{args.alias} is version {done.version} again; {args.previous_alias} is version {done.previous}.")
    return 0
