"""What every task on a Kubeflow Pipelines server shares: the way in, the errors that end it for good, what it leaves in XCom."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import AirflowFailException, conf

from airflow_ml_provider.config import load_settings
from airflow_ml_provider.exceptions import ConfigError, SubmissionUnknownError, UnauthorizedError
from airflow_ml_provider.hooks.kfp import KfpApi, KfpHook
from airflow_ml_provider.hooks.kfp_server import KfpServer
from airflow_ml_provider.jobs.kfp import KfpJobs
from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog
from airflow_ml_provider.models.kfp import PipelineRun


@dataclass(frozen=True)
class Connected:
    """
    A server, while a task talks to it.

    :param api: Its client.
    :param jobs: Its runs.
    :param catalog: The rest of it.
    :param patience_s: Seconds to wait for it when it is away.
    """

    api: KfpApi
    jobs: KfpJobs
    catalog: KfpCatalog
    patience_s: float


@contextmanager
def connected(kfp_conn_id: str, namespace: str | None = None, server: KfpServer | None = None) -> Iterator[Connected]:
    """
    Open a server for one block of a task.

    :param kfp_conn_id: Its connection.
    :param namespace: Where the task works; None for the connection's own.
    :param server: The connection, where it was read already, which is a request to Airflow; None reads it.
    :return: The server.
    :raises AirflowFailException: in place of :class:`ConfigError` and :class:`SubmissionUnknownError`, which no retry mends.
    """
    settings = load_settings()
    try:
        with KfpApi(server, settings) if server else KfpHook(kfp_conn_id).api(settings) as api:
            yield Connected(api, KfpJobs(api, namespace or ""), KfpCatalog(api, namespace or ""), settings.patience_s)
    except UnauthorizedError:
        raise  # a server that has lost Kubernetes says the same: a retry may help
    except (ConfigError, SubmissionUnknownError) as error:
        raise AirflowFailException(str(error)) from error


def run_reference(run: PipelineRun, url: str) -> dict[str, Any]:
    """
    Write what a task leaves in XCom of a run.

    :param run: The run.
    :param url: Its page.
    :return: Plain JSON.
    """
    return {
        "version": 1,
        "run_id": run.run_id,
        "state": str(run.state),
        "url": url,
        "experiment_id": run.experiment_id,
        "pipeline_id": run.pipeline_id,
        "pipeline_version_id": run.version_id,
    }


def defers(deferrable: bool | None) -> bool:
    """
    Decide whether to wait in the triggerer.

    :param deferrable: What the task says; None leaves it to ``[operators] default_deferrable``.
    :return: Whether to.
    """
    if deferrable is None:
        return bool(conf.getboolean("operators", "default_deferrable", fallback=False))
    return deferrable


def dag_folder(context: Mapping[str, Any]) -> Path | None:
    """
    Find where the path of a package starts.

    :param context: Airflow's context.
    :return: Folder of the DAG file, None for a DAG without one.
    """
    file = getattr(context["ti"].task.dag, "fileloc", "") or ""
    return Path(file).parent if file else None
