"""
Deleting old MLflow runs, and nothing that is still pointed to.

What MLflow calls deleting hides a run until ``mlflow gc`` removes it; the bytes of its artifacts can go at once, where the
server keeps them behind its artifact proxy. A tree of runs goes or stays as a whole, and the newest go first, so that a clean-up
that is cut leaves no run without what it has read.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any
from urllib.parse import urlsplit

from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.tracking.experiments import pages_of
from airflow_ml_provider.tracking.lineage_edges import Edges
from airflow_ml_provider.tracking.runs import PARENT, Run, age, now_ms, run_id_of, status_of, tags_of

log = logging.getLogger(__name__)

SHOWN = 1000
"""Ids of runs that a report names; the counts are of all."""
SHOWN_PLACES = 100
ENDED = {"FINISHED", "FAILED", "KILLED"}
LOOK_AGAIN_S = 30.0
"""Seconds after which it is asked again, while runs are deleted, what others have read meanwhile."""
CLOCKS_MS = 600_000
"""Milliseconds by which the clocks of those who write to MLflow may differ."""
MODELS_PAGE = 50
"""What MLflow gives at most in one page of LoggedModels."""
ONLY_GC = (
    "Deleted runs and models are hidden, and can be restored without their deleted artifacts. Only `mlflow gc`, run beside the "
    "server with access to its database and its store, removes them for good, with the artifacts that are left."
)


@dataclass(frozen=True)
class Rules:
    """
    Which runs may go.

    :param experiment_ids: Where they are.
    :param ended_before_ms: Only what ended before, milliseconds since the epoch; None for any age.
    :param keep_last: How many of the newest trees of each experiment stay.
    :param filter_string: Only trees whose top run it finds, in MLflow's search language; empty for all.
    :param keep_tag: A tree in which a run has this tag stays; empty for none.
    :param limit: Runs that go at most.
    """

    experiment_ids: Sequence[str]
    ended_before_ms: int | None
    keep_last: int
    filter_string: str = ""
    keep_tag: str = ""
    limit: int = 1000


@dataclass
class Tree:
    """
    A top run and all below it.

    :param runs: Its runs, the top one first.
    """

    runs: list[Run]

    @property
    def top(self) -> str:
        """Id of its top run."""
        return run_id_of(self.runs[0])

    @property
    def ids(self) -> set[str]:
        """Ids of its runs."""
        return {run_id_of(each) for each in self.runs}


@dataclass
class Report:
    """
    What went, and what stayed.

    :param dry_run: Whether nothing was deleted.
    :param runs: Ids of the runs that go.
    :param models: Number of LoggedModels that go with their bytes.
    :param kept: Number of runs that stay, per reason.
    :param artifacts_deleted: Number of folders of artifacts that go.
    :param artifacts_left: Places whose bytes stay.
    """

    dry_run: bool
    runs: list[str] = field(default_factory=list)
    models: int = 0
    kept: Counter[str] = field(default_factory=Counter)
    artifacts_deleted: int = 0
    artifacts_left: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """
        Write it as plain JSON.

        :return: The report, its lists cut where they are long.
        """
        return {
            "dry_run": self.dry_run,
            "count": len(self.runs),
            "runs": self.runs[:SHOWN],
            "models": self.models,
            "kept": dict(sorted(self.kept.items())),
            "artifacts_deleted": self.artifacts_deleted,
            "artifacts_left_count": len(self.artifacts_left),
            "artifacts_left": self.artifacts_left[:SHOWN_PLACES],
            "only_gc": ONLY_GC,
        }


class CleanUp:
    """
    One clean-up of one MLflow server.

    :param api: The server.
    :param rules: Which runs may go.
    """

    def __init__(self, api: MlflowApi, rules: Rules) -> None:
        self.api = api
        self.rules = rules
        self.models: dict[str, list[Mapping[str, Any]]] = {}
        """LoggedModels per run that has made them."""
        self._planned_ms = self._newest_version_ms = 0
        self._read_by_now: set[str] = set()
        self._looked_at = -inf

    def run(self, *, dry_run: bool, delete_artifacts: bool) -> Report:
        """
        Say what would go, or delete it.

        :param dry_run: Whether to delete nothing.
        :param delete_artifacts: Whether the bytes go too.
        :return: What went, and what stayed.
        :raises ConfigError: MLflow does not take the filter; nothing was deleted, a retry never helps.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe, and goes on with what is left.
        """
        report = Report(dry_run)
        for tree in self._plan(report):
            if not dry_run and (reason := self._why_stays_by_now(tree)):
                report.kept[reason] += len(tree.runs)
                continue
            for run in reversed(tree.runs):  # the top run last: what is left of a tree that is cut is found again
                self._delete(run, report, delete_artifacts=delete_artifacts)
        return report

    def _plan(self, report: Report) -> list[Tree]:
        """Choose the trees that go, the newest first."""
        self._planned_ms = now_ms()
        everything = self._all_runs()
        trees = trees_of(everything)
        self._read_models()
        stay = self._stay_by_themselves(trees)
        self.edges = Edges(self.api, everything, _makers(self.models))
        self.edges.keep(trees, stay)
        mine = [tree for tree in trees if str(tree.runs[0]["info"]["experiment_id"]) in self.rules.experiment_ids]
        going = [tree for tree in mine if tree.top not in stay]
        stay |= self._over_the_limit(trees, going, everything)
        for tree in mine:
            if reason := stay.get(tree.top):
                report.kept[reason] += len(tree.runs)
        return sorted((tree for tree in going if tree.top not in stay), key=lambda tree: age(tree.runs[0]), reverse=True)

    def _over_the_limit(self, trees: Sequence[Tree], going: Sequence[Tree], everything: Sequence[Run]) -> dict[str, str]:
        """Say what stays for the limit, and what that has read of what would go."""
        chosen, left, count = [], dict[str, str](), 0
        for tree in sorted(going, key=lambda tree: age(tree.runs[0]), reverse=True):
            if count + len(tree.runs) > self.rules.limit:
                left[tree.top] = "limit"
            else:
                chosen.append(tree)
                count += len(tree.runs)
        if left:
            runs = {each for tree in chosen for each in tree.ids}
            made = {run: models for run, models in self.models.items() if run in runs}
            Edges(self.api, everything, _makers(made)).keep(trees, left)
        return left

    def _stay_by_themselves(self, trees: Sequence[Tree]) -> dict[str, str]:
        """Say which trees stay whatever reads them, by their top run, and why."""
        registered, newest = self._registered(), self._newest(trees)
        found = self._found_by_filter()
        return {
            tree.top: reason
            for tree in trees
            if (reason := self._why_stays(tree, registered=registered, newest=newest, found=found))
        }

    def _why_stays(self, tree: Tree, *, registered: set[str], newest: set[str], found: set[str] | None) -> str:
        top = tree.top
        before = self.rules.ended_before_ms
        ends = [int(each["info"].get("end_time") or each["info"].get("start_time") or 0) for each in tree.runs]
        reasons = {
            "elsewhere": any(str(each["info"]["experiment_id"]) not in self.rules.experiment_ids for each in tree.runs),
            "running": any(status_of(each) not in ENDED for each in tree.runs),
            "young": before is not None and max(ends) >= before,
            "newest": top in newest,
            "filter": found is not None and top not in found,
            "tag": bool(self.rules.keep_tag) and any(self.rules.keep_tag in tags_of(each) for each in tree.runs),
            "registered": bool(tree.ids & registered),
        }
        return next((reason for reason, holds in reasons.items() if holds), "")

    def _newest(self, trees: Sequence[Tree]) -> set[str]:
        newest: set[str] = set()
        for experiment_id in self.rules.experiment_ids:
            tops = [tree.runs[0] for tree in trees if str(tree.runs[0]["info"]["experiment_id"]) == experiment_id]
            newest |= {run_id_of(each) for each in sorted(tops, key=age, reverse=True)[: self.rules.keep_last]}
        return newest

    def _found_by_filter(self) -> set[str] | None:
        if not self.rules.filter_string.strip():
            return None
        body = {"experiment_ids": list(self.rules.experiment_ids), "filter": self.rules.filter_string}
        return {run_id_of(each) for each in pages_of(self.api, "runs/search", body, "runs", None)}

    def _registered(self) -> set[str]:
        """Name the runs whose models have a version."""
        versions = pages_of(self.api, "model-versions/search", {}, "model_versions", None)
        self._newest_version_ms = max(map(_made_ms, versions), default=0)
        return self._sources(versions)

    def _sources(self, versions: Sequence[Mapping[str, Any]]) -> set[str]:
        """Name the runs that versions are of, by their run or by what they were made of."""
        runs: set[str] = set()
        by_model = _makers(self.models)
        for version in versions:
            parts = version.get("source", "").replace(":", "/").split("/")
            runs |= {version.get("run_id", ""), *parts, *(by_model[each] for each in parts if each in by_model)}
        return runs

    def _all_runs(self, filter_string: str = "") -> list[Run]:
        body = {"view_type": "ACTIVE_ONLY"}
        ids = [str(each["experiment_id"]) for each in pages_of(self.api, "experiments/search", body, "experiments", None)]
        asked = {"experiment_ids": ids, "filter": filter_string}
        return pages_of(self.api, "runs/search", asked, "runs", None) if ids else []

    def _read_models(self) -> None:
        body: dict[str, Any] = {"experiment_ids": list(self.rules.experiment_ids), "max_results": MODELS_PAGE}
        while True:
            answer = self.api.post("logged-models/search", body)
            for each in answer.get("models", []):
                self.models.setdefault(str(each["info"].get("source_run_id", "")), []).append(each["info"])
            if not answer.get("next_page_token"):
                return
            body["page_token"] = answer["next_page_token"]

    def _why_stays_by_now(self, tree: Tree) -> str:
        """Look again right before: somebody may have registered one of its models, or read of it, since the plan."""
        newest = pages_of(self.api, "model-versions/search", {"order_by": "creation_timestamp DESC"}, "model_versions", SHOWN)
        if tree.ids & self._sources([each for each in newest if _made_ms(each) >= self._newest_version_ms]):
            return "registered"
        if time.monotonic() - self._looked_at >= LOOK_AGAIN_S:
            self._looked_at = time.monotonic()
            self._read_by_now |= self.edges.read_by(self._at_work())
        return "read" if tree.ids & self._read_by_now else ""

    def _at_work(self) -> list[Run]:
        """Find the runs that may have read something since the plan."""
        since = self._planned_ms - CLOCKS_MS
        filters = ("attributes.status = 'RUNNING'", f"attributes.end_time >= {since}")
        return [run for each in filters for run in self._all_runs(each)]

    def _delete(self, run: Run, report: Report, *, delete_artifacts: bool) -> None:
        """Delete one run, and with the bytes its models; bytes first, as nobody would find them once the run is hidden."""
        run_id = run_id_of(run)
        made = self.models.get(run_id, [])
        if delete_artifacts:
            self._delete_bytes(run["info"].get("artifact_uri", ""), run_id, report)
            for each in made:
                self._delete_bytes(each.get("artifact_uri", ""), str(each["model_id"]), report)
                if not report.dry_run:
                    self._gone("DELETE", f"logged-models/{each['model_id']}", {})
            report.models += len(made)
        if not report.dry_run:
            self._gone("POST", "runs/delete", {"run_id": run_id})
            log.info("Deleted run %s.", run_id)
        report.runs.append(run_id)

    def _delete_bytes(self, uri: str, owner: str, report: Report) -> None:
        """Delete a folder behind the artifact proxy, if it is the owner's alone; others are named in the report."""
        parts = urlsplit(uri)
        path = parts.path.strip("/")
        if parts.scheme != "mlflow-artifacts" or owner not in path.split("/") or ".." in path.split("/"):
            report.artifacts_left.append(uri)
            return
        try:
            if not report.dry_run:
                self.api.delete_files(path)
            report.artifacts_deleted += 1
        except RemoteNotFoundError:
            log.info("There is nothing at %s.", uri)
        except ConfigError as refused:
            log.warning("The artifacts at %s stay: %s", uri, refused)
            report.artifacts_left.append(uri)

    def _gone(self, method: str, path: str, body: dict[str, Any]) -> None:
        try:
            _ = self.api.delete(path, body) if method == "DELETE" else self.api.post(path, body)
        except RemoteNotFoundError:
            log.info("%s: it is gone already.", path)


def _makers(made: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, str]:
    return {str(each["model_id"]): run for run, models in made.items() for each in models}


def _made_ms(version: Mapping[str, Any]) -> int:
    return int(version.get("creation_timestamp") or 0)


def trees_of(runs: Sequence[Run]) -> list[Tree]:
    """
    Put runs below their top runs.

    :param runs: Any runs. One whose parent is not among them is a top run.
    :return: The trees; each run is in one.
    """
    by_id = {run_id_of(each): each for each in runs}
    trees: dict[str, Tree] = {}
    for run in sorted(runs, key=age):
        top, seen = run, set[str]()
        while (above := by_id.get(tags_of(top).get(PARENT, ""))) is not None and run_id_of(top) not in seen:
            seen.add(run_id_of(top))
            top = above
        key = run_id_of(top) if above is None else ""  # runs that are each other's parents are one tree
        tree = trees.setdefault(key, Tree([]))
        tree.runs.insert(0 if run is top else len(tree.runs), run)
    return list(trees.values())
