"""The benchmarks run; what they measure on a machine that runs tests says nothing, so no figure is looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.figures import Comparison, take_turns

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_runs_and_writes_its_figures(name: str, mlflow_url: str, tmp_path: Path) -> None:
    results = tmp_path / "RESULTS.md"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", name, "--server", mlflow_url, "--results", str(results)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "PYTHONDONTWRITE"))}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    written = results.read_text()
    assert written.count("\n## ") == 2, "one benchmark, and the noise"
    assert str(ROOT) not in written


def test_ways_take_turns_and_the_warm_up_is_dropped() -> None:
    order: list[str] = []

    def measure(way: str) -> float:
        order.append(way)
        return float(len(order))

    assert take_turns(("a", "b"), measure, 2) == {"a": [4.0, 5.0], "b": [3.0, 6.0]}
    assert "".join(order) == "abbaab"


def test_what_both_ways_have_in_common_is_taken_off_before_they_are_divided() -> None:
    each = Comparison("x", "s", {"ours": [2.0, 3.0], "base": [3.0, 5.0], "empty": [1.0, 1.0]}, "ours", "base", 0.5, "empty")
    assert each.pairs == [0.5, 0.5]
    assert each.met
