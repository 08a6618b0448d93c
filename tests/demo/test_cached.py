"""What the demo's table says of a step whose result is that of an earlier night."""

from __future__ import annotations

import io
from datetime import date

from rich.console import Console

from airflow_ml_provider.hooks.mlflow import MlflowApi
from demo.nights import Night, Step, cached
from demo.records import MlflowRecords
from demo.screen import Screen
from tests.operators.cached_steps import Steps


def test_a_result_is_traced_to_the_night_that_made_it(mlflow_api: MlflowApi, mlflow_url: str, unique: str) -> None:
    step, records = Steps(mlflow_api, unique), MlflowRecords(mlflow_url)
    first, second = step(1), step(2)
    assert second.hit is not None
    assert [records.made_in(each.xcom) for each in (first, second)] == ["night-1", "night-1"]
    for value in (None, "text", {"decision": "keep"}, {"outputs": {}}, {"outputs": {}, "run_id": "0" * 32}):
        assert records.made_in(value) is None


def test_the_time_that_was_saved_is_that_of_the_same_step_of_the_earlier_night() -> None:
    step = Step("collect", -1, "success", 1.5, 1)
    instances = [
        {"task_id": "train", "map_index": -1, "duration": 60.0},
        {"task_id": "collect", "map_index": -1, "duration": 9.0},
    ]
    assert cached(instances, step) == "cached, 7.5 s saved"
    assert cached([instances[1] | {"duration": 1.0}], step) == "cached, 0.0 s saved", "what was slower has saved nothing"
    assert cached(instances[:1], step) == "cached", "that night is no longer in Airflow"


def test_the_table_has_a_column_for_it() -> None:
    file, night = io.StringIO(), Night(date(2013, 11, 7))
    rows = [
        (night, Step("collect", -1, "success", 1.5, 1), "cached, 7.5 s saved", "flights (Dataset, 6.2 MB)"),
        (night, Step("validate", -1, "success", 3.0, 1), "", "flights (Dataset, 1.4 MB)"),
    ]
    Screen(Console(file=file, width=200)).results(rows)
    lines = file.getvalue().splitlines()
    assert [each.strip() for each in lines[1].split("┃")][1:-1] == ["night", "step", "state", "duration", "cache", "what it made"]
    assert "cached, 7.5 s saved" in lines[3]
    assert "cached" not in lines[4]
