"""What the releases of Airflow that are supported call by different names: for tests, as ``_compat`` is for the package."""

from __future__ import annotations

import importlib
from typing import Any


def _first(*places: str) -> Any:
    """Import the first that this Airflow has, each ``module:name``; the newest place first."""
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ModuleNotFoundError, AttributeError):
            continue
    raise ImportError(f"this Airflow has none of {', '.join(places)}")


DagBag = _first("airflow.dag_processing.dagbag:DagBag", "airflow.models.dagbag:DagBag")
sync_bag_to_db = _first("airflow.dag_processing.dagbag:sync_bag_to_db", "airflow.models.dagbag:sync_bag_to_db")
DagSerialization = _first(
    "airflow.serialization.serialized_objects:DagSerialization", "airflow.serialization.serialized_objects:SerializedDAG"
)
ProvidersOfTasks = _first(
    "airflow.sdk.providers_manager_runtime:ProvidersManagerTaskRuntime", "airflow.providers_manager:ProvidersManager"
)
AirflowTaskTerminated = _first("airflow.sdk.exceptions:AirflowTaskTerminated", "airflow.exceptions:AirflowTaskTerminated")
get_listener_manager = _first("airflow.sdk.listener:get_listener_manager", "airflow.listeners.listener:get_listener_manager")
