"""Uploads of pipelines and versions: multipart in, and errors of another form than everywhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from email.parser import BytesParser
from email.policy import HTTP
from functools import cache
from math import isinf
from typing import Any

from airflow_ml_provider.testing.kfp_answers import PlainError, dump, pipeline_json, version_json
from airflow_ml_provider.testing.kfp_catalog import NAME_LIMIT, Catalog, named
from airflow_ml_provider.testing.kfp_values import Answer, Request

KNOWN = {"components", "defaultPipelineRoot", "deploymentSpec", "pipelineInfo", "root", "schemaVersion", "sdkVersion"}
VERSION_DOING = "Failed to create a pipeline version"
SCHEMA = "2.1.0"
UPLOAD_LIMIT = 36_000_000
"""Bytes; between 33 MB, which came through to the database, and 40 MB, which did not."""
PACKET_LIMIT = 16_777_216
"""Bytes that the database takes at once."""
WRITTEN_OUT = 1e21
"""From here on Go writes a whole number with an exponent."""
GO_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "float": r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9_]+)?)",
}
"""Scalars without quotes that Go's yaml.v3 takes for more than a text; times and infinity, which it knows too, are left texts."""


class Uploads:
    """
    The two upload paths.

    :param catalog: Where pipelines are kept.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog

    def pipeline(self, request: Request) -> Answer:
        """
        Take a pipeline with its first version.

        :param request: Multipart with ``uploadfile``; ``name`` is the file's name unless given.
        :return: The pipeline.
        :raises PlainError: 400, 409 for a name that is taken.
        """
        content, filename = _file(request)
        query = request.query
        name = query.get("name") or filename
        if len(name) > NAME_LIMIT:
            too_long = f"Invalid input error: Pipeline.Name length cannot exceed {NAME_LIMIT}\n"
            raise PlainError(400, too_long, bare=too_long)
        spec = read_spec(content, "Failed to create a pipeline and a pipeline version")
        store = self.catalog.store
        _database(store.lost, "Failed to create a pipeline and a pipeline version")
        namespace = query.get("namespace", "") if store.multi_user else ""
        if named((each for each in store.pipelines.values() if each.namespace == namespace), name):
            raise PlainError(409, "Failed to create a pipeline and a pipeline version", kind="application/json")
        display, description = query.get("display_name", ""), query.get("description", "")
        row = self.catalog.add_pipeline(name, display, description, namespace)
        self.catalog.add_version(row.pipeline_id, name, display, description, spec)
        return Answer(200, dump(pipeline_json(row)))

    def version(self, request: Request) -> Answer:
        """
        Take another version of a pipeline.

        :param request: Multipart with ``uploadfile``, query parameter ``pipelineid``.
        :return: The version.
        :raises PlainError: 400, also for an unknown pipeline; 409 for a name that is taken.
        """
        content, filename = _file(request)
        query, store = request.query, self.catalog.store
        pipeline_id = query.get("pipelineid", "")
        _database(store.lost, VERSION_DOING)
        if pipeline_id not in store.pipelines:
            raise PlainError(400, VERSION_DOING)
        name = query.get("name") or filename
        spec = read_spec(content, VERSION_DOING)
        if named((each for each in store.versions.values() if each.pipeline_id == pipeline_id), name):
            raise PlainError(409, VERSION_DOING, kind="application/json")
        display, description = query.get("display_name", ""), query.get("description", "")
        return Answer(200, dump(version_json(self.catalog.add_version(pipeline_id, name, display, description, spec))))


def _database(lost: set[str], doing: str) -> None:
    if "database" in lost:
        raise PlainError(500, doing, kind="application/json")


def _file(request: Request) -> tuple[bytes, str]:
    kind = request.headers.get("content-type", "")
    if request.method != "POST" or not kind.startswith("multipart/form-data"):
        raise PlainError(400, "Failed to read pipeline from file")
    message = BytesParser(policy=HTTP).parsebytes(f"Content-Type: {kind}\r\n\r\n".encode("latin-1") + request.body)
    if len(request.body) > UPLOAD_LIMIT:
        raise PlainError(400, "Failed to read pipeline from file")
    for part in message.iter_parts():
        if part.get_param("name", header="content-disposition") == "uploadfile":
            content = part.get_payload(decode=True)
            return content if isinstance(content, bytes) else b"", part.get_filename() or ""
    raise PlainError(400, "Failed to read pipeline from file")


def read_spec(content: bytes, doing: str) -> dict[str, Any]:
    """
    Read an uploaded pipeline.

    :param content: YAML; a second document is the platform spec.
    :param doing: What is being done.
    :return: The spec, with the platform spec beside it when there is one.
    :raises PlainError: 400 for what is no pipeline, 500 for nothing.
    """
    import yaml  # type: ignore[import-untyped]

    if not content or len(content) > PACKET_LIMIT:
        raise PlainError(500, doing, kind="application/json")
    try:
        text = content.decode()
        documents = [each for each in yaml.load_all(text, _loader()) if each is not None]
    except (UnicodeDecodeError, yaml.reader.ReaderError):
        raise PlainError(400, "Failed to read a pipeline spec file") from None
    except yaml.YAMLError as broken:
        mark = getattr(broken, "problem_mark", None)
        where = f"yaml: line {mark.line if mark else 0}: {getattr(broken, 'problem', '')}"
        raise PlainError(400, f"failed to parse pipeline spec YAML: {where}", kind="application/json") from None
    spec = documents[0] if documents else None
    if not isinstance(spec, dict):
        raise _unknown()
    if spec.get("kind") != "Workflow":
        check_template(spec)
    return {"pipeline_spec": spec, "platform_spec": documents[1]} if len(documents) > 1 else spec


def check_template(spec: Mapping[str, Any]) -> None:
    """
    Refuse what is no pipeline of the second version.

    :param spec: First document of the file.
    :raises PlainError: 400.
    """
    name = (spec.get("pipelineInfo") or {}).get("name") if isinstance(spec.get("pipelineInfo"), dict) else None
    if not isinstance(name, str) or "root" not in spec or set(spec) - KNOWN:
        raise _unknown()
    version = str(spec.get("schemaVersion", SCHEMA))
    if version != SCHEMA:
        text = f"KFP only supports schema version {SCHEMA}, but the pipeline spec has version {version}"
        raise PlainError(400, text, kind="application/json")
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name):
        rule = "pipeline's name must contain only lowercase alphanumeric characters or '-' and must start with alphanumeric"
        rule += " characters"
        raise PlainError(400, rule, kind="application/json")
    if len(name) > NAME_LIMIT:
        raise PlainError(400, f"pipeline's name must contain no more than {NAME_LIMIT} characters", kind="application/json")


@cache
def _loader() -> Any:
    """Make a loader that reads scalars as the server does; PyYAML takes ``1e-05`` for a text, and ``yes`` for true."""
    import yaml

    kind: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader: Any = type("GoLoader", (kind,), {"yaml_implicit_resolvers": {}})
    for name, pattern in GO_SCALARS.items():
        loader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(rf"(?:{pattern})\Z"), None)
    loader.add_implicit_resolver("tag:yaml.org,2002:merge", re.compile(r"<<\Z"), ["<"])
    loader.add_constructor("tag:yaml.org,2002:merge", lambda _, node: node.value)  # where it is no key
    loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: _number(node.value))
    return loader


def _number(text: str) -> int | float | str:
    """Read a number into a double, and write it as Go does: whole ones without a point; a text if it is too large."""
    digits = text.replace("_", "")
    try:
        value = float(int(digits, 8 if re.fullmatch(r"[-+]?0[0-7]+", digits) else 0))
    except ValueError:
        value = float(digits)
    if isinf(value):
        return text
    return int(Decimal(repr(value))) if value.is_integer() and abs(value) < WRITTEN_OUT else value


def _unknown() -> PlainError:
    return PlainError(400, "unknown template format", kind="application/json")
