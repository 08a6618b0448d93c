"""Who a step is, and what it leaves behind: the values that tracking writes to MLflow and to the spool."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from airflow_ml_provider.models.artifact import MetricPoint
from airflow_ml_provider.models.reference import ArtifactRef

NAME_LENGTH = 250
"""Characters that MLflow takes of a name."""
RunStatus = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
"""The MLflow run states that we write."""


class DagRunIdentity(BaseModel):
    """
    One DAG run.

    :param dag_id: Id of the DAG.
    :param run_id: Id of the DAG run.
    """

    model_config = ConfigDict(frozen=True)

    dag_id: str
    run_id: str

    @property
    def key(self) -> str:
        """32 hexadecimal digits, equal for equal identities on every machine; the tag by which the run is found."""
        return _digest([self.dag_id, self.run_id])


class StepIdentity(DagRunIdentity):
    """
    One task instance, never its try.

    :param task_id: Id of the task.
    :param map_index: Index of a mapped task instance, -1 when it is not mapped.
    """

    task_id: str
    map_index: int = -1

    @property
    def key(self) -> str:
        """32 hexadecimal digits, equal for equal identities on every machine; the tag by which the run is found."""
        return _digest([self.dag_id, self.run_id, self.task_id, self.map_index])

    @property
    def dag_run(self) -> DagRunIdentity:
        """The DAG run that it belongs to."""
        return DagRunIdentity(dag_id=self.dag_id, run_id=self.run_id)

    @property
    def path(self) -> str:
        """A relative folder of its own, safe on disk and in an object store: no part climbs or hides."""
        parts = (self.dag_id, self.run_id, self.label)
        return "/".join(re.sub(r"[^A-Za-z0-9_=+:.-]+", "_", part).lstrip(".") or "_" for part in parts)

    @property
    def label(self) -> str:
        """Short name for people, ``train`` or ``train[3]``."""
        return self.task_id if self.map_index < 0 else f"{self.task_id}[{self.map_index}]"


class Attempt(BaseModel):
    """
    One try of one task instance.

    :param identity: The task instance.
    :param try_number: 1 for the first try; Airflow raises it with each retry and clear.
    :param ti_id: Airflow's id of this try, a UUID.
    :param tags: What links the record back to Airflow: log URL, logical date, versions, git commit.
    :param dag_run_tags: The same for the DAG run.
    :param dag_run_params: The DAG run's params, already redacted, as text.
    """

    model_config = ConfigDict(frozen=True)

    identity: StepIdentity
    try_number: int = Field(ge=0)
    ti_id: str
    tags: dict[str, str] = Field(default_factory=dict)
    dag_run_tags: dict[str, str] = Field(default_factory=dict)
    dag_run_params: dict[str, str] = Field(default_factory=dict)


class OpenRun(BaseModel):
    """
    A nested MLflow run that a try has opened.

    :param run_id: Id of the nested run.
    :param parent_run_id: Id of the DAG run's MLflow run.
    :param experiment_id: Experiment of both.
    :param artifact_uri: Root of the nested run's artifacts.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    parent_run_id: str
    experiment_id: str
    artifact_uri: str


class OutputFile(BaseModel):
    """
    An output that a step has written and that waits to be stored.

    :param name: Name of the output.
    :param type: Name of its artifact type.
    :param path: Local file or directory.
    :param target: Its place: a path in the run's artifacts, or a whole URI in an object store.
    :param metadata: What the step set.
    :param model_id: LoggedModel that was made for it; set while sending, so that a second sending makes no second one.
    :param stored: Its reference, once it is stored.
    """

    name: str
    type: str
    path: str
    target: str
    metadata: dict[str, Any] = Field(default_factory=dict)
    model_id: str | None = None
    stored: ArtifactRef | None = None


class StepRecord(BaseModel):
    """
    Everything that one try of a step has to tell MLflow; the same value is sent at once, or kept in the spool.

    :param conn_id: Airflow connection of the MLflow server.
    :param attempt: Whose record it is.
    :param run: The nested run that was opened for it.
    :param params: Parameters of the step as text.
    :param metrics: Points that were not sent yet, in order.
    :param tags: Tags to set when it ends.
    :param inputs: Artifacts that it has read.
    :param outputs: Artifacts that it has written.
    :param status: How it ended.
    :param end_time_ms: When it ended, milliseconds since the epoch; None while it runs.
    :param tried: Whether storing its outputs has failed before, so that MLflow may have more of it than it says.
    """

    conn_id: str
    attempt: Attempt
    run: OpenRun
    params: dict[str, str] = Field(default_factory=dict)
    metrics: list[MetricPoint] = Field(default_factory=list)
    tags: dict[str, str] = Field(default_factory=dict)
    inputs: list[ArtifactRef] = Field(default_factory=list)
    outputs: list[OutputFile] = Field(default_factory=list)
    status: RunStatus = "RUNNING"
    end_time_ms: int | None = None
    tried: bool = False


def mlflow_name(name: str) -> str:
    """
    Write a name as MLflow takes one for a metric, a parameter or a tag.

    :param name: Any text.
    :return: The same, what MLflow refuses replaced by ``_``, cut to its 250 characters.
    """
    plain = re.sub(r"[^\w./: -]", "_", name)[:NAME_LENGTH]
    return posixpath.normpath(plain).lstrip("/.") or "_" if "/" in plain or plain.startswith(".") else plain or "_"


def params_as_text(params: Mapping[str, Any], limit: int = 6000) -> dict[str, str]:
    """
    Write parameters as MLflow keeps them.

    :param params: JSON value per name.
    :param limit: Characters that MLflow keeps of a value; a longer one ends in a digest, so two long values stay apart.
    :return: Text per name; a zero byte, which PostgreSQL does not take, is a question mark.
    """

    def text(value: object) -> str:
        plain = value.replace("\0", "?") if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        if len(plain) <= limit:
            return plain
        tail = f"... ({len(plain)} characters, sha256 {hashlib.sha256(plain.encode()).hexdigest()})"
        return plain[: limit - len(tail)] + tail

    return {mlflow_name(name): text(value) for name, value in params.items()}


def _digest(parts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]
