"""
What MLflow knows that belongs into an alert: the task's own record, the last good run, the champion, how the metric went.

Read from the records alone, which every process of Airflow can reach, so that a message says the same wherever it comes
from. All look-ups are of one DAG, newest first, and few.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.alert import Trend, TrendPoint
from airflow_ml_provider.models.gate import Rule
from airflow_ml_provider.models.run import DagRunIdentity, StepIdentity
from airflow_ml_provider.tracking.alert_claims import RECOVERED, is_made_good
from airflow_ml_provider.tracking.registry import CHAMPION, ModelRegistry, RegisteredVersion
from airflow_ml_provider.tracking.runs import KEY, PARENT, TRY, Run, age, run_id_of, tags_of

NIGHTS = 14
"""How many DAG runs the trend goes back."""
FAILED_NESTED = 200
"""How many failed tasks of a DAG run are looked up at most."""
DECISION, PROMOTED = "airflow.gate.decision", "airflow.promotion.version"
"""Tags by which the runs of gates and of promotions are found."""
ERROR = "airflow.error"


@dataclass(frozen=True)
class Champion:
    """
    The version that serves.

    :param version: The version.
    :param alias: Its alias.
    """

    version: RegisteredVersion
    alias: str

    @property
    def label(self) -> str:
        """Its name for people: ``flight-delays version 3``."""
        return f"{self.version.name} version {self.version.version}"


class AlertFacts:
    """
    Look-ups about one DAG on one MLflow server; each raises what the server's client raises.

    :param api: The server.
    :param experiment_id: Experiment of the DAG's runs.
    :param dag_run: The DAG run that an alert is about.
    """

    def __init__(self, api: MlflowApi, experiment_id: str, dag_run: DagRunIdentity) -> None:
        self.api = api
        self.experiment_id = experiment_id
        self.dag_run = dag_run

    def nested(self, step: StepIdentity, try_number: int | None = None) -> Run | None:
        """
        Find the run of a task.

        :param step: The task.
        :param try_number: Its try; a run whose record is of an earlier try is not its own. None takes any.
        :return: The newest; None when there is none.
        """
        for run in sorted(self._search(f"tags.`{KEY}` = '{step.key}'", 10), key=age, reverse=True):
            if try_number is None or tags_of(run).get(TRY) == str(try_number):
                return run
        return None

    def failed_nested(self, parent_run_id: str) -> list[Run]:
        """
        Find the tasks of a DAG run whose own record says that they failed.

        :param parent_run_id: The DAG run's MLflow run.
        :return: In the order in which they ended.
        """
        found = self._search(f"tags.`{PARENT}` = '{parent_run_id}' and attributes.status = 'FAILED'", FAILED_NESTED)
        return sorted(found, key=lambda run: int(run["info"].get("end_time") or 0))

    def last_worked(self) -> datetime | None:
        """
        Say when a run of the DAG last ended well.

        :return: The time; None when no record says so.
        """
        for run in self._dag_runs("and attributes.status = 'FINISHED'", 2):
            ended = int(run["info"].get("end_time") or 0)
            if ended and tags_of(run).get(KEY) != self.dag_run.key:
                return datetime.fromtimestamp(ended / 1000, UTC)
        return None

    def previous_failed(self) -> Run | None:
        """
        Find the DAG run before this one, of those that have ended, if it had failed.

        Where a DAG has no steps of ours, only its failures are on record: so one after which recovery was told counts as good.

        :return: Its run; None when its record says that it went well, and when there is none.
        """
        for run in self._dag_runs("", 10):
            tags, status = tags_of(run), run["info"]["status"]
            if tags.get(KEY) != self.dag_run.key and status in ("FINISHED", "FAILED"):
                return run if status == "FAILED" and RECOVERED not in tags and not is_made_good(tags) else None
        return None

    def champion(self, model: str = "") -> Champion | None:
        """
        Say which version serves.

        :param model: Name of the registered model; empty takes what the DAG has promoted last.
        :return: The champion; None when there is none, or no model.
        """
        name, alias = model, CHAMPION
        if not name:
            for run in self._dag_tasks(PROMOTED, 1):
                params = params_of(run)
                name, alias = params.get("name", ""), params.get("alias", CHAMPION)
        version = ModelRegistry(self.api).find(name, alias) if name else None
        return Champion(version, alias) if version else None

    def trend(self) -> Trend | None:
        """
        Read the metric that the DAG's gate looks at, over the last runs.

        :return: The metric; None where no gate has left two values.
        """
        gates = self._dag_tasks(DECISION, NIGHTS)
        if not gates:
            return None
        metric, limit = _looked_at(params_of(gates[0]))
        values = {tags_of(run).get("airflow.run_id", run_id_of(run)): run for run in reversed(gates)}  # the newest gate of each
        points = [point for run in values.values() if (point := _point(run, metric)) is not None]
        if len(points) < 2:  # noqa: PLR2004  (a line has two ends)
            return None
        return Trend(metric=metric, points=tuple(sorted(points, key=lambda each: each.at)), limit=limit)

    def compare_page(self, champion: Champion) -> str:
        """
        Give the page that shows this DAG run's model beside the champion's.

        :param champion: The champion.
        :return: The address; empty unless both have a run of the same task.
        """
        theirs = champion.version.run_id
        if not theirs:
            return ""
        tags = tags_of(self.api.get("runs/get", run_id=theirs)["run"])
        place = {"task_id": tags.get("airflow.task_id", ""), "map_index": int(tags.get("airflow.map_index", "-1"))}
        ours = self.nested(StepIdentity.model_validate(self.dag_run.model_dump() | place)) if place["task_id"] else None
        if ours is None or run_id_of(ours) == theirs:
            return ""
        return self.api.server.compare_page(self.experiment_id, [run_id_of(ours), theirs])

    def page(self, run: Run) -> str:
        """
        Give the page of a run.

        :param run: The run.
        :return: Its address.
        """
        return self.api.server.run_page(str(run["info"]["experiment_id"]), run_id_of(run))

    def _dag_runs(self, more: str, limit: int) -> list[Run]:
        """Find runs of DAG runs, newest first; only they say of which type the DAG run was."""
        return self._search(f"{self._of_dag()} and tags.`airflow.run_type` != 'none' {more}".strip(), limit)

    def _dag_tasks(self, tag: str, limit: int) -> list[Run]:
        """Find runs of tasks that have left a certain tag, newest first."""
        return self._search(f"{self._of_dag()} and tags.`{tag}` != 'none'", limit)

    def _of_dag(self) -> str:
        return f"tags.`airflow.dag_id` = '{self.dag_run.dag_id}'"

    def _search(self, query: str, limit: int) -> list[Run]:
        body = {
            "experiment_ids": [self.experiment_id],
            "filter": query,
            "order_by": ["attributes.start_time DESC"],
            "max_results": limit,
        }
        found: list[Run] = self.api.post("runs/search", body).get("runs", [])
        return found


def params_of(run: Run) -> dict[str, str]:
    """
    Read a run's parameters.

    :param run: The run.
    :return: Text per name.
    """
    return {each["key"]: each.get("value", "") for each in run["data"].get("params", [])}


def _looked_at(params: Mapping[str, str]) -> tuple[str, float | None]:
    """Say which metric a gate judges by, and the least value that it lets through."""
    rules = [rule for text in _json(params.get("rules", ""), list) if (rule := _rule(text)) is not None]
    floors = [rule for rule in rules if rule.sign in (">=", ">")]
    metric = str(_json(params.get("compare", ""), dict).get("metric", ""))
    chosen = next((rule for rule in floors if rule.metric == metric), None)
    if metric and (chosen or not floors):
        return metric, chosen.limit if chosen else None
    first = next(iter(floors or rules), None)
    return (first.metric, first.limit if floors else None) if first else ("", None)


def _rule(text: object) -> Rule | None:
    try:
        return Rule.parse(str(text))
    except ConfigError:
        return None


def _json(text: str, kind: type) -> Any:
    try:
        found = json.loads(text)
    except ValueError:
        return kind()
    return found if isinstance(found, kind) else kind()


def _point(run: Run, metric: str) -> TrendPoint | None:
    values = {each["key"]: float(each["value"]) for each in run["data"].get("metrics", [])}
    value = values.get(metric, values.get(f"challenger_{metric}", math.nan))  # a rule's metric, or one that was compared
    at = datetime.fromtimestamp(int(run["info"].get("start_time", 0)) / 1000, UTC)
    return TrendPoint(at=at, value=value) if math.isfinite(value) else None
