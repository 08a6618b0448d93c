"""The example that deploys a champion, started by hand; tests/stack has the alias that starts it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.tracking.registry import ModelRegistry

FILE = Path(__file__).parents[2] / "dags/deploy_on_promotion.py"


def load() -> Any:
    spec = importlib.util.spec_from_file_location("deploy_on_promotion", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_with_model(api: MlflowApi, experiment: str, text: str) -> str:
    """Log a model of one file; give the id of its run."""
    experiment_id = api.post("experiments/create", {"name": experiment})["experiment_id"]
    info = api.post("runs/create", {"experiment_id": experiment_id})["run"]["info"]
    path = info["artifact_uri"].removeprefix("mlflow-artifacts:/")
    api.upload(f"{path}/model/weights.json", [text.encode()], len(text.encode()))
    return str(info["run_id"])


def test_it_writes_the_version_of_the_alias_to_a_folder_once(
    run_dag: Callable[..., Any], mlflow_api: MlflowApi, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_HOME", str(tmp_path))  # where it deploys to; Airflow itself has read its own before
    text = json.dumps({"slope": 2.0})
    registry = ModelRegistry(mlflow_api)
    made = load()
    run_id = run_with_model(mlflow_api, unique, text)
    version = registry.register(made.MODEL, f"runs:/{run_id}/model", run_id=run_id).version
    mlflow_api.post("registered-models/alias", {"name": made.MODEL, "alias": made.ALIAS, "version": version})
    for _ in range(2):
        outcome = run_dag(made.deploy_on_promotion())
        assert outcome.state == "success", outcome.tasks
    place = tmp_path / "deployments" / made.MODEL
    assert (place / "current/weights.json").read_text() == text
    assert len([each for each in place.iterdir() if not each.is_symlink()]) == 1
    assert outcome.xcom("read_move")["version"] == version
