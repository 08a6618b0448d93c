"""The model registry handled by tasks, in real DAG runs against a real MLflow server."""

from __future__ import annotations

import itertools
from contextlib import suppress
from dataclasses import replace

import pendulum
import pytest
from airflow.sdk import DAG, dag

from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.models.run import StepIdentity
from airflow_ml_provider.operators.mlflow_models import (
    MlflowDeleteModelOperator,
    MlflowGetModelOperator,
    MlflowRegisterModelOperator,
    MlflowRollbackModelOperator,
    MlflowSearchModelsOperator,
    MlflowUpdateModelOperator,
)
from airflow_ml_provider.operators.promotion import PromoteModelOperator
from airflow_ml_provider.tracking.registry import ROLLBACK, ROLLBACKS_KEPT, ROLLED_BACK_BY
from airflow_ml_provider.tracking.registry_versions import COPIED_FROM, RegistryVersions
from airflow_ml_provider.tracking.run_records import RunRecords
from airflow_ml_provider.tracking.runs import RunTree
from tests.mlflow_proxy import MlflowProxy
from tests.servers import connection
from tests.tracking.cuts import CutApi
from tests.tracking.test_registry import logged_model

START = pendulum.datetime(2024, 1, 1)
ME = StepIdentity(dag_id="d", run_id="r", task_id="back")


@pytest.fixture
def registry(mlflow_api):
    return RegistryVersions(mlflow_api)


@pytest.fixture
def run_tasks(run_dag, unique):
    def run(*tasks, day=0, **kwargs):
        with DAG(dag_id=unique, schedule=None, start_date=START, **kwargs) as made:
            made_tasks = [task() for task in tasks]
            for before, after in itertools.pairwise(made_tasks):
                before >> after
        return run_dag(made, logical_date=START.add(days=day))

    return run


@pytest.fixture
def run_id(mlflow_api, unique):
    experiment_id = RunTree(mlflow_api).experiment_id(unique)
    body = {"experiment_id": experiment_id, "run_name": "r", "start_time": 1}
    made = mlflow_api.post("runs/create", body, repeatable=False)["run"]["info"]["run_id"]
    RunRecords(mlflow_api).log_artifacts(made, {}, {"model/MLmodel": "flavors: {}", "model.txt": "m"})
    return made


def of(kind, task_id, **kwargs):
    return lambda: kind(task_id=task_id, **kwargs)


