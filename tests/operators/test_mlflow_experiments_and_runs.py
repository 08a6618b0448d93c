"""Experiments and runs handled by tasks, in real DAG runs against a real MLflow server."""

from __future__ import annotations

import itertools
import logging
import math
from dataclasses import replace

import pendulum
import pytest
from airflow.sdk import DAG, dag

from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.operators.mlflow_experiments import (
    MlflowCreateExperimentOperator,
    MlflowDeleteExperimentOperator,
    MlflowSearchExperimentsOperator,
)
from airflow_ml_provider.operators.mlflow_runs import (
    MlflowFinishRunOperator,
    MlflowLogOperator,
    MlflowRunActionOperator,
    MlflowSearchRunsOperator,
    MlflowStartRunOperator,
)
from airflow_ml_provider.tracking.experiments import Experiments
from airflow_ml_provider.tracking.run_records import RunRecords
from airflow_ml_provider.tracking.runs import RunTree, tags_of
from tests.mlflow_proxy import MlflowProxy
from tests.servers import connection

START = pendulum.datetime(2024, 1, 1)


@pytest.fixture
def run_tasks(run_dag, unique):
    """Run tasks one after the other in a DAG of the test's name."""

    def run(make, day=0, **kwargs):
        with DAG(dag_id=unique, schedule=None, start_date=START, **kwargs) as made:
            tasks = make()
            for before, after in itertools.pairwise(tasks):
                before >> after
        return run_dag(made, logical_date=START.add(days=day))

    return run


@pytest.fixture
def lossy(mlflow_server, monkeypatch):
    """The connection, led through a proxy that loses answers."""
    monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "30")
    with MlflowProxy(mlflow_server.url) as proxy:
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(replace(mlflow_server, url=proxy.url)))
        yield proxy


@pytest.fixture
def new_run(mlflow_api, unique):
    def make(name="r", **tags):
        experiment_id = RunTree(mlflow_api).experiment_id(unique)
        pairs = [{"key": key, "value": value} for key, value in tags.items()]
        body = {"experiment_id": experiment_id, "run_name": name, "start_time": 1, "tags": pairs}
        return mlflow_api.post("runs/create", body, repeatable=False)["run"]["info"]["run_id"]

    return make


class TestExperiments:
    def test_an_experiment_is_made_found_listed_deleted_and_brought_back(self, run_tasks, unique, mlflow_server):
        name = f"team/ü {unique}"

        def tasks():
            return [
                MlflowCreateExperimentOperator(task_id="make", name="{{ params.name }}", tags={"owner": "{{ params.owner }}"}),
                MlflowCreateExperimentOperator(task_id="find", name=name, must_exist=True),
                MlflowSearchExperimentsOperator(task_id="list", tags={"owner": "{{ params.owner }}"}),
                MlflowDeleteExperimentOperator(task_id="delete", name=name),
                MlflowDeleteExperimentOperator(task_id="delete_again", name=name),
                MlflowCreateExperimentOperator(task_id="back", name=name),
            ]

        done = run_tasks(tasks, params={"name": name, "owner": f"o'{unique}"})
        assert done.state == "success"
        made = done.xcom("make")
        assert (made["name"], made["lifecycle_stage"], made["tags"]["owner"]) == (name, "active", f"o'{unique}")
        assert made["url"] == mlflow_server.experiment_page(made["experiment_id"])
        assert done.xcom("find") == made
        assert [each["experiment_id"] for each in done.xcom("list")] == [made["experiment_id"]]
        assert [done.xcom(each)["lifecycle_stage"] for each in ("delete", "delete_again", "back")] == [
            "deleted",
            "deleted",
            "active",
        ]
        assert done.xcom("back")["experiment_id"] == made["experiment_id"]

    def test_an_experiment_whose_answer_was_lost_is_found_and_made_once(self, run_tasks, lossy, unique):
        lossy.lose = ["experiments/create"]
        done = run_tasks(lambda: [MlflowCreateExperimentOperator(task_id="make", name=unique)])
        assert (done.state, done.xcom("make")["name"]) == ("success", unique)
        assert lossy.count("experiments/create") == 1

    def test_what_is_not_there_is_told_apart(self, run_tasks, unique):
        done = run_tasks(lambda: [MlflowDeleteExperimentOperator(task_id="none", name=f"{unique}-none")])
        assert (done.state, done.xcom("none")["lifecycle_stage"]) == ("success", "gone")
        done = run_tasks(lambda: [MlflowCreateExperimentOperator(task_id="none", name=f"{unique}-none", must_exist=True)], day=1)
        assert done.task("none") == "failed"

    def test_an_experiment_with_another_place_is_refused(self, mlflow_api, unique):
        experiments = Experiments(mlflow_api)
        experiments.make(unique)
        with pytest.raises(ConfigError, match="keeps its artifacts at"):
            experiments.make(unique, artifact_location="mlflow-artifacts:/elsewhere")
        experiments.delete(unique)
        with pytest.raises(ConfigError, match="is deleted"):
            experiments.make(unique, restore=False)

    @pytest.mark.parametrize("name", ["", "  ", "a\nb", "x" * 10_000, "a\x00b"])
    def test_names_that_mlflow_does_not_take_are_refused(self, mlflow_api, name):
        with pytest.raises(ConfigError, match="cannot be the name of an MLflow experiment") as raised:
            Experiments(mlflow_api).make(name)
        assert len(str(raised.value)) < 300

    def test_mapped_over_names(self, run_dag, unique):
        names = [f"{unique}-{each}" for each in "ab"]

        @dag(dag_id=unique, schedule=None, start_date=START)
        def mapped():
            MlflowCreateExperimentOperator.partial(task_id="make").expand(name=names)

        done = run_dag(mapped(), logical_date=START)
        assert [done.xcom("make", index)["name"] for index in (0, 1)] == names


