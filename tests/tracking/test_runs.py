from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Barrier, Thread
from typing import Any

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import ConfigError, SupersededError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.run import Attempt, StepIdentity, params_as_text
from airflow_ml_provider.tracking.registry import ModelRegistry
from airflow_ml_provider.tracking.runs import KEY, PARENT, RunTree, as_pairs, now_ms, run_id_of, status_of, tags_of


def attempt(dag_id: str, task_id: str = "train", number: int = 1, ti_id: str = "ti-1", map_index: int = -1) -> Attempt:
    identity = StepIdentity(dag_id=dag_id, run_id="scheduled__1", task_id=task_id, map_index=map_index)
    return Attempt(identity=identity, try_number=number, ti_id=ti_id, dag_run_params={"window": "56"})


@pytest.fixture
def tree(mlflow_api: MlflowApi) -> RunTree:
    return RunTree(mlflow_api)


def test_the_first_step_makes_parent_and_nested_run(tree: RunTree, unique: str) -> None:
    run = tree.open(unique, attempt(unique))
    nested, parent = tree.get(run.run_id), tree.get(run.parent_run_id)
    assert tags_of(nested)[PARENT] == run.parent_run_id
    assert nested["info"]["run_name"] == "train"
    assert parent["data"]["params"] == [{"key": "window", "value": "56"}]
    assert tags_of(parent)["airflow.run_id"] == "scheduled__1"


def test_a_second_step_finds_the_same_parent(tree: RunTree, unique: str) -> None:
    first = tree.open(unique, attempt(unique))
    second = tree.open(unique, attempt(unique, "evaluate", ti_id="ti-2"))
    assert first.parent_run_id == second.parent_run_id
    assert first.run_id != second.run_id


def test_mapped_instances_have_a_run_each(tree: RunTree, unique: str) -> None:
    runs = [tree.open(unique, attempt(unique, map_index=index, ti_id=f"ti-{index}")) for index in range(2)]
    assert len({each.run_id for each in runs}) == 2
    assert [tree.get(each.run_id)["info"]["run_name"] for each in runs] == ["train[0]", "train[1]"]


def test_a_retry_opens_the_same_nested_run_again(tree: RunTree, unique: str) -> None:
    first = tree.open(unique, attempt(unique))
    tree.close(first.run_id, "FAILED")
    second = tree.open(unique, attempt(unique, number=2, ti_id="ti-2"))
    assert second.run_id == first.run_id
    assert status_of(tree.get(first.run_id)) == "RUNNING"
    assert tags_of(tree.get(first.run_id))["airflow.try_number"] == "2"


def test_an_overtaken_try_may_not_write(tree: RunTree, unique: str) -> None:
    early = attempt(unique)
    run = tree.open(unique, early)
    tree.check_current(run.run_id, early)
    tree.open(unique, attempt(unique, number=2, ti_id="ti-2"))
    with pytest.raises(SupersededError, match="try 2 has taken over"):
        tree.check_current(run.run_id, early)


def test_a_deleted_and_made_again_dag_run_gets_a_nested_run_of_its_own(tree: RunTree, unique: str) -> None:
    first = tree.open(unique, attempt(unique, ti_id="ti-old"))
    tree.close(first.run_id, "FINISHED")
    again = tree.open(unique, attempt(unique, ti_id="ti-new"))
    assert again.run_id != first.run_id
    assert status_of(tree.get(first.run_id)) == "FINISHED"


def test_a_dag_run_made_again_starts_anew_whatever_try_its_earlier_life_had_reached(tree: RunTree, unique: str) -> None:
    tree.open(unique, attempt(unique, ti_id="ti-1"))
    before = tree.open(unique, attempt(unique, number=2, ti_id="ti-2"))
    again = attempt(unique, ti_id="ti-new")
    made = tree.open(unique, again)
    assert made.run_id != before.run_id
    tree.check_current(made.run_id, again)


