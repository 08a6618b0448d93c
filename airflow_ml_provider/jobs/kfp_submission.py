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
from typing import Any, Literal, Protocol

from airflow_ml_provider._compat import StateStore
from airflow_ml_provider.core.submission import Action, Generation, RetryMode, decide, run_id_of
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
from airflow_ml_provider.jobs.kfp_carrier import Carriers
from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog
from airflow_ml_provider.jobs.kfp_notes import RunNotes
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
STALE_S = 60.0
"""Seconds in which the end before a repetition may be reported once more."""
SLOW_S = 5.0
"""Seconds after which an answer counts as the first one after an outage."""


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
    :param settle_s: Seconds to look for a run whose create was not answered, from the first answer that says there is none.
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
    settle_s: float = 120.0
    stop_replaced: bool = True
    sleep: Callable[[float], None] = field(default=time.sleep)
    run_id: str | None = None
    """The run that the task works with, once that is decided."""
    killed: bool = False
    _sending: bool = False
    _interrupted: bool = False

    @property
    def notes(self) -> RunNotes:
        """What earlier tries have noted."""
        return RunNotes(self.memory)

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
        run_id, found, action = self._choose(identity, clears)
        self.run_id = run_id  # before anything is sent: a kill from now on stops it
        self.notes.warn_of_a_stranger(found)
        self._replace(run_id)
        if found is None:
            found = self._create(run_id, body(), sent=action == "settle" or self._left_traces(run_id))
        elif action == "resume":
            log.info("It failed before. The server is asked to repeat what failed (on_retry='resume').")
            self.notes.set_resumed(found.finished_at)
            found = self._actions.retry(run_id)
        self._heed_kill()
        return found

    def look(self, run_id: str) -> PipelineRun | None:
        """
        Ask for a run, within the patience; a 401 is borne too, as a server that has lost Kubernetes says so.

        :param run_id: Its id.
        :return: The run, None when the server says that there is none.
        :raises UnauthorizedError: the server has said nothing but that to the end of the patience.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        began, asked = time.monotonic(), 0

        def ask() -> PipelineRun | None:
            nonlocal asked
            asked += 1
            return self._let_in(run_id)

        try:
            return patiently(f"ask for run {run_id}", ask, self.patience_s)
        except RemoteUnavailableError as error:
            if isinstance(error.__cause__, UnauthorizedError):
                raise error.__cause__ from None
            raise
        finally:
            self._interrupted = asked > 1 or time.monotonic() - began > SLOW_S

    def look_again(self, run_id: str) -> PipelineRun | None:
        """
        Ask for a run that was waited for, within the patience.

        A run that was repeated and is FAILED with the finish time of before is asked for again for a minute: a late report
        of the end before has come after the repetition.

        :param run_id: Its id.
        :return: The run, None when the server says that there is none.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        stale, end = self.notes.resumed, time.monotonic() + STALE_S
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
        self.notes.set(run_id, "stopped")

    def clean_up(self, run_id: str) -> None:
        """
        Delete the carriers of a run that is over for good; Kubernetes deletes the workflow with them.

        :param run_id: The run.
        """
        if self.exactly_once == "carrier":
            self._carriers.delete(run_id)

    @property
    def _actions(self) -> RunActions:
        return RunActions(self.jobs, self.patience_s)

    @property
    def _carriers(self) -> Carriers:
        return Carriers(self.jobs, self.catalog, self.notes, self.patience_s)

    def _choose(self, identity: StepIdentity, clears: int) -> tuple[str, PipelineRun | None, Action]:
        """
        Go to the newest run of the task, not to the first that could still be used.

        What is left is left for good, though its state may say otherwise later: CANCELING becomes FAILED. So where the task
        has come to is noted before it goes on; where nobody could note it, the next run is looked for before one is taken.
        """
        noted = self.notes.generation(clears)
        generation = noted or Generation(clears=clears)
        while True:
            run_id = run_id_of(identity, generation)
            found = self.look(run_id)
            action = self._verdict(run_id, found)
            if noted is None and action != "renew" and self._was_begun(run_id_of(identity, generation.next()), action):
                log.info("Run %s was given up by an earlier try, which has begun another.", run_id)
                action = "renew"
            log.info("Run %s: %s. Action: %s.", run_id, found.state if found else "not on the server", action)
            if action != "renew":
                return run_id, found, action
            generation = generation.next()
            self.notes.set_generation(generation)
            self._leave(found)

    def _verdict(self, run_id: str, found: PipelineRun | None) -> Action:
        action = decide(found, self.notes.of(run_id), self.on_retry)
        if action == "resume" and found is not None and self._actions.has_lost_its_carrier(found):
            log.info("Run %s cannot be repeated: its recurring run %s was deleted.", run_id, found.recurring_run_id)
            return "renew"
        return action

    def _was_begun(self, run_id: str, action: Action) -> bool:
        """Ask whether a run is there, or an orphan of it beside one that would be repeated."""
        return self.look(run_id) is not None or (action == "resume" and self._left_traces(run_id))

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
            return
        if self.exactly_once == "carrier":
            self._carriers.delete_later(found.run_id)
        if found.state is not RunState.CANCELING:
            log.info("Run %s goes on though it was given up. It is stopped.", found.run_id)
            self._actions.terminate(found.run_id)

    def _replace(self, run_id: str) -> None:
        """Stop the run of before a clear if it still runs: the trigger that waited for it may not have been told."""
        before = self.notes.current
        if before and before != run_id:
            if self.stop_replaced or self.notes.of(before) == "stopped":
                self._leave(self.look(before))
            elif self.exactly_once == "carrier":
                self._carriers.delete_later(before)
        self.notes.set_current(run_id)

    def _left_traces(self, run_id: str) -> bool:
        """Ask whether an earlier try has sent a create that nobody remembers, as before Airflow 3.3."""
        if self.exactly_once == "carrier":
            return self._carriers.exist(run_id)
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

    def _create(self, run_id: str, body: Mapping[str, Any], *, sent: bool) -> PipelineRun:
        """Send the create, again only where it is certain that the one before started nothing."""
        for _ in range(CREATES):
            run = None if sent else self._send(run_id, body)
            run = run or self._settle(run_id)
            if run:
                self.notes.set(run_id, "started")
                return run
            sent = False
        raise SubmissionUnknownError(
            f"run {run_id} was sent {CREATES} times to {self.jobs.api.server.url} and is not there. Look at the server's own "
            "log, then clear the task."
        )

    def _send(self, run_id: str, body: Mapping[str, Any]) -> PipelineRun | None:
        """Send one create; None when its answer was lost."""
        request = dict(body) | {"run_id": run_id}
        if self.exactly_once == "carrier":
            request["recurring_run_id"] = self._carriers.find_or_make(run_id, body)
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
        self.notes.set(run_id, "sent")
        try:
            return self.jobs.submit(request)
        except (ConfigError, RemoteNotFoundError):
            self.notes.set(run_id, "nothing")
            raise
        except RemoteUnavailableError as error:
            if not error.sent and error.status != TOO_MANY:  # who limits the rate may do so after it was done
                self.notes.set(run_id, "nothing")
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
        end, pause, limit = None, 1.0, time.monotonic() + self.settle_s + 2 * self.patience_s
        while True:
            if found := self.look(run_id):
                return found
            now = time.monotonic()
            if self._interrupted and now >= limit:
                raise RemoteUnavailableError(
                    f"{self.jobs.api.server.url} is slow, or away again and again, so that what became of the create of run "
                    f"{run_id} could not be found out. A retry looks again."
                )
            if end is None or self._interrupted:  # while the server was away its agent could not report either
                end = now + self.settle_s
            if now >= end:
                return None
            self.sleep(min(pause, max(0.0, end - now)))
            pause = min(pause * 1.5, 10.0)
