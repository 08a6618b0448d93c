"""
A Secret that a step's pod reads, made by the operator where somebody asked for it; a Secret that exists already is better.

It is made before its pod, which could not start without it, and handed to the pod afterwards: Kubernetes deletes it with its
owner. What a crash leaves between the two has no owner, and is found by its labels.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_ml_provider.core.pod_adoption import KEY, MANAGED, labels_of, pod_name
from airflow_ml_provider.core.submission import Generation
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.kubernetes import ConflictError, namespaced
from airflow_ml_provider.jobs.pods import PAGE_SIZE, PodJobs
from airflow_ml_provider.models.pod import PodSnapshot
from airflow_ml_provider.models.run import StepIdentity

log = logging.getLogger(__name__)

SECRET_BYTES = 1_048_576
"""Kubernetes keeps so much in one Secret."""


class PodSecrets:
    """
    The Secrets of one namespace that belong to steps; values are never read back and never logged.

    :param jobs: Pods of the namespace.
    """

    def __init__(self, jobs: PodJobs) -> None:
        self.jobs = jobs

    def create(self, identity: StepIdentity, generation: Generation, values: Mapping[str, str]) -> str:
        """
        Make the Secret of a pod that is about to be made; one of a create before is overwritten.

        :param identity: The task instance.
        :param generation: Which of its pods.
        :param values: Text per key, 1 MiB together.
        :return: The Secret's name, which is the pod's.
        :raises ConfigError: it is too large, has a bad key, or this account may not make Secrets; a retry never helps.
        :raises RemoteUnavailableError: no answer; a retry is safe.
        """
        size = sum(len(each.encode()) for each in values.values())
        if size > SECRET_BYTES:
            raise ConfigError(f"the Secret of {identity.label} has {size} bytes; Kubernetes takes {SECRET_BYTES}. Use an input.")
        name = pod_name(identity, generation)
        data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
        body: dict[str, Any] = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "data": data}
        body["metadata"] = {"name": name, "labels": labels_of(identity, generation)}
        try:
            self.jobs.api.json("POST", self._path(), body)
        except ConflictError as error:
            if error.reason != "AlreadyExists":
                raise
            # It may be owned by a pod that is gone, with which Kubernetes would delete it; null takes that away.
            body["metadata"]["ownerReferences"] = None
            self.jobs.api.json("PATCH", self._path(name), body)
        return name

    def give_to(self, pod: PodSnapshot) -> None:
        """
        Make a pod the owner of its Secret, so that Kubernetes deletes both together; may be repeated.

        :param pod: The pod, whose name the Secret has; a Secret that is gone is no error.
        :raises ConfigError: this account may not patch Secrets; a retry never helps.
        :raises RemoteUnavailableError: no answer; a retry is safe.
        """
        owner = {"apiVersion": "v1", "kind": "Pod", "name": pod.name, "uid": pod.uid}
        try:
            self.jobs.api.json("PATCH", self._path(pod.name), {"metadata": {"ownerReferences": [owner]}})
        except RemoteNotFoundError:
            log.warning("Secret %s is gone; pod %s may not be able to start.", pod.name, pod.name)

    def sweep(self, identity: StepIdentity | None = None, *, older_than_s: float = 3600.0) -> list[str]:
        """
        Delete the Secrets whose pod is gone and that nobody owns: what a crash has left.

        :param identity: Those of this task instance, before it makes its own; None for all of ours that are in the namespace.
        :param older_than_s: Without an identity, Secrets that are younger are left: their pods may just be being made.
        :return: Names of the deleted.
        :raises ConfigError: this account may not list or delete Secrets; a retry never helps.
        :raises RemoteUnavailableError: no answer; a retry is safe.
        """
        labels = {MANAGED: "true"} | ({KEY: identity.key} if identity else {})
        before = datetime.now(UTC) - timedelta(seconds=0.0 if identity else older_than_s)
        left = [each for each in self._find(labels) if not each.get("ownerReferences") and (identity or _made(each) <= before)]
        alive = {each.name for each in self.jobs.find(labels)} if left else set()
        gone = [each for each in left if each["name"] not in alive]
        for each in gone:
            options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": each["uid"]}}
            try:
                self.jobs.api.json("DELETE", self._path(each["name"]), options)
            except (RemoteNotFoundError, ConflictError):
                continue
        return [str(each["name"]) for each in gone]

    def _find(self, labels: Mapping[str, str]) -> list[dict[str, Any]]:
        """List the metadata alone: the values do not leave the API server."""
        selector = ",".join(f"{name}={value}" for name, value in labels.items())
        query: dict[str, Any] = {"labelSelector": selector, "limit": PAGE_SIZE}
        found: list[dict[str, Any]] = []
        while True:
            answer = self.jobs.api.json("GET", self._path(), query=query, metadata_only=True)
            found += [each["metadata"] for each in answer.get("items") or ()]
            token = (answer.get("metadata") or {}).get("continue")
            if not token:
                return found
            query["continue"] = token

    def _path(self, *parts: str) -> str:
        return namespaced(self.jobs.namespace, "secrets", *parts)


def _made(meta: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(str(meta["creationTimestamp"]))
