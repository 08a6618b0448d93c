"""
Starting a run exactly once, as far as a server without transactions lets one.

The server makes the workflow first and the run's row afterwards. A create whose answer is lost may have made nothing, both, or
a workflow alone (an orphan, which is in no list). So: the id is chosen before (:mod:`airflow_ml_provider.core.submission`),
the intent is written down before the create is sent, it is sent once, and what became of it is asked, never assumed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, cast, get_args

from airflow_ml_provider._compat import StateStore
from airflow_ml_provider.core.submission import Generation, Memory, RetryMode, decide, run_id_of
from airflow_ml_provider.exceptions import (
    ConfigError,
    RemoteJobError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SubmissionUnknownError,
    UnauthorizedError,
)
from airflow_ml_provider.hooks.kfp import KfpApi
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.jobs.kfp import KfpJobs
from airflow_ml_provider.jobs.kfp_actions import RunActions
from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog
from airflow_ml_provider.models.kfp import PipelineRun, RunState
from airflow_ml_provider.models.run import StepIdentity

log = logging.getLogger(__name__)

ExactlyOnce = Literal["look", "carrier", "workflows"]
"""How the fate of a create is found out; see docs/kfp-runs.md for what each promises."""

CREATES = 3
"""Creates sent for one run at most, each after it was proven that the one before had started nothing."""
TOO_MANY = 429
STOP_WITHIN_S = 4.0
"""Seconds in which a killed task tries to stop its run; Airflow kills it for good soon after."""
MEMORY_KEY = "kfp_run."
"""Before a run's id, in the task state store."""


CURRENT_KEY = MEMORY_KEY + "current"
"""Under it stands the run that the task worked with last."""
RESUMED_KEY = MEMORY_KEY + "resumed"
"""Under it stands when the run had ended that the server was asked to repeat."""
STALE_S = 60.0
"""Seconds in which the end before a repetition may be reported once more."""


class FindWorkflows(Protocol):
    """Asks Kubernetes for the workflows of a run."""

    def __call__(self, run_id: str) -> list[str]:
        """
        Find them by the label ``pipeline/runid``.

        :param run_id: The run.
        :return: Their names.
        """
        ...


