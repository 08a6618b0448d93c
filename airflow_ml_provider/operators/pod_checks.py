"""What is refused of a step in a pod when the DAG is parsed: wiring that does not fit, arguments that do not go together."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from airflow.sdk.definitions._internal.mixins import ResolveMixin
from airflow.sdk.definitions.xcom_arg import PlainXComArg

from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.artifact import Artifact, Model
from airflow_ml_provider.models.pod_options import MAIN, PodOptions
from airflow_ml_provider.models.resources import shown
from airflow_ml_provider.operators.declared import check_names, declare_output
from airflow_ml_provider.operators.references import StepReference, check_value

_NAMED = "the pod's name is derived from the task instance, so that a repeated create makes one pod. Label it: labels={...}."

REFUSED: dict[str, tuple[Any, str]] = {
    "name": (None, _NAMED),
    "random_name_suffix": (None, _NAMED),
    "durable": (True, "a pod is always found again after a crash. Clear the task for a new one."),
    "reattach_on_restart": (True, "a pod is always found again after a crash. Clear the task for a new one."),
    "is_delete_operator_pod": (None, "it is KubernetesPodOperator's old word. Say on_finish_action='delete_pod' or 'keep_pod'."),
    "log_pod_spec_on_failure": (
        False,
        "the error would hold the environment's values, secrets among them. The message says why it failed.",
    ),
    "base_container_name": (MAIN, f"the main container is named {MAIN!r}: the decisions read its state. Leave it out."),
    "callbacks": (
        None,
        "they belong to KubernetesPodOperator's own waiting, which this operator replaces. Use Airflow's callbacks.",
    ),
    "progress_callback": (None, "the log is Airflow's. Log metrics, or read the task's log."),
    "logging_interval": (None, "the log comes while the pod runs, deferred too. Leave it out."),
    "container_logs": (
        MAIN,
        "the log of the task is the main container's alone. Leave it out, and collect those of others in the cluster.",
    ),
    "init_container_logs": (
        None,
        "of an init container its last lines come into the task's log when it fails, and nothing else. Leave it out.",
    ),
    "log_events_on_startup": (True, "what a pod waits for is in the log in any case, a line whenever it changes. Leave it out."),
    "startup_check_interval_seconds": (5, "the time between two looks is poll_interval, at any time. Say that."),
    "base_container_status_polling_interval": (1, "the time between two looks is poll_interval, at any time. Say that."),
    "trigger_kwargs": (None, "the trigger is another one. See options=PodOptions(...)."),
    "xcom_sidecar_container_security_context": (
        None,
        "there is no XCom sidecar: what the step returns comes by MLflow. Leave it out.",
    ),
}
"""Arguments of KubernetesPodOperator that do not go with a step, each with the value that does and the reason."""


def check_arguments(task_id: str, given: Mapping[str, Any]) -> None:
    """
    Refuse what of KubernetesPodOperator contradicts this operator.

    :param task_id: For the message.
    :param given: Arguments by name.
    :raises ConfigError: one of them does not go; says why; a retry never helps.
    """
    for name, (good, reason) in REFUSED.items():
        if name in given and given[name] is not None and given[name] != good:
            raise ConfigError(f"task {task_id!r}: {name}={shown(given[name])} cannot be given: {reason}")
    if given.get("do_xcom_push") is True:
        raise ConfigError(
            f"task {task_id!r}: do_xcom_push=True asks for an XCom sidecar. The XCom here is the step's outputs, and "
            "comes by MLflow: declare outputs={...} and leave do_xcom_push out (False pushes nothing)."
        )


def read_options(task_id: str, given: object) -> PodOptions:
    """
    Take the options of an operator.

    :param task_id: For the message.
    :param given: What was given for them; None for nothing.
    :return: The options.
    :raises ConfigError: they are something else; a retry never helps.
    """
    if given is None:
        return PodOptions()
    if not isinstance(given, PodOptions):
        raise ConfigError(
            f"task {task_id!r}: options={shown(given)} is a {type(given).__name__}. Give options=PodOptions(...), of "
            "airflow_ml_provider."
        )
    return given


def check_restarts(task_id: str, pod: Mapping[str, Any] | None) -> None:
    """
    Refuse a pod whose containers are started again: the first end of its program is taken for the last.

    :param task_id: For the message.
    :param pod: JSON of the pod; None where there is none yet.
    :raises ConfigError: its ``restartPolicy``, or that of a container of it, is another than ``Never``; a retry never helps.
    """
    spec = (pod or {}).get("spec") or {}
    for owner in (spec, *(spec.get("containers") or [])):
        policy = owner.get("restartPolicy")
        if policy not in {None, "Never"}:
            where = "the pod" if owner is spec else f"container {owner.get('name')!r}"
            raise ConfigError(
                f"task {task_id!r}: restartPolicy={policy!r} of {where}: a program runs once in its pod, and its first end is "
                "taken for the last. Leave it out, and give the task retries."
            )


def read_declared(
    task_id: str, inputs: Mapping[str, Any] | None, outputs: Mapping[str, Any] | None, parameters: Mapping[str, Any] | None
) -> StepSignature:
    """
    Read what an operator declares as if it were a function's signature, and check it.

    An input takes whatever type its reference has; a list is an input of many, and so is an output of a mapped step.

    :param task_id: Name of the step.
    :param inputs: Reference, URI or a list of these per name.
    :param outputs: Artifact type per name.
    :param parameters: JSON value per name; references and templates are looked at when it runs.
    :return: The signature.
    :raises ConfigError: a name, a type or a value cannot be one; a retry never helps.
    """
    found: dict[str, StepParameter] = {}
    for kind, some in (("inputs", inputs), ("outputs", outputs), ("parameters", parameters)):
        check_names(task_id, kind, some, found)
        for name, value in (some or {}).items():
            found[name] = {"inputs": _input, "outputs": declare_output, "parameters": _plain}[kind](task_id, name, value)
    signature = StepSignature(task_id, found)
    for name, value in {**(inputs or {}), **(parameters or {})}.items():
        check_value(signature, found[name], value)
    check_parameters(task_id, {name: value for name, value in (parameters or {}).items() if not _is_reference(value)})
    return signature


def check_parameters(step: str, parameters: Mapping[str, Any]) -> None:
    """
    Refuse parameters that JSON cannot carry to a container.

    :param step: For the message.
    :param parameters: Value per name.
    :raises ConfigError: one is not plain JSON; a retry never helps.
    """
    for name, value in parameters.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"step {step!r}, parameter {name!r}: {type(value).__name__} is not plain JSON ({error}), which is all that a "
                "container can be given. Pass numbers, texts, lists and dictionaries of these, or an artifact."
            ) from error


def check_outputs(signature: StepSignature) -> None:
    """
    Refuse outputs of a function that a pod cannot have.

    :param signature: What the function declares.
    :raises ConfigError: one is named like a file of ours; a retry never helps.
    """
    check_names(signature.step, "outputs", signature.outputs, {})


def _input(_task_id: str, name: str, value: Any) -> StepParameter:
    source = value.source() if isinstance(value, StepReference) and value.signature.outputs else None
    of_mapped = isinstance(value, PlainXComArg) and bool(value.operator.is_mapped)
    many = isinstance(value, list | tuple) or of_mapped or bool(source and source.many)
    wanted = Model if isinstance(value, str) and value.startswith("models:/") else Artifact
    return StepParameter(name, "input", wanted, many, False, inspect.Parameter.empty, wanted)


def _plain(_task_id: str, name: str, _value: Any) -> StepParameter:
    return StepParameter(name, "plain", None, False, False, inspect.Parameter.empty, Any)


def _is_reference(value: Any) -> bool:
    """Tell a value that is not there yet, or holds one."""
    if isinstance(value, Mapping):
        return any(map(_is_reference, value.values()))
    return isinstance(value, ResolveMixin) or (isinstance(value, list | tuple) and any(map(_is_reference, value)))


def read_limit(
    task_id: str, name: str, ours: timedelta | None, theirs: str, given: Mapping[str, Any], default: timedelta
) -> timedelta:
    """
    Take a limit of ours, or KubernetesPodOperator's word for the same; both is one too many.

    :param task_id: For the message.
    :param name: Our argument.
    :param ours: What was given for it; None for nothing.
    :param theirs: KubernetesPodOperator's argument, in seconds.
    :param given: What was given to that operator.
    :param default: Where neither was given.
    :return: The limit.
    :raises ConfigError: both were given, or it is not positive; a retry never helps.
    """
    other = given.get(theirs)
    if ours is not None and other is not None:
        raise ConfigError(f"task {task_id!r}: {name}={ours} and {theirs}={other} say the same. Give one of them.")
    found = timedelta(seconds=other) if other is not None else default if ours is None else ours
    if not isinstance(found, timedelta) or found <= timedelta(0):
        raise ConfigError(f"task {task_id!r}: {name}={found!r} is no positive timedelta. Give timedelta(minutes=...).")
    return found
