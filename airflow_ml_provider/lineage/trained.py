"""Which models were trained on data of some kind: the runs that read data and made models, the newest first."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.lineage.condition import Condition
from airflow_ml_provider.lineage.reading import PAGE, Reader
from airflow_ml_provider.lineage.values import models_made
from airflow_ml_provider.lineage.walk_up import Upwards
from airflow_ml_provider.lineage.work import Sheet, Tries
from airflow_ml_provider.models.lineage import DatasetNode, Graph, ModelNode
from airflow_ml_provider.tracking.lineage_tags import TRAINED
from airflow_ml_provider.tracking.runs import Run, age, batches, run_id_of

LIMIT = 50
BATCH = 100
"""Runs that are looked at together, when the first of them may be all that is wanted."""


@dataclass(frozen=True)
class TrainedModels:
    """
    Models, and what they were trained on.

    :param graph: The models, the newest first, with their data, runs and versions.
    :param looked_at: Training steps that were looked at.
    :param more: Whether there are others that were not looked at, since enough were found.
    :param numbers: Names of all numbers that the metadata of their data has.
    """

    graph: Graph
    looked_at: int
    more: bool
    numbers: tuple[str, ...]


def trained_on(api: MlflowApi, condition: str = "", *, limit: int | None = LIMIT) -> TrainedModels:
    """
    Find the models whose training step has read data of some kind.

    :param api: The server.
    :param condition: What has to be true of one of its inputs, as ``rows > 10000``; empty for all models.
    :param limit: As many models at most, 0 or more; None for all.
    :return: The models, the newest first.
    :raises ConfigError: the limit is negative, or the condition cannot be read; says what can be asked; a retry never helps.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    if limit is not None and limit < 0:
        raise ConfigError(f"limit={limit}: give 0 or more.")
    wanted = Condition.parse(condition) if condition else None
    reader = Reader(api)
    found: list[Graph] = []
    models: dict[str, None] = {}
    numbers: set[str] = set()
    looked_at, more = 0, False
    searches = wanted.searches() if wanted else [f"tags.`{TRAINED}` != ''"]
    # One more than is wanted tells whether there are more; each page costs a search of all that the condition is true of.
    size = BATCH if limit is None else min(limit + 1, BATCH)
    for some in batches(_newest_first(reader, searches, PAGE if limit is None else size), size):
        if limit is not None and len(models) >= limit:
            more = True
            break
        graph = _with_data(reader, some)
        looked_at += len(some)
        numbers |= {name for each in graph.datasets for name in each.numbers}
        chosen = [each for each in graph.models if _counts(graph, each, wanted)]
        if limit is not None and len(models) + len(chosen) > limit:
            chosen, more = chosen[: limit - len(models)], True
        models |= dict.fromkeys(each.id for each in chosen)
        found.append(graph.only({key for each in chosen for key in (each.id, *_around(graph, each))}))
    graph = _with_versions(reader, _joined(condition, found), list(models))
    return TrainedModels(graph, looked_at, more, tuple(sorted(numbers)))


def data_of(graph: Graph, model: ModelNode) -> list[DatasetNode]:
    """
    Say what a model was trained on.

    :param graph: Of :func:`trained_on`.
    :param model: One of its models.
    :return: What its training step has read, in the try that made it.
    """
    found = []
    for made in graph.into(model.id):
        for read in graph.into(made.source):
            node = graph.by_id.get(read.source)
            if isinstance(node, DatasetNode) and read.step == made.step:
                found.append(node)
    return found


def _newest_first(reader: Reader, searches: Sequence[str], size: int) -> Iterator[Run]:
    """Give the runs that have made models, each once; a page is read when it is needed."""
    found = ((run for page in reader.pages(words, size) for run in page) for words in searches)
    seen = set()
    for run in heapq.merge(*found, key=lambda run: -age(run)[0]):
        if run_id_of(run) not in seen:
            seen.add(run_id_of(run))
            yield run


def _with_data(reader: Reader, runs: Sequence[Run]) -> Graph:
    """Add to runs what they have read and who made that: two or three requests for all of them."""
    sheet = Sheet(reader)
    made: dict[str, list[str]] = {run_id_of(each): models_made(each) for each in runs}
    models = sheet.add_models(model for some in made.values() for model in some)
    # What a cache hit took over was trained by another run, which is among the trainings too.
    own = {
        run_id: [models[each] for each in some if each in models and models[each].run_id == run_id]
        for run_id, some in made.items()
    }
    tries: Tries = {run_id: {each.try_number for each in some} for run_id, some in own.items()}
    Upwards(sheet, 1).follow({run_id: some for run_id, some in tries.items() if some})
    reader.runs(each.run_id for each in list(sheet.nodes.values()) if isinstance(each, DatasetNode) and each.run_id)
    return sheet.graph("", ())


def _counts(graph: Graph, model: ModelNode, wanted: Condition | None) -> bool:
    return wanted is None or any(wanted.holds_for(each) for each in data_of(graph, model))


def _around(graph: Graph, model: ModelNode) -> list[str]:
    return [*(each.source for each in graph.into(model.id)), *(each.id for each in data_of(graph, model))]


def _joined(asked: str, graphs: Sequence[Graph]) -> Graph:
    nodes = {node.id: node for graph in graphs for node in graph.nodes}
    edges = {edge: None for graph in graphs for edge in graph.edges}
    return Graph(asked=asked, nodes=tuple(nodes.values()), edges=tuple(edges))


def _with_versions(reader: Reader, graph: Graph, model_ids: list[str]) -> Graph:
    sheet = Sheet(reader)
    for node in graph.nodes:
        sheet.add(node)
    for edge in graph.edges:
        sheet.connect(edge.source, edge.target, edge.name, edge.step)
    raw = reader.models(each.removeprefix("model:") for each in model_ids)
    for some in batches(raw.values(), 1000):
        for model_id, versions in reader.versions(some).items():
            for version in versions:
                sheet.connect(f"model:{model_id}", sheet.add(version))
    return sheet.graph(graph.asked, model_ids)
