from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import pendulum
import pytest
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, setup, task, task_group, teardown

from airflow_ml_provider import Artifact, Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.operators.references import StepReference
from tests.airflow_releases import DagSerialization


@ml_task
def make(rows: int, table: Output[Dataset], metrics: Output[Metrics]) -> None: ...


@ml_task
def train(table: Input[Dataset], depth: int, model: Output[Model], champion: Input[Model] | None = None) -> None: ...


@ml_task
def pick(models: Input[list[Model]]) -> list[int]:
    return [len(models)]


@ml_task
def show(value: Any, values: tuple[int, ...] = (), ti: Any = None, logical_date: datetime | None = None) -> None: ...


@task
def plain() -> list[int]:
    return [1]


@task
def tell(text: Any, other: int = 0) -> str:
    return f"{text} {other}"


@task_group
def told(text: Any) -> None:
    tell(text)


def mapped() -> Any:
    return make.expand(rows=[1, 2])


def mapped_models() -> Any:
    return train.partial(depth=1).expand(table=["s3://a/b"])["model"]


@pytest.fixture(autouse=True)
def example() -> Iterator[DAG]:
    with DAG("example", schedule=None, start_date=pendulum.datetime(2024, 1, 1)) as dag:
        yield dag


class TestRefusedWhenTheDagIsParsed:
    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (
                lambda: train(table=make(1)["metrics"], depth=1),
                "step 'train', parameter 'table' wants Input[Dataset], but make[\"metrics\"] is a Metrics. "
                "Did you mean make['table']?",
            ),
            (
                lambda: train(table="s3://a/b", depth=1, champion=make(1)["table"]),
                "step 'train', parameter 'champion' wants Input[Model] | None, but make[\"table\"] is a Dataset. "
                "Its outputs are: table (Dataset), metrics (Metrics).",
            ),
            (
                lambda: train(table=make(1), depth=1),
                "step 'train', parameter 'table' wants Input[Dataset], but make is not one output. Did you mean make['table']?",
            ),
            (
                lambda: pick(models=[make(1)["table"]]),
                "step 'pick', parameter 'models' wants Input[Model], but make[\"table\"] is a Dataset. "
                "Its outputs are: table (Dataset), metrics (Metrics).",
            ),
            (
                lambda: pick(models=train("s3://a/b", 1)["model"]),
                "step 'pick', parameter 'models' wants Input[list[Model]], but train[\"model\"] is one Model. "
                'Declare Input[Model], or pass a list: [train["model"]].',
            ),
            (
                lambda: train(table=mapped()["table"], depth=1),
                "step 'train', parameter 'table' wants Input[Dataset], but make[\"table\"] is one Dataset for each instance of a "
                'mapped step. Declare Input[list[Dataset]] to take them all, or map this step as well: .expand(table=make["table"]).',
            ),
            (
                lambda: train(table=Dataset("table"), depth=1),
                "step 'train', parameter 'table' wants Input[Dataset], but Dataset('table', uri='') came. "
                "Pass an output of a step, or a URI.",
            ),
            (
                lambda: train(table="flights.csv", depth=1),
                "step 'train', parameter 'table' wants Input[Dataset], but 'flights.csv' is not the place of one. Pass an output of "
                "a step, a URI (models:/name@alias, runs:/<id>/path, s3://bucket/key), or an absolute path.",
            ),
            (
                lambda: train(table=None, depth=1),
                "step 'train', parameter 'table' wants Input[Dataset], but None was passed. Declare table: Input[Dataset] | None.",
            ),
        ],
    )
    def test_an_input_of_another_type_with_both_types_and_the_fix(self, call: Callable[[], Any], message: str) -> None:
        with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
            call()

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: train(depth=1), "step 'train': missing 'table' (Input[Dataset]). Pass it by name, or give it a default."),
            (lambda: train("s3://a/b"), "step 'train': missing 'depth' (a plain value). Pass it by name, or give it a default."),
            (lambda: train.expand(table=["s3://a/b"]), "step 'train': missing 'depth' (a plain value). Pass it by name, or"),
            (lambda: train.expand_kwargs([{"depth": 1}]), "step 'train': missing 'table' (Input[Dataset]). Pass it by name"),
            (lambda: make(row=1), "step 'make' has no parameter 'row'. Did you mean 'rows'?"),
            (lambda: train.partial(dept=1), "step 'train' has no parameter 'dept'. Did you mean 'depth'?"),
            (lambda: train.partial(depth=1).expand(tabel=["s3://a/b"]), "has no parameter 'tabel'. Did you mean 'table'?"),
            (lambda: train.expand_kwargs([{"tabel": 1}]), "step 'train' has no parameter 'tabel'. Did you mean 'table'?"),
            (lambda: make(1, 2), "step 'make' has no parameter 'argument 2'. There are: rows."),
            (lambda: make(1, rows=2), "step 'make': 'rows' is given by its place and by its name. Give it once."),
            (
                lambda: make(rows=1, table="s3://a/b"),
                "step 'make': 'table' is Output[Dataset]; outputs are injected, never passed. "
                "Leave it out of the call and take it as make(...)['table'].",
            ),
            (lambda: train.partial(depth=1).expand(model=["s3://a/b"]), "'model' is Output[Model]; outputs are injected"),
        ],
    )
    def test_missing_and_unknown_parameters(self, call: Callable[[], Any], message: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(message)):
            call()

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: make(1)["tabel"], "step 'make' has no output 'tabel'. Did you mean 'table'?"),
            (lambda: mapped()["x"], "step 'make' has no output 'x'. There are: metrics, table."),
            (lambda: make(1)[0], "step 'make' has no output '0'. There are: metrics, table."),
            (lambda: show(1)["rows"], "step 'show' has no output 'rows'. There are none."),
            (
                lambda: make(1)["table"]["rows"],
                "make[\"table\"] is one artifact; ['rows'] of it means nothing. Read its .metadata",
            ),
        ],
    )
    def test_unknown_outputs(self, call: Callable[[], Any], message: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(message)):
            call()

    @pytest.mark.parametrize(
        "call",
        [
            show,
            lambda reference: show(1, values=[1, reference]),
            lambda reference: show({"deep": reference}),
            lambda reference: show.partial(value=reference),
            lambda reference: show.expand(value=[reference]),
        ],
    )
    def test_an_artifact_for_a_plain_parameter(self, call: Callable[[Any], Any]) -> None:
        with pytest.raises(
            ConfigError, match=r"is a plain value, but make\[\"table\"\] is a Dataset. Declare values?: Input\[Dat"
        ):
            call(make(1)["table"])
        with pytest.raises(
            ConfigError, match=r"is a plain value, but make makes artifacts: table \(Dataset\), metrics \(Metrics\)\."
        ):
            call(make(1))

    def test_mapping_over_one_output_with_the_ways_round_it(self) -> None:
        with pytest.raises(ConfigError) as caught:
            train.partial(depth=1).expand(table=make(1)["table"])
        assert str(caught.value) == (
            "step 'train': .expand(table=make[\"table\"]) cannot map over one Dataset. Map over a list of references "
            "([a['table'], b['table']]), over that output of a mapped step, or over the list that a plain @task returns."
        )

    @pytest.mark.parametrize(
        "call",
        [
            lambda reference: tell.expand(text=reference),
            tell.expand_kwargs,
            lambda reference: tell.expand(text=reference.map(str)),
            lambda reference: tell.expand(text=reference.zip(plain())),
            lambda reference: tell.expand(text=plain().concat(reference)),
            lambda reference: BashOperator.partial(task_id=f"bash-{reference.output}").expand(bash_command=reference),
            lambda reference: told.expand(text=reference),
            told.expand_kwargs,
            train.expand_kwargs,
        ],
        ids=["task", "kwargs", "map", "zip", "concat", "operator", "group", "group kwargs", "step kwargs"],
    )
    def test_mapping_anything_of_airflows_over_one_output(self, call: Callable[[Any], Any]) -> None:
        found = r"task .*: \.expand\(\w+=make\[\"table\"\]\) cannot map over one Dataset\. Map over a list of references "
        with pytest.raises(ConfigError, match=rf"^{found}\(\[a\['table'\], b\['table'\]\]\), over that output of a mapped step"):
            call(make(1)["table"])
        with pytest.raises(ConfigError, match=r"cannot map over the outputs of a step, table, metrics\. Map over a list of"):
            call(make(2))

    def test_what_airflow_can_map_over_is_left_to_it(self, example: DAG) -> None:
        tell.expand(text=[make(1)["table"], make(2)["table"]])
        told.expand(text=[make(3)["table"]])
        tell.expand(text=mapped()["table"])
        tell.expand(text=pick(models=()))
        tell.partial(text=make(4)["table"]).expand(other=[1, 2])
        assert len(example.task_ids) == 11

    def test_a_dictionary_of_artifacts_that_is_mapped_over(self) -> None:
        with pytest.raises(ConfigError, match=r"\.expand\(table=\{\.\.\.\}\) over a dictionary gives each instance a pair"):
            train.partial(depth=1).expand(table={"a": make(1)["table"]})
        with pytest.raises(ConfigError, match=r"parameter 'value' is a plain value, but make\[\"table\"\] is a Dataset"):
            show.expand(value={"a": make(1)["table"]})
        assert show.expand(value={"a": 1}).operator.is_mapped

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda: train.partial(depth=1).expand(table=mapped()["metrics"]), 'but make["metrics"] is a Metrics. Did you mean'),
            (lambda: train.partial(depth=1).expand(table=mapped()), "make is not one output. Did you mean make['table']?"),
            (lambda: train.partial(depth=1).expand(table=[make(1)["metrics"]]), 'but make["metrics"] is a Metrics'),
            (lambda: train.partial(depth=1).expand(table=["s3://a/b", 3]), "wants Input[Dataset], but 3 came."),
            (lambda: train.expand_kwargs([{"depth": "x", "table": 3}]), "wants Input[Dataset], but 3 came."),
            (
                lambda: train.expand_kwargs([{"depth": 1, "table": make(1)["table"]}]),
                "step 'train': 'table' is a reference, make[\"table\"], which Airflow does not resolve in the dictionaries of "
                ".expand_kwargs. Use .partial(table=...) if all instances share it, else .expand(table=[...]).",
            ),
            (lambda: show.expand(value=mapped()["table"]), 'is a plain value, but make["table"] is a Dataset.'),
            (lambda: pick.expand(models=mapped_models()), 'wants Input[list[Model]], but train["model"] is one Model.'),
            (lambda: train.partial(table=mapped()["table"]), "is one Dataset for each instance of a mapped step."),
        ],
    )
    def test_mapping_over_what_does_not_fit(self, call: Callable[[], Any], message: str) -> None:
        with pytest.raises(ConfigError, match=re.escape(message)):
            call()

    def test_what_is_a_mistake_in_airflow_too_stays_airflows_error(self) -> None:
        with pytest.raises(ValueError, match="unexpected type 'int' for keyword argument 'rows'"):
            make.expand(rows=3)
        with pytest.raises(TypeError, match="not iterable"):
            _ = [*make(1)["table"]]
        with pytest.raises(ConfigError, match="multiple_outputs is not for steps"):
            ml_task(multiple_outputs=True)
        with pytest.raises(ConfigError, match="multiple_outputs is not for steps"):
            make.override(multiple_outputs=True)
        assert make.override(multiple_outputs=False)(1).operator.multiple_outputs is False

    def test_nothing_is_added_to_the_dag(self, example: DAG) -> None:
        for call in (lambda: make(row=1), lambda: train.partial(depth=1).expand(tabel=["s3://a/b"])):
            with pytest.raises(ConfigError):
                call()
        assert example.task_ids == []


