"""``airflow-ml rollback``: the champion and the one before it swap, and whoever is named hears of it."""

from __future__ import annotations

from argparse import Namespace
from datetime import UTC, datetime

from airflow_ml_provider.cli.connection import open_api
from airflow_ml_provider.cli.main import complain
from airflow_ml_provider.notifications.alerts import ml_alert
from airflow_ml_provider.notifications.build import build_rolled_back
from airflow_ml_provider.notifications.send import Targets, send
from airflow_ml_provider.tracking.registry import ModelRegistry, Promotion


def run(args: Namespace) -> int:
    """
    Roll back, and tell of it.

    :param args: ``name``, ``alias``, ``previous_alias``, ``conn_id``; ``slack``, ``email``, ``slack_channel`` and
        ``smtp_conn_id`` say who is told.
    :return: 0, also when an alert was not sent, which is said: a second call would swap back.
    :raises ConfigError: there is no champion, or none before it, or an address is none; a retry never helps.
    """
    targets = _targets(args)
    with open_api(args.conn_id) as api:
        done = ModelRegistry(api).rollback(args.name, alias=args.alias, previous_alias=args.previous_alias)
        page = api.server.model_page(done.name)
    print(f"{done.name}@{args.alias} is version {done.version} again; {args.previous_alias} is version {done.previous}.")
    if targets is not None:
        _tell(targets, done, args.alias, page)
    return 0


def _targets(args: Namespace) -> Targets | None:
    if not (args.slack or args.email or args.slack_channel):
        return None
    # Refuses here what it would refuse in a DAG, before anything is moved.
    return ml_alert(args.slack, args.email, slack_channel=args.slack_channel, smtp_conn_id=args.smtp_conn_id).targets


def _tell(targets: Targets, done: Promotion, alias: str, page: str) -> None:
    for each in send(build_rolled_back(done, alias, page, datetime.now(UTC)), targets):
        if each.ok:
            print(f"{each.channel}: told {each.why}")
        else:
            complain(f"rolled back, and nobody was told by {each.channel}: {each.why}")
