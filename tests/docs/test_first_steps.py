from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.tracking.runs import Run, RunTree, run_id_of, status_of, tags_of
from tests.docs.pages import ROOT, page

NAMES = page("docs/names-and-defaults.md")
MLFLOWS_OWN = {"mlflow.runName"}


@pytest.fixture(scope="module")
def first_steps() -> Any:
    """The DAG of the first page."""
    spec = importlib.util.spec_from_file_location("first_steps", ROOT / "dags/first_steps.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.first_steps()


@pytest.fixture
def runs(first_steps: Any, run_dag: Callable[..., Any], mlflow_api: MlflowApi) -> dict[str, Run]:
    """What MLflow holds after one run of it: nested runs by their names, the parent as ``parent``."""
    outcome = run_dag(first_steps, run_conf={"why": "test"})
    assert outcome.state == "success"
    assert len(json.dumps(outcome.xcom("measure"))) < 350
    tree = RunTree(mlflow_api)
    ours = f"tags.`airflow.run_id` = '{outcome.run_id}'"
    found = tree.search([tree.experiment_id("first_steps")], ours)
    return {("parent" if "mlflow.parentRunId" not in tags_of(run) else run["info"]["run_name"]): run for run in found}


def test_the_first_dag_runs_and_is_on_record_as_the_pages_say(runs: dict[str, Run], mlflow_api: MlflowApi) -> None:
    assert runs.keys() == {"parent", "measure", "train"}
    assert {status_of(runs[name]) for name in ("measure", "train")} == {"FINISHED"}
    metrics = {each["key"]: each["value"] for each in runs["train"]["data"]["metrics"]}
    assert metrics == {"slope": pytest.approx(2.0), "trained_on.rows": 100}

    check_tags(tags_of(runs["parent"]).keys(), column=1)
    for name in ("measure", "train"):
        check_tags(tags_of(runs[name]).keys(), column=2)
    (made,) = RunTree(mlflow_api).get(run_id_of(runs["train"]))["outputs"]["model_outputs"]
    model = mlflow_api.get(f"logged-models/{made['model_id']}")["model"]["info"]
    check_tags({each["key"] for each in model["tags"]}, column=1, table="Tag of a LoggedModel")


def check_tags(found: Any, column: int, table: str = "Tag") -> None:
    """Compare tags on record with a table: all that are always there, and none that is not in it."""
    rows = {row[0].strip("`"): row[column] for row in NAMES.rows(table)}
    assert [name for name, there in rows.items() if there == "always" and name not in found] == []
    patterns = [re.sub(r"<\w+>", ".+", re.escape(name)) for name, there in rows.items() if there != "no"]
    unknown = [name for name in found if name not in MLFLOWS_OWN and not any(re.fullmatch(each, name) for each in patterns)]
    assert unknown == []
