"""Bodies of steps: what mypy must say of a line stands at its end, with the plugin and without."""

from __future__ import annotations

from airflow.sdk import task

from airflow_ml_provider import Dataset, Input, Metrics, Model, Output, ml_task


@ml_task
def one(table: Input[Dataset], champion: Input[Model] | None, model: Output[Model], metrics: Output[Metrics]) -> None:
    table.path.upper()
    model.path += ".pkl"
    _ = champion.path  # E: Item "None" of "Model | None" has no attribute "path"
    table.log_metric("rows", 1)  # E: "Dataset" has no attribute "log_metric"
    metrics.log_metric("rows", "1")  # E: Argument 2 to "log_metric" of "Metrics" has incompatible type "str"; expected "float"
    model.metadata = 3  # E: Incompatible types in assignment (expression has type "int", variable has type "dict[str, Any]")


@task.ml(retries=3)
def two(models: Input[list[Model]], depth: int) -> dict[str, int]:
    _ = models.path  # E: "list[Model]" has no attribute "path"
    return {models[0].path: "x"}  # E: Dict entry 0 has incompatible type "str": "str"; expected "str": "int"


@task.ml
def three(model: Input[Model], copy: Output[Model]) -> None:
    copy.path = model.pth  # E: "Model" has no attribute "pth"


one.function(Dataset("x"), None, Model("x"))  # E: Too few arguments
