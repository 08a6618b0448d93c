"""
What the SDK's local runner does otherwise than a server, put right; in the SDK's interpreter, a part of :mod:`kfp_sdk_main`.

Each function here stands in for one of the SDK, of release 2.17. They are looked up by name when a run starts: where one is
missing, the run is refused, as it might give wrong values without a word.
"""

from __future__ import annotations

import contextvars
import functools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

Replace = Callable[[str, str, Callable[[Any], Any]], None]
"""Puts what is made of a thing of the SDK in its place: module, name, maker."""
_group: contextvars.ContextVar[tuple[str, Any]] = contextvars.ContextVar("group", default=("", None))
"""The group whose tasks run: its path, and its component."""
_REFERENCE = re.compile(r"inputs\.parameter_values\['([^']+)'\]")
_TEXT = re.compile(r"""('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")""")
_SIGNS = ((re.compile(r"&&"), " and "), (re.compile(r"\|\|"), " or "), (re.compile(r"!(?!=)"), " not "))
_NAMES = {"true": True, "false": False, "null": None, "int": int, "double": float, "string": str, "bool": bool, "size": len}


def prepare(run: Any, spec: Mapping[str, Any]) -> Any:
    """
    Set the SDK up for one run of this process.

    :param run: The run, which is told of tasks and executes them.
    :param spec: JSON of the pipeline.
    :return: The pipeline, as the SDK has it.
    :raises RuntimeError: the SDK is of a release that is not known here.
    """
    from google.protobuf import json_format
    from kfp import local
    from kfp.pipeline_spec import pipeline_spec_pb2
    from kfp_sdk_values import correct_values, replace

    logging.captureWarnings(capture=True)
    root = Path(run.order["folder"])
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(root / "artifacts"),
        workspace_root=str(root / "tmp" / ".workspace"),
        raise_on_error=True,
    )
    _quiet(replace)
    correct_values()
    _control_flow(replace)
    _tasks(replace, run)
    return json_format.ParseDict(dict(spec), pipeline_spec_pb2.PipelineSpec())


def _quiet(replace: Replace) -> None:
    """Take off what the SDK prints for people at a terminal, by means that threads take from each other."""
    replace("local.logging_utils", "local_logger_context", lambda _: _nothing)
    replace("local.logging_utils", "indented_print", lambda _: _nothing)
    replace("local.logging_utils", "print_horizontal_line", lambda _: lambda: None)


class _nothing:  # noqa: N801  (called as the function that it stands for)
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def _control_flow(replace: Replace) -> None:
    """Loops, conditions and groups of tasks get the inputs that the package says, not what a name is guessed to mean."""
    orchestrator, helpers = "local.orchestrator.enhanced_dag_orchestrator", "local.orchestrator.task_spec_utils"
    replace("local.io", "IOStore", _store_class)
    replace(orchestrator, "run_enhanced_dag", _in_its_group)
    replace(orchestrator, "ConditionEvaluator.evaluate_condition", lambda _: staticmethod(_holds))
    replace(orchestrator, "_run_parallel_for_task", _over_its_items)
    replace(helpers, "create_parameter_loop_iteration_task_spec", lambda _: _iteration)
    replace(helpers, "get_artifact_iterator_items", lambda _: _artifact_items)
    replace(helpers, "build_nested_dag_arguments", _with_all_inputs)
    replace("local.orchestrator.orchestrator_utils", "OrchestratorUtils.get_dag_output_artifacts", lambda _: _group_artifacts)
    replace("local.importer_handler", "get_importer_uri", _local_uri)


def _store_class(own: Any) -> Any:
    class Store(own):  # type: ignore[misc]
        """Knows which group of tasks it is of."""

        def __init__(self, parent: Any = None) -> None:
            super().__init__(parent)
            self.path, self.component = _group.get()

    return Store


def _in_its_group(own: Any) -> Any:
    def run(**given: Any) -> Any:
        token = _group.set((_group.get()[0], given["dag_component_spec"]))
        try:
            return own(**given)
        finally:
            _group.reset(token)

    return run


