"""The MLflow run of a DAG run and those of the DAG runs before it, for a page about them: few requests, nothing is changed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_ml_provider.exceptions import RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.run import DagRunIdentity
from airflow_ml_provider.tracking.reconcile import find_experiments
from airflow_ml_provider.tracking.runs import KEY, PARENT, Run, age, run_id_of, tags_of

log = logging.getLogger(__name__)

LIMIT = 10
"""How many DAG runs are compared at most; and of how many tasks."""
ROWS = 200
"""How many runs of tasks are looked at, the newest: whoever opens the page waits for them."""


@dataclass(frozen=True)
class LastRuns:
    """
    The MLflow runs of DAG runs of one DAG.

    :param runs: The one that was asked for first, then those that began before it, newest first; at most 10.
    :param experiment: Name of the experiment that they are in.
    :param page: Address of the first one's page.
    :param compare: Address of MLflow's page that compares them all; empty for a single one. It has what the DAG runs have
        themselves; metrics are those of their tasks.
    :param tasks: Address of MLflow's page that compares the runs of one task of theirs, by task, at most 10: of each that has
        logged a metric in the first of them and in another.
    """

    runs: Sequence[Run]
    experiment: str
    page: str
    compare: str
    tasks: Mapping[str, str] = field(default_factory=dict)


def find_last_runs(api: MlflowApi, dag_id: str, run_id: str | None, experiment: str) -> LastRuns | None:
    """
    Look up the MLflow run of a DAG run, and those of the DAG runs before it.

    :param api: The server.
    :param dag_id: Id of the DAG; without quotes, as all ids that Airflow takes.
    :param run_id: Id of the DAG run; None takes the newest that has an MLflow run.
    :param experiment: Name of the experiment to look into first; all others come next, as the steps may have named another.
    :return: The runs; None when the server has no run of the DAG run.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    :raises ConfigError: MLflow refused the question; a retry never helps.
    """
    run = _find(api, [_id_of(api, experiment)], dag_id, run_id) or _find(api, find_experiments(api), dag_id, run_id)
    if run is None:
        return None
    place = str(run["info"]["experiment_id"])
    before = f"{_of_dag_runs(dag_id)} and attributes.start_time <= {int(run['info'].get('start_time') or 0)}"
    others = [each for each in _search(api, [place], before, LIMIT) if run_id_of(each) != run_id_of(run)]
    runs = [run, *others][:LIMIT]
    return LastRuns(
        runs=runs,
        experiment=str(api.get("experiments/get", experiment_id=place)["experiment"]["name"]),
        page=api.server.run_page(place, run_id_of(run)),
        compare=api.server.compare_page(place, [run_id_of(each) for each in runs]) if len(runs) > 1 else "",
        tasks=_compare_tasks(api, place, dag_id, runs) if len(runs) > 1 else {},
    )


def _compare_tasks(api: MlflowApi, place: str, dag_id: str, runs: Sequence[Run]) -> dict[str, str]:
    """Find the runs of the same task in several DAG runs; the page is shown without them where that takes too long."""
    parents = [run_id_of(each) for each in runs]
    query = f"tags.`airflow.dag_id` = '{dag_id}' and tags.`airflow.task_id` != ''"
    try:
        found = _search(api, [place], query, ROWS)
    except RemoteUnavailableError as error:
        log.warning("The runs of tasks of DAG %r are not compared: %s", dag_id, error)
        return {}
    of_task: dict[str, dict[str, str]] = {}
    for each in found:  # the newest first: of two runs of a task in one DAG run, the one that counts
        tags = tags_of(each)
        if each.get("data", {}).get("metrics") and (parent := tags.get(PARENT, "")) in parents:
            index = tags.get("airflow.map_index", "-1")
            name = tags["airflow.task_id"] + (f"[{index}]" if index != "-1" else "")
            of_task.setdefault(name, {}).setdefault(parent, run_id_of(each))
    several = [(name, made) for name, made in sorted(of_task.items()) if parents[0] in made and len(made) > 1]
    return {
        name: api.server.compare_page(place, [made[parent] for parent in parents if parent in made])
        for name, made in several[:LIMIT]
    }


def _id_of(api: MlflowApi, experiment: str) -> str:
    try:
        return find_experiments(api, experiment)[0]
    except RemoteNotFoundError:
        return ""


def _find(api: MlflowApi, experiment_ids: Sequence[str], dag_id: str, run_id: str | None) -> Run | None:
    """Find the run of a DAG run; of two that raced, the one that stays: the oldest."""
    places = [each for each in experiment_ids if each]
    if not places:
        return None
    if run_id is None:
        return next(iter(_search(api, places, _of_dag_runs(dag_id), 1)), None)
    key = DagRunIdentity(dag_id=dag_id, run_id=run_id).key
    return min(_search(api, places, f"tags.`{KEY}` = '{key}'", LIMIT), key=age, default=None)


def _of_dag_runs(dag_id: str) -> str:
    """Select the runs of a DAG's runs; only they, and not those of its tasks, say of which type the DAG run was."""
    return f"tags.`airflow.dag_id` = '{dag_id}' and tags.`airflow.run_type` != 'none'"


def _search(api: MlflowApi, experiment_ids: Sequence[str], query: str, limit: int) -> list[Run]:
    body: dict[str, Any] = {"experiment_ids": list(experiment_ids), "filter": query, "max_results": limit}
    found: list[Run] = api.post("runs/search", body | {"order_by": ["attributes.start_time DESC"]}).get("runs", [])
    return found
