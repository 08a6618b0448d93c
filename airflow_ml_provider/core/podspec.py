"""
How what a step asks for is written into a pod: plain JSON, under the names of KubernetesPodOperator's arguments.

Pure, and the same for the same request. What the user passes to the operator besides is laid over it by ``core/pod_merge.py``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

from airflow_ml_provider.core.gpu_products import check_product
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.resources import GPU_MEMORY_LABEL, VENDORS, GpuRequest, PodPlacement, StepResources, shown

SHARED_MEMORY_VOLUME = "airflow-ml-shm"
SHARED_MEMORY_PATH = "/dev/shm"  # noqa: S108  (the mount point that POSIX shared memory has)
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
SOLD_AND_REPORTED = 0.92
"""A 24 GB card with error correction reports 92.5 % of 24 GiB, an 80 GB one 99.6 %; no other size is as near below."""

SPOT_LABELS = (
    ("cloud.google.com/gke-spot", "true"),
    ("kubernetes.azure.com/scalesetpriority", "spot"),
    ("karpenter.sh/capacity-type", "spot"),
    ("eks.amazonaws.com/capacityType", "SPOT"),
)
"""Labels of spot nodes in GKE, AKS, under Karpenter, and in EKS' own node groups; where they are tainted, it is with the same."""

Json = dict[str, Any]


@dataclass(frozen=True)
class PodParts:
    """
    What a request adds to a pod; each field is the operator's argument of that name, as the API's JSON.

    :param container_resources: ``requests`` and ``limits`` of the main container.
    :param node_selector: Labels that the node must have.
    :param affinity: What cannot be said by equal labels: memory of the GPU, spot nodes of several clouds.
    :param tolerations: For the taints that nodes with such GPUs, and spot nodes, usually have.
    :param volumes: ``/dev/shm``.
    :param volume_mounts: The same in the main container.
    :param labels: Queue of Kueue.
    :param priority_class_name: None for the cluster's default.
    :param runtime_class_name: None for the node's default.
    :param security_context: Of the pod.
    :param container_security_context: Of the main container.
    :param automount_service_account_token: Always false; who needs the API says so, or mounts a projected token.
    """

    container_resources: Json = field(default_factory=dict)
    node_selector: dict[str, str] = field(default_factory=dict)
    affinity: Json = field(default_factory=dict)
    tolerations: list[Json] = field(default_factory=list)
    volumes: list[Json] = field(default_factory=list)
    volume_mounts: list[Json] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    priority_class_name: str | None = None
    runtime_class_name: str | None = None
    security_context: Json = field(default_factory=dict)
    container_security_context: Json = field(default_factory=dict)
    automount_service_account_token: bool = False

    def arguments(self) -> Json:
        """
        Name the operator's arguments.

        :return: JSON per argument, without those that are empty. Not a copy: leave it as it is.
        """
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in values.items() if value is not None and value not in ({}, [])}


def render(resources: StepResources) -> PodParts:
    """
    Write a request as parts of a pod.

    :param resources: What the step asks for.
    :return: The parts; without GPUs, CPU, memory and options they are the security defaults alone.
    :raises ConfigError: the GPU's product is none that is known; a retry never helps.
    """
    gpu, options = resources.gpu, resources.options
    if gpu is not None:
        check_product(gpu)
    shared = shared_memory(gpu.shared_memory_gib) if gpu and gpu.shared_memory_gib else ([], [])
    return PodParts(
        container_resources=_amounts(resources),
        node_selector=_selector(gpu, options),
        affinity=_affinity(gpu, options),
        tolerations=_tolerations(gpu, options),
        volumes=shared[0],
        volume_mounts=shared[1],
        labels={QUEUE_LABEL: options.kueue_queue} if options.kueue_queue else {},
        priority_class_name=options.priority_class,
        runtime_class_name=options.runtime_class,
        security_context=pod_security(run_as_non_root=resources.run_as_non_root),
        container_security_context=container_security(),
    )


def pod_security(*, run_as_non_root: bool) -> Json:
    """
    Say what every container of the pod is held to.

    :param run_as_non_root: The kubelet refuses an image whose user is root, or is a name.
    :return: A pod's security context.
    """
    context: Json = {"seccompProfile": {"type": "RuntimeDefault"}}
    return {**context, "runAsNonRoot": True} if run_as_non_root else context


def container_security() -> Json:
    """
    Say what a container of ours is held to, the main one and any beside it.

    A process of root's in it is root without rights: it cannot change owners or users, nor bind ports below 1024.

    :return: A container's security context.
    """
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def memory(gib: float) -> str:
    """
    Write an amount of memory as Kubernetes reads it.

    :param gib: GiB, more than 0.
    :return: ``64Gi``, or MiB rounded up.
    """
    return f"{int(gib)}Gi" if gib == int(gib) else f"{math.ceil(gib * 1024)}Mi"


