"""Why a step's pod came to a bad end, in words: what, the values, the limit, Kubernetes' own text, the remedy. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from airflow_ml_provider.core.pod_events import PodEvent, warnings
from airflow_ml_provider.exceptions import (
    ImagePullError,
    NodeLostError,
    NoRoomError,
    PodConfigError,
    PodDeadlineError,
    PodDeletedError,
    PodError,
    PodEvictedError,
    PodFailedError,
    PodImageError,
    PodNotStartedError,
    PodOutOfMemoryError,
    PodPreemptedError,
    PodUnreachableError,
    StepStoreError,
)
from airflow_ml_provider.models.pod import PodEnd, PodOutcome

ERRORS: dict[PodEnd, type[PodError]] = {
    PodEnd.FAILED: PodFailedError,
    PodEnd.OUT_OF_MEMORY: PodOutOfMemoryError,
    PodEnd.EVICTED: PodEvictedError,
    PodEnd.PREEMPTED: PodPreemptedError,
    PodEnd.NODE_LOST: NodeLostError,
    PodEnd.IMAGE: PodImageError,
    PodEnd.IMAGE_PULL: ImagePullError,
    PodEnd.CONFIG: PodConfigError,
    PodEnd.DEADLINE: PodDeadlineError,
    PodEnd.DELETED: PodDeletedError,
    PodEnd.NO_ROOM: NoRoomError,
    PodEnd.NOT_STARTED: PodNotStartedError,
    PodEnd.UNREACHABLE: PodUnreachableError,
}

EXIT_CODES = {
    126: "126 is a shell's word for a program that it may not run: is it executable, and for this machine's architecture?",
    127: "127 is a shell's word for a program that it does not find: is it installed in the image, and in its PATH?",
    134: "134 is SIGABRT: the program, or a library of it, gave up.",
    135: "135 is SIGBUS, most often a /dev/shm that is too small: raise shared_memory_gib of the GPU request.",
    137: "137 is SIGKILL, without Kubernetes having seen it run out of memory: a process of the container may have sent it, or "
    "the node itself was out of memory.",
    139: "139 is SIGSEGV: the program, or a native library of it, touched memory that was not its own.",
    143: "143 is SIGTERM: something told the program to stop, and Kubernetes does not say what; a liveness probe does that.",
}

REMEDIES: dict[PodEnd, str] = {
    PodEnd.FAILED: "The step's log says more.",
    PodEnd.EVICTED: "A retry can help: give the task retries. If it is evicted again, ask for the memory and disk that it uses.",
    PodEnd.PREEMPTED: "A retry waits for room: give the task retries, or the pod a higher priority class.",
    PodEnd.NODE_LOST: "A retry runs on another node: give the task retries.",
    PodEnd.IMAGE: "Check the name and the tag, that it was pushed, and image_pull_secrets.",
    PodEnd.IMAGE_PULL: "A retry can help. If it does not, look at the registry and at the way from the node to it.",
    PodEnd.CONFIG: "Make what is missing, or correct the task's arguments; a retry does not help.",
    PodEnd.DEADLINE: "Give the step more time, or less to do.",
    PodEnd.DELETED: "A retry makes a new one: give the task retries, and find out who deletes pods of this namespace.",
    PodEnd.NO_ROOM: "Raise capacity_timeout, ask for less, or add nodes; what the scheduler says tells which.",
    PodEnd.NOT_STARTED: "A retry may get another node. Raise startup_timeout for large images; volumes that cannot be mounted "
    "are told in the pod's events.",
    PodEnd.UNREACHABLE: "The pod was left alone; a retry finds it again.",
}
NOT_BEGUN = (
    "The step's half has not begun, or it would have told why; the step's log says it. 'No module named airflow_ml_step': with "
    "step='image' that file has to be in the image, where its Python finds it. Copy it there, or leave step out."
)
OURS = "airflow-ml-"
"""How the containers beside a program are named that run the image of ``options.sidecar``."""
STEP_REMEDIES = {
    "input": "An input is gone, or is not what was recorded: run the step that makes it again.",
    "output": "An output could not be stored as it is declared: write it where the context says, or do not declare it.",
    "store": "The artifact store did not answer the step. A retry can help.",
    "config": "The container's half does not fit this release, or cannot do what it is asked for: correct the image.",
}


@dataclass(frozen=True)
class PodFailure:
    """
    A bad end, explained.

    :param error: Class of the error.
    :param message: Its text.
    :param curable: Whether a retry can help.
    """

    error: type[PodError]
    message: str
    curable: bool

    def make(self) -> PodError:
        """
        Make the error.

        :return: The error; its ``curable`` is this one's.
        """
        made = self.error(self.message)
        made.curable = self.curable
        return made


def explain(
    outcome: PodOutcome,
    *,
    image: str = "",
    try_number: int | None = None,
    memory_gib: float | None = None,
    memory_on_oom: float | None = None,
    memory_limit_gib: float | None = None,
    events: Iterable[PodEvent] = (),
    tells: bool = False,
) -> PodFailure:
    """
    Say why a pod came to a bad end, and what to do.

    :param outcome: The end of the waiting; not a success.
    :param image: Its image; empty where that is not known.
    :param try_number: Airflow's, to be named; None to leave it out.
    :param memory_gib: Memory limit of this try; None for none.
    :param memory_on_oom: Factor by which the next try gets more after one that ran out; None for no more.
    :param memory_limit_gib: Most that it gets; None for no bound.
    :param events: Events of the pod, oldest first, where somebody has read them.
    :param tells: The step's half runs around the program in the main container, and would have told why it ended.
    :return: The error's class, its text, and whether a retry can help.
    """
    state = told_state(outcome)
    error = {"store": StepStoreError, "config": PodConfigError}.get(state) or ERRORS.get(outcome.end, PodFailedError)
    said = warnings(each for each in events if not each.message or each.message not in outcome.message)
    theirs = image and not outcome.init_container and outcome.end in {PodEnd.IMAGE, PodEnd.IMAGE_PULL, PodEnd.CONFIG}
    parts = [
        f"Try {try_number}: {outcome.message}" if try_number is not None else outcome.message,
        _said(outcome, state),
        _meaning(outcome, state),
        f"The image is {image!r}." if theirs else "",
        f"Events: {said}." if said else "",
    ]
    if outcome.end is PodEnd.OUT_OF_MEMORY:
        more = next_memory_gib(memory_gib, memory_on_oom, memory_limit_gib)
        parts.append(_more_memory(memory_gib, memory_on_oom, memory_limit_gib))
        return PodFailure(error, _joined(parts), more is not None)
    return PodFailure(error, _joined([*parts, STEP_REMEDIES.get(state) or _remedy(outcome, tells=tells)]), error.curable)


def next_memory_gib(current: float | None, factor: float | None, limit: float | None) -> float | None:
    """
    Say how much memory the try after one that ran out of it gets.

    :param current: GiB of the try that ran out; None where it had no limit of its own.
    :param factor: By how much to multiply; None, or 1 and less, for no more.
    :param limit: GiB at most; None for no bound.
    :return: GiB; None when there is no more to be had.
    """
    if current is None or factor is None or factor <= 1:
        return None
    more = current * factor if limit is None else min(current * factor, limit)
    return round(more, 3) if round(more, 3) > current else None


def _joined(parts: Iterable[str]) -> str:
    return " ".join(each if each.endswith((".", "?", "!")) else f"{each}." for each in parts if each)


def told_state(outcome: PodOutcome) -> str:
    """
    Take the step's word for how it went, unless it is the sidecar's, which does not know of a program that failed.

    :param outcome: The end of the pod.
    :return: One of ``StepState``; ``succeeded`` too for an end that Kubernetes has seen better.
    """
    if outcome.told is None or outcome.end is not PodEnd.FAILED:
        return "succeeded"
    return "failed" if outcome.told_beside and outcome.exit_code else outcome.told.state


def _said(outcome: PodOutcome, state: str) -> str:
    """Quote the step, where it says more than Kubernetes; what a program that failed has left is not why it failed."""
    told = outcome.told
    if told is None or told.error in outcome.message or (told.state == "output" and state == "failed"):
        return ""
    return f"The step says: {told.error}"


def _meaning(outcome: PodOutcome, state: str) -> str:
    """Say what an exit code means, where a program may have said nothing else."""
    if outcome.end is not PodEnd.FAILED or state not in {"succeeded", "failed"} or outcome.exit_code is None:
        return ""
    return EXIT_CODES.get(outcome.exit_code, "")


def _remedy(outcome: PodOutcome, *, tells: bool) -> str:
    if outcome.end is PodEnd.CONFIG:
        return _config_remedy(outcome)
    if outcome.end is PodEnd.FAILED and outcome.init_container:
        if outcome.gone:
            return "Its log went with the pod."
        return f"The last lines of init container {outcome.init_container} are in the task's log."
    if outcome.end is PodEnd.FAILED and tells and outcome.told is None and outcome.exit_code == 1:
        return NOT_BEGUN
    return REMEDIES.get(outcome.end, "")


def _config_remedy(outcome: PodOutcome) -> str:
    if "runAsNonRoot" in outcome.message:
        return (
            "Name a user that is not root: container_security_context={'runAsUser': 1000}, or take an image whose USER is a "
            "number other than 0."
        )
    if "python" not in outcome.message or "could not be started" not in outcome.message:
        return REMEDIES[PodEnd.CONFIG]
    if outcome.init_container.startswith(OURS):
        return (
            "The image of options.sidecar has no such Python: take one with Python 3.8 or later, or name its interpreter "
            "(options.python)."
        )
    return (
        "The image has no such Python, which the step's half in the container needs: name the interpreter, take an image "
        "with Python 3.8 or later, or give options a sidecar."
    )


def _more_memory(memory_gib: float | None, factor: float | None, limit: float | None) -> str:
    had = "It had no memory limit of its own" if memory_gib is None else f"It had {memory_gib:g} GiB (memory_gib)"
    more = next_memory_gib(memory_gib, factor, limit)
    if more is not None:
        return f"{had}; the next try gets {more:g} GiB (memory_on_oom={factor:g})."
    if memory_gib is not None and factor is not None and limit is not None:
        return (
            f"{had}, which is all that options.memory_limit_gib allows ({limit:g} GiB, where it is not given four times "
            "memory_gib): raise it, or let the step need less."
        )
    return f"{had}: raise memory_gib, set memory_on_oom (1.5 gives the next try half as much again), or let the step need less."
