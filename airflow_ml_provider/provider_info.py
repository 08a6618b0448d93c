"""What Airflow is told of this package; called at every start of every Airflow process, so it imports nothing heavy."""

from __future__ import annotations

from typing import Any

PACKAGE = "airflow-ml-provider"
KFP = "Kubeflow Pipelines"
KUBERNETES = "Kubernetes"
KFP_DOCS = "https://www.kubeflow.org/docs/components/pipelines/"


def get_provider_info() -> dict[str, Any]:
    """
    Describe the provider, by Airflow's provider_info schema.

    :return: Connection types, decorators, links, plugins, commands and configuration.
    """
    from airflow_ml_provider._version import __version__
    from airflow_ml_provider.hooks.kfp_connection import kfp_connection
    from airflow_ml_provider.hooks.mlflow_connection import mlflow_connection

    return {
        "package-name": PACKAGE,
        "name": "ML",
        "description": "Nightly retraining on record in MLflow, in plain Airflow DAGs and on Kubeflow Pipelines.",
        "versions": [__version__],
        "integrations": [
            {"integration-name": "MLflow", "external-doc-url": "https://mlflow.org/docs/latest/", "tags": ["service"]},
            {"integration-name": KFP, "external-doc-url": KFP_DOCS, "tags": ["service"]},
            {"integration-name": KUBERNETES, "external-doc-url": "https://kubernetes.io/docs/", "tags": ["service"]},
        ],
        "operators": [
            {
                "integration-name": "MLflow",
                "python-modules": [
                    "airflow_ml_provider.operators.step",
                    "airflow_ml_provider.operators.gate",
                    "airflow_ml_provider.operators.promotion",
                    "airflow_ml_provider.operators.mlflow",
                    "airflow_ml_provider.operators.mlflow_cleanup",
                    "airflow_ml_provider.operators.mlflow_experiments",
                    "airflow_ml_provider.operators.mlflow_models",
                    "airflow_ml_provider.operators.mlflow_predict",
                    "airflow_ml_provider.operators.mlflow_runs",
                ],
            },
            {
                "integration-name": KFP,
                "python-modules": [
                    "airflow_ml_provider.operators.kfp",
                    "airflow_ml_provider.operators.kfp_recurring",
                    "airflow_ml_provider.operators.kfp_resources",
                ],
            },
            {
                "integration-name": KUBERNETES,
                "python-modules": ["airflow_ml_provider.operators.pod", "airflow_ml_provider.operators.pod_function"],
            },
        ],
        "sensors": [
            {"integration-name": "MLflow", "python-modules": ["airflow_ml_provider.sensors.mlflow"]},
            {"integration-name": KFP, "python-modules": ["airflow_ml_provider.sensors.kfp"]},
        ],
        "triggers": [
            {
                "integration-name": "MLflow",
                "python-modules": ["airflow_ml_provider.triggers.mlflow", "airflow_ml_provider.triggers.mlflow_events"],
            },
            {
                "integration-name": KFP,
                "python-modules": ["airflow_ml_provider.triggers.kfp", "airflow_ml_provider.triggers.kfp_events"],
            },
            {"integration-name": KUBERNETES, "python-modules": ["airflow_ml_provider.triggers.pods"]},
        ],
        "hooks": [
            {"integration-name": "MLflow", "python-modules": ["airflow_ml_provider.hooks.mlflow"]},
            {"integration-name": KFP, "python-modules": ["airflow_ml_provider.hooks.kfp"]},
        ],
        "connection-types": [mlflow_connection(), kfp_connection()],
        "extra-links": [
            "airflow_ml_provider.links.mlflow.MlflowRunLink",
            "airflow_ml_provider.links.mlflow.MlflowPageLink",
            "airflow_ml_provider.links.mlflow.MlflowCachedFromLink",
            "airflow_ml_provider.links.kfp.KfpRunLink",
            "airflow_ml_provider.links.kfp.KfpExperimentLink",
            "airflow_ml_provider.links.kfp.KfpPipelineLink",
            "airflow_ml_provider.links.kfp_recurring.KfpRecurringRunLink",
        ],
        "notifications": ["airflow_ml_provider.notifications.alerts.MLAlertNotifier"],
        "task-decorators": [
            {"name": "ml", "class-name": "airflow_ml_provider.decorators.ml.ml_task"},
            {"name": "ml_pod", "class-name": "airflow_ml_provider.decorators.ml_pod.ml_pod_decorator"},
        ],
        "asset-uris": [
            {
                "schemes": ["mlflow"],
                "handler": "airflow_ml_provider.assets.mlflow.normalize_uri",
                "to_openlineage_converter": "airflow_ml_provider.assets.mlflow.to_openlineage",
            }
        ],
        "plugins": [{"name": "airflow_ml", "plugin-class": "airflow_ml_provider.plugin.AirflowMLPlugin"}],
        "cli": ["airflow_ml_provider.cli.definition.get_commands"],
        "config": {"ml": {"description": "Options of airflow-ml-provider.", "options": _options()}},
    }


def _options() -> dict[str, Any]:
    """Write the options of ``config.Settings`` as Airflow's configuration metadata."""
    from airflow_ml_provider.config import Settings

    kinds = {"float": "float", "int": "integer", "bool": "boolean", "str": "string"}
    return {
        name: {
            "description": field.description,
            "version_added": "0.1.0",
            "type": kinds[str(getattr(field.annotation, "__name__", "str"))],
            "example": None,
            # Airflow expands defaults: {AIRFLOW_HOME} is meant so, {dag_id} is ours and doubled.
            "default": str(field.default).replace("{dag_id}", "{{dag_id}}"),
        }
        for name, field in Settings.model_fields.items()
    }
