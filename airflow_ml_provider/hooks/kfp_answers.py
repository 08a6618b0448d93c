"""What an answer of a Kubeflow Pipelines server means, or of what stands in front of it: who has to mend what."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from airflow_ml_provider.exceptions import (
    AirflowMLError,
    ConfigError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    UnauthorizedError,
)

SHOWN = 800
"""Characters of the server's own words in a message."""
_OK, _REDIRECT, _BAD_REQUEST, _UNAUTHORIZED, _FORBIDDEN, _NOT_FOUND = 200, 300, 400, 401, 403, 404
_TIMEOUT, _TOO_MANY, _SERVER_ERROR, _NOT_IMPLEMENTED = 408, 429, 500, 501
_UNAUTHENTICATED_CODE, _INTERNAL_CODE = 16, 13

_REFUSED_UPLOAD = "Failed to create a pipeline"
_REMEDIES = {
    400: "Mend the request; a retry gives the same answer.",
    403: "The user of the connection lacks the right: bind a role in that namespace to it, or correct the connection's "
    "namespace. A namespace that does not exist is answered so too.",
    405: "That is no address of the Kubeflow Pipelines API: check host and path of the connection.",
    407: "The proxy wants a login: put it into the connection's proxy, http://user:password@proxy:3128.",
    409: "It is there already, or in a state that does not allow it.",
    413: "It is larger than the server, or a proxy before it, takes.",
    431: "The address is longer than the server, or a proxy before it, takes: ask for less at once.",
    501: "The server does not know that method there: check host and path of the connection, and the server's release.",
}


