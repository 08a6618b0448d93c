"""The wheel as it is built, installed where the source is out of sight, and seen by a real Airflow."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from email.message import Message
from email.parser import Parser
from importlib.metadata import EntryPoints, PathDistribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from airflow_ml_provider import __version__
from airflow_ml_provider.cli.definition import COMMANDS
from airflow_ml_provider.provider_info import PACKAGE

ROOT = Path(__file__).resolve().parents[1]
NAME = PACKAGE.replace("-", "_")
DIST_INFO = f"{NAME}-{__version__}.dist-info"

LOOK = """
import contextlib, importlib.metadata, io, json, sys
import airflow_ml_provider

def airflow(*args):
    from airflow.__main__ import main
    sys.argv, out = ["airflow", *args], io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main()
    return out.getvalue()

def rows(*args):
    return [each for each in json.loads(airflow(*args, "--output", "json")) if "ml" in str(each).lower()]

found = {
    "dist": str(importlib.metadata.distribution("airflow-ml-provider").locate_file("")),
    "providers": rows("providers", "list"),
    "hooks": rows("providers", "hooks"),
    "links": rows("providers", "links"),
    "behaviours": rows("providers", "behaviours"),
    "plugins": rows("plugins"),
    "option": airflow("config", "get-value", "ml", "patience_s").strip(),
    "help": airflow("ml", "--help"),
}
from airflow.sdk import task
found["decorator"] = task.ml.__module__
found["places"] = sorted({getattr(each, "__file__", None) or "" for name, each in list(sys.modules.items())
                          if name.partition(".")[0] == "airflow_ml_provider"})
