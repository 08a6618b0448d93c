"""
How long to wait for a pod, when to look again, and what became of it. Pure: time is an argument, epoch seconds.

A worker's loop and a triggerer's use it alike: each look goes to :meth:`PodWatch.on_pod`, each look that failed to
:meth:`PodWatch.on_error`, until one of them gives an outcome. How a pod's end is judged is in
:mod:`airflow_ml_provider.core.pod_verdict`, what a look says before that in :mod:`airflow_ml_provider.core.pod_signs`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime

from airflow_ml_provider.core import pod_signs, pod_verdict
from airflow_ml_provider.core.pod_events import PodEvent, unmounted
from airflow_ml_provider.models.pod import PodEnd, PodOutcome, PodSnapshot

GRACE_S = 15.0
"""Seconds that a missing image, Secret or ConfigMap may take to appear."""
EVENTS_EVERY_S = 30.0
"""Seconds between two readings of the events of a pod that is being made."""
CONFIRM_S = 5.0
"""Seconds between the two looks that prove a pod which was never seen to be gone."""
SILENT_S = 10.0
"""Seconds after which a pod that its unreachable node should have stopped is given up."""
TERMINATING_S = 60.0
"""The same for a pod that was deleted for another reason, and for one of phase ``Unknown``."""
YOUNG_S = 10.0
"""Seconds after something has happened in which more is likely to."""
JUST_BACK_S = 60.0
"""Seconds in which an API server that was away may refuse what it allows: it has not read its roles again yet."""
SHARE, SLOWDOWN = 0.05, 5.0
BACKOFF_CAP_S = 30.0
NOTE_LETTERS = 600


@dataclass
class PodWatch:
    """
    One waiter for one pod; it is told once.

    Capacity counts from the pod's creation and start-up from its scheduling, by the cluster's clock against ours, so a handover
    between worker and triggerer starts nothing anew. Give it the answer to the create as its first look.

    :param container: Name of the main container.
    :param sidecar: Name of the container that stores outputs; None where there is none.
    :param capacity_timeout_s: Seconds that it may wait for a node; None for as long as it takes.
    :param startup_timeout_s: Seconds from its scheduling until its main container runs.
    :param deadline: When the waiting ends in any case; None for never.
    :param patience_s: Seconds of errors in a row that are borne.
    :param now: When this waiter began.
    :param uid: The pod's; empty to take that of the first look. Another pod of the same name is not ours.
    :param name: Its name and namespace, ``namespace/name``, for what is said of a pod that was never seen.
    """

    container: str = "base"
    sidecar: str | None = None
    capacity_timeout_s: float | None = None
    startup_timeout_s: float = 600.0
    deadline: float | None = None
    patience_s: float = 300.0
    now: float = 0.0
    uid: str = ""
    name: str = ""
    note: str = field(default="", init=False)
    """What the pod does now, in words; a log line is due when it changes."""
    _last: PodSnapshot | None = field(default=None, init=False)
    _changed_at: float = field(default=0.0, init=False)
    _going: bool = field(default=False, init=False)  # it was deleted while its container ran
    _began: bool = field(default=False, init=False)  # its container has run
    _trouble: pod_signs.Trouble | None = field(default=None, init=False)
    _trouble_at: float = field(default=0.0, init=False)
    _claim_at: float | None = field(default=None, init=False)  # since when it waits for a claim that does not exist
    _mount: str = field(default="", init=False)  # what its volumes lack, by its events
    _mount_at: float = field(default=0.0, init=False)
    _events_at: float | None = field(default=None, init=False)  # when they are to be read again; None for at once
    _unknown_at: float | None = field(default=None, init=False)
    _absent_at: float | None = field(default=None, init=False)
    _failing_since: float | None = field(default=None, init=False)
    _failures: int = field(default=0, init=False)
    _failed_at: float | None = field(default=None, init=False)  # the last time that a look has failed

    def __post_init__(self) -> None:
        self._changed_at = self.now

    def on_pod(self, pod: PodSnapshot | None, now: float) -> PodOutcome | None:
        """
        Take in what a look has found.

        :param pod: The pod; None when the API server answered and has none.
        :param now: When it answered.
        :return: The end; None to go on waiting.
        """
        self._failing_since, self._failures = None, 0
        if pod is None or (self.uid and pod.uid and pod.uid != self.uid):
            return self._on_absence(pod, now)
        self._remember(pod, now)
        if pod_verdict.ended(pod, self.container, self.sidecar):
            return self._told(pod, pod_verdict.verdict(pod, self.container, self.sidecar, seen_going=self._going))
        found = self._overdue(pod, now) or (None if self._began or pod.deleted_at else self._not_begun(pod, now))
        if found is None and self.deadline is not None and now >= self.deadline:
            found = PodEnd.DEADLINE, f"it had not ended when its time was up; newest: {self.note}"
        return None if found is None else self._told(pod, found)

    def on_past(self, pods: Iterable[PodSnapshot], now: float) -> PodOutcome | None:
        """
        Take in how a pod went that is gone; give the look that missed it to :meth:`on_pod` after it.

        Only an end counts here. What a pod was late for in the past was not waited for, so no limit is held against it.

        :param pods: What it was after each change since it was last seen, oldest first; other pods of its name are left out.
        :param now: The time.
        :return: Its end; None where none is among them.
        """
        for pod in pods:
            if pod.uid != self.uid:
                continue
            self._remember(pod, now)
            if pod_verdict.ended(pod, self.container, self.sidecar):
                found = pod_verdict.verdict(pod, self.container, self.sidecar, seen_going=self._going)
                return self._told(pod, found, gone=True)
        return None

    def wants_events(self, now: float) -> bool:
        """
        Say whether to read the pod's events now: its containers are being made, and that takes long.

        :param now: The time.
        :return: True once in :data:`EVENTS_EVERY_S` at most; give what is read to :meth:`on_events`.
        """
        pod = self._last
        if pod is None or self._began or self._failures or not pod_signs.being_made(pod) or now - self._since(pod, now) < GRACE_S:
            return False
        if self._events_at is not None and now < self._events_at:
            return False
        self._events_at = now + EVENTS_EVERY_S
        return True

    def on_events(self, events: Iterable[PodEvent] | None, now: float) -> PodOutcome | None:
        """
        Take in the events of a pod that is being made: a Secret or a ConfigMap that does not exist is told in them alone.

        :param events: Its events; None where this account may not read them, which are then not asked for again.
        :param now: The time.
        :return: The end, for what has been missing for :data:`GRACE_S`; None to go on.
        """
        if events is None:
            self._events_at = float("inf")
            return None
        before, self._mount = self._mount, unmounted(events)
        self._mount_at = self._mount_at if before else now
        if self._mount and self._last is not None:
            self._say(self._note_of(self._last), now)
            if now - self._mount_at >= GRACE_S:
                return self._told(self._last, (PodEnd.CONFIG, f"its volumes cannot be mounted: {self._mount}"))
        return None

    def on_error(self, error: str, now: float) -> PodOutcome | None:
        """
        Take in that a look has failed.

        :param error: Why, in words.
        :param now: When.
        :return: The end, when the patience or the time is up; None to go on.
        """
        self._failing_since = now if self._failing_since is None else self._failing_since
        self._failures += 1
        self._failed_at = now
        self._say("the API server does not answer; the pod goes on meanwhile", now)
        waited = now - self._failing_since
        if waited >= self.patience_s:
            text = f"nothing was heard of it for {waited:.0f} s (patience {self.patience_s:.0f} s), and it may run on: {error}"
            return self._lost(PodEnd.UNREACHABLE, text)
        if self.deadline is not None and now >= self.deadline:
            return self._lost(PodEnd.DEADLINE, f"its time is up, and the API server does not answer, so it may run on: {error}")
        return None

    def is_just_back(self, now: float) -> bool:
        """
        Say whether a refusal may not be meant: the API server was away a moment ago.

        :param now: The time.
        :return: Whether a look has failed within the last minute.
        """
        return self._failed_at is not None and now - self._failed_at < JUST_BACK_S

    def pause_s(self, now: float, base_s: float = 2.0) -> float:
        """
        Say how long to pause until the next look.

        :param now: The time.
        :param base_s: Seconds between two looks, as the user wants them; half of it while something happens or the pod goes.
        :return: Seconds: a twentieth of the time in which nothing has changed, at most five times ``base_s``; after errors twice
            as many for each, up to 30.
        """
        if self._failures:
            return min(base_s * 2.0 ** min(self._failures - 1, 10), max(BACKOFF_CAP_S, base_s))
        quiet = now - self._changed_at
        if quiet < YOUNG_S or (self._last is not None and self._last.deleted_at is not None):
            return base_s / 2
        return min(max(quiet * SHARE, base_s), base_s * SLOWDOWN)

    def _remember(self, pod: PodSnapshot, now: float) -> None:
        main = pod.container(self.container)
        running = main is not None and main.state == "running"
        self.uid, self._last, self._absent_at = self.uid or pod.uid, pod, None
        self._began = self._began or (main is not None and main.state != "waiting")
        self._going = self._going or (running and pod.deleted_at is not None)
        if pod.phase != "Unknown" and pod.reason != "NodeLost":
            self._unknown_at = None
        elif self._unknown_at is None:
            self._unknown_at = now
        self._say(self._note_of(pod), now)

    def _say(self, note: str, now: float) -> None:
        note = note if len(note) <= NOTE_LETTERS else f"{note[:NOTE_LETTERS]}..."
        if note != self.note:
            self.note, self._changed_at = note, now

    def _note_of(self, pod: PodSnapshot) -> str:
        note = _note(pod, self.container)
        return f"{note}; {self._mount}" if self._mount and pod_signs.being_made(pod) else note

    def _since(self, pod: PodSnapshot, now: float) -> float:
        """Say since when it has its node."""
        condition = pod.conditions.get("PodScheduled")
        return _epoch(condition.at if condition is not None else pod.created_at, self.now, now)

    def _overdue(self, pod: PodSnapshot, now: float) -> pod_verdict.Verdict | None:
        """Give up a pod that should have gone by now: whoever ought to stop it does not answer."""
        if self._unknown_at is not None and now - self._unknown_at >= TERMINATING_S:
            return PodEnd.NODE_LOST, f"its node has not reported for {now - self._unknown_at:.0f} s, and it may run on there"
        late_s = -1.0 if pod.deleted_at is None else now - pod.deleted_at.timestamp()
        end, text = pod_verdict.going(pod)
        if late_s < (SILENT_S if end is PodEnd.NODE_LOST else TERMINATING_S):
            return None
        if pod_verdict.has_ended(pod, self.container):
            return pod_verdict.unfinished(pod, self.container, self.sidecar, seen_going=self._going)
        return end, f"{text}, should have been gone {late_s:.0f} s ago, and may run on: its node does not answer"

    def _not_begun(self, pod: PodSnapshot, now: float) -> pod_verdict.Verdict | None:
        if not pod_signs.scheduled(pod):
            lacks = pod_signs.missing_claim(pod)
            self._claim_at = None if lacks is None else self._claim_at if self._claim_at is not None else now
            if lacks is not None and self._claim_at is not None and now - self._claim_at >= GRACE_S:
                return lacks.end, lacks.text
            waited = now - _epoch(pod.created_at, self.now, now)
            if self.capacity_timeout_s is None or waited < self.capacity_timeout_s:
                return None
            limit = f"no node had room for it within {self.capacity_timeout_s:.0f} s (capacity_timeout)"
            return PodEnd.NO_ROOM, f"{limit}: {pod_signs.waits_for(pod)}"
        found = self._meets(pod, now)
        if found is not None and found.grace_s is not None and now - self._trouble_at >= found.grace_s:
            return found.end, found.text
        waited = now - self._since(pod, now)
        if waited < self.startup_timeout_s:
            return None
        limit = f"it did not start within {self.startup_timeout_s:.0f} s of its scheduling (startup_timeout)"
        return (
            found.end if found is not None else PodEnd.NOT_STARTED,
            f"{limit}: {found.text if found is not None else self.note}",
        )

    def _meets(self, pod: PodSnapshot, now: float) -> pod_signs.Trouble | None:
        """Find what keeps it from starting, and remember since when."""
        found = pod_signs.trouble(pod, GRACE_S)
        if found is not None and found.vague and self._trouble is not None:
            return self._trouble
        if found is not None and (self._trouble is None or self._trouble.end is not found.end):
            self._trouble_at = now
        self._trouble = found
        return found

    def _on_absence(self, other: PodSnapshot | None, now: float) -> PodOutcome | None:
        if self._last is None and other is None:
            self._absent_at = now if self._absent_at is None else self._absent_at
            if now - self._absent_at < CONFIRM_S:
                return None
        why = "another pod has its name now" if other is not None else "it is not there any more"
        if self._last is None:
            return self._lost(PodEnd.DELETED, f"{why}, and it was never seen", gone=True)
        found = pod_verdict.unfinished(self._last, self.container, self.sidecar, seen_going=self._going)
        return self._told(self._last, (found[0], f"{found[1]}; {why}"), gone=True)

    def _told(self, pod: PodSnapshot, found: pod_verdict.Verdict, *, gone: bool = False) -> PodOutcome:
        return pod_verdict.outcome(pod, found, self.container, self.sidecar, gone=gone)

    def _lost(self, end: PodEnd, text: str, *, gone: bool = False) -> PodOutcome:
        if self._last is not None:
            return self._told(self._last, (end, text), gone=gone)
        namespace, _, name = self.name.rpartition("/")
        message = f"Pod {self.name or self.uid}: {text}."
        return PodOutcome(end=end, pod=name, namespace=namespace, uid=self.uid, message=message, gone=gone)


def _epoch(at: datetime | None, otherwise: float, now: float) -> float:
    """When something was, never later than now: a cluster's clock may be ahead of ours."""
    return min(otherwise if at is None else at.timestamp(), now)


def _note(pod: PodSnapshot, container: str) -> str:
    main = pod.container(container)
    if pod.deleted_at is not None:
        return f"terminating: {pod_verdict.going(pod)[1]}"
    if main is not None and main.state == "terminated":
        return f"container {container} has ended with exit code {main.exit_code}"
    if main is not None and main.state == "running":
        silent = f", but node {pod.node} has stopped reporting" if pod_signs.node_is_silent(pod) else ""
        return f"running on node {pod.node}{silent}"
    if not pod_signs.scheduled(pod):
        return f"waiting for room: {pod_signs.waits_for(pod)}"
    found = pod_signs.trouble(pod, GRACE_S)
    return f"on node {pod.node}, {found.text if found is not None else _start(pod)}"


def _start(pod: PodSnapshot) -> str:
    running = ", ".join(each.name for each in pod.init_containers if each.state == "running")
    return f"init container {running} runs" if running else "its image is pulled and its container made"
