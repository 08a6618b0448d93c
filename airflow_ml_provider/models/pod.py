"""A pod as Kubernetes reports it, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from airflow_ml_provider.models.pod_step import StepMessage

Phase = Literal["Pending", "Running", "Succeeded", "Failed", "Unknown"]


class PodCondition(BaseModel):
    """
    One condition of a pod.

    :param status: ``True``, ``False`` or ``Unknown``, as texts.
    :param reason: Kubernetes' word for why, empty where it gives none.
    :param message: The same for people.
    :param at: When it last changed; None where Kubernetes does not say.
    """

    model_config = ConfigDict(frozen=True)

    status: str
    reason: str = ""
    message: str = ""
    at: datetime | None = None


class ContainerStatus(BaseModel):
    """
    One container of a pod.

    :param name: Its name.
    :param state: What it does now.
    :param reason: Kubernetes' word for why it waits or has ended: ``ErrImagePull``, ``OOMKilled``, ``Error``, ``Completed``, ...
    :param message: For one that waits the reason in words, for one that has ended its termination message.
    :param exit_code: Of one that has ended.
    :param started_at: When it started.
    :param finished_at: When it ended.
    :param restarts: How often it was started again.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    state: Literal["waiting", "running", "terminated"] = "waiting"
    reason: str = ""
    message: str = ""
    exit_code: int | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    restarts: int = 0


class PodSnapshot(BaseModel):
    """
    A pod at one moment, as far as we decide by it.

    :param name: Its name.
    :param namespace: Its namespace.
    :param uid: Tells it from a later pod of the same name.
    :param phase: ``Pending``, ``Running``, ``Succeeded``, ``Failed`` or ``Unknown``.
    :param reason: Of the pod itself: ``Evicted``, ``DeadlineExceeded``, ``NodeLost``, mostly empty.
    :param message: The same for people.
    :param node: Node that it was given to; empty before.
    :param labels: Its labels.
    :param created_at: When it was made.
    :param deleted_at: When it is to be gone at the latest, once somebody has deleted it (``deletionTimestamp``).
    :param deletion_grace_s: Seconds between the request to delete it and ``deleted_at``.
    :param conditions: Condition per type.
    :param containers: Its main containers, in order.
    :param init_containers: Its init containers, native sidecars among them, in order.
    :param version: The API server's word for when this was so: what has become of the pod since can be asked for by it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    namespace: str
    uid: str
    phase: Phase = "Pending"
    reason: str = ""
    message: str = ""
    node: str = ""
    labels: dict[str, str] = Field(default_factory=dict)
    created_at: datetime | None = None
    deleted_at: datetime | None = None
    deletion_grace_s: int | None = None
    conditions: dict[str, PodCondition] = Field(default_factory=dict)
    containers: list[ContainerStatus] = Field(default_factory=list)
    init_containers: list[ContainerStatus] = Field(default_factory=list)
    version: str = ""

    @classmethod
    def from_json(cls, pod: Mapping[str, Any], version: str = "") -> Self:
        """
        Read a pod from the API's JSON.

        :param pod: The object as the API server sends it; fields that are missing are taken as not there yet.
        :param version: ``resourceVersion`` of the list it was in, which is newer than the pod's own; empty takes that.
        :return: The snapshot.
        """
        meta, spec, status = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
        return cls(
            name=meta["name"],
            namespace=meta.get("namespace", ""),
            uid=meta.get("uid", ""),
            phase=status.get("phase") or "Pending",
            reason=status.get("reason") or "",
            message=status.get("message") or "",
            node=spec.get("nodeName") or "",
            labels=meta.get("labels") or {},
            created_at=meta.get("creationTimestamp"),
            deleted_at=meta.get("deletionTimestamp"),
            deletion_grace_s=meta.get("deletionGracePeriodSeconds"),
            conditions={each["type"]: _condition(each) for each in status.get("conditions") or []},
            containers=[_container(each) for each in status.get("containerStatuses") or []],
            init_containers=[_container(each) for each in status.get("initContainerStatuses") or []],
            version=version or meta.get("resourceVersion") or "",
        )

    def container(self, name: str) -> ContainerStatus | None:
        """
        Find a container by name.

        :param name: Its name, main or init.
        :return: Its status; None before the kubelet has reported one.
        """
        return next((each for each in (*self.containers, *self.init_containers) if each.name == name), None)


class PodEnd(StrEnum):
    """What became of a pod, by remedy."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    """Its program ended with an exit code."""
    OUT_OF_MEMORY = "out_of_memory"
    EVICTED = "evicted"
    PREEMPTED = "preempted"
    NODE_LOST = "node_lost"
    IMAGE = "image"
    """Its image does not exist, or may not be pulled."""
    IMAGE_PULL = "image_pull"
    """The registry did not answer; a retry may help."""
    CONFIG = "config"
    """A Secret, a ConfigMap, a program or a volume is missing, or the spec is refused."""
    DEADLINE = "deadline"
    """``activeDeadlineSeconds``, ``execution_timeout`` or our own deadline."""
    DELETED = "deleted"
    """Somebody deleted it."""
    NO_ROOM = "no_room"
    """No node had room within ``capacity_timeout``."""
    NOT_STARTED = "not_started"
    """It had a node, and did not start within ``startup_timeout``."""
    UNREACHABLE = "unreachable"
    """The API server did not answer within the patience; the pod may run on."""


class PodOutcome(BaseModel):
    """
    The end of the waiting for a pod; plain JSON, so that it is a trigger's event too.

    :param end: What became of it.
    :param pod: Its name.
    :param namespace: Its namespace.
    :param uid: Its uid.
    :param node: Its node; empty where it had none.
    :param exit_code: Of the main container; None where there is none.
    :param message: The reason in words: what was seen, and Kubernetes' own text.
    :param told: What the step has written as its termination message; None where it wrote none that can be read.
    :param told_beside: It was another container that wrote it, and that one does not know how the program ended.
    :param init_container: Init container that kept the main one from starting, by its failure or its trouble; empty for none.
    :param gone: The pod object is not there any more, so what it held (log, termination message) cannot be read.
    :param log: Where the log was read to, as :class:`LogCursor` writes itself.
    """

    model_config = ConfigDict(frozen=True)

    end: PodEnd
    pod: str
    namespace: str
    uid: str = ""
    node: str = ""
    exit_code: int | None = None
    message: str = ""
    told: StepMessage | None = None
    told_beside: bool = False
    init_container: str = ""
    gone: bool = False
    log: dict[str, Any] = Field(default_factory=dict)


def _condition(each: Mapping[str, Any]) -> PodCondition:
    return PodCondition(
        status=each.get("status") or "Unknown",
        reason=each.get("reason") or "",
        message=each.get("message") or "",
        at=each.get("lastTransitionTime"),
    )


def _container(each: Mapping[str, Any]) -> ContainerStatus:
    state = each.get("state") or {}
    kind: Literal["waiting", "running", "terminated"] = (
        "terminated" if state.get("terminated") else "running" if state.get("running") else "waiting"
    )
    found = state.get(kind) or {}
    return ContainerStatus(
        name=each["name"],
        state=kind,
        reason=found.get("reason") or "",
        message=found.get("message") or "",
        exit_code=found.get("exitCode"),
        started_at=found.get("startedAt"),
        finished_at=found.get("finishedAt"),
        restarts=each.get("restartCount") or 0,
    )
