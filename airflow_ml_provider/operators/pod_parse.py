"""The checks of a whole operator when the DAG is parsed: what it asks for, its image, its environment, its options, together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.core.pod_arguments import STRING_BYTES, check_command, check_environment, check_image
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.resources import StepResources
from airflow_ml_provider.operators.cache_parse import read_policy
from airflow_ml_provider.operators.pod_build import environment_of, is_pending, merged_arguments, template_of
from airflow_ml_provider.operators.pod_cache import check_image_decides
from airflow_ml_provider.operators.pod_checks import check_arguments, check_restarts, read_declared, read_options
from airflow_ml_provider.step import VARIABLE, packed

if TYPE_CHECKING:
    from airflow_ml_provider.operators.pod import MLPodOperator

LONGEST_POLL_S = 3600
LEAST_CONTEXT_BYTES = 400
"""What the context of a step takes without anything in it."""


def check_operator(operator: MLPodOperator) -> None:
    """
    Refuse what could never work, before there is a DAG run.

    :param operator: The operator, its arguments set.
    :raises ConfigError: something is wrong or contradicts something else; names the argument; a retry never helps.
    """
    _ = operator.signature
    template = template_of(operator)
    check_restarts(operator.task_id, template)
    _check_images(operator, template)
    _check_poll_interval(operator)
    _check_memory(operator)
    merged_arguments(operator, operator.resources_asked)
    _check_half(operator, has_template=bool(template or operator.pod_template_file))
    environment = environment_of(operator)
    if operator.tells:
        _check_context(operator)
        environment[VARIABLE] = packed()
    check_environment(environment)
    for name in ("cmds", "arguments"):
        words = getattr(operator, name)
        check_command(name, words if isinstance(words, list | tuple | str) else [])


def check_partial(given: Mapping[str, Any]) -> None:
    """
    Refuse of a mapped operator's arguments what could never work, whatever it is mapped over.

    :param given: Arguments by name; some may be missing.
    :raises ConfigError: one of them is wrong, names it; a retry never helps.
    """
    task_id = str(given.get("task_id"))
    check_arguments(task_id, given)
    options = read_options(task_id, given.get("options"))
    asked = {name: given[name] for name in ("gpu", "cpu", "memory_gib") if name in given}
    StepResources(**asked, run_as_non_root=options.run_as_non_root, options=options)
    if given.get("image") is not None and not is_pending(given["image"]):
        check_image(given["image"])
    read_declared(task_id, given.get("inputs"), given.get("outputs"), given.get("parameters"))
    policy = read_policy(task_id, given.get("cache"))
    if policy is not None:
        check_image_decides(task_id, policy)


def variables_of(operator: MLPodOperator) -> frozenset[str] | None:
    """
    Name the variables of the main container's environment, as far as they are known when the DAG is parsed.

    :param operator: The operator, its arguments set.
    :return: The names; None where more may come when it runs.
    """
    if operator.pod_template_file or is_pending(operator.env_vars):
        return None
    return frozenset([*environment_of(operator), *_variables_of_template(template_of(operator) or {})])


def _variables_of_template(template: Mapping[str, Any]) -> Iterator[str]:
    for container in (template.get("spec") or {}).get("containers") or []:
        yield from (str(each.get("name")) for each in container.get("env") or [])


def _check_images(operator: MLPodOperator, template: Mapping[str, Any] | None) -> None:
    if not is_pending(operator.image) and (operator.image is not None or not (template or operator.pod_template_file)):
        check_image(operator.image)
    for each in ((template or {}).get("spec") or {}).get("containers") or []:
        if each.get("image"):
            check_image(each["image"], f"image of container {each.get('name')!r}")
    if operator.options.sidecar:
        check_image(operator.options.sidecar, "options.sidecar")


def _check_poll_interval(operator: MLPodOperator) -> None:
    given = operator.poll_interval
    if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given <= LONGEST_POLL_S:
        raise ConfigError(
            f"task {operator.task_id!r}: poll_interval={given!r} is no time between two looks. Give seconds, more than 0 and at "
            f"most {LONGEST_POLL_S}."
        )


def _check_memory(operator: MLPodOperator) -> None:
    factor, asked, limit = operator.memory_on_oom, operator.resources_asked.memory_gib, operator.options.memory_limit_gib
    where = f"task {operator.task_id!r}"
    if factor is not None:
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1 < factor <= 16:  # noqa: PLR2004
            raise ConfigError(
                f"{where}: memory_on_oom={factor!r} is no factor. Give more than 1 and at most 16, for example 1.5."
            )
        if asked is None:
            raise ConfigError(
                f"{where}: memory_on_oom={factor} without memory_gib: there is nothing to multiply. Give memory_gib."
            )
        more = operator.resources_asked.model_copy(update={"memory_gib": asked * factor})
        merged_arguments(operator, more)  # a limit in container_resources would contradict the second try
    if limit is not None and (factor is None or asked is None or limit < asked):
        raise ConfigError(
            f"{where}: options.memory_limit_gib={limit:g} bounds what memory_on_oom raises memory_gib={asked} to. Give all "
            "three, the limit the largest."
        )


def _check_half(operator: MLPodOperator, *, has_template: bool) -> None:
    """Refuse a container without its half where it is needed, and one that it could not be put into."""
    where, options = f"task {operator.task_id!r}", operator.options
    artifacts = [*operator.signature.inputs, *operator.signature.outputs]
    if not operator.tells and artifacts:
        raise ConfigError(
            f"{where}: options.step='none' leaves out what fetches inputs and stores outputs, and it declares {artifacts}. Leave "
            "options.step out, or declare none."
        )
    ships = operator.function is not None
    if ships and (options.sidecar or not operator.tells):
        raise ConfigError(
            f"{where}: a function needs Python in its image, and its half in the container. Leave sidecar and step out."
        )
    if operator.tells and not options.sidecar and not ships and not operator.cmds and not has_template:
        raise ConfigError(
            f"{where}: cmds is missing. What the image runs by itself is not known here, so nothing can be put around it: give "
            "cmds=[...], or options=PodOptions(sidecar=...) to leave the image's own program."
        )


def _check_context(operator: MLPodOperator) -> None:
    """Refuse what of the context is known by now to be too much: literal parameters, and the function's source."""
    sizes = {name: _json_bytes(value) for name, value in (operator.parameters or {}).items() if _is_plain(value)}
    if operator.function:
        sizes["the function's source"] = len(operator.function.model_dump_json())
    total = LEAST_CONTEXT_BYTES + sum(sizes.values())
    if total > STRING_BYTES:
        largest = max(sizes, key=lambda each: sizes[each])
        raise ConfigError(
            f"task {operator.task_id!r}: its parameters take {total} bytes, {sizes[largest]} of them {largest!r}. They travel in "
            f"one environment variable, and Linux takes {STRING_BYTES}. Write large values to an artifact, and pass that."
        )


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    return all(map(_is_plain, value)) if isinstance(value, list | tuple) else isinstance(value, str | int | float | None)


def _json_bytes(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass"))
