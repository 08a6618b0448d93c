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


def _listeners() -> list[Any]:
    """Return the listener modules to register; none when it is switched off, or cannot be imported."""
    try:
        from airflow_ml_provider._compat import read_option

        if (read_option("ml", "listeners") or "True").strip().lower() in _OFF:
            return []
        from airflow_ml_provider.listeners import runs
    except Exception:  # the plugin must load whatever is wrong with the listeners
        log.exception("The listeners of airflow-ml-provider are off.")
        return []
    return [runs]


class AirflowMLPlugin(AirflowPlugin):
    """Registers what Airflow discovers through plugins."""

    name = "airflow_ml"
    listeners = _listeners()
