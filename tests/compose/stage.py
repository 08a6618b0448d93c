"""A copy of what ``make up`` needs, in a folder of its own: the user's ``.env``, containers and volumes are not touched."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx

from demo.airflow_api import AirflowApi
from tests.compose.engine import Engine
from tests.compose.stand_ins import ROOT
from tests.servers import free_port

SHIPPED = ("docker-compose.yaml", ".dockerignore", "Makefile", "README.md", "LICENSE", "pyproject.toml", "docker", "dags")
PROJECT = "airflow-ml-test"


def copy_checkout(folder: Path) -> Path:
    """Copy what the compose file and its script read; no ``.env``, no secrets."""
    for name in (*SHIPPED, "airflow_ml_provider", "scripts/compose"):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    return folder


def settings(folder: Path) -> dict[str, str]:
    """What ``.env`` says."""
    lines = (folder / ".env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if not line.startswith("#"))


class Stage:
    """
    The compose file in a folder of its own, on an engine.

    :param engine: The engine.
    :param folder: An empty folder, which the containers' users must be able to read.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        self.engine = engine
        self.folder = copy_checkout(folder)
        self.said = ""
        self.ports = {name: free_port() for name in ("AIRFLOW_PORT", "MLFLOW_PORT", "MAIL_PORT")}
        self.environment = {
            **engine.environment,
            **{name: str(port) for name, port in self.ports.items()},
            "COMPOSE_PROJECT_NAME": PROJECT,
            "IMAGE_TAG": "test",
        }

    def run(self, *command: str, check: bool = True, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder; ``more`` is added to its environment."""
        environment = self.environment | more
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, check=False)
        if check and done.returncode:
            raise AssertionError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}")
        return done

    def build(self) -> None:
        """Build our two images, one after the other: what both are made from is then made once."""
        self.run("scripts/compose", "env")
        for service in ("mlflow", "airflow-setup"):
            self.run("docker", "compose", "build", "--quiet", service)

    def up(self, profiles: str = "") -> None:
        """``make up``; what it has said is in ``said``."""
        self.said = self.run("make", "up", f"PROFILES={profiles}").stdout

    def down(self) -> None:
        """``make down`` with the volumes, if anything is there."""
        if (self.folder / ".env").exists():
            self.run("make", "down", "ARGS=-v")

    def containers(self) -> dict[str, dict[str, Any]]:
        """What the engine knows of each service's container."""
        ids = self.run("docker", "compose", "ps", "--all", "--quiet").stdout.split()
        found = json.loads(self.engine.docker("inspect", *ids))
        return {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in found}

    def secret(self, name: str) -> str:
        """One of the values of ``.env``."""
        return settings(self.folder)[name]

    def airflow(self) -> AirflowApi:
        """Airflow's REST API, logged in as the administrator of ``.env``."""
        return AirflowApi(self.url("AIRFLOW_PORT"), "admin", self.secret("AIRFLOW_ADMIN_PASSWORD"))

    def mlflow(self, user: str = "admin") -> httpx.Client:
        """MLflow's REST API, logged in as ``admin`` or as ``airflow``."""
        login = (user, self.secret(f"MLFLOW_{user.upper()}_PASSWORD"))
        return httpx.Client(base_url=self.url("MLFLOW_PORT"), auth=login, timeout=60, trust_env=False)

    def url(self, port: str) -> str:
        """Where a published port is reached from this machine."""
        return f"http://127.0.0.1:{self.ports[port]}"
