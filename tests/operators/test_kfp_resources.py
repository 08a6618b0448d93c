"""The operators beside the run operator in DAG runs, against the fake server over HTTP."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pendulum
import pytest
from airflow.sdk import DAG

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError
from airflow_ml_provider.hooks.kfp import KfpApi
from airflow_ml_provider.hooks.kfp_server import KfpServer
from airflow_ml_provider.jobs.kfp import KfpJobs
from airflow_ml_provider.jobs.kfp_actions import RunActions
from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog
from airflow_ml_provider.jobs.kfp_recurring import KfpRecurringRuns
from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.operators.kfp_recurring import KfpCreateRecurringRunOperator, KfpRecurringRunOperator
from airflow_ml_provider.operators.kfp_resources import (
    KfpCreateExperimentOperator,
    KfpRunActionOperator,
    KfpUploadPipelineOperator,
)
from airflow_ml_provider.testing import FakeKfpServer
from tests.airflow_runs import Outcome
from tests.jobs.conftest import SPEC
from tests.jobs.test_kfp_catalog import at_once, package_of, paths

START = pendulum.datetime(2024, 1, 1)
NOWHERE = "00000000-0000-0000-0000-000000000000"
SCHEDULE: dict[str, Any] = {"name": "nightly", "schedule": "0 3 * * *", "experiment": "churn"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfpServer]:
    with FakeKfpServer() as server:
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url}))
        monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "3")
        monkeypatch.setenv("AIRFLOW__ML__HTTP_TIMEOUT_S", "2")
        monkeypatch.setenv("AIRFLOW__ML__HTTP_RETRIES", "0")
        yield server


@pytest.fixture
def api(server: FakeKfpServer) -> Iterator[KfpApi]:
    with KfpApi(KfpServer("kfp_default", server.url), Settings(http_timeout_s=2, http_retries=0)) as api:
        yield api


@pytest.fixture
def jobs(api: KfpApi) -> KfpJobs:
    return KfpJobs(api)


@pytest.fixture
def catalog(api: KfpApi) -> KfpCatalog:
    return KfpCatalog(api)


@pytest.fixture
def run_id(jobs: KfpJobs) -> str:
    """A run that somebody else has started."""
    return jobs.submit({"display_name": "theirs", "pipeline_spec": SPEC}).run_id


@pytest.fixture
def package(tmp_path: Path) -> str:
    path = tmp_path / "one-step.yaml"
    path.write_bytes(package_of().text)
    return str(path)


@pytest.fixture
def do(run_dag: Callable[..., Outcome], unique: str, server: FakeKfpServer) -> Callable[..., Outcome]:
    """Run one task, each time in a DAG run of its own."""
    nights = itertools.count()

    def run(operator: type, **arguments: Any) -> Outcome:
        with DAG(unique, schedule=None, start_date=START) as made:
            operator(task_id="it", **arguments)
        return run_dag(made, logical_date=START.add(days=next(nights)))

    return run


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Everything that tasks have logged: our own lines, and the errors that Airflow writes itself."""
    return lambda: caplog.text + capsys.readouterr().out


def changes(server: FakeKfpServer) -> list[str]:
    """Everything but questions."""
    return [f"{each.method} {each.path.rpartition('v2beta1/')[2]}" for each in server.requests if each.method != "GET"]