found["mlflow"] = "mlflow" in sys.modules
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the package's own build back-end in the environment of the tests; scripts/release.py brings its own."""
    if given := os.environ.get("AIRFLOW_ML_WHEEL"):
        return Path(given)
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel in it. Pure wheels are installed by unpacking; this environment need not have an installer."""
    folder = tmp_path_factory.mktemp("target")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    # The tests' environment sees the source through a .pth file, which has been read when this one is.
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.path[:] = [each for each in sys.path if each != {str(ROOT)!r}]\n")
    return folder


@pytest.fixture(scope="module")
def metadata(installed: Path) -> Message:
    return Parser().parsestr((installed / DIST_INFO / "METADATA").read_text())


@pytest.fixture(scope="module")
def entry_points(installed: Path) -> EntryPoints:
    return PathDistribution(installed / DIST_INFO).entry_points


@pytest.fixture(scope="module")
def found(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, object]:
    """What a fresh Airflow says, in a process that has the wheel and not the source."""
    done = run(installed, tmp_path_factory.mktemp("home"), LOOK)
    assert done.returncode == 0, done.stderr
    (line,) = [each for each in done.stdout.splitlines() if each.startswith("FOUND")]
    told: dict[str, object] = json.loads(line.removeprefix("FOUND"))
    return told


def run(installed: Path, home: Path, code: str, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("AIRFLOW", "PYTHON", "PYTEST", "COV"))}
    environment |= {"PYTHONPATH": str(installed), "AIRFLOW_HOME": str(home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    command = [sys.executable, "-c", code, *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, check=False, cwd=home, env=environment)


class TestContents:
    def test_it_holds_the_package_and_its_metadata_alone(self, wheel: Path) -> None:
        assert wheel.name == f"{NAME}-{__version__}-py3-none-any.whl"
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
        assert {each.partition("/")[0] for each in names} == {NAME, DIST_INFO}
        assert f"{NAME}/py.typed" in names
        assert f"{DIST_INFO}/licenses/LICENSE" in names
        inside = {each for each in names if each.startswith(f"{NAME}/")}
        assert inside == {each.relative_to(ROOT).as_posix() for each in (ROOT / NAME).rglob("*") if is_source(each)}

    def test_its_record_names_every_file_with_its_digest(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            record = {name: digest for name, digest, _ in csv.reader(archive.read(f"{DIST_INFO}/RECORD").decode().splitlines())}
            assert set(record) == set(archive.namelist())
            for name, digest in record.items():
                if digest:
                    sha256 = hashlib.sha256(archive.read(name)).digest()
                    assert digest == f"sha256={base64.urlsafe_b64encode(sha256).rstrip(b'=').decode()}"

    def test_nothing_of_this_machine_is_in_it(self, wheel: Path) -> None:
        with zipfile.ZipFile(wheel) as archive:
            texts = {name: archive.read(name) for name in archive.namelist()}
        assert [name for name, text in texts.items() if str(ROOT).encode() in text] == []

    def test_its_entry_points_are_the_two_that_airflow_reads_and_the_command(self, entry_points: EntryPoints) -> None:
        assert {(each.group, each.name, each.value) for each in entry_points} == {
            ("apache_airflow_provider", "provider_info", "airflow_ml_provider.provider_info:get_provider_info"),
            ("airflow.plugins", "airflow_ml", "airflow_ml_provider.plugin:AirflowMLPlugin"),
            ("console_scripts", "airflow-ml", "airflow_ml_provider.cli.main:main"),
        }


def is_source(file: Path) -> bool:
    return file.is_file() and "__pycache__" not in file.parts


class TestMetadata:
    def test_it_names_the_package_and_what_it_needs(self, metadata: Message) -> None:
        assert (metadata["Name"], metadata["Version"]) == (PACKAGE, __version__)
        assert metadata["License-Expression"] == "Apache-2.0"
        assert metadata["Description-Content-Type"] == "text/markdown"
        assert "Framework :: Apache Airflow :: Provider" in metadata.get_all("Classifier", [])
        assert sys.version.split()[0] in SpecifierSet(metadata["Requires-Python"])
        assert str(metadata.get_payload()).lstrip().startswith("#"), "the README is the page of the package"

    def test_every_dependency_has_a_lower_bound_and_none_an_upper(self, metadata: Message) -> None:
        needed = [Requirement(each) for each in metadata.get_all("Requires-Dist", [])]
        assert {each.name for each in needed} >= {"apache-airflow", "mlflow-skinny", "httpx", "pydantic"}
        for each in needed:
            assert [bound.operator for bound in each.specifier] == [">="], str(each)

    def test_this_environment_is_within_the_bounds(self, metadata: Message) -> None:
        from importlib.metadata import version

        for each in map(Requirement, metadata.get_all("Requires-Dist", [])):
            assert each.specifier.contains(version(each.name), prereleases=True), str(each)

    def test_the_extras_are_those_that_the_messages_name(self, metadata: Message) -> None:
        extras = set(metadata.get_all("Provides-Extra", []))
        assert extras == {"gate", "kfp", "kubernetes", "openlineage", "server", "slack", "smtp"}
        said = "".join(file.read_text() for file in (ROOT / NAME).rglob("*.py"))
        assert set(re.findall(r"airflow-ml-provider\[(\w+)\]", said)) == extras - {"openlineage", "server", "slack", "smtp"}


class TestInstalled:
    def test_all_that_ran_is_of_the_wheel(self, found: Mapping[str, list[str]], installed: Path) -> None:
        assert Path(str(found["dist"])) == installed
        assert found["places"]
        assert [each for each in found["places"] if not each.startswith(f"{installed}/")] == []

    def test_airflow_lists_the_provider_its_connection_and_its_link(self, found: Mapping[str, list[dict[str, str]]]) -> None:
        (provider,) = (each for each in found["providers"] if each["package_name"] == PACKAGE)
        assert provider["version"] == __version__
        (hook,) = (each for each in found["hooks"] if each["connection_type"] == "mlflow")
        assert hook["class"] == "airflow_ml_provider.hooks.mlflow.MlflowHook"
        assert hook["package_name"] == PACKAGE
        assert {"extra_link_class_name": "airflow_ml_provider.links.mlflow.MlflowRunLink"} in found["links"]
        assert any(each["field_behaviours"] == "mlflow" for each in found["behaviours"])

    def test_the_plugin_the_options_and_the_decorator_are_there(self, found: Mapping[str, object]) -> None:
        assert "airflow_ml" in str(found["plugins"])
        assert found["option"] == "300.0"
        assert found["decorator"] == "airflow_ml_provider.decorators.ml"
        assert found["mlflow"] is False

    def test_the_commands_are_airflows_too(self, found: Mapping[str, str]) -> None:
        assert all(command.name in found["help"] for command in COMMANDS)

    def test_the_command_starts_by_its_entry_point(self, installed: Path, entry_points: EntryPoints, tmp_path: Path) -> None:
        (script,) = entry_points.select(group="console_scripts")
        code = f"import sys; from {script.module} import {script.attr}; sys.exit({script.attr}())"
        done = run(installed, tmp_path, code, "--help")
        assert done.returncode == 0, done.stderr
        assert all(command.name in done.stdout for command in COMMANDS)
        done = run(installed, tmp_path, code, "--version")
        assert done.stdout.split() == [script.name, __version__]
