"""One try of a step in a pod: take up an earlier one's pod or make one, and, at its end, make a record and a result of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from airflow_ml_provider.core import pod_verdict
from airflow_ml_provider.core.pod_adoption import PodPlan, pod_name
from airflow_ml_provider.core.pod_failures import next_memory_gib
from airflow_ml_provider.core.submission import Generation
from airflow_ml_provider.exceptions import AirflowMLError
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.jobs.pod_secrets import PodSecrets
from airflow_ml_provider.jobs.pod_submission import PodSubmission
from airflow_ml_provider.models.pod import PodEnd, PodOutcome, PodSnapshot
from airflow_ml_provider.models.pod_options import MAIN
from airflow_ml_provider.models.pod_step import StepManifest
from airflow_ml_provider.operators.cache_hit import CacheHitError
from airflow_ml_provider.operators.pod_body import COLLECT, with_secret
from airflow_ml_provider.operators.pod_verdict import Verdict, completed, judge
from airflow_ml_provider.operators.session import StepSession
from airflow_ml_provider.tracking import pod_record
from airflow_ml_provider.tracking.cache_index import CACHE, CACHE_KEY, CACHED_FROM
from airflow_ml_provider.tracking.pod_record import StepPlan
from airflow_ml_provider.tracking.runs import tags_of

log = logging.getLogger(__name__)
T = TypeVar("T")

TRY_LABEL = "try_number"
"""KubernetesPodOperator's label: the try that made the pod."""


@dataclass(frozen=True)
class Prepared:
    """
    What a pod is made of.

    :param plan: What goes on record.
    :param body: JSON of the pod, without its name.
    :param secret: Text per key of a Secret that is to be made for the pod; empty for none. Never to be logged.
    """

    plan: StepPlan
    body: dict[str, Any]
    secret: dict[str, str] = field(default_factory=dict, repr=False)