class TestAnUpload:
    def test_is_done_once_for_the_same_content(self, do, server, package):
        result = do(KfpUploadPipelineOperator, package=package).xcom("it")
        digest = package_of().digest
        assert result == {
            "version": 1,
            "pipeline": "one-step@one-step",
            "name": "one-step",
            "version_name": "one-step",
            "pipeline_id": result["pipeline_id"],
            "pipeline_version_id": result["pipeline_version_id"],
            "digest": digest,
            "url": f"{server.url}/#/pipelines/details/{result['pipeline_id']}/version/{result['pipeline_version_id']}",
        }
        Path(package).write_text(json.dumps(SPEC, indent=4))  # the same, laid out in another way
        before = changes(server)
        assert do(KfpUploadPipelineOperator, package=package).xcom("it") == result
        assert changes(server) == before

    def test_takes_names_from_templates(self, do, package, catalog):
        do(KfpUploadPipelineOperator, package=package, name="churn {{ ds }}", version_name="v{{ ds_nodash }}")
        assert catalog.version("churn 2024-01-01", "v20240101")

    def test_survives_what_the_server_loses(self, do, server, package):
        server.fault("lost-after", method="POST", path="upload$")
        assert do(KfpUploadPipelineOperator, package=package).task("it") == "success"
        assert (len(server.store.pipelines), len(server.store.versions)) == (1, 1)
        Path(package).write_bytes(package_of("busybox:1.37").text)
        server.fault("status-503", method="POST", path="upload_version$")
        assert do(KfpUploadPipelineOperator, package=package).task("it") == "success"
        assert (len(server.store.pipelines), len(server.store.versions)) == (1, 2)

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"version_name": "v1"}, "has a version 'v1' with another content"),
            ({"name": "n" * 129}, "takes 129 bytes in UTF-8"),
            ({"version_name": "\N{ROCKET}"}, "takes 4 bytes"),
        ],
    )
    def test_of_what_is_wrong_is_refused_and_not_retried(self, do, server, package, catalog, said, arguments, text):
        catalog.upload(package_of("busybox:1.37"), version="v1")
        before = changes(server)
        outcome = do(KfpUploadPipelineOperator, **({"package": package, "retries": 1} | arguments))
        assert outcome.task("it") == "failed"
        assert text in said()
        assert changes(server) == before

    def test_of_what_is_not_there_says_so(self, do, server, said):
        assert do(KfpUploadPipelineOperator, package="/nowhere/one-step.yaml").task("it") == "failed"
        assert "/nowhere/one-step.yaml" in said()
        assert changes(server) == []


class TestAnExperiment:
    def test_is_found_or_made(self, do, server):
        result = do(KfpCreateExperimentOperator, name="churn {{ ds }}", description="who leaves").xcom("it")
        url = f"{server.url}/#/experiments/details/{result['experiment_id']}"
        assert result == {"version": 1, "experiment_id": result["experiment_id"], "name": "churn 2024-01-01", "url": url}
        assert do(KfpCreateExperimentOperator, name="CHURN 2024-01-01").xcom("it") == result
        assert changes(server) == ["POST experiments"]

    def test_is_made_once_though_answers_are_lost(self, do, server):
        server.fault("lost-after", method="POST", path="experiments$")
        server.fault("status-500", method="GET", path="experiments$")
        assert do(KfpCreateExperimentOperator, name="churn").task("it") == "success"
        assert [each.display_name for each in server.store.experiments.values()].count("churn") == 1

    @pytest.mark.parametrize(("unarchive", "state"), [(True, "AVAILABLE"), (False, "ARCHIVED")])
    def test_that_was_put_away_comes_back_unless_it_shall_not(self, do, server, api, catalog, unarchive, state):
        one = catalog.experiment_id("churn")
        api.post(f"/apis/v2beta1/experiments/{one}:archive")
        assert do(KfpCreateExperimentOperator, name="churn", unarchive=unarchive).xcom("it")["experiment_id"] == one
        assert server.store.experiments[one].storage_state == state

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [({"name": "e" * 129}, "takes 129 bytes"), ({"name": "churn", "description": "d" * 256}, "has 256 characters")],
    )
    def test_that_the_server_cannot_store_is_refused(self, do, server, said, arguments, text):
        assert do(KfpCreateExperimentOperator, retries=1, **arguments).task("it") == "failed"
        assert text in said()
        assert changes(server) == []


