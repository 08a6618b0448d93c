"""What a Kubeflow Pipelines server says of runs, as values; read from its JSON, never written back."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

log = logging.getLogger(__name__)


class RunState(StrEnum):
    """State of a run or of one of its tasks, as API v2beta1 names them."""

    UNSPECIFIED = "RUNTIME_STATE_UNSPECIFIED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    SKIPPED = "SKIPPED"
    FAILED = "FAILED"
    CANCELING = "CANCELING"
    CANCELED = "CANCELED"
    PAUSED = "PAUSED"

    @classmethod
    def read(cls, text: str | None) -> RunState:
        """
        Read a state; one that a newer server invented is never taken for an end.

        :param text: The server's word, None or empty for none.
        :return: The state, ``UNSPECIFIED`` for one that is not known here.
        """
        try:
            return cls(text or cls.UNSPECIFIED)
        except ValueError:
            log.warning("The server says state %r, which is not known here. It is taken as not ended.", text)
            return cls.UNSPECIFIED

    @property
    def ended(self) -> bool:
        """Whether it is over; a later retry on the server can still bring a failed run back."""
        return self in {RunState.SUCCEEDED, RunState.SKIPPED, RunState.FAILED, RunState.CANCELED}

    @property
    def good(self) -> bool:
        """Whether it ended as its author wanted."""
        return self in {RunState.SUCCEEDED, RunState.SKIPPED}


class PipelineTask(BaseModel):
    """
    One node of a run's graph.

    :param task_id: The server's id.
    :param name: Display name; empty for what has none.
    :param state: Its state, ``UNSPECIFIED`` when the server says none (a task that was left out).
    :param error: The server's message, empty for none.
    :param pods: Node names of what it started; the log is asked for by them.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str = ""
    name: str = ""
    state: RunState = RunState.UNSPECIFIED
    error: str = ""
    pods: tuple[str, ...] = ()

    @classmethod
    def from_answer(cls, data: Mapping[str, Any]) -> PipelineTask:
        """
        Read one item of ``run_details.task_details``.

        :param data: JSON object.
        :return: The task.
        """
        children = data.get("child_tasks") or ()
        return cls(
            task_id=str(data.get("task_id") or ""),
            name=str(data.get("display_name") or ""),
            state=RunState.read(data.get("state")),
            error=_error_text(data.get("error")),
            pods=tuple(str(each["pod_name"]) for each in children if each.get("pod_name")),
        )


