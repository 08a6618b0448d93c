from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pendulum
import pytest
from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import dag, task

from airflow_ml_provider import Artifact, Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.config import Settings
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.run import Attempt, StepIdentity
from airflow_ml_provider.tracking import spool
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.runs import Run, RunTree, run_id_of, status_of, tags_of
from tests.servers import MlflowProcess

START = pendulum.datetime(2024, 1, 1)
AT_ONCE = {"retries": 1, "retry_delay": timedelta(0)}
FACTS: dict[str, Any] = {}
"""What a step tells its test; dag.test() runs steps in this process."""


def nested_runs(api: MlflowApi, dag_id: str) -> dict[str, Run]:
    tree = RunTree(api)
    runs = tree.search([tree.experiment_id(dag_id)], "tags.`mlflow.parentRunId` != ''")
    return {str(each["info"]["run_name"]): each for each in runs}


def metric(run: Run, key: str) -> float | None:
    return {each["key"]: each["value"] for each in run["data"].get("metrics", [])}.get(key)


@ml_task
def make(rows: int, table: Output[Dataset]) -> None:
    table.path += ".csv"
    Path(table.path).write_text("x\n" * rows)
    table.metadata["rows"] = rows


def test_a_night_is_on_record_from_data_to_model(run_dag: Any, unique: str, mlflow_api: MlflowApi) -> None:
    @ml_task
    def train(table: Input[Dataset], depth: int, model: Output[Model], metrics: Output[Metrics]) -> None:
        FACTS["rows"] = (table.metadata["rows"], len(Path(table.path).read_text().splitlines()))
        for step in range(5):
            metrics.log_metric("loss", 1 / (step + 1), step=step)
        Path(model.path).write_text("weights")
        model.metadata["trees"] = 100

    @ml_task
    def judge(model: Input[Model], metrics: Input[Metrics], champion: Input[Model] | None) -> dict[str, Any]:
        assert model.metadata == {"trees": 100}
        return {"model": Path(model.path).read_text(), "loss": metrics.metadata["loss"], "champion": champion}

    @dag(dag_id=unique, schedule=None, start_date=START, params={"window": 56, "api_token": "hidden-token"})
    def example() -> None:
        fit = train(table=make(rows=4)["table"], depth="{{ 1 + 2 }}")
        judge(fit["model"], fit["metrics"], champion=f"models:/{unique}@champion")

    outcome = run_dag(example(), run_conf={"why": "test"})
    assert outcome.state == "success"
    assert FACTS["rows"] == (4, 4)
    assert outcome.xcom("judge") == {"model": "weights", "loss": 0.2, "champion": None}

    runs = nested_runs(mlflow_api, unique)
    fit = runs["train"]
    assert {status_of(each) for each in runs.values()} == {"FINISHED"}
    assert fit["data"]["params"] == [{"key": "depth", "value": "3"}]
    assert metric(fit, "loss") == pytest.approx(0.2)
    assert fit["inputs"]["dataset_inputs"][0]["dataset"]["name"] == "table"
    assert len(RunTree(mlflow_api).get(run_id_of(runs["judge"]))["inputs"]["model_inputs"]) == 1
    tags = tags_of(fit)
    assert tags["airflow.log_url"].endswith(f"/dags/{unique}/runs/{quote(outcome.run_id)}/tasks/train?try_number=1")
    assert tags["airflow.state"] == "success"
    assert len(tags["mlflow.source.git.commit"]) == 40
    parent = RunTree(mlflow_api).get(tags["mlflow.parentRunId"])
    assert {each["key"]: each["value"] for each in parent["data"]["params"]} == {
        "window": "56",
        "api_token": "***",
        "why": "test",
    }
    assert tags_of(parent)["airflow.conf.why"] == "test"


