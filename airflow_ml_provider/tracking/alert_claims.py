"""
Who tells of a failure when many tasks fail at once, and what the others leave for whoever tells of the end.

MLflow takes one value of a run's parameter and refuses a second one, so the first to log a parameter on the DAG run's MLflow
run has the claim. Where MLflow cannot store it, :mod:`~airflow_ml_provider.tracking.local_claims` stands in for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.run import DagRunIdentity
from airflow_ml_provider.tracking.runs import (
    KEY,
    RACE_MS,
    STATE,
    Run,
    RunTree,
    age,
    as_pairs,
    now_ms,
    run_id_of,
    tags_of,
)

CLAIM, WHY = "airflow.alert", "airflow.alert.why"
"""What the parameters of claims and the tags of reasons begin with, on the MLflow run of the DAG run."""
RECOVERED = "airflow.alert_recovered"
"""Tag of a failed DAG run's MLflow run: the DAG run with which it was told that the DAG works again."""
WHY_LENGTH = 2000
"""Characters that are kept of one task's reason; MLflow keeps 8,000 of a tag."""
STALE_S = 60.0
"""Seconds after which a claim whose holder says nothing is free for whoever fails then: it was killed, or given up."""
TURNS = 5
"""How often a claim can go over to the next; after that each one who fails may tell: better doubled than dropped."""
SETTLE_S = 1.5
"""Seconds that a run which was begun earlier may take to be seen."""
PAUSES_S = (0.5, 1.0, 2.0)
"""How long those who do not tell wait for the MLflow run that whoever tells makes."""
FREE = "free"
"""What is noted of a claim whose holder could not send."""
HEALED = "recovered"
"""What stands for the channel where it was told that a cleared DAG run works again."""
SENT = "sent"
"""What is noted of a message that was sent and has no thread to answer in."""


@dataclass(frozen=True)
class Reason:
    """
    Why a task has failed, as the task left it.

    :param task: Its id with the map index, ``train[3]``.
    :param why: The reason in plain words.
    :param url: Page of its log.
    :param at_ms: When, in milliseconds since the epoch.
    """

    task: str
    why: str
    url: str
    at_ms: int


