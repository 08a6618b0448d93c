"""
Errors of the provider, by remedy.

::

    AirflowMLError
    ├── ConfigError (ValueError)      fix the DAG, the connection or the server's settings; a retry never helps
    │   └── UnauthorizedError         the server took nobody for us (401): a bad token, or it cannot check tokens now
    ├── RemoteUnavailableError        the server did not answer in time; a retry is safe
    ├── RemoteNotFoundError           the server answered: that run, model, alias or artifact does not exist
    ├── RemoteJobError                a remote run failed, was cancelled, timed out or was deleted
    │   └── PodError                  a step's pod came to a bad end; ``curable`` says whether a retry can help
    │       ├── PodFailedError        its program failed: read its log
    │       ├── PodOutOfMemoryError   it, or one of its processes, was killed for its memory: give it more
    │       ├── PodImageError         (ConfigError) its image does not exist, or may not be pulled
    │       ├── PodConfigError        (ConfigError) a Secret, a ConfigMap or its program is missing, or its spec is refused
    │       ├── PodDeadlineError      its time was up
    │       ├── NoRoomError           no node had room for it in time
    │       ├── PodEvictedError       curable: it was told to leave its node
    │       ├── PodPreemptedError     curable: a pod of higher priority took its place
    │       ├── PodDeletedError       curable: somebody deleted it
    │       ├── NodeLostError         curable: its node went away
    │       ├── ImagePullError        curable: the registry did not answer
    │       ├── PodNotStartedError    curable: it had a node, and did not start in time
    │       ├── StepStoreError        curable: the artifact store did not answer the step
    │       └── PodUnreachableError   (RemoteUnavailableError) curable: the API server did not answer; the pod may run on
    ├── SubmissionUnknownError        a create was sent and its fate is not known; look before you start it again
    ├── ArtifactError                 an artifact is missing, was never written, or is not what was recorded
    ├── PredictionError               a model failed on a table
    ├── GateClosedError               a challenger was not promoted, and the gate was told to fail
    └── SupersededError               a later try of the same step took over; this one must not record anything

*Unreadable* is never *absent*: only :class:`RemoteNotFoundError` says that a thing is not there.
Every message names what, the value seen, the limit, and the remedy.
"""

from __future__ import annotations


class AirflowMLError(Exception):
    """
    Base of all errors of this provider; never raised itself.

    ``status`` is the HTTP status of the answer that it stands for, None where there was none.
    """

    status: int | None = None


class ConfigError(AirflowMLError, ValueError):
    """A setting, an argument or a DAG is wrong. Fix it; a retry never helps."""


class UnauthorizedError(ConfigError):
    """
    A server answered 401, also with fresh credentials.

    Not proof of a bad token: a Kubeflow server that cannot reach Kubernetes answers the same. What waits anyway goes on waiting.
    """


class RemoteUnavailableError(AirflowMLError):
    """
    A server did not answer, or answered that it cannot serve now. A retry is safe.

    ``sent`` is False where the request certainly never reached it: refused, no such host, or told to come back later (429).
    """

    sent: bool = True


class RemoteNotFoundError(AirflowMLError):
    """A server answered that the thing asked for does not exist. A retry helps only if somebody makes it."""


class RemoteJobError(AirflowMLError):
    """A remote run failed, was cancelled, timed out or was deleted. A retry repeats it; its message says whether that helps."""


class PodError(RemoteJobError):
    """
    A step's pod came to a bad end; never raised itself.

    ``curable`` says whether a retry can help. It is the kind's own word, and an error may know better: a step that ran out of
    memory is curable where the next try gets more.
    """

    curable: bool = False


class PodFailedError(PodError):
    """The program of a pod failed. A retry repeats it."""


class PodOutOfMemoryError(PodError):
    """A pod, or one of its processes, was killed for its memory. A retry helps only with more memory."""


class PodImageError(PodError, ConfigError):
    """The image of a pod does not exist, or may not be pulled. A retry never helps."""


class PodConfigError(PodError, ConfigError):
    """A pod needs what does not exist, or its spec is refused. A retry never helps."""


class PodDeadlineError(PodError):
    """The time of a pod was up before it had ended. A retry needs as long."""


class NoRoomError(PodError):
    """No node had room for a pod within ``capacity_timeout``. A retry waits as long again."""


class PodEvictedError(PodError):
    """A pod was told to leave its node. A retry finds another, or the same one with more room."""

    curable = True


class PodPreemptedError(PodError):
    """A pod of higher priority took a pod's place. A retry waits for room."""

    curable = True


class PodDeletedError(PodError):
    """Somebody deleted a pod before it had ended. A retry makes another."""

    curable = True


class NodeLostError(PodError):
    """The node of a pod went away. A retry runs on another; the lost pod may run on where nobody sees it."""

    curable = True


class ImagePullError(PodError):
    """A registry did not give out an image, and did not refuse it either. A retry may help."""

    curable = True


class PodNotStartedError(PodError):
    """A pod had a node and did not start in time. A retry may get another node."""

    curable = True


class StepStoreError(PodError):
    """The artifact store, or MLflow, did not answer a step in a pod. A retry may help."""

    curable = True


class PodUnreachableError(PodError, RemoteUnavailableError):
    """The API server has not answered within the patience. The pod may run on, and a retry finds it again."""

    curable = True


class SubmissionUnknownError(AirflowMLError):
    """A create was sent, and whether it started something cannot be found out. Nothing is sent again; look first, then clear."""


class ArtifactError(AirflowMLError):
    """An artifact is missing, was never written, or differs from what was recorded. A retry helps only after it was made anew."""


class PredictionError(AirflowMLError):
    """A model failed on a table. A retry repeats it, and helps only where the reason passes."""


class GateClosedError(AirflowMLError):
    """A gate that fails its DAG run (``otherwise="fail"``) did not promote the challenger. A retry gives the same verdict."""


class SupersededError(AirflowMLError):
    """A later try of the same step has taken over, so this one records nothing. A retry is pointless: it runs already."""
