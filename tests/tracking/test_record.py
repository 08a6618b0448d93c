from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.exceptions import ArtifactError, RemoteNotFoundError, RemoteUnavailableError, SupersededError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.artifact import MetricPoint
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.models.run import OutputFile, StepRecord
from airflow_ml_provider.tracking.artifacts import ArtifactStore
from airflow_ml_provider.tracking.places import MlflowStorePlace, hash_file
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.runs import status_of, tags_of
from tests.tracking.cuts import CutApi

Make = Callable[..., StepRecord]
MakeOutput = Callable[..., OutputFile]


def points(count: int, key: str = "loss") -> list[MetricPoint]:
    return [MetricPoint(key=key, value=1 / (step + 1), timestamp_ms=step, step=step) for step in range(count)]


def history(api: MlflowApi, run_id: str, key: str) -> list[tuple[int, float]]:
    answer = api.get("metrics/get-history", run_id=run_id, metric_key=key, max_results=5000)
    return [(int(each["step"]), float(each["value"])) for each in answer["metrics"]]


def models_of(api: MlflowApi, record: StepRecord) -> dict[str, dict[str, Any]]:
    body = {"experiment_ids": [record.run.experiment_id], "filter": f"source_run_id = '{record.run.run_id}'"}
    return {each["info"]["model_id"]: each["info"] for each in api.post("logged-models/search", body)["models"]}


def stored(record: StepRecord, name: str) -> ArtifactRef:
    found = next(each.stored for each in record.outputs if each.name == name)
    assert found is not None
    return found


def test_everything_that_a_step_did_is_in_mlflow(
    recorder: Recorder, mlflow_api: MlflowApi, make_record: Make, make_output: MakeOutput
) -> None:
    table = make_output("table.parquet", "Dataset", b"rows", metadata={"rows": 4})
    model = make_output("model", "Model", {"MLmodel": b"flavors: {}", "data/weights": b"w"})
    record = make_record(params={"max_iter": "300"}, metrics=points(3), tags={"airflow.state": "success"}, outputs=[table, model])
    record.inputs.append(ArtifactRef(type="Dataset", name="raw", uri="s3://bucket/raw.csv", sha256="c" * 64, size=9))
    recorder.send(record)

    run = recorder.tree.get(record.run.run_id)
    assert status_of(run) == "FINISHED"
    assert run["info"]["end_time"] == 1000
    assert run["data"]["params"] == [{"key": "max_iter", "value": "300"}]
    assert history(mlflow_api, record.run.run_id, "loss") == [(0, 1.0), (1, 0.5), (2, pytest.approx(1 / 3))]
    dataset = run["inputs"]["dataset_inputs"][0]
    assert dataset["dataset"]["name"] == "raw"
    assert json.loads(dataset["dataset"]["source"])["uri"] == "s3://bucket/raw.csv"
    assert run["outputs"]["model_outputs"][0]["model_id"] == record.outputs[1].model_id
    info = mlflow_api.get(f"logged-models/{record.outputs[1].model_id}")["model"]["info"]
    assert info["status"] == "LOGGED_MODEL_READY"
    assert info["source_run_id"] == record.run.run_id
    assert {each["key"]: each["value"] for each in info["tags"]}["airflow.logical_date"].startswith("2013-11-06")


def test_sending_twice_doubles_nothing(
    recorder: Recorder, mlflow_api: MlflowApi, make_record: Make, make_output: MakeOutput
) -> None:
    record = make_record(metrics=points(2), params={"a": "1"}, outputs=[make_output("model", "Model", b"m")])
    record.inputs += [ArtifactRef(type="Dataset", name="raw", uri="s3://b/raw", sha256="c" * 64)] * 2
    recorder.send(record)
    record.inputs.append(stored(record, "model"))
    recorder.send(record)
    recorder.send(record)
    assert history(mlflow_api, record.run.run_id, "loss") == [(0, 1.0), (1, 0.5)]
    run = recorder.tree.get(record.run.run_id)
    assert len(run["outputs"]["model_outputs"]) == 1
    assert len(run["inputs"]["model_inputs"]) == 1
    assert len(run["inputs"]["dataset_inputs"]) == 1


@pytest.mark.parametrize("answered", [True, False], ids=["made", "not made"])
@pytest.mark.parametrize("at", [0, 1, 2], ids=["create", "tags", "ready"])
def test_a_model_whose_answer_was_lost_is_made_once(
    recorder: Recorder, mlflow_api: MlflowApi, make_record: Make, make_output: MakeOutput, at: int, answered: bool
) -> None:
    record = make_record(outputs=[make_output("model", "Model", b"m")])
    with CutApi(mlflow_api, at, answered) as cut, pytest.raises(RemoteUnavailableError):
        Recorder(cut).send(record)
    stale = record.model_copy(deep=True)  # as the spool has it, which learns nothing of what is sent after
    for each in (record, stale):
        recorder.send(each)
        made = models_of(mlflow_api, record)
        assert {model_id: info["status"] for model_id, info in made.items()} == {each.outputs[0].model_id: "LOGGED_MODEL_READY"}


