"""The fake reads an uploaded file's scalars as Go's yaml.v3 does, not as PyYAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.testing.kfp_uploads import read_spec

TABLE = json.loads((Path(__file__).parents[1] / "core" / "packages" / "scalars.json").read_text())
"""What yaml.v3 3.0.1 made of each."""
HEAD = "pipelineInfo: {name: a}\nroot: {}\nschemaVersion: 2.1.0\ndeploymentSpec:\n  x: "


def known(case: list[Any]) -> bool:
    return case[1] == "read" and not str(case[2]).endswith(("Z", "-05:00"))


@pytest.mark.parametrize("case", [each for each in TABLE if known(each)], ids=lambda case: repr(case[0]))
def test_a_scalar_without_quotes_is_read_as_by_the_server(case: list[Any]) -> None:
    value = read_spec(f"{HEAD}{case[0]}\n".encode(), "")["deploymentSpec"]["x"]
    assert type(value) is type(case[2]) or not isinstance(value, str | bool | None)
    assert value == case[2] or float(value) == float(case[2])  # the server keeps a double


def test_a_scalar_in_quotes_is_a_text() -> None:
    assert read_spec(f"{HEAD}'1e-05'\n".encode(), "")["deploymentSpec"]["x"] == "1e-05"


def test_merge_keys_are_merged() -> None:
    text = HEAD + "\n    one: &one {a: 1}\n    two: {<<: *one, b: 2}\n"
    assert read_spec(text.encode(), "")["deploymentSpec"]["x"]["two"] == {"a": 1, "b": 2}
