"""What differs between two models: data, parameters, code, images and metrics of the whole way up, step by step."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.lineage.query import trace
from airflow_ml_provider.lineage.reading import Reader
from airflow_ml_provider.lineage.work import DEPTH_LIMIT, tries_of
from airflow_ml_provider.models.lineage import DatasetNode, Gap, Graph, ModelNode, RunNode
from airflow_ml_provider.tracking.lineage_tags import TRAINED_ON

_Key: TypeAlias = tuple[str, str, int]
"""DAG, task with map index, and which of several."""
What = Literal["data", "parameter", "code", "image", "metric", "step"]


class Change(BaseModel):
    """
    One thing that differs.

    :param what: Its kind; ``step`` for one that is on one of the ways alone.
    :param where: Step that it is of: task and map index; empty for the model itself.
    :param name: Name of the input, the parameter or the metric; empty for code, images and steps.
    :param before: Its value on the way to the first; None where it has none.
    :param after: Its value on the way to the second.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    what: What
    where: str
    name: str = ""
    before: str | float | None = None
    after: str | float | None = None


class Difference(BaseModel):
    """
    All that differs.

    :param before: The first that was asked for.
    :param after: The second.
    :param changes: From the raw data to the model; empty where nothing on record differs.
    :param datasets: Data by the text that stands for it in ``changes``.
    :param gaps: What is gone on one of the ways, or is not on record for the try that counts, and so was not compared.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    before: str
    after: str
    changes: tuple[Change, ...] = ()
    datasets: dict[str, DatasetNode] = {}
    gaps: tuple[Gap, ...] = ()


def diff(api: MlflowApi, before: str, after: str, *, depth_limit: int = DEPTH_LIMIT) -> Difference:
    """
    Compare the ways to two models, or to other things.

    :param api: The server.
    :param before: URI of the first, as for :func:`~airflow_ml_provider.lineage.query.trace`.
    :param after: URI of the second.
    :param depth_limit: Steps to the farthest run that is looked at, 1 or more.
    :return: What differs.
    :raises ConfigError: a URI has none of the known forms; a retry never helps.
    :raises RemoteNotFoundError: what a URI names does not exist.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    reader = Reader(api)
    first = trace(api, before, depth_limit=depth_limit, reader=reader)
    return compare(first, trace(api, after, depth_limit=depth_limit, reader=reader))


def compare(before: Graph, after: Graph) -> Difference:
    """
    Compare two ways.

    :param before: The first, followed upwards.
    :param after: The second.
    :return: What differs. Steps are the same if DAG, task and map index are; of several the nearest to the model are compared,
        and so on.
    """
    old, new = _by_step(before), _by_step(after)
    moments = _moments(before, old) | _moments(after, new)
    order = sorted({**new, **old}, key=lambda step: moments[step])
    datasets: dict[str, DatasetNode] = {}
    changes: list[Change] = []
    gaps = {each.id: each for each in (*before.gaps, *after.gaps)}
    for step in order:
        sides = _Side.of(before, old.get(step)), _Side.of(after, new.get(step))
        changes += _step_changes(step[1], *sides, datasets)
        gaps |= {each.id: each for each in _overtaken(step[1], *sides)}
    said = {(each.name, each.before, each.after) for each in changes if each.what == "metric"}
    own = _differ("metric", "", _model_metrics(before), _model_metrics(after))
    changes += [each for each in own if (each.name, each.before, each.after) not in said]  # MLflow keeps them of the run too
    return Difference(
        before=before.asked, after=after.asked, changes=tuple(changes), datasets=datasets, gaps=tuple(gaps.values())
    )


def _moments(graph: Graph, steps: Mapping[_Key, RunNode]) -> dict[_Key, float]:
    """Say when each step began, in seconds from the first of its way."""
    starts = [each.started.timestamp() for each in graph.runs if each.started]
    first = min(starts, default=0.0)
    return {key: each.started.timestamp() - first if each.started else 0.0 for key, each in steps.items()}


