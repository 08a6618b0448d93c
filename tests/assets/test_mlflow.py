"""The URIs of our assets: their one form, what is refused, and what Airflow makes of them."""

from __future__ import annotations

import copy
import json
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest
from airflow.sdk import DAG, Asset
from airflow.sdk.log import mask_secret

from airflow_ml_provider import Dataset, Metrics, Model, Output, ml_task
from airflow_ml_provider.assets.events import EXTRA_BYTES, event_of
from airflow_ml_provider.assets.mlflow import asset_name, dataset_asset, model_asset, normalize_uri, to_openlineage
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.lineage.facts import Known, StepFacts
from airflow_ml_provider.lineage.openlineage_mixin import LISTENER
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.operators.mlflow_models import MlflowGetModelOperator, MlflowRegisterModelOperator
from airflow_ml_provider.operators.promotion import PromoteModelOperator
from tests.airflow_releases import ProvidersOfTasks


@ml_task
def split(flights: Output[Dataset], weather: Output[Dataset], metrics: Output[Metrics]) -> None:
    """Never run here."""


@ml_task
def train(model: Output[Model]) -> None:
    """Never run here."""


class TestItsUri:
    def test_names_connection_kind_and_name_in_one_form(self) -> None:
        assert model_asset("flight-delays").uri == "mlflow://mlflow_default/models/flight-delays"
        made = dataset_asset("Flüge 2013", mlflow_conn_id="mlflow_eu")
        assert made.uri == made.name == "mlflow://mlflow_eu/datasets/Fl%C3%BCge%202013"
        assert asset_name(made.uri) == ("mlflow_eu", "dataset", "Flüge 2013")
        assert (model_asset("a").group, dataset_asset("a").group) == ("model", "dataset")

    def test_written_by_hand_is_the_same_asset(self) -> None:
        assert (
            Asset(uri="mlflow://mlflow_eu/datasets/Flüge 2013/", group="dataset").uri
            == dataset_asset("Flüge 2013", mlflow_conn_id="mlflow_eu").uri
        )
        assert model_asset("a", output="fitted") == model_asset("a") == Asset(uri=model_asset("a").uri, group="model")
        assert hash(model_asset("a", output="fitted")) == hash(model_asset("a"))
        assert copy.deepcopy(model_asset("a", output="fitted")).output == "fitted"

    @pytest.mark.parametrize(
        ("uri", "said"),
        [
            ("mlflow://mlflow_default/model/a", "names nothing in MLflow: it must be mlflow://<connection>/models/<name>"),
            ("mlflow://mlflow_default/models/a/7", "names nothing in MLflow"),
            ("mlflow://mlflow_default/models/", "names nothing in MLflow"),
            ("mlflow:///models/a", "must name its server by the id of an Airflow connection"),
            ("mlflow://mlflow.example.com:5000/models/a", "must name its server by the id of an Airflow connection"),
            ("mlflow://mlflow_default/models/a?version=7", "has a query"),
            ("mlflow://mlflow_default/models/a%2Fb", "cannot be the name of a registered model"),
        ],
    )
    def test_is_refused_with_what_to_write_instead(self, uri: str, said: str) -> None:
        with pytest.raises(ValueError, match=said):  # what Airflow expects of a handler
            Asset(uri=uri)

    def test_with_a_password_is_refused_and_not_shown(self) -> None:
        with pytest.raises(ConfigError, match="hold no password") as refused:
            normalize_uri(urlsplit("mlflow://me:hunter2@host/models/a"))
        assert "hunter2" not in str(refused.value)

    def test_is_registered_with_airflow(self) -> None:
        manager = ProvidersOfTasks()
        assert manager.asset_uri_handlers["mlflow"] is normalize_uri
        assert manager.asset_to_openlineage_converters["mlflow"] is to_openlineage

    def test_is_named_by_its_servers_address_for_openlineage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from airflow.providers.openlineage.utils.utils import translate_airflow_asset

        monkeypatch.setenv(
            "AIRFLOW_CONN_MLFLOW_EU", json.dumps({"conn_type": "mlflow", "host": "https://ml.example.com/eu", "login": "me"})
        )
        found = translate_airflow_asset(model_asset("flight delays", mlflow_conn_id="mlflow_eu"), None)
        assert found is not None
        assert (found.namespace, found.name) == ("mlflow://ml.example.com/eu", "models/flight delays")
        assert translate_airflow_asset(model_asset("a", mlflow_conn_id="gone"), None) is None