class TestAnAction:
    def test_gives_the_run_as_it_is_then(self, do, server, run_id):
        result = do(KfpRunActionOperator, run_id="{{ '" + run_id + "' }}", action="terminate").xcom("it")
        assert result | {"experiment_id": ""} == {
            "version": 1,
            "run_id": run_id,
            "state": "CANCELING",
            "url": f"{server.url}/#/runs/details/{run_id}",
            "experiment_id": "",
            "pipeline_id": "",
            "pipeline_version_id": "",
        }

    def test_that_is_done_already_is_not_done_again(self, do, server, run_id):
        server.finish(run_id, "FAILED")
        for action, state in (("terminate", "FAILED"), ("retry", "RUNNING"), ("retry", "RUNNING")):
            assert do(KfpRunActionOperator, run_id=run_id, action=action).xcom("it")["state"] == state
        for action in ("archive", "archive", "unarchive", "unarchive", "delete", "delete"):
            assert do(KfpRunActionOperator, run_id=run_id, action=action).task("it") == "success"
        did = [each.rpartition("/")[2].removeprefix(run_id) for each in changes(server)[1:]]
        assert did == [":retry", ":archive", ":unarchive", "", ""]

    def test_on_a_run_that_is_not_there_fails_and_says_so(self, do, said):
        assert do(KfpRunActionOperator, run_id=NOWHERE, action="terminate").task("it") == "failed"
        assert f"has no run '{NOWHERE}': it was deleted, or the id is wrong" in said()

    def test_on_no_run_is_refused(self, do, server, said):
        assert do(KfpRunActionOperator, run_id="{{ none }}", action="delete", retries=1).task("it") == "failed"
        assert "run_id='None' is none" in said()
        assert changes(server) == []

    def test_that_is_none_is_refused_when_the_file_is_read(self):
        with pytest.raises(ConfigError, match="action='stop' is none of terminate, retry"):
            KfpRunActionOperator(task_id="it", run_id="x", action="stop")
        with pytest.raises(ConfigError, match="run_id='' is none"):
            KfpRunActionOperator(task_id="it", run_id="", action="delete")


class TestTerminating:
    def test_is_not_taken_for_done_while_kubernetes_does_not_follow(self, server, jobs, run_id):
        server.lose("kubernetes")
        with pytest.raises(RemoteUnavailableError, match="is CANCELING, and whether Kubernetes was told so is not known"):
            RunActions(jobs, 2).terminate(run_id)
        assert not server.workflows_of(run_id)[0].stopped
        server.restore()
        server.report(run_id, "RUNNING")  # the agent's next report puts the row right
        assert RunActions(jobs, 2).terminate(run_id).state == "CANCELING"
        assert server.workflows_of(run_id)[0].stopped

    def test_asks_what_became_of_it_when_the_answer_was_lost(self, server, jobs, run_id):
        server.fault("lost-after", method="POST", path=":terminate$")
        threading.Timer(0.5, lambda: server.report(run_id)).start()
        assert RunActions(jobs, 5).terminate(run_id).state == "FAILED"
        assert len([each for each in changes(server) if each.endswith(":terminate")]) == 1

    def test_asks_again_when_the_request_was_lost(self, server, jobs, run_id):
        server.fault("lost-before", method="POST", path=":terminate$")
        assert RunActions(jobs, 5).terminate(run_id).state == "CANCELING"
        assert len([each for each in changes(server) if each.endswith(":terminate")]) == 2

    def test_knows_that_the_server_has_agreed_though_the_look_after_it_fails(self, server, jobs, run_id):
        server.fault("slow", method="POST", path=":terminate$", seconds=0.3)
        threading.Timer(0.1, lambda: server.fault("status-500", method="GET")).start()
        assert RunActions(jobs, 5).terminate(run_id).state == "CANCELING"


