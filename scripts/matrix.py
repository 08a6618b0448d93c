"""
Runs the suite's core on each Airflow and Python that is supported, from the built wheel with the source out of sight.

    make matrix                        every cell
    make matrix ARGS="--corners"       the lowest of everything, and each Airflow once
    make matrix ARGS="3.1-py3.13"      cells by name
    make matrix ARGS="--write"         and write what passed into the table of the README

A cell is an environment of its own in build/matrix, made of the lock of its Airflow (scripts/lock.py). An interpreter that this
machine lacks is named, and the cell is not run.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / "build" / "matrix"
TREE = ("tests", "demo", "dags", "docs", "scripts", "pyproject.toml", "README.md", "Makefile")
"""What tests read, without the package."""
TESTS = (
    "tests/test_provider_info.py",
    "tests/test_exports.py",
    "tests/docs/test_first_steps.py",
    "tests/decorators",
    "tests/hooks/test_mlflow.py",
    "tests/listeners",
    "tests/models",
    "tests/notifications/test_in_airflow.py",
    "tests/operators/test_kfp.py",
    "tests/operators/test_pod.py",
    "tests/operators/test_pod_end.py",
    "tests/operators/test_pod_try.py",
    "tests/operators/test_step.py",
    "tests/plugin/test_web.py",
    "tests/sensors",
    "tests/triggers",
)
"""What touches Airflow: that is what differs between cells."""
AIRFLOWS = {"3.1": "airflow-3.1.txt", "3.2": "airflow-3.2.txt", "3.3": "dev.txt"}
PYTHONS = ("3.11", "3.12", "3.13")
SHIMS = {"PYENV_VERSION": ":".join(PYTHONS)}
"""pyenv's python3.12 runs only if pyenv is told of it; nobody else reads this."""
LOWEST = "lowest-py3.11"
CORNERS = (LOWEST, "3.1-py3.13", "3.2-py3.12", "3.3-py3.13")
REGION = re.compile(r"(<!-- versions -->\n).*?(<!-- end: versions -->)", re.DOTALL)
CELL_LIMIT_S = 1_800


@dataclass(frozen=True)
class Cell:
    """An Airflow with what goes with it, on a Python."""

    airflow: str
    python: str
    lock: Path

    @property
    def name(self) -> str:
        """As the command line has it."""
        return f"{self.airflow}-py{self.python}"


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: pytest's last line, or what was lacking."""

    cell: Cell
    state: str
    said: str
    airflow: str = ""


class Failed(Exception):  # noqa: N818  (what a cell has come to, no error of the code)
    """Why a cell could not be tried, or did not end."""


def cells() -> list[Cell]:
    """
    List what is supported.

    :return: The lowest of everything first, then each Airflow on each Python.
    """
    locks = ROOT / "requirements"
    lowest = Cell("lowest", LOWEST.rpartition("py")[2], locks / "airflow-lowest.txt")
    return [lowest, *(Cell(each, python, locks / lock) for each, lock in AIRFLOWS.items() for python in PYTHONS)]


def main(arguments: Sequence[str]) -> int:
    """
    Run the cells that are asked for.

    :param arguments: Command line.
    :return: Exit status: 0 if each of them passed, 1 if one failed, and in CI (``CI`` is set) also if one could not be run.
    """
    options = _parse(arguments)
    named = {each.name: each for each in cells()}
    if unknown := [each for each in options.cell if each not in named]:
        sys.exit(f"matrix: there is no cell {', '.join(unknown)}. There are {', '.join(named)}.")
    if options.write and (options.cell or options.corners or options.tests):
        sys.exit("matrix: --write is about all cells and the suite's core: leave out cells, --corners and --tests.")
    chosen = [named[each] for each in options.cell or (CORNERS if options.corners else named)]
    shutil.rmtree(HOME / "tree", ignore_errors=True)
    wheel = _build()
    _copy_tests()
    outcomes = []
    for cell in chosen:
        print(f"\n=== {cell.name}", flush=True)
        outcomes.append(_run(cell, wheel, options.tests or TESTS))
        print(f"{cell.name}: {outcomes[-1].said}", flush=True)
    _show(outcomes)
    if options.write and (unseen := [each.cell.name for each in outcomes if each.state == "lacking"]):
        print(f"The table of the README stays as it is: nothing is known of {', '.join(unseen)}.")
    elif options.write:
        write(ROOT / "README.md", outcomes)
    bad = {"failed", "lacking"} if os.environ.get("CI") else {"failed"}
    return int(any(each.state in bad for each in outcomes))


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make matrix ARGS=...", description="Run the suite's core on each Airflow and Python.")
    parser.add_argument("cell", nargs="*", help=f"cells by name, such as {LOWEST} or 3.2-py3.12; none for all")
    parser.add_argument("--corners", action="store_true", help=f"run {', '.join(CORNERS)}")
    parser.add_argument("--tests", nargs="+", metavar="PATH", help="what to run in place of the suite's core")
    parser.add_argument("--write", action="store_true", help="write what passed into the table of the README")
    return parser.parse_args(arguments)


