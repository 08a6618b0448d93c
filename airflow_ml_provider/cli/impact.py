"""``airflow-ml impact``: what has to be made again if some data was wrong."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from rich.text import Text

from airflow_ml_provider.cli.connection import open_api
from airflow_ml_provider.cli.facts import aliases, console, data_facts, plain, trained
from airflow_ml_provider.lineage.impact import Impact, ImpactedModel, ImpactedTask, impact

RUNS_SHOWN = 3
DATA_SHOWN = 5
MODELS_SHOWN = 20


def run(args: Namespace) -> int:
    """
    Print what came of some data.

    :param args: ``dataset``, ``json`` and ``conn_id``.
    :return: 0.
    :raises ConfigError: the URI or the connection is wrong; a retry never helps.
    :raises RemoteNotFoundError: no step on record has read such data.
    """
    with open_api(args.conn_id) as api:
        found = impact(api, args.dataset)
    if args.json:
        print(found.model_dump_json(indent=2))
    else:
        console().print(in_words(found))
    return 0


def in_words(found: Impact) -> Text:
    """
    Describe what came of data.

    :param found: All of it.
    :return: What is in use first.
    """
    text = Text.assemble((f"If this was wrong: {plain(found.asked)}", "bold"))
    for data in found.datasets[:DATA_SHOWN]:
        text.append(f"\n  {', '.join(plain(each) for each in (data.name, *data_facts(data), data.uri or '') if each)}")
    if len(found.datasets) > DATA_SHOWN:
        text.append(f"\n  and {len(found.datasets) - DATA_SHOWN} other contents that it had: ask for one by its sha256")
    used = [each for each in found.models if each.aliases]
    registered = [each for each in found.models if each.versions and not each.aliases]
    loose = [each for each in found.models if not each.versions]
    _add_models(text, "Train again: models with an alias, so in use or about to be", used, None)
    _add_models(text, "Train again: other registered models", registered, MODELS_SHOWN)
    _add_models(text, "Trained on it, and not registered", loose, MODELS_SHOWN)
    if not found.models:
        text.append("\n\nNo model on record came of it.")
    if found.tasks:
        text.append("\n\nRun again", style="bold yellow")
    for dag_id in dict.fromkeys(each.dag_id for each in found.tasks):
        text.append(f"\n  {_dag(dag_id, [each for each in found.tasks if each.dag_id == dag_id])}")
    for gap in found.gaps:
        text.append(f"\n\n{plain(gap.id.partition(':')[2])}: {plain(gap.reason)}", style="red")
    return text


def _add_models(text: Text, title: str, models: Sequence[ImpactedModel], limit: int | None) -> None:
    if models:
        text.append(f"\n\n{title}", style="bold yellow")
    for each in models[:limit]:
        text.append(f"\n  {plain(named(each))}", style="bold green").append(f"  {trained(each.model, each.run)}")
    if limit is not None and len(models) > limit:
        text.append(f"\n  {len(models) - limit} more (--json)")


def named(each: ImpactedModel) -> str:
    """
    Name a model by what was registered of it.

    :param each: The model.
    :return: Its versions with their aliases; its own name and id without any.
    """
    versions = [" ".join([f"{version.name} version {version.version}", *aliases(version)]) for version in each.versions]
    return ", ".join(versions) or f"{each.model.name} {each.model.model_id}"


def _dag(dag_id: str, tasks: Sequence[ImpactedTask]) -> str:
    runs = list(dict.fromkeys(run for each in tasks for run in each.dag_run_ids))
    names = ", ".join(plain(each.task_id) for each in tasks)
    if not dag_id:
        return f"runs that are not from Airflow: {names}"
    shown = ", ".join(plain(each) for each in runs[:RUNS_SHOWN]) + (" and earlier" if len(runs) > RUNS_SHOWN else "")
    return f"{plain(dag_id)}: {names}  ({len(runs)} DAG {'run' if len(runs) == 1 else 'runs'}: {shown})"
