"""What is rarely said of a step in a pod, beside the arguments of its operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from airflow_ml_provider.models.pod_step import FOLDER
from airflow_ml_provider.models.resources import PodPlacement

StepMode = Literal["inject", "image", "none"]
"""How the container gets its half: sent along with the pod, in its image already, or not at all."""

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
ExitCode = Annotated[int, Field(ge=1, le=255, strict=True)]
Gib = Annotated[float, Field(gt=0, le=32768, allow_inf_nan=False)]

MAIN = "base"
"""Name of the main container, KubernetesPodOperator's own."""


class PodOptions(PodPlacement):
    """
    What is rarely said of a step in a pod: where it runs, how the container gets its half, how it reaches MLflow.

    Where it runs (spot nodes, queue, priority, runtime class, node labels, disk) is said by the fields of
    :class:`airflow_ml_provider.models.resources.PodPlacement`.

    :param step: How the container gets its half: ``inject`` sends it along (needs Python 3.8 in the image), ``image`` runs the
        ``airflow_ml_step`` that is installed there, ``none`` leaves it out: a plain pod, exit code and log only. None takes
        ``inject`` where inputs, outputs, parameters or a function are declared, else ``none``.
    :param python: Interpreter in the image; a name that is in its PATH, or a path.
    :param sidecar: Image with Python for images that have none: it fetches the inputs in an init container and stores the
        outputs in a native sidecar. Needs Kubernetes 1.29. None for none.
    :param image_has: What the image can import, ``mlflow`` or ``fsspec``, for stores that need it.
    :param mlflow_url: The MLflow server as pods reach it; None takes ``pod_url`` of the connection's extra, else its host.
    :param mlflow_secret: Existing Secret with the keys ``username`` and ``password``, or ``token``.
    :param mlflow_token_audience: Audience of a projected service-account token that the server takes.
    :param copy_credentials: Whether a Secret is made of the connection's login; it is owned by the pod and goes with it.
    :param artifact_root: URI that ``fsspec`` opens, below which outputs are stored; None means MLflow's own store.
    :param checkpoints: Whether the step is offered a folder for checkpoints, in the artifacts of its run.
    :param memory_limit_gib: GiB up to which ``memory_on_oom`` raises the memory; None means four times what was asked for.
    :param retry_exit_codes: Exit codes of the program that a retry may mend, so that ``retries`` counts for them. Any other fails
        the task at once, but 137 and 143, with which a program is killed from outside.
    :param run_as_non_root: The image's user must not be root, and must be a number; Kubernetes refuses to start it else.
    :param folder: Where the volume of inputs and outputs is mounted.
    :param volume_gib: Bound of that volume, in GiB; None for none but the node's disk.
    :param unreachable_s: Seconds of an API server that does not answer, after which it is given up; None takes ``[ml]
        patience_s``.
    """

    remedies: ClassVar[Mapping[str, str]] = {
        **PodPlacement.remedies,
        "step": "Give 'inject', 'image' or 'none'; leave it out to have it chosen.",
        "python": "Give the interpreter's name or path in the image, for example '/opt/conda/bin/python'.",
        "image_has": "Give ('mlflow',), ('fsspec',) or both.",
        "mlflow_url": "Give http://host:port as a pod reaches it, without credentials.",
        "mlflow_secret": "Give the name of a Secret in the pod's namespace.",
        "artifact_root": "Give a URI that fsspec opens in the image, for example 's3://bucket/folder'.",
        "folder": "Give an absolute path of letters, digits, '-', '_' and '.', for example '/airflow-ml'.",
        "memory_limit_gib": "Give GiB, for example 128.",
        "retry_exit_codes": "Give numbers from 1 to 255, for example (75,).",
        "volume_gib": "Give GiB of the node's disk, for example 50.",
        "unreachable_s": "Give seconds, for example 300.",
    }

    step: StepMode | None = None
    python: str = Field(default="python3", pattern=r"^\S+$")
    sidecar: str | None = Field(default=None, min_length=1)
    image_has: tuple[Literal["mlflow", "fsspec"], ...] = ()
    mlflow_url: str | None = Field(default=None, pattern=r"^https?://[^\s@]+$")
    mlflow_secret: str | None = Field(default=None, pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$")
    mlflow_token_audience: str | None = Field(default=None, min_length=1)
    copy_credentials: bool = Field(default=False, strict=True)
    artifact_root: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9+.-]*://\S+$")
    checkpoints: bool = Field(default=True, strict=True)
    memory_limit_gib: Gib | None = None
    retry_exit_codes: tuple[ExitCode, ...] = ()
    run_as_non_root: bool = Field(default=False, strict=True)
    folder: str = Field(default=FOLDER, pattern=r"^(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)+$")
    volume_gib: Gib | None = None
    unreachable_s: Seconds | None = None

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        credentials = ("mlflow_secret", "mlflow_token_audience", "copy_credentials")
        given = [name for name in credentials if getattr(self, name)]
        if len(given) > 1:
            self._refuse(f"{' and '.join(given)} are ways to do the same. Give one of them.")
        if self.sidecar and self.step is not None:
            self._refuse(
                f"sidecar={self.sidecar!r} is for images without Python, and step={self.step!r} needs one. Give one of them."
            )
        return self