def test_the_users_own_mlflow_calls_land_in_the_steps_run(run_dag: Any, unique: str, mlflow_api: MlflowApi) -> None:
    @ml_task
    def train(model: Output[Model]) -> None:
        import mlflow
        from sklearn.linear_model import LogisticRegression

        mlflow.log_param("mine", "yes")
        mlflow.log_metric("mine", 1.0)
        mlflow.sklearn.autolog(log_models=False, log_datasets=False)
        LogisticRegression().fit([[0.0], [1.0]], [0, 1])
        mlflow.sklearn.autolog(disable=True)
        with mlflow.start_run(nested=True, run_name="inner"):
            mlflow.log_metric("inner", 2.0)
        thread = threading.Thread(target=mlflow.log_metric, args=("from_thread", 3.0))
        thread.start()
        thread.join()
        code = "import mlflow; mlflow.log_metric('from_child', 4.0)"
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        Path(model.path).write_text("weights")

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        train()

    before = dict(os.environ)
    assert run_dag(example()).state == "success"
    assert {key: value for key, value in os.environ.items() if key.startswith("MLFLOW")} == {
        key: value for key, value in before.items() if key.startswith("MLFLOW")
    }
    import mlflow

    assert mlflow.active_run() is None
    runs = nested_runs(mlflow_api, unique)
    params = {each["key"] for each in runs["train"]["data"]["params"]}
    assert {"mine", "C", "solver"} <= params
    assert [metric(runs["train"], name) for name in ("mine", "from_thread", "from_child")] == [1.0, 3.0, 4.0]
    tree = RunTree(mlflow_api)
    assert len(tree.search([tree.experiment_id(unique)], "")) == 3, "the parent, the step, and its inner run; no stray one"
    assert status_of(runs["train"]) == "FINISHED"
    assert tags_of(runs["inner"])["mlflow.parentRunId"] == run_id_of(runs["train"])


def test_a_retry_continues_the_record_of_the_try_before(run_dag: Any, unique: str, mlflow_api: MlflowApi) -> None:
    @ml_task
    def train(now: str, metrics: Output[Metrics], ti: Any = None) -> None:
        import mlflow

        metrics.log_metric(f"try_{ti.try_number}", ti.try_number)
        mlflow.log_params({"mine": ti.try_number, "same": "x"})
        mlflow.log_param("also_mine", ti.try_number)
        if ti.try_number == 1:
            raise ValueError("the first try always fails")

    @dag(dag_id=unique, schedule=None, start_date=START, default_args=AT_ONCE)
    def example() -> None:
        train(now="{{ ti.try_number }}")

    outcome = run_dag(example())
    assert outcome.state == "success"
    (run,) = nested_runs(mlflow_api, unique).values()
    assert (metric(run, "try_1"), metric(run, "try_2")) == (1, 2)
    params = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert params == {"now": "1", "mine": "1", "also_mine": "1", "same": "x"}
    tags = tags_of(run)
    assert {tags[f"try-2.param.{name}"] for name in ("now", "mine", "also_mine")} == {"2"}
    assert "try-2.param.same" not in tags
    assert tags["airflow.try_number"] == "2"
    assert tags["airflow.error"] == "ValueError: the first try always fails"
    assert status_of(run) == "FINISHED"


def test_a_failed_step_keeps_its_metrics_and_a_skipped_one_its_state(run_dag: Any, unique: str, mlflow_api: MlflowApi) -> None:
    @ml_task
    def fails(metrics: Output[Metrics]) -> None:
        metrics.log_metric("before", 1.0)
        raise RuntimeError("out of ideas")

    @ml_task
    def forgets(table: Output[Dataset]) -> None: ...

    @ml_task
    def leaves_a_shell(table: Output[Dataset]) -> None:
        (Path(table.path) / "empty").mkdir(parents=True)

    @ml_task
    def talks(table: Output[Dataset]) -> None:
        Path(table.path).write_text("x")
        return 3  # type: ignore[return-value]

    @ml_task
    def skips(metrics: Output[Metrics], never_written: Output[Dataset]) -> None:
        metrics.log_metric("before", 2.0)
        raise AirflowSkipException("nothing to do")

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        fails()
        forgets()
        leaves_a_shell()
        talks()
        skips()

    outcome = run_dag(example())
    runs = nested_runs(mlflow_api, unique)
    assert (status_of(runs["fails"]), metric(runs["fails"], "before")) == ("FAILED", 1.0)
    assert tags_of(runs["fails"])["airflow.error"] == "RuntimeError: out of ideas"
    assert "was never written" in tags_of(runs["forgets"])["airflow.error"]
    assert "was never written" in tags_of(runs["leaves_a_shell"])["airflow.error"]
    assert "Return None" in tags_of(runs["talks"])["airflow.error"]
    assert {status_of(runs[name]) for name in ("forgets", "talks")} == {"FAILED"}
    assert outcome.task("skips") == "skipped"
    assert (status_of(runs["skips"]), tags_of(runs["skips"])["airflow.state"]) == ("FINISHED", "skipped")