def test_a_finished_parent_is_opened_again_by_a_cleared_step(tree: RunTree, unique: str) -> None:
    first = tree.open(unique, attempt(unique))
    tree.close(first.parent_run_id, "FINISHED")
    tree.open(unique, attempt(unique, number=2, ti_id="ti-2"))
    assert status_of(tree.get(first.parent_run_id)) == "RUNNING"


def test_steps_that_race_for_the_parent_end_below_one(mlflow_url: str, mlflow_api: MlflowApi, unique: str, tree: RunTree) -> None:
    tree.experiment_id(unique)
    racers = 6
    start = Barrier(racers)

    def race(number: int) -> str:
        with MlflowApi(mlflow_api.server, Settings(http_timeout_s=30)) as api:
            start.wait()
            return RunTree(api).open(unique, attempt(unique, f"task-{number}", ti_id=f"ti-{number}")).run_id

    with ThreadPoolExecutor(racers) as pool:
        nested = list(pool.map(race, range(racers)))
    parents = tree.find_parents(tree.experiment_id(unique), attempt(unique).identity)
    assert len(parents) == 1
    assert {tags_of(tree.get(each))[PARENT] for each in nested} == {run_id_of(parents[0])}


def test_of_two_parents_the_oldest_wins_and_takes_the_children(tree: RunTree, mlflow_api: MlflowApi, unique: str) -> None:
    experiment = tree.experiment_id(unique)
    key = attempt(unique).identity.dag_run.key
    made = [
        mlflow_api.post("runs/create", {"experiment_id": experiment, "start_time": now_ms() + age, "tags": as_pairs({KEY: key})})
        for age in (1000, 0)
    ]
    newer, older = (str(each["run"]["info"]["run_id"]) for each in made)
    child = mlflow_api.post("runs/create", {"experiment_id": experiment, "tags": as_pairs({PARENT: newer})})
    run = tree.open(unique, attempt(unique))
    assert run.parent_run_id == older
    assert tags_of(tree.get(child["run"]["info"]["run_id"]))[PARENT] == older
    assert tree.get(newer)["info"]["lifecycle_stage"] == "deleted"


def test_params_of_the_dag_run_that_mlflow_would_refuse_are_kept_under_a_name_that_it_takes(tree: RunTree, unique: str) -> None:
    identity = StepIdentity(dag_id=unique, run_id="r", task_id="t")
    odd = params_as_text({"who@x": 1, "a/../../b": 2, "": 3, "x" * 400: 4, "ünï": 5})
    run = tree.open(unique, Attempt(identity=identity, try_number=1, ti_id="1", dag_run_params=odd))
    assert len(tree.get(run.parent_run_id)["data"]["params"]) == 5


def test_a_deleted_experiment_is_refused_with_the_remedy(tree: RunTree, mlflow_api: MlflowApi, unique: str) -> None:
    mlflow_api.post("experiments/delete", {"experiment_id": tree.experiment_id(unique)})
    with pytest.raises(ConfigError, match="Restore it"):
        tree.open(unique, attempt(unique))


def test_a_name_that_mlflow_refuses_is_told_with_its_reason(tree: RunTree) -> None:
    with pytest.raises(ConfigError, match="exceeds the maximum length"):
        tree.experiment_id("x" * 600)


class ReadOnly(BaseHTTPRequestHandler):
    """An MLflow that has nothing of the name, and lets nobody make it."""

    def _answer(self, status: int, body: bytes) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._answer(404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none of that name"}')

    def do_POST(self) -> None:
        self._answer(403, b"Permission denied")

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def read_only() -> Iterator[MlflowApi]:
    with ThreadingHTTPServer(("127.0.0.1", 0), ReadOnly) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        with MlflowApi(MlflowServer("c", f"http://127.0.0.1:{server.server_port}"), Settings(http_retries=0)) as api:
            yield api
        server.shutdown()


def test_a_refused_create_is_told_and_not_that_nothing_was_found(read_only: MlflowApi) -> None:
    with pytest.raises(ConfigError, match="Permission denied"):
        RunTree(read_only).experiment_id("nightly")
    with pytest.raises(ConfigError, match="Permission denied"):
        ModelRegistry(read_only).register("delays", "s3://bucket/model")
