"""
The run tree: one MLflow run per DAG run, one nested run per task instance, found by identity and never by try.

MLflow lets no client choose a run's id, so runs are found by the tag ``airflow.key``, and two steps that race to make
the parent settle it afterwards: the oldest wins, the other's children move over, the other is deleted.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any, TypeVar

from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, SupersededError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.run import Attempt, DagRunIdentity, OpenRun, RunStatus

log = logging.getLogger(__name__)

KEY, TRY, TI_ID, STATE = "airflow.key", "airflow.try_number", "airflow.ti_id", "airflow.state"
PARENT = "mlflow.parentRunId"
RACE_MS = 60_000
"""How young the run of a DAG run is when another step may still be about to find out that it has lost the race."""
RUN_NAME_LENGTH = 250  # SQLite takes more, PostgreSQL refuses it
PAIRS_PER_BATCH = 100
"""MLflow's limit of parameters, and of tags, in one log-batch request."""
T = TypeVar("T")
Run = dict[str, Any]
"""A run as MLflow's REST API answers it."""


class RunTree:
    """
    The runs of DAG runs and of their steps on one MLflow server.

    :param api: The server.
    """

    def __init__(self, api: MlflowApi) -> None:
        self.api = api
        self.made_parent = False
        """Whether :meth:`open` made the run of the DAG run, so that this is its first step."""

    def open(self, experiment: str, attempt: Attempt) -> OpenRun:
        """
        Make the runs of a try, or open again those of an earlier one.

        Safe to repeat, and safe when other steps of the DAG run do the same at the same time.

        :param experiment: Name of the MLflow experiment; made when it does not exist.
        :param attempt: The try.
        :return: The nested run.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        :raises ConfigError: the experiment is deleted, or the request was refused; a retry never helps.
        """
        experiment_id = self.experiment_id(experiment)
        found = self.find_parents(experiment_id, attempt.identity)
        parent = self._settle(found) if found else self._make_parent(experiment_id, attempt)
        if status_of(parent) != "RUNNING":  # a finished run was cleared
            self.close(run_id_of(parent), "RUNNING", tags={STATE: "running"})
        nested = self._open_nested(experiment_id, run_id_of(parent), attempt)
        if now_ms() - int(parent["info"].get("start_time", 0)) < RACE_MS:
            parent = self._stay_below_the_winner(nested, parent, attempt)
        if attempt.dag_run_params and not parent["data"].get("params"):
            self._log_dag_run_params(parent, attempt)
        return OpenRun(
            run_id=run_id_of(nested),
            parent_run_id=run_id_of(parent),
            experiment_id=experiment_id,
            artifact_uri=nested["info"]["artifact_uri"],
        )

    def experiment_id(self, name: str) -> str:
        """
        Find an experiment, or make it.

        :param name: Its name.
        :return: Its id.
        :raises ConfigError: it was deleted, or MLflow refuses to make it; a retry never helps.
        """
        try:
            found = self._experiment(name)
        except RemoteNotFoundError:
            try:
                return str(self.api.post("experiments/create", {"name": name}, repeatable=False)["experiment_id"])
            except ConfigError as refused:
                try:
                    found = self._experiment(name)  # another step was quicker
                except RemoteNotFoundError:
                    raise refused from None
        if found["lifecycle_stage"] != "active":
            raise ConfigError(
                f"MLflow experiment {name!r} is deleted. Restore it (mlflow experiments restore -x {found['experiment_id']}), "
                "or set another name (experiment= of the step, [ml] experiment)."
            )
        return str(found["experiment_id"])

    def find_parents(self, experiment_id: str, identity: DagRunIdentity) -> list[Run]:
        """
        Find the MLflow runs of a DAG run.

        :param experiment_id: Where to look.
        :param identity: The DAG run.
        :return: Usually one; several while a race is not settled; oldest first.
        """
        key = DagRunIdentity(dag_id=identity.dag_id, run_id=identity.run_id).key
        return sorted(self.search([experiment_id], f"tags.`{KEY}` = '{key}'"), key=age)

    def find_nested(self, experiment_id: str, attempt: Attempt) -> Run | None:
        """
        Find the nested run that a try belongs to.

        A run of a later try, or of the same try number but of another task instance, is that of a deleted DAG run of the
        same name: it is left alone.

        :param experiment_id: Where to look.
        :param attempt: The try.
        :return: The newest that fits, or None.
        """
        for run in sorted(self.search([experiment_id], f"tags.`{KEY}` = '{attempt.identity.key}'"), key=age, reverse=True):
            tags = tags_of(run)
            if int(tags.get(TRY, "0")) < attempt.try_number or tags.get(TI_ID) == attempt.ti_id:
                return run
        return None

    def check_current(self, run_id: str, attempt: Attempt) -> Run:
        """
        Refuse to write for a try that was overtaken.

        :param run_id: Nested run.
        :param attempt: The try that wants to write.
        :return: The run as it is now.
        :raises SupersededError: the run belongs to a later try by now.
        :raises RemoteNotFoundError: the run was deleted.
        """
        run = self.get(run_id)
        _refuse_superseded(tags_of(run), attempt)
        return run

    def get(self, run_id: str) -> Run:
        """
        Read one run.

        :param run_id: Its id.
        :return: The run.
        :raises RemoteNotFoundError: there is no such run.
        """
        run: Run = self.api.get("runs/get", run_id=run_id)["run"]
        return run

    def search(self, experiment_ids: Iterable[str], filter_string: str) -> list[Run]:
        """
        Search runs that are not deleted, all pages.

        :param experiment_ids: Where to look.
        :param filter_string: In MLflow's search language; the caller quotes values.
        :return: The runs, in no promised order.
        """
        body: dict[str, Any] = {"experiment_ids": list(experiment_ids), "filter": filter_string, "max_results": 1000}
        runs: list[Run] = []
        while True:
            answer = self.api.post("runs/search", body)
            runs += answer.get("runs", [])
            if not answer.get("next_page_token"):
                return runs
            body["page_token"] = answer["next_page_token"]

    def set_tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        """
        Set tags of a run.

        :param run_id: Its id.
        :param tags: Value per key; at most 100.
        """
        if tags:
            self.api.post("runs/log-batch", {"run_id": run_id, "tags": as_pairs(tags)})

    def close(
        self, run_id: str, status: RunStatus, *, end_time_ms: int | None = None, tags: Mapping[str, str] | None = None
    ) -> None:
        """
        Set the status of a run.

        :param run_id: Its id.
        :param status: ``RUNNING`` opens it again.
        :param end_time_ms: Milliseconds since the epoch; None means now, where it ends.
        :param tags: Set first, so that whoever sees the status sees them too.
        """
        self.set_tags(run_id, tags or {})
        body: dict[str, Any] = {"run_id": run_id, "status": status}
        if status != "RUNNING":
            body["end_time"] = end_time_ms or now_ms()
        self.api.post("runs/update", body)

    def _experiment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get("experiments/get-by-name", experiment_name=name)["experiment"]
        return found

    def _make_parent(self, experiment_id: str, attempt: Attempt) -> Run:
        self.made_parent = True
        identity = attempt.identity.dag_run
        tags = {
            KEY: identity.key,
            "airflow.dag_id": identity.dag_id,
            "airflow.run_id": identity.run_id,
            STATE: "running",
        }
        return self._create(experiment_id, identity.run_id, tags | attempt.dag_run_tags)

    def _stay_below_the_winner(self, nested: Run, parent: Run, attempt: Attempt) -> Run:
        """Move a nested run until a look confirms that the parent it has is the one that stays."""
        below = tags_of(nested).get(PARENT)
        while True:
            found = self.find_parents(nested["info"]["experiment_id"], attempt.identity)
            parent = self._settle(found) if found else parent
            if run_id_of(parent) == below:
                return parent
            below = run_id_of(parent)
            self.set_tags(run_id_of(nested), {PARENT: below})

    def _log_dag_run_params(self, parent: Run, attempt: Attempt) -> None:
        """Log the DAG run's params; of steps that do it at the same time MLflow takes one, and refuses the others."""
        for some in batches(attempt.dag_run_params.items(), PAIRS_PER_BATCH):
            try:
                self.api.post("runs/log-batch", {"run_id": run_id_of(parent), "params": as_pairs(dict(some))})
            except ConfigError as error:  # what a DAG run was given must not fail a step of it
                log.info("Another step has logged the params of this DAG run, or MLflow does not take them: %s", error)

    def _open_nested(self, experiment_id: str, parent_run_id: str, attempt: Attempt) -> Run:
        tags = _nested_tags(parent_run_id, attempt)
        # A first try has no earlier run to find; a repeated call of a first try is found by its own id.
        run = self.find_nested(experiment_id, attempt)
        if run is None:
            return self._create(experiment_id, attempt.identity.label, tags)
        self.close(run_id_of(run), "RUNNING", tags=tags)
        return run | {"data": run["data"] | {"tags": as_pairs(tags_of(run) | tags)}}

    def _create(self, experiment_id: str, name: str, tags: Mapping[str, str]) -> Run:
        body = {
            "experiment_id": experiment_id,
            "run_name": name[:RUN_NAME_LENGTH],
            "start_time": now_ms(),
            "tags": as_pairs(tags),
        }
        run: Run = self.api.post("runs/create", body, repeatable=False)["run"]
        return run

    def _settle(self, parents: list[Run]) -> Run:
        """Let the oldest of several parents win; whoever sees the race may do it, in part or twice."""
        winner, *losers = sorted(parents, key=age)
        for loser in losers:
            log.info("Two tasks made the MLflow run of this DAG run: %s stays, %s goes.", run_id_of(winner), run_id_of(loser))
            for child in self.search([winner["info"]["experiment_id"]], f"tags.{PARENT} = '{run_id_of(loser)}'"):
                self.set_tags(run_id_of(child), {PARENT: run_id_of(winner)})
            with suppress(ConfigError):  # somebody else who saw the race has deleted it already
                self.api.post("runs/delete", {"run_id": run_id_of(loser)})
        return winner


