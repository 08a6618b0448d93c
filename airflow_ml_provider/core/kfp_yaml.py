"""
YAML as a Kubeflow Pipelines server reads it, and nothing that could be read in two ways; pure.

The server reads YAML 1.2 with Go's yaml.v3, kfp writes YAML 1.1 with PyYAML. They differ: kfp writes the text ``08`` without
quotes, and the server reads the number 8. Such a scalar is refused here by its line, as are tags, duplicate keys and merge keys.
Values are built from the parser's events: eight times as quick as PyYAML's own loader, and the limits hold while it reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, NoReturn

from airflow_ml_provider.exceptions import ConfigError

MAX_DEPTH = 200
"""Levels of lists and mappings; a compiled pipeline has about 15."""
MAX_DOCUMENTS = 10
NODE_WEIGHT = 16
"""What a node counts beside its characters, about what it costs in memory."""
CONSTANTS: dict[str, object] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
"""Plain scalars that are no text; ``yes``, ``no``, ``on`` and ``off`` are texts since YAML 1.2."""
_INTEGER = re.compile(r"([-+]?)(?:0[xX](?P<x>[0-9a-fA-F]+)|0[bB](?P<b>[01]+)|0[oO]?(?P<o>[0-7]+)|(?P<d>0|[1-9][0-9]*))")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_JSON_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_DAY = r"[0-9]{4}-(0?[1-9]|1[0-2])-(0?[1-9]|[12][0-9]|3[01])"
_CLOCK = r"([01]?[0-9]|2[0-3]):[0-5]?[0-9]:[0-5]?[0-9](\.[0-9]+)?"
_TIME = re.compile(rf"{_DAY}([Tt]{_CLOCK}(Z|[-+][0-9]{{2}}:[0-9]{{2}})| {_CLOCK})?")
_BASES = {"x": 16, "b": 2, "o": 8, "d": 10}
_SAFE = 2**53
_MOST_DIGITS = 310
"""Digits of the largest double; what is longer is no number to the server."""


class _TwoMeaningsError(ValueError):
    """A plain scalar that kfp and the server read differently, or that JSON cannot hold."""


@dataclass(slots=True)
class _Frame:
    """A list or mapping that is not closed yet; in ``flow`` ones, with brackets, kfp writes nothing, and JSON everything."""

    value: Any
    anchor: str | None
    flow: bool = False
    weight: int = 0
    key: str | None = None


def read_documents(data: bytes, *, source: str, limit: int) -> list[Any]:
    """
    Read all YAML documents of a text.

    :param data: YAML or JSON in UTF-8.
    :param source: Where it comes from, for messages.
    :param limit: Largest size of what comes out, aliases written out: characters plus 16 for every node.
    :return: Value per document that is not empty; mappings, lists, texts, numbers, booleans and None only.
    :raises ConfigError: it is no YAML, or holds a tag, a duplicate key, a merge key, a key that is no text, an alias to itself,
        a scalar with two meanings, or more than the limits; a retry never helps.
    """
    import yaml  # type: ignore[import-untyped]

    builder = _Builder(source, limit)
    try:
        for event in _events(data):
            builder.take(event)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{source}{where} is no YAML: {problem}. Compile the pipeline again.") from error
    return [each for each in builder.documents if each is not None]


def _events(data: bytes) -> Iterator[Any]:
    """Parse with libyaml where PyYAML was built with it, as all its wheels are."""
    import yaml

    return iter(yaml.parse(data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


class _Builder:
    """Builds values from events, without recursion: what nests deeper than Python's stack is refused, not crashed upon."""

    def __init__(self, source: str, limit: int) -> None:
        self.source = source
        self.limit = limit
        self.documents: list[Any] = []
        self._stack: list[_Frame] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._steps: dict[str, Callable[[Any], None]] = {
            "ScalarEvent": self._scalar,
            "MappingStartEvent": self._open,
            "SequenceStartEvent": self._open,
            "MappingEndEvent": self._close,
            "SequenceEndEvent": self._close,
            "AliasEvent": self._alias,
            "DocumentStartEvent": self._document,
            "DocumentEndEvent": self._end,
        }

    def take(self, event: Any) -> None:
        step = self._steps.get(type(event).__name__)
        if step is not None:
            step(event)

    def _document(self, event: Any) -> None:
        if len(self.documents) > MAX_DOCUMENTS:
            self._refuse(event, f"more than {MAX_DOCUMENTS} documents. A package has one, or two with a platform's")
        self._anchors.clear()
        self._stack = [_Frame([], None)]

    def _end(self, _: Any) -> None:
        self.documents += self._stack.pop().value

    def _scalar(self, event: Any) -> None:
        if event.tag is not None:
            self._refuse_tag(event)
        text = event.value
        value: Any = text
        if event.implicit[0]:
            try:
                value = _plain(text)
            except _TwoMeaningsError as error:
                if not (self._stack[-1].flow and _JSON_NUMBER.fullmatch(text)):
                    self._refuse(event, str(error))
                value = _number(text)
        self._add(event, value, len(text) + NODE_WEIGHT, event.anchor)

    def _open(self, event: Any) -> None:
        if event.tag is not None:
            self._refuse_tag(event)
        if len(self._stack) > MAX_DEPTH:
            self._refuse(event, f"more than {MAX_DEPTH} levels of lists and mappings. No compiled pipeline is so deep")
        empty: Any = {} if type(event).__name__ == "MappingStartEvent" else []
        self._stack.append(_Frame(empty, event.anchor, bool(event.flow_style)))

    def _close(self, event: Any) -> None:
        frame = self._stack.pop()
        self._add(event, frame.value, frame.weight + NODE_WEIGHT, frame.anchor)

    def _alias(self, event: Any) -> None:
        known = self._anchors.get(event.anchor)
        if known is None:
            self._refuse(event, f"alias *{event.anchor} stands for nothing, or for what it stands in. Write its value out")
        self._add(event, *known, None)

    def _add(self, event: Any, value: Any, weight: int, anchor: str | None) -> None:
        frame = self._stack[-1]
        frame.weight += weight
        if frame.weight > self.limit:
            self._refuse(
                event, f"too much: more than {self.limit} bytes with its aliases written out. Compile a smaller pipeline"
            )
        if anchor is not None:
            self._anchors[anchor] = (value, weight)
        if type(frame.value) is list:
            frame.value.append(value)
        elif frame.key is None:
            frame.key = self._checked_key(event, frame.value, value)
        else:
            frame.value[frame.key] = value
            frame.key = None

    def _checked_key(self, event: Any, mapping: dict[str, Any], key: Any) -> str:
        if not isinstance(key, str):
            self._refuse(event, f"the key {key!r:.60} is no text. Put it in quotes")
        if key in mapping:
            self._refuse(event, f"the key {key!r:.60} stands twice in one mapping. Take one out")
        if key == "<<":
            self._refuse(event, "a merge key (<<). Write out what it merges")
        return key

    def _refuse_tag(self, event: Any) -> NoReturn:
        self._refuse(event, f"the tag {event.tag!r:.60}. A compiled pipeline has none: it is plain data. Take it out")

    def _refuse(self, event: Any, reason: str) -> NoReturn:
        raise ConfigError(f"{self.source}, line {event.start_mark.line + 1}: {reason}.")


