"""Runs on a Kubeflow Pipelines server: submit, look, find, cancel, retry. Blocking; a trigger calls it in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Any, Literal

from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.kfp import KfpApi
from airflow_ml_provider.models.kfp import PipelineRun, PipelineTask, RunState, WaitOutcome

RUNS = "/apis/v2beta1/runs"
IDS_PER_LIST = 150
"""Ids in one filter: the URL stays below the 8 kB that proxies take. A page token would double it, so a piece is one page."""
NOT_OF_A_LIST = ("run_details", "pipeline_spec")
"""What lists bring beside the runs, a megabyte each where there are 1,000 tasks, and nobody reads there."""
CREATE_TIMEOUT_S = 300.0
"""Seconds to wait for the answer to a create: 18 s were seen with 100 at once, minutes with the server's MLflow plugin."""
ACTIVE = ["PENDING", "RUNNING", "CANCELING", "PAUSED"]
"""States of a run that has not ended."""
SERVER_ERROR = 500
Cancelled = Literal["agreed", "ended", "canceling"]
TOO_LARGE = ("request is too large", "Request entity too large", "larger than max")
"""What Kubernetes says of a workflow that it cannot hold; the server answers 500, and leaves nothing behind."""
ENGINE_TASKS = frozenset({"", "root", "root-driver", "executor"})
"""Nodes of the engine itself, which no author of a pipeline has named."""


