from __future__ import annotations

from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import dag

from airflow_ml_provider import Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.models.run import DagRunIdentity
from airflow_ml_provider.tracking.runs import RunTree, tags_of

START = pendulum.datetime(2024, 1, 1)


@ml_task
def make(rows: int, table: Output[Dataset]) -> None:
    table.path += ".csv"
    Path(table.path).write_text("x\n" * rows)
    table.metadata["rows"] = rows


def test_a_dataset_passes_from_step_to_step_with_its_metadata(run_dag: Any, unique: str, mlflow_api: Any) -> None:
    @ml_task
    def count(table: Input[Dataset]) -> dict[str, int]:
        return {"rows": table.metadata["rows"], "lines": len(Path(table.path).read_text().splitlines())}

    @dag(dag_id=unique, schedule=None, start_date=START)
    def example() -> None:
        count(table=make(rows=5)["table"])

    outcome = run_dag(example())
    assert outcome.state == "success"
    assert outcome.xcom("count") == {"rows": 5, "lines": 5}
    tree = RunTree(mlflow_api)
    (parent,) = tree.find_parents(tree.experiment_id(unique), DagRunIdentity(dag_id=unique, run_id=outcome.run_id))
    assert tags_of(parent)["airflow.dag_id"] == unique