class TestRegistering:
    def test_from_a_runs_artifact_a_logged_model_a_uri_and_a_version(self, run_tasks, mlflow_api, mlflow_server, run_id, unique):
        model_id = logged_model(mlflow_api, {})
        sources = {
            "folder": f"runs:/{run_id}/model",
            "file": f"runs:/{run_id}/model.txt",
            "logged": f"models:/{model_id}",
            "elsewhere": "s3://aws_default@bucket/ü/model",
        }
        register = [of(MlflowRegisterModelOperator, key, name="{{ params.name }}", source=each) for key, each in sources.items()]
        copy = of(
            MlflowRegisterModelOperator,
            "copy",
            name=f"{unique}-prod",
            source=f"models:/{unique}/3",
            tags={"b": "2"},
            aliases=["ready"],
        )
        done = run_tasks(*register, copy, params={"name": unique})
        assert done.state == "success"
        made = {key: done.xcom(key) for key in sources}
        assert [each["version"] for each in made.values()] == ["1", "2", "3", "4"]
        assert {key: each["source"] for key, each in made.items()} == sources
        assert [made["folder"]["run_id"], made["logged"]["model_id"]] == [run_id, model_id]
        copied = done.xcom("copy")
        assert (copied["source"], copied["aliases"], copied["version"]) == (f"models:/{model_id}", ["ready"], "1")
        assert copied["tags"] == {COPIED_FROM: f"models:/{unique}/3", "b": "2"}
        assert copied["url"] == mlflow_server.model_page(f"{unique}-prod", "1")

    def test_a_version_whose_answer_was_lost_is_found_and_made_once(self, run_tasks, mlflow_server, monkeypatch, run_id, unique):
        with MlflowProxy(mlflow_server.url) as proxy:
            monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "30")
            monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(replace(mlflow_server, url=proxy.url)))
            proxy.lose = ["registered-models/create", "model-versions/create", "registered-models/alias"]
            register = of(
                MlflowRegisterModelOperator,
                "register",
                name=unique,
                source=f"runs:/{run_id}/model",
                aliases=["a"],
                retries=3,
                retry_delay=0,
            )
            done = run_tasks(register)
        assert (done.state, done.xcom("register")["version"], done.xcom("register")["aliases"]) == ("success", "1", ["a"])
        assert proxy.count("model-versions/create") == 1
        assert proxy.lose == []

    def test_a_cut_anywhere_and_a_second_call_end_in_the_same_state(self, mlflow_api, registry, run_id, unique):
        for at in range(6):
            for answered in (False, True):
                name = f"{unique}-{at}-{answered}"
                wanted = {"tags": {"t": "1"}, "description": "d", "aliases": ["a"]}
                with CutApi(mlflow_api, at, answered) as cut, suppress(RemoteUnavailableError):
                    RegistryVersions(cut).register(name, f"runs:/{run_id}/model", **wanted)
                made = registry.register(name, f"runs:/{run_id}/model", **wanted)
                assert (made["version"], made["aliases"], made["tags"], made["description"]) == ("1", ["a"], {"t": "1"}, "d")
                assert len(registry.search_versions(name, "", None, "", 10)) == 1

    def test_mapped_over_names(self, run_dag, run_id, unique):
        names = [f"{unique}-{each}" for each in "ab"]

        @dag(dag_id=unique, schedule=None, start_date=START)
        def mapped():
            MlflowRegisterModelOperator.partial(task_id="register", source=f"runs:/{run_id}/model").expand(name=names)

        done = run_dag(mapped(), logical_date=START)
        assert [done.xcom("register", index)["uri"] for index in (0, 1)] == [f"models:/{each}/1" for each in names]

    def test_a_logged_model_is_found_by_its_name_in_the_run(self, mlflow_api, registry, run_id, unique):
        experiment_id = mlflow_api.get("runs/get", run_id=run_id)["run"]["info"]["experiment_id"]
        body = {"experiment_id": experiment_id, "name": "forest", "source_run_id": run_id}
        model_id = mlflow_api.post("logged-models", body, repeatable=False)["model"]["info"]["model_id"]
        mlflow_api.post("runs/outputs", {"run_id": run_id, "models": [{"model_id": model_id, "step": 0}]})
        made = registry.register(unique, f"runs:/{run_id}/forest")
        assert (made["source"], made["run_id"]) == (f"models:/{model_id}", run_id)
        with pytest.raises(RemoteNotFoundError, match="neither an artifact nor a model 'oak'"):
            registry.register(unique, f"runs:/{run_id}/oak")

    def test_a_copy_that_mlflows_own_client_made_is_followed(self, mlflow_api, registry, unique):
        model_id = logged_model(mlflow_api, {})
        registry.register(unique, f"models:/{model_id}")
        mlflow_api.post("registered-models/create", {"name": f"{unique}-b"}, repeatable=False)
        mlflow_api.post("model-versions/create", {"name": f"{unique}-b", "source": f"models:/{unique}/1"}, repeatable=False)
        assert registry.register(f"{unique}-c", f"models:/{unique}-b/1")["source"] == f"models:/{model_id}"


