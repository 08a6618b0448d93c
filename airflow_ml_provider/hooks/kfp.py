"""The connection ``kfp``, and a small JSON client of a Kubeflow Pipelines server on top of kfp-server-api."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self
from urllib.parse import quote

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk import BaseHook

from airflow_ml_provider.config import Settings, load_settings
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.kfp_connection import read_server
from airflow_ml_provider.hooks.kfp_server import LOCAL, KfpServer

if TYPE_CHECKING:
    from airflow_ml_provider.hooks.kfp_client import KfpClient

HEALTH = "/apis/v2beta1/healthz"
RUNS = "/apis/v2beta1/runs"
POST_TIMEOUT_S = 60.0
"""Seconds to wait for the answer to what is sent once: the server itself tries for 13 s to stop a run."""
PAGE_SIZE = 200
"""The server's own limit; a larger page is cut without a word."""
FIRST_PAGE = 25
"""Items to ask for while nothing is known of their size: a run of 1,000 tasks is 1.1 MB in a list."""
ANSWER_BYTES = 8_000_000
"""What a page should hold at most; it is made of fewer items where they are large."""
UPLOAD_TIMEOUT_S = 300.0
"""Seconds to wait for the answer to an upload, after it was sent."""
_JSON = "application/json"
_JSON_READ_HERE = "application/json, */*"
"""The same to a server; the client reads what is asked for as ``application/json`` by itself, and all of it."""


