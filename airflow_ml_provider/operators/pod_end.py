"""From a pod's bad end to the error that the task raises: which kind, in which words, and whether Airflow may try again."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout, TaskDeferred

from airflow_ml_provider.core.pod_events import PodEvent
from airflow_ml_provider.core.pod_failures import explain, told_state
from airflow_ml_provider.exceptions import (
    AirflowMLError,
    ArtifactError,
    ConfigError,
    PodDeadlineError,
    PodError,
    PodFailedError,
    RemoteUnavailableError,
    SupersededError,
)
from airflow_ml_provider.jobs.pod_secrets import PodSecrets
from airflow_ml_provider.jobs.pod_submission import PodSubmission
from airflow_ml_provider.jobs.pods import PodJobs
from airflow_ml_provider.models.pod import PodEnd, PodOutcome, PodSnapshot
from airflow_ml_provider.operators.pod_verdict import Verdict
from airflow_ml_provider.tracking.pod_record import StepPlan

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.operators.pod import MLPodOperator

log = logging.getLogger(__name__)

TOLD_BY_EVENTS = {PodEnd.NOT_STARTED, PodEnd.NO_ROOM, PodEnd.CONFIG, PodEnd.IMAGE, PodEnd.IMAGE_PULL, PodEnd.EVICTED}
"""Ends whose cause Kubernetes tells in events, and nowhere else in full."""

KILLED = {137, 143}
"""Exit codes of a program that something outside has killed (SIGKILL, SIGTERM): not its own end, so a retry may help."""
NOT_AS_DECLARED = {"input", "output"}
"""States in which the step's half ends where an artifact is not what it is to be; an :class:`ArtifactError` in a worker too."""


class PodFailException(AirflowFailException):
    """
    A step in a pod has failed in a way that no retry mends, so there is none, whatever ``retries`` says.

    ``__cause__`` is the error by its kind: a :class:`~airflow_ml_provider.exceptions.PodError`, mostly.
    """


def raise_failure(
    outcome: PodOutcome,
    plan: StepPlan,
    verdict: Verdict,
    jobs: PodJobs,
    *,
    image: str,
    memory_on_oom: float | None,
    memory_limit_gib: float | None,
    retry_exit_codes: Collection[int] = (),
    own_policy: bool = False,
    all_events: bool = False,
) -> NoReturn:
    """
    Raise what became of a step that has not succeeded.

    :param outcome: The end of its pod, with what the step has told.
    :param plan: What the pod was given.
    :param verdict: Why it is no success.
    :param jobs: Pods of the namespace, for the events.
    :param image: Its image.
    :param memory_on_oom: As of the operator.
    :param memory_limit_gib: GiB up to which it raises.
    :param retry_exit_codes: Exit codes that a retry may mend, by the author's word.
    :param own_policy: Whether the task has a retry policy of the user's, which then decides about all but a ``ConfigError``.
    :param all_events: Whether the pod's events are told of each failure, and not only where the cause is in them.
    :raises PodFailException: no retry mends it; its cause is a ``PodError``, or an ``ArtifactError`` that names what is missing.
    :raises PodError: a retry can help: Airflow decides by ``retries``, and by the task's retry policy.
    :raises ArtifactError: the program has ended well, and nothing is known of what it has made; or the user's policy decides.
    """
    if outcome.end is PodEnd.SUCCEEDED:
        unfinished = _unfinished(outcome, plan, verdict)
        if _has_told(outcome) and verdict.missing and not own_policy:
            raise PodFailException(f"ArtifactError: {unfinished}") from unfinished
        raise unfinished
    explained = explain(
        outcome,
        image=image,
        try_number=plan.try_number,
        memory_gib=plan.memory_gib,
        memory_on_oom=memory_on_oom,
        memory_limit_gib=memory_limit_gib,
        events=_events(outcome, jobs, always=all_events),
        tells=plan.tells and not plan.beside,
    )
    error = explained.make()
    if isinstance(error, PodFailedError):
        error.curable = _may_pass(outcome, retry_exit_codes)
    final = is_final(error, own_policy=own_policy)
    shown: AirflowMLError = error
    if isinstance(error, PodFailedError) and told_state(outcome) in NOT_AS_DECLARED:
        shown = ArtifactError(str(error))
    elif isinstance(error, PodFailedError) and final:
        shown = PodFailedError(
            f"{error} Exit code {outcome.exit_code} is not tried again, unless options.retry_exit_codes has it."
        )
    if final:
        raise PodFailException(f"{type(shown).__name__}: {shown}") from shown
    raise shown


def is_final(error: PodError, *, own_policy: bool = False) -> bool:
    """
    Say whether Airflow is to try no more, whatever ``retries`` says: on every Airflow what our retry policy says on 3.3.

    :param error: The error.
    :param own_policy: Whether the task has a retry policy of the user's, which then decides about all but a ``ConfigError``.
    :return: Whether to fail at once.
    """
    return isinstance(error, ConfigError) or not (own_policy or error.curable)


