"""What all tests share: a real MLflow server and a real Airflow database, once per run, whatever the number of workers."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

# Airflow reads its environment when it is first imported, which is before any fixture: so it is set here.
HOME = Path(os.environ.get("AIRFLOW_ML_TEST_HOME") or tempfile.mkdtemp(prefix="airflow-ml-tests-"))
os.environ.setdefault("AIRFLOW_ML_TEST_HOME", str(HOME))
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
AIRFLOW_HOME = HOME / "airflow" / WORKER
AIRFLOW_HOME.mkdir(parents=True, exist_ok=True)
os.environ.update(
    {
        "AIRFLOW_HOME": str(AIRFLOW_HOME),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(AIRFLOW_HOME / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{AIRFLOW_HOME}/airflow.db",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__ML__PATIENCE_S": "1",
        "AIRFLOW__ML__HTTP_RETRIES": "1",
        "AIRFLOW__ML__HTTP_TIMEOUT_S": "20",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
)

from airflow_ml_provider.config import Settings  # noqa: E402
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer  # noqa: E402
from tests import servers  # noqa: E402

STACK = "tests/stack/"

ALLOWED_SKIPS: frozenset[str] = frozenset()
"""Node ids that CI accepts as skipped; each with its reason beside it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what CI's full run asks for."""
    parser.addoption("--run-full", action="store_true", help="run the tests marked full too: many minutes more")
    parser.addoption(
        "--run-cluster", action="store_true", help="run the tests marked cluster too, on the Kubernetes of KUBECONFIG"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes many minutes, unless it is asked for; left out is not skipped."""
    for mark in ("full", "cluster"):
        if not config.getoption(f"--run-{mark}"):
            left_out = [each for each in items if each.get_closest_marker(mark)]
            config.hook.pytest_deselected(items=left_out)
            items[:] = [each for each in items if each not in left_out]
    if not os.environ.get("KUBECONFIG"):
        for each in items:
            if each.get_closest_marker("cluster"):
                each.add_marker(pytest.mark.skip(reason="needs a Kubernetes: set KUBECONFIG"))
    items.sort(key=lambda each: STACK not in each.nodeid)  # the longest first


class StackTogether(LoadScopeScheduling):
    """One worker for all tests of the real stack, which is started once; the others are dealt out by file."""

    def _split_scope(self, nodeid: str) -> str:
        return STACK if STACK in nodeid else nodeid.split("::", 1)[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> StackTogether:
    """Deal tests out to workers our way."""
    return StackTogether(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, a skip outside of the list fails the run: what is not tested must be known."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("CI") or hasattr(session.config, "workerinput"):
        return
    surprising = [each.nodeid for each in reporter.stats.get("skipped", []) if each.nodeid not in ALLOWED_SKIPS]
    if surprising:
        reporter.write_line(f"skipped, and not in ALLOWED_SKIPS of tests/conftest.py: {', '.join(surprising)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the shared server with the last process that knows of it: the one without workers above it."""
    if not hasattr(config, "workerinput"):
        servers.stop_shared(HOME)


@pytest.fixture(scope="session")
def mlflow_url() -> str:
    """Address of a real MLflow server (SQLite, proxied artifacts), shared by all workers."""
    return servers.shared_mlflow(HOME)


@pytest.fixture
def mlflow_api(mlflow_url: str) -> Iterator[MlflowApi]:
    """A client of the shared server, with little patience."""
    api = MlflowApi(MlflowServer("mlflow_default", mlflow_url), Settings(patience_s=1, http_retries=1, http_timeout_s=20))
    yield api
    api.close()


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """A migrated Airflow database of this worker's own: what ``dag.test()`` needs."""
    servers.airflow_database(HOME, AIRFLOW_HOME)


@pytest.fixture
def mlflow_connection(mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The connection ``mlflow_default``, pointing at the shared server."""
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", f'{{"conn_type": "mlflow", "host": "{mlflow_url}"}}')
    return mlflow_url


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses, for DAGs, experiments and models on the shared server."""
    return f"{request.node.originalname or request.node.name}-{os.urandom(4).hex()}"[-200:]


@pytest.fixture
def run_dag(airflow_db: None, mlflow_connection: str) -> Callable[..., Any]:
    """Run a DAG that a test has defined with ``dag.test()``: real operators, XCom, rendering, retries; no scheduler."""
    from tests.airflow_runs import run

    return run
