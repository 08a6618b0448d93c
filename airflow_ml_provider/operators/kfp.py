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
from airflow_ml_provider.exceptions import RemoteJobError, RemoteUnavailableError
from airflow_ml_provider.links.kfp import KfpExperimentLink, KfpPipelineLink, KfpRunLink, pages
from airflow_ml_provider.links.mlflow import MlflowCachedFromLink, MlflowRunLink
from airflow_ml_provider.models.cache import Cache
from airflow_ml_provider.models.kfp import KfpRunOptions, PipelineRun, WaitOutcome
from airflow_ml_provider.models.run import StepIdentity
from airflow_ml_provider.operators.kfp_cache import HERE, RunCache, read_run_cache
from airflow_ml_provider.operators.kfp_parse import check_registered, check_run_operator
from airflow_ml_provider.operators.kfp_typed import RunOutputsMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.hooks.kfp import KfpApi
    from airflow_ml_provider.hooks.kfp_server import KfpServer
    from airflow_ml_provider.jobs.kfp_submission import FindWorkflows, Submission
    from airflow_ml_provider.models.kfp_package import PipelinePackage
    from airflow_ml_provider.operators.kfp_record import RecordedTask

log = logging.getLogger(__name__)

END_S = 60.0
"""Seconds to wait for the end of a run that we have stopped, since its carrier can go only then."""


