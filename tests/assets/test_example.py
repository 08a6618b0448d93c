"""The example: one DAG promotes a model, and the other one is to be started by its asset."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow.sdk import DAG

from tests.airflow_runs import Outcome
from tests.assets.events import events_of, unpause, waiting_for

FILE = Path(__file__).parents[2] / "dags/models_as_assets.py"


def loaded() -> Any:
    spec = importlib.util.spec_from_file_location("models_as_assets", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_promotes_a_model_and_the_other_dag_waits_for_it(run_dag: Callable[..., Outcome]) -> None:
    made = loaded()
    fit_line, use_line = made.fit_line(), made.use_line()
    assert isinstance(use_line, DAG)
    assert run_dag(fit_line).state == "success"
    (line,), (points,) = events_of(made.LINE.uri), events_of(made.POINTS.uri)
    assert (line[2]["version"], line[2]["metrics"], points[2]["rows"]) == ("1", {"slope": 2.0}, 3)
    by_hand = run_dag(use_line)
    assert by_hand.xcom("predict") == 21.0

    unpause("use_line")
    moved = run_dag(fit_line, run_conf={"slope": 3.0})
    assert moved.xcom("promote")["version"] == "2"
    assert waiting_for(made.LINE.uri) == ["use_line"]