def _arguments(task_spec: Any, io_store: Any) -> dict[str, Any]:
    from kfp.local.orchestrator.orchestrator_utils import OrchestratorUtils

    found: dict[str, Any] = OrchestratorUtils.make_task_arguments(task_inputs_spec=task_spec.inputs, io_store=io_store)
    return found


def _holds(condition: str, io_store: Any) -> bool:
    """
    Evaluate a condition with the inputs of its task.

    The SDK writes values into the expression as text, where a quotation mark breaks them, and takes any error for "no".
    """
    tasks = io_store.component.dag.tasks.values()
    task = next(each for each in tasks if each.trigger_policy.condition == condition)
    try:
        values = _arguments(task, io_store)
    except ValueError:  # a task before it was left out itself
        return False
    parts = _TEXT.split(_REFERENCE.sub(lambda found: f"_values[{found[1]!r}]", condition))
    for index in range(0, len(parts), 2):  # what is between texts; but the names of values are texts too
        for sign, word in _SIGNS:
            parts[index] = sign.sub(word, parts[index])
    if any(name not in values for name in _REFERENCE.findall(condition)):
        return False
    return bool(eval("".join(parts).strip(), {"__builtins__": {}, **_NAMES}, {"_values": values}))  # noqa: S307  (compiled by the SDK)


def _over_its_items(own: Any) -> Any:
    """Resolve the items of a loop from its inputs; give empty lists to who collects from a loop over nothing."""

    def run(**given: Any) -> Any:
        from kfp_sdk_values import whole

        spec, store = given["task_spec"], given["io_store"]
        items: Any = None
        if spec.WhichOneof("iterator") == "parameter_iterator":
            named = spec.parameter_iterator.items
            items = _arguments(spec, store)[named.input_parameter] if named.WhichOneof("kind") == "input_parameter" else named.raw
            items = json.loads(items) if isinstance(items, str) else items
            copied = type(spec)()
            copied.CopyFrom(spec)
            copied.parameter_iterator.items.raw = json.dumps(whole(items))
            given["task_spec"] = copied
        failed = own(**given)
        if items == [] and not failed:
            component = given["components"][spec.component_ref.name]
            outputs = component.output_definitions
            for name in (*outputs.parameters, *outputs.artifacts):
                store.put_task_output(given["task_name"], name, [])
        return failed

    return run


def _iteration(original_task_spec: Any, loop_item: Any, loop_task_name: str) -> Any:  # noqa: ARG001  (the SDK's signature)
    """Give the item to the input that is its own; the SDK gives it to each that comes of another task too."""
    from kfp.compiler import pipeline_spec_builder

    made = type(original_task_spec)()
    made.CopyFrom(original_task_spec)
    name = original_task_spec.parameter_iterator.item_input
    made.ClearField("parameter_iterator")
    if name:
        made.inputs.parameters[name].runtime_value.constant.CopyFrom(pipeline_spec_builder.to_protobuf_value(loop_item))
    return made


def _artifact_items(task_spec: Any, io_store: Any, task_name: str) -> tuple[list[Any], str, int]:
    iterator = task_spec.artifact_iterator
    items = _arguments(task_spec, io_store)[iterator.items.input_artifact]
    if not isinstance(items, list):
        raise TypeError(f"the items of {task_name} are no list of artifacts")
    return items, iterator.item_input, task_spec.iterator_policy.parallelism_limit


def _with_all_inputs(own: Any) -> Any:
    """Give a group its artifacts also where it has no parameters, which the SDK does not."""

    def build(**given: Any) -> dict[str, Any]:
        found = own(**given) | _arguments(given["task_spec"], given["io_store"])
        return {name: value for name, value in found.items() if value is not None}

    return build


