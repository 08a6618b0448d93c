"""
The cache of a step in a pod: what its key is made of, and what of it lives as long as the pod.

The key holds what the author says of the containers, as far as a program can tell: not where they run, with how much, nor for
how long. It is made where a pod would be made. With the pod goes its plan, which keeps the key: whoever finds the pod's end, in
another process or in a later try, keeps the result under the key of what the pod was given.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import redact

from airflow_ml_provider.core.cache_key import KeyFacts, check_policy, named, value_part
from airflow_ml_provider.core.signature import StepSignature
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.cache import Cache, CachePart, shorten
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.models.pod_step import StepFunction
from airflow_ml_provider.operators.cache_hit import CacheHitError
from airflow_ml_provider.operators.cache_parse import check_cached_step, read_policy

if TYPE_CHECKING:
    from airflow_ml_provider.operators.caching import StepCache
    from airflow_ml_provider.operators.session import StepSession

log = logging.getLogger(__name__)

PROGRAM = ("command", "args", "workingDir", "lifecycle")
"""What a container says of its program."""
SCRATCH = "emptyDir"
"""Kind of volume that holds nothing when a pod starts."""
OF_NAMESPACE = ("persistentVolumeClaim", "configMap", "secret", "configMapKeyRef", "secretKeyRef", "configMapRef", "secretRef")
"""What is found by a name, and is another thing in another namespace."""
LABEL = re.compile(r"metadata\.(?P<kind>labels|annotations)\['(?P<name>.+)'\]")
"""How a pod's own labels are named where its program is told them."""
Json = dict[str, Any]


def read_pod_cache(
    task_id: str,
    cache: object,
    signature: StepSignature,
    function: Callable[..., Any] | None = None,
    filled: Collection[str] = (),
    variables: Collection[str] | None = None,
) -> Cache | None:
    """
    Read the argument ``cache`` of a step in a pod, and check that it fits the step.

    :param task_id: The task.
    :param cache: True or a policy; False or None for no cache.
    :param signature: What the step declares.
    :param function: Its function; None where the image brings the program.
    :param filled: Parameters that Airflow's context fills.
    :param variables: Names of its environment, which ``ignore`` may hold too; None where they are not known yet.
    :return: The policy; None for no cache.
    :raises ConfigError: it could never work; a retry never helps.
    """
    policy = read_policy(task_id, cache)
    if policy is None:
        return None
    if function is None and not signature.outputs:
        raise ConfigError(
            f"task {task_id!r}: cache is set, but the step has no outputs, so there is nothing to keep: of a program only its "
            "exit code is known. Leave cache out, or declare outputs={...}."
        )
    known = {*signature.inputs, *signature.plain}
    others = [each for each in policy.ignore if each not in known] if variables is None else variables
    of_step = policy.model_copy(update={"ignore": tuple(each for each in policy.ignore if each not in others)})
    check_cached_step(task_id, of_step, signature, function, filled)
    check_image_decides(task_id, policy)
    return policy


def check_image_decides(task_id: str, policy: Cache) -> None:
    """
    Refuse a policy that asks the worker what is installed in an image.

    :param task_id: The task.
    :param policy: Its policy.
    :raises ConfigError: it has ``packages``; a retry never helps.
    """
    try:
        check_policy(policy, policy.ignore, (), elsewhere=True)
    except ConfigError as error:
        raise ConfigError(f"task {task_id!r}: {error}") from error


def look_before_pod(
    cache: StepCache, facts: KeyFacts, pod: Mapping[str, Any], main: str, options: PodOptions, function: StepFunction | None
) -> Json:
    """
    Look for an earlier result before a pod is made.

    :param cache: The cache of the try.
    :param facts: What of the step is known without its pod.
    :param pod: JSON of the pod, as KubernetesPodOperator makes it.
    :param main: Name of its main container.
    :param options: How the container gets its half.
    :param function: Function that runs in it; None where the image brings its program.
    :return: What the plan keeps, for :func:`keep_result`.
    :raises CacheHitError: there is one; no pod is to be made.
    :raises ConfigError: no key can be made; a retry never helps.
    :raises RemoteUnavailableError: the index could not be read, and the policy calls that an error; a retry is safe.
    """
    found = pod_facts(facts, pod, main, cache.policy, options, function)
    if cache.policy.image:
        _point_out_tag(found.image)
    hit = cache.look(found)
    if hit is not None:
        raise CacheHitError(hit)
    return cache.to_json()


