"""
Waiting for one pod in the process of a worker: its log into the task's log, and what became of it.

What a pod's state means is decided in :mod:`airflow_ml_provider.core.pods`. While the container runs, its log is followed with
one request on a thread, and the pod itself is looked at rarely: the end of the log is the sign to look. Whatever breaks the log
off (a kubelet that is away, a proxy that cuts long answers), the looking goes on at its usual pace, and the log is taken up again
where it was.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from airflow_ml_provider.core.pod_events import needs_events, with_events
from airflow_ml_provider.core.pod_log import LogCursor, LogReading
from airflow_ml_provider.core.pods import PodWatch
from airflow_ml_provider.exceptions import AirflowMLError, ConfigError, RemoteNotFoundError, UnauthorizedError
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.jobs.pods import PodJobs
from airflow_ml_provider.models.pod import PodEnd, PodOutcome, PodSnapshot

log = logging.getLogger(__name__)

PIECE_BYTES, PIECES = 65_536, 16
"""Of a followed log: bytes in one piece, and pieces that wait for the task at most; then Kubernetes is made to wait."""
SELDOM_S = (20.0, 120.0)
"""Seconds between two looks while the log is followed: a tenth of the time waited so far, within these."""
FOLLOW_AGAIN_S = 5.0
"""Seconds from the end of a log until it is followed again, should the container run on."""
SILENCE_S = 300.0
"""Seconds without a line after which a followed log is asked for anew: a connection that is dead says nothing either."""
DRAIN_S = 5.0
LOG_PATIENCE_S = 20.0
"""Seconds to wait for a kubelet that does not give out the rest of a log."""
EVENTS_UNREAD = "The events of pod %s, which takes long to start, could not be read: %s"
NO_KUBELET = {PodEnd.NODE_LOST, PodEnd.UNREACHABLE}

OnLine = Callable[[str], None]


@dataclass
class PodWait:
    """
    Waits for one pod.

    :param jobs: Pods of the namespace.
    :param pod: The pod, as it was last seen.
    :param watch: Decides; made for this pod.
    :param on_line: Takes each line of the main container's log; None reads no log.
    :param cursor: Where the log was read to before.
    :param poll_interval_s: Seconds between two looks, up to fivefold while nothing changes.
    :param clock: Epoch seconds.
    :param sleep: Waits; seconds.
    """

    jobs: PodJobs
    pod: PodSnapshot
    watch: PodWatch
    on_line: OnLine | None = None
    cursor: LogCursor = field(default_factory=LogCursor)
    poll_interval_s: float = 2.0
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    _note: str = ""
    _follower: _Follower | None = None
    _began: float = 0.0
    _follow_at: float = 0.0

    def wait(self) -> PodOutcome:
        """
        Wait until the pod has ended, or will not be waited for any longer.

        :return: What became of it, with where its log was read to; an API server that is away raises nothing.
        """
        self._began = self.clock()
        try:
            told = self.watch.on_pod(self.pod, self.clock())
            while told is None:
                self._tell_note()
                self._listen()
                told = self._look()
            self._tell_note()
            done = self._read_rest(told)
            return told.model_copy(update={"log": self.cursor.to_json() | ({"done": True} if done else {})})
        finally:
            self._stop_following()

    def _look(self) -> PodOutcome | None:
        try:
            found = self.jobs.look(self.pod.name)
            gone = found is None or found.uid != self.pod.uid
            missed = self.jobs.since(self.pod.name, self.pod.version) if gone else []
        except AirflowMLError as error:
            return self.watch.on_error(str(error), self.clock())
        if found is None or gone:
            told = self.watch.on_past(missed, self.clock())
            return told if told is not None else self.watch.on_pod(found, self.clock())
        return self._see(found)

    def _see(self, pod: PodSnapshot) -> PodOutcome | None:
        self.pod = pod
        told = self.watch.on_pod(pod, self.clock())
        return self._ask_events() if told is None and self.watch.wants_events(self.clock()) else told

    def _ask_events(self) -> PodOutcome | None:
        """Look in the pod's events for what keeps it from starting; what cannot be read is no reason to wait less."""
        try:
            return self.watch.on_events(self.jobs.events(self.pod.name, self.pod.uid), self.clock())
        except AirflowMLError as error:
            log.info(EVENTS_UNREAD, self.pod.name, error)
            return self.watch.on_events(None, self.clock()) if is_refused(error) else None

    def _listen(self) -> None:
        """Wait until the next look is due, or the log has ended, which comes first."""
        now = self.clock()
        pause = self.watch.pause_s(now, self.poll_interval_s)
        if self._is_running() and self._follower is None and self.on_line is not None and now >= self._follow_at:
            self._follower = _Follower(self.jobs, self.pod.name, self.watch.container, self.cursor)
        if self._follower is None:
            self.sleep(self._bounded(pause))
            return
        if self._is_running() and self.pod.deleted_at is None:
            pause = max(pause, min(SELDOM_S[1], max(SELDOM_S[0], (now - self._began) / 10)))
        if self._drain(self._bounded(pause)):
            problem = self._stop_following()
            self._follow_at = self.clock() + FOLLOW_AGAIN_S
            self.sleep(self._bounded(1.0 if problem is None else self.watch.pause_s(self.clock(), self.poll_interval_s)))

    def _bounded(self, pause: float) -> float:
        return max(0.0, pause if self.watch.deadline is None else min(pause, self.watch.deadline - self.clock()))

    def _is_running(self) -> bool:
        found = self.pod.container(self.watch.container)
        return found is not None and found.state == "running"

    def _drain(self, seconds: float) -> bool:
        """Hand on what is written within some seconds; say whether the log has ended."""
        end, follower = time.monotonic() + seconds, self._follower
        while follower is not None:
            if seconds and time.monotonic() > end:
                return False
            try:
                piece = follower.pieces.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                return False
            if piece is None:
                break
            self._hand_on(follower.reading.feed(piece))
            self.cursor = follower.reading.cursor()
        return True

    def _stop_following(self, *, complete: bool = False) -> str | None:
        """Follow no longer; the error that the following has ended with, None for the log's own end."""
        follower, self._follower = self._follower, None
        if follower is None:
            return None
        follower.stop()
        self._hand_on(follower.reading.end(complete=complete and follower.problem is None))
        self.cursor = follower.reading.cursor()
        if follower.refused and not self.watch.is_just_back(self.clock()):
            log.warning("The log of pod %s cannot be read: %s", self.pod.name, follower.problem)
            self.on_line = None
        elif follower.problem is not None:
            log.debug("The log of pod %s broke off: %s", self.pod.name, follower.problem)
        return follower.problem

    def _read_rest(self, told: PodOutcome) -> bool:
        """Read what was written since, while it can be read; say whether nothing is left."""
        found = self.pod.container(self.watch.container)
        ended = told.gone or (found is not None and found.state == "terminated")
        came = self._drain(DRAIN_S if ended else 0.0)
        self._stop_following(complete=told.gone and came)
        if self.on_line is None or told.gone or found is None or found.state == "waiting":
            return True
        patience_s = 0.0 if told.end in NO_KUBELET else LOG_PATIENCE_S
        place = (self.jobs, self.pod.name, self.watch.container)
        self.cursor, done = read_log(*place, self.cursor, self.on_line, patience_s, complete=ended)
        return done

    def _hand_on(self, lines: list[str]) -> None:
        for line in lines:
            if self.on_line is not None:
                self.on_line(line)

    def _tell_note(self) -> None:
        if self.watch.note != self._note:
            self._note = self.watch.note
            log.info("%s", self._note)