def _group_artifacts(dag_outputs_spec: Any, io_store: Any) -> dict[str, Any]:
    """Collect a group's artifacts; of ``dsl.OneOf`` that of the branch which ran."""
    found = {}
    for name, spec in dag_outputs_spec.artifacts.items():
        made = []
        for each in spec.artifact_selectors:
            try:
                made.append(io_store.get_task_output(each.producer_subtask, each.output_artifact_key))
            except ValueError:
                if len(spec.artifact_selectors) == 1:
                    raise
        if len(made) != 1:
            raise ValueError(f"{len(made)} branches gave the artifact {name!r}, and one has to")
        found[name] = made[0]
    return found


def _local_uri(_: Any) -> Any:
    def uri_of(importer_spec: Any, executor_input: Any) -> str:
        named = importer_spec.artifact_uri
        given = named.constant if named.WhichOneof("value") == "constant" else executor_input.inputs.parameter_values["uri"]
        uri = str(given.string_value)
        parts = urlsplit(uri)
        if parts.scheme not in {"", "file"}:
            raise ValueError(
                f"imports {parts.scheme}://{parts.hostname or ''}{parts.path}, and on this machine only files can be imported."
            )
        path = unquote(parts.path) if parts.scheme else uri
        if not os.path.exists(path):  # noqa: PTH110  (a text, which may be no path)
            raise FileNotFoundError(f"imports {path}, and on this machine there is no such file.")
        return path

    return uri_of


def _tasks(replace: Replace, run: Any) -> None:
    """Tell of each task, and run components by ourselves: in their interpreters, without pip, line by line."""
    replace("local.orchestrator.enhanced_dag_orchestrator", "execute_task", _group_task)
    replace("local.orchestrator.task_executor", "execute_single_task", functools.partial(_single_task, run))
    replace("local.executor_input_utils", "construct_local_task_root", lambda _: _task_root)
    replace("local.subprocess_task_handler", "SubprocessTaskHandler", lambda _: functools.partial(_Handler, run))


def _path(io_store: Any, name: str) -> str:
    return f"{getattr(io_store, 'path', '')}/{name}".lstrip("/")


def _group_task(own: Any) -> Any:
    def execute(**given: Any) -> Any:
        spec = given["task_spec"]
        component = given["components"][spec.component_ref.name]
        if component.WhichOneof("implementation") != "dag":
            return own(**given)
        path = _path(given["io_store"], given["task_name"])
        token = _group.set((path, component))
        try:
            return own(**given)
        finally:
            _group.reset(token)

    return execute


def _single_task(run: Any, own: Any) -> Any:
    def execute(**given: Any) -> Any:
        from kfp.local import status

        component = given["components"][given["task_spec"].component_ref.name]
        path, error = _path(given["io_store"], given["task_name"]), ""
        task = run.begin(path, component.executor_label)
        try:
            outputs, state = own(**given)
        except Exception as problem:  # noqa: BLE001  (what the component gave cannot be read, or there was nothing to give it)
            outputs, state, error = {}, status.Status.FAILURE, "\n".join([*task.tail, f"{type(problem).__name__}: {problem}"])
        run.end(task, good=state == status.Status.SUCCESS, outputs=outputs, definitions=component.output_definitions, error=error)
        return outputs, state

    return execute


def _task_root(pipeline_root: str, pipeline_resource_name: str, task_resource_name: str) -> str:  # noqa: ARG001  (the SDK's)
    """Name a task's folder by its place in the pipeline, and empty it before another try; the SDK names it by its component."""
    from kfp_sdk_run import _current

    folder = Path(pipeline_root) / _current.get().path
    shutil.rmtree(folder, ignore_errors=True)  # of the try before
    return str(folder)


class _Handler:
    def __init__(self, run: Any, *, full_command: list[str], env_vars: Mapping[str, str] | None = None, **_: Any) -> None:
        self._run = run
        self._command = full_command
        self._variables = dict(env_vars or {})

    def run(self) -> Any:
        from kfp.local import status

        good = self._run.execute(self._command, self._variables)
        return status.Status.SUCCESS if good else status.Status.FAILURE
