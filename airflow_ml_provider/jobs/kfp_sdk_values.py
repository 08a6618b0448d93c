"""
Numbers, missing values and null as on a server; in the SDK's interpreter, a part of :mod:`kfp_sdk_main`.

The SDK's local runner keeps values as protobuf does, where each number is a double: a component would get ``[1.0, 2.0]`` for
``[1, 2]``, and refuse to add them up to an integer.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


def replace(module: str, name: str, make: Callable[[Any], Any]) -> None:
    """
    Put what is made of a thing of the SDK in its place.

    :param module: Module, without ``kfp.``.
    :param name: Name in it; ``Class.method`` names one of a class.
    :param make: Makes what stands in, of what was there.
    :raises RuntimeError: the SDK is of a release that does not have it.
    """
    try:
        where: Any = importlib.import_module(f"kfp.{module}")
        *inner, last = name.split(".")
        for each in inner:
            where = getattr(where, each)
        setattr(where, last, make(getattr(where, last)))
    except (ImportError, AttributeError) as error:
        import kfp

        raise RuntimeError(
            f"kfp {kfp.__version__} has no kfp.{module}.{name} ({error}), which local runs need. Set [ml] kfp_requirements to "
            "kfp==2.17.0, the default."
        ) from error


def correct_values() -> None:
    """
    Correct the SDK of this process.

    :raises RuntimeError: it is of a release that is not known here.
    """
    replace("local.executor_input_utils", "construct_executor_input", _without_missing)
    replace("local.executor_input_utils", "executor_input_to_dict", _with_whole_numbers)
    replace("local.executor_output_utils", "get_outputs_for_task", _as_written)
    replace(
        "local.executor_output_utils", "pb2_value_to_python", lambda own: lambda value: own(value) if _is_set(value) else None
    )
    replace("compiler.pipeline_spec_builder", "to_protobuf_value", _with_null)
    replace("local.orchestrator.orchestrator_utils", "OrchestratorUtils.make_task_arguments", _given_only)


def _without_missing(own: Any) -> Any:
    def construct(**given: Any) -> Any:
        made = own(**given)
        values = made.inputs.parameter_values
        for name in [name for name, value in values.items() if not _is_set(value)]:
            del values[name]  # an optional one that nobody gave: the function's own default holds
        return made

    return construct


def _with_whole_numbers(own: Any) -> Any:
    def to_dict(executor_input: Any, component_spec: Any) -> Any:
        found = own(executor_input=executor_input, component_spec=component_spec)
        inputs, known = found.get("inputs", {}), component_spec.input_definitions.parameters
        values = inputs.get("parameterValues", {})
        for name in values:
            if name not in known or _kind(known[name]) != "NUMBER_DOUBLE":
                values[name] = whole(values[name])
        for artifacts in inputs.get("artifacts", {}).values():
            for each in artifacts.get("artifacts", ()):
                each["metadata"] = whole(each.get("metadata", {}))
        return found

    return to_dict


def _as_written(own: Any) -> Any:
    """Take outputs from the component's own JSON, which knows 1 from 1.0, where it has them; else by their type."""

    def outputs_of(executor_input: Any, component_spec: Any) -> dict[str, Any]:
        outputs: dict[str, Any] = own(executor_input=executor_input, component_spec=component_spec)
        file = Path(executor_input.outputs.output_file)
        written = json.loads(file.read_text()) if file.is_file() else {}
        for name, definition in component_spec.output_definitions.parameters.items():
            if name in outputs:
                raw = written.get("parameterValues", {})
                outputs[name] = typed(raw.get(name, whole(outputs[name])), _kind(definition))
        for name, artifacts in written.get("artifacts", {}).items():
            made = outputs.get(name)
            for artifact, raw in zip(made if isinstance(made, list) else [made], artifacts.get("artifacts", ()), strict=False):
                if artifact is not None:
                    artifact.metadata = raw.get("metadata") or {}
        return outputs

    return outputs_of


def _with_null(own: Any) -> Any:
    from google.protobuf import struct_pb2

    def to_value(value: Any) -> Any:
        return struct_pb2.Value(null_value=0) if value is None else own(value)

    return to_value


def _given_only(own: Any) -> Any:
    """Leave out what is None: an optional input that nobody gave."""

    def arguments(task_inputs_spec: Any, io_store: Any) -> dict[str, Any]:
        found = own(task_inputs_spec=task_inputs_spec, io_store=io_store)
        return {name: value for name, value in found.items() if value is not None}

    return arguments


def typed(value: Any, kind: str) -> Any:
    """
    Read a value by its type.

    :param value: JSON, in which a number may be a double.
    :param kind: KFP's name of the type.
    :return: The value, of that type.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    if kind == "NUMBER_INTEGER":
        return int(value)
    return float(value) if kind == "NUMBER_DOUBLE" else whole(value)


def whole(value: Any) -> Any:
    """
    Write doubles without a fraction as integers, at whatever depth, as a server does when it writes them as JSON.

    :param value: JSON.
    :return: The same.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {key: whole(each) for key, each in value.items()}
    return [whole(each) for each in value] if isinstance(value, list) else value


def _is_set(value: Any) -> bool:
    return value.WhichOneof("kind") is not None


def _kind(definition: Any) -> str:
    from kfp.pipeline_spec import pipeline_spec_pb2

    return str(pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name(definition.parameter_type))
