"""Promotion in real DAG runs, against a real MLflow server."""

from __future__ import annotations

from pathlib import Path

import pendulum
import pytest
from airflow.sdk import dag

from airflow_ml_provider import Input, Model, Output, ml_task
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.operators.promotion import PromoteModelOperator
from airflow_ml_provider.tracking.registry import LOGICAL_DATE, ModelRegistry
from airflow_ml_provider.tracking.runs import RunTree, tags_of

START = pendulum.datetime(2024, 1, 1)


@ml_task
def fit(text: str, model: Output[Model]) -> None:
    model.path += ".txt"
    Path(model.path).write_text(text)


@ml_task
def read(model: Input[Model]) -> str:
    return Path(model.path).read_text()


@pytest.fixture
def registry(mlflow_api):
    return ModelRegistry(mlflow_api)


@pytest.fixture
def night(run_dag, unique):
    """One night without a gate: fit, promote, and read the champion by its alias."""

    def run(text, *, day=1, operator=PromoteModelOperator, **promotion):
        @dag(dag_id=unique, schedule=None, start_date=START)
        def nightly():
            promote = operator(task_id="promote", model=fit(text=text)["model"], name=unique, **promotion)
            promote >> read(model=f"models:/{unique}@champion")

        return run_dag(nightly(), logical_date=START.add(days=day))

    return run


def versions(api, name):
    found = api.get("model-versions/search", filter=f"name='{name}'").get("model_versions", [])
    return sorted(each["version"] for each in found)


def test_a_model_is_registered_promoted_and_read_by_its_alias(night, registry, unique):
    first = night("one", day=1, tags={"owner": "ada"})
    assert first.xcom("promote") == {
        "name": unique,
        "version": "1",
        "alias": "champion",
        "previous_version": None,
        "uri": f"models:/{unique}/1",
    }
    assert first.xcom("read") == "one"
    tags = registry.find(unique, "champion").tags
    assert tags | {"airflow.sha256": "a digest"} == {
        "airflow.dag_id": unique,
        "airflow.run_id": first.run_id,
        "airflow.task_id": "promote",
        LOGICAL_DATE: "2024-01-02T00:00:00+00:00",
        "airflow.sha256": "a digest",
        "owner": "ada",
    }
    assert len(tags["airflow.sha256"]) == 64

    second = night("two", day=2)
    assert (second.xcom("promote")["version"], second.xcom("promote")["previous_version"]) == ("2", "1")
    assert second.xcom("read") == "two"
    assert registry.find(unique, "previous-champion").version == "1"


def test_a_backfill_without_a_gate_does_not_replace_a_newer_champion(night, registry, mlflow_api, unique):
    night("newer", day=5)
    older = night("older", day=3)
    assert (older.state, older.task("promote")) == ("success", "skipped")
    tree = RunTree(mlflow_api)
    skipped = tree.search([tree.experiment_id(unique)], "tags.`airflow.state` = 'skipped'")
    (tags,) = [tags_of(each) for each in skipped]
    assert tags | {"airflow.promotion.version": "none", "airflow.promotion.newer": f"models:/{unique}/1"} == tags
    assert registry.find(unique, "champion").version == "1"
    assert versions(mlflow_api, unique) == ["1"]


def test_an_older_model_is_promoted_when_that_is_said(night, registry, unique):
    night("newer", day=5)
    assert night("older", day=3, allow_older=True).xcom("read") == "older"
    assert registry.find(unique, "previous-champion").version == "1"


def test_the_same_night_cleared_is_not_older(night):
    night("first", day=1)
    assert night("again", day=1).xcom("promote")["version"] == "2"


class CutOnce(PromoteModelOperator):
    """Loses its worker in the first try, just before or after one of its two moves."""

    def __init__(self, *, cut, **kwargs):
        super().__init__(**kwargs)
        self.cut = cut

    def _promote(self, registry, *args):
        point = registry._point

        def cut_point(name, alias, version):
            if alias == self.cut and self.session.record.attempt.try_number == 1:
                raise RuntimeError("the worker is lost here")
            point(name, alias, version)

        registry._point = cut_point
        return super()._promote(registry, *args)


@pytest.mark.parametrize("cut", ["previous-champion", "champion"])
def test_a_retry_after_a_cut_ends_in_the_same_state(night, registry, mlflow_api, unique, cut):
    night("one", day=1)
    again = night("two", day=2, operator=CutOnce, cut=cut, retries=1, retry_delay=0)
    assert again.state == "success"
    assert (again.xcom("promote")["version"], again.xcom("promote")["previous_version"]) == ("2", "1")
    assert [registry.find(unique, each).version for each in ("champion", "previous-champion")] == ["2", "1"]
    assert versions(mlflow_api, unique) == ["1", "2"]


def test_promoting_the_same_model_twice_changes_nothing(run_dag, registry, mlflow_api, unique, night):
    night("one", day=1)

    @dag(dag_id=f"{unique}-twice", schedule=None, start_date=START)
    def twice():
        model = fit(text="two")["model"]
        first, second = (PromoteModelOperator(task_id=each, model=model, name=unique) for each in ("first", "second"))
        first >> second

    outcome = run_dag(twice(), logical_date=START.add(days=2))
    assert outcome.xcom("first") == outcome.xcom("second")
    assert registry.find(unique, "previous-champion").version == "1"
    assert versions(mlflow_api, unique) == ["1", "2"]


def test_a_model_kept_outside_of_mlflow_is_of_the_night_that_promotes_it(run_dag, registry, unique):
    @dag(dag_id=unique, schedule=None, start_date=START)
    def outside():
        PromoteModelOperator(task_id="promote", model="s3://bucket/models/one", name=unique)

    assert run_dag(outside(), logical_date=START.add(days=1)).state == "success"
    champion = registry.find(unique, "champion")
    assert (champion.source, champion.model_id) == ("s3://bucket/models/one", "")
    assert registry.trained_at(champion) == START.add(days=1)


def test_what_is_no_model_is_refused_when_the_dag_is_parsed():
    with pytest.raises(ConfigError, match=r"parameter 'model' wants Input\[Model\], but 'flight-delays' is not the place"):
        PromoteModelOperator(task_id="promote", model="flight-delays", name="flight-delays")
