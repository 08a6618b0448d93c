"""
The connection ``mlflow``, and a small REST client for the calls that every step makes.

Why not ``mlflow.MlflowClient``: its import costs ten times an empty Airflow task, its credentials and its four minutes of
retries are process-wide. See docs/adr/0002-a-small-mlflow-client.md. For anything else, users have the real client, and
:meth:`MlflowHook.client_environment` configures it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, Self
from urllib.parse import quote, urlsplit

import httpx
from airflow.sdk import BaseHook
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from airflow_ml_provider._compat import connection_not_found
from airflow_ml_provider.config import Settings, load_settings
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow_server import MlflowServer, server_url

log = logging.getLogger(__name__)

API_PREFIX = "/api/2.0/mlflow/"
ARTIFACT_PREFIX = "/api/2.0/mlflow-artifacts/artifacts/"
HASTY_S = 2.0
"""Seconds that a request may take where nobody can wait."""
TRANSFER_S, TRANSFER_BYTES_PER_S = 60.0, 5_000_000
"""What the artifact proxy is given for a file: so many seconds, and the time that it takes at this rate."""
USERS_TIMEOUT_S = 120
"""MLflow's own default for one request of its client, which has one bound for artifacts and all else."""
_TOO_MANY, _SERVER_ERROR = 429, 500


class MlflowApi:
    """
    MLflow's REST API with bounded, logged retries, and errors by remedy.

    :param server: Where to, and as whom.
    :param settings: Timeouts and number of retries; None reads the section ``[ml]``.
    """

    def __init__(self, server: MlflowServer, settings: Settings | None = None) -> None:
        self.server = server
        self.settings = settings or load_settings()
        headers = {"Authorization": f"Bearer {server.password}"} if server.password and not server.username else {}
        self._http = httpx.Client(
            base_url=server.url,
            auth=(server.username, server.password) if server.username else None,
            headers=headers,
            timeout=httpx.Timeout(self.settings.http_timeout_s),
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
        answer = self._send(method, url, params=params, content=content, headers=headers, repeatable=repeatable)
        try:
            parsed: dict[str, Any] = answer.json()
        except ValueError as error:
            raise ConfigError(
                f"connection {self.server.conn_id!r}: {answer.request.url} answered {answer.headers.get('content-type')!r} "
                "instead of JSON; that is not an MLflow server. Check the connection's host, port and path."
            ) from error
        return parsed

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
        return RemoteUnavailableError(
            f"MLflow at {self.server.url} (connection {self.server.conn_id!r}) did not answer {what}: {reason}. "
            "Check that the server runs and is reached from this worker; then retry."
        )

    def _error(self, answer: httpx.Response, what: str) -> Exception:
        """Say what an error answer means for who has to mend it."""
        code, message = _error_body(answer)
        where = f"MLflow at {self.server.url} (connection {self.server.conn_id!r})"
        said = f"{where} answered {answer.status_code} to {what}: {message}"
        if answer.status_code == _TOO_MANY or answer.status_code >= _SERVER_ERROR:
            return RemoteUnavailableError(f"{said}. A retry is safe; if it lasts, look into the server's log.")
        if code == "RESOURCE_DOES_NOT_EXIST" or (
            code == "INVALID_PARAMETER_VALUE" and "alias" in message and "not found" in message
        ):
            return RemoteNotFoundError(said)
        if "Invalid Host header" in message:
            host = urlsplit(self.server.url).netloc
            return ConfigError(
                f"{said}. The server does not know itself by the name {host!r}: start it with --allowed-hosts {host} "
                "(or MLFLOW_SERVER_ALLOWED_HOSTS), or use an address that it allows."
            )
        if answer.is_success or answer.is_redirect:
            where_to = answer.headers.get("location", "a page")
            return ConfigError(f"{said}. That is not MLflow but a proxy or a login page ({where_to}): use an address behind it.")
        remedy = {
            401: "Check login and password (or the token in the password field) of the connection.",
            403: "The user of the connection lacks the permission: grant it in MLflow.",
            404: "There is no MLflow API below this address: check host, port and path of the connection.",
        }.get(answer.status_code, "Mend the request; a retry gives the same answer.")
        return ConfigError(f"{said}. {remedy}")


class MlflowHook(BaseHook):
    """
    Connection of type ``mlflow``.

    :param mlflow_conn_id: Id of the connection. Its host is the server's URL; login and password are basic
        authentication; a password alone is sent as a bearer token.
    """

    conn_name_attr: ClassVar[str] = "mlflow_conn_id"
    default_conn_name: ClassVar[str] = "mlflow_default"
    conn_type: ClassVar[str] = "mlflow"
    hook_name: ClassVar[str] = "MLflow"

    def __init__(self, mlflow_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.mlflow_conn_id = mlflow_conn_id

    def server(self) -> MlflowServer:
        """
        Read the connection.

        :return: Address and credentials.
        :raises ConfigError: there is no such connection, or it holds no usable address; a retry never helps.
        """
        try:
            found = self.get_connection(self.mlflow_conn_id)
        except connection_not_found() as error:
            raise ConfigError(
                f"there is no connection {self.mlflow_conn_id!r}. Add it: airflow connections add {self.mlflow_conn_id} "
                "--conn-type mlflow --conn-host http://<mlflow server>:5000"
            ) from error
        url = server_url(self.mlflow_conn_id, found.host, found.port, found.schema)
        login, password = (found.login or "").strip(), (found.password or "").strip()
        if not all(each.isprintable() for each in login + password) or not (login or password.isascii()):
            raise ConfigError(
                f"connection {self.mlflow_conn_id!r}: login or password holds characters that cannot be sent (a line end, or "
                "letters outside of ASCII in a token). Enter it again."
            )
        return MlflowServer(self.mlflow_conn_id, url, login, password)

    def api(self, settings: Settings | None = None) -> MlflowApi:
        """
        Make a client of the server; no request is sent.

        :param settings: Timeouts and retries; None reads the section ``[ml]``.
        :return: The client; close it when done.
        :raises ConfigError: the connection is missing or unusable; a retry never helps.
        """
        return MlflowApi(self.server(), settings)

    def get_conn(self) -> MlflowApi:
        """
        Make a client of the server, as Airflow's hooks name it; the same as :meth:`api`.

        :return: The client.
        """
        return self.api()

    def client_environment(self, settings: Settings | None = None) -> dict[str, str]:
        """
        Say what configures the real MLflow client in a process of its own.

        :param settings: Timeouts and retries; None reads the section ``[ml]``.
        :return: Environment variables, the credentials among them: never log them.
        """
        server, bounds = self.server(), settings or load_settings()
        variables = {
            "MLFLOW_TRACKING_URI": server.url,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(USERS_TIMEOUT_S, int(bounds.http_timeout_s))),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(bounds.http_retries),
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        }
        if server.username:
            variables |= {"MLFLOW_TRACKING_USERNAME": server.username, "MLFLOW_TRACKING_PASSWORD": server.password}
        elif server.password:
            variables["MLFLOW_TRACKING_TOKEN"] = server.password
        return variables

    def test_connection(self) -> tuple[bool, str]:
        """
        Try the connection, for the button in Airflow's UI.

        :return: Whether it works, and a sentence: the server's version, or what to mend.
        """
        try:
            with self.api(Settings(http_timeout_s=10, http_retries=0)) as api:
                # The version answers without a login and under any Host header; only a real call tells.
                api.post("experiments/search", {"max_results": 1})
                return True, f"MLflow {api.version()} at {api.server.url} answers."
        except (ConfigError, RemoteUnavailableError, RemoteNotFoundError) as error:
            return False, str(error)


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
