"""Bringing artifacts to a step and taking them away: resolve a reference, fetch and verify, store and hash."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from airflow_ml_provider.exceptions import ArtifactError, ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.hooks.mlflow_api import DeniedError
from airflow_ml_provider.models.reference import MODEL_URI, ArtifactRef, model_id_of
from airflow_ml_provider.tracking.places import Place, Written, hash_tree, place_for

SHA256, SIZE, FILE, METADATA = "airflow.sha256", "airflow.size", "airflow.file", "airflow.metadata"
"""Tags of a LoggedModel: digest, bytes, the file's name if it is a single file, URI of its metadata."""

ELSEWHERE = "airflow.uri"
"""Tag of a LoggedModel whose bytes lie in an object store that the step has asked for."""

_MODEL_VERSION = re.compile(r"^models:/([^/@]+)(?:@([^/@]+)|/(\d+))$")
MADE_BY_RUN = re.compile(r"^runs:/([0-9a-f]{32})/(.+)$")
"""URI of an artifact among those of a run."""


class ArtifactStore:
    """
    The artifacts of one MLflow server, and those of object stores.

    :param api: The server.
    """

    def __init__(self, api: MlflowApi) -> None:
        self.api = api
        self._roots: dict[str, str] = {}

    def resolve(self, ref: ArtifactRef) -> ArtifactRef:
        """
        Turn a name in the registry into the model that it names now, with its digest.

        :param ref: Any reference; ``models:/<name>@<alias>`` and ``models:/<name>/<version>`` change, and ``runs:/<run>/<path>``
            gets the run that made it.
        :return: A reference whose URI names bytes, not a name that may move.
        :raises RemoteNotFoundError: there is no such model, version or alias.
        :raises ArtifactError: there is, but the model that it names was deleted.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        """
        named = _MODEL_VERSION.match(ref.uri)
        if named:
            name, alias, version = named.groups()
            found = (
                self.api.get("registered-models/alias", name=name, alias=alias)
                if alias
                else self.api.get("model-versions/get", name=name, version=version)
            )
            ref = _of_version(ref, found["model_version"])
        model, run = MODEL_URI.fullmatch(ref.uri), MADE_BY_RUN.match(ref.uri)
        if run and ref.run_id is None:
            return ref.model_copy(update={"run_id": run[1]})
        if not model or ref.sha256 is not None:
            return ref
        try:
            return self._recorded(ref, model.group(1))
        except (RemoteNotFoundError, DeniedError) as error:  # who is no admin is not told a deleted model from another user's
            if not named:
                raise
            raise ArtifactError(
                f"{named.group(0)} names {ref.uri}, which was deleted in MLflow: {error}. Restore it, or move the alias "
                f"(airflow-ml rollback {named.group(1)})."
            ) from error

    def fetch(self, ref: ArtifactRef, folder: Path) -> tuple[Path, Written]:
        """
        Bring an artifact here and check it.

        :param ref: A resolved reference.
        :param folder: Existing empty folder to put it in, under its own name.
        :return: The local file or directory, and its digest and size.
        :raises ArtifactError: it is gone, or its digest is not the recorded one; a retry does not help.
        :raises RemoteUnavailableError: the store did not answer; a retry is safe.
        """
        target = folder / (PurePosixPath(ref.uri.rstrip("/")).name or ref.name)
        try:
            place, path = self._locate(ref.uri)
            written = _fetch_any(place, path, target, directory=is_directory(ref), size=ref.size)
        except RemoteNotFoundError as error:
            raise ArtifactError(
                f"{ref.type} {ref.name!r} is not at {ref.uri} any more: {error}. Run the step that made it again."
            ) from error
        if ref.sha256 is not None and written.sha256 != ref.sha256:
            raise ArtifactError(
                f"{ref.type} {ref.name!r} at {ref.uri} was changed in the store after it was recorded: it has sha256 "
                f"{written.sha256} ({written.size} bytes), on record is {ref.sha256} ({ref.size} bytes). "
                "Restore it, or run the step that made it again."
            )
        return target, written

    def read_metadata(self, ref: ArtifactRef, local: Path) -> dict[str, Any]:
        """
        Read the metadata of an artifact.

        :param ref: A resolved reference.
        :param local: File to fetch it into.
        :return: What its maker set; empty when there is none.
        :raises ArtifactError: it is not where it was recorded.
        """
        ref = self.described(ref)
        if ref.metadata is None:
            return {}
        try:
            place, path = self._locate(ref.metadata)
            place.read(path, local, 0)  # small
            found: dict[str, Any] = json.loads(local.read_text())
        except RemoteNotFoundError as error:
            raise ArtifactError(f"the metadata of {ref.name!r} is not at {ref.metadata} any more. Run its step again.") from error
        except ValueError as error:
            raise ArtifactError(
                f"the metadata of {ref.name!r} at {ref.metadata} was changed in the store: {error}. Run its step again."
            ) from error
        return found

    def described(self, ref: ArtifactRef) -> ArtifactRef:
        """
        Add where the metadata of a model is, which is kept with the model alone.

        :param ref: A resolved reference.
        :return: The same for all else.
        :raises RemoteNotFoundError: there is no such model.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        """
        model = MODEL_URI.fullmatch(ref.uri)
        return self._recorded(ref, model.group(1)) if model and ref.metadata is None else ref

    def store(self, root: str, path: str, local: Path, *, of_mlflow: bool = True) -> Written:
        """
        Take a file or a directory away.

        :param root: Root URI.
        :param path: Below the root.
        :param local: File or directory.
        :param of_mlflow: Whether MLflow named the root.
        :return: Digest and size of what was sent.
        :raises ArtifactError: the directory holds a link that is not to a file; a retry helps only after that is mended.
        :raises RemoteUnavailableError: the store did not answer; a retry is safe.
        """
        place = place_for(self.api, root, of_mlflow=of_mlflow)
        if local.is_file():
            return place.write(path, local)
        files = []
        for each in sorted(local.rglob("*")):
            if each.is_file():
                files.append(each)
            elif each.is_symlink():  # it would be left out in silence
                raise ArtifactError(
                    f"{each} is a link to a folder, or to nothing, and cannot be stored. Copy what it points to, or remove it."
                )
        names = [each.relative_to(local).as_posix() for each in files]
        prefix = f"{path.rstrip('/')}/" if path else ""
        return hash_tree((name, place.write(prefix + name, each)) for name, each in zip(names, files, strict=True))

    def root_of(self, uri: str) -> str:
        """
        Find the root of a run's or a model's artifacts.

        :param uri: ``runs:/<run id>`` or ``models:/<model id>``.
        :return: The root URI, as MLflow names it.
        :raises RemoteNotFoundError: there is no such run or model.
        """
        if uri not in self._roots:
            kind, _, key = uri.partition(":/")
            if kind == "runs":
                self._roots[uri] = self.api.get("runs/get", run_id=key)["run"]["info"]["artifact_uri"]
            else:
                self._roots[uri] = self.api.get(f"logged-models/{key}")["model"]["info"]["artifact_uri"]
        return self._roots[uri]

    def know_root(self, uri: str, root: str) -> None:
        """
        Remember a root that a caller has read already, so that :meth:`root_of` need not ask for it.

        :param uri: As for :meth:`root_of`.
        :param root: The root URI, as MLflow names it.
        """
        self._roots[uri] = root

    def locate(self, uri: str) -> tuple[str, str, bool]:
        """
        Find where the bytes of an artifact lie.

        :param uri: URI of a resolved reference.
        :return: Root URI, path below it (empty where the root is the artifact itself), and whether MLflow named the root.
        :raises RemoteNotFoundError: there is no such run or model.
        :raises ConfigError: it names no place; a retry never helps.
        """
        model, run = MODEL_URI.fullmatch(uri), MADE_BY_RUN.match(uri)
        if model:
            return self.root_of(f"models:/{model.group(1)}"), model.group(2) or "", True
        if run:
            return self.root_of(f"runs:/{run.group(1)}"), run.group(2), True
        if uri.startswith(("models:", "runs:")):
            raise ConfigError(
                f"{uri!r} is not a place: write models:/<name>@<alias>, models:/<name>/<version>, models:/<model id> "
                "or runs:/<run id>/<path>."
            )
        return uri, "", False

    def _locate(self, uri: str) -> tuple[Place, str]:
        root, path, of_mlflow = self.locate(uri)
        return place_for(self.api, root, of_mlflow=of_mlflow), path

    def _recorded(self, ref: ArtifactRef, model_id: str) -> ArtifactRef:
        """Add what we have recorded of a LoggedModel; one that others made has nothing."""
        info = self.api.get(f"logged-models/{model_id}")["model"]["info"]
        tags = _tags(info)
        self._roots[f"models:/{model_id}"] = info["artifact_uri"]
        file = tags.get(FILE, "")
        inside = f"models:/{model_id}/{file}" if file else f"models:/{model_id}"
        outside = tags[ELSEWHERE] + ("" if file else "/") if ELSEWHERE in tags else None
        return ref.model_copy(
            update={
                "uri": outside or inside,
                "sha256": tags.get(SHA256),
                "size": int(tags[SIZE]) if SIZE in tags else None,
                "run_id": info.get("source_run_id") or ref.run_id,
                "metadata": tags.get(METADATA),
            }
        )


