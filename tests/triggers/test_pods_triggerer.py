"""The trigger in a real triggerer on a real cluster: each task's log has its own pod's lines, and marks delete pods."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.core.pod_adoption import MANAGED
from airflow_ml_provider.jobs.pods import PodJobs
from airflow_ml_provider.triggers.pods import PodTrigger
from tests.jobs.pods_cluster import NAMESPACE, access, busybox, cluster_pods, on_cluster
from tests.triggers.test_triggerer import Triggerer, _nobody_else_defers

__all__ = ["_nobody_else_defers"]


@pytest.fixture
def cluster() -> Iterator[PodJobs]:
    with cluster_pods() as jobs:
        yield jobs


def log_of(dag_id: str, number: int) -> str:
    files = Path(os.environ["AIRFLOW_HOME"], "logs").glob(f"dag_id={dag_id}/run_id=night/task_id=t{number}/*.trigger.*.log")
    return "".join(each.read_text() for each in files)


@on_cluster
@pytest.mark.usefixtures("_nobody_else_defers", "airflow_db")
def test_lines_land_in_their_tasks_log_and_marks_delete_pods(
    cluster: PodJobs, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_LEVEL", "INFO")
    names = [f"m{unique[-8:]}-{number}" for number in range(5)]
    scripts = [*(f"for i in 1 2 3; do echo of {number} $i; sleep 2; done" for number in range(2)), *(["sleep 300"] * 3)]
    triggers: list[Any] = []
    for name, script in zip(names, scripts, strict=True):
        pod = cluster.create(busybox(script, name=name, labels={MANAGED: "true"}))
        given = {"access": access().model_dump(mode="json"), "poll_interval_s": 1.0, "log_interval_s": 1.0}
        leave = ["clear"] if name == names[4] else []
        triggers.append(PodTrigger(pod=name, namespace=NAMESPACE, uid=pod.uid, leave_running=leave, **given))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Airflow itself
        triggerer = Triggerer(unique[:200], triggers)
        try:
            triggerer.turn_until(lambda: all(triggerer.task(number).state == "scheduled" for number in (0, 1)))
            triggerer.mark(2, "failed")
            triggerer.mark(3, "success")
            triggerer.mark(4, None)
            triggerer.turn_until(lambda: all(gone(cluster, names[number]) for number in (2, 3)))
            triggerer.turn_until(lambda: "(clear); the pod is not deleted" in log_of(triggerer.dag_id, 4))
        finally:
            triggerer.stop()
            left = cluster.look(names[4])
            for name in names:
                cluster.delete(name, grace_s=0)
    assert left is not None
    assert left.deleted_at is None
    for number in range(2):
        assert triggerer.task(number).next_kwargs["event"]["end"] == "succeeded"
        text = log_of(triggerer.dag_id, number)
        assert [text.count(f"[base] of {number} {line}") for line in (1, 2, 3)] == [1, 1, 1]
        assert f"of {1 - number} " not in text


def gone(cluster: PodJobs, name: str) -> bool:
    found = cluster.look(name)
    return found is None or found.deleted_at is not None