def _build() -> Path:
    folder = HOME / "dist"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _copy_tests() -> None:
    tree = HOME / "tree"
    tree.mkdir(parents=True)
    for name in TREE:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    # A step notes the commit of its DAG's file.
    author = ("-c", "user.name=matrix", "-c", "user.email=matrix@example.com")
    for command in (("init", "--quiet"), ("add", "--all"), (*author, "commit", "--quiet", "--message", "The tests")):
        subprocess.run(["git", *command], cwd=tree, check=True)


def _run(cell: Cell, wheel: Path, tests: Iterable[str]) -> Outcome:
    """Make the environment of a cell, and run the tests in it."""
    found = _uv("python", "find", "--no-python-downloads", "--system", cell.python, check=False)
    if found.returncode:
        return Outcome(cell, "lacking", f"not run: this machine has no Python {cell.python}")
    try:
        return _test(cell, _environment(cell, found.stdout.strip(), wheel), tests)
    except Failed as error:  # the cells after this one may do better
        print(error)
        return Outcome(cell, "failed", str(error).partition("\n")[0])


def _test(cell: Cell, python: Path, tests: Iterable[str]) -> Outcome:
    release = _release(cell, python)
    began = time.monotonic()
    # Releases of the past warn of what is newer than they are.
    options = ("-q", "-n", "3", "-p", "no:cacheprovider", "-o", "filterwarnings=default", "--disable-warnings", "--tb=short")
    done = _python(python, "-m", "pytest", *options, *tests)
    last = next((line.strip("= ") for line in reversed(done.stdout.splitlines()) if line.strip()), "")
    if done.returncode:
        print(done.stdout[-6_000:], done.stderr[-2_000:])
    return Outcome(cell, "failed" if done.returncode else "passed", last or f"{time.monotonic() - began:.0f} s", release)


def _release(cell: Cell, python: Path) -> str:
    """Give the release of Airflow in an environment, and see that the package in it is the wheel's."""
    look = "import airflow, airflow_ml_provider; print(airflow.__version__, airflow_ml_provider.__file__)"
    done = _python(python, "-W", "ignore", "-c", look)
    if done.returncode:
        raise Failed(f"the wheel cannot be imported:\n{done.stderr[-3_000:]}")
    release, place = done.stdout.splitlines()[-1].split(" ", 1)
    if not Path(place).is_relative_to(python.parents[1]):
        raise Failed(f"{cell.name} would test {place}, which is not of the wheel")
    return release


def _environment(cell: Cell, interpreter: str, wheel: Path) -> Path:
    venv = HOME / cell.name
    if not (venv / "bin" / "python").exists():  # also where its interpreter has gone
        shutil.rmtree(venv, ignore_errors=True)
        _uv("venv", "--no-project", "--python", interpreter, str(venv))
    python = venv / "bin" / "python"
    _uv("pip", "sync", "--python", str(python), "--require-hashes", "--compile-bytecode", str(cell.lock))
    _uv("pip", "install", "--python", str(python), "--no-deps", "--reinstall", str(wheel))
    return python


def _uv(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["uv", *arguments], capture_output=True, text=True, check=False, env=os.environ | SHIMS)
    if check and done.returncode:
        raise Failed(f"uv {' '.join(arguments[:2])} failed:\n{done.stderr[-3_000:]}")
    return done


def _python(python: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a cell's Python where only the tests are, with nothing of this environment that names another one."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "PYTHON", "PYTEST", "VIRTUAL_ENV"))}
    kept["PATH"] = f"{python.parent}{os.pathsep}{kept.get('PATH', '')}"
    kept["AIRFLOW_HOME"] = str(HOME / "airflow")  # by default ~/airflow, which is the user's
    command = [str(python), *arguments]
    try:
        return subprocess.run(
            command, cwd=HOME / "tree", env=kept, capture_output=True, text=True, check=False, timeout=CELL_LIMIT_S
        )
    except subprocess.TimeoutExpired as expired:
        last = (expired.stdout or b"")[-3_000:]
        raise Failed(f"ended after {CELL_LIMIT_S} s, which is the limit:\n{last.decode(errors='replace')}") from None


def _show(outcomes: Iterable[Outcome]) -> None:
    table = Table("Cell", "Airflow", "State", "pytest")
    for each in outcomes:
        table.add_row(each.cell.name, each.airflow, each.state, each.said)
    Console().print(table)


def write(readme: Path, outcomes: Iterable[Outcome]) -> None:
    """
    Write what passed into a page, between the marks of its region.

    :param readme: The page.
    :param outcomes: What was run; a cell that was not keeps out of the table.
    """
    passed = {(each.cell.airflow, each.cell.python): each.airflow for each in outcomes if each.state == "passed"}
    lines = ["| Airflow | " + " | ".join(f"Python {each}" for each in PYTHONS) + " |", "| --- |" + " --- |" * len(PYTHONS)]
    for airflow in ("lowest", *AIRFLOWS):
        releases = [release for (name, _), release in passed.items() if name == airflow]
        title = f"{airflow} ({releases[0]})" if releases else airflow
        marks = ("yes" if (airflow, python) in passed else "" for python in PYTHONS)
        lines.append(f"| {title} | " + " | ".join(marks) + " |")
    table = "\n".join(lines) + "\n"
    readme.write_text(REGION.sub(lambda found: found[1] + table + found[2], readme.read_text()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
