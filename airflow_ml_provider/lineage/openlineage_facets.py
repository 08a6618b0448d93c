"""
The facets of ours: what OpenLineage has no words for, of a model and of the MLflow run of a task.

Their JSON schemas are the files in ``facets/``, whose ``$id`` is what ``_schemaURL`` names.
"""

from __future__ import annotations

from typing import ClassVar

import attrs
from openlineage.client.facet_v2 import DatasetFacet, RunFacet

from airflow_ml_provider._version import __version__

PRODUCER = f"urn:airflow-ml-provider:{__version__}"
SCHEMAS = "urn:airflow-ml-provider:facets:1-0-0:"
"""Beginning of the schemas' ids; the version is that of their form, and grows when a field does."""
MODEL, RUN = "airflowml_model", "airflowml_run"
"""Under which names they stand: in the facets of a dataset, and in those of a run."""


@attrs.define(kw_only=True)
class ModelDatasetFacet(DatasetFacet):
    """
    What a model is.

    :param name: Name of the registered model, else of the step's output.
    :param version: Version of the registered model; None for one that is not registered.
    :param alias: Alias that was moved to it; None for none.
    :param modelId: Its LoggedModel in MLflow; None for none.
    :param framework: What it was made with, as ``sklearn``; None when unknown.
    :param metrics: Latest value per metric.
    :param mlflowRunId: MLflow run that made it; None when unknown.
    """

    name: str
    version: str | None = None
    alias: str | None = None
    modelId: str | None = None  # noqa: N815  (OpenLineage's spelling)
    framework: str | None = None
    metrics: dict[str, float] = attrs.field(factory=dict)
    mlflowRunId: str | None = None  # noqa: N815
    _additional_skip_redact: ClassVar[list[str]] = ["name", "version", "alias", "modelId", "mlflowRunId", "metrics"]

    @staticmethod
    def _get_schema() -> str:
        return f"{SCHEMAS}ModelDatasetFacet.json#/$defs/ModelDatasetFacet"


@attrs.define(kw_only=True)
class MlflowRunFacet(RunFacet):
    """
    The MLflow run of a task.

    :param runId: Its id.
    :param experimentId: Its experiment.
    :param parentRunId: MLflow run of the DAG run.
    :param url: Its page.
    :param metrics: Latest value per metric.
    :param cachedFromRunId: MLflow run whose result stands for this one's; None where the step has run.
    """

    runId: str  # noqa: N815
    experimentId: str  # noqa: N815
    parentRunId: str  # noqa: N815
    url: str
    metrics: dict[str, float] = attrs.field(factory=dict)
    cachedFromRunId: str | None = None  # noqa: N815
    _additional_skip_redact: ClassVar[list[str]] = ["runId", "experimentId", "parentRunId", "url", "cachedFromRunId", "metrics"]

    @staticmethod
    def _get_schema() -> str:
        return f"{SCHEMAS}MlflowRunFacet.json#/$defs/MlflowRunFacet"
