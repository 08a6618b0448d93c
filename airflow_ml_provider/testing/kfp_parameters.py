"""What the server says about a pipeline's spec and the parameters that are given to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow_ml_provider.testing.kfp_answers import KfpError, internal, invalid

INPUTS = "invalid pipeline job inputs: "
KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    "STRING": ((str,), "input parameter {name} requires type string, but the input parameter is not of string value type"),
    "BOOLEAN": ((bool,), "input parameter {name} requires type bool, but the input parameter is not of bool value type"),
    "LIST": ((list,), "input parameter {name} requires type list, but the input parameter is not of list value type"),
    "STRUCT": ((dict,), "input parameter {name} requires type struct, but the input parameter is not of struct value type"),
}
NUMBER = "input parameter {name} requires type double or integer, but the parameter value is not of number value type"
EMPTY = "Failed to create a run due to error fetching manifest: Invalid input error: Failed to fetch a template with an empty"


def pipeline_of(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    Find the pipeline in a spec, which may carry a platform spec beside it.

    :param spec: What was uploaded or sent.
    :return: The part with ``pipelineInfo`` and ``root``.
    """
    inner = spec.get("pipeline_spec", spec)
    return inner if isinstance(inner, Mapping) else {}


def name_of(spec: Mapping[str, Any]) -> str:
    """
    Read the name of a pipeline.

    :param spec: Its spec.
    :return: ``pipelineInfo.name``, empty when it is missing.
    """
    return str((pipeline_of(spec).get("pipelineInfo") or {}).get("name") or "")


def check_spec(spec: Mapping[str, Any] | None) -> None:
    """
    Refuse a spec that is no pipeline.

    :param spec: What was sent.
    :raises KfpError: 500 for none, 400 for one that cannot be read.
    """
    if not spec:
        raise internal(f"Failed to create a new run: InternalServerError: {EMPTY} pipeline spec manifest")
    if not name_of(spec) or "root" not in pipeline_of(spec):
        raise KfpError(
            3, "Failed to create a new run: Failed to create a template: unknown template format", "unknown template format"
        )


def check_parameters(spec: Mapping[str, Any], given: Mapping[str, Any], prefix: str) -> None:
    """
    Check parameters against the definitions of a pipeline's inputs.

    :param spec: The pipeline.
    :param given: What was sent.
    :param prefix: What is being done, with a colon and a blank.
    :raises KfpError: 400 for a parameter that is missing, unknown or of another type; a fraction passes for an integer.
    """
    definitions = ((pipeline_of(spec).get("root") or {}).get("inputDefinitions") or {}).get("parameters") or {}
    for name, definition in sorted(definitions.items()):
        if name in given:
            _check(name, str(definition.get("parameterType", "")), given[name], prefix)
        elif "defaultValue" not in definition and not definition.get("isOptional"):
            raise invalid(
                prefix + INPUTS, f"parameter {name} is not optional, yet has neither default value nor user provided value"
            )
    unknown = sorted(set(given) - set(definitions))
    if unknown:
        raise invalid(prefix + INPUTS, f"parameter(s) provided are not required by pipeline: {', '.join(unknown)}")


def _check(name: str, kind: str, value: Any, prefix: str) -> None:
    if kind in {"NUMBER_INTEGER", "NUMBER_DOUBLE"}:
        good, text = isinstance(value, (int, float)) and not isinstance(value, bool), NUMBER
    elif kind in KINDS:
        types, text = KINDS[kind]
        good = isinstance(value, types)
    else:
        return
    if not good:
        raise invalid(prefix + INPUTS, text.format(name=name))
