"""mypy itself, strict, over small sources: what it says of them with the plugin, and without."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SAID = re.compile(r"^(?P<file>[\w./]+):(?P<line>\d+): error: (?P<text>.*?)(?:  \[[\w-]+\])?$")
KINDS = ("with", "without")
Errors = dict[str, dict[int, list[str]]]
"""Messages per file and line."""
UNREAD = (
    *("airflow.api_fastapi", "airflow.models", "airflow.providers", "anyio", "cryptography", "databricks", "google", "httpx"),
    *("libcst", "markdown_it", "mlflow", "numpy", "opentelemetry", "pandas", "rich", "sqlalchemy"),
)
"""Packages whose source mypy need not read for the types of a step: it takes three times as long as all the rest."""
SKIP = "follow_imports = skip\nfollow_imports_for_stubs = true\n"


def expected(file: Path) -> dict[int, list[str]]:
    """Read the messages that a source says it deserves."""
    wanted: dict[int, list[str]] = defaultdict(list)
    above: list[str] = []
    for number, line in enumerate(file.read_text().splitlines(), start=1):
        code, _, text = line.partition("# E: ")
        if text and not code.strip():
            above.append(text)
        elif above or text:
            wanted[number] = [*above, *([text] if text else [])]
            above = []
    return dict(wanted)


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Errors]:
    """What mypy says of all sources ``with`` and, where that is asked for, ``without`` the plugin; each takes half a minute."""
    folder = tmp_path_factory.mktemp("mypy")
    right = (HERE / "right_calls.py").read_text()
    (folder / "right_calls.py").write_text(right)
    (folder / "right_task_ml.py").write_text(re.sub(r"^@(ml\.)?ml_task", "@task.ml", right, flags=re.MULTILINE))
    for name in ("wrong_calls.py", "bodies.py"):
        (folder / name).write_text((HERE / name).read_text())
    for name, decorator in (("ml_pod_task", "@ml.ml_pod_task"), ("task_ml_pod", "@task.ml_pod")):
        (folder / f"right_{name}.py").write_text(_in_pods(right, decorator))
    (folder / "wrong_in_pods.py").write_text(_in_pods((HERE / "wrong_calls.py").read_text(), "@task.ml_pod"))
    running = {kind: _start_mypy(folder, kind) for kind in KINDS[: 1 + request.config.getoption("--run-full")]}
    return {kind: _read(process) for kind, process in running.items()}


def _in_pods(source: str, decorator: str) -> str:
    """Let the steps of a source run in pods, line by line."""
    steps = re.compile(r"^@(?:ml\.|task\.)?ml(?:_task)?(?:\((.*)\))?$", flags=re.MULTILINE)
    return steps.sub(lambda found: f'{decorator}(image="x", {found[1] or ""})', source)


def _start_mypy(folder: Path, kind: str) -> subprocess.Popen[str]:
    plugin = "plugins = airflow_ml_provider.mypy_plugin\n" if kind == "with" else ""
    config = folder / f"{kind}.ini"
    config.write_text(f"[mypy]\nstrict = true\n{plugin}[mypy-{','.join(f'{each}.*' for each in UNREAD)}]\n{SKIP}")
    files = [each.name for each in sorted(folder.glob("*.py"))]
    command = [sys.executable, "-m", "mypy", "--config-file", config.name, "--cache-dir", f".cache-{kind}", "--no-pretty", *files]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _read(process: subprocess.Popen[str]) -> Errors:
    text, _ = process.communicate(timeout=280)
    assert process.returncode == 1, text
    errors: Errors = defaultdict(lambda: defaultdict(list))
    for line in text.splitlines():
        if found := SAID.match(line):
            errors[found["file"]][int(found["line"])].append(found["text"])
    return {file: dict(lines) for file, lines in errors.items()}


def test_with_the_plugin_calls_that_are_right_are_not_reported(said: dict[str, Errors]) -> None:
    assert "right_calls.py" not in said["with"], said["with"]["right_calls.py"]
    assert "right_task_ml.py" not in said["with"], said["with"]["right_task_ml.py"]


def test_with_the_plugin_calls_of_steps_in_pods_are_checked_alike(said: dict[str, Errors]) -> None:
    assert "right_ml_pod_task.py" not in said["with"], said["with"]["right_ml_pod_task.py"]
    assert "right_task_ml_pod.py" not in said["with"], said["with"]["right_task_ml_pod.py"]
    assert said["with"]["wrong_in_pods.py"] == expected(HERE / "wrong_calls.py")


def test_with_the_plugin_every_wrong_call_is_reported_in_these_words(said: dict[str, Errors]) -> None:
    assert said["with"]["wrong_calls.py"] == expected(HERE / "wrong_calls.py")


@pytest.mark.full
def test_without_the_plugin_no_call_of_an_ml_task_or_ml_pod_task_is_reported(said: dict[str, Errors]) -> None:
    assert "right_calls.py" not in said["without"], said["without"]["right_calls.py"]
    assert "right_ml_pod_task.py" not in said["without"], said["without"]["right_ml_pod_task.py"]


@pytest.mark.full
def test_without_the_plugin_the_calls_of_task_ml_are_those_of_any_task_as_the_docs_say(said: dict[str, Errors]) -> None:
    for file in ("right_task_ml.py", "right_task_ml_pod.py"):
        assert "Too few arguments" in [text for texts in said["without"][file].values() for text in texts]


@pytest.mark.parametrize("kind", ["with", pytest.param("without", marks=pytest.mark.full)])
def test_the_bodies_of_steps_are_checked_with_the_plugin_and_without(said: dict[str, Errors], kind: str) -> None:
    assert said[kind]["bodies.py"] == expected(HERE / "bodies.py")


def test_what_mypy_finds_right_parses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    import right_calls  # type: ignore[import-not-found]  # a DAG file, as Airflow would import it

    assert right_calls.make.function.__name__ == "make"
