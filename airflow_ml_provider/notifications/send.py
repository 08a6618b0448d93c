"""Sending one alert to its channels: at the same time, within one bound, and never raising."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow.providers.common.compat.sdk import redact

from airflow_ml_provider.exceptions import AirflowMLError, ConfigError
from airflow_ml_provider.models.alert import Alert, Channel
from airflow_ml_provider.notifications import mail, slack
from airflow_ml_provider.notifications.bounded import Bound, run_together
from airflow_ml_provider.notifications.supervisor import KnownConnection, find_connection

log = logging.getLogger(__name__)

DEFAULT_LIMIT_S = 10.0
LEAST_S = 3.0
"""Seconds that sending gets, or half of the bound where that is less, also where Airflow has used up the time."""
SLOW_S = 1.0
"""Seconds for a connection from which on the log says that Airflow was slow, lest Slack be blamed for it."""
PACKAGES: dict[Channel, tuple[str, str]] = {
    "slack": ("airflow.providers.slack", "slack"),
    "email": ("airflow.providers.smtp", "smtp"),
}
"""Package that a channel needs, and the extra of ours that brings it."""


@dataclass(frozen=True)
class Targets:
    """
    Where alerts go: ids of connections and addresses, as the user wrote them.

    :param slack: Connection of type ``slackwebhook`` or ``slack``; empty for no Slack.
    :param email: Addresses; empty for no e-mail.
    :param slack_channel: Channel for a bot's token (connection type ``slack``); empty takes the connection's extra ``channel``.
    :param smtp_conn_id: Connection of type ``smtp``.
    """

    slack: str = ""
    email: tuple[str, ...] = ()
    slack_channel: str = ""
    smtp_conn_id: str = "smtp_default"

    @property
    def channels(self) -> tuple[Channel, ...]:
        """The channels that were given, Slack first."""
        found: list[Channel] = ["slack"] if self.slack else []
        return (*found, "email") if self.email else tuple(found)

    def of(self, channel: Channel) -> dict[str, Any]:
        """
        Say where one channel leads, as JSON.

        :param channel: The channel.
        :return: What tells it from another target of the same channel.
        """
        if channel == "slack":
            return {"conn_id": self.slack, "channel": self.slack_channel}
        return {"conn_id": self.smtp_conn_id, "to": list(self.email)}

    def conn_id(self, channel: Channel) -> str:
        """
        Say which connection a channel needs.

        :param channel: The channel.
        :return: Id of the connection.
        """
        return self.slack if channel == "slack" else self.smtp_conn_id


@dataclass(frozen=True)
class Sent:
    """
    What became of one alert on one channel.

    :param channel: The channel.
    :param ok: Whether the server has taken it.
    :param why: When it is not ok: what happened and what to do, secrets masked. Else to whom it went.
    :param defined: Whether the connection exists; False means that nobody has set this channel up.
    :param thread: What a later message answers to: Slack's ``ts``, or the e-mail's Message-ID; empty where there is nothing.
    """

    channel: Channel
    ok: bool
    why: str = ""
    defined: bool = True
    thread: str = ""


@dataclass(frozen=True)
class Line:
    """
    A channel that is ready to send: its connection was read and checked.

    :param channel: The channel.
    :param connection: Its connection.
    :param to: Slack's channel, empty for a webhook; or the sender of e-mails.
    :param recipients: Addresses of the e-mail.
    """

    channel: Channel
    connection: KnownConnection
    to: str
    recipients: tuple[str, ...] = ()


@dataclass(frozen=True)
class Letter:
    """
    One message on one channel.

    :param line: Where it goes.
    :param alert: What it says.
    :param name: Name of the message that no other has, so that a later one can answer it; empty for none.
    :param answers: What it answers: Slack's ``ts``, or the name of an e-mail; empty for nothing.
    :param afterwards: Called in the same thread once the message is sent, with its thread; it must not raise.
    :param if_failed: Called in the same thread once it is known that the message was not sent; it must not raise.
    """

    line: Line
    alert: Alert
    name: str = ""
    answers: str = ""
    afterwards: Callable[[str], None] | None = field(default=None, compare=False)
    if_failed: Callable[[], None] | None = field(default=None, compare=False)


def send(alert: Alert, targets: Targets, limit_s: float = DEFAULT_LIMIT_S) -> list[Sent]:
    """
    Send an alert to every channel of the targets, at the same time.

    Reads the connections in the calling thread, since that asks Airflow, whose answers no bound covers. Never raises.

    :param alert: The alert.
    :param targets: Where to.
    :param limit_s: Seconds for all of it; what has not come to an end by then is given up, and said so.
    :return: One per channel of the targets, Slack first.
    """
    bound = Bound(limit_s)
    lines = open_lines(targets, targets.channels)
    sent = deliver([Letter(each, alert) for each in lines.values() if isinstance(each, Line)], bound)
    return [sent[channel] if isinstance(each, Line) else each for channel, each in lines.items()]


def open_lines(targets: Targets, channels: tuple[Channel, ...]) -> dict[Channel, Line | Sent]:
    """
    Read and check the connections; asks Airflow, so in the calling thread.

    :param targets: Where to.
    :param channels: The channels that are wanted, of those of the targets.
    :return: Per channel what is ready, or why it is not.
    """
    return {channel: _open_line(targets, channel) for channel in targets.channels if channel in channels}


def deliver(letters: list[Letter], bound: Bound) -> dict[Channel, Sent]:
    """
    Send letters, each in a thread of its own; never raises.

    :param letters: At most one per channel.
    :param bound: The time for all of them; where little of it is left they get ``LEAST_S`` all the same.
    :return: What became of each, in the order of the letters.
    """
    bound = bound.at_least(min(LEAST_S, bound.limit_s / 2))
    given_s = bound.left_s()
    done: dict[Channel, Sent] = {}

    def carry(letter: Letter) -> Callable[[], None]:
        def call() -> None:
            done[letter.line.channel] = sent = _send_one(letter, bound)
            if sent.ok and letter.afterwards is not None:
                letter.afterwards(sent.thread)
            elif not sent.ok and letter.if_failed is not None:
                letter.if_failed()

        return call

    run_together({each.line.channel: carry(each) for each in letters}, bound)
    ended = dict(done)  # a thread that is given up may still come to an end
    found: dict[Channel, Sent] = {}
    for line in [each.line for each in letters]:
        why = f"gave up after {bound.limit_s:.0f} s ([ml] alert_timeout_s): {_place(line)} had {given_s:.1f} s to answer"
        found[line.channel] = ended.get(line.channel) or Sent(line.channel, ok=False, why=why)
    return found


def log_sent(sent: list[Sent], what: str, *, told: bool = False) -> None:
    """
    Say in the log what became of an alert.

    :param sent: What became of it on each channel.
    :param what: What it is about, ``task_failed of dag.train``.
    :param told: Whether a channel that is not in ``sent`` is set up, and another process tells by it.
    """
    if not any(each.defined for each in sent):
        if sent and not told:
            log.info("Nobody will hear of %s: %s", what, " ".join(each.why for each in sent))
        return
    for each in sent:
        if each.ok:
            log.info("Alert (%s) sent by %s to %s.", what, each.channel, each.why)
        else:
            log.warning("Alert (%s) not sent by %s: %s", what, each.channel, each.why)


def _open_line(targets: Targets, channel: Channel) -> Line | Sent:
    conn_id = targets.conn_id(channel)
    try:
        connection = _timed(conn_id)
        if connection is None:
            return Sent(channel, ok=False, why=f"there is no connection {conn_id!r} for {channel}.", defined=False)
        _check_package(channel)
        if channel == "slack":
            return Line(channel, connection, slack.check_slack(connection, targets.slack_channel))
        return Line(channel, connection, mail.check_smtp(connection), targets.email)
    except AirflowMLError as error:
        return Sent(channel, ok=False, why=str(error))
    except Exception as error:
        log.exception("The connection of an alert cannot be used.")
        return Sent(channel, ok=False, why=f"connection {conn_id!r} cannot be used: {type(error).__name__}")


def _timed(conn_id: str) -> KnownConnection | None:
    """Read a connection, and say so where Airflow was slow."""
    began = time.monotonic()
    try:
        return find_connection(conn_id)
    finally:
        if (took_s := time.monotonic() - began) >= SLOW_S:
            log.warning("Airflow took %.1f s to look up the connection %r of an alert.", took_s, conn_id)


def _check_package(channel: Channel) -> None:
    import importlib

    package, extra = PACKAGES[channel]
    try:
        importlib.import_module(f"{package}.hooks")
    except ImportError as error:
        raise ConfigError(
            f"{channel} needs {package}, which is not installed in this process of Airflow: "
            f"pip install 'airflow-ml-provider[{extra}]' ({error})."
        ) from error


def _send_one(letter: Letter, bound: Bound) -> Sent:
    """Render and send; runs in a thread of its own."""
    line = letter.line
    try:
        thread = _post(letter, bound) if line.channel == "slack" else _mail(letter, bound)
    except AirflowMLError as error:
        return Sent(line.channel, ok=False, why=str(error))
    except Exception as error:
        log.exception("An alert could not be sent.")
        return Sent(line.channel, ok=False, why=str(redact(f"{type(error).__name__}: {error}"))[:500])
    return Sent(line.channel, ok=True, why=_place(line), thread=thread)


def _post(letter: Letter, bound: Bound) -> str:
    line = letter.line
    return slack.post(line.connection, line.to, _slack_message(letter.alert), letter.answers, bound)


def _mail(letter: Letter, bound: Bound) -> str:
    line = letter.line
    own_id = mail.message_id(letter.name, line.to)
    answers = mail.message_id(letter.answers, line.to) if letter.answers else ""
    message = mail.compose(_email_content(letter.alert), letter.alert, line.to, line.recipients, own_id, answers)
    for recipient, said in mail.deliver(line.connection, message, bound).items():
        log.warning("The mail server refuses %s, and took the alert for the others: %s", recipient, said)
    return own_id


def _slack_message(alert: Alert) -> Mapping[str, Any]:
    try:
        from airflow_ml_provider.core.alert_slack import render_slack

        rendered = render_slack(alert)
    except Exception:  # an ugly message is better than none
        log.exception("An alert could not be rendered for Slack, and goes as plain text.")
        return {"text": _bare(alert).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    return {"text": rendered.text, "blocks": rendered.blocks}


def _email_content(alert: Alert) -> mail.Content:
    try:
        from airflow_ml_provider.core.alert_email import render_email

        return render_email(alert)
    except Exception:  # an ugly message is better than none
        import html

        log.exception("An alert could not be rendered for e-mail, and goes as plain text.")
        text = _bare(alert)
        return BareContent(text.partition("\n")[0][:200], f"<pre>{html.escape(text)}</pre>", text)


@dataclass(frozen=True)
class BareContent:
    """An e-mail without any form, for an alert that could not be rendered."""

    subject: str
    html: str
    plain: str
    picture: bytes | None = None


def _bare(alert: Alert) -> str:
    head = f"{alert.kind} ({alert.severity}): {alert.dag_id} {alert.run_id} {alert.task}".strip()
    return "\n".join([head, alert.why[:2000], *(f"{each.text}: {each.url}" for each in alert.links)])


def _place(line: Line) -> str:
    if line.channel == "email":
        return f"{', '.join(line.recipients)} by connection {line.connection.conn_id!r}"
    return f"Slack{' ' + line.to if line.to else ''} by connection {line.connection.conn_id!r}"
