"""Writing a step's function as the source of a Kubeflow component: text in, text out; the SDK makes a component of it."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.pod_step import StepFunction

MANIFEST = "airflow_ml_manifest"
"""Output that every component of ours has: what the step has told, for the task that waits for the run."""
_NAMES: dict[Any, str] = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}
_TEXT = '''\
def {name}({parameters}){returned}:
    """{name}, a step of airflow-ml-provider."""
    import base64
    import json
    import linecache
    import sys
    import types
    import zlib

    half = types.ModuleType("airflow_ml_step")
    text = zlib.decompress(base64.b64decode({half!r}))
    sys.modules["airflow_ml_step"] = half
    exec(compile(text, "airflow_ml_step.py", "exec"), half.__dict__)
    function = json.loads({function!r})
    inputs = {{{inputs}}}
    outputs = {{{outputs}}}
    return half.run_component(function, inputs, outputs, {{{plain}}})
'''


def component_source(function: StepFunction, signature: StepSignature, returns: Any, half: str) -> str:
    """
    Write the function that ``kfp.dsl.component`` takes: the step's own name and parameters, in KFP's types.

    :param function: The step's function as it travels.
    :param signature: What it declares.
    :param returns: Annotation of what it returns; ``inspect.Parameter.empty`` or None for nothing.
    :param half: The container's half, compressed and in base64.
    :return: Source of one function, which needs ``kfp.dsl``'s names and ``typing``'s around it.
    :raises ConfigError: KFP has no type for a parameter or for what is returned, or a name is taken; a retry never helps.
    """
    step = signature.step
    if MANIFEST in signature.parameters:
        raise ConfigError(f"step {step!r} has a parameter {MANIFEST!r}, which every component of ours has. Rename it.")
    ordered = sorted(signature.parameters.values(), key=lambda each: not (each.required or each.role == "output"))
    written = [_parameter(step, each) for each in ordered]
    first = [each for each, declared in zip(written, ordered, strict=True) if declared.required or declared.role == "output"]
    manifest = f"{MANIFEST}: Output[Artifact]"
    returned = "" if returns in (inspect.Parameter.empty, None, type(None)) else f" -> {_plain_type(step, 'return', returns)}"
    return _TEXT.format(
        name=function.name,
        parameters=", ".join([*first, manifest, *written[len(first) :]]),
        returned=returned,
        half=half,
        function=json.dumps(function.model_dump(mode="json")),
        inputs=_pairs(signature.inputs),
        outputs=_pairs([*signature.outputs, MANIFEST]),
        plain=_pairs(signature.plain),
    )


def _pairs(names: Mapping[str, Any] | Sequence[str]) -> str:
    return ", ".join(f"{name!r}: {name}" for name in names)


def _parameter(step: str, parameter: StepParameter) -> str:
    if parameter.name == "Output":
        raise ConfigError(f"step {step!r}: KFP has no parameter of the name {parameter.name!r}. Rename it.")
    default = "" if parameter.default is inspect.Parameter.empty else f" = {parameter.default!r}"
    if parameter.artifact is None:
        return f"{parameter.name}: {_plain_type(step, parameter.name, parameter.annotation, parameter.default)}{default}"
    kind = parameter.artifact.type_name
    wanted = f"List[{kind}]" if parameter.many else kind
    if parameter.role == "output":
        return f"{parameter.name}: Output[{wanted}]"
    if parameter.optional:
        return f"{parameter.name}: Optional[Input[{wanted}]] = None"
    return f"{parameter.name}: Input[{wanted}]{default}"


def _plain_type(step: str, name: str, annotation: Any, default: Any = inspect.Parameter.empty) -> str:
    """Name KFP's type for an annotation; what is not declared cannot be guessed, except from a default."""
    if annotation in (Any, inspect.Parameter.empty) and default not in (inspect.Parameter.empty, None):
        annotation = type(default)
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _plain_type(step, name, inner[0], default)
    if origin is Literal:
        kinds = {type(each) for each in inner}
        annotation = kinds.pop() if len(kinds) == 1 else annotation
    if origin in (typing.Union, types.UnionType):
        rest = [each for each in inner if each is not type(None)]
        if len(rest) == 1:
            return f"Optional[{_plain_type(step, name, rest[0])}]"
    if typing.is_typeddict(annotation):
        annotation = dict
    found = _NAMES.get(origin if origin in (list, dict) else annotation)
    if found is None:
        what = "what it returns" if name == "return" else f"parameter {name!r}"
        raise ConfigError(
            f"step {step!r}, {what}: KFP has no type for {annotation!r}. Declare bool, int, float, str, list or dict, each "
            "with '| None' if it may be missing."
        )
    return found
