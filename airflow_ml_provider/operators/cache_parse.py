"""What can be said of a step's cache when the DAG is parsed: whether the policy fits the step, and how a run overrides it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

from airflow_ml_provider.core.signature import StepSignature
from airflow_ml_provider.core.wiring import did_you_mean
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.cache import Cache

log = logging.getLogger(__name__)

RUN_PARAM = "ml_cache"
"""Param, or key of the conf, by which a DAG run says what its caches do."""
Mode = Literal["on", "off", "refresh"]
MODES: tuple[Mode, ...] = ("on", "off", "refresh")

PLAIN_CONTEXT = {
    *("ds", "ds_nodash", "ts", "ts_nodash", "ts_nodash_with_tz", "run_id", "logical_date", "data_interval_start"),
    *("data_interval_end", "params", "try_number", "partition_key", "task_instance_key_str", "expanded_ti_count", "test_mode"),
}
"""What Airflow's context fills parameters with that can be written down; the rest are objects with a life of their own."""


def read_policy(task_id: str, value: object) -> Cache | None:
    """
    Read the ``cache`` argument of a task.

    :param task_id: The task.
    :param value: True or a policy; False or None for no cache.
    :return: The policy; None for no cache.
    :raises ConfigError: it is anything else; a retry never helps.
    """
    try:
        return Cache.read(value)
    except ConfigError as error:
        raise ConfigError(f"task {task_id!r}: {error}") from error


def check_cached_step(
    task_id: str, policy: Cache, signature: StepSignature, function: Callable[..., Any] | None, filled: Collection[str]
) -> None:
    """
    Refuse a cache that could never work.

    :param task_id: The task.
    :param policy: Its policy.
    :param signature: What the step declares.
    :param function: Its function; None where it is none of ours, and makes outputs.
    :param filled: Names of the parameters that Airflow's context fills.
    :raises ConfigError: the step makes nothing that could be kept, the policy names what it does not have, or the key would hold
        an object of Airflow's; a retry never helps.
    """
    from airflow_ml_provider.core.cache_key import check_policy

    if not signature.outputs and function is not None and _returns_nothing(function):
        raise ConfigError(
            f"task {task_id!r}: cache is set, but the step has no outputs and returns None, so there is nothing to keep. What it "
            "does elsewhere would not be done again. Leave cache out (cache=False where default_args set it), or declare an "
            "Output[...]."
        )
    try:
        check_policy(policy, signature.inputs, signature.plain)
    except ConfigError as error:
        raise ConfigError(f"task {task_id!r}: {error}") from error
    objects = sorted(set(filled) - PLAIN_CONTEXT - set(policy.ignore)) if policy.parameters else []
    if objects:
        ignored = list(dict.fromkeys([*policy.ignore, *objects]))
        raise ConfigError(
            f"task {task_id!r}: cache is set, and Airflow's context fills {', '.join(map(repr, objects))} with an object that no "
            f"key can hold. If the result does not depend on it: cache=Cache(ignore={ignored!r})."
        )


def mode_of(policy: Cache, context: Mapping[str, Any], task_id: str) -> Mode:
    """
    Say what a cache does in this DAG run.

    :param policy: The task's policy.
    :param context: Airflow's context: the conf of the DAG run counts before its params.
    :param task_id: The task.
    :return: ``on``, ``off`` (neither looked for nor kept) or ``refresh`` (kept, not looked for).
    :raises ConfigError: what the DAG run says is none of these; a retry never helps.
    """
    conf = getattr(context.get("dag_run"), "conf", None) or {}
    asked = conf[RUN_PARAM] if RUN_PARAM in conf else (context.get("params") or {}).get(RUN_PARAM)
    if isinstance(asked, Mapping):
        _tell_unknown(asked, context)
        asked = asked.get(task_id)
    if asked is None:
        return "refresh" if policy.refresh else "on"
    asked = {True: "on", False: "off"}.get(asked, asked) if isinstance(asked, bool) else asked
    if asked not in MODES:
        raise ConfigError(
            f"{RUN_PARAM}={asked!r} of this DAG run is none of {', '.join(MODES)}. Give one of them, or one per task: "
            f'{{"{RUN_PARAM}": {{"{task_id}": "refresh"}}}}.'
        )
    found: Mode = next(each for each in MODES if each == asked)
    return found


def _tell_unknown(asked: Mapping[str, Any], context: Mapping[str, Any]) -> None:
    """Point out names that are no tasks: nothing comes of them, and nobody would notice."""
    tasks = getattr(getattr(getattr(context.get("ti"), "task", None), "dag", None), "task_ids", None)
    for name in asked:
        if tasks is not None and name not in tasks:
            log.warning(
                "%s of this DAG run names %r, which is no task of this DAG.%s", RUN_PARAM, name, did_you_mean(name, tasks)
            )


def _returns_nothing(function: Callable[..., Any]) -> bool:
    return inspect.signature(function).return_annotation in (None, "None", type(None))
