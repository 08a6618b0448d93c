"""
One text per value, for digests: equal for equal values only, in any process and on any platform.

Pure: nothing is read, and no method of a value is called but those of plain ones.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import hashlib
import json
import re
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

from airflow_ml_provider.exceptions import ConfigError

REMEDY = (
    "Leave it out with Cache(ignore=[...]), pass plain values instead, or name what it stands for in Cache(extras={...}); "
    "Cache(parameters=False) leaves out all parameters."
)
DAG_MODULE = re.compile(r"unusual_prefix_[0-9a-f]{40}_")
"""Airflow puts this before the names of DAG files, a digest of the path, which is another on another worker."""


def canonical(value: object, where: str = "value") -> str:
    """
    Write a value as a text that is equal for equal values only, in any process and on any platform.

    Types are told apart (``1``, ``1.0``, ``True``, ``"1"``), lists and tuples are not, because JSON makes them one. The order
    of a dictionary or a set does not matter. NaN is equal to itself; ``-0.0`` is not ``0.0``, because a step can tell.

    :param value: Plain values, containers of them, dates, paths, enums, pydantic models and dataclasses.
    :param where: What the value is, for messages.
    :return: JSON, ASCII only.
    :raises ConfigError: it contains itself, or a value of another type; the message names where and the remedy.
    """
    return text_of(Writer(REMEDY).write(value, where))


def text_of(tree: object) -> str:
    """
    Write what a :class:`Writer` made as one text.

    :param tree: Lists of texts and of lists.
    :return: JSON, ASCII only.
    """
    return json.dumps(tree, separators=(",", ":"))


def digest_of(text: str) -> str:
    """
    Digest a canonical text.

    :param text: ASCII.
    :return: 64 hexadecimal digits.
    """
    return hashlib.sha256(text.encode("ascii")).hexdigest()


class Writer:
    """
    Writes values as lists of texts and of lists, each with the kind of value first, so that no two kinds ever meet.

    :param remedy: What a message tells to do about a value that cannot be written.
    :param ordered: Whether the order of a dictionary matters.
    """

    def __init__(self, remedy: str, *, ordered: bool = False) -> None:
        self._remedy = remedy
        self._ordered = ordered
        self._open: set[int] = set()

    def write(self, value: object, where: str) -> list[Any]:
        """
        Write a value.

        :param value: The value.
        :param where: What it is, for messages.
        :return: The lists.
        :raises ConfigError: it contains itself, or cannot be written; a retry never helps.
        """
        try:
            return self._write(value, where)
        except RecursionError as error:
            self._open.clear()
            raise ConfigError(f"{where} is nested too deeply for a cache key. {self._remedy}") from error

    def refuse(self, where: str, problem: str) -> ConfigError:
        """
        Make the error about a value.

        :param where: What it is.
        :param problem: What is wrong with it, as the end of a sentence.
        :return: The error, to be raised.
        """
        return ConfigError(f"{where} {problem}. {self._remedy}")

    def name_of(self, kind: type) -> Any:
        """
        Name a class, the same in all processes.

        :param kind: The class.
        :return: Its module, without what Airflow puts before the names of DAG files, and its name in it.
        """
        return f"{DAG_MODULE.sub('', kind.__module__)}.{kind.__qualname__}"

    def other(self, value: object, where: str) -> list[Any]:
        """
        Write a value of a kind that is not known here.

        :param value: The value.
        :param where: What it is, for messages.
        :raises ConfigError: always; a retry never helps.
        """
        raise self.refuse(where, f"is a {type(value).__qualname__}, which cannot be part of a cache key")

    def _write(self, value: Any, where: str) -> list[Any]:
        kind = type(value)
        if kind in _SCALARS:
            return [kind.__name__, _SCALARS[kind](value)]
        with self._inside(value, where):
            written = self._container(value, where) or self._plain_object(value, where)
            return self.other(value, where) if written is None else written

    def _container(self, value: Any, where: str) -> list[Any] | None:
        kind = type(value)
        if kind in (list, tuple):
            return ["list", *(self._write(each, f"{where}[{index}]") for index, each in enumerate(value))]
        if kind in (dict, OrderedDict):
            return self._mapping(value, where, ordered=kind is OrderedDict)
        if kind in (set, frozenset):
            return ["set", *sorted((self._write(each, f"{where}, a member") for each in value), key=text_of)]
        return None

    def _plain_object(self, value: Any, where: str) -> list[Any] | None:
        kind = type(value)
        if isinstance(value, PurePath):
            return ["path", value.as_posix()]
        if isinstance(value, enum.Enum):
            # A combination of flags may have no name.
            return ["enum", self.name_of(kind), str(value.name), self._write(value.value, f"{where}.value")]
        if isinstance(value, dt.datetime):  # pendulum's, pandas'
            return ["moment", self.name_of(kind), *_moment(value)]
        if isinstance(value, dt.tzinfo):
            return ["timezone", self.name_of(kind), str(value)]
        fields = _fields(value)
        if fields is None:
            return None
        return ["object", self.name_of(kind), self._mapping(fields, where, ordered=False, point=True)]

    def _mapping(self, value: Mapping[Any, Any], where: str, *, ordered: bool, point: bool = False) -> list[Any]:
        def pair(key: Any, each: Any) -> list[Any]:
            return [self._write(key, f"{where}, a key"), self._write(each, f"{where}.{key}" if point else f"{where}[{key!r}]")]

        pairs = [pair(key, each) for key, each in value.items()]
        in_order = ordered or (self._ordered and not point)
        return ["ordered" if in_order else "dict", *(pairs if in_order else sorted(pairs, key=text_of))]

    @contextmanager
    def _inside(self, value: object, where: str) -> Iterator[None]:
        if id(value) in self._open:
            raise self.refuse(where, "contains itself, so it has no end that a cache key could reach")
        self._open.add(id(value))
        try:
            yield
        finally:
            self._open.discard(id(value))


def _fields(value: Any) -> dict[str, Any] | None:
    """Take a pydantic model or a dataclass apart, with what was set beside its fields; None for anything else."""
    if isinstance(value, BaseModel):
        return value.__dict__ | (value.__pydantic_extra__ or {}) | {f"_{k}": v for k, v in _private(value).items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = {each.name: getattr(value, each.name) for each in dataclasses.fields(value) if hasattr(value, each.name)}
        return getattr(value, "__dict__", {}) | known
    return None


def _private(value: BaseModel) -> dict[str, Any]:
    return value.__pydantic_private__ or {}


def _moment(value: dt.datetime | dt.time) -> list[Any]:
    return [value.isoformat(), value.fold, str(value.tzinfo)]


_SCALARS: dict[type, Callable[[Any], Any]] = {
    type(None): str,
    bool: str,
    int: hex,  # str refuses long ones
    float: repr,
    complex: lambda value: [repr(value.real), repr(value.imag)],
    str: str,
    bytes: bytes.hex,
    bytearray: bytearray.hex,
    dt.datetime: _moment,
    dt.time: _moment,
    dt.date: dt.date.isoformat,
    dt.timedelta: lambda value: [value.days, value.seconds, value.microseconds],
    uuid.UUID: str,
    decimal.Decimal: str,
    fractions.Fraction: str,
    range: lambda value: [hex(each) for each in (value.start, value.stop, value.step)],
    slice: repr,
}
