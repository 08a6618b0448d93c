from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_ml_provider.exceptions import ArtifactError, ConfigError, RemoteUnavailableError, SupersededError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.artifact import MetricPoint
from airflow_ml_provider.models.run import OutputFile, StepRecord
from airflow_ml_provider.tracking import spool
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.runs import status_of
from tests.servers import free_port

Make = Callable[..., StepRecord]
MakeOutput = Callable[..., OutputFile]
POINT = MetricPoint(key="auc", value=0.7, timestamp_ms=1)


@pytest.fixture(params=["{}/spool", "file://{}/spool"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(request.param).format(tmp_path)


def test_a_kept_record_is_sent_whole_and_removed(
    recorder: Recorder, make_record: Make, make_output: MakeOutput, place: str, tmp_path: Path
) -> None:
    outputs = [make_output("table.csv", "Dataset", b"rows"), make_output("model", "Model", {"a/w": b"1", "b": b"2"})]
    kept = spool.keep(place, make_record(metrics=[POINT], params={"n": "1"}, outputs=outputs))
    for output in outputs:  # the step's own scratch folder is gone by then
        Path(output.path).rename(tmp_path / f"gone-{output.name}")
    record = spool.resend(kept, recorder)
    run = recorder.tree.get(record.run.run_id)
    assert status_of(run) == "FINISHED"
    assert run["data"]["metrics"][0]["value"] == 0.7
    assert all(each.stored is not None for each in record.outputs)
    (tmp_path / "in").mkdir()
    model = next(each.stored for each in record.outputs if each.name == "model")
    assert model is not None
    assert recorder.store.fetch(model, tmp_path / "in")[1].sha256 == model.sha256
    with pytest.raises(ConfigError, match="there is no record"):
        spool.read(kept)


def test_a_server_that_is_still_away_leaves_the_record_where_it_is(
    make_record: Make, make_output: MakeOutput, mlflow_api: MlflowApi, place: str
) -> None:
    kept = spool.keep(place, make_record(outputs=[make_output("table.csv", "Dataset", b"rows")]))
    dead = MlflowServer("mlflow_default", f"http://127.0.0.1:{free_port()}")
    with MlflowApi(dead, mlflow_api.settings) as api, pytest.raises(RemoteUnavailableError):
        spool.resend(kept, Recorder(api))
    assert spool.read(kept).outputs[0].name == "table"


def test_the_record_of_an_overtaken_try_stays(recorder: Recorder, make_record: Make, place: str) -> None:
    kept = spool.keep(place, make_record(metrics=[POINT]))
    recorder.send(make_record(number=2))
    with pytest.raises(SupersededError):
        spool.resend(kept, recorder)
    assert spool.read(kept).metrics == [POINT]


def test_two_tries_have_places_of_their_own(make_record: Make, place: str) -> None:
    assert spool.keep(place, make_record()) != spool.keep(place, make_record(number=2))


def test_a_spool_that_cannot_be_written_says_which_option_to_set(
    make_record: Make, make_output: MakeOutput, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ArtifactError, match=r"Set \[ml\] spool"):
        spool.keep(str(tmp_path / "file"), make_record(outputs=[make_output("table.csv", "Dataset", b"rows")]))


def test_a_record_of_another_release_is_refused(make_record: Make, tmp_path: Path) -> None:
    kept = Path(spool.keep(str(tmp_path), make_record()).removeprefix("file://"))
    (kept / "record.json").write_text(json.dumps({"conn_id": "x"}))
    with pytest.raises(ConfigError, match="not a record that this release reads"):
        spool.read(str(kept))