class KfpApi:
    """
    A server's API: JSON in, JSON out, errors by remedy. Safe for use by many threads.

    :param server: Where to, and as whom.
    :param settings: Timeouts and number of retries; None reads the section ``[ml]``.
    """

    def __init__(self, server: KfpServer, settings: Settings | None = None) -> None:
        self.server = server
        self.settings = settings or load_settings()
        self._client = _client(server, self.settings)
        self.pages = 0
        """Pages of lists that were asked for so far."""
        self._item_bytes: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to the server."""
        self._client.close()

    def get(self, path: str, **query: Any) -> dict[str, Any]:
        """
        Ask for something; asked again after a 429, a 5xx or a lost connection.

        :param path: For example ``/apis/v2beta1/runs``.
        :param query: Parameters; None is left out.
        :return: The answer's JSON; ``{}`` is how the server says "none".
        :raises RemoteNotFoundError: the server does not have it.
        :raises RemoteUnavailableError: no answer within the retries; a retry is safe.
        :raises ConfigError: the request, the credentials or the address are wrong; a retry never helps.
        """
        return self._json("GET", path, query)

    def items(
        self,
        path: str,
        field: str,
        predicates: Sequence[Mapping[str, Any]],
        *,
        leave_out: Sequence[str] = (),
        **query: Any,
    ) -> Iterator[Mapping[str, Any]]:
        """
        Go through a list, page after page; each page is asked for when the one before is used up.

        :param path: For example ``/apis/v2beta1/runs``.
        :param field: Field of the answer that holds the items.
        :param predicates: What they must fulfil, as :func:`filter_text` takes them.
        :param leave_out: Fields, at whatever depth, that are dropped while an answer is read, so that the large ones cost
            neither memory nor time.
        :param query: Other parameters; None is left out.
        :return: JSON of each item.
        :raises RemoteNotFoundError: there is no such list.
        :raises RemoteUnavailableError: no answer within the retries, or a page that leads to itself; a retry is safe.
        :raises ConfigError: the request, the credentials or the address are wrong; a retry never helps.
        """
        query |= {"filter": filter_text(predicates)}
        while True:
            answer = self._page(path, field, query | {"page_size": self.page_size(path)}, leave_out)
            yield from answer.get(field) or ()
            token = answer.get("next_page_token")
            if not token:
                return
            if token == query.get("page_token"):
                raise RemoteUnavailableError(
                    f"{self.server.where} gave the same page token of {path} twice ({str(token)[:40]!r}...), so the list would "
                    "never end. A retry is safe; if it lasts, look for a proxy that answers from a cache."
                )
            query["page_token"] = token

    def page_size(self, path: str) -> int:
        """
        Say how many items of a list to ask for at once, by the size of those that came.

        :param path: The list.
        :return: From 1 to 200, as many as about 8 MB hold; 25 before the first.
        """
        known = self._item_bytes.get(path)
        return FIRST_PAGE if known is None else max(1, min(PAGE_SIZE, int(ANSWER_BYTES / known)))

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float | None = None, **query: Any
    ) -> dict[str, Any]:
        """
        Change something; sent once, by every layer.

        After a 401 it is sent once more with renewed credentials: it was not let in, so nothing was started.

        :param path: For example ``/apis/v2beta1/runs``.
        :param body: JSON body; None for none.
        :param timeout_s: Seconds to wait for the answer; None for 60, or the option ``http_timeout_s`` if that is more. A create
            can take minutes.
        :param query: Parameters; None is left out.
        :return: The answer's JSON.
        :raises RemoteNotFoundError: what it is about does not exist.
        :raises RemoteUnavailableError: whether it was done is not known, unless ``sent`` of the error is False.
        :raises ConfigError: the server refused it, and nothing was done; a retry never helps.
        """
        return self._json("POST", path, query, body=body, timeout_s=timeout_s or self._post_timeout_s)

    def delete(self, path: str, **query: Any) -> dict[str, Any]:
        """
        Delete something; sent once, by every layer.

        :param path: For example ``/apis/v2beta1/runs/<id>``.
        :param query: Parameters; None is left out.
        :return: The answer's JSON.
        :raises RemoteNotFoundError: it does not exist.
        :raises RemoteUnavailableError: whether it was done is not known, unless ``sent`` of the error is False.
        :raises ConfigError: the server refused it, and nothing was done; a retry never helps.
        """
        return self._json("DELETE", path, query, timeout_s=self._post_timeout_s)

    def upload(self, path: str, content: bytes, filename: str, **query: Any) -> dict[str, Any]:
        """
        Send a file as the form's part ``uploadfile``; sent once, by every layer.

        :param path: For example ``/apis/v2beta1/pipelines/upload``.
        :param content: Its bytes.
        :param filename: Its name; the ending tells the server what it is.
        :param query: Parameters; None is left out.
        :return: The answer's JSON.
        :raises RemoteUnavailableError: whether it was stored is not known, unless ``sent`` of the error is False.
        :raises ConfigError: the server refused it, and nothing was stored; a retry never helps.
        """
        parts = [("uploadfile", (filename, content, "application/octet-stream"))]
        timeout_s = max(UPLOAD_TIMEOUT_S, self.settings.http_timeout_s)
        return self._json("POST", path, query, parts=parts, timeout_s=timeout_s)

    def text(self, path: str, **query: Any) -> str:
        """
        Ask for plain text, such as a log; asked again as :meth:`get` does.

        :param path: For example ``/apis/v1alpha1/runs/<id>/nodes/<node>/log``.
        :param query: Parameters; None is left out.
        :return: The text. Bytes that are no UTF-8 are replaced.
        :raises RemoteNotFoundError: the server does not have it.
        :raises RemoteUnavailableError: no answer within the retries; a retry is safe.
        :raises ConfigError: the request, the credentials or the address are wrong; a retry never helps.
        """
        answer = self._client.request("GET", self._url(path), _query(query), {"Accept": "text/plain, */*"})
        return str(answer.text)

    def _page(self, path: str, field: str, query: Mapping[str, Any], leave_out: Sequence[str]) -> dict[str, Any]:
        def without(read: dict[str, Any]) -> dict[str, Any]:
            for name in leave_out:
                read.pop(name, None)
            return read

        self.pages += 1
        answer = self._client.request("GET", self._url(path), _query(query), {"Accept": _JSON_READ_HERE})
        try:
            found = json.loads(answer.data, object_hook=without if leave_out else None)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            error = RemoteUnavailableError(
                f"{self.server.where} answered {answer.status} to GET {path} with what is no JSON object: {answer.text[:100]!r}. "
                "A retry is safe; if it lasts, check host and path of the connection."
            )
            error.status = answer.status
            raise error
        if count := len(found.get(field) or ()):  # sizes differ: what was large is forgotten by halves
            self._item_bytes[path] = max(len(answer.data) / count, self._item_bytes.get(path, 0.0) / 2)
        return found

    @property
    def _post_timeout_s(self) -> float:
        return max(POST_TIMEOUT_S, self.settings.http_timeout_s)

    def _url(self, path: str) -> str:
        # Ids are part of a path, and some come from users; what is escaped already stays so.
        return self.server.url + quote(path, safe="/:%~!$&'()*+,;=@")

    def _json(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        *,
        body: Mapping[str, Any] | None = None,
        parts: Sequence[Any] | None = None,
        timeout_s: float | None = None,
    ) -> dict[str, Any]:
        headers = {"Accept": _JSON, "Content-Type": "multipart/form-data" if parts else _JSON}
        answer = self._client.request(
            method,
            self._url(path),
            _query(query),
            headers,
            post_params=parts,
            body=None if body is None else dict(body),
            _request_timeout=timeout_s,
        )
        return dict(answer.body)


class KfpHook(BaseHook):
    """
    Connection of type ``kfp``; its fields are described in docs/kfp-connection.md.

    :param kfp_conn_id: Id of the connection.
    """

    conn_name_attr: ClassVar[str] = "kfp_conn_id"
    default_conn_name: ClassVar[str] = "kfp_default"
    conn_type: ClassVar[str] = "kfp"
    hook_name: ClassVar[str] = "Kubeflow Pipelines"

    def __init__(self, kfp_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.kfp_conn_id = kfp_conn_id

    def server(self) -> KfpServer:
        """
        Read the connection; no request is sent.

        :return: Address and credentials.
        :raises ConfigError: there is no such connection, or it is unusable; a retry never helps.
        """
        try:
            found = self.get_connection(self.kfp_conn_id)
        except AirflowNotFoundException as error:
            raise ConfigError(
                f"there is no connection {self.kfp_conn_id!r}. Add it: airflow connections add {self.kfp_conn_id} "
                "--conn-type kfp --conn-host http://<server>:8888"
            ) from error
        return read_server(
            self.kfp_conn_id,
            host=found.host,
            port=found.port,
            schema=found.schema,
            login=found.login,
            password=found.password,
            extra=found.extra,
        )

    def api(self, settings: Settings | None = None) -> KfpApi:
        """
        Make a client that speaks JSON; no request is sent.

        :param settings: Timeouts and retries; None reads the section ``[ml]``.
        :return: The client; close it when done.
        :raises ConfigError: the connection is missing, unusable, or has no server (``local://``); a retry never helps.
        """
        return KfpApi(_with_server(self.server()), settings)

    def get_conn(self) -> KfpClient:
        """
        Make a client for kfp-server-api's own classes: ``RunServiceApi(KfpHook().get_conn())``.

        Its requests have the connection's credentials, timeouts, retries of reads, and this provider's errors instead of
        ``ApiException``.

        :return: A ``kfp_server_api.ApiClient``; close it when done.
        :raises ConfigError: the connection is missing, unusable, or has no server (``local://``); a retry never helps.
        """
        return _client(_with_server(self.server()))

    def test_connection(self) -> tuple[bool, str]:
        """
        Try the connection, for the button in Airflow's UI: that the server answers, and that it lets us list runs.

        Of ``local://`` it says whether the SDK's interpreter is there or can be made, on the machine that was asked.

        :return: Whether it works, and a sentence: the server's version, or what to mend.
        """
        try:
            if self.server().local:
                return _try_local()
            with self.api(Settings(http_timeout_s=15, http_retries=0)) as api:
                health = api.get(HEALTH)  # answers anybody; only the list tells of rights
                return _try_list(api, health)
        except (ConfigError, RemoteUnavailableError, RemoteNotFoundError) as error:
            return False, str(error)


def _client(server: KfpServer, settings: Settings | None = None) -> KfpClient:
    try:
        from airflow_ml_provider.hooks.kfp_client import KfpClient
    except ImportError as error:
        raise ConfigError(
            f"connection {server.conn_id!r} needs the package kfp-server-api ({error}). Install airflow-ml-provider[kfp] where "
            "tasks and triggers run."
        ) from error
    return KfpClient(server, settings)


def _with_server(server: KfpServer) -> KfpServer:
    if server.local:
        raise ConfigError(
            f"connection {server.conn_id!r} has no server (host {LOCAL!r}): it runs pipelines on the worker, by "
            "KfpRunPipelineOperator and `airflow-ml kfp run` alone. Registered pipelines, recurring runs, experiments, sensors "
            "and triggers need the connection of a server."
        )
    return server


def _try_local() -> tuple[bool, str]:
    from airflow_ml_provider.hooks.kfp_interpreter import KfpInterpreter

    return KfpInterpreter(load_settings()).check()


def _try_list(api: KfpApi, health: Mapping[str, Any]) -> tuple[bool, str]:
    namespace, many = api.server.namespace, bool(health.get("multi_user"))
    version = f"Kubeflow Pipelines {health.get('tag_name') or 'of an untold version'} at {api.server.url}"
    if many and not namespace:
        return False, f"{version} has users and namespaces: set the connection's namespace to the one to run in."
    api.get(RUNS, page_size=1, namespace=namespace or None)
    return True, f"{version} answers{f', and lets us list runs in namespace {namespace!r}' if many else ''}."


def filter_text(predicates: Sequence[Mapping[str, Any]]) -> str:
    """
    Write a list's filter so that the server reads what is meant: it decodes a URL's escapes once more than others do.

    :param predicates: ``{"key": ..., "operation": ..., "string_value": ...}``, joined by AND. A wildcard of ``IS_SUBSTRING``
        (``%``, ``_``) stays one.
    :return: The value of the parameter ``filter``, before the usual escaping.
    """
    text = json.dumps({"predicates": list(predicates)}, ensure_ascii=False, separators=(",", ":"))
    return text.replace("%", "%25").replace("+", "%2B")


def _query(query: Mapping[str, Any]) -> list[tuple[str, str]]:
    given = ((name, value) for name, value in query.items() if value is not None)
    return [(name, str(value).lower() if isinstance(value, bool) else str(value)) for name, value in given]
