"""
Errors of the provider, by remedy.

::

    AirflowMLError
    ├── ConfigError (ValueError)      fix the DAG, the connection or the server's settings; a retry never helps
    │   └── UnauthorizedError         the server took nobody for us (401): a bad token, or it cannot check tokens now
    ├── RemoteUnavailableError        the server did not answer in time; a retry is safe
    ├── RemoteNotFoundError           the server answered: that run, model, alias or artifact does not exist
    ├── RemoteJobError                a remote run failed, was cancelled, timed out or was deleted
    ├── SubmissionUnknownError        a create was sent and its fate is not known; look before you start it again
    ├── ArtifactError                 an artifact is missing, was never written, or is not what was recorded
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


class SubmissionUnknownError(AirflowMLError):
    """A create was sent, and whether it started something cannot be found out. Nothing is sent again; look first, then clear."""


class ArtifactError(AirflowMLError):
    """An artifact is missing, was never written, or differs from what was recorded. A retry helps only after it was made anew."""


class GateClosedError(AirflowMLError):
    """A gate that fails its DAG run (``otherwise="fail"``) did not promote the challenger. A retry gives the same verdict."""


class SupersededError(AirflowMLError):
    """A later try of the same step has taken over, so this one records nothing. A retry is pointless: it runs already."""
