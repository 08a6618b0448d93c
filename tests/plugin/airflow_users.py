"""An auth manager of Airflow that, as those of production do, tells DAGs and entities apart."""

from __future__ import annotations

from typing import Any

from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser


class DagByDag(SimpleAuthManager):
    """
    Lets a user read the runs and the task instances of the DAGs that the user's name lists, divided by ``+``, and nothing else.

    ``runs-of-a`` may read the runs of the DAG ``a`` alone.
    """

    def is_authorized_dag(
        self,
        *,
        method: Any,
        user: SimpleAuthManagerUser,
        access_entity: DagAccessEntity | None = None,
        details: Any = None,
    ) -> bool:
        if method != "GET" or details is None or details.id is None:
            return False
        if access_entity is DagAccessEntity.RUN and user.username == f"runs-of-{details.id}":
            return True
        entities = {DagAccessEntity.RUN, DagAccessEntity.TASK_INSTANCE}
        return access_entity in entities and details.id in user.username.split("+")
