"""A step in a pod as a task: KubernetesPodOperator builds the pod, the rest (waiting, results, errors, record) is done here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.common.compat.sdk import AirflowSkipException

from airflow_ml_provider._compat import state_store
from airflow_ml_provider.core.pod_arguments import check_image
from airflow_ml_provider.core.signature import StepSignature
from airflow_ml_provider.lineage.openlineage_mixin import parent_variables
from airflow_ml_provider.links.mlflow import MlflowCachedFromLink, MlflowRunLink
from airflow_ml_provider.models.cache import Cache
from airflow_ml_provider.models.pod_options import MAIN, PodOptions
from airflow_ml_provider.models.resources import GpuRequest, StepResources
from airflow_ml_provider.operators.cache_hit import CacheHitError
from airflow_ml_provider.operators.pod_cache import keep_result, read_pod_cache
from airflow_ml_provider.operators.pod_checks import (
    check_arguments,
    check_restarts,
    read_declared,
    read_limit,
    read_options,
)
from airflow_ml_provider.operators.pod_parse import check_operator, check_partial, variables_of
from airflow_ml_provider.operators.pod_retry import default_retry_policy, is_default_policy
from airflow_ml_provider.operators.step import TypedStepMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.hooks.kubernetes import KubernetesAccess
    from airflow_ml_provider.jobs.pod_submission import PodSubmission
    from airflow_ml_provider.models.pod import PodOutcome
    from airflow_ml_provider.models.pod_step import StepFunction
    from airflow_ml_provider.operators.pod_try import PodTry, Prepared
    from airflow_ml_provider.operators.session import StepSession
    from airflow_ml_provider.tracking.pod_record import StepPlan

log = logging.getLogger(__name__)

HOUR = timedelta(hours=1)
TEN_MINUTES = timedelta(minutes=10)
TIMES_ON_OOM = 4
"""How much memory a step may be raised to, in what it asks for, where nothing else is said."""


class MLPodOperator(TypedStepMixin, KubernetesPodOperator):
    """
    Runs a step in a pod: waits for room, brings the inputs, takes the outputs away, and says why it failed.

    A retry, a crash of the worker or of the triggerer finds the pod again: its name is derived from the task instance. What the
    step has stored is kept when it fails, and when its pod is gone before anybody has looked. The XCom is the references to its
    outputs; ``task.output["model"]`` is one of them.

    Everything that ``KubernetesPodOperator`` takes can be given too; where it contradicts what stands here, that is an error.

    :param gpu: GPUs, or how many of NVIDIA's; None for a step without one.
    :param cpu: Cores, 0.001 to 1024; None requests none.
    :param memory_gib: Memory in GiB, requested and limited; None sets no limit.
    :param inputs: Artifacts that it reads, by name: output of a step, URI, or a list of these.
    :param outputs: Artifact type of each artifact that it writes, by name; one that is not stored fails the step.
    :param parameters: JSON values by name; templates are rendered.
    :param capacity_timeout: How long the pod may wait for a node, or for a quota; None waits for an hour.
    :param startup_timeout: How long it may take to start once it has a node, image included; None waits for ten minutes.
    :param memory_on_oom: How much more memory a try gets after one that ran out of it: 1.5 for half as much again. None for no
        more; then a retry is none, as it would end alike.
    :param cache: Whether an earlier result of the same inputs, parameters, image and program stands for a new one, so that no pod
        is made: True, or a ``Cache`` that says more. None and False make a pod each time.
    :param mlflow_conn_id: Connection of the MLflow server.
    :param experiment: Name of the MLflow experiment; None means ``[ml] experiment``, the DAG's id by default.
    :param options: What is rarely said: where it runs, how the container gets its half, how it reaches MLflow.
    """

    custom_operator_name: ClassVar[str] = "MLPodOperator"
    template_fields: Sequence[str] = (*KubernetesPodOperator.template_fields, "inputs", "parameters", "experiment")
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **KubernetesPodOperator.template_fields_renderers,
        "inputs": "py",
        "parameters": "json",
    }
    operator_extra_links = (MlflowRunLink(), MlflowCachedFromLink())
    shallow_copy_attrs: Sequence[str] = ("session",)

    def __init__(  # noqa: PLR0913  (default_args finds arguments by name, and no other argument is this one's home)
        self,
        *,
        gpu: GpuRequest | int | None = None,
        cpu: float | None = None,
        memory_gib: float | None = None,
        inputs: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
        capacity_timeout: timedelta | None = None,
        startup_timeout: timedelta | None = None,
        memory_on_oom: float | None = None,
        cache: Cache | bool | None = None,
        mlflow_conn_id: str = "mlflow_default",
        experiment: str | None = None,
        options: PodOptions | None = None,
        **kwargs: Any,
    ) -> None:
        task_id = str(kwargs.get("task_id"))
        check_arguments(task_id, kwargs)
        pushes = kwargs.pop("do_xcom_push", True)
        self.options = read_options(task_id, options)
        self.resources_asked = StepResources(
            gpu=gpu,
            cpu=cpu,
            memory_gib=memory_gib,
            run_as_non_root=self.options.run_as_non_root,
            options=self.options,
        )
        self.inputs = inputs
        self.outputs = outputs
        self.parameters = parameters
        self.memory_on_oom = memory_on_oom
        self.mlflow_conn_id = mlflow_conn_id
        self.experiment = experiment
        self.artifact_root = self.options.artifact_root
        self.capacity_timeout = read_limit(
            task_id, "capacity_timeout", capacity_timeout, "schedule_timeout_seconds", kwargs, HOUR
        )
        self.startup_timeout = read_limit(
            task_id, "startup_timeout", startup_timeout, "startup_timeout_seconds", kwargs, TEN_MINUTES
        )
        super().__init__(**{"log_pod_spec_on_failure": False, **kwargs, "do_xcom_push": False})
        self.do_xcom_push = bool(pushes)
        self.submission: PodSubmission | None = None  # of the try that runs
        check_operator(self)
        self.check_outlets(mlflow_conn_id)
        self.cache = read_pod_cache(task_id, cache, self.signature, self._written, self._filled(), variables_of(self))
        if getattr(self, "retry_policy", self) is None:  # Airflow 3.3 and later
            self.retry_policy = default_retry_policy()

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """
        Begin to map the operator, as Airflow's; what it says for all instances is checked at once.

        :param kwargs: Arguments that all instances share.
        :return: What ``.expand`` is called on.
        :raises ConfigError: one of them could never work; a retry never helps.
        """
        check_partial(kwargs)
        return super().partial(**kwargs)

    @cached_property
    def signature(self) -> StepSignature:
        """What the step declares."""
        return read_declared(self.task_id, self.inputs, self.outputs, self.parameters)

    def execute(self, context: Context) -> Any:
        """
        Find the step's pod or make one, wait, and record what became of it.

        :param context: Airflow's context.
        :return: References to the outputs as plain JSON; for a function without outputs what it returned; else None.
        :raises AirflowFailException: no retry can mend what is wrong, so there is none; its cause is an error of ours: a
            ``PodError``, whose kind says why, or an ``ArtifactError`` that names the output which was not written.
        :raises PodError: a retry can help, or the task has a retry policy of its own, which decides.
        :raises ArtifactError: nothing is known of what the step has made, as its manifest is not there.
        :raises RemoteUnavailableError: MLflow or Kubernetes did not answer within the patience; a retry takes the pod up again.
        """
        from airflow_ml_provider.operators.execution import open_step
        from airflow_ml_provider.operators.pod_end import in_time, parting
        from airflow_ml_provider.operators.pod_waiting import outcome_of

        deadline = time.time() + self.execution_timeout.total_seconds() if self.execution_timeout else None
        with parting(self, context), open_step(self, context, in_worker=False) as session, in_time(self):
            attempt = self._open(context, session, deadline)
            try:
                started, plan = attempt.start()
            except CacheHitError as hit:
                return self._told(context, session, hit.entry.result, has_outputs=bool(self.signature.outputs))
            return self._finish(context, attempt, plan, outcome_of(self, started, plan, deadline))

    def execute_complete(
        self, context: Context, event: dict[str, Any], planned_by: int = 0, run: dict[str, Any] | None = None
    ) -> Any:
        """
        Go on after the triggerer has waited.

        :param context: Airflow's context.
        :param event: What became of the pod, as the trigger gave it.
        :param planned_by: Try that made the pod; 0 for this one.
        :param run: The MLflow run that it has opened, as ``OpenRun`` writes itself; None looks for it.
        :return: As :meth:`execute`.
        :raises AirflowFailException: as :meth:`execute`.
        :raises PodError: as :meth:`execute`.
        :raises ArtifactError: as :meth:`execute`.
        :raises RemoteUnavailableError: as :meth:`execute`.
        """
        from airflow_ml_provider.models.pod import PodOutcome
        from airflow_ml_provider.models.run import OpenRun
        from airflow_ml_provider.operators.execution import open_step
        from airflow_ml_provider.operators.pod_end import in_time, parting
        from airflow_ml_provider.operators.pod_waiting import read_rest

        outcome, resumed = PodOutcome.model_validate(event), OpenRun.model_validate(run) if run else None
        opened = open_step(self, context, in_worker=False, resumed=resumed)
        with parting(self, context, outcome), opened as session, in_time(self):
            attempt = self._open(context, session, None)
            read_rest(self, attempt.submission.jobs, outcome)
            return self._finish(context, attempt, attempt.read_plan(planned_by or attempt.number), outcome)

    def on_kill(self) -> None:
        """Delete the pod, and close the run as KILLED: the task was killed or marked, or ran into ``execution_timeout``."""
        if self.submission is not None and self.on_kill_action.value == "delete_pod":
            self.submission.stop_at_once()
        super().on_kill()

    # What a decorated function says differently

    def _rendered(self, _context: Context) -> Mapping[str, Any]:
        """Give what came for inputs and parameters."""
        return {**(self.inputs or {}), **(self.parameters or {})}

    @property
    def function(self) -> StepFunction | None:
        """The function that runs in the container; None where the image brings its program."""
        return None

    @property
    def _written(self) -> Callable[..., Any] | None:
        """The function as its author has written it; None without one."""
        return None

    def _filled(self) -> frozenset[str]:
        """Name the parameters that Airflow's context fills."""
        return frozenset()

    # From the task to the pod

    @property
    def tells(self) -> bool:
        """Whether the container has its half, and so tells what became of the step."""
        chosen = self.options
        return bool(chosen.sidecar) or (chosen.step or ("inject" if self.signature.parameters else "none")) != "none"

    def _open(self, context: Context, session: StepSession, deadline: float | None) -> PodTry:
        """Open the pods of the task instance; from here on a kill finds what it has to stop."""
        from airflow_ml_provider.jobs.pod_submission import PodSubmission
        from airflow_ml_provider.jobs.pods import PodJobs
        from airflow_ml_provider.operators.pod_try import PodTry

        self.session, ti = session, context["ti"]
        patience_s = session.settings.patience_s if self.options.unreachable_s is None else self.options.unreachable_s
        with self.access.told():
            client = self.client  # the operator's own, so that the connection is read once
        self.submission = PodSubmission(
            jobs=PodJobs(client, self._pod_namespace()),
            memory=state_store(context),
            identity=session.record.attempt.identity,
            clears=ti.max_tries,
            on_finish=self.on_finish_action.value,
            capacity_timeout_s=self.capacity_timeout.total_seconds(),
            patience_s=patience_s,
            deadline=deadline,
        )
        prepare = partial(self._prepare, context, session)
        return PodTry(session, self.submission, prepare, self.memory_on_oom, self._memory_limit_gib)

    def _prepare(self, context: Context, session: StepSession, raised_gib: float | None) -> Prepared:
        """Resolve what the step reads, make places for what it writes, and let KubernetesPodOperator make the pod."""
        from airflow_ml_provider.operators.caching import open_cache
        from airflow_ml_provider.operators.pod_body import with_variables
        from airflow_ml_provider.operators.pod_build import build_pod
        from airflow_ml_provider.operators.pod_prepare import Declared, prepare

        asked = self.resources_asked
        if raised_gib is not None and raised_gib > (asked.memory_gib or 0):
            log.info("An earlier try ran out of memory; this one gets %g GiB (memory_on_oom).", raised_gib)
            asked = asked.model_copy(update={"memory_gib": raised_gib})
        pod = build_pod(self, asked, context)
        check_restarts(self.task_id, pod)
        check_image(pod["spec"]["containers"][0].get("image"))
        declared = Declared(
            self.signature,
            self._rendered(context),
            asked,
            self.options,
            self.tells,
            self.function,
            self._filled(),
            open_cache(self, session, context),
        )
        prepared = prepare(session, declared, pod, MAIN, context["ti"].max_tries)
        # After the cache was asked: these are others in each DAG run.
        return replace(prepared, body=with_variables(prepared.body, parent_variables(context["ti"]), MAIN))

    @property
    def access(self) -> KubernetesAccess:
        """The cluster, and as whom."""
        from airflow_ml_provider.hooks.kubernetes import KubernetesAccess

        return KubernetesAccess(
            conn_id=self.kubernetes_conn_id,
            in_cluster=self.in_cluster,
            cluster_context=self.cluster_context,
            config_file=self.config_file,
        )

    def _pod_namespace(self) -> str:
        """Find the namespace as KubernetesPodOperator does."""
        from airflow_ml_provider.operators.pod_build import template_of

        told = ((template_of(self) or {}).get("metadata") or {}).get("namespace")
        return str(self.namespace or told or self.hook.get_namespace() or self._incluster_namespace or "default")

    @property
    def own_policy(self) -> bool:
        """Whether the user's retry policy decides about what has failed, and not ours."""
        policy = getattr(self, "retry_policy", None)
        return policy is not None and not is_default_policy(policy)

    @property
    def _memory_limit_gib(self) -> float | None:
        asked = self.resources_asked.memory_gib
        return self.options.memory_limit_gib or (None if asked is None else asked * TIMES_ON_OOM)

    # From the pod to its end

    def on_line(self, line: str, container: str = MAIN) -> None:
        """
        Put a line of a container's log into the task's.

        :param line: The line.
        :param container: Whose it is.
        """
        if self.log_formatter is not None:
            line = self.log_formatter(container, line)
        elif self.container_name_log_prefix_enabled:
            line = f"[{container}] {line}"
        self.log.info("%s", line)

    def _finish(self, context: Context, attempt: PodTry, plan: StepPlan, outcome: PodOutcome) -> Any:
        """Record the end, and return or raise what becomes of it."""
        from airflow_ml_provider.jobs.pod_wait import read_last_lines, settle
        from airflow_ml_provider.operators.pod_end import raise_failure
        from airflow_ml_provider.tracking.pod_record import GPU, IMAGE

        outcome = settle(attempt.submission.jobs, outcome, MAIN)
        verdict, manifest, outcome = attempt.record(outcome, plan)
        if image := plan.params.get("pod.image"):
            attempt.session.set_tags({IMAGE: image})
        if gpu := self.resources_asked.gpu:
            attempt.session.set_tags({GPU: f"{gpu.count} x {gpu.resource_name}"})
        if verdict.succeeded:
            if verdict.late:
                log.warning("%s Its step had ended well by then, and had stored everything.", outcome.message)
            result = manifest.result if manifest else None
            keep_result(self.cache, attempt.session, plan.cache, result)
            return self._told(context, attempt.session, result, has_outputs=bool(plan.outputs))
        if outcome.exit_code is not None and outcome.exit_code in self.skip_on_exit_code:
            raise AirflowSkipException(f"The pod's exit code is {outcome.exit_code}, for which the task is skipped.")
        read_last_lines(attempt.submission.jobs, outcome, self.on_line)
        return raise_failure(
            outcome,
            plan,
            verdict,
            attempt.submission.jobs,
            image=str(self.image or ""),
            memory_on_oom=self.memory_on_oom,
            memory_limit_gib=self._memory_limit_gib,
            retry_exit_codes=self.options.retry_exit_codes,
            own_policy=self.own_policy,
            all_events=self.log_events_on_failure,
        )

    def _told(self, context: Context, session: StepSession, result: Any, *, has_outputs: bool) -> Any:
        """Give what the next tasks get."""
        if not has_outputs:
            return result
        self.push_by_name(context, session)
        return session.outputs()
