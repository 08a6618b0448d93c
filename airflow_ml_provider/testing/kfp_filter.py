"""Lists: what a filter lets through, in which order, and in which pages."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any
from urllib.parse import unquote_plus

from airflow_ml_provider.testing.kfp_answers import KfpError, internal, invalid
from airflow_ml_provider.testing.kfp_columns import EXPERIMENTS, PIPELINES, RECURRING, RUNS, VERSIONS, Column, Kind
from airflow_ml_provider.testing.kfp_proto import Field, read_message, seconds_of
from airflow_ml_provider.testing.kfp_values import PLANE

OPERATIONS = (
    "EQUALS",
    "NOT_EQUALS",
    "GREATER_THAN",
    "GREATER_THAN_EQUALS",
    "LESS_THAN",
    "LESS_THAN_EQUALS",
    "IN",
    "IS_SUBSTRING",
)
PREFIX = "Failed to create list options: "
PAGE = 20
PAGE_LIMIT = 200
BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2}).{0,2}", re.DOTALL)

_LONGS = {"values": Field("list")}
_PREDICATE = {
    "key": Field(),
    "operation": Field("enum", values=frozenset({*OPERATIONS, "OPERATION_UNSPECIFIED"})),
    "int_value": Field("int32", oneof="Predicate.value"),
    "long_value": Field("int64", oneof="Predicate.value"),
    "string_value": Field(oneof="Predicate.value"),
    "timestamp_value": Field("time", oneof="Predicate.value"),
    "int_values": Field("map", oneof="Predicate.value"),
    "long_values": Field("map", oneof="Predicate.value"),
    "string_values": Field("message", message=_LONGS, oneof="Predicate.value"),
}
_FILTER = {"predicates": Field("list", message=_PREDICATE)}


@dataclass(frozen=True)
class Predicate:
    """One condition: a column, an operation and a value or a list of them."""

    column: Column
    operation: str
    value: Any

    def holds(self, item: Any) -> bool:
        """
        Say whether it lets something through.

        :param item: A value of the fake.
        :return: Whether it fits, compared as the database does.
        """
        held = getattr(item, self.column.field)
        if self.operation == "IN":
            is_text = isinstance(held, str)
            same, other = self._listed[is_text], self._listed[not is_text]
            return collated(held) in same or any(compare(held, each) == 0 for each in other)
        if self.operation == "IS_SUBSTRING":
            return _like(str(self.value)).search(str(held)) is not None
        order = compare(held, self.value)
        return {
            "EQUALS": order == 0,
            "NOT_EQUALS": order != 0,
            "GREATER_THAN": order > 0,
            "GREATER_THAN_EQUALS": order >= 0,
            "LESS_THAN": order < 0,
            "LESS_THAN_EQUALS": order <= 0,
        }[self.operation]

    @cached_property
    def _listed(self) -> dict[bool, frozenset[Any]]:
        """The values of ``IN``, texts (True) and numbers apart: thousands of them are held against thousands of items."""
        texts = {collated(each) for each in self.value if isinstance(each, str)}
        return {True: frozenset(texts), False: frozenset(each for each in self.value if not isinstance(each, str))}


@dataclass(frozen=True)
class Query:
    """
    What a list is asked for.

    :param kind: What is listed.
    :param predicates: Conditions, joined by AND.
    :param raw: The filter as it goes into a page token, None for none.
    :param sort: Column of the order.
    :param descending: Whether the order is turned round.
    :param size: Items on a page, at most 200.
    :param start: Sort value and id of the first item of this page, None for the first page.
    """

    kind: Kind
    predicates: tuple[Predicate, ...]
    raw: Any
    sort: Column
    descending: bool
    size: int
    start: tuple[Any, str] | None

    def order(self, item: Any) -> tuple[Any, str]:
        """
        Give the place of something in the list.

        :param item: A value of the fake.
        :return: What it is sorted by.
        """
        return collated(getattr(item, self.sort.field)), getattr(item, self.kind.key)

    def page(self, items: Iterable[Any]) -> tuple[list[Any], int, str]:
        """
        Cut a page.

        :param items: Everything that could fit.
        :return: Items of the page, number of all that fit, token of the next page or an empty text.
        """
        found = [each for each in items if all(one.holds(each) for one in self.predicates)]
        found.sort(key=self.order, reverse=self.descending)
        total = len(found)
        if self.start is not None:
            start = (collated(self.start[0]), self.start[1])
            found = [each for each in found if (self.order(each) <= start if self.descending else self.order(each) >= start)]
        rest = found[self.size : self.size + 1]
        return found[: self.size], total, self.token(rest[0]) if rest else ""

    def token(self, item: Any) -> str:
        """
        Make the token of a page that begins with an item; it carries order and filter.

        :param item: First item of that page.
        :return: Base64 of JSON, as the server's are.
        """
        data = {
            "SortByFieldName": self.sort.sql,
            "SortBySQLColumn": self.sort.sql,
            "SortByFieldValue": getattr(item, self.sort.field),
            "SortByFieldPrefix": "",
            "KeyFieldName": "UUID",
            "KeyFieldValue": getattr(item, self.kind.key),
            "KeyFieldPrefix": "",
            "IsDesc": self.descending,
            "ModelName": "",
            "Filter": self.raw,
        }
        return base64.b64encode(json.dumps(data).encode()).decode()


def collated(value: Any) -> Any:
    """
    Bring a text to the form in which the database compares it: no letter case, no blanks at the end.

    :param value: Text or number.
    :return: What can be compared.
    """
    return value.rstrip(" ").lower() if isinstance(value, str) else value


def compare(held: Any, wanted: Any) -> int:
    """
    Compare as the database does, which takes a text for the number that it begins with.

    :param held: Value of the column.
    :param wanted: Value of the filter.
    :return: Below 0, 0 or above 0.
    """
    left, right = collated(held), collated(wanted)
    if isinstance(left, str) != isinstance(right, str):
        left, right = _number(left), _number(right)
    return int(left > right) - int(left < right)


def _number(value: Any) -> float:
    match = re.match(r"\s*-?\d+(\.\d+)?", value) if isinstance(value, str) else None
    return float(match.group() if match else 0) if isinstance(value, str) else float(value)


@lru_cache(maxsize=64)
def _like(text: str) -> re.Pattern[str]:
    parts = (".*" if each == "%" else "." if each == "_" else re.escape(each) for each in text)
    return re.compile("".join(parts), re.IGNORECASE | re.DOTALL)


def read_query(kind: Kind, query: Mapping[str, str]) -> Query:
    """
    Read what a list is asked for.

    :param kind: What is listed.
    :param query: Query parameters, decoded once; the filter is decoded a second time here, as the server does.
    :return: The query.
    :raises KfpError: 400 for a filter, an order, a size or a token that is refused; 500 for a filter with an emoji.
    """
    size = _size(query.get("page_size", "0"))
    token = query.get("page_token") or ""
    predicates, raw = _predicates(kind, query.get("filter") or "")
    if token:
        return _continued(kind, token, size, query, raw)
    sort, descending = _sort(kind, query.get("sort_by") or "")
    return Query(kind, predicates, raw, sort, descending, size, None)


def _size(text: str) -> int:
    if not re.fullmatch(r"[-+]?\d+", text or "0"):
        raise KfpError(3, f'parsing field "page_size": strconv.ParseInt: parsing "{text}": invalid syntax')
    size = int(text or 0)
    if size < 0:
        raise invalid(PREFIX, f"The page size should be greater than 0. Got {size}")
    return min(size or PAGE, PAGE_LIMIT)


def _sort(kind: Kind, text: str) -> tuple[Column, bool]:
    words = text.split()
    if not words:
        return kind.columns["created_at"], False
    if len(words) > 2 or (len(words) == 2 and words[1].lower() not in {"asc", "desc"}):  # noqa: PLR2004
        supported = 'Supported format: "field_name", "field_name desc", or "field_name asc"'
        raise invalid(PREFIX, f'Received invalid sort by format "{text}". {supported}')
    descending = len(words) > 1 and words[1].lower() == "desc"
    if words[0].startswith("metric:") and kind is RUNS:
        raise _unsortable(kind, words[0].removeprefix("metric:"))
    column = kind.columns.get(words[0])
    if column is None:
        raise invalid(PREFIX, f'Invalid sorting field: "{words[0]}" on listable type {kind.name}')
    if not column.sortable:
        raise _unsortable(kind, column.sql)
    return column, descending


def _unsortable(kind: Kind, name: str) -> KfpError:
    plural = f"Failed to list {kind.name.lower()}s: "
    return invalid(plural * 2, f'cannot sort by field "{name}" on type "{kind.name}"')


def _predicates(kind: Kind, text: str) -> tuple[tuple[Predicate, ...], Any]:
    if not text:
        return (), None
    return _parsed(kind.name, _decoded(text), text)


def _decoded(text: str) -> str:
    bad = BAD_ESCAPE.search(text)
    if bad:
        raise _unreadable(text, f"invalid URL escape {json.dumps(bad.group(), ensure_ascii=False)}")
    return unquote_plus(text)


def _unreadable(text: str, why: str) -> KfpError:
    return invalid(PREFIX, f"failed to parse valid filter from {json.dumps(text, ensure_ascii=False)}: {why}")


@lru_cache(maxsize=64)
def _parsed(kind_name: str, text: str, sent: str) -> tuple[tuple[Predicate, ...], Any]:
    kind = KINDS[kind_name]
    try:
        found = read_message(text, _FILTER)
    except KfpError as refused:
        raise _unreadable(sent, refused.message) from None
    predicates = tuple(_predicate(kind, each) for each in found.get("predicates", []))
    if any(ord(sign) > PLANE for each in predicates for sign in str(each.value)):
        doing = f"Failed to list {kind.name.lower()}s: "
        mix = "Illegal mix of collations (utf8mb4_general_ci,IMPLICIT) and (utf8mb3_general_ci,COERCIBLE) for operation '='"
        error = f"Error 1267 (HY000): {mix}"
        raise internal(f"{doing}{doing}InternalServerError: {doing}{error}: {error}")
    return predicates, text if predicates else None


def _predicate(kind: Kind, data: Mapping[str, Any]) -> Predicate:
    operation = data.get("operation", "OPERATION_UNSPECIFIED")
    if operation not in OPERATIONS:
        raise _unknown("Operation", "go_client.Predicate_Operation")
    column = kind.columns.get(data.get("key", ""))
    if column is None:
        raise invalid(PREFIX, f'no support for filtering on unrecognized field "{data.get("key", "")}"')
    for name, read in READERS.items():
        if name in data:
            return Predicate(column, operation, read(data[name]))
    raise _unknown("Value", "<nil>")


def _unknown(part: str, what: str) -> KfpError:
    short = f"Error using Filter.Predicate.{part} with {what}"
    return KfpError(3, f"{PREFIX}UnknownApiVersionError: {short}", short)


def _list(value: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(value.get("values") or ())


def _integers(value: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(each) for each in value.get("values") or ())


READERS: dict[str, Callable[[Any], Any]] = {
    "int_value": int,
    "long_value": int,
    "string_value": str,
    "timestamp_value": seconds_of,
    "int_values": _integers,
    "long_values": _integers,
    "string_values": _list,
}
KINDS = {each.name: each for each in (RUNS, EXPERIMENTS, PIPELINES, VERSIONS, RECURRING)}


def _continued(kind: Kind, token: str, size: int, query: Mapping[str, str], raw: Any) -> Query:
    data = _token(token)
    column = next((each for each in kind.columns.values() if each.sql == data.get("SortByFieldName")), None)
    if column is None:
        raise KfpError(3, f"{PREFIX}InvalidInputError: Invalid page token", "Invalid page token")
    descending = bool(data.get("IsDesc"))
    same_sort = not query.get("sort_by") or _sort(kind, query["sort_by"]) == (column, descending)
    if not same_sort or (query.get("filter") and raw != data.get("Filter")):
        criteria = "page token does not match the supplied sort by and/or filtering criteria"
        raise invalid(
            PREFIX, f"{criteria}. Either specify the same criteria or leave the latter empty if page token is specified"
        )
    held = data.get("Filter")
    predicates = _parsed(kind.name, held, held)[0] if held else ()
    start = data.get("SortByFieldValue"), str(data.get("KeyFieldValue"))
    return Query(kind, predicates, held, column, descending, size, start)


def _token(token: str) -> dict[str, Any]:
    try:
        text = base64.b64decode(token, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        bad = next((at for at, sign in enumerate(token) if not re.match(r"[A-Za-z0-9+/=]", sign)), 0)
        why = f"illegal base64 data at input byte {bad}"
        raise KfpError(3, f"{PREFIX}InvalidInputError: Invalid page token: {why}", "Invalid page token") from None
    try:
        data = json.loads(text)
    except ValueError:
        why = f"invalid character '{text[:1]}' looking for beginning of value"
        raise KfpError(3, f"{PREFIX}InvalidInputError: Invalid page token: {why}", "Invalid page token") from None
    return data if isinstance(data, dict) else {}
