"""
What became of a pod whose container has ended, by one look at it. Pure.

In doubt it is no success: a step that runs once more costs time, a success that was none costs trust.
"""

from __future__ import annotations

from airflow_ml_provider.core.pod_signs import BEING_MADE, KILLED, NODE_TROUBLE, NOT_RUN, disruption, order
from airflow_ml_provider.models.pod import ContainerStatus, PodEnd, PodOutcome, PodSnapshot
from airflow_ml_provider.models.pod_step import StepMessage

LAST_WORDS = 1000
"""Letters of a termination message that are told; its end says most."""

Verdict = tuple[PodEnd, str]
FINAL = {"Succeeded", "Failed"}
REBOOTED = 255
"""With reason ``Unknown``: what containerd writes of a container that was there when its machine went down."""


def ended(pod: PodSnapshot, container: str, sidecar: str | None) -> bool:
    """
    Say whether everything of a pod that we wait for has ended.

    :param pod: The pod.
    :param container: Name of its main container.
    :param sidecar: Name of the one that stores its outputs, None where there is none.
    :return: True with a final phase, or some moments before, once the containers have ended. A container with exit code 0 in a
        pod that its kubelet has given up already waits for the reason.
    """
    if pod.phase in FINAL:
        return True
    main, other = pod.container(container), pod.container(sidecar) if sidecar else None
    if main is None or main.state != "terminated" or (sidecar and (other is None or other.state != "terminated")):
        return False
    ready = pod.conditions.get("Ready")
    return main.exit_code != 0 or ready is None or ready.reason != "PodFailed"


def verdict(pod: PodSnapshot, container: str, sidecar: str | None, *, seen_going: bool) -> Verdict:
    """
    Judge a pod whose end is here.

    :param pod: The pod.
    :param container: Name of its main container.
    :param sidecar: Name of the one that stores its outputs, None where there is none.
    :param seen_going: An earlier look has seen it deleted while its container ran.
    :return: What became of it, and the reason in words.
    """
    main = pod.container(container)
    told = told_by(pod, container, sidecar)
    killed = next((each for each in (*pod.containers, *pod.init_containers) if each.reason == "OOMKilled"), None)
    if killed is not None or (told is not None and told.state == "out_of_memory"):
        return PodEnd.OUT_OF_MEMORY, _out_of_memory(killed)
    gone = _told_to_go(pod, main, _words(main), seen_going=seen_going)
    if gone is not None:
        return gone
    if main is None or main.state != "terminated":
        return _never_ended(pod, main)
    return _bad_end(main) or _exit_zero(pod, main, sidecar, told)


def has_ended(pod: PodSnapshot, container: str) -> bool:
    """
    Say whether a container has ended.

    :param pod: The pod.
    :param container: The container's name.
    :return: True with its end on record, whatever the pod's phase.
    """
    found = pod.container(container)
    return found is not None and found.state == "terminated"


def unfinished(pod: PodSnapshot, container: str, sidecar: str | None, *, seen_going: bool) -> Verdict:
    """
    Judge a pod that will not be seen to its end.

    :param pod: The pod as it was seen last.
    :param container: Name of its main container.
    :param sidecar: Name of the one that stores its outputs, None where there is none.
    :param seen_going: As for :func:`verdict`.
    :return: What its main container says by its end, where that is bad; else by whom it was told to go. Never a success.
    """
    end, text = going(pod)
    if not has_ended(pod, container):
        return end, text
    found = verdict(pod, container, sidecar, seen_going=seen_going)
    main, told = pod.container(container), told_by(pod, container, sidecar)
    well = found[0] is PodEnd.SUCCEEDED or (
        found[0] is PodEnd.FAILED and main is not None and not main.exit_code and told is None
    )
    return (end, f"container {container} ended with exit code 0, and {text} before all was stored") if well else found


def told_by(pod: PodSnapshot, container: str, sidecar: str | None) -> StepMessage | None:
    """
    Find what the step has said with its last words.

    :param pod: The pod.
    :param container: Name of its main container.
    :param sidecar: Name of the one that stores its outputs, None where there is none.
    :return: The message of the main container, else of the sidecar, else of an init container that failed; None where none of
        them has one of ours.
    """
    failed = (each for each in pod.init_containers if each.name != sidecar and each.exit_code)
    ends = (pod.container(container), pod.container(sidecar) if sidecar else None, *failed)
    return next((found for each in ends if (found := _words(each)) is not None), None)


def _words(container: ContainerStatus | None) -> StepMessage | None:
    """Read what a container has said of itself; a sidecar hears SIGTERM in any case, so its word says nothing of the program."""
    return None if container is None or container.state != "terminated" else StepMessage.find(container.message)


def outcome(pod: PodSnapshot, found: Verdict, container: str, sidecar: str | None, *, gone: bool = False) -> PodOutcome:
    """
    Put a verdict into words that name the pod.

    :param pod: The pod as it was seen last.
    :param found: What became of it, and the reason.
    :param container: Name of its main container.
    :param sidecar: Name of the one that stores its outputs, None where there is none.
    :param gone: It is not there any more.
    :return: The outcome.
    """
    main = pod.container(container)
    code = main.exit_code if main is not None and main.state == "terminated" else None
    return PodOutcome(
        end=found[0],
        pod=pod.name,
        namespace=pod.namespace,
        uid=pod.uid,
        node=pod.node,
        exit_code=code,
        message=f"Pod {pod.namespace}/{pod.name}{f' on node {pod.node}' if pod.node else ''}: {found[1].rstrip('. ')}.",
        told=told_by(pod, container, sidecar),
        init_container=_init_at_fault(pod, main),
        told_beside=_words(main) is None and told_by(pod, container, sidecar) is not None,
        gone=gone,
    )


