"""A pipeline run as a task: start it or take it up again, wait, and say what became of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.sdk import BaseOperator

from airflow_ml_provider._compat import state_store, task_state
from airflow_ml_provider.core.wiring import check_choice, check_given
from airflow_ml_provider.exceptions import ConfigError, RemoteJobError, RemoteUnavailableError
from airflow_ml_provider.links.kfp import KfpExperimentLink, KfpPipelineLink, KfpRunLink, pages
from airflow_ml_provider.models.kfp import KfpRunOptions, PipelineRun, WaitOutcome
from airflow_ml_provider.models.run import StepIdentity

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.hooks.kfp import KfpApi
    from airflow_ml_provider.jobs.kfp_submission import FindWorkflows, Submission

log = logging.getLogger(__name__)

AGENT_S = 10.0
"""Seconds; 3 were seen between an orphan with a carrier and its run."""
END_S = 60.0
"""Seconds to wait for the end of a run that we have stopped, since its carrier can go only then."""


class KfpRunPipelineOperator(BaseOperator):
    """
    Runs a pipeline on a Kubeflow Pipelines server and waits for its end.

    A retry, a crash of the worker, the triggerer or the scheduler finds the run again: its id is derived from the task instance.
    Only a clear, or a retry with ``on_retry="new"``, starts another. docs/kfp-runs.md has the table of what is promised.

    The XCom is ``{"version", "run_id", "state", "url", "experiment_id", "pipeline_id", "pipeline_version_id"}``.

    :param pipeline: A compiled package (path beside the DAG file, URL, or any URI that ``ObjectStoragePath`` opens), or the
        name of a registered pipeline, ``name`` for its newest version or ``name@version``.
    :param arguments: Value per parameter of the pipeline, checked against its own definitions before anything is sent. A text
        that a template made is read as JSON where the parameter is a number, a boolean, a list or a struct.
    :param experiment: Name of the experiment, made when there is none; None takes the DAG's id.
    :param run_name: Name of the run for people, at most 255 characters; None makes one of task and DAG run.
    :param kfp_conn_id: Connection of the server.
    :param deferrable: Wait in the triggerer, without a worker's slot; None takes ``[operators] default_deferrable``.
    :param timeout: Longest time that a try waits, after which the run is stopped; None sets no limit but ``execution_timeout``,
        which is kept while deferred too.
    :param on_retry: What an Airflow retry does with a run that failed: ``resume`` asks the server to repeat what failed, in
        the same run; ``new`` starts another.
    :param exactly_once: How to find out what became of a create without an answer: ``look`` asks the server for a while and
        then fails with ``SubmissionUnknownError``; ``carrier`` sends it with a recurring run of its own, which the server uses
        as a key; ``workflows`` asks Kubernetes.
    :param leave_running: Marks after which the run is not stopped, of ``clear`` and ``success``. A kill and a mark as failed
        always stop it.
    :param options: What is rarely said: namespace, pipeline root, service account, description, plugins, poll interval.
    """

    template_fields: Sequence[str] = ("pipeline", "arguments", "experiment", "run_name")
    template_fields_renderers: ClassVar[dict[str, str]] = {"arguments": "json"}
    operator_extra_links = (KfpRunLink(), KfpExperimentLink(), KfpPipelineLink())
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        pipeline: str,
        arguments: Mapping[str, Any] | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        kfp_conn_id: str = "kfp_default",
        deferrable: bool | None = None,
        timeout: timedelta | None = None,
        on_retry: Literal["resume", "new"] = "resume",
        exactly_once: Literal["look", "carrier", "workflows"] = "look",
        leave_running: Collection[Literal["clear", "success"]] = (),
        options: KfpRunOptions | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pipeline = pipeline
        self.arguments = arguments
        self.experiment = experiment
        self.run_name = run_name
        self.kfp_conn_id = kfp_conn_id
        self.deferrable = deferrable
        self.timeout = timeout
        self.on_retry = on_retry
        self.exactly_once = exactly_once
        self.leave_running = (leave_running,) if isinstance(leave_running, str) else tuple(leave_running)
        self.options = options
        self.kfp_links: dict[str, str] = {}
        self._submission: Submission | None = None
        self._ti: Any = None
        self._check()

    @property
    def _chosen(self) -> KfpRunOptions:
        return self.options or KfpRunOptions()

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Start the run or take it up, and wait.

        :param context: Airflow's context.
        :return: What ran, as plain JSON.
        :raises AirflowFailException: an argument, the package or the connection is wrong, or it is not known whether a create has
            started something; the message says what to look for. A retry never helps, and there is none.
        :raises RemoteJobError: the run failed, was stopped or deleted, or took too long; a retry does as ``on_retry`` says.
        :raises RemoteUnavailableError: the server did not answer within ``[ml] patience_s``; a retry is safe.
        """
        deadline = self._deadline()
        with self._connected(context) as submission:
            body = partial(self._body, context, submission)
            run = submission.start(self._identity(context), context["ti"].max_tries, body)
            self._show(submission.jobs.api, run)
            return self._wait_for(context, submission, run, deadline)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        """
        Go on after the triggerer has waited.

        The event says why it stopped waiting; what became of the run is asked once more.

        :param context: Airflow's context.
        :param event: As :class:`~airflow_ml_provider.triggers.kfp.KfpRunTrigger` gives it.
        :return: As :meth:`execute`.
        :raises RemoteJobError: as :meth:`execute`.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        told = WaitOutcome.from_event(event)
        with self._connected(context) as submission:
            submission.run_id = told.run_id
            if told.stopped:
                submission.remember_stop(told.run_id)
            return self._finish(context, submission, told)

    def on_kill(self) -> None:
        """Stop the run: the task was killed, marked, cleared, or has run into ``execution_timeout``."""
        if self._submission is None or (self.leave_running and self._mark() in self.leave_running):
            return
        self._submission.stop_at_once()

    def _finish(self, context: Context, submission: Submission, told: WaitOutcome) -> dict[str, Any]:
        """Look once more, and end as the run did."""
        from airflow_ml_provider.jobs.kfp import describe_failure
        from airflow_ml_provider.jobs.kfp_connected import run_reference

        run = self._look_again(submission, told)
        if run is not None:
            self._show(submission.jobs.api, run)
        if run is not None and run.state.good:
            submission.clean_up(run.run_id)
            return run_reference(run, self.kfp_links["run"])
        if run is not None and run.state.ended:
            if self._given_up(context, told):
                submission.clean_up(run.run_id)
        elif run is not None and told.outcome == "ended":
            log.warning("Run %s had ended and is %s again. It is waited for once more.", run.run_id, run.state)
            return self._wait_for(context, submission, run, told.deadline or self._deadline())
        elif told.outcome == "unreachable":
            raise RemoteUnavailableError(told.message)
        elif run is None:
            submission.clean_up(told.run_id)
        raise RemoteJobError(describe_failure(submission.jobs, run, told, self.kfp_links.get("run", "")))

    def _given_up(self, context: Context, told: WaitOutcome) -> bool:
        """Whether no later try works with a run that has failed; else the next one has the same run repeated."""
        ti: Any = context["ti"]
        remembered = told.stopped and context.get("task_state_store") is not None  # before Airflow 3.3 it is not known again
        return self.on_retry == "new" or ti.try_number > ti.max_tries or remembered

    def _look_again(self, submission: Submission, told: WaitOutcome) -> PipelineRun | None:
        try:
            return submission.look_again(told.run_id)
        except RemoteUnavailableError as error:
            if told.outcome != "unreachable":
                raise
            raise RemoteUnavailableError(told.message) from error  # it says what becomes of the run

    def _wait_for(self, context: Context, submission: Submission, run: PipelineRun, deadline: float | None) -> dict[str, Any]:
        from airflow_ml_provider.jobs.kfp_connected import defers

        if not run.state.ended and defers(self.deferrable):
            self._defer(run.run_id, deadline, submission)
        return self._finish(context, submission, self._wait(submission, run, deadline))

    def _wait(self, submission: Submission, run: PipelineRun, deadline: float | None) -> WaitOutcome:
        from airflow_ml_provider.jobs.kfp_wait import wait_for_run

        if run.state.ended:
            return WaitOutcome(run_id=run.run_id, outcome="ended", state=run.state, deadline=deadline)
        told = wait_for_run(
            submission.jobs,
            run.run_id,
            deadline=deadline,
            poll_interval_s=self._chosen.poll_interval_s,
            patience_s=submission.patience_s,
        )
        told = told.model_copy(update={"deadline": deadline})
        if told.stopped:
            submission.remember_stop(run.run_id)
            self._wait_for_end(submission, run.run_id)
        if submission.killed:  # by a signal, after which Airflow lets the task go on
            return told.model_copy(update={"stopped": True, "message": "the task was killed."})
        return told

    def _wait_for_end(self, submission: Submission, run_id: str) -> None:
        """Wait a little for a run that was stopped: its carrier owns the workflow, and without it no end would be reported."""
        from airflow_ml_provider.jobs.kfp_wait import wait_for_run

        if self.exactly_once == "carrier" and not submission.killed:
            end, often = time.time() + END_S, min(self._chosen.poll_interval_s, 2.0)
            wait_for_run(submission.jobs, run_id, deadline=end, poll_interval_s=often, patience_s=END_S, stop_on_timeout=False)

    def _defer(self, run_id: str, deadline: float | None, submission: Submission) -> None:
        from airflow_ml_provider.triggers.kfp import KfpRunTrigger

        trigger = KfpRunTrigger(
            kfp_conn_id=self.kfp_conn_id,
            namespace=submission.jobs.namespace,
            run_id=run_id,
            deadline=deadline,
            poll_interval_s=self._chosen.poll_interval_s,
            patience_s=submission.patience_s,
            leave_running=sorted(self.leave_running),
            carrier=self.exactly_once == "carrier",
        )
        self.defer(trigger=trigger, method_name="execute_complete")

    def _body(self, context: Context, submission: Submission) -> dict[str, Any]:
        from airflow_ml_provider.jobs.kfp_connected import dag_folder
        from airflow_ml_provider.operators.kfp_request import build_request

        self._check_registered()
        return build_request(
            submission.catalog,
            self._identity(context),
            pipeline=self.pipeline,
            arguments=self.arguments,
            experiment=self.experiment,
            run_name=self.run_name,
            options=self._chosen,
            dag_folder=dag_folder(context),
            patience_s=submission.patience_s,
        )

    @contextmanager
    def _connected(self, context: Context) -> Iterator[Submission]:
        from airflow_ml_provider.jobs.kfp_connected import connected
        from airflow_ml_provider.jobs.kfp_submission import Submission

        with connected(self.kfp_conn_id, self._chosen.namespace) as server:
            self._submission, self._ti = (
                Submission(
                    jobs=server.jobs,
                    catalog=server.catalog,
                    memory=state_store(context),
                    on_retry=self.on_retry,
                    exactly_once=self.exactly_once,
                    find_workflows=self._find_workflows(),
                    patience_s=server.patience_s,
                    settle_s=self._chosen.settle_s,
                    stop_replaced="clear" not in self.leave_running,
                ),
                context["ti"],
            )
            yield self._submission

    def _find_workflows(self) -> FindWorkflows | None:
        from airflow_ml_provider.jobs.kfp_workflows import find_workflows

        if self.exactly_once != "workflows":
            return None
        chosen = self._chosen
        return partial(find_workflows, namespace=chosen.workflows_namespace, kubernetes_conn_id=chosen.kubernetes_conn_id)

    def _identity(self, context: Context) -> StepIdentity:
        ti: Any = context["ti"]
        map_index = -1 if ti.map_index is None else ti.map_index
        return StepIdentity(dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=map_index)

    def _show(self, api: KfpApi, run: PipelineRun) -> None:
        """Say where the run is, in the log and in Airflow's links."""
        self.kfp_links = pages(api.server.ui_url, run)
        log.info("KFP run %s (%s): %s", run.run_id, run.state, self.kfp_links["run"])

    def _deadline(self) -> float | None:
        limits = [each.total_seconds() for each in (self.timeout, self.execution_timeout) if each]
        return time.time() + min(limits) if limits else None

    def _mark(self) -> str:
        """Ask which mark ended the task; empty when Airflow does not say so in time."""
        state = task_state(self._ti) if self._ti else ""
        return {"success": "success", "restarting": "clear", None: "clear"}.get(state, "")

    def _check(self) -> None:
        """Refuse at parse time what could never work."""
        check_choice(self.task_id, "on_retry", self.on_retry, ("resume", "new"))
        check_choice(self.task_id, "exactly_once", self.exactly_once, ("look", "carrier", "workflows"))
        for each in self.leave_running:
            check_choice(self.task_id, "leave_running", each, ("clear", "success"))
        check_given(self.task_id, "pipeline", self.pipeline)
        if self.timeout is not None and not (isinstance(self.timeout, timedelta) and self.timeout > timedelta(0)):
            raise ConfigError(f"task {self.task_id!r}: timeout={self.timeout!r} is no positive timedelta.")
        if self.exactly_once == "carrier" and self._chosen.settle_s < AGENT_S:
            raise ConfigError(
                f"task {self.task_id!r}: options.settle_s={self._chosen.settle_s} is shorter than the {AGENT_S:.0f} s in which "
                "the server's agent makes a run of an orphan. Give more; the default is 120."
            )
        self._check_registered()

    def _check_registered(self) -> None:
        """Refuse a carrier for a package that shall not be registered; of a template it is known when it has been rendered."""
        from airflow_ml_provider.jobs.kfp_source import is_package

        if self.exactly_once == "carrier" and not self._chosen.register_package and is_package(str(self.pipeline)):
            raise ConfigError(
                f"task {self.task_id!r}: exactly_once='carrier' needs a registered version, and options.register_package is "
                "False. Leave it out, or name a registered pipeline."
            )
