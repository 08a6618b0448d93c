"""
Closing MLflow runs whose end no step saw, when Airflow tells of it: the end of a DAG run, a lost task, a mark by hand.

A best effort: Airflow tells nobody of a kill -9 on the last try, a clear while running or a deleted DAG run, so the next run
of the DAG and ``airflow-ml reconcile`` settle what is left. A hook hands over two ids and returns; one thread, alive only
while there is something to do, then asks Airflow's database and MLflow, with short timeouts. Ids come before the commit of
what they tell of, so it waits a little first. In a task's own process the hooks do nothing: ``execute`` closes the run.

Limits: it knows ids only, so it looks at the server of the connection ``mlflow_default`` alone, and does nothing, silently,
where that is not defined; runs on other servers are left to the two other ways. ``[ml] listeners = False`` switches it off.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from airflow.listeners import hookimpl

from airflow_ml_provider.exceptions import AirflowMLError, ConfigError, RemoteNotFoundError, RemoteUnavailableError

if TYPE_CHECKING:
    from airflow_ml_provider.tracking.reconcile import AirflowView, Finding

log = logging.getLogger(__name__)

LIMIT = 1000
FIRST_LOOK_S, NEXT_LOOKS_S = 2.0, (5.0, 30.0, 120.0)
"""When to look after a hook, and again while Airflow's database does not say it yet or MLflow does not answer."""
TIMEOUT_S = 5.0
AT_EXIT_S = 10.0
OURS, LINK = "airflow_ml_provider.", "MLflow run"
NEEDED = (
    "airflow_ml_provider.hooks.mlflow",
    "airflow_ml_provider.tracking.reconcile",
    "airflow.models.dagrun",
    "airflow.sdk.definitions.connection",
    "airflow.sdk.execution_time.supervisor",
    "encodings.idna",
)
"""What the thread imports: loaded before it starts, since the scheduler forks, and a fork amid an import may hang for ever."""
DagRunKey = tuple[str, str]
"""Ids of the DAG and of the DAG run; plain, because this module is imported by every process of Airflow."""


class Sweeper:
    """
    A bounded list of DAG runs to settle, and the one thread that works it off.

    :param settle: Settles one DAG run; returns whether it is done with. It must not raise.
    :param limit: DAG runs that may wait; what comes on top is dropped, with a line in the log.
    :param first_look_s: Seconds to wait before a DAG run is looked at.
    :param next_looks_s: Seconds before each further look, as long as it is not done with.
    """

    def __init__(
        self,
        settle: Callable[[str, str], bool],
        limit: int = LIMIT,
        first_look_s: float = FIRST_LOOK_S,
        next_looks_s: tuple[float, ...] = NEXT_LOOKS_S,
    ) -> None:
        self.settle = settle
        self.limit = limit
        self.first_look_s = first_look_s
        self.next_looks_s = next_looks_s
        self._forget()
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Begin empty; in a fork the thread is not there, and its lock may be held for ever."""
        self._due: dict[DagRunKey, tuple[float, int]] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._in_haste = False

    def add(self, dag_id: str, run_id: str) -> bool:
        """
        Have a DAG run settled soon; returns at once. One that waits already is not added twice.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the DAG run.
        :return: Whether it will be settled; False when too many wait.
        """
        with self._changed:
            if (dag_id, run_id) not in self._due and len(self._due) >= self.limit:
                text = "%d DAG runs wait for MLflow already, so the runs of %s %s are left to airflow-ml reconcile."
                log.warning(text, self.limit, dag_id, run_id)
                return False
            self._due[dag_id, run_id] = (time.monotonic() + self.first_look_s, 0)
            self._changed.notify()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="airflow-ml-listener", daemon=True)
                self._thread.start()
                atexit.unregister(self.finish)
                atexit.register(self.finish)
            return True

    def finish(self, limit_s: float = AT_EXIT_S) -> None:
        """
        Settle what waits now, without further looks; for the end of the process, ``dag.test()`` above all.

        :param limit_s: Seconds after which the rest is left.
        """
        with self._changed:
            thread, self._in_haste = self._thread, True
            self._changed.notify()
        if thread is not None:
            thread.join(limit_s)
        self._in_haste = False

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            dag_run, looks = taken
            if not self.settle(*dag_run):
                self._look_again(dag_run, looks)

    def _take(self) -> tuple[DagRunKey, int] | None:
        """Wait for the DAG run that is due first; None when there is none, and then the thread ends."""
        with self._changed:
            while self._due:
                dag_run, (due, looks) = min(self._due.items(), key=lambda item: item[1])
                wait = 0.0 if self._in_haste else due - time.monotonic()
                if wait <= 0:
                    del self._due[dag_run]
                    return dag_run, looks
                self._changed.wait(wait)
            self._thread = None
            return None

    def _look_again(self, dag_run: DagRunKey, looks: int) -> None:
        with self._changed:
            if looks < len(self.next_looks_s) and not self._in_haste and len(self._due) < self.limit:
                self._due.setdefault(dag_run, (time.monotonic() + self.next_looks_s[looks], looks + 1))


def settle(dag_id: str, run_id: str) -> bool:
    """
    Bring the MLflow runs of a DAG run to what Airflow's database says of it; runs in the sweeper's thread.

    :param dag_id: Id of the DAG.
    :param run_id: Id of the DAG run.
    :return: Whether it is done with: False while a server did not answer, or while Airflow says that a step runs.
    """
    if _a_task_runs_here():
        return False
    try:
        found = _settle(dag_id, run_id)
    except (RemoteUnavailableError, RemoteNotFoundError) as error:
        log.info("The MLflow runs of %s %s are not settled yet: %s", dag_id, run_id, error)
        return False
    except AirflowMLError as error:
        log.warning("The MLflow runs of %s %s are left as they are: %s", dag_id, run_id, error)
        return True
    except Exception:  # the thread must live on for the other DAG runs, and nobody else would tell
        log.exception("The MLflow runs of %s %s are left as they are.", dag_id, run_id)
        return True
    for each in found:
        log.log(logging.DEBUG if each.action == "left" else logging.INFO, "MLflow run settled: %s", each)
    return all(each.action != "left" for each in found)


def _settle(dag_id: str, run_id: str) -> list[Finding]:
    from airflow_ml_provider.config import load_settings, ui_address
    from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowHook
    from airflow_ml_provider.models.run import DagRunIdentity
    from airflow_ml_provider.tracking.reconcile import Reconciler, find_experiments
    from airflow_ml_provider.tracking.runs import RunTree

    try:
        server = MlflowHook().server()
    except ConfigError as error:
        log.debug("No MLflow server to tell: %s", error)
        return []
    settings = load_settings()
    hasty = {"http_retries": 0, "http_timeout_s": min(settings.http_timeout_s, TIMEOUT_S)}
    api = MlflowApi(server, settings.model_copy(update=hasty))
    try:
        reconciler = Reconciler(RunTree(api), read_database, home=ui_address())
        return reconciler.settle(find_experiments(api), DagRunIdentity(dag_id=dag_id, run_id=run_id))
    finally:
        api.close()


def read_database(dag_id: str, run_id: str) -> AirflowView:
    """
    Ask Airflow's metadata database, where that is allowed: scheduler, API server, command line.

    :param dag_id: Id of the DAG.
    :param run_id: Id of the DAG run.
    :return: What it says; ``deleted`` only if the DAG is known and this run of it is not.
    :raises RemoteUnavailableError: the database cannot be read; a retry is safe.
    :raises RemoteNotFoundError: the DAG is not known here.
    """
    from airflow.models import DagModel, DagRun, TaskInstance
    from airflow.utils.session import create_session
    from sqlalchemy import select
    from sqlalchemy.exc import SQLAlchemyError

    from airflow_ml_provider.tracking.reconcile import DELETED, AirflowView

    run = select(DagRun.state, DagRun.end_date).where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
    columns = (TaskInstance.task_id, TaskInstance.map_index, TaskInstance.state)
    tasks = select(*columns).where(TaskInstance.dag_id == dag_id, TaskInstance.run_id == run_id)
    try:
        with create_session(scoped=False) as session:
            found = session.execute(run).one_or_none()
            if found is not None:
                states = {(task, index): _text(state) for task, index, state in session.execute(tasks)}
            elif session.scalar(select(DagModel.dag_id).where(DagModel.dag_id == dag_id)) is None:
                raise RemoteNotFoundError(f"this Airflow has no DAG {dag_id!r}, so it cannot say what became of its runs")
    except SQLAlchemyError as error:
        raise RemoteUnavailableError(f"Airflow's database cannot be read: {error}") from error
    if found is None:
        return AirflowView(DELETED, {})
    ended = int(found.end_date.timestamp() * 1000) if found.end_date else None
    return AirflowView(str(_text(found.state)), states, ended)


sweeper = Sweeper(settle)


@hookimpl
def on_dag_run_success(dag_run: Any) -> None:
    """Close what a DAG run has left open; called in the scheduler's loop, in the API server, and in ``dag.test()``."""
    _add_if_ours(dag_run, getattr(dag_run, "dag", None))