def test_ten_large_outputs_and_directories_pass_by_reference(run_dag: Any, unique: str) -> None:
    @ml_task
    def many(
        a: Output[Dataset], b: Output[Dataset], c: Output[Dataset], d: Output[Dataset], e: Output[Dataset],
        f: Output[Dataset], g: Output[Model], h: Output[Artifact], i: Output[Metrics], j: Output[Artifact],
    ) -> None:  # fmt: skip
        for artifact in (a, b, c, d, e, f, g, h):
            Path(artifact.path).write_bytes(os.urandom(300_000))
        i.log_metric("x", 1)
        (Path(j.path) / "deep").mkdir(parents=True)
        (Path(j.path) / "deep" / "file").write_text("in a directory")

    @ml_task
    def reads(a: Input[Dataset], j: Input[Artifact]) -> list[Any]:
        return [Path(a.path).stat().st_size, (Path(j.path) / "deep" / "file").read_text()]

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        made = many()
        reads(made["a"], made["j"])

    import json

    outcome = run_dag(example())
    assert outcome.xcom("reads") == [300_000, "in a directory"]
    assert len(json.dumps(outcome.xcom("many"))) < 2000


def test_outputs_go_to_the_object_store_that_the_step_asks_for(run_dag: Any, unique: str, tmp_path: Path) -> None:
    @ml_task(artifact_root=f"file://{tmp_path}/bucket")
    def make_elsewhere(table: Output[Dataset]) -> None:
        Path(table.path).write_text("elsewhere")

    @ml_task
    def read(table: Input[Dataset], outside: Input[Dataset]) -> list[str]:
        return [table.uri, Path(table.path).read_text(), Path(outside.path).read_text()]

    (tmp_path / "raw.csv").write_text("from outside")

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        read(make_elsewhere()["table"], outside=str(tmp_path / "raw.csv"))

    outcome = run_dag(example())
    uri, text, outside = outcome.xcom("read")
    assert (text, outside) == ("elsewhere", "from outside")
    assert uri.startswith(f"file://{tmp_path}/bucket/{unique}/")


