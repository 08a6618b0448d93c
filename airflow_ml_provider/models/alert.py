"""What an alert says, and which alerts are wanted: the values between who notices, who renders and who sends."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

AlertKind = Literal["task_failed", "dag_failed", "retry", "late", "recovered", "gate_rejected", "promoted", "rolled_back"]
"""What an alert is about."""
Severity = Literal["info", "warning", "critical"]
"""How grave it is: the colour of the message, and the word before its subject."""
Channel = Literal["slack", "email"]
"""Where an alert goes."""
CHANNELS: tuple[Channel, ...] = ("slack", "email")


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AlertRule(_Value):
    """
    Where alerts of one kind go, and how grave they are.

    :param severity: How grave.
    :param channels: Where they go, of those that were given; none switches the kind off.
    """

    severity: Severity
    channels: tuple[Channel, ...] = CHANNELS


class AlertRules(_Value):
    """
    Which alerts are wanted: one rule per kind; None switches a kind off.

    :param task_failed: The first task of a DAG run that has failed for good.
    :param dag_failed: The end of a DAG run that has failed: how many tasks, and which.
    :param retry: A task has failed and is tried again; off unless it is asked for.
    :param late: A DAG run has not ended in time.
    :param recovered: A DAG run has ended well after one that had failed.
    :param gate_rejected: A gate has not let a challenger through.
    :param promoted: A model has become the champion.
    :param rolled_back: A champion was taken back.
    """

    task_failed: AlertRule | None = AlertRule(severity="critical")
    dag_failed: AlertRule | None = AlertRule(severity="critical")
    retry: AlertRule | None = None
    late: AlertRule | None = AlertRule(severity="warning")
    recovered: AlertRule | None = AlertRule(severity="info")
    gate_rejected: AlertRule | None = AlertRule(severity="warning")
    promoted: AlertRule | None = AlertRule(severity="info")
    rolled_back: AlertRule | None = AlertRule(severity="warning")

    def of(self, kind: AlertKind) -> AlertRule | None:
        """
        Give the rule of one kind.

        :param kind: The kind.
        :return: Its rule; None when it is off.
        """
        rule: AlertRule | None = getattr(self, kind)
        return rule


class AlertLink(_Value):
    """
    A page that helps.

    :param text: What the button says, ``Task log``.
    :param url: Its address, ``https://`` or ``http://``.
    """

    text: str
    url: str


class Failure(_Value):
    """
    A task that failed.

    :param task: Its id, with the map index: ``train[3]``.
    :param why: The reason in plain words, one paragraph; empty when it is not known.
    :param url: Its log; empty when it is not known.
    """

    task: str
    why: str = ""
    url: str = ""


class TrendPoint(_Value):
    """
    A metric's value in one DAG run.

    :param at: When the run began.
    :param value: The value; finite.
    """

    at: datetime
    value: float


class Trend(_Value):
    """
    A metric over the last DAG runs.

    :param metric: Its name.
    :param points: Oldest first; at least two.
    :param limit: Least value that the gate lets through; None when there is none.
    """

    metric: str
    points: tuple[TrendPoint, ...] = Field(min_length=2)
    limit: float | None = None


class Alert(_Value):
    """
    One message to people: facts alone, already masked, not yet escaped or cut.

    Whatever is not known is left at its default, and the message is silent about it.

    :param kind: What it is about.
    :param severity: How grave it is.
    :param at: When it happened, with a time zone.
    :param dag_id: Id of the DAG; empty for what no DAG did.
    :param run_id: Id of the DAG run.
    :param task: Id of the task with the map index, ``train[3]``; empty where it is about the whole DAG run.
    :param try_number: Which try it was, from 1.
    :param tries: How many tries it has.
    :param why: The reason in plain words, first sentence first: ``out of memory at 64 GiB on node x. Give it more ...``.
    :param detail: A traceback or the last lines of a log; as long as it is.
    :param failures: The tasks that failed, in order; for the end of a DAG run. It may hold fewer than ``failed``.
    :param failed: How many tasks failed.
    :param told: Whether an earlier message has told of this DAG run's failure, so that this one closes it.
    :param ended_well: Whether the DAG run has ended well all the same.
    :param last_worked: When a run of this DAG last ended well.
    :param took_s: Seconds that the task, or the DAG run where there is no task, has taken.
    :param champion: What serves meanwhile: ``flight-delays version 3``; empty without a registered model.
    :param model: What a gate, a promotion or a rollback was about: ``flight-delays version 4``.
    :param trend: The metric that the gate looks at, over the last runs.
    :param links: Pages that help, the most useful first.
    """

    kind: AlertKind
    severity: Severity
    at: datetime
    dag_id: str = ""
    run_id: str = ""
    task: str = ""
    try_number: int | None = None
    tries: int | None = None
    why: str = ""
    detail: str = ""
    failures: tuple[Failure, ...] = ()
    failed: int = 0
    told: bool = False
    ended_well: bool = False
    last_worked: datetime | None = None
    took_s: float | None = None
    champion: str = ""
    model: str = ""
    trend: Trend | None = None
    links: tuple[AlertLink, ...] = ()
