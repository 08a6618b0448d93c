"""Steps that end well where what they made cannot be stored: closed as failed, with the remedy, and the record kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pendulum
import pytest
from airflow.sdk import dag

from airflow_ml_provider import Artifact, Dataset, Metrics, Output, ml_task
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.tracking import spool
from airflow_ml_provider.tracking.runs import Run, RunTree, status_of, tags_of

START = pendulum.datetime(2024, 1, 1)


def only_step(api: MlflowApi, dag_id: str) -> Run:
    tree = RunTree(api)
    (run,) = tree.search([tree.experiment_id(dag_id)], "tags.`mlflow.parentRunId` != ''")
    return run


def test_a_missing_client_library_is_named_and_costs_no_record(
    run_dag: Any, unique: str, mlflow_api: MlflowApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ML__SPOOL", str(tmp_path / "spool"))
    monkeypatch.setitem(sys.modules, "boto3", None)  # its import fails then, installed or not
    mlflow_api.post("experiments/create", {"name": unique, "artifact_location": f"s3://{unique.lower()}/x"})

    @ml_task
    def train(table: Output[Dataset], metrics: Output[Metrics]) -> None:
        Path(table.path).write_text("hours of work")
        metrics.log_metric("auc", 0.9)

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        train()

    assert run_dag(example()).task("train") == "failed"
    run = only_step(mlflow_api, unique)
    assert (status_of(run), run["data"]["metrics"][0]["value"]) == ("FAILED", 0.9)
    said = tags_of(run)["airflow.error"]
    assert said.startswith("ConfigError: ")
    assert "pip install boto3" in said
    (kept,) = (tmp_path / "spool").rglob("record.json")
    assert f"airflow-ml resend {kept.parent}" in said.replace("file://", "")
    assert [each.name for each in spool.read(str(kept.parent)).outputs] == ["table", "metrics"]


def test_an_output_file_that_cannot_be_read_fails_the_step_and_closes_its_run(
    run_dag: Any, unique: str, mlflow_api: MlflowApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ML__SPOOL", str(tmp_path / "spool"))

    @ml_task
    def train(folder: Output[Artifact], metrics: Output[Metrics]) -> None:
        Path(folder.path).mkdir()
        (Path(folder.path) / "memory").symlink_to("/proc/self/mem")  # opens, and answers every read with an error
        metrics.log_metric("auc", 0.9)

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        train()

    assert run_dag(example()).task("train") == "failed"
    run = only_step(mlflow_api, unique)
    assert (status_of(run), run["data"]["metrics"][0]["value"]) == ("FAILED", 0.9)
    assert "folder/memory cannot be read, so it cannot be stored" in tags_of(run)["airflow.error"]
