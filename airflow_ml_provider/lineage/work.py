"""What a question has found so far: nodes, edges and gaps, each once, until they are a graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from airflow_ml_provider.lineage.reading import Reader
from airflow_ml_provider.lineage.values import dataset_made, model_node, number, run_node, step_of
from airflow_ml_provider.models.lineage import DatasetNode, Edge, Gap, Graph, ModelNode, Node, RunNode, Step
from airflow_ml_provider.tracking.lineage_tags import made_by
from airflow_ml_provider.tracking.runs import TRY, Run, run_id_of, tags_of

DEPTH_LIMIT = 50
"""Steps to the farthest run that is looked at: a model that is tuned further each night has no end."""
Tries: TypeAlias = dict[str, set[int | None]]
"""Per run the tries of it that matter; None where that is not known."""


class Sheet:
    """
    Gathers a graph.

    :param reader: What asks MLflow.
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.nodes: dict[str, Node] = {}
        self._edges: dict[Edge, None] = {}
        self._gaps: dict[str, str] = {}
        self._made: dict[tuple[str, str, int | None], None] = {}
        self._tries: dict[str, set[int]] = {}

    @property
    def edges(self) -> list[Edge]:
        """The edges so far."""
        return list(self._edges)

    def add(self, node: Node) -> str:
        """
        Add a node, unless it is there.

        :param node: The node.
        :return: Its id.
        """
        self.nodes.setdefault(node.id, node)
        return node.id

    def add_run(self, run: Run) -> str:
        """
        Add a run, unless it is there.

        :param run: As MLflow answers it.
        :return: Id of its node.
        """
        node_id = f"run:{run_id_of(run)}"
        if node_id not in self.nodes:
            self.nodes[node_id] = run_node(self.reader.api.server, run)
        return node_id

    def add_models(self, model_ids: Iterable[str]) -> dict[str, ModelNode]:
        """
        Add models; those that are gone are gaps.

        :param model_ids: Ids of LoggedModels.
        :return: Node per id.
        """
        wanted = list(dict.fromkeys(model_ids))
        found = self.reader.models(wanted)
        for each in wanted:
            if each not in found:
                self.miss(f"model:{each}", f"model {self.reader.absence(each)}")
        nodes = {key: model_node(each) for key, each in found.items()}
        for node in nodes.values():
            self.add(node)
            if node.run_id:
                self.expect_made(node.run_id, node.id, node.try_number)
        return nodes

    def connect(self, source: str, target: str, name: str = "", step: Step | None = None) -> None:
        """
        Add an edge, unless it is there.

        :param source: Id of the node that data left.
        :param target: Id of the node that it came to.
        :param name: Name of the input or output.
        :param step: The step that read or made it.
        """
        self._edges[Edge(source=source, target=target, name=name, step=step)] = None
        if step and step.try_number is not None:
            run = source if source.startswith("run:") else target
            self._tries.setdefault(run, set()).add(step.try_number)

    def expect_made(self, run_id: str, node_id: str, try_number: int | None) -> None:
        """
        Note who made something; it becomes an edge if that run comes into the graph.

        :param run_id: The run.
        :param node_id: What it made.
        :param try_number: The try of it; None when that is not known.
        """
        self._made[run_id, node_id, try_number] = None

    def miss(self, node_id: str, reason: str) -> None:
        """
        Note a gap, unless there is one.

        :param node_id: Id of the node that should be there.
        :param reason: Why it is not, and what to do.
        """
        self._gaps.setdefault(node_id, reason)

    def graph(self, asked: str, start: Iterable[str]) -> Graph:
        """
        Make the graph.

        :param asked: What was asked for.
        :param start: Ids of the nodes that this names.
        :return: All that was found.
        """
        self._tell_what_makers_know()
        for run_id, node_id, try_number in self._made:
            maker = f"run:{run_id}"
            if maker in self.nodes or maker in self._gaps:
                run = self.reader.runs([run_id]).get(run_id) if maker in self.nodes else None
                name = getattr(self.nodes.get(node_id), "name", "")
                self.connect(maker, node_id, name, step_of(tags_of(run), try_number) if run else None)
        self._take_params_of_tries()
        return Graph(
            asked=asked,
            start=tuple(start),
            nodes=tuple(self.nodes.values()),
            edges=tuple(self._edges),
            gaps=tuple(Gap(id=key, reason=reason) for key, reason in self._gaps.items()),
        )

    def _tell_what_makers_know(self) -> None:
        """Put into the data what its maker has told, such as its number of rows, which its readers do not know."""
        told: dict[str, DatasetNode] = {}
        for run_id in {each.run_id for each in self.nodes.values() if isinstance(each, DatasetNode) and each.run_id}:
            if run := self.reader.seen(run_id):
                told |= {node.id: node for node in (dataset_made(each, run_id) for each in made_by(tags_of(run)))}
        self.nodes = {key: told.get(key, node) if isinstance(node, DatasetNode) else node for key, node in self.nodes.items()}

    def _take_params_of_tries(self) -> None:
        """Give the runs of which a later try has taken over the parameters of the try that counts here."""
        for node_id, tries in self._tries.items():
            node = self.nodes.get(node_id)
            run = self.reader.seen(node.run_id) if isinstance(node, RunNode) else None
            if run and last_try(run) not in tries:
                self.nodes[node_id] = run_node(self.reader.api.server, run, max(tries))


def tries_of(graph: Graph, run: RunNode) -> set[int | None]:
    """
    Say which tries of a run a graph is about.

    :param graph: The graph.
    :param run: One of its runs.
    :return: Their numbers: of those that have read or made something in it, else the last on record.
    """
    steps = [edge.step for edge in (*graph.into(run.id), *graph.out_of(run.id)) if edge.step]
    return {each.try_number for each in steps} or {run.step.try_number if run.step else None}


def last_try(run: Run) -> int | None:
    """
    Say which try of a run was recorded last.

    :param run: As MLflow answers it.
    :return: Its number; None for a run that is not from Airflow.
    """
    return number(tags_of(run).get(TRY))
