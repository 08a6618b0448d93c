"""The forms of MLflow that the suite runs on: ``--mlflow=<form>``; SQLite without a login where nothing is said."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from airflow_ml_provider.hooks.mlflow_server import MlflowServer

SQLITE, POSTGRESQL, BASIC_AUTH, WORKSPACES = FORMS = ("sqlite", "postgresql", "basic-auth", "workspaces")
NO_POSTGRESQL = "needs PostgreSQL's initdb and postgres: apt-get install postgresql"
ADMIN, USER, WORKSPACE = "admin", "dags", "team-a"
START_LIMIT_S, STOP_LIMIT_S = 60, 10


def forms_of(item: Any) -> tuple[str, ...]:
    """Return the forms that a test is run on: those of its mark, else all if it uses the shared server, else the first."""
    if mark := item.get_closest_marker("form"):
        return mark.args
    return FORMS if "mlflow_servers" in getattr(item, "fixturenames", ()) else (SQLITE,)


def postgresql_programs() -> Path | None:
    """Return the folder of PostgreSQL's programs: the newest of Debian's, or where PATH leads."""
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda each: float(each.parts[-3]))
    found = debian[-1] if debian else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class PostgresProcess:
    """
    A PostgreSQL of its own in a new folder, reached by a unix socket in it and by nothing else.

    Its order of words is a language's, as on most machines, and not that of bytes.
    """

    def __init__(self) -> None:
        # Not below the tests' folder: root's own, and PostgreSQL refuses to run as root.
        self.folder = Path(tempfile.mkdtemp(prefix="airflow-ml-postgresql-"))
        self.url = f"postgresql+psycopg2://mlflow@/postgres?host={self.folder}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Make the database, start the server, and wait until it answers."""
        programs = postgresql_programs()
        assert programs is not None, NO_POSTGRESQL
        user: dict[str, Any] = {"stdin": subprocess.DEVNULL, "cwd": "/"}
        if os.geteuid() == 0:
            account = _account()
            os.chown(self.folder, account.pw_uid, account.pw_gid)
            user |= {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        data = str(self.folder / "data")
        with (self.folder / "log").open("ab") as log:
            user |= {"stdout": log, "stderr": log}
            words = ("--encoding=UTF8", "--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US")
            trust = ("--auth-local=trust", "--auth-host=reject", "--username=mlflow")
            subprocess.run([programs / "initdb", "-D", data, "--no-sync", *words, *trust], check=True, **user)
            options = [f"-c{each}" for each in ("listen_addresses=", f"unix_socket_directories={self.folder}", "fsync=off")]
            # A session of its own, as the other servers have: stopped by the id of its first process.
            command = [programs / "postgres", "-D", data, *options]
            self.process = subprocess.Popen(command, start_new_session=True, **user)
        self._wait()

    def _wait(self) -> None:
        import psycopg2

        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until:
            with contextlib.suppress(psycopg2.OperationalError):
                return psycopg2.connect(host=str(self.folder), user="mlflow", dbname="postgres").close()
            time.sleep(0.1)
        raise RuntimeError(f"PostgreSQL did not start:\n{(self.folder / 'log').read_text()[-3000:]}")


def stop_postgresql(folder: Path, pid: int) -> None:
    """
    End a PostgreSQL in good order, if there is one: killed, it would leave shared memory behind.

    :param folder: Its folder.
    :param pid: Its first process.
    """
    running, until = folder / "data/postmaster.pid", time.monotonic() + STOP_LIMIT_S
    if running.exists():
        os.kill(pid, signal.SIGINT)
    while running.exists() and time.monotonic() < until:
        time.sleep(0.05)


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


def auth_environment(folder: Path, password: str) -> dict[str, str]:
    """
    Write the configuration of MLflow's ``--app-name basic-auth``, as MLflow ships it; only where its database is differs.

    :param folder: Where to.
    :param password: Of the user ``admin``.
    :return: What the server's environment must hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{folder}/auth.db\nadmin_username = {ADMIN}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 600\n"  # a password takes 0.1 s to check, at every request
    )
    return {
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(16),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_AUTH_CONFIG_PATH": str(config),
    }


def make_user(url: str, admin_password: str) -> tuple[MlflowServer, MlflowServer]:
    """
    Make the user that DAGs work as: no admin, with no right that was granted; what it makes is its own.

    :param url: Address of the server.
    :param admin_password: Of the user ``admin``.
    :return: The server as that user, and as the admin.
    """
    password = secrets.token_urlsafe(16)
    body = {"username": USER, "password": password}
    _post(f"{url}/api/2.0/mlflow/users/create", body, (ADMIN, admin_password))
    return tuple(MlflowServer("mlflow_default", url, *login) for login in ((USER, password), (ADMIN, admin_password)))  # type: ignore[return-value]


def grant(admin: MlflowServer, kind: str, which: str, permission: str) -> None:
    """
    Say what the user of DAGs may do with a thing that somebody else has made.

    :param admin: The server as its admin.
    :param kind: What it is, as MLflow's permissions call it: ``experiment``, ``registered_model``.
    :param which: Its id.
    :param permission: ``EDIT``, or ``DENY`` for not even what everybody may.
    """
    rule = {"username": USER, "resource_type": kind, "resource_id": which}
    place, login = f"{admin.url}/api/3.0/mlflow/users/permissions", (admin.username, admin.password)
    httpx.post(f"{place}/revoke", json=rule, auth=login, timeout=60)  # an error where there is none, and none is changed
    _post(f"{place}/grant", rule | {"permission": permission}, login)


def make_workspace(url: str) -> MlflowServer:
    """
    Make the workspace of the tests.

    :param url: Address of the server.
    :return: The server, and the workspace.
    """
    _post(f"{url}/api/3.0/mlflow/workspaces", {"name": WORKSPACE})
    return MlflowServer("mlflow_default", url, workspace=WORKSPACE)


def _post(url: str, body: dict[str, str], login: tuple[str, str] | None = None) -> None:
    answer = httpx.post(url, json=body, auth=login, timeout=60)
    assert answer.is_success, answer.text
