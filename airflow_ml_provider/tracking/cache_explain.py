"""
Why a step's cache was a hit or a miss: what its run says of it, against what the index has of the run that it was compared with.

Only reads; the words for people are those of ``cli/cache.py``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from airflow_ml_provider.core.canonical import canonical, digest_of
from airflow_ml_provider.core.tracking_values import quoted, tags_filter
from airflow_ml_provider.core.wiring import did_you_mean
from airflow_ml_provider.exceptions import RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow_api import DeniedError, MlflowApi
from airflow_ml_provider.models.cache import CacheEntry, changes
from airflow_ml_provider.tracking.cache_index import CACHE, CACHE_KEY, CACHED_FROM, when
from airflow_ml_provider.tracking.cache_shelf import CacheShelf
from airflow_ml_provider.tracking.experiments import pages_of
from airflow_ml_provider.tracking.runs import Run, run_id_of, tags_of

Verdict = Literal["hit", "miss", "off", "refresh", "none"]
AGAINST = re.compile(r"against the run of (?P<run>.+) \((?P<made>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC)\): (?P<told>.+)", re.DOTALL)
"""What a miss says of the run that it was compared with."""
_NEXT_PART = re.compile(
    r", (?=(?:input|parameter|code|image|command|pipeline|environment|container|volume|package|extra|salt|outputs)\b)"
)
SAMPLE = 1000
"""Runs of a DAG whose tasks are named where there is none of the task."""
TELLING = 8
"""Characters from which on a DAG run's id is looked for inside of a parameter's text; a shorter one may be there by chance."""
_DAY = re.compile(r"\d{4}-?\d\d-?\d\d")


@dataclass(frozen=True)
class Explanation:
    """
    What became of a step's cache.

    :param run: The nested run of the step.
    :param verdict: What its cache did; ``none`` where nobody has asked it.
    :param why: Why it was a miss, in words; empty where :attr:`against` says more.
    :param against: DAG run that a miss was compared with.
    :param made: When that one's result was made; for a hit, when the result was.
    :param changed: What differs from it, in words per part of the key.
    :param same: Names of the parts that do not differ; empty where the index no longer has both.
    :param dated: Those changed parameters and variables that hold the id or the date of their DAG run, as the key names them.
    :param source: Run whose result a hit has; None where it is gone.
    :param kept: The entry that the index has of the run's key now.
    """

    run: Run
    verdict: Verdict
    why: str = ""
    against: str = ""
    made: str = ""
    changed: tuple[str, ...] = ()
    same: tuple[str, ...] = ()
    dated: tuple[str, ...] = ()
    source: Run | None = None
    kept: CacheEntry | None = None


class CacheHistory:
    """
    What runs on one MLflow server say of their caches.

    :param api: The server.
    :param experiment: Name of the only experiment to look at; None for all.
    """

    def __init__(self, api: MlflowApi, experiment: str | None = None) -> None:
        self.api = api
        self.shelf = CacheShelf(api, experiment)
        self.experiments = {str(each["experiment_id"]): each for each in self.shelf.experiments()}

    def runs(self, dag_id: str, task_id: str, dag_run_id: str | None = None, map_index: int | None = None) -> list[Run]:
        """
        Find the runs of a task in one DAG run.

        :param dag_id: Id of the DAG.
        :param task_id: Id of the task.
        :param dag_run_id: The DAG run; None for the newest that MLflow knows.
        :param map_index: The only instance of a mapped task; None for all.
        :return: At least one, by their map index.
        :raises RemoteNotFoundError: there is none on record.
        """
        tags = {"airflow.dag_id": dag_id, "airflow.task_id": task_id}
        narrow = {} if map_index is None else {"airflow.map_index": str(map_index)}
        if dag_run_id is None:
            newest = self._search(tags | narrow, 1)
            dag_run_id = tags_of(newest[0])["airflow.run_id"] if newest else ""
        found = self._search(tags | narrow | {"airflow.run_id": dag_run_id}, None) if dag_run_id else []
        if not found:
            raise RemoteNotFoundError(self._nothing_of(dag_id, task_id, dag_run_id, map_index))
        by_index: dict[int, Run] = {}
        for run in found:  # the newest first: a DAG run that was deleted and made again has older ones
            by_index.setdefault(int(tags_of(run).get("airflow.map_index", "-1")), run)
        return [by_index[index] for index in sorted(by_index)]

    def explain(self, run: Run) -> Explanation:
        """
        Say what became of a step's cache, and why.

        :param run: Its nested run.
        :return: The explanation.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        """
        tags = tags_of(run)
        said, kept = tags.get(CACHE, ""), self._entry(run, tags.get(CACHE_KEY, ""))
        if said == "hit":
            source = self._run(tags.get(CACHED_FROM, ""))
            made = when(kept.made_at_ms) if kept and source and kept.run_id == run_id_of(source) else ""
            return Explanation(run, "hit", source=source, made=made, kept=kept)
        if said in {"off", "refresh"}:
            return Explanation(run, "off" if said == "off" else "refresh", kept=kept)
        if not said.startswith("miss"):
            return Explanation(run, "none", why=said, kept=kept)
        return self._missed(run, said.removeprefix("miss").lstrip(": "), kept)

    def _missed(self, run: Run, why: str, kept: CacheEntry | None) -> Explanation:
        told = AGAINST.fullmatch(why)
        if told is None:
            return Explanation(run, "miss", why, kept=kept)
        before = self._compared_with(run, told["run"], told["made"]) if kept else None
        if kept is None or before is None:
            changed = tuple(_NEXT_PART.split(told["told"]))
            return Explanation(run, "miss", against=told["run"], made=told["made"], changed=changed, kept=kept)
        alike = {name for name, part in before.parts.items() if name in kept.parts and kept.parts[name].digest == part.digest}
        return Explanation(
            run,
            "miss",
            against=told["run"],
            made=told["made"],
            changed=tuple(changes(kept.cache_key, before.cache_key)),
            same=tuple(name for name in kept.parts if name in alike),
            dated=_dated(kept, before, tags_of(run)),
            kept=kept,
        )

    def _compared_with(self, run: Run, dag_run_id: str, made: str) -> CacheEntry | None:
        """Read the entry that the step was compared with, if it is still that one."""
        tags = tags_of(run)
        same = {each: tags.get(each, "") for each in ("airflow.dag_id", "airflow.task_id", "airflow.map_index")}
        for each in self._search(same | {"airflow.run_id": dag_run_id}, 1):
            entry = self._entry(each, tags_of(each).get(CACHE_KEY, ""))
            if entry is not None and (entry.dag_run_id, when(entry.made_at_ms)) == (dag_run_id, made):
                return entry
        return None

    def _entry(self, run: Run, key: str) -> CacheEntry | None:
        experiment, tags = self.experiments.get(str(run["info"]["experiment_id"])), tags_of(run)
        if not key or experiment is None:
            return None
        return self.shelf.entry(experiment, tags["airflow.dag_id"], tags["airflow.task_id"], key)

    def _run(self, run_id: str) -> Run | None:
        try:
            run: Run = self.api.get("runs/get", run_id=run_id)["run"]
        except (RemoteNotFoundError, DeniedError):
            return None
        return run

    def _search(self, tags: Mapping[str, str], max_results: int | None) -> list[Run]:
        if not self.experiments:
            return []
        body: dict[str, Any] = {"experiment_ids": list(self.experiments), "filter": tags_filter("", tags)}
        return pages_of(self.api, "runs/search", body | {"order_by": ["attributes.start_time DESC"]}, "runs", max_results)

    def _nothing_of(self, dag_id: str, task_id: str, dag_run_id: str, map_index: int | None) -> str:
        others = [tags_of(each) for each in self._search({"airflow.dag_id": dag_id}, SAMPLE)]
        if not others:
            return f"MLflow has no run of DAG {dag_id!r}. Check the name, and --experiment and --conn-id."
        tasks = {tags["airflow.task_id"] for tags in others if "airflow.task_id" in tags}
        if task_id not in tasks:
            return f"MLflow has no run of task {task_id!r} of DAG {dag_id!r}.{did_you_mean(task_id, tasks)}"
        index = "" if map_index is None else f" with --map-index {map_index}"
        which = f" in DAG run {quoted(dag_run_id)}" if dag_run_id else ""
        runs = {tags["airflow.run_id"] for tags in others if tags.get("airflow.task_id") == task_id}
        near = "" if dag_run_id in runs or not dag_run_id else did_you_mean(dag_run_id, sorted(runs)[-5:])
        return f"MLflow has no run of task {task_id!r} of DAG {dag_id!r}{which}{index}.{near}"


def _dated(now: CacheEntry, before: CacheEntry, tags: Mapping[str, str]) -> tuple[str, ...]:
    """Name the changed parameters and variables that hold the DAG run's id or date, and so are others each time."""
    run_id, date = tags.get("airflow.run_id", ""), tags.get("airflow.logical_date", "")
    day = date[:10] if _DAY.match(date) else ""
    held = [each for each in (run_id, day, day.replace("-", "")) if each]
    whole = {digest_of(canonical(each)) for each in held}  # of a variable, digest and dates are shown
    return tuple(
        name
        for name, part in now.parts.items()
        if name.startswith(("parameter ", "environment "))
        and (other := before.parts.get(name))
        and other.digest != part.digest
        and (
            part.digest in whole
            or any(each == part.shown or (len(each) >= TELLING and each in part.shown) for each in held)
            or any(each in run_id for each in _dates(name, part.shown))
        )
    )


def _dates(name: str, shown: str) -> list[str]:
    """List what of a part may be the date in the id of its DAG run."""
    if name.startswith("environment "):
        return shown.split(" ")[1:]
    return [shown] if _DAY.search(shown) else []
