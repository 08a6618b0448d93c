"""Which pod a try works with; values only."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest

from airflow_ml_provider.core.pod_adoption import GENERATION, KEY, READ, PodPlan, Remembered, choose, labels_of, pod_name
from airflow_ml_provider.core.submission import Generation
from airflow_ml_provider.exceptions import SupersededError
from airflow_ml_provider.models.pod import PodSnapshot
from airflow_ml_provider.models.run import StepIdentity

STEP = StepIdentity(dag_id="d", run_id="night", task_id="Train the_Model", map_index=3)
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def pod(generation: str, phase: Any = "Running", *, read: bool = False, deleted: bool = False) -> PodSnapshot:
    labels = {KEY: STEP.key, GENERATION: generation} | ({READ: "true"} if read else {})
    return PodSnapshot(
        name=generation, namespace="n", uid=generation, phase=phase, labels=labels, deleted_at=NOW if deleted else None
    )


def told(plan: PodPlan) -> tuple[str, int, int]:
    return plan.action, plan.generation.clears, plan.generation.renewals


def test_a_name_is_one_that_kubernetes_takes_and_depends_on_the_generation() -> None:
    name = pod_name(STEP, Generation(clears=1))
    assert name == pod_name(STEP, Generation(clears=1))
    assert name.startswith("train-the-model-")
    assert len({pod_name(STEP, Generation(clears=clears, renewals=renewals)) for clears in (1, 2) for renewals in (0, 1)}) == 4
    long = StepIdentity(dag_id="d", run_id="r", task_id="x" * 250)
    assert len(pod_name(long, Generation(clears=0))) == 53
    assert pod_name(StepIdentity(dag_id="d", run_id="r", task_id="__"), Generation(clears=0)).startswith("step-")
    assert labels_of(STEP, Generation(clears=1, renewals=2))[GENERATION] == "1-2"


@pytest.mark.parametrize("phase", ["Pending", "Running", "Unknown", "Succeeded"])
def test_a_pod_that_nobody_has_read_is_taken_up(phase: str) -> None:
    plan = choose([pod("1-2", phase)], 1)
    assert told(plan) == ("adopt", 1, 2)
    assert plan.pod == pod("1-2", phase)


@pytest.mark.parametrize(
    "over", [pod("1-2", "Failed"), pod("1-2", "Succeeded", read=True), pod("1-2", "Succeeded", deleted=True)], ids=repr
)
def test_what_is_over_makes_way_for_the_next(over: PodSnapshot) -> None:
    plan = choose([over], 1)
    assert told(plan) == ("create", 1, 3)
    assert plan.over == (over,)


@pytest.mark.parametrize(
    "alive", [pod("1-2", deleted=True), pod("1-2", read=True), pod("1-2", "Unknown", deleted=True)], ids=repr
)
def test_what_may_still_run_is_seen_off_before_the_next_is_made(alive: PodSnapshot) -> None:
    plan = choose([alive], 1)
    assert told(plan) == ("clear", 1, 3)
    assert plan.in_the_way == (alive,)


def test_a_clear_wants_a_new_pod_and_the_one_of_before_goes_first() -> None:
    assert told(choose([pod("1-0")], 2)) == ("clear", 2, 0)
    assert told(choose([pod("1-0", "Succeeded")], 2)) == ("create", 2, 0)
    assert told(choose([pod("1-0"), pod("2-0")], 2)) == ("clear", 2, 0)
    assert told(choose([pod("1-0", "Failed"), pod("2-0")], 2)) == ("adopt", 2, 0)


def test_a_try_of_before_a_clear_does_nothing() -> None:
    with pytest.raises(SupersededError, match="later clear"):
        choose([pod("2-0"), pod("1-0")], 1)


def test_numbers_are_compared_as_numbers() -> None:
    assert told(choose([pod("1-10"), pod("1-9", "Failed")], 1)) == ("adopt", 1, 10)


def test_a_pod_without_a_readable_generation_counts_as_older() -> None:
    assert told(choose([pod("?")], 0)) == ("clear", 0, 0)


@pytest.mark.parametrize(
    ("remembered", "renewals", "lost"),
    [
        (None, 0, ""),
        (Remembered(Generation(clears=0, renewals=4), "u", read=True), 0, ""),
        (Remembered(Generation(clears=1, renewals=4)), 4, ""),
        (Remembered(Generation(clears=1, renewals=4), "u", read=True), 5, ""),
        (Remembered(Generation(clears=1, renewals=4), "u"), 5, "u"),
    ],
)
def test_a_pod_that_is_gone_is_remembered(remembered: Remembered | None, renewals: int, lost: str) -> None:
    plan = choose([], 1, remembered)
    assert told(plan) == ("create", 1, renewals)
    assert plan.lost == lost
    assert remembered is None or Remembered.from_json(remembered.to_json()) == remembered


def test_memory_that_is_ahead_of_the_pods_counts() -> None:
    assert told(choose([pod("1-0", "Failed")], 1, Remembered(Generation(clears=1, renewals=4), ""))) == ("create", 1, 4)
    assert told(choose([pod("1-0", "Failed")], 1, Remembered(Generation(clears=1, renewals=0), "u"))) == ("create", 1, 1)


@pytest.mark.parametrize("junk", [None, 3, "x", {}, {"generation": "x"}])
def test_memory_of_another_shape_is_no_memory(junk: object) -> None:
    assert Remembered.from_json(junk) is None


def test_nothing_is_made_while_anything_may_run_and_no_name_is_used_twice() -> None:
    kinds = [
        (phase, read, deleted)
        for phase in ("Pending", "Running", "Succeeded", "Failed")
        for read in (False, True)
        for deleted in (False, True)
    ]
    for first, second in product(kinds, kinds):
        pods = [pod("0-1", first[0], read=first[1], deleted=first[2]), pod("1-0", second[0], read=second[1], deleted=second[2])]
        plan = choose(pods, 1)
        alive = [each for each in pods if each.phase in {"Pending", "Running"}]
        if plan.action == "create":
            assert not alive
            assert plan.generation not in (Generation(clears=0, renewals=1), Generation(clears=1))
        if plan.action == "adopt":
            assert [each for each in alive if each is not plan.pod] == []
