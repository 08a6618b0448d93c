from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from tests.step.pods import Pod


@pytest.fixture
def new_pod(mlflow_api: MlflowApi, tmp_path: Path) -> Callable[..., Pod]:
    """Makes pods of one step, all tries of the same nested run on the shared server."""
    body = {"experiment_id": "0", "start_time": time.time_ns() // 1_000_000}
    info = mlflow_api.post("runs/create", body, repeatable=False)["run"]["info"]
    root = urlsplit(info["artifact_uri"]).path.strip("/")

    def make(name: str = "pod", url: str = mlflow_api.server.url) -> Pod:
        return Pod(tmp_path / name, url, info["run_id"], root)

    return make


@pytest.fixture
def pod(new_pod: Callable[..., Pod]) -> Pod:
    return new_pod()