class TestReadingAndChanging:
    def test_got_listed_tagged_aliased_and_deleted(self, run_tasks, mlflow_api, registry, unique):
        for _ in range(3):
            registry.register(unique, f"models:/{logged_model(mlflow_api, {})}")
        changes = {
            "aliases": {"champion": "{{ 1 + 1 }}", "canary": 3},
            "tags": {"team": "{{ params.team }}", "none": None},
        }
        done = run_tasks(
            of(MlflowUpdateModelOperator, "model", name=unique, description="of ü", **changes),
            of(MlflowUpdateModelOperator, "version", name=unique, version="2", tags={"ok": "yes", "bad": "x"}),
            of(MlflowUpdateModelOperator, "again", name=unique, version=2, tags={"bad": None}, aliases={"canary": None}),
            of(MlflowGetModelOperator, "by_alias", model=f"models:/{unique}@champion"),
            of(MlflowGetModelOperator, "whole", model=unique),
            of(MlflowSearchModelsOperator, "versions", name=unique),
            of(MlflowSearchModelsOperator, "tagged", name=unique, tags={"ok": "yes"}),
            of(MlflowSearchModelsOperator, "models", filter_string=f"name = '{unique}'"),
            of(MlflowDeleteModelOperator, "delete", name=unique, versions=["{{ 3 }}", 77]),
            params={"team": "b'lue"},
        )
        assert done.state == "success"
        assert done.xcom("model")["aliases"] == {"champion": "2", "canary": "3"}
        assert (done.xcom("model")["tags"], done.xcom("model")["description"]) == ({"team": "b'lue"}, "of ü")
        assert (done.xcom("again")["tags"], done.xcom("again")["aliases"]) == ({"ok": "yes"}, ["champion"])
        assert done.xcom("by_alias")["uri"] == f"models:/{unique}/2"
        assert (done.xcom("whole")["aliases"], done.xcom("whole")["latest_version"]) == ({"champion": "2"}, "3")
        assert [(each["version"], each["aliases"]) for each in done.xcom("versions")] == [
            ("3", []),
            ("2", ["champion"]),
            ("1", []),
        ]
        assert [each["version"] for each in done.xcom("tagged")] == ["2"]
        assert [each["name"] for each in done.xcom("models")] == [unique]
        assert done.xcom("delete")["versions"] == ["3", "77"]
        assert len(registry.search_versions(unique, "", None, "", 10)) == 2

    def test_what_an_alias_stands_for_is_not_deleted_unless_that_is_said(self, registry, mlflow_api, unique):
        for _ in range(2):
            registry.register(unique, f"models:/{logged_model(mlflow_api, {})}")
        registry.update(unique, None, aliases={"champion": "1"}, tags={}, description=None)
        for versions in (["2", "1"], None):
            with pytest.raises(ConfigError, match=r"aliases stand for what would be deleted: champion \(version 1\)"):
                registry.delete(unique, versions, delete_aliased=False)
        assert len(registry.search_versions(unique, "", None, "", 10)) == 2
        assert registry.delete(unique, None, delete_aliased=True)["versions"] == ["1", "2"]
        assert registry.delete(unique, None, delete_aliased=True)["versions"] == []

    def test_nothing_is_changed_when_a_version_is_missing(self, registry, mlflow_api, unique):
        registry.register(unique, f"models:/{logged_model(mlflow_api, {})}")
        with pytest.raises(RemoteNotFoundError):
            registry.update(unique, None, aliases={"a": 1, "b": 9}, tags={"t": "x"}, description="d")
        model = registry.model(unique)
        assert (model["aliases"], model["tags"], model["description"]) == ({}, {}, "")


