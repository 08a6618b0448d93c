from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pendulum
import pytest
from airflow.sdk import DAG, task

from airflow_ml_provider import Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.decorators.ml import MLTask
from airflow_ml_provider.decorators.ml_pod import ml_pod_task
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.operators.pod_function import MLPodFunctionOperator
from airflow_ml_provider.operators.references import StepReference
from tests.airflow_releases import DagSerialization

IMAGE = "registry.example.com/trainer:1"
OUTSIDE = 3


@ml_task
def make(rows: int, table: Output[Dataset], metrics: Output[Metrics]) -> None: ...


@ml_pod_task(image=IMAGE, gpu=1, memory_gib=2)
def train(table: Input[Dataset], depth: int, model: Output[Model], champion: Input[Model] | None = None) -> None:
    import json

    json.dumps(depth)


@task.ml_pod(image=IMAGE, deferrable=True)
def pick(models: Input[list[Model]], day: str = "x", ds: Any = None) -> int:
    return len(models)


@pytest.fixture(autouse=True)
def example() -> Iterator[DAG]:
    with DAG("example", schedule=None, start_date=pendulum.datetime(2024, 1, 1), default_args={"namespace": "ml"}) as dag:
        yield dag


def operator(reference: Any) -> MLPodFunctionOperator:
    found = reference.operator
    assert isinstance(found, MLPodFunctionOperator)
    return found


class TestWired:
    def test_a_step_in_a_pod_feeds_others_and_is_fed(self) -> None:
        made = train(make(1)["table"], depth=1)
        assert isinstance(made, StepReference)
        again = train(make(1)["table"], depth=1, champion=made["model"])
        assert operator(again).upstream_task_ids == {"make__1", "train"}
        assert operator(again).namespace == "ml"
        assert operator(made).resources_asked.gpu is not None

    def test_task_ml_pod_is_the_same(self) -> None:
        assert isinstance(pick, MLTask)
        assert isinstance(train, MLTask)
        assert operator(pick([make(1)["table"].operator and "models:/a@b"])).deferrable

    def test_the_function_travels_as_source(self) -> None:
        function = operator(train(make(1)["table"], depth=1)).function
        assert function is not None
        assert function.name == "train"
        assert function.source.startswith("def train(table")
        assert function.roles == {"table": "input", "depth": "plain", "model": "output", "champion": "input"}
        assert function.optional == ["champion"]

    def test_it_is_mapped_as_in_a_worker(self, example: DAG) -> None:
        fits = train.partial(table=make(1)["table"]).expand(depth=[1, 2])
        pick(models=fits["model"])
        with pytest.raises(ConfigError, match=r"one Model for each instance of a mapped step"):
            train(table=make(1)["table"], depth=1, champion=fits["model"])
        tasks = {each["__var"]["task_id"] for each in DagSerialization.to_dict(example)["dag"]["tasks"]}
        assert {"make", "train", "pick"} <= tasks


class TestRefusedWhenTheDagIsParsed:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: train(table=make(1)["metrics"], depth=1), r"wants Input\[Dataset\], but make\[\"metrics\"\] is a Metrics"),
            (lambda: train(table=make(1), depth=1), r"Did you mean make\['table'\]"),
            (lambda: train(depth=1), r"missing 'table' \(Input\[Dataset\]\)"),
            (lambda: train(make(1)["table"], depth=1, dept=2), "has no parameter 'dept'"),
            (lambda: train.override(image="A B")(make(1)["table"], depth=1), "image='A B' is not the name of an image"),
            (lambda: train.override(gpu=-1)(make(1)["table"], depth=1), "GpuRequest: count=-1"),
            (lambda: train.override(cmds=["x"])(make(1)["table"], depth=1), "cmds cannot be given: the function says it"),
            (
                lambda: train.override(options=PodOptions(sidecar="a"))(make(1)["table"], depth=1),
                "a function needs Python in its image",
            ),
            (lambda: train.override(options=PodOptions(step="none"))(make(1)["table"], depth=1), "it declares"),
        ],
    )
    def test_what_does_not_fit(self, call: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            call()

    def test_a_function_that_cannot_travel(self) -> None:
        @ml_pod_task(image=IMAGE)
        def uses(depth: int) -> int:
            return depth + OUTSIDE

        with pytest.raises(ConfigError, match="uses 'OUTSIDE' of its DAG file"):
            uses(depth=1)

    def test_an_output_named_as_a_file_of_ours(self) -> None:
        @ml_pod_task(image=IMAGE)
        def tells(manifest: Output[Dataset]) -> None: ...

        with pytest.raises(ConfigError, match="an output cannot be named 'manifest'"):
            tells()

    def test_several_results(self) -> None:
        with pytest.raises(ConfigError, match="multiple_outputs is not for steps"):
            ml_pod_task(image=IMAGE, multiple_outputs=True)


class TestArguments:
    def test_an_optional_input_that_is_none_is_left_out_and_one_that_was_skipped_is_not(self) -> None:
        said = operator(train(make(1)["table"], depth=1, champion=None))
        assert "champion" not in said._rendered({})  # type: ignore[typeddict-item]
        came = operator(train(make(1)["table"], depth=1, champion=make(1)["table"] and train(make(1)["table"], 1)["model"]))
        came.op_kwargs = {**came.op_kwargs, "champion": None}
        assert came._rendered({})["champion"] is None  # type: ignore[typeddict-item]

    def test_airflows_context_fills_what_it_knows(self) -> None:
        given = operator(pick(["models:/a@b"]))._rendered({"ds": "2024-01-01"})  # type: ignore[typeddict-item]
        assert given == {"ds": "2024-01-01", "models": ["models:/a@b"]}
