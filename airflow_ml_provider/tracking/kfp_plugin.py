"""
What KFP's own MLflow plugin has written of a pipeline run: one MLflow run for it, and below it one for each task.

The plugin (server 2.17 and later, switched on by its administrator) logs what a task was given as parameters, in JSON, and the
numbers of its ``Metrics`` outputs, all at time and step 0. A task served from the cache has a run with the numbers of before.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from airflow_ml_provider.core.kfp_outputs import DeclaredOutputs
from airflow_ml_provider.exceptions import RemoteNotFoundError
from airflow_ml_provider.models.kfp_results import KfpOutput, KfpResults
from airflow_ml_provider.tracking.runs import PARENT, Run, RunTree, age, run_id_of, tags_of

log = logging.getLogger(__name__)

KFP_RUN_ID = "kfp.pipeline_run_id"
"""The plugin's tag of the MLflow run of a pipeline run."""
DEFAULT_EXPERIMENT = "KFP-Default"
"""Where the plugin writes what nobody has asked for elsewhere."""


@dataclass(frozen=True)
class PluginTask:
    """
    What the plugin wrote of one task.

    :param name: The task.
    :param run_id: Its MLflow run.
    :param metrics: Number per name.
    """

    name: str
    run_id: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class PluginRun:
    """
    What the plugin wrote of a pipeline run.

    :param run_id: Its MLflow run.
    :param experiment_id: Experiment of it.
    :param parent_run_id: MLflow run that it stands below; empty for none.
    :param tasks: Its tasks.
    """

    run_id: str
    experiment_id: str
    parent_run_id: str = ""
    tasks: tuple[PluginTask, ...] = ()


def find_plugin_run(tree: RunTree, kfp_run_id: str, told: Mapping[str, str], experiment_id: str) -> PluginRun | None:
    """
    Find what the plugin wrote of a run, if it wrote to this MLflow server.

    :param tree: The runs of the server.
    :param kfp_run_id: The pipeline run.
    :param told: What the pipeline server says of it (``root_run_id``, ``experiment_id``); empty when it says nothing.
    :param experiment_id: Experiment to look in besides.
    :return: The newest; None when there is none on this server.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    root = _by_id(tree, told.get("root_run_id", ""), kfp_run_id) or _by_tag(tree, kfp_run_id, told, experiment_id)
    if root is None:
        return None
    own = str(root["info"]["experiment_id"])
    children = sorted(tree.search([own], f"tags.`{PARENT}` = '{run_id_of(root)}'"), key=age)
    return PluginRun(run_id_of(root), own, tags_of(root).get(PARENT, ""), tuple(map(_task, children)))


def take_as_child(tree: RunTree, found: PluginRun, run_id: str, experiment_id: str) -> bool:
    """
    Put the plugin's run below one of ours; MLflow shows a tree within one experiment only. Safe to repeat.

    :param tree: The runs of the server.
    :param found: The plugin's run.
    :param run_id: Our nested run.
    :param experiment_id: Experiment of ours.
    :return: Whether it stands there now.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    if found.experiment_id != experiment_id or found.parent_run_id not in {"", run_id}:
        return False
    if not found.parent_run_id:
        tree.set_tags(found.run_id, {PARENT: run_id})
    return True


def results_of_plugin(found: PluginRun, declared: DeclaredOutputs) -> KfpResults:
    """
    Read the numbers that the plugin wrote as outputs of the tasks.

    :param found: What it wrote.
    :param declared: What the pipeline declares: the plugin does not say which output a number belongs to.
    :return: The outputs of type ``Metrics``; of a task with several of them each number by itself.
    """
    outputs, notes = list[KfpOutput](), [f"KFP's MLflow plugin has run {found.run_id} with {len(found.tasks)} tasks."]
    for name, some in _told_apart(found.tasks, declared).items():
        names = [each.name for each in declared.of(name) if each.type == "Metrics"]
        if len(set(names)) != 1:
            notes.append(f"The plugin does not say which of the outputs {names} of task {name!r} its numbers are of.")
        loop = None if len(some) > 1 else (0,) if any(each.looped for each in declared.of(name)) else ()
        for metrics in some:
            outputs += _outputs(name, sorted(set(names)), metrics, loop)
    return KfpResults(outputs=tuple(outputs), notes=tuple(notes))


def _told_apart(tasks: Iterable[PluginTask], declared: DeclaredOutputs) -> dict[str, list[Mapping[str, float]]]:
    """Put the numbers of each task together: of one that ran again the newest, of one in a loop, or of several, all."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for task in tasks:
        if not task.metrics:
            continue
        made = declared.of(task.name)
        several = any(each.looped for each in made) or len({each.name for each in made}) < len(made)
        found[task.name] = [*(found.get(task.name, []) if several else []), task.metrics]
    return found


def _outputs(task: str, names: Sequence[str], metrics: Mapping[str, float], loop: tuple[int, ...] | None) -> Iterator[KfpOutput]:
    """Write the numbers of one execution as its output of type ``Metrics``; where it may be of several, each number by itself."""
    if len(names) == 1:
        value = next(iter(metrics.values())) if len(metrics) == 1 else None
        yield KfpOutput(
            name=names[0], task=task, type="Metrics", metadata=dict(metrics), value=value, source="mlflow-plugin", loop=loop
        )
        return
    for key, value in metrics.items():
        told = {"kind": "parameter", "type": "NUMBER_DOUBLE", "value": value, "source": "mlflow-plugin", "loop": loop}
        yield KfpOutput.model_validate({"name": key, "task": task} | told)


def _by_id(tree: RunTree, run_id: str, kfp_run_id: str) -> Run | None:
    if not run_id:
        return None
    try:
        found = tree.get(run_id)
    except RemoteNotFoundError:
        return None
    return found if tags_of(found).get(KFP_RUN_ID) in {None, kfp_run_id} else None


def _by_tag(tree: RunTree, kfp_run_id: str, told: Mapping[str, str], experiment_id: str) -> Run | None:
    """Look where the plugin may have written; a create that was repeated has made several, of which the newest counts."""
    places = {experiment_id} | ({told["experiment_id"]} if told.get("experiment_id") else set())
    try:
        answer = tree.api.get("experiments/get-by-name", experiment_name=DEFAULT_EXPERIMENT)
        places.add(str(answer["experiment"]["experiment_id"]))
    except RemoteNotFoundError:
        log.debug("There is no experiment %s.", DEFAULT_EXPERIMENT)
    if "'" in kfp_run_id:  # MLflow's search knows no way to quote one, and no id of ours has it
        return None
    found = sorted(tree.search(sorted(places), f"tags.`{KFP_RUN_ID}` = '{kfp_run_id}'"), key=age)
    return found[-1] if found else None


def _task(run: Run) -> PluginTask:
    data = run.get("data") or {}
    metrics = {str(each["key"]): float(each["value"]) for each in data.get("metrics") or ()}
    name = tags_of(run).get("mlflow.runName") or str(run["info"].get("run_name") or "")
    return PluginTask(name, run_id_of(run), metrics)
