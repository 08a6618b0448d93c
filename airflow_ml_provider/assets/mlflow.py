"""
Assets that are on record in MLflow: registered models, and data that steps make.

``mlflow://<connection>/models/<name>`` and ``mlflow://<connection>/datasets/<name>``. The server is named by the id of its
connection, since nothing is looked up when a DAG file is parsed; OpenLineage is told its address. Why: docs/adr/0014.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import SplitResult, quote, unquote, urlsplit

import attrs
from airflow.sdk import Asset

from airflow_ml_provider.core.model_names import check_name
from airflow_ml_provider.exceptions import ConfigError

if TYPE_CHECKING:
    from openlineage.client.event_v2 import Dataset as OpenLineageDataset

SCHEME = "mlflow"
DEFAULT_CONNECTION = "mlflow_default"
FOLDERS: dict[str, Literal["model", "dataset"]] = {"models": "model", "datasets": "dataset"}
"""First part of the path, and what it names."""
WANTED = f"{SCHEME}://<connection>/models/<name> or {SCHEME}://<connection>/datasets/<name>"


class AssetName(NamedTuple):
    """
    What the URI of an asset says.

    :param conn_id: Connection of the MLflow server.
    :param kind: Whether it is a registered model or a dataset.
    :param name: Its name, not quoted.
    """

    conn_id: str
    kind: Literal["model", "dataset"]
    name: str

    @property
    def path(self) -> str:
        """What names it on its server: ``models/flight-delays``."""
        return f"{self.kind}s/{self.name}"


@attrs.define(init=False, eq=False)
class MLAsset(Asset):
    """
    An asset that a step's output, or a registered model, is; Airflow sees an ordinary one.

    :param uri: Its URI.
    :param output: Output of the step that it stands for; None where that is clear. No part of what it is: a DAG scheduled on the
        asset need not say it.
    """

    output: str | None = attrs.field(default=None, eq=False)

    def __init__(self, uri: str, *, output: str | None = None, **kwargs: Any) -> None:
        super().__init__(**{"uri": uri, "group": asset_name(uri).kind, **kwargs})
        self.output = output

    @property
    def says(self) -> AssetName:
        """What its URI says."""
        return asset_name(self.uri)


def model_asset(name: str, *, mlflow_conn_id: str = DEFAULT_CONNECTION, output: str | None = None) -> MLAsset:
    """
    Name a registered model as an asset, for ``outlets`` of what makes or promotes it, and for ``schedule``.

    :param name: Name of the registered model.
    :param mlflow_conn_id: Connection of its server.
    :param output: For a step with several models among its outputs: which one it is.
    :return: The asset.
    :raises ConfigError: MLflow takes no such name; a retry never helps.
    """
    return MLAsset(_uri(mlflow_conn_id, "models", name), output=output)


def dataset_asset(name: str, *, mlflow_conn_id: str = DEFAULT_CONNECTION, output: str | None = None) -> MLAsset:
    """
    Name data that a step makes as an asset, for ``outlets`` of the step, and for ``schedule``.

    :param name: Name of the data, of your choice; the same in each DAG that means it.
    :param mlflow_conn_id: Connection of the server that has it on record.
    :param output: For a step with several datasets among its outputs: which one it is; by default the one of that name.
    :return: The asset.
    :raises ConfigError: it cannot be a name; a retry never helps.
    """
    return MLAsset(_uri(mlflow_conn_id, "datasets", name), output=output)


def asset_name(uri: str) -> AssetName:
    """
    Read what the URI of an asset names.

    :param uri: The URI.
    :return: What it says.
    :raises ConfigError: it is none of ours, or malformed; a retry never helps.
    """
    return _read(urlsplit(uri))


def normalize_uri(uri: SplitResult) -> SplitResult:
    """
    Refuse a URI that names nothing, and write one that does in its one form; Airflow asks this of each asset of our scheme.

    :param uri: Its parts.
    :return: The parts, the name quoted.
    :raises ConfigError: it is malformed, which is a ``ValueError`` for Airflow; a retry never helps.
    """
    found = _read(uri)
    return uri._replace(path=f"/{found.kind}s/{quote(found.name, safe='')}", query="", fragment="")


def to_openlineage(asset: Asset, lineage_context: Any) -> OpenLineageDataset | None:  # noqa: ARG001  (Airflow's signature)
    """
    Name an asset as OpenLineage's events of steps do: by the address of its server.

    :param asset: The asset.
    :param lineage_context: As Airflow gives it.
    :return: The dataset; None where its connection cannot be read.
    """
    from openlineage.client.event_v2 import Dataset as OpenLineageDataset

    from airflow_ml_provider.hooks.mlflow import MlflowHook
    from airflow_ml_provider.lineage.openlineage_names import namespace_of

    found = asset_name(asset.uri)
    try:
        server = MlflowHook(found.conn_id).server()
    except ConfigError:
        return None
    return OpenLineageDataset(namespace=namespace_of(server), name=found.path)


def _uri(conn_id: str, folder: str, name: str) -> str:
    check_name(name)
    return f"{SCHEME}://{conn_id}/{folder}/{quote(name, safe='')}"


def _read(uri: SplitResult) -> AssetName:
    folder, _, quoted = uri.path.removeprefix("/").partition("/")
    if uri.scheme == SCHEME and (not uri.netloc or set(uri.netloc) & set("@:")):
        raise ConfigError(  # it may hold a password, so it is not shown
            f"the asset URI of {uri.path!r:.100} must name its server by the id of an Airflow connection, not by an address, and "
            f"hold no password: {WANTED}."
        )
    shown = f"asset URI {uri._replace(query='', fragment='').geturl()!r:.200}"
    if uri.scheme != SCHEME or folder not in FOLDERS or not quoted or "/" in quoted:
        raise ConfigError(
            f"{shown} names nothing in MLflow: it must be {WANTED}. Make it by model_asset(...) or dataset_asset(...)."
        )
    if uri.query:
        raise ConfigError(f"{shown} has a query, which means nothing here: {WANTED}.")
    name = unquote(quoted)
    try:
        check_name(name)
    except ConfigError as error:
        raise ConfigError(f"{shown}: {error}") from error
    return AssetName(uri.netloc, FOLDERS[folder], name)
