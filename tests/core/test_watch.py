"""What a look means, what is news, and how few searches ask for it: values only."""

from __future__ import annotations

import json
from math import nan

import pytest

from airflow_ml_provider.core.watch import (
    Vigil,
    check_watched,
    judge_alias,
    judge_metric,
    judge_run,
    judge_versions,
    read_tags,
)
from airflow_ml_provider.core.watch_memory import REMEMBERED, AliasMemory, AliasMove, VersionMemory
from airflow_ml_provider.core.watch_search import FILTER_BYTES, model_filters, run_filter, version_filter
from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError
from airflow_ml_provider.models.watch import (
    AliasQuestion,
    MetricQuestion,
    RunQuestion,
    SeenModel,
    SeenRun,
    SeenVersion,
    Sight,
    VersionQuestion,
    WatchOutcome,
    read_question,
)

RUN = SeenRun(run_id="r", experiment_id="1")


def run(status: str, **fields: object) -> SeenRun:
    return RUN.model_copy(update={"status": status, **fields})


def version(number: int, **fields: object) -> SeenVersion:
    return SeenVersion(model="churn", version=str(number), created_ms=1000 + number).model_copy(update=fields)


class TestARun:
    @pytest.mark.parametrize("status", ["RUNNING", "SCHEDULED", "SOMETHING_NEW"])
    def test_that_has_no_end_known_to_us_is_waited_for(self, status: str) -> None:
        assert judge_run(RunQuestion(run_id="r"), run(status)).state == "waiting"

    def test_that_failed_says_why_and_is_an_end_where_any_will_do(self) -> None:
        failed = run("FAILED", error="ValueError:\n no rows")
        sight = judge_run(RunQuestion(run_id="r"), failed)
        assert (sight.state, sight.message) == ("failed", "Run r FAILED: ValueError: no rows.")
        assert judge_run(RunQuestion(run_id="r", bad_end=False), failed).state == "seen"
        assert "its tags give no reason" in judge_run(RunQuestion(run_id="r"), run("KILLED")).message

    def test_that_is_not_there_is_waited_for_only_if_it_is_searched_for(self) -> None:
        assert judge_run(RunQuestion(run_id="r"), None).state == "failed"
        assert judge_run(RunQuestion(run_id="r"), run("RUNNING", deleted=True)).state == "failed"
        searched = judge_run(RunQuestion(experiment="e", tags=(("a", "b"),)), None)
        assert (searched.state, searched.message) == ("waiting", "Experiment 'e' has no run with a=b.")

    @pytest.mark.parametrize(
        ("metrics", "status", "state"),
        [
            ({"auc": 0.8}, "RUNNING", "seen"),
            ({"auc": 0.8}, "FAILED", "seen"),
            ({"auc": 0.79}, "RUNNING", "waiting"),
            ({"auc": nan}, "RUNNING", "waiting"),
            ({}, "RUNNING", "waiting"),
            ({}, "FINISHED", "failed"),
            ({"auc": 0.79}, "FINISHED", "failed"),
        ],
    )
    def test_whose_metric_is_to_keep_a_rule(self, metrics: dict[str, float], status: str, state: str) -> None:
        question = MetricQuestion(run_id="r", rule="auc >= 0.8")
        sight = judge_metric(question, run(status, metrics=metrics))
        assert sight.state == state
        assert json.loads(json.dumps(sight.value, allow_nan=False)) == sight.value


class TestAnAliasAndAVersion:
    @pytest.mark.parametrize(
        ("away", "stands", "state"), [("", None, "waiting"), ("", 2, "seen"), ("2", 2, "waiting"), ("1", 2, "seen")]
    )
    def test_where_it_stands(self, away: str, stands: int | None, state: str) -> None:
        question = AliasQuestion(model="churn", alias="champion", away_from=away)
        assert judge_alias(question, None if stands is None else version(stands)).state == state

    def test_the_newest_version_that_fits_exactly(self) -> None:
        question = VersionQuestion(model="churn", tags=(("stage", "ready"),), newer_than=1)
        tagged = {"stage": "ready"}
        found = [version(9, tags={"stage": "Ready"}), version(2, tags=tagged), version(10, tags=tagged), version(1, tags=tagged)]
        assert judge_versions(question, found).value["version"] == "10"
        assert judge_versions(question, found[:1]).state == "waiting"
        assert judge_versions(question, [version(3, model="Churn", tags=tagged)]).state == "waiting"


class TestWaiting:
    def test_ends_at_the_deadline_with_what_was_seen_last(self) -> None:
        vigil = Vigil(deadline=100.0)
        assert vigil.on_sight(Sight(state="waiting", message="Not yet."), 99.0) is None
        assert vigil.pause_s(10.0, 99.0) == 1.0
        assert vigil.on_sight(Sight(state="waiting", message="Not yet."), 100.0) == WatchOutcome(
            outcome="deadline", message="The time was up. Newest look: Not yet."
        )

    @pytest.mark.parametrize(("error", "outcome"), [(RemoteUnavailableError("x"), "unreachable"), (ConfigError("x"), "refused")])
    def test_bears_errors_for_as_long_as_its_patience(self, error: Exception, outcome: str) -> None:
        vigil = Vigil(patience_s=10.0)
        assert vigil.on_error(error, 0.0) is None
        assert vigil.on_sight(Sight(state="waiting", message=""), 9.0) is None, "which begins anew"
        assert vigil.on_error(error, 10.0) is None
        assert vigil.on_error(error, 19.0) is None
        told = vigil.on_error(error, 20.0)
        assert told is not None
        assert (told.outcome, "patience 10 s" in told.message) == (outcome, True)

    def test_a_question_travels_and_a_strange_one_is_refused(self) -> None:
        question = MetricQuestion(experiment="e", tags=(("a", "b"),), rule="auc >= 0.8")
        assert read_question(json.loads(question.model_dump_json())) == question
        for strange in ({"kind": "colour"}, {}, {"kind": "run", "later": 1}):
            with pytest.raises(ConfigError, match="clear the task"):
                read_question(strange)
        with pytest.raises(ConfigError, match="Clear the task"):
            WatchOutcome.from_event(None)


