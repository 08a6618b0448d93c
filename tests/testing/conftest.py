from __future__ import annotations

from collections.abc import Iterator

import pytest

from airflow_ml_provider.testing import FakeKfpServer


class Clock:
    """A clock that a test turns by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def server() -> Iterator[FakeKfpServer]:
    with FakeKfpServer() as server:
        yield server


@pytest.fixture
def timed(clock: Clock) -> Iterator[FakeKfpServer]:
    with FakeKfpServer(clock=clock) as server:
        yield server
