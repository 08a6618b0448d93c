"""What a page about a DAG asks of MLflow: DAG runs, their steps, a step, files of a run; each bounded, the newest first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

from airflow_ml_provider.config import load_settings
from airflow_ml_provider.exceptions import RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.hooks.mlflow_api import HASTY_S
from airflow_ml_provider.tracking.reconcile import find_experiments
from airflow_ml_provider.tracking.runs import KEY, PARENT, Run, age, run_id_of, tags_of

BUDGET_S = 6.0
"""Seconds that all requests of one page may take; whoever opens it waits for them, and a thread of the API server."""
DAG_RUNS, STEPS, FILES = 25, 100, 200
"""How many of each are on one page."""
_SAME = 10


class PageApi(MlflowApi):
    """
    A client for one page: each request is sent once and given up after 2 s, and all of them together after 6 s.

    :param server: Where to, and as whom.
    """

    def __init__(self, server: MlflowServer) -> None:
        settings = load_settings()
        super().__init__(
            server,
            settings.model_copy(update={"http_retries": 0, "http_timeout_s": min(HASTY_S, settings.http_timeout_s)}),
        )
        self._until = time.monotonic() + BUDGET_S

    def check_time(self) -> None:
        """
        Say whether there is time for another request, or another piece of a file.

        :raises RemoteUnavailableError: there is not.
        """
        if time.monotonic() > self._until:
            raise RemoteUnavailableError(f"MLflow at {self.server.url} takes longer than a page can wait ({BUDGET_S:.0f} s).")

    def _send(self, method: str, url: str, *, repeatable: bool = True, **request: Any) -> httpx.Response:
        self.check_time()
        return super()._send(method, url, repeatable=repeatable, **request)

    def _transfer_timeout(self, size: int) -> httpx.Timeout:  # noqa: ARG002  (a page shows small files alone)
        return httpx.Timeout(self.settings.http_timeout_s)


@dataclass(frozen=True)
class Listed:
    """
    A part of a list.

    :param runs: Its runs.
    :param more: What MLflow gives for the next part; empty at the end.
    """

    runs: Sequence[Run]
    more: str = ""


def find_dag_runs(api: MlflowApi, dag_id: str, experiment: str, token: str = "") -> Listed:
    """
    List the runs of a DAG that have an MLflow run, the newest first.

    :param api: The server.
    :param dag_id: Id of the DAG; without quotes, as all ids that Airflow takes.
    :param experiment: Name of the experiment to look into first; all others come next.
    :param token: What :attr:`Listed.more` gave; empty for the newest.
    :return: At most 25.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    words = f"tags.`airflow.dag_id` = '{dag_id}' and tags.`airflow.run_type` != 'none'"
    first = _experiment(api, experiment)
    found = _list(api, first, words, DAG_RUNS, token) if first else Listed(())
    # A token is of the list that it was given with; steps that name an experiment have none in the first.
    return found if found.runs else _list(api, find_experiments(api), words, DAG_RUNS, token)


def find_run(api: MlflowApi, key: str, experiment: str) -> Run | None:
    """
    Look up the MLflow run of a DAG run, or of a task in one.

    :param api: The server.
    :param key: Of its identity.
    :param experiment: Name of the experiment to look into first; all others come next.
    :return: The run: of two for a DAG run the one that stays, of two for a task the newer. None when the server has none.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    words = f"tags.`{KEY}` = '{key}'"
    found = _list(api, _experiment(api, experiment), words, _SAME).runs or _list(api, find_experiments(api), words, _SAME).runs
    parents = [each for each in found if PARENT not in tags_of(each)]
    return min(parents, key=age) if parents else max(found, key=age, default=None)


def find_steps(api: MlflowApi, parent: Run, token: str = "") -> Listed:
    """
    List what is nested below the run of a DAG run, in the order in which it began.

    :param api: The server.
    :param parent: The run of the DAG run.
    :param token: What :attr:`Listed.more` gave; empty for the first.
    :return: At most 100; of two runs of one task the newer.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    words = f"tags.`{PARENT}` = '{run_id_of(parent)}'"
    listed = _list(api, [str(parent["info"]["experiment_id"])], words, STEPS, token, "ASC")
    newest = {tags_of(each).get(KEY, run_id_of(each)): each for each in listed.runs}
    return Listed(list(newest.values()), listed.more)


def folder_of(run: Run) -> str | None:
    """
    Say where MLflow's artifact proxy keeps the files of a run.

    :param run: The run.
    :return: Path below the proxy's root; None where MLflow does not proxy them: what lies elsewhere, a page does not read.
    """
    where = urlsplit(str(run["info"].get("artifact_uri", "")))
    return where.path.strip("/") if where.scheme == "mlflow-artifacts" else None


def list_files(api: MlflowApi, folder: str) -> list[dict[str, Any]]:
    """
    List one folder of a run's files.

    :param api: The server.
    :param folder: Path below the proxy's root.
    :return: At most 200 entries of :meth:`MlflowApi.list_files`; none where there is no such folder.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    try:
        found = api.list_files(folder)
    except RemoteNotFoundError:
        return []
    return [each for each in found if "/" not in str(each["path"]).strip("/")][:FILES]


def read_file(api: PageApi, path: str, limit: int) -> bytes:
    """
    Read the beginning of a file.

    :param api: The server.
    :param path: Path below the proxy's root.
    :param limit: Bytes.
    :return: As many at most.
    :raises RemoteNotFoundError: there is no such file.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    found = bytearray()
    with api.download(path) as pieces:
        for piece in pieces:
            found += piece
            if len(found) >= limit:
                break
            api.check_time()
    return bytes(found[:limit])


def _experiment(api: MlflowApi, name: str) -> list[str]:
    try:
        return find_experiments(api, name)
    except RemoteNotFoundError:
        return []


def _list(api: MlflowApi, experiment_ids: Sequence[str], words: str, limit: int, token: str = "", order: str = "DESC") -> Listed:
    if not experiment_ids:
        return Listed(())
    body: dict[str, Any] = {"experiment_ids": list(experiment_ids), "filter": words, "max_results": limit}
    body |= {"order_by": [f"attributes.start_time {order}"]} | ({"page_token": token} if token else {})
    answer = api.post("runs/search", body)
    return Listed(answer.get("runs", []), answer.get("next_page_token", ""))
