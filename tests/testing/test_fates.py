"""What becomes of runs: by itself, by a script, by being told, by being stopped."""

from __future__ import annotations

import uuid

import pytest

from airflow_ml_provider.testing import FakeKfpServer, KfpError
from tests.testing.asking import SPEC, ask, carrier, create, tasks, where
from tests.testing.conftest import Clock


def state(server: FakeKfpServer, run_id: str) -> str:
    return str(ask(server, "GET", f"runs/{run_id}")[1]["state"])


def test_a_run_stays_as_it_is_until_somebody_says_otherwise(timed: FakeKfpServer, clock: Clock) -> None:
    create(timed, "a")
    clock.now += 1e6
    assert state(timed, "a") == "PENDING"


def test_auto_runs_and_ends_new_runs_by_the_clock(timed: FakeKfpServer, clock: Clock) -> None:
    timed.auto(10)
    create(timed, "a")
    seen = []
    for _ in range(4):
        seen.append(state(timed, "a"))
        clock.now += 4
    assert seen == ["PENDING", "PENDING", "RUNNING", "SUCCEEDED"]
    assert timed.runs[0].finished_at == 1_800_000_010


def test_a_pipeline_can_have_a_fate_of_its_own(timed: FakeKfpServer, clock: Clock) -> None:
    timed.auto(1)
    timed.auto(1, "FAILED", failed_task="fit", pipeline="train")
    create(timed, "a")
    ask(timed, "POST", "runs", {"display_name": "b", "run_id": "b", "pipeline_spec": {**SPEC, "pipelineInfo": {"name": "other"}}})
    clock.now += 1
    assert (state(timed, "a"), state(timed, "b")) == ("FAILED", "SUCCEEDED")


def test_a_script_may_go_backwards(timed: FakeKfpServer, clock: Clock) -> None:
    timed.script((1, "SUCCEEDED"), (2, "RUNNING"), (3, "FAILED"))
    create(timed, "a")
    seen = []
    for _ in range(3):
        clock.now += 1
        seen.append(state(timed, "a"))
    assert seen == ["SUCCEEDED", "RUNNING", "FAILED"]


def test_a_late_report_carries_the_time_at_which_the_workflow_ended(timed: FakeKfpServer, clock: Clock) -> None:
    timed.auto(10, late_s=30)
    create(timed, "a")
    clock.now += 39
    assert state(timed, "a") == "RUNNING"
    clock.now += 1
    assert (state(timed, "a"), timed.runs[0].finished_at) == ("SUCCEEDED", 1_800_000_010)


def test_a_failure_leaves_out_what_comes_after_it_and_shows_its_log(server: FakeKfpServer) -> None:
    create(server, "a")
    server.finish("a", "FAILED", failed_task="fit", error="exit code 3", log="no such column\n")
    found = tasks(server, "a")
    assert {name: found[name].get("state") for name in ("prepare", "fit", "score")} == {
        "prepare": "SUCCEEDED",
        "fit": "FAILED",
        "score": None,
    }
    pod = found["fit"]["child_tasks"][0]["pod_name"]
    assert ask(server, "GET", f"/apis/v1alpha1/runs/a/nodes/{pod}/log") == (200, "no such column\n")
    by_pod = pod.replace(server.workflows[0].name, server.workflows[0].name + "-system-container-impl")
    assert ask(server, "GET", f"/apis/v1alpha1/runs/a/nodes/{by_pod}/log") == (200, "no such column\n")
    assert "exit code" not in str(ask(server, "GET", "runs/a"))


def test_the_error_of_a_log_that_is_not_there_comes_with_status_200(server: FakeKfpServer) -> None:
    create(server, "a")
    status, body = ask(server, "GET", "/apis/v1alpha1/runs/a/nodes/none/log")
    assert (status, "error_message" in body) == (200, True)


def test_a_terminated_run_is_canceling_and_then_failed(timed: FakeKfpServer, clock: Clock) -> None:
    timed.auto(10)
    create(timed, "a")
    clock.now += 6
    assert ask(timed, "POST", "runs/a:terminate") == (200, {})
    assert state(timed, "a") == "CANCELING"
    clock.now += 10
    assert state(timed, "a") == "FAILED"
    assert tasks(timed, "a")["prepare"]["state"] == "FAILED"


