"""What tasks of the fake server leave behind: files as the launcher writes them, what the artifact API says, what MLflow gets."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_ml_provider.testing.kfp_answers import answer, missing
from airflow_ml_provider.testing.kfp_graph import tasks_of
from airflow_ml_provider.testing.kfp_parameters import name_of, pipeline_of
from airflow_ml_provider.testing.kfp_store import Store
from airflow_ml_provider.testing.kfp_values import Answer, Run

ROOT = "minio://mlpipeline/v2/artifacts"
"""Pipeline root of a server whose administrator has set none."""
LOGS = "executor-logs-0"
WriteFile = Callable[[str, bytes], None]
"""Stores one file: its URI below the pipeline root, and its bytes."""


@dataclass(frozen=True)
class Made:
    """
    What a task leaves behind when it has ended well.

    :param files: Per artifact its bytes, or bytes per relative path for a folder.
    :param metrics: Per output of type ``Metrics`` its numbers; they are in no file.
    :param parameters: Value per output parameter.
    :param metadata: Per artifact what the component has put into its metadata.
    :param uris: Per artifact the place that the component has given it itself; no file is written for it.
    """

    files: Mapping[str, bytes | Mapping[str, bytes]] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    uris: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Execution:
    """One task of one run that has ended: where its files are, and whether they are those of an earlier run."""

    task: str
    made: Made
    folder: str
    cached: bool = False


class Results:
    """
    What the runs of a server have made.

    :param store: The tables.
    :param write: Stores files; None keeps none.
    """

    def __init__(self, store: Store, write: WriteFile | None) -> None:
        self.store = store
        self.write = write
        self.makes: dict[str, Made] = {}
        self.of_runs: dict[str, list[Execution]] = {}

    def end(self, run: Run) -> None:
        """
        Let the tasks of a run that has ended well leave behind what they make, once.

        :param run: The row.
        """
        if run.state != "SUCCEEDED" or run.run_id in self.of_runs or run.workflow is None:
            return
        done = self.of_runs[run.run_id] = []
        spec = run.workflow.spec
        root = str((run.runtime_config or {}).get("pipeline_root") or pipeline_of(spec).get("defaultPipelineRoot") or ROOT)
        for task in tasks_of(spec):
            earlier = self.earlier(run, task) if task in run.workflow.cached else None
            folder = f"{root.rstrip('/')}/{name_of(spec)}/{run.run_id}/{task}/{uuid.uuid4()}"
            if earlier is not None:
                done.append(Execution(task, earlier.made, earlier.folder, cached=True))
                continue
            done.append(Execution(task, self.makes.get(task, Made()), folder))
            self.keep(done[-1])

    def earlier(self, run: Run, task: str) -> Execution | None:
        """
        Find what a cached task is served with.

        :param run: The row.
        :param task: The task.
        :return: The newest execution of it in another run, None for none.
        """
        others = [each for key, some in self.of_runs.items() if key != run.run_id for each in some]
        return next((each for each in reversed(others) if each.task == task and not each.cached), None)

    def keep(self, done: Execution) -> None:
        """
        Write the files of a task, and its log beside them.

        :param done: The task.
        """
        if self.write is None:
            return
        self.write(f"{done.folder}/{LOGS}", b"")
        for name, content in done.made.files.items():
            some = {"": content} if isinstance(content, bytes) else content
            for path, each in some.items():
                self.write("/".join(filter(None, (done.folder, name, path))), each)

    def tasks(self, run_id: str) -> Answer:
        """
        List the tasks of a run with their outputs, as servers do that have the artifact API.

        :param run_id: The run.
        :return: The tasks, on one page.
        :raises KfpError: 404.
        """
        run = self.store.runs.get(run_id)
        if run is None:
            raise missing("Failed to list tasks: ", "Run", run_id)
        done = self.of_runs.get(run_id, [])
        found = [self.task(run, each) for each in done]
        own = self.own(run, done)
        if own:
            found.insert(0, {"name": "root", "type": "ROOT", "task_id": str(uuid.uuid4()), "run_id": run_id, "outputs": own})
        return answer({"tasks": found, "total_size": len(found)} if found else {})

    def task(self, run: Run, done: Execution) -> dict[str, Any]:
        """
        Write a task as the API gives it.

        :param run: The row.
        :param done: The task.
        :return: JSON.
        """
        return {
            "name": done.task,
            "display_name": done.task,
            "task_id": str(uuid.uuid4()),
            "run_id": run.run_id,
            "type": "RUNTIME",
            "state": "CACHED" if done.cached else "SUCCEEDED",
            "outputs": {
                "parameters": [_parameter(key, value) for key, value in done.made.parameters.items()],
                "artifacts": [_artifact(key, some) for key, some in self.artifacts(run, done)],
            },
        }

    def artifacts(self, run: Run, done: Execution) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        """
        Write the artifacts of a task as the API gives them.

        :param run: The row.
        :param done: The task.
        :return: Name of the output, and its artifacts: for metrics one for each number.
        """
        types = _types(run, done.task)
        for name in {**done.made.files, **done.made.uris}:
            metadata = dict(done.made.metadata.get(name, {}))
            kind = types.get(name, "Artifact")
            uri = done.made.uris.get(name) or f"{done.folder}/{name}"
            yield name, [_named(name, kind, uri=uri, **({"metadata": metadata} if metadata else {}))]
        for name, numbers in done.made.metrics.items():
            yield name, [_named(key, "Metric", number_value=value, metadata={key: value}) for key, value in numbers.items()]
        yield "executor-logs", [_named("executor-logs", "Artifact", uri=f"{done.folder}/{LOGS}")]

    def own(self, run: Run, done: list[Execution]) -> dict[str, Any]:
        """
        Write the outputs of the pipeline itself.

        :param run: The row.
        :param done: Its tasks.
        :return: JSON, empty for a pipeline without any.
        """
        outputs = (pipeline_of(run.workflow.spec if run.workflow else {})["root"].get("dag") or {}).get("outputs") or {}
        by_task = {each.task: each for each in done}
        found: dict[str, Any] = {"parameters": [], "artifacts": []}
        for name, each in (outputs.get("parameters") or {}).items():
            source = each.get("valueFromParameter") or {}
            made = by_task.get(source.get("producerSubtask", ""))
            if made is not None and source.get("outputParameterKey") in made.made.parameters:
                found["parameters"].append(_parameter(name, made.made.parameters[source["outputParameterKey"]]))
        for name, each in (outputs.get("artifacts") or {}).items():
            for source in each.get("artifactSelectors") or ():
                made = by_task.get(source.get("producerSubtask", ""))
                some = dict(self.artifacts(run, made)).get(source.get("outputArtifactKey", "")) if made else None
                found["artifacts"] += [_artifact(name, some)] if some else []
        return {key: some for key, some in found.items() if some}

    def inputs(self, run: Run, task: str) -> dict[str, Any]:
        """
        Tell what a task was given as parameters.

        :param run: The row.
        :param task: The task.
        :return: Value per name.
        """
        spec = pipeline_of(run.workflow.spec if run.workflow else {})
        definitions = (spec["root"].get("inputDefinitions") or {}).get("parameters") or {}
        values = {name: each.get("defaultValue") for name, each in definitions.items()}
        values |= (run.runtime_config or {}).get("parameters") or {}
        given = ((spec["root"]["dag"]["tasks"][task].get("inputs") or {}).get("parameters")) or {}
        found = {}
        for name, each in given.items():
            source = each.get("taskOutputParameter") or {}
            if "componentInputParameter" in each:
                found[name] = values.get(each["componentInputParameter"])
            elif source:
                made = self.makes.get(source.get("producerTask", ""), Made())
                found[name] = made.parameters.get(source.get("outputParameterKey", ""))
            else:
                found[name] = (each.get("runtimeValue") or {}).get("constant")
        return found


def json_text(value: Any) -> str:
    """
    Write a value as the launcher writes the inputs of a task for MLflow.

    :param value: JSON value.
    :return: Compact JSON; whole numbers without a fraction.
    """
    plain = int(value) if isinstance(value, float) and value.is_integer() else value
    return json.dumps(plain, separators=(",", ":"), sort_keys=True)


def _types(run: Run, task: str) -> dict[str, str]:
    spec = pipeline_of(run.workflow.spec if run.workflow else {})
    reference = spec["root"]["dag"]["tasks"][task]["componentRef"]["name"]
    component = (spec.get("components") or {}).get(reference) or {}
    artifacts = (component.get("outputDefinitions") or {}).get("artifacts") or {}
    return {name: str(each["artifactType"].get("schemaTitle", "")).removeprefix("system.") for name, each in artifacts.items()}


def _named(name: str, kind: str, **more: Any) -> dict[str, Any]:
    return {"artifact_id": str(uuid.uuid4()), "name": name, "type": kind, **more}


def _artifact(key: str, some: list[dict[str, Any]]) -> dict[str, Any]:
    return {"artifact_key": key, "type": "OUTPUT", "artifacts": some}


def _parameter(key: str, value: Any) -> dict[str, Any]:
    return {"parameter_key": key, "type": "OUTPUT", "value": value}
