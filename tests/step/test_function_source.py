"""What is taken of a function for a container, and what is refused when the DAG is parsed."""

from __future__ import annotations

import datetime as dt
import functools
import json
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import pytest

from airflow_ml_provider.core.function_source import SOURCE_BYTES, read_function
from airflow_ml_provider.core.signature import read_signature
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.artifact import Artifact, Dataset, Input, Metrics, Output
from airflow_ml_provider.models.pod_step import StepFunction

LIMIT = 3


class Model(Artifact):
    """Not the provider's."""


def ml_pod(**_: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args)

        return wrapper

    return decorate


def read(function: Callable[..., Any]) -> StepFunction:
    return read_function(function, read_signature(getattr(function, "__wrapped__", function)))


@ml_pod(
    image="registry/trainer:1",
    gpu=LIMIT,
)
def good(
    table: Input[Dataset] | None, scores: Output[Metrics], rate: float = 0.5, when: dict[str, list[float | None]] | None = None
) -> None:
    """Text
    in two lines."""
    # a comment
    import os
    from pathlib import Path

    def inner(value: LIMIT) -> int:  # type: ignore[valid-type]
        total: SomeType = value  # type: ignore[name-defined]  # noqa: F821
        return cast("int", total + len(os.sep) + inner.count)

    class Local:
        size = 1
        twice = size * 2

    inner.count = 1  # type: ignore[attr-defined]
    known = [Dataset, Metrics, Any, Literal, print, __name__, good, [each + 1 for each in range(3)]]
    scores.log_metric("x", inner(Local.twice) + len(known) + (table is None) + len(Path("a").name))


def test_decorators_stay_behind_and_all_else_comes_as_it_is() -> None:
    found = read(good)
    assert found.name == "good"
    assert found.source.startswith("def good(\n    table: Input[Dataset] | None,")
    assert '"""Text\n    in two lines."""\n    # a comment\n' in found.source
    assert found.roles == {"table": "input", "scores": "output", "rate": "plain", "when": "plain"}
    assert found.optional == ["table"]


def test_an_indented_function_keeps_the_texts_in_it() -> None:
    def inside(depth: int) -> str:
        return f"""
    {depth}
left"""

    namespace: dict[str, Any] = {}
    exec(read(inside).source, namespace)  # noqa: S102  (as the container does)
    assert namespace["inside"](2) == inside(2) == "\n    2\nleft"


def uses_global(depth: int) -> int:
    return depth + LIMIT


def uses_module(depth: int) -> str:
    return json.dumps(math.floor(depth))


def has_global_default(depth: int = LIMIT) -> int:
    return depth


def uses_other_type(table: Input[Dataset]) -> bool:
    return isinstance(table, Model)


def uses_in_nested(depth: int) -> Any:
    return [lambda: LIMIT for _ in range(depth)]


def uses_unknown(depth: int) -> Any:
    return undefined  # type: ignore[name-defined]  # noqa: F821


def imports_ours(depth: int) -> Any:
    from airflow_ml_provider.models.artifact import Dataset

    return Dataset


def bad_default(depth: Any = (1, 2)) -> Any:
    return depth


def nan_default(depth: float = math.nan) -> Any:
    return depth


def bad_type(day: dt.date) -> Any:
    return day


def bad_inner_type(days: list[Path]) -> Any:
    return days


def bad_keys(days: dict[int, str]) -> Any:
    return days


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (uses_global, "uses 'LIMIT' of its DAG file, which is not in the container. Define 'LIMIT' or import it inside"),
        (uses_module, "uses 'json', 'math' of its DAG file, which is not in the container. Import 'json', 'math' inside"),
        (has_global_default, "uses 'LIMIT'"),
        (uses_other_type, "uses 'Model'"),
        (uses_in_nested, "uses 'LIMIT'"),
        (uses_unknown, "uses 'undefined'"),
        (imports_ours, "imports airflow_ml_provider, which the image does not have. Artifact types are known"),
        (bad_default, r"parameter 'depth': its default \(1, 2\) is not plain JSON"),
        (nan_default, "uses 'math'"),
        (bad_type, "parameter 'day': <class 'datetime.date'> does not travel as JSON"),
        (bad_inner_type, r"parameter 'days': list\[pathlib.*Path\] does not travel as JSON"),
        (bad_keys, r"parameter 'days': dict\[int, str\] does not travel"),
        (lambda: 1, "is a lambda"),
    ],
)
def test_what_would_fail_in_the_container_is_refused_when_the_dag_is_parsed(function: Callable[..., Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read(function)


def test_a_name_of_the_function_around_it_is_refused() -> None:
    depth = 3

    def inside() -> int:
        return depth

    with pytest.raises(ConfigError, match=r"uses 'depth' of the function around it, which stays behind. Pass it as a parameter"):
        read(inside)


def from_file(folder: Path, source: str) -> Callable[..., Any]:
    file = folder / "dag_file.py"
    file.write_text(textwrap.dedent(source))
    namespace: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec", dont_inherit=True), namespace)  # noqa: S102
    found: Callable[..., Any] = namespace["train"]
    return found


def test_a_function_without_a_file_is_refused() -> None:
    namespace: dict[str, Any] = {}
    exec("def train():\n    pass", namespace)  # noqa: S102
    with pytest.raises(ConfigError, match=r"its source cannot be read .* Define it with def in the DAG file"):
        read(namespace["train"])


def test_a_builtin_that_the_dag_file_has_replaced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="uses 'print'"):
        read(from_file(tmp_path, "print = str\ndef train():\n    print(1)\n"))


def test_a_function_of_two_lines_on_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is not a plain function|its source cannot be read"):
        read(from_file(tmp_path, "x = 1; train = lambda: 1\ntrain.__name__ = 'train'\n"))


def test_a_source_that_is_too_long_is_refused_with_the_limit(tmp_path: Path) -> None:
    long = "def train():\n    return '" + "x" * SOURCE_BYTES + "'\n"
    with pytest.raises(
        ConfigError, match=rf"its source has \d+ bytes, the limit is {SOURCE_BYTES}. Put most of it into a module"
    ):
        read(from_file(tmp_path, long))


def test_a_global_that_the_function_sets_itself_is_its_own(tmp_path: Path) -> None:
    source = "def train():\n    global seen\n    seen = 1\n    return seen\n"
    assert read(from_file(tmp_path, source)).source == source
