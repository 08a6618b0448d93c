"""An alias moves, and a real Airflow runs the DAG that waits for it, with the version in its hands."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from airflow_ml_provider.tracking.registry import ModelRegistry
from tests.stack.conftest import Site, until

pytestmark = [pytest.mark.stack, pytest.mark.full, pytest.mark.timeout(600)]
DAG, MODEL, ALIAS = "deploy_on_promotion", "flight-delays", "champion"


@pytest.fixture
def versions(site: Site) -> Iterator[list[str]]:
    """Two versions of the model, gone afterwards: other tests begin without a champion."""
    experiment_id = site.mlflow.post("experiments/create", {"name": "events"})["experiment_id"]
    info = site.mlflow.post("runs/create", {"experiment_id": experiment_id})["run"]["info"]
    made = []
    for number in range(2):
        text = json.dumps({"number": number}).encode()
        path = info["artifact_uri"].removeprefix("mlflow-artifacts:/")
        site.mlflow.upload(f"{path}/model-{number}/weights.json", [text], len(text))
        source = f"runs:/{info['run_id']}/model-{number}"
        made.append(ModelRegistry(site.mlflow).register(MODEL, source, run_id=info["run_id"]).version)
    yield made
    with site.writing():
        site.airflow.pause(DAG, paused=True)
    site.mlflow.delete("registered-models/delete", {"name": MODEL})


def watches(site: Site) -> bool:
    """Whether the watcher has written down where the alias stands: what moves from then on is told."""
    assets = site.airflow.call("GET", "/assets", name_pattern=f"{MODEL}-{ALIAS}")["assets"]
    return any("mlflow-" in json.dumps(site.airflow.call("GET", f"/assets/{each['id']}/state-store")) for each in assets)


def test_a_moved_alias_starts_the_dag_that_deploys_its_version(site: Site, versions: list[str]) -> None:
    site.airflow.wait_for_dag(DAG, timeout_s=180)
    with site.writing():
        site.airflow.pause(DAG, paused=False)
    until("the watcher", lambda: watches(site))
    place = site.stack.state_dir / "airflow/deployments" / MODEL
    for number, version in enumerate(versions):
        site.mlflow.post("registered-models/alias", {"name": MODEL, "alias": ALIAS, "version": version})
        until("the deployment", lambda number=number: len(done(site)) > number)
        assert json.loads((place / "current/weights.json").read_text()) == {"number": number}
    read = {site.airflow.xcom(DAG, each, "read_move")["version"] for each in done(site)}
    assert read == set(versions)
    assert len(done(site)) == len(versions), "each move has started one run"


def done(site: Site) -> list[str]:
    runs = site.airflow.dag_runs(DAG)
    assert not [each for each in runs if each["state"] == "failed"]
    return [str(each["dag_run_id"]) for each in runs if each["state"] == "success"]