def test_a_try_does_not_take_the_model_of_another_try(
    recorder: Recorder, mlflow_api: MlflowApi, make_record: Make, make_output: MakeOutput
) -> None:
    first = make_record(outputs=[make_output("model", "Model", b"m")])
    with CutApi(mlflow_api, 0, answered=True) as cut, pytest.raises(RemoteUnavailableError):
        Recorder(cut).send(first)
    second = make_record(number=2, outputs=[make_output("model", "Model", b"m")], tried=True)
    recorder.send(second)
    assert len(models_of(mlflow_api, second)) == 2


def test_a_parameter_that_a_retry_changes_becomes_a_tag_of_the_try(recorder: Recorder, make_record: Make) -> None:
    recorder.send(make_record(params={"depth": "3", "same": "x"}))
    recorder.send(make_record(number=2, params={"depth": "4", "same": "x", "new": "y"}))
    record = make_record(number=3)
    run = recorder.tree.get(record.run.run_id)
    assert {each["key"]: each["value"] for each in run["data"]["params"]} == {"depth": "3", "same": "x", "new": "y"}
    assert tags_of(run)["try-2.param.depth"] == "4"


def test_more_than_a_request_holds_goes_in_several(recorder: Recorder, mlflow_api: MlflowApi, make_record: Make) -> None:
    record = make_record(params={f"p{number}": str(number) for number in range(250)}, metrics=points(2500))
    recorder.send(record)
    assert len(recorder.tree.get(record.run.run_id)["data"]["params"]) == 250
    assert len(history(mlflow_api, record.run.run_id, "loss")) == 2500


def test_nan_and_infinity_are_metrics_too(recorder: Recorder, mlflow_api: MlflowApi, make_record: Make) -> None:
    odd = [
        MetricPoint(key="x", value=value, timestamp_ms=1, step=step) for step, value in enumerate([math.nan, math.inf, -math.inf])
    ]
    record = make_record(metrics=odd)
    recorder.send(record)
    assert math.isnan(history(mlflow_api, record.run.run_id, "x")[0][1])
    assert history(mlflow_api, record.run.run_id, "x")[1][1] > 1e300


def test_an_overtaken_try_keeps_its_uploads_and_leaves_the_run_alone(
    recorder: Recorder, make_record: Make, make_output: MakeOutput
) -> None:
    early = make_record(params={"late": "1"}, outputs=[make_output("table.csv", "Dataset", b"old")])
    second = make_record(number=2, outputs=[make_output("table.csv", "Dataset", b"new", "try-2/table.csv")])
    recorder.send(second)
    early.outputs[0].path = str(Path(early.outputs[0].path).with_name("early.csv"))
    Path(early.outputs[0].path).write_bytes(b"old")
    with pytest.raises(SupersededError):
        recorder.send(early)
    run = recorder.tree.get(second.run.run_id)
    assert (status_of(run), run["data"].get("params", [])) == ("FINISHED", [])
    assert stored(second, "table").sha256 == hashlib.sha256(b"new").hexdigest()
    assert stored(early, "table").uri != stored(second, "table").uri


@pytest.mark.parametrize("content", [b"", b"x" * 3_000_000, {"a/b/c.txt": b"1", "d.txt": b"2", "with space/ü.txt": b"3"}])
def test_what_was_stored_comes_back_the_same(
    recorder: Recorder, make_record: Make, make_output: MakeOutput, tmp_path: Path, content: bytes | dict[str, bytes]
) -> None:
    record = make_record(outputs=[make_output("data", "Dataset", content)])
    recorder.send(record)
    (tmp_path / "in").mkdir()
    local, written = recorder.store.fetch(stored(record, "data"), tmp_path / "in")
    assert written.sha256 == stored(record, "data").sha256
    files = {each.relative_to(local).as_posix(): each.read_bytes() for each in local.rglob("*") if each.is_file()}
    assert (files or local.read_bytes()) == content


def test_the_digest_of_a_directory_is_what_sha256sum_prints(
    recorder: Recorder, make_record: Make, make_output: MakeOutput
) -> None:
    record = make_record(outputs=[make_output("data", "Dataset", {"b": b"2", "a": b"1"})])
    recorder.send(record)
    lines = "".join(f"{hashlib.sha256(each).hexdigest()}  {name}\n" for name, each in (("a", b"1"), ("b", b"2")))
    assert stored(record, "data").sha256 == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("to", ["nothing", "folder"])
def test_a_link_that_would_be_left_out_in_silence_is_refused(
    recorder: Recorder, make_record: Make, make_output: MakeOutput, tmp_path: Path, to: str
) -> None:
    (tmp_path / "folder").mkdir()
    output = make_output("data", "Dataset", {"a": b"1"})
    (Path(output.path) / "link").symlink_to(tmp_path / to)
    with pytest.raises(ArtifactError, match="link is a link to a folder, or to nothing"):
        recorder.send(make_record(outputs=[output]))


