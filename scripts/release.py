#!/usr/bin/env python
"""
Builds what a release would upload, checks it, and tries it out where the source is out of sight: ``make release-check``.

It uploads nothing, and tags nothing: what is left to do is said in the end. Archives go to ``dist/``, which is emptied first.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # called by a path, Python looks in this folder alone

from airflow_ml_provider import __version__  # noqa: E402
from airflow_ml_provider.interpreters import environment_for  # noqa: E402

PACKAGE = "airflow-ml-provider"
NAME = PACKAGE.replace("-", "_")
DIST = ROOT / "dist"
NOT_IMPORTED = {"server"}
"""Extras that bring nothing which the package imports: an MLflow server is a program beside it."""
IN_SDIST = {"airflow_ml_provider", "dags", ".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"}
ADDRESS = re.compile(r"\]\((?!https?://|#)([^)\s]+)\)")

TRY_OUT = """
import importlib, importlib.metadata, json, pathlib, pkgutil, sys, warnings
warnings.simplefilter("ignore")  # of others: the suite has them as errors
import airflow, jsonschema, airflow_ml_provider
from airflow_ml_provider import Cache, GpuRequest, ml_task
from airflow_ml_provider.provider_info import get_provider_info

source, everything = pathlib.Path(sys.argv[1]), sys.argv[2] == "all"
place = pathlib.Path(airflow_ml_provider.__file__)
assert source not in place.parents, f"{place} is the source, not the wheel"
schema = pathlib.Path(airflow.__file__).parent / "provider_info.schema.json"
jsonschema.validate(get_provider_info(), json.loads(schema.read_text()))
points = importlib.metadata.distribution("airflow-ml-provider").entry_points
for each in points:
    each.load()
mypys = {"airflow_ml_provider.mypy_plugin"}  # mypy imports it, and brings itself
names = [each.name for each in pkgutil.walk_packages([str(place.parent)], "airflow_ml_provider.")]
for name in names if everything else []:
    if name not in mypys:
        importlib.import_module(name)
print(len(points), "entry points load, provider_info is valid" + (f", {len(names) - 1} modules import" if everything else ""))
"""


class Failed(Exception):  # noqa: N818  (no error of the code, but of what is released)
    """What must be mended before there is a release."""


def fail(why: str) -> NoReturn:
    """Give up, with the reason."""
    raise Failed(why)


def say(text: str) -> None:
    """Tell of a step that is done."""
    print(f"release: {text}", flush=True)


def run(command: Sequence[str | Path], *, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """
    Run a program.

    :param command: It, and its arguments.
    :param cwd: Where.
    :param env: Its variables; None for those of this process.
    :return: What it has written to its standard output.
    :raises Failed: it ended with an error; all that it has written is in the message.
    """
    done = subprocess.run([str(each) for each in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def build() -> tuple[Path, Path]:
    """Build the sdist, and the wheel from it, as an installer without wheels would."""
    shutil.rmtree(DIST, ignore_errors=True)
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", DIST, ROOT])
    wheel, sdist = DIST / f"{NAME}-{__version__}-py3-none-any.whl", DIST / f"{NAME}-{__version__}.tar.gz"
    found = sorted(DIST.iterdir())
    if found != sorted([wheel, sdist]):
        fail(f"built {[each.name for each in found]}, expected {wheel.name} and {sdist.name}")
    say(f"built {wheel.name} ({wheel.stat().st_size:,} bytes), {sdist.name} ({sdist.stat().st_size:,} bytes)")
    return wheel, sdist


def check_metadata(*archives: Path) -> None:
    """Let twine say whether an index would take them, and show their page."""
    run([sys.executable, "-m", "twine", "check", "--strict", *archives])
    say("twine: an index would take both")


def check_sdist(sdist: Path) -> None:
    """Look for what does not belong into the sdist, and for what it lacks."""
    with tarfile.open(sdist) as archive:
        names = {each.name.split("/")[1] for each in archive.getmembers() if "/" in each.name}
    if names != IN_SDIST:
        fail(f"the sdist has {sorted(names - IN_SDIST)} too many and lacks {sorted(IN_SDIST - names)}")
    say("the sdist has the package, the DAGs and nothing else")


def check_wheel(wheel: Path) -> None:
    """Let the suite's own tests of a wheel look at this one."""
    told = run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_wheel.py"],
        env=os.environ | {"AIRFLOW_ML_WHEEL": str(wheel)},
    )
    say(f"tests/test_wheel.py: {told.strip().splitlines()[-1].strip('= ')}")