class TestRepeating:
    def test_is_asked_for_once_when_the_answer_was_lost(self, server, jobs, run_id):
        server.finish(run_id, "FAILED")
        server.fault("lost-after", method="POST", path=":retry$")
        assert RunActions(jobs, 5).retry(run_id).state == "RUNNING"
        assert len([each for each in changes(server) if each.endswith(":retry")]) == 1

    def test_is_asked_for_again_when_the_request_was_lost(self, server, jobs, run_id):
        server.finish(run_id, "FAILED")
        server.fault("status-500", method="POST", path=":retry$")
        assert RunActions(jobs, 5).retry(run_id).state == "RUNNING"

    def test_by_two_at_once_is_done_once(self, server, jobs, run_id):
        server.finish(run_id, "FAILED")
        runs = at_once(*[lambda: RunActions(jobs, 5).retry(run_id)] * 3)
        assert {each.state for each in runs} == {"RUNNING"}
        assert [each.status for each in server.requests if each.path.endswith(":retry")].count(200) == 1

    def test_that_failed_again_while_the_answer_was_lost_is_not_asked_for_twice(self, server, jobs, run_id):
        server.finish(run_id, "FAILED", finished_at=datetime.now(UTC).timestamp() - 100)
        server.fault("lost-after", method="POST", path=":retry$")

        def fail_again() -> None:
            while jobs.look(run_id).state != "RUNNING":
                time.sleep(0.01)
            server.finish(run_id, "FAILED")

        threading.Thread(target=fail_again).start()
        assert RunActions(jobs, 5).retry(run_id).state == "FAILED"
        assert len([each for each in changes(server) if each.endswith(":retry")]) == 1

    def test_leaves_what_has_succeeded(self, server, jobs, run_id):
        server.finish(run_id)
        assert RunActions(jobs, 5).retry(run_id).state == "SUCCEEDED"
        assert not [each for each in changes(server) if each.endswith(":retry")]

    def test_waits_for_the_end_of_a_run_that_is_being_stopped(self, server, jobs, run_id):
        jobs.cancel(run_id)
        threading.Timer(0.5, lambda: server.report(run_id)).start()
        assert RunActions(jobs, 5).retry(run_id).state == "RUNNING"


class TestPuttingAway:
    @pytest.mark.parametrize("kind", ["lost-after", "lost-before", "status-503"])
    @pytest.mark.parametrize("action", ["archive", "delete"])
    def test_survives_what_the_server_loses(self, server, jobs, run_id, action, kind):
        server.fault(kind, method="POST" if action == "archive" else "DELETE", path="runs/")
        getattr(RunActions(jobs, 5), action)(run_id)
        found = jobs.look(run_id)
        assert found.archived if action == "archive" else found is None


