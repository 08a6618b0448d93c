from __future__ import annotations

import errno
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import ArtifactError, ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.tracking.places import CHUNK, MlflowStorePlace, ProxyPlace
from airflow_ml_provider.tracking.runs import RunTree


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17])
def test_a_file_of_any_size_comes_back_as_it_was_sent(mlflow_api: MlflowApi, tmp_path: Path, size: int, unique: str) -> None:
    sent, came = tmp_path / "sent", tmp_path / "came"
    sent.write_bytes(os.urandom(size))
    folder = f"{RunTree(mlflow_api).experiment_id('files of tests')}/{unique.replace('[', '-').replace(']', '')}"
    place = ProxyPlace(mlflow_api, folder)
    written = place.write("folder/file.bin", sent)
    assert (written.sha256, written.size) == (hashlib.sha256(sent.read_bytes()).hexdigest(), size)
    assert place.read("folder/file.bin", came) == written
    assert came.read_bytes() == sent.read_bytes()


def test_an_upload_that_breaks_off_is_one_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up() -> None:
            line, _ = server.accept()
            line.recv(1000)
            line.close()

        threading.Thread(target=hang_up).start()
        (tmp_path / "file").write_bytes(os.urandom(20 * CHUNK))
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        settings = Settings(http_retries=0, http_timeout_s=5)
        with MlflowApi(MlflowServer("mlflow_default", url), settings) as api, pytest.raises(RemoteUnavailableError):
            ProxyPlace(api, "places").write("file", tmp_path / "file")


class Noting(MlflowApi):
    """A real client that notes how large the files are said to be that it is to fetch."""

    said: list[int]

    @contextmanager
    def download(self, path: str, size: int = 0) -> Iterator[Any]:
        self.said.append(size)
        with super().download(path, size) as pieces:
            yield pieces


def test_a_large_file_is_waited_for_by_its_size(mlflow_api: MlflowApi, tmp_path: Path, unique: str) -> None:
    folder = f"{RunTree(mlflow_api).experiment_id('files of tests')}/{unique}"
    with Noting(mlflow_api.server, mlflow_api.settings) as api:
        api.said = []
        for name, size in (("alone", 7), ("folder/a/b", 1), ("folder/c", 2)):
            (tmp_path / "sent").write_bytes(b"x" * size)
            ProxyPlace(api, folder).write(name, tmp_path / "sent")
        ProxyPlace(api, folder).read("alone", tmp_path / "came")
        place = ProxyPlace(api, folder)
        for name in place.files("folder"):
            place.read(f"folder/{name}", tmp_path / "came")
        with pytest.raises(RemoteNotFoundError):
            place.read("nowhere/none", tmp_path / "came")
    assert api.said == [7, 1, 2, 0]


class Faulty(LocalArtifactRepository):
    """A store of MLflow's own, with its threads and its ways to tell errors, that fails at each file."""

    error: Exception

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None) -> str:
        return str(super(LocalArtifactRepository, self).download_artifacts(artifact_path, dst_path))  # as other stores do

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        raise self.error

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        raise self.error


@pytest.fixture
def faulty(tmp_path: Path) -> MlflowStorePlace:
    place = MlflowStorePlace(f"file://{tmp_path}/store")
    (tmp_path / "in").write_bytes(b"bytes")
    place.write("a/there", tmp_path / "in")
    place.repository = Faulty(f"file://{tmp_path}/store")
    return place


@pytest.mark.parametrize(
    ("error", "name", "kind", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "a/there", ArtifactError, "no space left while writing .*TMPDIR"),
        (ConnectionResetError("reset"), "a/there", RemoteUnavailableError, "reset"),
        (RuntimeError("403 for this key"), "a/there", RemoteUnavailableError, "403 for this key"),
        (RuntimeError("An error occurred (404)"), "a/none", RemoteNotFoundError, "there is no file .*/store/a/none"),
        (MlflowException("gone", RESOURCE_DOES_NOT_EXIST), "a/there", RemoteNotFoundError, "there is no file"),
    ],
)
def test_only_what_a_store_says_is_not_there_is_not_found(
    faulty: MlflowStorePlace, tmp_path: Path, error: Exception, name: str, kind: type[Exception], words: str
) -> None:
    faulty.repository.error = error
    with pytest.raises(kind, match=words):
        faulty.read(name, tmp_path / "out")


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ArtifactError, "no space left while writing file://.*/store/a/new"),
        (PermissionError(errno.EACCES, "denied"), ArtifactError, "Check its space and its permissions"),
        (MlflowException("the store is away"), RemoteUnavailableError, "the store is away"),
        (OSError("what requests raises has no number"), RemoteUnavailableError, "A retry is safe"),
        (ModuleNotFoundError("No module named 'x'", name="x"), ConfigError, "On the workers: pip install x"),
    ],
)
def test_what_a_store_of_mlflows_raises_while_it_takes_a_file_is_told_by_remedy(
    faulty: MlflowStorePlace, tmp_path: Path, error: Exception, kind: type[Exception], words: str
) -> None:
    faulty.repository.error = error
    with pytest.raises(kind, match=words):
        faulty.write("a/new", tmp_path / "in")


def test_a_scheme_that_mlflow_does_not_know_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot open 'nowhere://bucket'"):
        MlflowStorePlace("nowhere://bucket")
