"""
A small REST client of MLflow for the calls that every step makes: bounded retries, errors by remedy, files by stream.

Why not ``mlflow.MlflowClient``: its import costs ten times an empty Airflow task, its credentials and its four minutes of
retries are process-wide. See docs/adr/0002-a-small-mlflow-client.md. For anything else, users have the real client, and
``MlflowHook.client_environment`` configures it.
"""

from __future__ import annotations

import json
import logging
import re
import ssl
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from airflow_ml_provider.config import Settings, load_settings
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow_server import MlflowServer
from airflow_ml_provider.hooks.network import Network

log = logging.getLogger(__name__)

API_PREFIX = "/api/2.0/mlflow/"
ARTIFACT_PREFIX = "/api/2.0/mlflow-artifacts/artifacts/"
HASTY_S = 2.0
"""Seconds that a request may take where nobody can wait."""
TRANSFER_S, TRANSFER_BYTES_PER_S = 60.0, 5_000_000
"""What the artifact proxy is given for a file: so many seconds, and the time that it takes at this rate."""
_ANOTHER_WROTE = re.compile("UniqueViolation|UNIQUE constraint|Duplicate entry|duplicate key")
"""What databases say, and MLflow hands on as a bad request, when two write the same tag, alias or dataset at once."""
_FORBIDDEN, _TOO_MANY, _SERVER_ERROR = 403, 429, 500


class DeniedError(ConfigError):
    """MLflow refuses it to the user of the connection: it may be missing, or not be theirs. A retry never helps."""


