from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.hooks.kfp import KfpApi
from airflow_ml_provider.hooks.kfp_server import KfpServer
from airflow_ml_provider.jobs.kfp import KfpJobs
from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog
from airflow_ml_provider.jobs.kfp_submission import Submission
from airflow_ml_provider.testing import FakeKfpServer

SPEC: dict[str, Any] = {
    "schemaVersion": "2.1.0",
    "sdkVersion": "kfp-2.17.0",
    "pipelineInfo": {"name": "one-step"},
    "deploymentSpec": {"executors": {"exec-step": {"container": {"image": "busybox:1.36", "command": ["true"]}}}},
    "components": {"comp-step": {"executorLabel": "exec-step"}},
    "root": {"dag": {"tasks": {"step": {"componentRef": {"name": "comp-step"}, "taskInfo": {"name": "step"}}}}},
}
"""A pipeline of one step without parameters."""


class Store(dict[str, Any]):
    """A state store as Airflow's, kept by the test."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


@pytest.fixture
def server() -> Iterator[FakeKfpServer]:
    with FakeKfpServer() as server:
        yield server


@pytest.fixture
def api(server: FakeKfpServer) -> Iterator[KfpApi]:
    with KfpApi(KfpServer("kfp_default", server.url), Settings(http_timeout_s=5, http_retries=1)) as api:
        yield api


@pytest.fixture
def jobs(api: KfpApi) -> KfpJobs:
    return KfpJobs(api)


@pytest.fixture
def catalog(api: KfpApi) -> KfpCatalog:
    return KfpCatalog(api)


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def submission(jobs: KfpJobs, catalog: KfpCatalog, store: Store) -> Callable[..., Submission]:
    """Make what a try has; the store outlives it. Its pauses are a tenth as long."""

    def make(**kwargs: Any) -> Submission:
        usual = {"patience_s": 10, "settle_s": 1, "sleep": lambda seconds: time.sleep(seconds / 10)}
        return Submission(**({"jobs": jobs, "catalog": catalog, "memory": store} | usual | kwargs))

    return make
