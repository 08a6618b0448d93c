from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.exceptions import ArtifactError, ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.pod_step import StepManifest, StepWritten
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.models.run import StepRecord
from airflow_ml_provider.tracking import pod_record
from airflow_ml_provider.tracking.pod_record import PlannedOutput, StepPlan
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.runs import status_of

Make = Callable[..., StepRecord]
BOTH = {"model": "Model", "table": "Dataset"}


def written(kind: str, content: bytes = b"w", **fields: Any) -> StepWritten:
    return StepWritten(type=kind, sha256=hashlib.sha256(content).hexdigest(), size=len(content), **fields)


def manifest(state: Any = "succeeded", **fields: Any) -> StepManifest:
    return StepManifest(try_number=1, state=state, exit_code=0 if state == "succeeded" else 1, **fields)


def model_of(api: MlflowApi, model_id: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"logged-models/{model_id}")["model"]["info"]
    return found | {"tags": {each["key"]: each["value"] for each in found.get("tags", [])}}


def put(recorder: Recorder, record: StepRecord, tmp_path: Path, name: str, content: bytes) -> None:
    local = tmp_path / name
    local.write_bytes(content)
    recorder.store.store(record.run.artifact_uri, f"try-1/{name}", local)


@pytest.fixture
def record(make_record: Make) -> StepRecord:
    return make_record(params={"epochs": "3"})


@pytest.fixture
def plan(recorder: Recorder, record: StepRecord) -> StepPlan:
    return StepPlan(try_number=1, outputs=pod_record.plan_outputs(recorder, record, BOTH, None), params=record.params)


class TestThePlan:
    def test_models_exist_before_the_pod_and_wait(self, mlflow_api: MlflowApi, plan: StepPlan, record: StepRecord) -> None:
        planned = plan.outputs["model"]
        assert planned.root == f"models:/{planned.model_id}"
        info = model_of(mlflow_api, planned.model_id)
        assert info["status"] == "LOGGED_MODEL_PENDING"
        assert mlflow_api.get(f"logged-models/{planned.model_id}")["model"]["data"]["params"] == [{"key": "epochs", "value": "3"}]
        assert plan.outputs["table"] == PlannedOutput(type="Dataset", root=f"runs:/{record.run.run_id}/try-1")

    def test_in_an_object_store_each_model_has_a_folder_of_its_own(self, recorder: Recorder, record: StepRecord) -> None:
        planned = pod_record.plan_outputs(recorder, record, BOTH, "s3://bucket/ml/")
        folder = f"s3://bucket/ml/{record.attempt.identity.path}/{record.run.run_id[:12]}/try-1"
        assert {name: each.root for name, each in planned.items()} == {"model": f"{folder}/model", "table": folder}

    def test_whoever_comes_later_reads_what_was_kept(self, recorder: Recorder, plan: StepPlan, record: StepRecord) -> None:
        plan = plan.model_copy(update={"inputs": [ArtifactRef(type="Dataset", name="raw", uri="s3://a/b")], "memory_gib": 2.5})
        pod_record.keep_plan(recorder.store, record.run, plan)
        assert pod_record.read_plan(recorder.store, record.run, 1) == plan

    def test_a_plan_that_is_gone_is_an_error_with_a_remedy(self, recorder: Recorder, record: StepRecord) -> None:
        with pytest.raises(ArtifactError, match=r"has no try-7/plan\.json.*clear the task"):
            pod_record.read_plan(recorder.store, record.run, 7)

    def test_a_plan_of_another_release_is_not_guessed_at(self, recorder: Recorder, record: StepRecord, tmp_path: Path) -> None:
        put(recorder, record, tmp_path, "plan.json", b'{"version": 2, "try_number": 1}')
        with pytest.raises(ConfigError, match="cannot be read by this release"):
            pod_record.read_plan(recorder.store, record.run, 1)


class TestTheManifest:
    def test_none_is_none(self, recorder: Recorder, record: StepRecord) -> None:
        assert pod_record.read_manifest(recorder.store, record.run, 1) is None

    def test_it_is_read_and_held_to_the_digest_of_the_termination_message(
        self, recorder: Recorder, record: StepRecord, tmp_path: Path
    ) -> None:
        content = manifest(metrics={"auc": 0.9}).model_dump_json().encode()
        put(recorder, record, tmp_path, "manifest.json", content)
        digest = hashlib.sha256(content).hexdigest()
        for sha256 in ("", digest):
            found = pod_record.read_manifest(recorder.store, record.run, 1, sha256)
            assert found is not None
            assert found.metrics == {"auc": 0.9}
        with pytest.raises(ArtifactError, match=f"has sha256 {digest}; the pod's termination message names {'0' * 64}"):
            pod_record.read_manifest(recorder.store, record.run, 1, "0" * 64)

    def test_what_is_missing_of_it_is_named(self, plan: StepPlan) -> None:
        assert pod_record.missing_outputs(plan, None) == ["model", "table"]
        assert pod_record.missing_outputs(plan, manifest(outputs={"model": written("Model")})) == ["table"]


