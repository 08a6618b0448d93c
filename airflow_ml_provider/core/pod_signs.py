"""
What a look at a pod says: who told it to go and when, what keeps it from starting, how its container ended. Pure.

Kubernetes' own summary is no proof. A pod that answers SIGTERM with exit 0 is ``Succeeded``, whoever sent it; one whose child was
killed for its memory is too; and the last step of a deletion overwrites the time at which the deletion was asked for.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from airflow_ml_provider.models.pod import ContainerStatus, PodCondition, PodEnd, PodSnapshot

CLOCKS = timedelta(seconds=5)
"""By so much the clocks of a node and of the API server may differ; both also write whole seconds only."""

REASONS: dict[str, tuple[PodEnd, str]] = {
    "Evicted": (PodEnd.EVICTED, "was evicted by its node"),
    "DeadlineExceeded": (PodEnd.DEADLINE, "ran longer than its activeDeadlineSeconds"),
    "NodeLost": (PodEnd.NODE_LOST, "was on a node that went away"),
    "NodeShutdown": (PodEnd.NODE_LOST, "was on a node that was shut down"),
    "Shutdown": (PodEnd.NODE_LOST, "was on a node that was shut down"),
    "Terminated": (PodEnd.NODE_LOST, "was on a node that was shut down"),
    "Preempting": (PodEnd.PREEMPTED, "was preempted by its node"),
}
"""A pod's own reason; the kubelet writes it with the end, so it needs no comparing of times."""

DISRUPTIONS: dict[str, tuple[PodEnd, str]] = {
    "PreemptionByScheduler": (PodEnd.PREEMPTED, "was preempted"),
    "DeletionByTaintManager": (PodEnd.NODE_LOST, "was to leave its node, which is tainted or unreachable"),
    "DeletionByPodGC": (PodEnd.NODE_LOST, "was on a node that does not exist any more"),
    "EvictionByEvictionAPI": (PodEnd.EVICTED, "was evicted"),
    "TerminationByKubelet": (PodEnd.EVICTED, "was stopped by its node"),
}
"""Reason of the condition ``DisruptionTarget``."""

NEVER_PULLED = {"ErrImageNeverPull", "InvalidImageName"}
PULLING = {"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable", "SignatureValidationFailed"}
NOT_MADE = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError", "CreatePodSandboxError"}
NOT_RUN = {"StartError", "ContainerCannotRun"}
KILLED = {137, 143}
"""Exit codes of a program that SIGKILL or SIGTERM has ended."""

# Only words that stand alone: an image may be called registry/team/not-found-detector.
REFUSED = re.compile(
    r"(?<![\w/.-])(?:not found|manifest unknown|name unknown|unauthorized|authentication required|pull access denied|denied"
    r"|insufficient_scope|no basic auth credentials|(?:40[134]) \w+|code = (?:NotFound|Unauthenticated|PermissionDenied)"
    r"|no match for platform|SignatureValidationFailed)(?![\w/-])",
    re.IGNORECASE,
)
BUSY = re.compile(
    r"(?<![\w/.-])(?:429|5\d\d) \w+|toomanyrequests|timeout|timed out|connection (?:refused|reset)|no such host"
    r"|server misbehaving|deadline exceeded|\bEOF\b",
    re.IGNORECASE,
)
NODE_TROUBLE = re.compile(
    r"nvidia-container-cli|libnvidia|nvml|deadline exceeded|timed out|resource temporarily unavailable|cannot allocate memory"
    r"|no space left on device|device or resource busy|too many open files|transport is closing|connection refused",
    re.IGNORECASE,
)
MISSING_CLAIM = re.compile(r'persistentvolumeclaim "[^"]*" not found', re.IGNORECASE)
BEING_MADE = {"", "ContainerCreating", "PodInitializing"}
"""Reasons of a container that waits for its volumes, its network and its image, and says no more."""
QUOTED = re.compile(r'"[^"]*"')

Order = Literal["none", "after", "unclear", "before"]


@dataclass(frozen=True)
class Sign:
    """
    Somebody told the pod to go.

    :param end: What that makes of it.
    :param text: In words, with Kubernetes' own.
    :param at: When; None where that is not known.
    :param final: It is a reason that comes with the end, so the times need not be compared.
    """

    end: PodEnd
    text: str
    at: datetime | None = None
    final: bool = False


def disruption(pod: PodSnapshot) -> Sign | None:
    """
    Find out who told a pod to go, where Kubernetes says it.

    :param pod: The pod.
    :return: The sign; None for a pod that nobody disturbs, and for one that was merely deleted.
    """
    if pod.reason in REASONS:
        end, words = REASONS[pod.reason]
        return Sign(end, f"{words} ({pod.reason}: {pod.message.strip()})", final=True)
    found, kueue = _condition(pod, "DisruptionTarget"), _condition(pod, "TerminationTarget")
    if found.status == "True":
        end, words = DISRUPTIONS.get(found.reason, (PodEnd.EVICTED, "was told to go"))
        return Sign(end, f"{words} ({found.reason}: {found.message})", found.at)
    if kueue.status == "True":
        return Sign(PodEnd.PREEMPTED, f"was stopped by Kueue ({kueue.reason}: {kueue.message})", kueue.at)
    return None


