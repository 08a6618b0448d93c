"""One look at MLflow for somebody who waits: what is asked, and how the answer is read. Nothing is remembered between looks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.core.watch import fits, judge_alias, judge_metric, judge_run, judge_versions
from airflow_ml_provider.core.watch_search import ROWS, run_filter, version_filter
from airflow_ml_provider.exceptions import RemoteNotFoundError
from airflow_ml_provider.models.watch import (
    AliasQuestion,
    MetricQuestion,
    RunQuestion,
    SeenRun,
    SeenVersion,
    Sight,
    Tags,
    VersionQuestion,
)

if TYPE_CHECKING:
    from airflow_ml_provider.hooks.mlflow import MlflowApi

REASON = "airflow.error"
"""Tag in which a step of ours says why it failed."""
PAGES = 10_000
"""Pages of one list, at most: a server whose pages never end is broken."""


@singledispatch
def look(question: object, api: MlflowApi) -> Sight:
    """
    Look once.

    :param question: What is waited for.
    :param api: The server.
    :return: What was seen.
    :raises RemoteUnavailableError: the server did not answer; a retry is safe.
    :raises ConfigError: the request, the credentials or the address are wrong; a retry never helps.
    """
    raise TypeError(f"{type(question).__name__} is no question, of {api.server.conn_id}")


@look.register(RunQuestion)
def _(question: RunQuestion, api: MlflowApi) -> Sight:
    return judge_run(question, find_run(api, question.run_id, question.experiment, question.tags))


@look.register(MetricQuestion)
def _(question: MetricQuestion, api: MlflowApi) -> Sight:
    return judge_metric(question, find_run(api, question.run_id, question.experiment, question.tags))


@look.register(AliasQuestion)
def _(question: AliasQuestion, api: MlflowApi) -> Sight:
    try:
        found = api.get("registered-models/alias", name=question.model, alias=question.alias)["model_version"]
    except RemoteNotFoundError:
        return judge_alias(question, None)
    return judge_alias(question, read_version(found))


@look.register(VersionQuestion)
def _(question: VersionQuestion, api: MlflowApi) -> Sight:
    token, filter_string = "", version_filter([question.model], question.tags)
    for _ in range(PAGES):
        answer = search_versions(api, filter_string, token)
        sight = judge_versions(question, [read_version(each) for each in answer.get("model_versions", [])])
        token = answer.get("next_page_token", "")
        if sight.state == "seen" or not token:
            return sight
    return sight


def find_run(api: MlflowApi, run_id: str, experiment: str, tags: Tags) -> SeenRun | None:
    """
    Find a run by its id, or the newest one of an experiment with some tags.

    :param api: The server.
    :param run_id: Its id; empty to search.
    :param experiment: Name of the experiment; one that does not exist has no runs.
    :param tags: Tags that it has.
    :return: The run, one in MLflow's bin too where its id was given; None for none.
    :raises RemoteUnavailableError: the server did not answer; a retry is safe.
    """
    try:
        if run_id:
            return read_run(api.get("runs/get", run_id=run_id)["run"])
        found = api.get("experiments/get-by-name", experiment_name=experiment)["experiment"]
    except RemoteNotFoundError:
        return None
    body = {"experiment_ids": [found["experiment_id"]], "filter": run_filter(tags), "max_results": ROWS}
    runs = api.post("runs/search", body | {"order_by": ["attributes.start_time DESC"]}).get("runs", [])
    return next((run for each in runs if _has(run := read_run(each), each, tags)), None)


def find_version(api: MlflowApi, model: str, version: str) -> SeenVersion | None:
    """
    Read one version.

    :param api: The server.
    :param model: Name of the registered model.
    :param version: Its number.
    :return: The version; None when the server says that there is none.
    :raises RemoteUnavailableError: the server did not answer; a retry is safe.
    """
    try:
        return read_version(api.get("model-versions/get", name=model, version=version)["model_version"])
    except RemoteNotFoundError:
        return None


def search_versions(api: MlflowApi, filter_string: str, token: str = "") -> dict[str, Any]:
    """
    Ask for one page of versions, newest first.

    :param api: The server.
    :param filter_string: As :func:`~airflow_ml_provider.core.watch_search.version_filter` writes it.
    :param token: Of the page; empty for the first.
    :return: MLflow's answer: ``model_versions`` and, if there is more, ``next_page_token``.
    :raises RemoteUnavailableError: the server did not answer; a retry is safe.
    """
    given = {"filter": filter_string, "page_token": token}
    order = "creation_timestamp DESC"
    return api.get("model-versions/search", max_results=ROWS, order_by=order, **{key: v for key, v in given.items() if v})


def read_run(answer: Mapping[str, Any]) -> SeenRun:
    """
    Read MLflow's JSON of a run.

    :param answer: A ``run``.
    :return: The run.
    """
    info, data = answer["info"], answer.get("data", {})
    return SeenRun(
        run_id=info["run_id"],
        experiment_id=str(info.get("experiment_id", "")),
        status=info.get("status", "RUNNING"),
        metrics={each["key"]: float(each.get("value", 0.0)) for each in data.get("metrics", [])},
        error=_tags(data).get(REASON, ""),
        deleted=info.get("lifecycle_stage") == "deleted",
    )


def read_version(answer: Mapping[str, Any]) -> SeenVersion:
    """
    Read MLflow's JSON of a version.

    :param answer: A ``model_version``.
    :return: The version.
    """
    return SeenVersion(
        model=answer["name"],
        version=str(answer["version"]),
        created_ms=int(answer.get("creation_timestamp", 0)),
        run_id=answer.get("run_id") or "",
        source=answer.get("source") or "",
        tags=_tags(answer),
    )


def _has(run: SeenRun, answer: Mapping[str, Any], tags: Tags) -> bool:
    """Compare exactly, as a database may compare texts without their case; what is in the bin is not meant."""
    version = SeenVersion(model="", version="", tags=_tags(answer.get("data", {})))
    return not run.deleted and fits(version, "", tags)


def _tags(holder: Mapping[str, Any]) -> dict[str, str]:
    return {each["key"]: each.get("value", "") for each in holder.get("tags", [])}
