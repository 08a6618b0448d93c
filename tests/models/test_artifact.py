from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider.exceptions import ArtifactError, ConfigError
from airflow_ml_provider.models.artifact import Dataset, MetricPoint, Metrics, Model, dump_metrics, load_metrics
from airflow_ml_provider.models.reference import ArtifactRef, StepOutputs

RUN = "0123456789abcdef" * 2


def ref(name: str, uri: str | None = None, kind: str = "Dataset") -> ArtifactRef:
    return ArtifactRef(
        type=kind, name=name, uri=uri or f"runs:/{RUN}/try-1/{name}.parquet", sha256="f" * 64, size=123_456_789_012, run_id=RUN
    )


def test_ten_outputs_take_less_than_two_kilobytes_of_xcom() -> None:
    names = [f"output_{number:02}" for number in range(10)]
    metadata = {name: f"runs:/{RUN}/try-1/{name}.metadata.json" for name in names}
    datasets = {name: ref(name).model_copy(update={"metadata": metadata[name]}) for name in names}
    models = {name: ref(name, f"models:/m-{RUN}", "Model").model_copy(update={"metadata": metadata[name]}) for name in names}
    for outputs in (datasets, models):
        assert len(json.dumps(StepOutputs.of(RUN, outputs).to_json())) < 2000


@pytest.mark.parametrize("uri", [None, f"models:/m-{RUN}/model.pkl", "s3://bucket/try-1/table.parquet"])
def test_a_reference_is_the_same_after_xcom(uri: str | None) -> None:
    before = ref("table", uri, "Dataset")
    if not before.uri.startswith("models:"):  # a LoggedModel's is found through its tags
        before = before.model_copy(update={"metadata": f"runs:/{RUN}/try-1/table.metadata.json"})
    wire = json.loads(json.dumps(StepOutputs.of(RUN, {"table": before}).to_json()))
    assert StepOutputs.looks_like(wire)
    assert StepOutputs.from_json(wire).ref("table") == before


def test_another_version_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"is not an artifact reference .* version: .* Run the step that made it again"):
        ArtifactRef.from_json({**ref("table").to_json(), "version": 2})
    with pytest.raises(ConfigError, match=r"is not the XCom of a step .* version: .* Run that step again"):
        StepOutputs.from_json({"version": 2, "run_id": RUN, "outputs": {}})


def test_an_output_that_was_not_made_is_refused_with_those_that_were() -> None:
    with pytest.raises(ConfigError, match=r"it made \['table'\]"):
        StepOutputs.of(RUN, {"table": ref("table")}).ref("model")


def test_an_input_is_fetched_when_its_path_is_first_touched_and_once() -> None:
    fetched = []
    table = Dataset("table", uri="s3://x", fetch=lambda: fetched.append(1) or "/tmp/x")  # type: ignore[func-returns-value]
    assert fetched == []
    assert (table.path, table.path) == ("/tmp/x", "/tmp/x")
    assert fetched == [1]


def test_an_input_is_read_only() -> None:
    table = Dataset("table", fetch=lambda: "/tmp/x")
    with pytest.raises(ConfigError, match="read-only"):
        table.path = "/tmp/y"
    with pytest.raises(ConfigError, match="read-only"):
        Metrics("metrics", fetch=lambda: "/tmp/x").log_metric("auc", 1)


def test_an_artifact_without_a_place_says_so() -> None:
    with pytest.raises(ArtifactError, match="no place"):
        _ = Model("model").path


def test_metrics_keep_each_point_and_show_the_last() -> None:
    points: list[MetricPoint] = []
    metrics = Metrics("metrics", log=points.append)
    for step, value in enumerate([3, 2.5, True]):
        metrics.log_metric("loss", value, step=step)
    assert [(each.step, each.value) for each in points] == [(0, 3.0), (1, 2.5), (2, 1.0)]
    assert metrics.metadata == {"loss": 1.0}


def test_a_metric_that_is_no_number_is_refused() -> None:
    with pytest.raises(ConfigError, match="must be a number"):
        Metrics("metrics", log=lambda _: None).log_metric("auc", "high")  # type: ignore[arg-type]


@given(st.dictionaries(st.text(), st.floats()))
def test_the_file_of_metrics_gives_every_number_back(values: dict[str, float]) -> None:
    read = load_metrics(dump_metrics(values))
    assert read.keys() == values.keys()
    assert all(read[key] == value or (math.isnan(read[key]) and math.isnan(value)) for key, value in values.items())
    json.loads(dump_metrics(values), parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
