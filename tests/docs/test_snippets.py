from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import PAGES, ROOT, Page, page

WITH_CODE = [each for each in map(Page, PAGES) if each.code.strip()]
MODEL = "flight-delays"
RUN = {
    "README.md": ["tests/docs/test_first_steps.py"],
    "docs/quickstart.md": ["tests/docs/test_first_steps.py"],
    "docs/steps.md": ["tests/docs/test_snippets.py"],
    "docs/assets.md": ["tests/assets/test_example.py", "tests/stack/test_assets.py"],
    "docs/openlineage.md": ["tests/lineage/test_openlineage.py"],
    "docs/alerts.md": ["tests/stack/test_alerts.py"],
    "docs/cache.md": ["tests/stack/test_nightly.py", "tests/operators/test_cache.py"],
    "docs/gate-and-promotion.md": ["tests/stack/test_nightly.py", "tests/stack/test_approval.py"],
    "docs/kfp-local.md": ["tests/operators/test_kfp_local.py"],
    "docs/kfp-runs.md": ["tests/operators/test_kfp_results.py", "tests/stack/test_kfp_scenes.py"],
    "docs/migration.md": ["tests/operators/test_step.py", "tests/operators/test_kfp_results.py"],
    "docs/mlflow-operators.md": [
        "tests/docs/test_mlflow_by_hand.py",
        "tests/operators/test_mlflow_experiments_and_runs.py",
        "tests/operators/test_mlflow_predict.py",
        "tests/operators/test_mlflow_models.py",
        "tests/operators/test_mlflow_cleanup.py",
    ],
    "docs/mlflow-sensors-and-events.md": ["tests/sensors/test_mlflow.py", "tests/triggers/test_mlflow_deploy.py"],
    "docs/pod-step.md": ["tests/operators/test_pod_cluster.py"],
    "docs/pods.md": ["tests/operators/test_pod_cluster.py"],
}
"""Where the DAGs of a page are run, or the operators that they show: with other data, servers and clusters than a page has."""

REFUSED = "wrong"
"""The DAG of the pages that shows what is refused."""


def load(of: Page, folder: Path, model: str = MODEL) -> dict[str, Any]:
    """Load the snippets of a page as one DAG file, the registered model by another name."""
    from airflow.dag_processing.dagbag import DagBag

    file = folder / f"{of.path.stem.replace('-', '_')}.py"
    file.write_text(of.code.replace(MODEL, model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Airflow itself
        bag = DagBag(dag_folder=str(file), collect_dags=True)
    assert bag.import_errors == {}
    return dict(bag.dags)


@pytest.mark.parametrize("of", WITH_CODE, ids=str)
def test_the_snippets_of_a_page_are_a_dag_file_that_loads(of: Page, tmp_path: Path, airflow_db: None) -> None:
    dags = load(of, tmp_path)
    assert len(dags) == of.code.count("\n@dag(")
    assert all(dag.tasks for dag in dags.values())


def test_the_dags_of_the_page_about_steps_run(run_dag: Callable[..., Any], unique: str, tmp_path: Path) -> None:
    dags = load(page("docs/steps.md"), tmp_path, unique)
    assert {name: run_dag(dag).state for name, dag in dags.items() if name != REFUSED} == {
        "one_after_the_other": "success",
        "with_a_plain_task": "success",
        "fan_out_and_in": "success",
        "against_the_champion": "success",
        "with_calls_of_ones_own": "success",
    }


def test_every_dag_of_a_page_is_run_here_or_elsewhere() -> None:
    with_dags = {str(each) for each in WITH_CODE if "\n@dag(" in each.code}
    assert with_dags == RUN.keys(), "name the page, and where its DAGs or their operators are run"
    missing = [place for places in RUN.values() for place in places if not (ROOT / place).is_file()]
    assert missing == []


def test_there_are_snippets() -> None:
    assert {str(each) for each in WITH_CODE} >= {"README.md", "docs/steps.md", "docs/gate-and-promotion.md", "docs/pods.md"}
