"""What a page shows of the runs of DAG runs and of steps: read from what MLflow answers, cut to what a page can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from airflow_ml_provider.lineage.values import models_made, number, pairs, run_node
from airflow_ml_provider.models import lineage
from airflow_ml_provider.models.lineage import RunNode
from airflow_ml_provider.plugin.addresses import Addresses, outside
from airflow_ml_provider.tracking.alert_facts import DECISION, ERROR
from airflow_ml_provider.tracking.cache_index import CACHE, CACHED_FROM
from airflow_ml_provider.tracking.lineage_tags import Made, made_by
from airflow_ml_provider.tracking.page_runs import PageApi
from airflow_ml_provider.tracking.runs import STATE, TRY, Run, tags_of

ROWS = 60
"""Metrics, parameters and artifacts of one step that a page shows."""
PICTURES = (".png", ".jpg", ".jpeg", ".gif", ".webp")
TEXTS = (
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".txt",
    ".log",
    ".md",
    ".yaml",
    ".yml",
    ".toml",
    ".ini",
    ".html",
    ".htm",
    ".svg",
    ".xml",
    ".py",
    ".sql",
)
REASONS, PROMOTION = "airflow.gate.reasons", "airflow.promotion."
KFP_PAGE = "airflow.kfp.url"
COLOURS = {
    "success": "good",
    "finished": "good",
    "promote": "good",
    "failed": "bad",
    "upstream_failed": "bad",
    "killed": "bad",
    "reject": "bad",
    "running": "busy",
    "up_for_retry": "busy",
}
"""How a word is coloured; others are grey."""


@dataclass(frozen=True)
class File:
    """
    Something that a step has made.

    :param name: Its name for people.
    :param kind: Its type, as ``Dataset``; empty for a file that is listed alone.
    :param size: Bytes; None when unknown.
    :param facts: Numbers that its maker has noted.
    :param show: Address of the page that shows it; empty for what cannot be shown.
    :param picture: Whether its name is that of a picture.
    :param note: Why it is not shown.
    """

    name: str
    kind: str = ""
    size: int | None = None
    facts: Mapping[str, float] = field(default_factory=dict)
    show: str = ""
    picture: bool = False
    note: str = ""


@dataclass(frozen=True)
class Step:
    """
    A step, or another run below that of a DAG run.

    :param run: What is on record of it.
    :param anchor: Its place on the page.
    :param label: Task and map index; the name of a run that is no step.
    :param state: Airflow's word; MLflow's for a run that is no step.
    :param tries: Number of the last try; empty where there is none.
    :param cache: ``hit``, or why it was a miss; empty when it was not asked.
    :param origin: Address of the page of the step whose result was taken over.
    :param verdict: Of a gate.
    :param reasons: Of the gate, or of the promotion.
    :param error: Why it failed.
    :param files: What it has made.
    :param links: Address per label.
    :param page: Address of its own page; empty for a run that is no step.
    """

    run: RunNode
    anchor: str
    label: str
    state: str
    tries: str = ""
    cache: str = ""
    origin: str = ""
    verdict: str = ""
    reasons: str = ""
    error: str = ""
    files: Sequence[File] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    page: str = ""

    @property
    def shown_metrics(self) -> list[tuple[str, float]]:
        """The metrics that the page shows."""
        return list(self.run.metrics.items())[:ROWS]

    @property
    def shown_params(self) -> list[tuple[str, str]]:
        """The parameters that the page shows."""
        return list(self.run.params.items())[:ROWS]

    @property
    def left_out(self) -> int:
        """How many metrics and parameters it does not show."""
        return max(len(self.run.metrics) - ROWS, 0) + max(len(self.run.params) - ROWS, 0)


def state_of(run: Run) -> str:
    """
    Say in what state a run is.

    :param run: As MLflow answers it.
    :return: Airflow's word where one is on record, else MLflow's in small letters.
    """
    return tags_of(run).get(STATE) or str(run["info"].get("status", "")).lower()


def read_step(api: PageApi, to: Addresses, dag_id: str, run: Run, origins: Mapping[str, Run] | None = None) -> Step:
    """
    Read a run below that of a DAG run.

    :param api: The server, for addresses; nothing is asked.
    :param to: Addresses of pages.
    :param dag_id: The DAG that the page is about.
    :param run: The run.
    :param origins: Runs by id whose results may have been taken over.
    :return: The step; of another DAG no more than that it is there.
    """
    tags, node = tags_of(run), run_node(api.server, run)
    if node.step is None or node.step.dag_id != dag_id:
        return Step(node, f"run-{node.run_id}", node.name, node.status.lower(), links={"MLflow run": node.url})
    step = node.step
    origin = (origins or {}).get(tags.get(CACHED_FROM, ""))
    return Step(
        run=node,
        anchor=f"run-{node.run_id}",
        label=step.label,
        state=state_of(run),
        tries=tags.get(TRY, ""),
        cache=tags.get(CACHE, ""),
        origin=_page_of(to, dag_id, origin) if origin else "",
        verdict=tags.get(DECISION, ""),
        reasons=tags.get(REASONS) or tags.get(f"{PROMOTION}reason", "").removeprefix("none"),
        error=tags.get(ERROR, ""),
        files=[_file(to, dag_id, node.run_id, each) for each in made_by(tags)][:ROWS],
        links=_links(to, node, step, tags),
        page=to.step(dag_id, step.dag_run_id, step.task_id, step.map_index),
    )


def models_of(runs: Sequence[Run]) -> list[str]:
    """
    Name the models that runs have made.

    :param runs: The runs.
    :return: Ids of LoggedModels.
    """
    return list(dict.fromkeys(model for run in runs for model in models_made(run)))


def listed_file(to: Addresses, dag_id: str, mlflow_run: str, path: str, entry: Mapping[str, Any]) -> File:
    """
    Read a file from a listing.

    :param to: Addresses of pages.
    :param dag_id: The DAG that the page is about.
    :param mlflow_run: The run that it is of.
    :param path: Below the run's artifacts.
    :param entry: Of :meth:`MlflowApi.list_files`.
    :return: The file.
    """
    size = entry.get("file_size")
    return _shown(to, dag_id, mlflow_run, path, File(name=path, size=number(size)))


def _links(to: Addresses, node: RunNode, step: lineage.Step, tags: Mapping[str, str]) -> Mapping[str, str]:
    tries = tags.get(TRY, "")
    log = to.log(step.dag_id, step.dag_run_id, step.task_id, step.map_index, tries if tries.isdecimal() else "")
    kfp = outside(tags.get(KFP_PAGE, ""))
    # As somebody has written it: who presses it is told where it leads.
    return {"MLflow run": node.url, "Log": log} | ({f"KFP run at {urlsplit(kfp).hostname}": kfp} if kfp else {})


def _page_of(to: Addresses, dag_id: str, run: Run) -> str:
    facts = pairs(run["data"].get("tags", []))
    task, night = facts.get("airflow.task_id"), facts.get("airflow.run_id")
    if facts.get("airflow.dag_id") != dag_id or not (task and night):
        return ""
    index = facts.get("airflow.map_index", "-1")
    known = number(index)
    return to.step(dag_id, night, task, -1 if known is None else known)


def _file(to: Addresses, dag_id: str, mlflow_run: str, made: Made) -> File:
    facts = made.facts
    size, kind, uri = facts.get("size"), str(facts.get("type", "")), str(facts["uri"])
    found = File(made.name, kind, number(size), made.numbers)
    maker = str(facts.get("run_id") or mlflow_run)
    place, _, path = uri.removeprefix("runs:/").partition("/")
    if kind == "Model" or uri.startswith("models:/"):
        return found
    if not uri.startswith("runs:/") or place != maker or not path:
        return replace(found, note=f"It is not in MLflow's own store: {uri}")
    return _shown(to, dag_id, maker, path, found)


def _shown(to: Addresses, dag_id: str, mlflow_run: str, path: str, found: File) -> File:
    ending = PurePosixPath(path).suffix.lower()
    if path.endswith("/"):
        return replace(found, note="A folder: open it in MLflow.")
    if ending not in {*PICTURES, *TEXTS, ""}:
        return replace(found, note=f"Not shown here: {ending} needs a program of its own. Open it in MLflow.")
    return replace(found, show=to.artifact(dag_id, mlflow_run, path), picture=ending in PICTURES)
