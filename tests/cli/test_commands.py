"""The command line itself: one table, quick to start, the same under ``airflow-ml`` and ``airflow ml``."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from airflow.models import Connection
from airflow.utils.session import create_session

from airflow_ml_provider.cli.definition import COMMANDS, CONN_ID, get_commands
from airflow_ml_provider.cli.main import build_parser, main
from airflow_ml_provider.hooks.mlflow import MlflowHook
from airflow_ml_provider.provider_info import get_provider_info
from airflow_ml_provider.tracking.registry import CHAMPION, PREVIOUS_CHAMPION
from tests.lineage.nights import Night

HEAVY = ("airflow", "pydantic", "rich", "httpx", "mlflow", "tenacity", "sqlalchemy", "logging", "dataclasses")
EXAMPLES = {
    "alert": [
        *("test", "--slack", "slack_ml", "--email", "a@b.c", "--email", "d@e.f"),
        *("--slack-channel", "#ml", "--smtp-conn-id", "smtp_ml"),
    ],
    "cache": [
        *("clear", "--dag", "d", "--task", "t", "--model", "m", "--older-than", "30", "--stale", "--yes", "--experiment", "e"),
        *("--map-index", "3", "--conn-id", "other"),
    ],
    "interpreters": ["--unused-for", "30", "--dry-run"],
    "kfp": [
        *("run", "churn.py", "-f", "churn", "-a", "day=1", "-a", "rows=2", "--arguments", "{}", "--connection", "kfp_ml"),
        *("-o", "out.yaml", "--name", "churn"),
    ],
    "diff": ["models:/m/1", "models:/m@champion", "--exit-code", "--json", "--conn-id", "other"],
    "impact": ["s3://bucket/key", "--json", "--conn-id", "other"],
    "lineage": ["models:/m@champion", "--down", "--depth", "3", "--json", "--dot", "--conn-id", "other"],
    "models": ["--trained-on", "rows > 10000", "--limit", "3", "--json", "--conn-id", "other"],
    "reconcile": ["--dry-run", "--experiment", "d1"],
    "resend": ["a", "s3://bucket/b"],
    "rollback": ["m", "--alias", "live", "--previous-alias", "before", "--slack", "slack_ml", "--email", "a@b.c"],
}


def in_a_process(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **environment})


def airflow_ml(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from airflow_ml_provider.cli.main import main; sys.exit(main())"
    return in_a_process(sys.executable, "-c", code, *args, **environment)


class TestStarting:
    @pytest.mark.parametrize("module", ["cli.main", "cli.definition"])
    def test_nothing_heavy_is_imported_before_the_command_is_known(self, module: str) -> None:
        code = (
            f"import sys; bare = set(sys.modules); import airflow_ml_provider.{module}; "
            "from airflow_ml_provider.cli.main import build_parser; build_parser().format_help(); "
            "print(*{each.split('.')[0] for each in set(sys.modules) - bare})"
        )
        done = in_a_process(sys.executable, "-c", code)
        assert done.returncode == 0, done.stderr
        assert not set(HEAVY) & set(done.stdout.split())

    def test_the_version_is_printed(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="0"):
            main(["--version"])
        assert capsys.readouterr().out.startswith("airflow-ml 0.")

    @pytest.mark.parametrize("args", [[], ["nothing"], ["lineage"], ["resend"], ["rollback"], ["lineage", "a", "b"]])
    def test_bad_usage_is_status_2(self, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit, match="2"):
            main(args)
        assert "usage: airflow-ml" in capsys.readouterr().err


class TestTheTable:
    def test_every_command_has_an_example_here(self) -> None:
        assert {command.name for command in COMMANDS} == set(EXAMPLES)

    @pytest.mark.parametrize("name", sorted(EXAMPLES))
    def test_both_command_lines_understand_the_same(self, name: str) -> None:
        ours = vars(build_parser().parse_args([name, *EXAMPLES[name]]))
        theirs = vars(airflow_parser().parse_args(["ml", name, *EXAMPLES[name]]))
        assert ours.pop("command").name == theirs.pop("func").__name__
        theirs.pop("subcommand")
        assert ours == theirs

    def test_its_defaults_are_those_of_the_code(self) -> None:
        args = build_parser().parse_args(["rollback", "m"])
        assert (args.alias, args.previous_alias) == (CHAMPION, PREVIOUS_CHAMPION)
        assert args.conn_id == CONN_ID == MlflowHook.default_conn_name
        assert build_parser().parse_args(["resend", "a"]).conn_id is None

    def test_airflow_is_told_of_it(self) -> None:
        assert get_provider_info()["cli"] == [f"{get_commands.__module__}.{get_commands.__name__}"]


class TestInAirflow:
    @pytest.mark.full
    def test_airflow_ml_lineage_answers_on_standard_output_alone(self, night: Night, unique: str, airflow_db: None) -> None:
        night.whole(unique)
        command = (sys.executable, "-m", "airflow", "ml", "lineage", f"models:/{unique}@champion", "--json")
        done = in_a_process(*command, AIRFLOW__LOGGING__LOGGING_LEVEL="INFO")
        assert done.returncode == 0, done.stderr
        assert [step["name"] for step in json.loads(done.stdout)["steps"]] == ["train", "features", "validate"]

    def test_its_errors_end_with_their_status(self, airflow_db: None, mlflow_connection: str) -> None:
        done = in_a_process(sys.executable, "-m", "airflow", "ml", "lineage", "models:/nothing@champion")
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-1].startswith("airflow-ml: ")


class TestTheConnection:
    def test_it_is_read_from_airflows_database(self, night: Night, mlflow_url: str, airflow_db: None) -> None:
        model = night.whole()
        with create_session() as session:
            session.add(Connection(conn_id="from_database", conn_type="mlflow", host=mlflow_url))
        done = airflow_ml("lineage", model.uri, "--conn-id", "from_database", "--json")
        assert done.returncode == 0, done.stderr
        assert len([node for node in json.loads(done.stdout)["nodes"] if node["kind"] == "run"]) == 3

    def test_a_database_that_cannot_be_read_is_not_a_missing_connection(self, tmp_path: Any) -> None:
        nowhere = {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{tmp_path}/empty.db", "AIRFLOW_HOME": str(tmp_path)}
        done = airflow_ml("lineage", "models:/m@champion", "--conn-id", "not_there", **nowhere)
        assert (done.returncode, done.stdout) == (1, "")
        assert "Airflow's database cannot be read" in done.stderr.splitlines()[-1]
        assert "AIRFLOW_CONN_NOT_THERE" in done.stderr

    def test_a_server_that_is_away_is_said_in_one_line_at_the_end(self) -> None:
        away = json.dumps({"conn_type": "mlflow", "host": "http://127.0.0.1:9"})
        done = airflow_ml(
            "lineage", "models:/m@champion", AIRFLOW_CONN_MLFLOW_DEFAULT=away, AIRFLOW__LOGGING__LOGGING_LEVEL="INFO"
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert "did not answer" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error(night: Night) -> None:
    model = night.whole()
    code = "import sys; from airflow_ml_provider.cli.main import main; sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, "lineage", model.uri], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def airflow_parser() -> argparse.ArgumentParser:
    """Airflow's own parser, as the command ``airflow`` makes it."""
    from airflow.cli.cli_parser import get_parser

    parser: argparse.ArgumentParser = get_parser()
    return parser
