from __future__ import annotations

import typing

import pytest
from airflow.utils.state import DagRunState, TaskInstanceState

from airflow_ml_provider.core.states import DAG_RUN_STATUS, TASK_STATUS, task_status
from airflow_ml_provider.models.run import RunStatus

STATUSES = set(typing.get_args(RunStatus))


def test_the_table_has_every_task_state_of_the_installed_airflow_and_none_of_its_own() -> None:
    assert set(TASK_STATUS) == {None, *(state.value for state in TaskInstanceState)}


def test_the_table_has_every_dag_run_state_of_the_installed_airflow_and_deleted() -> None:
    assert set(DAG_RUN_STATUS) == {"deleted", *(state.value for state in DagRunState)}


def test_every_status_is_one_that_we_write() -> None:
    assert {*TASK_STATUS.values(), *DAG_RUN_STATUS.values()} <= STATUSES


@pytest.mark.parametrize("dag_run_state", ["success", "failed", "deleted"])
@pytest.mark.parametrize("state", [state for state, status in TASK_STATUS.items() if status == "RUNNING"])
def test_nothing_runs_in_a_dag_run_that_has_ended(state: str | None, dag_run_state: str) -> None:
    assert task_status(state, dag_run_state) == "KILLED"


@pytest.mark.parametrize("state", [state for state, status in TASK_STATUS.items() if status == "RUNNING"])
def test_what_waits_or_runs_stays_open_while_the_dag_run_goes_on(state: str | None) -> None:
    assert task_status(state, "running") == "RUNNING"


@pytest.mark.parametrize(
    ("state", "status"),
    [("success", "FINISHED"), ("failed", "FAILED"), ("up_for_retry", "FAILED"), ("removed", "KILLED")],
)
@pytest.mark.parametrize("dag_run_state", ["running", "success", "failed"])
def test_an_ended_task_is_what_the_table_says(state: str, status: str, dag_run_state: str) -> None:
    assert task_status(state, dag_run_state) == status


def test_an_open_run_of_a_skipped_task_was_stopped() -> None:
    assert TASK_STATUS["skipped"] == "FINISHED"  # a step that skips itself closes its own run
    assert task_status("skipped", "failed") == "KILLED"  # a DAG run's timeout skips the tasks that it kills


def test_a_state_of_a_newer_airflow_closes_nothing_while_the_dag_run_goes_on() -> None:
    assert task_status("brand_new", "running") == "RUNNING"
