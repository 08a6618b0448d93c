"""
One e-mail, through the connection that the SMTP provider's hook makes: plain text, HTML and the picture in one message.

Runs in a thread of its own and asks Airflow for nothing: the connection is handed in.
"""

from __future__ import annotations

import re
import smtplib
import ssl
from collections.abc import Mapping, Sequence
from email.header import Header
from email.headerregistry import HeaderRegistry, UniqueUnstructuredHeader
from email.message import EmailMessage
from email.policy import SMTP, Policy
from email.utils import format_datetime, make_msgid, parseaddr
from typing import Any, Protocol

from airflow.providers.common.compat.sdk import redact

from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError
from airflow_ml_provider.models.alert import Alert
from airflow_ml_provider.notifications.bounded import Bound
from airflow_ml_provider.notifications.supervisor import KnownConnection

SMTP_TYPE = "smtp"
PICTURE_ID = "trend"
"""Content-ID of the picture, to which the HTML refers as ``cid:trend``."""
PERMANENT = 500
TLS_REMEDY = (
    "The extra disable_ssl=true is for STARTTLS (port 587), disable_tls=true for TLS from the start (port 465), and both for "
    "neither."
)
LINE = 76
"""Characters of a header's line; a longer word makes the subject an encoded one."""


class Content(Protocol):
    """What an e-mail says, as the rendering gives it."""

    @property
    def subject(self) -> str:
        """The subject."""

    @property
    def html(self) -> str:
        """The HTML part."""

    @property
    def plain(self) -> str:
        """The plain part."""

    @property
    def picture(self) -> bytes | None:
        """The trend as PNG; None for none."""


class WholeSubject(UniqueUnstructuredHeader):
    """A subject that comes out as it went in: Python's own folding loses spaces beside encoded words, and adds some."""

    @classmethod
    def parse(cls, value: str, kwds: dict[str, Any]) -> None:
        """
        Take the text as it is: what looks like an encoded word in it is text as well.

        :param value: The text.
        :param kwds: Python's parts of a header, which are filled here.
        """
        super().parse(value, kwds)
        kwds["decoded"] = value

    def fold(self, *, policy: Policy) -> str:
        """
        Write the header.

        :param policy: Python's rules for a message.
        :return: Its lines.
        """
        text, start = str(self), f"{self.name}:"  # type: ignore[attr-defined]  # of BaseHeader, which the registry mixes in
        words = text.split(" ")
        if not text.isascii() or "=?" in text or max(map(len, words)) > LINE - len(start) - 1:
            encoded = Header(text, "utf-8", maxlinelen=LINE, header_name=start[:-1])
            return f"{start} {encoded.encode(linesep=policy.linesep)}{policy.linesep}"
        lines = [start]
        for word in words:
            if len(lines[-1]) + 1 + len(word) > LINE:
                lines.append("")
            lines[-1] += f" {word}"
        return policy.linesep.join([*lines, ""])


def _policy() -> Any:
    headers = HeaderRegistry()
    headers.map_to_type("subject", WholeSubject)  # type: ignore[arg-type]  # typeshed wants a BaseHeader
    return SMTP.clone(header_factory=headers)


def check_smtp(connection: KnownConnection) -> str:
    """
    Refuse a connection that no e-mail can be sent with.

    :param connection: The connection.
    :return: The sender's address.
    :raises ConfigError: it is of another type, or lacks what is needed; a retry never helps.
    """
    if connection.conn_type != SMTP_TYPE:
        raise ConfigError(f"connection {connection.conn_id!r} is of type {connection.conn_type!r}. For e-mail it must be 'smtp'.")
    if not connection.host:
        raise ConfigError(f"connection {connection.conn_id!r} has no host: enter the name of the mail server.")
    sender = str(connection.extra_dejson.get("from_email") or "")
    if "@" not in parseaddr(sender)[1]:
        raise ConfigError(
            f"connection {connection.conn_id!r} has no usable from_email ({sender!r}), so nobody knows who the sender is. Add "
            '{"from_email": "airflow@example.com"} to its extra.'
        )
    return sender


def message_id(name: str, sender: str) -> str:
    """
    Make the id of an e-mail from what it tells, so that a later one can answer it without having seen it.

    :param name: A name of the message that no other has; empty for a message that nothing answers.
    :param sender: The sender's address.
    :return: ``<...@domain of the sender>``.
    """
    domain = parseaddr(sender)[1].rpartition("@")[2]
    domain = domain.encode("idna").decode() if domain else "airflow"
    return f"<{re.sub(r'[^A-Za-z0-9.-]', '-', name)}@{domain}>" if name else make_msgid("airflow-ml", domain)


