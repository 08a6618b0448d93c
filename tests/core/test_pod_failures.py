"""Each bad end of a pod as its own error, with what a person needs to mend it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider import exceptions
from airflow_ml_provider.core.pod_events import PodEvent
from airflow_ml_provider.core.pod_failures import ERRORS, EXIT_CODES, REMEDIES, explain, next_memory_gib
from airflow_ml_provider.core.pods import PodWatch
from airflow_ml_provider.exceptions import (
    ConfigError,
    PodError,
    PodFailedError,
    RemoteJobError,
    RemoteUnavailableError,
    StepStoreError,
)
from airflow_ml_provider.models.pod import PodEnd, PodOutcome, PodSnapshot
from airflow_ml_provider.models.pod_step import StepMessage

RECORDED = Path(__file__).parent / "pods"
CURED = {"EVICTED", "PREEMPTED", "NODE_LOST", "DELETED", "IMAGE_PULL", "NOT_STARTED", "UNREACHABLE"}


def outcome(end: PodEnd = PodEnd.FAILED, message: str = "Pod ns/p: it ended.", **fields: Any) -> PodOutcome:
    return PodOutcome(end=end, pod="p", namespace="ns", message=message, **fields)


def told(state: str, error: str = "") -> StepMessage:
    return StepMessage.model_validate({"try_number": 1, "state": state, "exit_code": 1, "error": error})


def recorded(case: str, number: int, wait_s: float = 3600) -> PodOutcome:
    snapshot = PodSnapshot.from_json(json.loads((RECORDED / f"{case}-{number}.json").read_text()))
    assert snapshot.created_at is not None
    began = snapshot.created_at.timestamp()
    watch = PodWatch(now=began, capacity_timeout_s=1800)
    found = watch.on_pod(snapshot, began) or watch.on_pod(snapshot, began + wait_s)
    assert found is not None
    return found


class TestTheErrors:
    def test_are_one_for_each_bad_end(self) -> None:
        assert set(ERRORS) == set(REMEDIES) | {PodEnd.OUT_OF_MEMORY} == set(PodEnd) - {PodEnd.SUCCEEDED}
        assert len(set(ERRORS.values())) == len(ERRORS)

    @pytest.mark.parametrize("end", ERRORS)
    def test_say_by_their_kind_whether_a_retry_can_help(self, end: PodEnd) -> None:
        failure = explain(outcome(end))
        assert failure.error is ERRORS[end]
        assert issubclass(failure.error, RemoteJobError)
        assert failure.curable is (end.name in CURED) is failure.make().curable
        assert issubclass(failure.error, ConfigError) is (end in {PodEnd.IMAGE, PodEnd.CONFIG})
        assert issubclass(failure.error, RemoteUnavailableError) is (end is PodEnd.UNREACHABLE)
        assert not (failure.curable and issubclass(failure.error, ConfigError))

    def test_all_stand_in_the_tree(self) -> None:
        made = {name for name, value in vars(exceptions).items() if isinstance(value, type) and issubclass(value, PodError)}
        assert exceptions.__doc__ is not None
        assert {name for name in made if f"─ {name} " not in exceptions.__doc__} == set()
        assert made == {each.__name__ for each in ERRORS.values()} | {"PodError", "StepStoreError"}


class TestAMessage:
    @pytest.mark.parametrize(
        ("case", "number", "facts", "message"),
        [
            (
                "exit3",
                3,
                {"try_number": 2},
                "Try 2: Pod c-test/exit3 on node node1: container base ended with exit code 3 and said: lost my keys. The step's log says more.",
            ),
            (
                "oom-child",
                3,
                {"memory_gib": 16.0, "memory_on_oom": 1.5, "memory_limit_gib": 64.0},
                "Pod c-test/oom-child on node node1: a process in container base was killed for its memory (OOMKilled), and its parent went "
                "on to exit code 0. It had 16 GiB (memory_gib); the next try gets 24 GiB (memory_on_oom=1.5).",
            ),
            (
                "preempt-exit0",
                6,
                {},
                "Pod c-test/preempt-exit0 on node node1: it was preempted (PreemptionByScheduler: default-scheduler: preempting to "
                "accommodate a higher priority pod) before its program had ended by itself (exit code 0). A retry waits for room: give the "
                "task retries, or the pod a higher priority class.",
            ),
            (
                "emptydir",
                2,
                {},
                'Pod c-test/emptydir on node node1: it was evicted by its node (Evicted: Usage of EmptyDir volume "v" exceeds the limit '
                '"1Mi".) before its program had ended by itself (exit code 137). A retry can help: give the task retries. If it is evicted '
                "again, ask for the memory and disk that it uses.",
            ),
            (
                "pull-404",
                4,
                {"image": "localhost:5111/s404/x:1"},
                "Pod c-test/pull-404 on node node1: the image of container base cannot be pulled: rpc error: code = NotFound desc = failed "
                'to pull and unpack image "localhost:5111/s404/x:1": failed to resolve reference "localhost:5111/s404/x:1": '
                "localhost:5111/s404/x:1: not found. The image is 'localhost:5111/s404/x:1'. Check the name and the tag, that it was pushed, "
                "and image_pull_secrets.",
            ),
            (
                "no-room",
                0,
                {},
                "Pod c-test/no-room: no node had room for it within 1800 s (capacity_timeout): 0/1 nodes are available: 1 Insufficient "
                "nvidia.com/gpu. no new claims to deallocate, preemption: 0/1 nodes are available: 1 Preemption is not helpful for "
                "scheduling. Raise capacity_timeout, ask for less, or add nodes; what the scheduler says tells which.",
            ),
        ],
    )
    def test_names_what_the_value_the_limit_and_the_remedy(
        self, case: str, number: int, facts: dict[str, Any], message: str
    ) -> None:
        assert explain(recorded(case, number), **facts).message == message

    def test_of_an_image_without_python_says_what_needs_it(self) -> None:
        said = explain(recorded("no-python", 3)).message
        assert 'exec: "python3": executable file not found in $PATH' in said
        assert "The image has no such Python" in said

    def test_of_a_sidecar_without_python_does_not_speak_of_the_main_image(self) -> None:
        why = 'container airflow-ml-fetch could not be started (StartError: exec: "python3": executable file not found in $PATH)'
        end = outcome(PodEnd.CONFIG, f"Pod ns/p: the program of {why}", init_container="airflow-ml-fetch")
        said = explain(end, image="trainer:1").message
        assert "options.sidecar" in said
        assert "give options a sidecar" not in said
        assert "trainer:1" not in said

    def test_of_an_image_that_would_run_as_root_names_the_argument(self) -> None:
        said = explain(recorded("run-as-root", 2)).message
        assert "container has runAsNonRoot and image will run as root" in said
        assert "container_security_context={'runAsUser': 1000}" in said

    def test_of_an_init_container_that_failed_says_where_its_log_is(self) -> None:
        end = recorded("init-fails", 4)
        assert end.init_container == "prepare"
        said = explain(end).message
        assert "The last lines of init container prepare are in the task's log." in said
        assert "The step's log" not in said
        assert "Its log went with the pod" in explain(end.model_copy(update={"gone": True})).message

    @pytest.mark.parametrize(("code", "tells", "half"), [(1, True, True), (2, True, False), (1, False, False)])
    def test_of_a_half_that_never_began_says_so(self, code: int, tells: bool, half: bool) -> None:
        said = explain(outcome(exit_code=code), tells=tells).message
        assert ("No module named airflow_ml_step" in said) is half
        assert "No module named" not in explain(outcome(exit_code=code, told=told("failed")), tells=tells).message

    def test_of_another_program_that_is_missing_does_not(self) -> None:
        assert "Python" not in explain(recorded("start-error", 4)).message

    @pytest.mark.parametrize("code", EXIT_CODES)
    def test_says_what_an_exit_code_means(self, code: int) -> None:
        assert EXIT_CODES[code] in explain(outcome(exit_code=code)).message
        assert EXIT_CODES[code] not in explain(outcome(PodEnd.EVICTED, exit_code=code)).message

    def test_has_the_steps_own_words(self) -> None:
        assert "The step says: ValueError: no rows." in explain(outcome(told=told("failed", "ValueError: no rows"))).message

    def test_has_them_once(self) -> None:
        found = explain(
            outcome(message="Pod ns/p: the step says: output, 'model' is missing.", told=told("output", "'model' is missing"))
        )
        assert found.message.count("'model' is missing") == 1

    def test_has_the_warnings_among_the_events(self) -> None:
        event = PodEvent("FailedMount", 'MountVolume.SetUp failed for volume "s": secret "nope" not found', warning=True)
        assert f"Events: FailedMount: {event.message}." in explain(recorded("no-secret-volume", 2), events=[event]).message

    def test_has_no_event_twice(self) -> None:
        event = PodEvent("FailedMount", 'secret "nope" not found', warning=True)
        end = outcome(PodEnd.CONFIG, f"Pod ns/p: its volumes cannot be mounted: FailedMount: {event.message}")
        assert explain(end, events=[event]).message.count("nope") == 1

    @pytest.mark.parametrize("end", ERRORS)
    def test_is_made_of_whole_sentences(self, end: PodEnd) -> None:
        for state in ("failed", "input", "output", "store", "config"):
            said = explain(outcome(end, told=told(state, "words")), image="i:1", memory_gib=1.0).message
            assert said[-1] in ".?!"
            assert not any(first == second == " " for first, second in pairwise(said))
            assert ".." not in said


class TestAStepThatHasTold:
    def test_of_a_store_that_did_not_answer_is_curable(self) -> None:
        failure = explain(outcome(exit_code=1, told=told("store", "PUT model: 503")))
        assert (failure.error, failure.curable, "503" in failure.message) == (StepStoreError, True, True)

    def test_of_a_program_that_failed_is_not_what_another_container_says(self) -> None:
        failure = explain(outcome(exit_code=137, told=told("store", "PUT model: 503"), told_beside=True))
        assert (failure.error, failure.curable) == (PodFailedError, False)
        assert "The step says: PUT model: 503." in failure.message
        assert "137 is SIGKILL" in failure.message

    def test_that_it_cannot_do_what_it_is_asked_is_not(self) -> None:
        failure = explain(outcome(exit_code=1, told=told("config", "no module named fsspec")))
        assert (issubclass(failure.error, ConfigError), failure.curable) == (True, False)

    @pytest.mark.parametrize("state", ["input", "output"])
    def test_of_an_input_or_output_names_the_remedy_and_no_exit_code(self, state: str) -> None:
        failure = explain(outcome(exit_code=137, told=told(state)))
        assert (failure.curable, EXIT_CODES[137] in failure.message, state in failure.message) == (False, False, True)

    def test_does_not_count_against_what_kubernetes_has_seen(self) -> None:
        assert explain(outcome(PodEnd.PREEMPTED, told=told("store"))).error is ERRORS[PodEnd.PREEMPTED]


class TestMoreMemory:
    @pytest.mark.parametrize(
        ("current", "factor", "limit", "more"),
        [
            (16.0, 1.5, None, 24.0),
            (16.0, 1.5, 20.0, 20.0),
            (20.0, 1.5, 20.0, None),
            (24.0, 1.5, 20.0, None),
            (16.0, None, None, None),
            (16.0, 1.0, None, None),
            (None, 1.5, None, None),
            (0.1, 1.001, None, None),
        ],
    )
    def test_is_given_up_to_the_limit(
        self, current: float | None, factor: float | None, limit: float | None, more: float | None
    ) -> None:
        assert next_memory_gib(current, factor, limit) == more
        failure = explain(outcome(PodEnd.OUT_OF_MEMORY), memory_gib=current, memory_on_oom=factor, memory_limit_gib=limit)
        assert failure.curable is (more is not None) is failure.make().curable

    @given(st.floats(0.01, 1000), st.floats(1.001, 4), st.floats(0.01, 4000))
    def test_is_more_and_never_above_the_limit(self, current: float, factor: float, limit: float) -> None:
        more = next_memory_gib(current, factor, limit)
        assert more is None or current < more <= limit + 0.001

    def test_says_why_there_is_no_more(self) -> None:
        end = outcome(PodEnd.OUT_OF_MEMORY)
        assert "It had 8 GiB (memory_gib): raise memory_gib, set memory_on_oom" in explain(end, memory_gib=8.0).message
        assert "It had no memory limit of its own" in explain(end).message
        full = explain(end, memory_gib=8.0, memory_on_oom=2.0, memory_limit_gib=8.0).message
        assert "It had 8 GiB (memory_gib), which is all that options.memory_limit_gib allows (8 GiB, " in full
