"""The questions about DAG runs that Airflow has run: mapped tasks, a retry, a cache hit, a promotion and a rollback."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import dag, task

from airflow_ml_provider import Dataset, Input, Model, Output
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.lineage.difference import diff
from airflow_ml_provider.lineage.impact import impact
from airflow_ml_provider.lineage.query import trace
from airflow_ml_provider.lineage.trained import trained_on
from airflow_ml_provider.tracking.registry import ModelRegistry


def make_dag(name: str, folder: Path, max_iter: int) -> Any:
    """Raw data from outside -> a cached step -> two mapped ones -> a training that fails once."""

    @task.ml(cache=True)
    def validate(raw: Input[Dataset], flights: Output[Dataset]) -> None:
        Path(flights.path).write_text(Path(raw.path).read_text() * 2)
        flights.metadata["rows"] = 10_001

    @task.ml
    def clean(flights: Input[Dataset], part: int, cleaned: Output[Dataset]) -> None:
        Path(cleaned.path).write_text(Path(flights.path).read_text() + str(part))
        cleaned.metadata["rows"] = 20_000 + part

    @task.ml(retries=1, retry_delay=0)
    def train(parts: Input[list[Dataset]], max_iter: int, model: Output[Model]) -> None:
        mark = folder / f"tried-{max_iter}"
        if not mark.exists():
            mark.touch()
            raise RuntimeError("the first try fails")
        Path(model.path).write_text(json.dumps([max_iter, *(Path(each.path).read_text() for each in parts)]))

    @dag(dag_id=name, schedule=None)
    def nightly() -> None:
        (folder / "raw.csv").write_text(name)
        flights = validate(raw=f"file://{folder}/raw.csv")["flights"]
        train(parts=clean.partial(flights=flights).expand(part=[0, 1])["cleaned"], max_iter=max_iter)

    return nightly()


@pytest.mark.full
def test_each_question_is_answered_about_two_nights(
    run_dag: Callable[..., Any], mlflow_api: MlflowApi, tmp_path: Path, unique: str
) -> None:
    registry, versions = ModelRegistry(mlflow_api), []
    for max_iter in (100, 200):
        outcome = run_dag(make_dag(unique, tmp_path, max_iter))
        assert outcome.state == "success"
        model = next(each for each in trained_on(mlflow_api).graph.models if each.name == "model")
        made = registry.register(unique, f"models:/{model.model_id}", run_id=model.run_id or "", model_id=model.model_id)
        registry.promote(unique, made.version)
        versions.append(made.version)

    up = trace(mlflow_api, f"models:/{unique}@champion")
    assert sorted(run.name for run in up.runs) == ["clean[0]", "clean[1]", "train", "validate"]
    train = next(run for run in up.runs if run.name == "train")
    assert train.step is not None
    assert (train.params["max_iter"], train.step.try_number) == ("200", 2)
    raw = next(each for each in up.datasets if each.run_id is None)
    assert raw.uri == f"file://{tmp_path}/raw.csv"

    registry.rollback(unique)
    found = impact(mlflow_api, raw.sha256 or "")
    assert [[(each.version, each.aliases) for each in model.versions] for model in found.models] == [
        [(versions[1], ("previous-champion",))],
        [(versions[0], ("champion",))],
    ]
    assert {(each.task_id, each.runs) for each in found.tasks} == {("validate", 2), ("clean", 4), ("train", 2)}
    assert len(trace(mlflow_api, raw.uri or "", direction="down").runs) == 8

    changed = diff(mlflow_api, f"models:/{unique}/1", f"models:/{unique}/2").changes
    assert [(each.what, each.where, each.before, each.after) for each in changed] == [("parameter", "train", "100", "200")]

    both = {each.id for each in trained_on(mlflow_api, "rows = 20001").graph.versions}
    assert both >= {f"version:{unique}/{each}" for each in versions}
    assert f"version:{unique}/1" not in {each.id for each in trained_on(mlflow_api, "rows > 20001").graph.versions}
