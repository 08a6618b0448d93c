"""``airflow-ml alert``: what alerts look like, and whether they arrive."""

from __future__ import annotations

import base64
import json
import os
import tempfile
from argparse import Namespace
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from airflow_ml_provider.cli.connection import PROCESS_CONTEXT
from airflow_ml_provider.cli.main import complain
from airflow_ml_provider.config import load_settings
from airflow_ml_provider.core.alert_email import render_email
from airflow_ml_provider.core.alert_slack import render_slack
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.alert import Alert, Channel
from airflow_ml_provider.notifications.alerts import ml_alert
from airflow_ml_provider.notifications.samples import sample_alerts
from airflow_ml_provider.notifications.send import Sent, Targets, send
from airflow_ml_provider.notifications.supervisor import find_connection

RULE = "-" * 72
SAMPLE = "airflow-ml alert test"


def run(args: Namespace) -> int:
    """
    Render or send a sample of each kind of alert.

    :param args: ``action``: ``preview`` or ``test``; the other arguments are those of either.
    :return: 0, or 1 when a sample was not sent.
    :raises ConfigError: the folder cannot be written, or there is nowhere to send to; a retry never helps.
    """
    return _preview(args.folder) if args.action == "preview" else _test(args)


def write_preview(alert: Alert, folder: Path, name: str) -> list[Path]:
    """
    Write what people would get to see of an alert.

    :param alert: The alert.
    :param folder: An existing folder.
    :param name: Name of the files, without what comes after the dot.
    :return: The files: ``.html`` (with the picture in it), ``.txt`` (subject and plain part), ``.slack.json`` (as Slack's
        Block Kit Builder takes it).
    :raises OSError: a file cannot be written.
    """
    email, slack = render_email(alert), render_slack(alert)
    page = email.html
    if email.picture is not None:  # a file has no other part to refer to
        page = page.replace("cid:trend", f"data:image/png;base64,{base64.b64encode(email.picture).decode()}", 1)
    texts = {
        ".html": page,
        ".txt": f"Subject: {email.subject}\n{RULE}\n{email.plain}",
        ".slack.json": json.dumps(slack._asdict(), indent=2, ensure_ascii=False) + "\n",
    }
    files = [folder / f"{name}{ending}" for ending in texts]
    for file, text in zip(files, texts.values(), strict=True):
        file.write_text(text, encoding="utf-8")
    return files


def _preview(folder: str | None) -> int:
    try:
        where = Path(folder) if folder else Path(tempfile.mkdtemp(prefix="airflow-ml-alerts-"))
        where.mkdir(parents=True, exist_ok=True)
        for name, alert in sample_alerts().items():
            for file in write_preview(alert, where, name):
                print(file)
    except OSError as error:
        raise ConfigError(f"the preview cannot be written: {error}. Name another place with --folder.") from error
    return 0


def _test(args: Namespace) -> int:
    if not (args.slack or args.email):
        raise ConfigError("alert test needs somewhere to send to: --slack CONN, --email ADDR, or both.")
    # Refuses what it would refuse in a DAG.
    targets = ml_alert(args.slack, args.email, slack_channel=args.slack_channel, smtp_conn_id=args.smtp_conn_id).targets
    # As Airflow's own commands do: connections may come from the metadata database here.
    os.environ.setdefault(PROCESS_CONTEXT, "server")
    _check_slack_channel(targets)
    # Nobody is to get up for it: the DAG's id stands first in every message, and says what this is.
    samples = {name: each.model_copy(update={"dag_id": SAMPLE}) for name, each in sample_alerts(datetime.now(UTC)).items()}
    limit_s = load_settings().alert_timeout_s
    sent: dict[Channel, int] = dict.fromkeys(targets.channels, 0)
    failed: dict[Channel, str] = {}
    for name, alert in samples.items():
        left = _without(targets, failed)
        for each in send(alert, left, limit_s) if left.channels else ():
            _note(name, each, targets, sent, failed)
    for channel, count in sent.items():
        why = f"; {failed[channel]}; the others were not tried" if channel in failed else ""
        print(f"{channel}: {count} of {len(samples)} samples sent{why}")
    return 1 if failed else 0


def _check_slack_channel(targets: Targets) -> None:
    """Say that a channel is of no use to a webhook; whatever else is wrong with the connection, sending says."""
    if not (targets.slack and targets.slack_channel):
        return
    with suppress(Exception):
        connection = find_connection(targets.slack)
        if connection is not None and connection.conn_type == "slackwebhook":
            complain(f"--slack-channel is ignored: {targets.slack!r} is a webhook, which has one channel, its own.")


def _remedy(outcome: Sent, targets: Targets) -> str:
    """Say how a connection is made that is not there."""
    if outcome.defined:
        return ""
    conn_id = targets.conn_id(outcome.channel)
    kind = "smtp" if outcome.channel == "email" else "slackwebhook"
    made = f"airflow connections add {conn_id} --conn-type {kind} ..."
    return f" Make it with `{made}`, or set AIRFLOW_CONN_{conn_id.upper()}"


def _note(name: str, outcome: Sent, targets: Targets, sent: dict[Channel, int], failed: dict[Channel, str]) -> None:
    if outcome.ok:
        sent[outcome.channel] += 1
        print(f"{outcome.channel}: {name} sent to {outcome.why}")
    else:
        failed[outcome.channel] = f"{name} not sent: {outcome.why}{_remedy(outcome, targets)}".rstrip(".")


def _without(targets: Targets, failed: dict[Channel, str]) -> Targets:
    """Leave out a channel that has failed: it would fail for each of the samples, and take its time for each."""
    return Targets(
        slack="" if "slack" in failed else targets.slack,
        email=() if "email" in failed else targets.email,
        slack_channel=targets.slack_channel,
        smtp_conn_id=targets.smtp_conn_id,
    )
