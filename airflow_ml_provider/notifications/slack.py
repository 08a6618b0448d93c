"""
One message to Slack, through the hooks of the Slack provider: by an incoming webhook, or by a bot's token.

Runs in a thread of its own and asks Airflow for nothing: the connection is handed in. Slack's demand to wait (429) is met as
far as the time allows.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import redact

from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError
from airflow_ml_provider.notifications.bounded import Bound
from airflow_ml_provider.notifications.supervisor import KnownConnection

if TYPE_CHECKING:
    from slack_sdk.http_retry.handler import RetryHandler

WEBHOOK, BOT = "slackwebhook", "slack"
TOO_MANY = 429
NO_JSON = "Received a response in a non-JSON format: "
"""What slack_sdk puts before an answer that is not Slack's."""
WAITS = 5
"""How often Slack may ask to wait before one message is given up, if there is time."""
AFTER_WAIT_S = 1.0
"""What the request itself is given after a wait; slack_sdk waits up to as much longer, at random."""
REMEDIES = {
    "channel_not_found": "Name a channel that exists, and invite the app to it: /invite @app.",
    "not_in_channel": "Invite the app to the channel: /invite @app.",
    "is_archived": "Name a channel that is not archived.",
    "invalid_auth": "Enter the app's bot token (xoxb-...) as the connection's password.",
    "not_authed": "Enter the app's bot token (xoxb-...) as the connection's password.",
    "token_revoked": "Enter a new bot token as the connection's password.",
    "account_inactive": "Enter a new bot token as the connection's password.",
    "missing_scope": "Give the app the scope chat:write, and install it again.",
    "no_service": "The webhook was removed: make a new one, and enter it in the connection.",
    "invalid_token": "The webhook's address is wrong: copy it again into the connection.",
}
"""What to do about what Slack answers."""


def check_slack(connection: KnownConnection, channel: str) -> str:
    """
    Refuse a connection that no message can be sent with.

    :param connection: The connection.
    :param channel: Channel that was asked for; empty for the connection's own.
    :return: The channel to post to; empty for a webhook, which has its own.
    :raises ConfigError: it is of another type, or lacks what is needed; a retry never helps.
    """
    if connection.conn_type not in (WEBHOOK, BOT):
        raise ConfigError(
            f"connection {connection.conn_id!r} is of type {connection.conn_type!r}. For Slack it must be {WEBHOOK!r} "
            f"(an incoming webhook) or {BOT!r} (a bot's token)."
        )
    if not connection.password.strip():
        raise ConfigError(f"connection {connection.conn_id!r} has no password: enter the webhook's token, or the bot's.")
    if connection.conn_type == WEBHOOK:
        return ""
    found = channel or str(connection.extra_dejson.get("channel") or "")
    if not found:
        raise ConfigError(
            f"connection {connection.conn_id!r} holds a bot's token, and nobody says which channel it shall post to. Give "
            'slack_channel="#ml-alerts", or add {"channel": "#ml-alerts"} to the extra of the connection.'
        )
    return found


def post(connection: KnownConnection, channel: str, message: Mapping[str, Any], answers: str, bound: Bound) -> str:
    """
    Send one message; returns when Slack has it.

    :param connection: As :func:`check_slack` has let it through.
    :param channel: What that has returned.
    :param message: ``text`` and ``blocks``.
    :param answers: ``ts`` of the message that this one answers; empty for none. A webhook cannot answer.
    :param bound: The time that there is, for waits above all; the caller gives up by itself.
    :return: The message's ``ts``; empty for a webhook, which is not told.
    :raises RemoteUnavailableError: Slack did not take it now.
    :raises ConfigError: Slack refuses it; says what to do.
    """
    handlers, waits = _retry_handlers(bound)
    try:
        if connection.conn_type == WEBHOOK:
            answer: Any = _webhook(connection, handlers, bound).send_dict(dict(message))
            code, said, ts = int(answer.status_code), str(answer.body), ""
        else:
            code, said, ts = _post_as_bot(_bot(connection, handlers, bound), channel, message, answers)
    except Exception as error:  # noqa: BLE001  (sockets, TLS and slack_sdk raise errors of many kinds)
        raise RemoteUnavailableError(f"Slack was not reached: {mask(error, connection)}") from None
    if code == TOO_MANY:
        asked = f"{waits[-1]:.0f} s" if waits else "some time"
        raise RemoteUnavailableError(f"Slack takes no more messages for now (429). It asked to wait {asked}, which is too long.")
    if code >= 500:  # noqa: PLR2004  (a status of HTTP)
        raise RemoteUnavailableError(f"Slack answered {code}: {mask(said, connection)[:200]}")
    said = said.strip()
    if (code, said) != (200, "ok"):
        words = mask(said, connection)[:200] if said else "without a reason"
        remedy = next((remedy for word, remedy in REMEDIES.items() if word in said), _remedy(code))
        raise ConfigError(f"Slack refuses the message ({code}: {words}). {remedy}")
    return ts


