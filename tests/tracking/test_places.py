from __future__ import annotations

import hashlib
import os
import socket
import threading
from pathlib import Path

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.tracking.places import CHUNK, ProxyPlace


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1, 5 * CHUNK + 17])
def test_a_file_of_any_size_comes_back_as_it_was_sent(mlflow_api: MlflowApi, tmp_path: Path, size: int, unique: str) -> None:
    sent, came = tmp_path / "sent", tmp_path / "came"
    sent.write_bytes(os.urandom(size))
    place = ProxyPlace(mlflow_api, f"places/{unique.replace('[', '-').replace(']', '')}")
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