def going(pod: PodSnapshot) -> Verdict:
    """
    Say what becomes of a pod that is told to go, or was.

    :param pod: The pod.
    :return: The disruption's end, or ``deleted``.
    """
    sign = disruption(pod)
    return (sign.end, f"it {sign.text}") if sign is not None else (PodEnd.DELETED, "it was deleted")


def _told_to_go(pod: PodSnapshot, main: ContainerStatus | None, told: StepMessage | None, *, seen_going: bool) -> Verdict | None:
    when = order(pod, main.finished_at if main is not None else None)
    if seen_going or when == "before" or (when == "unclear" and not _own_end(main, told)):
        end, text = going(pod)
        code = main.exit_code if main is not None and main.state == "terminated" else None
        return end, text if code is None else f"{text} before its program had ended by itself (exit code {code})"
    if told is not None and told.state == "terminated":
        return PodEnd.DELETED, "its program was told to stop (SIGTERM), and Kubernetes does not say by whom"
    return None


def _own_end(main: ContainerStatus | None, told: StepMessage | None) -> bool:
    """Whether a container that ended about when it was told to go has certainly ended by itself."""
    if told is not None:
        return told.state != "terminated"
    return main is not None and main.exit_code not in {None, 0, *KILLED}


def _out_of_memory(killed: ContainerStatus | None) -> str:
    if killed is None:
        return "a process of the step was killed for its memory, as the step itself has seen"
    if killed.exit_code == 0:
        return (
            f"a process in container {killed.name} was killed for its memory (OOMKilled), and its parent went on to exit code 0"
        )
    return f"container {killed.name} was killed for its memory (OOMKilled, exit code {killed.exit_code})"


def _never_ended(pod: PodSnapshot, main: ContainerStatus | None) -> Verdict:
    """Judge a pod that is over although its main container has no end: that one failed before, or the node did."""
    failed = next((each for each in pod.init_containers if each.state == "terminated" and each.exit_code != 0), None)
    if failed is not None:
        end, text = _bad_end(failed) or (PodEnd.FAILED, "")
        return end, f"{text}; it is an init container, so the main one never ran"
    if pod.phase == "Succeeded" or (main is not None and main.state == "running"):
        return PodEnd.NODE_LOST, f"it is {pod.phase}, and nobody has seen the end of its main container"
    return PodEnd.NOT_STARTED, f"its node refused it ({pod.reason or 'no reason given'}: {pod.message or 'no message given'})"


def _init_at_fault(pod: PodSnapshot, main: ContainerStatus | None) -> str:
    """Name the init container because of which the main one never began."""
    if main is not None and main.state != "waiting":
        return ""
    failed = [each.name for each in pod.init_containers if each.exit_code]
    stuck = [each.name for each in pod.init_containers if each.state == "waiting" and each.reason not in BEING_MADE]
    return next(iter(failed + stuck), "")


def _bad_end(container: ContainerStatus) -> Verdict | None:
    name, why = container.name, f"({container.reason}: {container.message})"
    if container.reason in NOT_RUN:
        end = PodEnd.NOT_STARTED if NODE_TROUBLE.search(container.message) else PodEnd.CONFIG
        return end, f"the program of container {name} could not be started {why}"
    if container.reason == "ContainerStatusUnknown" or (container.reason == "Unknown" and container.exit_code == REBOOTED):
        return PodEnd.NODE_LOST, f"nobody has seen the end of container {name} {why}"
    if container.exit_code != 0:
        words = "" if StepMessage.find(container.message) else container.message.strip()[-LAST_WORDS:]
        return (
            PodEnd.FAILED,
            f"container {name} ended with exit code {container.exit_code}{f' and said: {words}' if words else ''}",
        )
    return None


def _exit_zero(pod: PodSnapshot, main: ContainerStatus, sidecar: str | None, told: StepMessage | None) -> Verdict:
    """Look for what speaks against a container that ended with exit code 0."""
    well = f"container {main.name} ended with exit code 0"
    side = pod.container(sidecar) if sidecar else None
    others = (each for each in pod.containers if each.exit_code and each.name != sidecar)
    if told is not None and told.state != "succeeded":
        return PodEnd.FAILED, f"{well}, but the step says: {told.state}{f', {told.error}' if told.error else ''}"
    if pod.phase == "Failed":
        named = (
            ", ".join(f"container {each.name} with exit code {each.exit_code}" for each in others) or pod.message or "no reason"
        )
        return PodEnd.FAILED, f"{well}, but the pod failed: {named}"
    if sidecar and told is None and (side is None or side.exit_code != 0):
        code = "without an end" if side is None or side.exit_code is None else f"with exit code {side.exit_code}"
        return PodEnd.FAILED, f"{well}, but container {sidecar}, which stores its outputs, ended {code} and said nothing"
    return PodEnd.SUCCEEDED, well
