"""The nested MLflow run of a task on Kubeflow Pipelines: open from before the create until the task has ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowNotFoundException

from airflow_ml_provider.config import load_settings
from airflow_ml_provider.core.kfp_names import unstorable
from airflow_ml_provider.exceptions import AirflowMLError
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.models.kfp import KfpRunOptions, PipelineRun
from airflow_ml_provider.models.run import OpenRun
from airflow_ml_provider.operators.kfp_inputs import note_inputs

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.hooks.kfp import KfpApi
    from airflow_ml_provider.operators.session import StepSession

log = logging.getLogger(__name__)

DEFAULT_CONNECTION = "mlflow_default"
TAG = "airflow.kfp"
"""Beginning of the tags that lead from the nested run to the pipeline run."""


@dataclass
class RecordedTask:
    """
    What opens the nested run of a task.

    :param mlflow_conn_id: Connection of the MLflow server; empty once it has turned out that there is none, and then nothing is
        recorded.
    :param experiment: Name of the MLflow experiment; None means ``[ml] experiment``.
    :param named: Whether somebody has named the connection, so that it has to be there.
    """

    mlflow_conn_id: str
    experiment: str | None
    named: bool = True
    artifact_root: str | None = None
    mlflow_run_url: str = ""

    @classmethod
    def of(cls, options: KfpRunOptions, context: Mapping[str, Any]) -> RecordedTask:
        """
        Find out where a task is recorded.

        :param options: What its author says.
        :param context: Airflow's context: the DAG's ``default_args`` say it for all of its steps.
        :return: The place; ``mlflow_default`` where nobody names a connection, as far as it exists.
        """
        task = getattr(context["ti"], "task", None)
        shared = getattr(getattr(task, "dag", None), "default_args", None) or {}
        named = options.mlflow_conn_id or shared.get("mlflow_conn_id")
        experiment = options.mlflow_experiment or shared.get("experiment")
        return cls(named or DEFAULT_CONNECTION, experiment, named=bool(named))

    def experiment_of(self, dag_id: str) -> str:
        """
        Name the experiment.

        :param dag_id: Id of the DAG.
        :return: Its name.
        """
        return (self.experiment or load_settings().experiment).replace("{dag_id}", dag_id)

    def plugins_input(self, dag_id: str) -> dict[str, Any]:
        """
        Ask KFP's own MLflow plugin to write where the task is recorded.

        :param dag_id: Id of the DAG.
        :return: ``plugins_input`` of a create; empty where nothing is recorded, or the name cannot be stored by the server.
        """
        name = self.experiment_of(dag_id)
        if not self.mlflow_conn_id or unstorable(name):
            return {}
        return {"mlflow": {"experiment_name": name}}

    @contextmanager
    def opened(self, context: Context, resumed: Mapping[str, Any] | None = None) -> Iterator[StepSession | None]:
        """
        Open the nested run around a block, as for every step: closed however the block ends, left open by a deferral.

        :param context: Airflow's context.
        :param resumed: The run that this try has opened before it was deferred, as ``OpenRun`` writes itself; None looks for it.
        :return: The session; None where nothing is recorded.
        :raises AirflowFailException: in place of every ``ConfigError``.
        :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry is safe.
        """
        from airflow_ml_provider.operators.execution import open_step

        run = OpenRun.model_validate(resumed) if resumed else None
        with ExitStack() as opened:
            session: StepSession | None = None
            try:
                session = opened.enter_context(open_step(self, context, in_worker=False, resumed=run))
            except AirflowFailException as error:
                if self.named or not _is_missing(error):
                    raise
                self.mlflow_conn_id = ""
                log.info("There is no connection %r, so MLflow gets no record of this task.", DEFAULT_CONNECTION)
            yield session


def with_plugins(
    recorded: RecordedTask | None, options: KfpRunOptions, api: KfpApi, dag_id: str, patience_s: float
) -> KfpRunOptions:
    """
    Ask the server's MLflow plugin to write where a task is recorded, unless the author says otherwise.

    :param recorded: Where it is recorded; None for nowhere.
    :param options: What the author says.
    :param api: The pipeline server.
    :param dag_id: Id of the DAG.
    :param patience_s: Seconds to wait for the server.
    :return: The options, with what is asked of a server that takes it.
    :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
    """
    from airflow_ml_provider.jobs.kfp_results import takes_plugins

    wish = recorded.plugins_input(dag_id) if recorded is not None and options.plugins_input is None else {}
    takes: bool = bool(wish) and patiently("ask for the server's version", lambda: takes_plugins(api), patience_s)
    return options.model_copy(update={"plugins_input": wish}) if takes else options


def note_run(session: StepSession | None, run: PipelineRun, url: str, arguments: object = None) -> None:
    """
    Put a pipeline run's links, state and arguments on record, at once as far as MLflow answers; safe to repeat.

    :param session: The task's; None where nothing is recorded.
    :param run: The pipeline run; what it was given counts as read when it has ended.
    :param url: Its page.
    :param arguments: What the task's author gives, references among it; None where somebody else has started the run.
    :raises RemoteUnavailableError: MLflow did not tell within the patience what an input is; a retry is safe.
    """
    from airflow_ml_provider.tracking.runs import as_pairs

    if session is None:
        return
    told = {"run_id": run.run_id, "url": url, "state": str(run.state), "experiment_id": run.experiment_id}
    tags = {f"{TAG}.{key}": value for key, value in told.items() if value}
    fresh = tags.items() - session.record.tags.items()
    session.set_tags(tags)
    session.log_params(dict(run.parameters))
    if run.state.ended:
        note_inputs(session, run.parameters, arguments)
    if fresh:
        hasty = session.api.hasty()
        try:  # so that the page leads there while the run goes on; what does not get through is sent at the end
            hasty.post("runs/log-batch", {"run_id": session.record.run.run_id, "tags": as_pairs(dict(fresh))})
        except AirflowMLError as error:
            log.info("MLflow did not take the link to run %s yet: %s", run.run_id, error)
        finally:
            hasty.close()


def _is_missing(error: BaseException | None) -> bool:
    """Say whether an error is that there is no such connection; asking for it beforehand would be one request more."""
    return error is not None and (isinstance(error, AirflowNotFoundException) or _is_missing(error.__cause__))
