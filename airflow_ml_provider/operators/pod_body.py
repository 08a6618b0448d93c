"""
The parts of a pod that make it a step's: the container's half, its context, its volume, its login; plain JSON in, plain JSON out.

What Kubernetes calls its own is written here; what a step asks for (GPUs, memory, nodes) is in ``core/podspec.py``.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any

from airflow_ml_provider.core.pod_arguments import STRING_BYTES, check_command, check_environment
from airflow_ml_provider.core.podspec import container_security, memory
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.models.pod_step import StepContext
from airflow_ml_provider.operators.pod_request import CREDENTIALS, dump_context
from airflow_ml_provider.step import BOOT, VARIABLE, packed

VOLUME, LOGIN = "airflow-ml", "airflow-ml-mlflow"
"""Volumes: of inputs and outputs, and of the login of the MLflow server."""
FETCH, COLLECT = "airflow-ml-fetch", "airflow-ml-collect"
"""Containers beside a program whose image has no Python."""
TOKEN_S = 3600
"""Life of a projected token, which the kubelet renews."""
READABLE = 0o444
PROBES = 600
"""Looks, a second apart, after which a sidecar that does not begin is started anew; ``startup_timeout`` counts meanwhile."""

Json = dict[str, Any]


def with_step(pod: Mapping[str, Any], context: StepContext, options: PodOptions, main: str) -> Json:
    """
    Make a pod a step's.

    :param pod: JSON of the pod, with the user's program as the command of its main container.
    :param context: What the container is told.
    :param options: How it gets its half.
    :param main: Name of the main container.
    :return: JSON of the pod; ``pod`` is left as it is.
    :raises ConfigError: the main container says no command, or its environment is too large; a retry never helps.
    """
    made = copy.deepcopy(dict(pod))
    spec, container = made["spec"], _container(made, main)
    mounts: list[Json] = [{"name": VOLUME, "mountPath": options.folder}]
    scratch: Json = {"sizeLimit": memory(options.volume_gib)} if options.volume_gib else {}
    volumes: list[Json] = [{"name": VOLUME, "emptyDir": scratch}]
    if source := _login(options):
        volumes.append({"name": LOGIN, **source})
    login: list[Json] = [{"name": LOGIN, "mountPath": CREDENTIALS, "readOnly": True}] if source else []
    told: list[Json] = [{"name": StepContext.VARIABLE, "value": _told(context)}]
    if options.sidecar:
        beside = {"env": [*told, _half()], "volumeMounts": [*mounts, *login]}
        spec["initContainers"] = [*_beside(options, beside, _user(container)), *(spec.get("initContainers") or [])]
        told = _names(context)
    else:
        if options.step != "image":
            told.append(_half())
        mounts += login
        _wrap(container, context, options)
    _add(spec, "volumes", volumes, "name")
    _add(container, "volumeMounts", mounts, "mountPath")
    _add(container, "env", told, "name")
    check_container(container)
    return made


def check_container(container: Mapping[str, Any]) -> None:
    """
    Refuse a container that Linux would not start.

    :param container: JSON of the container.
    :raises ConfigError: its environment or its command line is too large; a retry never helps.
    """
    check_environment({each["name"]: each.get("value") for each in container.get("env") or []})
    check_command("cmds", container.get("command"))
    check_command("arguments", container.get("args"))


def _container(pod: Mapping[str, Any], name: str) -> Json:
    found: Json = next(each for each in pod["spec"]["containers"] if each["name"] == name)
    return found


def _wrap(container: Json, context: StepContext, options: PodOptions) -> None:
    """Put the container's half before the user's program."""
    program = [*(container.get("command") or []), *(container.get("args") or [])]
    if context.function is None and not container.get("command"):
        raise ConfigError(
            f"step {context.step!r}: cmds is not given, and what the image runs by itself is not known here, so nothing can be "
            "put around it. Give cmds=[...], or options=PodOptions(sidecar=...), or step='none' for a plain pod."
        )
    start = ["-m", "airflow_ml_step"] if options.step == "image" else ["-c", BOOT]
    container["command"] = [options.python, *start]
    container["args"] = ["run", *([] if context.function else ["--", *program])]


def _told(context: StepContext) -> str:
    """Write what the container is told; where that is too much, name the parameter, which a user can change."""
    text = _literal(dump_context(context))
    if len(text.encode()) > STRING_BYTES and context.parameters:
        sizes = {name: len(json.dumps(value).encode()) for name, value in context.parameters.items()}
        largest = max(sizes, key=lambda each: sizes[each])
        if sizes[largest] > STRING_BYTES // 2:
            raise ConfigError(
                f"step {context.step!r}, parameter {largest!r} takes {sizes[largest]} bytes as JSON; all that a container is "
                f"told has to fit into {STRING_BYTES}. Hand it on as an artifact: an input of the step."
            )
    return text


def _half() -> Json:
    return {"name": VARIABLE, "value": packed()}


def _user(container: Json) -> Json:
    """Say as whom a program runs, where its container says so; what the pod says counts for all its containers anyway."""
    context = container.get("securityContext") or {}
    return {name: context[name] for name in ("runAsUser", "runAsGroup") if context.get(name) is not None}


def _beside(options: PodOptions, shared: Json, user: Json) -> list[Json]:
    """Bring the inputs before the program starts, and take the outputs away when it has ended: as its user, who may read them."""
    common = {
        "image": options.sidecar,
        "command": [options.python, "-c", BOOT],
        "securityContext": {**container_security(), **user},
        **shared,
    }
    return [
        {"name": FETCH, **common, "args": ["fetch"]},
        {"name": COLLECT, **common, "args": ["collect"], "restartPolicy": "Always", "startupProbe": _begun(options)},
    ]


def _begun(options: PodOptions) -> Json:
    """Hold the program back until its sidecar hears the signal at its end: a quick one would be over before."""
    look = f"import os,sys;sys.exit(not os.path.exists({f'{options.folder}/step/collecting'!r}))"
    command = [options.python, "-I", "-S", "-c", look]
    return {"exec": {"command": command}, "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": PROBES}


def _names(context: StepContext) -> list[Json]:
    """Tell a program without the container's half where its inputs are, where its outputs belong, and its parameters."""
    paths = {f"AIRFLOW_ML_INPUT_{name.upper()}": "\n".join(each.path for each in some) for name, some in context.inputs.items()}
    paths |= {f"AIRFLOW_ML_OUTPUT_{name.upper()}": each.path for name, each in context.outputs.items()}
    told = {**paths, "AIRFLOW_ML_FOLDER": context.folder, "AIRFLOW_ML_PARAMETERS": json.dumps(context.parameters)}
    return [{"name": name, "value": _literal(value)} for name, value in told.items() if value]