def _remedy(code: int) -> str:
    """Say what to do about an answer that holds no word of Slack's."""
    if code < 400:  # noqa: PLR2004  (a status of HTTP)
        return "Slack itself answers ok with status 200: look at the connection's address, and for a proxy that answers instead."
    return "Look it up in Slack's documentation, and look at the connection's address."


def mask(text: object, connection: KnownConnection) -> str:
    """
    Hide the webhook's address and the token in a text.

    :param text: A text or an error.
    :param connection: The connection.
    :return: The text without them, and without what Airflow masks in a log.
    """
    said = str(text) or (type(text).__name__ if isinstance(text, BaseException) else "")
    secret = connection.password.strip()
    parts = [secret, secret.partition("://")[2], secret.rpartition("/services/")[2], secret.lstrip("/")]
    parts += [each for each in [secret.rpartition("/")[2]] if len(each) >= 16]  # noqa: PLR2004  (no common word)
    for part in sorted({each for each in parts if each}, key=len, reverse=True):
        said = said.replace(part, "***")
    return str(redact(re.sub(r"(https?://[^/\s]+/services/)\S+", r"\1***", said)))


def _webhook(connection: KnownConnection, handlers: list[RetryHandler], bound: Bound) -> Any:
    from airflow.providers.slack.hooks.slack_webhook import SlackWebhookHook

    class KnownWebhook(SlackWebhookHook):
        @classmethod
        def get_connection(cls, conn_id: str) -> Any:  # noqa: ARG003  (the hook's signature)
            return connection

    options: dict[str, Any] = {"retry_handlers": handlers, "timeout": _whole_s(bound), "logger": _silent()}
    return KnownWebhook(slack_webhook_conn_id=connection.conn_id, **options).client


def _bot(connection: KnownConnection, handlers: list[RetryHandler], bound: Bound) -> Any:
    from airflow.providers.slack.hooks.slack import SlackHook

    class KnownBot(SlackHook):
        @classmethod
        def get_connection(cls, conn_id: str) -> Any:  # noqa: ARG003  (the hook's signature)
            return connection

    options: dict[str, Any] = {"retry_handlers": handlers, "timeout": _whole_s(bound), "logger": _silent()}
    return KnownBot(slack_conn_id=connection.conn_id, **options).client


def _post_as_bot(client: Any, channel: str, message: Mapping[str, Any], answers: str) -> tuple[int, str, str]:
    """Post, and give the status, what Slack says of it (``ok`` if it took it), and the ``ts``."""
    from slack_sdk.errors import SlackApiError

    body = {"channel": channel, **message, "unfurl_links": False, "unfurl_media": False}
    if answers:  # seen in the channel too: whoever reads only there hears of the end
        body |= {"thread_ts": answers, "reply_broadcast": True}
    try:
        answer = client.api_call("chat.postMessage", json=body)
    except SlackApiError as refused:
        status = int(refused.response.status_code)
        data = refused.response.data
        said = str(data.get("error") or data) if isinstance(data, dict) else str(data)
        said = said.removeprefix(NO_JSON).strip()
        return status, "ok as plain text" if said == "ok" else said, ""
    return int(answer.status_code), "ok", str(answer.get("ts") or "")


def _retry_handlers(bound: Bound) -> tuple[list[RetryHandler], list[float]]:
    """Make slack_sdk's own handlers, held to the bound; and a list that learns how long Slack has asked to wait."""
    from urllib.error import URLError

    from slack_sdk.http_retry.builtin_handlers import (
        ConnectionErrorRetryHandler,
        RateLimitErrorRetryHandler,
        ServerErrorRetryHandler,
    )

    waits: list[float] = []

    class WaitIfThereIsTime(RateLimitErrorRetryHandler):
        def _can_retry(self, *, response: Any = None, **rest: Any) -> bool:
            if not super()._can_retry(response=response, **rest):
                return False
            waits.append(_retry_after_s(response.headers))
            return waits[-1] >= 0 and waits[-1] + 2 * AFTER_WAIT_S < bound.left_s()

    return [WaitIfThereIsTime(WAITS), ConnectionErrorRetryHandler(error_types=[URLError]), ServerErrorRetryHandler()], waits


def _retry_after_s(headers: Mapping[str, list[str]]) -> float:
    """Read how long Slack asks to wait; 1 s when it does not say, less than 0 for what slack_sdk could not read."""
    said = next((values[0] for name, values in headers.items() if name.lower() == "retry-after"), None)
    if said is None:
        return 1.0
    return float(said) if said.strip().isdigit() else -1.0


def _whole_s(bound: Bound) -> int:
    """Give one request at most what is left: the provider's own default is 30 s."""
    return max(1, round(bound.left_s()))


def _silent() -> logging.Logger:
    """Give slack_sdk a logger that says nothing: on its own, it logs addresses, and a webhook's is a secret."""
    logger = logging.getLogger("airflow_ml_provider.notifications.slack_sdk")
    logger.setLevel(logging.CRITICAL)
    return logger
