"""
Artifact types as an author writes them.

``Input[Dataset]``, ``Output[Model]`` and ``Output[Metrics]`` mean what they mean in ``kfp.dsl``. The classes do no I/O of
their own: whoever binds an artifact to a step gives it a function that fetches.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from airflow_ml_provider.exceptions import ArtifactError, ConfigError


class Artifact:
    """
    Any file or directory that a step reads or writes.

    As an input, its bytes are fetched and checked against the recorded digest when :attr:`path` is first touched. As an
    output, the step writes a file or a directory at :attr:`path`; it is uploaded when the function returns.

    :param name: Name of the parameter that it is bound to.
    :param path: Local place; None for an input that was not fetched yet.
    :param uri: Where its bytes are kept; empty for an output that was not uploaded yet.
    :param metadata: JSON object that travels with it.
    :param fetch: For an input: brings the bytes here and returns the local place.
    :param fetch_metadata: For an input: reads the metadata that its maker set.
    """

    type_name: ClassVar[str] = "Artifact"

    def __init__(
        self,
        name: str,
        *,
        path: str | None = None,
        uri: str = "",
        metadata: dict[str, Any] | None = None,
        fetch: Callable[[], str] | None = None,
        fetch_metadata: Callable[[], dict[str, Any]] | None = None,
    ) -> None:
        self.name = name
        self.uri = uri
        self._path = path
        self._metadata = metadata
        self._fetch = fetch
        self._fetch_metadata = fetch_metadata

    @property
    def path(self) -> str:
        """
        Local file or directory.

        Setting it on an output names the file: ``report.path += ".html"``.

        :raises ArtifactError: an input is not where it was, or is not what was recorded.
        """
        if self._path is None:
            if self._fetch is None:
                raise ArtifactError(f"artifact {self.name!r} has no place on this machine and no way to get one.")
            self._path = self._fetch()
        return self._path

    @path.setter
    def path(self, value: str | Path) -> None:
        if self._fetch is not None:
            raise ConfigError(f"input {self.name!r} is read-only: its path cannot be set. Copy it if you must change it.")
        self._path = str(value)

    @property
    def metadata(self) -> dict[str, Any]:
        """
        JSON object that the maker of the artifact set; on an output, set keys of it.

        :raises ArtifactError: the metadata of an input is not where it was.
        """
        if self._metadata is None:
            self._metadata = self._fetch_metadata() if self._fetch_metadata else {}
        return self._metadata

    @metadata.setter
    def metadata(self, value: dict[str, Any]) -> None:
        if self._fetch is not None:
            raise ConfigError(f"input {self.name!r} is read-only: its metadata cannot be set.")
        self._metadata = value

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"{self.type_name}({self.name!r}, uri={self.uri!r})"


class Dataset(Artifact):
    """A table, a folder of images, anything to learn from; on record as an MLflow dataset where it is read."""

    type_name: ClassVar[str] = "Dataset"


class Model(Artifact):
    """
    A trained model; on record as an MLflow LoggedModel.

    Written with an MLflow flavour (``mlflow.sklearn.save_model(fitted, model.path)``), it keeps its signature and loads
    with ``mlflow.pyfunc``. Any other file or directory is kept as it is.
    """

    type_name: ClassVar[str] = "Model"


class MetricPoint(BaseModel):
    """
    One point of a metric's curve.

    :param key: Name of the metric.
    :param value: The number; NaN and infinities are kept as they are.
    :param timestamp_ms: Milliseconds since the epoch.
    :param step: Position on the curve, for example the boosting round.
    :param model_id: LoggedModel that the number is about, so that it shows with the model too; None for none.
    """

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants", protected_namespaces=(), defer_build=True)

    key: str
    value: float
    timestamp_ms: int
    step: int = 0
    model_id: str | None = None


class Metrics(Artifact):
    """
    Numbers of a step: curves in MLflow, the last value of each in :attr:`metadata` and in a JSON file.

    As an input, :attr:`metadata` holds the last values.
    """

    type_name: ClassVar[str] = "Metrics"

    def __init__(self, name: str, *, log: Callable[[MetricPoint], None] | None = None, **kwargs: Any) -> None:
        super().__init__(name, **kwargs)
        self._log = log

    def log_metric(self, metric: str, value: float, step: int = 0) -> None:
        """
        Record one point of a metric; sent to MLflow in batches while the step runs.

        :param metric: Name, letters, digits and ``_-./ :`` only, at most 250 characters (MLflow's rule).
        :param value: A number; anything that ``float`` takes.
        :param step: Position on the metric's curve, 0 by default; the value at the highest step is the metric's value.
        :raises ConfigError: ``value`` is not a number, or this is an input; a retry never helps.
        """
        if self._log is None:
            raise ConfigError(f"metrics {self.name!r} are an input, which is read-only. Declare an Output[Metrics] to log to.")
        try:
            number = float(value)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"metric {metric!r} must be a number, not {value!r}. Log texts in metadata.") from error
        try:
            point = MetricPoint(key=metric, value=number, timestamp_ms=time.time_ns() // 1_000_000, step=step)
        except ValidationError as error:
            raise ConfigError(
                f"metric {metric!r} cannot be logged: step {step!r} is not a whole number. Count rounds, epochs or batches."
            ) from error
        self._log(point)
        self.metadata[metric] = number


def dump_metrics(values: Mapping[str, Any]) -> str:
    """
    Write the last values of metrics as JSON that every reader takes.

    :param values: Value per name.
    :return: JSON text; NaN and infinities are written as the texts that ``float`` reads.
    """
    plain = {key: str(value) if isinstance(value, float) and not math.isfinite(value) else value for key, value in values.items()}
    return json.dumps(plain, indent=2, sort_keys=True, default=str)


def load_metrics(text: str) -> dict[str, Any]:
    """
    Read what :func:`dump_metrics` wrote.

    :param text: JSON text.
    :return: Value per name; numbers are floats again, NaN included.
    """

    def number(value: object) -> object:
        if isinstance(value, str):
            try:
                return float(value)
            except ValueError:
                return value
        return value

    return {key: number(value) for key, value in json.loads(text).items()}


ARTIFACT_TYPES: dict[str, type[Artifact]] = {kind.type_name: kind for kind in (Artifact, Dataset, Model, Metrics)}
"""The artifact types by the name that references carry."""


class InputMarker:
    """Marks a parameter as an artifact that the step reads."""


class OutputMarker:
    """Marks a parameter as an artifact that the step writes."""


T = TypeVar("T")
Input = Annotated[T, InputMarker]
"""``Input[Dataset]``: the step reads it. ``Input[list[Model]]``: that output of every mapped instance."""
Output = Annotated[T, OutputMarker]
"""``Output[Model]``: the step writes it; injected, never passed."""