class _Side:
    """One step on one of the ways."""

    def __init__(self, run: RunNode | None, data: dict[str, DatasetNode | ModelNode], tries: set[int | None]) -> None:
        self.run = run
        self.data = data
        self.tries = tries
        """The tries of the run that are on the way."""

    @property
    def overtaken(self) -> bool:
        """Whether a later try has put its own commit, image and metrics into the run."""
        step = self.run.step if self.run else None
        return step is not None and step.try_number not in self.tries

    @classmethod
    def of(cls, graph: Graph, run: RunNode | None) -> _Side:
        read: dict[str, DatasetNode | ModelNode] = {}
        for edge in graph.into(run.id) if run else ():
            node = graph.by_id.get(edge.source)
            if isinstance(node, DatasetNode | ModelNode):
                read[edge.name or node.name] = node
        return cls(run, read, tries_of(graph, run) if run else set())

    def is_same(self, other: _Side) -> bool:
        """Whether both are the same try of the same run."""
        return bool(self.run and other.run and self.run.run_id == other.run.run_id) and self.tries == other.tries


def _by_step(graph: Graph) -> dict[_Key, RunNode]:
    """Name the steps of a way; of those that ran several times, the nearest to the model is number 0."""
    found: dict[_Key, RunNode] = {}
    seen: dict[tuple[str, str], int] = {}
    for run in graph.runs:
        key = (run.step.dag_id, run.step.label) if run.step else ("", run.name)
        found[(*key, seen.get(key, 0))] = run
        seen[key] = seen.get(key, 0) + 1
    return found


def _step_changes(where: str, old: _Side, new: _Side, datasets: dict[str, DatasetNode]) -> list[Change]:
    if old.run is None or new.run is None:
        names = [None if side.run is None else where for side in (old, new)]
        return [Change(what="step", where=where, before=names[0], after=names[1])]
    if old.is_same(new):
        return []
    changes = []
    for name in dict.fromkeys([*old.data, *new.data]):
        was, now = old.data.get(name), new.data.get(name)
        if _digest(was) != _digest(now):
            changes.append(Change(what="data", where=where, name=name, before=_key(was, datasets), after=_key(now, datasets)))
    changes += _differ("parameter", where, old.run.params, new.run.params)
    if old.overtaken or new.overtaken:
        return changes
    changes += _differ("code", where, {"": old.run.git_commit}, {"": new.run.git_commit})
    changes += _differ("image", where, {"": old.run.image}, {"": new.run.image})
    return changes + _differ("metric", where, _own_metrics(old.run), _own_metrics(new.run))


def _overtaken(where: str, old: _Side, new: _Side) -> list[Gap]:
    """Say what was not compared since MLflow has it of a later try alone."""
    if old.run is None or new.run is None or old.is_same(new):
        return []
    return [
        Gap(
            id=each.run.id,
            reason=f"code, image and metrics of {where}, try {max(filter(None, each.tries), default='?')}: MLflow keeps those of "
            f"the run's last try, {each.run.step.try_number}",
        )
        for each in (old, new)
        if each.run and each.run.step and each.overtaken
    ]


def _own_metrics(run: RunNode) -> Mapping[str, float]:
    """Leave out the numbers of its data, which are summed up over all tries; data is compared itself."""
    return {name: value for name, value in run.metrics.items() if not name.startswith(TRAINED_ON)}


def _differ(what: What, where: str, old: Mapping[str, str | float | None], new: Mapping[str, str | float | None]) -> list[Change]:
    return [
        Change(what=what, where=where, name=name, before=old.get(name), after=new.get(name))
        for name in sorted({*old, *new})
        if not _same(old.get(name), new.get(name))
    ]


def _same(old: str | float | None, new: str | float | None) -> bool:
    both_nan = old != old and new != new  # noqa: PLR0124  (not a number)
    return old == new or both_nan


def _digest(node: DatasetNode | ModelNode | None) -> str | None:
    """Say what makes data the same: its bytes; where nobody has recorded them, its place."""
    if node is None:
        return None
    if isinstance(node, ModelNode):
        return node.sha256 or node.model_id
    return (node.sha256 or node.digest)[:36] if (node.sha256 or node.digest) not in {"", "unknown"} else f"at {node.uri}"


def _key(node: DatasetNode | ModelNode | None, datasets: dict[str, DatasetNode]) -> str | None:
    if node is None:
        return None
    if isinstance(node, DatasetNode):
        datasets[node.id] = node
    return node.id


def _model_metrics(graph: Graph) -> Mapping[str, float]:
    """Read the metrics of the model that was asked for."""
    wanted = {*graph.start, *(edge.source for each in graph.start for edge in graph.into(each))}
    models: Iterable[ModelNode] = (each for each in graph.models if each.id in wanted)
    return next((each.metrics for each in models), {})
