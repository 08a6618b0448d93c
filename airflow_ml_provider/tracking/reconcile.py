"""
Settling what no step could: MLflow runs that are open although Airflow says that they have ended, or knows them no more.

Knows nothing of Airflow's database: whoever calls says how to ask (:data:`AirflowState`). Three rules: a run that Airflow
says is running is never closed; *unreadable* is never *deleted*; and since MLflow has no compare-and-set, what could have
changed between question and answer is looked at again after each write, and put back.
"""

from __future__ import annotations

import copy
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from airflow_ml_provider.core.states import DAG_RUN_STATUS, task_status
from airflow_ml_provider.exceptions import AirflowMLError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.run import Attempt, DagRunIdentity, RunStatus, StepIdentity
from airflow_ml_provider.tracking.runs import (
    KEY,
    PARENT,
    STATE,
    TI_ID,
    TRY,
    Run,
    RunTree,
    age,
    now_ms,
    run_id_of,
    status_of,
    tags_of,
)

log = logging.getLogger(__name__)

DELETED = "deleted"
RECONCILED = "airflow.reconciled"
DAG_ID, RUN_ID, LOG_URL = "airflow.dag_id", "airflow.run_id", "airflow.log_url"
EARLIER_DAG_RUNS, EARLIER_LIMIT_S, EARLIER_PAGE = 5, 5.0, 200
AT_WORK = {"running", "restarting"}
_OPEN = "attributes.status = 'RUNNING'"
_MAPPED = re.compile(r"(.+)_(\d+)")
Action = Literal["closed", "moved", "left"]


class AirflowView(NamedTuple):
    """
    What Airflow says of one DAG run.

    :param state: State of the DAG run, or ``deleted``.
    :param tasks: State per task id and map index (-1 when it is not mapped).
    :param ended_at_ms: When the DAG run ended, milliseconds since the epoch; None when it runs, or is not known.
    """

    state: str
    tasks: Mapping[tuple[str, int], str | None]
    ended_at_ms: int | None = None

    @property
    def over(self) -> bool:
        """Whether nothing of the DAG run will run any more, unless somebody clears it."""
        return DAG_RUN_STATUS.get(self.state, "RUNNING") != "RUNNING"


AirflowState = Callable[[str, str], AirflowView]
"""
Asks Airflow about ``(dag_id, run_id)``. It raises RemoteUnavailableError when Airflow cannot be read, and
RemoteNotFoundError when that Airflow does not know the DAG at all, so that nothing can be said of its runs.
"""


@dataclass(frozen=True)
class Finding:
    """
    What became of one MLflow run.

    :param action: ``closed`` (its status was set), ``moved`` (it got its parent back), or ``left`` as it was.
    :param run_id: Its id.
    :param dag_run: The DAG run that it belongs to.
    :param label: Name of the step, ``train[3]``; empty for the run of the DAG run itself.
    :param before: Its status.
    :param after: Its status now; in a dry run, the status that it would get.
    :param why: The reason, for people.
    :param problem: Whether it was left because something could not be read.
    """

    action: Action
    run_id: str
    dag_run: DagRunIdentity
    label: str
    before: str
    after: str
    why: str
    problem: bool = False

    def __str__(self) -> str:
        name = " ".join(filter(None, (self.dag_run.dag_id, self.dag_run.run_id, self.label)))
        change = f"{self.before} -> {self.after}" if self.action == "closed" else self.before
        return f"{self.action:6} {name} ({self.run_id}): {change}; {self.why}"


