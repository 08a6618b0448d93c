"""``scripts/compose`` where there is no Docker, and the secrets that it makes; with programs that only pretend to be Docker."""

from __future__ import annotations

import base64
import stat
import subprocess
from pathlib import Path

import pytest

from tests.compose.stage import settings
from tests.compose.stand_ins import ROOT

TOOLS = ["base64", "chmod", "dirname", "find", "grep", "head", "mv", "sed", "sh", "sort", "tail", "tr"]
SECRETS = {
    *(
        "POSTGRES_PASSWORD",
        "AIRFLOW_DB_PASSWORD",
        "MLFLOW_DB_PASSWORD",
        "VALKEY_PASSWORD",
        "OBJECTS_SECRET_KEY",
        "MLFLOW_SECRET_KEY",
    ),
    *("AIRFLOW_ADMIN_PASSWORD", "AIRFLOW_API_SECRET_KEY", "AIRFLOW_JWT_SECRET", "AIRFLOW_FERNET_KEY", "MLFLOW_ADMIN_PASSWORD"),
    "MLFLOW_AIRFLOW_PASSWORD",
}


class Checkout:
    """The script in a folder of its own, on a machine with no other programs than those it may expect."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.programs = folder / "bin"
        for each in ("bin", "scripts", "dags", "docker"):
            (folder / each).mkdir()
        for tool in TOOLS:
            (self.programs / tool).symlink_to(
                next(Path(place, tool) for place in ("/usr/bin", "/bin") if Path(place, tool).exists())
            )
        (folder / "scripts/compose").write_bytes((ROOT / "scripts/compose").read_bytes())

    def docker(self, script: str) -> None:
        """Put a program named docker there."""
        (self.programs / "docker").write_text(f"#!/bin/sh\n{script}\n")
        (self.programs / "docker").chmod(0o755)

    def run(self, *arguments: str, status: int = 0, **environment: str) -> str:
        command = ["/bin/sh", str(self.folder / "scripts/compose"), *arguments]
        done = subprocess.run(
            command, env={"PATH": str(self.programs), **environment}, capture_output=True, text=True, check=False
        )
        assert done.returncode == status, done.stderr
        return done.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_what_is_missing_is_said_before_anything_is_made(checkout: Checkout) -> None:
    assert "docker is not installed: Docker Engine with its compose plugin" in checkout.run("up", status=1)
    for script, words in (
        ("exit 1", "docker has no compose plugin"),
        ("echo 2.9.1", "docker compose is 2.9.1, and 2.24 or newer is needed"),
        ("case $1 in compose) echo v2.40.0 ;; *) exit 1 ;; esac", "no Docker engine answers"),
    ):
        checkout.docker(script)
        assert words in checkout.run("up", status=1)
    assert not (checkout.folder / ".env").exists()
    checkout.docker("echo 2.40.0")
    assert "nothing was started from here" in checkout.run("down", status=1)
    (checkout.folder / "dags/mine.py").touch(0o600)
    assert "dags/mine.py cannot be read in the containers" in checkout.run("up", status=1)


def test_secrets_are_made_once_for_their_owner_alone_and_differ(
    checkout: Checkout, tmp_path_factory: pytest.TempPathFactory
) -> None:
    checkout.run("env", PROFILES="celery,objects")
    made = settings(checkout.folder)
    secrets = {name: made[name] for name in SECRETS}
    assert stat.S_IMODE((checkout.folder / ".env").stat().st_mode) == 0o600
    assert len(set(secrets.values())) == len(SECRETS)
    assert min(len(value) for name, value in secrets.items() if name != "AIRFLOW_FERNET_KEY") >= 64  # what HS512 wants of a key
    assert len(base64.urlsafe_b64decode(made["AIRFLOW_FERNET_KEY"])) == 32
    assert (made["AIRFLOW_EXECUTOR"], made["MLFLOW_ARTIFACTS"]) == ("CeleryExecutor", "s3://mlflow")
    said = checkout.run("env", PROFILES="mail")
    assert "artifacts go to /mlflow/artifacts from now on; those in s3://mlflow are not moved" in said
    again = settings(checkout.folder)
    assert {name: again[name] for name in SECRETS} == secrets
    assert (again["AIRFLOW_EXECUTOR"], again["COMPOSE_PROFILES"]) == ("LocalExecutor", "mail")
    assert '"host": "mail"' in again["AIRFLOW_CONN_SMTP_DEFAULT"]
    assert stat.S_IMODE((checkout.folder / ".env").stat().st_mode) == 0o600
    checkout.run("env", PROFILES="")
    assert "AIRFLOW_CONN_SMTP_DEFAULT" not in settings(checkout.folder), "alerts go to a service that is not there"
    assert checkout.run("env") == "", "with nothing to do there is nothing to say"
    assert "there is no profile 'kafka'" in checkout.run("env", status=1, PROFILES="mail,kafka")
    other = Checkout(tmp_path_factory.mktemp("other"))
    other.run("env")
    assert not set(secrets.values()) & set(settings(other.folder).values())