def check_environment(wheel: Path) -> None:
    """Install the wheel into an environment of its own, first alone and then with its extras, and use it there."""
    with tempfile.TemporaryDirectory(prefix="airflow-ml-release-") as folder:
        home = Path(folder)
        python = home / "venv/bin/python"
        env = environment_for(os.environ) | {"AIRFLOW_HOME": str(home), "AIRFLOW__LOGGING__LOGGING_LEVEL": "ERROR"}
        pins = home / "pins.txt"
        pins.write_text("".join(f"{each.name}=={each.version}\n" for each in distributions() if each.name != PACKAGE))
        for extras, what in (("", "base"), (f"[{','.join(extras_of(wheel))}]", "all")):
            install(f"{PACKAGE}{extras} @ {wheel.as_uri()}", pins, home, env)
            told = run([python, "-c", TRY_OUT, ROOT, what], cwd=home, env=env)
            say(f"a fresh environment, {PACKAGE}{extras}: {told.strip().splitlines()[-1]}")
        if __version__ not in run([home / "venv/bin/airflow-ml", "--version"], cwd=home, env=env):
            fail(f"airflow-ml --version does not say {__version__}")
        run([home / "venv/bin/airflow-ml", "--help"], cwd=home, env=env)
        told = run([home / "venv/bin/airflow", "providers", "get", PACKAGE, "--output", "json"], cwd=home, env=env)
        if __version__ not in told:
            fail(f"airflow providers get {PACKAGE} says: {told}")
        say("airflow-ml starts there, and Airflow lists the provider")


def extras_of(wheel: Path) -> list[str]:
    """List the extras that the package imports from."""
    with zipfile.ZipFile(wheel) as archive:
        metadata = archive.read(f"{NAME}-{__version__}.dist-info/METADATA").decode()
    return sorted(set(re.findall(r"^Provides-Extra: (.+)$", metadata, re.MULTILINE)) - NOT_IMPORTED)


def install(requirement: str, pins: Path, home: Path, env: dict[str, str]) -> None:
    """Install into ``home/venv`` with the versions that are installed here: by uv where it is, else by pip."""
    uv = shutil.which("uv") or shutil.which("uv", path=f"{ROOT}/.tools/bin:{ROOT}/.tools/lib/bin")
    made = (home / "venv").exists()
    if uv:
        made or run([uv, "venv", "-q", "--no-project", "-p", sys.executable, home / "venv"], env=env)
        run([uv, "pip", "install", "-q", "-p", home / "venv/bin/python", "-c", pins, requirement], cwd=home, env=env)
    else:
        made or run([sys.executable, "-m", "venv", home / "venv"], env=env)
        run([home / "venv/bin/python", "-m", "pip", "install", "-q", "-c", pins, requirement], cwd=home, env=env)


def still_to_do() -> list[str]:
    """Say what stands between these archives and a release."""
    heading = re.search(rf"^## {re.escape(__version__)}(.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    todo = []
    if heading is None:
        todo.append(f"write down the changes: CHANGELOG.md has no part {__version__}")
    elif "not released" in heading[1]:
        todo.append(f"CHANGELOG.md: put the day in the place of {heading[1].strip(', ')!r}")
    if run(["git", "status", "--porcelain"]):
        todo.append("commit what has changed, and run this again")
    if relative := sorted(set(ADDRESS.findall((ROOT / "README.md").read_text()))):
        todo.append(f"README.md is the page of the package on an index, where its {len(relative)} relative links lead nowhere")
    return [
        *todo,
        f"git tag -s v{__version__} -m 'Release {__version__}' && git push origin v{__version__}",
        f"python -m twine upload {DIST.relative_to(ROOT)}/*",
        "raise the version in airflow_ml_provider/_version.py, and begin its part of CHANGELOG.md",
    ]


def main() -> int:
    """
    Do it all.

    :return: Exit status, 1 where something must be mended.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--no-environment", action="store_true", help="leave out the fresh environment, which needs a package index"
    )
    args, began = parser.parse_args(), time.monotonic()
    try:
        wheel, sdist = build()
        check_metadata(wheel, sdist)
        check_sdist(sdist)
        check_wheel(wheel)
        if not args.no_environment:
            check_environment(wheel)
        say(f"all is well after {time.monotonic() - began:.0f} s. What is left to do:")
        print("\n".join(f"  - {each}" for each in still_to_do()))
    except Failed as error:
        print(f"release: NOT READY: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