def keep_result(policy: Cache | None, session: StepSession, kept: Mapping[str, Any], result: Any) -> None:
    """
    Keep the result of a pod that has ended well, under the key of what it was given.

    :param policy: The task's policy; None for no cache.
    :param session: The try that ends the step, which need not be the one that made the pod.
    :param kept: What the plan has kept; empty where the cache was off, or when an earlier release made the pod.
    :param result: What the function returned.
    """
    from airflow_ml_provider.operators.caching import StepCache

    if policy is None or not kept:
        return
    try:
        StepCache.from_json(policy, session, kept).keep(result)
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # of another release: the step has ended well all the same
        log.warning("Cache: the result of this step is not kept, as its key cannot be read from the pod's plan: %s", error)


def pod_facts(
    facts: KeyFacts,
    pod: Mapping[str, Any],
    main: str,
    policy: Cache,
    options: PodOptions,
    function: StepFunction | None = None,
) -> KeyFacts:
    """
    Add what the pod's containers are to what is known of a step.

    :param facts: Inputs, parameters and outputs.
    :param pod: JSON of the pod, as KubernetesPodOperator makes it.
    :param main: Name of its main container.
    :param policy: Says what is part of the key.
    :param options: How the container gets its half.
    :param function: Function that runs in it; None where the image brings its program.
    :return: All facts.
    """
    metadata = pod.get("metadata") or {}
    spec: Json = _with_labels(pod["spec"], metadata)
    base: Json = next(each for each in spec["containers"] if each["name"] == main)
    volumes = _sources(spec)
    environment = {name: value for name, value in _environment(base).items() if name not in policy.ignore}
    parts = _environment_parts(base) | {
        named("volume", each["mountPath"]): value_part(each, "a volume", redact, "volume") for each in _mounts(base, volumes)
    }
    if policy.code:
        parts |= _program_parts(base, function)
    for kind in ("initContainers", "containers"):
        for each in spec.get(kind) or []:
            if each is not base:
                parts[named("container", each["name"])] = _container_part([kind, *_container(each, volumes, policy)], each)
    if any(_names_of_namespace(each, volumes) for kind in ("initContainers", "containers") for each in spec.get(kind) or []):
        parts["volume namespace"] = value_part(metadata.get("namespace"), "the namespace", redact)
    command = [options.python] if function else base.get("command") or None
    return replace(facts, image=base.get("image"), command=command, environment=environment, parts={**facts.parts, **parts})


def _with_labels(value: Any, metadata: Mapping[str, Any]) -> Any:
    """Add the value where a program is told a label or an annotation, by its environment or by a file."""
    if isinstance(value, list):
        return [_with_labels(each, metadata) for each in value]
    if not isinstance(value, Mapping):
        return value
    made = {key: _with_labels(each, metadata) for key, each in value.items()}
    if told := LABEL.fullmatch(str(value.get("fieldPath", ""))):
        made["value"] = (metadata.get(told["kind"]) or {}).get(told["name"])
    return made


def _point_out_tag(image: str | None) -> None:
    if image and "@sha256:" not in image:
        log.info(
            "Cache: image %s is named by a tag, and a tag may be moved: the key holds the name alone, so another image under the "
            "same name is not seen. Name it by its digest, <image>@sha256:<digest>, to have it seen.",
            redact(image),
        )


def _program_parts(container: Mapping[str, Any], function: StepFunction | None) -> dict[str, CachePart]:
    """Write what runs in the main container beside its command, which the facts have a place for."""
    names = {"args": "command arguments", "workingDir": "command folder", "lifecycle": "command lifecycle"}
    found = {name: value_part(container[key], name, redact, name) for key, name in names.items() if container.get(key)}
    return found | ({"code": _function_part(function)} if function else {})


