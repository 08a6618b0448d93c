"""A secrets backend that is slow, or fails, as a vault may; Airflow asks it before the environment."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import configuration
from airflow.secrets import BaseSecretsBackend

MANNER = "TEST_SECRETS_MANNER"


class Vault(BaseSecretsBackend):
    """Knows no connection: says so after so many seconds (``slow 1.5``), or raises (``broken``)."""

    def get_connection(self, conn_id: str, **_: Any) -> None:
        manner, _, seconds = os.environ[MANNER].partition(" ")
        if manner == "broken":
            raise ConnectionError("the vault is sealed")
        time.sleep(float(seconds))


@contextlib.contextmanager
def use_backend(monkeypatch: pytest.MonkeyPatch, manner: str) -> Iterator[None]:
    """Have Airflow ask the vault; Airflow remembers its backends, so they are forgotten before and after."""
    with monkeypatch.context() as here:
        here.setenv(MANNER, manner)
        here.setenv("AIRFLOW__SECRETS__BACKEND", f"{Vault.__module__}.{Vault.__qualname__}")
        configuration._secrets_backend_cache.clear()
        yield
    configuration._secrets_backend_cache.clear()
