"""
What the pages use of Airflow's API server that Airflow nowhere promises; no other module of ours names it.

tests/plugin/test_contract.py says what breaks when one of these names moves.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

from fastapi import Depends, HTTPException, Request

LOGIN = "/api/v2/auth/login"
"""Where Airflow lets people log in; its parameter ``next`` says where to go then."""
MayRead: TypeAlias = Callable[[str], bool]
"""Says of the id of a DAG whether who asks may read its runs and what its tasks have done."""


def may_read_runs() -> Callable[..., Any]:
    """
    Make the guard of a page about a DAG's runs.

    :return: FastAPI dependency: answers 401 and 403 to whoever may not read the runs of the DAG ``dag_id`` of the path.
    """
    return _guards()[0]


def may_read_tasks() -> Callable[..., Any]:
    """
    Make the guard of a page about what a DAG's tasks have done, beside that of its runs.

    :return: FastAPI dependency: answers 401 and 403 to whoever may not read the task instances of the DAG of the path.
    """
    return _guards()[1]


def which_dags() -> Callable[..., Any]:
    """
    Make what judges other DAGs than that of the path, by the same rights.

    :return: FastAPI dependency that gives a :data:`MayRead`; each DAG is judged once in a request.
    """
    from airflow.api_fastapi.core_api.security import get_user

    who = Depends(get_user)

    def judge(request: Request, user: Any = who) -> MayRead:
        @cache
        def may_read(dag_id: str) -> bool:
            if dag_id in {"", "~"}:  # which Airflow takes for a question about all DAGs
                return False
            other = Request({**request.scope, "path_params": {"dag_id": dag_id}, "query_string": b""})
            try:
                for guard in _guards():
                    guard(other, user)
            except HTTPException:
                return False
            return True

        return may_read

    return judge


def default_argument(dag_id: str, name: str) -> str:
    """
    Read one of a DAG's ``default_args`` from what Airflow's database keeps of the DAG file.

    :param dag_id: Id of the DAG.
    :param name: Name of the argument.
    :return: Its text; empty when the DAG has none, or is not known.
    """
    from airflow.models.serialized_dag import SerializedDagModel

    found = SerializedDagModel.get(dag_id)
    arguments = ((found.data if found else None) or {}).get("dag", {}).get("default_args") or {}
    value = arguments.get("__var", {}).get(name)
    return value if isinstance(value, str) else ""


def _guards() -> list[Callable[..., Any]]:
    from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
    from airflow.api_fastapi.core_api.security import requires_access_dag

    return [
        requires_access_dag(method="GET", access_entity=each) for each in (DagAccessEntity.RUN, DagAccessEntity.TASK_INSTANCE)
    ]