class TestWhatParsingRefuses:
    @pytest.mark.parametrize(
        ("step", "outlet", "said"),
        [
            (split, model_asset("a"), r"makes no Model. Its outputs are flights \(Dataset\), weather \(Dataset\), metrics"),
            (
                split,
                dataset_asset("a"),
                r"any of its outputs flights, weather. Say which: dataset_asset\('a', output='flights'\)",
            ),
            (split, dataset_asset("a", output="metrics"), "output 'metrics', which is no Dataset of this step"),
            (split, dataset_asset("a", output="tables"), "output 'tables', which is no Dataset of this step"),
        ],
    )
    def test_an_asset_that_no_output_of_the_step_is(self, step, outlet, said) -> None:  # type: ignore[no-untyped-def]
        with DAG("parsed", schedule=None), pytest.raises(ConfigError, match=f"task 'split': .*{said}"):
            step.override(outlets=[outlet])()

    def test_an_asset_that_is_not_the_model_promoted(self) -> None:
        with DAG("parsed", schedule=None):
            fit = train()
            with pytest.raises(ConfigError, match=r"Say outlets=\[model_asset\('a', mlflow_conn_id='eu'\)\]"):
                PromoteModelOperator(task_id="p", model=fit["model"], name="a", mlflow_conn_id="eu", outlets=[model_asset("a")])

    def test_an_asset_of_another_server_than_that_of_the_step(self) -> None:
        with DAG("parsed", schedule=None, default_args={"mlflow_conn_id": "eu"}):
            with pytest.raises(ConfigError, match=r"Say dataset_asset\('weather', mlflow_conn_id='eu'\)"):
                split.override(outlets=[dataset_asset("weather")])()
            split.override(outlets=[dataset_asset("weather", mlflow_conn_id="eu")])()

    def test_nothing_of_what_is_clear(self) -> None:
        with DAG("parsed", schedule=None):
            split.override(outlets=[dataset_asset("weather"), dataset_asset("a", output="flights"), Asset("theirs")])()
            train.override(outlets=[model_asset("whatever")])()


def test_an_event_hides_what_airflow_hides() -> None:
    mask_secret("hunter2-of-assets")
    ref = ArtifactRef(type="Dataset", name="t", uri="https://example.com/t?key=hunter2-of-assets")
    facts = StepFacts(MlflowServer("mlflow_default", "http://mlflow"), outputs=[Known(ref=ref, maker="d.t", output="t")])
    assert event_of(dataset_asset("a"), facts)[0] == {"name": "a", "output": "t", "uri": "https://example.com/t?key=***"}


def test_an_event_is_of_the_single_output_beside_a_list_and_of_its_own_server_alone() -> None:
    refs = [ArtifactRef(type="Dataset", name=each, uri=f"s3://b/{each}") for each in ("folds[0]", "table", "folds[1]")]
    outputs = [Known(ref=each, maker="d.t", output=each.name) for each in refs]
    facts = StepFacts(MlflowServer("mlflow_default", "http://mlflow"), outputs=outputs)
    assert event_of(dataset_asset("a"), facts) == ({"name": "a", "output": "table", "uri": "s3://b/table"}, "table")
    assert event_of(dataset_asset("a", mlflow_conn_id="eu"), facts) == (None, "")


def test_an_event_keeps_within_its_bounds() -> None:
    numbers = {f"a quite long name of a number {each} {'x' * 200}": 1.0 for each in range(100)}
    ref = ArtifactRef(type="Dataset", name="t", uri="runs:/" + "0" * 32 + "/t", sha256="1" * 64, size=3, run_id="0" * 32)
    facts = StepFacts(
        MlflowServer("mlflow_default", "http://mlflow"), outputs=[Known(ref=ref, maker="d.t", output="t", numbers=numbers)]
    )
    extra, output = event_of(dataset_asset("a"), facts)
    assert extra is not None
    assert (output, extra["sha256"]) == ("t", "1" * 64)
    assert "numbers" not in extra
    assert len(json.dumps(extra)) <= EXTRA_BYTES
    assert event_of(model_asset("a"), facts) == (None, "")


def test_who_reads_a_version_is_not_told_of_as_who_made_it(
    mlflow_api: MlflowApi, mlflow_connection: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, LISTENER, None)  # what an Airflow with OpenLineage has; nothing of it is called
    asked: dict[str, Any] = {"mlflow_conn_id": "mlflow_default", "do_xcom_push": False}
    context: Any = {}
    register = MlflowRegisterModelOperator(task_id="register", name=unique, source="s3://models/1", **asked)
    read = MlflowGetModelOperator(task_id="read", model=f"models:/{unique}/1", **asked)
    assert [each.execute(context)["version"] for each in (register, read)] == ["1", "1"]
    assert [each.facts is None for each in (register, read)] == [False, True]
