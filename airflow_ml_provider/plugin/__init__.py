"""
The plugin that Airflow loads in every process: tiny, because one failed import here switches all of it off.

A registered listener makes Airflow refuse DAGs with a task that has ``end_from_trigger=True`` (``DagBag.bag_dag`` in
``airflow/dag_processing/dagbag.py``: "Listeners are not supported with end_from_trigger=True"), whoever wrote the DAG.
``[ml] listeners = False`` registers none; then the next run of a DAG and ``airflow-ml reconcile`` close what is left open.
"""

from __future__ import annotations

import logging
from typing import Any

from airflow.plugins_manager import AirflowPlugin

log = logging.getLogger(__name__)
_OFF = {"false", "f", "no", "n", "off", "0"}
_PREFIX = "/airflow-ml"


def _listeners() -> list[Any]:
    """Return the listener modules to register; none when it is switched off, or cannot be imported."""
    try:
        from airflow.providers.common.compat.sdk import conf

        if (conf.get("ml", "listeners", fallback=None) or "True").strip().lower() in _OFF:
            return []
        from airflow_ml_provider.listeners import runs
    except Exception:  # the plugin must load whatever is wrong with the listeners
        log.exception("The listeners of airflow-ml-provider are off.")
        return []
    return [runs]


class _LazyPages:
    """Our pages as an ASGI application that is made at the first request: of Airflow's processes, one has any use for it."""

    def __init__(self) -> None:
        self._app: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self._app is None:
            self._app = _pages()
        await self._app(scope, receive, send)


def _pages() -> Any:
    """Make the application; where this Airflow lacks what it needs, one that says so and shows nothing."""
    try:
        from airflow_ml_provider.plugin.web import make_app

        return make_app()
    except Exception:  # only our pages are to be missing, not the API server's other answers
        log.exception("The pages of airflow-ml-provider are off.")
        from starlette.responses import PlainTextResponse

        return PlainTextResponse("The pages of airflow-ml-provider cannot be shown: see the log of the API server.", 503)


_APPS: list[Any] = [{"name": "airflow-ml", "app": _LazyPages(), "url_prefix": _PREFIX}]
# Relative addresses: Airflow's UI may live below a path. A path could not hold every id of a DAG run, so that is in the query.
_VIEWS: list[Any] = [
    {
        "name": "MLflow",
        "href": f"{_PREFIX[1:]}/dags/{{DAG_ID}}/run?run_id={{RUN_ID}}",
        "destination": "dag_run",
        "url_route": "mlflow-run",
    },
    {"name": "MLflow", "href": f"{_PREFIX[1:]}/dags/{{DAG_ID}}", "destination": "dag", "url_route": "mlflow-dag"},
    {
        "name": "MLflow",
        "href": f"{_PREFIX[1:]}/dags/{{DAG_ID}}/run/step?run_id={{RUN_ID}}&task_id={{TASK_ID}}&map_index={{MAP_INDEX}}",
        "destination": "task_instance",
        "url_route": "mlflow-step",
    },
]


class AirflowMLPlugin(AirflowPlugin):
    """Registers what Airflow discovers through plugins."""

    name = "airflow_ml"
    listeners = _listeners()
    fastapi_apps = _APPS
    external_views = _VIEWS