def _may_pass(outcome: PodOutcome, retry_exit_codes: Collection[int]) -> bool:
    """Say whether a failed step may do better: where it was not its program that gave up, or its author says so."""
    if told_state(outcome) in NOT_AS_DECLARED:
        return outcome.exit_code in retry_exit_codes
    return not outcome.exit_code or outcome.exit_code in {*KILLED, *retry_exit_codes}


@contextmanager
def in_time(operator: MLPodOperator) -> Iterator[None]:
    """
    Make the end of ``execution_timeout`` what it is while the step is deferred: final, and no error of Airflow's.

    :param operator: The operator.
    :raises PodFailException: the time was up; its cause is a ``PodDeadlineError``.
    :raises PodDeadlineError: the same, where a retry policy of the user's decides.
    """
    try:
        yield
    except AirflowTaskTimeout as timeout:
        limit = f"execution_timeout of {operator.execution_timeout}"
        error = PodDeadlineError(
            f"Task {operator.task_id!r} had not ended within its {limit}. Give the step more time, or less to do."
        )
        if is_final(error, own_policy=operator.own_policy):
            raise PodFailException(f"PodDeadlineError: {error}") from error
        raise error from timeout


@contextmanager
def parting(operator: MLPodOperator, context: Context, outcome: PodOutcome | None = None) -> Iterator[None]:
    """
    Part with the pod once the step is over and on record; one that somebody else will come for is left.

    :param operator: The operator.
    :param context: Airflow's context.
    :param outcome: The end that the triggerer has told; None where this process waits itself.
    """
    succeeded, left, late = False, False, False
    try:
        yield
        succeeded = True
    except RemoteUnavailableError:
        ti: Any = context["ti"]
        left = ti.try_number <= ti.max_tries  # the next try takes it up
        raise
    except (SupersededError, TaskDeferred):
        left = True
        raise
    except (PodDeadlineError, PodFailException) as error:
        late = isinstance(error, PodDeadlineError) or isinstance(error.__cause__, PodDeadlineError)
        raise
    finally:
        submission = operator.submission
        if submission is not None and not submission.killed and not left:
            part_with(submission, outcome, succeeded=succeeded, has_secret=operator.options.copy_credentials)
            if late and outcome is None and submission.pod is None:
                operator.on_kill()  # a create whose answer was not waited for may have made one


def part_with(submission: PodSubmission, outcome: PodOutcome | None, *, succeeded: bool, has_secret: bool) -> None:
    """
    Part with a step's pod as ``on_finish_action`` says, and with the Secret that a crash may have left without an owner.

    :param submission: Pods of the task instance.
    :param outcome: The end that the triggerer has told; None where this process has waited itself.
    :param succeeded: Whether the step has succeeded.
    :param has_secret: Whether a Secret was made for it.
    """
    pod = submission.pod
    if pod is None and outcome is not None and outcome.uid:
        pod = PodSnapshot(name=outcome.pod, namespace=outcome.namespace, uid=outcome.uid)
    if pod is not None:
        submission.finish(pod, succeeded=succeeded)
    if has_secret:
        try:
            PodSecrets(submission.jobs).sweep(submission.identity)
        except AirflowMLError as error:
            log.warning("The Secrets of this step could not be looked for; one may be left behind: %s", error)


def _unfinished(outcome: PodOutcome, plan: StepPlan, verdict: Verdict) -> ArtifactError:
    """Tell of a program that ended with 0 and a step that is no success all the same."""
    if outcome.told is not None and outcome.told.error:
        return ArtifactError(f"{outcome.message} The step says: {outcome.told.error}")
    what = ", ".join(f"output {name!r} ({plan.outputs[name].type})" for name in verdict.missing)
    if what and _has_told(outcome):
        places = ", ".join(f"$AIRFLOW_ML_OUTPUT_{name.upper()}" for name in verdict.missing)
        return ArtifactError(
            f"{outcome.message} It ended with exit code 0, but {what} was never written: there is nothing at {places}. Write it "
            "there, or do not declare it."
        )
    return ArtifactError(
        f"{outcome.message} It ended with exit code 0, but no manifest is in MLflow, so what it did is not known"
        f"{f', and {what} cannot be taken' if what else ''}. Was its command replaced in the pod, or MLflow's artifacts deleted? "
        "A retry runs it again."
    )


def _has_told(outcome: PodOutcome) -> bool:
    """Whether there is a manifest: only what is told can tell of an output that is missing."""
    return outcome.told is not None and outcome.told.manifest


def _events(outcome: PodOutcome, jobs: PodJobs, *, always: bool) -> list[PodEvent]:
    if not outcome.uid or not (always or outcome.end in TOLD_BY_EVENTS):
        return []
    try:
        return jobs.events(outcome.pod, outcome.uid)
    except AirflowMLError as error:
        log.info("The events of pod %s could not be read, so they are not told: %s", outcome.pod, error)
        return []
