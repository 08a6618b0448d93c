"""
An alert as a message of Slack's Block Kit, within Slack's limits.

What strangers wrote never stands where Slack reads its markup: it is in ``plain_text``, in ``rich_text`` (whose texts are
literal, so that a mention or a fence of backticks is just its characters) or, as a name, in a code span. Only the fallback
text has to be plain markup, and is escaped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from airflow_ml_provider.core.alert_text import (
    FSI,
    PDI,
    counted,
    cut,
    excerpt,
    in_utc,
    isolate,
    moment,
    one_line,
    utf16,
    web_address,
)
from airflow_ml_provider.core.alert_words import ISOLATES, AlertWords, Fact, FailureGroup, in_words, titled
from airflow_ml_provider.models.alert import Alert, AlertLink, Failure

Block = dict[str, Any]

HEADER, SECTION, FIELD, FIELDS, BUTTON, BUTTONS, BLOCKS = 150, 3000, 2000, 10, 75, 25, 50
"""Slack's limits, in characters and counts: https://docs.slack.dev/reference/block-kit/blocks"""
WHOLE = 12_000
"""Bytes of all blocks together. Slack answers msg_blocks_too_long from about 13,000 on (slackapi/bolt-js#2509)."""
TEXT, NAME, TASKS, LIST_URL = 300, 100, 5, 500
"""Our own limits: of the fallback, of a name, of tasks that share a reason, of an address in the list of tasks."""

_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKUP = re.compile(r"(?<![A-Za-z0-9])[*_~`]|[*_~`](?![A-Za-z0-9])|`")
_WORD_JOINER = "\u2060"


class _Room(NamedTuple):
    """How much of each part is shown: characters, and how many."""

    detail: int
    why: int
    groups: int
    reason: int
    buttons: int
    links: bool


ROOMS = (
    _Room(detail=2400, why=1200, groups=6, reason=240, buttons=6, links=True),
    _Room(detail=2400, why=1200, groups=6, reason=240, buttons=6, links=False),
    _Room(detail=800, why=800, groups=6, reason=120, buttons=3, links=False),
    _Room(detail=0, why=400, groups=3, reason=80, buttons=1, links=False),
    _Room(detail=0, why=200, groups=2, reason=60, buttons=0, links=False),
)
"""From what a phone shows on two or three screens down to what Slack takes of any text."""


class SlackMessage(NamedTuple):
    """
    What is posted.

    :param text: What a phone's notification shows, and what is shown where blocks are not: one escaped line.
    :param blocks: Block Kit, as JSON values.
    """

    text: str
    blocks: list[Block]


