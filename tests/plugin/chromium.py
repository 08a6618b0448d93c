"""The Chromium of this machine, and Airflow's API server for it: what the tests of the pages in a browser need."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.servers import free_port

NO_CHROMIUM = "needs a Chromium: apt-get install chromium"
PROGRAMS = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
START_LIMIT_S = 120
PASSWORDS = {"ada": "Lovelace-1815", "grace": "Hopper-1906"}


def program() -> str | None:
    """Where it is; None for nowhere."""
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@dataclass(frozen=True)
class Airflow:
    """
    A running API server.

    :param url: Address of its UI.
    :param log: What it has written.
    """

    url: str
    log: Path


@contextmanager
def api_server(folder: Path, environment: Mapping[str, str]) -> Iterator[Airflow]:
    """Start ``airflow api-server`` on the database of the environment, below a path, with people who have passwords."""
    port, passwords, log = free_port(), folder / "passwords.json", folder / "log"
    url = f"http://127.0.0.1:{port}/below"
    passwords.write_text(json.dumps(PASSWORDS))
    own = {
        "AIRFLOW__API__BASE_URL": f"{url}/",
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": "a secret of the tests",
        "AIRFLOW__API_AUTH__JWT_SECRET": "a secret of the tests that is long enough, 64 letters or more: it is now",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{name}:admin" for name in PASSWORDS),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
    }
    with log.open("wb") as out:
        command = [sys.executable, "-m", "airflow", "api-server"]
        process = subprocess.Popen(
            command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, env={**environment, **own}, start_new_session=True
        )
    try:
        _wait(url, process, log)
        yield Airflow(url, log)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until and process.poll() is None:
        with suppress(httpx.HTTPError):
            if httpx.get(f"{url}/api/v2/monitor/health", timeout=5).is_success:
                return
        time.sleep(0.2)
    raise RuntimeError(f"Airflow's API server did not start:\n{log.read_text()[-3000:]}")
