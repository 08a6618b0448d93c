"""
The one place through which every request to a Kubeflow Pipelines server goes: ours, and those of kfp-server-api's own methods.

Imported where a client is made, never at the top of a module that a DAG file imports.
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import unquote, urlencode, urlsplit

import urllib3
from kfp_server_api import ApiClient, Configuration  # type: ignore[import-untyped]
from kfp_server_api.rest import RESTClientObject  # type: ignore[import-untyped]
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProxyError
from urllib3.filepost import encode_multipart_formdata

from airflow_ml_provider._version import __version__
from airflow_ml_provider.config import Settings, load_settings
from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError
from airflow_ml_provider.hooks.kfp_answers import Answer, error_of, refused_upload, wants_login
from airflow_ml_provider.hooks.kfp_auth import credentials_of
from airflow_ml_provider.hooks.kfp_retries import Pace, log_repetition
from airflow_ml_provider.hooks.kfp_server import KfpServer
from airflow_ml_provider.hooks.network import Network

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 10.0
"""Seconds to connect, at most; the option ``http_timeout_s`` lowers it."""
WRITE_TIMEOUT_S = 300.0
"""Seconds to wait for the answer to what is sent once, by default: with its MLflow plugin the server takes minutes."""
POOL_SIZE = 32
"""Connections that are kept; as many as asyncio's default executor has threads at most."""
_READS = frozenset({"GET", "HEAD", "OPTIONS"})
_MULTIPART = "multipart/form-data"


