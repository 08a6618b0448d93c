from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_ml_provider.models.alert import Alert
from airflow_ml_provider.notifications.send import Targets
from airflow_ml_provider.tracking import alert_claims
from tests.alert_servers import MailServer, SlackEndpoint

ADDRESSES = ("ml-team@example.com", "night@example.com")


SETTLE_S = alert_claims.SETTLE_S


@pytest.fixture(autouse=True)
def _one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody tells at the same moment, no older run can be under way to MLflow: there is less to wait for."""
    monkeypatch.setattr(alert_claims, "SETTLE_S", 0.1)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an alert says is not a question of how busy the machine is; a test of the bound sets its own."""
    monkeypatch.setenv("AIRFLOW__ML__ALERT_TIMEOUT_S", "60")


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many that tell at the same moment, all wait as long as they do for users."""
    monkeypatch.setattr(alert_claims, "SETTLE_S", SETTLE_S)


@pytest.fixture
def slack() -> Iterator[SlackEndpoint]:
    with SlackEndpoint() as endpoint:
        yield endpoint


@pytest.fixture
def mail() -> Iterator[MailServer]:
    with MailServer() as server:
        yield server


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Define a connection in the environment, where Airflow looks first."""

    def define(conn_id: str, connection: str) -> None:
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", connection)

    return define


@pytest.fixture
def slack_targets(slack: SlackEndpoint, connect: Callable[[str, str], None]) -> Targets:
    connect("slack_ml", slack.webhook())
    return Targets(slack="slack_ml")


@pytest.fixture
def both_targets(slack: SlackEndpoint, mail: MailServer, connect: Callable[[str, str], None]) -> Targets:
    connect("slack_ml", slack.webhook())
    connect("smtp_ml", mail.connection())
    return Targets(slack="slack_ml", email=ADDRESSES, smtp_conn_id="smtp_ml")


@pytest.fixture
def alert() -> Alert:
    fields: dict[str, Any] = {"kind": "task_failed", "severity": "critical", "at": datetime(2026, 7, 1, 3, 0, tzinfo=UTC)}
    return Alert(dag_id="nightly", run_id="scheduled__1", task="train[3]", why="out of memory at 64 GiB", **fields)
