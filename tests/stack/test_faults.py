"""What real faults leave on record: a real scheduler, real workers, a real MLflow, real kills."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from airflow_ml_provider.models.run import Attempt, StepIdentity
from airflow_ml_provider.tracking.runs import Run, RunTree, status_of, tags_of
from tests.stack.conftest import Site, until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(900)]
DAG = "faults"


def metric(run: Run, key: str) -> float | None:
    return {each["key"]: each["value"] for each in run["data"].get("metrics", [])}.get(key)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def settled(site: Site, run_id: str, status: str) -> None:
    """Wait until the listeners have closed the DAG run's parent."""
    until(f"parent {status}", lambda: status_of(site.parent(DAG, run_id)) == status, 60)


def test_a_killed_worker_is_retried_in_the_same_run(site: Site) -> None:
    run_id = site.start(DAG, run_id="killed")
    os.kill(site.reached("killed-running-1"), signal.SIGKILL)
    site.reached("killed-running-2")
    site.signal("killed-go-2")
    assert site.finish(DAG, run_id) == "success"
    assert site.airflow.xcom(DAG, run_id, "read") == "try 2"
    runs = site.nested(DAG, run_id)
    assert runs.keys() == {"work", "read"}
    assert {status_of(each) for each in runs.values()} == {"FINISHED"}
    assert (tags_of(runs["work"])["airflow.try_number"], metric(runs["work"], "result")) == ("2", 2)
    settled(site, run_id, "FINISHED")


def test_an_orphan_neither_overwrites_nor_closes_nor_becomes_the_result(site: Site) -> None:
    run_id = site.start(DAG, run_id="orphan")
    orphan = site.reached("orphan-running-1")
    os.kill(parent_of(orphan), signal.SIGKILL)  # the supervisor; the user's code runs on
    site.reached("orphan-running-2")
    site.signal("orphan-go-1")
    until("the orphan's end", lambda: not Path(f"/proc/{orphan}").exists())
    during = site.nested(DAG, run_id)["work"]
    assert (status_of(during), metric(during, "result")) == ("RUNNING", None)
    site.signal("orphan-go-2")
    assert site.finish(DAG, run_id) == "success"
    assert site.airflow.xcom(DAG, run_id, "read") == "try 2"
    work = site.nested(DAG, run_id)["work"]
    assert (status_of(work), metric(work, "result")) == ("FINISHED", 2)
    assert tags_of(work)["airflow.try_number"] == "2"


def test_mlflow_killed_while_a_step_runs_costs_nothing_when_it_comes_back(site: Site) -> None:
    run_id = site.start(DAG, run_id="away")
    site.reached("away-running-1")
    site.stack.kill("mlflow")
    site.signal("away-go-1")
    site.reached("away-written-1")
    spool = site.stack.environment["AIRFLOW__ML__SPOOL"]
    until("the record in the spool", lambda: list(Path(spool).rglob("record.json")))
    assert site.task_state(DAG, run_id, "work") == ("running", 1)
    site.stack.restart("mlflow")
    assert site.finish(DAG, run_id) == "success"
    assert site.airflow.xcom(DAG, run_id, "read") == "try 1"
    work = site.nested(DAG, run_id)["work"]
    assert (status_of(work), metric(work, "started_1"), metric(work, "result")) == ("FINISHED", 1, 1)
    assert not list(Path(spool).rglob("record.json"))


def test_a_step_that_is_marked_failed_by_hand_is_closed(site: Site) -> None:
    run_id = site.start(DAG, run_id="marked")
    site.reached("marked-running-1")
    site.airflow.set_task_state(DAG, run_id, "work", "failed")
    assert site.finish(DAG, run_id) == "failed"
    until("the run closed", lambda: status_of(site.nested(DAG, run_id)["work"]) in {"FAILED", "KILLED"}, 60)
    settled(site, run_id, "FAILED")


def test_a_step_that_is_cleared_while_it_runs_starts_again_in_the_same_run(site: Site) -> None:
    run_id = site.start(DAG, run_id="cleared")
    site.reached("cleared-running-1")
    site.airflow.clear(DAG, run_id, ["work"])
    site.reached("cleared-running-2")
    site.signal("cleared-go-2")
    assert site.finish(DAG, run_id) == "success"
    runs = site.nested(DAG, run_id)
    assert (status_of(runs["work"]), tags_of(runs["work"])["airflow.try_number"]) == ("FINISHED", "2")
    settled(site, run_id, "FINISHED")


@pytest.mark.full
def test_a_finished_dag_run_that_is_cleared_opens_its_runs_again(site: Site) -> None:
    run_id = site.start(DAG, run_id="again")
    site.signal("again-go-1")
    assert site.finish(DAG, run_id) == "success"
    settled(site, run_id, "FINISHED")
    before = {name: each["info"]["run_id"] for name, each in site.nested(DAG, run_id).items()}
    site.airflow.clear(DAG, run_id)
    site.reached("again-running-2")
    assert status_of(site.parent(DAG, run_id)) == "RUNNING"
    site.signal("again-go-2")
    assert site.finish(DAG, run_id) == "success"
    assert site.airflow.xcom(DAG, run_id, "read") == "try 2"
    assert {name: each["info"]["run_id"] for name, each in site.nested(DAG, run_id).items()} == before
    settled(site, run_id, "FINISHED")


def ghost_of(site: Site) -> str:
    """Leave what a killed step leaves whose DAG run was then deleted."""
    identity = StepIdentity(dag_id=DAG, run_id="ghost", task_id="work")
    tags = {"airflow.log_url": f"{site.stack.airflow_url}/dags/{DAG}/runs/ghost/tasks/work"}
    return RunTree(site.mlflow).open(DAG, Attempt(identity=identity, try_number=1, ti_id="ghost", tags=tags)).run_id


def test_a_deleted_dag_run_is_settled_by_reconcile(site: Site) -> None:
    run_id = site.start(DAG, run_id="deleted")
    os.kill(site.reached("deleted-running-1"), signal.SIGKILL)
    site.reached("deleted-running-2")
    site.airflow.set_run_state(DAG, run_id, "failed")
    until("the task's end", lambda: site.task_state(DAG, run_id, "work")[0] == "failed")
    site.airflow.delete_run(DAG, run_id)
    ghost = ghost_of(site)  # a run that nobody but reconcile could close: its DAG run never was
    asked = site.stack.run("airflow-ml", "reconcile")
    assert asked.returncode == 0, asked.stderr
    assert status_of(RunTree(site.mlflow).get(ghost)) == "KILLED"
    assert status_of(site.parent(DAG, run_id)) in {"FAILED", "KILLED"}
    assert {status_of(each) for each in site.nested(DAG, run_id).values()} <= {"FAILED", "KILLED"}
