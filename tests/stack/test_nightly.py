"""The main job, whole: the nightly DAG through a real scheduler, with a worker and MLflow killed on the way."""

from __future__ import annotations

import json
import os
import signal
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from airflow_ml_provider.lineage.difference import diff
from airflow_ml_provider.lineage.impact import impact
from airflow_ml_provider.lineage.query import trace
from airflow_ml_provider.lineage.trained import trained_on
from airflow_ml_provider.models.lineage import DatasetNode
from airflow_ml_provider.models.reference import StepOutputs
from airflow_ml_provider.tracking.artifacts import ArtifactStore
from airflow_ml_provider.tracking.registry import ModelRegistry
from airflow_ml_provider.tracking.runs import run_id_of, status_of, tags_of
from tests.stack.conftest import Site, until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(1200)]
DAG, MODEL = "nightly_flight_delays", "flight-delays"
STEPS = {"collect", "validate", "features", "train", "evaluate", "gate", "promote", "report"}


def night(day: int) -> datetime:
    return datetime(2013, 11, day, 2, tzinfo=ZoneInfo("America/New_York"))


@pytest.fixture(scope="module")
def first_night(site: Site) -> str:
    """One night, during which the worker of the training step and MLflow are killed."""
    run_id = site.start(DAG, logical_date=night(6))
    os.kill(until("the worker of train", lambda: site.worker(DAG, run_id, "train"), 300), signal.SIGKILL)
    until("evaluate", lambda: site.task_state(DAG, run_id, "evaluate")[0] == "running", 300)
    site.stack.kill("mlflow")
    site.stack.restart("mlflow")
    assert site.finish(DAG, run_id, 600) == "success"
    return run_id


def test_the_night_survives_a_killed_worker_and_a_killed_mlflow(site: Site, first_night: str) -> None:
    states = {each["task_id"]: each["state"] for each in site.airflow.task_instances(DAG, first_night)}
    assert states == dict.fromkeys(STEPS, "success")
    assert site.task_state(DAG, first_night, "train")[1] >= 2


def test_every_step_has_one_nested_run_below_one_parent(site: Site, first_night: str) -> None:
    runs = site.nested(DAG, first_night)
    assert runs.keys() == STEPS
    assert {status_of(each) for each in runs.values()} == {"FINISHED"}
    until("the parent closed", lambda: status_of(site.parent(DAG, first_night)) == "FINISHED", 60)
    assert int(tags_of(runs["train"])["airflow.try_number"]) >= 2
    assert all(tags_of(each)["airflow.logical_date"] == "2013-11-06T07:00:00+00:00" for each in runs.values())


def test_datasets_models_and_metrics_are_on_record(site: Site, first_night: str) -> None:
    runs = site.nested(DAG, first_night)
    names = {each["dataset"]["name"] for each in runs["features"]["inputs"]["dataset_inputs"]}
    assert names == {"flights", "weather"}
    metrics = {each["key"]: each["value"] for each in runs["evaluate"]["data"]["metrics"]}
    assert 0.5 < metrics["auc"] < 1
    history = site.mlflow.get("metrics/get-history", run_id=run_id_of(runs["train"]), metric_key="train_loss")["metrics"]
    assert len({each["step"] for each in history}) > 10
    assert len(runs["train"]["outputs"]["model_outputs"]) >= 1


def test_the_champion_is_the_model_of_that_night_and_loads_with_its_signature(
    site: Site, first_night: str, tmp_path: Any
) -> None:
    version = ModelRegistry(site.mlflow).find(MODEL, "champion")
    assert version is not None
    made = site.airflow.xcom(DAG, first_night, "train")["outputs"]["model"]
    assert made["uri"] == version.source
    import mlflow

    from airflow_ml_provider.models.reference import ArtifactRef

    store = ArtifactStore(site.mlflow)
    ref = store.resolve(ArtifactRef(type="Model", name="model", uri=f"models:/{MODEL}@champion"))
    local, written = store.fetch(ref, tmp_path)
    assert written.sha256 == made["sha256"]
    assert mlflow.models.get_model_info(str(local)).signature is not None


