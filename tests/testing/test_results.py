"""What tasks of the fake server leave behind: in the store, in the artifact API, and in a real MLflow, as recorded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.testing import FakeKfpServer
from airflow_ml_provider.tracking.runs import RunTree, tags_of
from tests.kfp_stores import PIPELINE
from tests.testing.asking import ask, create

RECORDED: list[dict[str, Any]] = json.loads((Path(__file__).parent / "recordings/96-real-execution-mlflow.json").read_text())[
    "exchanges"
]
UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def event(words: str) -> dict[str, Any]:
    return next(each for each in RECORDED if each.get("event", "").startswith(words))


def start(server: FakeKfpServer, **more: Any) -> str:
    run_id = str(ask(server, "POST", "runs", {"display_name": "train-1", "pipeline_spec": PIPELINE, **more})[1]["run_id"])
    server.finish(run_id)
    return run_id


def test_files_lie_where_the_launcher_puts_them() -> None:
    kept: dict[str, bytes] = {}
    with FakeKfpServer(store=kept.__setitem__) as server:
        server.makes("prepare", files={"data": b"1"})
        server.makes("train", files={"model": b"weights"}, metrics={"metrics": {"auc": 0.9}})
        run_id = start(server)
    ours = sorted(re.sub(UUID, "<id>", each.replace(run_id, "<id>").removeprefix("minio://mlpipeline/")) for each in kept)
    recorded = sorted(re.sub(r"(?:run|uuid)-\d+", "<id>", each) for each in event("keys in the object store")["keys"])
    assert ours == [each.replace("train-with-metrics", "two-steps") for each in recorded]
    assert len(ours) == 4


def test_a_run_that_fails_or_is_repeated_leaves_files_once() -> None:
    kept: dict[str, bytes] = {}
    with FakeKfpServer(store=kept.__setitem__) as server:
        create(server, "a")
        server.finish("a", "FAILED")
        assert kept == {}
        server.report("a", "SUCCEEDED")
        first = set(kept)
        server.report("a", "SUCCEEDED")
        assert set(kept) == first
        assert len(first) == 3


def test_a_cached_task_is_skipped_and_has_what_an_earlier_run_made() -> None:
    kept: dict[str, bytes] = {}
    with FakeKfpServer(artifacts=True, store=kept.__setitem__) as server:
        server.makes("prepare", files={"data": b"1"})
        first = start(server)
        before = set(kept)
        server.cached("prepare")
        second = start(server)
        told = {each["name"]: each for each in ask(server, "GET", f"runs/{second}/tasks")[1]["tasks"]}
        again = {each["name"]: each for each in ask(server, "GET", f"runs/{first}/tasks")[1]["tasks"]}
        executors = list(ask(server, "GET", f"runs/{second}")[1]["run_details"]["task_details"])
    assert not [each for each in set(kept) - before if "/prepare/" in each]
    assert (told["prepare"]["state"], told["train"]["state"]) == ("CACHED", "SUCCEEDED")
    uris = [each["prepare"]["outputs"]["artifacts"][0]["artifacts"][0]["uri"] for each in (told, again)]
    assert uris[0] == uris[1]
    states = sorted(each["state"] for each in executors if each.get("display_name") == "executor")
    assert states == ["SKIPPED", "SUCCEEDED"]


def test_the_artifact_api_is_there_only_where_it_was_asked_for() -> None:
    with FakeKfpServer() as older:
        run_id = start(older)
        assert ask(older, "GET", f"runs/{run_id}/tasks") == (404, {"code": 5, "message": "Not Found"})
    with FakeKfpServer(artifacts=True) as newer:
        status, body = ask(newer, "GET", "runs/none/tasks")
        assert (status, body["code"], bool(body["details"])) == (404, 5, True)


def test_mlflow_gets_what_the_plugin_was_recorded_to_write(mlflow_url: str, mlflow_api: MlflowApi, unique: str) -> None:
    with FakeKfpServer(mlflow=mlflow_url) as server:
        server.makes("train", metrics={"metrics": {"loss": 0.5, "rows": 10.0}})
        asked = {"plugins_input": {"mlflow": {"experiment_name": unique}}, "runtime_config": {"parameters": {"lr": 0.05}}}
        run_id = start(server, **asked)
        entries = server.runs[0].plugins_output["mlflow"]["entries"]  # type: ignore[index]
    tree = RunTree(mlflow_api)
    root = tree.get(entries["root_run_id"]["value"])
    recorded = event("the MLflow run of the KFP run")["mlflow_run"]
    # Ours was made of a spec, not of a version.
    assert tags_of(recorded).keys() - tags_of(root).keys() == {"kfp.pipeline_id", "kfp.pipeline_version_id"}
    assert tags_of(root)["kfp.pipeline_run_id"] == run_id
    assert (root["info"]["status"], root["info"]["run_name"]) == (recorded["info"]["status"], "train-1")
    assert entries["experiment_name"]["value"] == unique
    children = tree.search([root["info"]["experiment_id"]], f"tags.`mlflow.parentRunId` = '{root['info']['run_id']}'")
    by_name = {each["info"]["run_name"]: each["data"] for each in children}
    theirs = {each["info"]["run_name"]: each["data"] for each in event("MLflow runs whose tag")["mlflow_runs"]}
    assert by_name["train"]["metrics"] == theirs["train"]["metrics"]  # the numbers, at time and step 0
    assert {"key": "lr", "value": "0.05"} in theirs["train"]["params"]
    assert by_name["train"]["params"] == [{"key": "lr", "value": "0.05"}]
    assert by_name["prepare"]["params"] == theirs["prepare"]["params"] == [{"key": "rows", "value": "10"}]


@pytest.mark.parametrize("name", ["data", "../data", "d a t a"])
def test_files_may_be_folders(name: str) -> None:
    kept: dict[str, bytes] = {}
    with FakeKfpServer(store=kept.__setitem__) as server:
        server.makes("prepare", files={name: {"part-0": b"1", "more/part-1": b"2"}})
        start(server)
    assert sorted(each.split("/prepare/")[1].split("/", 1)[1] for each in kept if "part" in each) == [
        f"{name}/more/part-1",
        f"{name}/part-0",
    ]
