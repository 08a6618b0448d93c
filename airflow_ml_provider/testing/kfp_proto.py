"""Reading JSON as the gateway does: strict about names and types, and telling line and column of what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airflow_ml_provider.testing.kfp_answers import KfpError

PACKAGE = "kubeflow.pipelines.backend.api.v2beta1"
_BLANK = re.compile(r"[ \t\r\n]*")
_ATOM = re.compile(r'"(?:[^"\\]|\\.)*"|[-+.\w]+')


@dataclass(frozen=True)
class Field:
    """
    One field of a message.

    :param kind: ``string``, ``bool``, ``int32``, ``int64``, ``time``, ``any`` (taken as it is), ``map`` (an object, taken as
        it is), ``structs`` (an object of objects), ``enum``, ``message``, ``list``.
    :param values: Names of an enum.
    :param message: Fields of a message or of a list's items; None for a list of texts.
    :param oneof: Name of the group of which only one may be given, with its message.
    """

    kind: str = "string"
    values: frozenset[str] = frozenset()
    message: Mapping[str, Field] | None = None
    oneof: str = ""


class _RefusedError(Exception):
    """A text that is refused at a place."""

    def __init__(self, text: str, at: int, *, syntax: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.at = at
        self.syntax = syntax


def camel(name: str) -> str:
    """
    Give the other name under which a field is accepted.

    :param name: ``display_name``.
    :return: ``displayName``.
    """
    head, *rest = name.split("_")
    return head + "".join(each.capitalize() for each in rest)


def read_message(text: str, fields: Mapping[str, Field], prefix: str = "") -> dict[str, Any]:
    """
    Read a message, and bring its names to one form.

    :param text: JSON.
    :param fields: Fields that are known, by the names of the API.
    :param prefix: Put before the error's text.
    :return: The fields that were given, under the API's names; null is left out.
    :raises KfpError: 400, without ``details``.
    """
    try:
        return _Reader(text, fields).whole()
    except _RefusedError as refused:
        before = text[: refused.at]
        line, column = before.count("\n") + 1, refused.at - (before.rfind("\n") + 1) + 1
        word = "syntax error " if refused.syntax else ""
        raise KfpError(3, f"{prefix}proto: {word}(line {line}:{column}): {refused.text}") from None


class _Reader:
    """Walks over one text."""

    def __init__(self, text: str, fields: Mapping[str, Field]) -> None:
        self.text = text
        self.fields = fields
        self.decoder = json.JSONDecoder(strict=False)
        self.at = 0

    def whole(self) -> dict[str, Any]:
        """Read everything; anything but an object is refused."""
        self.blank()
        found = self.object(self.fields)
        self.blank()
        if self.at < len(self.text):
            raise _RefusedError(f"unexpected token {self.text[self.at :]}", self.at, syntax=True)
        return found

    def blank(self) -> None:
        """Go on to the next sign."""
        match = _BLANK.match(self.text, self.at)
        self.at = match.end() if match else self.at

    def eof(self) -> KfpError:
        """Make the error of a text that ends too early."""
        return KfpError(3, "unexpected EOF")

    def expect(self, sign: str) -> None:
        """Take one sign."""
        self.blank()
        if self.at >= len(self.text):
            raise self.eof()
        if self.text[self.at] != sign:
            self.wrong_token()
        self.at += 1

    def wrong_token(self) -> None:
        """Refuse what stands here."""
        match = _ATOM.match(self.text, self.at)
        token = match.group() if match else self.text[self.at]
        known = match is None or token[0] == '"' or token in {"true", "false", "null"} or re.fullmatch(r"-?\d[\d.eE+-]*", token)
        raise _RefusedError(f"unexpected token {token}" if known else f"invalid value {token}", self.at, syntax=True)

    def object(self, fields: Mapping[str, Field]) -> dict[str, Any]:
        """Read an object with known fields."""
        self.expect("{")
        found: dict[str, Any] = {}
        groups: set[str] = set()
        names = {**{camel(each): each for each in fields}, **{each: each for each in fields}}
        for start in self.members("}"):
            key = self.value()
            if not isinstance(key, str):
                raise _RefusedError(f"unexpected token {self.text[start : self.at]}", start, syntax=True)
            if key not in names:
                raise _RefusedError(f'unknown field "{key}"', start)
            self.expect(":")
            self.blank()
            field_ = fields[names[key]]
            self.once(field_, key, groups, start)
            read = self.field(key, field_)
            if read is not None:
                found[names[key]] = read
        return found

    def members(self, closing: str) -> Iterator[int]:
        """Go through what stands between commas, and read the closing sign; tells where each begins."""
        self.blank()
        while self.peek() != closing:
            yield self.at
            self.blank()
            if self.peek() != closing:
                self.expect(",")
                self.blank()
        self.at += 1

    def once(self, field_: Field, key: str, groups: set[str], start: int) -> None:
        """Refuse a second member of a group."""
        if not field_.oneof:
            return
        if field_.oneof in groups:
            raise _RefusedError(f'error parsing "{key}", oneof {PACKAGE}.{field_.oneof} is already set', start)
        groups.add(field_.oneof)

    def peek(self) -> str:
        """Look at the next sign."""
        if self.at >= len(self.text):
            raise self.eof()
        return self.text[self.at]

    def value(self) -> Any:
        """Read any JSON value."""
        if self.at >= len(self.text):
            raise self.eof()
        try:
            found, self.at = self.decoder.raw_decode(self.text, self.at)
        except ValueError:
            if '"' not in self.text[self.at + 1 :] and self.text[self.at] == '"':
                raise self.eof() from None
            self.wrong_token()
        return found

    def field(self, key: str, field_: Field) -> Any:
        """Read the value of a field."""
        start = self.at
        if self.text.startswith("null", start) and field_.kind != "any":
            self.at += 4
            return None
        if field_.kind == "message":
            return self.object(field_.message or {})
        if field_.kind == "list":
            return self.list(key, field_)
        if field_.kind == "structs":
            return self.structs(key)
        return self.scalar(key, field_, self.value(), start)

    def structs(self, key: str) -> dict[str, Any]:
        """Read an object of objects."""
        if self.peek() != "{":
            start = self.at
            self.scalar(key, Field("map"), self.value(), start)
        self.at += 1
        found: dict[str, Any] = {}
        for _ in self.members("}"):
            name = str(self.value())
            self.expect(":")
            self.blank()
            start = self.at
            found[name] = self.scalar(key, Field("map"), self.value(), start)
        return found

    def list(self, key: str, field_: Field) -> list[Any]:
        """Read a list of messages or texts."""
        self.expect("[")
        one = Field("message", message=field_.message) if field_.message is not None else Field()
        return [self.field(key, one) for _ in self.members("]")]

    def scalar(self, key: str, field_: Field, value: Any, start: int) -> Any:
        """Check a value against its kind."""
        raw = self.text[start : self.at]
        if field_.kind == "any":
            return value
        if field_.kind == "map":
            if not isinstance(value, dict):
                raise _RefusedError(f"unexpected token {raw[:1] if raw[:1] in '[{' else raw}", start, syntax=True)
            return value
        if field_.kind == "enum" and value in field_.values:
            return value
        if field_.kind in {"int32", "int64"} and re.fullmatch(r'"?-?\d+(\.0+)?"?', raw):
            return int(float(value)) if "." in raw else int(value)
        if field_.kind == "time" and isinstance(value, str) and seconds_of(value) is not None:
            return value
        if (field_.kind == "string" and isinstance(value, str)) or (field_.kind == "bool" and isinstance(value, bool)):
            return value
        name = {"time": "google.protobuf.Timestamp"}.get(field_.kind, field_.kind)
        if field_.kind == "time":
            raise _RefusedError(f"invalid {name} value {raw}", start)
        raise _RefusedError(f"invalid value for {name} field {camel(key)}: {raw}", start)


def seconds_of(text: str) -> int | None:
    """
    Read a time.

    :param text: RFC 3339.
    :return: Whole seconds since 1970, None when it is no time.
    """
    try:
        return int(datetime.fromisoformat(text).timestamp())
    except ValueError:
        return None


def normal(value: Any) -> Any:
    """
    Bring numbers through a double, as protobuf's Struct does.

    :param value: JSON.
    :return: The same with whole numbers as integers; beyond 2**53 they are rounded.
    """
    if isinstance(value, dict):
        return {key: normal(each) for key, each in value.items()}
    if isinstance(value, list):
        return [normal(each) for each in value]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        double = float(value)
        return int(double) if double.is_integer() else double
    return value
