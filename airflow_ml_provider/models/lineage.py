"""
Where models come from and what became of data, as one kind of value: a graph of datasets, runs, models and versions.

A graph, not a tree: two tables of one step lead to the same run. So nodes stand in a list, the nearest first, and edges point to
them by id, in the direction in which data flows.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import cached_property
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, computed_field

from airflow_ml_provider.exceptions import ConfigError

LINEAGE_VERSION: Literal[2] = 2
"""Version of the JSON form of a graph; 1 was a list of steps, upwards from a model."""

_MODEL = r"models:/(?P<model_id>m-[0-9a-f]{32})(?:/.*)?"
_VERSION = r"models:/(?P<name>[^/@\x00]{1,256})(?:@(?P<alias>[^/@\x00]{1,256})|/(?P<number>[0-9]{1,9}))"
_RUN = r"runs:/(?P<run_id>[0-9a-f]{32})(?:/(?P<path>.*))?"
_DIGEST = r"(?:sha256[:-])?(?P<digest>[0-9a-f]{12,64})"
_URI = re.compile(rf"{_MODEL}|{_VERSION}|{_RUN}|{_DIGEST}|(?P<place>(?!models:|runs:)[A-Za-z][A-Za-z0-9+.-]*:.+|/.+)", re.DOTALL)


class Asked(BaseModel):
    """
    What a URI names: a LoggedModel, a version in the registry, a run or what it has made, or data by digest or place.

    :param model_id: Of ``models:/<model id>``.
    :param name: Registered model, of ``models:/<name>@<alias>`` and ``models:/<name>/<version>``.
    :param alias: Alias, without ``@``.
    :param number: Number of the version.
    :param run_id: Of ``runs:/<run id>/<path>``.
    :param path: Of the same; None or empty for the whole run.
    :param digest: At least 12 digits of a sha256.
    :param place: Any other URI, or an absolute path.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_id: str | None = None
    name: str | None = None
    alias: str | None = None
    number: str | None = None
    run_id: str | None = None
    path: str | None = None
    digest: str | None = None
    place: str | None = None

    @classmethod
    def parse(cls, uri: str) -> Asked:
        """
        Read a URI.

        :param uri: As a user writes it.
        :return: Its parts.
        :raises ConfigError: it has none of the known forms; a retry never helps.
        """
        found = _URI.fullmatch(uri)
        if found is None:
            raise ConfigError(
                f"{uri!r:.300} does not name a model or data. Write models:/<name>@<alias>, models:/<name>/<version>, "
                "models:/<model id>, runs:/<run id>/<path>, 12 or more digits of a sha256, or the URI of data, as s3://bucket/key."
            )
        return cls.model_validate(found.groupdict())


class _Value(BaseModel):
    """Frozen, and with NaN written as JSON takes it."""

    model_config = ConfigDict(frozen=True, protected_namespaces=(), ser_json_inf_nan="strings")


