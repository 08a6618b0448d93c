"""The run operator in DAG runs, against the fake server over HTTP."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pendulum
import pytest
from airflow.providers.common.compat.sdk import TaskDeferred
from airflow.sdk import DAG, task

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.kfp import KfpRunOptions, WaitOutcome
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator
from airflow_ml_provider.testing import FakeKfpServer
from tests.airflow_runs import Outcome
from tests.jobs.conftest import SPEC, Store

START = pendulum.datetime(2024, 1, 1)
CHURN = str(Path(__file__).parents[2] / "dags/pipelines/churn.yaml")
QUICK = KfpRunOptions(poll_interval_s=0.1, settle_s=1)
DAY = {"day": "2024-01-01"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfpServer]:
    with FakeKfpServer() as server:
        server.auto(seconds=0.2)
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url}))
        monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "3")
        monkeypatch.setenv("AIRFLOW__ML__HTTP_TIMEOUT_S", "2")
        monkeypatch.setenv("AIRFLOW__ML__HTTP_RETRIES", "0")
        yield server


def wait_for(look: Callable[[], Any]) -> None:
    """Look until there is something to see."""
    end = time.monotonic() + 30
    while not look() and time.monotonic() < end:
        time.sleep(0.05)


def start_inline(server: FakeKfpServer) -> str:
    """Start a run on the server."""
    body = {"display_name": "theirs", "pipeline_spec": SPEC}
    return str(httpx.post(f"{server.url}/apis/v2beta1/runs", json=body).raise_for_status().json()["run_id"])


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """What the tasks have written to their log so far."""
    read: list[str] = []

    def all_of_it() -> str:
        read.extend(capfd.readouterr())
        return "".join(read)

    return all_of_it


@pytest.fixture
def night(run_dag: Callable[..., Outcome], unique: str, server: FakeKfpServer) -> Callable[..., Outcome]:
    """Run one task and a reader of its result, each time in a night of its own."""
    nights = itertools.count()

    def run(**arguments: Any) -> Outcome:
        @task
        def read(run: dict[str, Any]) -> str:
            return str(run["state"])

        with DAG(unique, schedule=None, start_date=START) as made:
            given: dict[str, Any] = {"pipeline": CHURN, "arguments": DAY, "options": QUICK, "deferrable": False} | arguments
            read(KfpRunPipelineOperator(task_id="train", **given).output)
        return run_dag(made, logical_date=START.add(days=next(nights)))

    return run


class TestARun:
    @pytest.mark.parametrize("deferrable", [False, True])
    def test_that_succeeds_gives_its_reference(self, night, server, deferrable, unique):
        outcome = night(deferrable=deferrable)
        assert outcome.xcom("read") == "SUCCEEDED"
        (run,) = server.runs
        result = outcome.xcom("train")
        assert result == {
            "version": 1,
            "run_id": run.run_id,
            "state": "SUCCEEDED",
            "url": f"{server.url}/#/runs/details/{run.run_id}",
            "experiment_id": result["experiment_id"],
            "pipeline_id": result["pipeline_id"],
            "pipeline_version_id": result["pipeline_version_id"],
            "mlflow_run_id": result["mlflow_run_id"],
        }
        assert all(result.values())
        assert len(server.workflows) == 1

    @pytest.mark.parametrize("deferrable", [False, True])
    def test_that_fails_names_the_task_and_the_end_of_its_log(self, night, server, deferrable, said):
        server.auto(seconds=0.2, state="FAILED", failed_task="train", log="line\n" * 50 + "CUDA out of memory\n")
        outcome = night(deferrable=deferrable)
        assert (outcome.task("train"), outcome.task("read")) == ("failed", "upstream_failed")
        assert "Task train FAILED" in said()
        assert "CUDA out of memory" in said()
        assert said().count("line\n") < 30

    @pytest.mark.parametrize("deferrable", [False, True])
    @pytest.mark.parametrize("limit", ["timeout", "execution_timeout"])
    def test_is_stopped_when_it_takes_too_long(self, night, server, said, limit, deferrable):
        server.auto(seconds=None)
        outcome = night(deferrable=deferrable, **{limit: timedelta(seconds=1.5)})
        assert outcome.task("train") == "failed"
        (run,) = server.runs
        assert run.state == "CANCELING"
        assert "was stopped by this task" in said() or "AirflowTaskTimeout" in said()

    def test_that_somebody_else_stopped_is_not_told_as_ours(self, night, server, said):
        server.auto(seconds=0.5, state="CANCELED")
        assert night().task("train") == "failed"
        assert "was cancelled on the server, not by this task" in said()

    def test_of_each_mapped_instance_is_its_own(self, run_dag, unique, server):
        with DAG(unique, schedule=None, start_date=START) as made:
            days = [{"day": "2024-01-01"}, {"day": "2024-01-02"}, {"day": "2024-01-03"}]
            KfpRunPipelineOperator.partial(task_id="train", pipeline=CHURN, options=QUICK, deferrable=False).expand(
                arguments=days
            )
        assert run_dag(made, logical_date=START).state == "success"
        assert len({each.run_id for each in server.runs}) == 3

    def test_takes_its_arguments_from_templates(self, night, server):
        night(arguments={"day": "{{ ds }}", "n_estimators": "{{ 100 + 200 }}"})
        create = next(each for each in server.requests if each.method == "POST" and each.path.endswith("/runs"))
        sent = json.loads(create.body)["runtime_config"]["parameters"]
        assert sent == {"day": "2024-01-01", "n_estimators": 300}

    def test_uploads_the_same_package_once(self, night, server):
        night()
        night(run_name="again")
        uploads = [each for each in server.requests if "upload" in each.path]
        assert [each.path.rpartition("/")[2] for each in uploads] == ["upload"]

    def test_can_carry_its_whole_spec(self, night, server):
        assert night(options=QUICK.model_copy(update={"register_package": False})).xcom("read") == "SUCCEEDED"
        assert not [each for each in server.requests if "upload" in each.path]

    def test_of_a_registered_pipeline_can_have_a_carrier_whatever_is_said_of_packages(self, night, server, said):
        night()
        once = {"exactly_once": "carrier", "options": KfpRunOptions(poll_interval_s=0.1, settle_s=10, register_package=False)}
        assert night(pipeline="{{ 'churn' }}", **once).xcom("read") == "SUCCEEDED"
        before = len(server.workflows)
        assert night(pipeline="{{ 'pipelines/' }}churn.{{ 'yaml' }}", **once).task("train") == "failed"
        assert "needs a registered version" in said()
        assert len(server.workflows) == before

    def test_of_a_registered_pipeline_is_checked_against_its_spec(self, night, server, said):
        night()
        assert night(pipeline="churn").xcom("read") == "SUCCEEDED"
        assert night(pipeline="churn", arguments={"dya": "2024-01-01"}).task("train") == "failed"
        assert "Did you mean 'day'?" in said()


class TestTheSecondTry:
    def test_takes_up_the_run_though_the_package_is_gone(self, run_dag, unique, server, tmp_path):
        package = tmp_path / "churn.yaml"
        package.write_text(Path(CHURN).read_text())

        class Crashing(KfpRunPipelineOperator):
            """Loses its worker, and its package, while it waits for the first time."""

            def _wait(self, *args):
                if package.exists():
                    package.unlink()
                    raise OSError("the worker is gone")
                return super()._wait(*args)

        with DAG(unique, schedule=None, start_date=START) as made:
            pause = {"retries": 1, "retry_delay": timedelta(0)}
            Crashing(task_id="train", pipeline=str(package), arguments=DAY, options=QUICK, deferrable=False, **pause)
        assert run_dag(made, logical_date=START).state == "success"
        assert len(server.workflows) == 1

    def test_keeps_the_deadline_of_a_run_that_had_ended_and_goes_on(self, run_dag, unique, server):
        server.auto(None)
        again = []

        class Repeated(KfpRunPipelineOperator):
            """Is told of an end, after which somebody repeats the run."""

            def _look_again(self, submission, told):
                if not again:
                    again.append(server.report(told.run_id, "RUNNING"))
                return super()._look_again(submission, told)

        def finish():
            wait_for(lambda: server.runs)
            time.sleep(2)
            server.finish(server.runs[0].run_id, "FAILED")

        threading.Thread(target=finish, daemon=True).start()
        with DAG(unique, schedule=None, start_date=START) as made:
            limit = {"timeout": timedelta(seconds=3), "deferrable": False}
            Repeated(task_id="train", pipeline=CHURN, arguments=DAY, options=QUICK, **limit)
        assert run_dag(made, logical_date=START).state == "failed"
        created = next(each.at for each in server.requests if each.method == "POST" and each.path.endswith("/runs"))
        stopped = next(each.at for each in server.requests if each.path.endswith(":terminate"))
        assert stopped - created < 4
        assert again

    def test_is_deferred_again_with_the_same_deadline(self, server):
        run_id = start_inline(server)
        event = WaitOutcome(run_id=run_id, outcome="ended", state="FAILED", deadline=12345.0).model_dump(mode="json")
        train = KfpRunPipelineOperator(task_id="train", pipeline=CHURN, timeout=timedelta(hours=1), deferrable=True)
        with pytest.raises(TaskDeferred) as deferred:
            train.execute_complete({"ti": SimpleNamespace(try_number=1, max_tries=0), "task_state_store": Store()}, event)
        assert deferred.value.trigger.deadline == 12345.0

    @pytest.mark.parametrize("deferrable", [False, True])
    @pytest.mark.parametrize("retries", [0, pytest.param(1, marks=pytest.mark.full)])
    def test_that_was_stopped_leaves_no_carrier(self, run_dag, unique, server, deferrable, retries):
        server.auto(seconds=2)  # it ends so long after it was told to stop
        once = {"exactly_once": "carrier", "options": KfpRunOptions(poll_interval_s=0.1, settle_s=10)}
        limit = {"timeout": timedelta(seconds=1), "retries": retries, "retry_delay": timedelta(0)}
        with DAG(unique, schedule=None, start_date=START) as made:
            KfpRunPipelineOperator(task_id="train", pipeline=CHURN, arguments=DAY, deferrable=deferrable, **once, **limit)
        assert run_dag(made, logical_date=START).state == "failed"
        assert [str(each.state) for each in server.runs] == ["FAILED"] * (retries + 1)
        assert not server.store.recurring

    @pytest.mark.full
    def test_that_was_deleted_leaves_no_carrier(self, run_dag, unique, server):
        server.auto(None)
        once = {"exactly_once": "carrier", "options": KfpRunOptions(poll_interval_s=0.1, settle_s=10)}

        def delete():
            wait_for(lambda: server.runs)
            httpx.delete(f"{server.url}/apis/v2beta1/runs/{server.runs[0].run_id}").raise_for_status()

        threading.Thread(target=delete, daemon=True).start()
        with DAG(unique, schedule=None, start_date=START) as made:
            KfpRunPipelineOperator(task_id="train", pipeline=CHURN, arguments=DAY, deferrable=False, **once)
        assert run_dag(made, logical_date=START).state == "failed"
        assert not server.store.recurring

    def test_of_a_failed_run_keeps_its_carrier_which_owns_the_workflow(self, run_dag, unique, server):
        server.auto(seconds=1.2, state="FAILED")  # stamps are whole seconds: two ends in one could be one report that came twice
        with DAG(unique, schedule=None, start_date=START) as made:
            once = {"exactly_once": "carrier", "options": KfpRunOptions(poll_interval_s=0.1, settle_s=10)}
            pause = {"retries": 1, "retry_delay": timedelta(0)}
            KfpRunPipelineOperator(task_id="train", pipeline=CHURN, arguments=DAY, deferrable=False, **once, **pause)
        assert run_dag(made, logical_date=START).state == "failed"
        deleted = [number for number, each in enumerate(server.requests) if each.method == "DELETE"]
        retried = [number for number, each in enumerate(server.requests) if each.path.endswith(":retry")]
        assert len(retried) == 1
        assert min(deleted) > retried[0]


class TestBadInput:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"arguments": {"dya": "x"}}, "Did you mean 'day'?"),
            ({"arguments": {}}, "day"),
            ({"arguments": DAY | {"n_estimators": "many"}}, "n_estimators"),
            ({"run_name": "night \N{SLICE OF PIZZA}"}, "4 bytes"),
            ({"run_name": "x" * 300}, "300 characters"),
            ({"experiment": "x" * 200}, "128"),
            ({"arguments": "{{ [1] }}"}, "is no dict of values"),
            ({"options": QUICK.model_copy(update={"plugins_input": {"mlflow": {"name": "\U0001f355"}}})}, "plugins_input holds"),
        ],
    )
    def test_is_named_before_anything_is_started_and_not_retried(self, night, server, said, arguments, message):
        assert night(retries=3, **arguments).task("train") == "failed"
        assert message in said()
        assert not server.workflows

    @pytest.mark.parametrize(
        ("pipeline", "message"),
        [
            ("absent", "has no pipeline 'absent'"),
            ("churn@v9", "has no pipeline 'churn'"),
            ("churn\N{ROCKET}", "the pipeline's name, 'churn\\U0001f680', holds"),
            ("churn@v\N{ROCKET}", "the version's name, 'v\\U0001f680', holds"),
            ("x" * 129, "takes 129 bytes in UTF-8; the server takes 128"),
            ("pipelines/absent.yaml", "pipelines/absent.yaml"),
        ],
    )
    def test_what_is_not_there_is_named(self, night, said, pipeline, message):
        assert night(pipeline=pipeline).task("train") == "failed"
        assert message in said()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"pipeline": ""}, "is none"),
            ({"on_retry": "renew"}, "Did you mean 'new'?"),
            ({"exactly_once": "carier"}, "Did you mean 'carrier'?"),
            ({"leave_running": ["failed"]}, "none of clear, success"),
            ({"leave_running": "failed"}, "'failed' is none of clear, success"),
            ({"timeout": timedelta(0)}, "no positive timedelta"),
            ({"timeout": 60}, "no positive timedelta"),
            ({"exactly_once": "carrier", "options": KfpRunOptions(settle_s=2)}, "server's agent"),
            ({"exactly_once": "carrier", "options": KfpRunOptions(register_package=False)}, "needs a registered version"),
        ],
    )
    def test_that_can_be_seen_is_refused_when_the_dag_is_parsed(self, arguments, message):
        with pytest.raises(ConfigError, match="task 'train'") as refused:
            KfpRunPipelineOperator(task_id="train", **({"pipeline": CHURN} | arguments))
        assert message in str(refused.value)


class TestAServerThatIsAway:
    def test_for_less_than_the_patience_costs_nothing(self, night, server):
        server.fault("status-503", method="GET", times=1)
        assert night().xcom("read") == "SUCCEEDED"

    @pytest.mark.parametrize("deferrable", [pytest.param(False, marks=pytest.mark.full), True])
    def test_for_longer_fails_the_task_and_the_run_goes_on(self, night, server, said, deferrable, monkeypatch):
        monkeypatch.setenv("AIRFLOW__ML__PATIENCE_S", "1")
        server.auto(seconds=None)
        cut = threading.Thread(target=lambda: (wait_for(lambda: server.workflows), time.sleep(1.5), server.down()))
        cut.start()
        assert night(deferrable=deferrable).task("train") == "failed"
        cut.join()
        assert "RemoteUnavailableError" in said()
        (workflow,) = server.workflows
        assert not workflow.stopped

    def test_in_the_create_is_unknown_and_says_what_to_look_for(self, night, server, said):
        server.fault("lost-between")
        assert night(retries=3).task("train") == "failed"
        assert "kubectl get workflows -A -l pipeline/runid=" in said()
        assert len(server.workflows) == 1


def test_kubernetes_is_asked_what_a_lost_create_has_started(night, server, monkeypatch, said):
    cluster = {"name": "fake", "cluster": {"server": server.url}}
    config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "users": [{"name": "me", "user": {}}]}
    config |= {"contexts": [{"name": "c", "context": {"cluster": "fake", "user": "me"}}], "current-context": "c"}
    connection = {"conn_type": "kubernetes", "extra": {"kube_config": json.dumps(config)}}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps(connection))
    server.fault("lost-before")
    assert night(exactly_once="workflows").xcom("read") == "SUCCEEDED"
    assert len(server.workflows) == 1
    server.fault("lost-between")
    assert night(exactly_once="workflows", run_name="orphaned").task("train") == "failed"
    assert "is an orphan" in said()


def test_a_secret_in_the_address_of_a_package_is_in_no_log(night, server, said):
    server.fault("status-503", path="/churn.yaml", times=2)
    address = server.url.replace("http://", "http://ada:hunter2@") + "/churn.yaml?sig=topsecret"
    assert night(pipeline=address).task("train") == "failed"
    assert "/churn.yaml" in said()
    assert "hunter2" not in said()
    assert "topsecret" not in said()
