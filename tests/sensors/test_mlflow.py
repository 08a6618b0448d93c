"""The sensors in DAG runs, against a real MLflow, in the worker and in the triggerer's code."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pendulum
import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout, AirflowSkipException, TaskDeferred
from airflow.sdk import DAG

from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.watch import WatchOutcome
from airflow_ml_provider.sensors.mlflow import (
    MlflowMetricSensor,
    MlflowModelAliasSensor,
    MlflowModelVersionSensor,
    MlflowRunSensor,
)
from tests import servers
from tests.airflow_runs import Outcome

START = pendulum.datetime(2024, 1, 1)
WAYS: dict[str, dict[str, Any]] = {"poke": {"deferrable": False}, "deferred": {"deferrable": True}}
EACH_WAY = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


class Runs:
    """What people do in MLflow."""

    def __init__(self, api: MlflowApi, name: str) -> None:
        self.api, self.experiment = api, name
        self.experiment_id = api.post("experiments/create", {"name": name})["experiment_id"]
        self.started = itertools.count(1)

    def start(self, **tags: str) -> str:
        listed = [{"key": key, "value": each} for key, each in tags.items()]
        body = {"experiment_id": self.experiment_id, "start_time": next(self.started), "tags": listed}
        return str(self.api.post("runs/create", body)["run"]["info"]["run_id"])

    def end(self, run_id: str, status: str = "FINISHED", error: str = "") -> None:
        if error:
            self.api.post("runs/set-tag", {"run_id": run_id, "key": "airflow.error", "value": error})
        self.api.post("runs/update", {"run_id": run_id, "status": status, "end_time": 9})

    def log(self, run_id: str, auc: float | str) -> None:
        self.api.post("runs/log-metric", {"run_id": run_id, "key": "auc", "value": auc, "timestamp": 1})

    def delete(self, run_id: str) -> None:
        self.api.post("runs/delete", {"run_id": run_id})

    def register(self, **tags: str) -> str:
        listed = [{"key": key, "value": each} for key, each in tags.items()]
        body = {"name": self.experiment, "source": "s3://b/k", "tags": listed}
        return str(self.api.post("model-versions/create", body)["model_version"]["version"])

    def alias(self, version: str) -> None:
        self.api.post("registered-models/alias", {"name": self.experiment, "alias": "champion", "version": version})


@pytest.fixture
def runs(mlflow_api: MlflowApi, unique: str) -> Runs:
    return Runs(mlflow_api, unique)


@pytest.fixture
def model(runs: Runs) -> Runs:
    runs.api.post("registered-models/create", {"name": runs.experiment})
    return runs


@pytest.fixture
def wait(run_dag: Callable[..., Outcome], unique: str) -> Callable[..., Outcome]:
    nights = itertools.count()

    def run(sensor: type[Any], **arguments: Any) -> Outcome:
        with DAG(unique, schedule=None, start_date=START) as made:
            sensor(task_id="wait", **({"poke_interval": 0.5, "timeout": 30} | arguments))
        return run_dag(made, logical_date=START.add(days=next(nights)))

    return run


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: caplog.text + capsys.readouterr().out


@pytest.fixture
def later() -> Iterator[Callable[..., None]]:
    """Do something while the sensor waits."""
    timers: list[threading.Timer] = []

    def start(call: Callable[..., Any], *args: Any) -> None:
        timers.append(threading.Timer(1.5, call, args))
        timers[-1].start()

    yield start
    for each in timers:
        each.join()


class TestARun:
    @EACH_WAY
    def test_that_goes_on_is_waited_for(self, wait, runs, way, later):
        run_id = runs.start()
        later(runs.end, run_id)
        result = wait(MlflowRunSensor, run_id="{{ '" + run_id + "' }}", **way).xcom("wait")
        assert result == {"run_id": run_id, "experiment_id": runs.experiment_id, "status": "FINISHED"}

    @EACH_WAY
    def test_that_failed_fails_the_task_with_its_reason_unless_any_end_will_do(self, wait, runs, way, said):
        run_id = runs.start()
        runs.end(run_id, "FAILED", "ValueError: no rows of 2013-12-31")
        assert wait(MlflowRunSensor, run_id=run_id, **way).task("wait") == "failed"
        assert f"Run {run_id} FAILED: ValueError: no rows of 2013-12-31." in said()
        assert wait(MlflowRunSensor, run_id=run_id, soft_fail=True, **way).task("wait") == "skipped"
        assert wait(MlflowRunSensor, run_id=run_id, fail_on_bad_end=False, **way).xcom("wait")["status"] == "FAILED"

    def test_that_fails_while_it_is_waited_for_is_told_the_same(self, wait, runs, later, said):
        run_id = runs.start()
        later(runs.end, run_id, "KILLED")
        assert wait(MlflowRunSensor, run_id=run_id, deferrable=True).task("wait") == "failed"
        assert f"Run {run_id} KILLED: its tags give no reason" in said()

    @EACH_WAY
    def test_is_the_newest_with_the_tags_and_need_not_exist_yet(self, wait, runs, way, later):
        tags = {"airflow.dag_id": "it's", "airflow.task_id": "{{ 'train' }}"}
        rendered = {"airflow.dag_id": "it's", "airflow.task_id": "train"}
        runs.end(runs.start(**rendered | {"airflow.task_id": "Train"}))

        def happen() -> None:
            older, newest = runs.start(**rendered), runs.start(**rendered)
            runs.end(older, "FAILED")
            runs.end(newest)

        later(happen)
        assert wait(MlflowRunSensor, experiment=runs.experiment, tags=tags, **way).xcom("wait")["status"] == "FINISHED"

    def test_of_an_experiment_that_does_not_exist_is_waited_for(self, wait, said):
        arguments = {"experiment": "nowhere-' OR 1=1", "tags": {"a": "b"}, "timeout": 1}
        assert wait(MlflowRunSensor, deferrable=True, **arguments).task("wait") == "failed"
        assert "AirflowSensorTimeout" in said()

    @EACH_WAY
    @pytest.mark.parametrize("gone", ["never", "bin"])
    def test_that_is_gone_fails_the_task(self, wait, runs, way, gone, said, mlflow_server):
        run_id = runs.start() if gone == "bin" else "0" * 32
        if gone == "bin":
            runs.delete(run_id)
        assert wait(MlflowRunSensor, run_id=run_id, **way).task("wait") == "failed"
        told = mlflow_server.username and gone == "never"  # who is no admin is not told it from another user's
        assert ("Or there is no such thing" if told else f"The server has no run '{run_id}', or it was deleted.") in said()

    def test_has_a_page_that_the_task_links_to(self, runs, mlflow_connection, mlflow_server):
        run_id = runs.start()
        runs.end(run_id)
        sensor = MlflowRunSensor(task_id="wait", run_id=run_id, deferrable=True)
        sensor.execute({})
        page = sensor.operator_extra_links[0].get_link(sensor, ti_key=None)
        assert page == mlflow_server.run_page(runs.experiment_id, run_id)


class TestAMetric:
    @EACH_WAY
    def test_that_keeps_its_rule_later_is_waited_for(self, wait, runs, way, later):
        run_id = runs.start()
        runs.log(run_id, "NaN")
        later(runs.log, run_id, 0.81)
        result = wait(MlflowMetricSensor, run_id=run_id, rule="auc >= {{ 0.8 }}", **way).xcom("wait")
        assert (result["metric"], result["value"], result["rule"], result["status"]) == ("auc", 0.81, "auc >= 0.8", "RUNNING")

    @EACH_WAY
    def test_of_a_run_that_ended_below_it_fails_the_task(self, wait, runs, way, said):
        run_id = runs.start(kind="nightly")
        runs.log(run_id, 0.79)
        runs.end(run_id)
        arguments = {"experiment": runs.experiment, "tags": {"kind": "nightly"}}
        assert wait(MlflowMetricSensor, rule="auc >= 0.8", **arguments, **way).task("wait") == "failed"
        assert f"auc of run {run_id} is 0.79, the rule is auc >= 0.8, and the run is FINISHED." in said()


class TestAnAlias:
    @EACH_WAY
    def test_that_appears_and_then_moves_away_is_waited_for(self, wait, model, way, later):
        model.register()
        later(model.alias, "1")
        named = {"model": model.experiment, "alias": "champion"}
        assert wait(MlflowModelAliasSensor, **named, **way).xcom("wait")["version"] == "1"
        model.register(stage="ready")
        later(model.alias, "2")
        found = wait(MlflowModelAliasSensor, **named, away_from="{{ 1 }}", **way).xcom("wait")
        assert found == {**named, "version": "2", "run_id": "", "source": "s3://b/k", "tags": {"stage": "ready"}}

    def test_of_a_model_that_does_not_exist_is_waited_for_until_the_time_is_up(self, wait, unique, said):
        arguments = {"model": unique, "alias": "champion", "timeout": 1, "deferrable": True}
        assert wait(MlflowModelAliasSensor, **arguments).task("wait") == "failed"
        assert f"Newest look: There is no {unique}@champion. The sensor's timeout is 1 s." in said()
        assert wait(MlflowModelAliasSensor, soft_fail=True, **arguments).task("wait") == "skipped"

    def test_has_a_page_that_the_task_links_to_found_or_not(self, model, mlflow_connection, mlflow_server):
        model.alias(model.register())
        sensor = MlflowModelAliasSensor(task_id="wait", model=model.experiment, alias="champion", deferrable=True)
        (link,) = sensor.operator_extra_links
        sensor.execute({})
        assert link.get_link(sensor, ti_key=None) == mlflow_server.model_page(model.experiment, "1")
        other = MlflowModelVersionSensor(task_id="wait", model="named/so", deferrable=True)
        with pytest.raises(AirflowSensorTimeout):
            other.execute_complete({}, {"outcome": "deadline"})
        assert link.get_link(other, ti_key=None) == mlflow_server.model_page("named/so")

    @EACH_WAY
    def test_can_be_one_of_many_that_are_mapped_over(self, run_dag, model, unique, way):
        model.alias(model.register())
        with DAG(unique, schedule=None, start_date=START) as made:
            given = {"poke_interval": 0.5, "alias": "champion", **way}
            MlflowModelAliasSensor.partial(task_id="wait", timeout=2, retries=1, retry_delay=timedelta(0), **given).expand(
                model=[model.experiment, f"{unique}-missing"]
            )
        outcome = run_dag(made, logical_date=START)
        assert [outcome.task("wait", each) for each in (0, 1)] == ["success", "failed"]
        assert outcome.xcom("wait", 0)["version"] == "1"


class TestAVersion:
    @EACH_WAY
    def test_with_its_tag_is_waited_for(self, wait, model, way, later):
        model.register(stage="ready")
        model.register(stage="Ready")
        tags = {"stage": "ready"}
        assert wait(MlflowModelVersionSensor, model=model.experiment, tags=tags, **way).xcom("wait")["version"] == "1"
        later(lambda: model.register(stage="ready"))
        arguments = {"model": model.experiment, "tags": tags, "newer_than": "{{ 1 }}"}
        assert wait(MlflowModelVersionSensor, **arguments, **way).xcom("wait")["version"] == "3"


class TestTheServer:
    @EACH_WAY
    def test_that_stays_away_fails_the_task_even_if_it_may_fail(self, wait, runs, way, said, monkeypatch):
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": "http://127.0.0.1:9"}))
        assert wait(MlflowRunSensor, run_id="0" * 32, soft_fail=True, **way).task("wait") == "failed"
        assert "did not answer" in said()
        assert wait(MlflowRunSensor, run_id="0" * 32, never_fail=True, **way).task("wait") == "skipped"

    @EACH_WAY
    def test_that_nobody_has_named_fails_the_task_without_a_retry(self, wait, way, said):
        outcome = wait(MlflowRunSensor, run_id="0" * 32, mlflow_conn_id="nowhere", retries=1, **way)
        assert outcome.task("wait") == "failed"
        assert "there is no connection 'nowhere'" in said()

    @EACH_WAY
    def test_that_nobody_has_named_or_a_wrong_rule_fails_a_sensor_too_that_may_fail(self, wait, way, said):
        nowhere = {"run_id": "0" * 32, "mlflow_conn_id": "nowhere", "soft_fail": True, "retries": 1}
        assert wait(MlflowRunSensor, **nowhere, **way).task("wait") == "failed"
        assert wait(MlflowMetricSensor, run_id="0" * 32, rule="auc", soft_fail=True, **way).task("wait") == "failed"
        told = said()
        assert "there is no connection 'nowhere'" in told
        assert "is not a rule" in told

    @pytest.mark.parametrize(
        ("told", "fails"),
        [
            ("refused", pytest.raises(AirflowFailException, match=r"^so it is$")),
            ("deadline", pytest.raises(AirflowSkipException)),
            ("unreachable", pytest.raises(RemoteUnavailableError, match=r"^so it is$")),
        ],
    )
    def test_that_refuses_while_it_is_waited_for_fails_a_sensor_too_that_may_fail(self, told, fails):
        event = {"event": WatchOutcome(outcome=told, message="so it is").model_dump(mode="json")}
        with pytest.raises(AirflowSkipException):
            MlflowRunSensor(task_id="wait", run_id="r", never_fail=True).resume_execution("execute_complete", event, {})
        sensor = MlflowRunSensor(task_id="wait", run_id="r", soft_fail=True, deferrable=True)
        with fails as raised:
            sensor.resume_execution("execute_complete", event, {})
        seen, each = [], raised.value
        while each is not None:
            assert each not in seen, "who prints the chain of errors comes to its end"
            seen.append(each)
            each = each.__cause__ or each.__context__

    @pytest.mark.parametrize(
        ("event", "error"),
        [
            (WatchOutcome(outcome="refused", message="no").model_dump(mode="json"), "AirflowFailException"),
            (WatchOutcome(outcome="unreachable", message="no").model_dump(mode="json"), "RemoteUnavailableError"),
            (WatchOutcome(outcome="deadline", message="no").model_dump(mode="json"), "AirflowSensorTimeout"),
            ({"outcome": "of another release"}, "AirflowFailException"),
            (None, "AirflowFailException"),
        ],
    )
    def test_whose_trigger_tells_no_good_news_fails_the_task_by_its_remedy(self, event, error):
        with pytest.raises(Exception) as raised:  # noqa: PT011  (its class is looked at by name)
            MlflowRunSensor(task_id="wait", run_id="r").execute_complete({}, event)
        assert type(raised.value).__name__ == error


class TestDeferring:
    def test_gives_the_trigger_plain_json_without_a_secret(self, runs, monkeypatch, mlflow_server):
        connection = {"password": "s3cret"} | json.loads(servers.connection(mlflow_server))
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(connection))
        sensor = MlflowRunSensor(task_id="wait", run_id=runs.start(), deferrable=True, timeout=60, poke_interval=0.1)
        with pytest.raises(TaskDeferred) as deferred:
            sensor.execute({})
        _, arguments = deferred.value.trigger.serialize()
        assert (arguments["poll_interval_s"], arguments["patience_s"]) == (1.0, 1.0)
        assert connection["password"] not in json.dumps(arguments)

    def test_is_decided_by_the_configuration_where_the_task_says_nothing(self, runs, monkeypatch, mlflow_connection):
        sensor = MlflowRunSensor(task_id="wait", run_id=runs.start(), timeout=60)
        monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "True")
        with pytest.raises(TaskDeferred):
            sensor.execute({})


class TestBadInput:
    @pytest.mark.parametrize(
        ("sensor", "words"),
        [
            (MlflowRunSensor(task_id="a"), "give run_id=, or experiment= and tags="),
            (MlflowRunSensor(task_id="a", run_id="None"), "run_id='None' is none"),
            (MlflowRunSensor(task_id="a", run_id="r", experiment="e", tags={"a": "b"}), "and not both"),
            (MlflowRunSensor(task_id="a", experiment="e"), "give run_id=, or experiment= and tags="),
            (MlflowRunSensor(task_id="a", run_id="x" * 10_000), "at most 500"),
            (MlflowRunSensor(task_id="a", experiment="e", tags={"a`": "b"}), "cannot be written in MLflow's search"),
            (MlflowMetricSensor(task_id="a", run_id="r", rule="auc"), "is not a rule"),
            (MlflowModelAliasSensor(task_id="a", model="../x", alias="champion"), "cannot be the name"),
            (MlflowModelAliasSensor(task_id="a", model="x", alias="v1"), "cannot be an alias"),
            (MlflowModelAliasSensor(task_id="a", model="x", alias="b", away_from="1 OR 1=1"), "is no version"),
            (MlflowModelVersionSensor(task_id="a", model="x" * 10_000), "at most 256"),
            (MlflowModelVersionSensor(task_id="a", model="x", tags={"a": "'\""}), "cannot be written in MLflow's search"),
        ],
        ids=str,
    )
    def test_is_refused_before_anything_is_asked(self, sensor, words):
        with pytest.raises(ConfigError, match=words) as refused:
            sensor.question()
        assert len(str(refused.value)) < 700