def render_slack(alert: Alert) -> SlackMessage:
    """
    Write an alert for Slack.

    :param alert: The alert; its texts may be of any length and of anybody.
    :return: A message that Slack takes: every limit is kept, at the cost of the log first, then of the links in the list.
    """
    words = in_words(alert)
    blocks: list[Block] = []
    for room in ROOMS:
        blocks = _blocks(alert, words, room)
        if len(json.dumps(blocks, ensure_ascii=False).encode()) <= WHOLE:
            break
    text, _ = titled(alert, words.what, words.reason, TEXT * 2 // 3)
    return SlackMessage(cut_mrkdwn(text, TEXT), blocks)


def mrkdwn(text: str) -> str:
    """
    Escape a text for where Slack reads its markup.

    :param text: One line, cleaned.
    :return: The same to the eye: no mention, no link, no emphasis, no code.
    """
    text = re.sub(r"[&<>]", lambda found: _ESCAPES[found[0]], text)
    # Emphasis begins and ends at the edge of a word: an unseen character that is no space there keeps it from doing so.
    text = _MARKUP.sub(lambda found: f"{_WORD_JOINER}{found[0]}{_WORD_JOINER}", text)
    return re.sub(r"@(?=channel|here|everyone)", f"@{_WORD_JOINER}", text)


def cut_mrkdwn(text: str, limit: int) -> str:
    """
    Escape a text and cut it, in this order to the eye: no escape is split.

    :param text: One line, cleaned; it may have isolated parts, else it is isolated as a whole.
    :param limit: Characters that it may have when it is escaped.
    :return: Escaped text within the limit, its isolates in pairs.
    """
    # A mark costs three characters, and a mention that is broken one more: the cost of each is never too low.
    shown = cut(text, limit - ISOLATES, _mrkdwn_cost)
    if FSI not in text:
        return mrkdwn(isolate(shown))
    return mrkdwn(shown) + PDI * (shown.count(FSI) - shown.count(PDI))  # what was isolated, and cut in the middle of it


def code(text: str, limit: int = NAME) -> str:
    """
    Put a name into a code span, in which Slack reads no markup but its three escapes.

    :param text: One line, cleaned.
    :param limit: Characters of the name that are shown.
    :return: The code span; backticks, which would end it, are apostrophes in it.
    """
    shown = isolate(cut(text.replace("`", "'"), limit))
    return "`" + re.sub(r"[&<>]", lambda found: _ESCAPES[found[0]], shown) + "`"


def _mrkdwn_cost(text: str) -> int:
    added = {"&": 4, "<": 3, ">": 3, "*": 2, "_": 2, "~": 2, "`": 2, "@": 1}
    return utf16(text) + sum(count * text.count(each) for each, count in added.items())


def _blocks(alert: Alert, words: AlertWords, room: _Room) -> list[Block]:
    found = [
        {"type": "header", "text": _plain(cut(words.title, HEADER))},
        _rich(_section(_text(isolate(cut(words.rest, room.why))))) if words.rest else None,
        _failures(words, room),
        _fields(words.facts),
        _buttons(alert.links, room.buttons),
        _detail(words.detail, room.detail),
        _context(alert),
    ]
    return [each for each in found if each is not None][:BLOCKS]


def _fields(facts: Sequence[Fact]) -> Block | None:
    fields = [{"type": "mrkdwn", "text": _field(each), "verbatim": True} for each in facts[:FIELDS]]
    return {"type": "section", "fields": fields} if fields else None


def _field(fact: Fact) -> str:
    value = code(fact.value) if fact.named else cut_mrkdwn(fact.value, NAME)
    if fact.at is not None:
        value = _date(fact.value, fact.at)
    bars = f"`{fact.bars}`\n" if fact.bars else ""
    return f"*{cut_mrkdwn(fact.label, NAME)}*\n{bars}{value}"


def _failures(words: AlertWords, room: _Room) -> Block | None:
    if not words.groups:
        return None
    shown = words.groups[: room.groups]
    items = [_section(*_group(each, room)) for each in shown]
    left = words.failed - sum(len(each.failures) for each in shown)
    if left > 0:
        items.append(_section(_text(f"and {counted(left, 'task')} more")))
    heading = _section(_text(f"{counted(words.failed, 'task')} failed", bold=True))
    return _rich(heading, {"type": "rich_text_list", "style": "bullet", "elements": items})


def _group(group: FailureGroup, room: _Room) -> list[Block]:
    parts: list[Block] = []
    for each in group.failures[:TASKS]:
        parts += [_text(", ")] if parts else []
        parts.append(_task(each, link=room.links))
    left = len(group.failures) - TASKS
    said = f" and {left:,} more" if left > 0 else ""
    said += f": {isolate(cut(group.why, room.reason))}" if group.why else ""
    return [*parts, _text(said)] if said else parts


def _task(failure: Failure, *, link: bool) -> Block:
    task = isolate(cut(one_line(failure.task), NAME * 3 // 5)) or "a task"
    url = web_address(failure.url) if link else ""
    if url and len(url) <= LIST_URL:
        return {"type": "link", "url": url, "text": task}
    return {"type": "text", "text": task, "style": {"code": True}}


def _buttons(links: Sequence[AlertLink], most: int) -> Block | None:
    found = [(isolate(cut(one_line(each.text), BUTTON - 2)) or "Open", web_address(each.url)) for each in links]
    buttons = [
        {"type": "button", "text": _plain(text), "url": url, "action_id": f"alert_link_{index}"}
        for index, (text, url) in enumerate(((text, url) for text, url in found if url))
    ][: min(most, BUTTONS)]
    return {"type": "actions", "elements": buttons} if buttons else None


def _detail(detail: str, limit: int) -> Block | None:
    shown = excerpt(detail, limit) if limit and detail.strip() else ""
    return _rich({"type": "rich_text_preformatted", "elements": [_text(shown)]}) if shown.strip() else None


def _context(alert: Alert) -> Block:
    return {"type": "context", "elements": [{"type": "mrkdwn", "text": _date(moment(alert.at), alert.at), "verbatim": True}]}


def _date(text: str, at: datetime) -> str:
    """Write a moment that Slack shows in the reader's own time; the text is for whoever cannot."""
    seconds = int(in_utc(at).timestamp())
    if seconds <= 0:  # before 1970 Slack shows the text; it may not take the number at all
        return mrkdwn(text)
    return f"<!date^{seconds}^{{date_short_pretty}} {{time}}|{mrkdwn(moment(at))}>" + mrkdwn(text.removeprefix(moment(at)))


def _plain(text: str) -> Block:
    return {"type": "plain_text", "text": text, "emoji": False}


def _text(text: str, *, bold: bool = False) -> Block:
    return {"type": "text", "text": text} | ({"style": {"bold": True}} if bold else {})


def _section(*elements: Block) -> Block:
    return {"type": "rich_text_section", "elements": list(elements)}


def _rich(*elements: Block) -> Block:
    return {"type": "rich_text", "elements": list(elements)}
