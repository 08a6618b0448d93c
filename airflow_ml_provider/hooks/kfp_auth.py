"""Credentials of a request to a Kubeflow Pipelines server: read, asked for, kept while they are good, renewed when refused."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote_plus

from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError, UnauthorizedError
from airflow_ml_provider.hooks.kfp_server import (
    TOKEN_FILE,
    TOKEN_FILE_VARIABLE,
    BearerAuth,
    DexAuth,
    KfpServer,
    OidcAuth,
    ServiceAccountAuth,
    UserHeaderAuth,
)
from airflow_ml_provider.hooks.network import Network, unlogged

Headers = Mapping[str, str]
Fetch = Callable[[], tuple[Headers, float | None]]
"""Asks for credentials; returns headers and the seconds for which they are good, None for "until they are refused"."""

UNTOLD_LIFETIME_S = 300.0
"""Seconds that a token is kept whose provider does not say how long it is good."""
MARGIN_S = 60.0
"""Seconds before its end at which a token is replaced; for one of a short life a fifth of it."""
_TOKEN_REQUEST: dict[str, Any] = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"}
SERVER_ERROR, TOO_MANY, UNAUTHORIZED, FORBIDDEN, NOT_FOUND = 500, 429, 401, 403, 404


class Credentials(Protocol):
    """What is put into a request so that it is let in; safe for use by many threads."""

    def headers(self) -> Headers:
        """
        Give the headers of the next request.

        :return: Headers, possibly none.
        :raises ConfigError: they cannot be had as the connection says; a retry never helps.
        :raises RemoteUnavailableError: who gives them did not answer; a retry is safe.
        """

    def renew(self, refused: Headers) -> Headers:
        """
        Replace what a server refused, unless another thread has done so.

        :param refused: The headers that were refused.
        :return: Other headers, or the same where there are no others.
        :raises ConfigError: as for :meth:`headers`.
        :raises RemoteUnavailableError: as for :meth:`headers`.
        """


def credentials_of(server: KfpServer) -> Credentials:
    """
    Choose how a server's credentials are had; nothing is read or asked yet.

    :param server: The server.
    :return: Its credentials.
    """
    auth, network = server.auth, Network(server.conn_id, server.verify_tls, server.ca_file, server.proxy)
    reread: Callable[[], Headers] = dict
    fetch: Fetch | None = None
    match auth:
        case BearerAuth():
            reread = partial(_bearer_token, server.conn_id, auth)
        case ServiceAccountAuth(kubernetes_conn_id=""):
            reread = partial(_projected_token, server.conn_id, auth)
        case ServiceAccountAuth():
            fetch = partial(request_token, server.conn_id, auth)
        case UserHeaderAuth():
            reread = partial(dict, {auth.header: auth.user})
        case OidcAuth():
            fetch = partial(client_credentials, server.conn_id, auth, network)
        case DexAuth():
            from airflow_ml_provider.hooks.kfp_dex import DexLogin

            fetch = DexLogin(server, auth, network)
    return Kept(fetch) if fetch else Reread(reread)


class Reread:
    """
    Credentials that cost nothing to read, so they are read for each request.

    :param read: Reads them.
    """

    def __init__(self, read: Callable[[], Headers]) -> None:
        self._read = read

    def headers(self) -> Headers:
        """Read them."""
        return self._read()

    def renew(self, refused: Headers) -> Headers:  # noqa: ARG002  (the protocol's)
        """Read them again: a file can have been replaced in the meantime."""
        return self._read()


class Kept:
    """
    Credentials that are asked for, and kept until shortly before their end.

    :param fetch: Asks for them; called by one thread at a time while the others wait.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._lock = threading.Lock()
        self._headers: Headers | None = None
        self._until: float | None = None

    def headers(self) -> Headers:
        """Give what is kept, or ask."""
        with self._lock:
            return self._current()

    def renew(self, refused: Headers) -> Headers:
        """Ask anew, unless what is kept is not what was refused."""
        with self._lock:
            if self._headers == refused:
                self._headers = None
            return self._current()

    def _current(self) -> Headers:
        if self._headers is None or (self._until is not None and time.monotonic() >= self._until):
            self._headers = None
            asked = time.monotonic()
            headers, lifetime_s = self._fetch()
            self._headers = headers
            self._until = None if lifetime_s is None else asked + lifetime_s - min(MARGIN_S, lifetime_s / 5)
        return self._headers


