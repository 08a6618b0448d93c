"""Assets and their events in Airflow's database."""

from __future__ import annotations

from typing import Any


def events_of(uri: str) -> list[Any]:
    """Events of an asset in Airflow's database, oldest first: task, map index, extra."""
    from airflow.models.asset import AssetEvent, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        wanted = select(AssetEvent).join(AssetModel, AssetModel.id == AssetEvent.asset_id).where(AssetModel.uri == uri)
        rows = session.scalars(wanted.order_by(AssetEvent.id)).all()
        return [(each.source_task_id, each.source_map_index, each.extra) for each in rows]


def waiting_for(uri: str) -> list[str]:
    """DAGs that the scheduler will start for the events of an asset."""
    from airflow.models.asset import AssetDagRunQueue, AssetModel
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session() as session:
        queue = select(AssetDagRunQueue.target_dag_id).join(AssetModel, AssetModel.id == AssetDagRunQueue.asset_id)
        return list(session.scalars(queue.where(AssetModel.uri == uri)))


def unpause(dag_id: str) -> None:
    from airflow.models.dag import DagModel
    from airflow.utils.session import create_session

    with create_session() as session:
        session.get_one(DagModel, dag_id).is_paused = False
