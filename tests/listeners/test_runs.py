from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pendulum
import pytest
from airflow.sdk import dag, task

from airflow_ml_provider import Metrics, Output, ml_task
from airflow_ml_provider.exceptions import RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.listeners import runs
from airflow_ml_provider.listeners.runs import Sweeper
from airflow_ml_provider.models.run import Attempt, DagRunIdentity, OpenRun, StepIdentity
from airflow_ml_provider.operators.step import MLStepOperator
from airflow_ml_provider.tracking.reconcile import DELETED
from airflow_ml_provider.tracking.runs import RunTree, run_id_of, status_of, tags_of
from tests.servers import connection

START = pendulum.datetime(2024, 1, 1)
LIMIT_S = 30


class Line:
    """A way to a real server that can hang: it then takes connections and lets nothing through."""

    def __init__(self, url: str) -> None:
        self.target = urlsplit(url)
        self.asked, self.open = threading.Event(), threading.Event()
        self.let_through = 0
        self.door = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.door.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self.door.accept()
                threading.Thread(target=self._carry, args=(caller,), daemon=True).start()

    def _carry(self, caller: socket.socket) -> None:
        with caller, suppress(OSError):
            caller.recv(1, socket.MSG_PEEK)
            self.asked.set()
            self.open.wait(LIMIT_S)
            with socket.create_connection((str(self.target.hostname), self.target.port or 80)) as server:
                self.let_through += 1
                back = threading.Thread(target=_pump, args=(server, caller), daemon=True)
                back.start()
                _pump(caller, server)
                back.join(LIMIT_S)


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while some := source.recv(1 << 16):
            sink.sendall(some)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def line(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    """The connection ``mlflow_default``, over a line that hangs until ``line.open.set()``."""
    made = Line(mlflow_server.url)
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(replace(mlflow_server, url=made.url)))
    monkeypatch.setenv("AIRFLOW__ML__HTTP_TIMEOUT_S", "1")
    yield made
    made.open.set()
    made.door.close()


@pytest.fixture
def sweeper(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sweeper]:
    """The listeners' sweeper, for once without the waits that leave Airflow time to commit."""
    made = Sweeper(runs.settle, first_look_s=0.0, next_looks_s=(0.1,) * 200)
    monkeypatch.setattr(runs, "sweeper", made)
    yield made
    made.finish(LIMIT_S)


class Ended(SimpleNamespace):
    """A DAG run that has ended in Airflow's database, with an MLflow run that nobody has closed."""

    dag_id: str
    run_id: str
    run: OpenRun


@pytest.fixture
def ended(run_dag: Callable[..., Any], unique: str, mlflow_api: MlflowApi) -> Ended:
    @dag(dag_id=unique, schedule=None, start_date=START)
    def plain() -> None:
        task(task_id="train")(_nothing)()

    outcome = run_dag(plain())
    runs.sweeper.finish(LIMIT_S)
    identity = StepIdentity(dag_id=unique, run_id=outcome.run_id, task_id="train")
    run = RunTree(mlflow_api).open(unique, Attempt(identity=identity, try_number=1, ti_id="one"))
    return Ended(dag_id=unique, run_id=outcome.run_id, run=run)


def _nothing() -> None: ...


def _statuses(api: MlflowApi, ended: Ended) -> list[str]:
    return [status_of(RunTree(api).get(each)) for each in (ended.run.run_id, ended.run.parent_run_id)]


