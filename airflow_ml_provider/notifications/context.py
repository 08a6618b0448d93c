"""
Reading what happened from the context that Airflow gives a callback, which differs by the process that it runs in.

A task's own process gives the task instance and the exception; the DAG processor, for a task that was lost, the task
instance alone, and for a DAG run its last task instance and a ``reason``, or less; the triggerer a plain dictionary whose
``dag_run`` is JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from airflow_ml_provider.config import ui_address
from airflow_ml_provider.models.alert import AlertKind
from airflow_ml_provider.models.run import DagRunIdentity, StepIdentity
from airflow_ml_provider.notifications.reasons import DAG_REASONS, reason_of, traceback_of
from airflow_ml_provider.notifications.supervisor import Place

SLOTS = {"success": "on_success_callback", "skipped": "on_skipped_callback", "running": "on_execute_callback"}
"""Callbacks of a task by the state in which Airflow calls them, of those that are about no failure."""
STRICT = ("all_success", "none_failed", "none_failed_min_one_success", "all_skipped")
"""Trigger rules by which no task runs after one that has failed."""


@dataclass(frozen=True)
class AlertSource:
    """
    What the context says.

    :param kind: What it is about.
    :param place: The process that it comes from.
    :param at: When.
    :param dag_id: Id of the DAG.
    :param run_id: Id of the DAG run.
    :param ti: Airflow's task instance, to ask through; in a DAG callback any one of the DAG run; None for none.
    :param step: The task that it is about; None where it is about the DAG run.
    :param try_number: Its try; None when unknown.
    :param tries: How many it has; None when unknown.
    :param began: When the task, or the DAG run where there is no task, began.
    :param ended: When the DAG run ended.
    :param going: Tells one going of the DAG run from the next, after a clear.
    :param cleared: Whether the DAG run was cleared before.
    :param dated: Whether the DAG run has a logical date, without which Airflow knows none before it.
    :param state: The DAG run's state as the context has it.
    :param why: The reason in plain words, as far as the context says one.
    :param detail: The traceback.
    :param task_log: Page of the task's log.
    :param kfp_run: Page of the task's Kubeflow run.
    :param due: When the DAG run was to have ended.
    :param task_ids: Ids of the DAG's tasks, where it is about the DAG run.
    :param lenient: Whether some task runs after one that has failed, so that the DAG run may end well all the same.
    :param ended_well: Whether the DAG run did, although tasks have failed.
    """

    kind: AlertKind
    place: Place
    at: datetime
    dag_id: str = ""
    run_id: str = ""
    ti: Any = None
    step: StepIdentity | None = None
    try_number: int | None = None
    tries: int | None = None
    began: datetime | None = None
    ended: datetime | None = None
    going: str = ""
    cleared: bool = False
    dated: bool = True
    state: str = ""
    why: str = ""
    detail: str = ""
    task_log: str = ""
    kfp_run: str = ""
    due: datetime | None = None
    task_ids: frozenset[str] = frozenset()
    lenient: bool = False
    ended_well: bool = False

    @property
    def dag_run(self) -> DagRunIdentity:
        """The DAG run."""
        return DagRunIdentity(dag_id=self.dag_id, run_id=self.run_id)

    @property
    def label(self) -> str:
        """The task with its map index; empty where it is about the DAG run."""
        return self.step.label if self.step else ""

    @property
    def dag_run_page(self) -> str:
        """Page of the DAG run in Airflow's UI."""
        if not (self.dag_id and self.run_id):
            return ""
        return f"{ui_address()}/dags/{self.dag_id}/runs/{quote(self.run_id)}"


def misplaced(context: Mapping[str, Any]) -> str:
    """
    Say in which slot a callback was put that tells of failures, where the context is of nothing that has failed.

    :param context: As Airflow gives it to a callback.
    :return: For example ``on_success_callback``; empty where something has failed, or where it is about a DAG run.
    """
    if "ti" not in context or {"reason", "deadline"} & context.keys():
        return ""
    state = _state_of(context["ti"])
    if state == "running" and context.get("exception") is not None:
        return ""
    # A task that was lost has neither an error nor a state where the DAG processor calls for it.
    return SLOTS.get(state, "")