class PodTry:
    """
    One try.

    :param session: Its MLflow run, open.
    :param submission: Its pods.
    :param prepare: Makes a pod for it, given GiB that an earlier try has lacked (None for none); asked once at most.
    :param memory_on_oom: How much more memory follows a try that ran out of it; None for no more.
    :param memory_limit_gib: GiB that are never exceeded; None for no bound.
    """

    def __init__(
        self,
        session: StepSession,
        submission: PodSubmission,
        prepare: Callable[[float | None], Prepared],
        memory_on_oom: float | None = None,
        memory_limit_gib: float | None = None,
    ) -> None:
        self.session = session
        self.submission = submission
        self.memory_on_oom = memory_on_oom
        self.memory_limit_gib = memory_limit_gib
        self._prepare = prepare
        self._prepared: Prepared | None = None
        self._tags: dict[str, str] = {}
        self._kept: Generation | None = None
        self._body_sent: dict[str, Any] = {}

    @property
    def number(self) -> int:
        """Airflow's number of this try."""
        return self.session.record.attempt.try_number

    def start(self) -> tuple[PodSnapshot | PodOutcome, StepPlan]:
        """
        Take up the pod that an earlier try has left, or make one.

        :return: The pod, or the end of one: of an earlier try's that is gone, or was evicted, and had done its work, or of one
            that could not be made; and what it was given.
        :raises CacheHitError: no pod is taken up, and none is to be made, as there is an earlier result.
        :raises ConfigError: something of the step is wrong, and nothing was made; a retry never helps.
        :raises SupersededError: a later try or clear has taken over.
        :raises RemoteUnavailableError: MLflow or Kubernetes did not answer within the patience; a retry is safe.
        """
        if self.number > 1:
            run_id, tree = self.session.record.run.run_id, self.session.recorder.tree
            self._tags = tags_of(self._patiently("read the step's run", lambda: tree.get(run_id)))
        found = self.submission.plan()
        if found.pod is None and (left := self._left_by_a_pod_of_before(found)) is not None:
            self.submission.sweep(found.over)
            return left
        try:
            started = self.submission.start(self._body, found)
        except CacheHitError:
            if self._tags.get(pod_record.WAITING):  # for the end of a pod that is gone
                self.session.set_tags({pod_record.WAITING: ""})
            raise
        except AirflowMLError:
            self._abandon()
            raise
        if isinstance(started, PodOutcome):
            self._abandon()
            return started, self._prepared.plan if self._prepared else StepPlan(try_number=self.number, tells=False)
        number = int(started.labels.get(TRY_LABEL) or self.number)
        self._hand_over_secret(started)  # also to the pod of another's create: the Secret was made anew, and is nobody's
        if self._prepared is not None and number == self.number:
            return started, self._prepared.plan
        self._abandon()
        return started, self.read_plan(number)

    def read_plan(self, number: int) -> StepPlan:
        """
        Read what a pod was given.

        :param number: Try that made it.
        :return: The plan.
        :raises ArtifactError: somebody has removed it; a clear helps.
        :raises RemoteUnavailableError: the store did not answer within the patience; a retry is safe.
        """
        store, run = self.session.recorder.store, self.session.record.run
        return self._patiently("read what the pod was given", lambda: pod_record.read_plan(store, run, number))

    def record(self, outcome: PodOutcome, plan: StepPlan) -> tuple[Verdict, StepManifest | None, PodOutcome]:
        """
        Put on record what became of the pod, and say whether the step has succeeded.

        :param outcome: The end of the pod.
        :param plan: What it was given.
        :return: The verdict, what the step has told, and the end with that added.
        :raises ArtifactError: the manifest was changed in the store.
        :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry takes the pod's end up again.
        """
        session, recorder = self.session, self.session.recorder
        manifest = self._manifest(plan, outcome.told.sha256 if outcome.told else "")
        verdict, outcome = judge(outcome, plan, manifest), completed(outcome, manifest, beside=plan.beside)
        pod_record.fill_record(session.record, plan, manifest)
        self._patiently("settle the step's models", lambda: pod_record.settle_models(recorder, plan, session.record))
        tags = {pod_record.END: str(outcome.end), pod_record.NODE: outcome.node, pod_record.WAITING: ""}
        if outcome.exit_code is not None:
            tags[pod_record.EXIT_CODE] = str(outcome.exit_code)
        if manifest is not None and manifest.checkpoint:
            tags[pod_record.CHECKPOINT] = manifest.checkpoint
        if outcome.end is PodEnd.OUT_OF_MEMORY:
            following = next_memory_gib(plan.memory_gib, self.memory_on_oom, self.memory_limit_gib)
            tags |= {pod_record.MEMORY_GIB: f"{following:g}"} if following else {}
        session.set_tags({key: value for key, value in tags.items() if value or key == pod_record.WAITING})
        return verdict, manifest, outcome

    def _manifest(self, plan: StepPlan, sha256: str) -> StepManifest | None:
        if not plan.tells:
            return None
        store, run = self.session.recorder.store, self.session.record.run
        return self._patiently("read the step's manifest", lambda: pod_record.read_manifest(store, run, plan.try_number, sha256))

    def _left_by_a_pod_of_before(self, found: PodPlan) -> tuple[PodOutcome, StepPlan] | None:
        """Look whether the pod of an earlier try, which nobody has read and which is gone or has failed, had done its work."""
        number, _, clears = self._tags.get(pod_record.WAITING, "").partition("/")
        if not number.isdigit() or clears != str(self.submission.clears):
            return None
        plan = self.read_plan(int(number))
        namespace, _, name = self._tags.get(pod_record.POD, "").partition("/")
        failed = next((each for each in found.over if each.name == name and each.phase == "Failed"), None)
        outcome = PodOutcome(
            end=PodEnd.DELETED, pod=name, namespace=namespace, gone=True, message="It was gone before it was read."
        )
        if failed is not None:
            outcome = _end_of(failed, COLLECT if plan.beside else None)
        if not judge(outcome, plan, self._manifest(plan, "")).succeeded:
            if failed is not None:  # it is deleted now, and must not be taken for one that had done its work by the next try
                run_id, tree = self.session.record.run.run_id, self.session.recorder.tree
                self._patiently("tag the step's run", lambda: tree.set_tags(run_id, {pod_record.WAITING: ""}))
            return None
        log.info("Pod %s of try %s is gone and had stored everything. The step is not run again.", name, number)
        return outcome, plan

    def _body(self, generation: Generation) -> dict[str, Any]:
        """Make the pod, and write down in MLflow what whoever finds its end needs, before it exists."""
        if self._prepared is None:
            self._prepared = self._prepare(self._raised_gib())
        if self._kept == generation and self._body_sent:  # a quota has refused it, and it is sent again
            return self._body_sent
        plan, record, tree = self._prepared.plan, self.session.record, self.session.recorder.tree
        self._patiently("store the step's plan", lambda: pod_record.keep_plan(self.session.recorder.store, record.run, plan))
        name = pod_name(record.attempt.identity, generation)
        tags = {
            pod_record.POD: f"{self.submission.jobs.namespace}/{name}",
            pod_record.WAITING: f"{plan.try_number}/{self.submission.clears}",
        }
        # By now, as who ends the step may be another process, which has not looked.
        tags |= {key: record.tags[key] for key in (CACHE, CACHE_KEY, CACHED_FROM) if key in record.tags}
        self._patiently("tag the step's run", lambda: tree.set_tags(record.run.run_id, tags))
        self._kept, self._body_sent = generation, self._prepared.body
        if self._prepared.secret:
            identity, secrets, values = record.attempt.identity, PodSecrets(self.submission.jobs), self._prepared.secret
            name = self._patiently("make the pod's Secret", lambda: secrets.create(identity, generation, values))
            self._body_sent = with_secret(self._prepared.body, name)
        return self._body_sent

    def _hand_over_secret(self, pod: PodSnapshot) -> None:
        """Let Kubernetes delete the Secret with its pod; one that a crash leaves here is swept when the step is over."""
        if self._prepared is None or not self._prepared.secret:
            return
        secrets = PodSecrets(self.submission.jobs)
        try:
            self._patiently("give the Secret to its pod", lambda: secrets.give_to(pod))
        except AirflowMLError as error:
            log.warning("Secret %s is not owned by its pod: %s It is deleted when the step is over.", pod.name, error)

    def _raised_gib(self) -> float | None:
        """Read what an earlier try has found too little of."""
        try:
            return float(self._tags[pod_record.MEMORY_GIB]) if self.memory_on_oom else None
        except (KeyError, ValueError):
            return None

    def _abandon(self) -> None:
        """Settle the models of a pod that was not made after all; the task's own error is the one to tell."""
        if self._prepared is None:
            return
        try:
            pod_record.abandon_models(self.session.recorder, self._prepared.plan)
        except AirflowMLError as error:
            log.warning("The models that were made for the pod stay pending in MLflow: %s", error)

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        return patiently(what, call, self.session.settings.patience_s)


def _end_of(pod: PodSnapshot, sidecar: str | None) -> PodOutcome:
    """Judge a pod as whoever had waited for it would; it is told as gone, since it is about to be put away."""
    found = pod_verdict.verdict(pod, MAIN, sidecar, seen_going=False)
    return pod_verdict.outcome(pod, found, MAIN, sidecar, gone=True)
