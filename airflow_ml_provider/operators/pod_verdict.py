"""Whether a step in a pod has succeeded: what Kubernetes says of the pod, held against what the step has told. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from airflow_ml_provider.models.pod import PodEnd, PodOutcome
from airflow_ml_provider.models.pod_step import StepManifest, StepMessage
from airflow_ml_provider.tracking.pod_record import StepPlan, missing_outputs

AFTERWARDS = {PodEnd.DELETED, PodEnd.EVICTED, PodEnd.PREEMPTED, PodEnd.NODE_LOST, PodEnd.DEADLINE, PodEnd.UNREACHABLE}
"""Ends that can come over a pod whose step has ended well and has stored everything: the manifest, written last, says so."""


@dataclass(frozen=True)
class Verdict:
    """
    What became of a step.

    :param succeeded: Whether it has.
    :param missing: Outputs that were asked for and never stored.
    :param late: Whether the pod came to another end than its step, which had ended well by then.
    """

    succeeded: bool
    missing: tuple[str, ...] = ()
    late: bool = False


def judge(outcome: PodOutcome, plan: StepPlan, manifest: StepManifest | None) -> Verdict:
    """
    Decide whether a step has succeeded; never without a manifest where one is due, nor against what Kubernetes has seen.

    :param outcome: The end of the pod.
    :param plan: What the pod was given.
    :param manifest: What the step has told; None for nothing.
    :return: The verdict.
    """
    if not plan.tells:
        return Verdict(outcome.end is PodEnd.SUCCEEDED)
    missing = tuple(missing_outputs(plan, manifest))
    well = manifest is not None and manifest.state == "succeeded" and not missing
    if outcome.end is PodEnd.SUCCEEDED:
        return Verdict(well, missing)
    # What runs beside a program does not know how that has ended: its manifest alone proves nothing.
    late = outcome.end in AFTERWARDS and well and not plan.beside
    return Verdict(late, missing, late=late)


def completed(outcome: PodOutcome, manifest: StepManifest | None, *, beside: bool = False) -> PodOutcome:
    """
    Add what the manifest says to an end that Kubernetes could not tell in full: its pod is gone, and the message with it.

    :param outcome: The end of the pod.
    :param manifest: What the step has told; None for nothing.
    :param beside: It was a sidecar that told it, and that one does not know how the program ended.
    :return: The outcome; by the step's own word where it had failed before its pod was deleted.
    """
    if manifest is None or outcome.told is not None:
        return outcome
    told = StepMessage(
        try_number=manifest.try_number, state=manifest.state, exit_code=manifest.exit_code, error=manifest.error, manifest=True
    )
    if outcome.end not in AFTERWARDS or beside or manifest.state in {"succeeded", "terminated"}:
        return outcome.model_copy(update={"told": told})
    end = PodEnd.OUT_OF_MEMORY if manifest.state == "out_of_memory" else PodEnd.FAILED
    message = f"{outcome.message} By then its step had failed."
    return outcome.model_copy(update={"end": end, "told": told, "exit_code": manifest.exit_code, "message": message})
