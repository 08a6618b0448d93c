"""
KubernetesPodOperator's part: its arguments as JSON, what a step asks for laid under them, and the pod that it makes of both.

This goes in through KubernetesPodOperator's own arguments, so that a cluster's ``pod_mutation_hook`` sees GPUs and labels too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.providers.cncf.kubernetes.pod_generator import PodGenerator
from airflow.sdk.definitions._internal.mixins import ResolveMixin

from airflow_ml_provider.core.pod_arguments import check_environment
from airflow_ml_provider.core.pod_merge import merge
from airflow_ml_provider.core.podspec import PodParts, is_template, render
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.resources import StepResources

if TYPE_CHECKING:
    from airflow.sdk import Context

Json = dict[str, Any]
ARGUMENTS = tuple(each.name for each in fields(PodParts))
OURS = "AIRFLOW_ML_"


def merged_arguments(operator: KubernetesPodOperator, resources: StepResources) -> Json:
    """
    Lay what the user passes to KubernetesPodOperator over what the step asks for.

    What is not known before the task runs (a reference to XCom, a template in place of a dictionary) is left out.

    :param operator: The operator.
    :param resources: What the step asks for.
    :return: JSON per argument of KubernetesPodOperator.
    :raises ConfigError: both say the same thing differently; a retry never helps.
    """
    given = {name: as_json(value) for name in ARGUMENTS if not is_pending(value := getattr(operator, name))}
    return merge(render(resources), given, template_of(operator))


def template_of(operator: KubernetesPodOperator) -> Json | None:
    """
    Read the pod that the operator's arguments are laid over.

    :param operator: The operator.
    :return: JSON of the pod; None without one, and for a file that is not there yet.
    """
    if operator.full_pod_spec is not None:
        pod: Json = as_json(operator.full_pod_spec)
        return pod
    if operator.pod_template_dict:
        return dict(operator.pod_template_dict)
    return None


def build_pod(operator: KubernetesPodOperator, resources: StepResources, context: Context) -> Json:
    """
    Let KubernetesPodOperator make the pod.

    :param operator: The operator, templates rendered; it is left as it is.
    :param resources: What the step asks for.
    :param context: Airflow's context.
    :return: JSON of the pod.
    :raises ConfigError: the operator's arguments contradict what the step asks for; a retry never helps.
    """
    merged = merged_arguments(operator, resources)
    spec = _as_objects(merged).spec
    main = spec.containers[0]
    builder = copy.copy(operator)
    vars(builder).update(  # not by attribute: Airflow would take it for a change of the DAG
        container_resources=main.resources,
        container_security_context=main.security_context,
        volume_mounts=main.volume_mounts or [],
        volumes=spec.volumes or [],
        affinity=spec.affinity,
        tolerations=spec.tolerations or [],
        security_context=spec.security_context,
        node_selector=merged.get("node_selector", {}),
        labels=merged.get("labels", {}),
        priority_class_name=merged.get("priority_class_name"),
        runtime_class_name=merged.get("runtime_class_name"),
        automount_service_account_token=merged.get("automount_service_account_token"),
        do_xcom_push=False,
    )
    pod: Json = as_json(KubernetesPodOperator.build_pod_request_obj(builder, context))
    return pod


def environment_of(operator: KubernetesPodOperator) -> dict[str, str | None]:
    """
    Read the environment that the user gives, to be checked when the DAG is parsed.

    :param operator: The operator.
    :return: Value per name; None for one that is known only in the cluster, or when the task runs.
    :raises ConfigError: a name is one of ours, or a value is no text; a retry never helps.
    """
    pairs = list(_environment_pairs(operator.env_vars))
    for name, value in pairs:
        where = f"task {operator.task_id!r}: environment variable {name}"
        if name.startswith(OURS):
            raise ConfigError(f"{where}: names that begin with {OURS} are this operator's own. Rename it.")
        if not (value is None or isinstance(value, str) or is_pending(value)):
            raise ConfigError(f"{where} is {type(value).__name__} {value!r}. The environment holds texts: give {str(value)!r}.")
    found = {name: value if isinstance(value, str) else None for name, value in pairs}
    check_environment(found)
    return found


def _environment_pairs(given: Any) -> Iterator[tuple[str, Any]]:
    """Read names and values, of either form that KubernetesPodOperator takes; none of what is made when the task runs."""
    if isinstance(given, Mapping):
        yield from given.items()
    elif isinstance(given, list | tuple):
        for each in given:
            if isinstance(each, Mapping):
                yield str(each["name"]), each.get("value")
            elif not isinstance(each, ResolveMixin):
                yield str(each.name), each.value


def is_pending(value: Any) -> bool:
    """
    Say whether a value is known only when the task runs.

    :param value: What was given for an argument that is a dictionary, a list or an object of Kubernetes' client.
    :return: Whether it is a reference or a template, or holds a reference.
    """
    if isinstance(value, ResolveMixin) or (isinstance(value, str) and is_template(value)):
        return True
    if isinstance(value, Mapping):
        return any(_holds_reference(each) for each in value.values())
    return _holds_reference(value)


def _holds_reference(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_reference, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_holds_reference, value))
    inner = getattr(value, "openapi_types", None)  # of Kubernetes' client: its attributes by name
    if inner is not None and not isinstance(value, type):
        return any(_holds_reference(getattr(value, name, None)) for name in inner)
    return isinstance(value, ResolveMixin)


def as_json(value: Any) -> Any:
    """
    Write what the client of Kubernetes models as the API's JSON.

    :param value: Object, list, dictionary or plain value.
    :return: Plain JSON.
    """
    plain: Any = PodGenerator.serialize_pod(value)
    return plain


def _as_objects(merged: Json) -> Any:
    """Write the arguments as the client's objects, which mutation hooks expect."""
    container = {
        "name": "main",
        "resources": merged.get("container_resources"),
        "securityContext": merged.get("container_security_context"),
        "volumeMounts": merged.get("volume_mounts"),
    }
    spec = {
        "containers": [container],
        "volumes": merged.get("volumes"),
        "affinity": merged.get("affinity"),
        "tolerations": merged.get("tolerations"),
        "securityContext": merged.get("security_context"),
    }
    return PodGenerator.deserialize_model_dict(json.loads(json.dumps({"spec": spec})))
