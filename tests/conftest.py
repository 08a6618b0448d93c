"""What all tests share: a real MLflow server and a real Airflow database, once per run, whatever the number of workers."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from packaging.version import Version
from xdist.scheduler.loadscope import LoadScopeScheduling

# Airflow reads its environment when it is first imported, which is before any fixture: so it is set here.
MEMORY = Path("/dev/shm")
"""Where databases need not wait for a disk, which is most of what tests did; few bytes, no interpreters."""
ROOMY = MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 << 30
HOME = Path(os.environ.get("AIRFLOW_ML_TEST_HOME") or tempfile.mkdtemp(prefix="airflow-ml-tests-", dir=MEMORY if ROOMY else None))
os.environ.setdefault("AIRFLOW_ML_TEST_HOME", str(HOME))
INTERPRETERS = Path(os.environ.get("AIRFLOW_ML_TEST_INTERPRETERS") or tempfile.mkdtemp(prefix="airflow-ml-interpreters-"))
os.environ.setdefault("AIRFLOW_ML_TEST_INTERPRETERS", str(INTERPRETERS))
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "main")
AIRFLOW_HOME = HOME / "airflow" / WORKER
AIRFLOW_HOME.mkdir(parents=True, exist_ok=True)
os.environ.update(
    {
        "AIRFLOW_HOME": str(AIRFLOW_HOME),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__UNIT_TEST_MODE": "False",
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "0",  # dag.test() waits for it, five minutes by default
        "AIRFLOW__CORE__DAGS_FOLDER": str(AIRFLOW_HOME / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{AIRFLOW_HOME}/airflow.db",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__ML__PATIENCE_S": "1",
        "AIRFLOW__ML__HTTP_RETRIES": "1",
        "AIRFLOW__ML__HTTP_TIMEOUT_S": "20",
        "AIRFLOW__ML__INTERPRETERS": str(INTERPRETERS),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        # Threads of numpy and scikit-learn that wait for each other's turn on busy cores made a training ten times as long.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
)

from airflow_ml_provider.config import Settings  # noqa: E402
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer  # noqa: E402
from tests import mlflow_forms, servers  # noqa: E402
from tests.compose import engine  # noqa: E402
from tests.plugin import chromium  # noqa: E402

# How long an example takes is the machine's matter, and tests run side by side.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

STACK = "tests/stack/"
FIRST = (
    STACK,
    # These look at all that is on the shared server: little, as yet.
    "tests/operators/test_mlflow_cleanup.py",
    "tests/tracking/test_alert_claims.py",
    "tests/notifications/",
    "tests/operators/test_operator_alerts.py",
    "tests/tracking/test_reconcile.py",
    "tests/triggers/test_mlflow",
    "tests/sensors/test_mlflow.py",
    # These take long: begun last, they would leave the other workers without work.
    "tests/plugin/test_browser.py",
    "tests/operators/test_kfp_results.py",
    "tests/operators/test_kfp.py",
    "tests/operators/test_bad_input.py",
    "tests/operators/test_gate.py",
    "tests/operators/test_step.py",
    "tests/cli/test_kfp.py",
    "tests/test_parse_time.py",
    "tests/test_benchmarks.py",
)
"""What is dealt out first, in this order."""

AIRFLOW = Version(version("apache-airflow-core"))
"""What the tests run on; ``make matrix`` has more than one."""

collect_ignore = [] if Version("3.3") <= AIRFLOW else ["triggers/test_mlflow_memory.py"]  # of what 3.3 has brought, all of it

ALLOWED_SKIPS: frozenset[str] = frozenset()
"""Node ids that CI accepts as skipped; each with its reason beside it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what CI's full run asks for."""
    parser.addoption("--run-full", action="store_true", help="run the tests marked full too: many minutes more")
    parser.addoption(
        "--run-cluster", action="store_true", help="run the tests marked cluster too, on the Kubernetes of KUBECONFIG"
    )
    parser.addoption("--run-compose", action="store_true", help="run the tests marked compose too, on a Docker engine")
    parser.addoption(
        "--compose-engine",
        choices=("stand-ins", "docker"),
        default="stand-ins",
        help="stand-ins: an engine of the tests' own, with images made from Debian; docker: yours, which pulls the real images",
    )
    parser.addoption(
        "--mlflow",
        choices=mlflow_forms.FORMS,
        default=mlflow_forms.SQLITE,
        help="form of the MLflow server that tests share; with another than sqlite, only tests that use it are run",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes many minutes, unless it is asked for; left out is not skipped."""
    for mark in ("full", "cluster", "compose"):
        if not config.getoption(f"--run-{mark}"):
            _leave_out(config, items, [each for each in items if each.get_closest_marker(mark)])
    _leave_out(config, items, [each for each in items if _is_of_later(each)])
    form = config.getoption("--mlflow")
    _leave_out(config, items, [each for each in items if form not in mlflow_forms.forms_of(each)])
    if not os.environ.get("KUBECONFIG"):
        for each in items:
            if each.get_closest_marker("cluster"):
                each.add_marker(pytest.mark.skip(reason="needs a Kubernetes: set KUBECONFIG"))
    if lacking := engine.lacking(config.getoption("--compose-engine")):
        for each in items:
            if each.get_closest_marker("compose"):
                each.add_marker(pytest.mark.skip(reason=lacking))
    items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    return next((turn for turn, place in enumerate(FIRST) if item.nodeid.startswith(place)), len(FIRST))


def _is_of_later(item: pytest.Item) -> bool:
    """Whether a test is about what a later Airflow has brought."""
    return any(Version(mark.args[0]) > AIRFLOW for mark in item.iter_markers("airflow"))


def _leave_out(config: pytest.Config, items: list[pytest.Item], left_out: list[pytest.Item]) -> None:
    config.hook.pytest_deselected(items=left_out)
    items[:] = [each for each in items if each not in left_out]


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
    surprising = [each.nodeid for each in reporter.stats.get("skipped", []) if not _is_expected(each)]
    if surprising:
        reporter.write_line(f"skipped, and not in ALLOWED_SKIPS of tests/conftest.py: {', '.join(surprising)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _is_expected(skipped: pytest.TestReport) -> bool:
    """Whether CI accepts a skip: of the named list, and of what needs a Kubernetes, PostgreSQL, Chromium or Docker where there is none."""
    if mlflow_forms.NO_POSTGRESQL in str(skipped.longrepr):
        return mlflow_forms.postgresql_programs() is None
    if chromium.NO_CHROMIUM in str(skipped.longrepr):
        return chromium.program() is None
    if "compose" in skipped.keywords:
        return engine.lacking("stand-ins") is not None
    return skipped.nodeid in ALLOWED_SKIPS or ("cluster" in skipped.keywords and not os.environ.get("KUBECONFIG"))


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the shared server with the last process that knows of it: the one without workers above it."""
    if not hasattr(config, "workerinput"):
        servers.stop_shared(HOME)
        shutil.rmtree(INTERPRETERS, ignore_errors=True)


@pytest.fixture(scope="session")
def mlflow_servers(pytestconfig: pytest.Config) -> dict[str, MlflowServer]:
    """A real MLflow server in the form of ``--mlflow``, shared by all workers: as the ``user`` of DAGs, and as an ``admin``."""
    form = pytestconfig.getoption("--mlflow")
    if form == mlflow_forms.POSTGRESQL and mlflow_forms.postgresql_programs() is None:
        pytest.skip(mlflow_forms.NO_POSTGRESQL)
    return servers.shared_mlflow(HOME, form)


@pytest.fixture(scope="session")
def mlflow_server(mlflow_servers: dict[str, MlflowServer]) -> MlflowServer:
    """Address of the shared MLflow server (proxied artifacts), and the login or workspace that its form asks for."""
    return mlflow_servers["user"]


@pytest.fixture(scope="session")
def mlflow_url(mlflow_server: MlflowServer) -> str:
    """Address of the shared MLflow server; its form may ask for a login too: ``mlflow_server`` has both."""
    return mlflow_server.url


@pytest.fixture
def mlflow_api(mlflow_server: MlflowServer) -> Iterator[MlflowApi]:
    """A client of the shared server, with little patience."""
    api = MlflowApi(mlflow_server, Settings(patience_s=1, http_retries=1, http_timeout_s=20))
    yield api
    api.close()


@pytest.fixture(scope="session")
def airflow_db() -> None:
    """A migrated Airflow database of this worker's own: what ``dag.test()`` needs."""
    servers.airflow_database(HOME, AIRFLOW_HOME)


@pytest.fixture
def mlflow_connection(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """The connection ``mlflow_default``, pointing at the shared server."""
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", servers.connection(mlflow_server))
    return mlflow_server.url


@pytest.fixture
def unique(request: pytest.FixtureRequest) -> str:
    """A name that no other test uses, for DAGs, experiments and models on the shared server."""
    return f"{request.node.originalname or request.node.name}-{os.urandom(4).hex()}"[-200:]


@pytest.fixture
def run_dag(airflow_db: None, mlflow_connection: str) -> Callable[..., Any]:
    """Run a DAG that a test has defined with ``dag.test()``: real operators, XCom, rendering, retries; no scheduler."""
    from tests.airflow_runs import run

    return run
