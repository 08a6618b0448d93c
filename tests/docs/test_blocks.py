"""What stands between fences and is no DAG file: read by that which would read it, or named here."""

from __future__ import annotations

import argparse
import configparser
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from itertools import dropwhile
from types import SimpleNamespace
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from airflow.cli.cli_parser import get_parser
from airflow.configuration import conf
from airflow.models import Connection
from airflow.sdk import DAG
from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime

from airflow_ml_provider.cli.main import build_parser
from airflow_ml_provider.config import SECTION, Settings
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks import kfp_connection, mlflow_connection
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator
from airflow_ml_provider.testing import FakeKfpServer
from tests.docs.pages import PAGES, ROOT, Block, Page, page

OUTPUT = {
    "README.md": "what the demo shows in the end",
    "docs/quickstart.md": "what the demo shows in the end",
    "docs/cache.md": "its words are those of tests/cli/test_cache.py",
    "docs/kfp-runs.md": "the form of an XCom, with dots",
    "docs/lineage.md": "its words are those of tests/cli/test_lineage.py and test_lineage_questions.py",
    "docs/run-tree.md": "a tree of runs; a message of Airflow",
    "docs/when-mlflow-is-away.md": "the folders of the spool",
}
"""Pages with blocks ``text``, or with the output of a ``console``: nothing compares these."""

RUN = {
    "docs/pod-step.md": "tests/docs/test_pods.py",
    "docs/kfp-connection.md": "here",
    "docs/kfp-runs.md": "here",
}
"""Pages with blocks ``py``, which are no parts of the page's DAG file, and where they are run."""

FOREIGN = {
    ".",
    "cd",
    "cp",
    "curl",
    "docker",
    "echo",
    "git",
    "helm",
    "kubectl",
    "mlflow",
    "openssl",
    "psql",
    "python3",
    "sh",
    "uv",
    "wc",
}
"""Programs of others: a shell reads such a line, and nobody looks at the arguments."""


def blocks(*languages: str) -> list[Any]:
    found = (block for path in PAGES for block in Page(path).blocks if block.language in languages)
    return [pytest.param(block, id=block.where) for block in found]


def statements(text: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell's program; quotes may hold line ends."""
    waiting = ""
    for line in text.splitlines():
        waiting += line.removesuffix("\\")
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:  # an open quote
            waiting += "\n"
            continue
        if line.endswith("\\"):
            continue
        waiting = ""
        if words:
            yield words
    assert not waiting, f"a quote stays open: {waiting}"


def parse(parser: argparse.ArgumentParser, words: list[str]) -> None:
    end = next((place for place, word in enumerate(words) if word in {"|", ">", "&&"}), len(words))
    try:
        parser.parse_args(words[:end])
    except SystemExit as error:
        assert error.code == 0, f"the parser refuses {words}"  # noqa: PT017


def check_make(words: list[str]) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert [word for word in words if "=" not in word and word not in targets] == []


def check_pip(words: list[str]) -> None:
    made = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, extras in re.findall(r"^([\w.-]+)\[([\w,-]+)\]", "\n".join(words), re.MULTILINE):
        assert name in {made["name"], "."} or not name.startswith("airflow-ml")
        assert name not in {made["name"], "."} or set(extras.split(",")) <= set(made["optional-dependencies"])


@cache
def connection_types() -> set[str]:
    return set(ProvidersManagerTaskRuntime().hooks)  # type: ignore[no-untyped-call]


def check_export(words: list[str]) -> None:
    for word in words:
        name, _, value = word.partition("=")
        if name.startswith("AIRFLOW_CONN_"):
            check_connection(name.removeprefix("AIRFLOW_CONN_").lower(), value)
        elif name.startswith("AIRFLOW__ML__"):
            assert name.removeprefix("AIRFLOW__ML__").lower() in Settings.model_fields
        elif name.startswith("AIRFLOW__"):
            section, _, option = name.removeprefix("AIRFLOW__").partition("__")
            assert conf.has_option(section.lower(), option.lower()), name


def check_connection(conn_id: str, value: str) -> None:
    made = Connection.from_json(value, conn_id=conn_id)
    assert made.conn_type in connection_types()
    assert isinstance(made.extra_dejson, dict)
    readers = {"mlflow": mlflow_connection.read_server, "kfp": kfp_connection.read_server}
    if read := readers.get(made.conn_type):
        fields: dict[str, Any] = {"host": made.host, "port": made.port, "schema": made.schema}
        assert read(conn_id, **fields, login=made.login, password=made.password, extra=made.extra)


PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "airflow": lambda words: parse(get_parser(), words),
    "airflow-ml": lambda words: parse(build_parser(), words),
    "export": check_export,
    "kubectl": lambda words: check_export([word.removeprefix("--from-literal=") for word in words]),
    "make": check_make,
    "pip": check_pip,
    "python": lambda words: check_file(words[0]),
}


