"""A model is promoted, and a real Airflow runs the DAG that is scheduled on its asset, with the version in its hands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.stack.conftest import Site, until

pytestmark = [pytest.mark.stack, pytest.mark.full, pytest.mark.timeout(600)]
MAKES, USES, MODEL = "fit_line", "use_line", "line"


@pytest.fixture
def dags(site: Site) -> Iterator[tuple[str, str]]:
    """Both unpaused; the model is gone afterwards."""
    site.airflow.wait_for_dag(USES, timeout_s=180)
    with site.writing():
        site.airflow.pause(USES, paused=False)
    yield MAKES, USES
    for each in (MAKES, USES):
        with site.writing():
            site.airflow.pause(each, paused=True)
    site.mlflow.delete("registered-models/delete", {"name": MODEL})


def test_a_promoted_model_starts_the_dag_that_is_scheduled_on_it(site: Site, dags: tuple[str, str]) -> None:
    site.start(MAKES)
    until("the DAG that uses it", lambda: [each for each in site.airflow.dag_runs(USES) if each["state"] == "success"])
    (run,) = site.airflow.dag_runs(USES)
    assert run["run_type"] == "asset_triggered"
    assert site.airflow.xcom(USES, run["dag_run_id"], "read_version") == f"models:/{MODEL}/1"
    assert site.airflow.xcom(USES, run["dag_run_id"], "predict") == 21.0
    (asset,) = [each for each in site.airflow.call("GET", "/assets")["assets"] if each["uri"].endswith(f"/models/{MODEL}")]
    assert [each["dag_id"] for each in asset["scheduled_dags"]] == [USES]
    assert [(each["dag_id"], each["task_id"]) for each in asset["producing_tasks"]] == [(MAKES, "promote")]