@dataclass
class Answer:
    """
    One answer, read in full; it is also what the methods of kfp-server-api take for one.

    :param status: HTTP status.
    :param headers: Headers, by lower-case name.
    :param data: The body as it came.
    :param reason: Text beside the status, empty for none.
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    data: Any = b""
    reason: str = ""

    def getheader(self, name: str, default: str | None = None) -> str | None:
        """
        Look up a header, by the name that kfp-server-api calls it.

        :param name: Its name, in any letter case.
        :param default: What to return when there is none.
        :return: Its value.
        """
        return self.headers.get(name.lower(), default)

    def getheaders(self) -> Mapping[str, str]:
        """
        Return all headers, by the name that kfp-server-api calls them.

        :return: Headers by lower-case name.
        """
        return self.headers

    @property
    def good(self) -> bool:
        """Whether the status is 2xx."""
        return _OK <= self.status < _REDIRECT

    @property
    def text(self) -> str:
        """The body as text; bytes that are no UTF-8 are replaced."""
        return str(self.data.decode("utf-8", "replace"))

    @property
    def page(self) -> bool:
        """Whether the body is a page for people, which the API never sends."""
        return "html" in (self.getheader("content-type") or "")

    @cached_property
    def body(self) -> dict[str, Any] | None:
        """The body as a JSON object; None when it is none."""
        try:
            found = json.loads(self.data)
        except ValueError:
            return None
        return found if isinstance(found, dict) else None


def wants_login(answer: Answer) -> bool:
    """
    Say whether the request was stopped before it did anything, for want of valid credentials.

    Beside 401 that is what proxies with a login page do: a redirect, a page with status 200 or 403.

    :param answer: The answer.
    :return: True also for a redirect to anywhere else: the API itself has none.
    """
    if answer.status == _UNAUTHORIZED or _REDIRECT <= answer.status < _BAD_REQUEST:
        return True
    return answer.status in {_OK, _FORBIDDEN} and answer.page


def refused_upload(answer: Answer) -> bool:
    """
    Say whether an upload was refused for its user: the server answers 400 with few words, for a bad token as for no right.

    :param answer: The answer.
    :return: Whether other credentials can help.
    """
    return answer.status == _BAD_REQUEST and (answer.body or {}).get("error_message") == _REFUSED_UPLOAD


def error_of(where: str, what: str, answer: Answer) -> AirflowMLError | None:
    """
    Sort an answer by what mends it.

    :param where: Server and connection, for the message.
    :param what: Method and path, for the message.
    :param answer: The answer.
    :return: None for a good one; else the error, with ``status`` and, where it may be repeated, ``sent``.
    """
    if answer.good and not answer.page:
        return None
    error = _error(f"{where} answered {answer.status} to {what}", answer)
    error.status = answer.status
    return error


def _error(said: str, answer: Answer) -> AirflowMLError:
    if wants_login(answer):
        return _login_error(said, answer)
    status, words = answer.status, server_words(answer)
    if status in {_TOO_MANY, _TIMEOUT} or (status >= _SERVER_ERROR and status != _NOT_IMPLEMENTED):
        error = RemoteUnavailableError(f"{said}: {words}. A retry is safe for a read; if it lasts, look into the server's log.")
        error.sent = status != _TOO_MANY
        return error
    if status == _NOT_FOUND:
        return _not_found(said, words, answer)
    if refused_upload(answer):
        return ConfigError(f"{said}: {words}. That is all it says when the user is not known to it, or may not upload there.")
    return ConfigError(f"{said}: {words}. {_REMEDIES.get(status, _REMEDIES[_BAD_REQUEST])}")


def _not_found(said: str, words: str, answer: Answer) -> AirflowMLError:
    """Tell what the API does not have from an address where there is no API: only the former is absent."""
    body = answer.body or {}
    if body.get("details") or "error_message" in body or body.get("kind") == "Status":
        return RemoteNotFoundError(f"{said}: {words}.")
    if "code" in body:
        return ConfigError(
            f"{said}: {words}. The server does not have that path: its release is another one, or the connection's path is wrong."
        )
    error = RemoteUnavailableError(
        f"{said}: {words}. That is not an answer of Kubeflow Pipelines but of something before it, so it says nothing of "
        "what was asked for: check host, port and path of the connection (often /pipeline), and that the server is up."
    )
    error.sent = False
    return error


def _login_error(said: str, answer: Answer) -> AirflowMLError:
    if _REDIRECT <= answer.status < _BAD_REQUEST:
        there = urlsplit(answer.getheader("location") or "")  # without its query, which can hold a state or a token
        return UnauthorizedError(
            f"{said}: a redirect to {there.scheme + '://' if there.scheme else ''}{there.netloc}{there.path or '?'}, which "
            "is not followed. If that is a login page, choose the connection's auth (dex, oidc, service-account, bearer) or "
            "check its credentials; if it is the same server, put that address into the connection's host."
        )
    if answer.page:
        return UnauthorizedError(
            f"{said}: a page in HTML ({_title(answer)!r}) where the API answers JSON. That is a login page or another site: "
            "choose the connection's auth or check its credentials, and check host and path (often /pipeline)."
        )
    words = server_words(answer)
    if "dial tcp" in words or "tokenreviews" in words:
        remedy = "The server could not ask Kubernetes about the token: that is an outage there, not a bad token."
    else:
        remedy = (
            "Check the connection's credentials: the user or token, its audience (pipelines.kubeflow.org) and its expiry. A "
            "server that cannot reach Kubernetes answers the same."
        )
    return UnauthorizedError(f"{said}: {words}. {remedy}")


def server_words(answer: Answer) -> str:
    """
    Find the server's own words for what went wrong.

    :param answer: An answer that is not good.
    :return: One line without a stack trace, never empty.
    """
    body = answer.body
    if body is None:
        return _line(answer.text) or answer.reason or "nothing more"
    if "error_message" in body:
        cause = _line(str(body.get("error_details") or ""))
        message = _line(str(body["error_message"]))
        return cause if message in cause else f"{message} ({cause})" if cause else message
    details = body.get("details") or ()
    first = details[0] if isinstance(details, list) and details and isinstance(details[0], dict) else {}
    # The short text hides the cause of an internal error ("Internal Server Error") and of a refused token.
    hidden = body.get("code") in {_INTERNAL_CODE, _UNAUTHENTICATED_CODE} and body.get("message")
    return _line(str(hidden or first.get("message") or body.get("message") or "")) or answer.reason or "nothing more"


def _line(text: str) -> str:
    """Take the first line, which is what stands before a stack trace; keep both ends of a long one."""
    first = next((each.strip() for each in text.splitlines() if each.strip()), "").rstrip(".")
    return first if len(first) <= SHOWN else f"{first[: SHOWN // 2]} ... {first[-SHOWN // 2 :]}"


def _title(answer: Answer) -> str:
    lower = answer.text[:20000]
    start, end = lower.lower().find("<title"), lower.lower().find("</title>")
    return " ".join(lower[lower.find(">", start) + 1 : end].split())[:100] if 0 <= start < end else "without a title"
