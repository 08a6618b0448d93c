"""Steps as components of a pipeline that really runs: the same as in a worker, and told in their manifests."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pendulum
import pytest
from airflow.sdk import DAG

from airflow_ml_provider import as_kfp_component, ml_task
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.jobs.kfp_local import LocalOutcome
from tests.components import places
from tests.components.churn_steps import train

START = pendulum.datetime(2024, 1, 1)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> LocalOutcome:
    return places.run_on_this_machine(tmp_path_factory.mktemp("components"))


def test_steps_make_the_same_in_a_worker_and_as_components(
    outcome: LocalOutcome, run_dag: Callable[..., Any], unique: str
) -> None:
    with DAG(unique, schedule=None, start_date=START) as dag:
        places.wire(ml_task)
    in_a_worker = places.made_in_airflow(run_dag(dag))
    assert in_a_worker == places.made_on_this_machine(outcome)
    assert in_a_worker.result == {"score": pytest.approx(0.525 * 3 + 0.5), "rows": 4, "notes": 0}
    assert set(in_a_worker.digests) == {"table", "model", "metrics"}


def test_a_manifest_tells_what_kfp_does_not_keep(outcome: LocalOutcome) -> None:
    told = places.manifests(outcome)
    assert told["gather"].outputs["table"].file == "table.csv"
    assert told["train"].metrics == {"auc": 0.525, "loss": "Infinity"}
    assert told["train"].outputs["model"].metadata
    assert told["score"].result == {"score": pytest.approx(2.075), "rows": 4, "notes": 0}
    assert {each.state for each in told.values()} == {"succeeded"}


def test_metadata_and_metrics_are_kfps_too(outcome: LocalOutcome) -> None:
    found = {(each.task, each.name): each.metadata for each in outcome.results.outputs}
    assert found["gather", "table"] == {"rows": 4}
    assert found["train", "metrics"]["auc"] == pytest.approx(0.525)
    assert math.isinf(float(found["train", "metrics"]["loss"]))


def test_without_the_sdk_the_remedy_is_told() -> None:
    with pytest.raises(ConfigError, match=r"needs the KFP SDK.*pipelines/churn\.py:churn"):
        as_kfp_component(train)
    with pytest.raises(ConfigError, match="needs the KFP SDK"):
        as_kfp_component(functools.wraps(train)(lambda: None))
