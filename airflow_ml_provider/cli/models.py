"""``airflow-ml models``: the models on record, the newest first, and those that were trained on data of some kind."""

from __future__ import annotations

from argparse import Namespace

from rich.text import Text

from airflow_ml_provider.cli.connection import open_api
from airflow_ml_provider.cli.facts import aliases, console, data_facts, plain, trained
from airflow_ml_provider.lineage.condition import Condition
from airflow_ml_provider.lineage.trained import TrainedModels, data_of, trained_on
from airflow_ml_provider.models.lineage import ModelNode, RunNode, VersionNode


def run(args: Namespace) -> int:
    """
    Print models.

    :param args: ``trained_on``, ``limit``, ``json`` and ``conn_id``.
    :return: 0, also when there are none.
    :raises ConfigError: the condition or the connection is wrong; a retry never helps.
    """
    condition = args.trained_on or ""
    with open_api(args.conn_id) as api:
        found = trained_on(api, condition, limit=args.limit or None)
    if args.json:
        print(found.graph.model_dump_json(indent=2))
    else:
        console().print(in_words(found, condition))
    return 0


def in_words(found: TrainedModels, condition: str) -> Text:
    """
    Describe models and what they were trained on.

    :param found: The models.
    :param condition: What was asked.
    :return: The newest first.
    """
    text = Text()
    wanted = Condition.parse(condition) if condition else None
    for key in found.graph.start:
        model = found.graph.by_id.get(key)
        if isinstance(model, ModelNode):
            _add(text, found, model, wanted)
    if not found.graph.start:
        text.append(_nothing(found, wanted))
    if found.more:
        text.append(f"The newest {len(found.graph.start)}; there are more: --limit 0 for all.", style="dim")
    text.rstrip()
    return text


def _add(text: Text, found: TrainedModels, model: ModelNode, wanted: Condition | None) -> None:
    graph = found.graph
    versions = [node for edge in graph.out_of(model.id) if isinstance(node := graph.by_id.get(edge.target), VersionNode)]
    named = ", ".join(" ".join([f"{each.name} version {each.version}", *aliases(each)]) for each in versions)
    run = graph.by_id.get(f"run:{model.run_id}")
    text.append(plain(named or f"{model.name} {model.model_id}"), style="bold green")
    text.append(f"  {trained(model, run if isinstance(run, RunNode) else None)}\n")
    for data in data_of(graph, model):
        mark = "*" if wanted and wanted.holds_for(data) else " "
        outside = "" if data.run_id else data.uri or ""
        text.append(f"  {mark} {', '.join(plain(each) for each in (data.name, *data_facts(data), outside) if each)}\n")


def _nothing(found: TrainedModels, wanted: Condition | None) -> str:
    if wanted is None or not found.looked_at:
        return "No model on record. Models are listed that a step has made as Output[Model].\n"
    words = f"None of the models of {found.looked_at} training steps was trained on such data.\n"
    unknown = sorted(wanted.numbers - set(found.numbers))
    if unknown:
        words += f"Their data has no number {', '.join(unknown)} on record; it has: {', '.join(found.numbers) or 'none'}.\n"
    return words