class MlflowApi:
    """
    MLflow's REST API with bounded, logged retries, and errors by remedy.

    :param server: Where to, and as whom.
    :param settings: Timeouts and number of retries; None reads the section ``[ml]``.
    """

    def __init__(self, server: MlflowServer, settings: Settings | None = None) -> None:
        self.server = server
        self.settings = settings or load_settings()
        network = Network(server.conn_id, server.verify_tls, server.ca_file, server.proxy)
        proxy = network.proxy_for(server.url)
        self._by_way_of = urlsplit(proxy or "").netloc.rpartition("@")[2]
        # Without TLS no list of authorities is loaded, which takes longer than a request.
        verify = server.url.startswith("https:") and server.verify_tls
        self._http = httpx.Client(
            base_url=server.url,
            auth=_Login(server),
            headers={"X-MLFLOW-WORKSPACE": server.workspace} if server.workspace else {},
            timeout=httpx.Timeout(self.settings.http_timeout_s),
            verify=ssl.create_default_context(cafile=network.authorities()) if verify else False,
            proxy=proxy,
            trust_env=False,  # it brings the environment's proxies back, and .netrc: another user's password
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the server."""
        self._http.close()

    def hasty(self) -> MlflowApi:
        """
        Make a client for moments that cannot wait: every request is sent once, and given up after 2 s.

        :return: The client; close it when done.
        """
        bounds = {"http_retries": 0, "http_timeout_s": min(HASTY_S, self.settings.http_timeout_s)}
        return MlflowApi(self.server, self.settings.model_copy(update=bounds))

    def get(self, path: str, **params: str | int) -> dict[str, Any]:
        """
        Ask for something.

        :param path: Below ``/api/2.0/mlflow/``, for example ``runs/get``.
        :param params: Query parameters.
        :return: The answer's JSON.
        :raises RemoteNotFoundError: it does not exist.
        :raises RemoteUnavailableError: no answer within the retries; a retry is safe.
        :raises ConfigError: the request, the credentials or the address are wrong; a retry never helps.
        """
        return self._json("GET", API_PREFIX + path, params=params)

    def post(self, path: str, body: dict[str, Any], *, repeatable: bool = True) -> dict[str, Any]:
        """
        Change something.

        :param path: Below ``/api/2.0/mlflow/``.
        :param body: JSON body.
        :param repeatable: Whether sending it twice does no harm. False for creates: then it is sent once, and a lost
            answer is the caller's to settle.
        :return: The answer's JSON.
        :raises RemoteNotFoundError: what it is about does not exist.
        :raises RemoteUnavailableError: no answer within the retries; a retry is safe if ``repeatable``.
        :raises ConfigError: the request, the credentials or the address are wrong; a retry never helps.
        """
        return self._json("POST", API_PREFIX + path, body=body, repeatable=repeatable)

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """
        Update something; as :meth:`post`, and always repeatable.

        :param path: Below ``/api/2.0/mlflow/``.
        :param body: JSON body.
        :return: The answer's JSON.
        :raises RemoteUnavailableError: no answer within the retries; a retry is safe.
        """
        return self._json("PATCH", API_PREFIX + path, body=body)

    def delete(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """
        Delete something; as :meth:`post`, and always repeatable.

        :param path: Below ``/api/2.0/mlflow/``.
        :param body: JSON body.
        :return: The answer's JSON.
        :raises RemoteUnavailableError: no answer within the retries; a retry is safe.
        """
        return self._json("DELETE", API_PREFIX + path, body=body)

    def version(self) -> str:
        """
        Ask the server for its version.

        :return: For example ``3.17.2``.
        :raises RemoteUnavailableError: no answer within the retries; a retry is safe.
        """
        return self._send("GET", "/version").text.strip()

    def upload(self, path: str, chunks: Iterable[bytes], size: int) -> None:
        """
        Store one file through the server's artifact proxy, by stream; sent once.

        :param path: Below the proxy's root, for example ``1/<run>/artifacts/try-1/table.parquet``.
        :param chunks: The bytes.
        :param size: Their number.
        :raises RemoteUnavailableError: the server or the connection failed; a retry is safe.
        """
        answer = self._send(
            "PUT",
            ARTIFACT_PREFIX + quote(path),
            content=chunks,
            headers={"Content-Length": str(size), "Content-Type": "application/octet-stream"},
            timeout=self._transfer_timeout(size),
            repeatable=False,
        )
        if answer.text.strip() not in {"", "{}"}:  # a login page in front of MLflow also answers 200
            raise self._error(answer, f"PUT {path}")

    @contextmanager
    def download(self, path: str, size: int = 0) -> Iterator[Iterator[bytes]]:
        """
        Read one file through the server's artifact proxy, by stream; asked once.

        :param path: As for :meth:`upload`.
        :param size: Bytes of the file as far as it is known; a large one is waited for longer.
        :return: The bytes in small pieces (64 KiB).
        :raises RemoteNotFoundError: there is no such file.
        :raises RemoteUnavailableError: the server or the connection failed; a retry is safe.
        """
        try:
            with self._http.stream("GET", ARTIFACT_PREFIX + quote(path), timeout=self._transfer_timeout(size)) as answer:
                if not answer.is_success:
                    answer.read()
                    raise self._error(answer, f"GET {path}")
                yield answer.iter_bytes()  # as they come from the socket: larger pieces would be copied together first
        except httpx.HTTPError as error:
            raise self._unavailable(f"GET {path}", error) from error

    def list_files(self, path: str) -> list[dict[str, Any]]:
        """
        List a folder of the server's artifact proxy.

        :param path: As for :meth:`upload`, a folder.
        :return: Entries with ``path`` relative to the folder, ``is_dir`` and ``file_size``; empty for a file.
        :raises RemoteUnavailableError: no answer within the retries; a retry is safe.
        """
        answer = self._json("GET", ARTIFACT_PREFIX.rstrip("/"), params={"path": path})
        return list(answer.get("files", []))

    def delete_files(self, path: str) -> None:
        """
        Delete a folder behind the server's artifact proxy, with all that is in it.

        :param path: As for :meth:`upload`, a folder.
        :raises ConfigError: the server, or its store, does not allow it; a retry never helps.
        :raises RemoteNotFoundError: there is no such folder.
        :raises RemoteUnavailableError: no answer within the retries; a retry is safe.
        """
        self._json("DELETE", ARTIFACT_PREFIX + quote(path))

    def _transfer_timeout(self, size: int) -> httpx.Timeout:
        """Give the proxy time: it answers only when it has moved the whole file to its store, or fetched it from there."""
        patient = max(self.settings.http_timeout_s, TRANSFER_S + size / TRANSFER_BYTES_PER_S)
        return httpx.Timeout(self.settings.http_timeout_s, read=patient, write=patient)

    def _json(
        self,
        method: str,
        url: str,
        *,
        params: dict[str, str | int] | None = None,
        body: dict[str, Any] | None = None,
        repeatable: bool = True,
    ) -> dict[str, Any]:
        content = None if body is None else json.dumps(body)
        headers = {"Content-Type": "application/json"} if body is not None else None
        try:
            answer = self._send(method, url, params=params, content=content, headers=headers, repeatable=repeatable)
        except DeniedError:
            self._refuse_missing_model(url, (params or body or {}).get("name"))
            raise
        try:
            parsed: dict[str, Any] = answer.json()
        except ValueError as error:
            raise ConfigError(
                f"connection {self.server.conn_id!r}: {answer.request.url} answered {answer.headers.get('content-type')!r} "
                "instead of JSON; that is not an MLflow server. Check the connection's host, port and path."
            ) from error
        return parsed

    def _refuse_missing_model(self, url: str, name: Any) -> None:
        """Say that a registered model is missing where MLflow has only said that its users may not touch what is missing."""
        of_models = url.startswith((f"{API_PREFIX}registered-models/", f"{API_PREFIX}model-versions/"))
        if name and of_models and url.removeprefix(f"{API_PREFIX}registered-models/") not in {"get", "create"}:
            with suppress(DeniedError):  # then it may not be seen at all
                self.get("registered-models/get", name=str(name))

    def _send(self, method: str, url: str, *, repeatable: bool = True, **request: Any) -> httpx.Response:
        """Send a request, again after faults that pass if it may be repeated."""
        retries = self.settings.http_retries if repeatable else 0
        for attempt in Retrying(
            stop=stop_after_attempt(retries + 1),
            wait=wait_exponential(multiplier=0.5, max=5.0) + wait_random(0.0, 0.5),
            retry=retry_if_exception_type(RemoteUnavailableError),
            before_sleep=_log_retry,
            reraise=True,
        ):
            with attempt:
                try:
                    answer = self._http.request(method, url, **request)
                except httpx.HTTPError as error:
                    raise self._unavailable(f"{method} {url}", error) from error
                if not answer.is_success:
                    raise self._error(answer, f"{method} {url}")
                return answer
        raise AssertionError("unreachable: the last attempt raises")  # for the type checker

    def _unavailable(self, what: str, error: Exception) -> RemoteUnavailableError:
        reason = str(error) or type(error).__name__
        remedy = "Check that the server runs and is reached from this worker; then retry."
        if "CERTIFICATE_VERIFY_FAILED" in reason:
            remedy = "Name the authority that has signed its certificate: ca_file in the connection's extra."
        elif "WRONG_VERSION_NUMBER" in reason or "record layer failure" in reason:
            remedy = "It does not speak TLS there: write http:// in the connection's host, or its port for https."
        elif "handshake operation timed out" in reason:  # gunicorn without TLS waits for the rest of a request
            remedy = (
                "It may not speak TLS there: then write http:// in the connection's host, or its port for https. Else check "
                "that the server runs and is reached from this worker; then retry."
            )
        elif self._by_way_of:
            remedy = (
                f"It was asked by way of the proxy {self._by_way_of}, which may be what is away: check it, or set proxy to "
                '"none" in the connection\'s extra to go without; then retry.'
            )
        return RemoteUnavailableError(
            f"MLflow at {self.server.url} (connection {self.server.conn_id!r}) did not answer {what}: {reason}. {remedy}"
        )

    def _error(self, answer: httpx.Response, what: str) -> Exception:
        """Say what an error answer means for who has to mend it."""
        code, message = _error_body(answer)
        said = (
            f"MLflow at {self.server.url} (connection {self.server.conn_id!r}) answered {answer.status_code} to {what}: {message}"
        )
        if remedy := self._workspace_remedy(code, message):
            return ConfigError(f"{said}. {remedy}")
        if code == "BAD_REQUEST" and _ANOTHER_WROTE.search(message):
            return RemoteUnavailableError(f"{said}. Another has written the same at this moment; a retry is safe.")
        if answer.status_code == _TOO_MANY or answer.status_code >= _SERVER_ERROR:
            unavailable = RemoteUnavailableError(f"{said}. A retry is safe; if it lasts, look into the server's log.")
            unavailable.status = answer.status_code
            return unavailable
        if code == "RESOURCE_DOES_NOT_EXIST" or (
            code == "INVALID_PARAMETER_VALUE" and "alias" in message and "not found" in message
        ):
            return RemoteNotFoundError(said)
        kind = DeniedError if answer.status_code == _FORBIDDEN else ConfigError
        return kind(f"{said}. {self._remedy(answer, message)}")

    def _workspace_remedy(self, code: str, message: str) -> str:
        """
        Say what to mend where the connection's workspace is what is wrong; empty for anything else.

        A workspace that is missing has the code of a model that is, and one too many that of a server in trouble.
        """
        if not self.server.workspace:
            return ""
        if message.startswith(f"Workspace '{self.server.workspace}' not found"):
            return "Make the workspace, or name another in the connection's extra (workspace)."
        if code == "FEATURE_DISABLED":
            return "Remove the workspace from the connection's extra, or start the server with --enable-workspaces."
        return ""

    def _remedy(self, answer: httpx.Response, message: str) -> str:
        """Say what to mend where a retry gives the same answer."""
        if "Invalid Host header" in message:
            host = urlsplit(self.server.url).netloc
            return (
                f"The server does not know itself by the name {host!r}: start it with --allowed-hosts {host} "
                "(or MLFLOW_SERVER_ALLOWED_HOSTS), or use an address that it allows."
            )
        if answer.is_success or answer.is_redirect:
            where_to = answer.headers.get("location", "a page")
            return f"That is not MLflow but a proxy or a login page ({where_to}): use an address behind it."
        return {
            401: "Check login and password (or the token in the password field) of the connection.",
            403: "The user of the connection lacks the permission: grant it in MLflow. Or there is no such thing: of a missing "
            "run or model, too, MLflow says this to all but its admins.",
            404: "There is no MLflow API below this address: check host, port and path of the connection.",
        }.get(answer.status_code, "Mend the request; a retry gives the same answer.")


class _Login(httpx.Auth):
    """
    Says who asks, anew for each request: a token's file is replaced while the process lives.

    :param server: Holds the login, the token or the token's file.
    """

    def __init__(self, server: MlflowServer) -> None:
        self.server = server
        self.basic = httpx.BasicAuth(server.username, server.password) if server.username else None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """
        Put the login into a request.

        :param request: The request.
        :return: It.
        :raises ConfigError: the token's file cannot be read, or holds no token; a retry never helps.
        """
        if self.basic is not None:
            yield from self.basic.auth_flow(request)
            return
        token = self.server.token()
        if token:
            request.headers["Authorization"] = f"Bearer {token}"
        yield request


def _error_body(answer: httpx.Response) -> tuple[str, str]:
    """Read MLflow's error code and message; some answers are plain text."""
    try:
        body = answer.json()
        return str(body.get("error_code", "")), str(body.get("message", ""))[:1000]
    except (ValueError, AttributeError):
        return "", " ".join(answer.text.split())[:300] or answer.reason_phrase


def _log_retry(state: RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait = state.next_action.sleep if state.next_action else 0.0
    log.warning("%s Trying again in %.1f s (attempt %d).", error, wait, state.attempt_number + 1)
