"""The message's content: what the context says, what Airflow and MLflow have answered, in one value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from airflow_ml_provider.core.alert_reasons import why_rolled_back
from airflow_ml_provider.core.alert_text import first_sentence, moment
from airflow_ml_provider.models.alert import Alert, AlertLink, AlertRule, AlertRules, Failure, Severity
from airflow_ml_provider.notifications.context import AlertSource
from airflow_ml_provider.notifications.gather import Gathered
from airflow_ml_provider.notifications.reasons import DAG_REASONS, WORDLESS, masked
from airflow_ml_provider.tracking.registry import Promotion

FAILURES = 50
"""How many failed tasks a message carries; the count is of all of them."""
RUNNING = ("running", "deferred", "queued", "scheduled", "up_for_retry", "up_for_reschedule", "restarting")
"""States of a task instance that is not done, nearest to its end first."""
ABOUT_ITSELF = ("promoted", "rolled_back")
"""Kinds that are about the champion: no other one stays meanwhile."""
_USER = re.compile(r"^(https?://)[^/?#]*@")
_MAPPED = re.compile(r"(.+)_(\d+)")


@dataclass(frozen=True)
class Asked:
    """
    What Airflow has answered.

    :param states: State per task of the DAG run, ``train_3`` for a mapped one; empty when unknown.
    :param last_worked: When a DAG run of an earlier date last ended well; None when unknown.
    :param had_failed: Whether the DAG run before this one had failed; None when unknown.
    """

    states: Mapping[str, str] = field(default_factory=dict)
    last_worked: datetime | None = None
    had_failed: bool | None = None


def build_alert(
    source: AlertSource, asked: Asked, found: Gathered, *, severity: Severity, told: bool = False, model: str = ""
) -> Alert:
    """
    Put together what an alert says.

    :param source: What happened.
    :param asked: What Airflow has answered.
    :param found: What MLflow has answered.
    :param severity: How grave it is.
    :param told: Whether an earlier message has told of this DAG run's failure on the same channel.
    :param model: What a gate or a promotion was about.
    :return: The alert.
    """
    failures = list_failures(source, asked.states, found) if source.kind == "dag_failed" else []
    ended = source.ended or source.at
    return Alert(
        kind=source.kind,
        severity=severity,
        at=source.at,
        dag_id=source.dag_id,
        run_id=source.run_id,
        task=source.label,
        try_number=source.try_number,
        tries=source.tries,
        why=masked(_why(source, asked, found, failures)),
        detail=masked(source.detail or found.detail),
        failures=tuple(_fit_to_show(each) for each in failures[:FAILURES]),
        failed=len(failures),
        told=told,
        ended_well=source.ended_well,
        last_worked=asked.last_worked or found.last_worked,
        took_s=max(0.0, (ended - source.began).total_seconds()) if source.began else None,
        champion="" if source.kind in ABOUT_ITSELF else found.champion,
        model=model,
        trend=found.trend,
        links=tuple(_links(source, found)),
    )


def build_rolled_back(done: Promotion, alias: str, page: str, at: datetime) -> Alert:
    """
    Put together what is told of a rollback by hand, which no DAG did.

    :param done: How the aliases stand after it.
    :param alias: The alias that was moved.
    :param page: The model's page in MLflow.
    :param at: When.
    :return: The alert.
    """
    rule = AlertRules().of("rolled_back") or AlertRule(severity="warning")
    return Alert(
        kind="rolled_back",
        severity=rule.severity,
        at=at,
        model=f"{done.name} version {done.previous}",
        champion=f"{done.name} version {done.version}",
        why=why_rolled_back(done.name, alias, done.version),
        links=(AlertLink(text="Model in MLflow", url=_without_user(page)),),
    )


def list_failures(source: AlertSource, states: Mapping[str, str], found: Gathered) -> list[Failure]:
    """
    List the tasks that failed: those with a reason in the order in which they failed, then the others.

    :param source: The DAG run.
    :param states: As Airflow has answered; empty when it has not.
    :param found: What MLflow has answered: those that have left a record.
    :return: The tasks. What Airflow counts as failed, where it has answered: a record may be of an earlier going.
    """
    failed = [name for name, state in states.items() if state == "failed"]
    by_name = {_state_name(each.task): each for each in found.failures}
    if not states:
        return list(by_name.values())
    told = [each for name, each in by_name.items() if name in failed]
    # Of very many not each one writes its reason; of few, one without a record has had no time to write it.
    why = WORDLESS if found.run_page and len(failed) <= FAILURES else ""
    return told + [_failure(source, name, why) for name in failed if name not in by_name]


def _failure(source: AlertSource, name: str, why: str) -> Failure:
    """Name a failed task of which only Airflow knows."""
    task_id, index = name, ""
    mapped = _MAPPED.fullmatch(name)
    if mapped and name not in source.task_ids and mapped[1] in source.task_ids:
        task_id, index = mapped[1], mapped[2]
    page = f"{source.dag_run_page}/tasks/{task_id}" if source.dag_run_page else ""
    if not index:
        return Failure(task=task_id, why=why, url=page)
    return Failure(task=f"{task_id}[{index}]", why=why, url=f"{page}/mapped/{index}" if page else "")


def _fit_to_show(failure: Failure) -> Failure:
    return failure.model_copy(update={"why": masked(failure.why), "url": _without_user(failure.url)})


def _without_user(url: str) -> str:
    """Take the login out of an address: a reader of the message has an own one."""
    return _USER.sub(r"\1", url)


def _state_name(label: str) -> str:
    """Write ``train[3]`` as Airflow names it among the states."""
    return label.replace("[", "_").rstrip("]")


def _why(source: AlertSource, asked: Asked, found: Gathered, failures: list[Failure]) -> str:
    if source.kind == "late":
        return _why_late(source, asked.states)
    if source.kind == "dag_failed":  # the tasks in the list say why themselves
        return "" if source.why == DAG_REASONS["task_failure"] and failures else source.why
    if source.kind == "recovered":
        return _why_recovered(source, found, asked.last_worked or found.last_worked)
    why = source.why or found.why
    return why or (WORDLESS if source.kind in ("task_failed", "retry") else "")


def _why_recovered(source: AlertSource, found: Gathered, worked: datetime | None) -> str:
    """Say what had been wrong, as far as the records know."""
    if not (found.failed_why or found.failed_at):
        return ""
    who = "it failed before it was cleared" if source.cleared and not found.recovered_run else "the DAG run before it failed"
    reason, _ = first_sentence(" ".join(found.failed_why.split()))
    since = ""
    if worked:
        since = f" It had not worked since {moment(worked)}."
    elif found.failed_at:
        since = f" That was on {moment(found.failed_at)}."
    return f"{who}: {reason}.{since}" if reason else f"{who}.{since}"


def _why_late(source: AlertSource, states: Mapping[str, str]) -> str:
    due = f" by {source.due:%Y-%m-%d %H:%M} {source.due.tzname() or 'UTC'}" if source.due else " by now"
    busy = [name for state in RUNNING for name, each in states.items() if each == state]
    if busy:
        more = f" and {len(busy) - 3} more" if len(busy) > 3 else ""  # noqa: PLR2004  (three names fit one line)
        return f"It should have ended{due}. Not done yet: {', '.join(busy[:3])}{more}."
    return f"It should have ended{due}, and has not."


def _links(source: AlertSource, found: Gathered) -> list[AlertLink]:
    pages = [
        ("Task log", source.task_log),
        ("DAG run", "" if source.step else source.dag_run_page),
        ("MLflow run", found.run_page),
        ("KFP run", source.kfp_run),
        ("Compare with champion", found.compare_page),
    ]
    known = [(text, _without_user(url)) for text, url in pages if url.startswith(("http://", "https://"))]
    return [AlertLink(text=text, url=url) for text, url in known]
