"""What a page about a registered model asks of MLflow: its newest versions, their runs and models, and the models of a DAG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.reference import MODEL_ID
from airflow_ml_provider.tracking.lineage_tags import TRAINED
from airflow_ml_provider.tracking.runs import Run

VERSIONS, ALIASED, TRAININGS, MODELS = 50, 10, 25, 100
"""The newest versions of a model; older ones that have an alias; the newest training steps of a DAG; models of one request."""
Version = dict[str, Any]
"""A version as MLflow's REST API answers it."""
Model = dict[str, Any]
"""A LoggedModel as MLflow's REST API answers it."""


def find_versions(api: MlflowApi, name: str, number: str = "") -> list[Version]:
    """
    List versions of a registered model with their aliases, the newest first.

    :param api: The server.
    :param name: Name of the model.
    :param number: Number of a version that is wanted however old it is; empty for none.
    :return: At most 50, and up to ten older ones to which an alias points.
    :raises RemoteNotFoundError: there is no such model.
    :raises ConfigError: MLflow cannot search for such a name; a retry never helps.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    if "'" in name and '"' in name:
        raise ConfigError(f"MLflow cannot search for the model {name!r}, whose name has both kinds of quotes: rename it.")
    model = api.get("registered-models/get", name=name)["registered_model"]
    aliases: dict[str, list[str]] = {}
    for each in model.get("aliases", []):
        aliases.setdefault(str(each["version"]), []).append(str(each["alias"]))
    quote = '"' if "'" in name else "'"
    asked: dict[str, Any] = {"filter": f"name = {quote}{name}{quote}", "max_results": VERSIONS}
    found = api.get("model-versions/search", **asked, order_by="version_number DESC").get("model_versions", [])
    versions = {str(each["version"]): each for each in found}
    older = sorted(aliases.keys() - versions.keys(), key=int, reverse=True)[:ALIASED]
    for old in sorted({*older, *filter(None, [number])} - versions.keys(), key=int, reverse=True):
        try:
            versions[old] = api.get("model-versions/get", name=name, version=old)["model_version"]
        except RemoteNotFoundError:  # deleted meanwhile, or never there
            continue
    return [each | {"aliases": sorted(aliases.get(key, []))} for key, each in versions.items()]


def find_trainings(api: MlflowApi, experiment_id: str, dag_id: str) -> list[Run]:
    """
    Find the newest steps of a DAG that have made models.

    :param api: The server.
    :param experiment_id: Where the DAG's runs are.
    :param dag_id: Id of the DAG; without quotes, as all ids that Airflow takes.
    :return: At most 25 runs.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    words = f"tags.`airflow.dag_id` = '{dag_id}' and tags.`{TRAINED}` != ''"
    body = {"experiment_ids": [experiment_id], "filter": words, "max_results": TRAININGS}
    found: list[Run] = api.post("runs/search", body | {"order_by": ["attributes.start_time DESC"]}).get("runs", [])
    return found


def find_registered(api: MlflowApi, experiment_id: str, model_ids: Sequence[str]) -> list[Model]:
    """
    Read LoggedModels, with one request.

    :param api: The server.
    :param experiment_id: Where they are.
    :param model_ids: Their ids, of which the first 100 are read.
    :return: Those that are there, in the order of the ids.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    wanted = [each for each in model_ids if MODEL_ID.fullmatch(each)][:MODELS]
    if not wanted:
        return []
    words = f"model_id IN ({','.join(repr(each) for each in wanted)})"
    body = {"experiment_ids": [experiment_id], "filter": words, "max_results": len(wanted)}
    found = {each["info"]["model_id"]: each for each in api.post("logged-models/search", body).get("models", [])}
    return [found[each] for each in wanted if each in found]
