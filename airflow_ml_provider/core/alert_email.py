"""
An alert as an e-mail: a subject, an HTML part made by a template that escapes by itself, and a plain part of its own.

The HTML is a table with styles in its tags, which Gmail and Outlook show; it stays far below the 102 kB at which Gmail cuts
a message off.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from airflow_ml_provider.core.alert_text import counted, cut, excerpt, isolate, moment, one_line, web_address
from airflow_ml_provider.core.alert_trend import HEIGHT, WIDTH, draw_trend
from airflow_ml_provider.core.alert_words import AlertWords, Fact, FailureGroup, in_words
from airflow_ml_provider.models.alert import Alert, Severity

if TYPE_CHECKING:
    from jinja2 import Template

WHY, REASON, NAME, DETAIL = 2500, 400, 300, 6_000
"""What is shown of a reason, of one in the list, of a name, and of a log: bytes in the HTML."""
GROUPS, TASKS, LINKS, LINK_TEXT, LIST_URL = 10, 8, 6, 60, 600
COLOURS: dict[Severity, str] = {"critical": "#b42318", "warning": "#b54708", "info": "#175cd3"}
"""Colour of the bar and of the word before the headline, with white text on it."""
MARGIN = 76


class EmailContent(NamedTuple):
    """
    What is sent.

    :param subject: One line, at most 150 characters.
    :param html: The HTML part, at most 102,000 bytes; it shows the picture as ``cid:trend`` where there is one.
    :param plain: The plain part.
    :param picture: PNG of the trend; None where there is none.
    """

    subject: str
    html: str
    plain: str
    picture: bytes | None


class _Who(NamedTuple):
    """One reason in the list of tasks, as it is shown."""

    tasks: tuple[tuple[str, str], ...]
    more: int
    why: str


class _Shown(NamedTuple):
    """What both parts show, cut; nothing is escaped yet."""

    severity: str
    colour: str
    headline: str
    why: str
    preview: str
    facts: tuple[Fact, ...]
    who: tuple[_Who, ...]
    failed: str
    unlisted: str
    links: tuple[tuple[str, str], ...]
    detail: str
    at: str


def render_email(alert: Alert) -> EmailContent:
    """
    Write an alert as an e-mail.

    :param alert: The alert; its texts may be of any length and of anybody.
    :return: The e-mail; without a picture where there is no trend, or no Pillow.
    """
    words = in_words(alert)
    picture = draw_trend(alert.trend)
    shown = _shown(alert, words)
    page = _template().render(**shown._asdict(), picture=picture is not None, width=WIDTH, height=HEIGHT)
    return EmailContent(words.title, page, _plain(words.title, shown), picture)


def _cost(text: str) -> int:
    """Give the bytes of a text once it is escaped."""
    return len(html.escape(text).encode())


def _name(text: str, limit: int = NAME) -> str:
    return isolate(cut(one_line(text), limit, _cost))


def _shown(alert: Alert, words: AlertWords) -> _Shown:
    listed = words.groups[:GROUPS]
    unlisted = words.failed - sum(len(each.failures) for each in listed)
    links = [(_name(each.text, LINK_TEXT) or "Open", web_address(each.url)) for each in alert.links]
    dag = _name(alert.dag_id)
    return _Shown(
        severity=alert.severity,
        colour=COLOURS[alert.severity],
        headline=": ".join(part for part in (dag, words.what) if part),
        why=_name(words.why or words.reason, WHY),
        preview=_name(". ".join(f"{each.label}: {each.value}" for each in words.facts[:5]), NAME),
        facts=tuple(Fact(_name(each.label), _name(each.value), each.named) for each in words.facts),
        who=tuple(_who(each) for each in listed),
        failed=counted(words.failed, "task") + " failed" if listed else "",
        unlisted=f"and {counted(unlisted, 'task')} more" if listed and unlisted > 0 else "",
        links=tuple((text, url) for text, url in links if url)[:LINKS],
        detail=excerpt(words.detail, DETAIL, _cost) if words.detail.strip() else "",
        at=moment(alert.at),
    )


def _who(group: FailureGroup) -> _Who:
    tasks = []
    for each in group.failures[:TASKS]:
        url = web_address(each.url)
        tasks.append((_name(each.task) or "a task", url if len(url) <= LIST_URL else ""))
    return _Who(tuple(tasks), max(len(group.failures) - TASKS, 0), _name(group.why, REASON))


def _plain(title: str, shown: _Shown) -> str:
    """Write the plain part: for those who read mail in a terminal, and for those who search it."""
    parts = [
        [title],
        _wrapped(shown.why),
        [shown.failed + ":", *(line for each in shown.who for line in _listed(each)), shown.unlisted] if shown.who else [],
        _columns(shown.facts),
        [f"{text}: {url}" for text, url in shown.links],
        [f"    {line}" for line in shown.detail.split("\n")] if shown.detail else [],
        [shown.at],
    ]
    blocks = ["\n".join(line.rstrip() for line in part if line) for part in parts]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(
        text, MARGIN, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _columns(facts: Sequence[Fact]) -> list[str]:
    widest = min(max((len(each.label) for each in facts), default=0), 24)
    return [f"{each.label + ':':<{widest + 1}} {each.value}" for each in facts]


def _listed(who: _Who) -> list[str]:
    names = ", ".join(name for name, _ in who.tasks) + (f" and {who.more:,} more" if who.more else "")
    address = next((url for _, url in who.tasks if url), "")
    first, *others = _wrapped(names + (f": {who.why}" if who.why else ""), "  ")
    return ["- " + first.lstrip(), *others, *([f"  {address}"] if address else [])]


@cache
def _template() -> Template:
    # Imported late: half of those who import this never send an e-mail.
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("airflow_ml_provider.core", "templates")
    return Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).get_template("alert.html.jinja2")
