from __future__ import annotations

import dataclasses
from argparse import Namespace
from collections.abc import Callable
from typing import Any

import pytest

from airflow_ml_provider.exceptions import RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.run import Attempt, DagRunIdentity, OpenRun, StepIdentity
from airflow_ml_provider.tracking.reconcile import (
    DELETED,
    AirflowView,
    Finding,
    Reconciler,
    ask_task_sdk,
    find_experiments,
    settle_earlier,
)
from airflow_ml_provider.tracking.runs import PARENT, RunTree, now_ms, status_of, tags_of

View = tuple[str, dict[tuple[str, int], str | None]]
HERE = "http://airflow.example.com"


class Night:
    """Runs of one DAG in an experiment of its own, and an Airflow that is a dictionary."""

    def __init__(self, api: MlflowApi, dag_id: str) -> None:
        self.api, self.dag_id = api, dag_id
        self.tree = RunTree(api)
        self.airflow: dict[str, View | Exception] = {}
        self.asked: list[str] = []

    def open(self, task_id: str, map_index: int = -1, *, run_id: str = "night", **attempt: Any) -> OpenRun:
        identity = StepIdentity(dag_id=self.dag_id, run_id=run_id, task_id=task_id, map_index=map_index)
        tags = {"airflow.log_url": f"{HERE}/dags/{self.dag_id}/runs/{run_id}"}
        values: dict[str, Any] = {"try_number": 1, "ti_id": f"{identity.key}-1", "tags": tags} | attempt
        return self.tree.open(self.dag_id, Attempt(identity=identity, **values))

    def says(self, dag_run: str, *tasks: tuple[str, str | None], run_id: str = "night") -> None:
        self.airflow[run_id] = (dag_run, {(name, -1): state for name, state in tasks})

    def ask(self, dag_id: str, run_id: str) -> AirflowView:
        assert dag_id == self.dag_id
        self.asked.append(run_id)
        answer = self.airflow.get(run_id, (DELETED, {}))
        if isinstance(answer, Exception):
            raise answer
        return AirflowView(*answer)

    def reconcile(self, **options: Any) -> list[Finding]:
        return list(Reconciler(self.tree, self.ask, **options).walk(self.dag_id))

    def status(self, run_id: str) -> str:
        return status_of(self.tree.get(run_id))

    def tags(self, run_id: str) -> dict[str, str]:
        return tags_of(self.tree.get(run_id))


@pytest.fixture
def night(mlflow_api: MlflowApi, unique: str) -> Night:
    return Night(mlflow_api, unique)


def test_what_airflow_says_is_running_stays_open(night: Night) -> None:
    run = night.open("train")
    night.says("running", ("train", "running"))
    found = night.reconcile()
    assert {each.action for each in found} == {"left"}
    assert [night.status(run.run_id), night.status(run.parent_run_id)] == ["RUNNING", "RUNNING"]


@pytest.mark.parametrize("state", ["deferred", "queued", "up_for_reschedule", "brand_new_state", None])
def test_what_waits_in_a_dag_run_that_goes_on_stays_open(night: Night, state: str | None) -> None:
    run = night.open("train")
    night.says("running", ("train", state))
    night.reconcile()
    assert night.status(run.run_id) == "RUNNING"


@pytest.mark.parametrize(
    ("dag_run", "parent", "task", "nested"),
    [
        ("success", "FINISHED", "success", "FINISHED"),
        ("failed", "FAILED", "failed", "FAILED"),
        ("failed", "FAILED", "upstream_failed", "KILLED"),
        ("failed", "FAILED", "skipped", "KILLED"),
        ("failed", "FAILED", "removed", "KILLED"),
        ("failed", "FAILED", "deferred", "KILLED"),
        ("failed", "FAILED", None, "KILLED"),
    ],
)
def test_open_runs_of_an_ended_dag_run_become_what_airflow_says(
    night: Night, dag_run: str, parent: str, task: str | None, nested: str
) -> None:
    run = night.open("train")
    night.says(dag_run, ("train", task))
    found = night.reconcile()
    assert [night.status(run.run_id), night.status(run.parent_run_id)] == [nested, parent]
    assert {(each.label, each.before, each.after) for each in found} == {("train", "RUNNING", nested), ("", "RUNNING", parent)}
    tags = night.tags(run.run_id)
    assert tags["airflow.state"] == (task or "none")
    assert tags["airflow.reconciled"].startswith("20")
    assert night.tags(run.parent_run_id)["airflow.state"] == dag_run