def bearer(token: str) -> Headers:
    """
    Make the header of a bearer token.

    :param token: The token.
    :return: The header.
    """
    return {"Authorization": f"Bearer {token}"}


def sendable(conn_id: str, source: str, text: str) -> str:
    """
    Strip a secret of blanks around it, and refuse what no header can hold.

    :param conn_id: For the message.
    :param source: Where it is from, for the message.
    :param text: The secret.
    :return: It.
    :raises ConfigError: it is empty, or holds a line end or letters outside of ASCII; a retry never helps.
    """
    token = text.strip()
    if not token:
        raise ConfigError(f"connection {conn_id!r}: {source} is empty. Put the token there.")
    if not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"connection {conn_id!r}: {source} holds characters that cannot be sent (a line end, or letters outside of ASCII). "
            "Enter the token again."
        )
    return token


def _bearer_token(conn_id: str, auth: BearerAuth) -> Headers:
    if auth.file:
        return _read_token(conn_id, auth.file, "token_file of the connection")
    if auth.variable:
        if auth.variable not in os.environ:
            raise ConfigError(
                f"connection {conn_id!r}: there is no environment variable {auth.variable!r} (token_variable of the connection). "
                "It must be set on every machine that runs tasks or triggers."
            )
        return bearer(sendable(conn_id, f"environment variable {auth.variable!r}", os.environ[auth.variable]))
    return bearer(sendable(conn_id, "the password field", auth.token))


def _projected_token(conn_id: str, auth: ServiceAccountAuth) -> Headers:
    path = auth.file or os.environ.get(TOKEN_FILE_VARIABLE) or TOKEN_FILE
    remedy = (
        f"token_file of the connection, {TOKEN_FILE_VARIABLE} of the environment, or the default. Mount a projected token with "
        f"the audience {auth.audience!r} into the pods of workers and triggerer, or set kubernetes_conn_id"
    )
    return _read_token(conn_id, path, remedy)


def _read_token(conn_id: str, path: str, from_where: str) -> Headers:
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise ConfigError(
            f"connection {conn_id!r}: the token's file {path!r} cannot be read: {reason}. Its name is from {from_where}."
        ) from error
    return bearer(sendable(conn_id, f"the file {path!r}", text))


def client_credentials(conn_id: str, auth: OidcAuth, network: Network) -> tuple[Headers, float]:
    """
    Ask an OpenID Connect provider for an access token.

    :param conn_id: For messages.
    :param auth: Endpoint, client and secret.
    :param network: Certificates and proxy.
    :return: The header, and the seconds for which it is good.
    :raises UnauthorizedError: the provider refuses the client; a retry does not help.
    :raises RemoteUnavailableError: the provider did not answer; a retry is safe.
    """
    import httpx

    form = {"grant_type": "client_credentials"}
    form |= {key: value for key, value in (("scope", auth.scope), ("audience", auth.audience)) if value}
    if auth.in_body:
        form |= {"client_id": auth.client_id, "client_secret": auth.client_secret}
        basic: httpx.Auth | None = None
    else:  # RFC 6749, section 2.3.1: both are form-encoded before they go into the header
        basic = httpx.BasicAuth(quote_plus(auth.client_id), quote_plus(auth.client_secret))
    where = f"connection {conn_id!r}: the token endpoint {auth.token_url}"
    try:
        with network.http(auth.token_url) as http:
            answer = http.post(auth.token_url, data=form, auth=basic or httpx.Auth(), follow_redirects=False)
    except httpx.HTTPError as error:
        raise unavailable(f"{where} did not answer: {str(error) or type(error).__name__}.") from error
    return _read_grant(conn_id, where, answer)