class Step(_Value):
    """
    One try of one task instance.

    :param dag_id: Airflow's DAG.
    :param dag_run_id: Its run.
    :param task_id: Task.
    :param map_index: Index of a mapped task instance, -1 when it is not mapped.
    :param try_number: The try; None when it is not on record.
    """

    dag_id: str
    dag_run_id: str
    task_id: str
    map_index: int = -1
    try_number: int | None = None

    @property
    def label(self) -> str:
        """Short name for people, ``train`` or ``train[3]``."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"


class DatasetNode(_Value):
    """
    Data that a step has read or made: one file or directory of one content.

    :param name: Name of the output, or of the input where nobody has recorded who made it.
    :param uri: Where it is; None when nobody says.
    :param digest: What MLflow has of its digest, at most 36 characters; empty when nothing.
    :param sha256: Whole digest; None for data that others have recorded.
    :param size: Bytes; None when unknown.
    :param numbers: What its metadata has of numbers, such as ``rows``.
    :param run_id: Run that made it; None for data from outside.
    """

    kind: Literal["dataset"] = "dataset"
    name: str
    uri: str | None = None
    digest: str = ""
    sha256: str | None = None
    size: int | None = None
    numbers: dict[str, float] = Field(default_factory=dict)
    run_id: str | None = None

    @computed_field  # type: ignore[prop-decorator]  # mypy's own gap, python/mypy#1362
    @property
    def id(self) -> str:
        """Where it is, and for data from outside, which may be changed in its place, the digest."""
        if self.run_id and self.uri:
            return f"dataset:{self.uri}"
        return f"dataset:{self.uri or self.name}#{(self.sha256 or self.digest)[:12]}"


class RunNode(_Value):
    """
    A step on record: a nested run of ours, or any MLflow run.

    :param run_id: MLflow's run.
    :param url: Its page.
    :param name: Name of the run, for a step of ours the task's id and map index.
    :param status: MLflow's status.
    :param deleted: Whether it lies in MLflow's bin, from which it can still be restored.
    :param step: What it is in Airflow, with the try that was recorded last; None for a run that is not from Airflow.
    :param logical_date: Logical date, as Airflow writes it.
    :param log_url: The task's log in Airflow.
    :param git_commit: Commit of the code.
    :param image: Image of its container; None where nobody has recorded one.
    :param cached_from: Run whose outputs it took over in place of running; None for none.
    :param started: When.
    :param ended: When; None while it runs.
    :param params: Parameters, of the try that the edges name; of several, of the last.
    :param metrics: Last value of each metric.
    """

    kind: Literal["run"] = "run"
    run_id: str
    url: str
    name: str
    status: str
    deleted: bool = False
    step: Step | None = None
    logical_date: str | None = None
    log_url: str | None = None
    git_commit: str | None = None
    image: str | None = None
    cached_from: str | None = None
    started: datetime | None = None
    ended: datetime | None = None
    params: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def id(self) -> str:
        """``run:`` and MLflow's id."""
        return f"run:{self.run_id}"


class ModelNode(_Value):
    """
    A model, as MLflow keeps it.

    :param model_id: ``m-`` and 32 hexadecimal digits.
    :param name: Name of the output that made it.
    :param sha256: Digest; None for a model that others made.
    :param size: Bytes; None for a model that others made.
    :param created: When.
    :param metrics: Numbers that were logged to the model itself.
    :param run_id: Run that made it; None when nobody has recorded it.
    :param try_number: Try that made it; None when nobody has recorded it.
    """

    kind: Literal["model"] = "model"
    model_id: str
    name: str
    sha256: str | None = None
    size: int | None = None
    created: datetime | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    run_id: str | None = None
    try_number: int | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def id(self) -> str:
        """``model:`` and MLflow's id."""
        return f"model:{self.model_id}"


class VersionNode(_Value):
    """
    A version in MLflow's registry.

    :param name: Registered model.
    :param version: Its number.
    :param aliases: What points to it now.
    :param source: URI of what was registered.
    :param run_id: Run that made it, as the registry says; None when it does not say.
    :param created: When it was registered.
    :param tags: Its tags.
    """

    kind: Literal["version"] = "version"
    name: str
    version: str
    aliases: tuple[str, ...] = ()
    source: str = ""
    run_id: str | None = None
    created: datetime | None = None
    tags: dict[str, str] = Field(default_factory=dict)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def id(self) -> str:
        """``version:``, the registered model and the number."""
        return f"version:{self.name}/{self.version}"


Node: TypeAlias = Annotated[DatasetNode | RunNode | ModelNode | VersionNode, Field(discriminator="kind")]


class Edge(_Value):
    """
    One way that data took, in its direction.

    :param source: Id of the node that it left.
    :param target: Id of the node that it came to.
    :param name: Name of the input or output; empty for what was registered.
    :param step: The step that read or made it, with the try; None for what was registered, and for runs that others made.
    """

    source: str
    target: str
    name: str = ""
    step: Step | None = None


class Gap(_Value):
    """
    Where the way ends although it should go on.

    :param id: Id of the node that should be there.
    :param reason: Why it is not shown, and what to do.
    """

    id: str
    reason: str