class KfpRunPipelineOperator(RunOutputsMixin, BaseOperator):
    """
    Runs a pipeline on a Kubeflow Pipelines server and waits for its end.

    A retry, a crash of the worker, the triggerer or the scheduler finds the run again: its id is derived from the task instance.
    Only a clear, or a retry with ``on_retry="new"``, starts another. docs/kfp-runs.md has the table of what is promised.

    The XCom is ``{"version", "run_id", "state", "url", "experiment_id", "pipeline_id", "pipeline_version_id"}``, with
    ``mlflow_run_id`` the task's own nested MLflow run, where there is an MLflow connection, and with the run's outputs.
    ``task.output["model"]`` is one of ``outputs``, typed, as of ``@task.ml``.

    :param pipeline: A compiled package (path beside the DAG file, URL, or any URI that ``ObjectStoragePath`` opens), a function
        that is compiled (``file.py:function``, ``package.module:function``), or a registered pipeline, ``name`` for its newest
        version or ``name@version``.
    :param arguments: Value per parameter of the pipeline, checked against its own definitions before anything is sent. A text
        that a template made is read as JSON where the parameter is a number, a boolean, a list or a struct. An output of a step
        (``prepare(...)["table"]``) is given by its URI where the parameter is a text, and is on record as what the run reads.
    :param outputs: What the next steps take of the run: per name an artifact type (``Model``, ``Metrics``, ...) or the type of a
        JSON value (``float``, ...), and of a loop ``list[...]`` of one: an output of the pipeline, else that of its only task
        with one of that name, else ``task.name``; a number may also be one among the metrics. One that is not found fails the
        task. None tells what is found under ``results`` and refuses nothing.
    :param experiment: Name of the experiment, made when there is none; None takes the DAG's id.
    :param run_name: Name of the run for people, at most 255 characters; None makes one of task and DAG run.
    :param kfp_conn_id: Connection of the server; one whose host is ``local://`` runs the pipeline on the worker.
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
    :param cache: Whether an earlier result of the same pipeline and arguments stands for a new one, so that no run is started:
        True, or a ``Cache`` that says more. None and False start a run each time.
    :param options: What is rarely said: namespace, pipeline root, service account, description, plugins, poll interval.
    """

    template_fields: Sequence[str] = ("pipeline", "arguments", "experiment", "run_name")
    template_fields_renderers: ClassVar[dict[str, str]] = {"arguments": "json"}
    operator_extra_links = (KfpRunLink(), KfpExperimentLink(), KfpPipelineLink(), MlflowRunLink(), MlflowCachedFromLink())
    shallow_copy_attrs: Sequence[str] = ("session",)
    ui_color = "#e8f0fe"

    def __init__(  # noqa: PLR0913  (default_args finds arguments by name, and no other argument is this one's home)
        self,
        *,
        pipeline: str,
        arguments: Mapping[str, Any] | None = None,
        outputs: Mapping[str, Any] | None = None,
        experiment: str | None = None,
        run_name: str | None = None,
        kfp_conn_id: str = "kfp_default",
        deferrable: bool | None = None,
        timeout: timedelta | None = None,
        on_retry: Literal["resume", "new"] = "resume",
        exactly_once: Literal["look", "carrier", "workflows"] = "look",
        leave_running: Collection[Literal["clear", "success"]] = (),
        cache: Cache | bool | None = None,
        options: KfpRunOptions | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.pipeline = pipeline
        self.arguments = arguments
        self.outputs = outputs
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
        self._here: Any = None
        self._recorded: RecordedTask | None = None
        self._cached: RunCache
        self._ti: Any = None
        check_run_operator(self)
        self.cache = read_run_cache(self.task_id, cache, arguments)

    @property
    def _chosen(self) -> KfpRunOptions:
        return self.options or KfpRunOptions()

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Start the run or take it up, and wait.

        :param context: Airflow's context.
        :return: What ran, as plain JSON.
        :raises AirflowFailException: an argument, the package or the connection is wrong, or it is not known whether a create has
            started something, or an output is not to be had; the message says what to look for, or to turn on. A retry never
            helps, and there is none.
        :raises RemoteJobError: the run failed, was stopped or deleted, or took too long; a retry does as ``on_retry`` says.
        :raises RemoteUnavailableError: the server, a store or MLflow did not answer within ``[ml] patience_s``; a retry is safe.
        """
        from airflow_ml_provider.operators.kfp_local import LocalTask, server_of

        deadline, server = self._deadline(), server_of(self.kfp_conn_id)
        if server is None:
            self._here = LocalTask(self)
            with self._on_record(context):
                answer = self._cached.or_run(partial(self._run_here, context, deadline))
            return self._told(context, answer)
        with self._on_record(context), self._connected(context, server) as submission:
            answer = self._cached.or_run(partial(self._run_there, context, submission, deadline))
        return self._told(context, answer)

    def _run_here(self, context: Context, deadline: float | None) -> dict[str, Any]:
        answer: dict[str, Any] = self._here.execute(context, deadline)
        self._cached.keep(answer)
        return answer

    def _run_there(self, context: Context, submission: Submission, deadline: float | None) -> dict[str, Any]:
        run = submission.start(self._identity(context), context["ti"].max_tries, partial(self._body, context, submission))
        self._show(submission.jobs.api, run)
        return self._wait_for(context, submission, run, deadline)

    def before_run(self, package: PipelinePackage, arguments: Mapping[str, Any]) -> None:
        """
        Look for an earlier result before a pipeline runs on this machine.

        :param package: The pipeline.
        :param arguments: Its arguments, checked.
        """
        self._cached.look(package, arguments, HERE)

    def execute_complete(self, context: Context, event: dict[str, Any], run: dict[str, Any] | None = None) -> dict[str, Any]:
        """
        Go on after the triggerer has waited.

        The event says why it stopped waiting; what became of the run is asked once more.

        :param context: Airflow's context.
        :param event: As :class:`~airflow_ml_provider.triggers.kfp.KfpRunTrigger` gives it.
        :param run: The MLflow run that it has opened, as ``OpenRun`` writes itself; None looks for it.
        :return: As :meth:`execute`.
        :raises AirflowFailException: as :meth:`execute`.
        :raises RemoteJobError: as :meth:`execute`.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        told = WaitOutcome.from_event(event)
        with self._on_record(context, run), self._connected(context) as submission:
            submission.run_id = told.run_id
            if told.stopped:
                submission.remember_stop(told.run_id)
            answer = self._finish(context, submission, told)
        return self._told(context, answer)

    def on_kill(self) -> None:
        """Stop the run and close its record: the task was killed, marked, cleared, or has run into ``execution_timeout``."""
        if self._submission is not None and not (self.leave_running and self._mark() in self.leave_running):
            self._submission.stop_at_once()
        if self._here is not None:
            self._here.kill()
        super().on_kill()

    def _finish(self, context: Context, submission: Submission, told: WaitOutcome) -> dict[str, Any]:
        """Look once more, and end as the run did."""
        from airflow_ml_provider.jobs.kfp import describe_failure

        run = self._look_again(submission, told)
        if run is not None:
            self._show(submission.jobs.api, run)
        if run is not None and run.state.good:
            submission.clean_up(run.run_id)
            return self._results(submission, run)
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

    def _results(self, submission: Submission, run: PipelineRun) -> dict[str, Any]:
        """Find what the run has made, and say so."""
        from airflow_ml_provider.operators.kfp_delivery import answer_of
        from airflow_ml_provider.operators.kfp_results import Results

        patience_s = submission.patience_s if self.outputs else 0.0  # nobody waits for what nobody has asked for
        looking = Results(submission.jobs, run, self._chosen, self.session, patience_s)
        answer = answer_of(looking, self.signature, self.kfp_links["run"])
        self._cached.keep(answer)
        return answer

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
        kept = {"run": self.session.record.run.model_dump()} if self.session else {}
        self.defer(trigger=trigger, method_name="execute_complete", kwargs=kept)

    def _body(self, context: Context, submission: Submission) -> dict[str, Any]:
        from airflow_ml_provider.jobs.kfp_connected import dag_folder
        from airflow_ml_provider.operators.kfp_record import with_plugins
        from airflow_ml_provider.operators.kfp_request import build_request

        check_registered(self)
        body = build_request(
            submission.catalog,
            self._identity(context),
            pipeline=self.pipeline,
            arguments=self.arguments,
            experiment=self.experiment,
            run_name=self.run_name,
            options=with_plugins(self._recorded, self._chosen, submission.jobs.api, context["ti"].dag_id, submission.patience_s),
            dag_folder=dag_folder(context),
            patience_s=submission.patience_s,
            outputs=self.signature,
            before=self._cached.before(submission),
        )
        self._cached.note(submission)
        return body

    @contextmanager
    def _on_record(self, context: Context, resumed: Mapping[str, Any] | None = None) -> Iterator[None]:
        from airflow_ml_provider.operators.kfp_record import RecordedTask

        self._recorded = RecordedTask.of(self._chosen, context)
        with self._recorded.opened(context, resumed) as session:
            self.session, self.mlflow_run_url = session, self._recorded.mlflow_run_url
            if session is not None:
                session.log_params(self.arguments if isinstance(self.arguments, Mapping) else {})
            self._cached = RunCache(self, session, context)
            yield

    @contextmanager
    def _connected(self, context: Context, server: KfpServer | None = None) -> Iterator[Submission]:
        from airflow_ml_provider.jobs.kfp_connected import connected
        from airflow_ml_provider.jobs.kfp_submission import Submission

        with connected(self.kfp_conn_id, self._chosen.namespace, server) as there:
            self._submission, self._ti = (
                Submission(
                    jobs=there.jobs,
                    catalog=there.catalog,
                    memory=state_store(context),
                    on_retry=self.on_retry,
                    exactly_once=self.exactly_once,
                    find_workflows=self._find_workflows(),
                    patience_s=there.patience_s,
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
        """Say where the run is, in the log, in Airflow's links and in the task's record."""
        from airflow_ml_provider.operators.kfp_record import note_run

        self.kfp_links = pages(api.server.ui_url, run)
        log.info("KFP run %s (%s): %s", run.run_id, run.state, self.kfp_links["run"])
        note_run(self.session, run, self.kfp_links["run"], self.arguments)

    def _deadline(self) -> float | None:
        limits = [each.total_seconds() for each in (self.timeout, self.execution_timeout) if each]
        return time.time() + min(limits) if limits else None

    def _mark(self) -> str:
        """Ask which mark ended the task; empty when Airflow does not say so in time."""
        state = task_state(self._ti) if self._ti else ""
        return {"success": "success", "restarting": "clear", None: "clear"}.get(state, "")