def _read_grant(conn_id: str, where: str, answer: Any) -> tuple[Headers, float]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    said = body if isinstance(body, dict) else {}
    if answer.status_code >= SERVER_ERROR or answer.status_code == TOO_MANY:
        raise unavailable(f"{where} answered {answer.status_code}.")
    if not answer.is_success:
        words = ": ".join(str(said[key]) for key in ("error", "error_description") if said.get(key))[:500]
        raise UnauthorizedError(
            f"{where} answered {answer.status_code}{f' ({words})' if words else ''}. Check client (login), secret (password), "
            "token_url, scope and audience, and whether the provider wants client_auth=body."
        )
    if not said.get("access_token"):
        raise ConfigError(f"{where} answered {answer.status_code} without an access token. Check token_url.")
    lifetime_s = said.get("expires_in")
    good_for = float(lifetime_s) if isinstance(lifetime_s, int | float) and lifetime_s > 0 else UNTOLD_LIFETIME_S
    return bearer(sendable(conn_id, "the provider's access token", str(said["access_token"]))), good_for


def request_token(conn_id: str, auth: ServiceAccountAuth) -> tuple[Headers, float]:
    """
    Ask the Kubernetes API for a service account's token (TokenRequest).

    :param conn_id: For messages.
    :param auth: Service account, audience and the connection to Kubernetes.
    :return: The header, and the seconds for which it is good.
    :raises ConfigError: the right to do so, the account, or the package is missing; a retry never helps.
    :raises RemoteUnavailableError: Kubernetes did not answer; a retry is safe.
    """
    try:
        from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
        from kubernetes.client.exceptions import ApiException
    except ImportError as error:
        raise ConfigError(
            f"connection {conn_id!r}: kubernetes_conn_id needs the package apache-airflow-providers-cncf-kubernetes. Install it "
            f"where tasks and triggers run ({error})."
        ) from error
    from urllib3.exceptions import HTTPError

    spec = {"audiences": [auth.audience], "expirationSeconds": auth.lifetime_s}
    who = f"service account {auth.namespace}/{auth.name}"
    where = f"connection {conn_id!r}: Kubernetes (connection {auth.kubernetes_conn_id!r})"
    try:
        hook = KubernetesHook(conn_id=auth.kubernetes_conn_id)
        with unlogged("kubernetes.client.rest"):
            given = hook.core_v1_client.create_namespaced_service_account_token(
                auth.name, auth.namespace, _TOKEN_REQUEST | {"spec": spec}, _request_timeout=(10, 30)
            )
    except ApiException as error:
        raise _token_error(f"{where} answered {error.status} to the request for a token of {who}", error.status) from error
    except HTTPError as error:
        raise unavailable(f"{where} did not answer the request for a token of {who}: {error}.") from error
    # Kubernetes can give another lifetime than was asked for.
    good_for = given.status.expiration_timestamp.timestamp() - time.time()
    return bearer(sendable(conn_id, "the service account's token", given.status.token)), max(good_for, 1.0)


def _token_error(said: str, status: int) -> Exception:
    if status >= SERVER_ERROR or status == TOO_MANY:
        return unavailable(f"{said}.")
    remedies = {
        UNAUTHORIZED: "Check the credentials of the connection to Kubernetes.",
        FORBIDDEN: "Its user needs the right to create serviceaccounts/token in that namespace.",
        NOT_FOUND: "Check service_account and service_account_namespace of the connection.",
    }
    return ConfigError(f"{said}. {remedies.get(status, 'Check audience and token_lifetime_s (at least 600) of the connection.')}")


def unavailable(said: str) -> RemoteUnavailableError:
    """
    Make the error for a giver of credentials that is away: what they were wanted for was not sent.

    :param said: Who did not answer, and what.
    :return: The error.
    """
    error = RemoteUnavailableError(f"{said} Nothing was sent to Kubeflow Pipelines; a retry is safe.")
    error.sent = False
    return error
