"""KubernetesExecutor runs the nightly DAG: each task in a pod of ``deploy/kubernetes/worker-pod.yaml``, under the rights of ``rbac.yaml``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.models.run import DagRunIdentity
from airflow_ml_provider.tracking.registry import ModelRegistry
from airflow_ml_provider.tracking.runs import RunTree, run_id_of, status_of
from demo.ports import free_ports
from demo.stack import LocalStack
from tests.cluster.account import FOLDER, objects
from tests.cluster.kube import Kube
from tests.servers import running
from tests.site import Site, until

IMAGE = os.environ.get("CLUSTER_AIRFLOW_IMAGE", "")
DAG = "nightly_flight_delays"
DAGS = FOLDER.parents[1] / "dags"
STEPS = {"collect", "validate", "features", "train", "evaluate", "gate", "promote", "report"}
pytestmark = [
    pytest.mark.cluster,
    pytest.mark.full,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not IMAGE, reason="needs CLUSTER_AIRFLOW_IMAGE, an image of docker/airflow.txt, our wheel and dags/"),
]


def make_volume(kube: Kube, name: str, folder: Path) -> None:
    """Give a claim a folder of this machine: the cluster has no storage classes."""
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    wanted: dict[str, Any] = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume: dict[str, Any] = {
        "capacity": {"storage": "1Gi"},
        "hostPath": {"path": str(folder)},
        "claimRef": {"name": name, "namespace": kube.namespace},
    }
    volume |= {"accessModes": wanted["accessModes"], "persistentVolumeReclaimPolicy": "Retain", "storageClassName": ""}
    kube.core.create_persistent_volume({"metadata": {"name": f"{kube.namespace}-{name}"}, "spec": volume})
    claim = {**wanted, "volumeName": f"{kube.namespace}-{name}", "resources": {"requests": {"storage": "1Gi"}}}
    kube.core.create_namespaced_persistent_volume_claim(kube.namespace, {"metadata": {"name": name}, "spec": claim})


def prepare(kube: Kube, home: Path, airflow_port: int, mlflow_port: int) -> None:
    """Make what a task's pod needs: the ConfigMap that the chart makes, the Secret of the page, the volumes."""
    bundle: dict[str, Any] = {
        "name": "dags",
        "classpath": "airflow.dag_processing.bundles.local.LocalDagBundle",
        "kwargs": {"path": "/opt/airflow/dags"},
    }
    lines = [
        "[core]",
        "executor = KubernetesExecutor",
        f"execution_api_server_url = http://{kube.expose(airflow_port)}/execution/",
        "[dag_processor]",
        f"dag_bundle_config_list = {json.dumps([bundle])}",
        "[ml]",
        "spool = /opt/airflow/ml-spool",
        "[workers]",
        "execution_api_timeout = 60",
    ]
    config = {"metadata": {"name": "airflow-config"}, "data": {"airflow.cfg": "\n".join(lines)}}
    kube.core.create_namespaced_config_map(kube.namespace, config)
    server = json.dumps({"conn_type": "mlflow", "host": f"http://{kube.expose(mlflow_port)}"})
    secret = {"metadata": {"name": "airflow-connections"}, "stringData": {"AIRFLOW_CONN_MLFLOW_DEFAULT": server}}
    kube.core.create_namespaced_secret(kube.namespace, secret)
    make_volume(kube, "airflow-logs", home / "airflow/logs")
    make_volume(kube, "airflow-spool", home / "spool")


def settings_of(kube: Kube, scheduler_config: Path) -> dict[str, str]:
    """What makes a stack give its tasks to the cluster."""
    section = "AIRFLOW__KUBERNETES_EXECUTOR__"
    repository, _, tag = IMAGE.rpartition(":")
    return {
        "AIRFLOW__CORE__EXECUTOR": "KubernetesExecutor",
        f"{section}IN_CLUSTER": "False",
        f"{section}CONFIG_FILE": str(scheduler_config),
        f"{section}NAMESPACE": kube.namespace,
        f"{section}POD_TEMPLATE_FILE": str(FOLDER / "worker-pod.yaml"),
        f"{section}WORKER_CONTAINER_REPOSITORY": repository,
        f"{section}WORKER_CONTAINER_TAG": tag,
        f"{section}DELETE_WORKER_PODS": "False",
    }


