"""
What is told of a task in OpenLineage's words: facts in, datasets and facets out.

Pure but for the import of OpenLineage's client, so whoever imports this module has it installed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow.providers.common.compat.sdk import redact
from openlineage.client.event_v2 import Dataset, InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    DatasetFacet,
    RunFacet,
    data_quality_metrics_dataset,
    data_quality_metrics_input_dataset,
    dataset_type_dataset,
    dataset_version_dataset,
    datasource_dataset,
    external_query_run,
    input_statistics_input_dataset,
    output_statistics_output_dataset,
    schema_dataset,
    symlinks_dataset,
)

from airflow_ml_provider.lineage.facts import Known, StepFacts
from airflow_ml_provider.lineage.openlineage_facets import MODEL, PRODUCER, RUN, MlflowRunFacet, ModelDatasetFacet
from airflow_ml_provider.lineage.openlineage_names import DatasetName, name_of, namespace_of, place_name

MODELS = {"Model"}
D = TypeVar("D", bound=Dataset)


@dataclass(frozen=True)
class Told:
    """
    What OpenLineage is told of a task.

    :param inputs: What it has read.
    :param outputs: What it has made.
    :param run_facets: Facets of its run.
    """

    inputs: list[InputDataset] = field(default_factory=list)
    outputs: list[OutputDataset] = field(default_factory=list)
    run_facets: dict[str, RunFacet] = field(default_factory=dict)


def told(facts: StepFacts) -> Told:
    """
    Say what a task has read and made.

    :param facts: What is known of it.
    :return: Datasets, each once, and facets.
    """
    outputs = [_output(each, facts) for each in facts.outputs]
    if facts.registered and facts.registered.get("version"):
        outputs.append(_registered(facts, facts.registered))
    return Told(_once(_input(each, facts) for each in facts.inputs), _once(outputs), _run_facets(facts))


def remote_run(system: str, run_id: str) -> dict[str, RunFacet]:
    """
    Name the run elsewhere that a task has waited for.

    :param system: Address of the system, or its name.
    :param run_id: What the run is known by there.
    :return: Facets of the task's run.
    """
    query = external_query_run.ExternalQueryRunFacet(externalQueryId=run_id, source=system, producer=PRODUCER)
    return {"externalQuery": query}


def _input(known: Known, facts: StepFacts) -> InputDataset:
    quality = data_quality_metrics_input_dataset.DataQualityMetricsInputDatasetFacet(
        columnMetrics={}, rowCount=known.rows, bytes=known.ref.size, producer=PRODUCER
    )
    read = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
        rowCount=known.rows, size=known.ref.size, producer=PRODUCER
    )
    some = known.rows is not None or known.ref.size is not None
    return InputDataset(
        *_redacted(name_of(known, facts.server)),
        facets=_facets(known, facts),
        inputFacets={"dataQualityMetrics": quality, "inputStatistics": read} if some else {},
    )


def _output(known: Known, facts: StepFacts) -> OutputDataset:
    written = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=known.rows, size=known.ref.size, producer=PRODUCER
    )
    facets = _facets(known, facts, facts.assets.get(known.output, ""))
    if known.rows is not None:
        facets["dataQualityMetrics"] = data_quality_metrics_dataset.DataQualityMetricsDatasetFacet(
            columnMetrics={}, rowCount=known.rows, bytes=known.ref.size, producer=PRODUCER
        )
    some = known.rows is not None or known.ref.size is not None
    name = _redacted(name_of(known, facts.server))
    return OutputDataset(*name, facets=facets, outputFacets={"outputStatistics": written} if some else {})


def _registered(facts: StepFacts, version: Mapping[str, Any]) -> OutputDataset:
    """Describe a registered model, whose versions are what its name has had."""
    source = next((each for each in facts.inputs if each.ref.type in MODELS), None)
    facet = ModelDatasetFacet(
        name=str(version["name"]),
        version=str(version["version"]),
        alias=version.get("alias") or None,
        modelId=(source.model_id if source else "") or None,
        framework=(source.file.framework if source else "") or None,
        metrics=dict(source.metrics) if source else {},
        mlflowRunId=(source.ref.run_id if source else "") or None,
        producer=PRODUCER,
    )
    facets: dict[str, DatasetFacet] = {
        "version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=str(version["version"]), producer=PRODUCER),
        "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(datasetType="MODEL", producer=PRODUCER),
        "dataSource": _source(DatasetName(namespace_of(facts.server), ""), facts),
        MODEL: facet,
    }
    return OutputDataset(namespace_of(facts.server), f"models/{version['name']}", facets=facets)


def _facets(known: Known, facts: StepFacts, asset: str = "") -> dict[str, DatasetFacet]:
    """Write what is said of an artifact wherever it stands."""
    ref, name = known.ref, name_of(known, facts.server)
    kind = "MODEL" if ref.type in MODELS else "FILE"
    facets: dict[str, DatasetFacet] = {
        "datasetType": dataset_type_dataset.DatasetTypeDatasetFacet(datasetType=kind, subType=ref.type, producer=PRODUCER),
        "dataSource": _source(name, facts),
    }
    if version := ref.sha256 or known.model_id or ref.run_id:
        facets["version"] = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version, producer=PRODUCER)
    if known.file.columns:
        columns = [schema_dataset.SchemaDatasetFacetFields(name=name, type=kind) for name, kind in known.file.columns.items()]
        facets["schema"] = schema_dataset.SchemaDatasetFacet(fields=columns, producer=PRODUCER)
    if links := _symlinks(known, name, facts, asset):
        facets["symlinks"] = symlinks_dataset.SymlinksDatasetFacet(identifiers=links, producer=PRODUCER)
    if ref.type in MODELS:
        facets[MODEL] = ModelDatasetFacet(
            name=known.output or ref.name,
            modelId=known.model_id or None,
            framework=known.file.framework or None,
            metrics=dict(known.metrics),
            mlflowRunId=ref.run_id,
            producer=PRODUCER,
        )
    return facets


def _source(name: DatasetName, facts: StepFacts) -> DatasetFacet:
    ours = name.namespace == namespace_of(facts.server)
    uri = facts.server.url if ours else name.namespace if "://" in name.namespace else f"{name.namespace}:///"
    facet: DatasetFacet = datasource_dataset.DatasourceDatasetFacet(name=name.namespace, uri=uri, producer=PRODUCER)
    return facet


def _symlinks(known: Known, name: DatasetName, facts: StepFacts, asset: str) -> list[Any]:
    """Say where it lies this time, and which asset it is."""
    place = _redacted(place_name(known.ref.uri, facts.server))
    links = {place: "LOCATION"} if place != name else {}
    links |= {DatasetName(namespace_of(facts.server), asset): "ASSET"} if asset else {}
    return [symlinks_dataset.Identifier(each.namespace, each.name, kind) for each, kind in links.items()]


def _run_facets(facts: StepFacts) -> dict[str, RunFacet]:
    if facts.record is None:
        return {}
    run = facts.record.run
    facet = MlflowRunFacet(
        runId=run.run_id,
        experimentId=run.experiment_id,
        parentRunId=run.parent_run_id,
        url=facts.server.run_page(run.experiment_id, run.run_id),
        metrics=dict(facts.metrics),
        cachedFromRunId=facts.cached_from or None,
        producer=PRODUCER,
    )
    return {RUN: facet}


def _redacted(name: DatasetName) -> DatasetName:
    """Hide what Airflow would hide in a log: OpenLineage's own masker leaves names as they are."""
    return DatasetName(str(redact(name.namespace)), str(redact(name.name)))


def _once(datasets: Iterable[D]) -> list[D]:
    found: dict[tuple[str, str], D] = {}
    for each in datasets:
        found.setdefault((each.namespace, each.name), each)
    return list(found.values())