class TestTheRecord:
    def test_what_was_told_is_on_record_as_if_a_worker_had_done_it(
        self, recorder: Recorder, mlflow_api: MlflowApi, plan: StepPlan, record: StepRecord
    ) -> None:
        told = manifest(
            outputs={"model": written("Model", metadata=True), "table": written("Dataset", file="table.csv", metadata=True)},
            params={"lr/0": "0.1"},
            unsent=[("loss", 0.5, 1000, 0), ("loss", "NaN", 2000, 1)],
            read={"raw": ("d" * 64, 12)},
        )
        plan = plan.model_copy(update={"inputs": [ArtifactRef(type="Dataset", name="raw", uri="s3://bucket/raw.csv")]})
        pod_record.fill_record(record, plan, told)
        pod_record.settle_models(recorder, plan, record)
        recorder.send(record)

        run, run_id, model_id = recorder.tree.get(record.run.run_id), record.run.run_id, plan.outputs["model"].model_id
        assert status_of(run) == "FINISHED"
        assert {each["key"]: each["value"] for each in run["data"]["params"]} == {"epochs": "3", "lr/0": "0.1"}
        points = mlflow_api.get("metrics/get-history", run_id=run_id, metric_key="loss")["metrics"]
        assert [(each["step"], str(each["value"]).lower()) for each in points] == [(0, "0.5"), (1, "nan")]
        assert [each["dataset"]["digest"] for each in run["inputs"]["dataset_inputs"]] == ["d" * 36]
        assert [each["model_id"] for each in run["outputs"]["model_outputs"]] == [model_id]
        uris = {each.name: each.stored and each.stored.uri for each in record.outputs}
        assert uris == {"model": f"models:/{model_id}", "table": f"runs:/{run_id}/try-1/table.csv"}
        info = model_of(mlflow_api, model_id)
        assert info["status"] == "LOGGED_MODEL_READY"
        assert info["tags"]["airflow.sha256"] == hashlib.sha256(b"w").hexdigest()
        assert info["tags"]["airflow.file"] == ""
        assert info["tags"]["airflow.metadata"] == f"runs:/{run_id}/try-1/model.metadata.json"

    def test_a_model_that_never_came_is_marked_so(self, recorder: Recorder, mlflow_api: MlflowApi, plan: StepPlan) -> None:
        record = StepRecord.model_construct(outputs=[])
        pod_record.settle_models(recorder, plan, record)
        assert model_of(mlflow_api, plan.outputs["model"].model_id)["status"] == "LOGGED_MODEL_UPLOAD_FAILED"

    def test_a_model_of_one_file_in_an_object_store_is_found_there(
        self, recorder: Recorder, mlflow_api: MlflowApi, record: StepRecord
    ) -> None:
        outputs = pod_record.plan_outputs(recorder, record, {"model": "Model"}, "s3://bucket/ml")
        plan = StepPlan(try_number=1, outputs=outputs)
        pod_record.fill_record(record, plan, manifest(outputs={"model": written("Model", file="model.pkl")}))
        pod_record.settle_models(recorder, plan, record)
        ref = record.outputs[0].stored
        assert ref is not None
        assert ref.uri == f"{outputs['model'].root}/model.pkl"
        tags = model_of(mlflow_api, outputs["model"].model_id)["tags"]
        assert (tags["airflow.file"], tags["airflow.uri"]) == ("model.pkl", outputs["model"].root)

    def test_a_failed_step_keeps_what_it_had_stored(self, record: StepRecord, plan: StepPlan) -> None:
        pod_record.fill_record(record, plan, manifest("failed", outputs={"table": written("Dataset", file="t.csv")}))
        assert [each.name for each in record.outputs] == ["table"]

    def test_without_a_manifest_what_the_pod_was_given_is_on_record(self, record: StepRecord, plan: StepPlan) -> None:
        ref = ArtifactRef(type="Dataset", name="raw", uri="s3://bucket/raw.csv")
        pod_record.fill_record(record, plan.model_copy(update={"inputs": [ref]}), None)
        assert (record.inputs, record.outputs, record.params) == ([ref], [], {"epochs": "3"})

    @pytest.mark.parametrize("name", ["../x", "a/b", "..", "table/..", "table/x/y"])
    def test_a_manifest_names_no_place_outside_of_its_folder(self, record: StepRecord, plan: StepPlan, name: str) -> None:
        with pytest.raises(ConfigError, match="is no place for it"):
            pod_record.fill_record(record, plan, manifest(outputs={"table": written("Dataset", file=name)}))
