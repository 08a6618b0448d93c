"""Commands run in this process against the shared MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from tests.lineage.nights import Night


@pytest.fixture(autouse=True)
def server_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set what the first command would set, so that it is gone after the test."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "server")


@pytest.fixture
def night(mlflow_api: MlflowApi, mlflow_connection: str, tmp_path: Path, unique: str) -> Night:
    """An empty night, on the server that the commands see as ``mlflow_default``."""
    return Night(mlflow_api, tmp_path, unique)