class KfpJobs:
    """
    The runs of one server, as values.

    :param api: Client of the server.
    :param namespace: Namespace whose runs are listed; empty for a server without users.
    """

    def __init__(self, api: KfpApi, namespace: str = "") -> None:
        self.api = api
        self.namespace = namespace or api.server.namespace

    def look(self, run_id: str) -> PipelineRun | None:
        """
        Ask for one run.

        :param run_id: Its id.
        :return: The run; None when the server says that there is none, which proves nothing while a create is on its way.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        try:
            return PipelineRun.from_answer(self.api.get(f"{RUNS}/{run_id}"))
        except RemoteNotFoundError:
            return None

    def find(self, run_ids: Iterable[str]) -> dict[str, PipelineRun]:
        """
        Ask for many runs, with one request for each 150, or for fewer where their answers are large.

        :param run_ids: Ids.
        :return: Run per id, without its tasks; what the server does not have is left out.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        found: dict[str, PipelineRun] = {}
        rest = iter(dict.fromkeys(run_ids))
        while piece := list(islice(rest, min(IDS_PER_LIST, self.page_size))):
            predicate = {"key": "run_id", "operation": "IN", "string_values": {"values": piece}}
            found |= {each.run_id: each for each in self._list([predicate])}
        return found

    @property
    def page_size(self) -> int:
        """Runs that one answer should hold, by the size of those that came."""
        return self.api.page_size(RUNS)

    @property
    def pages(self) -> int:
        """Pages of lists that were asked for so far."""
        return self.api.pages

    def finished_since(self, moment: datetime) -> list[PipelineRun]:
        """
        Ask what has ended, in any way, since a moment; quick whatever number of runs is waiting.

        :param moment: By the workflow engine's clock, in whole seconds, exclusive. Reports come late: leave a margin.
        :return: The runs, those of others too, without their tasks.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        stamp = moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return list(self._list([{"key": "finished_at", "operation": "GREATER_THAN", "timestamp_value": stamp}]))

    def active_of(self, recurring_run_id: str) -> list[PipelineRun]:
        """
        Ask which runs of a recurring run have not ended.

        :param recurring_run_id: The recurring run.
        :return: Its active runs, without their tasks.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        own = {"key": "recurring_run_id", "operation": "EQUALS", "string_value": recurring_run_id}
        active = {"key": "state", "operation": "IN", "string_values": {"values": ACTIVE}}
        return list(self._list([own, active]))

    def submit(self, body: Mapping[str, Any]) -> PipelineRun:
        """
        Send one create, once.

        :param body: JSON of the run, its ``run_id`` included.
        :return: The run.
        :raises ConfigError: the server refused it; nothing was started.
        :raises RemoteNotFoundError: what it names does not exist; nothing was started.
        :raises RemoteUnavailableError: whether it was started is not known, unless ``sent`` of the error is False.
        """
        try:
            return PipelineRun.from_answer(self.api.post(RUNS, dict(body), timeout_s=CREATE_TIMEOUT_S))
        except RemoteUnavailableError as error:
            if error.status == SERVER_ERROR and any(each in str(error) for each in TOO_LARGE):
                raise ConfigError(
                    f"{error} The pipeline and its arguments are more than this Kubernetes takes as one object, and nothing was "
                    "started. Move embedded code and data into an image or an object store."
                ) from error
            raise

    def cancel(self, run_id: str, *, timeout_s: float | None = None) -> Cancelled:
        """
        Ask the server to terminate a run; one that has ended, or is ending, is left as it is.

        :param run_id: Its id.
        :param timeout_s: Seconds to wait for the answer, which can take 13 when Kubernetes does not follow; None for 60.
        :return: ``agreed``; ``ended``: it was over; ``canceling``: somebody has asked before, and whether Kubernetes was told
            so is not known, as a terminate that failed leaves that state too.
        :raises RemoteNotFoundError: there is no such run.
        :raises RemoteUnavailableError: the server did not do it, or did not say so; a retry is safe.
        """
        try:
            self.api.post(f"{RUNS}/{run_id}:terminate", timeout_s=timeout_s)
        except ConfigError as error:
            if error.status != 400 or "Row not found" not in str(error):  # noqa: PLR2004  (an HTTP status)
                raise
            run = self.look(run_id)
            if run is None or run.state.ended:
                return "ended"
            if run.state is RunState.CANCELING:
                return "canceling"
            raise RemoteUnavailableError(
                f"run {run_id} could not be terminated: its state is {run.state} again, an earlier request to stop it "
                "was lost between the server and Kubernetes. A retry is safe."
            ) from error
        return "agreed"

    def retry(self, run_id: str) -> None:
        """
        Ask the server to repeat what failed in a run; the run keeps its id.

        :param run_id: Its id.
        :raises ConfigError: the run has not failed; a retry never helps.
        :raises RemoteNotFoundError: there is no such run.
        :raises RemoteUnavailableError: whether it was done is not known; look at its state before you ask again.
        """
        self.api.post(f"{RUNS}/{run_id}:retry", timeout_s=CREATE_TIMEOUT_S)

    def archive(self, run_id: str) -> None:
        """
        Put a run away; it is not stopped.

        :param run_id: Its id.
        :raises RemoteNotFoundError: there is no such run.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        self.api.post(f"{RUNS}/{run_id}:archive")

    def unarchive(self, run_id: str) -> None:
        """
        Bring back a run that was put away.

        :param run_id: Its id.
        :raises RemoteNotFoundError: there is no such run.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        self.api.post(f"{RUNS}/{run_id}:unarchive")

    def delete(self, run_id: str) -> None:
        """
        Delete a run, with its workflow if that still runs; one that is not there is left so.

        :param run_id: Its id.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        try:
            self.api.delete(f"{RUNS}/{run_id}")
        except RemoteNotFoundError:
            return

    def log_tail(self, run_id: str, node: str, lines: int = 20) -> str:
        """
        Read the end of a node's log, where the server still has it.

        :param run_id: The run.
        :param node: Name of the node, one of :attr:`PipelineTask.pods`.
        :param lines: Lines at most.
        :return: Text; empty when there is none to be had, for whatever reason.
        """
        try:
            text = self.api.text(f"/apis/v1alpha1/runs/{run_id}/nodes/{node}/log")
        except (RemoteUnavailableError, RemoteNotFoundError, ConfigError):
            return ""
        if text.lstrip().startswith('{"error_message"'):  # the server answers this with status 200
            return ""
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def _list(self, predicates: list[dict[str, Any]]) -> Iterator[PipelineRun]:
        found = self.api.items(RUNS, "runs", predicates, leave_out=NOT_OF_A_LIST, namespace=self.namespace or None)
        return (PipelineRun.from_answer(each) for each in found)


def failed_tasks(run: PipelineRun) -> list[PipelineTask]:
    """
    Name the tasks that made a run fail, as its author named them.

    :param run: A run that failed.
    :return: Its failed tasks, without the engine's own nodes; a task whose driver failed is named by the driver.
    """
    nodes = (node for each in run.tasks for node in each.pods)
    workflow = next((node.rpartition("-")[0] for node in nodes), "")
    own = [each for each in run.tasks if each.name not in ENGINE_TASKS and each.name != workflow]
    return [each for each in own if each.state is RunState.FAILED]


def describe_failure(jobs: KfpJobs, run: PipelineRun | None, told: WaitOutcome, url: str) -> str:
    """
    Say why a run gave no result: whose doing it was, the tasks that failed, the end of a log.

    :param jobs: The server.
    :param run: The run as it is now, None when it is gone.
    :param told: Why the waiting ended.
    :param url: Page of the run.
    :return: Text for a person: what, why, where to look, what to do.
    """
    if run is None:
        return f"run {told.run_id} was deleted on the server. A retry starts it anew."
    if told.stopped:
        return f"run {run.run_id} was stopped by this task: {told.message or 'its time was up'}. It is {run.state}: {url}"
    if not run.state.ended:
        return f"run {run.run_id} is {run.state} and is waited for no longer ({told.outcome}): {told.message} {url}"
    if run.state is RunState.CANCELED:
        return f"run {run.run_id} was cancelled on the server, not by this task: {url}"
    failed = failed_tasks(run)
    lines = [f"run {run.run_id} FAILED{f': {run.error}' if run.error else ''}. See {url}"]
    if not failed:
        lines.append("No task of it has failed: it was terminated by somebody else, or the server could not start it.")
    lines += [f"Task {each.name} {each.state}{f': {each.error}' if each.error else '.'}" for each in failed]
    if tail := next((text for each in failed for node in each.pods if (text := jobs.log_tail(run.run_id, node))), ""):
        lines += ["The end of its log:", tail]
    return "\n".join(lines)
