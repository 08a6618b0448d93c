"""
Which pod a try works with: names and labels that a crash cannot change, and what to do with the pods that are found. Pure.

A pod belongs to a task instance and to a generation of it (:mod:`airflow_ml_provider.core.submission`); both are labels, and the
name is made of both. So a create that is sent twice, or by two processes, makes one pod: the second is told that it exists.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from airflow_ml_provider.core.submission import Generation
from airflow_ml_provider.exceptions import SupersededError
from airflow_ml_provider.models.pod import PodSnapshot
from airflow_ml_provider.models.run import StepIdentity

KEY, GENERATION, MANAGED, READ = "airflow-ml/key", "airflow-ml/generation", "airflow-ml/managed", "airflow-ml/read"
"""Labels: whose pod it is, which of its pods, that it is one of ours at all, and that its end was read by a task."""
SLUG_LETTERS = 40
NAME_DIGITS = 12

Action = Literal["adopt", "create", "clear"]


@dataclass(frozen=True)
class Remembered:
    """
    What earlier tries have written down, where Airflow has a place for it.

    :param generation: Generation that was worked with last.
    :param uid: Its pod; empty while no create was answered.
    :param read: Whether its end was read.
    """

    generation: Generation
    uid: str = ""
    read: bool = False

    @classmethod
    def from_json(cls, stored: object) -> Remembered | None:
        """
        Read it again.

        :param stored: What :meth:`to_json` gave, or anything else.
        :return: None for anything else.
        """
        if not isinstance(stored, dict) or (generation := read_generation(str(stored.get("generation")))) is None:
            return None
        return cls(generation, str(stored.get("uid") or ""), bool(stored.get("read")))

    def to_json(self) -> dict[str, Any]:
        """
        Write it down.

        :return: Plain JSON.
        """
        return {"generation": label_of(self.generation), "uid": self.uid, "read": self.read}


@dataclass(frozen=True)
class PodPlan:
    """
    What a try does next.

    :param action: ``adopt``: wait for ``pod``, or take its result. ``create``: make a pod of ``generation``. ``clear``: see
        that ``in_the_way`` go, delete those that are not being deleted, and look again.
    :param generation: Which of the pods.
    :param pod: To adopt.
    :param in_the_way: Pods that may still run and are not to be worked with.
    :param over: Pods that have ended and are not to be worked with: failed ones, those of before a clear.
    :param lost: Uid of the pod that was worked with last, when its end was never read and it is gone; else empty.
    """

    action: Action
    generation: Generation
    pod: PodSnapshot | None = None
    in_the_way: tuple[PodSnapshot, ...] = ()
    over: tuple[PodSnapshot, ...] = ()
    lost: str = ""


def pod_name(identity: StepIdentity, generation: Generation) -> str:
    """
    Derive the name of a pod; the same on every machine and in every try.

    :param identity: The task instance.
    :param generation: Which of its pods.
    :return: A name that Kubernetes takes, 53 letters at most.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", identity.task_id.lower())[:SLUG_LETTERS].strip("-") or "step"
    digest = hashlib.sha256(f"{identity.key}/{generation.clears}/{generation.renewals}".encode()).hexdigest()
    return f"{slug}-{digest[:NAME_DIGITS]}"


def labels_of(identity: StepIdentity, generation: Generation) -> dict[str, str]:
    """
    Give the labels by which a pod, and what belongs to it, is found again.

    :param identity: The task instance.
    :param generation: Which of its pods.
    :return: Value per label.
    """
    return {KEY: identity.key, GENERATION: label_of(generation), MANAGED: "true"}


def label_of(generation: Generation) -> str:
    """
    Write a generation as a label.

    :param generation: The generation.
    :return: ``<clears>-<renewals>``.
    """
    return f"{generation.clears}-{generation.renewals}"


def read_generation(label: str) -> Generation | None:
    """
    Read a generation from a label.

    :param label: Its value.
    :return: None for what is none.
    """
    found = re.fullmatch(r"(\d+)-(\d+)", label)
    return None if found is None else Generation(clears=int(found[1]), renewals=int(found[2]))


def has_ended(pod: PodSnapshot) -> bool:
    """
    Say whether nothing of a pod runs any more.

    :param pod: The pod.
    :return: False also for one whose node does not report.
    """
    return pod.phase in {"Succeeded", "Failed"}


def choose(pods: Iterable[PodSnapshot], clears: int, remembered: Remembered | None = None) -> PodPlan:
    """
    Decide what a try does, given the pods of its task instance.

    Never two at once: nothing is made while a pod of before may run. A pod that nobody has read, and that runs, waits or has
    succeeded, is taken up; one that failed, that was read, or that is being deleted, makes way for the next renewal.

    :param pods: Pods with the label of the task instance, of all generations.
    :param clears: Airflow's ``max_tries``.
    :param remembered: What earlier tries have written down.
    :return: The plan.
    :raises SupersededError: there is a pod of a later clear, so this try is one that should not run any more.
    """
    known = [(each, read_generation(each.labels.get(GENERATION, "")) or Generation(clears=-1)) for each in pods]
    known.sort(key=lambda each: (each[1].clears, each[1].renewals))
    if known and known[-1][1].clears > clears:
        raise SupersededError(f"pod {known[-1][0].name} belongs to a later clear of this task; this try is over.")
    last = known[-1] if known and known[-1][1].clears == clears else None
    rest = [pod for pod, generation in known if last is None or generation != last[1]]
    over = tuple(each for each in rest if has_ended(each))
    in_the_way = tuple(each for each in rest if not has_ended(each))
    if last is None:
        generation, lost = _without_pod(clears, remembered)
        return PodPlan("clear" if in_the_way else "create", generation, in_the_way=in_the_way, over=over, lost=lost)
    pod, generation = last
    if _is_to_be_taken_up(pod):
        return PodPlan("clear" if in_the_way else "adopt", generation, pod, in_the_way, over)
    generation = _after(generation, remembered)
    if has_ended(pod):
        return PodPlan("clear" if in_the_way else "create", generation, None, in_the_way, (*over, pod))
    return PodPlan("clear", generation, None, (*in_the_way, pod), over)


def _is_to_be_taken_up(pod: PodSnapshot) -> bool:
    return pod.deleted_at is None and READ not in pod.labels and pod.phase != "Failed"


def _without_pod(clears: int, remembered: Remembered | None) -> tuple[Generation, str]:
    """Name the generation when there is no pod of this clear: a new one if an earlier pod of it is known to have been there."""
    if remembered is None or remembered.generation.clears != clears:
        return Generation(clears=clears), ""
    if not remembered.uid:
        return remembered.generation, ""
    return remembered.generation.next(), "" if remembered.read else remembered.uid


def _after(generation: Generation, remembered: Remembered | None) -> Generation:
    following = generation.next()
    if remembered is None or remembered.generation.clears != following.clears:
        return following
    return max(following, remembered.generation, key=lambda each: each.renewals)
