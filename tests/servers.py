"""Real servers for the tests: started by the first worker that asks, found by the others, stopped by process id."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import httpx

from airflow_ml_provider.config import Settings
from airflow_ml_provider.hooks.mlflow_api import MlflowApi
from airflow_ml_provider.hooks.mlflow_server import MlflowServer
from demo.airflow_api import AirflowApi
from demo.stack import LocalStack
from tests import mlflow_forms

START_LIMIT_S = 180
CONN_ID = "mlflow_default"


class MlflowProcess:
    """
    A real MLflow server on loopback, with SQLite and proxied artifacts.

    :param folder: Its database, artifacts and log.
    :param port: Port; None takes a free one.
    :param options: More options of ``mlflow server``; the last of one name counts.
    :param environment: More environment variables.
    """

    def __init__(
        self, folder: Path, port: int | None = None, options: tuple[str, ...] = (), environment: dict[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.options = options
        self.environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        _write_ahead(self.folder / "mlflow.db")
        command = [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db", "--serve-artifacts"),
            *("--artifacts-destination", str(self.folder / "artifacts"), *self.options),
        ]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **self.environment}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
            )
        self.wait()

    def wait(self) -> None:
        """Wait until it answers."""
        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2).is_success:
                    return
            if self.process is not None and self.process.poll() is not None:
                break
            time.sleep(0.2)
        tail = (self.folder / "log").read_text()[-3000:]
        raise RuntimeError(f"MLflow at {self.url} did not start:\n{tail}")

    def kill(self) -> None:
        """Kill it with -9, as a lost machine would."""
        if self.process is not None:
            _kill_session(self.process.pid)
            self.process.wait()

    def __enter__(self) -> MlflowProcess:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@contextlib.contextmanager
def running(stack: LocalStack, settings: Settings) -> Iterator[tuple[AirflowApi, MlflowApi]]:
    """
    Run a real Airflow with its MLflow for the block.

    :param stack: Not started yet.
    :param settings: Patience of the client of MLflow.
    :return: A client of each of the two.
    """
    kept = {key: os.environ.pop(key) for key in list(os.environ) if key.startswith("AIRFLOW")}  # dag.test()'s, not the stack's
    try:
        stack.start()
    finally:
        os.environ.update(kept)
    try:
        with stack.api() as airflow, MlflowApi(MlflowServer(CONN_ID, stack.mlflow_url), settings) as mlflow:
            yield airflow, mlflow
    finally:
        stack.stop()


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def shared_mlflow(home: Path, form: str = mlflow_forms.SQLITE) -> dict[str, MlflowServer]:
    """
    Return the server that all workers share; the first that asks starts it.

    :param home: Folder of this run of the tests.
    :param form: One of ``mlflow_forms.FORMS``.
    :return: By ``user`` and ``admin``: the server as who DAGs work as, and as who may do everything.
    """
    note = home / "mlflow.json"
    with _locked(home / "mlflow.lock"):
        if not note.exists():
            started = _start_shared(home, form)
            note.write_text(json.dumps({who: asdict(each) for who, each in started.items()}))
        return {who: MlflowServer(**each) for who, each in json.loads(note.read_text()).items()}


def _start_shared(home: Path, form: str) -> dict[str, MlflowServer]:
    """Start it in one of its forms; the ids of its processes are written down as they come."""
    folder, password, options, environment = home / "mlflow", secrets.token_urlsafe(16), [], {}
    if form == mlflow_forms.POSTGRESQL:
        database = mlflow_forms.PostgresProcess()
        try:
            database.start()
        finally:
            _note_process(home, database.process, database.folder)
        options = ["--backend-store-uri", database.url]
    elif form == mlflow_forms.BASIC_AUTH:
        options, environment = ["--app-name", "basic-auth"], mlflow_forms.auth_environment(folder, password)
    elif form == mlflow_forms.WORKSPACES:
        options = ["--enable-workspaces"]
    elif form == mlflow_forms.SQLITE:
        # The other forms have the server that users get by default, which needs half as much again for each request.
        options = ["--gunicorn-opts", "--worker-class gthread --threads 16 --timeout 300"]
    server = MlflowProcess(folder, options=tuple(options), environment=environment)
    try:
        server.start()
    finally:
        _note_process(home, server.process, folder)
    if form == mlflow_forms.BASIC_AUTH:
        user, admin = mlflow_forms.make_user(server.url, password)
        return {"user": user, "admin": admin}
    found = mlflow_forms.make_workspace(server.url) if form == mlflow_forms.WORKSPACES else MlflowServer(CONN_ID, server.url)
    return {"user": found, "admin": found}


def _note_process(home: Path, process: subprocess.Popen[bytes] | None, folder: Path) -> None:
    """Remember what to stop with the tests, and what to remove."""
    if process is not None:
        process.returncode = 0  # it outlives this worker on purpose: no warning of a child that still runs
    with (home / "processes").open("a") as notes:
        notes.write(json.dumps({"pid": process.pid if process else None, "folder": str(folder)}) + "\n")


def connection(server: MlflowServer, **extra: str) -> str:
    """
    Write a server as Airflow's connection.

    :param server: The server; ``dataclasses.replace`` gives it the address of a proxy.
    :param extra: More extras.
    :return: JSON, for ``AIRFLOW_CONN_...``.
    """
    extra |= {"workspace": server.workspace} if server.workspace else {}
    login = {"login": server.username, "password": server.password} if server.password else {}
    return json.dumps({"conn_type": "mlflow", "host": server.url, **login, "extra": extra})


def stop_shared(home: Path) -> None:
    """Stop the shared server, and remove what the tests wrote."""
    notes = home / "processes"
    for line in reversed(notes.read_text().splitlines() if notes.exists() else []):
        note = json.loads(line)
        if note["pid"] is not None:
            mlflow_forms.stop_postgresql(Path(note["folder"]), note["pid"])
            _kill_session(note["pid"])
        shutil.rmtree(note["folder"], ignore_errors=True)
    shutil.rmtree(home, ignore_errors=True)


def airflow_database(home: Path, airflow_home: Path) -> None:
    """Give a worker a migrated database: migrated once, copied for each."""
    template, mine = migrated_database(home), airflow_home / "airflow.db"
    if not _is_migrated(mine):  # a test that looked for a connection has made an empty one
        for each in airflow_home.glob("airflow.db*"):
            each.unlink()
        shutil.copy(template, mine)
        settings = sys.modules.get("airflow.settings")
        if settings is not None and settings.engine is not None:
            settings.engine.dispose()  # its connections are to the file that is gone


def migrated_database(home: Path) -> Path:
    """Return a migrated database to copy, not to use; the first worker that asks makes it."""
    template = home / "airflow-template.db"
    with _locked(home / "airflow.lock"):
        if not template.exists():
            scratch = home / "airflow-migrating.db"
            _write_ahead(scratch)
            environment = {**os.environ, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{scratch}"}
            subprocess.run(
                [sys.executable, "-m", "airflow", "db", "migrate"], check=True, env=environment, stdout=subprocess.DEVNULL
            )
            scratch.rename(template)
    return template


def _write_ahead(database: Path) -> None:
    """Have an SQLite file, new or not, commit without a journal that is made and removed each time: half of a server's work."""
    with contextlib.closing(sqlite3.connect(database)) as opened:
        opened.execute("PRAGMA journal_mode=WAL")


def _is_migrated(database: Path) -> bool:
    if not database.exists():
        return False
    with contextlib.closing(sqlite3.connect(database)) as opened:
        return opened.execute("SELECT 1 FROM sqlite_master WHERE name = 'dag_bundle'").fetchone() is not None


def _kill_session(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
