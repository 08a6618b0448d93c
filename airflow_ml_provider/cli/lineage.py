"""``airflow-ml lineage``: the way from a model back to the raw data, for people and as JSON."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping
from datetime import datetime

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from airflow_ml_provider.cli.connection import open_api
from airflow_ml_provider.lineage.query import trace
from airflow_ml_provider.models.lineage import DatasetRead, Lineage, LoggedModel, ModelVersion, StepRun

SHA_LENGTH = 12
VALUE_LENGTH = 60
"""Characters of a parameter that are shown; ``--json`` has it whole."""
VALUES_SHOWN = 20
ENDLESS = 1_000_000
KILO = 1000
UNKNOWN_MAKER = "nobody has recorded which run made it"


def run(args: Namespace) -> int:
    """
    Print a lineage.

    :param args: ``uri``, ``json`` and ``conn_id``.
    :return: 0.
    :raises ConfigError: the URI or the connection is wrong; a retry never helps.
    :raises RemoteNotFoundError: what the URI names does not exist.
    """
    with open_api(args.conn_id) as api:
        found = trace(api, args.uri)
    if args.json:
        print(found.model_dump_json(indent=2))
    else:
        console = Console(highlight=False)
        if not console.is_terminal:  # a pipe or a file has no width; the colours rich leaves out by itself
            console.width = ENDLESS
        console.print(LineageTree(found).render())
    return 0


class LineageTree:
    """
    Draws a lineage as a tree; what is reached a second time is only named.

    :param lineage: What to draw.
    """

    def __init__(self, lineage: Lineage) -> None:
        self.lineage = lineage
        self._steps = {step.run_id: step for step in lineage.steps}
        known = (lineage.model, *lineage.models)
        self._models = {model.model_id: model for model in known if model is not None}
        self._gaps = {gap.id: gap.reason for gap in lineage.gaps}
        self._drawn: set[str] = set()

    def render(self) -> Tree:
        """
        Draw it.

        :return: The tree, its root what was asked for.
        """
        lineage = self.lineage
        root = branch = Tree(_label(lineage.uri, "bold"))
        if lineage.model_version is not None:
            branch = branch.add(_version(lineage.model_version))
        if lineage.model is not None:
            branch = branch.add(_model(lineage.model))
            self._drawn.add(lineage.model.model_id)
        self._add_run(branch, lineage.run_id, UNKNOWN_MAKER)
        for key in sorted(self._gaps.keys() - self._drawn):
            root.add(self._gap(key))
        return root

    def _add_run(self, branch: Tree, run_id: str | None, otherwise: str) -> None:
        """Add a run and all that lies behind it."""
        step = self._steps.get(run_id or "")
        if run_id is None:
            branch.add(_label(otherwise, "dim"))
        elif step is None:
            branch.add(self._gap(run_id))
        elif run_id in self._drawn:
            branch.add(_label(f"{step.name} (see above)", "dim"))
        else:
            self._drawn.add(run_id)
            below = branch.add(_step(step))
            for dataset in step.datasets:
                self._add_run(below.add(_dataset(dataset)), dataset.run_id, "from outside: no run has made it")
            for model_id in step.models:
                self._add_model(below, model_id)

    def _add_model(self, branch: Tree, model_id: str) -> None:
        model = self._models.get(model_id)
        if model is None:
            branch.add(self._gap(model_id))
        elif model_id in self._drawn:
            branch.add(_label(f"{model.name} {model_id} (see above)", "dim"))
        else:
            self._drawn.add(model_id)
            self._add_run(branch.add(_model(model)), model.run_id, UNKNOWN_MAKER)

    def _gap(self, key: str) -> Text:
        self._drawn.add(key)
        return _label(f"{key}: {self._gaps.get(key, 'not on record')}", "red")


def _version(version: ModelVersion) -> Text:
    aliases = (f"@{alias}" for alias in version.aliases)
    return _label(f"{version.name} version {version.version}", "bold green", *aliases, _moment(version.created))


def _model(model: LoggedModel) -> Text:
    label = _label(model.name, "bold green", model.model_id, *_content(model), _moment(model.created))
    return _add_line(label, "metrics", _numbers(model.metrics))


def _dataset(dataset: DatasetRead) -> Text:
    facts = _content(dataset) or (f"digest {dataset.digest}",)
    outside = "" if dataset.run_id else dataset.uri or ""
    return _label(dataset.name, "bold cyan", *facts, outside)


def _step(step: StepRun) -> Text:
    bin_note = "deleted in MLflow, where it can be restored" if step.deleted else ""
    took = f"{(step.ended - step.started).total_seconds():.1f} s" if step.started and step.ended else ""
    well = step.status == "FINISHED" and not step.deleted
    style = "bold yellow" if well else "bold red"
    label = _label(step.name, style, step.status.lower(), bin_note, _moment(step.started), took)
    _add_line(label, "params", [f"{key}={value}" for key, value in step.params.items()])
    _add_line(label, "metrics", _numbers(step.metrics))
    if step.dag_id:
        _add_line(label, "of", [f"{step.dag_id} {step.dag_run_id}", f"try {step.try_number}"], limit=None)
    _add_line(label, "commit", [step.git_commit or ""])
    _add_line(label, "log", [step.log_url or step.url], limit=None)
    if not step.datasets and not step.models:
        label.append("\na source: it has read no artifact on record", style="dim")
    return label


def _label(name: str, style: str, *facts: str) -> Text:
    """Write a name and what is known of it."""
    known = ", ".join(_plain(fact) for fact in facts if fact)
    return Text.assemble((_plain(name), style), f"  {known}" if known else "")


def _add_line(label: Text, title: str, values: Iterable[str], limit: int | None = VALUE_LENGTH) -> Text:
    """Add a line of values to a label, unless there are none."""
    shown = [_plain(value, limit) for value in values if value]
    shown[VALUES_SHOWN:] = [f"{len(shown) - VALUES_SHOWN} more (--json)"] if len(shown) > VALUES_SHOWN else []
    if shown:
        label.append(f"\n{title} ", style="dim").append(", ".join(shown))
    return label


def _plain(text: str, limit: int | None = None) -> str:
    """Keep text of others to one line, without what would move the cursor."""
    line = "".join(each if each.isprintable() else " " for each in text)
    return line if limit is None or len(line) <= limit else f"{line[:limit]}..."


def _content(of: DatasetRead | LoggedModel) -> tuple[str, ...]:
    if of.sha256 is None:
        return ()
    return (f"sha256 {of.sha256[:SHA_LENGTH]}", "" if of.size is None else _size(of.size))


def _numbers(metrics: Mapping[str, float]) -> list[str]:
    return [f"{name}={value:.4g}" for name, value in metrics.items()]


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < KILO:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= KILO
    return f"{size:.1f} GB"


def _moment(when: datetime | None) -> str:
    return f"{when:%Y-%m-%d %H:%M} UTC" if when else ""
