"""Cleaning up old runs, in real DAG runs against a real MLflow server."""

from __future__ import annotations

from datetime import timedelta

import pendulum
import pytest
from airflow.sdk import DAG

from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError
from airflow_ml_provider.operators.mlflow_cleanup import MlflowCleanUpRunsOperator
from airflow_ml_provider.tracking.cleanup import CleanUp, Rules, trees_of
from airflow_ml_provider.tracking.lineage_tags import READ
from airflow_ml_provider.tracking.registry_versions import RegistryVersions
from airflow_ml_provider.tracking.run_records import RunRecords
from airflow_ml_provider.tracking.runs import RunTree, now_ms
from tests.tracking.cuts import CutApi

START = pendulum.datetime(2024, 1, 1)
DAY_MS = 86_400_000


@pytest.fixture
def experiment_id(mlflow_api, unique):
    return RunTree(mlflow_api).experiment_id(unique)


@pytest.fixture
def ended(mlflow_api, experiment_id):
    """Make a run that has ended some days ago, with an artifact."""

    def make(days=10, *, parent=None, status="FINISHED", where=None, **tags):
        at = now_ms() - days * DAY_MS
        tags |= {"mlflow.parentRunId": parent} if parent else {}
        pairs = [{"key": key, "value": value} for key, value in tags.items()]
        body = {"experiment_id": where or experiment_id, "start_time": at, "tags": pairs}
        run_id = mlflow_api.post("runs/create", body, repeatable=False)["run"]["info"]["run_id"]
        RunRecords(mlflow_api).log_artifacts(run_id, {}, {"a/b.txt": "x"})
        if status != "RUNNING":
            mlflow_api.post("runs/update", {"run_id": run_id, "status": status, "end_time": at + 1})
        return run_id

    return make


@pytest.fixture
def model_of(mlflow_api, experiment_id):
    """Make a LoggedModel of a run, with a file."""

    def make(run_id):
        body = {"experiment_id": experiment_id, "name": "m", "source_run_id": run_id}
        info = mlflow_api.post("logged-models", body, repeatable=False)["model"]["info"]
        mlflow_api.post("runs/outputs", {"run_id": run_id, "models": [{"model_id": info["model_id"], "step": 0}]})
        mlflow_api.upload(info["artifact_uri"].partition(":/")[2].strip("/") + "/m.txt", [b"m"], 1)
        return info["model_id"]

    return make


@pytest.fixture
def clean(mlflow_api, experiment_id):
    def run(api=None, *, delete_artifacts=False, dry_run=False, days=5, **rules):
        before = None if days is None else now_ms() - days * DAY_MS
        given = {"experiment_ids": [experiment_id], "ended_before_ms": before, "keep_last": 0} | rules
        return CleanUp(api or mlflow_api, Rules(**given)).run(dry_run=dry_run, delete_artifacts=delete_artifacts).to_json()

    return run


@pytest.fixture
def stage(mlflow_api):
    return lambda run_id: mlflow_api.get("runs/get", run_id=run_id)["run"]["info"]["lifecycle_stage"]


@pytest.fixture
def has_files(mlflow_api):
    return lambda run_id: bool(mlflow_api.get("artifacts/list", run_id=run_id).get("files"))


def test_a_dry_run_is_the_default_and_changes_nothing(run_dag, unique, ended, stage, has_files):
    old, young = ended(10), ended(1)
    with DAG(dag_id=unique, schedule=None, start_date=START) as made:
        given = {"experiments": ["{{ dag.dag_id }}"], "older_than": timedelta(days=5), "delete_artifacts": True}
        look = MlflowCleanUpRunsOperator(task_id="look", **given)
        do = MlflowCleanUpRunsOperator(task_id="do", delete="{{ 1 == 1 }}", **given)
        again = MlflowCleanUpRunsOperator(task_id="again", delete=True, **given)
        look >> do >> again
    done = run_dag(made, logical_date=START)
    assert done.state == "success"
    said = {each: done.xcom(each) for each in ("look", "do", "again")}
    assert [(each["dry_run"], each["runs"]) for each in said.values()] == [(True, [old]), (False, [old]), (False, [])]
    assert {each["artifacts_deleted"] for each in (said["look"], said["do"])} == {1}
    assert "mlflow gc" in said["do"]["only_gc"]
    assert said["do"]["kept"] == {"young": 1}
    assert (stage(old), stage(young), has_files(old), has_files(young)) == ("deleted", "active", False, True)


def test_a_template_that_is_not_plainly_true_deletes_nothing(run_dag, unique, ended, stage):
    old = ended()
    with DAG(dag_id=unique, schedule=None, start_date=START) as made:
        MlflowCleanUpRunsOperator.partial(task_id="t", older_than=timedelta(0)).expand(delete=["None", "", "False", "{{ none }}"])
    assert run_dag(made, logical_date=START).state == "success"
    assert stage(old) == "active"