def test_the_way_back_from_the_champion_ends_at_the_raw_data(site: Site, first_night: str) -> None:
    asked = site.stack.run("airflow-ml", "lineage", f"models:/{MODEL}@champion", "--json")
    assert asked.returncode == 0, asked.stderr
    said = json.dumps(json.loads(asked.stdout))
    for word in ("train", "features", "validate", "flights", "weather", "table"):
        assert word in said


def test_the_night_answers_which_data_trained_the_champion_and_what_has_to_be_trained_again(site: Site, first_night: str) -> None:
    version = ModelRegistry(site.mlflow).find(MODEL, "champion")
    assert version is not None
    runs = {name: run_id_of(each) for name, each in site.nested(DAG, first_night).items()}
    up = trace(site.mlflow, f"models:/{MODEL}@champion")
    assert {each.name: each.run_id for each in up.runs} == {
        name: runs[name] for name in ("train", "features", "validate", "collect")
    }
    (table,) = [up.by_id[edge.source] for edge in up.into(f"run:{runs['train']}")]
    assert isinstance(table, DatasetNode)
    outputs = StepOutputs.from_json(site.airflow.xcom(DAG, first_night, "features"))
    assert (table.sha256, table.run_id) == (outputs.ref("table").sha256, runs["features"])
    rows = table.numbers["rows"]
    assert rows > 10_000
    raw = {each.name: each for each in up.datasets if each.run_id is None}
    assert raw.keys() == {"flights_file", "weather_file"}
    assert Path(raw["flights_file"].uri or "").stat().st_size == raw["flights_file"].size

    found = {words: trained_on(site.mlflow, words).graph.versions for words in ("rows > 10000", f"rows > {rows:.0f}")}
    named = {words: {(each.name, each.version) for each in some} for words, some in found.items()}
    assert (MODEL, version.version) in named["rows > 10000"] - named[f"rows > {rows:.0f}"]

    wrong = impact(site.mlflow, raw["flights_file"].uri or "")
    assert "champion" in {
        alias for each in wrong.models if each.run and each.run.run_id == runs["train"] for alias in each.aliases
    }
    # The promotion has no input of its own; the gate and the evaluation have read the model.
    assert {each.task_id for each in wrong.tasks} >= {"collect", "validate", "features", "train", "evaluate", "gate"}
    assert all(first_night in each.dag_run_ids for each in wrong.tasks)


def test_xcom_holds_references_and_no_secret(site: Site, first_night: str) -> None:
    for step in STEPS - {"gate", "promote"}:
        value = site.airflow.xcom(DAG, first_night, step)
        assert len(json.dumps(value)) < 2000
        assert value["version"] == 1


def test_without_connections_the_log_says_once_that_nobody_will_hear(site: Site, first_night: str) -> None:
    log = str(site.airflow.task_log(DAG, first_night, "promote"))
    assert log.count("Nobody will hear of promoted") == 1
    assert "there is no connection 'slack_ml' for slack" in log
    assert "there is no connection 'smtp_default' for email" in log


def test_the_report_is_a_page_among_the_artifacts(site: Site, first_night: str, tmp_path: Any) -> None:
    outputs = StepOutputs.from_json(site.airflow.xcom(DAG, first_night, "report"))
    page, _ = ArtifactStore(site.mlflow).fetch(outputs.ref("page"), tmp_path)
    assert page.read_text().startswith("<!doctype html>")


def backfill(site: Site, first: str, last: str, *options: str) -> list[dict[str, Any]]:
    """Fill in nights with Airflow's own command, and wait until all have ended well."""

    def idle() -> bool:
        return all(each["completed_at"] for each in site.airflow.call("GET", "/backfills", dag_id=DAG)["backfills"])

    until("the end of the backfill before", idle)  # Airflow writes it down every 30 s, and takes one at a time
    before = {each["dag_run_id"] for each in site.airflow.dag_runs(DAG)}
    writers = ("scheduler", "dag-processor")
    for each in writers:  # the command reads and then writes in one transaction, which SQLite refuses beside another writer
        site.stack.kill(each)
    asked = site.stack.run("airflow", "backfill", "create", "--dag-id", DAG, "--from-date", first, "--to-date", last, *options)
    for each in writers:
        site.stack.restart(each)
    assert asked.returncode == 0, asked.stdout + asked.stderr

    def over() -> Any:
        runs = [each for each in site.airflow.dag_runs(DAG) if each["dag_run_id"] not in before]
        return runs and all(each["state"] in {"success", "failed"} for each in runs) and runs

    runs: list[dict[str, Any]] = until("the backfill", over, 1100)
    assert {each["state"] for each in runs} == {"success"}
    return runs


