from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import PAGES, Page, page

WITH_CODE = [each for each in map(Page, PAGES) if each.code.strip()]
REFUSED = "wrong"
"""The DAG of the pages that shows what is refused."""


def load(of: Page, folder: Path) -> dict[str, Any]:
    """Load the snippets of a page as one DAG file."""
    from airflow.dag_processing.dagbag import DagBag

    file = folder / f"{of.path.stem.replace('-', '_')}.py"
    file.write_text(of.code)
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


def test_the_dags_of_the_page_about_steps_run(run_dag: Callable[..., Any], tmp_path: Path) -> None:
    dags = load(page("docs/steps.md"), tmp_path)
    assert {name: run_dag(dag).state for name, dag in dags.items() if name != REFUSED} == {
        "one_after_the_other": "success",
        "with_a_plain_task": "success",
        "fan_out_and_in": "success",
        "against_the_champion": "success",
        "with_calls_of_ones_own": "success",
    }


def test_there_are_snippets() -> None:
    assert {str(each) for each in WITH_CODE} >= {"README.md", "docs/steps.md", "docs/gate-and-promotion.md", "docs/pods.md"}
