"""Reads a rendered message as Slack or a mail client would, and says what breaks a limit."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from slack_sdk.models.blocks import Block

OVERRIDES = re.compile("[\u202a-\u202e\u2066\u2067]")
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
TAGS = frozenset(
    {
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "div",
        "table",
        "tr",
        "td",
        "span",
        "h1",
        "p",
        "a",
        "img",
        "ul",
        "li",
        "pre",
    }
)
WHOLE_BLOCKS, WHOLE_HTML = 13_000, 102_000


def units(text: str) -> int:
    """Characters as JavaScript counts them."""
    return len(text.encode("utf-16-le")) // 2


def texts(value: Any) -> Iterator[str]:
    """Every text that a block shows."""
    if isinstance(value, dict):
        if isinstance(value.get("text"), str):
            yield value["text"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from texts(each)


def marked(value: Any) -> Iterator[str]:
    """Every text in which Slack reads its markup."""
    if isinstance(value, dict):
        if value.get("type") == "mrkdwn":
            yield value["text"]
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from marked(each)


def validate(blocks: list[dict[str, Any]]) -> None:
    """Let Slack's own models read and judge the blocks, and then what they do not judge."""
    parsed = Block.parse_all(blocks)
    assert None not in parsed
    for each in parsed:
        each.validate_json()
    assert 1 <= len(blocks) <= 50
    assert all(units(each) >= 1 for each in texts(blocks))
    actions = [each for block in blocks if block["type"] == "actions" for each in block["elements"]]
    assert len({each["action_id"] for each in actions}) == len(actions) <= 25
    for each in actions:
        assert units(each["text"]["text"]) <= 75
        assert each["url"].startswith(("https://", "http://"))
        assert len(each["url"]) <= 3000
        assert each["url"].isascii()
    for block in blocks:
        assert block["type"] in ("header", "section", "rich_text", "actions", "context")
        if block["type"] == "header":
            assert units(block["text"]["text"]) <= 150
        if block["type"] == "section":
            assert len(block["fields"]) <= 10
            assert all(units(each["text"]) <= 2000 for each in block["fields"])


def wrong_in(text: str) -> list[str]:
    """What no text of a message may have."""
    found = [*OVERRIDES.findall(text), *CONTROLS.findall(text)]
    depth = 0
    for each in text:
        depth += (each == "\u2068") - (each == "\u2069")
        if depth not in (0, 1):
            found.append("isolates are not in pairs")
    return [*found, "an isolate is open"] if depth else found


def turned(text: str) -> bool:
    """Whether a letter of a right-to-left script stands outside of an isolate."""
    return RIGHT_TO_LEFT.search(re.sub("\u2068[^\u2069]*\u2069", "", text)) is not None


class Page(HTMLParser):
    """The tags of a page, its addresses, and the text between the tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.addresses: list[str] = []
        self.sources: list[str] = []
        self.shown = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.addresses += [value or "" for name, value in attrs if name == "href"]
        self.sources += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.shown += data