class AlertBoard:
    """
    What alerts leave on the MLflow run of a DAG run.

    :param api: The server.
    :param dag_run: The DAG run.
    :param experiment: Name of the experiment in which its MLflow run is looked for first, and made.
    :param going: Tells one going of the DAG run from the next.
    """

    def __init__(self, api: MlflowApi, dag_run: DagRunIdentity, experiment: str, going: str) -> None:
        self.api = api
        self.tree = RunTree(api)
        self.dag_run = dag_run
        self.experiment = experiment
        self.going = going
        self.run: Run | None = None
        self._made: Run | None = None

    def find(self) -> Run | None:
        """
        Find the MLflow run of the DAG run, wherever it is.

        :return: The run; None when there is none.
        :raises RemoteUnavailableError: MLflow did not answer.
        """
        self.run = self._look_in(self._named()) or self._look_in(self._all())
        return self.run

    def open(self) -> Run:
        """
        Find the MLflow run of the DAG run, or make one; what is made says that a task has failed.

        :return: The run; the oldest, when others make one at the same time.
        :raises RemoteUnavailableError: MLflow did not answer.
        :raises ConfigError: the experiment is deleted, or MLflow refuses.
        """
        if (found := self.find()) is not None:
            return found
        experiment_id = self.tree.experiment_id(self.experiment)
        tags = {KEY: self.dag_run.key, "airflow.dag_id": self.dag_run.dag_id, "airflow.run_id": self.dag_run.run_id}
        body = {
            "experiment_id": experiment_id,
            "run_name": self.dag_run.run_id,
            "start_time": now_ms(),
            "tags": as_pairs(tags | {STATE: "failed", "airflow.run_type": ""}),
        }
        made: Run = self.api.post("runs/create", body, repeatable=False)["run"]
        self.tree.close(run_id_of(made), "FAILED")  # a step that comes later opens it again
        self.run, self._made = made, made
        self._take_older(experiment_id)
        return self.run

    def wait_for_run(self) -> Run | None:
        """
        Find the MLflow run of the DAG run once whoever tells has made it: 200 tasks must not make one each.

        :return: The run; None when there is none after some seconds.
        :raises RemoteUnavailableError: MLflow did not answer.
        """
        for pause_s in PAUSES_S:
            if (found := self.find()) is not None:
                return found
            time.sleep(pause_s)
        return self.find()

    def claim(self, name: str, token: str) -> bool:
        """
        Take it upon oneself to tell, unless somebody else has.

        :param name: What is to be told, and where.
        :param token: Ones own, as :func:`make_token` gives it.
        :return: Whether it is ours; False when somebody else has sent it, or is about to.
        :raises RemoteUnavailableError: MLflow did not answer, so nobody knows.
        :raises ConfigError: MLflow cannot store it.
        """
        run = self.run or self.open()
        for turn in range(1, TURNS + 1):
            key = _parameter(name, turn)
            holder = self._log(run_id_of(run), key, token)
            if holder == token:
                return self._holds(run, key, token)
            if self._told(name) is not None:
                return False
            if not self._is_free(name, holder) and seconds_between(holder, token) < STALE_S:
                return False
        return True

    def free(self, name: str, token: str) -> None:
        """
        Give a claim back, since the message could not be sent.

        :param name: As for :meth:`claim`.
        :param token: Ones own, with which it was claimed.
        :raises RemoteUnavailableError: MLflow did not answer.
        """
        if self.run is not None:
            self.tree.set_tags(run_id_of(self.run), {_free_tag(name, token): FREE})

    def mark_told(self, name: str, thread: str) -> None:
        """
        Note that it was told.

        :param name: As for :meth:`claim`.
        :param thread: What a later message answers to; empty for nothing.
        :raises RemoteUnavailableError: MLflow did not answer.
        """
        run = self.run or self.open()
        self.tree.set_tags(run_id_of(run), {_told_tag(name): thread or SENT})

    def mark_recovered(self, run_id: str) -> None:
        """
        Note that the recovery from a failed DAG run was told, so that it is told once.

        :param run_id: The failed DAG run's MLflow run; empty where it is an earlier going of this one.
        :raises RemoteUnavailableError: MLflow did not answer.
        """
        if run_id:
            self.tree.set_tags(run_id, {RECOVERED: self.dag_run.run_id})
        else:
            self.mark_told(f"{self.going}.{HEALED}", "")

    def told(self, name: str) -> str | None:
        """
        Say whether it was told.

        :param name: As for :meth:`claim`.
        :return: The thread, empty where the message has none; None when nothing was sent.
        :raises RemoteUnavailableError: MLflow did not answer.
        """
        run = self.run or self.find()
        return None if run is None else self._told(name)

    def told_before(self) -> bool:
        """
        Say whether a failure of an earlier going of the DAG run was told, and no recovery from it.

        :return: Whether there is a mark of one.
        :raises RemoteUnavailableError: MLflow did not answer.
        """
        run = self.run or self.find()
        mine = f"{CLAIM}.{self.going}."
        tags = {key: value for key, value in (tags_of(run) if run else {}).items() if not key.startswith(mine)}
        return _last_told(tags, healed=False) > _last_told(tags, healed=True)

    def write_reason(self, reason: Reason) -> None:
        """
        Leave why a task has failed, for whoever tells of the DAG run's end.

        :param reason: The reason, secrets masked.
        :raises RemoteUnavailableError: MLflow did not answer.
        """
        run = self.run or self.open()
        kept = asdict(reason) | {"why": reason.why[:WHY_LENGTH]}
        self.tree.set_tags(run_id_of(run), {f"{WHY}.{self.going}.{short(reason.task)}": json.dumps(kept)})

    def reasons(self) -> list[Reason]:
        """
        Read what failing tasks have left in this going of the DAG run.

        :return: In the order in which they failed.
        :raises RemoteUnavailableError: MLflow did not answer.
        """
        run = self.run or self.find()
        tags = tags_of(run) if run else {}
        found = []
        for key, value in tags.items():
            if key.startswith(f"{WHY}.{self.going}."):
                with contextlib.suppress(ValueError, TypeError):
                    found.append(Reason(**json.loads(value)))
        return sorted(found, key=lambda each: each.at_ms)

    def _named(self) -> list[str]:
        try:
            found = self.api.get("experiments/get-by-name", experiment_name=self.experiment)["experiment"]
        except RemoteNotFoundError:
            return []
        return [str(found["experiment_id"])]

    def _all(self) -> list[str]:
        answer = self.api.post("experiments/search", {"max_results": 1000})
        return [str(each["experiment_id"]) for each in answer.get("experiments", [])]

    def _look_in(self, experiment_ids: list[str]) -> Run | None:
        if not experiment_ids:
            return None
        found = self.tree.search(experiment_ids, f"tags.`{KEY}` = '{self.dag_run.key}'")
        return min(found, key=age, default=None)

    def _log(self, run_id: str, key: str, token: str) -> str:
        """Log a claim, and say whose it is then."""
        try:
            self.api.post("runs/log-parameter", {"run_id": run_id, "key": key, "value": token})
        except ConfigError:
            self.run = self.tree.get(run_id)
            holder: str | None = {each["key"]: each["value"] for each in self.run["data"].get("params", [])}.get(key)
            if holder is None:
                raise  # it is not refused because of another's
            return holder
        return token

    def _holds(self, run: Run, key: str, token: str) -> bool:
        """Look once more, a little later, where the run is so young that an older one may be under way to MLflow."""
        if now_ms() - int(run["info"].get("start_time", 0)) > RACE_MS:
            return True
        time.sleep(SETTLE_S)
        self.run = run
        self._take_older(str(run["info"]["experiment_id"]))
        return run_id_of(self.run) == run_id_of(run) or self._log(run_id_of(self.run), key, token) == token

    def _take_older(self, experiment_id: str) -> None:
        """Go over to an older run, where there is one by now, and delete the one that was made here."""
        oldest = self._look_in([experiment_id])
        if oldest is None or self.run is None or run_id_of(oldest) == run_id_of(self.run):
            return
        if self._made is not None and run_id_of(self._made) == run_id_of(self.run):
            with contextlib.suppress(ConfigError):  # somebody who saw the race has deleted it already
                self.api.post("runs/delete", {"run_id": run_id_of(self.run)})
        self.run = oldest

    def _is_free(self, name: str, holder: str) -> bool:
        return self.run is not None and _free_tag(name, holder) in tags_of(self.run)

    def _told(self, name: str) -> str | None:
        said = tags_of(self.run).get(_told_tag(name)) if self.run else None
        return "" if said == SENT else said


