"""The plugin that Airflow loads in every process: tiny, because one failed import here switches all of it off."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class AirflowMLPlugin(AirflowPlugin):
    """Registers what Airflow discovers through plugins."""

    name = "airflow_ml"