def test_a_workflow_that_succeeds_before_it_is_stopped_has_succeeded(server: FakeKfpServer) -> None:
    create(server, "a")
    ask(server, "POST", "runs/a:terminate")
    server.finish("a", "SUCCEEDED")
    assert state(server, "a") == "SUCCEEDED"


@pytest.mark.parametrize("word", ["CANCELED", "SKIPPED", "PAUSED"])
def test_states_of_other_servers_can_be_had(server: FakeKfpServer, word: str) -> None:
    create(server, "a")
    server.report("a", word)
    assert state(server, "a") == word
    assert (server.runs[0].finished_at > 0) == (word != "PAUSED")


def test_a_retry_repeats_what_failed_under_the_same_id(server: FakeKfpServer) -> None:
    create(server, "a")
    server.finish("a", "FAILED", failed_task="fit")
    assert ask(server, "POST", "runs/a:retry") == (200, {})
    assert ask(server, "POST", "runs/a:retry")[0] == 409
    assert (state(server, "a"), tasks(server, "a")["fit"]["state"]) == ("RUNNING", "FAILED"), "tasks follow with the next report"
    server.report("a")
    found = tasks(server, "a")
    assert (found["prepare"]["state"], found["fit"]["state"], state(server, "a")) == ("SUCCEEDED", "RUNNING", "RUNNING")
    server.finish("a")
    assert (state(server, "a"), len(server.workflows_of("a"))) == ("SUCCEEDED", 1)


def test_a_plain_orphan_is_never_seen_and_deleted_when_it_is_old(timed: FakeKfpServer, clock: Clock) -> None:
    assert create(timed, "a", name="x" * 256)[0] == 500
    assert (len(timed.orphans), timed.runs) == (1, [])
    with pytest.raises(KfpError, match="within GC grace period"):
        timed.report("a")
    clock.now += 121
    with pytest.raises(KfpError, match="Run a not found"):
        timed.report("a")
    assert (timed.orphans, len(timed.workflows_of("a"))) == ([], 1)


def test_an_orphan_that_ran_to_its_end_is_deleted_after_the_grace_period(timed: FakeKfpServer, clock: Clock) -> None:
    timed.auto(1)
    create(timed, "a", name="x" * 256)
    clock.now += 100
    assert len(timed.orphans) == 1
    clock.now += 21
    assert timed.orphans == []


def test_an_orphan_of_a_recurring_run_becomes_a_run_with_the_content_of_that(timed: FakeKfpServer, clock: Clock) -> None:
    timed.auto(10)
    recurring = carrier(timed)
    create(timed, "a", name="y" * 256, recurring_run_id=recurring, description="lost")
    assert ask(timed, "GET", "runs/a")[0] == 404
    clock.now += 5
    found = ask(timed, "GET", "runs/a")[1]
    assert (found["display_name"], found["state"], found.get("description")) == (timed.workflows[0].name, "RUNNING", None)


def test_a_key_finds_the_first_run_whatever_its_state(server: FakeKfpServer) -> None:
    recurring = carrier(server)
    first = create(server, name="key", recurring_run_id=recurring)[1]["run_id"]
    assert first == str(uuid.uuid5(uuid.UUID("c2f3a9d4-1e6b-4c8a-9f7d-0b5e3a1c2d4f"), f"{recurring}/key"))
    server.finish(first, "FAILED")
    assert create(server, name="KEY ", recurring_run_id=recurring)[1]["run_id"] == first
    assert len(server.workflows) == 1


def test_deleting_a_recurring_run_takes_its_workflows_and_leaves_its_runs_waiting(timed: FakeKfpServer, clock: Clock) -> None:
    timed.auto(10)
    recurring = carrier(timed)
    create(timed, "a", recurring_run_id=recurring)
    clock.now += 5
    ask(timed, "DELETE", f"recurringruns/{recurring}")
    clock.now += 100
    assert (state(timed, "a"), timed.workflows[0].deleted) == ("RUNNING", True)


