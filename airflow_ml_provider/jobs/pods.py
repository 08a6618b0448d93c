"""Pods of one namespace: create, look, find, read the log, label, delete. Blocking; a call is one request, a list one a page."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from airflow_ml_provider.core.pod_events import PodEvent
from airflow_ml_provider.core.pod_log import LogCursor
from airflow_ml_provider.exceptions import AirflowMLError, ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.kubernetes import BAD_REQUEST, CONFLICT, ConflictError, KubernetesApi, namespaced
from airflow_ml_provider.models.pod import PodSnapshot

if TYPE_CHECKING:
    from kubernetes.client import CoreV1Api

log = logging.getLogger(__name__)

PAGE_SIZE = 250
PIECE_BYTES = 65_536
REPLAY_S, REPLAY_SILENCE_S = 1, 4.0
"""Seconds for which past changes are waited for (they come at once), and without a byte: some proxies hold watches back."""
FORBIDDEN, UNPROCESSABLE = 403, 422
NO_ROOM = "exceeded quota"
"""In the words of the API server; 'failed quota: must specify ...' is another thing, which waiting does not mend."""
NOT_BEGUN = ("is waiting to start", "is not available", "PodInitializing", "ContainerCreating", "trying and failing to pull")
"""Beginnings and parts of what the API server says, with status 400, of a log that does not exist yet."""

OnFinish = Literal["delete_pod", "delete_succeeded_pod", "delete_active_pod", "keep_pod"]
"""What becomes of a pod when its task is done with it; KubernetesPodOperator's words."""


class QuotaExceededError(AirflowMLError):
    """A quota of the namespace refuses the pod now; nothing was made. Waiting helps once other pods have ended."""