@pytest.mark.full
def test_without_artifacts_a_clean_up_can_be_undone(clean, ended, model_of, stage, has_files, mlflow_api):
    old = ended()
    model = model_of(old)
    assert clean()["runs"] == [old]
    assert (stage(old), has_files(old)) == ("deleted", True)
    RunRecords(mlflow_api).restore(old)
    assert mlflow_api.get(f"logged-models/{model}")["model"]["info"]["model_id"] == model


def test_the_newest_stay_with_all_below_them(clean, ended):
    older, old = ended(12), ended(11)
    newest = ended(10)
    below = ended(9, parent=newest)
    said = clean(keep_last=1, days=None)
    assert (set(said["runs"]), said["kept"]) == ({older, old}, {"newest": 2})
    assert below not in said["runs"]


def test_a_tree_goes_or_stays_as_a_whole(clean, ended):
    top = ended(20)
    ended(20, parent=top)
    ended(1, parent=top)
    gone = ended(20)
    child = ended(20, parent=gone)
    said = clean()
    assert said["runs"] == [child, gone], "the top run last, so that a tree that is cut is found again"
    assert said["kept"] == {"young": 3}


@pytest.mark.parametrize("source", ["model", "run", pytest.param("copy", marks=pytest.mark.full)])
def test_what_is_registered_stays_with_or_without_an_alias(clean, ended, model_of, mlflow_api, unique, stage, source):
    run_id, other = ended(), ended()
    uri = f"models:/{model_of(run_id)}" if source != "run" else f"runs:/{run_id}/a"
    registry = RegistryVersions(mlflow_api)
    registry.register(unique, uri)
    if source == "copy":
        registry.register(f"{unique}-copy", f"models:/{unique}/1")
        registry.delete(unique, None, delete_aliased=True)
    said = clean(delete_artifacts=True)
    assert (said["runs"], said["kept"], stage(run_id)) == ([other], {"registered": 1}, "active")


@pytest.mark.full
def test_what_a_run_that_stays_has_read_stays_and_what_that_has_read_too(clean, ended, model_of, mlflow_api, unique):
    elsewhere = RunTree(mlflow_api).experiment_id(f"{unique}-elsewhere")
    data, fit, unread = ended(30), ended(20), ended(30)
    model = model_of(fit)
    reader = ended(1, where=elsewhere)
    RunRecords(mlflow_api).log_datasets(fit, [{"name": "d", "uri": f"runs:/{data}/a/b.txt"}])
    mlflow_api.post("runs/log-inputs", {"run_id": reader, "models": [{"model_id": model}]})
    said = clean(delete_artifacts=True)
    assert (said["runs"], said["kept"]) == ([unread], {"read": 2})


@pytest.mark.parametrize("kind", ["model", "run"])
def test_what_a_run_that_stays_names_in_a_tag_as_read_stays_though_mlflow_knows_of_no_input(clean, ended, model_of, stage, kind):
    maker, unread = ended(30), ended(30)
    ended(1, **{READ + (model_of(maker) if kind == "model" else maker): "try-1/model", f"{READ}sha256-{'0' * 12}": "try-1/x"})
    said = clean(delete_artifacts=True)
    assert (said["runs"], said["kept"], stage(maker)) == ([unread], {"read": 1, "young": 1}, "active")


def test_what_only_runs_that_go_have_read_goes_with_them_the_readers_first(clean, ended, mlflow_api):
    data, reader = ended(30), ended(20)
    RunRecords(mlflow_api).log_datasets(reader, [{"name": "d", "uri": f"runs:/{data}/a/b.txt"}])
    assert clean()["runs"] == [reader, data]


def test_open_tagged_and_unfiltered_runs_stay(clean, ended):
    ended(status="RUNNING")
    ended(status="FAILED", **{"airflow.keep": ""})
    failed = ended(status="FAILED")
    ended()
    said = clean(filter_string="attributes.status = 'FAILED'", keep_tag="airflow.keep")
    assert (said["runs"], said["kept"]) == ([failed], {"running": 1, "filter": 1, "tag": 1})
    assert sum(said["kept"].values()) == 3


def test_no_more_go_than_the_limit_and_the_rest_the_next_time(clean, ended):
    first, second = ended(20), ended(10)
    said = clean(limit=1)
    assert (said["runs"], said["kept"]) == ([second], {"limit": 1})
    assert clean(limit=1)["runs"] == [first]


@pytest.mark.parametrize("kind", ["dataset", pytest.param("model", marks=pytest.mark.full)])
def test_what_a_run_has_read_that_stays_for_the_limit_stays_too(clean, ended, model_of, mlflow_api, kind):
    data, unread = ended(30), ended(40)
    reader = ended(20)
    ended(20, parent=reader)
    if kind == "dataset":
        RunRecords(mlflow_api).log_datasets(reader, [{"name": "d", "uri": f"runs:/{data}/a/b.txt"}])
    else:
        mlflow_api.post("runs/log-inputs", {"run_id": reader, "models": [{"model_id": model_of(data)}]})
    said = clean(limit=1)
    assert (said["runs"], said["kept"]) == ([], {"limit": 3, "read": 1}), "the reader's tree is too large for the limit"
    assert clean(limit=4)["runs"][2:] == [data, unread]


