"""A step's function written for KFP: the signature that the SDK reads, and what KFP has no word for."""

from __future__ import annotations

import ast
import inspect
import typing
from collections.abc import Callable
from typing import Annotated, Any, Literal

import pytest

from airflow_ml_provider import Artifact, Dataset, Input, Metrics, Model, Output
from airflow_ml_provider.core.function_source import read_function
from airflow_ml_provider.core.kfp_component import component_source
from airflow_ml_provider.core.signature import read_signature
from airflow_ml_provider.exceptions import ConfigError


class Options(typing.TypedDict):
    depth: int


def written(function: Callable[..., Any]) -> str:
    """The text of the component, which is Python."""
    signature = read_signature(function)
    returns = typing.get_type_hints(function, include_extras=True).get("return", inspect.Parameter.empty)
    text = component_source(read_function(function, signature), signature, returns, "SEFMRg==")
    ast.parse(text)
    return text


def head(function: Callable[..., Any]) -> str:
    return written(function).splitlines()[0]


def test_outputs_and_what_has_no_default_come_first_then_the_manifest_then_the_rest() -> None:
    def train(depth: int = 3, *, table: Input[Dataset], model: Output[Model], metrics: Output[Metrics]) -> None: ...

    assert head(train) == (
        "def train(table: Input[Dataset], model: Output[Model], metrics: Output[Metrics], "
        "airflow_ml_manifest: Output[Artifact], depth: int = 3):"
    )


def test_every_plain_type_has_its_word_in_kfp() -> None:
    def train(
        a: bool,
        b: int,
        c: float,
        d: str,
        e: list[int],
        f: dict[str, Any],
        g: Literal["x", "y"],
        h: Annotated[int, "rows"],
        i: Options,
        j: int | None = None,
        k: Any = 0.5,
    ) -> list[float]:
        return []

    assert head(train) == (
        "def train(a: bool, b: int, c: float, d: str, e: list, f: dict, g: str, h: int, i: dict, "
        "airflow_ml_manifest: Output[Artifact], j: Optional[int] = None, k: float = 0.5) -> list:"
    )


def test_artifacts_that_are_many_or_may_be_missing() -> None:
    def gather(all_of_them: Input[list[Artifact]], table: Input[Dataset] | None = None) -> None: ...

    assert head(gather) == (
        "def gather(all_of_them: Input[List[Artifact]], airflow_ml_manifest: Output[Artifact], "
        "table: Optional[Input[Dataset]] = None):"
    )


def test_texts_with_quotes_braces_and_lines_come_through_as_they_are() -> None:
    def train(text: str = 'it\'s "{x}"\n{{y}}') -> str:
        return text + "{z} '''"

    text = written(train)
    assert "text: str = 'it\\'s \"{x}\"\\n{{y}}'" in text
    (call,) = (
        each for each in ast.walk(ast.parse(text)) if isinstance(each, ast.Call) and ast.unparse(each.func) == "json.loads"
    )
    assert "{z} '''" in ast.literal_eval(call.args[0])


def unknown_type(day: object) -> None: ...
def no_type(day: Any) -> None: ...
def several(day: int | str) -> None: ...
def mixed(day: Literal[1, "a"]) -> None: ...
def returned(day: int) -> int | str:
    return day


def taken(airflow_ml_manifest: Output[Artifact]) -> None: ...
def named_as_what_is_returned(Output: int) -> None: ...  # noqa: N803


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (unknown_type, "'unknown_type', parameter 'day': KFP has no type for <class 'object'>"),
        (no_type, "'no_type', parameter 'day': KFP has no type for typing.Any"),
        (several, "'several', parameter 'day': KFP has no type for int | str"),
        (mixed, "'mixed', parameter 'day': KFP has no type for typing.Literal"),
        (returned, "'returned', what it returns: KFP has no type for int | str"),
        (named_as_what_is_returned, "KFP has no parameter of the name 'Output'. Rename it."),
        (taken, "has a parameter 'airflow_ml_manifest', which every component of ours has"),
    ],
)
def test_what_kfp_has_no_word_for_is_refused_with_the_name(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        written(function)
    assert words in str(refused.value)
