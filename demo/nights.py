"""Which nights the demo runs, and what their steps are: values only, nothing is asked or started."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["DAG_ID", "FIRST_NIGHT", "LAST_NIGHT", "Night", "Step", "cached", "choose_nights", "in_order", "steps"]

DAG_ID = "nightly_flight_delays"
ZONE = ZoneInfo("America/New_York")
FIRST_NIGHT = date(2013, 11, 6)
LAST_NIGHT = date(2013, 12, 30)
HOUR = time(2)


@dataclass(frozen=True)
class Night:
    """
    One night of retraining.

    :param day: Its date.
    :param run_id: The DAG run that exists for it already, None when there is none.
    :param state: State of that run.
    """

    day: date
    run_id: str | None = None
    state: str | None = None

    @property
    def logical_date(self) -> datetime:
        """When the DAG's schedule fires in that night."""
        return datetime.combine(self.day, HOUR, ZONE)


@dataclass(frozen=True)
class Step:
    """
    One task instance of a night.

    :param task_id: Its task.
    :param map_index: Which instance of a mapped task, -1 for one that is not mapped.
    :param state: Airflow's state, ``waiting`` when it has none yet.
    :param seconds: How long it ran, or has been running; None before it starts.
    :param try_number: Which try, from 1; 0 before the first.
    """

    task_id: str
    map_index: int
    state: str
    seconds: float | None
    try_number: int

    @property
    def name(self) -> str:
        """The task's id, with the number of the instance if it is mapped."""
        return self.task_id if self.map_index < 0 else f"{self.task_id} [{self.map_index}]"


def choose_nights(runs: Iterable[Mapping[str, Any]], count: int = 2) -> list[Night]:
    """
    Choose the first nights that have not succeeded yet, in order of their dates.

    :param runs: The DAG runs that Airflow has, with ``logical_date``, ``dag_run_id`` and ``state``.
    :param count: How many.
    :return: At most ``count`` nights, fewer where the data ends.
    """
    known = {run["logical_date"] and datetime.fromisoformat(run["logical_date"]).astimezone(UTC): run for run in runs}
    chosen: list[Night] = []
    for offset in range((LAST_NIGHT - FIRST_NIGHT).days + 1):
        night = Night(FIRST_NIGHT + timedelta(days=offset))
        run = known.get(night.logical_date.astimezone(UTC))
        if run and run["state"] == "success":
            continue
        chosen.append(Night(night.day, run["dag_run_id"], run["state"]) if run else night)
        if len(chosen) == count:
            break
    return chosen


def steps(instances: Iterable[Mapping[str, Any]], order: Sequence[str], now: datetime) -> list[Step]:
    """
    Read the steps of a night out of Airflow's task instances.

    :param instances: The task instances as the REST API gives them.
    :param order: Task ids in the order in which to show them.
    :param now: The present, for the seconds of what is running.
    :return: The steps, in that order.
    """
    places = {task_id: place for place, task_id in enumerate(order)}
    found = [
        Step(
            instance["task_id"],
            instance["map_index"],
            instance["state"] or "waiting",
            _seconds(instance, now),
            instance["try_number"] or 0,
        )
        for instance in instances
    ]
    return sorted(found, key=lambda step: (places.get(step.task_id, len(places)), step.map_index))


def cached(instances: Iterable[Mapping[str, Any]], step: Step) -> str:
    """
    Say how much time it saved that a step has taken the result of an earlier night.

    :param instances: The task instances of that night as the REST API gives them.
    :param step: The step.
    :return: Such as ``cached, 4.2 s saved``.
    """
    took = [
        each["duration"] or 0.0 for each in instances if (each["task_id"], each["map_index"]) == (step.task_id, step.map_index)
    ]
    return f"cached, {max(0.0, took[0] - (step.seconds or 0.0)):.1f} s saved" if took else "cached"


def in_order(tasks: Iterable[Mapping[str, Any]]) -> list[str]:
    """
    Order the tasks of a DAG so that each comes after those before it.

    :param tasks: The tasks, each with ``task_id`` and ``downstream_task_ids``.
    :return: Their ids.
    """
    after = {task["task_id"]: set(task["downstream_task_ids"]) for task in tasks}
    ordered: list[str] = []
    while after:
        blocked = set().union(*after.values())
        # A DAG has no cycle, so some task is always free; sorted, so that the order is the same each time.
        ready = sorted(task_id for task_id in after if task_id not in blocked) or sorted(after)
        ordered += ready
        for task_id in ready:
            del after[task_id]
    return ordered


def _seconds(instance: Mapping[str, Any], now: datetime) -> float | None:
    if instance["start_date"] is None:
        return None
    if instance["end_date"] is None:
        return max(0.0, (now - datetime.fromisoformat(instance["start_date"])).total_seconds())
    return float(instance["duration"] or 0)