def _of_version(ref: ArtifactRef, version: Mapping[str, Any]) -> ArtifactRef:
    """Follow a model version to what was registered; its tags keep the digest of what lies outside of MLflow."""
    update = {"uri": version["source"], "run_id": version.get("run_id")}
    if not model_id_of(version["source"]):
        update["sha256"] = _tags(version).get(SHA256)
    return ref.model_copy(update=update)


def _tags(entity: Mapping[str, Any]) -> dict[str, str]:
    return {each["key"]: each["value"] for each in entity.get("tags", [])}


def is_directory(ref: ArtifactRef) -> bool | None:
    """
    Say what a reference tells of itself.

    :param ref: A resolved reference.
    :return: Whether it is a directory; None for a place of others, which has to be looked at.
    """
    if ref.uri.endswith("/"):
        return True
    model = MODEL_URI.fullmatch(ref.uri)
    if model and not model.group(2):
        return True
    return None if ref.sha256 is None else False


def _fetch_any(place: Place, path: str, target: Path, *, directory: bool | None, size: int | None) -> Written:
    names = place.files(path) if directory is not False else []
    if not names and not directory:
        return place.read(path, target, size)
    if not names:
        raise RemoteNotFoundError(f"the folder {path!r} is empty or gone")
    prefix = f"{path.rstrip('/')}/" if path else ""
    found = []
    for name in names:
        local = target / name
        local.parent.mkdir(parents=True, exist_ok=True)
        found.append((name, place.read(prefix + name, local)))
    return hash_tree(found)