def test_a_lost_task_of_a_dag_run_that_goes_on_is_closed_and_its_parent_is_not(night: Night) -> None:
    run = night.open("train")
    night.says("running", ("train", "up_for_retry"))
    night.reconcile()
    assert [night.status(run.run_id), night.status(run.parent_run_id)] == ["FAILED", "RUNNING"]


def test_the_next_try_opens_again_what_was_closed(night: Night) -> None:
    run = night.open("train")
    night.says("failed", ("train", "failed"))
    night.reconcile()
    again = night.open("train", try_number=2, ti_id="second")
    assert (again.run_id, again.parent_run_id) == (run.run_id, run.parent_run_id)
    assert [night.status(run.run_id), night.status(run.parent_run_id)] == ["RUNNING", "RUNNING"]


def test_runs_of_a_deleted_dag_run_are_killed(night: Night) -> None:
    run = night.open("train")
    night.reconcile(home=HERE)
    assert [night.status(run.run_id), night.status(run.parent_run_id)] == ["KILLED", "KILLED"]
    assert night.tags(run.run_id)["airflow.state"] == DELETED


def test_a_finished_step_of_a_deleted_dag_run_stays_finished(night: Night) -> None:
    run = night.open("train")
    night.tree.close(run.run_id, "FINISHED")
    night.reconcile()
    assert [night.status(run.run_id), night.status(run.parent_run_id)] == ["FINISHED", "KILLED"]


def test_runs_of_another_airflow_are_not_deleted_ones(night: Night) -> None:
    run = night.open("train")
    found = night.reconcile(home="http://another.example.com")
    assert {each.action for each in found} == {"left"}
    assert HERE in found[0].why
    assert night.status(run.run_id) == "RUNNING"


@pytest.mark.parametrize(
    ("error", "problem"),
    [(RemoteUnavailableError("the database is away"), True), (RemoteNotFoundError("no such DAG here"), False)],
)
def test_what_cannot_be_read_is_left_and_said(night: Night, error: Exception, problem: bool) -> None:
    run = night.open("train")
    night.airflow["night"] = error
    found = night.reconcile()
    assert [(each.action, each.problem, each.why) for each in found] == [("left", problem, str(error))] * 2
    assert night.status(run.run_id) == "RUNNING"


def test_mapped_instances_are_told_apart(night: Night) -> None:
    first, second, plain = night.open("fit", 0), night.open("fit", 1), night.open("fit_1")
    night.airflow["night"] = ("failed", {("fit", 0): "success", ("fit", 1): "failed", ("fit_1", -1): "removed"})
    found = night.reconcile()
    assert [night.status(run.run_id) for run in (first, second, plain)] == ["FINISHED", "FAILED", "KILLED"]
    assert {each.label for each in found} == {"", "fit[0]", "fit[1]", "fit_1"}


def test_an_instance_that_airflow_does_not_know_waits_for_the_end_of_the_dag_run(night: Night) -> None:
    run = night.open("fit", 7)
    night.says("running")
    night.reconcile()
    assert night.status(run.run_id) == "RUNNING"
    night.says("success")
    night.reconcile()
    assert night.status(run.run_id) == "KILLED"
    assert night.tags(run.run_id)["airflow.state"] == "removed"


def test_a_step_that_still_runs_after_its_dag_run_has_ended_is_left(night: Night) -> None:
    run = night.open("clean_up")
    night.says("failed", ("clean_up", "running"))
    night.reconcile()
    assert [night.status(run.run_id), night.status(run.parent_run_id)] == ["RUNNING", "FAILED"]


def test_a_good_end_that_airflow_counts_as_failed_is_failed_once_the_dag_run_has_ended(night: Night) -> None:
    run = night.open("train")
    night.tree.close(run.run_id, "FINISHED")
    night.says("running", ("train", "failed"))
    night.reconcile()
    assert night.status(run.run_id) == "FINISHED"
    night.says("failed", ("train", "failed"))
    (nested,) = (each for each in night.reconcile() if each.label)
    assert (nested.before, nested.after, night.status(run.run_id)) == ("FINISHED", "FAILED", "FAILED")


