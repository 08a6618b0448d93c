"""What a compiled pipeline says of itself, as values; made by ``core.kfp_package``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict


class ParameterType(StrEnum):
    """Type of a pipeline's parameter, as the pipeline spec (schema 2.1.0) names them."""

    UNSPECIFIED = "PARAMETER_TYPE_ENUM_UNSPECIFIED"
    NUMBER_DOUBLE = "NUMBER_DOUBLE"
    NUMBER_INTEGER = "NUMBER_INTEGER"
    STRING = "STRING"
    BOOLEAN = "BOOLEAN"
    LIST = "LIST"
    STRUCT = "STRUCT"
    TASK_FINAL_STATUS = "TASK_FINAL_STATUS"
    TASK_CONFIG = "TASK_CONFIG"

    @property
    def given_by_clients(self) -> bool:
        """Whether a client may send a value; the rest is filled in by the server, or refused by it."""
        return self not in {ParameterType.UNSPECIFIED, ParameterType.TASK_FINAL_STATUS, ParameterType.TASK_CONFIG}


class PipelineParameter(BaseModel):
    """
    One parameter of a pipeline.

    :param name: Its name.
    :param type: Its type; ``UNSPECIFIED`` for one that is not known here.
    :param default: JSON value that stands in when it is left out; look at ``has_default`` first, since it may be None.
    :param has_default: Whether there is a default.
    :param optional: Whether it may be left out.
    :param description: What its author wrote of it, empty for nothing.
    :param literals: The only values that are allowed; empty for no such limit.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    type: ParameterType
    default: Any = None
    has_default: bool = False
    optional: bool = False
    description: str = ""
    literals: tuple[Any, ...] = ()

    @property
    def required(self) -> bool:
        """Whether a run without it is refused."""
        return not self.optional and not self.has_default


class PipelineArtifactInput(BaseModel):
    """
    An artifact that the pipeline as a whole wants; the API has no way to give one.

    :param name: Its name.
    :param type: Title of its type, for example ``system.Dataset``; empty where the package does not say.
    :param optional: Whether the pipeline runs without it.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    type: str = ""
    optional: bool = False


class PipelinePackage(BaseModel):
    """
    A compiled pipeline.

    :param name: Name that its author gave it (``pipelineInfo.name``); not the name that it is registered under.
    :param source: Where it was read, for messages; without credentials.
    :param parameters: Parameter per name, in the order of the package.
    :param artifacts: Artifact input per name.
    :param spec: The pipeline spec as JSON value, numbers as the server reads them. Not to be changed.
    :param platform_spec: The ``platforms`` document of what is special to Kubernetes, None without one.
    :param tasks: Tasks as written, in the pipeline and in all pipelines and loops inside; each counted once.
    :param size: Bytes of ``spec`` and ``platform_spec`` as compact JSON.
    :param digest: sha256 of that JSON with sorted keys, 64 hexadecimal digits: equal for equal content, however it is laid out.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    source: str
    parameters: Mapping[str, PipelineParameter]
    artifacts: Mapping[str, PipelineArtifactInput] = {}
    spec: dict[str, Any]
    platform_spec: dict[str, Any] | None = None
    tasks: int = 0
    size: int = 0
    digest: str = ""

    @property
    def body(self) -> dict[str, Any]:
        """What ``pipeline_spec`` of a create holds: the spec alone, or both specs side by side."""
        if self.platform_spec is None:
            return self.spec
        return {"pipeline_spec": self.spec, "platform_spec": self.platform_spec}

    @property
    def text(self) -> bytes:
        """
        What to upload, under a file name that ends in ``.yaml``: JSON, which YAML readers take, in one document or two.

        The server reads it as we did: every text is in quotes, and comments, which its database may be unable to store, are gone.
        """
        documents = [self.spec] if self.platform_spec is None else [self.spec, self.platform_spec]
        texts = [json.dumps(each, sort_keys=True, separators=(", ", ": ")) for each in documents]
        return "\n---\n".join(texts).encode("ascii") + b"\n"