class Reconciler:
    """
    Brings the runs of one MLflow server to what Airflow says of them.

    :param tree: The runs.
    :param airflow_state: Asks Airflow.
    :param home: Root URL of this Airflow's UI. A run whose log link leads elsewhere is another Airflow's, and is not called
        deleted because this one does not know it. Empty: not known, so nothing is told apart.
    :param dry_run: Whether to change nothing and only say what would change.
    """

    def __init__(self, tree: RunTree, airflow_state: AirflowState, *, home: str = "", dry_run: bool = False) -> None:
        self.tree = tree
        self.airflow_state = airflow_state
        self.home = home.rstrip("/")
        self.dry_run = dry_run

    def walk(self, experiment: str | None = None) -> Iterator[Finding]:
        """
        Settle every DAG run that has an open run of ours.

        :param experiment: Name of one experiment; None means all.
        :return: What was found, as it is found.
        :raises RemoteNotFoundError: there is no such experiment.
        :raises RemoteUnavailableError: MLflow did not answer; what was found before stays settled; a retry is safe.
        """
        experiment_ids = find_experiments(self.tree.api, experiment)
        if not experiment_ids:
            return
        for dag_run in _dag_runs_of(self.tree.search(experiment_ids, f"{_OPEN} and tags.`{DAG_ID}` != ''")):
            yield from self.settle(experiment_ids, dag_run)

    def settle(self, experiment_ids: Iterable[str], dag_run: DagRunIdentity) -> list[Finding]:
        """
        Settle one DAG run; calling it again finds nothing to do.

        :param experiment_ids: Where its runs are.
        :param dag_run: The DAG run.
        :return: What was done to its runs, and which open ones were left; empty when it has none of ours.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        """
        # First what MLflow says, then what Airflow says: the other way round, a try that begins in between looks ended.
        runs = find_runs(self.tree, experiment_ids, dag_run)
        if not runs:
            return []
        try:
            view = self.airflow_state(dag_run.dag_id, dag_run.run_id)
        except (RemoteUnavailableError, RemoteNotFoundError) as error:
            unreadable = isinstance(error, RemoteUnavailableError)
            return [_left(run, str(error), problem=unreadable) for run in runs if status_of(run) == "RUNNING"]
        if view.state == DELETED and (other := self._other_airflow(runs)):
            return [_left(run, other) for run in runs if status_of(run) == "RUNNING"]
        parents = sorted((run for run in runs if PARENT not in tags_of(run)), key=age)
        nested = sorted((run for run in runs if PARENT in tags_of(run)), key=age)
        moved = [self._move(run, parents[0]) for run in _strays(nested, parents)]
        return moved + self._settle_nested(nested, view) + self._settle_parents(parents, nested, view)

    def _settle_nested(self, nested: list[Run], view: AirflowView) -> list[Finding]:
        newest = {tags_of(run).get(KEY): run_id_of(run) for run in nested}
        found = []
        for run in nested:
            identity, status = _step_of(run), status_of(run)
            place = (identity.task_id, identity.map_index)
            state = view.tasks.get(place, "removed" if view.over else None)
            if view.state == DELETED or (view.over and newest[identity.key] != run_id_of(run)):
                state = DELETED  # a DAG run of the same name was deleted and made again: this is the old one's
            if status == "RUNNING":
                found.append(self._settle_open(run, state, view, known=place in view.tasks))
            elif status == "FINISHED" and state == "failed" and view.over:
                why = "its step had recorded a good end, and Airflow counts it as failed"
                found.append(self._close(run, "FAILED", state, view, why))
        return found

    def _settle_open(self, run: Run, state: str | None, view: AirflowView, *, known: bool) -> Finding:
        """Decide about an open run of a task instance."""
        if state in AT_WORK:
            return _left(run, f"Airflow says that it is {state}")
        if not view.over and not known:
            return _left(run, "Airflow does not know this task instance, and the DAG run goes on")
        wanted = task_status(state, view.state)
        if wanted == "RUNNING":
            return _left(run, f"Airflow says that it is {state or 'not scheduled yet'}, and the DAG run goes on")
        why = f"Airflow says that it is {state or 'not scheduled'}, and that the DAG run is {view.state}"
        return self._close(run, wanted, state or "none", view, why)

    def _settle_parents(self, parents: list[Run], nested: list[Run], view: AirflowView) -> list[Finding]:
        wanted = DAG_RUN_STATUS.get(view.state, "RUNNING")
        ended = max((int(run["info"].get("end_time") or 0) for run in nested), default=0) or None
        view = view._replace(ended_at_ms=view.ended_at_ms or ended)
        found = []
        for run in parents:
            if wanted == "RUNNING" and status_of(run) == "RUNNING":
                found.append(_left(run, f"Airflow says that the DAG run is {view.state}"))
            elif status_of(run) == "RUNNING" or (wanted != "RUNNING" and view.state != DELETED and status_of(run) != wanted):
                found.append(self._close(run, wanted, view.state, view, f"Airflow says that the DAG run is {view.state}"))
        return found

    def _close(self, run: Run, status: RunStatus, state: str, view: AirflowView, why: str) -> Finding:
        """Set a run's status, unless a try has begun since Airflow was asked."""
        if self.dry_run:
            return _finding("closed", run, status, why)
        try:
            fresh = self.tree.get(run_id_of(run))
            if _try_of(fresh) != _try_of(run) or status_of(fresh) != status_of(run):
                return _left(run, "it has changed meanwhile")
            tags = {STATE: state, RECONCILED: datetime.now(UTC).isoformat(timespec="seconds")}
            end_time_ms = max(min(view.ended_at_ms or now_ms(), now_ms()), int(run["info"].get("start_time", 0)))
            self.tree.close(run_id_of(run), status, end_time_ms=end_time_ms, tags=tags)
            if self._began_again(run):
                self.tree.close(run_id_of(run), "RUNNING", tags={STATE: "running"})
                return _left(run, "it has begun again meanwhile")
        except RemoteNotFoundError:
            return _left(run, "it was deleted in MLflow meanwhile")
        return _finding("closed", run, status, why)

    def _began_again(self, run: Run) -> bool:
        """Look after a write: a try that began before it has left its mark by now, a later one opens the run itself."""
        if PARENT in tags_of(run):
            return _try_of(self.tree.get(run_id_of(run))) != _try_of(run)
        dag_run = _dag_run_of(run)
        try:
            return not self.airflow_state(dag_run.dag_id, dag_run.run_id).over
        except (RemoteUnavailableError, RemoteNotFoundError):
            return False

    def _move(self, run: Run, parent: Run) -> Finding:
        """Give a run its parent back: the one it was made under lost a race and was deleted."""
        if not self.dry_run:
            self.tree.set_tags(run_id_of(run), {PARENT: run_id_of(parent)})
        return _finding("moved", run, status_of(run), f"its parent is gone, so it is now below {run_id_of(parent)}")

    def _other_airflow(self, runs: list[Run]) -> str | None:
        """Say whose the runs are, if not this Airflow's: two of them may share one MLflow server."""
        links = [tags_of(run).get(LOG_URL, "") for run in runs]
        other = [link for link in links if self.home and link and not link.startswith(f"{self.home}/dags/")]
        return f"this Airflow ({self.home}) does not know it, and its log is at {other[0]}" if other else None


