"""The names that users may import: what has been made, and nothing more."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import pkgutil
import subprocess
import sys
from importlib.metadata import distribution
from typing import Any

import pytest

import airflow_ml_provider
from airflow_ml_provider.provider_info import PACKAGE, get_provider_info

PUBLIC = {
    "airflow_ml_provider": {
        *("Artifact", "Cache", "Dataset", "GpuRequest", "Input", "Metrics", "Model", "Output", "PodOptions"),
        *("__version__", "as_kfp_component", "ml_pod_task", "ml_task"),
    },
    "airflow_ml_provider.assets.mlflow": {
        *("AssetName", "MLAsset", "asset_name", "dataset_asset", "model_asset", "normalize_uri", "to_openlineage"),
    },
    "airflow_ml_provider.components": {"as_kfp_component"},
    "airflow_ml_provider.decorators.ml": {"MLTask", "Step", "make_task", "ml_task", "refuse_multiple_outputs"},
    "airflow_ml_provider.decorators.ml_pod": {"ml_pod_decorator", "ml_pod_task"},
    "airflow_ml_provider.exceptions": {
        *("AirflowMLError", "ArtifactError", "ConfigError", "GateClosedError"),
        *("PredictionError", "RemoteJobError", "RemoteNotFoundError", "RemoteUnavailableError"),
        *("SubmissionUnknownError", "SupersededError", "UnauthorizedError"),
        *("ImagePullError", "NoRoomError", "NodeLostError", "PodConfigError", "PodDeadlineError", "PodDeletedError", "PodError"),
        *("PodEvictedError", "PodFailedError", "PodImageError", "PodNotStartedError", "PodOutOfMemoryError"),
        *("PodPreemptedError", "PodUnreachableError", "StepStoreError"),
    },
    "airflow_ml_provider.hooks.kfp": {"KfpApi", "KfpHook", "filter_text"},
    "airflow_ml_provider.hooks.mlflow": {"MlflowApi", "MlflowHook", "MlflowServer"},
    "airflow_ml_provider.hooks.mlflow_server": {"MlflowServer"},
    "airflow_ml_provider.links.kfp": {"KfpExperimentLink", "KfpPipelineLink", "KfpRunLink", "pages"},
    "airflow_ml_provider.links.kfp_recurring": {"KfpRecurringRunLink", "recurring_run_page"},
    "airflow_ml_provider.links.mlflow": {"MlflowCachedFromLink", "MlflowPageLink", "MlflowRunLink"},
    "airflow_ml_provider.models.gate": {"Gain", "PairedComparison", "Rule", "Verdict"},
    "airflow_ml_provider.models.kfp": {"KfpRunOptions", "PipelineRun", "PipelineTask", "RunState", "WaitOutcome"},
    "airflow_ml_provider.mypy_plugin": {"StepPlugin", "plugin"},
    "airflow_ml_provider.operators.gate": {"ModelGateOperator", "read_rows"},
    "airflow_ml_provider.operators.kfp": {"KfpRunPipelineOperator"},
    "airflow_ml_provider.operators.kfp_recurring": {"KfpCreateRecurringRunOperator", "KfpRecurringRunOperator"},
    "airflow_ml_provider.operators.kfp_resources": {
        *("KfpCreateExperimentOperator", "KfpRunActionOperator", "KfpUploadPipelineOperator"),
    },
    "airflow_ml_provider.notifications.alerts": {"MLAlertNotifier", "alerts_of", "ml_alert", "ml_alerts"},
    "airflow_ml_provider.operators.mlflow": {"MlflowOperator"},
    "airflow_ml_provider.operators.mlflow_cleanup": {"MlflowCleanUpRunsOperator"},
    "airflow_ml_provider.operators.mlflow_experiments": {
        *("MlflowCreateExperimentOperator", "MlflowDeleteExperimentOperator", "MlflowSearchExperimentsOperator"),
    },
    "airflow_ml_provider.operators.mlflow_models": {
        *("MlflowDeleteModelOperator", "MlflowGetModelOperator", "MlflowRegisterModelOperator"),
        *("MlflowRollbackModelOperator", "MlflowSearchModelsOperator", "MlflowUpdateModelOperator", "check_known"),
    },
    "airflow_ml_provider.operators.mlflow_predict": {"MlflowBatchPredictOperator"},
    "airflow_ml_provider.operators.mlflow_runs": {
        *("MlflowFinishRunOperator", "MlflowLogOperator", "MlflowRunActionOperator"),
        *("MlflowSearchRunsOperator", "MlflowStartRunOperator", "checked", "experiment_of", "masked"),
    },
    "airflow_ml_provider.operators.pod": {"MLPodOperator"},
    "airflow_ml_provider.operators.pod_function": {"MLPodFunctionOperator"},
    "airflow_ml_provider.operators.promotion": {"PromoteModelOperator"},
    "airflow_ml_provider.operators.step": {
        "MLStepOperator",
        "StepOperatorMixin",
        "TypedStepMixin",
        "context_keys",
        "plain_values",
    },
    "airflow_ml_provider.plugin": {"AirflowMLPlugin"},
    "airflow_ml_provider.provider_info": {"get_provider_info"},
    "airflow_ml_provider.sensors.kfp": {"KfpRunSensor"},
    "airflow_ml_provider.sensors.mlflow": {
        *("MlflowMetricSensor", "MlflowModelAliasSensor", "MlflowModelVersionSensor", "MlflowRunSensor", "MlflowSensor"),
    },
    "airflow_ml_provider.testing": {"FakeKfpServer", "KfpError", "Request", "Run", "Workflow"},
    "airflow_ml_provider.triggers.kfp": {"KfpRunEventTrigger", "KfpRunTrigger"},
    "airflow_ml_provider.triggers.kfp_events": {"KfpRunEventTrigger"},
    "airflow_ml_provider.triggers.mlflow": {
        *("MlflowModelAliasTrigger", "MlflowModelVersionTrigger", "MlflowWatchTrigger"),
    },
    "airflow_ml_provider.triggers.mlflow_events": {"MlflowModelAliasTrigger", "MlflowModelVersionTrigger"},
    "airflow_ml_provider.triggers.pods": {"PodTrigger"},
}
PACKAGES = {
    *("assets", "cli", "core", "decorators", "hooks", "jobs", "lineage", "links", "listeners", "models", "notifications"),
    *("operators", "plugin", "sensors", "step", "testing", "tracking", "triggers"),
}


def own_names(module: Any) -> set[str]:
    """Classes and functions that a module defines itself, and what it lists as exported."""
    own = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }
    return own | set(getattr(module, "__all__", ()))


NEEDS = {
    "airflow_ml_provider.mypy_plugin": "mypy",
    "airflow_ml_provider.operators.pod_retry_policy": "airflow.sdk.definitions.retry_policy",
    "airflow_ml_provider.triggers.mlflow_stream": "airflow.triggers.shared_stream",
}
"""Modules that are imported only where this is: what older releases of Airflow lack, and a tool."""


def is_here(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def all_modules() -> list[str]:
    return sorted(each.name for each in pkgutil.walk_packages(airflow_ml_provider.__path__, "airflow_ml_provider."))


@pytest.mark.parametrize("name", [each for each in PUBLIC if is_here(NEEDS.get(each, "airflow"))])
def test_a_public_module_offers_these_names_and_no_other(name: str) -> None:
    module = importlib.import_module(name)
    assert own_names(module) == PUBLIC[name]
    assert all(getattr(module, each) is not None for each in PUBLIC[name])


def test_the_import_of_the_package_imports_nothing_else() -> None:
    show = "import sys; before = set(sys.modules); import airflow_ml_provider as ml; print(*sorted(set(sys.modules) - before))"
    named = f"{show}; from airflow_ml_provider import GpuRequest, PodOptions; print('kubernetes' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", named], capture_output=True, text=True, check=True).stdout.splitlines()
    assert [each for each in said[0].split() if each.startswith("airflow")] == [
        "airflow_ml_provider",
        "airflow_ml_provider._version",
    ]
    assert said[1] == "False"


def test_an_unknown_name_is_an_attribute_error_like_anywhere() -> None:
    with pytest.raises(AttributeError, match="module 'airflow_ml_provider' has no attribute 'Datasets'"):
        _ = airflow_ml_provider.Datasets


def test_there_are_no_packages_before_their_time() -> None:
    top = {each.partition("airflow_ml_provider.")[2].partition(".") for each in all_modules()}
    assert {name for name, dot, _ in top if dot} <= PACKAGES
    filled = {name for name, dot, rest in top if rest} | {"plugin"}
    assert filled == PACKAGES


@pytest.mark.parametrize("name", [each for each in all_modules() if is_here(NEEDS.get(each, "airflow"))])
def test_every_module_imports_and_says_what_it_is_for(name: str) -> None:
    module = importlib.import_module(name)
    assert module.__doc__
    assert set(getattr(module, "__all__", ())) <= set(vars(module))


def test_what_airflow_is_told_of_exists() -> None:
    info = get_provider_info()
    names = [each["hook-class-name"] for each in info["connection-types"]]
    names += info["extra-links"] + info["cli"]
    names += [each["class-name"] for each in info["task-decorators"]] + [each["plugin-class"] for each in info["plugins"]]
    for full_name in names:
        module, _, name = full_name.rpartition(".")
        assert hasattr(importlib.import_module(module), name), full_name
    modules = {
        module
        for kind in ("operators", "hooks", "sensors", "triggers")
        for each in info.get(kind, [])
        for module in each["python-modules"]
    }
    assert modules <= PUBLIC.keys()


def test_the_installed_package_registers_what_it_has() -> None:
    found = {(each.group, each.name): each.value for each in distribution(PACKAGE).entry_points}
    assert found == {
        ("apache_airflow_provider", "provider_info"): "airflow_ml_provider.provider_info:get_provider_info",
        ("airflow.plugins", "airflow_ml"): "airflow_ml_provider.plugin:AirflowMLPlugin",
        ("console_scripts", "airflow-ml"): "airflow_ml_provider.cli.main:main",
    }
