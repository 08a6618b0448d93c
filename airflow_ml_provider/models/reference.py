"""References to artifacts, as they travel in XCom: small, plain JSON, with a version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict, Field

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.xcom import XComValue

METADATA_SUFFIX = ".metadata.json"
"""Ending of the file that keeps an output's metadata, beside the output."""


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
    sha256: str
    size: int
    metadata: bool | None = None


class StepOutputs(XComValue):
    """
    The XCom of a step with outputs: one small JSON value for all of them.

    :param run_id: Nested MLflow run of the step.
    :param outputs: Per output its type, digest, size, its ``path`` in the run or its ``uri`` elsewhere, and whether it
        has metadata.
    :param metadata: Folder of the run that holds the metadata of all of them; None when none has any.
    """

    what: ClassVar[str] = "the XCom of a step"
    remedy: ClassVar[str] = "Run that step again with this release."

    run_id: str
    outputs: dict[str, OutputEntry]
    metadata: str | None = None

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
                sha256=ref.sha256 or "",
                size=ref.size or 0,
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

    def ref(self, name: str) -> ArtifactRef:
        """
        Return the complete reference of one output.

        :param name: Name of the output.
        :return: The reference.
        :raises ConfigError: there is no output of that name; a retry never helps.
        """
        entry = self.outputs.get(name)
        if entry is None:
            raise ConfigError(f"the step made no output {name!r}; it made {sorted(self.outputs)}. Ask for one of these.")
        root = f"runs:/{self.run_id}/"
        return ArtifactRef(
            type=entry.type,
            name=name,
            uri=entry.uri or root + (entry.path or ""),
            sha256=entry.sha256,
            size=entry.size,
            run_id=self.run_id,
            metadata=f"{root}{self.metadata}/{name}{METADATA_SUFFIX}" if entry.metadata else None,
        )
