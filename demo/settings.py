"""
The settings of the stack: environment and command line of each component, and the secrets that it keeps.

Values only: nothing is started here.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import sqlite3
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from demo.ports import HOST

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["DEMO_DAGS", "PORT_NAMES", "airflow_environment", "commands", "prepare_folders", "stack_environment"]

DEMO_DAGS = Path(__file__).resolve().parent.parent / "dags"
PORT_NAMES = ("airflow", "mlflow", "worker-log", "trigger-log")
SQLITE_WAIT_S = 30
# What would leak into the stack from the shell that starts it.
FOREIGN = ("AIRFLOW_", "_AIRFLOW_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")

# What does not depend on the run.
FIXED = {
    "AIRFLOW__API__HOST": HOST,
    "AIRFLOW__API__WORKERS": "1",
    "AIRFLOW__CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
    "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
    # The default asks the name service, which can take seconds on a machine without a network.
    "AIRFLOW__CORE__HOSTNAME_CALLABLE": "socket.gethostname",
    "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
    "AIRFLOW__CORE__PARALLELISM": "4",
    "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
    # Quick to see a changed DAG file, quick to go on.
    "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "2",
    "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "10",
    "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "5",
    "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "30",
    "AIRFLOW__SCHEDULER__SCHEDULER_IDLE_SLEEP_TIME": "0.3",
    "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    # A task must not fail because a small machine is busy, or because it is there before the API server is.
    "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "12",
    "AIRFLOW__WORKERS__EXECUTION_API_RETRY_WAIT_MAX": "5",
    "AIRFLOW__WORKERS__EXECUTION_API_TIMEOUT": "60",
}


def prepare_folders(root: Path) -> None:
    """
    Make the folders and the two empty databases.

    The databases use a write-ahead log, which lasts: readers then never hold up a writer, as a scheduler, an API server
    and a DAG processor on one SQLite file would do to each other.

    :param root: The state folder.
    """
    for name in ("airflow", "mlflow/artifacts", "logs"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for database in (root / "airflow/airflow.db", root / "mlflow/mlflow.db"):
        connection = sqlite3.connect(database, timeout=SQLITE_WAIT_S)
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        finally:
            connection.close()


def commands(root: Path, ports: Mapping[str, int]) -> dict[str, list[str]]:
    """
    Give the command line of each component.

    The log servers of scheduler and triggerer are left out: they listen on all interfaces, which no setting changes,
    and on one machine the API server reads the log files itself.

    :param root: The state folder.
    :param ports: Port of each server, by the names of :data:`PORT_NAMES`.
    :return: Command lines by component, ``migrate`` (which ends by itself) among them.
    """
    airflow = [sys.executable, "-m", "airflow"]
    store = ["--backend-store-uri", f"sqlite:///{root}/mlflow/mlflow.db"]
    artifacts = ["--serve-artifacts", "--artifacts-destination", str(root / "mlflow/artifacts")]
    listen = ["--host", HOST, "--port", str(ports["mlflow"]), "--workers", "1"]
    return {
        "mlflow": [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *listen],
        "migrate": [*airflow, "db", "migrate"],
        "api-server": [*airflow, "api-server"],
        "scheduler": [*airflow, "scheduler", "--skip-serve-logs"],
        "dag-processor": [*airflow, "dag-processor"],
        "triggerer": [*airflow, "triggerer", "--skip-serve-logs"],
    }


def stack_environment(root: Path, ports: Mapping[str, int], dags: Sequence[Path], extra: Mapping[str, str]) -> dict[str, str]:
    """
    Put together the environment of every process of the stack.

    It starts from this process's own, without what belongs to another Airflow or MLflow.

    :param root: The state folder.
    :param ports: Port of each server, by the names of :data:`PORT_NAMES`.
    :param dags: Folders with DAG files.
    :param extra: What the caller adds or overrides; it wins.
    :return: The whole environment.
    """
    own = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    # Only the folder of the interpreter, not what it links to: the scripts of the virtual environment are meant.
    path = os.pathsep.join([str(Path(sys.executable).parent), own.get("PATH", os.defpath)])
    no_proxy = ",".join(filter(None, [own.get("NO_PROXY") or own.get("no_proxy"), f"{HOST},localhost"]))
    return {
        **own,
        "PATH": path,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        "PYTHONUNBUFFERED": "1",
        "DO_NOT_TRACK": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Seven consumers of a job queue that nobody uses here, and a gigabyte.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **airflow_environment(root, ports, dags),
        **extra,
    }


def airflow_environment(root: Path, ports: Mapping[str, int], dags: Sequence[Path]) -> dict[str, str]:
    """
    Give Airflow's part of the environment.

    :param root: The state folder.
    :param ports: Port of each server, by the names of :data:`PORT_NAMES`.
    :param dags: Folders with DAG files.
    :return: Variables by name.
    """
    url = f"http://{HOST}:{ports['airflow']}"
    home = root / "airflow"
    return {
        **FIXED,
        **_secrets(root / "secrets.json"),
        "AIRFLOW_HOME": str(home),
        "AIRFLOW_CONN_MLFLOW_DEFAULT": json.dumps({"conn_type": "mlflow", "host": f"http://{HOST}:{ports['mlflow']}"}),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__PORT": str(ports["airflow"]),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags[0]),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": _bundles(dags),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db?timeout={SQLITE_WAIT_S}",
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(ports["trigger-log"]),
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(ports["worker-log"]),
    }


def _bundles(dags: Sequence[Path]) -> str:
    classpath = "airflow.dag_processing.bundles.local.LocalDagBundle"
    names = ["dags", *(f"dags-{number}" for number in range(2, len(dags) + 1))]
    return json.dumps(
        [
            {"name": name, "classpath": classpath, "kwargs": {"path": str(folder)}}
            for name, folder in zip(names, dags, strict=True)
        ]
    )


def _secrets(file: Path) -> dict[str, str]:
    """Read the stack's secrets, made at the first start: a restart must still read what it has encrypted and signed."""
    if not file.exists():
        made = {
            "AIRFLOW__API__SECRET_KEY": secrets.token_urlsafe(32),
            "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_urlsafe(64),
            "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
        }
        fresh = file.with_suffix(".new")
        fresh.unlink(missing_ok=True)
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            json.dump(made, stream)
        fresh.replace(file)
    kept: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return kept
