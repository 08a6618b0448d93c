"""The way through a run on Kubeflow Pipelines: from the model that it made to the raw data of the steps before it, and down."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import dag

from airflow_ml_provider import Dataset, Input, Model, Output, ml_task
from airflow_ml_provider.config import Settings
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.jobs.kfp_results import forget_servers
from airflow_ml_provider.lineage.impact import impact
from airflow_ml_provider.lineage.query import trace
from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator
from airflow_ml_provider.operators.kfp_inputs import as_given, note_inputs
from airflow_ml_provider.operators.promotion import PromoteModelOperator
from airflow_ml_provider.operators.session import StepSession
from airflow_ml_provider.testing import FakeKfpServer
from tests.airflow_runs import Outcome
from tests.kfp_stores import PIPELINE, ROOT
from tests.lineage.nights import Night

TAKES = {"table": "STRING", "extra": "STRUCT", "parts": "LIST", "base": "STRING", "where": "STRING"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeKfpServer]:
    """A server whose store is a folder that workers read too."""

    def store(uri: str, content: bytes) -> None:
        file = tmp_path / "store" / uri.removeprefix(f"{ROOT}/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    forget_servers()
    with FakeKfpServer(artifacts=True, store=store) as server:
        server.auto(seconds=0.2)
        server.makes("train", files={"model": b"weights"})
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url}))
        yield server
    forget_servers()


@pytest.fixture
def package(tmp_path: Path) -> str:
    """A pipeline that takes artifacts in each of the ways in which a run can be given one."""
    pipeline = copy.deepcopy(PIPELINE)
    given = {name: {"parameterType": kind, "isOptional": True} for name, kind in TAKES.items()}
    pipeline["root"]["inputDefinitions"]["parameters"] |= given
    (tmp_path / "pipeline.yaml").write_text(json.dumps(pipeline))
    return str(tmp_path / "pipeline.yaml")


@ml_task
def prepare(raw: Input[Dataset], table: Output[Dataset], extra: Output[Dataset]) -> None:
    for each in (table, extra):
        Path(each.path).write_text(Path(raw.path).read_text() + each.name)
        each.metadata["rows"] = 12_345


@pytest.mark.full
def test_a_model_of_a_pipeline_leads_back_to_the_raw_data_of_a_worker_and_the_raw_data_down_to_it(
    run_dag: Callable[..., Outcome], mlflow_api: MlflowApi, unique: str, server: FakeKfpServer, package: str, tmp_path: Path
) -> None:
    (tmp_path / "raw.csv").write_text(unique)
    raw = f"file://{tmp_path}/raw.csv"

    @dag(dag_id=unique, schedule=None, params={"base": "s3://not/an/artifact"})
    def nightly() -> None:
        made = prepare(raw=raw)
        train = KfpRunPipelineOperator(
            task_id="train",
            pipeline=package,
            arguments={
                "table": made["table"],
                "extra": made["extra"],
                "parts": [made["table"], made["extra"]],
                "base": "{{ params.base }}",
                "where": "s3://nobody/knows/whether/it/is/read",
            },
            outputs={"model": Model},
            cache=True,
            deferrable=True,
            options=KfpRunOptions(poll_interval_s=0.1, settle_s=1, results_root=f"file://{tmp_path}/store"),
        )
        PromoteModelOperator(task_id="promote", model=train.output["model"], name=unique)

    first = run_dag(nightly())
    assert first.state == "success"
    (sent,) = server.store.runs.values()
    table = first.xcom("prepare")["outputs"]["table"]
    assert sent.runtime_config is not None
    assert sent.runtime_config["parameters"]["table"].endswith(table["path"]), "a text gets the place"

    up = trace(mlflow_api, f"models:/{unique}@champion")
    assert [each.name for each in up.runs] == ["train", "prepare"]
    train_run = first.xcom("train")["mlflow_run_id"]
    reads = sorted(edge.name for edge in up.into(f"run:{train_run}"))
    assert reads == ["extra", "parts[0]", "parts[1]", "table"]
    assert {each.name: each.numbers.get("rows") for each in up.datasets if each.run_id} == {"table": 12_345, "extra": 12_345}
    assert [(each.name, each.uri) for each in up.datasets if each.run_id is None] == [("raw", raw)]

    down = impact(mlflow_api, raw)
    assert [(each.task_id, each.runs) for each in down.tasks] == [("prepare", 1), ("train", 1), ("promote", 1)]
    assert [[(each.name, each.aliases) for each in model.versions] for model in down.models] == [[(unique, ("champion",))]]

    # The tables of the next night have equal bytes at another place: what the hit has read is on record too.
    second = run_dag(nightly())
    assert (second.state, len(server.store.runs)) == ("success", 1)
    again = trace(mlflow_api, f"runs:/{second.xcom('prepare')['run_id']}", direction="down")
    hit = next(each for each in again.runs if each.name == "train")
    assert hit.cached_from == train_run
    assert sorted(edge.name for edge in again.into(hit.id)) == ["extra", "parts[0]", "parts[1]", "table"]
    assert [each.name for each in again.versions] == [unique]

    # An alias in a text is an artifact too, and a model that lies in a store is found by those who have read it there.
    third = run_dag(nightly(), run_conf={"base": f"models:/{unique}@champion"})
    third_run = third.xcom("train")["mlflow_run_id"]
    tuned = trace(mlflow_api, f"runs:/{third_run}")
    assert train_run in {each.run_id for each in tuned.runs}
    assert "base" in {edge.name for edge in tuned.into(f"run:{third_run}")}
    assert third_run in {each.run_id for each in trace(mlflow_api, f"models:/{unique}/1", direction="down").runs}


@pytest.fixture
def session(mlflow_api: MlflowApi, tmp_path: Path, unique: str) -> StepSession:
    record = Night(mlflow_api, tmp_path, unique).open("train")
    return StepSession(mlflow_api, Settings(patience_s=1), record, tmp_path)


def ref(name: str, **fields: Any) -> dict[str, Any]:
    return ArtifactRef(type="Dataset", name=name, uri=f"s3://b/{name}", **fields).to_json()


RUN = "1" * 32


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"day": "2013-12-30", "rows": 3, "to": "s3://b/out", "none": None, "empty": []}, {}),
        ({"table": ref("t", run_id=RUN)}, {"table": RUN}),
        ({"all": {"train": ref("t"), "test": [ref("u"), "x"]}}, {"all.train": None, "all.test[0]": None}),
        ({"table": f"runs:/{RUN}/try-1/t.csv"}, {"table": RUN}),
        ({"base": "models:/nobody@champion", "gone": f"models:/m-{RUN}", "table": ref("t")}, {"table": None}),
        ({"a": ref("t") | {"type": "Of another release"}, "b": ref("t") | {"version": 2}, "c": ref("t") | {"size": "x"}}, {}),
    ],
)
def test_what_of_the_arguments_is_an_artifact_counts_as_read_and_nothing_else_fails_a_run(
    session: StepSession, given: dict[str, Any], read: dict[str, str | None]
) -> None:
    for _ in range(2):
        note_inputs(session, given)
    assert {each.name: each.run_id for each in session.record.inputs} == read


def test_a_text_is_told_apart_from_a_reference_that_was_given_for_it() -> None:
    one, changed = ref("t", run_id=RUN), ref("u")
    assert as_given({"a": one["uri"], "b": "s3://b/other", "c": 3}, {"a": one, "b": changed, "d": one}) == {
        "a": one,
        "b": "s3://b/other",
        "c": 3,
    }, "an earlier try has started the run, with another b"
    assert as_given({"a": 1}, "{{ params.arguments }}") == {"a": 1}
