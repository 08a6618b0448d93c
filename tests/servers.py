"""Real servers for the tests: started by the first worker that asks, found by the others, stopped by process id."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

START_LIMIT_S = 180


class MlflowProcess:
    """
    A real MLflow server on loopback, with SQLite and proxied artifacts.

    :param folder: Its database, artifacts and log.
    :param port: Port; None takes a free one.
    :param options: More options of ``mlflow server``.
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


def free_port() -> int:
    """Return a loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def shared_mlflow(home: Path) -> str:
    """Return the address of the server that all workers share; the first that asks starts it."""
    note = home / "mlflow.json"
    with _locked(home / "mlflow.lock"):
        if note.exists():
            return str(json.loads(note.read_text())["url"])
        server = MlflowProcess(home / "mlflow")
        server.start()
        assert server.process is not None
        server.process.returncode = 0  # it outlives this worker on purpose: no warning of a child that still runs
        note.write_text(json.dumps({"url": server.url, "pid": server.process.pid}))
        return server.url


def stop_shared(home: Path) -> None:
    """Stop the shared server, and remove what the tests wrote."""
    note = home / "mlflow.json"
    if note.exists():
        _kill_session(json.loads(note.read_text())["pid"])
    shutil.rmtree(home, ignore_errors=True)


def airflow_database(home: Path, airflow_home: Path) -> None:
    """Give a worker a migrated database: migrated once, copied for each."""
    template, mine = home / "airflow-template.db", airflow_home / "airflow.db"
    with _locked(home / "airflow.lock"):
        if not template.exists():
            scratch = home / "airflow-migrating.db"
            environment = {**os.environ, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{scratch}"}
            subprocess.run(
                [sys.executable, "-m", "airflow", "db", "migrate"], check=True, env=environment, stdout=subprocess.DEVNULL
            )
            scratch.rename(template)
    if not mine.exists() or mine.stat().st_size == 0:
        shutil.copy(template, mine)


def _kill_session(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
