"""Airflow's own API server application in this process, with our pages in it, and people who ask it."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.run import Attempt, OpenRun, StepIdentity
from airflow_ml_provider.tracking.runs import RunTree

BASE = "http://airflow.test"


class Browser:
    """
    Somebody who asks the application, and follows no redirection.

    :param app: Airflow's application.
    :param token: Who it is; empty for nobody.
    """

    def __init__(self, app: Any, token: str) -> None:
        self.app = app
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def get(self, address: str) -> httpx.Response:
        async def ask() -> httpx.Response:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=BASE, headers=self.headers) as client:
                return await client.get(address)

        return asyncio.run(ask())


@pytest.fixture(scope="module")
def server(airflow_db: None) -> Iterator[Any]:
    """The application, which finds our plugin by its entry point; users may read the DAG of their name alone."""
    patch = pytest.MonkeyPatch()
    patch.setenv("AIRFLOW__CORE__AUTH_MANAGER", "tests.plugin.airflow_users.DagByDag")
    patch.setenv("AIRFLOW__API_AUTH__JWT_SECRET", "a secret of the tests that is long enough, 64 letters or more: it is now")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Airflow itself
        from airflow.api_fastapi.app import create_app, purge_cached_app

        purge_cached_app()
        yield create_app("core")
        purge_cached_app()
    patch.undo()


@pytest.fixture
def person(server: Any) -> Callable[..., Browser]:
    """Somebody who asks: logged in under a name, or nobody."""

    def make(name: str = "", role: str = "viewer") -> Browser:
        from airflow.api_fastapi.app import get_auth_manager
        from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser

        token = get_auth_manager().generate_jwt(SimpleAuthManagerUser(username=name, role=role)) if name else ""
        return Browser(server, token)

    return make


@pytest.fixture
def record(mlflow_api: MlflowApi) -> Callable[..., OpenRun]:
    """Make the MLflow runs of a DAG run, as its first step does."""

    def make(dag_id: str, run_id: str, experiment: str = "") -> OpenRun:
        identity = StepIdentity(dag_id=dag_id, run_id=run_id, task_id="train")
        attempt = Attempt(identity=identity, try_number=1, ti_id=run_id, dag_run_tags={"airflow.run_type": "manual"})
        return RunTree(mlflow_api).open(experiment or dag_id, attempt)

    return make