def _nested_tags(parent_run_id: str, attempt: Attempt) -> dict[str, str]:
    identity = attempt.identity
    return attempt.tags | {
        KEY: identity.key,
        PARENT: parent_run_id,
        "airflow.dag_id": identity.dag_id,
        "airflow.run_id": identity.run_id,
        "airflow.task_id": identity.task_id,
        "airflow.map_index": str(identity.map_index),
        TRY: str(attempt.try_number),
        TI_ID: attempt.ti_id,
        STATE: "running",
    }


def _refuse_superseded(tags: Mapping[str, str], attempt: Attempt) -> None:
    seen = int(tags.get(TRY, "0"))
    if seen > attempt.try_number or (seen == attempt.try_number and tags.get(TI_ID) != attempt.ti_id):
        raise SupersededError(
            f"step {attempt.identity.label!r}: try {seen} has taken over while try {attempt.try_number} still ran "
            "(its supervisor was lost, or it was cleared). This try records nothing more."
        )


def run_id_of(run: Run) -> str:
    """
    Read a run's id.

    :param run: The run.
    :return: 32 hexadecimal digits.
    """
    return str(run["info"]["run_id"])


def status_of(run: Run) -> str:
    """
    Read a run's status.

    :param run: The run.
    :return: For example ``RUNNING``.
    """
    return str(run["info"]["status"])


def tags_of(run: Run) -> dict[str, str]:
    """
    Read a run's tags.

    :param run: The run.
    :return: Value per key.
    """
    return {each["key"]: each.get("value", "") for each in run["data"].get("tags", [])}


def as_pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    """
    Write a mapping as MLflow's REST API takes it.

    :param values: Value per key.
    :return: List of ``{"key": ..., "value": ...}``; a zero byte, which PostgreSQL does not take, is a question mark.
    """
    return [{"key": key, "value": value.replace("\0", "?")} for key, value in values.items()]


def batches(items: Iterable[T], size: int) -> Iterator[Sequence[T]]:
    """
    Cut something long into what a request takes.

    :param items: In order.
    :param size: How many at most in one batch.
    :return: The batches; none for nothing.
    """
    left = iter(items)
    while some := list(islice(left, size)):
        yield some


def now_ms() -> int:
    """
    Read the clock.

    :return: Milliseconds since the epoch.
    """
    return time.time_ns() // 1_000_000


def age(run: Run) -> tuple[int, str]:
    """
    Say where a run stands among others, oldest first; to sort by.

    :param run: The run.
    :return: When it began, and its id for those that began together.
    """
    return int(run["info"].get("start_time", 0)), run_id_of(run)
