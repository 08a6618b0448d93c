"""What differs between two models, step by step up to the raw data."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.lineage.difference import Change, compare, diff
from airflow_ml_provider.lineage.query import trace
from airflow_ml_provider.models.lineage import DatasetNode, Edge, Graph, ModelNode, RunNode, Step
from tests.lineage.nights import COMMIT, Night


@pytest.fixture
def nights(mlflow_api: MlflowApi, tmp_path: Path, unique: str) -> tuple[Night, Night]:
    first = Night(mlflow_api, tmp_path, unique, "first")
    return first, Night(mlflow_api, tmp_path, unique, "second", commit="5" * 40)


class TestOnRecord:
    def test_two_nights_on_the_same_data_differ_in_code_alone(self, nights: tuple[Night, Night]) -> None:
        first, second = nights
        found = diff(first.api, first.whole().uri, second.whole().uri)
        assert [(each.what, each.where, each.before, each.after) for each in found.changes] == [
            ("code", step, COMMIT, "5" * 40) for step in ("validate", "features", "train")
        ]

    def test_a_model_does_not_differ_from_itself(self, nights: tuple[Night, Night], unique: str) -> None:
        model = nights[0].whole(unique)
        assert diff(nights[0].api, model.uri, f"models:/{unique}@champion").changes == ()

    def test_other_raw_data_parameters_and_metrics_are_told_from_the_raw_data_on(self, nights: tuple[Night, Night]) -> None:
        models = []
        for night, day in zip(nights, ("30", "31"), strict=True):
            night.commit, night.salt = COMMIT, day
            raw = night.step("validate", makes={"flights": "Dataset"}, params={"day": day}, rows=int(day))["flights"]
            model = night.step("train", [raw], {"model": "Model"}, {"max_iter": "300"}, {"loss": float(day)})["model"]
            models.append(model.uri)
        found = diff(nights[0].api, *models)
        assert [(each.what, each.where, each.name) for each in found.changes if not each.name.startswith("trained_on")] == [
            ("parameter", "validate", "day"),
            ("data", "train", "flights"),
            ("metric", "train", "loss"),
        ]
        data = next(each for each in found.changes if each.what == "data")
        assert [found.datasets[str(each)].numbers for each in (data.before, data.after)] == [{"rows": 30}, {"rows": 31}]

    def test_a_try_has_its_own_parameters_and_data(self, nights: tuple[Night, Night]) -> None:
        """A DAG was edited and cleared: all tries of a step are one MLflow run, whose parameters are those of the first."""
        night, other = nights
        raw = night.step("validate", makes={"flights": "Dataset"}, rows=30)["flights"]
        first = night.step("train", [raw], {"model": "Model"}, {"max_iter": "300"}, {"loss": 0.5})["model"]
        night.salt = "again"
        again = night.step("validate", makes={"flights": "Dataset"}, rows=5, try_number=2)["flights"]
        second = night.step("train", [again], {"model": "Model"}, {"max_iter": "400"}, {"loss": 0.25}, try_number=2)["model"]
        night.step("train", [again], {}, {"max_iter": "300"}, try_number=3)
        params = [trace(night.api, each).runs[0].params for each in (first.uri, second.uri, f"runs:/{night.runs['train']}")]
        assert params == [{"max_iter": "300"}, {"max_iter": "400"}, {"max_iter": "300"}]
        found = diff(night.api, first.uri, second.uri)
        assert [(each.what, each.where, each.name) for each in found.changes] == [
            ("data", "train", "flights"),
            ("parameter", "train", "max_iter"),
        ]
        assert [each.before for each in found.changes if each.what == "parameter"] == ["300"]
        assert {each.id for each in found.gaps} == {f"run:{night.runs[each]}" for each in ("validate", "train")}
        assert all("the run's last" in each.reason for each in found.gaps)
        assert diff(night.api, first.uri, first.uri).gaps == ()
        later = other.step("train", [again], {"model": "Model"}, {"max_iter": "500"}, {"loss": 0.125})["model"]
        told = {(each.what, each.before, each.after) for each in diff(night.api, second.uri, later.uri).changes}
        assert told == {("parameter", "400", "500")}, "neither the commit nor the loss of try 3 is that of try 2"


def way(run_id: str, image: str | None = None, task: str = "train", sha: str = "a", **metrics: float) -> Graph:
    run = RunNode(
        run_id=run_id, url="u", name=task, status="FINISHED", image=image, step=Step(dag_id="d", dag_run_id=run_id, task_id=task)
    )
    table = DatasetNode(name="x", uri=f"runs:/{run_id}/x", sha256=sha * 64, run_id=run_id)
    model = ModelNode(model_id=f"m-{run_id}", name="model", metrics=metrics)
    edges = (Edge(source=table.id, target=run.id, name="table"), Edge(source=run.id, target=model.id))
    return Graph(asked=run_id, start=(model.id,), nodes=(model, run, table), edges=edges)


class TestCompared:
    def test_images_and_metrics_of_the_model_differ_too(self) -> None:
        found = compare(way("1", image="app@sha256:1", auc=0.5), way("2", image="app@sha256:2", auc=0.75)).changes
        assert found == (
            Change(what="image", where="train", before="app@sha256:1", after="app@sha256:2"),
            Change(what="metric", where="", name="auc", before=0.5, after=0.75),
        )

    def test_data_is_the_same_if_its_bytes_are_wherever_it_lies(self) -> None:
        assert compare(way("1"), way("2")).changes == ()
        assert [each.name for each in compare(way("1"), way("2", sha="b")).changes] == ["table"]

    def test_a_step_that_one_way_alone_has_is_told(self) -> None:
        found = compare(way("1", task="fit"), way("2", task="train")).changes
        assert {(each.what, each.before, each.after) for each in found} == {("step", "fit", None), ("step", None, "train")}

    def test_not_a_number_is_the_same_as_itself(self) -> None:
        assert compare(way("1", auc=float("nan")), way("2", auc=float("nan"))).changes == ()
