"""
What an operator and the step in its container say to each other: the context, the manifest, the termination message.

The container's half (``airflow_ml_provider/step``) reads and writes the same JSON with the standard library alone, so a field
that is added here must be one that it may lack.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_ml_provider.exceptions import ConfigError

PROTOCOL: Literal[1] = 1
MESSAGE_BYTES = 4096
"""Kubernetes keeps so much of a termination message."""
FOLDER = "/airflow-ml"
"""Where the volume of inputs and outputs is mounted in the container, unless the operator says otherwise."""

StepState = Literal["succeeded", "failed", "terminated", "out_of_memory", "input", "output", "store", "config"]
"""
How the container's half ended: ``failed`` is the program's own exit code, ``terminated`` a SIGTERM (whatever the program then
returned), ``out_of_memory`` a process of the container that the kernel killed, ``input`` an input that is gone or altered,
``output`` one that was never written, ``store`` an artifact store that did not answer, ``config`` a context that cannot be read.
"""


class _Protocol(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())


class StepPlace(_Protocol):
    """
    Where bytes lie, as the container reaches them.

    :param kind: ``proxy``: ``path`` below the artifact proxy of the context's MLflow server. ``url``: presigned URLs, ``url`` to
        GET or PUT one file. ``mlflow``: ``uri`` for MLflow's own client, which the image must have. ``fsspec``: ``uri`` that
        ``fsspec`` opens, which the image must have.
    :param path: For ``proxy``.
    :param url: For ``url``.
    :param uri: For ``mlflow`` and ``fsspec``.
    """

    kind: Literal["proxy", "url", "mlflow", "fsspec"]
    path: str = ""
    url: str = ""
    uri: str = ""


class StepInput(_Protocol):
    """
    One artifact that the step reads.

    :param type: Name of its artifact type.
    :param uri: Where it is, for people.
    :param path: File or directory in the container where the step finds it.
    :param place: Where it is fetched from.
    :param directory: Whether it is a directory; None where only the store knows.
    :param sha256: Recorded digest (a file's, or ``hash_tree``'s of a directory); None when nobody has recorded one.
    :param size: Bytes; None when unknown.
    :param metadata: Where its metadata (one JSON file) is; None when it has none.
    """

    type: str
    uri: str
    path: str
    place: StepPlace
    directory: bool | None = None
    sha256: str | None = None
    size: int | None = None
    metadata: StepPlace | None = None


class StepOutput(_Protocol):
    """
    One artifact that the step writes.

    :param type: Name of its artifact type.
    :param path: Where the program writes it; an ending may be added (``report`` becomes ``report.html``).
    :param place: Folder that it is stored in: a file as ``<place>/<file name>``; the files of a directory as
        ``<place>/<name>/<relative path>``, or, where ``flat``, as ``<place>/<relative path>``.
    :param flat: See ``place``; true for models, whose place is their own.
    """

    type: str
    path: str
    place: StepPlace
    flat: bool = False


class StepFunction(_Protocol):
    """
    A typed Python function that runs in the container.

    :param name: Its name.
    :param source: Its source, without decorators, dedented.
    :param roles: Per parameter ``input``, ``output`` or ``plain``, in order.
    :param optional: Inputs that may be missing, and are None then.
    """

    name: str
    source: str
    roles: dict[str, Literal["input", "output", "plain"]]
    optional: list[str] = Field(default_factory=list)


class StepMlflow(_Protocol):
    """
    The MLflow server as the container reaches it, and the run that the step belongs to.

    :param url: Base URL; empty where the container shall not speak with it (metrics then stay in the manifest).
    :param run_id: Nested run.
    :param experiment_id: Its experiment.
    :param workspace: Value of the header ``X-MLFLOW-WORKSPACE``; empty for none.
    :param credentials: Folder with files ``username`` and ``password``, or ``token``, read anew for each request; empty for none.
    """

    url: str
    run_id: str
    experiment_id: str = ""
    workspace: str = ""
    credentials: str = ""


class StepContext(_Protocol):
    """
    Everything that the container is told: one JSON environment variable, ``AIRFLOW_ML_CONTEXT``.

    :param version: Of this protocol.
    :param step: Name of the step for people, ``train`` or ``train[3]``.
    :param try_number: Airflow's.
    :param mlflow: Server and run.
    :param inputs: Per parameter the artifacts; several where it is named in ``many``, none for an optional one that is missing.
    :param many: Inputs that are lists.
    :param outputs: Per name what is to be written.
    :param parameters: JSON value per name.
    :param folder: Folder on the pod's own volume: ``inputs/``, ``outputs/``, ``step/`` lie below it.
    :param manifest: File that the manifest is stored in.
    :param metadata: Folder for the outputs' metadata, ``<name>.metadata.json``.
    :param checkpoints: Folder of checkpoints, shared by all tries; None where none are kept.
    :param function: A function to call; None where the container has a program of its own.
    :param patience_s: Seconds that a server which does not answer is asked again.
    :param grace_s: Seconds that the container has between SIGTERM and SIGKILL.
    """

    VARIABLE: ClassVar[str] = "AIRFLOW_ML_CONTEXT"

    version: Literal[1] = PROTOCOL
    step: str
    try_number: int
    mlflow: StepMlflow
    inputs: dict[str, list[StepInput]] = Field(default_factory=dict)
    many: list[str] = Field(default_factory=list)
    outputs: dict[str, StepOutput] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    folder: str = FOLDER
    manifest: StepPlace
    metadata: StepPlace
    checkpoints: StepPlace | None = None
    function: StepFunction | None = None
    patience_s: float = 300
    grace_s: float = 30


class StepWritten(_Protocol):
    """
    An output that was stored whole.

    :param type: Name of its artifact type.
    :param file: Name of the file, or ``<output>/<name>`` where the output is not named like it; empty for a directory.
    :param sha256: Of the file, or ``hash_tree``'s of the directory.
    :param size: Bytes.
    :param metadata: Whether ``<name>.metadata.json`` was stored.
    """

    type: str
    file: str = ""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size: int
    metadata: bool = False


class StepManifest(_Protocol):
    """
    What a step has done, kept in MLflow as ``try-N/manifest.json`` whatever became of it.

    :param version: Of this protocol.
    :param try_number: Whose it is.
    :param state: How it ended.
    :param exit_code: What the container exits with.
    :param error: Why it failed, in words; empty when it did not.
    :param outputs: Per name what was stored whole; with a failure, what was by then.
    :param metrics: Last value per metric.
    :param unsent: Points that MLflow did not take while the step ran: ``[key, value, timestamp_ms, step]``.
    :param params: Parameters that the program logged.
    :param result: What the function returned; None without one.
    :param read: Digest and bytes per input that nobody had recorded: ``{"table": ["<sha256>", 123]}``; ``table[1]`` in lists.
    :param checkpoint: URI or path of the last complete checkpoint; empty for none.
    :param started_ms: Milliseconds since the epoch.
    :param ended_ms: The same.
    """

    version: Literal[1] = PROTOCOL
    try_number: int
    state: StepState
    exit_code: int
    error: str = ""
    outputs: dict[str, StepWritten] = Field(default_factory=dict)
    metrics: dict[str, float | str] = Field(default_factory=dict)
    unsent: list[tuple[str, float | str, int, int]] = Field(default_factory=list)
    params: dict[str, str] = Field(default_factory=dict)
    result: Any = None
    read: dict[str, tuple[str, int]] = Field(default_factory=dict)
    checkpoint: str = ""
    started_ms: int = 0
    ended_ms: int = 0

    @classmethod
    def read_text(cls, text: str | bytes) -> StepManifest:
        """
        Read a manifest.

        :param text: The file's content.
        :return: The manifest.
        :raises ConfigError: it is of another version or shape; a retry never helps.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise ConfigError(
                f"the step's manifest cannot be read: {'.'.join(map(str, first['loc']))}: {first['msg']}. The container's "
                "airflow_ml_step.py and this release do not fit together: copy it into the image anew, or let it be injected."
            ) from error


class StepMessage(_Protocol):
    """
    The termination message: what is known of a step when nothing but its pod is left, at most 4,096 bytes of JSON.

    :param version: Of this protocol.
    :param try_number: Whose it is.
    :param state: How it ended.
    :param exit_code: What the container exits with.
    :param error: Why it failed, cut.
    :param manifest: Whether the manifest was stored.
    :param sha256: Of the manifest's bytes; empty where it was not stored.
    :param metrics: Last values of as many metrics as there is room for.
    """

    version: Literal[1] = PROTOCOL
    try_number: int
    state: StepState
    exit_code: int
    error: str = ""
    manifest: bool = False
    sha256: str = ""
    metrics: dict[str, float | str] = Field(default_factory=dict)

    @classmethod
    def find(cls, text: str) -> StepMessage | None:
        """
        Read a termination message, if it is one of ours.

        :param text: What Kubernetes has kept; a program of the user's may have written anything.
        :return: The message; None for another's.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError:
            return None
