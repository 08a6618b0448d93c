"""What OpenLineage is told of real DAG runs, by its own listener; each event is checked by the specification."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attr
import pendulum
import pytest
from airflow.sdk import DAG, dag

from airflow_ml_provider import Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.assets.mlflow import dataset_asset
from airflow_ml_provider.config import Settings
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.lineage import openlineage_mixin
from airflow_ml_provider.lineage.facts import FileFacts, Known, StepFacts, step_facts
from airflow_ml_provider.lineage.file_facts import MLMODEL_BYTES, look_into
from airflow_ml_provider.lineage.openlineage import told as told_of
from airflow_ml_provider.lineage.openlineage_names import place_name
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.models.run import Attempt, OpenRun, OutputFile, StepIdentity, StepRecord
from airflow_ml_provider.operators.promotion import PromoteModelOperator
from tests.airflow_runs import Outcome
from tests.lineage.openlineage_spec import OURS, SCHEMAS, check_event, listening

Json = dict[str, Any]
START = pendulum.datetime(2024, 1, 1)
SERVER = MlflowServer("mlflow_default", "https://ml.example.com/eu", workspace="team")


def night(name: str, raw: Path, *, whole: bool = True) -> DAG:
    @ml_task(cache=True, outlets=[dataset_asset(f"{name} data")])
    def features(source: Input[Dataset], table: Output[Dataset]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        table.path += ".parquet"
        parquet.write_table(pa.table({"x": [1.0, 2.0], "y": Path(source.path).read_text().split()}), table.path)

    @ml_task
    def train(table: Input[Dataset], seed: int, fitted: Output[Model], metrics: Output[Metrics]) -> None:
        Path(fitted.path).write_text(f"{table.path} {seed}")
        fitted.metadata["framework"] = "pyarrow"
        metrics.log_metric("auc", 0.93)
        metrics.log_metric("token_loss", 0.5)

    @ml_task
    def audit(models: Input[list[Model]], table: Input[Dataset]) -> None:
        raise ValueError("one is worse")

    @dag(dag_id=name, schedule=None, start_date=START)
    def nightly() -> None:
        made = features(source=str(raw))["table"]
        if not whole:
            return
        fit = train(table=made, seed=0)
        some = train.override(task_id="some").partial(table=made).expand(seed=[1, 2])
        audit(models=some["fitted"], table=made)
        PromoteModelOperator(task_id="promote", model=fit["fitted"], name=name)

    return nightly()


def ends(told: Callable[[str], list[Json]], job: str) -> list[Json]:
    return [each for each in told(job) if each["eventType"] != "START"]


def facets(dataset: Json) -> Json:
    """What the facets of a dataset say, without who says it."""
    every = {**dataset["facets"], **dataset.get("inputFacets", {}), **dataset.get("outputFacets", {})}
    return {name: {key: value for key, value in facet.items() if key[0] != "_"} for name, facet in every.items()}


def test_tasks_tell_what_they_read_and_made_night_after_night(
    run_dag: Callable[..., Outcome], unique: str, tmp_path: Path
) -> None:
    raw = tmp_path / "raw.txt"
    raw.write_text("a b")
    with listening(tmp_path / "events.json") as told:
        first = run_dag(night(unique, raw), logical_date=START)
        run_dag(night(unique, raw, whole=False), logical_date=START.add(days=1))
        features, train, promote, some, audit = (
            ends(told, f"{unique}.{task}") for task in ("features", "train", "promote", "some", "audit")
        )
    (source,), (table,) = features[0]["inputs"], features[0]["outputs"]
    assert (source["namespace"], source["name"]) == ("file", str(raw))
    store = table["namespace"]
    assert store.startswith("mlflow://127.0.0.1:")
    assert table["name"] == f"artifacts/{unique}.features.table"
    made, trained = first.xcom("features"), first.xcom("train")
    on_record = made["outputs"]["table"]
    described = {
        "dataSource": {"name": store, "uri": store.replace("mlflow:", "http:")},
        "datasetType": {"datasetType": "FILE", "subType": "Dataset"},
        "version": {"datasetVersion": on_record["sha256"]},
        "schema": {"fields": [{"name": "x", "type": "double", "fields": []}, {"name": "y", "type": "string", "fields": []}]},
        "dataQualityMetrics": {"columnMetrics": {}, "rowCount": 2, "bytes": on_record["size"]},
    }
    here = {"namespace": store, "name": f"runs/{made['run_id']}/try-1/table.parquet", "type": "LOCATION"}
    asset = {"namespace": store, "name": f"datasets/{unique} data", "type": "ASSET"}
    assert facets(table) == described | {
        "symlinks": {"identifiers": [here, asset]},
        "outputStatistics": {"rowCount": 2, "size": on_record["size"]},
    }
    assert facets(source) == {
        "dataSource": {"name": "file", "uri": "file:///"},
        "datasetType": {"datasetType": "FILE", "subType": "Dataset"},
        "version": {"datasetVersion": "c8687a08aa5d6ed2044328fa6a697ab8e96dc34291e8c2034ae8c38e6fcc6d65"},
        "dataQualityMetrics": {"columnMetrics": {}, "bytes": 3},
        "inputStatistics": {"size": 3},
    }
    (read,) = train[0]["inputs"]
    assert read["name"] == table["name"], "what one has made is what the other has read"
    assert facets(read) == described | {
        "symlinks": {"identifiers": [here]},
        "inputStatistics": {"rowCount": 2, "size": on_record["size"]},
    }

    model = next(each for each in train[0]["outputs"] if each["name"] == f"artifacts/{unique}.train.fitted")
    run = train[0]["run"]["facets"]["airflowml_run"]
    numbers = {"auc": 0.93, "token_loss": 0.5}
    assert (run["runId"], run["metrics"], run["url"].endswith(run["runId"])) == (trained["run_id"], numbers, True)
    about = {
        "modelId": trained["outputs"]["fitted"]["uri"].split("/")[1],
        "metrics": numbers,
        "mlflowRunId": trained["run_id"],
    }
    assert facets(model)["airflowml_model"] == about | {"name": "fitted", "framework": "pyarrow"}
    assert facets(model)["datasetType"] == {"datasetType": "MODEL", "subType": "Model"}
    (registered,) = promote[0]["outputs"]
    assert (promote[0]["inputs"][0]["name"], registered["name"]) == (model["name"], f"models/{unique}")
    assert facets(registered)["airflowml_model"] == about | {"name": unique, "version": "1", "alias": "champion"}
    assert facets(registered)["version"] == {"datasetVersion": "1"}

    instances = [f"artifacts/{unique}.some[{index}].fitted" for index in (0, 1)]
    assert sorted(each["outputs"][0]["name"] for each in some) == instances
    assert [each["eventType"] for each in audit] == ["FAIL"]
    assert sorted(each["name"] for each in audit[0]["inputs"]) == sorted([*instances, table["name"]])

    assert "cachedFromRunId" not in features[0]["run"]["facets"]["airflowml_run"]
    assert features[1]["run"]["facets"]["airflowml_run"]["cachedFromRunId"] == made["run_id"]
    assert (features[1]["outputs"][0]["name"], facets(features[1]["outputs"][0])["version"]) == (
        table["name"],
        described["version"],
    )


def test_what_mlflow_does_not_say_is_left_out_and_what_the_step_knows_is_told(unique: str) -> None:
    identity = StepIdentity(dag_id=unique, run_id="night", task_id="train", map_index=3)
    ref = ArtifactRef(type="Model", name="fitted", uri="s3://me@bucket/model", sha256="1" * 64, size=7, run_id="0" * 32)
    record = StepRecord(
        conn_id="mlflow_default",
        attempt=Attempt(identity=identity, try_number=1, ti_id="one"),
        run=OpenRun(run_id="0" * 32, parent_run_id="1" * 32, experiment_id="1", artifact_uri="s3://me@bucket"),
        inputs=[ref.model_copy(update={"run_id": "2" * 32, "uri": "runs:/" + "2" * 32 + "/try-1/t"})],
        outputs=[OutputFile(name="fitted", type="Model", path="", target="", metadata={"rows": 2}, stored=ref)],
    )
    with MlflowApi(MlflowServer("c", "http://127.0.0.1:1"), Settings(http_retries=0, http_timeout_s=1)) as api:
        facts = step_facts(api, record, None, lambda _side, _place: FileFacts())
    found = told_of(facts)
    made, read, facets_of_run = attr.asdict(found.outputs[0]), found.inputs[0], attr.asdict(found.run_facets["airflowml_run"])
    assert made["name"] == f"artifacts/{unique}.train[3].fitted"
    assert made["outputFacets"]["outputStatistics"]["rowCount"] == 2
    assert read.name == f"runs/{'2' * 32}/try-1/t"
    assert facets_of_run["metrics"] == {}


class TestNames:
    @pytest.mark.parametrize(
        ("uri", "namespace", "name"),
        [
            ("/data/raw.csv", "file", "/data/raw.csv"),
            ("file:///data/raw.csv", "file", "/data/raw.csv"),
            ("file://host/data", "file://host", "/data"),
            ("s3://bucket/a/b%20c.csv", "s3://bucket", "a/b c.csv"),
            ("s3://connection@bucket/a/", "s3://bucket", "a"),
            ("s3a://bucket/a", "s3://bucket", "a"),
            ("gcs://bucket/a", "gs://bucket", "a"),
            ("abfs://box@account.dfs.core.windows.net/a/b", "abfss://box@account.dfs.core.windows.net", "a/b"),
            ("abfs://azure_eu@box/a/b", "abfss://box", "a/b"),
            ("hdfs://namenode:8020/a", "hdfs://namenode:8020", "/a"),
            ("https://me:secret@example.com/a.csv?signature=secret", "https://example.com", "/a.csv"),
            ("runs:/0123/try-1/t.csv", "mlflow://ml.example.com/eu/team", "runs/0123/try-1/t.csv"),
            ("models:/flights/7", "mlflow://ml.example.com/eu/team", "models/flights"),
            ("models:/flights@champion", "mlflow://ml.example.com/eu/team", "models/flights"),
            (f"models:/m-{'0' * 32}/w.bin", "mlflow://ml.example.com/eu/team", f"logged-models/m-{'0' * 32}/w.bin"),
        ],
    )
    def test_of_places_follow_the_conventions_of_their_stores(self, uri: str, namespace: str, name: str) -> None:
        assert place_name(uri, SERVER) == (namespace, name)

    def test_are_those_of_the_makers_and_each_dataset_is_told_once(self) -> None:
        ref = ArtifactRef(type="Dataset", name="left", uri="s3://bucket/a", run_id="0" * 32)
        both = [
            Known(ref=ref, maker="d.t[3]", output="x"),
            Known(ref=ref.model_copy(update={"name": "right"}), maker="d.t[3]", output="x"),
        ]
        found = told_of(StepFacts(SERVER, inputs=both))
        assert [(each.namespace, each.name) for each in found.inputs] == [
            ("mlflow://ml.example.com/eu/team", "artifacts/d.t[3].x")
        ]
        assert (found.outputs, found.run_facets) == ([], {})


class TestSchemas:
    def test_of_our_facets_are_named_by_their_files(self) -> None:
        from airflow_ml_provider.lineage import openlineage_facets as ours

        named = {each._get_schema() for each in (ours.ModelDatasetFacet, ours.MlflowRunFacet)}
        files = {file: json.loads(file.read_text()) for file in OURS.glob("*.json")}
        assert named == {f"{each['$id']}#/$defs/{file.stem}" for file, each in files.items()}
        assert all(each["$id"] == f"{ours.SCHEMAS}{file.name}" and each["$id"] in SCHEMAS for file, each in files.items())
        keys = {name for each in files.values() for name in each["properties"]}
        assert keys == {ours.MODEL, ours.RUN}

    @pytest.mark.parametrize("wrong", [{"version": "seven"}, {"metrics": {"auc": "0.9"}}, {"name": None}, {"_producer": None}])
    def test_refuse_what_is_no_such_facet(self, wrong: Json) -> None:
        from jsonschema import ValidationError  # type: ignore[import-untyped]

        url = "urn:airflow-ml-provider:facets:1-0-0:ModelDatasetFacet.json#/$defs/ModelDatasetFacet"
        facet = {"_producer": "urn:x", "_schemaURL": url, "name": "flights", "version": "7"} | wrong
        facet = {key: value for key, value in facet.items() if value is not None}
        dataset = {"namespace": "mlflow://x", "name": "models/flights", "facets": {"airflowml_model": facet}}
        job, run = {"namespace": "default", "name": "d.t"}, {"runId": "00000000-0000-0000-0000-000000000000"}
        head = {"eventTime": "2024-01-01T00:00:00Z", "producer": "urn:x", "schemaURL": "urn:y"}
        with pytest.raises(ValidationError):
            check_event({**head, "job": job, "run": run, "outputs": [dataset]})


def test_a_file_says_what_it_holds_and_one_that_is_broken_nothing(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"n": [1, 2, 3]}), tmp_path / "t.parquet")
    (tmp_path / "broken.parquet").write_text("no table")
    (tmp_path / "MLmodel").write_text("flavors:\n  python_function: {}\n  sklearn: {}\n")
    assert look_into(str(tmp_path / "t.parquet")) == FileFacts({"n": "int64"}, 3)
    assert look_into(str(tmp_path)) == FileFacts(framework="sklearn")
    assert look_into(str(tmp_path / "broken.parquet")) == look_into("/nowhere") == FileFacts()
    (tmp_path / "MLmodel").write_text("flavors:\n  sklearn: {}\nnotes: " + MLMODEL_BYTES * "x")
    assert look_into(str(tmp_path)) == FileFacts()


def test_operators_import_nothing_of_openlineage() -> None:
    show = (
        "import sys; from airflow_ml_provider.operators import promotion, step, mlflow_models, kfp, gate, execution; "
        "print([each for each in sys.modules if each.startswith(('openlineage', 'airflow.providers.openlineage.conf', "
        "'airflow.providers.openlineage.plugins', 'airflow_ml_provider.lineage.openlineage_facets', 'pyarrow'))])"
    )
    said = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("noted", "earlier", "found"),
    [
        ({}, {"airflow.pod": "ml/a"}, None),
        ({}, {"airflow.kfp.run_id": "1", "airflow.kfp.state": "SUCCEEDED"}, None),
        ({"airflow.pod.end": "succeeded"}, {"airflow.pod": "ml/a"}, ("kubernetes", "ml/a", True)),
        ({"airflow.pod.end": "out_of_memory"}, {"airflow.pod": "ml/a"}, ("kubernetes", "ml/a", False)),
        ({"airflow.pod.end": "unreachable"}, {"airflow.pod": "ml/a"}, ("kubernetes", "ml/a", None)),
        ({"airflow.kfp.run_id": "1", "airflow.kfp.state": "RUNNING"}, {}, ("kfp://local", "1", None)),
        ({"airflow.kfp.run_id": "1", "airflow.kfp.state": "FAILED"}, {}, ("kfp://local", "1", False)),
    ],
)
def test_a_run_elsewhere_is_told_of_as_it_ended_and_by_the_try_that_waited_for_it(
    noted: dict[str, str], earlier: dict[str, str], found: tuple[str, str, bool | None] | None
) -> None:
    facts: Any = SimpleNamespace(record=SimpleNamespace(tags=noted), tags=earlier | noted, cached_from="")
    assert openlineage_mixin._remote(facts) == found
