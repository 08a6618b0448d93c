"""The only place that knows which Airflow is installed: names that moved, and what older releases lack."""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Mapping
from typing import Any, Protocol


class StateStore(Protocol):
    """Small values that outlive a try; Airflow's own since 3.3, where a clear leaves them too."""

    def get(self, key: str, default: Any = None) -> Any:
        """
        Read a value.

        :param key: Its name.
        :param default: What is returned when there is none.
        :return: The value.
        """

    def set(self, key: str, value: Any) -> None:
        """
        Write a value.

        :param key: Its name.
        :param value: JSON value.
        """


class ForThisTry(dict[str, Any]):
    """In place of a state store before 3.3: forgets at the end of the try."""

    def set(self, key: str, value: Any) -> None:
        """
        Write a value.

        :param key: Its name.
        :param value: JSON value.
        """
        self[key] = value


def state_store(context: Mapping[str, Any]) -> StateStore:
    """
    Give the running task's state store.

    :param context: Airflow's context.
    :return: The store; before Airflow 3.3 one that lasts for this try only.
    """
    found: StateStore | None = context.get("task_state_store")
    return ForThisTry() if found is None else found


def task_state(ti: Any, timeout_s: float = 2.0) -> str | None:
    """
    Ask Airflow for the state of a running task, from the signal handler that ends it.

    The question goes through the task's one channel, which the signal may have interrupted: so in a thread, for a while.

    :param ti: The task instance.
    :param timeout_s: Seconds to wait for the answer.
    :return: The state, None when it has none; ``unknown`` without an answer.
    """
    answers: list[str | None] = []

    def ask() -> None:
        found = ti.get_task_states(dag_id=ti.dag_id, run_ids=[ti.run_id], task_ids=[ti.task_id], map_index=ti.map_index)
        answers.extend(found.get(ti.run_id, {}).values())

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s)
    return answers[0] if answers else "unknown"


def has_retry_policies() -> bool:
    """
    Say whether a task can have a retry policy, as it can since 3.3.

    :return: Whether ``airflow.sdk.definitions.retry_policy`` is there.
    """
    return importlib.util.find_spec("airflow.sdk.definitions.retry_policy") is not None
