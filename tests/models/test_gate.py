"""The values of the gate: what may be written, and that XCom gives back what was put in."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.gate import DECISIONS, Gain, PairedComparison, Rule, Verdict

NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize(
    ("text", "metric", "sign", "limit"),
    [
        ("auc >= 0.7", "auc", ">=", 0.7),
        ("  log_loss<0.5 ", "log_loss", "<", 0.5),
        ("error rate <= 1e-3", "error rate", "<=", 0.001),
        ("rows == 1000", "rows", "==", 1000.0),
        ("recall/top-5 > -1", "recall/top-5", ">", -1.0),
    ],
)
def test_a_rule_is_read_as_it_is_written(text, metric, sign, limit):
    assert Rule.parse(text) == Rule(metric=metric, sign=sign, limit=limit)


@pytest.mark.parametrize(
    "text",
    ["", "auc", ">= 0.7", "auc => 0.7", "auc >= ", "auc >= high", "auc >= nan", "auc >= inf", "0.5 < auc <= 0.7", "auc != 1"],
)
def test_what_is_not_a_rule_is_refused_with_its_text_and_the_grammar(text):
    with pytest.raises(ConfigError) as caught:
        Rule.parse(text)
    assert repr(text) in str(caught.value)
    assert "auc >= 0.7" in str(caught.value)


@given(st.sampled_from([">=", ">", "<=", "<", "=="]), st.integers(-1000, 1000), NUMBERS)
def test_a_rule_holds_as_python_compares(sign, limit, value):
    rule = Rule.parse(f"auc {sign} {limit}")
    assert rule.holds(value) is eval(f"value {sign} limit")  # noqa: S307  (the oracle is Python itself)
    assert Rule.parse(str(rule)) == rule


@pytest.mark.parametrize("sign", [">=", ">", "<=", "<", "=="])
def test_no_rule_holds_for_nan(sign):
    assert not Rule(metric="auc", sign=sign, limit=0).holds(math.nan)


def test_a_rule_says_its_limit_with_all_its_digits():
    assert str(Rule.parse("auc >= 0.123456789012")) == "auc >= 0.123456789012"


def test_a_comparison_has_careful_defaults():
    compare = PairedComparison(metric="auc")
    assert (compare.min_gain, compare.confidence, compare.resamples, compare.min_rows) == (0.0, 0.95, 1000, 30)


def test_a_comparison_names_a_function_by_its_last_name():
    assert PairedComparison(metric="shop.metrics:profit", greater_is_better=True).name == "profit"
    assert PairedComparison(metric=math.dist, greater_is_better=False).name == "dist"
    assert PairedComparison(metric="auc").name == "auc"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"metric": "shop.metrics:profit"}, "greater_is_better=True"),
        ({"metric": math.dist}, "greater_is_better=True"),
        ({"metric": "auc", "greater_is_better": True}, "leave out greater_is_better"),
        ({"metric": "auc", "min_gain": -0.1}, "greater than or equal to 0"),
        ({"metric": "auc", "min_gain": math.nan}, "finite"),
        ({"metric": "auc", "confidence": 95}, "less than 1"),
        ({"metric": "auc", "resamples": 10}, "100"),
        ({"metric": "auc", "mingain": 0.1}, "mingain"),
    ],
)
def test_a_comparison_that_means_nothing_is_refused(arguments, said):
    with pytest.raises(ValidationError) as caught:
        PairedComparison(**arguments)
    assert said in str(caught.value)


def test_values_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        Rule.parse("auc >= 0.7").limit = 0.1


@given(
    decision=st.sampled_from(DECISIONS),
    reasons=st.lists(st.text(), min_size=1).map(tuple),
    metrics=st.dictionaries(st.text(), st.floats()),
    gain=st.none() | st.builds(Gain, estimate=NUMBERS, low=NUMBERS, high=NUMBERS),
    champion=st.none() | st.text(),
)
def test_a_verdict_comes_back_from_plain_json_as_it_was(decision, reasons, metrics, gain, champion):
    verdict = Verdict(decision=decision, reasons=reasons, metrics=metrics, gain=gain, challenger="models:/m-1", champion=champion)
    sent = json.dumps(verdict.to_json(), allow_nan=False)
    back = Verdict.from_json(json.loads(sent))
    assert repr(back) == repr(verdict)  # NaN is not equal to itself, but it is written alike


def test_a_verdict_of_another_version_is_refused():
    plain = Verdict(decision="keep", reasons=("a tie",), challenger="models:/m-1").to_json() | {"version": 2}
    with pytest.raises(ConfigError, match="version: Input should be 1"):
        Verdict.from_json(plain)


def test_a_verdict_needs_a_reason():
    with pytest.raises(ValidationError, match="reasons"):
        Verdict(decision="keep", reasons=(), challenger="models:/m-1")
