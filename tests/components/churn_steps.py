"""Steps that run in a worker, in a pod, and as components of the pipeline beside this file."""
# ruff: noqa: PTH123  (a step's text travels without its imports, and open is a builtin)

# [START churn_steps]
from airflow_ml_provider import Dataset, Input, Metrics, Model, Output


def gather(table: Output[Dataset], rows: int = 3) -> None:
    import csv

    table.path += ".csv"
    with open(table.path, "w") as file:
        csv.writer(file).writerows([number, number % 2] for number in range(rows))
    table.metadata["rows"] = rows


def train(table: Input[Dataset], model: Output[Model], metrics: Output[Metrics], rate: float = 0.5) -> None:
    import json

    with open(table.path) as file:
        churned = [int(line.split(",")[1]) for line in file]
    with open(model.path, "w") as file:
        json.dump({"share": sum(churned) / len(churned), "rate": rate}, file)
    metrics.log_metric("auc", 0.5 + rate / 10)
    metrics.log_metric("loss", float("inf"))
    model.metadata["rows"] = table.metadata["rows"]


def score(model: Input[Model], metrics: Input[Metrics], factors: list[float], note: str | None = None) -> dict[str, float]:
    import json

    with open(model.path) as file:
        share = json.load(file)["share"]
    return {"score": metrics.metadata["auc"] * sum(factors) + share, "rows": model.metadata["rows"], "notes": len(note or "")}


# [END churn_steps]
