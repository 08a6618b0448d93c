"""The content of a message, and what may be asked where; values only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import airflow.dag_processing.processor
import airflow.jobs.triggerer_job_runner  # noqa: F401  (both list what may be asked)
import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, TriggerRule

from airflow_ml_provider.core.alert_words import in_words
from airflow_ml_provider.models.alert import Failure
from airflow_ml_provider.models.run import StepIdentity
from airflow_ml_provider.notifications.build import Asked, build_alert
from airflow_ml_provider.notifications.context import AlertSource, as_time, read_source
from airflow_ml_provider.notifications.gather import Gathered
from airflow_ml_provider.notifications.reasons import DAG_REASONS, WORDLESS
from airflow_ml_provider.notifications.supervisor import Place, _may_ask

AT = datetime(2026, 7, 1, 3, 0, tzinfo=UTC)


def source(kind: str, **fields: Any) -> AlertSource:
    given: dict[str, Any] = {"kind": kind, "place": "dag_processor", "at": AT, "dag_id": "night", "run_id": "r 1"}
    return AlertSource(**given | fields)


def build(what: AlertSource, asked: Asked | None = None, found: Gathered | None = None) -> Any:
    return build_alert(what, asked or Asked(), found or Gathered(), severity="critical")


class TestTheEndOfADagRun:
    def test_airflow_says_which_tasks_failed_and_the_records_why(self) -> None:
        states = {"prepare": "success", "train_3": "failed", "fit_2": "failed", "train_1": "failed", "after": "upstream_failed"}
        known = (Failure(task="train[3]", why="boom"), Failure(task="prepare", why="of an earlier going"))
        end = source("dag_failed", task_ids=frozenset({"prepare", "train", "fit_2", "after"}), why=DAG_REASONS["task_failure"])
        alert = build(end, Asked(states=states), Gathered(failures=known))
        assert [each.task for each in alert.failures] == ["train[3]", "fit_2", "train[1]"]
        assert alert.failed == 3
        assert alert.failures[2].url.endswith("/dags/night/runs/r%201/tasks/train/mapped/1")
        assert alert.why == ""

    def test_without_airflow_s_answer_the_records_count(self) -> None:
        alert = build(source("dag_failed"), found=Gathered(failures=(Failure(task="train", why="boom"),)))
        assert ([each.task for each in alert.failures], alert.failed) == (["train"], 1)

    def test_of_two_hundred_fifty_are_listed_and_all_are_counted(self) -> None:
        alert = build(source("dag_failed"), Asked(states={f"train_{index}": "failed" for index in range(200)}))
        assert (len(alert.failures), alert.failed) == (50, 200)

    def test_of_a_task_without_a_record_only_what_is_known_is_said(self) -> None:
        end, found = source("dag_failed", task_ids=frozenset({"plain"})), Gathered(run_page="http://m/run")
        words = in_words(build(end, Asked(states={"plain": "failed"}), found))
        assert words.title == "[critical] night: plain failed: it has left no reason, but its log may say more"
        assert "may have been killed" in words.why
        assert "marked as failed by hand" in words.why

    def test_one_that_has_ended_well_says_so(self) -> None:
        end = source("dag_failed", ended_well=True)
        both = build(end, Asked(states={"a": "failed", "b": "failed", "clean": "success"}))
        assert in_words(both).title == "[critical] night: the DAG run has ended well, although 2 tasks failed"
        one = build(end, Asked(states={"a": "failed"}), Gathered(failures=(Failure(task="a", why="boom"),)))
        assert in_words(one).title == "[critical] night: the DAG run has ended well, although a failed: boom"
        assert in_words(build(end)).title == "[critical] night: the DAG run has ended well, although tasks failed"

    @pytest.mark.parametrize("rule", sorted(TriggerRule))
    def test_it_may_end_well_with_failed_tasks_only_where_a_task_runs_after_one(self, rule: TriggerRule) -> None:
        with DAG("night", schedule=None) as dag:
            EmptyOperator(task_id="train") >> EmptyOperator(task_id="clean", trigger_rule=rule)
        stops = rule in ("all_success", "none_failed", "none_failed_min_one_success", "all_skipped")
        assert read_source({"reason": "success", "run_id": "r", "dag": dag}).lenient is not stops

    @pytest.mark.parametrize("reason", ["timed_out", "all_tasks_deadlocked"])
    def test_a_reason_of_airflow_s_own_is_put_into_words(self, reason: str) -> None:
        end = read_source({"reason": reason, "run_id": "r", "dag": None}, None)
        assert build(end, found=Gathered(failures=(Failure(task="t", why="x"),))).why == DAG_REASONS[reason]


class TestATask:
    step = StepIdentity(dag_id="night", run_id="r", task_id="train")

    def test_what_the_exception_says_comes_first_then_the_record_then_that_nobody_knows(self) -> None:
        found = Gathered(why="of the record")
        assert build(source("task_failed", step=self.step, why="of the exception"), found=found).why == "of the exception"
        assert build(source("task_failed", step=self.step), found=found).why == "of the record"
        assert build(source("task_failed", step=self.step)).why == WORDLESS

    def test_the_links_are_those_that_are_known_and_lead_somewhere(self) -> None:
        what = source("task_failed", step=self.step, task_log="http://a/log", kfp_run="javascript:alert(1)")
        alert = build(what, found=Gathered(run_page="http://m/run", compare_page=""))
        assert [(each.text, each.url) for each in alert.links] == [("Task log", "http://a/log"), ("MLflow run", "http://m/run")]


def test_no_password_of_a_url_leaves_whatever_text_it_is_in() -> None:
    text, step = "see pg://bob:p%40ss@db/x", StepIdentity(dag_id="night", run_id="r", task_id="train")
    task = build(source("task_failed", step=step, why=text, detail=text, task_log="http://me:pw@a/log"))
    end = build(source("dag_failed"), found=Gathered(failures=(Failure(task="t", why=text, url="https://me:pw@a/b"),)))
    record = build(source("task_failed", step=step), found=Gathered(why=text, detail=text))
    for each in (task, record):
        assert (each.why, each.detail) == ("see pg://bob:***@db/x",) * 2
    assert task.links[0].url == "http://a/log"
    assert (end.failures[0].why, end.failures[0].url) == ("see pg://bob:***@db/x", "https://a/b")


@pytest.mark.parametrize(
    ("found", "cleared", "said"),
    [
        ({}, False, ""),
        ({"failed_why": "boom at 3. More.", "recovered_run": "x"}, False, "the DAG run before it failed: boom at 3."),
        ({"failed_at": AT, "recovered_run": "x"}, False, "the DAG run before it failed. That was on 1 Jul 2026 03:00 UTC."),
        (
            {"failed_at": AT, "failed_why": "boom", "last_worked": AT - timedelta(days=2), "recovered_run": "x"},
            False,
            "the DAG run before it failed: boom. It had not worked since 29 Jun 2026 03:00 UTC.",
        ),
        ({"failed_why": "boom"}, True, "it failed before it was cleared: boom."),
    ],
)
def test_what_works_again_says_since_when_and_why_it_had_failed(found: dict[str, Any], cleared: bool, said: str) -> None:
    assert build(source("recovered", cleared=cleared), found=Gathered(**found)).why == said


def test_who_is_late_is_named_nearest_to_the_end_first() -> None:
    states = {"a": "scheduled", "b": "running", "c": "success", "d": "deferred", "e": "queued"}
    alert = build(source("late", due=AT), Asked(states=states))
    assert alert.why == "It should have ended by 2026-07-01 03:00 UTC. Not done yet: b, d, e and 1 more."
    assert build(source("late", due=AT)).why == "It should have ended by 2026-07-01 03:00 UTC, and has not."


def test_a_promotion_does_not_tell_of_another_champion() -> None:
    assert build(source("promoted"), found=Gathered(champion="m version 3")).champion == ""
    assert build(source("gate_rejected"), found=Gathered(champion="m version 3")).champion == "m version 3"


@pytest.mark.parametrize(
    ("place", "question", "may"),
    [
        ("task", "GetDagRunState", True),
        ("dag_processor", "GetTaskStates", True),
        ("dag_processor", "GetPreviousDagRun", True),
        ("dag_processor", "GetDagRunState", False),
        ("triggerer", "GetDagRunState", True),
        ("triggerer", "GetTaskStates", True),
        ("triggerer", "GetPreviousDagRun", False),
    ],
)
def test_only_what_a_supervisor_knows_is_asked(place: Place, question: str, may: bool) -> None:
    assert _may_ask(place, question) is may


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("2026-07-01T03:00:00Z", AT),
        ("2026-07-01T03:00:00", AT),
        (AT, AT),
        (AT.replace(tzinfo=None), AT),
        (None, None),
        ("soon", None),
        (7, None),
    ],
)
def test_a_time_is_read_in_each_of_its_forms(value: object, read: datetime | None) -> None:
    assert as_time(value) == read
