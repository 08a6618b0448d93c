"""What has to be made again if some data was wrong: models with their versions and aliases, and the steps between."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.lineage.query import trace
from airflow_ml_provider.lineage.reading import Reader
from airflow_ml_provider.lineage.work import DEPTH_LIMIT
from airflow_ml_provider.models.lineage import DatasetNode, Gap, Graph, ModelNode, RunNode, VersionNode


class ImpactedModel(BaseModel):
    """
    A model that came of the data.

    :param model: The model.
    :param versions: What was registered of it, those with an alias first.
    :param run: The step that trained it; None when it is gone.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    model: ModelNode
    versions: tuple[VersionNode, ...] = ()
    run: RunNode | None = None

    @property
    def aliases(self) -> tuple[str, ...]:
        """All aliases that point to it: where there are any, somebody may be using it now."""
        return tuple(alias for each in self.versions for alias in each.aliases)


class ImpactedTask(BaseModel):
    """
    A task whose steps have read the data, or what was made of it.

    :param dag_id: DAG; empty for runs that are not from Airflow.
    :param task_id: Task; the name of the run where it is not from Airflow.
    :param dag_run_ids: DAG runs, the newest first.
    :param runs: Its steps in all of them.
    """

    model_config = ConfigDict(frozen=True)

    dag_id: str
    task_id: str
    dag_run_ids: tuple[str, ...] = ()
    runs: int


class Impact(BaseModel):
    """
    What came of some data.

    :param asked: What was asked for.
    :param datasets: The data that this names.
    :param models: Models to train again: those with an alias first, then the newest.
    :param tasks: Tasks to run again, in the order in which they ran.
    :param gaps: Where the way could not be followed.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    asked: str
    datasets: tuple[DatasetNode, ...] = ()
    models: tuple[ImpactedModel, ...] = ()
    tasks: tuple[ImpactedTask, ...] = ()
    gaps: tuple[Gap, ...] = ()


def impact(api: MlflowApi, dataset: str, *, depth_limit: int = DEPTH_LIMIT) -> Impact:
    """
    Say what came of some data.

    :param api: The server.
    :param dataset: ``runs:/<run>/<path>``, at least 12 digits of a sha256, or a URI as a step has read it; a model or a
        whole run too.
    :param depth_limit: Steps to the farthest run that is looked at, 1 or more.
    :return: All of it.
    :raises ConfigError: the URI has none of the known forms; a retry never helps.
    :raises RemoteNotFoundError: there is no such run or model, or no step on record has read such data.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    graph = trace(api, dataset, direction="down", depth_limit=depth_limit, reader=Reader(api))
    return impact_of(graph)


def impact_of(graph: Graph) -> Impact:
    """
    Sum up what lies below the start of a graph.

    :param graph: A graph that was followed downwards.
    :return: The sum.
    """
    named = set(graph.start)
    start = [graph.by_id[each] for each in graph.start if each in graph.by_id]
    # The model of a version that was asked for did not come of it. A step may have: a later try of its maker may have read it.
    behind = (edge.source for each in graph.start for edge in graph.into(each))
    own = named | {each for each in behind if isinstance(graph.by_id.get(each), ModelNode)}
    below = [each for each in graph.nodes if each.id not in own]
    models = [_model(graph, each) for each in below if isinstance(each, ModelNode)]
    return Impact(
        asked=graph.asked,
        datasets=tuple(each for each in start if isinstance(each, DatasetNode)),
        models=tuple(sorted(models, key=_urgency)),
        tasks=tuple(_tasks([each for each in below if isinstance(each, RunNode)])),
        gaps=graph.gaps,
    )


def _model(graph: Graph, model: ModelNode) -> ImpactedModel:
    versions = [node for edge in graph.out_of(model.id) if isinstance(node := graph.by_id.get(edge.target), VersionNode)]
    run = graph.by_id.get(f"run:{model.run_id}")
    return ImpactedModel(
        model=model,
        versions=tuple(sorted(versions, key=lambda each: (not each.aliases, each.name, -int(each.version)))),
        run=run if isinstance(run, RunNode) else None,
    )


def _urgency(each: ImpactedModel) -> tuple[bool, bool, float]:
    created = each.model.created
    return not each.aliases, not each.versions, -created.timestamp() if created else 0.0


def _tasks(runs: Iterable[RunNode]) -> list[ImpactedTask]:
    by_task: dict[tuple[str, str], list[RunNode]] = {}
    for each in sorted(runs, key=lambda run: run.started.timestamp() if run.started else 0.0):
        by_task.setdefault((each.step.dag_id, each.step.task_id) if each.step else ("", each.name), []).append(each)
    return [
        ImpactedTask(
            dag_id=dag_id,
            task_id=task_id,
            dag_run_ids=tuple(dict.fromkeys(each.step.dag_run_id for each in reversed(some) if each.step)),
            runs=len(some),
        )
        for (dag_id, task_id), some in sorted(by_task.items(), key=lambda item: item[0][0])
    ]