def test_a_step_that_another_dag_run_of_the_same_name_has_left_is_killed(night: Night) -> None:
    old, new = night.open("train"), night.open("train", ti_id="after the deletion")
    assert old.run_id != new.run_id
    night.says("success", ("train", "success"))
    night.reconcile()
    assert [night.status(old.run_id), night.status(new.run_id)] == ["KILLED", "FINISHED"]


def test_a_parent_whose_dag_run_was_mended_follows(night: Night, mlflow_api: MlflowApi) -> None:
    run = night.open("train")
    night.says("failed", ("train", "success"))
    night.reconcile()
    night.says("success", ("train", "success"))  # another task was cleared, and no step of ours ran again
    reconciler = Reconciler(night.tree, night.ask)
    reconciler.settle([run.experiment_id], DagRunIdentity(dag_id=night.dag_id, run_id="night"))
    assert night.status(run.parent_run_id) == "FINISHED"


def test_a_dry_run_changes_nothing_and_says_the_same(night: Night) -> None:
    run = night.open("train")
    night.says("failed", ("train", "failed"))
    before = night.tree.get(run.run_id), night.tree.get(run.parent_run_id)
    foretold = night.reconcile(dry_run=True)
    assert (night.tree.get(run.run_id), night.tree.get(run.parent_run_id)) == before
    assert night.reconcile() == foretold


def test_the_second_time_there_is_nothing_to_do(night: Night) -> None:
    night.open("train")
    night.says("success", ("train", "success"))
    assert len(night.reconcile()) == 2
    assert night.reconcile() == []


def test_the_end_is_when_airflow_says_and_never_before_the_beginning(night: Night) -> None:
    run = night.open("train")
    ended = now_ms()
    night.airflow["night"] = ("success", {("train", -1): "success"}, ended)  # type: ignore[assignment]
    night.reconcile()
    assert night.tree.get(run.run_id)["info"]["end_time"] == ended
    late = night.open("train", run_id="late")
    night.airflow["late"] = ("success", {("train", -1): "success"}, 5)  # type: ignore[assignment]
    night.reconcile()
    info = night.tree.get(late.run_id)["info"]
    assert info["end_time"] == info["start_time"]


def test_a_step_whose_parent_was_deleted_in_a_race_gets_the_other_one(night: Night) -> None:
    run = night.open("train")
    night.tree.set_tags(run.run_id, {PARENT: "0" * 32})
    night.says("running", ("train", "running"))
    assert [each.action for each in night.reconcile()] == ["moved", "left", "left"]
    assert night.tags(run.run_id)[PARENT] == run.parent_run_id


def test_a_try_that_begins_between_question_and_write_stays_open(night: Night) -> None:
    run = night.open("train")

    def ask(dag_id: str, run_id: str) -> AirflowView:
        night.open("train", try_number=2, ti_id="second")  # what Airflow says here is a moment old already
        return AirflowView("running", {("train", -1): "up_for_retry"})

    found = list(Reconciler(night.tree, ask).walk(night.dag_id))
    assert {each.action for each in found} == {"left"}
    assert night.status(run.run_id) == "RUNNING"
    assert "airflow.reconciled" not in night.tags(run.run_id), "it was not closed, not even for a moment"


def test_a_try_that_begins_while_the_status_is_written_is_opened_again(night: Night) -> None:
    run = night.open("train")

    class SlowTree(RunTree):
        def close(self, run_id: str, status: Any, **options: Any) -> None:
            if run_id == run.run_id and status == "FAILED":
                night.open("train", try_number=2, ti_id="second")
            super().close(run_id, status, **options)

    reconciler = Reconciler(SlowTree(night.api), lambda *_: AirflowView("running", {("train", -1): "up_for_retry"}))
    assert {each.action for each in reconciler.walk(night.dag_id)} == {"left"}
    assert night.status(run.run_id) == "RUNNING"
    assert night.tags(run.run_id)["airflow.state"] == "running"