class TestRollingBack:
    @pytest.fixture
    def promoted(self, registry, mlflow_api, unique):
        for number in (1, 2):
            registry.register(unique, f"models:/{logged_model(mlflow_api, {})}")
            registry.registry.promote(unique, str(number))

    def back(self, registry, unique, identity=ME):
        return registry.roll_back(unique, identity, alias="champion", previous_alias="previous-champion")

    def test_a_task_rolls_back_once_and_another_dag_run_again(self, promoted, run_tasks, registry, unique):
        back = of(MlflowRollbackModelOperator, "back", name=unique)
        first = run_tasks(back).xcom("back")
        assert (first["version"], first["rolled_back"], first["changed"], first["uri"]) == ("1", "2", True, f"models:/{unique}/1")
        assert run_tasks(back, day=1).xcom("back")["version"] == "2"

    def test_a_retry_after_it_was_done_does_not_swap_back(self, promoted, run_tasks, registry, unique):
        class Cut(MlflowRollbackModelOperator):
            def act(self, api, context):
                done = super().act(api, context)
                if context["ti"].try_number == 1:
                    raise RuntimeError("the worker is lost here")
                return done

        done = run_tasks(of(Cut, "back", name=unique, retries=1, retry_delay=0))
        assert (done.state, done.xcom("back")["version"], done.xcom("back")["changed"]) == ("success", "1", False)
        assert registry.model(unique)["aliases"] == {"champion": "1", "previous-champion": "2"}

    @pytest.mark.parametrize("answered", [False, True])
    @pytest.mark.parametrize("at", range(5))
    def test_cut_anywhere_it_is_completed(self, promoted, registry, mlflow_api, unique, at, answered):
        with CutApi(mlflow_api, at, answered) as cut, pytest.raises(RemoteUnavailableError):
            self.back(RegistryVersions(cut), unique)
        for _ in range(2):
            assert self.back(registry, unique)["version"] == "1"
        assert registry.model(unique)["aliases"] == {"champion": "1", "previous-champion": "2"}

    def test_what_another_has_begun_is_completed_and_then_left(self, promoted, registry, mlflow_api, unique):
        other = ME.model_copy(update={"run_id": "other"})
        with CutApi(mlflow_api, 2, answered=True) as cut, pytest.raises(RemoteUnavailableError):
            self.back(RegistryVersions(cut), unique, other)
        assert [self.back(registry, unique)["version"] for _ in range(2)] == ["1", "1"]

    def test_a_clear_does_not_swap_back_after_another_dag_run_or_a_person_has(self, promoted, registry, unique):
        other = ME.model_copy(update={"run_id": "other"})
        assert [self.back(registry, unique, each)["version"] for each in (ME, other)] == ["1", "2"]
        cleared = [self.back(registry, unique, each) for each in (ME, other, ME)]
        assert [(each["version"], each["changed"]) for each in cleared] == [("2", False)] * 3
        registry.registry.rollback(unique)
        assert [self.back(registry, unique, each)["version"] for each in (ME, other)] == ["1", "1"]

    @pytest.mark.parametrize("answered", [False, True])
    @pytest.mark.parametrize("at", [0, 3, 4])
    def test_two_tasks_cut_anywhere_have_rolled_back_once_each_or_once_together(
        self, promoted, registry, mlflow_api, unique, at, answered
    ):
        other = ME.model_copy(update={"run_id": "other"})
        with CutApi(mlflow_api, at, answered) as cut, pytest.raises(RemoteUnavailableError):
            self.back(RegistryVersions(cut), unique, other)
        begun = ROLLBACK in registry.model(unique)["tags"]
        served = self.back(registry, unique)["version"]
        assert served == ("2" if at == 4 and answered else "1"), "what was begun is completed; what was done is rolled back"
        together = begun or served == "2"
        assert [self.back(registry, unique, each)["version"] for each in (other, ME)] == [served if together else "2"] * 2
        assert ROLLBACK not in registry.model(unique)["tags"]

    @pytest.mark.parametrize("answered", [False, True])
    @pytest.mark.parametrize("at", [3, 4])
    def test_a_mark_that_was_left_does_not_roll_back_what_was_promoted_since(
        self, promoted, registry, mlflow_api, unique, at, answered
    ):
        with CutApi(mlflow_api, at, answered) as cut, pytest.raises(RemoteUnavailableError):
            self.back(RegistryVersions(cut), unique)
        registry.register(unique, f"models:/{logged_model(mlflow_api, {})}")
        registry.registry.promote(unique, "3")
        noted = at == 4 or answered
        assert self.back(registry, unique)["version"] == ("3" if noted else "1")

    def test_a_task_that_an_earlier_release_has_noted_does_not_swap_back(self, promoted, registry, mlflow_api, unique):
        done = ME.model_copy(update={"run_id": "done"})
        for task, swap, version in ((ME, "2>1", "1"), (done, "2>1", "1")):  # the one was cut before it had begun
            tag = {"name": unique, "key": "airflow.rolled_back_by", "value": f"{task.key} {swap}"}
            mlflow_api.post("registered-models/set-tag", tag)
            assert self.back(registry, unique, task)["version"] == version

    def test_the_newest_rollbacks_are_remembered_and_no_more(self, promoted, registry, mlflow_api, unique):
        keys = [ME.model_copy(update={"run_id": str(number)}).key for number in range(ROLLBACKS_KEPT + 1)]
        for number, key in enumerate(keys):
            tag = {"key": ROLLED_BACK_BY + key, "value": f"2020-01-01T00:00:{number:02}+00:00 2>1"}
            mlflow_api.post("registered-models/set-tag", {"name": unique} | tag)
        assert [self.back(registry, unique)["changed"] for _ in range(2)] == [True, False]
        kept = {key.removeprefix(ROLLED_BACK_BY) for key in registry.model(unique)["tags"]}
        assert kept == {*keys[2:], ME.key}

    def test_without_one_before_it_says_so_and_leaves_no_mark(self, registry, mlflow_api, unique):
        registry.register(unique, f"models:/{logged_model(mlflow_api, {})}")
        with pytest.raises(ConfigError, match="cannot be rolled back"):
            self.back(registry, unique)
        assert registry.model(unique)["tags"] == {}


