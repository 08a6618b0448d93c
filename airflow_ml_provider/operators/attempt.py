"""Reading from Airflow's context who runs: the identity, the try, and what links the record back to Airflow."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import redact

from airflow_ml_provider._version import __version__
from airflow_ml_provider.models.run import Attempt, StepIdentity, mlflow_name, params_as_text

if TYPE_CHECKING:
    from airflow.sdk import Context

GIT_TIMEOUT_S = 5


def read_attempt(context: Context) -> Attempt:
    """
    Read the running try from Airflow's context.

    :param context: As given to ``execute``.
    :return: Identity, try, and the tags of the run and of its parent; nothing secret in them.
    """
    ti: Any = context["ti"]
    map_index = -1 if ti.map_index is None else ti.map_index
    identity = StepIdentity(dag_id=ti.dag_id, run_id=ti.run_id, task_id=ti.task_id, map_index=map_index)
    shared = _shared_tags(context)
    return Attempt(
        identity=identity,
        try_number=ti.try_number,
        ti_id=str(ti.id),
        tags=shared | {"airflow.log_url": ti.log_url, "airflow.operator": ti.task.task_type},
        dag_run_tags=shared | _dag_run_tags(context),
        dag_run_params=redacted_text(dict(context.get("params") or {})),
    )


def redacted_text(values: Mapping[str, Any]) -> dict[str, str]:
    """
    Write values as MLflow parameters, with what Airflow would mask in a log masked.

    :param values: JSON value per name.
    :return: Text per name.
    """
    return params_as_text({name: redact(value, name) for name, value in values.items()})


def _shared_tags(context: Context) -> dict[str, str]:
    from airflow import __version__ as airflow_version

    tags = {
        "mlflow.source.type": "JOB",
        "mlflow.source.name": Path(_file_of(context)).name,
        "mlflow.user": str(getattr(context["ti"].task, "owner", "") or "airflow"),
        "airflow.version": airflow_version,
        "airflow_ml_provider.version": __version__,
    }
    # A run without one (by hand, by an asset) has no place among the nights. The moment in which it was asked for is none:
    # after a replay of last year's data, that would hold back each of last year's nights.
    logical_date = context.get("logical_date")
    if isinstance(logical_date, datetime):
        tags["airflow.logical_date"] = logical_date.isoformat()
    commit = _git_commit(context)
    return tags | ({"mlflow.source.git.commit": commit} if commit else {})


def _dag_run_tags(context: Context) -> dict[str, str]:
    dag_run: Any = context["dag_run"]
    run_type = getattr(dag_run.run_type, "value", dag_run.run_type)
    tags = {"airflow.run_type": str(run_type)}
    if dag_run.conf:
        tags |= {mlflow_name(f"airflow.conf.{key}"): text for key, text in redacted_text(dag_run.conf).items()}
    return tags


def _file_of(context: Context) -> str:
    return str(getattr(context["ti"].task.dag, "fileloc", "") or "")


def _git_commit(context: Context) -> str | None:
    """Read the commit of the DAG bundle, else that of the checkout that holds the DAG file."""
    version = getattr(context["dag_run"], "bundle_version", None)
    file = _file_of(context)
    if version or not file:
        return version
    try:
        asked = subprocess.run(  # noqa: S603  (a fixed command; git is looked up in PATH on purpose)
            ["git", "-C", str(Path(file).parent), "rev-parse", "HEAD"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None