class TestMemory:
    def test_an_alias_is_news_when_it_stands_elsewhere_and_once(self) -> None:
        model = SeenModel(name="churn", created_ms=5, aliases={"champion": "1"})
        memory = AliasMemory.of(model, "champion")
        assert memory.moved(AliasMemory.of(model, "champion")) is None
        two = AliasMemory.of(model.model_copy(update={"aliases": {"champion": "2"}}), "champion")
        assert memory.moved(two) == AliasMove(version="2", previous="1")
        assert memory.after(two).moved(two) is None
        assert memory.after(two).after(memory).moves == 2

    def test_an_alias_that_is_taken_away_and_comes_back_is_news_twice(self) -> None:
        model = SeenModel(name="churn", created_ms=5, aliases={"champion": "1"})
        there, nowhere = AliasMemory.of(model, "champion"), AliasMemory.of(model, "other")
        assert nowhere == AliasMemory.of(None, "champion")
        assert there.moved(nowhere) == AliasMove(version="", previous="1")
        assert nowhere.moved(there) == AliasMove(version="1", previous="")

    def test_a_model_that_was_made_again_is_news_with_the_same_version(self) -> None:
        old, new = (SeenModel(name="churn", created_ms=at, aliases={"champion": "1"}) for at in (5, 6))
        memory = AliasMemory.of(old, "champion")
        assert memory.moved(AliasMemory.of(new, "champion")) == AliasMove(version="1", previous="")

    def test_a_version_is_news_once_and_its_number_again_in_a_model_that_was_made_again(self) -> None:
        memory = VersionMemory()
        assert [each.version for each in memory.news([version(2), version(1)])] == ["1", "2"]
        memory.take([version(2), version(1)])
        assert memory.news([version(1), version(2)]) == []
        again = version(1, created_ms=9999)
        assert memory.news([again, version(2)]) == [again]
        assert VersionMemory.model_validate(json.loads(memory.model_dump_json())) == memory

    def test_it_stays_small_and_what_it_forgets_is_no_news_later(self) -> None:
        memory, many = (
            VersionMemory(),
            [version(number, created_ms=1_700_000_000_000 + number) for number in range(2 * REMEMBERED)],
        )
        memory.take(memory.news(many))
        assert len(memory.told) == REMEMBERED
        assert memory.news(many) == []
        assert len(memory.model_dump_json()) < 64_000


class TestSearches:
    def test_few_models_are_named_and_many_are_listed(self) -> None:
        assert model_filters(["b", "a"], pages=1) == ["name IN ('a', 'b')"]
        assert model_filters(["a"], pages=1) == ["name = 'a'"]
        many = [f"model-number-{number}" for number in range(1000)]
        assert model_filters(many, pages=1) == [""]
        named = model_filters(many, pages=50)
        assert 1 < len(named) < 50
        assert all(len(each.encode()) < FILTER_BYTES for each in named)
        assert sum(each.count("model-number") for each in named) == 1000
        assert version_filter(many, ()) == ""
        assert version_filter(many, (("a", "b"),)) == "tags.`a` = 'b'"
        assert (
            version_filter(["x"], (("a", "it's"), ("b", 'say "x"')))
            == "name = 'x' AND tags.`a` = \"it's\" AND tags.`b` = 'say \"x\"'"
        )
        assert run_filter((("a.b", "1 OR 1=1"),)) == "tags.`a.b` = '1 OR 1=1'"

    @pytest.mark.parametrize(
        "name", ["", " ", "a/b", "a:b", "a@b", "a'b", 'a"b', "a`b", "a\\b", "a\nb", "x" * 257, "x" * 10_000, "a\ud800", None, 7]
    )
    def test_a_name_that_could_leave_its_quotes_is_refused_and_not_repeated_at_length(self, name: str) -> None:
        with pytest.raises(ConfigError) as refused:
            check_watched(name)
        assert len(str(refused.value)) < 500

    @pytest.mark.parametrize("alias", ["latest", "v1", "a b", "", "x" * 10_000, "' OR 1=1"])
    def test_an_alias_that_cannot_be_is_refused(self, alias: str) -> None:
        with pytest.raises(ConfigError, match="cannot be an alias") as refused:
            check_watched("Modell für Flüge", alias)
        assert len(str(refused.value)) < 500

    @pytest.mark.parametrize(
        "tags",
        [
            {"a`b": "x"},
            {"a'": "x"},
            {"": "x"},
            {"a": "'\""},
            {"a": "\\' OR name LIKE '%"},
            {"a": "x\n"},
            {"a": "x" * 10_000},
            {"a" * 300: "x"},
            {"a": 1},
            ["a"],
            "a",
        ],
    )
    def test_a_tag_that_could_leave_its_quotes_is_refused_and_not_repeated_at_length(self, tags: dict[str, str]) -> None:
        with pytest.raises(ConfigError) as refused:
            read_tags(tags)
        assert len(str(refused.value)) < 700

    def test_tags_are_the_same_in_any_order(self) -> None:
        assert read_tags({"b": "1", "a": "é"}) == read_tags({"a": "é", "b": "1"}) == (("a", "é"), ("b", "1"))
        assert read_tags(None) == ()