class TestWorksLikeAnyTask:
    def test_task_ml_and_ml_task_are_one(self) -> None:
        @task.ml(retries=7)
        def both(rows: int, table: Output[Dataset]) -> None: ...

        assert type(both) is type(make)
        made = both(rows=1)
        assert isinstance(made["table"], StepReference)
        assert made.operator.retries == 7
        assert made.operator.custom_operator_name == "@task.ml"

    def test_a_step_used_twice_gets_unique_ids(self, example: DAG) -> None:
        first, second = make(1), make(2)
        assert example.task_ids == ["make", "make__1"]
        assert str(first["table"]) != str(second["table"])
        assert first["table"] != second["table"]
        assert first["table"] == first["table"] != first["metrics"]

    def test_override_changes_the_task_and_keeps_the_step(self, example: DAG) -> None:
        made = make.override(task_id="other", retries=5, experiment="mine")(1)
        assert example.task_ids == ["other"]
        assert (made.operator.retries, made.operator.experiment) == (5, "mine")
        assert make(1).operator.retries == 0
        with pytest.raises(ConfigError, match="step 'make' has no output"):
            _ = made["tabel"]

    def test_arguments_go_by_place_and_by_name_and_outputs_take_no_place(self) -> None:
        made = train("s3://a/b", 3, "models:/x@champion")
        assert made.operator.op_kwargs == {"table": "s3://a/b", "depth": 3, "champion": "models:/x@champion"}
        assert train("s3://a/b", depth=3).operator.op_kwargs == {"table": "s3://a/b", "depth": 3}

    def test_what_airflows_context_gives_need_not_be_passed(self) -> None:
        assert show(1).operator.op_kwargs == {"value": 1}
        assert show.expand(value=[1]).operator.is_mapped

    def test_an_optional_input_takes_none_and_any_input_a_foreign_reference(self) -> None:
        made = train(table=plain(), depth=plain(), champion=None)
        assert made.operator.upstream_task_ids == {"plain", "plain__1"}
        train(table=make(1)["table"].map(lambda value: value), depth="{{ params.depth }}")
        train(table="{{ params.table }}", depth=1)
        train(table=pick(models=()), depth=1)

    def test_a_list_of_references_makes_each_of_them_upstream(self) -> None:
        one, two = train("s3://a/b", 1)["model"], train("s3://a/b", 2)["model"]
        assert pick(models=[one, two]).operator.upstream_task_ids == {"train", "train__1"}
        assert pick(models=(one, "models:/x@champion")).operator.upstream_task_ids == {"train"}
        many = train.partial(depth=1).expand(table=[make(1)["table"], make(2)["table"]])
        assert many.operator.upstream_task_ids == {"make", "make__1"}

    def test_default_args_reach_steps_and_mapped_steps(self) -> None:
        defaults = {"experiment": "ours", "mlflow_conn_id": "theirs", "retries": 4}
        with DAG("defaults", schedule=None, default_args=defaults):
            made = make(1).operator
            assert (made.experiment, made.mlflow_conn_id, made.retries) == ("ours", "theirs", 4)
            assert mapped().operator.retries == 4

    def test_groups_branches_setup_and_teardown(self, example: DAG) -> None:
        @task_group
        def group(rows: int) -> Any:
            made = make(rows)
            return train(table=made["table"], depth=rows)

        @task.branch
        def choose() -> str:
            return "show"

        fit = group(3)
        choose() >> [show(1), pick(models=[fit["model"]])]
        begin = make.override(task_id="begin")(1).as_setup()
        begin >> fit >> show(2).as_teardown(setups=begin)
        closing = teardown(show.override())(3)
        assert {"group.make", "group.train", "choose", "show", "pick", "begin", "show__1", "show__2"} == set(example.task_ids)
        assert example.get_task("begin").is_setup
        assert example.get_task("show__1").is_teardown
        assert closing.operator.is_teardown
        assert setup(make.override())(1)["table"].operator.is_setup

    def test_a_mapped_task_group_hands_its_arguments_and_outputs_on(self, example: DAG) -> None:
        @task_group
        def group(rows: int, other: str) -> Any:
            made = make(rows)
            train.override(task_id="again")(table=other, depth=rows)
            return train(table=made["table"], depth=rows)

        fits = group.expand(rows=[1, 2], other=["s3://a/b", make(1)["table"]])
        pick(models=fits["model"])
        assert example.get_task("pick").upstream_task_ids == {"group.train"}
        with pytest.raises(ConfigError, match="is a Model"):
            train(table=fits["model"], depth=1)

    def test_a_context_parameter_is_refused_a_default_as_in_airflow(self) -> None:
        @ml_task
        def wrong(ti: int = 3) -> None: ...

        with pytest.raises(ValueError, match="Context key parameter ti can't have a default other than None"):
            wrong()

    def test_airflows_context_fills_no_input(self) -> None:
        @ml_task
        def late(params: Input[Dataset]) -> None: ...

        with pytest.raises(ConfigError, match=r"step 'late': missing 'params' \(Input\[Dataset\]\)\. Pass it by name"):
            late()
        assert late(params="s3://a/b").operator.op_kwargs == {"params": "s3://a/b"}

    def test_the_function_itself_can_be_called_in_a_test(self) -> None:
        @ml_task
        def double(value: int) -> int:
            """Say it twice."""
            return 2 * value

        assert double.function(4) == 8
        assert double(1).operator.doc_md == "Say it twice."

    def test_one_decorator_makes_each_function_a_step_of_its_own(self, example: DAG) -> None:
        patient = ml_task(retries=5)

        def one() -> None: ...
        def two() -> None: ...

        patient(one)()
        patient(two)()
        assert {each.task_id: each.retries for each in example.tasks} == {"one": 5, "two": 5}


def test_a_dag_of_steps_survives_serialization(example: DAG) -> None:
    made = make(1)
    fits = train.partial(depth=1).expand(table=[made["table"], "s3://a/b"])
    pick(models=fits["model"])
    show(f"{made['table']} of {made}")
    data = DagSerialization.to_dict(example)
    again = DagSerialization.from_dict(data)
    DagSerialization.validate_schema(data)
    assert {each.task_id: each.upstream_task_ids for each in again.tasks} == {
        "make": set(),
        "train": {"make"},
        "pick": {"train"},
        "show": set(),
    }
    assert again.get_task("make").operator_name == "@task.ml"
    assert again.get_task("train").is_mapped


def test_the_signatures_of_artifacts_of_any_kind_fit_where_any_is_wanted() -> None:
    @ml_task
    def report(thing: Input[Artifact]) -> None: ...

    for reference in (make(1)["table"], make(1)["metrics"], train("s3://a/b", 1)["model"]):
        report(thing=reference)
