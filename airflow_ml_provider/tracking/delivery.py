"""How the record of a step that has ended comes to MLflow: at once, within the patience, or by way of the spool."""

from __future__ import annotations

import logging

from airflow.providers.common.compat.sdk import redact

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import AirflowMLError, ArtifactError, RemoteUnavailableError, SupersededError
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.models.run import StepRecord
from airflow_ml_provider.tracking import spool
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.runs import STATE

log = logging.getLogger(__name__)

ERROR, ERROR_LENGTH = "airflow.error", 1000
"""Tag of a run that failed: why; and how many characters of it are kept."""


class Delivery:
    """
    Sends the record of one try, once it says how the try has ended.

    :param recorder: Where to.
    :param record: What the step did.
    :param settings: The section ``[ml]``.
    """

    def __init__(self, recorder: Recorder, record: StepRecord, settings: Settings) -> None:
        self.recorder = recorder
        self.record = record
        self.settings = settings
        self.kept_at = ""
        """Folder in the spool that holds the record; empty while there is none."""

    def succeed(self) -> None:
        """
        Send the record of a step that has ended well; whatever goes wrong, the record is in the spool then.

        :raises SupersededError: a later try has taken over.
        :raises RemoteUnavailableError: patience has run out; says where the record lies; a retry is safe.
        :raises AirflowMLError: of the kind that says whether a retry helps; the record is ``RUNNING`` again, and its run is
            to be closed by :meth:`fail`.
        """
        try:
            try:
                self.recorder.send(self.record)
            except RemoteUnavailableError as error:
                self._send_later(error)
        except (SupersededError, RemoteUnavailableError):
            raise
        except Exception as error:
            where = self._keep()
            self.record.status = "RUNNING"  # not ended well after all: fail() is next
            raise _told(error, where) from error
        except BaseException:  # out of time, or stopped, in the middle of an upload
            if not self.kept_at:
                log.warning("%s", self._keep())
            raise

    def fail(self) -> None:
        """Send what a failed step has logged, and close its run; never raises over the step's own error, and never waits."""
        try:
            if self.kept_at:  # the outputs are safe there, and cannot be stored now
                self.record.outputs = [each for each in self.record.outputs if each.stored is not None]
            self.recorder.log(self.record)
            self.recorder.store_outputs(self.record)
        except SupersededError as superseded:
            log.warning("%s", superseded)
        except Exception as other:  # noqa: BLE001  (whatever it is, the step's own error is the one to tell)
            where = self.kept_at or self._keep()
            log.warning("What the failed step had logged could not be sent: %s %s", in_words(other), where)
            self._close_only(other)

    def _send_later(self, unavailable: RemoteUnavailableError) -> None:
        """Keep the record first, so that a kill while it waits loses nothing; then wait for MLflow."""
        where = self._keep()
        log.warning("%s %s", unavailable, where)
        what = f"send the record of {self.record.attempt.identity.label}"
        try:
            patiently(what, lambda: self.recorder.send(self.record), self.settings.patience_s)
        except RemoteUnavailableError as error:
            said = f"{error} The step itself has ended well; a retry of the task runs it again. {where}"
            raise RemoteUnavailableError(said) from error
        if self.kept_at:
            spool.drop(self.kept_at)

    def _keep(self) -> str:
        """Put the record into the spool, and say in words where it is; a spool that fails is said, and raises nothing."""
        try:
            self.kept_at = spool.keep(self.settings.spool, self.record)
        except ArtifactError as error:
            return str(error)
        return f"The record of this step is kept at {self.kept_at}; to send it by hand: airflow-ml resend {self.kept_at}"

    def _close_only(self, refused: Exception) -> None:
        """Close the run of a failed step although MLflow does not take what it had logged."""
        if isinstance(refused, RemoteUnavailableError):
            return
        tags = {key: self.record.tags[key] for key in (STATE, ERROR) if key in self.record.tags}
        try:
            self.recorder.tree.check_current(self.record.run.run_id, self.record.attempt)
            self.recorder.tree.close(self.record.run.run_id, "FAILED", end_time_ms=self.record.end_time_ms, tags=tags)
        except AirflowMLError as other:
            log.warning("The run of the failed step stays open until `airflow-ml reconcile`: %s", other)


def in_words(error: BaseException) -> str:
    """
    Write an error for a tag or a log line, as every database keeps it.

    :param error: Any error, one that cannot be written as text included.
    :return: Its kind and its text, secrets masked, at most 1,000 characters.
    """
    try:
        text = f"{type(error).__name__}: {error}"
    except Exception:  # noqa: BLE001  (its own __str__ fails)
        text = type(error).__name__
    return str(redact(text)).replace("\0", "?").encode(errors="replace").decode()[:ERROR_LENGTH]


def _told(error: Exception, where: str) -> AirflowMLError:
    """Add where the record is; what a client library raises becomes an error of ours."""
    if isinstance(error, AirflowMLError):
        return type(error)(f"{error} {where}")
    return ArtifactError(f"what the step has made could not be stored: {in_words(error)}. {where}")
