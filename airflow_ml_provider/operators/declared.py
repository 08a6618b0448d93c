"""Outputs that an operator is told of as ``outputs={"model": Model}``, checked when the DAG is parsed."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Mapping
from typing import Any, NoReturn

from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.core.wiring import did_you_mean
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.artifact import ARTIFACT_TYPES, Artifact
from airflow_ml_provider.models.resources import shown

RESERVED = {"manifest", "plan"}
"""Outputs cannot be named so: their files would be ours, ``manifest.json`` and ``plan.json``."""
VALUES: tuple[type, ...] = (float, int, str, bool, list, dict)
"""Types of outputs that are JSON values."""
LISTS = tuple(list[each] for each in (float, int, str, bool, list, dict))  # type: ignore[valid-type]  # made here
"""Types of outputs that are a list of these."""
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_OF_TASK = re.compile(r"(?:[A-Za-z0-9_-]{1,100}\.)?[A-Za-z0-9_][A-Za-z0-9_-]{0,99}")


def check_names(task_id: str, kind: str, some: Any, found: Mapping[str, Any], *, of_tasks: bool = False) -> None:
    """
    Refuse names that cannot be those of inputs, outputs or parameters.

    :param task_id: For the message.
    :param kind: Which argument it is.
    :param some: What was given for it; None for nothing.
    :param found: Names that are taken.
    :param of_tasks: Whether a name may also be ``task.output``, and hold ``-``.
    :raises ConfigError: one cannot be; a retry never helps.
    """
    if some is not None and not isinstance(some, Mapping):
        refuse(task_id, f"{kind}={shown(some)} is no dictionary by name. Write {kind}={{'name': ...}}.")
    for name in some or {}:
        if not isinstance(name, str) or not (_OF_TASK if of_tasks else _NAME).fullmatch(name):
            rule = "A name is letters, digits and '_', and does not start with a digit."
            told = "A name is letters, digits, '_' and '-'; with the KFP task before it, 'task.name'." if of_tasks else rule
            refuse(task_id, f"{kind} has the name {shown(name)}. {told}")
        if name.upper() in {each.upper() for each in found}:
            refuse(task_id, f"{name!r} is the name of two of its inputs, outputs and parameters. Rename one.")
        if kind == "outputs" and name in RESERVED:
            refuse(task_id, f"an output cannot be named {name!r}: a file of that name is kept of every step. Rename it.")


def declare_output(task_id: str, name: str, value: Any) -> StepParameter:
    """
    Read an output that is an artifact.

    :param task_id: For the message.
    :param name: Its name.
    :param value: Its artifact type.
    :return: The parameter.
    :raises ConfigError: it is no artifact type; a retry never helps.
    """
    if not _is_artifact(value):
        refuse(task_id, f"outputs[{name!r}]={shown(value)} is no artifact type. {_remedy(name, value)}")
    return StepParameter(name, "output", value, False, False, inspect.Parameter.empty, value)


def declare_outputs(task_id: str, outputs: Any) -> StepSignature:
    """
    Read outputs that are artifacts or JSON values, of something that runs elsewhere.

    :param task_id: Name of the step.
    :param outputs: Per name an artifact type, ``list[...]`` of one, or one of float, int, str, bool, list and dict; None for
        nothing.
    :return: The signature.
    :raises ConfigError: a name or a type cannot be one; a retry never helps.
    """
    check_names(task_id, "outputs", outputs, {}, of_tasks=True)
    found = {}
    for name, value in (outputs or {}).items():
        if _is_artifact(value):
            found[name] = declare_output(task_id, name, value)
            continue
        if typing.get_origin(value) is list and _is_artifact(inner := typing.get_args(value)[0]):
            found[name] = StepParameter(name, "output", inner, True, False, inspect.Parameter.empty, value)
            continue
        kind = value if value in LISTS else typing.get_origin(value) or value
        if kind not in VALUES + LISTS:
            told = "Or, for a JSON value, float, int, str, bool, list or dict."
            refuse(task_id, f"outputs[{name!r}]={shown(value)} is no type of an output. {_remedy(name, value)} {told}")
        found[name] = StepParameter(name, "output", None, False, False, inspect.Parameter.empty, kind)
    return StepSignature(task_id, found)


def refuse(task_id: str, text: str) -> NoReturn:
    """
    Refuse an argument of a task.

    :param task_id: The task.
    :param text: What is wrong with it, and what to do.
    :raises ConfigError: always; a retry never helps.
    """
    raise ConfigError(f"task {task_id!r}: {text}")


def _is_artifact(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Artifact) and ARTIFACT_TYPES.get(value.type_name) is value


def _remedy(name: str, value: Any) -> str:
    written = value if isinstance(value, str) else getattr(value, "__name__", "")
    return f"Give the class: {{{name!r}: Model}}.{did_you_mean(str(written), ARTIFACT_TYPES)}"
