"""Pipeline runs through a real Airflow: whatever is killed, lost or marked, one workflow runs, and its end is told as it is."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.stack.conftest import Site, until
from tests.stack.kfp_case import CREATE, ONE_RUN, Case

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
EITHER = [pytest.param("kfp_waits", marks=pytest.mark.full), "kfp_defers"]
"""Both ways of waiting, where the fault strikes before it makes a difference."""


@pytest.fixture(autouse=True)
def _no_faults_left(site: Site) -> Iterator[None]:
    yield
    site.kfp.up()
    site.kfp.clear_faults()


@pytest.mark.parametrize("dag_id", ["kfp_waits", "kfp_defers"])
def test_a_run_ends_as_the_server_says(site: Site, dag_id: str) -> None:
    case = Case(site, dag_id)
    workflow = case.waiting()
    site.kfp.finish(workflow.run_id)
    case.ends()
    assert case.result() | {"run_id": workflow.run_id, "state": "SUCCEEDED"} == case.result()
    assert (len(case.workflows), case.creates()) == (1, 1)
    links = site.airflow.call("GET", f"/dags/{dag_id}/dagRuns/{case.run_id}/taskInstances/run/links")["extra_links"]
    assert links["KFP run"] == f"{site.kfp.url}/#/runs/details/{workflow.run_id}"


def test_a_failure_is_retried_in_the_same_run_and_names_the_task(site: Site) -> None:
    case = Case(site, "kfp_defers")
    workflow = case.waiting()
    site.kfp.finish(workflow.run_id, "FAILED", failed_task="step", log="Killed: out of memory\n")
    until("the second try", lambda: case.state[0] == "deferred" and case.state[1] >= 2)
    site.kfp.finish(workflow.run_id)
    case.ends()
    assert {each.run_id for each in case.workflows} == {workflow.run_id}
    log = case.log()
    assert "Task step FAILED" in log
    assert "Killed: out of memory" in log


@pytest.mark.parametrize("dag_id", EITHER)
def test_a_worker_killed_before_it_submits_has_started_nothing(site: Site, dag_id: str) -> None:
    site.kfp.fault("hang", method="GET", path=ONE_RUN, times=5)
    case = Case(site, dag_id)
    until("the question before the create", lambda: case.was_asked("GET", ONE_RUN))
    case.kill_worker()
    site.kfp.clear_faults()
    site.kfp.finish(case.started().run_id)
    case.ends()
    assert (len(case.workflows), case.creates()) == (1, 1)


@pytest.mark.parametrize("dag_id", EITHER)
def test_a_worker_killed_between_the_create_and_its_answer_is_followed_by_one_that_adopts(site: Site, dag_id: str) -> None:
    site.kfp.fault("hang-after", method="POST", path=CREATE)
    case = Case(site, dag_id)
    workflow = case.started()
    case.kill_worker()
    until("the second try", lambda: case.state[1] >= 2)
    site.kfp.finish(workflow.run_id)
    case.ends()
    assert (len(case.workflows), case.creates()) == (1, 1)


def test_a_worker_killed_while_it_waits_is_followed_by_one_that_adopts(site: Site) -> None:
    case = Case(site, "kfp_waits")
    workflow = case.waiting()
    case.kill_worker()
    until("the second try", lambda: case.state[0] == "running" and case.state[1] >= 2)
    site.kfp.finish(workflow.run_id)
    case.ends()
    assert (len(case.workflows), case.creates()) == (1, 1)


def test_a_worker_killed_while_it_reads_the_result_leaves_the_result(site: Site) -> None:
    case = Case(site, "kfp_defers")
    workflow = case.waiting()
    site.kfp.fault("hang", method="GET", path=ONE_RUN)
    asked = time.time()
    site.kfp.finish(workflow.run_id)
    until("the last question", lambda: case.was_asked("GET", ONE_RUN, after=asked))
    case.kill_worker()
    case.ends()
    assert (len(case.workflows), case.creates()) == (1, 1)
    assert case.state[1] >= 2


def test_a_killed_triggerer_loses_no_run_and_stops_none(site: Site) -> None:
    case = Case(site, "kfp_defers")
    workflow = case.waiting()
    site.stack.kill("triggerer")
    site.kfp.finish(workflow.run_id)
    site.stack.restart("triggerer")
    case.ends()
    assert (len(case.workflows), case.creates()) == (1, 1)
    assert not case.was_asked("POST", ":terminate$")


def test_a_killed_scheduler_loses_no_run(site: Site) -> None:
    case = Case(site, "kfp_defers")
    workflow = case.waiting()
    site.stack.kill("scheduler", whole=False)
    site.kfp.finish(workflow.run_id)
    site.stack.restart("scheduler", keep_orphans=True)
    case.ends()
    assert (len(case.workflows), case.creates()) == (1, 1)


@pytest.mark.parametrize("dag_id", EITHER)  # what a mark does to a worker is among the scenes
def test_a_mark_as_failed_stops_the_run(site: Site, dag_id: str) -> None:
    case = Case(site, dag_id)
    workflow = case.waiting()
    site.airflow.set_task_state(dag_id, case.run_id, "run", "failed")
    until("the terminate", lambda: case.was_asked("POST", f"{workflow.run_id}:terminate$"), 60)
    case.ends("failed")
    assert len(case.workflows) == 1


@pytest.mark.parametrize(("dag_id", "stopped"), [("kfp_defers", True), pytest.param("kfp_left", False, marks=pytest.mark.full)])
def test_a_mark_as_success_stops_the_run_unless_told_otherwise(site: Site, dag_id: str, stopped: bool) -> None:
    case = Case(site, dag_id)
    workflow = case.waiting()
    site.airflow.set_task_state(dag_id, case.run_id, "run", "success")
    case.ends()
    if stopped:
        until("the terminate", lambda: case.was_asked("POST", f"{workflow.run_id}:terminate$"), 60)
    else:
        time.sleep(5)
        assert not case.was_asked("POST", ":terminate$")


@pytest.mark.parametrize(
    ("dag_id", "stopped"), [pytest.param("kfp_waits", True, marks=pytest.mark.full), ("kfp_defers", True), ("kfp_left", False)]
)
def test_a_clear_starts_a_new_run_and_stops_the_old_one_unless_told_otherwise(site: Site, dag_id: str, stopped: bool) -> None:
    case = Case(site, dag_id)
    old = case.waiting()
    site.airflow.clear(dag_id, case.run_id, ["run"])
    new = until("the new workflow", lambda: len(case.workflows) == 2 and case.workflows[-1])
    assert new.run_id != old.run_id
    if stopped:
        until("the terminate", lambda: case.was_asked("POST", f"{old.run_id}:terminate$"), 60)
    site.kfp.finish(new.run_id)
    case.ends()
    assert case.result()["run_id"] == new.run_id
    assert case.was_asked("POST", f"{old.run_id}:terminate$") == stopped
    assert len(case.workflows) == 2


@pytest.mark.full
def test_a_run_that_takes_too_long_is_stopped_and_told_as_ours(site: Site) -> None:
    case = Case(site, "kfp_hurried")
    workflow = case.waiting()
    until("the terminate", lambda: case.was_asked("POST", f"{workflow.run_id}:terminate$"), 60)
    site.kfp.report(workflow.run_id)
    case.ends("failed")
    log = case.log()
    assert "was stopped by this task" in log


@pytest.mark.parametrize("dag_id", EITHER)
def test_a_server_that_does_everything_wrong_fails_nothing(site: Site, dag_id: str) -> None:
    case = Case(site, dag_id)
    workflow = case.waiting()
    for kind in ("status-500", "reset", "status-401"):
        site.kfp.fault(kind, method="GET")
    site.kfp.fault("slow", method="GET", seconds=2)
    until("all faults to strike", lambda: not site.kfp._faults.orders, 120)
    site.kfp.down()
    site.kfp.finish(workflow.run_id)
    time.sleep(4)
    site.kfp.up()
    case.ends()
    assert (len(case.workflows), case.creates()) == (1, 1)


@pytest.mark.parametrize(
    ("fault", "state", "workflows"),
    [
        pytest.param("lost-before", "failed", 0, marks=pytest.mark.full),
        ("lost-between", "failed", 1),
        pytest.param("lost-after", "success", 1, marks=pytest.mark.full),
    ],
)
def test_a_create_whose_answer_is_lost_is_never_sent_again_by_itself(site: Site, fault: str, state: str, workflows: int) -> None:
    site.kfp.fault(fault)
    case = Case(site, "kfp_defers")
    if state == "success":
        site.kfp.finish(case.waiting().run_id)
    case.ends(state)
    assert (len(case.workflows), case.creates(), case.state[0]) == (workflows, 1, state)


@pytest.mark.parametrize(
    ("fault", "creates"),
    [
        pytest.param("lost-before", 2, marks=pytest.mark.full),
        ("lost-between", 1),
        pytest.param("lost-after", 1, marks=pytest.mark.full),
    ],
)
def test_with_a_carrier_a_lost_answer_costs_nothing(site: Site, fault: str, creates: int) -> None:
    site.kfp.fault(fault)
    case = Case(site, "kfp_carried")
    workflow = case.started()
    if fault == "lost-between":
        site.kfp.report(workflow.run_id, "RUNNING")  # the server's agent makes a row of an orphan that has a carrier
    case.waiting()
    site.kfp.finish(workflow.run_id)
    case.ends()
    assert (len(case.workflows), case.creates()) == (1, creates)