class TestRuns:
    def test_a_run_is_started_filled_and_ended(self, run_tasks, unique, mlflow_api, tmp_path):
        (tmp_path / "plots").mkdir()
        (tmp_path / "plots/a.txt").write_text("a")
        pulled = "{{ ti.xcom_pull(task_ids='start')['run_id'] }}"

        def tasks():
            return [
                MlflowStartRunOperator(
                    task_id="start",
                    run_name="night {{ ds }}",
                    parameters={"depth": 3, "password": "hunter2"},
                    tags={"team": "b'lue"},
                    description="what it is",
                ),
                MlflowLogOperator(
                    task_id="log",
                    run_id=pulled,
                    metrics={"auc": "{{ 0.5 + 0.25 }}", "lost": "nan"},
                    step="{{ 7 }}",
                    artifacts={"made/plots": str(tmp_path / "plots")},
                    texts={"notes/ü.txt": "hello", "notes/x.json": {"a": [1]}},
                    datasets=[{"name": "flights", "uri": "s3://bucket/flights", "context": "training"}],
                ),
                MlflowFinishRunOperator(task_id="finish", run_id=pulled),
                MlflowSearchRunsOperator(task_id="search", tags={"team": "b'lue"}, filter_string="metrics.auc > 0.7"),
            ]

        done = run_tasks(tasks)
        assert done.state == "success"
        started = done.xcom("start")
        assert (started["run_name"], started["status"]) == ("night 2024-01-01", "RUNNING")
        assert started["params"] == {"depth": "3", "password": "***"}
        assert started["tags"]["mlflow.note.content"] == "what it is"
        run_id = started["run_id"]
        uris = [f"runs:/{run_id}/{each}" for each in ("made/plots", "notes/ü.txt", "notes/x.json")]
        assert done.xcom("log")["artifacts"] == uris
        run = mlflow_api.get("runs/get", run_id=run_id)["run"]
        assert run["inputs"]["dataset_inputs"][0]["dataset"]["name"] == "flights"
        points = mlflow_api.get("metrics/get-history", run_id=run_id, metric_key="auc")["metrics"]
        assert [(each["value"], each["step"]) for each in points] == [(0.75, 7)]
        assert done.xcom("finish")["status"] == "FINISHED"
        (found,) = done.xcom("search")
        assert (found["run_id"], found["metrics"]) == (run_id, {"auc": 0.75, "lost": "NaN"})

    def test_a_run_whose_answer_was_lost_is_found_and_started_once(self, run_tasks, lossy, unique):
        lossy.lose = ["runs/create", "runs/log-batch"]
        done = run_tasks(lambda: [MlflowStartRunOperator(task_id="start", parameters={"a": 1})])
        assert (done.state, done.xcom("start")["params"]) == ("success", {"a": "1"})
        assert lossy.count("runs/create") == 1

    def test_a_retry_takes_up_the_run_of_the_try_before(self, run_tasks, unique, mlflow_api):
        class Cut(MlflowStartRunOperator):
            def act(self, api, context):
                made = super().act(api, context)
                if context["ti"].try_number == 1:
                    RunRecords(api).finish(made["run_id"], "FAILED")
                    raise RuntimeError("the worker is lost here")
                return made

        done = run_tasks(lambda: [Cut(task_id="start", retries=1, retry_delay=0, tags={"x": "1"})])
        assert (done.state, done.xcom("start")["status"]) == ("success", "RUNNING")
        runs = RunTree(mlflow_api)
        (found,) = runs.search([runs.experiment_id(unique)], "")
        assert tags_of(found)["airflow.try_number"] == "2"

    def test_a_started_run_stays_open_when_its_dag_run_has_ended(self, run_tasks, mlflow_api):
        done = run_tasks(lambda: [MlflowStartRunOperator(task_id="start")])
        run = mlflow_api.get("runs/get", run_id=done.xcom("start")["run_id"])["run"]
        assert run["info"]["status"] == "RUNNING"
        assert "airflow.dag_id" not in tags_of(run), "by this a sweep would end it"

    def test_mapped_runs_are_told_apart_and_nested(self, run_dag, unique):
        @dag(dag_id=unique, schedule=None, start_date=START)
        def mapped():
            top = MlflowStartRunOperator(task_id="top")
            below = MlflowStartRunOperator.partial(task_id="below", parent_run_id=top.output["run_id"]).expand(
                run_name=["a", "b"]
            )
            MlflowFinishRunOperator.partial(task_id="end", status="KILLED").expand(
                run_id=below.output.map(lambda run: run["run_id"])
            )

        done = run_dag(mapped(), logical_date=START)
        assert done.state == "success"
        below = [done.xcom("below", index) for index in (0, 1)]
        assert [each["run_name"] for each in below] == ["a", "b"]
        assert {each["tags"]["mlflow.parentRunId"] for each in below} == {done.xcom("top")["run_id"]}
        assert [done.xcom("end", index)["status"] for index in (0, 1)] == ["KILLED", "KILLED"]

    def test_ending_again_keeps_the_time(self, mlflow_api, new_run):
        runs, run_id = RunRecords(mlflow_api), new_run()
        first = runs.finish(run_id, "FINISHED")
        assert runs.finish(run_id, "FINISHED") == first
        assert runs.finish(run_id, "FAILED")["status"] == "FAILED"

    def test_a_run_is_deleted_and_restored_and_again(self, run_tasks, new_run):
        run_id = new_run()

        def tasks():
            actions = [("delete", "delete"), ("again", "delete"), ("restore", "restore"), ("restored", "restore")]
            return [MlflowRunActionOperator(task_id=name, run_id=run_id, action=action) for name, action in actions]

        done = run_tasks(tasks)
        stages = [done.xcom(each)["lifecycle_stage"] for each in ("delete", "again", "restore", "restored")]
        assert stages == ["deleted", "deleted", "active", "active"]

    def test_a_run_that_is_gone_is_deleted_unless_the_server_does_not_tell_it_from_another_users(self, run_tasks, mlflow_server):
        gone = "f" * 32
        done = run_tasks(lambda: [MlflowRunActionOperator(task_id="none", run_id=gone, action="delete", retries=3)])
        if mlflow_server.username:
            assert (done.task("none"), done.xcom("none")) == ("failed", None)
        else:
            assert done.xcom("none") == {"run_id": gone, "lifecycle_stage": "gone"}

    def test_to_log_twice_is_to_log_once(self, mlflow_api, new_run):
        runs, run_id = RunRecords(mlflow_api), new_run()
        for _ in range(2):
            runs.log_values(run_id, {"a": 1}, {"t": "x"})
            runs.log_metrics(run_id, {"m": 1.0, "nan": math.nan, "inf": math.inf}, 3)
            runs.log_datasets(run_id, [{"name": "d", "uri": "s3://b/d"}, {"name": "d", "uri": "s3://b/e"}])
            runs.log_artifacts(run_id, {}, {"a/b.txt": "text"})
        for name in ("m", "nan", "inf"):
            assert len(mlflow_api.get("metrics/get-history", run_id=run_id, metric_key=name)["metrics"]) == 1
        runs.log_metrics(run_id, {"m": 2.0}, 4)
        runs.log_metrics(run_id, {"m": 1.0}, 3)
        assert len(mlflow_api.get("metrics/get-history", run_id=run_id, metric_key="m")["metrics"]) == 2
        assert len(runs.tree.get(run_id)["inputs"]["dataset_inputs"]) == 2
        with pytest.raises(ConfigError, match="parameter 'a' is '1' on record, and MLflow never changes one"):
            runs.log_values(run_id, {"a": 2}, {})

    def test_searching_pages_and_stops(self, mlflow_api, new_run, unique):
        ids = {new_run(name=str(each)) for each in range(5)}
        runs, where = RunRecords(mlflow_api), Experiments(mlflow_api).ids([unique])
        assert {each["run_id"] for each in runs.search(where)} == ids
        assert len(runs.search(where, max_results=3)) == 3
        with pytest.raises(RemoteNotFoundError):
            Experiments(mlflow_api).ids([f"{unique}-none"])