def compose(content: Content, alert: Alert, sender: str, recipients: Sequence[str], own_id: str, answers: str) -> EmailMessage:
    """
    Build the e-mail.

    :param content: What it says.
    :param alert: The alert, for the time.
    :param sender: The sender's address.
    :param recipients: Addresses.
    :param own_id: Its Message-ID.
    :param answers: Message-ID of the e-mail that it answers; empty for none.
    :return: The message.
    """
    message = EmailMessage(policy=_policy())
    message["Subject"] = " ".join(_sendable(content.subject).split())
    message["From"] = sender
    message["To"] = ", ".join(recipients)
    message["Date"] = format_datetime(alert.at)
    message["Message-ID"] = own_id
    message["Auto-Submitted"] = "auto-generated"  # so that no out-of-office answers it (RFC 3834)
    if answers:
        message["In-Reply-To"] = answers
        message["References"] = answers
    plain = _sendable(content.plain)  # as quoted-printable it can be read in its source, too
    message.set_content(plain, cte=None if plain.isascii() else "quoted-printable")
    message.add_alternative(_sendable(content.html), subtype="html")
    if content.picture:
        html: Any = message.get_payload(1)
        html.add_related(content.picture, "image", "png", cid=f"<{PICTURE_ID}>", disposition="inline", filename="trend.png")
    return message


def deliver(connection: KnownConnection, message: EmailMessage, bound: Bound) -> Mapping[str, Any]:
    """
    Send one e-mail; returns when the server has it.

    :param connection: As :func:`check_smtp` has let it through.
    :param message: The message.
    :param bound: The time that there is; the caller gives up by itself.
    :return: What the server said about each recipient that it refused, if it took the message for others.
    :raises RemoteUnavailableError: the server did not take it now.
    :raises ConfigError: the server refuses it; says what to do.
    """
    try:
        with _hook(connection, bound) as hook:
            refused: Mapping[str, Any] = hook._smtp_client.send_message(message)  # noqa: SLF001  (send_email_smtp builds its own)
            return refused
    except smtplib.SMTPNotSupportedError as error:
        raise ConfigError(f"{_where(connection)}: {_said(error)}. {TLS_REMEDY}") from None
    except smtplib.SMTPAuthenticationError as error:
        raise ConfigError(f"{_where(connection)} refuses the login: {_said(error)}. Check login and password.") from None
    except smtplib.SMTPRecipientsRefused as error:
        raise ConfigError(f"{_where(connection)} refuses every recipient: {_said(error)}. Check the addresses.") from None
    except smtplib.SMTPResponseException as error:
        kind = ConfigError if error.smtp_code >= PERMANENT else RemoteUnavailableError
        raise kind(f"{_where(connection)} answered {_said(error)}.") from None
    except Exception as error:  # noqa: BLE001  (sockets, TLS and the hook raise errors of many kinds)
        remedy = f" {TLS_REMEDY}" if isinstance(error, ssl.SSLError) else ""
        raise RemoteUnavailableError(f"{_where(connection)} was not reached: {_said(error)}.{remedy}") from None


def _hook(connection: KnownConnection, bound: Bound) -> Any:
    from airflow.providers.smtp.hooks.smtp import SmtpHook

    class KnownServer(SmtpHook):
        """The provider's hook, held to our bound: its own are 30 s for each answer, and five repetitions."""

        smtp_retry_limit = 0

        @classmethod
        def get_connection(cls, conn_id: str) -> Any:  # noqa: ARG003  (the hook's signature)
            return connection

        @property
        def timeout(self) -> int:
            return max(1, round(bound.left_s()))

    return KnownServer(smtp_conn_id=connection.conn_id)


def _where(connection: KnownConnection) -> str:
    return f"the mail server {connection.host}:{connection.port or 'default'} (connection {connection.conn_id!r})"


def _said(error: Exception) -> str:
    return str(redact(" ".join(f"{type(error).__name__}: {error}".split())))[:500]


def _sendable(text: str) -> str:
    """Replace what no encoding takes: half a surrogate pair, and NUL."""
    return text.replace("\0", "?").encode(errors="replace").decode()
