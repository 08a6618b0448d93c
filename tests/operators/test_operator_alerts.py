"""What the gate and the promotion tell people themselves, in real DAG runs, with a Slack of our own."""

from __future__ import annotations

import json
from datetime import timedelta

import pendulum
import pytest
from airflow.sdk import dag

from airflow_ml_provider.models.gate import PairedComparison
from airflow_ml_provider.notifications.alerts import ml_alert, ml_alerts
from airflow_ml_provider.operators.gate import ModelGateOperator
from airflow_ml_provider.operators.promotion import PromoteModelOperator
from airflow_ml_provider.tracking.registry import ModelRegistry
from tests.alert_servers import Answer, SlackEndpoint
from tests.operators.test_gate import ALONE, BOTH, fit

START = pendulum.datetime(2024, 1, 1)


@pytest.fixture
def slack(monkeypatch):
    with SlackEndpoint() as endpoint:
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_ML", endpoint.webhook())
        monkeypatch.setenv("AIRFLOW__ML__ALERT_TIMEOUT_S", "60")  # several suites may share this machine
        yield endpoint


@pytest.fixture
def night(run_dag, unique):
    """One night: fit, gate, promote; who is told, and the gate, may differ."""

    def run(apart, columns=BOTH, *, day=1, alerts=None, promotion=None, **gate):
        @dag(dag_id=unique, schedule=None, start_date=START, **(alerts or ml_alerts(slack="slack_ml")))
        def nightly():
            fitted = fit(apart=apart, columns=columns, said="")
            judged = ModelGateOperator(
                task_id="gate",
                challenger=fitted["model"],
                champion=f"models:/{unique}@champion",
                metrics=fitted["metrics"],
                scores=fitted["scores"],
                rules=["auc >= 0.6"],
                compare=PairedComparison(metric="auc", resamples=100),
                **gate,
            )
            judged >> PromoteModelOperator(task_id="promote", model=fitted["model"], name=unique, **(promotion or {}))

        return run_dag(nightly(), logical_date=START.add(days=day))

    return run


def text_of(message):
    """All words of a message in Slack, without the joiners that keep it from reading a name as markup."""
    return json.dumps(message, ensure_ascii=False).replace("\u2060", "")


def test_a_promotion_says_which_version_replaces_which_and_why(night, slack, unique):
    night(0.2, ALONE, day=1)
    outcome = night(0.3, day=2)
    assert outcome.state == "success"
    first, second = slack.messages
    assert f"there was no {unique}@champion before it." in text_of(first)
    assert f"it replaces version 1 as {unique}@champion." in text_of(second)
    assert "Promoted" not in text_of(second)  # the title says which version is the champion now
    assert "auc is " in text_of(second)
    assert "the wanted 0." in text_of(second)
    assert "is the champion now" in second["text"]


def test_a_gate_that_keeps_the_champion_says_so_with_the_numbers(night, slack, unique, mlflow_api):
    night(0.2, ALONE, day=1)
    slack.posted.clear()
    outcome = night(0.05, day=2)
    assert (outcome.state, outcome.task("gate"), outcome.task("promote")) == ("success", "success", "skipped")
    (message,) = slack.messages
    assert f"the gate rejected the new {unique[:10]}" in message["text"]
    assert message["text"].endswith(": auc 0.55 &lt; 0.6")
    assert "The rule auc >= 0.6 is broken: auc is 0.55." in text_of(message)
    assert f"*Still in production*\\n{unique[:40]}" in text_of(message)
    assert "auc, last runs" in text_of(message)
    assert ModelRegistry(mlflow_api).find(unique, "champion").version == "1"


def test_a_gate_that_fails_its_task_is_told_once_by_the_failure(night, slack):
    only_tasks = {"default_args": {"on_failure_callback": ml_alert(slack="slack_ml")}}
    outcome = night(0.05, ALONE, alerts=only_tasks, otherwise="fail")
    assert outcome.state == "failed"
    (message,) = slack.messages
    assert "gate failed" in message["text"]
    assert "the gate's verdict is reject: The rule auc >= 0.6 is broken: auc is 0.55." in text_of(message)


def test_a_branch_is_told_as_well_and_taken(night, slack):
    outcome = night(0.05, ALONE, otherwise="branch", branches={"reject": "promote"})
    assert outcome.task("promote") == "success"
    assert ["the gate rejected" in each["text"] for each in slack.messages] == [True, False]


def test_nobody_is_told_of_what_is_switched_off(night, slack):
    night(0.05, ALONE, alerts=ml_alerts(slack="slack_ml", rules={"gate_rejected": None}))
    assert slack.messages == []


def test_a_slack_that_hangs_fails_neither_the_gate_nor_the_promotion(night, unique, monkeypatch, mlflow_api):
    monkeypatch.setenv("AIRFLOW__ML__ALERT_TIMEOUT_S", "1")
    with SlackEndpoint(always=Answer("hang")) as endpoint:
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_ML", endpoint.webhook())
        promoted = night(0.2, ALONE, day=1)
        kept = night(0.05, day=2, execution_timeout=timedelta(seconds=60))
    assert (promoted.state, kept.state, kept.task("promote")) == ("success", "success", "skipped")
    assert ModelRegistry(mlflow_api).find(unique, "champion").version == "1"
