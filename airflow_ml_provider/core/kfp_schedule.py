"""
When a recurring run starts runs, as its server reads it; pure.

The server takes a cron of five or of six fields, and in both the **first one is the second**: ``0 3 * * *``, which is "every day
at three" everywhere else, is "in the third minute of every hour" there. So five fields are read here as Airflow and Unix read
them, and always six are sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_ml_provider.exceptions import ConfigError

PRESETS = {
    "@hourly": "0 0 * * * *",
    "@daily": "0 0 0 * * *",
    "@midnight": "0 0 0 * * *",
    "@weekly": "0 0 0 * * 0",
    "@monthly": "0 0 0 1 * *",
    "@quarterly": "0 0 0 1 */3 *",
    "@yearly": "0 0 0 1 1 *",
    "@annually": "0 0 0 1 1 *",
}
"""Airflow's own words; the server knows most of them."""
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
FIELDS: tuple[tuple[str, int, int, tuple[str, ...]], ...] = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, MONTHS),
    ("day of the week", 0, 6, WEEKDAYS),
)
"""Name, smallest and largest value, and words for them from the smallest on."""
DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
"""Most days that a month can have."""
ALL = frozenset({"*", "?"})


def full_cron(text: str) -> str:
    """
    Write a cron as the server reads it.

    :param text: Five fields, minute first; six, second first; or one of Airflow's presets, ``@daily``. Days of the week are 0
        to 6, Sunday first; there is no ``L``, ``W`` or ``#``.
    :return: Six fields.
    :raises ConfigError: it is none that the server takes, or a day that never comes, at which the server would start runs all the
        time; a retry never helps.
    """
    fields = PRESETS.get(text.strip(), text).split()
    if len(fields) not in {5, 6}:
        raise ConfigError(
            f"schedule={text!r} has {len(fields)} fields. Give a cron of five (minute first), of six (second first), one of "
            f"{', '.join(PRESETS)}, or a timedelta."
        )
    fields = ["0", *fields] if len(fields) == len(FIELDS) - 1 else fields
    *_, days, months, weekdays = (_values(text, field, *kind) for field, kind in zip(fields, FIELDS, strict=True))
    if weekdays == set(range(7)) and not any(day <= DAYS[month - 1] for month in months for day in days):
        raise ConfigError(f"schedule={text!r} names a day that never comes. Mend its day of the month or its month.")
    return " ".join(fields)


def interval_s(interval: timedelta) -> int:
    """
    Read an interval.

    :param interval: Whole seconds, at least 1.
    :return: Seconds.
    :raises ConfigError: it is not; a retry never helps.
    """
    seconds = interval.total_seconds()
    if seconds < 1 or seconds != int(seconds):
        raise ConfigError(f"schedule={interval} is no interval that the server takes. Give whole seconds, at least 1.")
    return int(seconds)


def moment(name: str, value: datetime | str | None) -> datetime | None:
    """
    Read a moment.

    :param name: Of the argument, for the message.
    :param value: A datetime or ISO text, with a time zone; None or empty for none.
    :return: Whole seconds in UTC, which is what the server keeps; None for none.
    :raises ConfigError: it is no such text, or has no time zone; a retry never helps.
    """
    if value is None or value == "":
        return None
    try:
        found = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}={value!r} is no time. Give a datetime with a time zone, or ISO text of one.") from error
    if found.tzinfo is None:
        raise ConfigError(f"{name}={value!r} has no time zone. Give one, for example {found.isoformat()}+00:00.")
    return found.astimezone(UTC).replace(microsecond=0)


def trigger_of(schedule: str | timedelta, start: datetime | str | None, end: datetime | str | None) -> dict[str, Any]:
    """
    Write a schedule as the ``trigger`` of a recurring run.

    :param schedule: A cron, or an interval.
    :param start: No run is planned before it; None for no limit.
    :param end: No run is planned after it; None for no limit.
    :return: JSON.
    :raises ConfigError: the schedule is bad, or ends before it starts, which the server would take without a word; a retry never
        helps.
    """
    first, last = moment("start", start), moment("end", end)
    if first and last and last <= first:
        raise ConfigError(f"end={last.isoformat()} is not after start={first.isoformat()}: no run would ever be started.")
    limits = {name: f"{each:%Y-%m-%dT%H:%M:%SZ}" for name, each in (("start_time", first), ("end_time", last)) if each}
    if isinstance(schedule, timedelta):
        return {"periodic_schedule": {"interval_second": str(interval_s(schedule)), **limits}}
    if not isinstance(schedule, str):
        raise ConfigError(f"schedule={schedule!r} is neither a cron nor a timedelta.")
    return {"cron_schedule": {"cron": full_cron(schedule), **limits}}


def plain_trigger(trigger: Mapping[str, Any] | None) -> tuple[str, str, datetime | None, datetime | None]:
    """
    Read a ``trigger``, so that two can be compared.

    :param trigger: JSON, ours or the server's; None or empty for none.
    :return: Its kind, cron or seconds, start and end.
    """
    for kind, field in (("cron_schedule", "cron"), ("periodic_schedule", "interval_second")):
        if found := (trigger or {}).get(kind):
            start, end = (moment(name, found.get(name)) for name in ("start_time", "end_time"))
            return kind, " ".join(str(found.get(field, "")).split()), start, end
    return "", "", None, None


def _values(text: str, field: str, name: str, low: int, high: int, words: tuple[str, ...]) -> set[int]:
    """Read one field: numbers, words, ranges and steps, separated by commas."""
    found: set[int] = set()
    for part in field.split(","):
        span, slash, step = part.partition("/")
        first, hyphen, last = span.partition("-")
        try:
            start = low if first in ALL and not hyphen else _number(first, low, words)
            end = high if first in ALL or (slash and not hyphen) else _number(last, low, words) if hyphen else start
            stride = int(step) if slash else 1
        except ValueError:
            start, end, stride = 1, 0, 0
        if stride < 1 or not low <= start <= end <= high:
            raise ConfigError(
                f"schedule={text!r}: {part!r} is no {name}. It goes from {low} to {high}, as a number, a range a-b, a step */n "
                f"or a-b/n, or * for all{f'; or {words[0]} to {words[-1]}' if words else ''}."
            )
        found |= set(range(start, end + 1, stride))
    return found


def _number(text: str, low: int, words: tuple[str, ...]) -> int:
    if text.lower() in words:
        return words.index(text.lower()) + low
    if not (text.isascii() and text.isdigit()):
        raise ValueError(text)
    return int(text)
