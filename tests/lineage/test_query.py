"""The way from a model back to the raw data, on a real MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.lineage.query import trace
from airflow_ml_provider.models.lineage import Asked, Graph, Step
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.tracking.runs import RunTree, now_ms
from tests.lineage.nights import COMMIT, Night, outside


@pytest.fixture
def night(mlflow_api: MlflowApi, tmp_path: Path, unique: str) -> Night:
    return Night(mlflow_api, tmp_path, unique)


def names(found: Graph) -> list[str]:
    return [run.name for run in found.runs]


def reads(found: Graph, run_id: str) -> list[str]:
    return [edge.name for edge in found.into(f"run:{run_id}")]


def model_id_of(model: ArtifactRef) -> str:
    return model.uri.removeprefix("models:/").split("/")[0]


def log_inputs(api: MlflowApi, run_id: str, datasets: list[dict[str, Any]], models: list[str] | None = None) -> None:
    body = {"run_id": run_id, "datasets": datasets, "models": [{"model_id": each} for each in models or []]}
    api.post("runs/log-inputs", body)


def dataset_from(name: str, run_id: str) -> dict[str, Any]:
    source = json.dumps({"uri": f"runs:/{run_id}/{name}", "run_id": run_id})
    return {"tags": [], "dataset": {"name": name, "digest": run_id, "source_type": "airflow", "source": source}}


class TestTheWholeWay:
    def test_a_champion_leads_back_to_the_raw_data(self, night: Night, unique: str) -> None:
        model = night.whole(unique)
        found = trace(night.api, f"models:/{unique}@champion")
        (version,) = found.versions
        assert found.start == (version.id,)
        assert (version.version, version.aliases) == ("1", ("champion",))
        (fit,) = found.models
        assert (fit.sha256, fit.size) == (model.sha256, model.size)
        assert [edge.source for edge in found.into(version.id)] == [fit.id]
        assert names(found) == ["train", "features", "validate"]
        assert reads(found, night.runs["features"]) == ["flights", "weather"]
        assert found.gaps == ()

    def test_a_step_says_what_it_was_and_where_its_log_is(self, night: Night) -> None:
        model = night.whole()
        found = trace(night.api, model.uri)
        train, features, validate = found.runs
        step = Step(dag_id=night.dag_id, dag_run_id=night.run_id, task_id="train", try_number=1)
        assert train.step == step
        assert {edge.step for edge in (*found.into(train.id), *found.out_of(train.id))} == {step}
        assert (train.params, train.metrics, train.git_commit) == ({"max_iter": "300"}, {"loss": 0.25}, COMMIT)
        assert train.log_url is not None
        assert "/tasks/train" in train.log_url
        assert train.started is not None
        assert train.ended is not None
        (table,) = [each for each in found.datasets if each.run_id == features.run_id]
        assert (table.name, len(table.sha256 or "")) == ("table", 64)
        assert (validate.params, found.into(validate.id)) == ({"day": "2013-12-30"}, [])

    @pytest.mark.parametrize("form", ["models:/{name}/1", "{file}", "models:/{model_id}", "runs:/{train}/model", "runs:/{train}"])
    def test_every_form_of_uri_finds_the_same_steps(self, night: Night, unique: str, form: str) -> None:
        model = night.whole(unique)
        uri = form.format(name=unique, file=model.uri, model_id=model_id_of(model), train=night.runs["train"])
        assert names(trace(night.api, uri)) == ["train", "features", "validate"]

    def test_equal_bytes_of_another_night_do_not_lead_there(self, night: Night) -> None:
        """MLflow keeps one source per name and digest in an experiment: that of the first night."""
        night.whole()
        second = Night(night.api, night.folder, night.dag_id, "manual__2013-12-30")
        model = second.whole()
        assert {run.step.dag_run_id for run in trace(night.api, model.uri).runs if run.step} == {second.run_id}

    def test_a_model_that_was_tuned_further_leads_to_the_one_before_it(self, night: Night) -> None:
        base = night.whole()
        tuned = night.step("tune", [base, outside("more")], {"model": "Model"})["model"]
        found = trace(night.api, tuned.uri)
        assert names(found) == ["tune", "train", "features", "validate"]
        assert [each.model_id for each in found.models] == [model_id_of(tuned), model_id_of(base)]
        assert f"model:{model_id_of(base)}" in [edge.source for edge in found.into(found.runs[0].id)]

    def test_data_from_outside_ends_the_way(self, night: Night) -> None:
        model = night.step("train", [outside()], {"model": "Model"})["model"]
        found = trace(night.api, model.uri)
        assert names(found) == ["train"]
        assert [(each.uri, each.run_id) for each in found.datasets] == [("s3://bucket/raw.csv", None)]

    def test_not_a_number_is_a_metric_like_others(self, night: Night) -> None:
        model = night.step("train", makes={"model": "Model"}, metrics={"auc": float("nan")})["model"]
        found = trace(night.api, model.uri)
        assert str(found.runs[0].metrics["auc"]) == "nan"
        written = json.loads(found.model_dump_json())
        assert [node["metrics"] for node in written["nodes"] if node["kind"] == "run"] == [{"auc": "NaN"}]


class TestWaysThatDoNotEndWell:
    def test_a_cycle_ends(self, night: Night) -> None:
        first, second = night.open("first").run.run_id, night.open("second").run.run_id
        log_inputs(night.api, first, [dataset_from("b", second)])
        log_inputs(night.api, second, [dataset_from("a", first), dataset_from("own", second)])
        found = trace(night.api, f"runs:/{first}/x")
        assert names(found) == ["first", "second"]

    def test_a_model_that_was_fed_to_its_own_maker_ends(self, night: Night) -> None:
        model = night.step("train", makes={"model": "Model"})["model"]
        log_inputs(night.api, night.runs["train"], [], [model_id_of(model)])
        found = trace(night.api, model.uri)
        assert (names(found), len(found.models)) == (["train"], 1)

    def test_a_long_way_is_cut_and_says_how_to_go_on(self, night: Night) -> None:
        model = night.whole()
        found = trace(night.api, model.uri, depth_limit=2)
        assert names(found) == ["train", "features"]
        assert [gap.id for gap in found.gaps] == [f"run:{night.runs['validate']}"]
        assert f"airflow-ml lineage runs:/{night.runs['validate']}" in found.gaps[0].reason

    def test_a_run_in_the_bin_is_shown_as_deleted_and_the_way_goes_on(self, night: Night) -> None:
        model = night.whole()
        night.api.post("runs/delete", {"run_id": night.runs["features"]})
        found = trace(night.api, model.uri)
        assert [(run.name, run.deleted) for run in found.runs] == [
            ("train", False),
            ("features", True),
            ("validate", False),
        ]

    def test_a_run_that_is_gone_for_good_is_a_gap(self, night: Night) -> None:
        gone = "0" * 32
        model = night.step("train", makes={"model": "Model"})["model"]
        log_inputs(night.api, night.runs["train"], [dataset_from("table", gone)])
        found = trace(night.api, model.uri)
        assert names(found) == ["train"]
        assert [gap.id for gap in found.gaps] == [f"run:{gone}"]
        assert "deleted" in found.gaps[0].reason

    def test_a_version_whose_model_was_deleted_still_leads_to_its_run(self, night: Night, unique: str) -> None:
        model = night.whole(unique)
        night.api.delete(f"logged-models/{model_id_of(model)}", {})
        found = trace(night.api, f"models:/{unique}/1")
        assert found.models == []
        assert names(found) == ["train", "features", "validate"]
        assert [gap.id for gap in found.gaps] == [f"model:{model_id_of(model)}"]


class TestWhatOthersMade:
    def test_a_model_without_tags_or_run_is_shown_as_it_is(self, night: Night) -> None:
        experiment = RunTree(night.api).experiment_id(night.dag_id)
        made = night.api.post("logged-models", {"experiment_id": experiment, "name": "theirs"})["model"]["info"]
        found = trace(night.api, f"models:/{made['model_id']}")
        (model,) = found.models
        assert (model.name, model.sha256, model.run_id, found.runs) == ("theirs", None, None, [])

    def test_a_run_that_airflow_knows_nothing_of_is_a_step_too(self, night: Night) -> None:
        experiment = RunTree(night.api).experiment_id(night.dag_id)
        body = {"experiment_id": experiment, "run_name": "notebook", "start_time": now_ms()}
        run_id = night.api.post("runs/create", body)["run"]["info"]["run_id"]
        foreign = {"name": "d", "digest": "1", "source_type": "local", "source": '{"uri": "/data/d.csv"}'}
        odd = {"name": "e", "digest": "2", "source_type": "code", "source": "not json"}
        log_inputs(night.api, run_id, [{"tags": [], "dataset": foreign}, {"tags": [], "dataset": odd}])
        found = trace(night.api, f"runs:/{run_id}/model")
        (run,) = found.runs
        assert (run.name, run.step, run.log_url) == ("notebook", None, None)
        read = {each.name: (each.uri, each.sha256, each.run_id) for each in found.datasets}
        assert read == {"d": ("/data/d.csv", None, None), "e": (None, None, None)}

    def test_a_version_registered_from_elsewhere_leads_to_the_run_that_it_names(self, night: Night, unique: str) -> None:
        night.whole()
        night.api.post("registered-models/create", {"name": unique})
        body = {"name": unique, "source": "s3://bucket/model", "run_id": night.runs["train"]}
        night.api.post("model-versions/create", body)
        found = trace(night.api, f"models:/{unique}/1")
        assert (found.models, names(found)) == ([], ["train", "features", "validate"])


class TestWhatDoesNotExist:
    def test_an_unknown_alias_says_where_to_look(self, night: Night, unique: str) -> None:
        night.whole(unique)
        with pytest.raises(RemoteNotFoundError, match=rf"alias nobody not found.*#/models/{unique}"):
            trace(night.api, f"models:/{unique}@nobody")

    @pytest.mark.parametrize("uri", ["models:/no-such-model@champion", "models:/no-such-model/3"])
    def test_an_unknown_registered_model_is_not_found(self, mlflow_api: MlflowApi, uri: str) -> None:
        with pytest.raises(RemoteNotFoundError, match="no-such-model"):
            trace(mlflow_api, uri)

    @pytest.mark.parametrize("uri", [f"models:/m-{'0' * 32}", f"runs:/{'0' * 32}/model"])
    def test_an_unknown_model_or_run_is_not_found(self, mlflow_api: MlflowApi, uri: str) -> None:
        with pytest.raises(RemoteNotFoundError, match=f"there is no .*{'0' * 32}"):
            trace(mlflow_api, uri)

    @pytest.mark.parametrize(
        "uri", ["", "flights", "models:/flights", "models:/flights/latest", "abcdef", "runs:/1", "relative/f"]
    )
    def test_another_form_is_refused_with_the_known_ones(self, uri: str) -> None:
        with pytest.raises(ConfigError, match="models:/<name>@<alias>"):
            Asked.parse(uri)

    def test_data_that_nobody_has_read_is_not_found_and_it_is_said_which_is(self, mlflow_api: MlflowApi) -> None:
        with pytest.raises(
            RemoteNotFoundError, match=r"has read s3://nobody/x\. .*the URI has to be that which the step was given"
        ):
            trace(mlflow_api, "s3://nobody/x", direction="down")
