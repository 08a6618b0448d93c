"""
Does the challenger replace the champion? Values in, a verdict out.

Three words, and what each is for:

- ``reject``: the challenger is not fit by itself. A rule is broken, a metric is missing or NaN, its scores are NaN.
- ``keep``: nothing says that it is surely better. A tie, an older model, a comparison that cannot be made: the champion
  stays, since promotion costs a rollout and staying costs nothing.
- ``promote``: the rules hold and the interval of its gain lies above what is wanted; or there is no champion yet, and
  it stands by itself.

What the rows of scores say in numbers is asked of :mod:`airflow_ml_provider.core.scoring`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from airflow_ml_provider.core.scoring import METRICS, Measured, Rows, measure
from airflow_ml_provider.models.gate import Decision, PairedComparison, Rule, Verdict


@dataclass(frozen=True)
class Contender:
    """
    One of the two models.

    :param uri: What it is, never an alias: two contenders of one URI are one model.
    :param logical_date: Logical date of the DAG run that trained it; None when nobody recorded one.
    :param unreadable: Why the model cannot be read; empty when it can, or when nobody tried.
    """

    uri: str
    logical_date: datetime | None = None
    unreadable: str = ""


def judge(
    challenger: Contender,
    champion: Contender | None,
    *,
    rules: Sequence[Rule] = (),
    compare: PairedComparison | None = None,
    metrics: Mapping[str, float] | None = None,
    rows: Rows | None = None,
    scored: str = "",
    unreadable_champion: Literal["keep", "promote"] = "keep",
) -> Verdict:
    """
    Decide what becomes of the challenger.

    :param challenger: Model of this DAG run.
    :param champion: Model that serves today; None when there is none yet.
    :param rules: Limits that the challenger must keep by itself.
    :param compare: How to compare the two; None decides by the rules alone.
    :param metrics: The challenger's final values. A rule's metric that is not among them is computed from ``rows`` if
        it is one of :data:`~airflow_ml_provider.core.scoring.METRICS`.
    :param rows: Scores of both on the same rows.
    :param scored: URI of the model whose scores stand in the column of the champion; empty when nobody knows.
    :param unreadable_champion: What to do with a fit challenger when the champion's model cannot be read. ``keep``
        waits for a person, since a store that is out of order must not put an uncompared model into production;
        ``promote`` treats the champion as absent.
    :return: The verdict; every case has one.
    :raises ConfigError: numpy or scikit-learn is not installed, or the metric is unknown; a retry never helps.
    """
    values = {**(metrics or {}), **_values_of_rules(rules, metrics or {}, rows)}
    broken, kept = _apply(rules, values)
    mispaired = _mispaired(champion, rows, scored)
    against = champion is not None and not (champion.unreadable or mispaired or _why_stay(challenger, champion))
    measured = measure(compare, rows, against_champion=against) if compare else Measured({})
    decision, reasons = _decide(
        challenger, champion, broken, compare, measured, mispaired=mispaired, unreadable_champion=unreadable_champion
    )
    looked_at = {rule.metric: values[rule.metric] for rule in rules if rule.metric in values}
    return Verdict(
        decision=decision,
        reasons=(*reasons, *_of_unknown_age(challenger, champion), *kept),
        metrics={**looked_at, **measured.metrics},
        gain=measured.gain,
        challenger=challenger.uri,
        champion=champion.uri if champion else None,
    )


def _decide(
    challenger: Contender,
    champion: Contender | None,
    broken: list[str],
    compare: PairedComparison | None,
    measured: Measured,
    *,
    mispaired: str,
    unreadable_champion: Literal["keep", "promote"],
) -> tuple[Decision, list[str]]:
    """Go through the cases, the gravest first."""
    faults = [*broken, *([f"The challenger is not fit: {measured.unfit}."] if measured.unfit else [])]
    if faults:
        return "reject", faults
    if champion is None:
        alone = _alone("There is no champion yet", measured)
        return ("keep", [mispaired]) if mispaired and alone[0] == "promote" else alone
    if stay := _why_stay(challenger, champion):
        return "keep", [stay]
    if champion.unreadable:
        return _unread(champion, measured, unreadable_champion)
    if compare and mispaired:
        return "keep", [mispaired]
    return _compared(compare, measured)


def _unread(champion: Contender, measured: Measured, choice: Literal["keep", "promote"]) -> tuple[Decision, list[str]]:
    """Judge a challenger whose champion is there and cannot be read."""
    said = f"The champion's model {champion.uri} cannot be read: {champion.unreadable}"
    if choice == "promote":
        return _alone(said, measured)
    remedy = (
        "It stays until somebody looks: mend the store, roll back to the champion before it, or let the gate promote "
        'in this case with unreadable_champion="promote"'
    )
    return "keep", [f"{said}. {remedy}."]


def _alone(why: str, measured: Measured) -> tuple[Decision, list[str]]:
    """Judge a challenger that nothing stands against."""
    if measured.unpaired:
        return "reject", [f"{why}, and nothing says that the challenger is fit: {measured.unpaired}."]
    return "promote", [f"{why}, and the challenger stands by itself: it is promoted without a comparison."]


def _compared(compare: PairedComparison | None, measured: Measured) -> tuple[Decision, list[str]]:
    """Judge a challenger by its gain over the champion, if that was asked for and could be found."""
    gain = measured.gain
    if compare is None:
        return "promote", ["The rules hold, and no comparison with the champion was asked for."]
    if gain is None:
        return "keep", [f"The two cannot be compared: {measured.unpaired}. The champion stays."]
    ours, theirs = (measured.metrics[f"{who}_{compare.name}"] for who in ("challenger", "champion"))
    said = (
        f"{compare.name} is {ours:.6g} against the champion's {theirs:.6g} on the same {measured.rows:,} rows: a gain "
        f"of {gain.estimate:+.6g} with the {compare.confidence * 100:g} % interval [{gain.low:+.6g}, {gain.high:+.6g}]"
    )
    if gain.low > compare.min_gain:
        return "promote", [f"{said}, which lies above the wanted {compare.min_gain:g}."]
    if gain.high < 0:
        return "keep", [f"{said}: the challenger is worse."]
    return "keep", [f"{said}, which does not lie above the wanted {compare.min_gain:g}: a tie keeps the champion."]


def _why_stay(challenger: Contender, champion: Contender) -> str | None:
    """Say why the two are not to be compared at all, None when they are."""
    if challenger.uri == champion.uri:
        return f"The challenger {challenger.uri} is the champion already: there is nothing to promote."
    if challenger.logical_date and champion.logical_date and challenger.logical_date < champion.logical_date:
        return (
            f"The challenger is of {challenger.logical_date.isoformat()}, older than the champion of "
            f"{champion.logical_date.isoformat()} (a backfill, or an old night cleared): the newer one stays."
        )
    return None


def _mispaired(champion: Contender | None, rows: Rows | None, scored: str) -> str:
    """Say why the column of the champion is not that of the champion; empty when it is, or when nobody knows better."""
    if rows is None or rows.champion is None:
        return ""
    if champion is None:
        return (
            "There is no champion, and yet the scores have a column 'champion': there was one when they were made, or it "
            "stands somewhere else. Nothing is promoted until they are made again; leave out the column if there is none."
        )
    if scored and scored != champion.uri:
        return (
            f"The column 'champion' of the scores is that of {scored}, and the champion is {champion.uri} now: the two "
            "cannot be compared. The champion stays; make the scores again to compare with it."
        )
    return ""


def _of_unknown_age(challenger: Contender, champion: Contender | None) -> list[str]:
    if champion is None or (challenger.logical_date and champion.logical_date):
        return []
    whose = "the champion" if challenger.logical_date else "the challenger"
    return [f"The logical date of {whose} is not on record, so nothing was said about which of the two is older."]


def _apply(rules: Sequence[Rule], values: Mapping[str, float]) -> tuple[list[str], list[str]]:
    """Sort the rules into sentences about those broken and those kept."""
    broken, kept = [], []
    for rule in rules:
        value = values.get(rule.metric)
        if value is None:
            known = ", ".join(sorted(values)) or "none"
            broken.append(f"The rule {rule} is broken: there is no metric {rule.metric!r}; there are: {known}.")
        elif rule.holds(value):
            kept.append(f"The rule {rule} holds: {rule.metric} is {value:.9g}.")
        else:
            broken.append(f"The rule {rule} is broken: {rule.metric} is {value:.9g}.")
    return broken, kept


def _values_of_rules(rules: Sequence[Rule], metrics: Mapping[str, float], rows: Rows | None) -> dict[str, float]:
    """Compute what the rules ask for and nobody has logged."""
    wanted = {rule.metric for rule in rules if rule.metric not in metrics and rule.metric in METRICS}
    measured = (measure(PairedComparison(metric=name), rows, against_champion=False) for name in sorted(wanted) if rows)
    return {name.removeprefix("challenger_"): value for each in measured for name, value in each.metrics.items()}