def read_log(
    jobs: PodJobs,
    pod: str,
    container: str,
    cursor: LogCursor,
    on_line: OnLine,
    patience_s: float = LOG_PATIENCE_S,
    *,
    complete: bool = True,
) -> tuple[LogCursor, bool]:
    """
    Read what is new in a log, to its end; an error is logged, and what was read counts.

    :param jobs: Pods of the namespace.
    :param pod: The pod; one that is gone has no log any more.
    :param container: The container.
    :param cursor: Where it was read to.
    :param on_line: Takes each line.
    :param patience_s: Seconds to wait for a server or a kubelet that is away.
    :param complete: Whether the container has ended.
    :return: Where it is read to now, and whether nothing is left: it was read to its end, or is gone.
    """
    try:
        while True:
            read = partial(jobs.read_lines, pod, container, cursor, complete=complete)
            lines, cursor = patiently("read the log", read, patience_s)
            for line in lines:
                on_line(line)
            if not cursor.behind:
                return cursor, True
    except RemoteNotFoundError:
        log.warning("Pod %s is gone, and with it what was not read of its log.", pod)
        return cursor, True
    except AirflowMLError as error:
        log.warning("The end of the log of pod %s could not be read: %s", pod, error)
    return cursor, False


def read_last_lines(jobs: PodJobs, told: PodOutcome, on_line: Callable[[str, str], None]) -> None:
    """
    Read the last lines of an init container that has failed: what the main one would say, it never could.

    :param jobs: Pods of the namespace.
    :param told: What became of the pod; of one that is gone, or whose main container has run, nothing is read.
    :param on_line: Takes each line, and the name of the container.
    """
    name = told.init_container
    if not name or told.gone or told.exit_code is not None or told.end not in {PodEnd.FAILED, PodEnd.OUT_OF_MEMORY}:
        return
    read_log(jobs, told.pod, name, LogCursor(tail=True), lambda line: on_line(line, name))


