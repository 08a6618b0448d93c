"""
Compares what a recording shows with what the fake answers, in depth.

Ids have names in a recording (``run-1``). The first answer that shows one ties it to the fake's id; from then on both must agree.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from tests.testing.differences import (
    FIELDS,
    LONG,
    MODELS,
    NAMES,
    NODE_ABSENT,
    NODE_LINKS,
    NODE_ORDER,
    NODE_STATES,
    NODE_VALUES,
    NOT_READ,
    TEXTS,
    TIMES,
    TOLD,
    WORKFLOW,
    Exchange,
    Rule,
)
from tests.testing.models import complaints

HERE = Path(__file__).parent
TIME = re.compile(r"20(2[6-9]|[3-9]\d)-\d\d-\d\dT\d\d:\d\d:\d\dZ")


class Comparison:
    """What differs between a recording and the fake, and which rules of the list were needed to say no more than that."""

    def __init__(self) -> None:
        self.ids: dict[str, str] = {}
        self.rule: Exchange | None = None
        self.used: set[str] = set()
        self.differences: list[str] = []

    def use(self, rule: Rule | str) -> None:
        """Note that a rule was needed."""
        self.used.add(rule if isinstance(rule, str) else rule.name)

    def would_differ(self, check: Callable[[], None]) -> bool:
        """Tell whether a comparison that is left out finds something, without keeping what it finds."""
        kept, ids, rule, used = list(self.differences), dict(self.ids), self.rule, set(self.used)
        self.rule = None
        check()
        found = len(self.differences) > len(kept)
        self.differences, self.ids, self.rule, self.used = kept, ids, rule, used
        return found

    def ask_models(self, where: str, request: Mapping[str, Any], body: bytes) -> None:
        """Let the client's own models read an answer."""
        if len(body) > LONG.value:
            self.use(LONG)
            return
        for each in complaints(request["method"], request["path"], body):
            if any(each == rule.name for rule in MODELS):
                self.use(each)
            else:
                self.differences.append(f"{where}: {each}")

    def bound(self, text: str) -> str:
        """Put the fake's ids in the place of the recording's names."""
        names = sorted(self.ids, key=len, reverse=True)
        if not names:
            return text
        if len(text) > LONG.value:
            self.use(LONG)
            return text
        return re.sub("|".join(rf"(?<![\w-]){re.escape(each)}(?![\w-])" for each in names), lambda m: self.ids[m.group()], text)

    def bound_value(self, value: Any) -> Any:
        if isinstance(value, str):
            if value.startswith("<spec of "):
                return yaml.safe_load(file_content(value.replace("<spec of", "<content of")))
            return self.bound(value)
        if isinstance(value, dict):
            return {key: self.bound_value(each) for key, each in value.items()}
        return [self.bound_value(each) for each in value] if isinstance(value, list) else value

    def compare(
        self, where: str, expected: Mapping[str, Any], status: int | None, headers: Mapping[str, str], body: bytes
    ) -> None:
        if "no_response" in expected:
            self.same(where, "status", None, status)
            return
        self.same(where, "status", expected["status"], status)
        self.compare_headers(where, expected.get("headers") or {}, headers)
        if "body" not in expected:
            self.same(where, "text", expected.get("text", ""), body.decode())
            return
        try:
            found = json.loads(body)
        except ValueError:
            self.differences.append(f"{where}: no JSON: {body[:200]!r}")
            return
        self.walk(where, expected["body"], found)

    def compare_headers(self, where: str, expected: Mapping[str, str], found: Mapping[str, str]) -> None:
        """Compare every recorded header that is not in the list."""
        unread = {each.name for each in NOT_READ}
        self.used |= set(expected) & unread
        for name in sorted({"Content-Type", *expected} - unread):
            self.walk_text(f"{where} {name}", expected.get(name, ""), found.get(name, ""))

    def same(self, where: str, what: str, expected: Any, found: Any) -> None:
        if expected != found:
            self.differences.append(f"{where} {what}: recorded {expected!r}, fake {found!r}")

    def walk(self, where: str, expected: Any, found: Any) -> None:
        """Compare two values in depth."""
        if isinstance(expected, dict) and isinstance(found, dict):
            self.walk_object(where, expected, self.as_told(expected, found))
        elif isinstance(expected, list) and isinstance(found, list):
            self.walk_list(where, expected, found)
        elif isinstance(expected, str) and isinstance(found, str):
            self.walk_text(where, expected, found)
        elif isinstance(expected, str) and isinstance(found, list):
            self.walk_number(where, expected, found)
        elif isinstance(expected, str) and expected.startswith("<spec of "):
            self.same(where, "spec", self.bound_value(expected), found)
        else:
            self.same(where, "value", expected, found)

    def as_told(self, expected: Mapping[str, Any], found: dict[str, Any]) -> dict[str, Any]:
        """Tell of the fake's object what the recording tells of its own."""
        for rule in TOLD:
            if rule.key not in expected or rule.key in found:
                continue
            self.use(rule)
            if rule.key == "keys":
                return {"keys": sorted(found)}
            if rule.key == "states":
                found = {
                    "total_size": found.get("total_size"),
                    "states": [each["storage_state"] for each in found.get("runs", [])],
                }
            elif rule.key == "has_next_page_token":
                token = found.get("next_page_token", "")
                found = {**{key: each for key, each in found.items() if key != "next_page_token"}, rule.key: bool(token)}
            else:
                found = {**found, **found.get("run_details", {})}
        return found

    def walk_number(self, where: str, expected: str, found: list[Any]) -> None:
        for rule in TOLD:
            told = rule.pattern and rule.pattern.fullmatch(expected)
            if told:
                self.use(rule)
                self.same(where, "length", int(told.group(1)), len(found))
                return
        self.same(where, "value", expected, found)

    def walk_object(self, where: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        for key in sorted(set(expected) | set(found)):
            at = f"{where}.{key}"
            rule = self.rule_of(key, expected)
            if rule is not None:
                if self.would_differ(functools.partial(self.walk_field, at, key, expected, found)):
                    self.use(rule)
            else:
                self.walk_field(at, key, expected, found)

    def rule_of(self, key: str, expected: Mapping[str, Any]) -> Rule | None:
        """Find why a field is not compared."""
        if self.rule is not None and key == self.rule.field:
            return self.rule
        there = frozenset(expected)
        return next((each for each in FIELDS if each.holds(key, there) and not (each.compared and key in there)), None)

    def walk_field(self, where: str, key: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        if key not in found:
            self.differences.append(f"{where}: recorded {str(expected[key])[:200]!r}, missing in the fake")
        elif key not in expected:
            self.differences.append(f"{where}: only in the fake: {str(found[key])[:200]!r}")
        elif key == "task_details" and isinstance(expected[key], list):
            self.walk_tasks(where, expected[key], found[key])
        else:
            self.walk(where, expected[key], found[key])

    def walk_list(self, where: str, expected: list[Any], found: list[Any]) -> None:
        self.same(where, "length", len(expected), len(found))
        for number, (left, right) in enumerate(zip(expected, found, strict=False)):
            self.walk(f"{where}[{number}]", left, right)

    def walk_tasks(self, where: str, expected: list[Any], found: list[Any]) -> None:
        whole = all(
            each.get("state") == "SUCCEEDED" for each in expected if WORKFLOW.pattern.fullmatch(each.get("display_name", ""))
        )
        self.note_tasks(expected, found, whole=whole)
        left, right = (Counter(_task(each, states=whole) for each in side) for side in (expected, found))
        if not whole and left - right:
            self.use(NODE_ABSENT)
        for each in (left - right) if whole else ():
            self.differences.append(f"{where}: task missing in the fake: {each}")
        for each in right - left:
            self.differences.append(f"{where}: task only in the fake: {each}")
        self.same(where, "the fake has tasks", True, bool(found))

    def note_tasks(self, expected: list[Any], found: list[Any], *, whole: bool) -> None:
        """Note which rules about nodes are needed: without them, some node would differ."""

        def more(**kwargs: bool) -> bool:
            left, right = (Counter(_task(each, **({"states": whole} | kwargs)) for each in side) for side in (expected, found))
            return bool(right - left)

        self.use(NODE_VALUES)
        if [_task(each, states=whole) for each in expected] != [_task(each, states=whole) for each in found]:
            self.use(NODE_ORDER)
        if more(links=True):
            self.use(NODE_LINKS)
        if not whole and more(states=True):
            self.use(NODE_STATES)

    def walk_text(self, where: str, expected: str, found: str) -> None:
        if TIME.fullmatch(expected) and TIME.fullmatch(found):
            apart = abs(seconds(expected) - seconds(found))
            if apart > TIMES.value:
                self.differences.append(f"{where}: recorded {expected}, fake {found}")
            elif apart:
                self.use(TIMES)
            return
        if NAMES.pattern.fullmatch(expected) and expected not in self.ids and found not in self.ids.values():
            self.use(NAMES)
            self.ids[expected] = found
            return
        left, right = self.ids.get(expected, self.bound(expected)), found
        if left != right:
            left, right = self.worded(left, right)
        self.same(where, "text", left, right)

    def worded(self, *texts: str) -> list[str]:
        """Put words in the place of what differs on purpose, and note which words make a difference."""
        worded = [_worded(each) for each in texts]
        if worded[0] == worded[1]:
            self.used |= {rule.name for rule in TEXTS if len({_worded(each, but=rule.name) for each in texts}) > 1}
        return worded


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).astimezone(UTC).timestamp())


def _task(item: Mapping[str, Any], *, states: bool, links: bool = False) -> tuple[Any, ...]:
    name = WORKFLOW.pattern.sub(WORKFLOW.word, item.get("display_name", ""))
    state = (item.get("state"), item["end_time"].startswith("0001")) if states else ()
    left_out = {"state"} if links else {"child_tasks", "state"}
    return name, *state, tuple(sorted(set(item) - left_out))


def _worded(text: str, but: str = "") -> str:
    for rule in TEXTS:
        if rule.name != but:
            text = rule.pattern.sub(rule.word, text)
    return text


def file_content(text: str) -> bytes:
    match = re.fullmatch(r"<content of pipelines/(.+)>", text)
    if match:
        return (HERE / "pipelines" / match.group(1)).read_bytes()
    sized = re.fullmatch(r"<(\d+) bytes>", text)
    return bytes(range(256)) if sized else text.encode()