def settle_earlier(api: MlflowApi, experiment_id: str, attempt: Attempt, ti: Any) -> list[Finding]:
    """
    Settle the latest earlier DAG runs of the same DAG; called by the first step of a DAG run, and never fails it.

    DAG runs that run now, in a backfill or beside this one, are left alone. Bounded: a few DAG runs, one request at a time,
    none of them repeated, and no further DAG run after some seconds. The rest is ``airflow-ml reconcile``'s.

    :param api: The server.
    :param experiment_id: Experiment of this DAG run.
    :param attempt: The try that asks; its own DAG run is not touched.
    :param ti: Airflow's running task instance, through which Airflow is asked.
    :return: What was found.
    """
    hasty, until = copy.copy(api), time.monotonic() + EARLIER_LIMIT_S  # the same connections, without repetitions
    hasty.settings = api.settings.model_copy(update={"http_retries": 0})
    home = attempt.tags.get(LOG_URL, "").split("/dags/")[0]
    reconciler = Reconciler(RunTree(hasty), ask_task_sdk(ti), home=home)
    own, found = attempt.identity.dag_run, list[Finding]()
    body = {
        "experiment_ids": [experiment_id],
        "filter": f"{_OPEN} and {_tag_is(DAG_ID, own.dag_id)}",
        "order_by": ["attributes.start_time DESC"],
        "max_results": EARLIER_PAGE,
    }
    try:
        others = [each for each in _dag_runs_of(hasty.post("runs/search", body).get("runs", [])) if each != own]
        for dag_run in others[:EARLIER_DAG_RUNS]:
            if time.monotonic() < until:
                found += reconciler.settle([experiment_id], dag_run)
    except AirflowMLError as error:
        log.info("Earlier MLflow runs of this DAG were not looked at; airflow-ml reconcile does it: %s", error)
    for each in found:
        log.log(logging.DEBUG if each.action == "left" else logging.INFO, "An earlier DAG run's MLflow run: %s", each)
    return found


def ask_task_sdk(ti: Any) -> AirflowState:
    """
    Ask Airflow from inside a task.

    :param ti: The running task instance (``context["ti"]``).
    :return: The function that asks.
    """

    def airflow_state(dag_id: str, run_id: str) -> AirflowView:
        try:
            state = ti.get_dagrun_state(dag_id=dag_id, run_id=run_id)
            found = ti.get_task_states(dag_id=dag_id, run_ids=[run_id]).get(run_id, {})
        except Exception as error:  # whatever the SDK raises, a step must not fail because of another DAG run
            if _says_not_found(error):
                return AirflowView(DELETED, {})
            raise RemoteUnavailableError(f"Airflow did not say what became of {dag_id} {run_id}: {error}") from error
        tasks: dict[tuple[str, int], str | None] = {}
        for name, value in found.items():  # "train", and "train_3" for the mapped instance 3 or for a task of that name
            tasks[name, -1] = _text(value)
            if mapped := _MAPPED.fullmatch(name):
                tasks[mapped[1], int(mapped[2])] = _text(value)
        return AirflowView(str(_text(state)), tasks)

    return airflow_state