def settle(jobs: PodJobs, told: PodOutcome, container: str = "base") -> PodOutcome:
    """
    Have a success confirmed that no step of ours has confirmed itself, by the pod's events: one request, and none otherwise.

    :param jobs: Pods of the namespace.
    :param told: What became of the pod.
    :param container: Name of the main container.
    :return: The outcome; another one for a success that was none. Where events cannot be read, it stays as it is.
    """
    if not needs_events(told):
        return told
    try:
        return with_events(told, jobs.events(told.pod, told.uid), container)
    except AirflowMLError as error:
        log.warning("The events of pod %s could not be read, so an eviction that it hid would not be seen: %s", told.pod, error)
        return told


def is_refused(error: AirflowMLError) -> bool:
    """
    Say whether Kubernetes will never answer what was asked: not for this account.

    :param error: What it has answered.
    :return: False for a login that may be renewed, and for a server that is away.
    """
    return isinstance(error, ConfigError) and not isinstance(error, UnauthorizedError)


class _Follower(threading.Thread):
    """
    Follows a log; ``pieces`` has its bytes, and None at the end.

    :param jobs: Pods of the namespace.
    :param pod: The pod.
    :param container: The container.
    :param cursor: Where to begin.
    """

    def __init__(self, jobs: PodJobs, pod: str, container: str, cursor: LogCursor) -> None:
        super().__init__(name=f"log of {pod}", daemon=True)
        self.reading = LogReading(cursor)
        self.pieces: queue.Queue[bytes | None] = queue.Queue(PIECES)
        self.problem: str | None = None
        self.refused = False
        self._open = partial(jobs.follow_log, pod, container, cursor, silence_s=SILENCE_S)
        self._response: Any = None
        self._stopped = threading.Event()
        self.start()

    def run(self) -> None:
        """Read to the end, whatever that is."""
        try:
            with self._open() as response:
                self._response = response
                for piece in response.stream(PIECE_BYTES):
                    if not self._put(piece):
                        return
        except AirflowMLError as error:
            self.problem = str(error)
            self.refused = is_refused(error)
        except Exception as error:  # noqa: BLE001  (a thread that dies in silence would leave the task without a log)
            self.problem = repr(error)
        self._put(None)

    def stop(self) -> None:
        """Read no further; what hangs in a read is woken, where urllib3 can do that (2.3), else it ends with its silence."""
        self._stopped.set()
        if self.is_alive() and hasattr(self._response, "shutdown"):
            with contextlib.suppress(Exception):
                self._response.shutdown()

    def _put(self, piece: bytes | None) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self.pieces.put(piece, timeout=0.5)
                return True
        return False
