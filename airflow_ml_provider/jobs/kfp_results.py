"""
The results that a Kubeflow Pipelines server itself knows: outputs of its tasks, through the task and artifact API.

Releases up to 2.17 have no such API; it came to the server's master with kubeflow/pipelines #13986 (August 2026). What is relied
on here, read in ``run.proto``, ``artifact.proto``, ``api_converter.go`` and ``launcher_v2.go`` of that change:

* ``GET /apis/v2beta1/runs/<id>/tasks`` lists the tasks, 200 a page at most, with ``name``, ``type``, ``state`` and ``outputs``.
  An older server answers 404 as to any unknown path.
* ``outputs.artifacts[]`` has ``artifact_key`` (the component's name for the output) and ``artifacts[]``, whole: ``type``,
  ``uri``, ``metadata``, ``number_value``. ``outputs.parameters[]`` has ``parameter_key`` and ``value``. A cached task has those
  of the earlier run.
* Each number of a ``Metrics`` output is an artifact of its own: type ``Metric``, its key as ``name``, and ``number_value``.
* The task of type ``ROOT`` has the outputs of the pipeline itself, ``RUNTIME`` and ``IMPORTER`` are tasks that an author wrote.
* ``type_attributes.iteration_index`` is that of one iteration of a loop: of the graph that ``parent_task_id`` of its tasks names.
  ``producer.iteration`` is that of one of the outputs that were collected.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from airflow_ml_provider.core.kfp_component import MANIFEST
from airflow_ml_provider.core.kfp_outputs import LOGS
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.kfp import HEALTH, RUNS, KfpApi
from airflow_ml_provider.jobs.kfp_catalog import PIPELINES
from airflow_ml_provider.models.kfp import PipelineRun
from airflow_ml_provider.models.kfp_results import KfpOutput, KfpResults

log = logging.getLogger(__name__)

API: Literal["artifact-api"] = "artifact-api"
PAGE = 200
NOT_FOUND = 404
PLUGIN_SINCE = (2, 17)
"""First release that knows ``plugins_input``; an older one refuses a create that has it."""
OWN, OF_AUTHORS = "ROOT", frozenset({"RUNTIME", "IMPORTER"})
TYPES = {"ClassificationMetric": "ClassificationMetrics", "SlicedClassificationMetric": "SlicedClassificationMetrics"}
"""What the API calls other than a pipeline does."""
_HAS_ARTIFACTS: dict[str, bool] = {}
_TAKES_PLUGINS: dict[str, bool] = {}


def results_of_server(api: KfpApi, run_id: str) -> KfpResults:
    """
    Ask the server for the outputs of a run; whether it can tell is found out once per server and process.

    :param api: Client of the server.
    :param run_id: A run that is known to be there.
    :return: What it knows; nothing but a note where it has no such API.
    :raises ConfigError: the server does not let us read them; a retry never helps.
    :raises RemoteUnavailableError: the server did not answer; a retry is safe.
    """
    where = api.server.url
    if not _HAS_ARTIFACTS.get(where, True):
        return KfpResults(notes=(_without_api(where),))
    try:
        tasks = list(_tasks(api, run_id))
    except (RemoteNotFoundError, ConfigError) as error:
        if isinstance(error, ConfigError) and error.status != NOT_FOUND:
            raise
        _HAS_ARTIFACTS.setdefault(where, False)  # where it was there before, this run is gone
        return KfpResults(notes=(_without_api(where),))
    _HAS_ARTIFACTS[where] = True
    by_id = {str(task.get("task_id")): task for task in tasks}
    found = [output for task in tasks for output in _outputs_of(task, _loop_of(task, by_id))]
    note = f"The server's artifact API knows {len(found)} outputs."
    return KfpResults(outputs=tuple(found), notes=(note,), complete=bool(tasks))  # of a run older than the API it has no task


def spec_of_run(api: KfpApi, run: PipelineRun) -> Mapping[str, Any]:
    """
    Ask for the pipeline that a run was made from.

    :param api: Client of the server.
    :param run: The run.
    :return: Its spec; empty where the server has it no more.
    :raises RemoteUnavailableError: the server did not answer; a retry is safe.
    """
    if run.pipeline_spec:
        return run.pipeline_spec
    if not (run.pipeline_id and run.version_id):
        return {}
    try:
        version = api.get(f"{PIPELINES}/{run.pipeline_id}/versions/{run.version_id}")
    except RemoteNotFoundError:
        return {}
    spec: Mapping[str, Any] = version.get("pipeline_spec") or {}
    return spec.get("pipeline_spec") or spec


def takes_plugins(api: KfpApi) -> bool:
    """
    Ask whether a server takes ``plugins_input``; found out once per server and process.

    :param api: Client of the server.
    :return: Whether it says that it is of release 2.17 or later; one that does not say is not tried, as it might refuse a create.
    :raises RemoteUnavailableError: the server did not answer; a retry is safe.
    """
    where = api.server.url
    if where not in _TAKES_PLUGINS:
        try:
            told = api.get(HEALTH)
        except (ConfigError, RemoteNotFoundError):  # a proxy that does not pass it on
            told = {}
        parts = str(told.get("tag_name") or "").lstrip("v").split(".")
        numbers = tuple(int(each) for each in parts[:2] if each.isdecimal())
        _TAKES_PLUGINS[where] = numbers >= PLUGIN_SINCE
    return _TAKES_PLUGINS[where]


def forget_servers() -> None:
    """Forget what was found out about servers, for one that was upgraded meanwhile."""
    _HAS_ARTIFACTS.clear()
    _TAKES_PLUGINS.clear()


def _tasks(api: KfpApi, run_id: str) -> Iterator[Mapping[str, Any]]:
    token, seen = None, set[str]()
    while True:
        answer = api.get(f"{RUNS}/{run_id}/tasks", page_size=PAGE, page_token=token)
        yield from answer.get("tasks") or ()
        token = str(answer.get("next_page_token") or "")
        if not token or token in seen:
            return
        seen.add(token)


def _loop_of(task: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]]) -> tuple[int, ...]:
    """Say which iterations of which loops a task is of, the outermost first."""
    found, seen, each = list[int](), set[str](), task
    while True:
        found += _index((each.get("type_attributes") or {}).get("iteration_index"))
        parent = str(each.get("parent_task_id") or "")
        if parent not in by_id or parent in seen:
            return tuple(reversed(found))
        seen.add(parent)
        each = by_id[parent]


def _outputs_of(task: Mapping[str, Any], loop: tuple[int, ...]) -> Iterator[KfpOutput]:
    """Read the outputs of a task that an author wrote, or of the pipeline itself."""
    kind = str(task.get("type") or "")
    if kind != OWN and kind not in OF_AUTHORS:
        return
    name = "" if kind == OWN else str(task.get("name") or task.get("display_name") or "")
    outputs = task.get("outputs") or {}
    for each in outputs.get("parameters") or ():
        value, key = each.get("value"), str(each.get("parameter_key") or "")
        told = {"kind": "parameter", "type": _type_of(value), "value": value, "loop": (*loop, *_collected(each))}
        yield KfpOutput(name=key, task=name, source=API, **told)
    for each in outputs.get("artifacts") or ():
        if each.get("artifact_key") not in {LOGS, MANIFEST}:
            place = (*loop, *_collected(each))
            yield from _artifacts(str(each.get("artifact_key") or ""), name, each.get("artifacts") or (), place)


def _collected(output: Mapping[str, Any]) -> tuple[int, ...]:
    """Say of which iteration an output is that was collected from a loop."""
    return tuple(_index((output.get("producer") or {}).get("iteration")))


def _index(value: Any) -> list[int]:
    """Read a number of 64 bits, which is a text in JSON; none for what is no number."""
    return [int(value)] if re.fullmatch(r"\d{1,19}", str(value)) else []


def _artifacts(name: str, task: str, artifacts: Sequence[Mapping[str, Any]], loop: tuple[int, ...]) -> Iterator[KfpOutput]:
    numbers = {str(each.get("name")): each.get("number_value") for each in artifacts if each.get("type") == "Metric"}
    if numbers:
        value = next(iter(numbers.values())) if len(numbers) == 1 else None
        yield KfpOutput(name=name, task=task, type="Metrics", metadata=numbers, value=value, source=API, loop=loop)
    files = [each for each in artifacts if each.get("type") != "Metric"]
    for index, each in enumerate(files):
        kind = str(each.get("type") or "Artifact")
        told = {"uri": str(each.get("uri") or ""), "metadata": dict(each.get("metadata") or {})}
        place = (*loop, index) if len(files) > 1 else loop
        yield KfpOutput(name=name, task=task, type=TYPES.get(kind, kind), source=API, loop=place, **told)


def _type_of(value: Any) -> str:
    """Name the type of a value as a pipeline would; the API does not say it, and has one kind of number."""
    kinds = {bool: "BOOLEAN", str: "STRING", list: "LIST", dict: "STRUCT"}
    return kinds.get(type(value), "NUMBER_DOUBLE" if isinstance(value, int | float) else "")


def _without_api(where: str) -> str:
    return f"{where} has no artifact API (it came with kubeflow/pipelines #13986), so it tells of no output and of no parameter."
