"""Running a DAG that exists only in a test, with Airflow's own ``dag.test()``."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What became of a DAG run: its state, each task's state, and access to XCom."""

    dag_id: str
    run_id: str
    state: str
    tasks: dict[tuple[str, int], str]

    def task(self, task_id: str, map_index: int = -1) -> str:
        return self.tasks[task_id, map_index]

    def xcom(self, task_id: str, map_index: int = -1, key: str = "return_value") -> Any:
        from airflow.models.xcom import XComModel
        from airflow.utils.session import create_session

        with create_session() as session:
            rows = XComModel.get_many(run_id=self.run_id, dag_ids=self.dag_id, task_ids=task_id, map_indexes=map_index, key=key)
            row = session.execute(rows if not hasattr(rows, "statement") else rows.statement).scalars().first()
            return None if row is None else XComModel.deserialize_value(row)


def run(dag: Any, **kwargs: Any) -> Outcome:
    """Write a DAG to this worker's database and run it to its end."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager

    from tests.airflow_releases import DagBag, sync_bag_to_db

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Airflow itself, in thousands
        DagBundlesManager().sync_bundles_to_db()
        bag = DagBag(dag_folder=os.devnull)
        bag.bag_dag(dag)
        sync_bag_to_db(bag, "dags-folder", None)
        dag_run = dag.test(**kwargs)
        instances = {(ti.task_id, ti.map_index): str(ti.state) for ti in dag_run.get_task_instances()}
    return Outcome(dag_run.dag_id, dag_run.run_id, str(dag_run.state), instances)
