"""Which MLflow run status stands for which Airflow state; the table of the docs is made from it."""

from __future__ import annotations

from airflow_ml_provider.models.run import RunStatus

TASK_STATUS: dict[str | None, RunStatus] = {
    None: "RUNNING",  # not scheduled, or cleared: the next try opens the run again
    "scheduled": "RUNNING",
    "queued": "RUNNING",
    "running": "RUNNING",
    "restarting": "RUNNING",  # cleared while it ran
    "deferred": "RUNNING",
    "awaiting_input": "RUNNING",
    "up_for_reschedule": "RUNNING",
    "up_for_retry": "FAILED",  # this try failed; the next one opens the run again
    "success": "FINISHED",
    "skipped": "FINISHED",  # it ended as its author wanted; the tag airflow.state says skipped
    "failed": "FAILED",
    "upstream_failed": "KILLED",  # it had run before and was cleared together with what failed
    "removed": "KILLED",  # the task, or this index of a mapped task, is no more
}
"""MLflow status per Airflow task state; a state that is not here is RUNNING, since nothing said that it ended."""

DAG_RUN_STATUS: dict[str | None, RunStatus] = {
    "queued": "RUNNING",
    "running": "RUNNING",
    "success": "FINISHED",
    "failed": "FAILED",
    "deleted": "KILLED",  # our word: Airflow knows no such DAG run any more
}
"""MLflow status per state of a DAG run."""


def task_status(state: str | None, dag_run_state: str | None) -> RunStatus:
    """
    Decide what a nested run is, seen from outside.

    :param state: Airflow's state of the task instance, None when it has none.
    :param dag_run_state: State of its DAG run; in a DAG run that has ended nothing runs any more.
    :return: The status that the nested MLflow run should have, if it is open.
    """
    if state == "skipped":
        return "KILLED"  # a step that skips itself closes its run; what is open yet was stopped: a timeout, a mark by hand
    status = TASK_STATUS.get(state, "RUNNING")
    over = DAG_RUN_STATUS.get(dag_run_state, "RUNNING") != "RUNNING"
    return "KILLED" if status == "RUNNING" and over else status
