"""
How a container reaches the places of artifacts; what it could not reach is refused here, before there is a pod.

A container has the standard library, the MLflow server's address and whatever its image brings. It has none of Airflow's
connections and none of the worker's credentials.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from urllib.parse import urlsplit, urlunsplit

from airflow_ml_provider.exceptions import AirflowMLError, ConfigError
from airflow_ml_provider.models.pod_step import StepPlace
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.tracking.artifacts import ArtifactStore, is_directory
from airflow_ml_provider.tracking.places import ObjectStoragePlace

log = logging.getLogger(__name__)

SIGNED_FOR_S = 7 * 24 * 3600
"""The longest time for which S3 and Google sign; temporary credentials of the worker may end sooner, and the URL with them."""
HAS = "options=PodOptions(image_has=('{}',))"


class ContainerPlaces:
    """
    Writes places as a container reaches them.

    :param store: Artifacts of the MLflow server.
    :param image_has: ``mlflow``, ``fsspec``: what the image can import.
    :param reaches_mlflow: Whether the container is given an MLflow server.
    """

    def __init__(self, store: ArtifactStore, image_has: Collection[str] = (), *, reaches_mlflow: bool = True) -> None:
        self.store = store
        self.image_has = image_has
        self.reaches_mlflow = reaches_mlflow

    def of_root(self, root: str, path: str = "") -> StepPlace:
        """
        Place a folder or a file below a root that MLflow has named.

        :param root: Root URI of a run's or a model's artifacts.
        :param path: Below it.
        :return: The place.
        :raises ConfigError: no container, or not this image, reaches it; a retry never helps.
        """
        parts = urlsplit(root)
        if parts.scheme == "mlflow-artifacts":
            if not self.reaches_mlflow:
                raise ConfigError(f"artifacts lie behind MLflow's proxy ({root}), and the container is given no MLflow server.")
            return StepPlace(kind="proxy", path=_below(parts.path, path))
        if parts.scheme in {"", "file"}:
            raise ConfigError(
                f"MLflow keeps artifacts in a folder of its own machine ({root}), which no pod reaches. Start the server with "
                "--serve-artifacts and --artifacts-destination, and use an experiment that was made since."
            )
        if "mlflow" not in self.image_has:
            raise ConfigError(
                f"MLflow keeps artifacts at {root}, which only MLflow's own client opens. Start the server with "
                "--serve-artifacts and --artifacts-destination, or install mlflow and that store's client in the image and say "
                f"{HAS.format('mlflow')}."
            )
        return StepPlace(kind="mlflow", uri=f"{root.rstrip('/')}/{path}".rstrip("/"))

    def of_output(self, root: str) -> StepPlace:
        """
        Place the folder that an output is stored in.

        :param root: ``runs:/<run>/<path>``, ``models:/<model id>``, or a URI in an object store.
        :return: The place.
        :raises ConfigError: no container, or not this image, reaches it; a retry never helps.
        """
        found, path, of_mlflow = self.store.locate(root)
        if of_mlflow:
            return self.of_root(found, path)
        if "fsspec" not in self.image_has:
            raise ConfigError(
                f"outputs are to go to {root}, for which the image needs fsspec and that store's package. Install them there and "
                f"say {HAS.format('fsspec')}; or leave out artifact_root, and they go to MLflow."
            )
        return StepPlace(kind="fsspec", uri=without_connection(root))

    def of_input(self, ref: ArtifactRef) -> StepPlace:
        """
        Place an artifact that is read.

        :param ref: A resolved reference.
        :return: The place of the file or directory itself.
        :raises ConfigError: no container, or not this image, reaches it; a retry never helps.
        """
        root, path, of_mlflow = self.store.locate(ref.uri)
        if of_mlflow:
            return self.of_root(root, path.rstrip("/"))
        scheme = urlsplit(ref.uri).scheme
        if scheme in {"http", "https"}:
            return StepPlace(kind="url", url=ref.uri)
        if scheme in {"", "file"}:
            raise ConfigError(
                f"input {ref.name!r} is {ref.uri}, a file of the worker, which no pod reaches. Hand it on as the output "
                "of a step, or, if it is mounted in the pod, as a parameter."
            )
        if "fsspec" in self.image_has:
            return StepPlace(kind="fsspec", uri=without_connection(ref.uri))
        return StepPlace(kind="url", url=_signed(ref))


def without_connection(uri: str) -> str:
    """
    Leave out the Airflow connection that a URI names; a container has none.

    :param uri: ``s3://conn_id@bucket/key``.
    :return: ``s3://bucket/key``.
    """
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def _signed(ref: ArtifactRef) -> str:
    """Sign a URL of one file with the worker's credentials."""
    where, remedy = (
        f"input {ref.name!r} is {ref.uri}",
        f"Install fsspec and that store's package in the image: {HAS.format('fsspec')}.",
    )
    if is_directory(ref):
        raise ConfigError(f"{where}, a directory, and only single files can be had by a presigned URL. {remedy}")
    try:
        root = ObjectStoragePlace(ref.uri).root
        url = str(root.fs.sign(root.path, expiration=SIGNED_FOR_S))
    except AirflowMLError as error:
        raise ConfigError(f"{where}, and the worker cannot sign a URL of it: {error} Or: {remedy}") from error
    except Exception as error:  # whatever the store's own package raises
        raise ConfigError(f"{where}, and its store signs no URL ({type(error).__name__}: {error}). {remedy}") from error
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{where}, and what its store signs is no web address. {remedy}")
    return url


def _below(root: str, path: str) -> str:
    return "/".join(part for part in (root.strip("/"), path.strip("/")) if part)
