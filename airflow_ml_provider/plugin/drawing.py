"""Lineage as a drawing: what somebody may see of a graph, in columns from the data to the models, each box with a place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airflow_ml_provider.models.lineage import DatasetNode, Edge, Graph, ModelNode, Node, RunNode, VersionNode
from airflow_ml_provider.plugin.addresses import Addresses
from airflow_ml_provider.plugin.internals import MayRead

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 150, 46, 32, 14, 2
BOXES = 80
"""More than so many are a list."""
WORDS = {"dataset": "data", "run": "step", "model": "model", "version": "version"}


@dataclass(frozen=True)
class Box:
    """
    A node in its place.

    :param kind: ``dataset``, ``run``, ``model`` or ``version``.
    :param word: The same for people.
    :param title: Its name.
    :param detail: One fact about it.
    :param link: Address of its page; empty for none.
    :param x: Across, of its left edge.
    :param y: Down, of its upper edge.
    :param chosen: Whether it is what was asked for.
    """

    kind: str
    word: str
    title: str
    detail: str
    link: str
    x: int
    y: int
    chosen: bool


@dataclass(frozen=True)
class Drawing:
    """
    A graph in its places.

    :param boxes: The nodes.
    :param lines: The edges, as SVG's ``path`` takes them.
    :param width: Across.
    :param height: Down.
    :param hidden: How many nodes who asks may not see.
    :param gaps: Sentences about what is gone.
    """

    boxes: Sequence[Box]
    lines: Sequence[str]
    width: int
    height: int
    hidden: int = 0
    gaps: Sequence[str] = ()

    @property
    def too_large(self) -> bool:
        """Whether it is to be a list."""
        return len(self.boxes) > BOXES


def visible_part(graph: Graph, may_read: MayRead) -> Graph:
    """
    Leave out what is of DAGs whose runs somebody may not read, and what is of no DAG.

    :param graph: Any graph.
    :param may_read: Judges the DAGs.
    :return: The steps of DAGs that may be read, what these have read and made, and versions of that.
    """
    steps = {each.id for each in graph.runs if each.step and may_read(each.step.dag_id)}
    around = {end for edge in graph.edges if {edge.source, edge.target} & steps for end in (edge.source, edge.target)}
    kept = steps | {each for each in around if not isinstance(graph.by_id.get(each), RunNode | VersionNode)}
    for each in graph.versions:
        dag_id = each.tags.get("airflow.dag_id")
        if any(edge.source in kept for edge in graph.into(each.id)) and (not dag_id or may_read(dag_id)):
            kept.add(each.id)
    return graph.only(kept)


def draw(graph: Graph, to: Addresses, dag_id: str, hidden: int = 0) -> Drawing:
    """
    Give each node a place: a column per step of the way, so that no line goes back.

    :param graph: What may be seen.
    :param to: Addresses of pages.
    :param dag_id: The DAG whose page it is.
    :param hidden: How many nodes were left out.
    :return: The drawing.
    """
    # A list needs no places, and to find those of thousands would hold the API server up.
    rows = _rows(graph, _columns(graph)) if len(graph.nodes) <= BOXES else dict.fromkeys(graph.by_id, (0, 0))
    places = {
        each: (MARGIN + column * (BOX_WIDTH + GAP_X), MARGIN + row * (BOX_HEIGHT + GAP_Y)) for each, (column, row) in rows.items()
    }
    boxes = [_box(graph, node, to, dag_id, *places[node.id]) for node in graph.nodes]
    lines = [_line(places[each.source], places[each.target]) for each in _drawn(graph)]
    return Drawing(
        boxes,
        list(dict.fromkeys(lines)),
        width=max((x for x, _ in places.values()), default=0) + BOX_WIDTH + MARGIN,
        height=max((y for _, y in places.values()), default=0) + BOX_HEIGHT + MARGIN,
        hidden=hidden,
        gaps=[each.reason for each in graph.gaps],
    )


def _drawn(graph: Graph) -> list[Edge]:
    """Leave out edges of which one end is gone."""
    return [each for each in graph.edges if {each.source, each.target} <= graph.by_id.keys()]


def _columns(graph: Graph) -> dict[str, int]:
    """Give each node the column after the last of those that it comes from; in a cycle, as far as it can be known."""
    columns = dict.fromkeys(graph.by_id, 0)
    for _ in range(len(columns)):
        before = dict(columns)
        for edge in _drawn(graph):
            columns[edge.target] = min(max(columns[edge.target], columns[edge.source] + 1), len(columns))
        if columns == before:
            break
    return columns


def _rows(graph: Graph, columns: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Give each node a row near to those that it comes from."""
    numbers = sorted(set(columns.values()))  # in a cycle, some are empty
    places: dict[str, tuple[int, int]] = {}
    for column, number in enumerate(numbers):
        members = [each for each, its in columns.items() if its == number]
        near = {each: [places[edge.source][1] for edge in graph.into(each) if edge.source in places] for each in members}
        wishes = {each: sum(rows) / len(rows) if rows else 0.0 for each, rows in near.items()}

        places |= {each: (column, row) for row, each in enumerate(sorted(members, key=wishes.__getitem__))}
    return places


def _line(source: tuple[int, int], target: tuple[int, int]) -> str:
    x1, y1 = source[0] + BOX_WIDTH, source[1] + BOX_HEIGHT // 2
    x2, y2 = target[0], target[1] + BOX_HEIGHT // 2
    middle = (x1 + x2) // 2
    return f"M{x1},{y1} C{middle},{y1} {middle},{y2} {x2},{y2}"


def _box(graph: Graph, node: Node, to: Addresses, dag_id: str, x: int, y: int) -> Box:
    title, detail = _words(graph, node)
    return Box(node.kind, WORDS[node.kind], title, detail, _link(graph, node, to, dag_id), x, y, node.id in graph.start)


def _words(graph: Graph, node: Node) -> tuple[str, str]:
    if isinstance(node, DatasetNode | ModelNode) and node.run_id and f"run:{node.run_id}" not in graph.by_id:
        # Who made it is not to be seen, and so is what the maker says of it: its readers have a name for it.
        return next((each.name for each in graph.out_of(node.id) if each.name), WORDS[node.kind]), ""
    if isinstance(node, RunNode):
        return (node.step.label, node.step.dag_run_id) if node.step else (node.name, "")
    if isinstance(node, DatasetNode):
        rows = node.numbers.get("rows")
        return node.name, f"{rows:,.0f} rows" if rows is not None else (node.sha256 or node.digest)[:12]
    if isinstance(node, VersionNode):
        return f"{node.name} {node.version}", ", ".join(f"@{each}" for each in node.aliases)
    return node.name or node.model_id, ", ".join(f"{name} {value:.4g}" for name, value in list(node.metrics.items())[:1])


def _link(graph: Graph, node: Node, to: Addresses, dag_id: str) -> str:
    """Lead from a step to its page, from a version to its own, and from data and models to the step that has made them."""
    if isinstance(node, VersionNode):
        return to.model(dag_id, node.name, node.version)
    run = node if isinstance(node, RunNode) else None
    if isinstance(node, DatasetNode | ModelNode):
        found = graph.by_id.get(f"run:{node.run_id}")
        run = found if isinstance(found, RunNode) else None
    step = run.step if run else None
    return to.step(step.dag_id, step.dag_run_id, step.task_id, step.map_index) if step else ""
