"""
Nightly retraining in plain Airflow DAGs, with every dataset, metric, artifact and model on record in MLflow.

::

    from airflow_ml_provider import Dataset, Input, Metrics, Model, Output
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from airflow_ml_provider._version import __version__

if TYPE_CHECKING:
    from airflow_ml_provider.components import as_kfp_component
    from airflow_ml_provider.decorators.ml import ml_task
    from airflow_ml_provider.decorators.ml_pod import ml_pod_task
    from airflow_ml_provider.models.artifact import Artifact, Dataset, Input, Metrics, Model, Output
    from airflow_ml_provider.models.cache import Cache
    from airflow_ml_provider.models.pod_options import PodOptions
    from airflow_ml_provider.models.resources import GpuRequest

__all__ = [
    "Artifact",
    "Cache",
    "Dataset",
    "GpuRequest",
    "Input",
    "Metrics",
    "Model",
    "Output",
    "PodOptions",
    "__version__",
    "as_kfp_component",
    "ml_pod_task",
    "ml_task",
]

_HOMES = {
    "Cache": "airflow_ml_provider.models.cache",
    "GpuRequest": "airflow_ml_provider.models.resources",
    "PodOptions": "airflow_ml_provider.models.pod_options",
    "as_kfp_component": "airflow_ml_provider.components",
    "ml_pod_task": "airflow_ml_provider.decorators.ml_pod",
    "ml_task": "airflow_ml_provider.decorators.ml",
}


def __getattr__(name: str) -> Any:
    """Import a name when asked for: `airflow-ml --help` and Airflow's start need none of them, nor pydantic."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "airflow_ml_provider.models.artifact")), name)
    globals()[name] = value
    return value
