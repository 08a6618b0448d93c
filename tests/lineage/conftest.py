from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from tests.lineage.nights import Counted, Night


@pytest.fixture
def night(mlflow_api: MlflowApi, tmp_path: Path, unique: str) -> Night:
    """A DAG run whose bytes no other test has."""
    return Night(mlflow_api, tmp_path, unique, salt=unique)


@pytest.fixture
def counted(mlflow_api: MlflowApi) -> Iterator[Counted]:
    """A client of the shared server that tells what it has asked for."""
    with Counted(mlflow_api.server, mlflow_api.settings) as api:
        api.sent = []
        yield api
