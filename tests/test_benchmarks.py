"""The benchmarks run; what they measure on a machine that runs tests says nothing, so no figure is looked at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.__main__ import BENCHMARKS
from benchmarks.figures import Comparison, Finding, take_turns
from benchmarks.wire import asked_for

ROOT = Path(__file__).parent.parent
POD = "/api/v1/namespaces/team/pods/one"


def measured(name: str, mlflow_url: str, results: Path, **settings: str) -> tuple[str, str]:
    """What is on the terminal, and what is written."""
    command = [sys.executable, "-m", "benchmarks", "--quick", "--only", name, "--server", mlflow_url, "--results", str(results)]
    left_out = ("AIRFLOW", "PYTHONDONTWRITE", "KUBECONFIG")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(left_out)} | settings
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-4000:]
    return ended.stdout, results.read_text()


QUICK = {"points"}
"""What takes seconds; .ci/run full runs the others too."""


@pytest.mark.parametrize(
    "name", [each if each in QUICK else pytest.param(each, marks=pytest.mark.full) for each in BENCHMARKS if each != "pods"]
)
def test_a_benchmark_runs_and_writes_its_figures(name: str, mlflow_url: str, tmp_path: Path) -> None:
    _, written = measured(name, mlflow_url, tmp_path / "RESULTS.md")
    assert written.count("\n## ") == 1
    assert str(ROOT) not in written


@pytest.mark.cluster
def test_the_benchmark_of_pods_runs_where_there_is_a_kubernetes(tmp_path: Path) -> None:
    _, written = measured("pods", "http://127.0.0.1:1", tmp_path / "RESULTS.md", KUBECONFIG=os.environ["KUBECONFIG"])
    assert written.count("\n## ") == 1
    assert written.count("create pod 1,") == 4, "each way has made one pod for each task, and the proxy has seen it"


def test_a_benchmark_that_needs_a_kubernetes_is_left_out_without_one_and_that_is_said(tmp_path: Path) -> None:
    printed, written = measured("pods", "http://127.0.0.1:1", tmp_path / "RESULTS.md")
    assert "pods is left out: it needs a Kubernetes: set KUBECONFIG." in printed
    assert written.count("\n## ") == 0


def test_a_benchmark_takes_the_place_of_its_last_figures_and_of_no_others(tmp_path: Path) -> None:
    page = tmp_path / "RESULTS.md"

    def write(title: str, how: str) -> str:
        compared = [Comparison(title="row", ours="a", base="b", samples={"a": [1.0], "b": [2.0]}, unit="s")]
        report.write(page, [Finding(title, how, compared)], "make bench")
        return page.read_text()

    write("One", "First.\n\nOf two paragraphs.")
    before = write("Two", "Second.")
    after = write("One", "New.")
    assert "First." not in after
    assert after.index("\n## One\n\nNew.\n\n|") < after.index("\n## Two\n")
    assert after.partition("\n## Two\n")[2] == before.partition("\n## Two\n")[2]


@pytest.mark.parametrize(
    ("method", "url", "words"),
    [
        ("POST", "/api/v1/namespaces/team/pods", "create pod"),
        ("GET", "/api/v1/namespaces/team/pods?labelSelector=a%3Db&limit=250", "list pods"),
        ("GET", "/api/v1/namespaces/team/pods?watch=true", "watch pods"),
        ("GET", "/api/v1/namespaces/team/events?fieldSelector=x", "list events"),
        ("GET", POD, "read pod"),
        ("GET", f"{POD}/log?container=base&follow=True", "follow log"),
        ("GET", f"{POD}/log?container=base&follow=false", "read log"),
        ("PATCH", POD, "patch pod"),
        ("DELETE", POD, "delete pod"),
        ("GET", "/version", "GET /version"),
    ],
)
def test_a_request_to_kubernetes_is_named_by_what_it_asks_for(method: str, url: str, words: str) -> None:
    assert asked_for(method, url) == words


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