def test_a_registered_version_is_promoted_without_steps(run_tasks, registry, mlflow_api, unique):
    registry.register(unique, f"models:/{logged_model(mlflow_api, {})}")
    done = run_tasks(of(PromoteModelOperator, "promote", model=f"models:/{unique}/1", name=unique))
    assert done.xcom("promote")["uri"] == f"models:/{unique}/1"
    assert registry.get(f"models:/{unique}@champion")["version"] == "1"


class TestHostileInput:
    @pytest.mark.parametrize("name", ["a/b", "a@b", "a'b", "", "a:b", "x" * 10_000, "a\nb", "a\x00b"])
    def test_names_are_refused_when_the_dag_is_parsed(self, name):
        with pytest.raises(ConfigError, match="cannot be the name of a registered model") as refused:
            MlflowRegisterModelOperator(task_id="t", name=name, source="s3://b/m")
        assert len(str(refused.value)) < 500
        with pytest.raises(ConfigError, match="cannot be the name of a registered model"):
            MlflowDeleteModelOperator(task_id="t", name=name)

    @pytest.mark.parametrize("alias", ["latest", "v1", "../x", "champion\n", "x" * 10_000])
    def test_aliases_are_refused_when_the_dag_is_parsed(self, alias):
        with pytest.raises(ConfigError, match="cannot be an alias") as refused:
            MlflowUpdateModelOperator(task_id="t", name="m", aliases={alias: 1})
        assert len(str(refused.value)) < 500

    @pytest.mark.parametrize("source", ["runs:/x/../../etc", "s3://b/%2e%2e/m", "s3://key:hunter22@b/m", "", "a\nb"])
    def test_sources_that_climb_or_hold_a_password_are_refused_and_not_shown(self, registry, mlflow_api, unique, source):
        with pytest.raises(ConfigError) as raised:
            registry.register(unique, source)
        assert "hunter22" not in str(raised.value)
        with pytest.raises(RemoteNotFoundError):
            registry.model(unique)

    @pytest.mark.parametrize("uri", ["models:/a/b/c", "models:/m-0123", "models:/", "models:/a@b@c", "x" * 10 + "/1/2"])
    def test_uris_that_name_no_model_are_refused(self, registry, uri):
        with pytest.raises(ConfigError, match="names no registered model"):
            registry.get(uri)

    @pytest.mark.parametrize("version", ["0", "-1", "1 or 1=1", "v1", "", True, "9" * 11, "1\n"])
    def test_versions_that_are_none_are_refused(self, registry, version):
        with pytest.raises(ConfigError, match="cannot be a model version"):
            registry.delete("m", [version], delete_aliased=True)

    def test_a_long_or_strange_name_is_only_a_name(self, registry):
        for name in ("x" * 256, "ü; drop table", "名前"):
            assert registry.search_versions(name, "", None, "", 5) == []
            with pytest.raises((RemoteNotFoundError, ConfigError)):
                registry.model(name)
