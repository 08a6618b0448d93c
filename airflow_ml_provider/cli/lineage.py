"""``airflow-ml lineage``: where a model comes from, or what came of data; for people, as JSON, for Graphviz."""

from __future__ import annotations

from argparse import Namespace

from rich.text import Text
from rich.tree import Tree

from airflow_ml_provider.cli.connection import open_api
from airflow_ml_provider.cli.facts import aliases, console, data_facts, label, label_of, moment, plain, where
from airflow_ml_provider.lineage.query import trace
from airflow_ml_provider.lineage.work import tries_of
from airflow_ml_provider.models.lineage import DatasetNode, Graph, ModelNode, Node, RunNode, VersionNode

UNKNOWN_MAKER = "nobody has recorded which run made it"
OUTSIDE = "from outside: no run has made it"
INDENT, ROOM = 4, 60
"""Columns of a level of a tree, and of what is told at the deepest."""
SHAPES = {"dataset": "cylinder", "run": "box", "model": "component", "version": "note"}


def run(args: Namespace) -> int:
    """
    Print a lineage.

    :param args: ``uri``, ``down``, ``depth``, ``json``, ``dot`` and ``conn_id``.
    :return: 0.
    :raises ConfigError: the URI or the connection is wrong; a retry never helps.
    :raises RemoteNotFoundError: what the URI names does not exist.
    """
    with open_api(args.conn_id) as api:
        found = trace(api, args.uri, direction="down" if args.down else "up", depth_limit=max(1, args.depth))
    if args.json:
        print(found.model_dump_json(indent=2))
    elif args.dot:
        print(as_dot(found))
    else:
        tree = LineageTree(found, down=args.down)
        drawn, out = tree.render(), console()
        out.width = max(out.width, tree.width)  # what has no room left of the terminal's edge would be left out
        out.print(drawn)
    return 0


class LineageTree:
    """
    Draws a lineage as a tree; what is reached a second time is only named.

    :param graph: What to draw.
    :param down: Draw what came of the start, and not what it comes from.
    """

    def __init__(self, graph: Graph, *, down: bool = False) -> None:
        self.graph = graph
        self.down = down
        self._gaps = {gap.id: gap.reason for gap in graph.gaps}
        self._drawn: set[str] = set()
        self.width = 0
        """Columns that it needs, once it is drawn."""

    def render(self) -> Tree:
        """
        Draw it.

        :return: The tree, its root what was asked for.
        """
        root = Tree(label(self.graph.asked, "bold"))
        for node_id in self.graph.start:
            if node_id not in self._drawn:
                self._add(root, node_id)
        for key in sorted(self._gaps.keys() - self._drawn):
            root.add(self._gap(key))
        return root

    def _add(self, branch: Tree, node_id: str) -> None:
        """Add a node and all that lies behind it; a way may have more steps than Python takes calls in calls."""
        waiting = [(branch, node_id, 1)]
        while waiting:
            above, key, level = waiting.pop()
            self.width = max(self.width, INDENT * level + ROOM)
            node = self.graph.by_id.get(key)
            if node is None:
                above.add(self._gap(key))
            elif key in self._drawn:
                above.add(label(f"{_name(node)} (see above)", "dim"))
            else:
                self._drawn.add(key)
                below, behind = self._draw(above, node)
                waiting += [(below, each, level + 1) for each in reversed(behind)]

    def _draw(self, above: Tree, node: Node) -> tuple[Tree, list[str]]:
        behind = self._behind(node)
        tries = tries_of(self.graph, node) if isinstance(node, RunNode) else ()
        text = label_of(node, brief=self.down, tries=tries)
        if not behind and (words := self._end(node)):
            text.append(f"\n{words}", style="dim")
        below = above.add(text)
        if node.id in self._gaps:
            below.add(label(self._gaps[node.id], "red"))
        return below, behind

    def _behind(self, node: Node) -> list[str]:
        if self.down:
            return list(dict.fromkeys(edge.target for edge in self.graph.out_of(node.id)))
        return list(dict.fromkeys(edge.source for edge in self.graph.into(node.id)))

    def _end(self, node: Node) -> str:
        """Say why the way ends here, where that is no matter of course."""
        if self.down:
            return ""
        if isinstance(node, RunNode):
            return "a source: it has read no artifact on record"
        return OUTSIDE if isinstance(node, DatasetNode) else UNKNOWN_MAKER

    def _gap(self, key: str) -> Text:
        self._drawn.add(key)
        return label(f"{key.partition(':')[2]}: {self._gaps.get(key, 'not on record')}", "red")


def as_dot(graph: Graph) -> str:
    """
    Write a graph as Graphviz takes it: ``airflow-ml lineage URI --dot | dot -Tsvg``.

    :param graph: The graph.
    :return: Text in the DOT language.
    """
    lines = ["digraph lineage {", "  rankdir=LR;", '  node [fontname="Helvetica", fontsize=11];']
    for node in graph.nodes:
        words = "\\n".join(_escaped(each) for each in _dot_words(node) if each)
        style = ", penwidth=2" if node.id in graph.start else ""
        lines.append(f'  "{_escaped(node.id)}" [shape={SHAPES[node.kind]}, label="{words}"{style}];')
    for gap in graph.gaps:
        if gap.id not in graph.by_id:
            words = _escaped(f"{gap.id}: {gap.reason}")
            lines.append(f'  "{_escaped(gap.id)}" [shape=box, style=dashed, color=red, label="{words}"];')
    lines += [
        f'  "{_escaped(edge.source)}" -> "{_escaped(edge.target)}" [label="{_escaped(edge.name)}"];' for edge in graph.edges
    ]
    return "\n".join([*lines, "}"])


def _name(node: Node) -> str:
    if isinstance(node, VersionNode):
        return f"{node.name} version {node.version}"
    return f"{node.name} {node.model_id}" if isinstance(node, ModelNode) else node.name


def _dot_words(node: Node) -> list[str]:
    if isinstance(node, RunNode):
        return [node.name, where(node.step), f"{node.status.lower()} {moment(node.started)}"]
    if isinstance(node, DatasetNode):
        return [node.name, *data_facts(node), "" if node.run_id else node.uri or ""]
    if isinstance(node, VersionNode):
        return [_name(node), *aliases(node), moment(node.created)]
    return [node.name, moment(node.created), node.model_id]


def _escaped(text: str) -> str:
    return plain(text).replace("\\", "\\\\").replace('"', '\\"')
