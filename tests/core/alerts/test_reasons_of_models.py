"""Why a model was rejected, promoted or taken back, in words for a title."""

from __future__ import annotations

import pytest

from airflow_ml_provider.core.alert_reasons import why_promoted, why_rejected, why_rolled_back
from airflow_ml_provider.core.gate import Contender, judge
from airflow_ml_provider.models.gate import Rule


def rejected(metrics: dict[str, float], *rules: str) -> str:
    wanted = [Rule.parse(each) for each in rules]
    return why_rejected(judge(Contender("models:/m-1", None), None, rules=wanted, metrics=metrics), wanted)


@pytest.mark.parametrize(
    ("metrics", "rules", "said"),
    [
        ({"auc": 0.71}, ["auc >= 0.74"], "auc 0.71 < 0.74."),
        ({"auc": 0.71, "rmse": 8.0}, ["auc > 0.74", "rmse <= 7"], "auc 0.71 <= 0.74, rmse 8 > 7."),
        ({"auc": 0.7399999}, ["auc >= 0.74"], "auc 0.7399999 < 0.74."),
        ({"rows": 12345678.0}, ["rows == 12345679"], "rows 12345678 != 12345679."),
        ({"auc": float("nan")}, ["auc >= 0.74"], "auc is not a number."),
        ({"auc": 0.7, "n": 9.0}, ["auc >= 0.74", "n >= 5"], "auc 0.7 < 0.74. The rule n >= 5 holds: n is 9."),
        ({"f1": 0.5}, ["auc2 >= 0.7"], "The rule auc2 >= 0.7 is broken: there is no metric 'auc2'; there are: f1."),
    ],
)
def test_a_broken_rule_is_the_number_and_the_limit(metrics: dict[str, float], rules: list[str], said: str) -> None:
    assert rejected(metrics, *rules) == said


def test_a_promotion_says_what_is_replaced_and_then_why() -> None:
    assert (
        why_promoted("m", "champion", "3", ["auc is better."])
        == "it replaces version 3 as m@champion. The gate says: auc is better."
    )
    assert why_promoted("m", "champion", None, []) == "there was no m@champion before it."


def test_a_rollback_says_what_serves_again_first() -> None:
    assert why_rolled_back("m", "champion", "3").startswith("version 3 is m@champion again. ")
