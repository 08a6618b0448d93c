"""
OpenLineage's specification, for checking events: that of a checkout, or what of it our events must keep.

The client ships no schemas, and the specification's files are not ours to copy: so this names, from the specification 2-0-2, the
keys and types of all that we send. With ``OPENLINEAGE_SPEC=<checkout>/spec`` its own files are used in their place.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from referencing import Registry, Resource

import airflow_ml_provider
from tests.airflow_releases import get_listener_manager

Json = dict[str, Any]
CORE = "https://openlineage.io/spec/2-0-2/OpenLineage.json"
OURS = Path(airflow_ml_provider.__file__).parent / "lineage/facets"
TEXT, NUMBER, WHOLE = {"type": "string"}, {"type": "number"}, {"type": "integer"}
URI, MOMENT = {**TEXT, "format": "uri"}, {**TEXT, "format": "date-time"}
UUID = {**TEXT, "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}


def an_object(required: str = "", /, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


def a_list(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


BASE = an_object("_producer _schemaURL", _producer=URI, _schemaURL=URI)
FACETS = {"type": "object", "additionalProperties": {"$ref": "#/$defs/BaseFacet"}}
DATASET = an_object("namespace name", namespace=TEXT, name=TEXT, facets=FACETS)
RUN = an_object("runId", runId=UUID, facets=FACETS)
JOB = an_object("namespace name", namespace=TEXT, name=TEXT, facets=FACETS)
EVENT = an_object(
    "eventTime producer schemaURL run job",
    eventTime=MOMENT,
    producer=URI,
    schemaURL=URI,
    eventType={"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
    run=RUN,
    job=JOB,
    inputs=a_list({"allOf": [DATASET, an_object(inputFacets=FACETS)]}),
    outputs=a_list({"allOf": [DATASET, an_object(outputFacets=FACETS)]}),
)
NAMED = an_object("namespace name", namespace=TEXT, name=TEXT)
A_RUN = an_object("runId", runId=UUID)
QUALITY = an_object("columnMetrics", columnMetrics={"type": "object"}, rowCount=WHOLE, bytes=WHOLE)
STATISTICS = an_object(rowCount=WHOLE, size=WHOLE, fileCount=WHOLE)
STANDARD = {
    "DatasetVersionDatasetFacet": an_object("datasetVersion", datasetVersion=TEXT),
    "DatasetTypeDatasetFacet": an_object("datasetType", datasetType=TEXT, subType=TEXT),
    "DatasourceDatasetFacet": an_object(name=TEXT, uri=URI),
    "SchemaDatasetFacet": an_object(fields=a_list(an_object("name", name=TEXT, type=TEXT))),
    "SymlinksDatasetFacet": an_object(identifiers=a_list(an_object("namespace name type", namespace=TEXT, name=TEXT, type=TEXT))),
    "DataQualityMetricsDatasetFacet": QUALITY,
    "DataQualityMetricsInputDatasetFacet": QUALITY,
    "InputStatisticsInputDatasetFacet": STATISTICS,
    "OutputStatisticsOutputDatasetFacet": STATISTICS,
    "ExternalQueryRunFacet": an_object("externalQueryId source", externalQueryId=TEXT, source=TEXT),
    "JobTypeJobFacet": an_object("processingType integration", processingType=TEXT, integration=TEXT, jobType=TEXT),
    "ParentRunFacet": an_object("run job", run=A_RUN, job=NAMED, root=an_object("run job", run=A_RUN, job=NAMED)),
}


def _files() -> Iterator[dict[str, Any]]:
    """Schemas, each with its id."""
    yield from (json.loads(each.read_text()) for each in OURS.glob("*.json"))
    checkout = os.environ.get("OPENLINEAGE_SPEC")
    if checkout:
        for each in (Path(checkout) / "OpenLineage.json", *(Path(checkout) / "facets").glob("*.json")):
            yield json.loads(each.read_text())
        return
    bases = dict.fromkeys(("BaseFacet", "RunFacet", "JobFacet", "DatasetFacet", "InputDatasetFacet", "OutputDatasetFacet"), BASE)
    yield {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": CORE, "$defs": {**bases, "RunEvent": EVENT}}
    for name, schema in STANDARD.items():
        both = {"allOf": [{"$ref": f"{CORE}#/$defs/BaseFacet"}, schema]}
        made = {"$schema": "https://json-schema.org/draft/2020-12/schema", "$defs": {name: both}}
        yield {**made, "$id": f"https://openlineage.io/spec/facets/1-0-0/{name}.json"}


SCHEMAS = {each["$id"]: each for each in _files()}
REGISTRY: Registry[Any] = Registry().with_resources((url, Resource.from_contents(each)) for url, each in SCHEMAS.items())
BY_FILE = {re.split("[/:]", url)[-1]: url for url in SCHEMAS}


def check_event(event: Mapping[str, Any]) -> list[str]:
    """Check an event, and each facet by the schema that it names; gives the names of the facets that have one here."""
    _check(event, f"{CORE}#/$defs/RunEvent")
    checked = []
    for name, facet in _facets(event):
        url, _, place = str(facet["_schemaURL"]).partition("#")
        file = re.split("[/:]", url)[-1]
        if file in BY_FILE:
            _check(facet, f"{BY_FILE[file]}#{place}")
            checked.append(name)
    return checked


@contextmanager
def listening(file: Path) -> Iterator[Callable[[str], list[Json]]]:
    """Let OpenLineage's own listener write events into a file while DAGs run; gives those of a job, each checked."""
    with pytest.MonkeyPatch.context() as patch:
        transport = {"type": "file", "log_file_path": str(file), "append": True}
        patch.setenv("AIRFLOW__OPENLINEAGE__TRANSPORT", json.dumps(transport))
        from airflow.providers.openlineage.plugins.adapter import OpenLineageAdapter
        from airflow.providers.openlineage.plugins.listener import get_openlineage_listener

        def told(job: str) -> list[Json]:
            events = [json.loads(line) for line in file.read_text().splitlines()]
            found = [each for each in events if each["job"]["name"] == job]
            for each in found:
                check_event(each)
            return found

        listener, manager = get_openlineage_listener(), get_listener_manager()
        listener.adapter = OpenLineageAdapter()  # one that writes into this file
        manager.add_listener(listener)
        try:
            yield told
        finally:
            manager.pm.unregister(listener)


def _facets(event: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for owner in (event["run"], event["job"], *event.get("inputs", ()), *event.get("outputs", ())):
        for key in ("facets", "inputFacets", "outputFacets"):
            yield from (owner.get(key) or {}).items()


def _check(value: Any, url: str) -> None:
    jsonschema.Draft202012Validator(
        {"$ref": url}, registry=REGISTRY, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    ).validate(value)