class PipelineRun(BaseModel):
    """
    One run of a pipeline, as the server told it at one moment.

    :param run_id: Id of the run.
    :param name: Display name.
    :param state: Its state. A terminated run ends as ``FAILED``, not as ``CANCELED``.
    :param archived: Whether it was put away; archiving does not stop a run.
    :param experiment_id: Experiment that it belongs to.
    :param pipeline_id: Pipeline that it was made from, empty for a run with its spec inline.
    :param version_id: Version of that pipeline, empty likewise.
    :param recurring_run_id: Recurring run that it belongs to, empty for none.
    :param created_at: When the server made it.
    :param finished_at: When it ended, None while it has not. Whole seconds of the workflow engine's clock.
    :param error: The server's message, empty for none.
    :param tasks: Its tasks; empty before the first report, about a second after the start, and in what was read from a list.
    :param mlflow: What the server's MLflow plugin wrote, for example ``root_run_id``, and ``state_message`` where it has failed;
        empty without the plugin.
    :param parameters: Value per parameter that it was given, without those left to their defaults.
    :param pipeline_root: URI below which its artifacts are, where the create said one; empty for the server's own.
    :param pipeline_spec: Its pipeline where it carries it itself; empty where it is of a registered version.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    name: str = ""
    state: RunState = RunState.UNSPECIFIED
    archived: bool = False
    experiment_id: str = ""
    pipeline_id: str = ""
    version_id: str = ""
    recurring_run_id: str = ""
    created_at: datetime | None = None
    finished_at: datetime | None = None
    error: str = ""
    tasks: tuple[PipelineTask, ...] = ()
    mlflow: Mapping[str, str] = {}
    parameters: Mapping[str, Any] = {}
    pipeline_root: str = ""
    pipeline_spec: Mapping[str, Any] = Field(default={}, repr=False)

    @classmethod
    def from_answer(cls, data: Mapping[str, Any]) -> PipelineRun:
        """
        Read a run from the server's JSON.

        :param data: JSON object of a get, of a create, or of a list's item.
        :return: The run.
        """
        version = data.get("pipeline_version_reference") or {}
        details = (data.get("run_details") or {}).get("task_details") or ()
        written = (data.get("plugins_output") or {}).get("mlflow") or {}
        plugin = dict(written.get("entries") or {})
        if written.get("state_message"):
            plugin["state_message"] = {"value": written["state_message"]}
        config = data.get("runtime_config") or {}
        return cls(
            run_id=str(data.get("run_id") or ""),
            name=str(data.get("display_name") or ""),
            state=RunState.read(data.get("state")),
            archived=data.get("storage_state") == "ARCHIVED",
            experiment_id=str(data.get("experiment_id") or ""),
            pipeline_id=str(version.get("pipeline_id") or ""),
            version_id=str(version.get("pipeline_version_id") or ""),
            recurring_run_id=str(data.get("recurring_run_id") or ""),
            created_at=_moment(data.get("created_at")),
            finished_at=_moment(data.get("finished_at")),
            error=_error_text(data.get("error")),
            tasks=tuple(PipelineTask.from_answer(each) for each in details),
            mlflow={key: str(each.get("value", "")) for key, each in plugin.items() if isinstance(each, Mapping)},
            parameters=config.get("parameters") or {},
            pipeline_root=str(config.get("pipeline_root") or ""),
            pipeline_spec=data.get("pipeline_spec") or {},
        )


class WaitOutcome(BaseModel):
    """
    Why the waiting for a run ended; the event of its trigger, as plain JSON.

    :param version: Of this shape.
    :param run_id: The run.
    :param outcome: ``ended``; ``deadline``: the time was up; ``gone``: it was deleted behind our back; ``stuck``: it has been
        stopping for so long that nobody will report its end; ``unreachable``: the server was away for longer than the patience.
    :param state: Last state that was seen.
    :param stopped: Whether we asked the server to terminate it.
    :param message: What else there is to say.
    :param deadline: Epoch seconds at which the run was to be stopped; None for never, or from a release that did not say so.
    """

    model_config = ConfigDict(frozen=True)

    version: int = 1
    run_id: str
    outcome: Literal["ended", "deadline", "gone", "stuck", "unreachable"]
    state: RunState = RunState.UNSPECIFIED
    stopped: bool = False
    message: str = ""
    deadline: float | None = None

    @classmethod
    def from_event(cls, event: Any) -> WaitOutcome:
        """
        Read a trigger's event, that of another release too: what is not known here counts as an end, and the run is asked for.

        :param event: As the trigger gave it.
        :return: The outcome.
        :raises ValueError: it names no run.
        """
        if not isinstance(event, Mapping) or not event.get("run_id"):
            raise ValueError(f"the trigger's event names no run: {event!r}. A retry takes the run up again.")
        outcome, deadline = event.get("outcome"), event.get("deadline")
        return cls(
            run_id=str(event["run_id"]),
            outcome=outcome if outcome in {"deadline", "gone", "stuck", "unreachable"} else "ended",
            state=RunState.read(event.get("state")),
            stopped=bool(event.get("stopped")),
            message=str(event.get("message") or ""),
            deadline=float(deadline) if isinstance(deadline, (int, float)) else None,
        )


class KfpRunOptions(BaseModel):
    """
    What is rarely said of a run.

    :param namespace: Namespace of the run, for a server with users; None takes the connection's.
    :param pipeline_root: URI below which its artifacts are stored; None takes the server's. The server does not check it.
    :param service_account: Kubernetes service account of its pods; None takes the server's.
    :param description: Text for people, at most 255 characters, no emoji; None says which Airflow task it belongs to.
    :param results_root: URI by which workers read what lies below the pipeline root: ``s3://conn_id@mlpipeline/v2/artifacts``.
        None takes the pipeline root itself, which cannot be for ``minio://``, a scheme of KFP's own.
    :param mlflow_conn_id: Connection of the MLflow server that keeps the task's own record; None takes ``mlflow_default``, and
        keeps no record where there is no such connection.
    :param mlflow_experiment: Name of that record's experiment; None takes the DAG's ``default_args["experiment"]``, else
        ``[ml] experiment``, the DAG's id by default. All steps of a DAG run need the same.
    :param plugins_input: JSON for the server's plugins, ``{"mlflow": {"experiment_name": ...}}``; None asks a server of release
        2.17 or later for MLflow runs in the experiment of the task's own record.
    :param register_package: Whether a package is uploaded as a version of its pipeline, named by its digest, once. Otherwise
        each run carries the whole spec, in each list too.
    :param poll_interval_s: Seconds between two questions about a run that is young; they grow with its age, up to tenfold.
    :param settle_s: Seconds to look for a run whose create was not answered, from the first answer that says there is none. With
        ``exactly_once="carrier"`` the server's agent must report an orphan within them, for which it may need a minute or two.
    :param kubernetes_conn_id: Connection with which ``exactly_once="workflows"`` asks Kubernetes.
    :param workflows_namespace: Namespace in which it looks; None looks in all, which needs a right in the whole cluster. In a
        wrong one nothing is found, and what runs is started again.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    namespace: str | None = None
    pipeline_root: str | None = None
    service_account: str | None = None
    description: str | None = Field(default=None, max_length=255)
    results_root: str | None = None
    mlflow_conn_id: str | None = None
    mlflow_experiment: str | None = None
    plugins_input: Mapping[str, Any] | None = None
    register_package: bool = True
    poll_interval_s: float = Field(default=5.0, ge=0.1, le=600)
    settle_s: float = Field(default=120.0, ge=1, le=3600)
    kubernetes_conn_id: str = "kubernetes_default"
    workflows_namespace: str | None = None


def _moment(text: Any) -> datetime | None:
    """Read a time; the server writes 1970 or the year 1 for "not yet"."""
    if not text:
        return None
    moment = datetime.fromisoformat(str(text))
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment if moment.year > 1970 else None  # noqa: PLR2004  (the year that means never)


def _error_text(error: Any) -> str:
    """Read an error, which is a ``google.rpc.Status`` object, or now and then a text."""
    return str(error.get("message") or "") if isinstance(error, Mapping) else str(error or "")
