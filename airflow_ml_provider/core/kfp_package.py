"""
A compiled pipeline, read into a value: what kfp's compiler writes, and what a server gives back of a registered version; pure.

Nothing in a package is run or looked up. What the server would refuse, or would run into the ground, is refused here, with
what to do.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from airflow_ml_provider.core.kfp_archive import MAX_BYTES, unpacked
from airflow_ml_provider.core.kfp_arguments import check_arguments, check_run_size
from airflow_ml_provider.core.kfp_names import UNSTORABLE, unstorable
from airflow_ml_provider.core.kfp_yaml import read_documents
from airflow_ml_provider.core.wiring import did_you_mean
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.kfp_package import ParameterType, PipelineArtifactInput, PipelinePackage, PipelineParameter

__all__ = ["check_arguments", "check_run_size", "read_package", "read_spec", "shown_source"]

SCHEMA_VERSION = "2.1.0"
"""The only one that servers since 2.0 read."""
FIELDS = ("pipelineInfo", "root", "components", "deploymentSpec", "schemaVersion", "sdkVersion", "defaultPipelineRoot")
"""Top-level keys of a pipeline spec; with any other the server knows it no more."""
PLATFORM_FIELDS = ("platforms",)
COMPILE = "Compile the pipeline with kfp 2: kfp.compiler.Compiler().compile(pipeline, 'pipeline.yaml')."
_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,127}")
_PYTHON = re.compile(r"^(?:from [\w.]+ import |import \w|@(?:kfp\.)?dsl\.|def \w+\()", re.MULTILINE)
_GROUP_REMEDIES = {
    "argoproj.io": f"is an Argo Workflow, which is what kfp 1 compiled to; it does not describe its parameters. {COMPILE}",
    "pipelines.kubeflow.org": (
        "is a Kubernetes manifest of a pipeline, for kubectl. Compile without kubernetes_manifest_format, or name the registered "
        "pipeline instead of a file."
    ),
}


def read_package(data: bytes | str, *, source: str) -> PipelinePackage:
    """
    Read a compiled package.

    :param data: Content of the file: YAML of one document, or two with what is special to a platform; JSON; ``.zip`` or
        ``.tar.gz`` with a ``pipeline.yaml``. At most 32 MiB.
    :param source: Path or address, for messages; a password or query in it is not shown.
    :return: The pipeline.
    :raises ConfigError: it is too large, hostile, broken, not a compiled pipeline, or would leave a workflow without a run on
        the server; the message says what to do, and a retry never helps.
    """
    place = shown_source(source)
    text = unpacked(data.encode() if isinstance(data, str) else data, source=place)
    _check_kind_of_file(text, place)
    documents = read_documents(text, source=place, limit=2 * MAX_BYTES)
    specs = [each for each in documents if not _is_platform(each)]
    platforms = [each for each in documents if _is_platform(each)]
    for each in specs:
        _check_kind(each, place)
    if len(specs) != 1 or len(platforms) > 1:
        raise ConfigError(
            f"{place} holds {len(specs)} pipelines and {len(platforms)} platform documents; a package has one pipeline and at "
            f"most one platform document. {COMPILE}"
        )
    package = _package(specs[0], platforms[0] if platforms else None, place)
    if not _NAME.fullmatch(package.name):
        raise ConfigError(
            f"{place}: the pipeline's name (pipelineInfo.name), {package.name!r:.60}, is refused by the server: at most 128 of a "
            "to z, 0 to 9 and '-', the first no '-'. Compile it with such a name (kfp turns others into one)."
        )
    return package


def read_spec(spec: Mapping[str, Any], *, source: str) -> PipelinePackage:
    """
    Read what the server gives back: ``pipeline_spec`` of a pipeline's version or of a run.

    :param spec: JSON object; either the spec itself, or ``pipeline_spec`` and ``platform_spec`` side by side.
    :param source: What it belongs to, for messages, for example ``pipeline 'churn', version 'v2'``.
    :return: The pipeline.
    :raises ConfigError: it is no pipeline of kfp 2, or would leave a workflow without a run; a retry never helps.
    """
    spec = json.loads(json.dumps(spec), parse_int=_double, parse_float=_double)
    inner = spec.get("pipeline_spec", spec)
    _check_kind(inner, source)
    platform = _mapping(spec, "platform_spec", source) if "pipeline_spec" in spec else None
    return _package(inner, platform or None, source)


def shown_source(source: str) -> str:
    """
    Write an address for a message.

    :param source: Path or address.
    :return: It, without user, password, query and fragment.
    """
    if "://" not in source:
        return source
    try:
        parts = urlsplit(source)
        where = parts.netloc.rpartition("@")[2]
    except ValueError:
        return source.partition("://")[0] + "://..."
    return f"{parts.scheme}://{where}{parts.path}"


def _is_platform(document: Any) -> bool:
    return isinstance(document, dict) and "platforms" in document and "pipelineInfo" not in document


def _check_kind_of_file(text: bytes, place: str) -> None:
    """Say of what is obviously something else what it is, before YAML says of it what it says of everything."""
    start = text[:4096].lstrip(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise ConfigError(f"{place} is empty. {COMPILE}")
    if start[:1] == b"<":
        raise ConfigError(
            f"{place} is a web page, not a package. Give the address of the raw file, and check that it needs no login."
        )
    try:
        decoded = text.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{place} is no text in UTF-8 (byte {error.start}), and no .zip or .tar.gz either. Give what kfp's compiler wrote."
        ) from error
    found = _PYTHON.search if place.endswith(".py") else _PYTHON.match  # a compiled function is named by its file
    if found(start.decode(errors="ignore")):
        raise ConfigError(f"{place} is Python, not what was compiled from it. {COMPILE}")
    if place.endswith(".json") and decoded.lstrip("\ufeff \t\r\n")[:1] != "{":
        raise ConfigError(f"{place} is no JSON object. {COMPILE}")


def _check_kind(document: Any, place: str) -> None:
    """Refuse what is no pipeline spec, by what it is instead."""
    if not isinstance(document, Mapping):
        raise ConfigError(f"{place} is no compiled pipeline: a {type(document).__name__}, not a mapping. {COMPILE}")
    if "apiVersion" in document and "kind" in document:
        group = str(document["apiVersion"]).partition("/")[0]
        remedy = _GROUP_REMEDIES.get(
            group, f"is a Kubernetes object ({document['kind']!r:.60}), not a compiled pipeline. {COMPILE}"
        )
        raise ConfigError(f"{place} {remedy}")
    if "implementation" in document:
        raise ConfigError(
            f"{place} is a component, not a pipeline. Load it with kfp.components.load_component_from_file, use it in a "
            "pipeline, and compile that."
        )
    if "pipelineSpec" in document:
        raise ConfigError(f"{place} is a pipeline job, as kfp 1.8 compiled for Vertex AI and its v2 mode. {COMPILE}")


def _package(spec: Mapping[str, Any], platform: Mapping[str, Any] | None, place: str) -> PipelinePackage:
    info = _checked_info(spec, place)
    if platform is not None:
        _check_fields(platform, PLATFORM_FIELDS, place)
        platforms = _mapping(platform, "platforms", place)
        for name in platforms:
            _mapping(platforms, name, place, "platforms.")
    inputs = _mapping(spec["root"], "inputDefinitions", place, "root.")
    parameters = _mapping(inputs, "parameters", place, "root.inputDefinitions.")
    artifacts = _mapping(inputs, "artifacts", place, "root.inputDefinitions.")
    text = json.dumps(
        {"pipeline_spec": spec, "platform_spec": platform}, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    if UNSTORABLE.search(text):
        _refuse_unstorable(spec, platform, place)
    content = text.encode()
    return PipelinePackage(
        name=info["name"],
        source=place,
        parameters={name: _parameter(name, each, place) for name, each in parameters.items()},
        artifacts={name: _artifact(name, each, place) for name, each in artifacts.items()},
        spec=dict(spec),
        platform_spec=None if platform is None else dict(platform),
        tasks=_count_tasks(spec, place),
        size=len(content),
        digest=hashlib.sha256(content).hexdigest(),
    )


def _checked_info(spec: Mapping[str, Any], place: str) -> Mapping[str, Any]:
    _check_fields(spec, FIELDS, place)
    info = _mapping(spec, "pipelineInfo", place)
    if not isinstance(info.get("name"), str) or not info["name"]:
        raise ConfigError(f"{place} is no compiled pipeline: it has no name (pipelineInfo.name). {COMPILE}")
    if not isinstance(spec.get("root"), Mapping):
        raise ConfigError(f"{place} is no compiled pipeline: it has no root. {COMPILE}")
    if spec.get("schemaVersion") != SCHEMA_VERSION:
        raise ConfigError(
            f"{place} is of schema version {spec.get('schemaVersion')!r:.60}; servers since 2.0 read {SCHEMA_VERSION!r} only. "
            f"{COMPILE}"
        )
    return info


def _check_fields(document: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for name in document:
        if name not in known:
            raise ConfigError(
                f"{place} is no compiled pipeline: unknown key {name!r:.60}.{did_you_mean(name[:60], known)} {COMPILE}"
            )


def _parameter(name: str, definition: Any, place: str) -> PipelineParameter:
    where = f"root.inputDefinitions.parameters.{name}"
    definition = _mapping({"": definition}, "", place, where)
    kind = definition.get("parameterType")
    literals = definition.get("literals") or ()
    if not isinstance(literals, list | tuple):
        raise ConfigError(f"{place}: {where}.literals is a {type(literals).__name__}, not a list. {COMPILE}")
    return PipelineParameter(
        name=name,
        type=ParameterType(kind) if kind in list(ParameterType) else ParameterType.UNSPECIFIED,
        default=definition.get("defaultValue"),
        has_default="defaultValue" in definition,
        optional=definition.get("isOptional") is True,
        description=str(definition.get("description") or ""),
        literals=tuple(literals),
    )


def _artifact(name: str, definition: Any, place: str) -> PipelineArtifactInput:
    where = f"root.inputDefinitions.artifacts.{name}"
    definition = _mapping({"": definition}, "", place, where)
    kind = _mapping(definition, "artifactType", place, f"{where}.")
    return PipelineArtifactInput(
        name=name, type=str(kind.get("schemaTitle") or ""), optional=definition.get("isOptional") is True
    )


def _count_tasks(spec: Mapping[str, Any], place: str) -> int:
    total = 0
    for name, each in [("root", spec["root"]), *_mapping(spec, "components", place).items()]:
        component = _mapping({"": each}, "", place, name)
        total += len(_mapping(_mapping(component, "dag", place, f"{name}."), "tasks", place, f"{name}.dag."))
    return total


def _mapping(parent: Mapping[str, Any], key: str, place: str, where: str = "") -> Mapping[str, Any]:
    """Take a mapping out of one; what is missing, or null, is an empty one."""
    value = parent.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place} is no compiled pipeline: {where}{key} is a {type(value).__name__}, not a mapping. {COMPILE}")
    return value


def _double(text: str) -> int | float:
    """Read a number as a package's are read: the server keeps a double, and writes it in one of several ways (1e17 as digits)."""
    value = float(text)
    return int(value) if value.is_integer() and abs(value) <= 2**53 else value


def _refuse_unstorable(spec: Mapping[str, Any], platform: Mapping[str, Any] | None, place: str) -> None:
    """Name the first place with a character that the server's database cannot store."""
    todo: list[tuple[str, Any]] = [("", spec), ("platform", platform)]
    while todo:
        where, value = todo.pop()
        if isinstance(value, Mapping):
            todo += [(f"{where}.{key}".lstrip("."), each) for key, each in value.items()]
            todo += [(f"a key of {where or 'the pipeline'}", key) for key in value]
        elif isinstance(value, list):
            todo += [(f"{where}[{index}]", each) for index, each in enumerate(value)]
        elif isinstance(value, str) and (found := unstorable(value)):
            raise ConfigError(
                f"{place}: {where} holds {found}, which takes 4 bytes in UTF-8; the server's database takes 3, and finds "
                "out only when the workflow runs already, without a run. Write it without; in Python code write \\U and 8 digits."
            )