def read_source(context: Mapping[str, Any], kind: AlertKind | None = None) -> AlertSource:
    """
    Read the context, whichever process gave it.

    :param context: As Airflow gives it to a callback.
    :param kind: What it is about; None finds it.
    :return: What it says; what it does not say is left at its default.
    """
    if "deadline" in context or isinstance(context.get("dag_run"), Mapping):
        return _from_triggerer(context, kind or "late")
    if "reason" in context:
        return _from_dag(context, kind or ("recovered" if context["reason"] == "success" else "dag_failed"))
    again = _state_of(context["ti"]) == "up_for_retry"
    return _from_task(context, kind or ("retry" if again else "task_failed"))


def _from_task(context: Mapping[str, Any], kind: AlertKind) -> AlertSource:
    ti: Any = context["ti"]
    task: Any = getattr(ti, "task", None)
    map_index = getattr(ti, "map_index", None)
    step = StepIdentity(dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=-1 if map_index is None else map_index)
    error, number = context.get("exception"), getattr(ti, "try_number", None)
    limit = getattr(ti, "max_tries", None)
    return AlertSource(
        kind=kind,
        place="task" if error is not None else "dag_processor",
        at=datetime.now(UTC),
        dag_id=ti.dag_id,
        run_id=ti.run_id,
        ti=ti,
        step=step,
        try_number=number,
        tries=max(limit + 1, number or 1) if isinstance(limit, int) else None,
        began=as_time(getattr(ti, "start_date", None)),
        why=reason_of(error, getattr(task, "execution_timeout", None)),
        detail=traceback_of(error),
        task_log=str(getattr(ti, "log_url", "") or ""),
        kfp_run=str((getattr(task, "kfp_links", None) or {}).get("run", "")),
        **_of_dag_run(context.get("dag_run")),
    )


def _from_dag(context: Mapping[str, Any], kind: AlertKind) -> AlertSource:
    dag_run: Any = context.get("dag_run")
    fields = _of_dag_run(dag_run)
    return AlertSource(
        kind=kind,
        place="dag_processor",
        at=datetime.now(UTC),
        dag_id=str(getattr(context.get("dag"), "dag_id", "") or getattr(dag_run, "dag_id", "")),
        run_id=str(context.get("run_id") or getattr(dag_run, "run_id", "")),
        ti=context.get("ti"),
        began=as_time(getattr(dag_run, "start_date", None)),
        ended=as_time(getattr(dag_run, "end_date", None)),
        why=DAG_REASONS.get(str(context.get("reason") or ""), "") if kind == "dag_failed" else "",
        task_ids=frozenset(getattr(context.get("dag"), "task_ids", ())),
        lenient=any(_text(each.trigger_rule) not in STRICT for each in getattr(context.get("dag"), "tasks", ())),
        **fields,
    )


def _from_triggerer(context: Mapping[str, Any], kind: AlertKind) -> AlertSource:
    dag_run = context.get("dag_run") or {}
    deadline = context.get("deadline") or {}
    return AlertSource(
        kind=kind,
        place="triggerer",
        at=datetime.now(UTC),
        dag_id=str(dag_run.get("dag_id", "")),
        run_id=str(dag_run.get("dag_run_id") or dag_run.get("run_id") or ""),
        began=as_time(dag_run.get("start_date")) or as_time(dag_run.get("queued_at")),
        ended=as_time(dag_run.get("end_date")),
        dated=bool(dag_run.get("logical_date")),
        state=str(dag_run.get("state") or ""),
        due=as_time(deadline.get("deadline_time")),
    )


def _state_of(holder: Any) -> str:
    return _text(getattr(holder, "state", None))


def _text(word: object) -> str:
    return "" if word is None else str(getattr(word, "value", word))


def _of_dag_run(dag_run: Any) -> dict[str, Any]:
    """Read what a task's and a DAG run's own callback are told of the DAG run, which is the same."""
    if dag_run is None:
        return {"dated": False}
    began, cleared = as_time(getattr(dag_run, "start_date", None)), getattr(dag_run, "clear_number", None) or 0
    return {
        # A DAG run that was deleted and made again has the same id; its beginning tells the two apart.
        "going": f"{cleared}-{int(began.timestamp() * 1000) if began else 0}",
        "cleared": cleared > 0,
        "dated": getattr(dag_run, "logical_date", None) is not None,
        "state": _state_of(dag_run),
    }


def as_time(value: object) -> datetime | None:
    """
    Read a time, whether it is one already or JSON.

    :param value: A time, its ISO form, or None.
    :return: The time with a zone, UTC where it says none; None for anything else.
    """
    found = value
    if isinstance(value, str):
        try:
            found = datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(found, datetime):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
