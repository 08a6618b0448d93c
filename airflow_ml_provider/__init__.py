"""
Nightly retraining in plain Airflow DAGs, with every dataset, metric, artifact and model on record in MLflow.

::

    from airflow_ml_provider import Dataset, Input, Metrics, Model, Output
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_ml_provider.models.artifact import Artifact, Dataset, Input, Metrics, Model, Output

if TYPE_CHECKING:
    from airflow_ml_provider.decorators.ml import ml_task

__version__ = "0.1.0"
__all__ = ["Artifact", "Dataset", "Input", "Metrics", "Model", "Output", "__version__", "ml_task"]


def __getattr__(name: str) -> Any:
    """Import the decorator when asked for: it needs Airflow, and the types do not."""
    if name == "ml_task":
        from airflow_ml_provider.decorators.ml import ml_task

        return ml_task
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
