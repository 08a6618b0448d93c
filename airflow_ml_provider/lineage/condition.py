"""Conditions on data, as ``rows > 10000 and name = 'flights'``: read strictly, and never handed on to MLflow."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.lineage import DatasetNode
from airflow_ml_provider.tracking.lineage_tags import LEAST, TRAINED, TRAINED_ON

TEXTS = ("name", "digest", "uri")
COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    "=": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
WHAT_CAN_BE_ASKED = (
    "Write <what> <comparison> <value>, several with and between: rows > 10000 and name = 'table'. What: name, digest, uri (with "
    "= or !=; of a digest its beginning), size (bytes), or any number in the metadata, as rows."
)
_ONE = re.compile(
    r"\s*(?P<what>[A-Za-z_][\w.-]*)\s*(?P<comparison>>=|<=|!=|==|=|>|<)\s*"
    r"(?:'(?P<single>[^']*)'|\"(?P<double>[^\"]*)\"|(?P<bare>[^\s'\"<>=!]+))\s*(?:(?P<more>and)\s|$)",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class Comparison:
    """
    One comparison.

    :param what: What is compared.
    :param comparison: How, one of :data:`COMPARISONS`.
    :param value: With what: a text for :data:`TEXTS`, else a number.
    """

    what: str
    comparison: str
    value: str | float

    def holds_for(self, data: DatasetNode) -> bool:
        """
        Say whether it is true of some data.

        :param data: The data.
        :return: False also where it is not on record.
        """
        compare = COMPARISONS[self.comparison]
        if self.what == "digest":
            same = bool(data.sha256 or data.digest) and (data.sha256 or data.digest).startswith(str(self.value).lower())
            return same == (compare is operator.eq)
        found = getattr(data, self.what) if self.what in {*TEXTS, "size"} else data.numbers.get(self.what)
        return found is not None and compare(found, self.value)


@dataclass(frozen=True)
class Condition:
    """
    Comparisons that all have to be true of the same data.

    :param comparisons: One or more.
    """

    comparisons: tuple[Comparison, ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """
        Read a condition.

        :param text: As a user writes it.
        :return: The condition.
        :raises ConfigError: it cannot be read; says what can be asked; a retry never helps.
        """
        found: list[Comparison] = []
        place = 0
        while place < len(text) or not found:
            one = _ONE.match(text, place)
            if one is None:
                raise ConfigError(f"{text[place:].strip()!r} is no condition on data. {WHAT_CAN_BE_ASKED}")
            found.append(_comparison(one))
            place = one.end()
            if one["more"] and place >= len(text):
                raise ConfigError(f"{text!r} ends in 'and'. {WHAT_CAN_BE_ASKED}")
        return cls(tuple(found))

    def holds_for(self, data: DatasetNode) -> bool:
        """
        Say whether all of it is true of some data.

        :param data: The data.
        :return: False also where something is not on record.
        """
        return all(each.holds_for(data) for each in self.comparisons)

    def searches(self) -> list[str]:
        """
        Say where to look, in MLflow's search language: each model of which it is true is found by one of these searches.

        :return: One search, or two where the largest and the smallest of a model's data both may count.
        """
        for each in self.comparisons:
            if isinstance(each.value, float) and each.what in self.numbers:
                name = f"metrics.`{TRAINED_ON}{each.what}"
                value = format(Decimal(each.value), "f")
                if each.comparison in {">", ">="}:
                    return [f"{name}` {each.comparison} {value}"]
                if each.comparison in {"<", "<="}:
                    return [f"{name}` {each.comparison} {value}", f"{name}{LEAST}` {each.comparison} {value}"]
                if each.comparison in {"=", "=="}:
                    return [f"{name}` = {value}", f"{name}` > {value} AND {name}{LEAST}` <= {value}"]
        return [f"tags.`{TRAINED}` != ''"]

    @property
    def numbers(self) -> set[str]:
        """The numbers in metadata that it names."""
        return {each.what for each in self.comparisons} - {*TEXTS, "size"}


def _comparison(one: re.Match[str]) -> Comparison:
    what, comparison = one["what"], one["comparison"]
    text = next(each for each in (one["single"], one["double"], one["bare"]) if each is not None)
    if what in TEXTS:
        if COMPARISONS[comparison] not in {operator.eq, operator.ne}:
            raise ConfigError(
                f"{what} {comparison} {text!r}: {what} is a text, and can be compared by = and != only. {WHAT_CAN_BE_ASKED}"
            )
        if what == "digest" and not re.fullmatch("[0-9a-fA-F]{1,64}", text):
            raise ConfigError(f"digest {comparison} {text!r}: that is not the beginning of a sha256. {WHAT_CAN_BE_ASKED}")
        return Comparison(what, comparison, text)
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(
            f"{what} {comparison} {text!r}: {what} is compared with a number, and that is none. {WHAT_CAN_BE_ASKED}"
        ) from None
    if not math.isfinite(value) or one["bare"] is None:
        raise ConfigError(
            f"{what} {comparison} {text!r}: {what} is compared with a number, and that is none. {WHAT_CAN_BE_ASKED}"
        )
    return Comparison(what, comparison, value)