def is_made_good(tags: Mapping[str, str]) -> bool:
    """
    Say whether it was told of a DAG run that it works again since it was cleared.

    :param tags: Those of its MLflow run, whose status stays failed where no step of ours opens it again.
    :return: Whether that was the last that was told of it.
    """
    return _last_told(tags, healed=True) > _last_told(tags, healed=False)


def _last_told(tags: Mapping[str, str], *, healed: bool) -> tuple[int, ...]:
    """Say when the last going began of which was told that it had failed, or had recovered; nothing where there is none."""
    marks = [key.split(".")[2:] for key in tags if key.startswith(f"{CLAIM}.") and key.endswith(f".{SENT}")]
    found = [going for going, what, *_ in marks if (what == HEALED) is healed and not what.startswith("retry-")]
    return max((tuple(int(each) for each in reversed(going.split("-")) if each) for going in found), default=())


def make_token() -> str:
    """
    Make a token that no other process has.

    :return: The time and some random digits.
    """
    return f"{now_ms()}-{os.urandom(8).hex()}"


def seconds_between(earlier: str, later: str) -> float:
    """
    Say how much older one token is than another; by when they were made, since asking MLflow may take long.

    :param earlier: As :func:`make_token` gave it, on another machine maybe.
    :param later: Another.
    :return: Seconds; 0 where one is no token.
    """
    made = [each.partition("-")[0] for each in (earlier, later)]
    return (int(made[1]) - int(made[0])) / 1000 if all(each.isdigit() for each in made) else 0.0


def claim_name(going: str, group: str, target: Mapping[str, object], channel: str) -> str:
    """
    Name what is to be told, and where; the same in each process.

    :param going: Tells one going of the DAG run from the next.
    :param group: What is told together, its kind before the first blank; empty for the whole DAG run.
    :param target: Where the channel leads, as JSON: two teams of one DAG are told apart by it.
    :param channel: The channel.
    :return: A name that MLflow takes in a parameter's.
    """
    kind = group.partition(" ")[0]
    parts = [going, *([f"{kind}-{short(group)}"] if group else []), f"{channel}-{short(json.dumps(target, sort_keys=True))}"]
    return ".".join(parts)


def short(text: str) -> str:
    """
    Shorten a text to a digest.

    :param text: Any text.
    :return: 12 hexadecimal digits, the same on each machine.
    """
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:12]


def _parameter(name: str, turn: int) -> str:
    return f"{CLAIM}.{name}" if turn == 1 else f"{CLAIM}.{name}.{turn}"


def _free_tag(name: str, token: str) -> str:
    return f"{CLAIM}.{name}.{FREE}.{token}"


def _told_tag(name: str) -> str:
    return f"{CLAIM}.{name}.{SENT}"
