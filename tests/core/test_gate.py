"""The decision, case by case, with values."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.core.gate import Contender, judge
from airflow_ml_provider.core.scoring import Rows
from airflow_ml_provider.models.gate import DECISIONS, PairedComparison, Rule

NIGHT = datetime(2013, 6, 1, 6, tzinfo=UTC)
NEW = Contender("models:/m-new", NIGHT)
OLD = Contender("models:/m-old", NIGHT - timedelta(days=1))
AUC = PairedComparison(metric="auc", resamples=200)
GOOD_RULE, BAD_RULE = Rule.parse("auc >= 0.6"), Rule.parse("auc >= 0.99")


def rows(challenger=0.25, champion=0.2, n=2000, seed=1):
    random = np.random.default_rng(seed)
    label = (random.random(n) < 0.3).astype(float)
    noise = random.normal(0, 0.15, n)
    first, second = (np.clip(0.3 + apart * label + noise, 0, 1) for apart in (challenger, champion))
    return Rows(label, first, second)


BETTER, WORSE, SAME = rows(), rows(challenger=0.1), rows(challenger=0.2)


def test_a_surely_better_challenger_is_promoted_with_its_numbers():
    verdict = judge(NEW, OLD, rules=[GOOD_RULE], compare=AUC, metrics={"auc": 0.87}, rows=BETTER)
    assert verdict.decision == "promote"
    assert verdict.gain.low > 0
    assert verdict.reasons[0].startswith(
        f"auc is {verdict.metrics['challenger_auc']:.6g} against the champion's {verdict.metrics['champion_auc']:.6g} on the "
        f"same 2,000 rows: a gain of {verdict.gain.estimate:+.6g} with the 95 % interval [{verdict.gain.low:+.6g}, "
    )
    assert verdict.reasons[1] == "The rule auc >= 0.6 holds: auc is 0.87."
    assert verdict.metrics["auc"] == 0.87
    assert (verdict.challenger, verdict.champion) == ("models:/m-new", "models:/m-old")


def test_a_tie_keeps_the_champion():
    verdict = judge(NEW, OLD, compare=AUC, rows=SAME)
    assert verdict.decision == "keep"
    assert verdict.gain.estimate == verdict.gain.low == verdict.gain.high == 0
    assert "a tie keeps the champion" in verdict.reasons[0]


def test_scores_of_a_champion_where_there_is_none_promote_nothing():
    verdict = judge(NEW, None, rules=[GOOD_RULE], compare=AUC, metrics={"auc": 0.87}, rows=BETTER)
    assert (verdict.decision, verdict.champion, verdict.gain) == ("keep", None, None)
    assert verdict.reasons[0].startswith("There is no champion, and yet the scores have a column 'champion'")
    assert judge(NEW, None, rules=[BAD_RULE], metrics={"auc": 0.87}, rows=BETTER).decision == "reject"


def test_the_scores_of_another_model_are_not_taken_for_the_champions():
    verdict = judge(NEW, OLD, compare=AUC, rows=BETTER, scored="models:/m-older")
    assert (verdict.decision, verdict.gain, list(verdict.metrics)) == ("keep", None, ["challenger_auc"])
    assert verdict.reasons[0].startswith(
        "The column 'champion' of the scores is that of models:/m-older, and the champion is models:/m-old now"
    )
    assert judge(NEW, OLD, compare=AUC, rows=BETTER, scored=OLD.uri).decision == "promote"
    assert judge(NEW, OLD, rows=BETTER, scored="models:/m-older", rules=[GOOD_RULE]).decision == "promote", "no comparison"


def test_a_worse_challenger_is_kept_out_and_called_worse():
    verdict = judge(NEW, OLD, compare=AUC, rows=WORSE)
    assert verdict.decision == "keep"
    assert verdict.reasons[0].endswith("the challenger is worse.")


def test_a_gain_that_chance_may_have_made_keeps_the_champion():
    random = np.random.default_rng(3)
    label = np.arange(100) % 2
    alike, alike_too = (0.5 + 0.1 * label + random.normal(0, 0.1, 100) for _ in range(2))
    verdict = judge(NEW, OLD, compare=AUC, rows=Rows(label, alike_too, alike))
    assert verdict.gain.estimate > 0
    assert verdict.gain.low <= 0
    assert verdict.decision == "keep"


def test_a_sure_gain_below_the_wanted_one_keeps_the_champion():
    gain = judge(NEW, OLD, compare=AUC, rows=BETTER).gain
    just_met = AUC.model_copy(update={"min_gain": gain.low - 1e-9})
    just_missed = AUC.model_copy(update={"min_gain": gain.low})
    assert judge(NEW, OLD, compare=just_met, rows=BETTER).decision == "promote"
    assert judge(NEW, OLD, compare=just_missed, rows=BETTER).decision == "keep"


def test_of_an_error_less_is_better():
    brier = PairedComparison(metric="brier", resamples=200)
    flipped = Rows(BETTER.label, BETTER.champion, BETTER.challenger)
    assert judge(NEW, OLD, compare=brier, rows=BETTER).decision == "promote"
    assert judge(NEW, OLD, compare=brier, rows=flipped).decision == "keep"


def test_a_broken_rule_rejects_even_a_better_challenger():
    verdict = judge(NEW, OLD, rules=[GOOD_RULE, BAD_RULE], compare=AUC, metrics={"auc": 0.87}, rows=BETTER)
    assert verdict.decision == "reject"
    assert verdict.reasons[0] == "The rule auc >= 0.99 is broken: auc is 0.87."
    assert "The rule auc >= 0.6 holds: auc is 0.87." in verdict.reasons


def test_a_rule_about_nan_is_broken():
    verdict = judge(NEW, OLD, rules=[GOOD_RULE], metrics={"auc": math.nan})
    assert verdict.decision == "reject"
    assert verdict.reasons == ("The rule auc >= 0.6 is broken: auc is nan.",)
    assert math.isnan(verdict.metrics["auc"])


def test_a_rule_about_a_missing_metric_is_broken_and_names_what_there_is():
    verdict = judge(NEW, OLD, rules=[Rule.parse("f1 > 0.5")], metrics={"auc": 0.8, "brier": 0.1})
    assert verdict.decision == "reject"
    assert verdict.reasons[0] == "The rule f1 > 0.5 is broken: there is no metric 'f1'; there are: auc, brier."


def test_a_metric_that_nobody_logged_is_computed_from_the_rows():
    verdict = judge(NEW, OLD, rules=[GOOD_RULE], compare=AUC, rows=BETTER)
    assert verdict.decision == "promote"
    assert verdict.metrics["auc"] == verdict.metrics["challenger_auc"]


def test_a_logged_metric_counts_before_the_rows():
    assert judge(NEW, None, rules=[GOOD_RULE], metrics={"auc": 0.5}, rows=BETTER).decision == "reject"


def test_the_first_challenger_that_holds_the_rules_is_promoted():
    verdict = judge(NEW, None, rules=[GOOD_RULE], compare=AUC, rows=replace(BETTER, champion=None))
    assert verdict.decision == "promote"
    assert verdict.reasons[0].startswith("There is no champion yet")
    assert verdict.champion is None
    assert verdict.gain is None


def test_the_first_challenger_that_breaks_a_rule_is_rejected():
    assert judge(NEW, None, rules=[BAD_RULE], compare=AUC, rows=BETTER).decision == "reject"


@pytest.mark.parametrize(
    "unusable",
    [Rows([], [], []), Rows([0, 0], [0.1, 0.2]), Rows(None, [0.1]), None],
    ids=["empty", "one class", "no label", "none"],
)
def test_the_first_challenger_is_rejected_when_nothing_says_that_it_is_fit(unusable):
    verdict = judge(NEW, None, compare=AUC, rows=unusable)
    assert verdict.decision == "reject"
    assert "nothing says that the challenger is fit" in verdict.reasons[0]


@pytest.mark.parametrize(
    ("unpaired", "said"),
    [
        (Rows([], [], []), "no rows"),
        (Rows([0, 0], [0.1, 0.2], [0.1, 0.2]), "all 2 labels are 0"),
        (Rows([0, 1], [0.1, 0.2], [0.1]), "'champion' has 1 rows"),
        (Rows([0, 1], [0.1, 0.2], None), "no column 'champion'"),
        (Rows([0, 1], [0.1, 0.2], [0.1, math.nan]), "in column 'champion' are NaN"),
        (Rows([0, 1], [0.1, 0.2], [0.1, 0.2]), "fewer than the 30"),
        (None, "no scores were given"),
    ],
)
def test_rows_that_do_not_pair_keep_the_champion(unpaired, said):
    verdict = judge(NEW, OLD, compare=AUC, rows=unpaired)
    assert verdict.decision == "keep"
    assert verdict.gain is None
    assert said in verdict.reasons[0]


@pytest.mark.parametrize("champion", [None, OLD], ids=["no champion", "a champion"])
def test_a_challenger_that_says_nan_is_rejected(champion):
    verdict = judge(NEW, champion, compare=AUC, rows=Rows([0, 1], [0.1, math.nan], [0.1, 0.2]))
    assert verdict.decision == "reject"
    assert "1 of 2 rows in column 'challenger' are NaN" in verdict.reasons[0]
    assert math.isnan(verdict.metrics["challenger_auc"])


def test_an_older_challenger_keeps_the_newer_champion_whatever_its_scores():
    verdict = judge(replace(NEW, logical_date=OLD.logical_date - timedelta(days=1)), OLD, compare=AUC, rows=BETTER)
    assert verdict.decision == "keep"
    assert "older than the champion of 2013-05-31T06:00:00+00:00" in verdict.reasons[0]
    assert verdict.gain is None


def test_a_clear_of_the_same_night_is_not_older():
    in_new_york = OLD.logical_date.astimezone(timezone(timedelta(hours=-4)))
    assert judge(replace(NEW, logical_date=in_new_york), OLD, compare=AUC, rows=BETTER).decision == "promote"


@pytest.mark.parametrize(("challenger", "champion", "whose"), [(None, NIGHT, "the challenger"), (NIGHT, None, "the champion")])
def test_an_age_that_is_not_on_record_is_said_and_does_not_decide(challenger, champion, whose):
    verdict = judge(Contender("a", challenger), Contender("b", champion), compare=AUC, rows=BETTER)
    assert verdict.decision == "promote"
    assert f"The logical date of {whose} is not on record" in verdict.reasons[1]


def test_the_champion_itself_has_nothing_to_win():
    verdict = judge(OLD, OLD, compare=AUC, rows=SAME)
    assert verdict.decision == "keep"
    assert "is the champion already" in verdict.reasons[0]


def test_a_champion_that_cannot_be_read_stays_until_somebody_looks():
    broken = replace(OLD, unreadable="it has sha256 0, on record is 1")
    verdict = judge(NEW, broken, rules=[GOOD_RULE], compare=AUC, rows=replace(BETTER, champion=None))
    assert verdict.decision == "keep"
    assert "it has sha256 0, on record is 1" in verdict.reasons[0]
    assert 'unreadable_champion="promote"' in verdict.reasons[0]


def test_a_champion_that_cannot_be_read_may_be_treated_as_absent_by_choice():
    broken = replace(OLD, unreadable="the store lost it")
    arguments = {"compare": AUC, "rows": replace(BETTER, champion=None), "unreadable_champion": "promote"}
    assert judge(NEW, broken, rules=[GOOD_RULE], **arguments).decision == "promote"
    assert judge(NEW, broken, rules=[BAD_RULE], **arguments).decision == "reject"
    assert judge(NEW, broken, **(arguments | {"rows": Rows([], [], [])})).decision == "reject"


def test_rules_alone_may_decide():
    verdict = judge(NEW, OLD, rules=[GOOD_RULE], metrics={"auc": 0.7})
    assert verdict.decision == "promote"
    assert verdict.reasons[0] == "The rules hold, and no comparison with the champion was asked for."


COLUMNS = st.none() | st.lists(st.none() | st.sampled_from([0, 1, 0.5, 2, "x"]) | st.floats(), max_size=40)


@settings(max_examples=300, deadline=None)
@given(
    champion=st.none() | st.builds(Contender, st.just("b"), st.sampled_from([None, NIGHT]), st.sampled_from(["", "gone"])),
    label=COLUMNS,
    challenger=COLUMNS,
    champions=COLUMNS,
    metric=st.sampled_from(["auc", "average_precision", "log_loss", "rmse"]),
    metrics=st.dictionaries(st.sampled_from(["auc", "rmse"]), st.floats()),
)
def test_whatever_comes_there_is_a_verdict_and_never_a_careless_promotion(
    champion, label, challenger, champions, metric, metrics
):
    compare = PairedComparison(metric=metric, resamples=100)
    verdict = judge(NEW, champion, rules=[GOOD_RULE], compare=compare, metrics=metrics, rows=Rows(label, challenger, champions))
    assert verdict.decision in DECISIONS
    assert verdict.to_json()["reasons"]
    if verdict.decision == "promote":
        assert verdict.metrics["auc"] >= 0.6
        assert math.isfinite(verdict.metrics[f"challenger_{metric}"])
        assert champion is None or verdict.gain.low > 0