class TestARecurringRun:
    @pytest.fixture
    def nightly(self, do, package):
        def make(**arguments: Any) -> Any:
            return do(KfpCreateRecurringRunOperator, **({"pipeline": package} | SCHEDULE | arguments)).xcom("it")

        return make

    def rows(self, server) -> list[tuple[str, bool]]:
        found = sorted(server.store.recurring.values(), key=lambda each: each.created_at)
        return [(each.recurring_run_id, each.enabled) for each in found]

    def test_is_made_once_and_the_same_again_changes_nothing(self, nightly, server):
        told = {
            "start": datetime(2024, 1, 1, tzinfo=UTC),
            "end": "2034-01-01T00:00:00+00:00",
            "catchup": True,
            "max_concurrency": 3,
        }
        result = nightly(**told)
        (row,) = server.store.recurring.values()
        assert result == {
            "version": 1,
            "recurring_run_id": row.recurring_run_id,
            "name": "nightly",
            "enabled": True,
            "url": f"{server.url}/#/recurringrun/details/{row.recurring_run_id}",
            "experiment_id": row.experiment_id,
            "pipeline_id": row.pipeline_id,
            "pipeline_version_id": row.pipeline_version_id,
        }
        limits = {"start_time": "2024-01-01T00:00:00Z", "end_time": "2034-01-01T00:00:00Z"}
        assert row.trigger == {"cron_schedule": {"cron": "0 0 3 * * *", **limits}}
        assert (row.enabled, row.no_catchup, row.max_concurrency) == (True, False, 3)
        before = changes(server)
        assert nightly(**told) == result
        assert changes(server) == before

    def test_of_an_interval_is_off_when_it_shall_be(self, nightly, server):
        assert nightly(schedule=timedelta(hours=6), enabled=False)["enabled"] is False
        (row,) = server.store.recurring.values()
        assert row.trigger == {"periodic_schedule": {"interval_second": "21600"}}
        assert not row.enabled
        nightly(schedule=timedelta(hours=6))
        assert row.enabled
        assert len(server.store.recurring) == 1

    @pytest.mark.parametrize(
        ("other", "named"),
        [
            ({"schedule": "0 4 * * *"}, "schedule"),
            ({"max_concurrency": 2}, "max_concurrency"),
            ({"catchup": True}, "catchup"),
            ({"experiment": "other"}, "experiment"),
            ({"options": KfpRunOptions(pipeline_root="s3://bucket/root")}, "pipeline_root"),
        ],
    )
    def test_with_another_definition_takes_over_and_the_old_one_is_kept_but_off(self, nightly, server, said, other, named):
        first, second = nightly(), nightly(**other)
        assert first["recurring_run_id"] != second["recurring_run_id"]
        assert dict(self.rows(server)) == {first["recurring_run_id"]: False, second["recurring_run_id"]: True}
        line = f"Recurring run {first['recurring_run_id']}, which has the name 'nightly' too (other {named}), is disabled"
        assert line in said()
        assert nightly()["recurring_run_id"] == first["recurring_run_id"]  # and back again
        assert dict(self.rows(server)) == {first["recurring_run_id"]: True, second["recurring_run_id"]: False}

    def test_with_another_service_account_takes_over(self, nightly, server):
        first, second = nightly(), nightly(options=KfpRunOptions(service_account="trainer"))
        assert dict(self.rows(server)) == {first["recurring_run_id"]: False, second["recurring_run_id"]: True}

    def test_with_other_arguments_is_another_definition(self, nightly, server, tmp_path):
        typed = tmp_path / "typed.yaml"
        spec = json.loads(json.dumps(SPEC))
        spec["root"]["inputDefinitions"] = {"parameters": {"n": {"parameterType": "NUMBER_INTEGER"}}}
        typed.write_text(json.dumps(spec))
        first = nightly(pipeline=str(typed), arguments={"n": "{{ 300 }}"})
        assert nightly(pipeline=str(typed), arguments={"n": 300}) == first
        assert nightly(pipeline=str(typed), arguments={"n": 301}) != first
        assert [each for _, each in self.rows(server)].count(True) == 1

    def test_of_a_newer_version_takes_over(self, nightly, server, catalog):
        catalog.upload(package_of(), name="churn")
        first = nightly(pipeline="churn")
        server.store.clock = lambda: pendulum.now().timestamp() + 5
        newer = catalog.upload(package_of("busybox:1.37"), name="churn")
        second = nightly(pipeline="churn")
        assert (first != second, second["pipeline_version_id"]) == (True, newer.version_id)

    def test_never_deletes_what_has_a_run(self, nightly, server, jobs):
        first = nightly()
        run = jobs.submit({"display_name": "tick", "recurring_run_id": first["recurring_run_id"], "pipeline_spec": SPEC})
        nightly(schedule="@hourly")
        assert not server.workflows_of(run.run_id)[0].deleted

    def test_of_another_name_in_other_letters_is_left_alone(self, nightly, server):
        first, second = nightly(), nightly(name="Nightly")
        assert dict(self.rows(server)) == {first["recurring_run_id"]: True, second["recurring_run_id"]: True}

    @pytest.mark.parametrize("fault", ["lost-after", "lost-before", "status-500"])
    @pytest.mark.parametrize("path", ["recurringruns$", ":enable$"])
    def test_is_one_though_answers_are_lost(self, nightly, server, fault, path):
        server.fault(fault, method="POST", path=path)
        result = nightly()
        assert self.rows(server) == [(result["recurring_run_id"], True)]

    def test_that_the_server_refuses_leaves_the_old_one_on(self, nightly, server):
        first = nightly()
        server.fault("status-400", method="POST", path="recurringruns$")
        assert nightly(schedule="@hourly") is None
        assert self.rows(server) == [(first["recurring_run_id"], True)]

    def test_that_kubernetes_has_lost_is_made_anew(self, nightly, server):
        first = nightly(enabled=False)
        server.store.recurring[first["recurring_run_id"]].object_gone = True
        second = nightly()
        assert self.rows(server) == [(second["recurring_run_id"], True)]
        server.store.recurring[second["recurring_run_id"]].object_gone = True
        third = nightly(schedule="@hourly")
        assert self.rows(server) == [(third["recurring_run_id"], True)]

    @pytest.fixture
    def establish(self, api, catalog):
        """What the operator does after it has checked its input."""
        body = {
            "display_name": "nightly",
            "pipeline_version_reference": catalog.upload(package_of()).reference,
            "experiment_id": catalog.experiment_id("churn"),
            "max_concurrency": "1",
            "no_catchup": True,
        }
        return lambda: KfpRecurringRuns(KfpCatalog(api)).establish(body, enabled=True).recurring_run_id

    def test_that_another_task_has_made_meanwhile_is_taken(self, server, establish):
        server.fault("slow", method="POST", path="recurringruns$", seconds=1)
        theirs: list[str] = []
        other = threading.Timer(0.3, lambda: theirs.append(establish()))
        other.start()
        assert [establish()] == theirs
        assert self.rows(server) == [(theirs[0], True)]
        assert changes(server)[-1].startswith("DELETE recurringruns/")

    def test_of_tasks_that_make_it_at_once_is_one(self, server, establish):
        for _ in range(10):
            made = at_once(*[establish] * 4)
            (on,) = [one for one, enabled in self.rows(server) if enabled]
            assert on in made
            server.store.recurring.clear()

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"arguments": {"unknown": 1}}, "unknown"),
            ({"schedule": "{{ '61 * * * *' }}"}, "'61' is no minute"),
            ({"start": "{{ 'soon' }}"}, "start='soon' is no time"),
            ({"name": "n" * 256}, "has 256 characters"),
            ({"options": KfpRunOptions(description="\N{ROCKET}")}, "takes 4 bytes"),
        ],
    )
    def test_with_bad_input_is_refused_before_anything_is_made(self, do, server, package, said, arguments, text):
        given = {"pipeline": package, "retries": 1} | SCHEDULE | arguments
        assert do(KfpCreateRecurringRunOperator, **given).task("it") == "failed"
        assert text in said()
        assert server.store.recurring == {}

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"schedule": "0 3 * *"}, "task 'it': schedule='0 3 \\* \\*' has 4 fields"),
            ({"schedule": timedelta(seconds=0.5)}, "whole seconds"),
            ({"end": "2020-01-01T00:00:00Z", "start": "2021-01-01T00:00:00Z"}, "is not after start"),
            ({"start": "2021-01-01"}, "has no time zone"),
            ({"max_concurrency": 0}, "max_concurrency=0 is out of range"),
            ({"max_concurrency": 11}, "Give 1 to 10"),
            ({"max_concurrency": True}, "out of range"),
            ({"name": " "}, "name=' ' is none"),
            ({"options": KfpRunOptions(register_package=False)}, "register_package=False is for single runs"),
        ],
    )
    def test_with_bad_input_is_refused_when_the_file_is_read(self, arguments, text):
        with pytest.raises(ConfigError, match=text):
            KfpCreateRecurringRunOperator(task_id="it", **({"pipeline": "churn"} | SCHEDULE | arguments))


