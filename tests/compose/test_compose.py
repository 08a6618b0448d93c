"""The nightly retraining in the real ``docker-compose.yaml``; what the images are, ``--compose-engine`` says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.airflow_api import AirflowApi, Json
from demo.nights import DAG_ID, Night
from tests.compose.stage import Stage, settings

pytestmark = [pytest.mark.compose, pytest.mark.timeout(2400)]
NIGHT_LIMIT_S = 1200
STEPS = {"collect", "validate", "features", "train", "evaluate", "gate", "promote", "report"}
ONCE = {"airflow-setup", "mlflow-setup"}
PROFILES = ("celery", "objects", "mail")
NOT_SECRET = {"COMPOSE_PROFILES", "AIRFLOW_EXECUTOR", "MLFLOW_ARTIFACTS", "AIRFLOW_CONN_SMTP_DEFAULT"}


BAD_NIGHT = """
from airflow.sdk import dag, task
from airflow_ml_provider.notifications.alerts import ml_alerts

@task
def fail():
    raise ValueError("on purpose")

@dag(schedule=None, **ml_alerts(email="ml-team@example.com"))
def bad_night():
    fail()

bad_night()
"""


def start_night(api: AirflowApi, day: date) -> str:
    api.wait_for_dag(DAG_ID)
    api.pause(DAG_ID, paused=False)
    return str(api.trigger(DAG_ID, logical_date=Night(day).logical_date)["dag_run_id"])


def instances(api: AirflowApi, run_id: str) -> dict[str, Json]:
    found = api.call("GET", f"/dags/{DAG_ID}/dagRuns/{run_id}/taskInstances")["task_instances"]
    return {each["task_id"]: each for each in found}


@contextmanager
def night_of(stage: Stage, day: date) -> Iterator[tuple[AirflowApi, dict[str, Json]]]:
    """Run a night to its end, over the REST API."""
    with stage.airflow() as api:
        run_id = start_night(api, day)
        ended = api.wait_for_run(DAG_ID, run_id, timeout_s=NIGHT_LIMIT_S)
        assert ended["state"] == "success", {name: each["state"] for name, each in instances(api, run_id).items()}
        yield api, instances(api, run_id)


def until(what: str, look: Callable[[], Any], limit_s: float = 120) -> Any:
    end = time.monotonic() + limit_s
    while not (seen := look()):
        assert time.monotonic() < end, f"after {limit_s} s: no {what}"
        time.sleep(1)
    return seen


def runs_of(stage: Stage) -> list[Json]:
    """All runs in MLflow, as its administrator sees them."""
    with stage.mlflow() as client:
        experiments = client.post("/api/2.0/mlflow/experiments/search", json={"max_results": 100}).json()["experiments"]
        ids = [each["experiment_id"] for each in experiments]
        runs: list[Json] = client.post("/api/2.0/mlflow/runs/search", json={"experiment_ids": ids}).json()["runs"]
        return runs


def finished_runs(stage: Stage) -> list[Json]:
    """All runs, once the last one is closed: that of the DAG run is, by the listener, after Airflow has said that it is done."""
    until("end of all runs", lambda: {each["info"]["status"] for each in runs_of(stage)} == {"FINISHED"})
    return runs_of(stage)


def tags(run: Json) -> dict[str, str]:
    return {each["key"]: each["value"] for each in run["data"]["tags"]}


class TestTheFile:
    def test_any_choice_of_profiles_is_a_valid_file_and_no_service_is_careless(self, stage: Stage) -> None:
        for chosen in chain.from_iterable(combinations(PROFILES, count) for count in range(len(PROFILES) + 1)):
            named = [word for each in chosen for word in ("--profile", each)]
            stage.run("docker", "compose", *named, "config", "--quiet")
        whole = json.loads(stage.run("docker", "compose", "--profile", "*", "config", "--format", "json").stdout)
        for name, service in whole["services"].items():
            assert ":" in service["image"], name
            assert not service["image"].endswith(":latest"), name
            assert ("healthcheck" in service) == (name not in ONCE), name
            assert service["restart"] == ("on-failure:3" if name in ONCE else "unless-stopped"), name
            assert service["mem_limit"], name
            assert service["cap_drop"] == ["ALL"], name
            assert service["security_opt"] == ["no-new-privileges:true"], name
            assert service["logging"]["options"]["max-size"], name
            assert all(each["host_ip"] == "127.0.0.1" for each in service.get("ports", [])), name

    def test_without_any_one_of_its_secrets_nothing_starts(self, stage: Stage, tmp_path: Path) -> None:
        kept = settings(stage.folder)
        for missing in kept.keys() - NOT_SECRET:
            partial = tmp_path / "env"
            partial.write_text("".join(f"{name}={value}\n" for name, value in kept.items() if name != missing))
            refused = stage.run("docker", "compose", "--env-file", str(partial), "up", "--no-start", check=False)
            assert refused.returncode, missing
            assert f"required variable {missing} is missing a value: run make up" in refused.stderr


class TestTheStack:
    def test_everything_is_up_and_make_says_what_to_open(self, stack: Stage) -> None:
        states = {name: each["State"] for name, each in stack.containers().items()}
        assert {name: each["ExitCode"] for name, each in states.items() if name in ONCE} == dict.fromkeys(ONCE, 0)
        assert {each["Health"]["Status"] for name, each in states.items() if name not in ONCE} == {"healthy"}
        for words in (
            f"Airflow  http://localhost:{stack.ports['AIRFLOW_PORT']}",
            f"MLflow   http://localhost:{stack.ports['MLFLOW_PORT']}",
        ):
            assert words in stack.said
        assert "AIRFLOW_ADMIN_PASSWORD in .env" in stack.said

    def test_nothing_runs_as_root_and_no_secret_is_on_a_command_line(self, stack: Stage) -> None:
        secrets = [value for name, value in settings(stack.folder).items() if name not in NOT_SECRET]
        for name in stack.containers().keys() - ONCE:
            container = f"{stack.environment['COMPOSE_PROJECT_NAME']}-{name}-1"
            processes = stack.engine.docker("top", container, "-eo", "pid,uid,args").splitlines()[1:]
            assert processes, name
            assert not [each for each in processes if each.split()[1] == "0"], name
            assert not [each for each in processes for secret in secrets if secret in each], name

    def test_ports_are_open_on_loopback_alone(self, stack: Stage) -> None:
        bound = [
            each for one in stack.containers().values() for each in chain(*filter(None, one["NetworkSettings"]["Ports"].values()))
        ]
        assert {(each["HostIp"], int(each["HostPort"])) for each in bound} == {
            ("127.0.0.1", stack.ports["AIRFLOW_PORT"]),
            ("127.0.0.1", stack.ports["MLFLOW_PORT"]),
        }

    def test_who_has_no_login_or_comes_by_another_name_is_kept_out(self, stack: Stage) -> None:
        airflow, mlflow = stack.url("AIRFLOW_PORT"), f"{stack.url('MLFLOW_PORT')}/api/2.0/mlflow/users"
        user = {"username": "mallory", "password": "of twelve letters or more"}
        with httpx.Client(trust_env=False, timeout=60) as client:
            assert client.get(f"{airflow}/api/v2/dags").status_code == 401
            assert client.post(f"{airflow}/auth/token", json={"username": "admin", "password": "admin"}).status_code == 401
            assert client.post(f"{mlflow}/create", json=user).status_code == 401
        with stack.mlflow("airflow") as client:
            assert client.post("/api/2.0/mlflow/users/create", json=user).status_code == 403, "Airflow's user is an administrator"
            for host, status in (("mlflow:5000", 200), ("localhost:5000", 200), ("rebound.example.com", 403)):
                found = client.post("/api/2.0/mlflow/experiments/search", json={"max_results": 1}, headers={"Host": host})
                assert found.status_code == status, host

    def test_a_night_runs_to_its_champion(self, stack: Stage) -> None:
        with night_of(stack, date(2013, 11, 6)) as (api, tasks):
            assert api.import_errors() == []
            assert {name: each["state"] for name, each in tasks.items()} == dict.fromkeys(STEPS, "success")
            log = api.request("GET", f"/dags/{DAG_ID}/dagRuns/{tasks['train']['dag_run_id']}/taskInstances/train/logs/1")
            assert len(log.json()["content"]) > 5, log.text
        runs = finished_runs(stack)
        root = next(each for each in runs if "mlflow.parentRunId" not in tags(each))
        nested = {
            tags(each)["airflow.task_id"] for each in runs if tags(each).get("mlflow.parentRunId") == root["info"]["run_id"]
        }
        assert nested == STEPS
        with stack.mlflow("airflow") as client:
            champion = client.get(
                "/api/2.0/mlflow/registered-models/alias", params={"name": "flight-delays", "alias": "champion"}
            ).json()
            assert champion["model_version"]["version"] == "1"
            report = next(each["info"] for each in runs if tags(each).get("airflow.task_id") == "report")
            assert report["artifact_uri"].startswith("mlflow-artifacts:"), "artifacts do not pass through the server"
            files = client.get("/api/2.0/mlflow/artifacts/list", params={"run_id": report["run_id"]}).json()["files"]
            assert files, "the report is not in the store"

    @pytest.mark.full
    def test_a_night_survives_that_the_scheduler_is_killed_in_its_middle(self, stack: Stage) -> None:
        with stack.airflow() as api:
            run_id = start_night(api, date(2013, 11, 7))
            until("training", lambda: instances(api, run_id).get("train", {}).get("state") == "running", NIGHT_LIMIT_S)
            scheduler = stack.containers()["airflow-scheduler"]
            # All processes at once, as when memory is short; docker kill would keep the container down.
            everything = ("python", "-c", "import os; os.kill(-1, 9)")
            stack.run("docker", "compose", "exec", "-T", "airflow-scheduler", *everything, check=False)
            ended = api.wait_for_run(DAG_ID, run_id, timeout_s=NIGHT_LIMIT_S)
            assert ended["state"] == "success", {name: each["state"] for name, each in instances(api, run_id).items()}
        assert stack.containers()["airflow-scheduler"]["RestartCount"] == scheduler["RestartCount"] + 1
        assert finished_runs(stack)


@pytest.mark.full
def test_with_all_profiles_workers_run_the_night_objects_hold_it_and_mail_tells_of_a_bad_one(stage: Stage) -> None:
    stage.down()
    assert not stage.engine.docker(
        "volume", "ls", "--quiet", "--filter", f"label=com.docker.compose.project={stage.environment['COMPOSE_PROJECT_NAME']}"
    )
    (stage.folder / "dags/bad_night.py").write_text(BAD_NIGHT)
    stage.up("celery,objects,mail")
    assert f"Mail     http://localhost:{stage.ports['MAIL_PORT']}" in stage.said
    containers = stage.containers()
    assert {each["State"]["Health"]["Status"] for name, each in containers.items() if name not in ONCE} == {"healthy"}
    with night_of(stage, date(2013, 11, 6)) as (_api, tasks):
        assert {each["hostname"] for each in tasks.values()} == {containers["airflow-worker"]["Id"][:12]}
    count = "import boto3, os; print(boto3.client('s3', endpoint_url=os.environ['MLFLOW_S3_ENDPOINT_URL']).list_objects_v2(Bucket='mlflow')['KeyCount'])"
    assert int(stage.run("docker", "compose", "exec", "-T", "mlflow", "python", "-c", count).stdout) > len(STEPS)
    with stage.airflow() as api:
        api.wait_for_dag("bad_night")
        api.pause("bad_night", paused=False)
        run_id = str(api.trigger("bad_night")["dag_run_id"])
        assert api.wait_for_run("bad_night", run_id, timeout_s=NIGHT_LIMIT_S)["state"] == "failed"
    caught = until("mail", lambda: httpx.get(f"{stage.url('MAIL_PORT')}/api/v1/messages", trust_env=False).json()["messages"])
    assert any("bad_night" in each["Subject"] for each in caught), caught
    assert caught[0]["To"][0]["Address"] == "ml-team@example.com"
