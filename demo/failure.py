"""What went wrong in a step, in a few lines: read from the log that Airflow wrote of its last try."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from demo.nights import Step

__all__ = ["error_lines", "explain_failure", "log_path"]


def log_path(logs: Path, dag_id: str, run_id: str, step: Step) -> Path:
    """
    Give the place of the log of a step's last try.

    :param logs: Airflow's folder of task logs.
    :param dag_id: Id of the DAG.
    :param run_id: Id of the run.
    :param step: The step.
    :return: The file, as Airflow's default template names it.
    """
    place = logs / f"dag_id={dag_id}" / f"run_id={run_id}" / f"task_id={step.task_id}"
    if step.map_index >= 0:
        place /= f"map_index={step.map_index}"
    return place / f"attempt={step.try_number}.log"


def error_lines(log: Iterable[str], count: int = 8) -> list[str]:
    """
    Find the error in a task log.

    :param log: Lines of JSON, one event each.
    :param count: How many lines at most.
    :return: The exception with the place where it was raised; without one the last lines of the log.
    """
    told: list[str] = []
    failure: list[str] = []
    for line in log:
        try:
            event = json.loads(line)
        except ValueError:
            event = {"event": line.rstrip()}
        told.append(str(event.get("event", "")))
        if event.get("error_detail"):
            failure = _exception(event["error_detail"])
    return (failure or told)[-count:]


def explain_failure(logs: Path, dag_id: str, run_id: str, steps: Sequence[Step]) -> str:
    """
    Say why a run failed.

    :param logs: Airflow's folder of task logs.
    :param dag_id: Id of the DAG.
    :param run_id: Id of the run.
    :param steps: All steps of the run.
    :return: The first failed step, its error, and where its log is.
    """
    failed = [step for step in steps if step.state == "failed"]
    if not failed:
        states = ", ".join(f"{step.name} {step.state}" for step in steps) or "it has no steps"
        return f"Run {run_id} failed without a failed step: {states}."
    path = log_path(logs, dag_id, run_id, failed[0])
    try:
        with path.open(encoding="utf-8", errors="replace") as stream:
            lines = error_lines(stream)
    except OSError:
        lines = ["(it wrote no log)"]
    tail = "\n".join(f"    {line}" for line in lines)
    return f"The step {failed[0].name} failed:\n{tail}\nIts log: {path}"


def _exception(detail: Sequence[dict[str, Any]]) -> list[str]:
    """Put Airflow's structured traceback into words: the last places of the last exception, then what it says."""
    last = detail[-1] if detail else {}
    frames = last.get("frames") or []
    lines = [f"{frame.get('filename')}:{frame.get('lineno')} in {frame.get('name')}" for frame in frames[-2:]]
    said = f"{last.get('exc_type', 'Error')}: {last.get('exc_value', '')}".splitlines()
    return [*lines, *said]