class TestSwitchingARecurringRun:
    @pytest.fixture
    def one(self, catalog) -> str:
        return catalog.create_recurring_run(self.body(catalog) | {"mode": "ENABLE"})

    def body(self, catalog) -> dict[str, Any]:
        reference = catalog.upload(package_of()).reference
        return {"display_name": "nightly", "pipeline_version_reference": reference, "max_concurrency": "1"}

    def test_may_be_repeated(self, do, server, one):
        for action, on in (("disable", False), ("disable", False), ("enable", True), ("enable", True)):
            (told,) = do(KfpRecurringRunOperator, recurring_run_id=one, action=action).xcom("it")["recurring_runs"]
            assert (told["recurring_run_id"], told["enabled"], server.store.recurring[one].enabled) == (one, on, on)
        assert do(KfpRecurringRunOperator, recurring_run_id=one, action="delete").task("it") == "success"
        assert do(KfpRecurringRunOperator, recurring_run_id=one, action="delete").xcom("it") == {
            "version": 1,
            "recurring_runs": [],
        }
        assert server.store.recurring == {}

    @pytest.mark.parametrize("action", ["enable", "disable", "delete"])
    @pytest.mark.parametrize("kind", ["lost-after", "lost-before", "status-500"])
    def test_survives_what_the_server_loses(self, do, server, one, action, kind):
        server.fault(kind, method="DELETE" if action == "delete" else "POST", path="recurringruns/")
        assert do(KfpRecurringRunOperator, name="nightly", action=action).task("it") == "success"
        assert [each.enabled for each in server.store.recurring.values()] == {"enable": [True], "disable": [False], "delete": []}[
            action
        ]

    def test_for_good_waits_for_its_runs(self, do, server, jobs, catalog, one, said):
        reference = self.body(catalog)["pipeline_version_reference"]
        tick = {"display_name": "tick", "recurring_run_id": one, "pipeline_version_reference": reference}
        run = jobs.submit(tick).run_id
        assert do(KfpRecurringRunOperator, name="nightly", action="delete").task("it") == "failed"
        assert f"1 of its runs are active ({run} (PENDING))" in said()
        assert (one in server.store.recurring, server.store.recurring[one].enabled) == (True, False)
        assert not server.workflows_of(run)[0].deleted
        server.finish(run)
        assert do(KfpRecurringRunOperator, name="nightly", action="delete").task("it") == "success"
        assert server.store.recurring == {}

    def test_for_good_can_take_its_runs_along(self, do, server, jobs, catalog, one):
        reference = self.body(catalog)["pipeline_version_reference"]
        run = jobs.submit({"display_name": "tick", "recurring_run_id": one, "pipeline_version_reference": reference}).run_id
        given = {"recurring_run_id": one, "action": "delete", "even_if_active": True}
        assert do(KfpRecurringRunOperator, **given).task("it") == "success"
        assert server.workflows_of(run)[0].deleted

    def test_for_good_takes_what_kubernetes_has_lost(self, do, server, one):
        server.store.recurring[one].object_gone = True
        assert do(KfpRecurringRunOperator, recurring_run_id=one, action="delete").task("it") == "success"
        assert server.store.recurring == {}

    def test_of_several_of_one_name_never_turns_them_all_on(self, do, server, catalog, one, said):
        catalog.create_recurring_run(self.body(catalog))
        assert do(KfpRecurringRunOperator, name="nightly", action="enable", retries=1).task("it") == "failed"
        assert "2 recurring runs are named 'nightly'" in said()
        assert do(KfpRecurringRunOperator, name="nightly", action="disable").task("it") == "success"
        assert not any(each.enabled for each in server.store.recurring.values())

    def test_of_a_name_that_none_can_have_is_refused_at_once(self, do, server, said):
        before = len(server.requests)
        assert do(KfpRecurringRunOperator, name="nightly \N{ROCKET}", action="disable").task("it") == "failed"
        assert "takes 4 bytes in UTF-8" in said()
        assert len(server.requests) == before

    @pytest.mark.parametrize("which", [{"name": "absent"}, {"recurring_run_id": NOWHERE}])
    def test_of_one_that_is_not_there_fails_and_says_so(self, do, said, which):
        assert do(KfpRecurringRunOperator, action="enable", **which).task("it") == "failed"
        assert "has no recurring run" in said()

    @pytest.mark.parametrize("which", [{}, {"name": "a", "recurring_run_id": "b"}, {"name": ""}])
    def test_without_one_clear_name_is_refused(self, which):
        with pytest.raises(ConfigError, match=r"give either|name='' is none"):
            KfpRecurringRunOperator(task_id="it", action="delete", **which)


def test_every_page_is_linked_from_the_task(do, server, package):
    """What a task has found is there for the links when it ends."""
    from airflow_ml_provider.links.kfp import KfpExperimentLink
    from airflow_ml_provider.links.kfp_recurring import KfpRecurringRunLink

    outcome = do(KfpCreateRecurringRunOperator, pipeline=package, **SCHEDULE)
    assert outcome.xcom("it", key=KfpRecurringRunLink().xcom_key) == outcome.xcom("it")["url"]
    assert outcome.xcom("it")["experiment_id"] in outcome.xcom("it", key=KfpExperimentLink().xcom_key)
    assert paths(server, "POST")