def find_experiments(api: MlflowApi, name: str | None = None) -> list[str]:
    """
    Find experiments that are not deleted; never makes one.

    :param api: The server.
    :param name: Name of one; None means all.
    :return: Their ids.
    :raises RemoteNotFoundError: there is none of that name.
    """
    if name is not None:
        return [str(api.get("experiments/get-by-name", experiment_name=name)["experiment"]["experiment_id"])]
    body: dict[str, Any] = {"max_results": 1000}
    found: list[str] = []
    while True:
        answer = api.post("experiments/search", body)
        found += [str(each["experiment_id"]) for each in answer.get("experiments", [])]
        if not answer.get("next_page_token"):
            return found
        body["page_token"] = answer["next_page_token"]


def find_runs(tree: RunTree, experiment_ids: Iterable[str], dag_run: DagRunIdentity) -> list[Run]:
    """
    Find all runs of a DAG run, its own and those of its steps.

    :param tree: The runs.
    :param experiment_ids: Where to look.
    :param dag_run: The DAG run.
    :return: The runs, in no promised order.
    """
    clauses = f"{_tag_is(DAG_ID, dag_run.dag_id)} and {_tag_is(RUN_ID, dag_run.run_id)}"
    return [run for run in tree.search(experiment_ids, clauses) if _dag_run_of(run) == dag_run]


def _dag_runs_of(runs: Iterable[Run]) -> list[DagRunIdentity]:
    return list(dict.fromkeys(_dag_run_of(run) for run in runs if RUN_ID in tags_of(run)))


def _tag_is(tag: str, value: str) -> str:
    """Write a search clause; MLflow knows no way to quote a quote, so the caller compares again."""
    return f"tags.`{tag}` LIKE '{value.replace(chr(39), '_')}'" if "'" in value else f"tags.`{tag}` = '{value}'"


def _dag_run_of(run: Run) -> DagRunIdentity:
    tags = tags_of(run)
    return DagRunIdentity(dag_id=tags.get(DAG_ID, ""), run_id=tags.get(RUN_ID, ""))


def _step_of(run: Run) -> StepIdentity:
    tags = tags_of(run)
    place = {"task_id": tags.get("airflow.task_id", ""), "map_index": int(tags.get("airflow.map_index", "-1"))}
    return StepIdentity.model_validate(_dag_run_of(run).model_dump() | place)


def _try_of(run: Run) -> tuple[str | None, str | None]:
    return tags_of(run).get(TRY), tags_of(run).get(TI_ID)


def _strays(nested: list[Run], parents: list[Run]) -> list[Run]:
    known = {run_id_of(parent) for parent in parents}
    return [run for run in nested if known and tags_of(run)[PARENT] not in known]


def _finding(action: Action, run: Run, after: str, why: str, *, problem: bool = False) -> Finding:
    label = _step_of(run).label if PARENT in tags_of(run) else ""
    return Finding(action, run_id_of(run), _dag_run_of(run), label, status_of(run), after, why, problem)


def _left(run: Run, why: str, *, problem: bool = False) -> Finding:
    return _finding("left", run, status_of(run), why, problem=problem)


def _text(state: object) -> str | None:
    """Write a state as text, whether Airflow gave an enumeration or a text."""
    return None if state is None else str(getattr(state, "value", state))


def _says_not_found(error: Exception) -> bool:
    """
    Tell Airflow's "no such DAG run" from every other error, a missing route of an older API server included.

    In a worker it is AirflowRuntimeError with the answer inside; in ``dag.test()`` it is the client's own error.
    """
    answer = getattr(getattr(error, "error", None), "detail", None) or {}
    detail: Any = answer.get("detail") if answer else getattr(error, "detail", None)
    if isinstance(detail, dict) and "detail" in detail:  # the whole body: in a worker, and before 3.2 in dag.test() too
        detail = detail["detail"]
    code = answer.get("status_code") or getattr(getattr(error, "response", None), "status_code", None)
    return code == 404 and isinstance(detail, dict) and detail.get("reason") == "not_found"  # noqa: PLR2004