@dataclass(frozen=True)
class Call:
    """
    One request, complete but for its credentials, so that it can be sent again as it is.

    :param method: HTTP method.
    :param url: URL with its query.
    :param headers: Headers.
    :param body: Body, None for none.
    :param connect_s: Seconds to connect, and to send each piece of 16 kB.
    :param read_s: Seconds to wait for the answer, and between pieces of it.
    :param whole: Whether the answer is read in full; else it is handed out unread, as kfp-server-api's ``_preload_content`` says.
    """

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None
    connect_s: float
    read_s: float
    whole: bool = True

    @property
    def what(self) -> str:
        """Method and path, for messages; the query is left out, as it can be long."""
        return f"{self.method} {urlsplit(self.url).path}"

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice changes nothing."""
        return self.method in _READS

    @property
    def wants_json(self) -> bool:
        """Whether the answer must be JSON."""
        return self.whole and self.method != "HEAD" and self.headers.get("Accept") == "application/json"


class KfpClient(ApiClient):  # type: ignore[misc]  # theirs is untyped
    """
    kfp-server-api's client with credentials per request, timeouts, bounded retries of reads, and errors by remedy.

    Nothing that changes something is ever sent twice, by any layer, except after an answer that proves that it was not let in.
    Safe for use by many threads.

    :param server: Where to, and as whom.
    :param settings: Timeouts and number of retries; None reads the section ``[ml]``.
    """

    def __init__(self, server: KfpServer, settings: Settings | None = None) -> None:
        self.server = server
        self.settings = settings or load_settings()
        configuration = _configuration(server)
        super().__init__(configuration)
        self._credentials = credentials_of(server)
        self.user_agent = f"airflow-ml-provider/{__version__}"

    def close(self) -> None:
        """Close the connections to the server."""
        super().close()
        self.rest_client.pool_manager.clear()

    def request(
        self,
        method: str,
        url: str,
        query_params: Any = None,
        headers: dict[str, str] | None = None,
        post_params: Any = None,
        body: Any = None,
        _preload_content: bool = True,
        _request_timeout: float | tuple[float, float] | None = None,
    ) -> Any:
        """
        Send a request; every method of kfp-server-api ends here.

        :param method: HTTP method.
        :param url: URL without a query.
        :param query_params: Names and values of the query.
        :param headers: Headers beside the credentials.
        :param post_params: Parts of a form.
        :param body: What is sent as JSON.
        :param _preload_content: Whether the answer is read in full.
        :param _request_timeout: Seconds to wait for the answer, or those to connect and those to wait; None for the defaults.
        :return: The answer, always a good one.
        :raises ConfigError: the request, the credentials or the address are wrong; a retry never helps.
        :raises RemoteNotFoundError: what it is about does not exist.
        :raises RemoteUnavailableError: no answer within the retries; a retry of a read is safe.
        """
        content, sent_headers = _content(headers or {}, post_params, body)
        connect_s, read_s = self._timeouts(method, _request_timeout)
        query = f"?{urlencode(query_params)}" if query_params else ""
        call = Call(method, url + query, sent_headers, content, connect_s, read_s, whole=_preload_content)
        pace = Pace()
        for attempt in Retrying(
            stop=stop_after_attempt(1 + (self.settings.http_retries if call.repeatable else 0)),
            wait=pace,
            retry=retry_if_exception_type(RemoteUnavailableError),
            before_sleep=log_repetition,
            reraise=True,
        ):
            with attempt:
                return self._once(call, pace)
        raise AssertionError("unreachable: the last attempt raises")  # for the type checker

    def _timeouts(self, method: str, wanted: float | tuple[float, float] | None) -> tuple[float, float]:
        connect_s = min(CONNECT_TIMEOUT_S, self.settings.http_timeout_s)
        if isinstance(wanted, tuple):
            return wanted
        if wanted:
            return connect_s, wanted
        return connect_s, self.settings.http_timeout_s if method in _READS else max(WRITE_TIMEOUT_S, self.settings.http_timeout_s)

    def _once(self, call: Call, pace: Pace) -> Any:
        """Send it; a second time with renewed credentials if it was not let in."""
        credentials = self._credentials.headers()
        answer, response = self._exchange(call, credentials)
        if wants_login(answer) or refused_upload(answer):
            renewed = self._credentials.renew(credentials)
            if renewed != credentials:
                log.info(
                    "%s did not let %s in (%d). Trying once more with new credentials.",
                    self.server.where,
                    call.what,
                    answer.status,
                )
                answer, response = self._exchange(call, renewed)
        if error := error_of(self.server.where, call.what, answer):
            pace.asked(answer.getheader("retry-after"))
            raise error
        if call.wants_json and answer.body is None:
            raise self._no_json(call, answer)
        if call.whole:
            return answer
        response.getheader = response.headers.get  # kfp-server-api asks for it, and some releases of urllib3 do not have it
        return response

    def _exchange(self, call: Call, credentials: Mapping[str, str]) -> tuple[Answer, Any]:
        headers = {**call.headers, **credentials}
        body = None
        if call.body is not None:
            # Pieces: the socket's timeout is for the whole of what is handed over at once, which can be ten megabytes.
            headers["Content-Length"] = str(len(call.body))
            body = io.BytesIO(call.body)
        try:
            response = self._connections(call, headers).urlopen(
                call.method,
                call.url,
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(connect=call.connect_s, read=call.read_s),
                retries=False,
                redirect=False,
                preload_content=call.whole,
            )
            return _answer(response, call), response
        except HTTPError as error:
            raise self._failure(call, error) from error

    def _connections(self, call: Call, headers: dict[str, str]) -> Any:
        """
        Choose the connections to use.

        A kept one can be closed by the other side at the moment that we write to it, and then nobody knows whether it was read.
        So what is sent once gets a new one, which is not kept.
        """
        if call.repeatable:
            return self.rest_client.pool_manager
        headers["Connection"] = "close"
        return RESTClientObject(self.configuration).pool_manager

    def _no_json(self, call: Call, answer: Answer) -> RemoteUnavailableError:
        error = RemoteUnavailableError(
            f"{self.server.where} answered {answer.status} to {call.what} with {answer.getheader('content-type')!r} that is no "
            f"JSON object: {answer.text[:100]!r}. A retry of a read is safe; if it lasts, check host and path of the connection."
        )
        error.status = answer.status
        return error

    def _failure(self, call: Call, error: HTTPError) -> Exception:
        """Say what it means that no answer came."""
        cause = getattr(error, "original_error", None) or (error.args[0] if error.args else None) or error
        reason = " ".join(str(error).split())
        said = f"{self.server.where}, {call.what}"
        if tls := _tls_remedy(error):
            return ConfigError(f"{said}: {reason}. {tls}")
        if isinstance(error, ProxyError):
            said += ", by way of the proxy"
        unsent = any(isinstance(each, NewConnectionError | ConnectTimeoutError) for each in (error, cause))
        unsent = unsent or "Tunnel connection failed" in reason
        known = "It was not sent" if unsent else "Whether the server got it is not known"
        lost = RemoteUnavailableError(
            f"{said}: no answer ({type(error).__name__}: {reason}). {known}. Check that the server runs and is reached from here."
        )
        lost.sent = not unsent
        return lost


def _configuration(server: KfpServer) -> Any:
    network = Network(server.conn_id, server.verify_tls, server.ca_file, server.proxy)
    with _process_kept():
        made = Configuration(host=server.url)
    made.connection_pool_maxsize = POOL_SIZE
    made.verify_ssl = server.verify_tls
    if server.verify_tls:
        made.ssl_ca_cert = network.authorities()
    else:
        _accept_unverified(server)
    if proxy := network.proxy_for(server.url):
        parts = urlsplit(proxy)
        made.proxy = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        if parts.username:
            password = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            made.proxy_headers = urllib3.make_headers(proxy_basic_auth=password)
    return made


@contextmanager
def _process_kept() -> Iterator[None]:
    """Put back what their configuration object sets for the whole process: levels of logs, http.client's debugging."""
    loggers = [logging.getLogger(name) for name in ("kfp_server_api", "urllib3")]
    levels, debugging = [each.level for each in loggers], HTTPConnection.debuglevel
    try:
        yield
    finally:
        HTTPConnection.debuglevel = debugging
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _accept_unverified(server: KfpServer) -> None:
    """Say once that certificates are not verified, instead of urllib3's warning at each request to this host."""
    host = re.escape(repr(urlsplit(server.url).hostname))
    warnings.filterwarnings("ignore", message=f".*host {host}", category=urllib3.exceptions.InsecureRequestWarning)
    log.warning("Connection %r does not verify the server's certificate (verify_tls is false).", server.conn_id)