class TestHostileInput:
    def test_a_value_in_a_filter_stays_a_value(self, mlflow_api, new_run, unique):
        evil = "x' or tags.`a` != 'y"
        run_id = new_run(a=evil)
        new_run(a="other")
        runs, where = RunRecords(mlflow_api), Experiments(mlflow_api).ids([unique])
        assert [each["run_id"] for each in runs.search(where, tags={"a": evil})] == [run_id]
        with pytest.raises(ConfigError, match="both kinds of quotes"):
            runs.search(where, tags={"a": "'\""})
        with pytest.raises(ConfigError, match="no backquote"):
            runs.search(where, tags={"a` = '' or tags.`b": "x"})

    @pytest.mark.parametrize("filter_string", ["1=1; drop table runs", "params.x = ", "'"])
    def test_a_filter_that_is_none_fails_at_once(self, run_tasks, new_run, unique, filter_string):
        new_run()
        done = run_tasks(lambda: [MlflowSearchRunsOperator(task_id="search", filter_string=filter_string, retries=3)])
        assert done.task("search") == "failed"

    @pytest.mark.parametrize(
        "path",
        ["../x", "a/../../x", "/etc/passwd", "a\\..\\b", "%2e%2e/x", "%252e%252e/x", "c:/x", "~/x", "", "a\nb", "x" * 10_000],
    )
    def test_paths_that_climb_are_refused_before_anything_is_stored(self, mlflow_api, new_run, path):
        run_id = new_run()
        with pytest.raises(ConfigError, match="cannot be the path of an artifact"):
            RunRecords(mlflow_api).log_artifacts(run_id, {}, {"good.txt": "x", path: "x"})
        assert mlflow_api.get("artifacts/list", run_id=run_id).get("files", []) == []

    @pytest.mark.parametrize("run_id", ["../x", "a b", "'", "x" * 10_000, "", None])
    def test_ids_that_are_none_are_refused(self, mlflow_api, run_id):
        with pytest.raises(ConfigError, match="cannot be the id of an MLflow run"):
            RunRecords(mlflow_api).delete(run_id)

    def test_a_password_in_a_uri_is_refused_and_never_shown(self, run_tasks, new_run, caplog, capfd):
        run_id = new_run()
        uri = "https://ada:hunter22@store/flights"

        def tasks():
            return [MlflowLogOperator(task_id="log", run_id=run_id, datasets=[{"name": "d", "uri": uri}])]

        with caplog.at_level(logging.DEBUG):
            assert run_tasks(tasks).task("log") == "failed"
        out, err = capfd.readouterr()
        assert "hunter22" not in "".join(each.getMessage() for each in caplog.records)
        assert "holds a password" in out + err + caplog.text

    def test_what_mlflow_refuses_is_not_tried_again(self, run_tasks, new_run):
        run_id = new_run()
        done = run_tasks(lambda: [MlflowLogOperator(task_id="log", run_id=run_id, metrics={"a?!;": 1.0}, retries=3)])
        assert done.task("log") == "failed"

    def test_arguments_are_refused_when_the_dag_is_parsed(self):
        with pytest.raises(ConfigError, match="none of delete, restore"):
            MlflowRunActionOperator(task_id="t", run_id="x", action="purge")
        with pytest.raises(ConfigError, match="run_id"):
            MlflowFinishRunOperator(task_id="t", run_id="")


def test_the_link_leads_to_the_page_of_what_was_made(mlflow_connection, mlflow_server, mlflow_api, new_run):
    run_id = new_run()
    operator = MlflowFinishRunOperator(task_id="finish", run_id=run_id)
    assert operator.execute({})["url"] == operator.mlflow_page_url
    (link,) = operator.operator_extra_links
    page = mlflow_server.run_page(_experiment(mlflow_api, run_id), run_id)
    assert link.get_link(operator, ti_key=None) == page


def _experiment(api, run_id):
    return api.get("runs/get", run_id=run_id)["run"]["info"]["experiment_id"]
