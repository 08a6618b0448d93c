from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.tracking.runs import RunTree, status_of
from tests.docs.pages import ROOT


def test_the_dag_of_the_page_about_operators_for_mlflow_leaves_what_the_page_says(
    run_dag: Callable[..., Any], mlflow_api: MlflowApi
) -> None:
    spec = importlib.util.spec_from_file_location("mlflow_by_hand", ROOT / "dags/mlflow_by_hand.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    outcome = run_dag(module.mlflow_by_hand())

    assert outcome.state == "success"
    run = RunTree(mlflow_api).get(outcome.xcom("start")["run_id"])
    assert status_of(run) == "FINISHED"
    assert {each["key"]: each["value"] for each in run["data"]["metrics"]} == {"auc": 0.83}
    assert {each["key"]: each["value"] for each in run["data"]["params"]} == {"depth": "6"}
    assert [each.rpartition("/")[2] for each in outcome.xcom("log")["artifacts"]] == ["notes.md"]
    assert outcome.xcom("good")["rule"] == "auc >= 0.8"
    assert outcome.xcom("clean_up")["dry_run"] is True
    assert outcome.xcom("clean_up")["count"] == 0
