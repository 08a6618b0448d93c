"""What the fake server holds: plain values, no behaviour beyond what their own fields say."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PHASES = {
    "Pending": "PENDING",
    "Running": "RUNNING",
    "Succeeded": "SUCCEEDED",
    "Failed": "FAILED",
    "Error": "FAILED",
    "Skipped": "SKIPPED",
    "Omitted": "",
}
"""Phase of a workflow or node as the engine calls it, and the state that the server makes of it; empty is left out of JSON."""

PLANE = 0xFFFF
"""Last character that the connection to the database can carry."""


@dataclass
class Request:
    """
    One request that the server received.

    :param method: ``GET`` and so on.
    :param path: Path, decoded once.
    :param query: Query parameters, decoded once; the last one of a name counts.
    :param headers: Headers, names in small letters.
    :param body: Body as it came.
    :param at: When it came, in seconds of the server's clock.
    :param status: Status that was answered, None for none (a lost or hanging answer).
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = field(repr=False)
    at: float
    status: int | None = None


@dataclass
class Answer:
    """
    What is sent back.

    :param status: HTTP status.
    :param body: Bytes of the body.
    :param kind: Content type.
    :param gateway: Whether the gRPC gateway made it, which marks its answers with a header of its own.
    """

    status: int
    body: bytes
    kind: str = "application/json"
    gateway: bool = False
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Node:
    """One node of a workflow: the workflow itself, a driver, a task or an executor."""

    node_id: str
    name: str
    phase: str
    task_id: str
    started_at: int
    finished_at: int | None = None
    children: list[str] = field(default_factory=list)
    history: list[tuple[int, str]] = field(default_factory=list)
    message: str = ""
    log: str = ""
    artifacts: dict[str, bytes] = field(default_factory=dict, repr=False)

    def move(self, phase: str, now: int) -> None:
        """
        Give it another phase.

        :param phase: The engine's word.
        :param now: When, in seconds since 1970.
        """
        state = PHASES[phase]
        if not self.history or self.history[-1][1] != state:
            self.history.append((now, state))
        self.phase = phase
        self.finished_at = now if phase in {"Succeeded", "Failed", "Error", "Skipped"} else None


@dataclass
class Workflow:
    """
    A Workflow object in Kubernetes: what really runs, whether or not a run tells of it.

    :param name: Name of the object.
    :param uid: Its uid.
    :param run_id: Value of the label ``pipeline/runid``.
    :param namespace: Where it is.
    :param phase: ``Pending``, ``Running``, ``Succeeded``, ``Failed`` or ``Error``.
    :param created_at: Creation, seconds since 1970.
    :param finished_at: End, None before.
    :param display_name: Name of the run that was asked for.
    :param recurring_run_id: Recurring run that owns it, empty for none.
    :param spec: Pipeline that it runs.
    :param stopped: Whether a terminate has reached it.
    :param deleted: Whether the object is gone; the value is kept, so that it can still be counted.
    :param nodes: Its nodes by id; empty until it runs.
    :param cached: Tasks that are served from the cache.
    """

    name: str
    uid: str
    run_id: str
    namespace: str
    created_at: float
    spec: dict[str, Any] = field(repr=False)
    display_name: str = ""
    recurring_run_id: str = ""
    owner: str = ""
    phase: str = "Pending"
    finished_at: int | None = None
    stopped: bool = False
    deleted: bool = False
    persisted: bool = False
    version: int = 1000
    nodes: dict[str, Node] = field(default_factory=dict, repr=False)
    fate: int = 0
    cached: frozenset[str] = frozenset()

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.phase in {"Succeeded", "Failed", "Error"}


@dataclass
class Run:
    """
    A row of the table of runs: what the API shows, which follows the workflow when that is reported.

    The names are those of the API. ``nodes`` are those of the last report, None before the first.
    """

    run_id: str
    display_name: str
    created_at: int
    experiment_id: str
    namespace: str
    description: str = ""
    state: str = "PENDING"
    storage_state: str = "AVAILABLE"
    pipeline_id: str = ""
    pipeline_version_id: str = ""
    pipeline_spec: dict[str, Any] | None = field(default=None, repr=False)
    runtime_config: dict[str, Any] | None = None
    service_account: str = "pipeline-runner"
    scheduled_at: int = 0
    finished_at: int = 0
    recurring_run_id: str = ""
    plugins_input: dict[str, Any] | None = None
    plugins_output: dict[str, Any] | None = None
    state_history: list[dict[str, Any]] = field(default_factory=list)
    nodes: list[Node] | None = field(default=None, repr=False)
    workflow: Workflow | None = field(default=None, repr=False)
    text: bytes | None = field(default=None, repr=False)


@dataclass
class Experiment:
    """An experiment, under the API's names."""

    experiment_id: str
    display_name: str
    created_at: int
    description: str = ""
    namespace: str = ""
    storage_state: str = "AVAILABLE"
    last_run_created_at: int = 0


@dataclass
class Pipeline:
    """A pipeline, under the API's names."""

    pipeline_id: str
    name: str
    display_name: str
    created_at: int
    description: str = ""
    namespace: str = ""


@dataclass
class Version:
    """A version of a pipeline, under the API's names."""

    pipeline_version_id: str
    pipeline_id: str
    name: str
    display_name: str
    created_at: int
    spec: dict[str, Any] = field(repr=False)
    description: str = ""
    package_url: str = ""


@dataclass
class RecurringRun:
    """A recurring run, under the API's names; ``workflow_name`` is that of its ScheduledWorkflow object, which may be gone."""

    recurring_run_id: str
    display_name: str
    created_at: int
    experiment_id: str
    namespace: str
    workflow_name: str
    max_concurrency: int
    description: str = ""
    pipeline_id: str = ""
    pipeline_version_id: str = ""
    pipeline_spec: dict[str, Any] | None = field(default=None, repr=False)
    runtime_config: dict[str, Any] | None = None
    service_account: str = "pipeline-runner"
    trigger: dict[str, Any] | None = None
    enabled: bool = False
    updated_at: int = 0
    no_catchup: bool = False
    object_gone: bool = False

    @property
    def status(self) -> str:
        """What the list can be filtered by."""
        return "ENABLED" if self.enabled else "DISABLED"