def test_a_dag_run_that_is_cleared_while_its_parent_is_closed_gets_it_back(night: Night) -> None:
    run = night.open("train")
    night.tree.close(run.run_id, "FAILED")
    answers = iter([AirflowView("failed", {("train", -1): "failed"}), AirflowView("queued", {("train", -1): None})])
    found = list(Reconciler(night.tree, lambda *_: next(answers)).walk(night.dag_id))
    assert [each.action for each in found] == ["left"]
    assert night.status(run.parent_run_id) == "RUNNING"


def test_runs_that_are_not_ours_are_not_touched(night: Night) -> None:
    experiment_id = night.tree.experiment_id(night.dag_id)
    body = {"experiment_id": experiment_id, "run_name": "by hand", "start_time": now_ms()}
    run = night.api.post("runs/create", body, repeatable=False)["run"]
    assert night.reconcile() == []
    assert night.status(run["info"]["run_id"]) == "RUNNING"


def test_a_quote_in_the_id_of_a_dag_run_is_no_syntax(night: Night) -> None:
    run, other = night.open("train", run_id="o'clock"), night.open("train", run_id="o-clock")
    night.airflow["o'clock"] = ("success", {("train", -1): "success"})
    night.airflow["o-clock"] = ("running", {("train", -1): "running"})
    night.reconcile()
    assert [night.status(run.run_id), night.status(other.run_id)] == ["FINISHED", "RUNNING"]


def test_an_experiment_that_does_not_exist_is_named_and_not_made(mlflow_api: MlflowApi, unique: str) -> None:
    with pytest.raises(RemoteNotFoundError, match=unique):
        find_experiments(mlflow_api, unique)
    with pytest.raises(RemoteNotFoundError):
        find_experiments(mlflow_api, unique)


@pytest.mark.full
def test_all_experiments_are_walked_when_none_is_named(night: Night) -> None:
    run = night.open("train")
    assert run.experiment_id in find_experiments(night.api)
    dag_id = night.dag_id

    def ask(asked: str, run_id: str) -> AirflowView:
        if asked != dag_id:
            raise RemoteNotFoundError("of another test")
        return AirflowView("success", {("train", -1): "success"})

    found = [each for each in Reconciler(night.tree, ask).walk() if each.dag_run.dag_id == dag_id]
    assert [each.action for each in found] == ["closed", "closed"]


def test_a_finding_reads_as_one_line(night: Night) -> None:
    run = night.open("fit", 3)
    night.airflow["night"] = ("failed", {("fit", 3): "failed"})
    line = str(night.reconcile()[0])
    assert line.startswith(f"closed {night.dag_id} night fit[3] ({run.run_id}): RUNNING -> FAILED; ")


class TaskInstance:
    """What the task SDK offers a running task, with the answers of its API server."""

    def __init__(self, night: Night) -> None:
        self.night = night

    def get_dagrun_state(self, dag_id: str, run_id: str) -> str:
        return self.night.ask(dag_id, run_id).state

    def get_task_states(self, dag_id: str, run_ids: list[str]) -> dict[str, dict[str, str | None]]:
        (run_id,) = run_ids
        tasks = self.night.ask(dag_id, run_id).tasks
        return {run_id: {task if index < 0 else f"{task}_{index}": state for (task, index), state in tasks.items()}}


def _settle_earlier(night: Night, run_id: str, ti: Any = None) -> list[Finding]:
    identity = StepIdentity(dag_id=night.dag_id, run_id=run_id, task_id="train")
    attempt = Attempt(identity=identity, try_number=1, ti_id="new", tags={"airflow.log_url": f"{HERE}/dags/{night.dag_id}"})
    return settle_earlier(night.api, night.tree.experiment_id(night.dag_id), attempt, ti or TaskInstance(night))


def test_the_first_step_of_a_dag_run_settles_the_earlier_ones_and_leaves_those_that_run(night: Night) -> None:
    ended, mapped, beside, own = (
        night.open("train", run_id="1"),
        night.open("fit", 2, run_id="2"),
        night.open("train", run_id="3"),
        night.open("train", run_id="4"),
    )
    night.says("failed", ("train", "failed"), run_id="1")
    night.airflow["2"] = ("success", {("fit", 2): "success"})
    night.says("running", ("train", "running"), run_id="3")
    _settle_earlier(night, "4")
    assert [night.status(run.run_id) for run in (ended, mapped, beside, own)] == ["FAILED", "FINISHED", "RUNNING", "RUNNING"]
    assert [night.status(run.parent_run_id) for run in (ended, mapped, beside, own)] == [
        *("FAILED", "FINISHED", "RUNNING", "RUNNING"),
    ]
    assert "4" not in night.asked


