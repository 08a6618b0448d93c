"""A DAG that works again: the message says why it had failed, as its tasks have left it on a real MLflow."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.models.alert import CHANNELS
from airflow_ml_provider.models.run import StepIdentity
from airflow_ml_provider.notifications.context import AlertSource
from airflow_ml_provider.notifications.send import Targets
from airflow_ml_provider.notifications.tell import Options, tell
from airflow_ml_provider.tracking.local_claims import LocalClaims
from tests.alert_servers import SlackEndpoint

FAILED = datetime(2026, 7, 1, 3, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("again", "said"),
    [
        ({"run_id": "scheduled__2", "going": "0-2"}, "works again: the DAG run before it failed: no room at pg://me:***@db"),
        ({"run_id": "scheduled__1", "going": "1-2", "cleared": True}, "works again: it failed before it was cleared: no room at"),
    ],
)
def test_it_says_why_and_when_what_works_again_had_failed(
    again: dict[str, Any], said: str, slack_targets: Targets, slack: SlackEndpoint, unique: str, mlflow_connection: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    step = StepIdentity(dag_id=unique, run_id="scheduled__1", task_id="train")
    first = AlertSource("task_failed", "task", FAILED, unique, "scheduled__1", going="0-1", step=step, try_number=1)
    given: dict[str, Any] = {"why": "no room at pg://me:p%40w@db"}
    options, claims = Options(slack_targets), LocalClaims(tmp_path)
    tell(AlertSource(**vars(first) | given), options, closed=CHANNELS, claims=claims)
    well = AlertSource(kind="recovered", place="dag_processor", at=datetime.now(UTC), dag_id=unique, dated=False, **again)
    tell(well, options, claims=claims)
    title = slack.messages[-1]["text"].replace("\u2060", "")
    assert said in title
    assert "1 Jul 2026 03:00 UTC" in str(slack.messages[-1]["blocks"])
