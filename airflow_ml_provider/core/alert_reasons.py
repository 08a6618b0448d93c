"""Why a model was rejected, promoted or taken back, for an alert: the numbers first, what a title has no room for after them."""

from __future__ import annotations

from collections.abc import Sequence

from airflow_ml_provider.core.alert_text import number
from airflow_ml_provider.models.gate import Rule, Verdict

_OPPOSITE = {">=": "<", ">": "<=", "<=": ">", "<": ">=", "==": "!="}


def why_rejected(verdict: Verdict, rules: Sequence[Rule]) -> str:
    """
    Say why a gate has not let a challenger through.

    :param verdict: The gate's verdict.
    :param rules: The rules that it was asked to apply.
    :return: ``auc 0.71 < 0.74.`` for broken rules, then the reasons that are of no rule with a number.
    """
    broken = {str(rule): _broken(rule, verdict.metrics[rule.metric]) for rule in rules if rule.metric in verdict.metrics}
    broken = {rule: said for rule, said in broken.items() if said}
    others = [each for each in verdict.reasons if not any(each.startswith(f"The rule {rule} is broken") for rule in broken)]
    return " ".join([*([", ".join(broken.values()) + "."] if broken else []), *others])


def why_promoted(name: str, alias: str, previous: str | None, reasons: Sequence[str]) -> str:
    """
    Say what a new champion replaces, and why.

    :param name: Name of the registered model.
    :param alias: The alias that it has now.
    :param previous: Version that had it before; None when there was none.
    :param reasons: Of the gates before the promotion.
    :return: The reason; it does not repeat which version it is, which the title says.
    """
    before = f"it replaces version {previous} as {name}@{alias}." if previous else f"there was no {name}@{alias} before it."
    return " ".join([before, "The gate says:", *reasons]) if reasons else before


def why_rolled_back(name: str, alias: str, version: str) -> str:
    """
    Say what serves again.

    :param name: Name of the registered model.
    :param alias: The alias that was moved.
    :param version: Version that has it again.
    :return: The reason.
    """
    return f"version {version} is {name}@{alias} again. Somebody has called airflow-ml rollback."


def _broken(rule: Rule, value: float) -> str:
    """Write a rule that a value breaks; empty for one that it keeps."""
    if rule.holds(value):
        return ""
    if value != value:  # noqa: PLR0124  (NaN, which stands to nothing)
        return f"{rule.metric} is not a number"
    texts = [f"{value:.9g}", repr(value)] if rule.sign == "==" else [number(value), f"{value:.9g}", repr(value)]
    # Rounded too far, it would be said to be what it is not: the first that breaks the rule as it is written.
    text = next(each for each in texts if not rule.holds(float(each.replace(",", ""))))
    return f"{rule.metric} {text} {_OPPOSITE[rule.sign]} {str(rule).rpartition(' ')[2]}"
