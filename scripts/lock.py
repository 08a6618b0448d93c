"""
Makes the locks in ``requirements/``: what the suite runs on, and what ``make matrix`` runs it on beside that.

What an Airflow of the past ran with is not what is newest now: with a FastAPI of later, 3.2 does not start a task. So its own
dependencies are taken as of some days after its release, by the index's upload times, and all else as it is now.

    python scripts/lock.py [dev|3.1|3.2|lowest ...]
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = ROOT / "pyproject.toml"
PAST = {
    "3.1": ("3.1.8", "2026-03-14"),
    "3.2": ("3.2.2", "2026-06-01"),
    "lowest": ("3.1.1", "2025-10-28", "structlog<25.5", "wrapt<2"),
}
"""Releases of Airflow, the day as of which their own dependencies are taken, and what was too new already: with that structlog
3.1.1 does not start, and no s3fs of those days goes with that wrapt."""
LOWEST_PYTHON = "3.11"
"""The lowest releases of numpy and pandas have no wheels for later ones."""
OURS = ("apache-airflow==", "apache-airflow-providers-", "kubernetes", "mlflow", "kfp")
"""What an Airflow's own lock says nothing about: what is newest, or lowest, is meant."""
BOUNDED = ("certifi", "httpx==", "jinja2", "pydantic==", "rich==", "tenacity")
"""What the package itself has a lower bound of, beside those."""
QUIET = ("--quiet", "--no-header", "--no-emit-index-url")
ALL = ("--all-extras", str(PYPROJECT))
TESTS = ("--group", f"{PYPROJECT}:tests")
WHOLE = ("--generate-hashes", *ALL)


def main(names: list[str]) -> None:
    """
    Make the locks that are named.

    :param names: ``dev``, or of ``PAST``; none for all.
    """
    known = ["dev", *PAST]
    if unknown := [each for each in names if each not in known]:
        sys.exit(f"lock: there is no lock {', '.join(unknown)}. There are {', '.join(known)}.")
    if not shutil.which("uv"):
        sys.exit("lock: uv is not installed; scripts/setup run .venv/bin/python scripts/lock.py brings it.")
    for name in names or known:
        lock = ROOT / "requirements" / ("dev.txt" if name == "dev" else f"airflow-{name}.txt")
        print(f"lock: {lock.relative_to(ROOT)}")
        if name == "dev":
            _compile(lock, "--universal", "--group", f"{PYPROJECT}:dev", *WHOLE)
        else:
            with tempfile.TemporaryDirectory() as folder:
                _lock_past(name, lock, Path(folder))


def _lock_past(name: str, lock: Path, folder: Path) -> None:
    """Lock what goes with an Airflow of the past."""
    release, day, *held_back = PAST[name]
    airflow, then = folder / "airflow.in", folder / "then.txt"
    airflow.write_text("\n".join([f"apache-airflow=={release}", *held_back, ""]))
    python = ("--python-version", LOWEST_PYTHON)
    form = python if name == "lowest" else ("--universal", *python)
    _compile(then, *form, "--no-annotate", "--exclude-newer", day, str(airflow))
    left_out = (*OURS, *BOUNDED) if name == "lowest" else OURS
    then.write_text("".join(line for line in then.read_text().splitlines(keepends=True) if not line.startswith(left_out)))
    bounds = ["-c", str(airflow), "-c", str(then)]
    if name == "lowest":
        direct = folder / "direct.txt"
        _compile(direct, *form, "--no-annotate", "--resolution", "lowest-direct", *bounds, *ALL)
        bounds = ["-c", str(direct)]
    _compile(lock, *form, *bounds, *TESTS, *WHOLE, "--no-annotate")


def _compile(target: Path, *arguments: str) -> None:
    done = subprocess.run(["uv", "pip", "compile", *QUIET, *arguments, "--output-file", str(target)], check=False, cwd=ROOT)
    if done.returncode:  # uv has said why
        sys.exit(f"lock: {target.name} could not be resolved.")


if __name__ == "__main__":
    main(sys.argv[1:])
