"""
One request to a Kubernetes API server at a time, and what its answer means.

The connection, its credentials and their renewal are those of cncf-kubernetes' own hook. The request goes out below the client's
methods, because those repeat a request up to three times unseen and build an object for each field of a pod.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from pydantic import BaseModel, ConfigDict

from airflow_ml_provider.exceptions import (
    AirflowMLError,
    ConfigError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    UnauthorizedError,
)

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

BAD_REQUEST, UNAUTHORIZED, NOT_FOUND, TIMED_OUT, CONFLICT, TOO_MANY, SERVER_ERROR = 400, 401, 404, 408, 409, 429, 500
ANY = "application/json, */*"
METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
MESSAGE_CHARACTERS = 2000
"""So much of an answer goes into an error."""


class KubernetesAccess(BaseModel):
    """
    How a cluster is reached, without its secrets: the four arguments of KubernetesPodOperator.

    :param conn_id: Airflow connection; None for none.
    :param in_cluster: Whether to use the service account of the pod that this runs in; None leaves it to the connection.
    :param cluster_context: Context in the kubeconfig; None for its current one.
    :param config_file: Path of a kubeconfig; None leaves it to the connection.
    """

    model_config = ConfigDict(frozen=True)

    conn_id: str | None = "kubernetes_default"
    in_cluster: bool | None = None
    cluster_context: str | None = None
    config_file: str | None = None

    def client(self) -> CoreV1Api:
        """
        Read the connection and make a client; blocks, and asks Airflow.

        :return: A client of its own.
        :raises ConfigError: the provider for Kubernetes is not installed, or the connection, its kubeconfig or the cluster in it
            is missing; a retry never helps.
        """
        try:
            from airflow.providers.cncf.kubernetes.hooks.kubernetes import KubernetesHook
        except ModuleNotFoundError as error:
            raise ConfigError(
                "steps in pods need the provider for Kubernetes: pip install 'airflow-ml-provider[kubernetes]'."
            ) from error
        hook = KubernetesHook(
            conn_id=self.conn_id,
            kubernetes_conn_id=self.conn_id,
            in_cluster=self.in_cluster,
            cluster_context=self.cluster_context,
            config_file=self.config_file,
        )
        with self.told():
            return hook.core_v1_client

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """
        Say what is missing where the block finds no cluster.

        :return: For the ``with`` statement.
        :raises ConfigError: the connection, its kubeconfig or the cluster in it is missing; a retry never helps.
        """
        from kubernetes.config import ConfigException

        try:
            yield
        except (ConfigException, AirflowNotFoundException) as error:
            way = f"connection {self.conn_id!r}" if self.conn_id else f"kubeconfig {self.config_file!r}"
            raise ConfigError(
                f"no Kubernetes cluster is reached by {way}: {error}. Steps in pods need one. Add the connection, with "
                f"kube_config_path in its extra (airflow connections add {self.conn_id or 'kubernetes_default'} --conn-type "
                "kubernetes ...), or run Airflow in the cluster and say in_cluster=True."
            ) from error


class ConflictError(RemoteUnavailableError):
    """
    The API server answered 409: somebody else was quicker, or the thing is another by now.

    ``reason`` is its word: ``AlreadyExists``, ``Conflict``.
    """

    reason: str = ""


class KubernetesApi:
    """
    Asks an API server.

    :param client: Client of cncf-kubernetes' hook; its address, certificates and credentials are used.
    :param timeout_s: Seconds for one request, from its start; a followed log has its own.
    """

    def __init__(self, client: CoreV1Api, timeout_s: float = 30.0) -> None:
        self.client = client.api_client
        self.timeout_s = timeout_s

    @property
    def url(self) -> str:
        """Its address."""
        return str(self.client.configuration.host)

    def json(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, Any] | None = None,
        metadata_only: bool = False,
    ) -> dict[str, Any]:
        """
        Send one request and read its answer.

        :param method: ``GET``, ``POST``, ``PATCH`` (as a merge patch) or ``DELETE``.
        :param path: From ``/api``.
        :param body: JSON value; None for none.
        :param query: Parameters; those that are None are left out.
        :param metadata_only: Of a list ask for the metadata alone.
        :return: The object.
        :raises UnauthorizedError: 401; fresh credentials may help.
        :raises ConfigError: it refuses the request; a retry never helps.
        :raises RemoteNotFoundError: 404.
        :raises ConflictError: 409.
        :raises RemoteUnavailableError: no answer, 429 or a 5xx; a retry is safe.
        """
        data = self.raw(method, path, body, query=query, accept=METADATA if metadata_only else ANY)
        try:
            answer = json.loads(data)
        except ValueError as error:
            raise RemoteUnavailableError(
                f"{self._asked(method, path)} was answered with something that is no JSON: {_cut(data)!r}. Is it a proxy's page?"
            ) from error
        return dict(answer)

    def raw(
        self, method: str, path: str, body: object = None, *, query: Mapping[str, Any] | None = None, accept: str = ANY
    ) -> bytes:
        """
        Send one request; as :meth:`json`, for answers that are no JSON.

        :param method: As there.
        :param path: As there.
        :param body: As there.
        :param query: As there.
        :param accept: Header ``Accept``.
        :return: The answer's bytes.
        :raises AirflowMLError: as there.
        """
        from urllib3 import Timeout

        timeout = Timeout(total=self.timeout_s)
        response = self._send(method, path, body, query=query, timeout=timeout, preload=True, accept=accept)
        return bytes(response.data)

    @contextlib.contextmanager
    def stream(self, path: str, *, query: Mapping[str, Any] | None = None, silence_s: float) -> Iterator[Any]:
        """
        Open an answer that comes in pieces.

        :param path: From ``/api``.
        :param query: Parameters.
        :param silence_s: Seconds without a byte after which reading fails; a log may be silent for long.
        :return: A response of urllib3, with ``stream(amount)``; what fails inside of the block is told as :meth:`json` tells it.
        :raises AirflowMLError: as :meth:`json`.
        """
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        timeout = Timeout(connect=self.timeout_s, read=silence_s)
        response = self._send("GET", path, None, query=query, timeout=timeout, preload=False)
        try:
            yield response
        except (HTTPError, OSError) as error:
            raise self._unavailable("GET", path, error) from error
        finally:
            response.close()
            response.release_conn()

    def close(self) -> None:
        """Close its connections; it opens new ones when it is used again."""
        self.client.rest_client.pool_manager.clear()

    def _send(
        self,
        method: str,
        path: str,
        body: object,
        *,
        query: Mapping[str, Any] | None,
        timeout: object,
        preload: bool,
        accept: str = ANY,
    ) -> Any:
        from urllib3.exceptions import HTTPError

        try:
            response = self.client.rest_client.pool_manager.request(
                method,
                self.url + path,
                fields=_fields(query) if body is None else None,
                body=None if body is None else json.dumps(body),
                headers=self._headers(method, accept),
                timeout=timeout,
                retries=False,
                redirect=False,
                preload_content=preload,
            )
            if response.status // 100 == 2:  # noqa: PLR2004  (an HTTP status)
                return response
            answer = response.data
            response.release_conn()
        except (HTTPError, OSError) as error:
            raise self._unavailable(method, path, error) from error
        raise self._refused(method, path, response.status, answer)

    def _headers(self, method: str, accept: str) -> dict[str, str]:
        """Give the headers, with credentials that the client renews when it must: that may run a program of the kubeconfig."""
        from kubernetes.config import ConfigException

        kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
        headers: dict[str, str] = {**self.client.default_headers, "Accept": accept, "Content-Type": kind}
        try:
            self.client.update_params_for_auth(headers, [], ["BearerToken"])
        except (ConfigException, OSError) as error:
            raise _not_sent(f"the credentials for Kubernetes at {self.url} could not be renewed: {error}") from error
        return headers

    def _unavailable(self, method: str, path: str, error: Exception) -> RemoteUnavailableError:
        from urllib3.exceptions import ConnectTimeoutError, NewConnectionError

        text = f"{self._asked(method, path)} was not answered: {error}"
        return _not_sent(text) if isinstance(error, ConnectTimeoutError | NewConnectionError) else RemoteUnavailableError(text)

    def _refused(self, method: str, path: str, status: int, answer: bytes) -> AirflowMLError:
        told = _status(answer)
        text = f"{self._asked(method, path)} was answered {status}: {told.get('message') or _cut(answer) or 'no reason given'}"
        error: AirflowMLError
        if status == CONFLICT:
            error = ConflictError(text)
            error.reason = str(told.get("reason") or "")
        elif status == UNAUTHORIZED:
            error = UnauthorizedError(f"{text} Its token is bad or has expired: look at the connection.")
        elif status == NOT_FOUND:
            error = RemoteNotFoundError(text)
        elif status == TOO_MANY:
            error = _not_sent(text)
        else:
            error = RemoteUnavailableError(text) if status >= SERVER_ERROR or status == TIMED_OUT else ConfigError(text)
        error.status = status
        return error

    def _asked(self, method: str, path: str) -> str:
        return f"{method} {path} of Kubernetes at {self.url}"


def namespaced(namespace: str, *parts: str) -> str:
    """
    Write the path of something in a namespace.

    :param namespace: The namespace.
    :param parts: What follows: ``pods``, a name, ``log``.
    :return: The path, quoted.
    """
    return "/".join(["/api/v1/namespaces", *(quote(each, safe="") for each in (namespace, *parts))])


def _fields(query: Mapping[str, Any] | None) -> dict[str, str] | None:
    given = {name: value for name, value in (query or {}).items() if value is not None}
    return {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()} or None


def _status(answer: bytes) -> dict[str, Any]:
    try:
        found = json.loads(answer)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _cut(answer: bytes) -> str:
    return answer[:MESSAGE_CHARACTERS].decode(errors="replace").strip()


def _not_sent(text: str) -> RemoteUnavailableError:
    error = RemoteUnavailableError(text)
    error.sent = False
    return error
