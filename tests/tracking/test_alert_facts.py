"""What MLflow knows of a DAG: read from records on a real server, as our operators leave them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import unquote

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.run import DagRunIdentity, StepIdentity
from airflow_ml_provider.tracking.alert_facts import AlertFacts
from airflow_ml_provider.tracking.registry import ModelRegistry
from airflow_ml_provider.tracking.runs import KEY, PARENT, RunTree, as_pairs

FIRST = datetime(2026, 6, 1, 3, 0, tzinfo=UTC)
MakeRun = Callable[..., str]


@pytest.fixture
def make(mlflow_api: MlflowApi, unique: str) -> MakeRun:
    """Make a run as a night of the DAG leaves it; gives its id."""
    experiment_id = RunTree(mlflow_api).experiment_id(unique)

    def run(
        night: int, task: str = "", *, status: str = "FINISHED", tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None, metrics: Mapping[str, float] | None = None, **more: Any,
    ) -> str:  # fmt: skip
        at = int((FIRST + timedelta(days=night)).timestamp() * 1000)
        identity = StepIdentity(dag_id=unique, run_id=f"night-{night}", task_id=task)
        all_tags = {"airflow.dag_id": unique, "airflow.run_id": f"night-{night}", **(tags or {})}
        if task:
            all_tags |= {KEY: identity.key, PARENT: more.get("parent", "x"), "airflow.task_id": task, "airflow.try_number": "1"}
        else:
            all_tags |= {KEY: identity.dag_run.key, "airflow.run_type": "scheduled"}
        body = {"experiment_id": experiment_id, "run_name": "x", "start_time": at, "tags": as_pairs(all_tags)}
        run_id: str = mlflow_api.post("runs/create", body)["run"]["info"]["run_id"]
        values = [{"key": key, "value": value, "timestamp": at, "step": 0} for key, value in (metrics or {}).items()]
        mlflow_api.post("runs/log-batch", {"run_id": run_id, "params": as_pairs(params or {}), "metrics": values})
        mlflow_api.post("runs/update", {"run_id": run_id, "status": status, "end_time": at + 60_000})
        return run_id

    return run


@pytest.fixture
def facts(mlflow_api: MlflowApi, unique: str) -> AlertFacts:
    """Of the night 9, which is the one that an alert is about."""
    return AlertFacts(mlflow_api, RunTree(mlflow_api).experiment_id(unique), DagRunIdentity(dag_id=unique, run_id="night-9"))


def gate(make: MakeRun, night: int, metrics: Mapping[str, float], rules: list[str], compare: str = "") -> str:
    asked = {"rules": json.dumps(rules)} | ({"compare": json.dumps({"metric": compare, "level": 0.95})} if compare else {})
    return make(night, "gate", tags={"airflow.gate.decision": "keep"}, params=asked, metrics=metrics)


class TestRuns:
    def test_the_last_good_run_is_an_earlier_one_of_the_same_dag(self, make: MakeRun, facts: AlertFacts) -> None:
        assert facts.last_worked() is None
        for night, status in ((3, "FINISHED"), (5, "FINISHED"), (6, "FAILED"), (9, "FINISHED")):
            make(night, status=status)
        make(8, "train")  # a task that went well in a run that did not
        assert facts.last_worked() == FIRST + timedelta(days=5, minutes=1)

    @pytest.mark.parametrize(
        ("nights", "failed"),
        [
            ([], False),
            (["FINISHED", "FAILED"], True),
            (["FAILED", "FINISHED"], False),
            (["FAILED", "RUNNING"], True),
            (["FAILED", "KILLED"], True),
        ],
    )
    def test_the_run_before_is_the_latest_that_has_ended(
        self, nights: list[str], failed: bool, make: MakeRun, facts: AlertFacts
    ) -> None:
        for night, status in enumerate(nights):
            make(night, status=status)
        make(9, status="FAILED")
        assert (facts.previous_failed() is not None) is failed

    def test_a_task_s_own_record_is_that_of_its_try(self, make: MakeRun, facts: AlertFacts, unique: str) -> None:
        step = StepIdentity(dag_id=unique, run_id="night-9", task_id="train")
        assert facts.nested(step) is None
        run_id = make(9, "train", status="FAILED", tags={"airflow.error": "boom"})
        found = facts.nested(step, 1)
        assert found is not None
        assert facts.page(found).partition("?")[0].endswith(f"/runs/{run_id}")
        assert facts.nested(step, 2) is None

    def test_failed_tasks_are_those_below_the_dag_run_s_own(self, make: MakeRun, facts: AlertFacts) -> None:
        parent = make(9, status="FAILED")
        make(9, "good", parent=parent)
        bad = make(9, "bad", status="FAILED", parent=parent)
        make(8, "other", status="FAILED")
        assert [run["info"]["run_id"] for run in facts.failed_nested(parent)] == [bad]


class TestTrend:
    def test_it_is_the_metric_of_the_rule_with_its_limit_oldest_first(self, make: MakeRun, facts: AlertFacts) -> None:
        for night in (2, 0, 1):
            gate(make, night, {"auc": 0.7 + night / 100, "loss": 1.0}, ["loss < 2", "auc >= 0.7"])
        trend = facts.trend()
        assert trend is not None
        assert (trend.metric, trend.limit) == ("auc", 0.7)
        assert [each.value for each in trend.points] == [0.7, 0.71, 0.72]
        assert trend.points[0].at == FIRST

    def test_a_comparison_by_itself_shows_the_challenger(self, make: MakeRun, facts: AlertFacts) -> None:
        for night in range(2):
            gate(make, night, {"challenger_auc": 0.7 + night, "champion_auc": 0.9}, [], "auc")
        trend = facts.trend()
        assert trend is not None
        assert (trend.metric, trend.limit, [each.value for each in trend.points]) == ("auc", None, [0.7, 1.7])

    def test_nights_without_a_number_are_left_out(self, make: MakeRun, facts: AlertFacts) -> None:
        gate(make, 0, {"auc": 0.7}, ["auc >= 0.7"])
        gate(make, 2, {"other": 1}, ["auc >= 0.7"])
        assert facts.trend() is None
        gate(make, 3, {"auc": 0.8}, ["auc >= 0.7"])
        trend = facts.trend()
        assert trend is not None
        assert [each.value for each in trend.points] == [0.7, 0.8]

    def test_where_nothing_was_judged_there_is_none(self, facts: AlertFacts, make: MakeRun) -> None:
        assert facts.trend() is None
        make(1, "gate", tags={"airflow.gate.decision": "keep"}, params={"rules": "not json", "compare": "[]"})
        make(2, "gate", tags={"airflow.gate.decision": "keep"})
        assert facts.trend() is None


class TestChampion:
    @pytest.fixture
    def promoted(self, mlflow_api: MlflowApi, make: MakeRun, unique: str) -> str:
        """The run that trained the champion, promoted on night 4."""
        run_id = make(4, "fit")
        registry, run = ModelRegistry(mlflow_api), mlflow_api.get("runs/get", run_id=run_id)["run"]
        version = registry.register(unique, f"{run['info']['artifact_uri']}/model", run_id=run_id)
        registry.promote(unique, version.version, alias="serving")
        told = {"airflow.promotion.version": version.uri}
        make(4, "promote", tags=told, params={"name": unique, "alias": "serving"})
        return run_id

    def test_it_is_what_the_dag_has_promoted_last(self, promoted: str, facts: AlertFacts, unique: str) -> None:
        champion = facts.champion()
        assert champion is not None
        assert champion.label == f"{unique} version 1"

    def test_a_name_that_was_given_comes_first(self, promoted: str, facts: AlertFacts, unique: str) -> None:
        assert facts.champion(unique) is None  # it serves under another alias than the usual one
        assert facts.champion("nobody-has-made-it") is None

    def test_a_dag_that_promotes_nothing_has_none(self, facts: AlertFacts) -> None:
        assert facts.champion() is None

    def test_this_night_s_run_of_the_same_task_stands_beside_it(self, promoted: str, make: MakeRun, facts: AlertFacts) -> None:
        champion = facts.champion()
        assert champion is not None
        assert facts.compare_page(champion) == ""
        ours = make(9, "fit")
        page = unquote(facts.compare_page(champion))
        assert "/#/compare-runs?" in page
        assert f'runs=["{ours}", "{promoted}"]&experiments=["' in page