def shared_memory(gib: float) -> tuple[list[Json], list[Json]]:
    """
    Make room in ``/dev/shm``.

    :param gib: Its size.
    :return: Volumes and mounts.
    """
    volume = {"name": SHARED_MEMORY_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": memory(gib)}}
    return [volume], [{"name": SHARED_MEMORY_VOLUME, "mountPath": SHARED_MEMORY_PATH}]


def same_labels(argument: str, ours: Mapping[str, Any], mine: str, theirs: Mapping[str, Any], yours: str) -> dict[str, str]:
    """
    Join labels that were said in two places.

    :param argument: What they are, for the message.
    :param ours: One place's.
    :param mine: Its name for the author.
    :param theirs: The other's.
    :param yours: Its name.
    :return: All of them.
    :raises ConfigError: both have the same label with different values.
    """
    for key in sorted(ours.keys() & theirs.keys()):
        if ours[key] != theirs[key] and not is_template(theirs[key]):
            contradict(mine, f"{key}: {ours[key]}", f"{argument} of {yours}", f"{key}: {theirs[key]}")
    return {**ours, **theirs}


def contradict(mine: str, value: Any, yours: str, other: Any) -> NoReturn:
    """
    Refuse two words of the same author that differ.

    :param mine: Where the one stands, as the author wrote it.
    :param value: What it says.
    :param yours: Where the other stands.
    :param other: What that says.
    :raises ConfigError: always; a retry never helps.
    """
    raise ConfigError(
        f"{mine} says {shown(value)}, and {yours} says {shown(other)}. Leave out one of the two, or make them the same."
    )


def is_template(value: Any) -> bool:
    """
    Tell a text that Airflow renders when the task runs.

    :param value: What was given.
    :return: Whether it holds an expression or a statement of Jinja.
    """
    return isinstance(value, str) and ("{{" in value or "{%" in value)


def _cores(cpu: float) -> str:
    return str(int(cpu)) if cpu == int(cpu) else f"{math.ceil(round(cpu * 1000, 6))}m"


def _amounts(resources: StepResources) -> Json:
    """Request and limit alike all but CPU, which is requested alone; see StepResources for why."""
    alike: dict[str, str] = {}
    if resources.memory_gib is not None:
        alike["memory"] = memory(resources.memory_gib)
    if resources.options.ephemeral_storage_gib is not None:
        alike["ephemeral-storage"] = memory(resources.options.ephemeral_storage_gib)
    if resources.gpu is not None:
        alike[resources.gpu.resource_name] = str(resources.gpu.count)
    requests = {"cpu": _cores(resources.cpu), **alike} if resources.cpu is not None else dict(alike)
    return {name: amounts for name, amounts in (("requests", requests), ("limits", alike)) if amounts}


def _selector(gpu: GpuRequest | None, options: PodPlacement) -> dict[str, str]:
    product = {gpu.product_label: gpu.product} if gpu and gpu.product else {}
    return same_labels("node_selector", product, "GpuRequest.product", options.node_selector, "PodOptions")


def _affinity(gpu: GpuRequest | None, options: PodPlacement) -> Json:
    wanted: list[Json] = []
    if gpu and gpu.memory_gib is not None:
        least = math.floor(gpu.memory_gib * 1024 * SOLD_AND_REPORTED)
        wanted.append({"key": GPU_MEMORY_LABEL, "operator": "Gt", "values": [str(least)]})
    spots = [{"key": key, "operator": "In", "values": [value]} for key, value in SPOT_LABELS] if options.spot else []
    node: Json = {}
    if options.spot == "only":
        node["requiredDuringSchedulingIgnoredDuringExecution"] = _any_of([[each, *wanted] for each in spots])
    elif wanted:
        node["requiredDuringSchedulingIgnoredDuringExecution"] = _any_of([wanted])
    if options.spot is True:
        node["preferredDuringSchedulingIgnoredDuringExecution"] = [
            {"weight": 50, "preference": {"matchExpressions": [each]}} for each in spots
        ]
    return {"nodeAffinity": node} if node else {}


def _any_of(terms: list[list[Json]]) -> Json:
    return {"nodeSelectorTerms": [{"matchExpressions": each} for each in terms]}


def _tolerations(gpu: GpuRequest | None, options: PodPlacement) -> list[Json]:
    found: list[Json] = []
    if gpu is not None:
        # The vendor's taint, the resource's own as Kubernetes' ExtendedResourceToleration has it, and the one of AKS' manual.
        keys = dict.fromkeys([VENDORS[gpu.vendor].resource, gpu.resource_name])
        found += [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in keys]
        found.append({"key": "sku", "operator": "Equal", "value": "gpu", "effect": "NoSchedule"})
    if options.spot:
        found += [{"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"} for key, value in SPOT_LABELS]
    return found
