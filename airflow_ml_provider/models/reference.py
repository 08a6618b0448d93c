"""References to artifacts, as they travel in XCom: small, plain JSON, with a version."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.xcom import XComValue

METADATA_SUFFIX = ".metadata.json"
"""Ending of the file that keeps an output's metadata, beside the output."""
MLFLOW_RUN_ID = "mlflow_run_id"
"""Key of the nested MLflow run in an XCom whose ``run_id`` is that of another system."""
MODEL_ID = re.compile("m-[0-9a-f]{32}")
"""Id of a LoggedModel."""
MODEL_URI = re.compile(r"models:/(m-[0-9a-f]{32})(?:/(.*))?", re.DOTALL)
"""URI of a LoggedModel: its id, and the path of a file in it."""


def element_name(name: str, index: int) -> str:
    """
    Name one element of an output that is a list, as it stands in an XCom and on record.

    :param name: Name of the output.
    :param index: Its place, from 0.
    :return: A name that no output has which an author has named.
    """
    return f"{name}[{index}]"


def model_id_of(uri: str) -> str:
    """
    Read the id of the LoggedModel that a URI names.

    :param uri: Any URI; ``models:/<model id>`` may go on with the path of a file.
    :return: The id; empty for any other URI.
    """
    found = MODEL_URI.fullmatch(uri)
    return found[1] if found else ""


class ArtifactRef(XComValue):
    """
    Reference to one artifact of one step: small, plain JSON, complete in itself.

    :param type: Name of the artifact type, as in :data:`ARTIFACT_TYPES`.
    :param name: Name of the output that made it, or of the input that asked for it.
    :param uri: Where its bytes are: ``runs:/<run>/<path>``, ``models:/<model id>``, ``models:/<name>@<alias>`` or any
        URI that Airflow's ``ObjectStoragePath`` opens.
    :param sha256: 64 hexadecimal digits over the file, or over the sorted list of a directory's files; None when nobody
        has recorded one.
    :param size: Bytes, the sum over a directory; None when unknown.
    :param run_id: MLflow run that made it; None for data from outside.
    :param metadata: URI of a JSON file with the artifact's metadata; None when it has none.
    """

    what: ClassVar[str] = "an artifact reference"
    remedy: ClassVar[str] = "Run the step that made it again with this release."

    type: str
    name: str
    uri: str
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    size: int | None = Field(default=None, ge=0)
    run_id: str | None = None
    metadata: str | None = None

    @classmethod
    def looks_like(cls, value: object) -> bool:
        """
        Say whether a value from XCom claims to be a reference.

        :param value: Any JSON value.
        :return: True for a mapping with the keys that only references have.
        """
        return isinstance(value, Mapping) and {"version", "type", "uri"} <= value.keys()


class OutputEntry(BaseModel):
    """One output in a step's XCom: a reference without what all outputs of the step have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    type: str
    path: str | None = None
    uri: str | None = None
    sha256: str | None = None
    size: int | None = None
    metadata: bool | None = None


class StepOutputs(XComValue):
    """
    The XCom of a step with outputs: one small JSON value for all of them.

    :param run_id: Nested MLflow run of the step.
    :param outputs: Per output its type, digest and size as far as they are recorded, its ``path`` in the run or its ``uri``
        elsewhere, and whether it has metadata.
    :param metadata: Folder of the run that holds the metadata of all of them; None when none has any.
    :param values: JSON value per output that is no artifact; None when there is none.
    """

    what: ClassVar[str] = "the XCom of a step"
    remedy: ClassVar[str] = "Run that step again with this release."

    run_id: str
    outputs: dict[str, OutputEntry]
    metadata: str | None = None
    values: dict[str, Any] | None = None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """
        Read the form that :meth:`to_json` writes, also where it stands among the keys of a run elsewhere.

        There ``run_id`` is the id of that run, and ``mlflow_run_id`` says which nested MLflow run belongs to it.

        :param value: What XCom gave back.
        :return: The value.
        :raises ConfigError: it is of another version or shape; a retry never helps.
        """
        if MLFLOW_RUN_ID in value:
            own = {key: each for key, each in value.items() if key in cls.model_fields}
            value = own | {"run_id": value[MLFLOW_RUN_ID] or ""}
        return super().from_json(value)

    @classmethod
    def of(cls, run_id: str, refs: Mapping[str, ArtifactRef]) -> StepOutputs:
        """
        Fold complete references into the small form.

        :param run_id: Nested MLflow run of the step.
        :param refs: Reference per output name.
        :return: The value to push.
        """
        root = f"runs:/{run_id}/"

        def entry(ref: ArtifactRef) -> OutputEntry:
            inside = ref.uri.startswith(root)
            return OutputEntry(
                type=ref.type,
                path=ref.uri.removeprefix(root) if inside else None,
                uri=None if inside else ref.uri,
                sha256=ref.sha256,
                size=ref.size,
                # That of a LoggedModel is found through its tags.
                metadata=True if ref.metadata and not ref.uri.startswith("models:") else None,
            )

        folders = {ref.metadata.removeprefix(root).rpartition("/")[0] for ref in refs.values() if ref.metadata}
        outputs = {name: entry(ref) for name, ref in refs.items()}
        return cls(run_id=run_id, outputs=outputs, metadata=next(iter(folders), None))

    @classmethod
    def looks_like(cls, value: object) -> bool:
        """
        Say whether a value from XCom claims to be the outputs of a step.

        :param value: Any JSON value.
        :return: True for a mapping with the keys that only a step's outputs have.
        """
        return isinstance(value, Mapping) and {"version", "run_id", "outputs"} <= value.keys()

    def pick(self, name: str) -> Any:
        """
        Return what the next step gets of one output.

        :param name: Name of the output.
        :return: Its reference as plain JSON, a list of these where it is one of several, ``name[0]`` and so on, or the value of
            an output that is no artifact.
        :raises ConfigError: there is no output of that name; a retry never helps.
        """
        values = self.values or {}
        if name in values:
            return values[name]
        if name not in self.outputs and element_name(name, 0) in self.outputs:
            names = itertools.takewhile(self.outputs.__contains__, (element_name(name, each) for each in itertools.count()))
            return [self.ref(each).to_json() for each in names]
        return self.ref(name).to_json()

    def ref(self, name: str) -> ArtifactRef:
        """
        Return the complete reference of one output.

        :param name: Name of the output.
        :return: The reference.
        :raises ConfigError: there is no output of that name; a retry never helps.
        """
        entry = self.outputs.get(name)
        if entry is None:
            made = sorted([*self.outputs, *(self.values or {})])
            raise ConfigError(f"the step made no output {name!r}; it made {made}. Ask for one of these.")
        root = f"runs:/{self.run_id}/"
        return ArtifactRef(
            type=entry.type,
            name=name,
            uri=entry.uri or root + (entry.path or ""),
            sha256=entry.sha256,
            size=entry.size,
            run_id=self.run_id or None,
            metadata=f"{root}{self.metadata}/{name}{METADATA_SUFFIX}" if entry.metadata else None,
        )