def test_only_a_few_earlier_dag_runs_are_looked_at(night: Night) -> None:
    for number in range(7):
        night.open("train", run_id=str(number))
        night.says("running", ("train", "running"), run_id=str(number))
    _settle_earlier(night, "new")
    assert set(night.asked) == {"2", "3", "4", "5", "6"}


def test_an_airflow_that_does_not_answer_neither_fails_the_step_nor_closes_anything(night: Night) -> None:
    run = night.open("train", run_id="1")
    night.airflow["1"] = OSError("the supervisor has gone")
    assert {each.problem for each in _settle_earlier(night, "2")} == {True}
    assert night.status(run.run_id) == "RUNNING"


def test_an_mlflow_that_does_not_answer_does_not_fail_the_step(night: Night) -> None:
    night.open("train", run_id="1")
    server = dataclasses.replace(night.api.server, url="http://127.0.0.1:9")
    identity = StepIdentity(dag_id=night.dag_id, run_id="2", task_id="train")
    away = MlflowApi(server, night.api.settings)
    assert settle_earlier(away, "1", Attempt(identity=identity, try_number=1, ti_id="new"), TaskInstance(night)) == []
    away.close()


def test_the_tree_remembers_whether_it_made_the_parent(night: Night) -> None:
    attempt = Attempt(identity=StepIdentity(dag_id=night.dag_id, run_id="night", task_id="train"), try_number=1, ti_id="one")
    first, second = RunTree(night.api), RunTree(night.api)
    first.open(night.dag_id, attempt)
    second.open(night.dag_id, attempt)
    assert (first.made_parent, second.made_parent) == (True, False)


class _Says:
    """An error of the task SDK that carries an answer of Airflow's API server."""

    def __init__(self, raised: Callable[[], Exception]) -> None:
        self.raised = raised

    def get_dagrun_state(self, dag_id: str, run_id: str) -> str:
        raise self.raised()


def _in_a_worker(status: int, body: Any) -> Exception:
    from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
    from airflow.sdk.execution_time.comms import ErrorResponse

    detail = {"status_code": status, "message": "Server returned error", "detail": body}
    return AirflowRuntimeError(ErrorResponse(error=ErrorType.API_SERVER_ERROR, detail=detail))


def _in_dag_test(status: int, body: Any) -> Exception:
    import httpx
    from airflow.sdk.api.client import ServerResponseError

    answer = httpx.Response(status, json=body, request=httpx.Request("GET", "http://in-process.invalid/state"))
    error = ServerResponseError.from_response(answer)
    assert error is not None
    return error


@pytest.mark.parametrize("wrap", [_in_a_worker, _in_dag_test])
def test_only_airflows_own_word_for_it_means_deleted(wrap: Callable[[int, Any], Exception]) -> None:
    gone = {"detail": {"reason": "not_found", "message": "Dag run ... was not found"}}
    assert ask_task_sdk(_Says(lambda: wrap(404, gone)))("dag", "run") == AirflowView(DELETED, {})
    for status, body in [(404, {"detail": "Not Found"}), (500, gone), (403, gone), (404, {"detail": {"reason": "other"}})]:
        ask = ask_task_sdk(_Says(lambda status=status, body=body: wrap(status, body)))  # type: ignore[misc]
        with pytest.raises(RemoteUnavailableError):
            ask("dag", "run")


def test_the_command_settles_what_airflows_database_knows(
    night: Night, airflow_db: None, mlflow_connection: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from airflow_ml_provider.cli.reconcile import run

    opened = night.open("train")  # its DAG is not in this Airflow's database, so nothing is known of it
    options = {"dry_run": False, "conn_id": "mlflow_default", "experiment": night.dag_id}
    assert run(Namespace(**options)) == 0
    assert night.status(opened.run_id) == "RUNNING"
    said = capsys.readouterr().out
    assert f"this Airflow has no DAG '{night.dag_id}'" in said
    assert "0 closed, 0 moved, 2 left open" in said
    assert run(Namespace(**options | {"experiment": f"{night.dag_id}-nope"})) == 1
    assert "nope" in capsys.readouterr().err
