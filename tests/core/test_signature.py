from __future__ import annotations

import inspect

import pytest

from airflow_ml_provider.core.signature import StepParameter, read_signature
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.artifact import Artifact, Dataset, Input, Metrics, Model, Output


def example(
    table: Input[Dataset],
    champion: Input[Model] | None,
    many: Input[list[Model]],
    depth: int,
    out: Output[Model],
    metrics: Output[Metrics],
    note: str = "x",
) -> None: ...


def test_a_function_is_read_as_inputs_outputs_and_plain_parameters() -> None:
    signature = read_signature(example)
    assert list(signature.inputs) == ["table", "champion", "many"]
    assert list(signature.outputs) == ["out", "metrics"]
    assert list(signature.plain) == ["depth", "note"]
    assert signature.step == "example"


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("table", "Input[Dataset]"),
        ("champion", "Input[Model] | None"),
        ("many", "Input[list[Model]]"),
        ("out", "Output[Model]"),
        ("depth", "a plain value"),
    ],
)
def test_a_parameter_shows_its_type_as_its_author_wrote_it(name: str, wanted: str) -> None:
    assert read_signature(example).parameters[name].wanted == wanted


def test_only_inputs_and_parameters_without_a_default_are_required() -> None:
    required = {name for name, each in read_signature(example).parameters.items() if each.required}
    assert required == {"table", "champion", "many", "depth"}


@pytest.mark.parametrize("optional", [True, False])
def test_an_input_of_no_function_is_one_artifact_that_a_call_need_not_give(optional: bool) -> None:
    parameter = StepParameter.input("champion", Model, optional=optional)
    assert parameter.wanted == "Input[Model]" + " | None" * optional
    assert (parameter.role, parameter.many, parameter.required) == ("input", False, False)


def test_annotations_that_name_what_the_enclosing_function_knows_are_read() -> None:
    Local = Dataset  # noqa: N806

    def step(table: Input[Local]) -> None:
        assert Local

    assert read_signature(step).parameters["table"].artifact is Dataset


def test_a_function_may_use_what_is_bound_further_down() -> None:
    def step(table: Input[Dataset]) -> None:
        helper()

    assert read_signature(step).parameters["table"].artifact is Dataset

    def helper() -> None: ...


def bare(model: Model) -> None: ...
def listed(models: list[Input[Model]]) -> None: ...
def named(models: dict[str, Input[Model]]) -> None: ...
def bare_list(models: list[Model] | None) -> None: ...
def returns(model: Output[Model]) -> int: ...
async def waits(table: Input[Dataset]) -> None: ...
def starred(*tables: Input[Dataset]) -> None: ...
def optional_output(table: Output[Dataset] | None) -> None: ...
def defaulted(table: Input[Dataset] = "s3://x") -> None: ...  # type: ignore[assignment]
def none_default(table: Input[Dataset] = None) -> None: ...  # type: ignore[assignment]


def not_artifact(table: Input[int]) -> None: ...
def unknown(table: Input[Nowhere]) -> None: ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (bare, "Declare Input[Model] or Output[Model]"),
        (listed, "parameter 'models': Model stands inside of another type, where it is not seen. Write Input[list[Model]]"),
        (named, "Write Input[list[Model]] for many, Input[Model] or Output[Model] for one"),
        (bare_list, "Write Input[list[Model]]"),
        (returns, "Return None"),
        (waits, "async"),
        (starred, "Name each parameter"),
        (optional_output, "Declare Output[Dataset]"),
        (defaulted, "can only be None"),
        (none_default, "Declare Input[Dataset] | None"),
        (not_artifact, "not an artifact type"),
        (unknown, "Import what they name"),
    ],
)
def test_a_signature_that_cannot_be_a_steps_is_refused_with_the_remedy(function: object, words: str) -> None:
    with pytest.raises(ConfigError, match=inspect.getdoc(function) or ".") as caught:
        read_signature(function)  # type: ignore[arg-type]
    assert words in str(caught.value)
    assert function.__name__ in str(caught.value)  # type: ignore[attr-defined]


def test_the_general_type_is_an_artifact_too() -> None:
    def step(page: Output[Artifact]) -> None: ...

    assert read_signature(step).outputs["page"].artifact is Artifact
