"""
Doing something to a run that was started elsewhere, so that it may be repeated.

Each looks first, since a try before may have done it; and again when an answer was lost, since that may mean done or not.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.jobs.kfp import KfpJobs
from airflow_ml_provider.jobs.kfp_catalog import RECURRING
from airflow_ml_provider.models.kfp import PipelineRun, RunState

log = logging.getLogger(__name__)
CONFLICT = 409
FORBIDDEN = 403


class RunActions:
    """
    What can be done to a run.

    :param jobs: Runs of the server.
    :param patience_s: Seconds to wait for a server that is away, or does not do what it was asked for.
    """

    def __init__(self, jobs: KfpJobs, patience_s: float) -> None:
        self.jobs = jobs
        self.patience_s = patience_s

    def terminate(self, run_id: str) -> PipelineRun:
        """
        Stop a run; it is CANCELING until its workflow has ended, and then FAILED, or SUCCEEDED if that was quicker.

        A 500 leaves it CANCELING while its workflow goes on, so only the server's yes, or an end, is taken for done.

        :param run_id: The run. One that has ended is left as it is.
        :return: The run as it is now.
        :raises RemoteNotFoundError: there is no such run.
        :raises RemoteUnavailableError: the server has not agreed within the patience; a retry is safe.
        """
        agreed = False

        def attempt() -> PipelineRun:
            nonlocal agreed
            run = self._there(run_id)
            if run.state.ended or agreed:
                return run
            if run.state is RunState.CANCELING:
                raise RemoteUnavailableError(
                    f"run {run_id} is CANCELING, and whether Kubernetes was told so is not known. If it stays so, its workflow "
                    "is gone: delete the run. A retry is safe."
                )
            agreed = self.jobs.cancel(run_id) != "canceling"
            return attempt()

        return self._patiently("terminate", run_id, attempt)

    def retry(self, run_id: str) -> PipelineRun:
        """
        Have what failed in a run repeated; the run keeps its id.

        The server refuses to do so twice at once. When a task dies right after it has asked, and the run fails again
        before the task is tried again, it is repeated once more.

        :param run_id: The run. One that runs (again), or has succeeded, is left as it is.
        :return: The run as it is now.
        :raises RemoteNotFoundError: there is no such run.
        :raises ConfigError: the server refuses it, or the recurring run that it belongs to is gone, without which Kubernetes
            would delete what is repeated; a retry never helps.
        :raises RemoteUnavailableError: the server has not done it within the patience; a retry is safe.
        """
        first: PipelineRun | None = None

        def attempt() -> PipelineRun:
            nonlocal first
            run = self._there(run_id)
            if run.state is RunState.CANCELING:
                raise RemoteUnavailableError(f"run {run_id} is being stopped; it can be repeated when it has ended.")
            if run.state not in {RunState.FAILED, RunState.CANCELED} or (first and run.finished_at != first.finished_at):
                log.info("Run %s is %s: nothing to repeat, or it was repeated already.", run_id, run.state)
                return run
            self._refuse_without_carrier(run)
            first = run
            self._ask_to_repeat(run_id)
            return self._there(run_id)

        return self._patiently("repeat", run_id, attempt)

    def has_lost_its_carrier(self, run: PipelineRun) -> bool:
        """
        Ask whether the recurring run that a run belongs to was deleted: a workflow that is made for it is deleted at once.

        :param run: The run.
        :return: Whether it is gone; False for a run that belongs to none.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        if not run.recurring_run_id:
            return False
        return patiently(f"look for the recurring run of {run.run_id}", lambda: self._is_gone(run), self.patience_s)

    def archive(self, run_id: str) -> PipelineRun:
        """
        Put a run away; one that runs goes on.

        :param run_id: The run. One that is away already is left so.
        :return: The run as it is now.
        :raises RemoteNotFoundError: there is no such run.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        return self._put(run_id, self.jobs.archive, away=True)

    def unarchive(self, run_id: str) -> PipelineRun:
        """
        Bring back a run that was put away.

        :param run_id: The run. One that is there already is left so.
        :return: The run as it is now.
        :raises RemoteNotFoundError: there is no such run.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        return self._put(run_id, self.jobs.unarchive, away=False)

    def delete(self, run_id: str) -> PipelineRun:
        """
        Delete a run with its workflow, which stops it.

        The server does not say when it could not reach Kubernetes: then the workflow goes on, and nobody sees it. Terminate
        a run first that must not go on.

        :param run_id: The run. One that is not there is left so.
        :return: The run as it was; nothing but its id when it was gone already.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        found = self._patiently("look at", run_id, lambda: self.jobs.look(run_id) or PipelineRun(run_id=run_id))
        if found.state is not RunState.UNSPECIFIED and not found.state.ended:
            log.warning("Run %s is %s. It is stopped, since its workflow is deleted with it.", run_id, found.state)
        patiently(f"delete run {run_id}", lambda: self.jobs.delete(run_id), self.patience_s)
        return found

    def _put(self, run_id: str, act: Callable[[str], None], *, away: bool) -> PipelineRun:
        def attempt() -> PipelineRun:
            run = self._there(run_id)
            if run.archived is away:
                return run
            act(run_id)
            return self._there(run_id)

        return self._patiently("archive" if away else "unarchive", run_id, attempt)

    def _is_gone(self, run: PipelineRun) -> bool:
        try:
            self.jobs.api.get(f"{RECURRING}/{run.recurring_run_id}")
        except RemoteNotFoundError:
            return True
        except ConfigError as error:
            if error.status != FORBIDDEN:
                raise
        return False  # also where we must not look: it is not known to be gone

    def _refuse_without_carrier(self, run: PipelineRun) -> None:
        if run.recurring_run_id and self._is_gone(run):
            raise ConfigError(
                f"run {run.run_id} cannot be repeated: the recurring run {run.recurring_run_id} that it belongs to was deleted, "
                "so Kubernetes would delete its workflow at once and it would stay RUNNING for ever. Start a new run: clear the "
                "task that started it, or clone it in the server's pages."
            )

    def _ask_to_repeat(self, run_id: str) -> None:
        try:
            self.jobs.retry(run_id)
        except ConfigError as error:
            if error.status != CONFLICT:
                raise
            # Somebody else was faster, or the report of its end is still on its way: look again.
            raise RemoteUnavailableError(f"the server does not repeat run {run_id} now: {error}") from error

    def _there(self, run_id: str) -> PipelineRun:
        run = self.jobs.look(run_id)
        if run is None:
            raise RemoteNotFoundError(
                f"the server {self.jobs.api.server.url} has no run {run_id!r}: it was deleted, or the id is wrong."
            )
        return run

    def _patiently(self, what: str, run_id: str, attempt: Callable[[], PipelineRun]) -> PipelineRun:
        return patiently(f"{what} run {run_id}", attempt, self.patience_s)
