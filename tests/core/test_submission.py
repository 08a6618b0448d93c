"""Which run a try works with."""

from __future__ import annotations

import uuid
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider.core.submission import Generation, Memory, decide, run_id_of
from airflow_ml_provider.models.kfp import PipelineRun, RunState
from airflow_ml_provider.models.run import StepIdentity

STEP = StepIdentity(dag_id="nightly", run_id="scheduled__2026-01-01", task_id="train")
ALIVE = (RunState.PENDING, RunState.RUNNING, RunState.PAUSED, RunState.UNSPECIFIED)


def run(state: RunState) -> PipelineRun:
    return PipelineRun(run_id="run-1", state=state)


class TestTheId:
    def test_it_is_the_same_on_every_machine_and_for_ever(self) -> None:
        assert run_id_of(STEP, Generation(clears=2)) == "1f009a8d-9682-5b65-a281-2766e161e8ab"

    @given(st.text(), st.text(), st.text(), st.integers(-1, 99), st.integers(0, 9), st.integers(0, 9))
    def test_every_part_of_the_identity_counts(self, dag, dag_run, task, index, clears, renewals) -> None:
        step = StepIdentity(dag_id=dag, run_id=dag_run, task_id=task, map_index=index)
        generation = Generation(clears=clears, renewals=renewals)
        others = [
            run_id_of(step.model_copy(update={"map_index": index + 1}), generation),
            run_id_of(step.model_copy(update={"task_id": task + "x"}), generation),
            run_id_of(step, generation.next()),
            run_id_of(step, Generation(clears=clears + 1, renewals=renewals)),
        ]
        own = run_id_of(step, generation)
        assert uuid.UUID(own)
        assert len({own, *others}) == 5


class TestWhatIsNotThere:
    @pytest.mark.parametrize(
        ("memory", "action"), [("nothing", "create"), ("sent", "settle"), ("started", "renew"), ("stopped", "renew")]
    )
    def test_only_what_was_never_sent_is_created(self, memory, action) -> None:
        assert decide(None, memory, "resume") == action


class TestWhatIsThere:
    @pytest.mark.parametrize("state", ALIVE)
    @pytest.mark.parametrize("memory", ["nothing", "sent", "started"])
    @pytest.mark.parametrize("on_retry", ["resume", "new"])
    def test_what_lives_is_adopted_whatever_was_remembered(self, state, memory, on_retry) -> None:
        assert decide(run(state), memory, on_retry) == "adopt"

    @pytest.mark.parametrize("memory", get_args(Memory))
    @pytest.mark.parametrize("state", [RunState.SUCCEEDED, RunState.SKIPPED])
    def test_what_ended_well_is_taken_also_if_it_was_faster_than_our_stop(self, memory, state) -> None:
        assert decide(run(state), memory, "new") == "adopt"

    @pytest.mark.parametrize("memory", get_args(Memory))
    def test_what_is_being_cancelled_is_never_adopted(self, memory) -> None:
        assert decide(run(RunState.CANCELING), memory, "resume") == "renew"
        assert decide(run(RunState.CANCELED), memory, "resume") == "renew"

    @pytest.mark.parametrize(("on_retry", "action"), [("resume", "resume"), ("new", "renew")])
    def test_what_failed_by_itself_is_repeated_as_the_author_says(self, on_retry, action) -> None:
        assert decide(run(RunState.FAILED), "started", on_retry) == action
        assert decide(run(RunState.FAILED), "nothing", on_retry) == action

    def test_what_we_stopped_is_not_repeated(self) -> None:
        assert decide(run(RunState.FAILED), "stopped", "resume") == "renew"
        assert decide(run(RunState.RUNNING), "stopped", "resume") == "renew"
