"""Steps in pods and on Kubeflow Pipelines that were waited for by the triggerer: their assets' events, and OpenLineage's of their runs."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pendulum
import pytest
from airflow.sdk import DAG

from airflow_ml_provider import Cache, Dataset, Model
from airflow_ml_provider.assets.mlflow import dataset_asset, model_asset
from airflow_ml_provider.jobs.kfp_results import forget_servers
from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator
from airflow_ml_provider.operators.pod_body import with_variables
from airflow_ml_provider.testing import FakeKfpServer
from tests.airflow_runs import Outcome
from tests.assets.events import events_of
from tests.kfp_stores import PIPELINE, READABLE, bucket_at, s3_server
from tests.lineage.openlineage_spec import listening
from tests.operators.cached_pods import KUBE_CONFIG, Machine, OnThisMachine, PodHere

START = pendulum.datetime(2024, 1, 1)
SHOW = """
import json, os
names = ("OPENLINEAGE_PARENT_ID", "OPENLINEAGE_ROOT_PARENT_ID")
open(os.environ["AIRFLOW_ML_OUTPUT_TOLD"], "w").write(json.dumps([os.environ[each] for each in names]))
"""


@pytest.fixture
def kfp(mlflow_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfpServer]:
    forget_servers()
    with s3_server() as s3, bucket_at(s3) as bucket:
        server = FakeKfpServer(artifacts=True, store=bucket.write)
        server.start()
        server.auto(seconds=0.2)
        server.makes("prepare", files={"data": b"a,b"}, metadata={"data": {"rows": 2}})
        server.makes("train", files={"model": b"weights"}, metadata={"model": {"framework": "torch"}})
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url}))
        yield server
        server.stop()
    forget_servers()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    extra = {"kube_config": json.dumps(KUBE_CONFIG)}
    monkeypatch.setenv("AIRFLOW_CONN_KUBERNETES_DEFAULT", json.dumps({"conn_type": "kubernetes", "extra": extra}))
    OnThisMachine.machine, OnThisMachine.waits = Machine(tmp_path), True
    yield OnThisMachine.machine
    OnThisMachine.waits = False


def test_what_the_author_of_a_pod_says_of_its_parent_stays() -> None:
    mine = {"name": "OPENLINEAGE_PARENT_ID", "value": "mine"}
    pod: dict[str, Any] = {"spec": {"containers": [{"name": "base", "env": [mine]}, {"name": "proxy"}]}}
    made = with_variables(pod, {"OPENLINEAGE_PARENT_ID": "ours", "OPENLINEAGE_ROOT_PARENT_ID": "a$(b)"}, "base")
    root = {"name": "OPENLINEAGE_ROOT_PARENT_ID", "value": "a$$(b)"}
    assert made["spec"]["containers"] == [{"name": "base", "env": [mine, root]}, {"name": "proxy"}]
    assert pod["spec"]["containers"][0]["env"] == [mine]


def children(told: Callable[[str], list[Any]], job: str) -> list[tuple[str, str, str]]:
    """Events of a run elsewhere: its state, its id, and the id of the run that its parent-run facet names."""
    found = told(job)
    return [(each["eventType"], each["run"]["runId"], each["run"]["facets"]["parent"]["run"]["runId"]) for each in found]


def test_a_pipeline_run_is_told_of_with_its_outputs_and_its_parent(
    run_dag: Callable[..., Outcome], unique: str, kfp: FakeKfpServer, tmp_path: Path
) -> None:
    package = tmp_path / "two-steps.yaml"
    package.write_text(json.dumps(PIPELINE))
    with DAG(unique, schedule=None, start_date=START) as dag:
        KfpRunPipelineOperator(
            task_id="train",
            pipeline=str(package),
            outputs={"data": Dataset, "model": Model},
            options=KfpRunOptions(poll_interval_s=0.1, settle_s=1, results_root=READABLE),
            deferrable=True,
            outlets=[model_asset(unique), dataset_asset(f"{unique} data")],
        )
    with listening(tmp_path / "events.json") as told:
        outcome = run_dag(dag)
        events, remote = told(f"{unique}.train"), children(told, f"{unique}.train.pipeline")
    answer = outcome.xcom("train")
    (model,), (data,) = events_of(model_asset(unique).uri), events_of(dataset_asset(f"{unique} data").uri)
    assert (model[2]["sha256"], model[2]["mlflow_run_id"]) == (answer["outputs"]["model"]["sha256"], answer["mlflow_run_id"])
    assert (data[2]["output"], data[2]["rows"]) == ("data", 2)

    assert [each["eventType"] for each in events] == ["START", "START", "COMPLETE"], "one START for each time that it ran"
    end = events[-1]
    assert {each["name"]: each["facets"].get("airflowml_model", {}).get("framework") for each in end["outputs"]} == {
        f"artifacts/{unique}.train.data": None,
        f"artifacts/{unique}.train.model": "torch",
    }
    where = end["outputs"][0]["facets"]["symlinks"]["identifiers"][0]
    assert (where["namespace"], where["name"].startswith("v2/artifacts/")) == ("s3://mlpipeline", True)
    query = end["run"]["facets"]["externalQuery"]
    assert (query["externalQueryId"], query["source"].startswith("kfp://127.0.0.1:")) == (answer["run_id"], True)
    run_id = end["run"]["runId"]
    assert remote == [("START", answer["run_id"], run_id), ("COMPLETE", answer["run_id"], run_id)]


def test_a_pod_knows_its_parent_and_a_second_night_takes_its_result(
    run_dag: Callable[..., Outcome], unique: str, machine: Machine, mlflow_url: str, tmp_path: Path
) -> None:
    with DAG(unique, schedule=None, start_date=START) as dag:
        PodHere(
            task_id="show",
            image="example.com/show@sha256:" + "a" * 64,
            cmds=["python3", "-c", SHOW],
            outputs={"told": Dataset},
            cache=Cache(),
            options=machine.options(mlflow_url),
            get_logs=False,
            outlets=[dataset_asset(unique)],
        )
    with listening(tmp_path / "events.json") as told:
        outcomes = [run_dag(dag, logical_date=START.add(days=day)) for day in range(2)]
        events, remote = told(f"{unique}.show"), children(told, f"{unique}.show.pod")
    assert [each.state for each in outcomes] == ["success", "success"], machine.said
    assert len(machine.bodies) == 1, "ids that are new each night are no part of the key"
    assert [extra.get("cached") for _, _, extra in events_of(dataset_asset(unique).uri)] == [None, True]

    first, second = (each for each in events if each["eventType"] == "COMPLETE")
    given = {each["name"]: each["value"] for each in machine.bodies[0]["spec"]["containers"][0]["env"]}
    root = first["run"]["facets"]["parent"]["run"]["runId"]
    assert given["OPENLINEAGE_PARENT_ID"] == f"default/{unique}.show/{first['run']['runId']}"
    assert given["OPENLINEAGE_ROOT_PARENT_ID"] == f"default/{unique}/{root}"
    pod = machine.bodies[0]["metadata"]["name"]
    assert first["run"]["facets"]["externalQuery"]["externalQueryId"] == f"ml/{pod}"
    named = str(uuid.uuid5(uuid.NAMESPACE_URL, f"default/kubernetes/ml/{pod}"))
    assert remote == [(state, named, first["run"]["runId"]) for state in ("START", "COMPLETE")], "the second night has no pod"
    assert second["run"]["facets"]["airflowml_run"]["cachedFromRunId"] == first["run"]["facets"]["airflowml_run"]["runId"]
    assert [each["name"] for each in second["outputs"]] == [f"artifacts/{unique}.show.told"]
