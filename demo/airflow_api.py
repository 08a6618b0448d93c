"""
A small client of Airflow's REST API, for driving a local stack from the demo and the tests.

Answers are Airflow's own JSON; only what is asked often has a method.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

import httpx

from demo.errors import DemoError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from types import TracebackType

__all__ = ["AirflowApi", "Json"]

Json = dict[str, Any]
FINISHED = frozenset({"success", "failed"})
PAGE = 100
LOCKED_PAUSES_S = (1.0, 2.0, 4.0)
"""How long to wait before what SQLite's lock was in the way of is asked for again."""


class AirflowApi:
    """
    Logs in with name and password, and again when the token has run out.

    :param url: Address of the API server, without a slash at the end.
    :param username: User of the simple auth manager.
    :param password: Its password.
    """

    def __init__(self, url: str, username: str, password: str) -> None:
        self.url = url
        self._login = {"username": username, "password": password}
        # A proxy named in the environment is not meant for this machine.
        self._client = httpx.Client(base_url=url, timeout=90, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def request(self, method: str, path: str, *, body: Json | None = None, **query: Any) -> httpx.Response:
        """
        Send one request, without judging the answer's status.

        :param method: HTTP method.
        :param path: Path below ``/api/v2``, with a slash first.
        :param body: JSON body.
        :param query: Query parameters; None leaves one out.
        :return: The answer.
        :raises DemoError: the server cannot be reached or refuses the login.
        """
        parameters = {name: value for name, value in query.items() if value is not None}
        try:
            if "Authorization" not in self._client.headers:
                self._authenticate()
            answer = self._client.request(method, f"/api/v2{path}", json=body, params=parameters)
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                self._authenticate()
                answer = self._client.request(method, f"/api/v2{path}", json=body, params=parameters)
        except httpx.TransportError as error:
            raise DemoError(f"Airflow's API at {self.url} cannot be reached: {error!r}.") from error
        return answer

    def call(self, method: str, path: str, *, body: Json | None = None, **query: Any) -> Json:
        """
        Send one request that must succeed; one that Airflow's database has refused is sent again.

        :param method: HTTP method.
        :param path: Path below ``/api/v2``, with a slash first.
        :param body: JSON body.
        :param query: Query parameters; None leaves one out.
        :return: The JSON of the answer, empty when it has none.
        :raises DemoError: the answer is an error; the message has its text.
        """
        answer = self.request(method, path, body=body, **query)
        for pause_s in LOCKED_PAUSES_S:
            if not _was_locked(answer):
                break
            time.sleep(pause_s)
            answer = self.request(method, path, body=body, **query)
        if answer.is_error:
            raise DemoError(f"Airflow answered {answer.status_code} to {method} {path}: {answer.text[:500]}")
        return dict(answer.json()) if answer.content else {}

    def dag(self, dag_id: str) -> Json | None:
        """
        Get a DAG.

        :param dag_id: Its id.
        :return: The DAG, or None while it is not known (not parsed yet, or not importable).
        """
        answer = self.request("GET", f"/dags/{dag_id}")
        return None if answer.status_code == httpx.codes.NOT_FOUND else _json(answer)

    def import_errors(self) -> list[Json]:
        """
        List the DAG files that cannot be imported.

        :return: One entry a file, with ``filename`` and ``stack_trace``.
        """
        return list(self.call("GET", "/importErrors", limit=PAGE)["import_errors"])

    def wait_for_dag(self, dag_id: str, timeout_s: float = 90.0) -> Json:
        """
        Wait until a DAG is known.

        :param dag_id: Its id.
        :param timeout_s: Seconds to wait.
        :return: The DAG.
        :raises DemoError: it is not there in time; the message has the first import error.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            dag = self.dag(dag_id)
            if dag and not dag.get("is_stale"):
                return dag
            errors = self.import_errors()
            if errors or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        why = f"{errors[0]['filename']}:\n{errors[0]['stack_trace']}" if errors else "no file defines it."
        raise DemoError(f"Airflow does not know the DAG {dag_id}: {why}")

    def pause(self, dag_id: str, *, paused: bool) -> None:
        """
        Pause or unpause a DAG; the runs of a paused one wait.

        :param dag_id: Its id.
        :param paused: What to make it.
        """
        self.call("PATCH", f"/dags/{dag_id}", body={"is_paused": paused})

    def trigger(
        self, dag_id: str, *, logical_date: datetime | None = None, conf: Json | None = None, run_id: str | None = None
    ) -> Json:
        """
        Make a run of a DAG.

        :param dag_id: Its id.
        :param logical_date: With a time zone; None gives a run without one.
        :param conf: Configuration of the run.
        :param run_id: Id of the run, by default made by Airflow.
        :return: The DAG run.
        """
        body: Json = {"logical_date": logical_date.isoformat() if logical_date else None, "conf": conf or {}}
        if run_id:
            body["dag_run_id"] = run_id
        return self.call("POST", f"/dags/{dag_id}/dagRuns", body=body)

    def dag_run(self, dag_id: str, run_id: str) -> Json:
        """
        Get a run.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the run.
        :return: The DAG run.
        """
        return self.call("GET", _run(dag_id, run_id))

    def dag_runs(self, dag_id: str) -> list[Json]:
        """
        List all runs of a DAG.

        :param dag_id: Its id.
        :return: The runs, by logical date.
        """
        return self._pages(f"/dags/{dag_id}/dagRuns", "dag_runs", order_by="logical_date")

    def wait_for_run(
        self, dag_id: str, run_id: str, *, timeout_s: float = 300.0, on_poll: Callable[[], None] | None = None
    ) -> Json:
        """
        Wait until a run has ended.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the run.
        :param timeout_s: Seconds to wait.
        :param on_poll: Called after each look.
        :return: The DAG run, with ``state`` success or failed.
        :raises DemoError: it has not ended in time.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            run = self.dag_run(dag_id, run_id)
            if on_poll:
                on_poll()
            if run["state"] in FINISHED:
                return run
            if time.monotonic() > deadline:
                raise DemoError(f"Run {run_id} of {dag_id} is still {run['state']} after {timeout_s:.0f} s.")
            time.sleep(0.5)

    def task_instances(self, dag_id: str, run_id: str) -> list[Json]:
        """
        List the task instances of a run, those of mapped tasks too.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the run.
        :return: The task instances.
        """
        return self._pages(f"{_run(dag_id, run_id)}/taskInstances", "task_instances")

    def tasks(self, dag_id: str) -> list[Json]:
        """
        List the tasks of a DAG.

        :param dag_id: Its id.
        :return: The tasks, each with ``task_id`` and ``downstream_task_ids``.
        """
        return list(self.call("GET", f"/dags/{dag_id}/tasks")["tasks"])

    def xcom(self, dag_id: str, run_id: str, task_id: str, *, key: str = "return_value", map_index: int = -1) -> Any:
        """
        Read what a task has pushed.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the run.
        :param task_id: Id of the task.
        :param key: Key of the value.
        :param map_index: Which instance of a mapped task.
        :return: The value, None when there is none.
        """
        path = f"{_run(dag_id, run_id)}/taskInstances/{task_id}/xcomEntries/{quote(key, safe='')}"
        answer = self.request("GET", path, map_index=map_index)
        return None if answer.status_code == httpx.codes.NOT_FOUND else _json(answer)["value"]

    def clear(self, dag_id: str, run_id: str, task_ids: Sequence[str] | None = None, *, downstream: bool = False) -> list[Json]:
        """
        Clear task instances of a run, so that they run again.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the run.
        :param task_ids: Which tasks, None for all.
        :param downstream: Clear what follows them too.
        :return: The task instances that were cleared.
        """
        body: Json = {
            "dry_run": False,
            "dag_run_id": run_id,
            "only_failed": False,
            "include_downstream": downstream,
            "task_ids": list(task_ids) if task_ids is not None else None,
        }
        return list(self.call("POST", f"/dags/{dag_id}/clearTaskInstances", body=body)["task_instances"])

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str, *, map_index: int = -1) -> None:
        """
        Mark a task instance by hand.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the run.
        :param task_id: Id of the task.
        :param state: ``success``, ``failed`` or ``skipped``.
        :param map_index: Which instance of a mapped task.
        """
        path = f"{_run(dag_id, run_id)}/taskInstances/{task_id}"
        self.call("PATCH", path if map_index < 0 else f"{path}/{map_index}", body={"new_state": state})

    def set_run_state(self, dag_id: str, run_id: str, state: str) -> None:
        """
        Mark a run by hand.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the run.
        :param state: ``queued``, ``success`` or ``failed``.
        """
        self.call("PATCH", _run(dag_id, run_id), body={"state": state})

    def delete_run(self, dag_id: str, run_id: str) -> None:
        """
        Delete a run that has ended.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the run.
        """
        self.call("DELETE", _run(dag_id, run_id))

    def task_log(self, dag_id: str, run_id: str, task_id: str, *, try_number: int = 1, map_index: int = -1) -> Json:
        """
        Read the log of a try.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the run.
        :param task_id: Id of the task.
        :param try_number: Which try, from 1.
        :param map_index: Which instance of a mapped task.
        :return: Airflow's answer, with the lines in ``content``.
        """
        path = f"{_run(dag_id, run_id)}/taskInstances/{task_id}/logs/{try_number}"
        return self.call("GET", path, map_index=map_index, full_content=True)

    def _authenticate(self) -> None:
        answer = self._client.post("/auth/token", json=self._login)
        if answer.is_error:
            raise DemoError(f"Airflow at {self.url} refuses the login ({answer.status_code}): {answer.text[:300]}")
        self._client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"

    def _pages(self, path: str, key: str, **query: Any) -> list[Json]:
        found: list[Json] = []
        while True:
            page = self.call("GET", path, limit=PAGE, offset=len(found), **query)
            found += page[key]
            if not page[key] or len(found) >= page["total_entries"]:
                return found


def _run(dag_id: str, run_id: str) -> str:
    # A run id made by Airflow has a plus sign and colons in it.
    return f"/dags/{dag_id}/dagRuns/{quote(run_id, safe='')}"


def _json(answer: httpx.Response) -> Json:
    if answer.is_error:
        raise DemoError(f"Airflow answered {answer.status_code} to {answer.request.url}: {answer.text[:500]}")
    return dict(answer.json())


def _was_locked(answer: httpx.Response) -> bool:
    """Whether Airflow's database has refused a request, which is undone then: SQLite's lock was not to be had in time."""
    return answer.status_code == httpx.codes.INTERNAL_SERVER_ERROR and '"Database error"' in answer.text
