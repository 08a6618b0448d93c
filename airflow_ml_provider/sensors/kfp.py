"""Waiting for a run of Kubeflow Pipelines that was started elsewhere; it is never stopped from here."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowSensorTimeout, AirflowSkipException
from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_ml_provider._compat import StateStore, state_store
from airflow_ml_provider.exceptions import (
    AirflowMLError,
    ConfigError,
    RemoteJobError,
    RemoteUnavailableError,
    UnauthorizedError,
)
from airflow_ml_provider.links.kfp import KfpExperimentLink, KfpPipelineLink, KfpRunLink, pages
from airflow_ml_provider.links.mlflow import MlflowRunLink
from airflow_ml_provider.models.kfp import KfpRunOptions, PipelineRun, RunState, WaitOutcome
from airflow_ml_provider.operators.kfp_typed import RunOutputsMixin
from airflow_ml_provider.sensors.soft_fail import unsoftened

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.jobs.kfp import KfpJobs
    from airflow_ml_provider.jobs.kfp_connected import Connected

log = logging.getLogger(__name__)

NEVER_STOP = ("kill", "success", "clear")
"""Every mark of a person; after none of them the run is stopped."""
TROUBLE_PAUSE_S = 5.0
"""Seconds, at most, between two looks of one poke, while something is wrong."""
STUCK_S = 600.0
"""Seconds that a run may be CANCELING."""
PACE = 10
"""How many times the pause between two questions of the triggerer grows with the age of a run."""


class KfpRunSensor(RunOutputsMixin, BaseSensorOperator):
    """
    Waits until a run that was started elsewhere has ended, and succeeds when it has succeeded.

    An error of the server is borne for ``[ml] patience_s``, whatever the poke interval. A kill, a mark or the timeout ends
    the waiting and never the run.

    The XCom is as of ``KfpRunPipelineOperator``: ``{"version", "run_id", "state", "url", "experiment_id", "pipeline_id",
    "pipeline_version_id"}``, and the run's outputs, as of ``KfpRunPipelineOperator``: ``sensor.output["model"]``. With
    ``outputs`` the task has a record in MLflow, made when the run has ended.

    With ``soft_fail`` the task is skipped when the run has failed or the time is up, and fails when the server is away, or the
    connection or the id is wrong.

    :param run_id: The run, which is known to exist. One that is gone is a failure.
    :param kfp_conn_id: Connection of the server.
    :param namespace: Namespace of the run, for a server with users; None takes the connection's.
    :param deferrable: Wait in the triggerer, without a worker's slot; None takes ``[operators] default_deferrable``. There
        ``poke_interval`` is the longest pause between two questions, which all that wait for the server share; a
        tenth of it while the run is young.
    :param outputs: What the next steps take of the run, as of ``KfpRunPipelineOperator``.
    :param options: Of these ``results_root``, ``pipeline_root``, ``mlflow_conn_id`` and ``mlflow_experiment`` are read.
    """

    template_fields: Sequence[str] = ("run_id", "namespace")
    operator_extra_links = (KfpRunLink(), KfpExperimentLink(), KfpPipelineLink(), MlflowRunLink())
    shallow_copy_attrs: Sequence[str] = ("session",)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        run_id: str,
        kfp_conn_id: str = "kfp_default",
        namespace: str | None = None,
        deferrable: bool | None = None,
        outputs: Mapping[str, Any] | None = None,
        options: KfpRunOptions | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.outputs = outputs
        self.options = options or KfpRunOptions()
        self.run_id = run_id
        self.kfp_conn_id = kfp_conn_id
        self.namespace = namespace
        self.deferrable = deferrable
        self.kfp_links: dict[str, str] = {}
        self._deadline: float | None = None
        self._store: StateStore | None = None
        self._check_run_id()
        _ = self.signature

    def execute(self, context: Context) -> Any:
        """
        Wait: in the triggerer, or as ``mode`` says.

        :param context: Airflow's context.
        :return: The run, as plain JSON.
        :raises AirflowFailException: the connection is wrong, or the id is empty; a retry never helps.
        :raises AirflowSensorTimeout: the run had not ended after ``timeout``.
        :raises RemoteJobError: the run failed or is gone; the message names the tasks that failed. A retry looks again.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        from airflow_ml_provider.jobs.kfp_connected import defers

        deadline = time.time() + self.timeout
        if not defers(self.deferrable):
            self._deadline = None if self.reschedule else deadline
            return unsoftened(self, super().execute, context)
        with self._connected() as server:
            try:
                run = server.jobs.look(self.run_id)
            except (RemoteUnavailableError, UnauthorizedError) as error:
                log.warning("Could not look at run %s: %s Waiting for it all the same.", self.run_id, error)
                run = None
            if run is None or not run.state.ended:
                self._defer(server, run, deadline)
            return self._finish(context, server, run, WaitOutcome(run_id=run.run_id, outcome="ended", state=run.state))

    def poke(self, context: Context) -> PokeReturnValue:
        """
        Look once; go on looking while the server does not answer or the run seems to be gone, until that is certain.

        :param context: Airflow's context.
        :return: Whether the run has ended well, and then its reference.
        :raises AirflowFailException: as :meth:`execute`.
        :raises RemoteJobError: as :meth:`execute`.
        :raises RemoteUnavailableError: as :meth:`execute`.
        """
        from airflow_ml_provider.jobs.kfp_wait import wait_for_run

        with self._connected() as server:
            looking = _WhileTrouble(server.jobs)
            try:
                told = wait_for_run(
                    looking,
                    self.run_id,
                    deadline=self._deadline,
                    poll_interval_s=min(max(self.poke_interval, 0.1), TROUBLE_PAUSE_S),
                    patience_s=server.patience_s,
                    stop_on_timeout=False,
                )
            except _StillActiveError as calm:
                self._show(server, calm.run)
                self._check_stuck(context, server, calm.run)
                return PokeReturnValue(is_done=False)
            if told.outcome == "deadline":
                return PokeReturnValue(is_done=False)  # Airflow ends it, as it ends other sensors
            return PokeReturnValue(is_done=True, xcom_value=self._finish(context, server, looking.run, told))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """
        Go on after the triggerer has waited, or after Airflow could not wait any longer.

        :param next_method: Name of the method that goes on.
        :param next_kwargs: What it is given.
        :param context: Airflow's context.
        :return: As :meth:`execute`.
        :raises AirflowFailException: as :meth:`execute`.
        """
        return unsoftened(self, super().resume_execution, next_method, next_kwargs, context)

    def execute_complete(self, context: Context, event: Mapping[str, Any], deadline: float | None = None) -> dict[str, Any]:
        """
        Go on after the triggerer has waited.

        :param context: Airflow's context.
        :param event: As :class:`~airflow_ml_provider.triggers.kfp.KfpRunTrigger` gives it.
        :param deadline: Epoch seconds of the sensor's timeout, None for one that starts now.
        :return: As :meth:`execute`.
        :raises AirflowFailException: the run is in another namespace; a retry never helps.
        :raises AirflowSensorTimeout: as :meth:`execute`.
        :raises RemoteJobError: as :meth:`execute`.
        :raises RemoteUnavailableError: as :meth:`execute`.
        """
        from airflow_ml_provider.hooks.patience import patiently

        told = WaitOutcome.from_event(event)
        if told.outcome == "deadline":
            raise AirflowSensorTimeout(f"{told.message} The sensor's timeout is {self.timeout:.0f} s; the run goes on.")
        with self._connected() as server:
            look = None
            if told.outcome in {"ended", "stuck", "gone"}:
                look = patiently(f"ask for run {self.run_id}", lambda: server.jobs.look(self.run_id), server.patience_s)
            if told.outcome == "ended" and look is not None and not look.state.ended:
                log.warning("Run %s had ended, and is %s again. Waiting for it.", self.run_id, look.state)
                self._defer(server, look, deadline or told.deadline or time.time() + self.timeout)
            if told.outcome == "gone" and look is not None and not look.state.ended and server.jobs.namespace:
                raise ConfigError(
                    f"task {self.task_id!r}: run {self.run_id} is on the server, but not among the runs of namespace "
                    f"{server.jobs.namespace!r}. Give namespace=, or a connection with, the namespace of the run."
                )
            return self._finish(context, server, look, told)

    def _defer(self, server: Connected, run: PipelineRun | None, deadline: float) -> NoReturn:
        from airflow_ml_provider.triggers.kfp import KfpRunTrigger

        if run is not None:
            self._show(server, run)
        trigger = KfpRunTrigger(
            kfp_conn_id=self.kfp_conn_id,
            namespace=server.jobs.namespace,
            run_id=self.run_id,
            deadline=deadline,
            poll_interval_s=max(self.poke_interval / PACE, 0.1),
            patience_s=server.patience_s,
            stuck_s=STUCK_S,
            stop_on_timeout=False,
            leave_running=NEVER_STOP,
        )
        self.defer(trigger=trigger, method_name="execute_complete", kwargs={"deadline": deadline})

    def _finish(self, context: Context, server: Connected, run: PipelineRun | None, told: WaitOutcome) -> dict[str, Any]:
        """End as the run did."""
        from airflow_ml_provider.jobs.kfp import describe_failure

        if told.outcome == "unreachable":
            raise self._verdict(RemoteUnavailableError(told.message), soft=False)
        if run is None:
            raise self._verdict(RemoteJobError(f"{told.message} Its end is not known. A retry looks again."))
        self._show(server, run)
        if run.state.good:
            return self._results(context, server, run)
        raise self._verdict(RemoteJobError(describe_failure(server.jobs, run, told, self.kfp_links["run"])))

    def _results(self, context: Context, server: Connected, run: PipelineRun) -> dict[str, Any]:
        """Find what the run has made, and say so; with declared outputs in a record of the task's own."""
        from airflow_ml_provider.operators.kfp_delivery import answer_of
        from airflow_ml_provider.operators.kfp_record import RecordedTask, note_run
        from airflow_ml_provider.operators.kfp_results import Results

        recorded = RecordedTask.of(self.options, context) if self.outputs else None
        with recorded.opened(context) if recorded else nullcontext() as session:
            self.session, self.mlflow_run_url = session, recorded.mlflow_run_url if recorded else ""
            note_run(session, run, self.kfp_links["run"])
            looking = Results(server.jobs, run, self.options, session, server.patience_s if self.outputs else 0.0)
            answer = answer_of(looking, self.signature, self.kfp_links["run"])
        return self._told(context, answer)

    def _verdict(self, error: AirflowMLError, *, soft: bool = True) -> Exception:
        """Fail, or skip where the sensor was told to; Airflow itself does so for its own errors alone."""
        skips = self.never_fail or (soft and self.soft_fail)
        return AirflowSkipException(str(error)) if skips else error

    def _check_stuck(self, context: Context, server: Connected, run: PipelineRun) -> None:
        """Give up a run that has been stopping for so long that nobody will report its end; remembered over reschedules."""
        memory, key = self._memory(context), f"kfp_canceling.{context['ti'].try_number}"
        since = float(memory.get(key, 0.0) or 0.0)
        if run.state is not RunState.CANCELING:
            if since:
                memory.set(key, 0.0)
        elif not since:
            memory.set(key, time.time())
        elif time.time() - since > STUCK_S:
            told = WaitOutcome(run_id=run.run_id, outcome="stuck", state=run.state, message=f"since {STUCK_S:.0f} s at least.")
            self._finish(context, server, run, told)

    def _memory(self, context: Context) -> StateStore:
        if self._store is None:
            self._store = state_store(context)
        return self._store

    @contextmanager
    def _connected(self) -> Iterator[Connected]:
        from airflow_ml_provider.jobs.kfp_connected import connected

        with connected(self.kfp_conn_id, self.namespace) as server:
            self._check_run_id()
            yield server

    def _show(self, server: Connected, run: PipelineRun) -> None:
        """Say where the run is, in the log and in Airflow's links."""
        self.kfp_links = pages(server.api.server.ui_url, run)
        log.info("KFP run %s (%s): %s", run.run_id, run.state, self.kfp_links["run"])

    def _check_run_id(self) -> None:
        if self.run_id is None or (isinstance(self.run_id, str) and self.run_id.strip() in {"", "None"}):
            raise ConfigError(f"task {self.task_id!r}: run_id={self.run_id!r} is none. Give the id of a run.")


class _StillActiveError(Exception):
    """The server has answered, and the run goes on: no trouble."""

    def __init__(self, run: PipelineRun) -> None:
        super().__init__(run.run_id)
        self.run = run


class _WhileTrouble:
    """The runs of a server, for a wait that is to last no longer than something is wrong."""

    def __init__(self, jobs: KfpJobs) -> None:
        self._jobs = jobs
        self.run: PipelineRun | None = None

    def look(self, run_id: str) -> PipelineRun | None:
        self.run = self._jobs.look(run_id)
        if self.run is not None and not self.run.state.ended:
            raise _StillActiveError(self.run)
        return self.run

    def cancel(self, run_id: str) -> NoReturn:
        raise NotImplementedError(f"run {run_id} is not ours to stop")