def _content(headers: dict[str, str], parts: Any, body: Any) -> tuple[bytes | None, dict[str, str]]:
    """Write the body, and the headers that describe it."""
    own = dict(headers)
    if own.get("Content-Type") == _MULTIPART:
        content, own["Content-Type"] = encode_multipart_formdata(parts or [])
        return content, own
    own.setdefault("Content-Type", "application/json")
    if body is None:
        return None, own
    if isinstance(body, str | bytes) and "json" not in own["Content-Type"]:
        return body if isinstance(body, bytes) else body.encode(), own
    try:
        return json.dumps(body, allow_nan=False).encode(), own
    except (TypeError, ValueError) as error:
        raise ConfigError(f"a request to Kubeflow Pipelines cannot be written as JSON: {error}. Change that value.") from error


def _answer(response: Any, call: Call) -> Answer:
    good = response.status < 300  # noqa: PLR2004  (an HTTP status)
    data = response.data if call.whole or not good else b""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Answer(response.status, headers, data or b"", response.reason or "")


def _tls_remedy(error: HTTPError) -> str:
    """Say how to mend certificates; empty for anything else, lost connections among them."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text or "certificate verify failed" in text:
        return (
            "The certificate is not from an authority that is trusted here, or is for another name: give the authority's PEM "
            "file as ca_file of the connection."
        )
    if "WRONG_VERSION_NUMBER" in text or "HTTP_REQUEST" in text:
        return "There is no TLS on that port: the connection's host should begin with http://."
    return ""
