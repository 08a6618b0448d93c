"""A fake server, and the connection to it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from airflow_ml_provider.testing import FakeKfpServer


@pytest.fixture
def kfp(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeKfpServer]:
    """A server whose runs stay until they are told to end."""
    with FakeKfpServer() as server:
        server.auto(None)
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url, "password": "s3cret"}))
        yield server
