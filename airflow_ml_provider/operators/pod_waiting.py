"""From a step's pod to its end: the waiting, here or in the triggerer, and the log that comes meanwhile."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from airflow_ml_provider.core.pod_adoption import has_ended
from airflow_ml_provider.core.pod_log import LogCursor
from airflow_ml_provider.core.pods import PodWatch
from airflow_ml_provider.jobs.pod_wait import NO_KUBELET, PodWait, read_log
from airflow_ml_provider.jobs.pods import PodJobs
from airflow_ml_provider.models.pod import PodOutcome, PodSnapshot
from airflow_ml_provider.models.pod_options import MAIN
from airflow_ml_provider.operators.pod_body import COLLECT
from airflow_ml_provider.tracking.pod_record import StepPlan

if TYPE_CHECKING:
    from airflow_ml_provider.operators.pod import MLPodOperator

LOG_INTERVAL_S = 10.0
"""Seconds between two readings of the log by the triggerer; with no line in between up to sixfold."""


def outcome_of(operator: MLPodOperator, started: PodSnapshot | PodOutcome, plan: StepPlan, deadline: float | None) -> PodOutcome:
    """
    Wait for a pod, here or in the triggerer.

    :param operator: The operator, its submission open.
    :param started: The pod, or an end that is known already.
    :param plan: What it was given.
    :param deadline: Epoch seconds at which the waiting ends in any case; None for never.
    :return: Its end.
    :raises TaskDeferred: the triggerer waits.
    """
    submission = operator.submission
    if isinstance(started, PodOutcome) or submission is None:
        return started  # type: ignore[return-value]  # there is a submission wherever there is a pod
    sidecar = COLLECT if operator.options.sidecar else None
    limits = {
        "capacity_timeout_s": operator.capacity_timeout.total_seconds() - submission.refused_s,
        "startup_timeout_s": operator.startup_timeout.total_seconds(),
        "deadline": deadline,
        "patience_s": submission.patience_s,
    }
    if operator.deferrable and not has_ended(started):
        _defer(operator, started, plan, limits, sidecar)
    name = f"{started.namespace}/{started.name}"
    watch = PodWatch(MAIN, sidecar, **limits, now=time.time(), uid=started.uid, name=name)  # type: ignore[arg-type]
    on_line = operator.on_line if operator.get_logs else None
    return PodWait(submission.jobs, started, watch, on_line, poll_interval_s=operator.poll_interval).wait()


def read_rest(operator: MLPodOperator, jobs: PodJobs, outcome: PodOutcome) -> None:
    """
    Read what of the log the triggerer has not read any more.

    :param operator: The operator.
    :param jobs: Pods of the namespace.
    :param outcome: The end of the pod, as the triggerer gave it.
    """
    if operator.get_logs and outcome.uid and not (outcome.gone or outcome.log.get("done") or outcome.end in NO_KUBELET):
        read_log(jobs, outcome.pod, MAIN, LogCursor.from_json(outcome.log), operator.on_line)


def _defer(
    operator: MLPodOperator, pod: PodSnapshot, plan: StepPlan, limits: dict[str, float | None], sidecar: str | None
) -> None:
    from airflow_ml_provider.triggers.pods import PodTrigger

    trigger = PodTrigger(
        pod=pod.name,
        namespace=pod.namespace,
        uid=pod.uid,
        access=operator.access.model_dump(),
        container=MAIN,
        sidecar=sidecar,
        limits=limits,
        poll_interval_s=operator.poll_interval,
        log_interval_s=LOG_INTERVAL_S if operator.get_logs else None,
        log_prefix=operator.container_name_log_prefix_enabled,
        cursor={"version": pod.version},
        leave_running=("kill", "clear", "success") if operator.on_kill_action.value == "keep_pod" else (),
    )
    kept = {"planned_by": plan.try_number, "run": operator.session.record.run.model_dump() if operator.session else None}
    operator.defer(trigger=trigger, method_name="execute_complete", kwargs=kept)
