"""
What the events of a pod add to what the pod itself says. Pure.

A pod that its node evicts and that answers SIGTERM with exit 0 quickly is ``Succeeded`` and carries no trace of it: no reason, no
condition, no deletion. A step of ours says so itself in its termination message; of any other program only the events tell. They
are kept for an hour, and reading them needs the right to list events.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_ml_provider.models.pod import PodEnd, PodOutcome

TOLD_TO_GO: dict[str, tuple[PodEnd, str]] = {
    "Evicted": (PodEnd.EVICTED, "it was evicted by its node"),
    "Preempted": (PodEnd.PREEMPTED, "it was preempted"),
    "Preempting": (PodEnd.PREEMPTED, "it was preempted by its node"),
    "TaintManagerEviction": (PodEnd.NODE_LOST, "it was to leave its node"),
    "Killing": (PodEnd.DELETED, "its container was told to stop"),
}
"""Reasons of events, the ones that say most first."""
NOTHING = {"Cancelling deletion of Pod"}
NO_MOUNT = "FailedMount"
MISSING = re.compile(
    r'\b(?:secret|configmap|persistentvolumeclaim)s?(?:\.\S+)? "[^"]*" not found|references non-existent (?:secret|config) key',
    re.IGNORECASE,
)
MOUNTED = {"Pulling", "Pulled", "Created", "Started"}
"""Reasons of events that come only once all volumes are mounted."""


@dataclass(frozen=True)
class PodEvent:
    """
    One event of a pod.

    :param reason: Kubernetes' word for it.
    :param message: The same for people.
    :param warning: It is one of type ``Warning``.
    :param container: Name of the container that it is about; empty for the pod.
    """

    reason: str
    message: str = ""
    warning: bool = False
    container: str = ""

    @classmethod
    def from_json(cls, event: Mapping[str, Any]) -> PodEvent:
        """
        Read an event from the API's JSON.

        :param event: The object, of the core API.
        :return: The event.
        """
        path = (event.get("involvedObject") or {}).get("fieldPath") or ""
        container = path.partition("{")[2].removesuffix("}")  # spec.containers{base}, spec.initContainers{prepare}
        return cls(event.get("reason") or "", event.get("message") or "", event.get("type") == "Warning", container)


def needs_events(outcome: PodOutcome) -> bool:
    """
    Say whether an outcome is to be believed only once its pod's events were read.

    :param outcome: The outcome.
    :return: True for a success that the program's own container has not confirmed, and for a pod that is gone and was not seen
        to go.
    """
    if outcome.gone and outcome.end is PodEnd.DELETED:
        return True
    return outcome.end is PodEnd.SUCCEEDED and (outcome.told is None or outcome.told_beside)


def with_events(outcome: PodOutcome, events: Iterable[PodEvent], container: str) -> PodOutcome:
    """
    Look at an outcome again in the light of the pod's events.

    :param outcome: The outcome.
    :param events: Events of the pod of this uid; those of another of the same name must be left out.
    :param container: Name of the main container.
    :return: The outcome; another one for a success that was none.
    """
    if not needs_events(outcome):
        return outcome
    seen = {
        each.reason: each
        for each in events
        if not any(each.message.startswith(words) for words in NOTHING) and each.container in {"", container}
    }
    for reason, (end, text) in TOLD_TO_GO.items():
        if reason in seen and end is not outcome.end:
            said = f"{text} ({reason}: {seen[reason].message}) before its program had ended by itself"
            return outcome.model_copy(update={"end": end, "message": f"{outcome.message} But {said}."})
    return outcome


def unmounted(events: Iterable[PodEvent]) -> str:
    """
    Find which Secret, ConfigMap or claim a pod's volumes are waiting for in vain.

    :param events: Its events.
    :return: The newest words on it; empty where there are none, or all is mounted by now.
    """
    seen = list(events)
    if any(each.reason in MOUNTED for each in seen):
        return ""
    found = [f"{each.reason}: {each.message}" for each in seen if each.reason == NO_MOUNT and MISSING.search(each.message)]
    return found[-1] if found else ""


def warnings(events: Iterable[PodEvent], most: int = 3) -> str:
    """
    Put the warnings among a pod's events into words.

    :param events: Its events, oldest first.
    :param most: Number of different ones that are told, the newest.
    :return: The text; empty where there are none.
    """
    said = dict.fromkeys(f"{each.reason}: {each.message}" for each in events if each.warning)
    return "; ".join(list(said)[-most:])
