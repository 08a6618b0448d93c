"""What an alert says, in words, before it is markup: the headline, the facts, who failed of what. Slack and e-mail share it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from airflow_ml_provider.core.alert_text import (
    counted,
    cut,
    first_sentence,
    in_utc,
    isolate,
    moment,
    number,
    one_line,
    span,
    utf16,
)
from airflow_ml_provider.models.alert import Alert, AlertKind, Failure, Trend, TrendPoint

TITLE = 150
"""Characters of a title: what Slack's header takes, and about what a list of messages shows."""
DAG, THING = 45, 35
"""Characters of a DAG's id, and of a task or a model, in a title; they stand among the facts as a whole."""
ISOLATES = 2
"""Characters that isolating a text adds."""
WHY = 4000
"""Characters of a reason that are read at all."""
ABOUT_MODELS: tuple[AlertKind, ...] = ("gate_rejected", "promoted", "rolled_back")
BARS = "▁▂▃▄▅▆▇█"


class Fact(NamedTuple):
    """
    One line of what is known.

    :param label: What it is, in our words.
    :param value: What it is, in one cleaned line, not cut and not isolated.
    :param named: Whether it is a name of the user's (a task, a model), to be set apart by its font.
    :param at: The moment that the value begins with, for whoever can show it in the reader's own time.
    :param bars: The value drawn as a line of blocks; empty for most.
    """

    label: str
    value: str
    named: bool = False
    at: datetime | None = None
    bars: str = ""


class FailureGroup(NamedTuple):
    """
    Tasks that failed for one reason.

    :param why: The reason in one line; empty when it is not known, or was said already.
    :param failures: Who, in order; at least one.
    """

    why: str
    failures: tuple[Failure, ...]


class AlertWords(NamedTuple):
    """
    All that a message says.

    :param title: ``[critical] nightly: train failed: out of memory at 64 GiB``; one line, at most 150 characters.
    :param what: What failed: ``train failed``, without DAG and reason; for the body's first line.
    :param reason: The first sentence of why; where tasks failed of several reasons, the most common one.
    :param why: The whole reason, one line; empty when it is not known, or differs from task to task.
    :param rest: The other sentences of why; the first as well, where the title had no room for the whole of it.
    :param facts: What else is known, the most useful first.
    :param groups: Who failed; empty where the title says it already.
    :param failed: How many failed.
    :param detail: Traceback or log, as it was given; empty in a message that closes what was told.
    """

    title: str
    what: str
    reason: str
    why: str
    rest: str
    facts: tuple[Fact, ...]
    groups: tuple[FailureGroup, ...]
    failed: int
    detail: str


def in_words(alert: Alert) -> AlertWords:
    """
    Say an alert in words.

    :param alert: The alert.
    :return: Its words; whatever is not known is left out.
    """
    failed = max(alert.failed, len(alert.failures))
    why, groups = one_line(alert.why[:WHY]), _groups(alert.failures)
    if not why and len(groups) == 1:
        why = groups[0].why
    reason, rest = first_sentence(why)
    what = _what(alert, failed)
    if not why and groups:
        what, reason = _most_common(what, groups, of_all=failed == len(alert.failures))
    title, whole = titled(alert, what, reason)
    return AlertWords(
        title=title,
        what=what,
        reason=reason,
        why=why,
        rest=rest if whole or not why else why,
        facts=_facts(alert),
        groups=_worth_listing(groups, failed, why),
        failed=failed,
        detail="" if is_closing(alert) else alert.detail,
    )


def titled(alert: Alert, what: str, reason: str, limit: int = TITLE) -> tuple[str, bool]:
    """
    Put a title together.

    :param alert: The alert.
    :param what: What failed, as in :class:`AlertWords`.
    :param reason: The first sentence of why.
    :param limit: Characters that the title may have, at least 150.
    :return: The title, one line; and whether the whole reason is in it.
    """
    dag = isolate(cut(one_line(alert.dag_id), DAG))
    title = f"[{alert.severity}] " + ": ".join(part for part in (dag, what) if part)
    # Isolated after it is cut: an isolate that nobody closes would reach to the end of the line.
    shown = cut(reason, limit - utf16(title) - utf16(": ") - ISOLATES)
    return cut(f"{title}: {isolate(shown)}" if len(shown) > 1 else title, limit), shown == reason


def is_closing(alert: Alert) -> bool:
    """
    Tell whether a message only closes what an earlier one has opened.

    :param alert: The alert.
    :return: Whether it is the end of a DAG run of which people know already.
    """
    return alert.kind == "dag_failed" and alert.told


def finite(trend: Trend | None) -> tuple[TrendPoint, ...]:
    """
    Give the points of a trend that can be shown.

    :param trend: A trend, or None.
    :return: Its points, oldest first; none when fewer than two are left.
    """
    points = tuple(each for each in trend.points if math.isfinite(each.value)) if trend else ()
    return points if len(points) > 1 else ()


def limit_of(trend: Trend) -> float | None:
    """
    Give the limit of a trend.

    :param trend: A trend.
    :return: The limit; None when there is none, or none that can be shown.
    """
    return trend.limit if trend.limit is not None and math.isfinite(trend.limit) else None


def trend_in_words(trend: Trend, most: int = 6) -> str:
    """
    Write a trend for those who see no picture.

    :param trend: A trend with two points or more that can be shown.
    :param most: How many of the last values.
    :return: ``0.751, 0.748, 0.71; the gate asks for 0.74``.
    """
    values = ", ".join(number(each.value) for each in finite(trend)[-most:])
    limit = limit_of(trend)
    return values if limit is None else f"{values}; the gate asks for {number(limit)}"