def test_an_artifact_that_was_changed_in_the_store_is_refused(
    recorder: Recorder, mlflow_api: MlflowApi, make_record: Make, make_output: MakeOutput, tmp_path: Path
) -> None:
    record = make_record(outputs=[make_output("table.csv", "Dataset", b"good")])
    recorder.send(record)
    root = record.run.artifact_uri.removeprefix("mlflow-artifacts:/")
    mlflow_api.upload(f"{root}/try-1/table.csv", [b"evil"], 4)
    with pytest.raises(ArtifactError, match="was changed in the store after it was recorded"):
        recorder.store.fetch(stored(record, "table"), tmp_path)


def test_an_artifact_that_is_gone_is_named_with_the_remedy(recorder: Recorder, make_record: Make, tmp_path: Path) -> None:
    ref = ArtifactRef(type="Dataset", name="table", uri=f"runs:/{make_record().run.run_id}/try-1/none.csv", sha256="a" * 64)
    with pytest.raises(ArtifactError, match="Run the step that made it again"):
        recorder.store.fetch(ref, tmp_path)


def test_an_output_goes_where_the_step_asks_and_is_read_from_there(
    recorder: Recorder, make_record: Make, make_output: MakeOutput, tmp_path: Path
) -> None:
    root = f"file://{tmp_path}/bucket/dag/run/train"
    record = make_record(
        outputs=[
            make_output("table.csv", "Dataset", b"rows", f"{root}/try-1/table.csv"),
            make_output("model", "Model", {"w": b"1"}, f"{root}/try-1/model"),
        ]
    )
    recorder.send(record)
    assert stored(record, "table").uri == f"{root}/try-1/table.csv"
    by_id = ArtifactRef(type="Model", name="model", uri=f"models:/{record.outputs[1].model_id}")
    for number, ref in enumerate([stored(record, "table"), stored(record, "model"), recorder.store.resolve(by_id)]):
        (tmp_path / str(number)).mkdir()
        assert ref.sha256 == recorder.store.fetch(ref, tmp_path / str(number))[1].sha256


def test_the_registry_resolves_an_alias_to_bytes_with_their_digest(
    recorder: Recorder, mlflow_api: MlflowApi, make_record: Make, make_output: MakeOutput, unique: str, tmp_path: Path
) -> None:
    store = recorder.store
    champion = ArtifactRef(type="Model", name="champion", uri=f"models:/{unique}@champion")
    with pytest.raises(RemoteNotFoundError):
        store.resolve(champion)
    record = make_record(outputs=[make_output("model.pkl", "Model", b"pickled")])
    recorder.send(record)
    model = stored(record, "model")
    mlflow_api.post("registered-models/create", {"name": unique})
    source = f"models:/{record.outputs[0].model_id}"
    body = {"name": unique, "source": source, "model_id": record.outputs[0].model_id, "run_id": record.run.run_id}
    version = mlflow_api.post("model-versions/create", body)["model_version"]["version"]
    mlflow_api.post("registered-models/alias", {"name": unique, "alias": "champion", "version": version})
    for uri in (champion.uri, f"models:/{unique}/{version}", source):
        found = ArtifactStore(mlflow_api).resolve(champion.model_copy(update={"uri": uri}))
        assert (found.uri, found.sha256, found.size) == (model.uri, model.sha256, model.size)
    assert store.fetch(store.resolve(champion), tmp_path)[0].read_bytes() == b"pickled"


def test_a_store_that_only_mlflow_knows_is_a_place_as_well(tmp_path: Path) -> None:
    place = MlflowStorePlace(f"file://{tmp_path}/store")
    (tmp_path / "in").write_bytes(b"bytes")
    assert place.write("a/b.txt", tmp_path / "in") == hash_file(tmp_path / "in")
    assert place.files("") == ["a/b.txt"]
    assert place.files("a") == ["b.txt"]
    assert place.read("a/b.txt", tmp_path / "out") == hash_file(tmp_path / "in")
    with pytest.raises(RemoteNotFoundError):
        place.read("a/none.txt", tmp_path / "out")


def test_an_alias_whose_model_was_deleted_is_broken_not_absent(
    recorder: Recorder, mlflow_api: MlflowApi, make_record: Make, make_output: MakeOutput, unique: str
) -> None:
    record = make_record(outputs=[make_output("model.pkl", "Model", b"pickled")])
    recorder.send(record)
    model_id = record.outputs[0].model_id
    mlflow_api.post("registered-models/create", {"name": unique})
    mlflow_api.post("model-versions/create", {"name": unique, "source": f"models:/{model_id}", "model_id": model_id})
    mlflow_api.post("registered-models/alias", {"name": unique, "alias": "champion", "version": "1"})
    mlflow_api.delete(f"logged-models/{model_id}", {})
    with pytest.raises(ArtifactError, match=f"airflow-ml rollback {unique}"):
        recorder.store.resolve(ArtifactRef(type="Model", name="champion", uri=f"models:/{unique}@champion"))
