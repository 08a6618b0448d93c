"""``airflow-ml diff``: what differs between two models, over the whole way up to their raw data."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterable

from rich.text import Text

from airflow_ml_provider.cli.connection import open_api
from airflow_ml_provider.cli.facts import SHA_LENGTH, VALUE_LENGTH, console, count, data_facts, plain
from airflow_ml_provider.lineage.difference import Change, Difference, What, diff

DIFFERENT = 3
"""Exit status with ``--exit-code``; 1 is an error, as of every command."""
TITLES: dict[What, str] = {
    "data": "Data",
    "parameter": "Parameters",
    "code": "Code",
    "image": "Images",
    "metric": "Metrics",
    "step": "Steps",
}
NONE = "none"
LINES_SHOWN = 20
"""Lines of one paragraph."""


def run(args: Namespace) -> int:
    """
    Print what differs.

    :param args: ``before``, ``after``, ``json``, ``exit_code`` and ``conn_id``.
    :return: 0; with ``exit_code`` 3 when something differs.
    :raises ConfigError: a URI or the connection is wrong; a retry never helps.
    :raises RemoteNotFoundError: what a URI names does not exist.
    """
    with open_api(args.conn_id) as api:
        found = diff(api, args.before, args.after)
    if args.json:
        print(found.model_dump_json(indent=2))
    else:
        console().print(in_words(found))
    return DIFFERENT if args.exit_code and found.changes else 0


def in_words(found: Difference) -> Text:
    """
    Describe a difference.

    :param found: The difference.
    :return: A paragraph per kind.
    """
    text = Text.assemble((plain(f"{found.before} -> {found.after}"), "bold"))
    if not found.changes:
        text.append("\n\nNothing on record differs.")
    for what, title in TITLES.items():
        changes = [each for each in found.changes if each.what == what]
        if changes:
            text.append(f"\n\n{title}", style="bold yellow")
            for line in _lines(found, what, changes):
                text.append(f"\n  {line}")
    if found.gaps:
        text.append("\n\nNot compared", style="bold red")
        for gap in found.gaps:
            text.append(f"\n  {plain(gap.id.partition(':')[2])}: {plain(gap.reason)}")
    return text


def _lines(found: Difference, what: What, changes: list[Change]) -> list[str]:
    """Write once what is the same change in many steps; of very many, the first, nearest to the raw data, and the last."""
    if what == "step":
        sides = [found.after if each.before is None else found.before for each in changes]
        return [f"{plain(each.where)}: only on the way to {plain(side)}" for each, side in zip(changes, sides, strict=True)]
    write: Callable[[str | float | None], str] = (lambda value: _data(found, value)) if what == "data" else _value
    steps: dict[tuple[str, str], list[Change]] = {}
    for each in changes:
        steps.setdefault((plain(each.name), f"{write(each.before)} -> {write(each.after)}{_change(each)}"), []).append(each)
    lines = [
        f"{name}: {words}{_in_steps(some)}" if name else f"{words}{_in_steps(some)}" for (name, words), some in steps.items()
    ]
    left = len(lines) - LINES_SHOWN
    half = LINES_SHOWN // 2
    return lines if left <= 0 else [*lines[:half], f"... {left} more (--json)", *lines[-half:]]


def _in_steps(changes: Iterable[Change]) -> str:
    """Name the steps; the instances of a mapped task together."""
    names = dict.fromkeys(plain(each.where.partition("[")[0]) for each in changes if each.where)
    return f"  (in {', '.join(names)})" if names else ""


def _data(found: Difference, key: str | float | None) -> str:
    data = found.datasets.get(str(key))
    if data is None:
        return NONE if key is None else plain(str(key))
    known = ", ".join(plain(each) for each in data_facts(data) if each)
    outside = "" if data.run_id else plain(data.uri or "")
    return ", ".join(each for each in (known, outside) if each) or plain(data.id)


def _value(value: str | float | None) -> str:
    if value is None:
        return NONE
    if isinstance(value, float | int):
        return count(value) if abs(value) >= 1 else f"{value:.6g}"
    return plain(value, VALUE_LENGTH) if len(value) != 40 else value[:SHA_LENGTH]  # noqa: PLR2004  (a commit)


def _change(each: Change) -> str:
    if each.what == "metric" and isinstance(each.before, float) and isinstance(each.after, float):
        return f" ({each.after - each.before:+.4g})"
    return ""