def order(pod: PodSnapshot, ended_at: datetime | None) -> Order:
    """
    Say whether a pod was told to go before its container ended.

    The kubelet deletes a pod once more when all is over, without grace, and the API server then writes the time of that. So a
    deletion without grace says only that the request came by then at the latest.

    :param pod: The pod.
    :param ended_at: When its container ended; None where nobody knows.
    :return: ``none`` when nobody told it to go; ``unclear`` where the times cannot decide it.
    """
    sign = disruption(pod)
    found: list[Order] = []
    if sign is not None:
        found.append("before" if sign.final else _compare(sign.at, ended_at))
    if pod.deleted_at is not None and pod.deletion_grace_s:
        found.append(_compare(pod.deleted_at - timedelta(seconds=pod.deletion_grace_s), ended_at))
    elif pod.deleted_at is not None:
        found.append("before" if ended_at is None or pod.deleted_at < ended_at else "unclear")
    worst: tuple[Order, ...] = ("before", "unclear", "after")
    return next((each for each in worst if each in found), "none")


def _compare(at: datetime | None, ended_at: datetime | None) -> Order:
    if at is None or ended_at is None or at < ended_at:
        return "before"
    return "after" if at > ended_at + CLOCKS else "unclear"


@dataclass(frozen=True)
class Trouble:
    """
    Something keeps a container from starting.

    :param end: What becomes of the pod if it stays so.
    :param text: In words, without what changes from look to look.
    :param grace_s: Seconds that it may last; None for as long as the pod may take to start.
    :param vague: It says that something was tried in vain, and not why: what was seen before still holds.
    """

    end: PodEnd
    text: str
    grace_s: float | None = None
    vague: bool = False


def trouble(pod: PodSnapshot, grace_s: float) -> Trouble | None:
    """
    Find what keeps a pod's containers from starting.

    :param pod: The pod.
    :param grace_s: Seconds for what may still mend itself: a Secret that is made a moment after its pod, an image that is
        being pushed.
    :return: The trouble; None while all goes well.
    """
    both = (*((each, False) for each in pod.init_containers), *((each, True) for each in pod.containers))
    waiting = ((each, main) for each, main in both if each.state == "waiting")
    return next((found for each, main in waiting if (found := _trouble_of(each, main, grace_s)) is not None), None)


def _trouble_of(container: ContainerStatus, main: bool, grace_s: float) -> Trouble | None:
    reason, message = container.reason, container.message
    text = f"container {container.name}: {reason}: {message}" if message else f"container {container.name}: {reason}"
    if reason in NEVER_PULLED:
        return Trouble(PodEnd.IMAGE, text, 0.0)
    if reason in PULLING:
        cause = message.partition(": ErrImagePull: ")[2] or message or "no cause given"
        refused, vague = _refused(f"{reason} {cause}"), cause == message and reason == "ImagePullBackOff"
        pull = f"the image of container {container.name} cannot be pulled: {cause}"
        return Trouble(PodEnd.IMAGE if refused else PodEnd.IMAGE_PULL, pull, grace_s if refused else None, vague)
    if reason in NOT_MADE:
        mends = NODE_TROUBLE.search(message) is not None
        return Trouble(PodEnd.NOT_STARTED if mends else PodEnd.CONFIG, text, None if mends else grace_s)
    if reason == "CrashLoopBackOff":
        again = (
            f"container {container.name} has ended, and Kubernetes starts it over and over ({container.restarts} times so far)"
        )
        return Trouble(PodEnd.FAILED if main else PodEnd.NOT_STARTED, again, 0.0 if main else None)
    return None


def _refused(cause: str) -> bool:
    """Whether a registry has said that there is no such image, or not for us; a busy or distant one says nothing of the kind."""
    bare = QUOTED.sub("", cause)
    return REFUSED.search(bare) is not None and BUSY.search(bare) is None


def scheduled(pod: PodSnapshot) -> bool:
    """
    Say whether a pod has a node.

    :param pod: The pod.
    :return: True once it has one, whether or not its kubelet has spoken.
    """
    return bool(pod.node) or _condition(pod, "PodScheduled").status == "True"


def waits_for(pod: PodSnapshot) -> str:
    """
    Say what a pod without a node waits for.

    :param pod: The pod.
    :return: The scheduler's own words.
    """
    found = _condition(pod, "PodScheduled")
    if not found.reason:
        return "the scheduler has not looked at it yet"
    return found.message or found.reason


def missing_claim(pod: PodSnapshot) -> Trouble | None:
    """
    Find whether a pod gets no node because a volume claim does not exist: no room would mend that.

    :param pod: The pod.
    :return: The trouble; None for one that has a node, or waits for another thing.
    """
    text = _condition(pod, "PodScheduled").message
    return None if scheduled(pod) or not MISSING_CLAIM.search(text) else Trouble(PodEnd.CONFIG, f"it cannot be scheduled: {text}")


def being_made(pod: PodSnapshot) -> bool:
    """
    Say whether a pod has a node, and nothing of it has begun to run: its events may tell what the pod itself does not.

    :param pod: The pod.
    :return: True while its containers only wait, and none of them says for what.
    """
    both = (*pod.containers, *pod.init_containers)
    waits = all(each.state == "waiting" and each.reason in BEING_MADE for each in both)
    return scheduled(pod) and pod.deleted_at is None and pod.phase == "Pending" and waits


def node_is_silent(pod: PodSnapshot) -> bool:
    """
    Say whether the node of a running pod has stopped reporting.

    :param pod: The pod.
    :return: True where Kubernetes has marked the pod as not ready for its node's sake, while its containers are still ready.
    """
    ready, containers = _condition(pod, "Ready"), _condition(pod, "ContainersReady")
    return pod.phase == "Running" and ready.status == "False" and not ready.reason and containers.status == "True"


def _condition(pod: PodSnapshot, kind: str) -> PodCondition:
    return pod.conditions.get(kind, PodCondition(status="Unknown"))
