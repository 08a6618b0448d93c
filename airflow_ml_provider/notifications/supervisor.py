"""
What an alert asks Airflow: connections, states of tasks, earlier DAG runs.

Each question goes through the one line that a process of Airflow has to its supervisor, so they are asked in the calling
thread, before anything else begins. A supervisor leaves a question that it does not know unanswered, and whoever has asked
waits for ever: so what is not on its list is not asked.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from airflow.providers.common.compat.sdk import AirflowNotFoundException, redact

from airflow_ml_provider.exceptions import ConfigError

log = logging.getLogger(__name__)
T = TypeVar("T")
PATIENCE_S = 2.0
"""Seconds from which on a secrets backend that has found nothing is not asked once more, why."""
AIRFLOWS_OWN = ("airflow.secrets.", "airflow.sdk.")
"""Modules of the secrets backends that every Airflow has."""
Place = Literal["task", "dag_processor", "triggerer"]
"""Which process of Airflow an alert comes from."""
QUESTIONS = {
    "dag_processor": ("airflow.dag_processing.processor", "ToManager"),
    "triggerer": ("airflow.jobs.triggerer_job_runner", "ToTriggerSupervisor"),
}
"""Where Airflow lists what may be asked in a process; in a task, all of it may."""


@dataclass(frozen=True)
class KnownConnection:
    """A connection as it was read; the fields are named as the hooks of the providers ask for them."""

    conn_id: str
    conn_type: str
    host: str = ""
    schema: str = ""
    login: str = ""
    password: str = field(default="", repr=False)
    port: int | None = None
    extra_dejson: Mapping[str, Any] = field(default_factory=dict, repr=False)


def find_connection(conn_id: str) -> KnownConnection | None:
    """
    Read a connection.

    :param conn_id: Its id.
    :return: The connection; None only if there is none.
    :raises ConfigError: it is there and cannot be read, or a secrets backend fails, which Airflow itself takes for none.
    """
    from airflow.sdk import BaseHook

    began = time.monotonic()
    try:
        found = BaseHook.get_connection(conn_id)
        extra = dict(found.extra_dejson)  # here, and not where it is used: Airflow masks what is in it, and tells its supervisor
    except AirflowNotFoundException as error:
        if fault := _fault(conn_id, time.monotonic() - began):
            raise ConfigError(fault) from error
        return None
    except Exception as error:
        raise ConfigError(f"connection {conn_id!r} cannot be read: {redact(str(error))}") from error
    return KnownConnection(
        conn_id=conn_id,
        conn_type=(found.conn_type or "").replace("-", "_"),
        host=found.host or "",
        schema=found.schema or "",
        login=found.login or "",
        password=found.password or "",
        port=found.port,
        extra_dejson=extra,
    )


def _fault(conn_id: str, took_s: float) -> str:
    """Say why Airflow may have found no connection though there is one; empty where there is none."""
    variable = f"AIRFLOW_CONN_{conn_id.upper()}"
    if os.environ.get(variable):
        return f"connection {conn_id!r} is set by {variable}, and Airflow cannot read it: write it as JSON, or as a URI."
    for backend in _own_backends():
        name = type(backend).__name__
        if took_s > PATIENCE_S:
            return f"Airflow has looked for connection {conn_id!r} for {took_s:.1f} s: the secrets backend {name} may be away."
        try:
            backend.get_connection(conn_id=conn_id)
        except Exception as error:  # noqa: BLE001  (whatever a vault's client raises)
            said = redact(f"{type(error).__name__}: {error}")
            return f"the secrets backend {name} cannot say whether there is a connection {conn_id!r}: {said}"
    return ""


def _own_backends() -> list[Any]:
    """List the secrets backends that are not Airflow's own: a vault, for example."""
    try:
        from airflow.sdk.execution_time.supervisor import ensure_secrets_backend_loaded

        found = ensure_secrets_backend_loaded()
    except Exception:  # noqa: BLE001  (a name of no promise; then a failing vault is taken for none)
        return []
    return [each for each in found if not type(each).__module__.startswith(AIRFLOWS_OWN)]


def ask_task_states(place: Place, dag_id: str, run_id: str) -> dict[str, str]:
    """
    Ask for the states of all tasks of a DAG run.

    :param place: Where this runs.
    :param dag_id: Id of the DAG.
    :param run_id: Id of the DAG run.
    :return: State per task, ``train`` or ``train_3`` for the mapped one of index 3; empty when Airflow does not say.
    """

    def ask() -> dict[str, str]:
        found = _task_instance_class().get_task_states(dag_id=dag_id, run_ids=[run_id]).get(run_id, {})
        return {name: _text(state) for name, state in found.items()}

    return _ask(place, "GetTaskStates", ask) or {}


def ask_state(place: Place, dag_id: str, run_id: str) -> str:
    """
    Ask for the state of a DAG run.

    :param place: Where this runs.
    :param dag_id: Id of the DAG.
    :param run_id: Id of the DAG run.
    :return: For example ``running``; empty when Airflow does not say.
    """
    return _text(_ask(place, "GetDagRunState", lambda: _task_instance_class().get_dagrun_state(dag_id, run_id)))


def ask_previous_run(place: Place, ti: Any, state: str) -> Any | None:
    """
    Ask for the DAG run of the latest logical date before this one, in a state.

    :param place: Where this runs.
    :param ti: A task instance of the DAG run; None for none, and then nothing is asked.
    :param state: The state.
    :return: The DAG run as Airflow gives it; None when there is none, or when Airflow does not say.
    """
    if ti is None:
        return None
    return _ask(place, "GetPreviousDagRun", lambda: ti.get_previous_dagrun(state=state))


def _ask(place: Place, question: str, ask: Callable[[], T]) -> T | None:
    if not _may_ask(place, question):
        return None
    try:
        return ask()
    except Exception as error:  # noqa: BLE001  (whatever it is, an alert with less in it is better than none)
        log.debug("Airflow has not answered %s to an alert: %s", question, error)
        return None


def _may_ask(place: Place, question: str) -> bool:
    if place not in QUESTIONS:
        return True
    module, name = QUESTIONS[place]
    listed = getattr(sys.modules.get(module), name, None)
    if listed is None:  # not in that process after all: in dag.test(), which knows every question
        return True
    union = typing.get_args(listed)[0]
    return question in {each.__name__ for each in typing.get_args(union)}


def _task_instance_class() -> Any:
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

    return RuntimeTaskInstance


def _text(state: object) -> str:
    return "" if state is None else str(getattr(state, "value", state))