@pytest.fixture(scope="module")
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowProcess]:
    """An MLflow server of this module's own, to be killed and started again."""
    with MlflowProcess(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


@pytest.fixture
def fragile(own_server: MlflowProcess, airflow_db: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MlflowProcess:
    """The connection points at the fragile server; little patience, and a spool of the test's own."""
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", f'{{"conn_type": "mlflow", "host": "{own_server.url}"}}')
    monkeypatch.setenv("AIRFLOW__ML__HTTP_RETRIES", "0")
    monkeypatch.setenv("AIRFLOW__ML__SPOOL", str(tmp_path / "spool"))
    return own_server


def test_a_server_that_comes_back_within_the_patience_gets_everything(
    run_dag: Any, fragile: MlflowProcess, unique: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", f'{{"conn_type": "mlflow", "host": "{fragile.url}"}}')
    monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "120")

    @ml_task
    def train(table: Output[Dataset], metrics: Output[Metrics]) -> None:
        import threading

        metrics.log_metric("before", 1)
        fragile.kill()
        for step in range(1500):
            metrics.log_metric("during", step, step=step)
        Path(table.path).write_text("trained without a server")
        threading.Timer(2, fragile.start).start()

    @ml_task
    def read(table: Input[Dataset]) -> str:
        return Path(table.path).read_text()

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        read(train()["table"])

    outcome = run_dag(example())
    assert outcome.xcom("read") == "trained without a server"
    with MlflowApi(MlflowServer("c", fragile.url), Settings()) as api:
        run = nested_runs(api, unique)["train"]
        assert (status_of(run), metric(run, "before"), metric(run, "during")) == ("FINISHED", 1, 1499)
    assert not list((tmp_path / "spool").rglob("record.json"))


def test_a_server_that_stays_away_costs_the_step_but_not_its_record(
    run_dag: Any, fragile: MlflowProcess, unique: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", f'{{"conn_type": "mlflow", "host": "{fragile.url}"}}')
    monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "2")

    @ml_task
    def train(model: Output[Model], metrics: Output[Metrics]) -> None:
        fragile.kill()
        metrics.log_metric("auc", 0.7)
        Path(model.path).write_text("weights")

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        train()

    try:
        outcome = run_dag(example())
    finally:
        fragile.start()
    assert outcome.task("train") == "failed"
    (kept,) = (tmp_path / "spool").rglob("record.json")
    with MlflowApi(MlflowServer("c", fragile.url), Settings()) as api:
        assert status_of(nested_runs(api, unique)["train"]) in {"RUNNING", "FAILED"}  # as soon as the listener looks
        record = spool.resend(str(kept.parent), Recorder(api))
        run = nested_runs(api, unique)["train"]
        assert (status_of(run), metric(run, "auc")) == ("FINISHED", 0.7)
        assert record.outputs[0].model_id is not None


def test_a_step_that_cannot_open_its_run_never_runs_its_function(
    run_dag: Any, unique: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.servers import free_port

    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", f'{{"conn_type": "mlflow", "host": "http://127.0.0.1:{free_port()}"}}')
    FACTS["ran"] = False

    @ml_task
    def train(table: Output[Dataset]) -> None:
        FACTS["ran"] = True

    @task(trigger_rule="all_done")
    def after() -> None: ...

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        train() >> after()

    assert run_dag(example()).task("train") == "failed"
    assert FACTS["ran"] is False


def test_an_overtaken_try_becomes_neither_result_nor_record(
    run_dag: Any, unique: str, mlflow_api: MlflowApi, mlflow_server: MlflowServer
) -> None:
    @ml_task
    def train(table: Output[Dataset], metrics: Output[Metrics], ti: Any = None) -> None:
        identity = StepIdentity(dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id)
        with MlflowApi(mlflow_server, Settings()) as api:  # what a second try does when it starts
            RunTree(api).open(unique, Attempt(identity=identity, try_number=2, ti_id="the-other"))
        metrics.log_metric("late", 1)
        Path(table.path).write_text("late")

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        train()

    outcome = run_dag(example())
    assert outcome.task("train") == "failed"
    assert outcome.xcom("train") is None
    (run,) = nested_runs(mlflow_api, unique).values()
    assert (status_of(run), metric(run, "late"), tags_of(run)["airflow.try_number"]) == ("RUNNING", None, "2")


def test_a_step_that_runs_out_of_time_is_failed_in_mlflow_as_in_airflow(run_dag: Any, unique: str, mlflow_api: MlflowApi) -> None:
    @ml_task(execution_timeout=timedelta(seconds=1))
    def slow(metrics: Output[Metrics]) -> None:
        import time

        metrics.log_metric("before", 1)
        time.sleep(30)

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        slow()

    outcome = run_dag(example())
    assert outcome.task("slow") == "failed"
    (run,) = nested_runs(mlflow_api, unique).values()
    assert (status_of(run), tags_of(run)["airflow.state"], metric(run, "before")) == ("FAILED", "failed", 1)


def test_what_mlflow_refuses_at_the_end_is_kept(
    run_dag: Any, unique: str, mlflow_api: MlflowApi, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("AIRFLOW__ML__SPOOL", str(tmp_path / "spool"))

    @ml_task(retries=3, retry_delay=timedelta(0))
    def train(table: Output[Dataset], metrics: Output[Metrics], ti: Any = None) -> None:
        metrics.log_metric("precision@5", 0.5)
        Path(table.path).write_text("hours of work")
        (run,) = nested_runs(mlflow_api, unique).values()
        mlflow_api.post("runs/delete", {"run_id": run_id_of(run)})  # what a person can do meanwhile

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        train()

    outcome = run_dag(example())
    assert outcome.task("train") in {"failed", "up_for_retry"}
    kept = [spool.read(str(each.parent)) for each in (tmp_path / "spool").rglob("record.json")]
    assert {each.outputs[0].name for each in kept} == {"table"}
    assert {point.key for each in kept for point in each.metrics} == {"precision_5"}


def test_a_store_that_cannot_be_written_costs_no_metric(run_dag: Any, unique: str, mlflow_api: MlflowApi, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder can be made below a file")

    @ml_task(artifact_root=f"file://{tmp_path}/file")
    def train(depth: int, table: Output[Dataset], metrics: Output[Metrics]) -> None:
        metrics.log_metric("auc", 0.7)
        Path(table.path).write_text("x")

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        train(depth=3)

    assert run_dag(example()).task("train") == "failed"
    (run,) = nested_runs(mlflow_api, unique).values()
    assert "cannot be read or written" in tags_of(run)["airflow.error"]
    assert (status_of(run), metric(run, "auc"), len(run["data"]["params"])) == ("FAILED", 0.7, 1)


@pytest.mark.full
def test_a_spool_that_cannot_be_written_does_not_fail_a_step_whose_server_comes_back(
    run_dag: Any, fragile: MlflowProcess, unique: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", f'{{"conn_type": "mlflow", "host": "{fragile.url}"}}')
    monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "120")
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("AIRFLOW__ML__SPOOL", str(tmp_path / "file"))

    @ml_task
    def train(table: Output[Dataset]) -> None:
        fragile.kill()
        Path(table.path).write_text("x")
        threading.Timer(2, fragile.start).start()

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        train()

    assert run_dag(example()).task("train") == "success"