def _wait(until: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while not until() and time.monotonic() < deadline:
        time.sleep(0.05)
    return until()


def test_a_hook_returns_while_mlflow_hangs_and_the_runs_are_closed_when_it_is_back(
    ended: Ended, line: Line, sweeper: Sweeper, mlflow_api: MlflowApi
) -> None:
    runs.on_dag_run_success(dag_run=ended)
    runs.on_task_instance_failed(task_instance=ended)
    assert line.let_through == 0  # the hooks are back, and nobody has answered anything
    assert line.asked.wait(LIMIT_S)
    assert _statuses(mlflow_api, ended) == ["RUNNING", "RUNNING"]
    line.open.set()
    assert _wait(lambda: _statuses(mlflow_api, ended) == ["FINISHED", "FINISHED"])
    assert _wait(lambda: sweeper._thread is None), "the thread ends when there is nothing to do"


def test_a_dag_run_that_waits_already_is_not_added_twice() -> None:
    begun, go_on, seen = threading.Event(), threading.Event(), []

    def settle(dag_id: str, run_id: str) -> bool:
        seen.append(run_id)
        begun.set()
        return go_on.wait(LIMIT_S)

    sweeper = Sweeper(settle, first_look_s=0.0)
    sweeper.add("dag", "first")
    assert begun.wait(LIMIT_S)
    for _ in range(100):
        assert sweeper.add("dag", "second")
    go_on.set()
    sweeper.finish(LIMIT_S)
    assert seen == ["first", "second"]


def test_what_comes_on_top_of_a_full_list_is_dropped_with_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    go_on, begun, seen = threading.Event(), threading.Event(), []

    def settle(dag_id: str, run_id: str) -> bool:
        begun.set()
        go_on.wait(LIMIT_S)
        seen.append(run_id)
        return True

    sweeper = Sweeper(settle, limit=2, first_look_s=0.0)
    sweeper.add("dag", "in work")
    assert begun.wait(LIMIT_S)
    with caplog.at_level(logging.WARNING):
        assert [sweeper.add("dag", name) for name in ("one", "two", "three")] == [True, True, False]
    assert "dag three are left to airflow-ml reconcile" in caplog.text
    go_on.set()
    sweeper.finish(LIMIT_S)
    assert sorted(seen) == ["in work", "one", "two"]


def test_a_dag_run_is_looked_at_again_until_it_is_done_with_or_the_looks_are_used_up() -> None:
    answers = {"soon": [False, False, True], "never": [False] * 9}
    looks: dict[str, int] = {"soon": 0, "never": 0}

    def settle(dag_id: str, run_id: str) -> bool:
        looks[run_id] += 1
        return answers[run_id].pop(0)

    sweeper = Sweeper(settle, first_look_s=0.0, next_looks_s=(0.01, 0.02, 0.03))
    sweeper.add("dag", "soon")
    sweeper.add("dag", "never")
    assert _wait(lambda: sweeper._thread is None)
    assert looks == {"soon": 3, "never": 4}


def test_the_end_of_the_process_does_not_wait_for_the_next_look() -> None:
    seen = []
    sweeper = Sweeper(lambda _, run_id: bool(seen.append(run_id)), first_look_s=3600.0, next_looks_s=(3600.0,))
    sweeper.add("dag", "late")
    sweeper.finish(LIMIT_S)
    assert seen == ["late"]
    assert sweeper._thread is None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fork_begins_with_an_empty_list_and_a_lock_of_its_own() -> None:
    go_on, seen = threading.Event(), []
    sweeper = Sweeper(lambda _, run_id: go_on.wait(LIMIT_S) and not seen.append(run_id), first_look_s=0.0)
    sweeper.add("dag", "of the parent")
    with sweeper._changed:
        child = os.fork()
        if child == 0:
            go_on.set()
            empty = not sweeper._due and sweeper._thread is None
            sweeper.add("dag", "of the child")
            sweeper.finish(LIMIT_S)
            os._exit(0 if empty and seen == ["of the child"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go_on.set()
    sweeper.finish(LIMIT_S)
    assert seen == ["of the parent"]


class Collected(Sweeper):
    """A sweeper that only collects."""

    def __init__(self) -> None:
        super().__init__(lambda *_: True)
        self.added: list[tuple[str, str]] = []

    def add(self, dag_id: str, run_id: str) -> bool:
        self.added.append((dag_id, run_id))
        return True


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Collected:
    made = Collected()
    monkeypatch.setattr(runs, "sweeper", made)
    return made


class OwnStep(MLStepOperator):
    """A user's subclass, in a module of the user's."""


@ml_task
def score(n: int, metrics: Output[Metrics]) -> None:
    metrics.log_metric("n", n)


def _serialized(build: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    from tests.airflow_releases import DagSerialization

    # Of the whole process: where a task was cleared, or a scheduler runs, Airflow leaves the links out.
    monkeypatch.setattr(DagSerialization, "_load_operator_extra_links", True)
    made = dag(dag_id="example", schedule=None, start_date=START)(build)()
    return DagSerialization.from_dict(DagSerialization.to_dict(made))


def _foreign() -> None:
    task(task_id="plain")(_nothing)()


def _decorated() -> None:
    score(n=1)


def _mapped() -> None:
    score.expand(n=[1, 2])


def _subclassed() -> None:
    OwnStep(task_id="own", python_callable=_nothing)


@pytest.mark.parametrize(("build", "ours"), [(_foreign, False), (_decorated, True), (_mapped, True), (_subclassed, True)])
def test_a_dag_without_our_steps_costs_no_request(
    collected: Collected, monkeypatch: pytest.MonkeyPatch, build: Callable[[], Any], ours: bool
) -> None:
    serialized = _serialized(build, monkeypatch)
    runs.on_dag_run_failed(dag_run=SimpleNamespace(dag_id="example", run_id="one", dag=serialized))
    (operator,) = serialized.tasks
    runs.on_task_instance_failed(task_instance=SimpleNamespace(dag_id="example", run_id="two", task=operator))
    assert collected.added == ([("example", "one"), ("example", "two")] if ours else [])


def test_what_does_not_say_its_dag_is_looked_up(collected: Collected) -> None:
    runs.on_dag_run_success(dag_run=SimpleNamespace(dag_id="example", run_id="one", dag=None))
    for hook in (runs.on_task_instance_failed, runs.on_task_instance_success, runs.on_task_instance_skipped):
        hook(task_instance=SimpleNamespace(dag_id="example", run_id=hook.__name__))  # the API server's has no task
    assert len(collected.added) == 4


def test_the_tasks_own_process_is_left_to_execute(collected: Collected) -> None:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    ti = RuntimeTaskInstance.model_construct(dag_id="example", run_id="one", task=OwnStep.__new__(OwnStep))
    for hook in (runs.on_task_instance_failed, runs.on_task_instance_success, runs.on_task_instance_skipped):
        hook(task_instance=ti)
    assert collected.added == []


def test_the_hooks_are_airflows() -> None:
    from airflow.listeners.listener import ListenerManager, get_listener_manager

    manager: ListenerManager = get_listener_manager()
    assert runs in manager.pm.get_plugins()
    manager.pm.check_pending()  # raises for a hook that Airflow does not know
    hooks = {each.name for each in manager.pm.get_hookcallers(runs) or []}
    assert hooks == {
        *("on_dag_run_success", "on_dag_run_failed"),
        *("on_task_instance_success", "on_task_instance_failed", "on_task_instance_skipped"),
    }


def test_without_the_connection_nothing_happens_and_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_MLFLOW_DEFAULT", raising=False)
    with caplog.at_level(logging.INFO):
        assert runs.settle("example", "one")
    assert not [record for record in caplog.records if record.name.startswith("airflow_ml_provider")]


def test_what_mlflow_refuses_is_said_once_and_left(
    ended: Ended, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, mlflow_server: MlflowServer
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(replace(mlflow_server, url=f"{mlflow_server.url}/not/there")))
    with caplog.at_level(logging.WARNING):
        assert runs.settle(ended.dag_id, ended.run_id)
    assert "are left as they are" in caplog.text


def test_a_dag_run_of_ours_is_closed_by_the_listener(run_dag: Callable[..., Any], unique: str, mlflow_api: MlflowApi) -> None:
    @ml_task(retries=0)
    def fail(after: Any, metrics: Output[Metrics]) -> None:
        raise ValueError("on purpose")

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        fail(after=task(task_id="plain")(_nothing)())
        score(n=1)

    outcome = run_dag(example())
    runs.sweeper.finish(LIMIT_S)
    tree = RunTree(mlflow_api)
    identity = DagRunIdentity(dag_id=unique, run_id=outcome.run_id)
    (parent,) = tree.find_parents(tree.experiment_id(unique), identity)
    assert (outcome.state, status_of(parent), tags_of(parent)["airflow.state"]) == ("failed", "FAILED", "failed")
    nested = tree.search([parent["info"]["experiment_id"]], f"tags.`mlflow.parentRunId` = '{run_id_of(parent)}'")
    assert {tags_of(run)["airflow.task_id"]: status_of(run) for run in nested} == {"fail": "FAILED", "score": "FINISHED"}


def test_the_first_step_of_the_next_run_closes_what_was_left_of_an_ended_and_of_a_deleted_dag_run(
    run_dag: Callable[..., Any], unique: str, mlflow_api: MlflowApi, collected: Collected
) -> None:
    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        score(n=1)

    first = run_dag(example())
    tree, experiment_id = RunTree(mlflow_api), RunTree(mlflow_api).experiment_id(unique)
    (parent,) = tree.find_parents(experiment_id, DagRunIdentity(dag_id=unique, run_id=first.run_id))
    assert status_of(parent) == "RUNNING"
    ghost = StepIdentity(dag_id=unique, run_id="manual__deleted", task_id="score")
    deleted = tree.open(unique, Attempt(identity=ghost, try_number=1, ti_id="one"))
    run_dag(example(), logical_date=START.add(days=1))
    assert status_of(tree.get(run_id_of(parent))) == "FINISHED"
    assert status_of(tree.get(deleted.run_id)) == "KILLED"
    assert tags_of(tree.get(deleted.parent_run_id))["airflow.state"] == DELETED


def test_the_database_knows_an_ended_a_deleted_and_no_foreign_dag_run(ended: Ended) -> None:
    view = runs.read_database(ended.dag_id, ended.run_id)
    assert (view.state, view.over, dict(view.tasks)) == ("success", True, {("train", -1): "success"})
    assert view.ended_at_ms is not None
    assert runs.read_database(ended.dag_id, "gone").state == DELETED
    with pytest.raises(RemoteNotFoundError, match="no DAG 'of_another_airflow'"):
        runs.read_database("of_another_airflow", ended.run_id)


def test_the_command_closes_by_the_database_and_only_says_so_in_a_dry_run(
    ended: Ended, mlflow_connection: str, mlflow_api: MlflowApi, capsys: pytest.CaptureFixture[str]
) -> None:
    from airflow_ml_provider.cli.reconcile import run

    options = {"conn_id": "mlflow_default", "experiment": ended.dag_id}
    assert run(SimpleNamespace(**options, dry_run=True)) == 0  # type: ignore[arg-type]
    assert "2 to close" in capsys.readouterr().out
    assert _statuses(mlflow_api, ended) == ["RUNNING", "RUNNING"]
    assert run(SimpleNamespace(**options, dry_run=False)) == 0  # type: ignore[arg-type]
    assert "2 closed, 0 moved, 0 left open" in capsys.readouterr().out
    assert _statuses(mlflow_api, ended) == ["FINISHED", "FINISHED"]


def test_a_database_that_cannot_be_read_closes_nothing_and_is_an_error(
    ended: Ended, mlflow_connection: str, mlflow_api: MlflowApi, tmp_path: Any
) -> None:
    script = (
        "import sys; from types import SimpleNamespace; from airflow_ml_provider.cli.reconcile import run; "
        f"sys.exit(run(SimpleNamespace(dry_run=False, conn_id='mlflow_default', experiment={ended.dag_id!r})))"
    )
    environment = {**os.environ, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/empty.db"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "2 left open, of which 2 because Airflow could not be read" in done.stdout
    assert _statuses(mlflow_api, ended) == ["RUNNING", "RUNNING"]


def test_switched_off_no_listener_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_ml_provider import plugin

    assert plugin._listeners() == [runs]
    monkeypatch.setenv("AIRFLOW__ML__LISTENERS", "False")
    assert plugin._listeners() == []


def test_a_listener_that_cannot_be_imported_leaves_the_plugin_whole(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from airflow_ml_provider import listeners, plugin

    monkeypatch.delattr(listeners, "runs")
    monkeypatch.setitem(sys.modules, "airflow_ml_provider.listeners.runs", None)
    assert plugin._listeners() == []
    assert "listeners of airflow-ml-provider are off" in caplog.text
