from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.config import Settings
from demo.ports import free_ports
from demo.stack import LocalStack
from tests.cluster.account import make_account
from tests.cluster.directors import Stage
from tests.cluster.gates import Gates
from tests.cluster.kube import GPUS, IMAGE, SMALL_IMAGE, Kube, kubernetes
from tests.servers import running
from tests.site import Site

HERE = Path(__file__).parent
EXAMPLE = HERE.parent.parent / "dags/gpu_training.py"
PATIENCE_S = 150
"""More than any outage here lasts, with the time that Kubernetes takes to come back."""


@pytest.fixture(scope="session")
def kube() -> Iterator[Kube]:
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("needs a Kubernetes: set KUBECONFIG")
    with kubernetes(f"airflow-ml-{secrets.token_hex(3)}") as opened:
        yield opened


@pytest.fixture(scope="session")
def gates() -> Iterator[Gates]:
    with Gates().serving() as opened:
        yield opened


PRELOAD = """
import kubernetes.client
import pydantic
import airflow_ml_provider.operators.pod
"""
"""Of every process of Airflow, from which tasks are forked: half of what a task costs here is imports."""


def environment(kube: Kube, gates: Gates, port: int, home: Path) -> dict[str, str]:
    server: dict[str, Any] = {"conn_type": "mlflow", "host": f"http://127.0.0.1:{port}"}
    server["extra"] = {"pod_url": f"http://{kube.expose(port)}"}
    cluster = {"kube_config_path": str(make_account(kube.core, kube.namespace, home)), "namespace": kube.namespace}
    return {
        "AIRFLOW_HOME": str(home / "state/airflow"),
        "AIRFLOW_CONN_MLFLOW_DEFAULT": json.dumps(server),
        "AIRFLOW_CONN_MLFLOW_LOGIN": json.dumps({**server, "login": "me", "password": "my-secret-word"}),
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps({"conn_type": "kubernetes", "extra": cluster}),
        "AIRFLOW__CORE__PARALLELISM": "24",  # the twenty that wait in a worker; else max_active_tasks is the limit
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "120",  # a busy machine is no dead scheduler
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "600",  # the processors are for the tasks
        "AIRFLOW__ML__PATIENCE_S": str(PATIENCE_S),
        "AIRFLOW__ML__SPOOL": str(home / "spool"),
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "15",
        "CLUSTER_IMAGE": IMAGE,
        "CLUSTER_SMALL_IMAGE": SMALL_IMAGE,
        "GPU_TRAINING_SIZE": "small",
        "GPU_TRAINING_IMAGE": IMAGE,
        "TEST_GATES": f"http://{kube.expose(gates.port)}",
    }


@pytest.fixture(scope="session")
def site(kube: Kube, gates: Gates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A real Airflow and a real MLflow, which pods reach."""
    home = tmp_path_factory.mktemp("cluster")
    (home / "example").mkdir()
    shutil.copy(EXAMPLE, home / "example")
    (home / "state/airflow/config").mkdir(parents=True)
    (home / "state/airflow/config/airflow_local_settings.py").write_text(PRELOAD)
    (port,) = free_ports(1)
    settings = environment(kube, gates, port, home)
    stack = LocalStack(home / "state", dags=(HERE / "dags", home / "example"), environment=settings, mlflow_port=port)
    with running(stack, Settings(http_timeout_s=60, http_retries=3)) as (airflow, mlflow):
        yield Site(stack, airflow, mlflow)


@pytest.fixture(scope="session")
def stage(site: Site, kube: Kube, gates: Gates) -> Iterator[Stage]:
    before = kube.gpus_now()
    with ThreadPoolExecutor(100) as pool:
        yield Stage(site, kube, gates, pool)
        gates.close()
    if GPUS:
        kube.gpus(before)
