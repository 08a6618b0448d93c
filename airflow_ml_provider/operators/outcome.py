"""What of a task is told to others than MLflow once its record is closed: events of its assets, and facts for OpenLineage."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.assets.events import assets_in, tell_assets
from airflow_ml_provider.lineage.openlineage_mixin import is_active
from airflow_ml_provider.tracking.runs import STATE

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.hooks.mlflow import MlflowApi
    from airflow_ml_provider.lineage.facts import FileFacts
    from airflow_ml_provider.operators.session import StepSession

log = logging.getLogger(__name__)


@contextmanager
def told_of(session: StepSession, context: Context) -> Iterator[None]:
    """
    Tell of a step when the block ends, in which its record is closed; never raises over the step's own end.

    :param session: The step's.
    :param context: Airflow's context.
    """
    try:
        yield
    finally:
        try:
            task: Any = context["ti"].task
            if session.record.status != "RUNNING" and not session.killed and (assets_in(task.outlets) or is_active()):
                _tell_of_step(task, session, context)
        except Exception:
            log.warning("Assets and OpenLineage are not told of this step.", exc_info=True)


def tell_of_version(task: Any, api: MlflowApi, version: Any, context: Context) -> None:
    """
    Tell of a version that a task has registered, or has moved an alias to; never raises.

    :param task: The task.
    :param api: Its server.
    :param version: What the task returns; one that names no version has nothing to tell.
    :param context: Airflow's context.
    """
    if isinstance(version, Mapping) and version.get("name") and version.get("version"):
        try:
            if not (assets_in(task.outlets) or is_active()):
                return
            from airflow_ml_provider.lineage.facts import registry_facts

            task.facts = registry_facts(api, version)
            tell_assets(context, task.facts)
        except Exception:
            log.warning("Assets and OpenLineage are not told of this version.", exc_info=True)


def _tell_of_step(task: Any, session: StepSession, context: Context) -> None:
    from airflow_ml_provider.lineage.facts import NOTHING, step_facts
    from airflow_ml_provider.lineage.file_facts import look_into

    record, fetched = session.record, session.fetched

    def look(side: str, place: int) -> FileFacts:
        path = fetched.get(place, "") if side == "inputs" else record.outputs[place].path
        return look_into(path) if path else NOTHING

    facts = step_facts(session.api, record, session.registered, look)
    if record.status == "FINISHED" and record.tags.get(STATE) != "skipped":
        facts = replace(facts, assets=tell_assets(context, facts))
    task.facts = facts
