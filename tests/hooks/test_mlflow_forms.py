"""What differs between the forms of MLflow's server: who may see what, and where it is kept."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import httpx
import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.run import Attempt, StepIdentity
from airflow_ml_provider.tracking.experiments import Experiments
from airflow_ml_provider.tracking.registry import ModelRegistry
from airflow_ml_provider.tracking.run_records import RunRecords
from airflow_ml_provider.tracking.runs import RunTree
from tests.conftest import HOME
from tests.servers import MlflowProcess

ONCE = Settings(http_retries=0, http_timeout_s=20)


@pytest.mark.form("postgresql")
def test_what_is_logged_is_in_postgresql_in_an_order_of_words(mlflow_api, unique):
    import psycopg2

    for name in (f"{unique}-b", f"{unique}-A", f"{unique}-a"):
        Experiments(mlflow_api).make(name)
    (folder,) = [
        note["folder"]
        for note in map(json.loads, (HOME / "processes").read_text().splitlines())
        if "postgresql" in note["folder"]
    ]
    with psycopg2.connect(host=folder, user="mlflow", dbname="postgres") as opened, opened.cursor() as cursor:
        cursor.execute("SELECT name FROM experiments WHERE name LIKE %s ORDER BY name", (f"{unique}%",))
        assert [name.rpartition("-")[2] for (name,) in cursor.fetchall()] == ["a", "A", "b"]


def test_tasks_that_write_the_same_at_the_same_moment_all_succeed(mlflow_server, mlflow_api, unique):
    racers, runs = 8, RunTree(mlflow_api)
    experiment_id = runs.experiment_id(unique)
    mlflow_api.post("registered-models/create", {"name": unique})
    mlflow_api.post("model-versions/create", {"name": unique, "source": "s3://bucket/model"})
    run_ids = [mlflow_api.post("runs/create", {"experiment_id": experiment_id})["run"]["info"]["run_id"] for _ in range(racers)]
    start = Barrier(racers, timeout=30)

    def race(run_id):
        with MlflowApi(mlflow_server, Settings(http_retries=4, http_timeout_s=30)) as api:
            for number in range(3):
                start.wait()
                data = {"name": f"table-{number}", "digest": "d", "source_type": "local", "source": "s"}
                api.post("runs/log-inputs", {"run_id": run_id, "datasets": [{"dataset": data, "tags": []}]})
                start.wait()
                api.post("registered-models/alias", {"name": unique, "alias": f"a{number}", "version": "1"})
        return True

    with ThreadPoolExecutor(racers) as pool:
        assert list(pool.map(race, run_ids)) == [True] * racers


def test_what_only_some_databases_take_is_written_so_that_all_do(mlflow_api, unique):
    records, experiment_id = RunRecords(mlflow_api), RunTree(mlflow_api).experiment_id(unique)
    attempt = Attempt(identity=StepIdentity(dag_id=unique, run_id="r", task_id="t"), try_number=1, ti_id="one")
    run = records.start(experiment_id, attempt, "n" * 300, tags={"a": "zero \0 byte"}, parent_run_id=None)
    for _ in range(2):
        records.log_values(run["run_id"], {"p": "zero \0 byte"}, {})
    assert (run["run_name"], run["tags"]["a"]) == ("n" * 250, "zero ? byte")
    with pytest.raises(ConfigError, match="1 to 256 characters"):
        Experiments(mlflow_api).make("x" * 257)


@pytest.mark.form("basic-auth")
class TestALogin:
    @pytest.fixture
    def admin(self, mlflow_servers):
        with MlflowApi(mlflow_servers["admin"], ONCE) as api:
            yield api

    def test_nobody_is_let_in_without_one(self, mlflow_server):
        with MlflowApi(MlflowServer("c", mlflow_server.url), ONCE) as api, pytest.raises(ConfigError, match="Check login"):
            api.get("experiments/search", max_results=1)

    def test_what_another_has_made_is_seen_and_changed_with_a_grant_alone(self, mlflow_api, admin, unique):
        experiment_id = Experiments(admin).make(unique)["experiment_id"]
        assert Experiments(mlflow_api).get(unique)["experiment_id"] == experiment_id
        with pytest.raises(ConfigError, match="lacks the permission: grant it"):
            mlflow_api.post("runs/create", {"experiment_id": experiment_id})
        grant = {"username": mlflow_api.server.username, "permission": "EDIT"}
        grant |= {"resource_type": "experiment", "resource_id": experiment_id}
        login = (admin.server.username, admin.server.password)
        address = f"{admin.server.url}/api/3.0/mlflow/users/permissions/grant"
        httpx.post(address, json=grant, auth=login).raise_for_status()
        assert mlflow_api.post("runs/create", {"experiment_id": experiment_id})["run"]

    def test_a_missing_model_is_told_from_one_that_is_another_users(self, mlflow_api, admin, unique):
        registry = ModelRegistry(mlflow_api)
        assert registry.find(unique, "champion") is None
        with pytest.raises(RemoteNotFoundError):
            mlflow_api.delete("registered-models/delete", {"name": unique})
        admin.post("registered-models/create", {"name": unique})
        with pytest.raises(ConfigError, match="lacks the permission"):
            mlflow_api.delete("registered-models/delete", {"name": unique})
        with pytest.raises(ConfigError, match="lacks the permission"):
            registry.register(unique, "s3://bucket/model")

    def test_a_missing_run_may_be_missing_or_another_users(self, mlflow_api):
        with pytest.raises(ConfigError, match="Or there is no such thing"):
            mlflow_api.get("runs/get", run_id="0" * 32)


@pytest.mark.form("workspaces")
class TestAWorkspace:
    def test_has_nothing_of_another(self, mlflow_api, unique):
        Experiments(mlflow_api).make(unique)
        ModelRegistry(mlflow_api)._ensure(unique)
        with MlflowApi(replace(mlflow_api.server, workspace=""), ONCE) as other:
            with pytest.raises(RemoteNotFoundError):
                Experiments(other).get(unique)
            assert ModelRegistry(other).find(unique, "champion") is None
            ModelRegistry(other)._ensure(unique)  # of the same name, and another
        assert mlflow_api.get("registered-models/get", name=unique)["registered_model"]["name"] == unique

    def test_that_does_not_exist_is_told_and_not_taken_for_an_empty_one(self, mlflow_api, unique):
        with MlflowApi(replace(mlflow_api.server, workspace="team-b"), ONCE) as api:
            for ask in (lambda: ModelRegistry(api).find(unique, "champion"), lambda: Experiments(api).get(unique)):
                with pytest.raises(ConfigError, match="Make the workspace, or name another"):
                    ask()


@pytest.mark.form("sqlite")
class TestAServerAsMlflowStartsIt:
    """The shared one of this form is started with gunicorn, where nobody looks at a workspace."""

    @pytest.fixture(scope="class")
    @classmethod
    def url(cls, tmp_path_factory):
        with MlflowProcess(tmp_path_factory.mktemp("mlflow")) as server:
            yield server.url

    def test_refuses_a_workspace_that_it_does_not_have(self, url):
        server = MlflowServer("c", url, workspace="team-b")
        with MlflowApi(server, ONCE) as api, pytest.raises(ConfigError, match="Remove the workspace"):
            api.get("experiments/search", max_results=1)

    def test_is_told_as_without_tls(self, url):
        server = MlflowServer("c", url.replace("http:", "https:"))
        with MlflowApi(server, ONCE) as api, pytest.raises(RemoteUnavailableError, match="It does not speak TLS there"):
            api.post("experiments/search", {})
