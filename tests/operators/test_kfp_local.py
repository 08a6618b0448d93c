"""The run operator with a ``local://`` connection, in DAG runs: the same file as for a server, nothing of it left at its end."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import mlflow
import pendulum
import pytest
from airflow.sdk import DAG

from airflow_ml_provider import Dataset, Input, Metrics, Model, ml_task
from airflow_ml_provider.config import load_settings
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.kfp import KfpHook
from airflow_ml_provider.hooks.kfp_interpreter import KfpInterpreter
from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator
from airflow_ml_provider.testing import FakeKfpServer
from tests.airflow_runs import Outcome
from tests.jobs.test_kfp_local import all_gone, compiled, noted, pids_in

START = pendulum.datetime(2024, 1, 1)
PIPELINES = Path(__file__).parents[1] / "jobs/kfp_pipelines.py"
TRAINS = f"{PIPELINES}:trains"
LOCAL = json.dumps({"conn_type": "kfp", "host": "local://"})


@pytest.fixture(autouse=True)
def local(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", LOCAL)
    monkeypatch.setenv("AIRFLOW__ML__KFP_LOCAL_ROOT", str(tmp_path / "ml-kfp"))


@ml_task
def evaluate(model: Input[Model], numbers: Input[Metrics], auc: float) -> dict[str, Any]:
    return {"model": Path(model.path).read_text(), "numbers": numbers.metadata, "auc": auc}


@ml_task
def gather(tables: Input[list[Dataset]], numbers: Input[list[Metrics]], sums: list, nothing: list) -> dict[str, Any]:
    return {
        "tables": [Path(each.path).read_text().splitlines() for each in tables],
        "rows": [each.metadata["rows"] for each in tables],
        "numbers": [each.metadata for each in numbers],
        "sums": sums,
        "nothing": nothing,
    }


@pytest.fixture
def package(tmp_path: Path) -> Callable[[str], str]:
    """Write a compiled pipeline to a file; it is compiled once for all tests."""

    def written(name: str) -> str:
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps(compiled(name).spec))
        return str(file)

    return written


@pytest.fixture
def night(run_dag: Callable[..., Outcome], unique: str, package: Callable[[str], str]) -> Callable[..., Outcome]:
    """Run one task, and nothing else."""

    def run(**arguments: Any) -> Outcome:
        with DAG(unique, schedule=None, start_date=START) as made:
            given: dict[str, Any] = {"pipeline": package("trains"), "arguments": {"day": "today"}} | arguments
            KfpRunPipelineOperator(task_id="train", **given)
        return run_dag(made, logical_date=START)

    return run


class TestARun:
    def test_gives_its_outputs_to_the_next_step_as_a_server_would(
        self, run_dag: Callable[..., Outcome], unique: str, mlflow_url: str, tmp_path: Path
    ) -> None:
        with DAG(unique, schedule=None, start_date=START) as made:
            train = KfpRunPipelineOperator(
                task_id="train",
                pipeline=TRAINS,
                arguments={"day": "{{ ds }}", "rows": "{{ 3 }}"},
                outputs={"model": Model, "score.metrics": Metrics, "auc": float},
            )
            evaluate(model=train.output["model"], numbers=train.output["score.metrics"], auc=train.output["auc"])
        done = run_dag(made, logical_date=START)
        assert done.state == "success"
        numbers = {"auc": 0.75, "words": 4}
        assert done.xcom("evaluate") == {"model": "forest on 3 rows", "numbers": numbers, "auc": 0.75}
        told = done.xcom("train")
        assert told["state"] == "SUCCEEDED"
        assert told["url"].startswith((tmp_path / "ml-kfp" / unique).as_uri())
        own = mlflow.MlflowClient(mlflow_url).get_run(told["mlflow_run_id"])
        assert own.info.status == "FINISHED"
        assert own.data.tags["airflow.kfp.state"] == "SUCCEEDED"
        assert own.data.params["rows"] == "3"
        assert own.data.metrics == numbers

    def test_hands_on_what_a_loop_has_made_as_lists_in_the_order_of_its_iterations(
        self, run_dag, unique, mlflow_url, package
    ) -> None:
        wanted = {
            "write.table": list[Dataset],
            "write.metrics": list[Metrics],
            "rows": int,
            "add.Output": list[int],
            "add-2.Output": list,
        }
        with DAG(unique, schedule=None, start_date=START) as made:
            train = KfpRunPipelineOperator(
                task_id="train", pipeline=package("loops"), arguments={"numbers": [5, 3, 4]}, outputs=wanted
            )
            gather(
                tables=train.output["write.table"],
                numbers=train.output["write.metrics"],
                sums=train.output["add.Output"],
                nothing=train.output["add-2.Output"],
            )
        done = run_dag(made, logical_date=START)
        assert done.xcom("gather") == {
            "tables": [["part 1's"] * 2, ["part 2's"] * 4],
            "rows": [2, 4],
            "numbers": [{"rows": 2}, {"rows": 4}],
            "sums": [7, 5, 6],
            "nothing": [],
        }
        told = done.xcom("train")
        assert [key for key in told["outputs"] if "table" in key] == ["write.table[0]", "write.table[1]"]
        client = mlflow.MlflowClient(mlflow_url)
        points = client.get_metric_history(told["mlflow_run_id"], "rows")
        assert [(each.step, each.value) for each in points] == [(0, 2), (1, 4)]

    def test_says_who_waits_when_it_was_to_be_deferred_and_what_has_no_effect(self, night, caplog) -> None:
        caplog.set_level(logging.INFO, "airflow_ml_provider.operators.kfp_local")
        assert night(deferrable=True, options=KfpRunOptions(service_account="robot")).task("train") == "success"
        assert caplog.text.count("so this worker waits.") == 1
        assert "options service_account are read by a server only, and have no effect on this machine." in caplog.text

    def test_that_fails_shows_the_components_own_traceback(self, night, capfd, unique, mlflow_url, package) -> None:
        assert night(pipeline=package("fails"), arguments={}).task("train") == "failed"
        said = "".join(capfd.readouterr())
        assert "pipeline fails FAILED on this machine: Task exit-handler-1/broken FAILED" in said
        assert "return 1 / (value - value)" in said
        (experiment,) = mlflow.MlflowClient(mlflow_url).search_experiments(filter_string=f"name = '{unique}'")
        runs = mlflow.MlflowClient(mlflow_url).search_runs([experiment.experiment_id])
        assert {each.info.status for each in runs if each.data.tags.get("airflow.kfp.state") == "FAILED"} == {"FAILED"}

    @pytest.mark.parametrize("limit", ["timeout", pytest.param("execution_timeout", marks=pytest.mark.full)])
    def test_is_ended_when_it_takes_too_long_and_leaves_no_process(self, night, capfd, tmp_path, limit, package) -> None:
        note = tmp_path / "note"
        given = {"pipeline": package("sleeps"), "arguments": {"note": str(note)}, limit: timedelta(seconds=3)}
        assert night(**given).task("train") == "failed"
        assert all_gone(noted(note))
        assert "timeout" in "".join(capfd.readouterr())

    def test_that_is_killed_leaves_no_process_and_is_on_record_as_killed(
        self, run_dag, unique, capfd, tmp_path, mlflow_url, package
    ) -> None:
        note, pids = tmp_path / "note", list[int]()

        class Killed(KfpRunPipelineOperator):
            """Is told to go, as by a mark, while its component sleeps."""

            def execute(self, context: Any) -> Any:
                def kill() -> None:
                    pids.extend(pids_in(note))
                    self.on_kill()

                thread = threading.Thread(target=kill)
                thread.start()
                try:
                    return super().execute(context)
                finally:
                    thread.join()

        with DAG(unique, schedule=None, start_date=START) as made:
            Killed(task_id="train", pipeline=package("sleeps"), arguments={"note": str(note)})
        assert run_dag(made, logical_date=START).task("train") == "failed"
        assert len(pids) == 2
        assert all_gone(pids)
        assert "it was ended since the task was killed, with all that it had started." in "".join(capfd.readouterr())
        (experiment,) = mlflow.MlflowClient(mlflow_url).search_experiments(filter_string=f"name = '{unique}'")
        runs = mlflow.MlflowClient(mlflow_url).search_runs([experiment.experiment_id])
        assert {each.info.status for each in runs if each.info.run_name == "train"} == {"KILLED"}
        assert not list(tmp_path.glob("ml-kfp/**/tmp"))

    @pytest.mark.parametrize(
        ("wrong", "said"),
        [
            ({"pipeline": "churn"}, "names a registered pipeline, and connection 'kfp_default' has no server"),
            (
                {"pipeline": f"{PIPELINES}:nothing"},
                "has no 'nothing'. Decorate it with @dsl.pipeline. Its pipelines are: branches,",
            ),
            ({"pipeline": "contained", "arguments": {}}, "is a container component (image 'alpine')"),
            ({"arguments": {"dya": "today"}}, "'dya' is no parameter of it."),
            ({"outputs": {"modle": Model}}, "has no output 'modle'. Did you mean 'model'"),
            ({"outputs": {"model": list[Model]}}, "stands in no loop and makes one. Give Model."),
            ({"arguments": {"day": "today", "rows": "many"}}, "'rows' wants NUMBER_INTEGER"),
        ],
    )
    def test_what_is_wrong_is_said_at_once_and_not_tried_again(self, night, capfd, tmp_path, wrong, said, package) -> None:
        wrong = wrong | ({"pipeline": package("contained")} if wrong.get("pipeline") == "contained" else {})
        assert night(retries=3, **wrong).task("train") == "failed"
        assert said in "".join(capfd.readouterr())
        assert not (tmp_path / "ml-kfp").exists()


def test_a_function_runs_on_a_server_too(night, monkeypatch) -> None:
    with FakeKfpServer() as server:
        server.auto(seconds=0.2)
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url}))
        assert night(pipeline=TRAINS, options=KfpRunOptions(poll_interval_s=0.1)).task("train") == "success"
        (run,) = server.runs
        assert run.state == "SUCCEEDED"


class TestTheConnection:
    def test_its_test_says_whether_the_interpreter_is_there(self, monkeypatch, tmp_path) -> None:
        KfpInterpreter(load_settings()).python()  # all tests of a run share it
        works, said = KfpHook().test_connection()
        assert works
        assert said.startswith("Pipelines run on this machine, with kfp==2.17.0 in ")
        monkeypatch.setenv("AIRFLOW__ML__INTERPRETERS", str(tmp_path / "new"))
        works, said = KfpHook().test_connection()
        assert works
        installer = "uv" if shutil.which("uv") else "pip"
        assert f"makes the interpreter with kfp==2.17.0, with {installer}, below {tmp_path / 'new'}" in said
        (tmp_path / "file").touch()
        monkeypatch.setenv("AIRFLOW__ML__INTERPRETERS", str(tmp_path / "file/new"))
        works, said = KfpHook().test_connection()
        assert not works
        assert "cannot be made on this machine: interpreters cannot be kept at" in said

    @pytest.mark.parametrize(
        ("fields", "said"),
        [
            ({"host": "local:///tmp"}, "host 'local:///tmp' is neither 'local://'"),
            ({"password": "x"}, "host 'local://' has no server that would read password"),
            ({"login": "a", "extra": {"namespace": "team"}}, "would read login and extra 'namespace': remove that"),
        ],
    )
    def test_what_only_a_server_reads_is_refused(self, monkeypatch, fields, said) -> None:
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps(json.loads(LOCAL) | fields))
        with pytest.raises(ConfigError) as caught:
            KfpHook().server()
        assert said in str(caught.value)

    def test_what_needs_a_server_says_so(self) -> None:
        for ask in (KfpHook().api, KfpHook().get_conn):
            with pytest.raises(ConfigError, match="Registered pipelines, recurring runs, experiments, sensors and triggers need"):
                ask()
