"""Doing something to a run that was started elsewhere, where only the run's recurring run decides."""

from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.jobs.kfp_actions import RunActions
from airflow_ml_provider.models.kfp import RunState
from tests.jobs.conftest import SPEC


@pytest.fixture
def carrier(api, catalog) -> str:
    """A recurring run that is off."""
    api.upload("/apis/v2beta1/pipelines/upload", json.dumps(SPEC).encode(), "one-step.yaml", name="one-step")
    return catalog.create_recurring_run(of_version(catalog) | {"max_concurrency": "1", "mode": "DISABLE"})


@pytest.fixture
def run_id(server, jobs, catalog, carrier) -> str:
    """A failed run of it."""
    run = jobs.submit(of_version(catalog) | {"recurring_run_id": carrier})
    server.finish(run.run_id, "FAILED")
    return run.run_id


def of_version(catalog) -> dict[str, Any]:
    return {"display_name": "night one", "pipeline_version_reference": catalog.version("one-step").reference}


class TestRepeatingARunOfARecurringRun:
    def test_is_done_while_that_is_there(self, jobs, run_id):
        assert RunActions(jobs, 5).retry(run_id).state is RunState.RUNNING

    def test_is_refused_when_that_is_gone_since_it_would_run_for_ever(self, server, jobs, catalog, carrier, run_id):
        catalog.delete_recurring_run(carrier)
        with pytest.raises(ConfigError, match=f"the recurring run {carrier} that it belongs to was deleted.*Start a new run"):
            RunActions(jobs, 5).retry(run_id)
        assert not [each for each in server.requests if each.path.endswith(":retry")]

    def test_is_tried_where_it_may_not_be_looked_at(self, server, jobs, carrier, run_id):
        server.fault("status-403", method="GET", path=carrier)
        assert RunActions(jobs, 5).retry(run_id).state is RunState.RUNNING

    def test_bears_a_server_that_is_away(self, server, jobs, carrier, run_id):
        server.fault("status-503", method="GET", path=carrier, times=3)
        assert RunActions(jobs, 5).retry(run_id).state is RunState.RUNNING
