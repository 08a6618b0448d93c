"""Steps in DAGs that run: real operators, templates, XCom and MLflow, without a scheduler."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pendulum
import pytest
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, task, task_group

from airflow_ml_provider import Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.tracking.runs import RunTree

START = pendulum.datetime(2024, 1, 1)
FACTS: dict[str, Any] = {}
"""What steps and callbacks tell their test; dag.test() runs them in this process."""


@pytest.fixture(autouse=True)
def no_facts() -> None:
    FACTS.clear()


def keep_error(context: Any) -> None:
    FACTS[context["ti"].task_id] = f"{type(context['exception']).__name__}: {context['exception']}"


@ml_task
def make(rows: int, table: Output[Dataset]) -> None:
    table.path += ".csv"
    Path(table.path).write_text("x" * rows)


@ml_task
def train(table: Input[Dataset], depth: int, model: Output[Model], metrics: Output[Metrics]) -> None:
    Path(model.path).write_text(f"{Path(table.path).read_text()}/{depth}")
    metrics.log_metric("depth", depth)


@ml_task
def read(model: Input[Model]) -> str:
    return Path(model.path).read_text()


@ml_task
def read_all(models: Input[list[Model]], metrics: Input[list[Metrics]]) -> list[list[Any]]:
    return [[Path(each.path).read_text(), one.metadata["depth"]] for each, one in zip(models, metrics, strict=True)]


@task
def numbers() -> list[int]:
    return [3, 4]


def test_steps_behave_like_any_task(run_dag: Any, unique: str, mlflow_api: Any, tmp_path: Path) -> None:
    @task.ml
    def answers(
        day: str,
        depth: int,
        share: float,
        options: dict[str, int],
        champion: Input[Model] | None,
        challenger: Input[Model] | None = None,
        note: str = "by default",
        logical_date: datetime | None = None,
        ti: Any = None,
    ) -> dict[str, Any]:
        """Return JSON."""
        return {
            "day": day,
            "numbers": [depth, share, options["a"]],
            "nothing": [champion, challenger],
            "note": note,
            "context": [ti.task_id, logical_date is None or logical_date.year >= 2024],
        }

    @task
    def foreign(reference: dict[str, Any], several: list[dict[str, Any]], value: dict[str, Any]) -> list[Any]:
        return [reference, several, value["note"]]

    @ml_task
    def ends(name: str, table: Input[Dataset] | None = None) -> None:
        FACTS.setdefault("order", []).append(name)

    @ml_task
    def begins(table: Output[Dataset]) -> None:
        FACTS.setdefault("order", []).append("begins")
        Path(table.path).write_text("set up")

    @task_group
    def group(rows: int) -> Any:
        return train(table=make(rows=rows)["table"], depth="{{ 2 + 3 }}")

    file = tmp_path / "rendered"

    @dag(dag_id=unique, schedule=None, start_date=START, default_args={"experiment": f"{unique}-ours"})
    def example() -> None:
        fit = group(2)
        value = answers(
            "{{ dag.dag_id }}", depth="{{ 1 + 2 }}", share="0.5", options={"a": "7"}, champion=f"models:/{unique}@champion"
        )
        foreign(reference=fit["model"], several=[fit["model"], fit["metrics"]], value=value)
        write = BashOperator(
            task_id="bash", bash_command=f'echo "{fit["model"]} $TABLE" > {file}', env={"TABLE": str(make(9)["table"])}
        )
        [fit, make.override(task_id="unused")(rows=1)] >> write
        begin = begins().as_setup()
        work = ends.override(task_id="works")("works", table=begin["table"])
        end = ends.override(task_id="closes")("closes").as_teardown(setups=begin)
        begin >> work >> end
        make.override(task_id="mapped", trigger_rule="none_failed").expand(rows=[1])

    outcome = run_dag(example())
    assert outcome.state == "success", outcome.tasks
    assert outcome.xcom("answers") == {
        "day": unique,
        "numbers": [3, 0.5, 7],
        "nothing": [None, None],
        "note": "by default",
        "context": ["answers", True],
    }
    reference, several, note = outcome.xcom("foreign")
    assert (reference["type"], reference["name"], reference["size"], note) == ("Model", "model", 4, "by default")
    assert reference["uri"].startswith("models:/m-")
    assert [each["type"] for each in several] == ["Model", "Metrics"]
    model_uri, table_uri = file.read_text().split()
    assert model_uri == reference["uri"]
    assert table_uri.startswith("runs:/")
    assert table_uri.endswith("/try-1/table.csv")
    assert FACTS["order"] == ["begins", "works", "closes"]
    tree = RunTree(mlflow_api)
    names = {
        each["info"]["run_name"]
        for each in tree.search([tree.experiment_id(f"{unique}-ours")], "tags.`mlflow.parentRunId` != ''")
    }
    assert {"group.train", "group.make", "answers", "works", "mapped[0]"} <= names, names


def noted(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that keeps the signature."""

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        FACTS["before"] = sorted(kwargs)
        return function(*args, **kwargs)

    return inner