@hookimpl
def on_dag_run_failed(dag_run: Any) -> None:
    """Close what a DAG run has left open; as :func:`on_dag_run_success`, and at a DAG run's timeout."""
    _add_if_ours(dag_run, getattr(dag_run, "dag", None))


@hookimpl
def on_task_instance_success(task_instance: Any) -> None:
    """Close the run of a task that was marked by hand; called in the API server."""
    _add_if_marked(task_instance)


@hookimpl
def on_task_instance_failed(task_instance: Any) -> None:
    """Close the run of a task that was lost (scheduler) or marked by hand (API server)."""
    _add_if_marked(task_instance)


@hookimpl(optionalhook=True)  # the first releases of 3.1 do not know it
def on_task_instance_skipped(task_instance: Any) -> None:
    """Close the run of a task that was marked by hand; called in the API server."""
    _add_if_marked(task_instance)


def _add_if_marked(task_instance: Any) -> None:
    if type(task_instance).__module__.startswith("airflow.sdk."):
        return  # the task's own process: execute has closed the run
    task = getattr(task_instance, "task", None)
    if task is None or _is_ours(task):
        _add(task_instance)


def _add_if_ours(dag_run: Any, dag: Any) -> None:
    tasks = getattr(dag, "tasks", None)
    if tasks is None or any(_is_ours(task) for task in tasks):
        _add(dag_run)


def _is_ours(task: Any) -> bool:
    """Tell our operators, also subclassed and serialized, from others: by module, or by the link that they all have."""
    module = getattr(task, "_task_module", None) or type(task).__module__
    links = getattr(task, "operator_extra_links", None) or ()
    return str(module).startswith(OURS) or any(getattr(link, "name", "") == LINK for link in links)


def _add(source: Any) -> None:
    for module in NEEDED:
        importlib.import_module(module)
    sweeper.add(source.dag_id, source.run_id)


def _a_task_runs_here() -> bool:
    """Tell whether ``dag.test()`` runs a task just now: its line to Airflow is not made for two threads."""
    runner = sys.modules.get("airflow.sdk.execution_time.task_runner")
    return getattr(runner, "SUPERVISOR_COMMS", None) is not None


def _text(state: object) -> str | None:
    return None if state is None else str(getattr(state, "value", state))