def test_a_workflow_whose_owner_was_deleted_outside_goes_with_it(timed: FakeKfpServer, clock: Clock) -> None:
    timed.auto(10)
    one, other = carrier(timed), carrier(timed)
    for number, recurring in enumerate((one, one, other, "")):
        create(timed, f"run-{number}", name=f"key-{number}", **({"recurring_run_id": recurring} if recurring else {}))
    clock.now += 5
    timed.remove_workflow(one)
    clock.now += 100
    assert [each.deleted for each in timed.workflows] == [True, True, False, False]
    assert [each.state for each in timed.runs] == ["RUNNING", "RUNNING", "SUCCEEDED", "SUCCEEDED"]
    create(timed, "late", name="late", recurring_run_id=one)  # its row is still there
    clock.now += 100
    assert (timed.workflows_of("late")[0].deleted, state(timed, "late")) == (True, "PENDING")


def test_a_recurring_run_is_not_deleted_while_kubernetes_is_away(server: FakeKfpServer) -> None:
    recurring = carrier(server)
    create(server, "a", recurring_run_id=recurring)
    server.lose("kubernetes")
    assert ask(server, "DELETE", f"recurringruns/{recurring}")[0] == 500
    server.restore()
    assert (ask(server, "GET", f"recurringruns/{recurring}")[0], server.workflows[0].deleted) == (200, False)


def test_an_orphan_goes_with_its_recurring_run(timed: FakeKfpServer, clock: Clock) -> None:
    recurring = carrier(timed)
    create(timed, "a", name="y" * 256, recurring_run_id=recurring)
    assert len(timed.orphans) == 1
    ask(timed, "DELETE", f"recurringruns/{recurring}")
    timed.report("a")
    assert (timed.orphans, timed.runs) == ([], [])


def test_what_failed_and_has_lost_its_recurring_run_cannot_be_repeated(timed: FakeKfpServer, clock: Clock) -> None:
    recurring = carrier(timed)
    create(timed, "a", recurring_run_id=recurring)
    timed.finish("a", "FAILED")
    ask(timed, "DELETE", f"recurringruns/{recurring}")
    timed.auto(10)
    assert ask(timed, "POST", "runs/a:retry") == (200, {})
    clock.now += 100
    assert (timed.workflows[0].deleted, state(timed, "a")) == (True, "RUNNING")


def test_two_workflows_of_one_id_write_the_same_row(server: FakeKfpServer) -> None:
    create(server, "a")
    assert create(server, "a")[0] == 500
    first, second = server.workflows_of("a")
    server.finish(first.name)
    server.finish(second.name, "FAILED")
    assert state(server, "a") == "FAILED"
    found = [each["display_name"] for each in ask(server, "GET", "runs/a")[1]["run_details"]["task_details"]]
    assert {first.name, second.name} < set(found)
    assert found.count("fit") == 2


def test_reports_that_could_not_be_made_are_made_when_the_database_is_back(timed: FakeKfpServer, clock: Clock) -> None:
    timed.auto(1)
    create(timed, "a")
    timed.lose("database")
    clock.now += 5
    assert ask(timed, "GET", "runs/a")[0] == 500
    timed.restore()
    assert state(timed, "a") == "SUCCEEDED"


def test_what_has_finished_since_a_second_is_found_by_that_second(timed: FakeKfpServer, clock: Clock) -> None:
    for name in "abc":
        create(timed, name)
        clock.now += 10
        timed.finish(name)
    stamp = "2027-01-15T08:00:20Z"
    found = {}
    for operation in ("GREATER_THAN", "GREATER_THAN_EQUALS"):
        chosen = where({"key": "finished_at", "operation": operation, "timestamp_value": stamp})
        found[operation] = [each["run_id"] for each in ask(timed, "GET", "runs", filter=chosen)[1]["runs"]]
    assert found == {"GREATER_THAN": ["c"], "GREATER_THAN_EQUALS": ["b", "c"]}


def test_kubernetes_shows_the_workflows_of_an_id_and_no_deleted_ones(server: FakeKfpServer) -> None:
    create(server, "a")
    create(server, "a")
    create(server, "b")
    path = "/apis/argoproj.io/v1alpha1/namespaces/kubeflow/workflows"
    items = ask(server, "GET", path, labelSelector="pipeline/runid=a")[1]["items"]
    assert [each["metadata"]["labels"]["pipeline/runid"] for each in items] == ["a", "a"]
    ask(server, "DELETE", "runs/b")
    assert ask(server, "GET", path, labelSelector="pipeline/runid=b")[1]["items"] == []
