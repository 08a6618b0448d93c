"""Datasets, runs, models and versions in words: names and dates first, ids last, text of others on one line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import datetime

from rich.console import Console
from rich.text import Text

from airflow_ml_provider.models.lineage import DatasetNode, ModelNode, Node, RunNode, Step, VersionNode

SHA_LENGTH = 12
VALUE_LENGTH = 60
"""Characters of a parameter that are shown; ``--json`` has it whole."""
VALUES_SHOWN = 20
ENDLESS = 1_000_000
KILO = 1000


def console() -> Console:
    """
    Open standard output for people.

    :return: A console; where it is no terminal, lines are as long as they are.
    """
    found = Console(highlight=False)
    if not found.is_terminal:  # a pipe or a file has no width; the colours rich leaves out by itself
        found.width = ENDLESS
    return found


def label_of(node: Node, *, brief: bool = False, tries: Collection[int | None] = ()) -> Text:
    """
    Describe a node.

    :param node: Any node.
    :param brief: Leave out parameters, metrics and code of a run.
    :param tries: The tries of a run that count; empty takes the last on record.
    :return: One line, and more for a run.
    """
    if isinstance(node, RunNode):
        return _run(node, brief, tries)
    if isinstance(node, DatasetNode):
        return label(node.name, "bold cyan", *data_facts(node), "" if node.run_id else node.uri or "")
    if isinstance(node, VersionNode):
        return label(f"{node.name} version {node.version}", "bold green", *aliases(node), moment(node.created))
    text = label(node.name, "bold green", moment(node.created), *content(node), node.model_id)
    return add_line(text, "metrics", numbers(node.metrics))


def label(name: str, style: str, *facts: str) -> Text:
    """
    Write a name and what is known of it.

    :param name: The name.
    :param style: Style of it.
    :param facts: What is known; empty texts are left out.
    :return: One line.
    """
    known = ", ".join(plain(fact) for fact in facts if fact)
    return Text.assemble((plain(name), style), f"  {known}" if known else "")


def add_line(text: Text, title: str, values: Iterable[str], limit: int | None = VALUE_LENGTH) -> Text:
    """
    Add a line of values to a label, unless there are none.

    :param text: The label.
    :param title: First word of the line.
    :param values: What follows; empty texts are left out.
    :param limit: Characters of a value that are shown; None for all.
    :return: The label.
    """
    shown = [plain(value, limit) for value in values if value]
    shown[VALUES_SHOWN:] = [f"{len(shown) - VALUES_SHOWN} more (--json)"] if len(shown) > VALUES_SHOWN else []
    if shown:
        text.append(f"\n{title} ", style="dim").append(", ".join(shown))
    return text


def plain(text: str, limit: int | None = None) -> str:
    """
    Keep text of others to one line, without what would move the cursor.

    :param text: Any text.
    :param limit: Characters that are shown; None for all.
    :return: The line.
    """
    line = "".join(each if each.isprintable() else " " for each in text)
    return line if limit is None or len(line) <= limit else f"{line[:limit]}..."


def data_facts(data: DatasetNode) -> tuple[str, ...]:
    """
    Say what data is: its numbers, size and digest.

    :param data: The data.
    :return: Facts.
    """
    known = content(data) or ((f"digest {data.digest}",) if data.digest else ())
    return (*(f"{count(value)} {name}" for name, value in data.numbers.items()), *known)


def content(of: DatasetNode | ModelNode) -> tuple[str, ...]:
    """
    Say what its bytes are.

    :param of: Data or a model.
    :return: Size and digest, where they are on record.
    """
    if of.sha256 is None:
        return ()
    return ("" if of.size is None else size(of.size), f"sha256 {of.sha256[:SHA_LENGTH]}")


def aliases(version: VersionNode) -> list[str]:
    """
    Name the aliases of a version.

    :param version: The version.
    :return: Each with its ``@``.
    """
    return [f"@{alias}" for alias in version.aliases]


def numbers(metrics: Mapping[str, float]) -> list[str]:
    """
    Write metrics.

    :param metrics: Value per name.
    :return: ``name=value`` of each.
    """
    return [f"{name}={value:.4g}" for name, value in metrics.items()]


def count(value: float) -> str:
    """
    Write a number as people write it.

    :param value: The number.
    :return: Whole numbers with commas, others with 6 digits.
    """
    return f"{int(value):,}" if float(value).is_integer() else f"{value:.6g}"


def size(of: float) -> str:
    """
    Write a size.

    :param of: Bytes.
    :return: In B, kB, MB or GB.
    """
    for unit in ("B", "kB", "MB"):
        if of < KILO:
            return f"{of:.0f} B" if unit == "B" else f"{of:.1f} {unit}"
        of /= KILO
    return f"{of:.1f} GB"


def moment(when: datetime | None) -> str:
    """
    Write a time.

    :param when: The time; None for none.
    :return: Day, hour and minute.
    """
    return f"{when:%Y-%m-%d %H:%M} UTC" if when else ""


def where(step: Step | None) -> str:
    """
    Say where a step belongs.

    :param step: The step; None for a run that is not from Airflow.
    :return: DAG and DAG run.
    """
    return f"{step.dag_id} {step.dag_run_id}" if step else ""


def trained(model: ModelNode, run: RunNode | None) -> str:
    """
    Say when and by which step a model was trained.

    :param model: The model.
    :param run: Its run; None when it is gone.
    :return: Some words.
    """
    by = f" by {run.name}" if run else ""
    of = f" of {where(run.step)}" if run and run.step else ""
    return plain(f"trained {moment(model.created)}{by}{of}")


def _run(run: RunNode, brief: bool, tries: Collection[int | None]) -> Text:
    notes = [
        run.status.lower(),
        "deleted in MLflow, where it can be restored" if run.deleted else "",
        "taken from the cache" if run.cached_from else "",
    ]
    took = f"{(run.ended - run.started).total_seconds():.1f} s" if run.started and run.ended else ""
    well = run.status == "FINISHED" and not run.deleted
    text = label(run.name, "bold yellow" if well else "bold red", *notes, moment(run.started), took)
    if not brief:
        add_line(text, "params", [f"{key}={value}" for key, value in run.params.items()])
        add_line(text, "metrics", numbers(run.metrics))
    if run.step:
        add_line(text, "of", [where(run.step), _try(run.step.try_number, tries)], limit=None)
    if not brief:
        add_line(text, "commit", [run.git_commit or ""])
        add_line(text, "image", [run.image or ""], limit=None)
    return add_line(text, "log", [run.log_url or run.url], limit=None)


def _try(last: int | None, tries: Collection[int | None]) -> str:
    """Name the try; MLflow keeps but the parameters of one that a later one has followed."""
    if not tries or last in tries:
        return f"try {last}"
    return f"try {max(filter(None, tries), default='?')} (state, metrics and code are those of try {last})"
