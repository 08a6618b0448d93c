"""A namespace of a real Kubernetes that is set up as ``deploy/kubernetes`` says, and a client with the rights of a worker in it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.account import SCHEDULER, make_account
from tests.cluster.kube import Kube, kubernetes


@pytest.fixture(scope="session")
def cluster() -> Iterator[Kube]:
    """A namespace that lets in only what the namespace of Airflow and that of MLflow let in."""
    with kubernetes(f"airflow-ml-deploy-{secrets.token_hex(3)}") as opened:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        opened.core.patch_namespace(opened.namespace, {"metadata": {"labels": labels}})
        yield opened


@pytest.fixture(scope="session")
def worker_config(cluster: Kube, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kubeconfig of the account that workers and the triggerer have."""
    return make_account(cluster.core, cluster.namespace, tmp_path_factory.mktemp("account"))


@pytest.fixture(scope="session")
def scheduler_config(cluster: Kube, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kubeconfig of the account that the scheduler has."""
    return make_account(cluster.core, cluster.namespace, tmp_path_factory.mktemp("account"), SCHEDULER)


@pytest.fixture(scope="session")
def as_worker(worker_config: Path) -> Iterator[Any]:
    """A client that is that account."""
    from kubernetes import config

    with config.new_client_from_config(str(worker_config)) as client:
        yield client