def check_file(name: str) -> None:
    assert (ROOT / name).is_file()


def check_shell(text: str) -> None:
    for said in statements(text):
        words = list(dropwhile(lambda word: re.match(r"\w+=", word), said))  # variables of the shell
        if not words or words[0].endswith("()"):
            continue
        assert words[0] in PROGRAMS or words[0] in FOREIGN, f"who checks {words[0]}? Name it in PROGRAMS or FOREIGN"
        PROGRAMS.get(words[0], list)(words[1:])


def check_ini(text: str) -> None:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    assert parser.sections()
    for section in parser.sections():
        known = set(Settings.model_fields) if section == SECTION else set(conf.getsection(section) or {})
        assert set(parser[section]) <= known


READERS: dict[str, Callable[[str], Any]] = {
    "ini": check_ini,
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": lambda text: list(yaml.safe_load_all(text)),
}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(Page(path)))
def test_every_block_says_what_it_is_and_something_reads_it(path: Any) -> None:
    """``python``: part of the page's DAG file (test_snippets.py). ``py``: Python of another file, or run by another test."""
    of = Page(path)
    assert of.indented == [], "put it between fences, with its language"
    for block in of.blocks:
        known = {"python", "py", "sh", "console", "text", *READERS}
        assert block.language in known, f"{block.where}: {block.language!r} is none of {sorted(known)}"
        if block.language in {"text", "console"}:
            assert str(of) in OUTPUT, f"{block.where}: nothing checks this; name the page in OUTPUT, and say why"
        if block.language == "py" and not block.made:
            assert str(of) in RUN, f"{block.where}: nothing runs this; name the page in RUN, and say where"


@pytest.mark.parametrize("block", blocks("sh"))
def test_a_shell_takes_it_and_so_do_the_programs_that_it_calls(block: Block) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    check_shell(block.text)


@pytest.mark.parametrize("block", blocks("console"))
def test_what_is_typed_into_a_console_is_a_command(block: Block) -> None:
    typed = [line.removeprefix("$ ") for line in block.text.splitlines() if line.startswith("$ ")]
    assert typed
    check_shell("\n".join(typed))


@pytest.mark.parametrize("block", blocks(*READERS))
def test_its_format_is_what_it_says(block: Block) -> None:
    assert READERS[block.language](block.text) != []


def test_the_commands_within_the_text_are_there_with_their_options() -> None:
    (commands,) = (each for each in build_parser()._actions if isinstance(each, argparse._SubParsersAction))
    written = {command for path in PAGES for command in Page(path).commands}
    assert len(written) > 15
    for words in map(str.split, written):
        known = {flag for action in commands.choices[words[1]]._actions for flag in action.option_strings}
        assert {word for word in words[2:] if word.startswith("--")} <= known, words


@pytest.mark.parametrize(
    "wrong",
    [
        "airflow-ml lineag models:/m/1",
        "airflow dags triger x",
        "make dem",
        "pip install 'airflow-ml-provider[gates]'",
        "nmap localhost",
        "export AIRFLOW__ML__PATIENCE=1",
        "kubectl create secret generic x --from-literal=AIRFLOW__ML__PATIENCE=1",
        'export AIRFLOW_CONN_MLFLOW_DEFAULT=\'{"conn_type": "mlflow", "host": "http://h", "extra": {"tokn": "x"}}\'',
        "echo 'open",
    ],
)
def test_the_checks_of_a_shell_see_what_is_wrong(wrong: str) -> None:
    with pytest.raises((AssertionError, ConfigError)):
        check_shell(wrong)


def test_the_page_about_pipeline_runs_tests_a_dag_as_it_says(
    run_dag: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, unique: str
) -> None:
    first, second = (block.text for block in page("docs/kfp-runs.md").blocks if block.language == "py" and not block.made)
    monkeypatch.setenv("AIRFLOW__ML__HTTP_RETRIES", "0")
    with DAG(unique, schedule=None) as dag:
        churn = str(ROOT / "dags/pipelines/churn.yaml")
        KfpRunPipelineOperator(task_id="train", pipeline=churn, arguments={"day": "2026-01-01"})
    names: dict[str, Any] = {
        "my_dag": SimpleNamespace(test=lambda: run_dag(dag)),
        "bucket": SimpleNamespace(put_object=lambda **_: None),
    }
    exec(first, names)  # noqa: S102  (our own page)
    names["test_a_lost_answer_starts_nothing_twice"](monkeypatch)
    exec(second, names)  # noqa: S102


def test_the_page_about_the_connection_asks_a_server_as_it_says(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = (block for block in page("docs/kfp-connection.md").blocks if block.language == "py")
    with FakeKfpServer() as server:
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url}))
        exec(block.text.replace("team-a", ""), {})  # noqa: S102
    assert "Default" in capsys.readouterr().out