@pytest.mark.parametrize("source", [pytest.param("model", marks=pytest.mark.full), "place"])
def test_a_model_registered_since_the_plan_keeps_its_run_though_the_version_names_none(
    ended, model_of, mlflow_api, experiment_id, unique, stage, source
):
    run_id = ended()
    uri = f"models:/{model_of(run_id)}" if source == "model" else f"s3://b/{run_id}/artifacts/a"

    class Raced(CleanUp):
        def _plan(self, report):
            planned = super()._plan(report)
            mlflow_api.post("registered-models/create", {"name": unique})
            model = {"model_id": uri.removeprefix("models:/")} if source == "model" else {}
            mlflow_api.post("model-versions/create", {"name": unique, "source": uri} | model)
            return planned

    said = Raced(mlflow_api, Rules([experiment_id], now_ms(), 0)).run(dry_run=False, delete_artifacts=True)
    assert (said.runs, said.kept, stage(run_id)) == ([], {"registered": 1}, "active")


@pytest.mark.parametrize("status", ["RUNNING", "FINISHED"])
def test_what_a_run_has_read_since_the_plan_stays(ended, mlflow_api, experiment_id, unique, stage, status):
    run_id, other = ended(), ended()
    elsewhere = RunTree(mlflow_api).experiment_id(f"{unique}-elsewhere")
    reader = mlflow_api.post("runs/create", {"experiment_id": elsewhere, "start_time": now_ms()})["run"]["info"]["run_id"]

    class Raced(CleanUp):
        def _plan(self, report):
            planned = super()._plan(report)
            RunRecords(mlflow_api).log_datasets(reader, [{"name": "d", "uri": f"runs:/{run_id}/a/b.txt"}])
            mlflow_api.post("runs/update", {"run_id": reader, "status": status, "end_time": now_ms()})
            return planned

    said = Raced(mlflow_api, Rules([experiment_id], now_ms(), 0)).run(dry_run=False, delete_artifacts=True)
    assert (said.runs, said.kept, stage(run_id), stage(other)) == ([other], {"read": 1}, "active", "deleted")


def test_a_model_registered_since_the_plan_keeps_its_run(ended, model_of, mlflow_api, experiment_id, unique, stage):
    run_id = ended()
    model = model_of(run_id)

    class Raced(CleanUp):
        def _plan(self, report):
            planned = super()._plan(report)
            RegistryVersions(mlflow_api).register(unique, f"models:/{model}")
            return planned

    said = Raced(mlflow_api, Rules([experiment_id], now_ms(), 0)).run(dry_run=False, delete_artifacts=True)
    assert (said.runs, stage(run_id)) == ([], "active")


@pytest.mark.full
@pytest.mark.parametrize("answered", [False, True])
def test_cut_anywhere_and_called_again_it_ends_in_the_same_state(clean, ended, model_of, mlflow_api, stage, has_files, answered):
    for at in range(4, 8):
        top = ended(20)
        child = ended(20, parent=top)
        model_of(child)
        with CutApi(mlflow_api, at, answered) as cut:
            try:
                clean(cut, delete_artifacts=True)
            except RemoteUnavailableError:
                clean(delete_artifacts=True)
        assert [stage(top), stage(child), has_files(top), has_files(child)] == ["deleted", "deleted", False, False]


def test_places_that_are_not_the_runs_own_are_left_and_named(mlflow_api, ended, experiment_id):
    run_id = ended()
    cleaning = CleanUp(mlflow_api, Rules([experiment_id], now_ms(), 0))
    report = cleaning.run(dry_run=True, delete_artifacts=True)
    places = ["s3://bucket/1/artifacts", "mlflow-artifacts:/shared", f"mlflow-artifacts:/{run_id}/../other", ""]
    for each in places:
        cleaning._delete_bytes(each, run_id, report)
    assert report.artifacts_left == places


def test_runs_that_are_each_others_parents_are_one_tree():
    def run(run_id, parent, at):
        return {"info": {"run_id": run_id, "start_time": at}, "data": {"tags": [{"key": "mlflow.parentRunId", "value": parent}]}}

    trees = trees_of([run("a", "b", 1), run("b", "a", 2), run("c", "b", 3), run("d", "none", 4), run("e", "e", 5)])
    assert sorted(sorted(each.ids) for each in trees) == [["a", "b", "c", "e"], ["d"]]


def test_what_would_delete_everything_is_refused(run_dag, unique, experiment_id):
    wrong = [{}, {"keep_last": -1}, {"keep_last": "x"}, {"limit": 0, "keep_last": 1}, {"older_than": timedelta(-1)}]
    with DAG(dag_id=unique, schedule=None, start_date=START) as made:
        for number, each in enumerate(wrong):
            MlflowCleanUpRunsOperator(task_id=f"t{number}", delete=True, retries=3, **each)
    done = run_dag(made, logical_date=START)
    assert {done.task(f"t{number}") for number in range(len(wrong))} == {"failed"}


def test_a_filter_that_is_none_deletes_nothing(clean, ended, stage):
    old = ended()
    with pytest.raises(ConfigError):
        clean(filter_string="1=1; drop table runs")
    assert stage(old) == "active"