def _function_part(function: StepFunction) -> CachePart:
    """Write what travels of a function; comments and blank lines do not count."""
    from airflow_ml_provider.core.code_source import SourceFile

    text = SourceFile(function.source).whole.text
    part = value_part([text, dict(function.roles), sorted(function.optional)], "the function's source")
    return part.model_copy(update={"shown": part.digest[:8]})


def _environment(container: Mapping[str, Any]) -> Json:
    """Read the environment by name: a text, or where the cluster takes it from; of two of one name the last counts."""
    return {
        str(each["name"]): {"from": each["valueFrom"]} if each.get("valueFrom") else each.get("value") or ""
        for each in container.get("env") or []
    }


def _environment_parts(container: Mapping[str, Any]) -> dict[str, CachePart]:
    """Write of the environment what has no name: what is taken whole, and the order where one value is made of others."""
    told: Json = {"from": container["envFrom"]} if container.get("envFrom") else {}
    if any("$(" in str(each.get("value")) for each in container.get("env") or []):
        told["order"] = [each["name"] for each in container["env"]]
        if len(told["order"]) > len(set(told["order"])):  # the first of a name counts for what is made of it
            told["twice"] = value_part(container["env"], "the environment").digest
    return {"environment": value_part(told, "the environment", redact)} if told else {}


def _sources(spec: Mapping[str, Any]) -> dict[str, Json]:
    """Say per volume what is in it; its name may be new in each pod. Scratch space counts where one container fills another's."""
    found: dict[str, Json] = {}
    for volume in spec.get("volumes") or []:
        shared = _mounted_by(spec, volume["name"])
        if SCRATCH not in volume:
            found[str(volume["name"])] = {key: value for key, value in volume.items() if key != "name"}
        elif len({container for container, _ in shared}) > 1:
            found[str(volume["name"])] = {"shared": shared}
    return found


def _mounted_by(spec: Mapping[str, Any], volume: str) -> list[list[str]]:
    """Name the containers that see a volume, each with the place."""
    return sorted(
        [str(container["name"]), str(each["mountPath"])]
        for kind in ("initContainers", "containers")
        for container in spec.get(kind) or []
        for each in container.get("volumeMounts") or []
        if each["name"] == volume
    )


def _names_of_namespace(container: Mapping[str, Any], volumes: Mapping[str, Json]) -> bool:
    """Whether a container sees what only the namespace tells from another of the same name."""
    sources = [volumes[each["name"]] for each in container.get("volumeMounts") or [] if each["name"] in volumes]
    sources += [volumes[each["name"]] for each in container.get("volumeDevices") or [] if each["name"] in volumes]
    sources += [each for source in sources for each in (source.get("projected") or {}).get("sources") or []]
    sources += [each["valueFrom"] for each in container.get("env") or [] if each.get("valueFrom")]
    sources += container.get("envFrom") or []
    return any(source.get(kind) for source in sources for kind in OF_NAMESPACE)


def _mounts(container: Mapping[str, Any], volumes: Mapping[str, Json]) -> list[Json]:
    """Say what a container finds where, scratch space left out."""
    found = [(each, "mountPath") for each in container.get("volumeMounts") or []]
    found += [(each, "devicePath") for each in container.get("volumeDevices") or []]
    told = [
        {
            "mountPath": each[path],
            "volume": volumes[each["name"]],
            **{key: each[key] for key in ("subPath", "subPathExpr") if each.get(key)},
        }
        for each, path in found
        if each["name"] in volumes
    ]
    return sorted(told, key=lambda each: str(each["mountPath"]))


def _container(container: Mapping[str, Any], volumes: Mapping[str, Json], policy: Cache) -> Sequence[Any]:
    """Say what another container does."""
    image = container.get("image") if policy.image else None
    program = {key: container.get(key) or None for key in PROGRAM} if policy.code else None
    order = [each["name"] for each in container.get("env") or []]
    return image, program, _environment(container), order, container.get("envFrom") or None, _mounts(container, volumes)


def _container_part(told: Sequence[Any], container: Mapping[str, Any]) -> CachePart:
    part = value_part(json.loads(json.dumps(list(told))), f"container {container['name']!r}")
    return part.model_copy(update={"shown": shorten(f"{redact(container.get('image') or '')} {part.digest[:8]}")})
