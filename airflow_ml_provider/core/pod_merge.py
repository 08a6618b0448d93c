"""
What the user passes to KubernetesPodOperator, laid over what we rendered.

The user's word wins where ours is a default (security, tolerations) and is added where it only adds. Where both were said
and differ, that is an error: one of them would be ignored, and nobody could tell which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

from airflow_ml_provider.core.podspec import Json, PodParts, contradict, is_template, same_labels
from airflow_ml_provider.exceptions import ConfigError

REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
PREFERRED = "preferredDuringSchedulingIgnoredDuringExecution"
_UNITS = {
    "n": "1e-9",
    "u": "1e-6",
    "m": "1e-3",
    "": "1",
    "k": "1e3",
    "M": "1e6",
    "G": "1e9",
    "T": "1e12",
    "P": "1e15",
    "E": "1e18",
}
_FACTORS = {unit: Decimal(value) for unit, value in _UNITS.items()} | {
    f"{unit}i": Decimal(1024) ** power for power, unit in enumerate("KMGTPE", start=1)
}
_OURS = {
    "cpu": "cpu",
    "memory": "memory_gib",
    "ephemeral-storage": "ephemeral_storage_gib of PodOptions",
    "priority_class_name": "priority_class of PodOptions",
    "runtime_class_name": "runtime_class of PodOptions",
    "labels": "kueue_queue of PodOptions",
    "node_selector": "GpuRequest.product, or node_selector of PodOptions,",
}
"""What an author wrote, by where it ends up."""


def merge(parts: PodParts, given: Mapping[str, Any], template: Mapping[str, Any] | None = None) -> Json:
    """
    Lay the user's arguments over what was rendered.

    Merging the result again changes nothing, so it can be asked for when the DAG is parsed, and again when templates have
    been rendered: a value with ``{{`` in it is taken as it is.

    :param parts: What we rendered.
    :param given: KubernetesPodOperator's arguments as the API's JSON, those of the fields of :class:`PodParts`; others are
        ignored, None and empty ones too.
    :param template: The pod of ``full_pod_spec``, ``pod_template_file`` or ``pod_template_dict`` as JSON; what it says counts
        like an argument, unless the argument was given too. KubernetesPodOperator adds its volumes and mounts itself.
    :return: JSON per argument, to be given to KubernetesPodOperator; without those that are empty.
    :raises ConfigError: the user said two things that differ; names both; a retry never helps.
    """
    base = from_pod(template or {})
    said = base | {name: value for name, value in given.items() if value not in (None, {}, [], "")}
    contexts = (said.get("security_context"), said.get("container_security_context"))
    _check_not_root(parts.security_context, contexts)
    merged = {
        "container_resources": merge_resources(parts.container_resources, said.get("container_resources") or {}),
        "node_selector": _labels("node_selector", parts, said),
        "labels": _labels("labels", parts, said),
        "affinity": merge_affinity(parts.affinity, said.get("affinity") or {}),
        "tolerations": _joined(said.get("tolerations") or [], parts.tolerations),
        **_merge_volumes(parts, given, template or {}),
        "priority_class_name": _one_name("priority_class_name", parts.priority_class_name, said),
        "runtime_class_name": _one_name("runtime_class_name", parts.runtime_class_name, said),
        "security_context": _deep(parts.security_context, contexts[0] or {}),
        "container_security_context": merge_container_security(parts.container_security_context, contexts[1] or {}),
        "automount_service_account_token": said.get("automount_service_account_token", parts.automount_service_account_token),
    }
    return {name: value for name, value in merged.items() if value not in (None, {}, [])}


def from_pod(pod: Mapping[str, Any]) -> Json:
    """
    Read the arguments that a whole pod stands for.

    :param pod: The pod as the API's JSON; KubernetesPodOperator takes its first container as the main one.
    :return: JSON per argument that :func:`merge` knows, but for volumes and mounts; without those that it does not say.
    """
    spec = pod.get("spec") or {}
    container = _main_container(spec)
    found = {
        "container_resources": container.get("resources"),
        "container_security_context": container.get("securityContext"),
        "labels": (pod.get("metadata") or {}).get("labels"),
        "node_selector": spec.get("nodeSelector"),
        "affinity": spec.get("affinity"),
        "tolerations": spec.get("tolerations"),
        "priority_class_name": spec.get("priorityClassName"),
        "runtime_class_name": spec.get("runtimeClassName"),
        "security_context": spec.get("securityContext"),
        "automount_service_account_token": spec.get("automountServiceAccountToken"),
    }
    return {name: value for name, value in found.items() if value not in (None, {}, [], "")}


def quantity(text: Any) -> Decimal | None:
    """
    Read an amount as Kubernetes does.

    :param text: ``500m``, ``64Gi``, ``1e3``, or a number.
    :return: The number; None for a template, and for what is no amount: the API server says so better.
    """
    written = str(text).strip()
    number = written.rstrip("numkKMGTPEi") or written
    if written[len(number) :] not in _FACTORS:
        return None
    try:
        value = Decimal(number) * _FACTORS[written[len(number) :]]
    except InvalidOperation:
        return None
    return value if value.is_finite() else None


def merge_resources(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Json:
    """
    Join what a container asks for.

    :param ours: ``requests`` and ``limits`` that we rendered.
    :param theirs: The user's; ``claims`` are taken as they are.
    :return: Both together.
    :raises ConfigError: the same resource is asked for twice, differently, or is limited below what is requested.
    """
    merged: Json = {name: value for name, value in theirs.items() if value and name not in {"requests", "limits"}}
    for section in ("requests", "limits"):
        mine, said = ours.get(section) or {}, theirs.get(section) or {}
        for name in mine.keys() & said.keys():
            if not is_template(said[name]) and quantity(mine[name]) != quantity(said[name]):
                contradict(_OURS.get(name, f"gpu ({name})"), mine[name], f"container_resources.{section}[{name!r}]", said[name])
        if mine or said:
            merged[section] = {**mine, **said}
    requests, limits = merged.get("requests") or {}, merged.get("limits") or {}
    for name in sorted(requests.keys() & limits.keys()):
        least, most = quantity(requests[name]), quantity(limits[name])
        if least is not None and most is not None and least > most:
            raise ConfigError(
                f"{name} is limited to {limits[name]} and requested with {requests[name]}: Kubernetes refuses to request more "
                f"than the limit. Raise container_resources.limits[{name!r}], or ask for less."
            )
    return merged


def merge_affinity(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Json:
    """
    Hold a pod to two affinities.

    :param ours: What we rendered, node affinity alone.
    :param theirs: The user's.
    :return: Both: every alternative of the user's together with every one of ours; preferences side by side.
    """
    mine, said = ours.get("nodeAffinity") or {}, theirs.get("nodeAffinity") or {}
    node: Json = dict(said)
    wanted = [each["matchExpressions"] for each in (mine.get(REQUIRED) or {}).get("nodeSelectorTerms", [])]
    terms: list[Json] = list((said.get(REQUIRED) or {}).get("nodeSelectorTerms") or [])
    if wanted and not (terms and all(any(_holds(term, each) for each in wanted) for term in terms)):
        node[REQUIRED] = {
            "nodeSelectorTerms": [
                {**term, "matchExpressions": _joined(term.get("matchExpressions") or [], each)}
                for term in terms or [{}]
                for each in wanted
            ]
        }
    if preferred := _joined(said.get(PREFERRED) or [], mine.get(PREFERRED) or []):
        node[PREFERRED] = preferred
    return {**theirs, "nodeAffinity": node} if node else dict(theirs)


def merge_container_security(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Json:
    """
    Lay the user's security context of a container over ours.

    :param ours: Defaults.
    :param theirs: The user's, which wins, and may take a default away that would not go with it.
    :return: The security context.
    """
    merged = _deep(ours, theirs)
    # The API server refuses these two (the right under this very spelling) for a container that may not gain privileges.
    mighty = theirs.get("privileged") or "CAP_SYS_ADMIN" in ((theirs.get("capabilities") or {}).get("add") or [])
    if mighty and "allowPrivilegeEscalation" not in theirs:
        merged.pop("allowPrivilegeEscalation", None)
    return merged


def _labels(argument: str, parts: PodParts, said: Mapping[str, Any]) -> dict[str, str]:
    return same_labels(argument, getattr(parts, argument), _OURS[argument], said.get(argument) or {}, "the operator")


def _one_name(argument: str, mine: str | None, said: Mapping[str, Any]) -> Any:
    theirs = said.get(argument)
    if mine and theirs and mine != theirs:
        contradict(_OURS[argument], mine, argument, theirs)
    return theirs or mine


def _merge_volumes(parts: PodParts, given: Mapping[str, Any], template: Mapping[str, Any]) -> Json:
    spec = template.get("spec") or {}
    volumes, mounts = list(given.get("volumes") or []), list(given.get("volume_mounts") or [])
    seen = [*volumes, *(spec.get("volumes") or [])]
    mounted = [*mounts, *(_main_container(spec).get("volumeMounts") or [])]
    for ours in parts.volumes:
        if any(each.get("name") == ours["name"] and each != ours for each in seen):
            raise ConfigError(f"a volume is named {ours['name']!r}, as the one that gpu.shared_memory_gib makes. Rename yours.")
    for ours in parts.volume_mounts:
        clash = [each for each in mounted if str(each.get("mountPath", "")).rstrip("/") == ours["mountPath"] and each != ours]
        if clash:
            raise ConfigError(
                f"volume {clash[0].get('name')!r} is mounted at {ours['mountPath']}, where gpu.shared_memory_gib puts its own. "
                "Leave out one of the two."
            )
    return {"volumes": _joined(volumes, parts.volumes), "volume_mounts": _joined(mounts, parts.volume_mounts)}


def _main_container(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    containers = spec.get("containers")
    return containers[0] if containers else {}


def _check_not_root(ours: Mapping[str, Any], contexts: Sequence[Mapping[str, Any] | None]) -> None:
    for name, context in zip(("security_context", "container_security_context"), contexts, strict=True):
        for field, wrong in (("runAsNonRoot", False), ("runAsUser", 0)):
            if ours.get("runAsNonRoot") and context and context.get(field) == wrong:
                contradict("run_as_non_root", True, f"{name}[{field!r}]", context[field])


def _joined(first: Sequence[Any], second: Sequence[Any]) -> list[Any]:
    return [*first, *(each for each in second if each not in first)]


def _holds(term: Mapping[str, Any], expressions: Sequence[Any]) -> bool:
    return all(each in (term.get("matchExpressions") or []) for each in expressions)


def _deep(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Json:
    merged = dict(ours)
    for name, value in theirs.items():
        mine = merged.get(name)
        merged[name] = _deep(mine, value) if isinstance(mine, Mapping) and isinstance(value, Mapping) else value
    return merged
