"""A registered model over time: its versions that who asks may see, and the points of a chart per metric."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airflow_ml_provider.exceptions import RemoteNotFoundError
from airflow_ml_provider.lineage.reading import Model, Reader
from airflow_ml_provider.lineage.values import model_node, run_node, step_of, version_node, versions_in
from airflow_ml_provider.models.lineage import Asked, VersionNode
from airflow_ml_provider.models.reference import model_id_of
from airflow_ml_provider.plugin.addresses import Addresses
from airflow_ml_provider.plugin.internals import MayRead
from airflow_ml_provider.tracking.lineage_tags import TRAINED_ON
from airflow_ml_provider.tracking.page_models import find_registered, find_versions
from airflow_ml_provider.tracking.page_runs import PageApi
from airflow_ml_provider.tracking.registry import CHAMPION
from airflow_ml_provider.tracking.runs import Run, tags_of

CHARTS = 6
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300, 120, 12, 12, 14, 14


@dataclass(frozen=True)
class Version:
    """
    A version as the page shows it.

    :param node: What the registry has of it.
    :param page: Address of this page about it.
    :param mlflow: Address of MLflow's page about it.
    :param night: Id of the DAG run that made it; empty when it is not on record.
    :param made_by: Address of the page of the step that made it.
    :param metrics: Number per name.
    """

    node: VersionNode
    page: str
    mlflow: str
    night: str
    made_by: str
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Point:
    """
    A point of a chart.

    :param x: Across.
    :param y: Down.
    :param value: The number.
    :param version: The version that has it.
    """

    x: float
    y: float
    value: float
    version: Version


@dataclass(frozen=True)
class Chart:
    """
    One metric over versions.

    :param name: The metric.
    :param points: Oldest first.
    :param low: The smallest value.
    :param high: The largest value.
    """

    name: str
    points: Sequence[Point]
    low: float
    high: float

    @property
    def line(self) -> str:
        """The points as SVG's ``polyline`` takes them."""
        return " ".join(f"{each.x:.1f},{each.y:.1f}" for each in self.points)


@dataclass(frozen=True)
class ModelHistory:
    """
    A registered model.

    :param name: Its name.
    :param versions: Those that are shown, the newest first.
    :param chosen: The one that is looked at.
    :param hidden: Whether there are others that who asks may not see.
    :param uri: URI by which the lineage of the chosen one is asked; empty where none can be.
    """

    name: str
    versions: Sequence[Version]
    chosen: Version
    hidden: bool
    uri: str

    @property
    def charts(self) -> list[Chart]:
        """A chart per metric that two versions or more have, at most six."""
        counts = Counter(name for each in self.versions for name in each.metrics if not name.startswith(TRAINED_ON))
        names = sorted((name for name, times in counts.items() if times > 1), key=lambda name: (-counts[name], name))
        return [chart(name, self.versions) for name in names[:CHARTS]]


def read_history(api: PageApi, to: Addresses, dag_id: str, name: str, number: str, may_read: MayRead) -> ModelHistory:
    """
    Read a registered model.

    :param api: The server.
    :param to: Addresses of pages.
    :param dag_id: The DAG whose page it is.
    :param name: Name of the model.
    :param number: Number of the version to look at; empty for the champion, else the newest.
    :param may_read: Judges the DAGs that have made its versions.
    :return: The model, with at least one version.
    :raises RemoteNotFoundError: there is none that who asks may see; the same for a model that is not there.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    nodes = [version_node(each, each["aliases"]) for each in find_versions(api, name, number)]
    reader = Reader(api)
    runs = reader.runs(each.run_id for each in nodes if each.run_id)
    allowed = [each for each in nodes if _may_see(each, runs.get(each.run_id or ""), may_read)]
    models = reader.models(key for each in allowed if (key := model_id_of(each.source)))
    versions = [_version(api, to, dag_id, each, runs, models) for each in allowed]
    chosen = _choose(versions, number)
    if chosen is None:
        raise RemoteNotFoundError(f"There is no version of a model {name!r} that is of DAGs whose runs you may read.")
    return ModelHistory(name, versions, chosen, len(allowed) < len(nodes), _uri(chosen.node))


def chart(name: str, versions: Sequence[Version]) -> Chart:
    """
    Lay out a metric over versions, at equal distances.

    :param name: The metric.
    :param versions: The newest first.
    :return: The chart; without the versions that lack a finite value.
    """
    old_first = [each for each in reversed(versions) if name in each.metrics]
    values = [each.metrics[name] for each in old_first]
    low, high = min(values), max(values)
    # Halves, so that the largest numbers have a difference too.
    span = high / 2 - low / 2
    step = (WIDTH - LEFT - RIGHT) / max(len(values) - 1, 1)
    points = [
        Point(
            LEFT + step * place if len(values) > 1 else WIDTH / 2,
            TOP + (HEIGHT - TOP - BOTTOM) * ((high / 2 - value / 2) / span if span else 0.5),
            value,
            version,
        )
        for place, (value, version) in enumerate(zip(values, old_first, strict=True))
    ]
    return Chart(name, points, low, high)


def registered(api: PageApi, experiment_id: str, model_ids: Sequence[str]) -> list[tuple[str, str]]:
    """
    Say which versions were registered of models.

    :param api: The server.
    :param experiment_id: Experiment of the models.
    :param model_ids: Ids of LoggedModels.
    :return: Name and number of each, in the order of the models.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    found = find_registered(api, experiment_id, model_ids)
    return list(dict.fromkeys(version for each in found for version in versions_in(each)))


def _may_see(version: VersionNode, run: Run | None, may_read: MayRead) -> bool:
    """Judge a version by all DAGs that are on record as its makers; of one that has none, nobody knows whose it is."""
    step = step_of(tags_of(run)) if run else None
    dags = {version.tags.get("airflow.dag_id", ""), step.dag_id if step else ""} - {""}
    return bool(dags) and all(may_read(each) for each in dags)


def _version(
    api: PageApi, to: Addresses, dag_id: str, node: VersionNode, runs: Mapping[str, Run], models: Mapping[str, Model]
) -> Version:
    run = runs.get(node.run_id or "")
    maker = run_node(api.server, run) if run else None
    step = maker.step if maker else None
    model = models.get(model_id_of(node.source))
    made = model_node(model) if model else None
    # Tries of a step are one run, whose metrics are those of the last of them.
    overtaken = made and step and made.run_id == node.run_id and made.try_number not in {None, step.try_number}
    metrics = (made.metrics if made else {}) or (maker.metrics if maker and not overtaken else {})
    return Version(
        node=node,
        page=to.model(dag_id, node.name, node.version),
        mlflow=api.server.model_page(node.name, node.version),
        night=step.dag_run_id if step else node.tags.get("airflow.run_id", ""),
        made_by=to.step(step.dag_id, step.dag_run_id, step.task_id, step.map_index) if step else "",
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
    )


def _choose(versions: Sequence[Version], number: str) -> Version | None:
    if number:
        return next((each for each in versions if each.node.version == number), None)
    champions = [each for each in versions if CHAMPION in each.node.aliases]
    return next(iter([*champions, *versions]), None)


def _uri(version: VersionNode) -> str:
    """Name a version so that lineage can be asked of it: of some names the registry takes, a URI cannot be made."""
    named = f"models:/{version.name}/{version.version}"
    try:
        parsed = Asked.parse(named)
    except ValueError:
        parsed = Asked()
    if (parsed.name, parsed.number) == (version.name, version.version):
        return named
    model_id = model_id_of(version.source)
    return f"models:/{model_id}" if model_id else ""
