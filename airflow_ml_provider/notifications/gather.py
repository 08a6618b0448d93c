"""What MLflow adds to an alert: the claim, why the task failed, and facts; whatever it does not answer in time is left out."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from airflow_ml_provider.exceptions import AirflowMLError
from airflow_ml_provider.models.alert import Channel, Failure, Trend
from airflow_ml_provider.models.run import StepIdentity
from airflow_ml_provider.notifications.context import AlertSource
from airflow_ml_provider.notifications.reasons import masked, reason_and_log
from airflow_ml_provider.tracking.alert_claims import WHY, AlertBoard, Reason
from airflow_ml_provider.tracking.alert_facts import ERROR, AlertFacts, Champion
from airflow_ml_provider.tracking.runs import Run, run_id_of, tags_of

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class Gathered:
    """
    What was found so far; filled in one thread while another one waits.

    :param mine: Per channel whether this process has the claim; a channel that is not in it was not answered.
    :param told: Per channel the thread of the opening message that was sent, empty where it has none.
    :param why: What the task's own record says of its end.
    :param detail: The end of the log that its record holds.
    :param run_page: The task's MLflow run, else the DAG run's.
    :param compare_page: Its model beside the champion's.
    :param last_worked: When the DAG last ended well.
    :param champion: What serves.
    :param trend: How the metric of the gate went.
    :param failures: Tasks of the DAG run that have failed, as far as records say so, in order.
    :param had_failed: Whether the DAG run before this one, or an earlier going of this one, had failed; None until it is known.
    :param failed_at: When that one had ended.
    :param failed_why: The last reason that it has left.
    :param recovered_run: MLflow run of the DAG run before, where that had failed.
    """

    mine: dict[Channel, bool] = field(default_factory=dict)
    told: dict[Channel, str] = field(default_factory=dict)
    why: str = ""
    detail: str = ""
    run_page: str = ""
    compare_page: str = ""
    last_worked: datetime | None = None
    champion: str = ""
    trend: Trend | None = None
    failures: tuple[Failure, ...] = ()
    had_failed: bool | None = None
    failed_at: datetime | None = None
    failed_why: str = ""
    recovered_run: str = ""


class Gatherer:
    """
    Asks MLflow what an alert needs, the most important first; runs in a thread of its own, and raises nothing.

    :param board: What alerts leave on the DAG run's MLflow run.
    :param source: What happened.
    :param model: Name of the registered model; empty finds it.
    """

    def __init__(self, board: AlertBoard, source: AlertSource, model: str) -> None:
        self.board = board
        self.source = source
        self.model = model
        self.found = Gathered()

    def claim(self, names: Mapping[Channel, str], token: str) -> None:
        """
        Find out which channels are this process's to tell.

        :param names: Name of the claim per channel.
        :param token: Ones own.
        """
        for channel, name in names.items():
            mine = self._try("claim", lambda name=name: self.board.claim(name, token))  # type: ignore[misc]
            if mine is not None:
                self.found.mine = {**self.found.mine, channel: mine}

    def look_at_opening(self, names: Mapping[Channel, str]) -> None:
        """
        Find out on which channels the opening message was sent.

        :param names: Name of the claim per channel.
        """
        for channel, name in names.items():
            thread = self._try("opening", lambda name=name: self.board.told(name))  # type: ignore[misc]
            if thread is not None:
                self.found.told = {**self.found.told, channel: thread}

    def leave_reason(self, *, tells: bool) -> None:
        """
        Leave why the task has failed, for whoever tells of the DAG run's end.

        :param tells: Whether this process tells of the failure now, and so has made the MLflow run if there was none.
        """
        source, step = self.source, self.source.step
        if step is None or (not tells and self._try("MLflow run", self.board.wait_for_run) is None):
            return
        if not (source.why or self.found.why):
            self.read_task()
        why = source.why or self.found.why
        reason = Reason(task=step.label, why=why, url=source.task_log, at_ms=int(source.at.timestamp() * 1000))
        self._try("reason", lambda: self.board.write_reason(reason))

    def read_task(self) -> None:
        """Read the task's own record."""
        source, step = self.source, self.source.step
        if step is None:
            return
        facts = self._facts()
        run = self._try("record", lambda: facts.nested(step, source.try_number)) if facts else None
        if facts and run:
            self.found.run_page = facts.page(run)
            self.found.why, self.found.detail = (masked(each) for each in reason_and_log(tags_of(run).get(ERROR, "")))

    def read_dag_run(self) -> None:
        """Read which tasks of the DAG run have failed, and why."""
        parent, facts = self.board.run, self._facts()
        left = self._try("reasons", self.board.reasons) or []
        failures = {each.task: Failure(task=each.task, why=each.why, url=each.url) for each in left}
        records = self._try("records", lambda: facts.failed_nested(run_id_of(parent))) if facts and parent else None
        for run in records or []:
            tags = tags_of(run)
            place = {"task_id": tags.get("airflow.task_id", ""), "map_index": int(tags.get("airflow.map_index", "-1"))}
            label = StepIdentity.model_validate(self.source.dag_run.model_dump() | place).label
            known = failures.get(label)
            if known is None or not known.why:
                failures[label] = Failure(
                    task=label, why=masked(reason_and_log(tags.get(ERROR, ""))[0]), url=tags.get("airflow.log_url", "")
                )
        self.found.failures = tuple(failures.values())

    def read_before(self) -> None:
        """Read whether the DAG run before this one had failed; of a cleared one, whether an earlier going of it had."""
        if self.source.cleared:  # a newer DAG run may have failed since: this one does not make it good
            failed = self.board.run if self._try("earlier going", self.board.told_before) else None
        else:
            facts = self._facts()
            failed = self._try("run before", facts.previous_failed) if facts else None
            self.found.recovered_run = run_id_of(failed) if failed else ""
        self.found.had_failed = bool(failed)
        if failed:
            self._read_failed(failed)

    def _read_failed(self, run: Run) -> None:
        """Read when and why the DAG run that is made good had failed, from what its tasks have left."""
        tags = tags_of(run)

        def last() -> tuple[int, str]:
            left = [json.loads(value) for key, value in tags.items() if key.startswith(f"{WHY}.")]
            return max(((int(each["at_ms"]), str(each["why"])) for each in left), default=(0, ""))

        at_ms, why = self._try("reasons", last) or (0, "")
        at_ms = at_ms or int(run["info"].get("end_time") or 0)
        self.found.failed_why = masked(why)
        self.found.failed_at = datetime.fromtimestamp(at_ms / 1000, UTC) if at_ms else None

    def read_facts(self) -> None:
        """Read what is the same for every kind of alert; each one is there as soon as it was read."""
        facts = self._facts()
        if facts is None:
            return
        if not self.found.run_page and self.board.run is not None:
            self.found.run_page = facts.page(self.board.run)
        self.found.last_worked = self._try("last success", facts.last_worked)
        champion: Champion | None = self._try("champion", lambda: facts.champion(self.model))
        self.found.champion = champion.label if champion else ""
        self.found.trend = self._try("trend", facts.trend)
        if champion is not None:
            self.found.compare_page = self._try("page to compare", lambda: facts.compare_page(champion)) or ""

    def _facts(self) -> AlertFacts | None:
        run = self.board.run or self._try("MLflow run", self.board.find)
        experiment_id = str(run["info"]["experiment_id"]) if run else self._try("experiment", self._experiment_id)
        return AlertFacts(self.board.api, experiment_id, self.source.dag_run) if experiment_id else None

    def _experiment_id(self) -> str:
        found = self.board.api.get("experiments/get-by-name", experiment_name=self.board.experiment)["experiment"]
        return str(found["experiment_id"])

    def _try(self, what: str, ask: Callable[[], T]) -> T | None:
        """Ask; what is not answered is left out of the message."""
        try:
            return ask()
        except AirflowMLError as error:
            log.info("An alert goes without the %s that MLflow holds: %s", what, error)
        except Exception as error:  # noqa: BLE001  (a client that was closed while it waited, or an answer of no known form)
            log.info("An alert goes without the %s that MLflow holds: %s", what, type(error).__name__)
        return None
