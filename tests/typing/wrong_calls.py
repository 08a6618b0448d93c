"""Calls that a DAG may not make. What mypy must say of a line stands at its end, or in the lines above it."""

from __future__ import annotations

from airflow.sdk import task

from airflow_ml_provider import Dataset, Input, Metrics, Model, Output, ml_task


@ml_task
def make(day: str, rows: int, table: Output[Dataset]) -> None: ...


@task.ml(retries=3)
def train(table: Input[Dataset], champion: Input[Model] | None, depth: int, model: Output[Model], m: Output[Metrics]) -> None: ...


@task.ml
def pick(models: Input[list[Model]], weights: list[float], note: str = "x") -> None: ...


made = make("x", 1)
table = made["table"]

make(day="x")  # E: Missing positional argument "rows" in call to "make"
train(champion=None, depth=1)  # E: Missing positional argument "table" in call to "train"
make(day="x", rows=5, colums=3)  # E: Unexpected keyword argument "colums" for "make"
make("x", 5, Dataset("x"))  # E: Too many arguments for "make"
make("x", 5, table=table)  # E: Unexpected keyword argument "table" for "make"
make("x", rows="many")  # E: Argument "rows" to "make" has incompatible type "str"; expected "int | XComArg"
make("x", 1.5)  # E: Argument 2 to "make" has incompatible type "float"; expected "int | XComArg"
train(Dataset("x"), None, 3)  # E: Argument 1 to "train" has incompatible type "Dataset"; expected "XComArg | str"
train(table=1, champion=None, depth=1)  # E: Argument "table" to "train" has incompatible type "int"; expected "XComArg | str"
train(None, None, 1)  # E: Argument 1 to "train" has incompatible type "None"; expected "XComArg | str"
# E: Argument "models" to "pick" has incompatible type "str"; expected "Sequence[XComArg] | XComArg"
pick(models="models:/x@champion", weights=[1.0])
pick([table], weights=["a"])  # E: List item 0 has incompatible type "str"; expected "float | XComArg"
pick([table], [1.0], note=3)  # E: Argument "note" to "pick" has incompatible type "int"; expected "str | XComArg"
train.partial(tabel="s3://a/b")  # E: Unexpected keyword argument "tabel" for "partial"; did you mean "table"?
train.partial(depth="a")  # E: Argument "depth" to "partial" has incompatible type "str"; expected "int | XComArg"
train.expand(model=[1])  # E: Unexpected keyword argument "model" for "expand"
train.expand(table=["s3://a/b", 2])  # E: List item 1 has incompatible type "int"; expected "XComArg | str"
# E: Argument "depth" to "expand" has incompatible type "int"; expected "Sequence[int | XComArg] | XComArg"
train.override(retries=1).expand(depth=3)
_ = made["table"].path  # E: "XComArg" has no attribute "path"
