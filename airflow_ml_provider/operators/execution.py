"""
One try of a step around a block: the run is opened, the block runs, the run is closed however it ends.

::

    with open_step(operator, context) as session:
        table = session.read("table", value, Dataset)
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSkipException, DownstreamTasksSkipped, TaskDeferred

from airflow_ml_provider.config import load_settings
from airflow_ml_provider.exceptions import ConfigError, SupersededError
from airflow_ml_provider.hooks.mlflow import MlflowHook
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.models.run import OpenRun, StepRecord
from airflow_ml_provider.operators.attempt import read_attempt
from airflow_ml_provider.operators.outcome import told_of
from airflow_ml_provider.operators.session import StepSession
from airflow_ml_provider.tracking import fluent
from airflow_ml_provider.tracking.reconcile import settle_earlier
from airflow_ml_provider.tracking.runs import RunTree

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)


class StepOperator(Protocol):
    """What an operator needs to have to open a session."""

    mlflow_conn_id: str
    experiment: str | None
    artifact_root: str | None
    mlflow_run_url: str


@contextmanager
def open_step(
    operator: StepOperator,
    context: Context,
    params: Mapping[str, Any] | None = None,
    *,
    in_worker: bool = True,
    resumed: OpenRun | None = None,
) -> Iterator[StepSession]:
    """
    Open the nested MLflow run of a try, and close it however the block ends; a task that defers leaves it open.

    The user's own ``mlflow`` calls inside the block land in that run.

    :param operator: Says which connection, experiment and artifact root.
    :param context: As given to ``execute``.
    :param params: Parameters of the step to record.
    :param in_worker: Whether the user's code runs in this process, so that the run is to be its active one.
    :param resumed: The run that this try has opened before it was deferred, so that nobody has to look for it; None opens it.
    :return: The session; after the block its :meth:`StepSession.outputs` are stored.
    :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry is safe.
    :raises SupersededError: a later try took over while the block ran; a retry is pointless.
    :raises AirflowFailException: in place of every ``ConfigError``, so that Airflow does not retry what a retry never mends.
    """
    try:
        with _opened(operator, context, params or {}, in_worker=in_worker, resumed=resumed) as session:
            yield session
    except ConfigError as error:
        raise AirflowFailException(str(error)) from error


@contextmanager
def _opened(
    operator: StepOperator, context: Context, params: Mapping[str, Any], *, in_worker: bool, resumed: OpenRun | None
) -> Iterator[StepSession]:
    settings, hook = load_settings(), MlflowHook(operator.mlflow_conn_id)
    api, attempt = hook.api(settings), read_attempt(context)
    experiment = (operator.experiment or settings.experiment).replace("{dag_id}", attempt.identity.dag_id)
    try:
        tree = RunTree(api)
        run = resumed or patiently("open the MLflow run", lambda: tree.open(experiment, attempt), settings.patience_s)
        if tree.made_parent:
            settle_earlier(api, run.experiment_id, attempt, context["ti"])
        operator.mlflow_run_url = api.server.run_page(run.experiment_id, run.run_id)
        log.info("MLflow run: %s", operator.mlflow_run_url)
        with tempfile.TemporaryDirectory(prefix="airflow-ml-") as scratch:
            record = StepRecord(conn_id=operator.mlflow_conn_id, attempt=attempt, run=run)
            session = StepSession(api, settings, record, Path(scratch), operator.artifact_root)
            session.log_params(params)
            active: AbstractContextManager[Any] = nullcontext()
            if in_worker:
                active = fluent.active_run(hook.client_environment(settings), run.run_id, run.experiment_id, attempt.try_number)
            with told_of(session, context), _closed_run(session, context), active:
                yield session
    finally:
        api.close()


@contextmanager
def _closed_run(session: StepSession, context: Context) -> Iterator[None]:
    """Close the run as the block ends: well, as a skip, or with an error."""
    ti: Any = context["ti"]
    skip: BaseException | None = None
    try:
        try:
            yield
        except (AirflowSkipException, DownstreamTasksSkipped) as raised:
            skip = raised
        session.succeed("skipped" if isinstance(skip, AirflowSkipException) else "success")
    except (SupersededError, TaskDeferred):
        raise
    except BaseException as error:
        retries = not isinstance(error, AirflowFailException | ConfigError) and ti.try_number <= (ti.max_tries or 0)
        session.fail(error, "up_for_retry" if retries else "failed")
        raise
    if skip is not None:
        raise skip