@pytest.mark.full
def test_nights_that_are_filled_in_backwards_never_replace_a_newer_champion(site: Site, first_night: str) -> None:
    before = ModelRegistry(site.mlflow).find(MODEL, "champion")
    assert before is not None
    runs = backfill(site, "2013-11-04T00:00:00-05:00", "2013-11-05T03:00:00-05:00", "--run-backwards")
    assert len(runs) == 2
    verdicts = [site.airflow.xcom(DAG, each["dag_run_id"], "gate")["decision"] for each in runs]
    assert set(verdicts) == {"keep"}
    assert ModelRegistry(site.mlflow).find(MODEL, "champion") == before


@pytest.fixture(scope="module")
def last_night(site: Site, first_night: str) -> str:
    """A night by hand, without a date."""
    run_id = site.start(DAG)
    assert site.finish(DAG, run_id, 600) == "success"
    return run_id


@pytest.mark.full
def test_a_run_by_hand_without_a_date_takes_the_last_night(site: Site, last_night: str) -> None:
    params = {each["key"]: each["value"] for each in site.nested(DAG, last_night)["validate"]["data"]["params"]}
    assert params == {"day": "2013-12-31"}


@pytest.mark.full
def test_what_changed_from_one_night_to_the_next_is_told_and_their_raw_data_stands_for_both(
    site: Site, first_night: str, last_night: str
) -> None:
    nights = [StepOutputs.from_json(site.airflow.xcom(DAG, each, "train")).ref("model").uri for each in (first_night, last_night)]
    found = diff(site.mlflow, *nights)
    changes = {(each.what, each.where, each.name): (each.before, each.after) for each in found.changes}
    for step in ("validate", "features"):
        assert changes.pop(("parameter", step, "day")) == ("2013-11-06", "2013-12-31")
    tables = [StepOutputs.from_json(site.airflow.xcom(DAG, each, "features")).ref("table") for each in (first_night, last_night)]
    told = [found.datasets[str(each)] for each in changes.pop(("data", "train", "table"))]
    assert [each.sha256 for each in told] == [each.sha256 for each in tables]
    assert changes.pop(("metric", "train", "trained_on.rows")) == tuple(each.numbers["rows"] for each in told)
    # The raw data is the same, and so are the code and every other parameter; what is left is what training has made of it.
    assert {key[:2] for key in changes} <= {("data", "features"), ("metric", "train"), ("metric", "")}
    assert ("metric", "train", "validation_loss") in changes

    (raw,) = [each for each in trace(site.mlflow, nights[0]).datasets if each.name == "flights_file"]
    again = impact(site.mlflow, raw.sha256 or "")
    assert {f"models:/{each.model.model_id}" for each in again.models} >= {"/".join(each.split("/")[:2]) for each in nights}
    assert all({first_night, last_night} <= set(each.dag_run_ids) for each in again.tasks if each.task_id == "train")


@pytest.mark.full
def test_ten_nights_are_filled_in_from_the_last_to_the_first(site: Site, first_night: str, last_night: str) -> None:
    # The run by hand has learned from the days of these nights, so none of them could beat its model.
    ModelRegistry(site.mlflow).promote(MODEL, site.airflow.xcom(DAG, first_night, "promote")["version"])
    runs = backfill(site, "2013-11-10T00:00:00-05:00", "2013-11-19T03:00:00-05:00", "--run-backwards")
    assert len(runs) >= 10
    version = ModelRegistry(site.mlflow).find(MODEL, "champion")
    assert version is not None
    promoted = [each for each in runs if site.task_state(DAG, each["dag_run_id"], "promote")[0] == "success"]
    assert version.tags["airflow.run_id"] == max(promoted, key=lambda each: each["logical_date"])["dag_run_id"]
