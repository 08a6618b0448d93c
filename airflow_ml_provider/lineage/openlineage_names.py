"""
How datasets are named for OpenLineage: by who made them, and what comes from outside by its place.

A name is that of a thing which has versions. So what a step has made is ``artifacts/<dag>.<task>.<output>`` of its MLflow server
each night, its digest is its version, and the place of the night is a symlink; data from outside is named as OpenLineage's
conventions say for its store. Why: docs/adr/0015.
"""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from airflow_ml_provider.hooks.mlflow import MlflowServer
from airflow_ml_provider.lineage.facts import Known

STORES = {"s3": "s3", "s3a": "s3", "s3n": "s3", "gs": "gs", "gcs": "gs"}
"""Stores whose name is the object's key, by the schemes that are theirs."""
WITH_CONTAINER = {"abfs": "abfss", "abfss": "abfss", "wasb": "wasbs", "wasbs": "wasbs"}
"""Stores of Azure. What stands before the ``@`` is the container where an account follows, ``box@account.dfs.core.windows.net``;
before a bare name it is a connection of Airflow, and that name the container."""

KEYED = STORES | WITH_CONTAINER


class DatasetName(NamedTuple):
    """
    What OpenLineage knows a dataset by.

    :param namespace: The store.
    :param name: The dataset in it.
    """

    namespace: str
    name: str


def namespace_of(server: MlflowServer) -> str:
    """
    Name an MLflow server as a store.

    :param server: The server.
    :return: ``mlflow://host:port``, with its path and its workspace where it has one.
    """
    where = urlsplit(server.url)
    workspace = f"/{server.workspace}" if server.workspace else ""
    return f"mlflow://{where.netloc.rpartition('@')[2]}{where.path.rstrip('/')}{workspace}"


def name_of(known: Known, server: MlflowServer) -> DatasetName:
    """
    Name an artifact.

    :param known: The artifact.
    :param server: The MLflow server that has it on record.
    :return: Its name, the same for each DAG run that makes it anew.
    """
    if known.maker:
        return DatasetName(namespace_of(server), f"artifacts/{known.maker}.{known.output}")
    return place_name(known.ref.uri, server)


def place_name(uri: str, server: MlflowServer) -> DatasetName:
    """
    Name a place, as OpenLineage's conventions do.

    :param uri: URI or absolute path.
    :param server: The MLflow server, for URIs that mean something there.
    :return: Its name, without connection, login and query.
    """
    if uri.startswith("/"):
        return DatasetName("file", uri.rstrip("/") or "/")
    try:
        parts = urlsplit(uri)
    except ValueError:  # as of http://[x: no address, and a name all the same
        return DatasetName("unknown", uri)
    path, place = unquote(parts.path).rstrip("/"), parts.netloc.rpartition("@")[2]
    if parts.scheme in {"runs", "models"}:
        return DatasetName(namespace_of(server), f"runs{path}" if parts.scheme == "runs" else _model(path.lstrip("/")))
    if parts.scheme in {"file", "local"}:
        return DatasetName(f"file://{place}" if place else "file", path or "/")
    if parts.scheme in KEYED:
        whose = parts.netloc if parts.scheme in WITH_CONTAINER and "." in place else place
        return DatasetName(f"{KEYED[parts.scheme]}://{whose}", path.lstrip("/") or "/")
    return DatasetName(f"{parts.scheme}://{place}" if place else parts.scheme or "file", path or "/")


def _model(path: str) -> str:
    """Name a model: ``models/<name>`` for any version of a registered one."""
    kind = "logged-models" if re.match(r"m-[0-9a-f]{32}(?:/|\Z)", path) else "models"
    return f"{kind}/{path if kind == 'logged-models' else re.split('[/@]', path)[0]}"