class Graph(_Value):
    """
    Part of the lineage that a server has on record.

    :param version: Version of this form.
    :param asked: What was asked for.
    :param start: Ids of the nodes that this names.
    :param nodes: What was found, the nearest to the start first.
    :param edges: How they hang together; an end that is not among the nodes is among the gaps.
    :param gaps: What should be there and is not.
    """

    version: Literal[2] = LINEAGE_VERSION
    asked: str
    start: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
    gaps: tuple[Gap, ...] = ()

    @cached_property
    def by_id(self) -> dict[str, Node]:
        """Node per id."""
        return {each.id: each for each in self.nodes}

    @cached_property
    def incoming(self) -> dict[str, list[Edge]]:
        """Edges per id of the node that they lead to."""
        return _grouped((each.target, each) for each in self.edges)

    @cached_property
    def outgoing(self) -> dict[str, list[Edge]]:
        """Edges per id of the node that they leave."""
        return _grouped((each.source, each) for each in self.edges)

    @property
    def runs(self) -> list[RunNode]:
        """All runs, the nearest first."""
        return [each for each in self.nodes if isinstance(each, RunNode)]

    @property
    def datasets(self) -> list[DatasetNode]:
        """All data, the nearest first."""
        return [each for each in self.nodes if isinstance(each, DatasetNode)]

    @property
    def models(self) -> list[ModelNode]:
        """All models, the nearest first."""
        return [each for each in self.nodes if isinstance(each, ModelNode)]

    @property
    def versions(self) -> list[VersionNode]:
        """All registered versions, the nearest first."""
        return [each for each in self.nodes if isinstance(each, VersionNode)]

    def into(self, node_id: str) -> list[Edge]:
        """
        Follow data against its direction.

        :param node_id: Id of a node.
        :return: The edges that end there.
        """
        return self.incoming.get(node_id, [])

    def out_of(self, node_id: str) -> list[Edge]:
        """
        Follow data in its direction.

        :param node_id: Id of a node.
        :return: The edges that begin there.
        """
        return self.outgoing.get(node_id, [])

    def above(self, *node_ids: str) -> set[str]:
        """
        Name all that something comes from.

        :param node_ids: Ids of nodes.
        :return: Ids of these and of all that leads to them.
        """
        return _reach(node_ids, lambda each: [edge.source for edge in self.into(each)])

    def below(self, *node_ids: str) -> set[str]:
        """
        Name all that comes from something.

        :param node_ids: Ids of nodes.
        :return: Ids of these and of all that they lead to.
        """
        return _reach(node_ids, lambda each: [edge.target for edge in self.out_of(each)])

    def only(self, node_ids: Iterable[str], *, asked: str | None = None, start: tuple[str, ...] | None = None) -> Graph:
        """
        Cut out a part.

        :param node_ids: Ids of the nodes to keep.
        :param asked: What the part answers; None keeps the question.
        :param start: Ids of the nodes that this names; None keeps those that are left of the start.
        :return: The part, with the edges and the gaps within.
        """
        kept = set(node_ids)
        return Graph(
            asked=self.asked if asked is None else asked,
            start=tuple(each for each in self.start if each in kept) if start is None else start,
            nodes=tuple(each for each in self.nodes if each.id in kept),
            edges=tuple(each for each in self.edges if each.source in kept and each.target in kept),
            gaps=tuple(each for each in self.gaps if each.id in kept),
        )


def _grouped(pairs: Iterable[tuple[str, Edge]]) -> dict[str, list[Edge]]:
    found: dict[str, list[Edge]] = {}
    for key, edge in pairs:
        found.setdefault(key, []).append(edge)
    return found


def _reach(start: Iterable[str], after: Callable[[str], list[str]]) -> set[str]:
    seen = set(start)
    waiting = list(seen)
    while waiting:
        new = [each for each in after(waiting.pop()) if each not in seen]
        seen.update(new)
        waiting += new
    return seen
