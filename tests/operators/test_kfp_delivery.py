"""Declared outputs picked from what was found, without a server and without a record: lists, merged sources, and what is missing."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from airflow.sdk import DAG, task

from airflow_ml_provider import Artifact, Dataset, Input, Metrics, Model
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.kfp_results import KfpOutput, KfpResults
from airflow_ml_provider.operators import kfp_delivery
from airflow_ml_provider.operators.declared import declare_outputs
from airflow_ml_provider.operators.kfp import KfpRunPipelineOperator
from airflow_ml_provider.operators.kfp_delivery import deliver
from airflow_ml_provider.operators.kfp_results import _merged


def output(label: str, **more: Any) -> KfpOutput:
    task, _, name = label.rpartition(".")
    told = {"name": name, "task": task, "source": "artifact-api"} | more
    return KfpOutput.model_validate(told)


def several(label: str, *values: Any, **more: Any) -> list[KfpOutput]:
    """Parameters of a task in a loop, the last iteration first."""
    made = [output(label, kind="parameter", value=value, loop=[index], **more) for index, value in enumerate(values)]
    return made[::-1]


def given(outputs: dict[str, Any], *found: KfpOutput, **more: Any) -> dict[str, Any]:
    return deliver(KfpResults(outputs=found, **more), declare_outputs("train", outputs), None, "run 1")


class TestALoop:
    @pytest.mark.parametrize("kind", [list, list[int]])
    def test_gives_its_values_as_a_list_in_order(self, kind):
        assert given({"add.x": kind}, *several("add.x", 3, 1, 2)) == {"outputs": {}, "values": {"add.x": [3, 1, 2]}}

    def test_over_one_thing_gives_a_list_of_one_where_a_list_is_wanted_and_the_value_where_not(self):
        assert given({"x": list}, *several("add.x", 5))["values"] == {"x": [5]}
        assert given({"x": int}, *several("add.x", 5))["values"] == {"x": 5}

    def test_of_lists_gives_a_list_of_lists_and_a_single_list_is_itself(self):
        assert given({"x": list}, *several("add.x", [1], [2, 3]))["values"] == {"x": [[1], [2, 3]]}
        assert given({"x": list}, output("add.x", kind="parameter", value=[1, 2]))["values"] == {"x": [1, 2]}

    def test_over_nothing_gives_an_empty_list(self):
        told = given({"x": list, "models": list[Model]}, empty={"x", "models"}, complete=True)
        assert told["values"] == {"x": [], "models": []}

    def test_has_its_numbers_typed(self):
        assert given({"x": list[float]}, *several("add.x", 1, 2.5))["values"] == {"x": [1.0, 2.5]}
        with pytest.raises(ConfigError, match=r"outputs\['x'\]=int, but run 1 gave 2.5"):
            given({"x": list[int]}, *several("add.x", 1, 2.5))

    def test_gives_a_number_among_its_metrics_as_a_list_too(self):
        some = [output("train.m", type="Metrics", metadata={"auc": 0.1 * index}, loop=[index]) for index in (2, 1)]
        assert given({"auc": list[float]}, *some)["values"] == {"auc": [0.1, 0.2]}

    def test_gives_its_files_as_a_list_in_order(self):
        some = [output("train.model", type="Model", uri=f"s3://b/{each}", loop=[each]) for each in (1, 0)]
        some = [each.model_copy(update={"uri": "", "path": f"/no/{each.loop}"}) for each in some]
        told = given({"model": list[Model]}, *some)["outputs"]
        assert [(key, told[key]["uri"]) for key in told] == [("model[0]", "/no/(0,)"), ("model[1]", "/no/(1,)")]

    def test_is_an_error_where_one_is_wanted_which_says_how_to_take_all(self):
        with pytest.raises(ConfigError, match=r"is there 2 times, .*\{'add\.x': list\}"):
            given({"add.x": int}, *several("add.x", 1, 2))

    def test_whose_order_nobody_tells_is_an_error_that_says_so(self):
        some = [output("add.m", type="Model", uri=each, loop=None, source="pipeline-root") for each in "ab"]
        with pytest.raises(ConfigError, match="the files below the pipeline root say not which iteration"):
            given({"m": list[Model]}, *some)

    def test_of_very_many_files_is_refused_with_the_way_out(self, monkeypatch):
        monkeypatch.setattr(kfp_delivery, "MOST_ELEMENTS", 2)  # not a thousand
        some = [output("train.model", type="Model", path="/no", loop=[each]) for each in range(3)]
        with pytest.raises(ConfigError, match=r"the loop has made 3, and a task hands on 2 at most.*dsl\.Collected"):
            given({"model": list[Model]}, *some)

    def test_that_is_not_declared_is_told_as_a_list(self):
        found = [*several("add.x", 1, 2), output("one.y", kind="parameter", value=3)]
        assert given({}, *found) == {"results": {"add.x": [1, 2], "one.y": 3}}


class TestWhatIsMissing:
    @pytest.mark.parametrize("kind", [Model, Metrics, float, str, list, list[Dataset], list[str]])
    def test_of_a_run_of_which_everything_is_known_asks_for_nothing_to_be_turned_on(self, kind):
        with pytest.raises(ConfigError, match="The run has made none") as error:
            given({"x": kind}, output("train.model"), complete=True)
        assert not any(word in str(error.value) for word in ("server", "administrator", "results_root"))

    @pytest.mark.parametrize(
        ("kind", "word"), [(Model, "results_root"), (Artifact, "results_root"), (list[str], "as_kfp_component")]
    )
    def test_of_another_names_what_to_turn_on(self, kind, word):
        with pytest.raises(ConfigError, match=word):
            given({"x": kind}, output("train.model"))


class TestNumbersThatJsonDoesNotHave:
    @pytest.mark.parametrize("value", [math.nan, math.inf, [1.0, -math.inf], {"a": [math.nan]}])
    def test_are_refused_as_values_with_the_way_out(self, value):
        with pytest.raises(
            ConfigError, match=r"JSON, in which a task hands on a value, has no infinity and no NaN\. Take it as Metrics"
        ):
            given({"x": type(value)}, output("train.x", kind="parameter", value=value))

    def test_are_left_out_of_what_is_not_declared(self):
        some = [output("a.x", kind="parameter", value=math.nan), output("a.m", type="Metrics", metadata={"loss": math.inf})]
        told = given({}, *some)
        assert told == {"results": {"a.x": None, "a.m": {"type": "Metrics"}}}
        json.dumps(told, allow_nan=False)


class TestSourcesTogether:
    def test_add_what_the_other_did_not_know(self):
        (both,) = _merged([output("train.model", uri="u")], [output("train.model", uri="v", sha256="a", size=3)])
        assert (both.uri, both.sha256, both.size) == ("u", "a", 3)

    def test_do_not_mix_iterations_of_a_loop(self):
        api = [output("train.model", uri=str(index), loop=[index]) for index in range(2)]
        files = [output("train.model", uri="x", size=7, loop=None, source="pipeline-root") for _ in range(2)]
        assert _merged(api, files) == api
        assert _merged([], files) == files
        assert _merged(api[:1], files) == api[:1]


class TestAReferenceToAList:
    @pytest.fixture
    def train(self) -> Any:
        with DAG("parse", schedule=None):
            yield KfpRunPipelineOperator(task_id="train", pipeline="p.yaml", outputs={"models": list[Model], "one": Model})

    def test_goes_where_a_list_is_wanted_and_nowhere_else(self, train):
        @task.ml
        def many(models: Input[list[Model]]) -> None: ...

        @task.ml
        def single(model: Input[Model]) -> None: ...

        many(models=train.output["models"])
        with pytest.raises(ConfigError, match=r"wants Input\[Model\], but .*Declare Input\[list\[Model\]\]"):
            single(model=train.output["models"])
        with pytest.raises(ConfigError, match=r"wants Input\[list\[Model\]\], but"):
            many(models=train.output["one"])
        with pytest.raises(ConfigError, match="cannot map over a list of Models that is one part of an XCom"):
            single.expand(model=train.output["models"])

    def test_is_a_template_that_renders_its_uris(self, train):
        told = {
            "run_id": "kfp",
            "mlflow_run_id": "m",
            "outputs": {"models[1]": {"path": "b"}, "one": {"uri": "u"}, "models[0]": {"uri": "a"}},
        }
        render = jinja2.Template
        ti = SimpleNamespace(xcom_pull=lambda **_: told)
        assert render(str(train.output["models"])).render(task_instance=ti).split() == ["a", "runs:/m/b"]
        assert render(str(train.output["one"])).render(task_instance=ti) == "u"
