"""Calls that a DAG may make: no type checker may report one, and all of them parse."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag, task, task_group

import airflow_ml_provider as ml
from airflow_ml_provider import Artifact, Dataset, Input, Metrics, Model, Output, ml_task

NIGHT = "{{ ds }}"
Table = Input[Dataset]


@ml_task
def make(day: str, rows: int, table: Output[Dataset]) -> None:
    table.path += ".csv"
    table.metadata["rows"] = rows


@ml.ml_task
def train(
    table: Table,
    champion: ml.Input[Model] | None,
    depth: int,
    weights: list[float],
    model: ml.Output[ml.Model],
    metrics: Output[Metrics],
    logical_date: datetime | None = None,
    ti: Any = None,
) -> None:
    metrics.log_metric("weight", sum(weights) * depth if champion is None else len(champion.path))


@ml_task(retries=2, experiment="x")
def pick(models: Input[list[Model]], note: str = "x") -> dict[str, int]:
    return {note: len([each.path for each in models])}


@ml_task(mlflow_conn_id="mlflow_default")
def show(
    thing: Input[Artifact], options: dict[str, int], many: Input[list[Metrics]] | None = None, sizes: tuple[int, ...] = ()
) -> None:
    options[thing.uri] = len(many or sizes)


@task
def numbers() -> list[int]:
    return [1]


@task
def foreign(value: Any) -> None: ...


@dag(schedule=None, params={"rows": 3})
def example() -> None:
    made = make(NIGHT, 5)
    rows = "{{ params.rows }}"
    make(day="{{ ds }}", rows="{{ params.rows }}")
    make(day=NIGHT, rows=rows)
    make(rows=numbers(), day=f"{NIGHT}T00:00")
    make.override(task_id="other", retries=3)(day=NIGHT, rows=1)
    given: dict[str, Any] = {"day": "x", "rows": 1}
    make(**given)

    weights = [1.0, 2.0]
    fit = train(table=made["table"], champion="models:/x@champion", depth=3, weights=[1.0, 2, numbers(), "{{ params.rows }}"])
    train(made["table"], None, 3, weights)
    train("s3://bucket/table", fit["model"], depth="{{ params.rows }}", weights=numbers())
    train(foreign(3), fit["model"].map(lambda each: each), 3, weights)

    fits = train.partial(table=made["table"], champion=None, weights=weights).expand(depth=[1, 2])
    train.partial(table=made["table"], champion=None, weights=weights).expand(depth=numbers())
    train.partial(depth=3, champion=None, weights=weights).expand(table=["s3://a/b", made["table"]])
    train.partial(depth=3, weights=weights, table="s3://a/b").expand(champion=fits["model"])
    train.partial(depth=3, champion=None, table="s3://a/b").expand(weights=[[1.0], weights, [1, 2]])
    make.partial(day=NIGHT).expand_kwargs([{"rows": 1}, {"rows": 2}])

    count = pick(models=fits["model"])
    references = [fit["model"], train(made["table"], None, 3, weights)["model"]]
    pick(models=references, note=count)
    pick(models=[fit["model"], "models:/x@champion"])
    pick([f"models:/{name}@champion" for name in "ab"])
    show(thing=fit["model"], many=[fit["metrics"]], options={"a": 1, "b": numbers(), "c": "{{ params.rows }}"})
    show(thing=made["table"], many=fits["metrics"], options=count, sizes=[1, numbers()])

    foreign(fit["model"])
    write = BashOperator(task_id="write", bash_command=f"echo {fit['model']}")
    made >> fit >> [write, count]
    write >> foreign.override(task_id="last")(write.output)
    begin = make.override(task_id="begin")(NIGHT, 1).as_setup()
    begin >> show(thing=begin["table"], options={}) >> make.override(task_id="end")(NIGHT, 1).as_teardown(setups=begin)

    @task_group
    def group() -> None:
        make(day="x", rows=1)

    group()


example()