@dataclass
class Submission:
    """
    Finds or starts the run of a task instance.

    :param jobs: Runs of the server.
    :param catalog: The rest of the server.
    :param memory: Where it is remembered, over crashes and retries, what was sent: Airflow's task state store.
    :param on_retry: What to do with a run that failed before this try.
    :param exactly_once: How the fate of a create is found out.
    :param find_workflows: For ``workflows``.
    :param patience_s: Seconds to wait for a server that is away.
    :param settle_s: Seconds to look for a run whose create was not answered.
    :param stop_replaced: Whether the run of before a clear is stopped.
    :param sleep: Waits; seconds.
    """

    jobs: KfpJobs
    catalog: KfpCatalog
    memory: StateStore
    on_retry: RetryMode = "resume"
    exactly_once: ExactlyOnce = "look"
    find_workflows: FindWorkflows | None = None
    patience_s: float = 300.0
    settle_s: float = 60.0
    stop_replaced: bool = True
    sleep: Callable[[float], None] = field(default=time.sleep)
    run_id: str | None = None
    """The run that the task works with, once that is decided."""
    killed: bool = False
    _sending: bool = False

    def start(self, identity: StepIdentity, clears: int, body: Callable[[], Mapping[str, Any]]) -> PipelineRun:
        """
        Take up the run that an earlier try has left, or start one.

        :param identity: The task instance.
        :param clears: Airflow's ``max_tries``.
        :param body: Makes the JSON of the create, without ``run_id``; called only where one is sent, since a run that exists
            is taken up whatever became of its package.
        :return: The run, in whatever state it is.
        :raises SubmissionUnknownError: a create was sent and its fate cannot be found out; nothing is sent again.
        :raises ConfigError: the server refuses the run; nothing was started, a retry never helps.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        generation = Generation(clears=clears)
        while True:
            run_id = run_id_of(identity, generation)
            found = self.look(run_id)
            action = decide(found, self._memory_of(run_id), self.on_retry)
            log.info("Run %s: %s. Action: %s.", run_id, found.state if found else "not on the server", action)
            if action != "renew":
                break
            self._leave(found)
            generation = generation.next()
        self.run_id = run_id  # before anything is sent: a kill from now on stops it
        self._replace(run_id)
        if found is None:
            found = self._create(run_id, body(), sent=action == "settle" or self._left_traces(run_id))
        elif action == "resume":
            log.info("It failed before. The server is asked to repeat what failed (on_retry='resume').")
            self.memory.set(RESUMED_KEY, found.finished_at.isoformat() if found.finished_at else "")
            found = RunActions(self.jobs, self.patience_s).retry(run_id)
        self._heed_kill()
        return found

    def look(self, run_id: str) -> PipelineRun | None:
        """
        Ask for a run, within the patience.

        :param run_id: Its id.
        :return: The run, None when the server says that there is none.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        return patiently(f"ask for run {run_id}", lambda: self.jobs.look(run_id), self.patience_s)

    def look_again(self, run_id: str) -> PipelineRun | None:
        """
        Ask for a run that was waited for; a 401 is borne too, as a server that has lost Kubernetes says so.

        A run that was repeated and is FAILED with the finish time of before is asked for again for a minute: a late report
        of the end before has come after the repetition.

        :param run_id: Its id.
        :return: The run, None when the server says that there is none.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        stale, end = self.memory.get(RESUMED_KEY), time.monotonic() + STALE_S
        while True:
            run = patiently(f"ask for run {run_id}", lambda: self._let_in(run_id), self.patience_s)
            if not stale or run is None or run.state is not RunState.FAILED or time.monotonic() >= end:
                return run
            if run.finished_at is None or run.finished_at.isoformat() != stale:
                return run
            self.sleep(3.0)

    def stop_at_once(self) -> None:
        """Ask for the end of the run in the seconds that a killed task has, over a connection of its own."""
        self.killed = True
        run_id, end = self.run_id, time.monotonic() + STOP_WITHIN_S
        if run_id is None:
            return
        log.info("The task was killed. Run %s is stopped.", run_id)
        # The store is asked through the task's one channel, which the signal may have interrupted: so in a thread, for a while.
        noting = threading.Thread(target=lambda: self.remember_stop(run_id), daemon=True)
        noting.start()
        with KfpApi(self.jobs.api.server, self.jobs.api.settings) as fresh:  # the other may be in the middle of an answer
            while (problem := self._stop_once(KfpJobs(fresh, self.jobs.namespace), run_id, end)) and time.monotonic() < end:
                self.sleep(0.3)
        noting.join(max(0.0, end - time.monotonic()))
        if problem:
            log.warning("Run %s could not be stopped: %s Stop it by hand.", run_id, problem)

    def remember_stop(self, run_id: str) -> None:
        """
        Remember that we asked for the end of a run: the server will say FAILED, and it was us.

        :param run_id: Its id.
        """
        self._remember(run_id, "stopped")

    def clean_up(self, run_id: str) -> None:
        """
        Delete the carriers of a run that is over for good; Kubernetes deletes the workflow with them.

        :param run_id: The run.
        """
        if self.exactly_once != "carrier":
            return
        try:
            for each in self.catalog.carriers(run_id):
                self.catalog.delete_recurring_run(each)
        except (RemoteUnavailableError, ConfigError) as error:
            log.warning("The carrier of run %s, a disabled recurring run of that name, is left behind: %s", run_id, error)

    def _let_in(self, run_id: str) -> PipelineRun | None:
        try:
            return self.jobs.look(run_id)
        except UnauthorizedError as error:
            raise RemoteUnavailableError(str(error)) from error

    def _leave(self, found: PipelineRun | None) -> None:
        """Part with a run that is given up: stop it if it goes on after all, clean up behind it if it has ended."""
        if found is None:
            return
        if found.state.ended:
            self.clean_up(found.run_id)
        elif found.state is not RunState.CANCELING:
            log.info("Run %s goes on though it was given up. It is stopped.", found.run_id)
            RunActions(self.jobs, self.patience_s).terminate(found.run_id)

    def _replace(self, run_id: str) -> None:
        """Stop the run of before a clear if it still runs: the trigger that waited for it may not have been told."""
        before = self.memory.get(CURRENT_KEY)
        if self.stop_replaced and before not in {None, run_id}:
            self._leave(self.look(str(before)))
        self.memory.set(CURRENT_KEY, run_id)

    def _left_traces(self, run_id: str) -> bool:
        """Ask whether an earlier try has sent a create that nobody remembers, as before Airflow 3.3."""
        if self.exactly_once == "carrier":
            return bool(patiently("look for the carrier", lambda: self.catalog.carriers(run_id), self.patience_s))
        return bool(self.find_workflows and self.find_workflows(run_id))

    def _heed_kill(self) -> None:
        """Airflow lets a killed task go on for seconds: what it starts then would be nobody's."""
        if self.killed:
            self.stop_at_once()
            raise RemoteJobError(f"the task was killed, and run {self.run_id} was stopped.")

    def _stop_once(self, jobs: KfpJobs, run_id: str, end: float) -> str:
        """Ask once; the problem, empty when the run is as good as stopped."""
        try:
            said = jobs.cancel(run_id, timeout_s=max(1.0, end - time.monotonic()))
        except RemoteNotFoundError:
            return "it is not there yet." if self._sending else ""
        except (RemoteUnavailableError, ConfigError) as error:
            return str(error)
        return "it is CANCELING, and whether Kubernetes was told so is not known." if said == "canceling" else ""

    def _memory_of(self, run_id: str) -> Memory:
        word = self.memory.get(MEMORY_KEY + run_id, "nothing")
        return cast("Memory", word) if word in get_args(Memory) else "nothing"

    def _remember(self, run_id: str, word: Memory) -> None:
        self.memory.set(MEMORY_KEY + run_id, word)

    def _create(self, run_id: str, body: Mapping[str, Any], *, sent: bool) -> PipelineRun:
        """Send the create, again only where it is certain that the one before started nothing."""
        for _ in range(CREATES):
            run = None if sent else self._send(run_id, body)
            run = run or self._settle(run_id)
            if run:
                self._remember(run_id, "started")
                return run
            sent = False
        raise SubmissionUnknownError(
            f"run {run_id} was sent {CREATES} times to {self.jobs.api.server.url} and is not there. Look at the server's own "
            "log, then clear the task."
        )

    def _send(self, run_id: str, body: Mapping[str, Any]) -> PipelineRun | None:
        """Send one create; None when its answer was lost."""
        request = dict(body) | {"run_id": run_id} | self._carrier(run_id, body)
        self._heed_kill()
        self._sending = True
        try:
            run = patiently(f"create run {run_id}", lambda: self._send_once(run_id, request), self.patience_s)
        finally:
            self._sending = False
        if run and run.run_id != run_id:
            self.jobs.cancel(run.run_id)
            raise ConfigError(
                f"{self.jobs.api.server.url} made run {run.run_id} where {run_id} was asked for: something on the way drops "
                "run_id, or the server is older than 2.0. It was stopped, as a retry could not find it again."
            )
        return run

    def _send_once(self, run_id: str, request: Mapping[str, Any]) -> PipelineRun | None:
        self._remember(run_id, "sent")
        try:
            return self.jobs.submit(request)
        except (ConfigError, RemoteNotFoundError):
            self._remember(run_id, "nothing")
            raise
        except RemoteUnavailableError as error:
            if not error.sent and error.status != TOO_MANY:  # who limits the rate may do so after it was done
                self._remember(run_id, "nothing")
                raise
            log.warning("The create of run %s was not answered well: %s", run_id, error)
            return None

    def _settle(self, run_id: str) -> PipelineRun | None:
        """Find out what became of a create; None when it is proven that it started nothing."""
        if found := self._appears(run_id):
            return found
        if self.exactly_once == "carrier":
            return None  # the server's agent makes a row of an orphan with a carrier within seconds; there was none
        if self.find_workflows is None:
            raise SubmissionUnknownError(
                f"a create of run {run_id} was sent to {self.jobs.api.server.url}, its answer was lost, and after "
                f"{self.settle_s:.0f} s there is no such run. A workflow may run all the same, in no list. Look for it: "
                f"kubectl get workflows -A -l pipeline/runid={run_id}. If there is none, clear the task to start the run. "
                'To have this settled by itself, give the task exactly_once="carrier" or "workflows".'
            )
        names = self.find_workflows(run_id)
        if not names:
            return None
        raise SubmissionUnknownError(
            f"run {run_id} is an orphan: the server has no row of it, but Kubernetes runs workflow {', '.join(names)}. "
            "Delete the workflow, or wait until the server has removed it, then clear the task."
        )

    def _appears(self, run_id: str) -> PipelineRun | None:
        """Look for a while: the row may still wait for the database, an orphan with a carrier for the agent."""
        end, pause = time.monotonic() + self.settle_s, 1.0
        while True:
            if found := self.look(run_id):
                return found
            if time.monotonic() >= end:
                return None
            self.sleep(min(pause, max(0.0, end - time.monotonic())))
            pause = min(pause * 1.5, 10.0)

    def _carrier(self, run_id: str, body: Mapping[str, Any]) -> dict[str, str]:
        """Find or make the recurring run that makes repeated creates one; it is off, and has no trigger."""
        if self.exactly_once != "carrier":
            return {}
        shared = ("experiment_id", "pipeline_version_reference", "runtime_config", "service_account")
        carrier = {key: body[key] for key in shared if key in body}
        carrier |= {"display_name": run_id, "max_concurrency": "1", "mode": "DISABLE", "no_catchup": True}

        def there() -> str:  # one whose answer was lost is found by its name; a second would be off as well
            return next(iter(self.catalog.carriers(run_id)), "") or self.catalog.create_recurring_run(carrier)

        return {"recurring_run_id": patiently("make the carrier", there, self.patience_s)}