@lru_cache(maxsize=1 << 14)
def _plain(text: str) -> Any:
    """Read a scalar without quotes as the server does; refuse what kfp meant otherwise."""
    if text in CONSTANTS:
        return CONSTANTS[text]
    if text[0] not in "+-.0123456789":
        return text
    if _TIME.fullmatch(text):
        raise _TwoMeaningsError(f"{text} without quotes is a time to the server, not a text. Put it in quotes")
    if _NOT_FINITE.fullmatch(text):
        raise _TwoMeaningsError(f"{text} is a number that JSON does not have. Put it in quotes if it is a text")
    number = _number(text)
    if number is None:
        return text
    if not any(pattern.fullmatch(text) for pattern in _written_numbers()):
        raise _TwoMeaningsError(
            f"{text} without quotes is the number {number} to the server, but kfp writes the text {text!r} so. "
            f"Put it in quotes if it is a text (kfp does so when it compiles to .json); write {float(number)!r} if it is a number"
        )
    return number


def _number(text: str) -> int | float | None:
    """Read a number by the rules of Go's yaml.v3; None for a text."""
    digits = text if text[0] == "." else text.replace("_", "")
    found = _INTEGER.fullmatch(digits)
    if found and len(digits) <= _MOST_DIGITS and found.lastgroup:
        number = int(found[1] + found[found.lastgroup], _BASES[found.lastgroup])
        if found.lastgroup != "d" and not -(2**63) <= number < 2**64:
            return None
        return number if abs(number) <= _SAFE else float(number)
    if not _FLOAT.fullmatch(digits):
        return None
    value = float(digits)
    if not math.isfinite(value):
        return None
    return int(value) if value.is_integer() and abs(value) <= _SAFE else value


@cache
def _written_numbers() -> list[re.Pattern[str]]:
    """List what PyYAML, with which kfp writes, takes for a number; it puts a text in quotes that looks like one."""
    import yaml

    kinds = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
    resolvers = yaml.SafeLoader.yaml_implicit_resolvers.values()
    return list({pattern for each in resolvers for tag, pattern in each if tag in kinds})