def sparkline(trend: Trend, most: int = 16) -> str:
    """
    Draw a trend with the blocks of Unicode.

    :param trend: A trend with two points or more that can be shown.
    :param most: How many of the last values.
    :return: One character per value, from the least to the greatest; a line in the middle if they are all alike.
    """
    values = [each.value for each in finite(trend)[-most:]]
    low, high = min(values), max(values)
    if not 0 < high - low < math.inf:
        return BARS[3] * len(values)
    return "".join(BARS[round((each - low) / (high - low) * (len(BARS) - 1))] for each in values)


def _most_common(what: str, groups: Sequence[FailureGroup], *, of_all: bool) -> tuple[str, str]:
    """Give the title a reason where tasks failed for several: the most common one, counted where all of them are known."""
    most = max(groups, key=lambda each: len(each.failures) if each.why else 0)
    reason, _ = first_sentence(most.why)
    if len(most.failures) > 1:
        count = f"{len(most.failures)} times " if of_all else "many times "
        return what, f"{count}{reason}" if reason else ""
    task = _short(most.failures[0].task, "")
    return (f"{what}, among them {task}" if reason and task else what), reason


def _short(text: str, default: str) -> str:
    return isolate(cut(one_line(text), THING)) or default


def _what(alert: Alert, failed: int) -> str:
    task, model = _short(alert.task, "a task"), _short(alert.model, "")
    said: dict[AlertKind, str] = {
        "task_failed": f"{task} failed",
        "dag_failed": _how_it_ended(alert, failed),
        "retry": f"{task} failed, {_next_try(alert)}",
        "late": "the DAG run is late",
        "recovered": "works again",
        "gate_rejected": f"the gate rejected {model or 'the challenger'}",
        "promoted": f"{model or 'a new model'} is the champion now",
        "rolled_back": f"{model or 'the champion'} was rolled back",
    }
    return said[alert.kind]


def _how_it_ended(alert: Alert, failed: int) -> str:
    alone = _short(alert.failures[0].task, "") if failed == 1 and alert.failures else ""
    who = alone or counted(failed, "task")
    if alert.ended_well:
        return f"the DAG run has ended well, although {who if failed else 'tasks'} failed"
    if alert.told:
        return f"the DAG run has ended, {who} failed" if failed else "the DAG run has ended as failed"
    return f"{who} failed" if failed else "the DAG run failed"


def _next_try(alert: Alert) -> str:
    if alert.try_number is None:
        return "it is tried again"
    of = f" of {alert.tries}" if alert.tries else ""
    return f"try {alert.try_number + 1}{of} comes next"


def _facts(alert: Alert) -> tuple[Fact, ...]:
    took = span(alert.took_s) if alert.took_s is not None else ""
    if is_closing(alert):
        found = [
            Fact("Took", took),
            Fact("DAG", one_line(alert.dag_id), named=True),
            Fact("DAG run", one_line(alert.run_id), named=True),
        ]
    else:
        found = [
            Fact("Task", one_line(alert.task), named=True),
            Fact("Try", _try(alert)),
            Fact("Model", one_line(alert.model), named=True),
            _champion(alert),
            _last_worked(alert),
            Fact("Took", took),
            _trend(alert.trend),
            Fact("DAG", one_line(alert.dag_id), named=True),
            Fact("DAG run", one_line(alert.run_id), named=True),
        ]
    return tuple(each for each in found if each.value)


def _champion(alert: Alert) -> Fact:
    if alert.champion == alert.model:  # the title says that it is the champion now
        return Fact("", "")
    return Fact("In production" if alert.kind in ("promoted", "rolled_back") else "Still in production", one_line(alert.champion))


def _try(alert: Alert) -> str:
    if alert.try_number is None:
        return ""
    return f"{alert.try_number} of {alert.tries}" if alert.tries else str(alert.try_number)


def _last_worked(alert: Alert) -> Fact:
    if alert.last_worked is None or alert.kind in ABOUT_MODELS:
        return Fact("Last worked", "")
    ago = span((in_utc(alert.at) - in_utc(alert.last_worked)).total_seconds())
    return Fact("Last worked", moment(alert.last_worked) + (f", {ago} before" if ago else ""), at=alert.last_worked)


def _trend(trend: Trend | None) -> Fact:
    if trend is None or not finite(trend):
        return Fact("", "")
    return Fact(f"{one_line(trend.metric) or 'metric'}, last runs", trend_in_words(trend), bars=sparkline(trend))


def _groups(failures: Sequence[Failure]) -> tuple[FailureGroup, ...]:
    """Put the tasks that failed for one reason together, in the order of the first of each."""
    groups: dict[str, list[Failure]] = {}
    for each in failures:
        groups.setdefault(one_line(each.why[:WHY]), []).append(each)
    return tuple(FailureGroup(why, tuple(who)) for why, who in groups.items())


def _worth_listing(groups: Sequence[FailureGroup], failed: int, said: str) -> tuple[FailureGroup, ...]:
    """Leave out a reason that was said already, and a list that would say nothing but the title."""
    if failed == 1 and all(each.why in (said, "") and not each.failures[0].url for each in groups):
        return ()
    return tuple(FailureGroup("" if each.why == said else each.why, each.failures) for each in groups)
