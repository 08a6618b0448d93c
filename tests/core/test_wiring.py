from __future__ import annotations

from typing import Any

import pytest

from airflow_ml_provider.core.signature import read_signature
from airflow_ml_provider.core.wiring import Source, check_missing, check_names, check_output, check_source, check_text, refs_of
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.artifact import Artifact, Dataset, Input, Model, Output
from airflow_ml_provider.models.reference import ArtifactRef, StepOutputs


def evaluate(
    table: Input[Dataset],
    model: Input[Model],
    anything: Input[Artifact],
    models: Input[list[Model]],
    depth: int,
    scores: Output[Dataset],
) -> None: ...


SIGNATURE = read_signature(evaluate)
REF = ArtifactRef(type="Model", name="model", uri="models:/m-" + "0" * 32, sha256="a" * 64, size=1)
SIBLINGS = {"model": "Model", "metrics": "Metrics"}


def refused(call: Any, *args: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        call(*args)
    return str(caught.value)


def test_an_unknown_parameter_is_refused_with_the_nearest_name() -> None:
    assert refused(check_names, SIGNATURE, ["tabel"]) == "step 'evaluate' has no parameter 'tabel'. Did you mean 'table'?"


def test_a_name_like_no_other_is_refused_with_all_names() -> None:
    assert "There are: anything, depth, model, models, table." in refused(check_names, SIGNATURE, ["xyz"])


def test_an_output_is_never_passed() -> None:
    assert "outputs are injected, never passed" in refused(check_names, SIGNATURE, ["scores"])


def test_a_missing_input_is_named_with_its_type() -> None:
    message = refused(check_missing, SIGNATURE, ["table", "anything", "models", "depth"])
    assert message == "step 'evaluate': missing 'model' (Input[Model]). Pass it by name, or give it a default."


def test_an_unknown_output_is_refused_with_the_nearest_name() -> None:
    assert "Did you mean 'scores'?" in refused(check_output, SIGNATURE, "score")


def test_a_model_where_a_dataset_is_wanted_names_step_parameter_both_types_and_the_fix() -> None:
    source = Source('fit["model"]', "Model", siblings={"model": "Model", "table": "Dataset"}, step="fit")
    message = refused(check_source, "evaluate", SIGNATURE.parameters["table"], source)
    assert message == (
        "step 'evaluate', parameter 'table' wants Input[Dataset], but fit[\"model\"] is a Model. Did you mean fit['table']?"
    )


def test_a_whole_step_where_one_output_is_wanted_suggests_the_output() -> None:
    message = refused(check_source, "evaluate", SIGNATURE.parameters["model"], Source("fit", siblings=SIBLINGS, step="fit"))
    assert "is not one output. Did you mean fit['model']?" in message


def test_an_artifact_for_a_plain_parameter_says_what_to_declare() -> None:
    message = refused(check_source, "evaluate", SIGNATURE.parameters["depth"], Source('fit["model"]', "Model"))
    assert "Declare depth: Input[Model]." in message


def test_the_outputs_of_a_mapped_step_go_to_a_list_and_nowhere_else() -> None:
    many = Source('fit["model"]', "Model", many=True)
    check_source("evaluate", SIGNATURE.parameters["models"], many)
    message = refused(check_source, "evaluate", SIGNATURE.parameters["model"], many)
    assert "Declare Input[list[Model]]" in message
    assert ".expand(model=" in message


def test_one_model_where_a_list_is_wanted_says_how_to_make_one() -> None:
    assert "pass a list" in refused(check_source, "evaluate", SIGNATURE.parameters["models"], Source('fit["model"]', "Model"))


def test_any_artifact_fits_where_artifact_is_wanted() -> None:
    check_source("evaluate", SIGNATURE.parameters["anything"], Source('fit["model"]', "Model"))


@pytest.mark.parametrize("text", ["s3://b/k", "models:/m@champion", "/data/x.csv", "{{ params.place }}", "runs:/1/x"])
def test_a_place_or_a_template_is_taken(text: str) -> None:
    check_text("evaluate", SIGNATURE.parameters["table"], text)


@pytest.mark.parametrize("text", ["table", "data/x.csv", ""])
def test_a_text_that_is_no_place_is_refused(text: str) -> None:
    assert "is not the place of one" in refused(check_text, "evaluate", SIGNATURE.parameters["table"], text)


def test_a_password_in_a_uri_is_refused_and_not_shown() -> None:
    message = refused(check_text, "evaluate", SIGNATURE.parameters["table"], "s3://key:hidden@bucket/x")
    assert "Name an Airflow connection" in message
    assert "hidden" not in message


def test_what_comes_at_run_time_is_refused_with_the_same_words() -> None:
    message = refused(refs_of, "evaluate", SIGNATURE.parameters["table"], REF.to_json())
    assert "step 'evaluate', parameter 'table' wants Input[Dataset]" in message
    assert "is a Model" in message


@pytest.mark.parametrize("value", [None, 3, [1], {"a": 1}, "nowhere", {"version": 9, "type": "Model", "uri": "x"}])
def test_what_is_no_reference_is_refused_at_run_time(value: object) -> None:
    refused(refs_of, "evaluate", SIGNATURE.parameters["model"], value)


def test_the_outputs_of_a_whole_step_are_refused_with_the_output_to_take() -> None:
    whole = StepOutputs.of("0" * 32, {"model": REF}).to_json()
    assert "Did you mean step['model']?" in refused(refs_of, "evaluate", SIGNATURE.parameters["model"], whole)


def test_a_list_is_read_element_by_element() -> None:
    assert refs_of("evaluate", SIGNATURE.parameters["models"], (REF.to_json(), REF.to_json())) == [REF, REF]


@pytest.mark.parametrize("value", [REF.to_json(), "models:/m@champion", None, 3])
def test_what_is_not_a_list_is_refused_for_a_list(value: object) -> None:
    refused(refs_of, "evaluate", SIGNATURE.parameters["models"], value)