def _literal(text: str) -> str:
    """Keep Kubernetes from replacing ``$(NAME)`` and ``$$`` in a value."""
    return text.replace("$", "$$")


def with_variables(pod: Json, variables: Mapping[str, str], main: str) -> Json:
    """
    Add to the environment of a pod's main container what its author has not set.

    :param pod: JSON of the pod.
    :param variables: Value per name.
    :param main: Name of its main container.
    :return: JSON of the pod; ``pod`` is left as it is.
    """
    made = copy.deepcopy(pod) if variables else pod
    container = _container(made, main)
    theirs = {each["name"] for each in container.get("env") or []}
    ours = [{"name": name, "value": _literal(value)} for name, value in variables.items() if name not in theirs]
    if ours:
        container["env"] = [*(container.get("env") or []), *ours]
    return made


def with_secret(pod: Mapping[str, Any], name: str) -> Json:
    """
    Let a pod take the login of the MLflow server from a Secret that was made for it.

    :param pod: JSON of the pod.
    :param name: Name of the Secret.
    :return: JSON of the pod; ``pod`` is left as it is.
    """
    made = copy.deepcopy(dict(pod))
    for each in made["spec"]["volumes"]:
        if each["name"] == LOGIN:
            each["secret"]["secretName"] = name
    return made


def _login(options: PodOptions) -> Json:
    """Say where the kubelet gets the login from; nothing where there is none."""
    if options.mlflow_token_audience:
        token = {"audience": options.mlflow_token_audience, "expirationSeconds": TOKEN_S, "path": "token"}
        return {"projected": {"sources": [{"serviceAccountToken": token}]}}
    if options.mlflow_secret or options.copy_credentials:
        return {"secret": {"secretName": options.mlflow_secret or "", "defaultMode": READABLE}}
    return {}


def _add(owner: Json, key: str, ours: list[Json], by: str) -> None:
    """Add to a list, and refuse what the user has there under the same name."""
    theirs = owner.get(key) or []
    taken = {str(each.get(by)).rstrip("/") for each in theirs}
    for each in ours:
        if each[by] in taken:
            raise ConfigError(
                f"{key} has {by} {each[by]!r} already, which this operator gives to every step's pod. Leave it out; the place of "
                "inputs and outputs is options.folder."
            )
    owner[key] = [*theirs, *ours]
