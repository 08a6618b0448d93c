"""Showing the figures: on the terminal while they come, in ``RESULTS.md`` at the end."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Comparison, Finding, quartiles

PACKAGES = ("apache-airflow-core", "apache-airflow-task-sdk", "mlflow-skinny", "httpx", "pydantic")
COLUMNS = ("what", "ours", "beside it", "result", "aim")
HEADING = """\
# What the package costs

Made by `make bench`; do not edit. Each row compares two ways that took turns in one run: the median of each (smallest to
largest), and the median of what each round gave (its middle half in brackets), so a machine that is slow for a while slows both
alike. Bold: the aim is missed. Read a ratio together with its middle half: one that spans the aim says neither yes nor no.
Absolute times are those of the machine below a table, and mean nothing on another. Each table says when it was measured, since
one can be measured without the others (`make bench ARGS="--only pods --results benchmarks/RESULTS.md"`).
"""


def show(console: Console, finding: Finding) -> None:
    """
    Print the figures of one benchmark.

    :param console: Where to.
    :param finding: The figures.
    """
    table = Table(title=finding.title, title_justify="left", title_style="bold")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "what" else "right")
    for each in finding.comparisons:
        style = "yellow" if each.met is False else None
        table.add_row(*_cells(each), style=style)
    console.print(table)
    for note in finding.notes:
        console.print(f"  {note}")


def write(file: Path, findings: Sequence[Finding], command: str) -> None:
    """
    Write the results page: what was measured now takes the place of what stood there under the same title.

    :param file: Where to.
    :param findings: The benchmarks of the run.
    :param command: What a reader types to have the same.
    """
    sections = _sections(file.read_text()) if file.is_file() else {}
    sections |= {each.title: _section(each, command) for each in findings}
    file.write_text("\n".join([HEADING, *(f"## {title}\n\n{text}" for title, text in sections.items())]))


def _sections(page: str) -> dict[str, str]:
    """Take a page apart: text per title."""
    parts = (each.partition("\n\n") for each in page.split("\n## ")[1:])
    return {title: text.rstrip("\n") + "\n" for title, _, text in parts}


def _section(finding: Finding, command: str) -> str:
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    notes = "".join(f"* {note}\n" for note in finding.notes)
    made = f"Measured by `{command}` on {date}. {_noise(finding)} {_machine()}.\n"
    return "\n".join(filter(None, [f"{finding.how}\n", _markdown(finding.comparisons), notes, made]))


def _markdown(comparisons: Sequence[Comparison]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---:|---:|---:|---:|"]
    for each in comparisons:
        what, ours, base, result, aim = _cells(each)
        result = f"**{result}**" if each.met is False else result
        lines.append(f"| {what} | {ours} | {base} | {result} | {aim} |")
    return "\n".join(lines) + "\n"


def _cells(each: Comparison) -> tuple[str, str, str, str, str]:
    zero = f"; empty: {_spread(each.samples[each.empty], each.unit)}" if each.empty else ""
    aim = "-" if each.aim is None else f"{each.aim:g}x"
    return (
        f"{each.title}{zero}",
        f"{each.ours}: {_spread(each.samples[each.ours], each.unit)}",
        f"{each.base}: {_spread(each.samples[each.base], each.unit)}",
        _result(each),
        aim,
    )


def _result(each: Comparison) -> str:
    if not each.pairs or math.isnan(each.result):
        return "too noisy"
    low, high = quartiles(each.pairs)
    if each.added:
        return f"{each.result:+.3g} {each.unit} ({low:+.3g} to {high:+.3g})"
    return f"{each.result:.3g}x ({low:.3g} to {high:.3g})"


def _spread(values: Sequence[float], unit: str) -> str:
    return f"{_number(median(values))} {unit} ({_number(min(values))} to {_number(max(values))})"


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"  # noqa: PLR2004  (three digits)


def _machine() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / (1 << 30)
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    commit = f", at commit {asked.stdout.strip()} or later" if asked.returncode == 0 else ""
    return (
        f"Python {platform.python_version()}, {packages}{commit}; {platform.system()} on {platform.machine()}, {os.cpu_count()} "
        f"processors, {memory:.0f} GiB"
    )


def _noise(finding: Finding) -> str:
    """Say how far samples of one and the same thing lay apart."""
    spreads = []
    for each in finding.comparisons:
        if "memory" not in each.title:
            low, high = quartiles(each.samples[each.base])
            spreads.append((high - low) / max(low, 1e-9))
    load = os.getloadavg()[0]
    typical = sorted(spreads)[len(spreads) // 2] if spreads else 0.0
    return (
        f"The machine was not idle (load {load:.1f} at the end): the middle half of the samples of one and the same thing spans "
        f"{typical:.0%} in a typical row, {max(spreads, default=0.0):.0%} in the worst."
    )