class PodJobs:
    """
    The pods of one namespace, as values.

    :param client: Client of cncf-kubernetes' hook.
    :param namespace: The namespace.
    :param timeout_s: Seconds that one request may take.
    """

    def __init__(self, client: CoreV1Api, namespace: str, timeout_s: float = 30.0) -> None:
        self.api = KubernetesApi(client, timeout_s)
        self.namespace = namespace
        self._said = False

    def create(self, body: Mapping[str, Any]) -> PodSnapshot:
        """
        Make a pod; one of that name that exists already is read instead, so this may be repeated.

        :param body: JSON of the pod, with its name.
        :return: The pod, made now or before; look at its labels before you take it for yours.
        :raises QuotaExceededError: a quota refuses it; nothing was made.
        :raises ConfigError: the API server or an admission webhook refuses it, or the namespace does not exist; nothing was
            made, a retry never helps.
        :raises RemoteUnavailableError: whether it was made is not known, unless ``sent`` of the error is False.
        """
        try:
            return PodSnapshot.from_json(self.api.json("POST", self._path(), dict(body)))
        except ConflictError as error:
            if error.reason != "AlreadyExists":  # two creates have met at the quota: neither the fault nor the end of this one
                raise
            found = self.look(str(body["metadata"]["name"]))
            if found is None:
                raise RemoteUnavailableError(f"{error} It has gone since. A retry is safe.") from error
            return found
        except RemoteNotFoundError as error:
            raise ConfigError(f"{error} Does namespace {self.namespace!r} exist?") from error
        except ConfigError as error:
            if error.status == FORBIDDEN and NO_ROOM in str(error):
                raise QuotaExceededError(str(error)) from error
            raise

    def look(self, name: str) -> PodSnapshot | None:
        """
        Ask for one pod, as it is now.

        :param name: Its name.
        :return: The pod; None when there is none.
        :raises RemoteUnavailableError: no answer; a retry is safe.
        """
        try:
            return PodSnapshot.from_json(self.api.json("GET", self._path(name)))
        except RemoteNotFoundError:
            return None

    def find(
        self,
        labels: Mapping[str, str],
        *,
        without: Iterable[str] = (),
        fresh: bool = True,
        names: Collection[str] | None = None,
    ) -> list[PodSnapshot]:
        """
        List pods by their labels, 250 a request.

        :param labels: Value per label; all must fit.
        :param without: Labels that they must not have.
        :param fresh: Whether the answer must hold everything that was done before; without, the API server answers from its
            memory, at a fraction of the cost, and a pod that was made just now may be missing.
        :param names: Read only these out of the answer; None for all.
        :return: The pods.
        :raises RemoteUnavailableError: no answer; a retry is safe.
        """
        selector = ",".join([*(f"{name}={value}" for name, value in labels.items()), *(f"!{name}" for name in without)])
        query: dict[str, Any] = {"labelSelector": selector, "limit": PAGE_SIZE, "resourceVersion": None if fresh else "0"}
        found: list[PodSnapshot] = []
        while True:
            answer = self.api.json("GET", self._path(), query=query)
            rows = answer.get("items") or ()
            meta = answer.get("metadata") or {}
            at = str(meta.get("resourceVersion") or "")
            found += [PodSnapshot.from_json(each, at) for each in rows if names is None or each["metadata"]["name"] in names]
            token = meta.get("continue")
            if not token:
                return found
            query |= {"continue": token, "resourceVersion": None}

    def since(self, name: str, version: str) -> list[PodSnapshot]:
        """
        Ask what has become of a pod since it was last seen; for one that is gone, and was not seen to go.

        A pod that is preempted, evicted or deleted can be gone a second later, with all that said why. The API server remembers
        changes for a minute at least, and gives them out to who watches from an earlier version.

        :param name: Its name.
        :param version: ``version`` of the snapshot that was last seen; empty gives nothing.
        :return: The pod after each change, oldest first, the last one as it was when it was deleted; pods of later lives of
            that name may be among them. Nothing, or what came until then, where this account may not watch pods, the version is
            too old, or the server does not answer: this raises nothing, since a pod that is gone must not be waited for.
        """
        found: list[PodSnapshot] = []
        query = {"watch": True, "fieldSelector": f"metadata.name={name}", "resourceVersion": version, "timeoutSeconds": REPLAY_S}
        if not version:
            return found
        try:
            with self.api.stream(self._path(), query=query, silence_s=REPLAY_SILENCE_S) as response:
                for event in _watched(response):
                    if event["type"] == "ERROR":
                        self._not_told(name, str(event["object"].get("message")))
                        break
                    found.append(PodSnapshot.from_json(event["object"]))
                    if event["type"] == "DELETED":
                        break
        except (AirflowMLError, ValueError, LookupError, TypeError) as error:  # all but the first: no answer to a watch
            self._not_told(name, str(error))
        return found

    def delete(self, name: str, *, uid: str = "", grace_s: int | None = None) -> None:
        """
        Ask for a pod to be deleted; its containers get SIGTERM and, after the grace period, SIGKILL.

        :param name: Its name; one that is gone is no error.
        :param uid: Delete only this one: another pod of that name is left alone. Empty for whichever.
        :param grace_s: Seconds of grace; None for the pod's own.
        :raises ConfigError: this account may not delete pods.
        :raises RemoteUnavailableError: no answer; a retry is safe.
        """
        options: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1"}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_s is not None:
            options["gracePeriodSeconds"] = grace_s
        try:
            self.api.json("DELETE", self._path(name), options)
        except RemoteNotFoundError:
            return
        except ConflictError as error:
            if not uid or "uid" not in str(error).lower():
                raise

    def read_log(self, name: str, container: str, cursor: LogCursor) -> bytes:
        """
        Read a piece of a container's log, each line with its time before it.

        :param name: The pod.
        :param container: The container.
        :param cursor: Where to begin, and how many bytes to take at most.
        :return: The bytes, for :meth:`LogCursor.take`; none for a container that has not started.
        :raises RemoteNotFoundError: there is no such pod.
        :raises ConfigError: there is no such container, or this account may not read logs.
        :raises RemoteUnavailableError: no answer, of the API server or of the pod's kubelet; a retry is safe.
        """
        query = _log_query(container, cursor) | {"limitBytes": cursor.limit_bytes}
        try:
            return self.api.raw("GET", self._path(name, "log"), query=query)
        except ConfigError as error:
            if _not_begun(error):
                return b""
            raise

    def read_lines(self, name: str, container: str, cursor: LogCursor, *, complete: bool = False) -> tuple[list[str], LogCursor]:
        """
        Read the lines of a container's log that are new, as many as one reading may hold.

        :param name: The pod.
        :param container: The container.
        :param cursor: Where to begin.
        :param complete: Whether the container had ended before.
        :return: The lines, and where to go on: at once while that is ``behind``.
        :raises AirflowMLError: as :meth:`read_log`.
        """
        if not cursor.stuck:
            return cursor.take(self.read_log(name, container, cursor), complete=complete)
        query = _log_query(container, cursor)
        with self.api.stream(self._path(name, "log"), query=query, silence_s=self.api.timeout_s) as response:
            return cursor.take_pieces(response.stream(PIECE_BYTES), complete=complete)

    @contextlib.contextmanager
    def follow_log(self, name: str, container: str, cursor: LogCursor, *, silence_s: float = 300.0) -> Iterator[Any]:
        """
        Read a container's log as it is written, with one request, until the container has ended.

        :param name: The pod.
        :param container: The container.
        :param cursor: Where to begin.
        :param silence_s: Seconds without a line after which reading fails.
        :return: A response of urllib3; its ``stream(amount)`` gives bytes, for :class:`LogReading`.
        :raises AirflowMLError: as :meth:`read_log`, and :class:`RemoteUnavailableError` from the block when it breaks off.
        """
        query = _log_query(container, cursor) | {"follow": True}
        try:
            with self.api.stream(self._path(name, "log"), query=query, silence_s=silence_s) as response:
                yield response
        except ConfigError as error:
            if _not_begun(error):
                raise RemoteUnavailableError(str(error)) from error
            raise

    def events(self, name: str, uid: str) -> list[PodEvent]:
        """
        List what the cluster's parts have said of a pod; they are kept for an hour, longer than a pod that was deleted.

        :param name: The pod.
        :param uid: Its uid: those of another pod of that name are left out.
        :return: Its events, oldest first as far as the API server sorts them.
        :raises ConfigError: this account may not list events.
        :raises RemoteUnavailableError: no answer; a retry is safe.
        """
        query = {"fieldSelector": f"involvedObject.name={name},involvedObject.uid={uid}", "limit": PAGE_SIZE}
        answer = self.api.json("GET", namespaced(self.namespace, "events"), query=query)
        return [PodEvent.from_json(each) for each in answer.get("items") or ()]

    def label(self, name: str, labels: Mapping[str, str], *, uid: str = "") -> PodSnapshot | None:
        """
        Set labels of a pod.

        :param name: Its name.
        :param labels: Value per label.
        :param uid: Only of this one; empty for whichever has the name.
        :return: The pod with them, as it is now; None for one that is gone.
        :raises ConfigError: this account may not patch pods.
        :raises RemoteUnavailableError: no answer; a retry is safe.
        """
        meta: dict[str, Any] = {"labels": dict(labels)}
        try:
            body = {"metadata": meta | ({"uid": uid} if uid else {})}
            return PodSnapshot.from_json(self.api.json("PATCH", self._path(name), body))
        except RemoteNotFoundError:
            return None
        except (ConflictError, ConfigError) as error:  # another uid is a conflict, or 422 "metadata.uid: field is immutable"
            if not uid or error.status not in {CONFLICT, UNPROCESSABLE} or "uid" not in str(error).lower():
                raise
            return None

    def again(self, *, timeout_s: float | None = None) -> PodJobs:
        """
        Make another with connections of its own, from what is known: nothing is read.

        :param timeout_s: Seconds that one request may take; None for the same.
        :return: The same pods, for a thread or a signal handler.
        """
        from kubernetes.client import ApiClient, CoreV1Api

        client = CoreV1Api(ApiClient(configuration=self.api.client.configuration))
        return PodJobs(client, self.namespace, timeout_s or self.api.timeout_s)

    def close(self) -> None:
        """Close the connections; they are opened again on the next call."""
        self.api.close()

    def _not_told(self, name: str, why: str) -> None:
        """Say once what keeps the past from being known."""
        level = logging.DEBUG if self._said else logging.INFO
        self._said = True
        log.log(level, "How pod %s went is not known (asked by a watch, which needs that verb for pods): %s", name, why)

    def _path(self, *parts: str) -> str:
        return namespaced(self.namespace, "pods", *parts)


def _watched(response: Any) -> Iterator[dict[str, Any]]:
    """Read the events of a watch, one a line."""
    rest = b""
    for piece in response.stream(65_536):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line:
                yield json.loads(line)


def _log_query(container: str, cursor: LogCursor) -> dict[str, Any]:
    return {"container": container, "timestamps": True, "sinceTime": cursor.since_time, "tailLines": cursor.tail_lines}


def _not_begun(error: ConfigError) -> bool:
    return error.status == BAD_REQUEST and any(each in str(error) for each in NOT_BEGUN)
