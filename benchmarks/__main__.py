"""``python -m benchmarks``: run them, print the figures, write ``RESULTS.md``."""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import artifacts, caching, lineage, local_runs, page, parsing, pods, points, polling, report, steps, watching
from benchmarks.lab import Lab, make_skinny
from tests.servers import MlflowProcess

BENCHMARKS: dict[str, Any] = {
    "parsing": parsing,
    "steps": steps,
    "points": points,
    "artifacts": artifacts,
    "polling": polling,
    "watching": watching,
    "caching": caching,
    "local_runs": local_runs,
    "lineage": lineage,
    "page": page,
    "pods": pods,
}
RESULTS = Path(__file__).parent / "RESULTS.md"


def main() -> int:
    """
    Run the benchmarks that were asked for.

    :return: Exit status: 0 also when an aim is missed; the table says so.
    """
    asked = _options()
    console = Console(width=None if sys.stdout.isatty() else 200)
    with tempfile.TemporaryDirectory(prefix="airflow-ml-bench-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if asked.server is None:
            stack.enter_context(own := MlflowProcess(folder / "mlflow"))
        needed = any(getattr(BENCHMARKS[each], "NEEDS_SKINNY", True) for each in asked.only or BENCHMARKS)
        python = make_skinny(folder) if needed and not asked.quick else None
        store = None if asked.server else folder / "mlflow" / "artifacts"
        lab = Lab(folder, python or sys.executable, python is not None, asked.server or own.url, store, asked.quick)
        findings = []
        for each in asked.only or BENCHMARKS:
            if reason := getattr(BENCHMARKS[each], "lacks", lambda: None)():
                console.print(f"{each} is left out: {reason}.")
                continue
            console.print(f"{each} ...")
            findings.append(BENCHMARKS[each].measure(lab))
            report.show(console, findings[-1])
    if asked.results:
        report.write(asked.results, findings, _command())
        console.print(f"Written to {asked.results.name}.")
    return 0


def _command() -> str:
    """Say what a reader types to run the same."""
    where = f"TMPDIR={os.environ['TMPDIR']} " if os.environ.get("TMPDIR") else ""
    return f"{where}make bench" + (f' ARGS="{shlex.join(sys.argv[1:])}"' if sys.argv[1:] else "")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="small sizes, one round: shows that it runs, says nothing about time"
    )
    parser.add_argument("--only", action="append", choices=sorted(BENCHMARKS), help="this one; may be given more than once")
    parser.add_argument("--results", type=Path, help="file to write; by default RESULTS.md for a full run, else none")
    parser.add_argument("--server", metavar="URL", help="an MLflow server that runs already; by default one is started")
    asked = parser.parse_args()
    if asked.results is None and not asked.quick and not asked.only:
        asked.results = RESULTS
    return asked


if __name__ == "__main__":
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.exit(main())