@pytest.fixture(scope="module")
def site(cluster: Kube, worker_config: Path, scheduler_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A real Airflow outside of the cluster, whose tasks run in it."""
    home = tmp_path_factory.mktemp("executor")
    airflow_port, mlflow_port = free_ports(2)
    prepare(cluster, home, airflow_port, mlflow_port)
    settings = settings_of(cluster, scheduler_config)
    stack = LocalStack(home, dags=(DAGS,), environment=settings, airflow_port=airflow_port, mlflow_port=mlflow_port)
    try:
        with running(stack, Settings(http_timeout_s=60, http_retries=3)) as (airflow, mlflow):
            yield Site(stack, airflow, mlflow)
    finally:
        for name in ("airflow-logs", "airflow-spool"):
            cluster.core.delete_persistent_volume(f"{cluster.namespace}-{name}")


def pods_of(kube: Kube) -> list[Any]:
    """Every pod of the DAG, when the last one has ended: a task tells of its end before its pod does."""
    pods = list(kube.core.list_namespaced_pod(kube.namespace, label_selector=f"kubernetes_executor=True,dag_id={DAG}").items)
    return pods if {each.status.phase for each in pods} == {"Succeeded"} else []


def records_of(site: Site, run_id: str) -> dict[str, str]:
    """The state of each run in MLflow, below the one parent."""
    tree = RunTree(site.mlflow)
    (parent,) = tree.find_parents(tree.experiment_id(DAG), DagRunIdentity(dag_id=DAG, run_id=run_id))
    runs = tree.search([tree.experiment_id(DAG)], f"tags.`mlflow.parentRunId` = '{run_id_of(parent)}'")
    return {str(each["info"]["run_name"]): status_of(each) for each in runs}


def test_the_nightly_dag_runs_in_pods_and_leaves_its_record(site: Site, cluster: Kube) -> None:
    run_id = site.start(DAG, logical_date=datetime(2013, 11, 6, 7, tzinfo=UTC))
    state = site.finish(DAG, run_id, 1800)
    states = {each["task_id"]: each["state"] for each in site.airflow.task_instances(DAG, run_id)}
    assert (state, states) == ("success", dict.fromkeys(STEPS, "success"))
    # One pod for each task, as the template says: the account, the user, the Secret, and nothing of Airflow's keys.
    (template,) = objects("worker-pod.yaml")
    pods = until("pods that have ended", lambda: pods_of(cluster), 60)
    assert sorted(each.metadata.annotations["task_id"] for each in pods) == sorted(STEPS)
    for each in pods:
        assert each.spec.service_account_name == template["spec"]["serviceAccountName"]
        assert each.spec.security_context.run_as_user == template["spec"]["securityContext"]["runAsUser"]
        assert {one.name for one in each.spec.containers[0].env} == {"AIRFLOW_HOME", "AIRFLOW_IS_K8S_EXECUTOR_POD"}
    assert records_of(site, run_id) == dict.fromkeys(STEPS, "FINISHED")
    assert ModelRegistry(site.mlflow).find("flight-delays", "champion") is not None
    # Logs and spool are on the volumes: a task's log is there when its pod is not, and nothing waits to be sent.
    assert "MLflow run: " in site.log_text(DAG, run_id, "train")
    assert not [each for each in (site.stack.state_dir / "spool").rglob("*") if each.is_file()]


def test_the_scheduler_has_only_handled_pods(site: Site) -> None:
    """What it was not allowed to do would stand in its log."""
    refused: list[Any] = [
        each for each in site.stack.log_file("scheduler").read_text().splitlines() if "forbidden" in each.lower()
    ]
    assert refused == []