def connected(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that takes a parameter away, and gives it itself."""

    @functools.wraps(function)
    def inner(**kwargs: Any) -> Any:
        return function(session="a session", **kwargs)

    left = [each for each in inspect.signature(function).parameters.values() if each.name != "session"]
    inner.__signature__ = inspect.Signature(left)  # type: ignore[attr-defined]
    return inner


def test_what_an_author_puts_around_a_function_runs(run_dag: Any, unique: str) -> None:
    @ml_task
    @noted
    def counts(rows: int, table: Output[Dataset]) -> None:
        Path(table.path).write_text("x" * rows)

    @task.ml
    @connected
    def asks(session: str, table: Input[Dataset]) -> str:
        return f"{session}: {Path(table.path).read_text()}"

    @dag(dag_id=unique, schedule=None, start_date=START, default_args={"on_failure_callback": keep_error})
    def example() -> None:
        asks(table=counts(rows=2)["table"])

    outcome = run_dag(example())
    assert FACTS == {"before": ["rows", "table"]}
    assert outcome.xcom("asks") == "a session: xx"


@pytest.mark.full
def test_steps_map_and_gather(run_dag: Any, unique: str) -> None:
    @ml_task
    def sizes() -> list[int]:
        return [5, 6]

    @task_group
    def group(rows: int) -> Any:
        return train.override(task_id="fit")(table=make(rows=rows)["table"], depth=rows)

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        tables = make.expand(rows=[1, 2])
        fits = train.partial(depth=7).expand(table=tables["table"])
        read_all(models=fits["model"], metrics=fits["metrics"])
        read.expand(model=fits["model"])
        one = make.override(task_id="one")(rows=1)
        listed = train.override(task_id="listed").partial(depth=8).expand(table=[tables_one := one["table"], make(3)["table"]])
        read_all.override(task_id="listed_all")(models=listed["model"], metrics=listed["metrics"])
        crossed = train.override(task_id="crossed").partial(table=tables_one).expand(depth=numbers())
        read_all.override(task_id="crossed_all")(models=crossed["model"], metrics=crossed["metrics"])
        chosen = [crossed_one := train.override(task_id="by_hand")(tables_one, 9)]
        read_all.override(task_id="by_hand_all")(models=[each["model"] for each in chosen], metrics=[crossed_one["metrics"]])
        kwargs = train.override(task_id="kwargs").partial(table=tables_one).expand_kwargs([{"depth": 1}, {"depth": "{{ 2 }}"}])
        read_all.override(task_id="kwargs_all")(models=kwargs["model"], metrics=kwargs["metrics"])
        made = make.override(task_id="made").expand(rows=sizes())
        train.override(task_id="chained").partial(depth=0).expand(table=made["table"])
        grouped = group.expand(rows=[1, 2])
        read_all.override(task_id="grouped_all")(models=grouped["model"], metrics=grouped["metrics"])

    outcome = run_dag(example())
    assert outcome.state == "success", outcome.tasks
    assert outcome.xcom("read_all") == [["x/7", 7], ["xx/7", 7]]
    assert [outcome.xcom("read", index) for index in (0, 1)] == ["x/7", "xx/7"]
    assert outcome.xcom("listed_all") == [["x/8", 8], ["xxx/8", 8]]
    assert outcome.xcom("crossed_all") == [["x/3", 3], ["x/4", 4]]
    assert outcome.xcom("by_hand_all") == [["x/9", 9]]
    assert outcome.xcom("kwargs_all") == [["x/1", 1], ["x/2", 2]]
    assert outcome.xcom("grouped_all") == [["x/1", 1], ["xx/2", 2]]
    assert outcome.task("chained", 1) == "success"


@pytest.mark.airflow("3.3")  # dag.test() of earlier ones hands a callback no exception; its workers do
def test_a_branch_skips_steps_and_nobody_mistakes_a_skipped_input_for_a_missing_model(run_dag: Any, unique: str) -> None:
    @task.branch
    def choose() -> str:
        return "small"

    @ml_task
    def fallback(model: Input[Model] | None, rows: int) -> str:
        return "never runs without the model that was promised"

    @dag(dag_id=unique, schedule=None, start_date=START, default_args={"on_failure_callback": keep_error})
    def example() -> None:
        small, large = make.override(task_id="small")(1), make.override(task_id="large")(100)
        choose() >> [small, large]
        ran, skipped = train(small["table"], 1), train.override(task_id="large_fit")(large["table"], 1)
        read.override(task_id="ran")(ran["model"])
        read.override(task_id="skipped")(skipped["model"])
        fallback.override(trigger_rule="none_failed")(skipped["model"], rows=1)

    outcome = run_dag(example())
    assert {name: outcome.task(name) for name in ("small", "large", "train", "large_fit", "ran", "skipped")} == {
        "small": "success",
        "train": "success",
        "ran": "success",
        "large": "skipped",
        "large_fit": "skipped",
        "skipped": "skipped",
    }
    assert outcome.task("fallback") == "failed"
    assert "'model' wants Input[Model] | None, but nothing came: the step before was skipped" in FACTS["fallback"]


@pytest.mark.airflow("3.3")  # dag.test() of earlier ones hands a callback no exception; its workers do
def test_what_could_not_be_seen_before_is_refused_when_it_runs_with_the_same_words(run_dag: Any, unique: str) -> None:
    @ml_task
    def wants_number(number: int) -> None: ...

    @ml_task
    def wants_anything(value: Any) -> None: ...

    @ml_task
    def returns_no_json() -> Any:
        return {1, 2}

    @task
    def hand_on(reference: dict[str, Any]) -> dict[str, Any]:
        return reference

    @dag(dag_id=unique, schedule=None, start_date=START, default_args={"on_failure_callback": keep_error})
    def example() -> None:
        tables = make.expand(rows=[1, 2])
        one = make.override(task_id="one")(rows=1)
        read_all(models=tables["table"].map(lambda each: each), metrics=[])
        read.override(task_id="behind_map").expand(model=tables["table"].map(lambda each: each))
        read.override(task_id="behind_task")(hand_on(one["table"]))
        read.override(task_id="whole")(hand_on.override(task_id="hand_on_all")(one))
        read.override(task_id="rendered")("{{ 'no place' }}")
        read.override(task_id="missing")(f"models:/{unique}@champion")
        wants_number.override(task_id="rendered_number")("{{ 'many' }}")
        wants_anything(hand_on.override(task_id="hand_on_again")(one["table"]))
        returns_no_json()

    outcome = run_dag(example())
    assert FACTS.keys() == {
        *(
            "read_all",
            "behind_map",
            "behind_task",
            "whole",
            "rendered",
            "missing",
            "rendered_number",
            "wants_anything",
            "returns_no_json",
        )
    }, FACTS
    assert outcome.task("behind_map", 1) == "failed"
    for name, step in (("read_all", "models"), ("behind_map", "model"), ("behind_task", "model")):
        assert f"parameter '{step}' wants Input[Model], but what came, runs:/" in FACTS[name]
        assert ", is a Dataset." in FACTS[name]
    assert "wants Input[Model], but what came is not one output. Its outputs are: table (Dataset)." in FACTS["whole"]
    assert "wants Input[Model], but 'no place' is not the place of one." in FACTS["rendered"]
    assert "Promote a model first, or declare Input[Model] | None to run without one." in FACTS["missing"]
    assert "parameter 'number': 'many' is not <class 'int'>" in FACTS["rendered_number"]
    assert (
        "parameter 'value' is a plain value, but what came is a Dataset. Declare value: Input[Dataset]."
        in FACTS["wants_anything"]
    )
    assert "returned set, which is not plain JSON" in FACTS["returns_no_json"]
    assert all(text.startswith(("ConfigError: ", "AirflowFailException: ")) for text in FACTS.values()), FACTS
