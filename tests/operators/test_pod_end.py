from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowFailException, AirflowTaskTimeout

from airflow_ml_provider.core.pod_events import PodEvent
from airflow_ml_provider.exceptions import (
    ArtifactError,
    ConfigError,
    ImagePullError,
    NodeLostError,
    NoRoomError,
    PodConfigError,
    PodDeadlineError,
    PodError,
    PodFailedError,
    PodImageError,
    PodNotStartedError,
    PodOutOfMemoryError,
    PodPreemptedError,
    PodUnreachableError,
    RemoteUnavailableError,
)
from airflow_ml_provider.jobs.pod_submission import PodSubmission
from airflow_ml_provider.models.pod import PodEnd, PodOutcome, PodSnapshot
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.models.pod_step import StepManifest, StepMessage, StepWritten
from airflow_ml_provider.models.run import StepIdentity
from airflow_ml_provider.operators.pod_end import PodFailException, in_time, is_final, parting, raise_failure
from airflow_ml_provider.operators.pod_retry import retry_delay
from airflow_ml_provider.operators.pod_verdict import AFTERWARDS, Verdict, completed, judge
from airflow_ml_provider.tracking.pod_record import PlannedOutput, StepPlan
from tests.jobs.conftest import Store
from tests.jobs.pods_cluster import Answers

FINAL: list[tuple[PodEnd, type[PodError]]] = [
    (PodEnd.IMAGE, PodImageError),
    (PodEnd.CONFIG, PodConfigError),
    (PodEnd.FAILED, PodFailedError),
    (PodEnd.NO_ROOM, NoRoomError),
    (PodEnd.DEADLINE, PodDeadlineError),
    (PodEnd.OUT_OF_MEMORY, PodOutOfMemoryError),
]
PLAN = StepPlan(try_number=1, outputs={"table": PlannedOutput(type="Dataset", root="runs:/a/try-1")})
TABLE = {"table": StepWritten(type="Dataset", sha256="a" * 64, size=1, file="table.csv")}


def ended(end: PodEnd, **fields: Any) -> PodOutcome:
    return PodOutcome(end=end, pod="p", namespace="n", uid="u", message="Pod n/p: it ended.", **fields)


def told(state: Any = "succeeded", outputs: Any = None, **fields: Any) -> StepManifest:
    outputs = TABLE if outputs is None else outputs
    return StepManifest(try_number=1, state=state, exit_code=0 if state == "succeeded" else 3, outputs=outputs, **fields)


class TestTheVerdict:
    def test_success_takes_the_pods_end_and_the_manifest(self) -> None:
        assert judge(ended(PodEnd.SUCCEEDED), PLAN, told()) == Verdict(True)

    @pytest.mark.parametrize(
        ("manifest", "missing"),
        [
            (None, ("table",)),
            (told(outputs={}), ("table",)),
            (told("failed"), ()),
            (told("terminated"), ()),
            (told("output"), ()),
        ],
    )
    def test_a_good_end_alone_is_none(self, manifest: StepManifest | None, missing: tuple[str, ...]) -> None:
        assert judge(ended(PodEnd.SUCCEEDED), PLAN, manifest) == Verdict(False, missing)

    @pytest.mark.parametrize("end", [each for each in PodEnd if each not in {PodEnd.SUCCEEDED, *AFTERWARDS}])
    def test_a_good_manifest_alone_is_none(self, end: PodEnd) -> None:
        assert not judge(ended(end), PLAN, told()).succeeded

    @pytest.mark.parametrize("end", sorted(AFTERWARDS))
    def test_what_comes_over_a_pod_afterwards_takes_nothing_back(self, end: PodEnd) -> None:
        assert judge(ended(end, gone=True), PLAN, told()) == Verdict(True, late=True)
        assert not judge(ended(end, gone=True), PLAN, told("terminated")).succeeded
        assert not judge(ended(end, gone=True), PLAN, told(outputs={})).succeeded

    @pytest.mark.parametrize("end", sorted(AFTERWARDS))
    def test_what_ran_beside_a_program_is_no_witness(self, end: PodEnd) -> None:
        assert not judge(ended(end, gone=True), PLAN.model_copy(update={"beside": True}), told()).succeeded

    @pytest.mark.parametrize("end", list(PodEnd))
    def test_a_plain_pod_is_what_kubernetes_says(self, end: PodEnd) -> None:
        assert judge(ended(end), StepPlan(try_number=1, tells=False), None).succeeded is (end is PodEnd.SUCCEEDED)


class TestWhatTheManifestAdds:
    def test_a_step_that_failed_before_its_pod_was_deleted_has_failed(self) -> None:
        found = completed(ended(PodEnd.DELETED, gone=True), told("failed", error="ValueError: no"))
        assert (found.end, found.exit_code) == (PodEnd.FAILED, 3)
        assert found.told is not None
        assert found.told.error == "ValueError: no"

    def test_one_that_ran_out_of_memory_too(self) -> None:
        assert completed(ended(PodEnd.NODE_LOST, gone=True), told("out_of_memory")).end is PodEnd.OUT_OF_MEMORY

    def test_one_that_was_told_to_stop_was_deleted(self) -> None:
        assert completed(ended(PodEnd.PREEMPTED, gone=True), told("terminated")).end is PodEnd.PREEMPTED

    def test_what_ran_beside_a_program_does_not_know_whether_it_failed(self) -> None:
        found = completed(ended(PodEnd.EVICTED, gone=True), told("output", error="closed"), beside=True)
        assert (found.end, found.exit_code) == (PodEnd.EVICTED, None)

    def test_the_termination_message_counts_more(self) -> None:
        said = StepMessage(try_number=1, state="terminated", exit_code=143)
        outcome = ended(PodEnd.DELETED, told=said)
        assert completed(outcome, told("failed")) is outcome
        assert completed(ended(PodEnd.DELETED), None).told is None


class Events:
    """Answers for the events of a pod."""

    def __init__(self, found: list[PodEvent] | Exception) -> None:
        self.found = found

    def events(self, name: str, uid: str) -> list[PodEvent]:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def failure(outcome: PodOutcome, verdict: Verdict | None = None, events: Any = (), **fields: Any) -> BaseException:
    given: dict[str, Any] = {"image": "trainer:1", "memory_on_oom": None, "memory_limit_gib": None, **fields}
    plan = given.pop("plan", PLAN).model_copy(update={"memory_gib": given.pop("memory_gib", None)})
    with pytest.raises((PodError, PodFailException, ArtifactError)) as raised:
        raise_failure(outcome, plan, verdict or Verdict(False), Events(events), **given)  # type: ignore[arg-type]
    return raised.value


class TestTheError:
    @pytest.mark.parametrize(
        ("end", "kind"),
        [
            (PodEnd.PREEMPTED, PodPreemptedError),
            (PodEnd.NODE_LOST, NodeLostError),
            (PodEnd.IMAGE_PULL, ImagePullError),
        ],
    )
    def test_what_airflow_may_try_again_is_raised_as_it_is(self, end: PodEnd, kind: type[Exception]) -> None:
        assert type(failure(ended(end))) is kind

    @pytest.mark.parametrize(("end", "kind"), FINAL)
    def test_what_no_retry_mends_fails_at_once_on_every_airflow(self, end: PodEnd, kind: type[PodError]) -> None:
        error = failure(ended(end, exit_code=3 if end is PodEnd.FAILED else None))
        assert isinstance(error, AirflowFailException)
        assert type(error) is PodFailException
        assert type(error.__cause__) is kind
        assert str(error) == f"{kind.__name__}: {error.__cause__}"
        assert ("trainer:1" in str(error)) is issubclass(kind, ConfigError)

    @pytest.mark.parametrize(("end", "kind"), FINAL)
    def test_a_retry_policy_of_the_users_decides_about_all_but_a_mistake(self, end: PodEnd, kind: type[PodError]) -> None:
        error = failure(ended(end, exit_code=3 if end is PodEnd.FAILED else None), own_policy=True)
        assert type(error) is (PodFailException if issubclass(kind, ConfigError) else kind)

    @pytest.mark.parametrize(
        ("code", "named", "again"),
        [(1, (), False), (3, (75,), False), (75, (75,), True), (139, (), False), (137, (), True), (143, (), True), (0, (), True)],
    )
    def test_a_program_is_tried_again_where_its_author_says_so_or_something_else_has_ended_it(
        self, code: int, named: tuple[int, ...], again: bool
    ) -> None:
        error = failure(ended(PodEnd.FAILED, exit_code=code), retry_exit_codes=named)
        assert type(error) is (PodFailedError if again else PodFailException)
        assert (f"Exit code {code} is not tried again, unless options.retry_exit_codes has it." in str(error)) is not again
        if isinstance(error, PodFailedError):
            assert error.curable
            assert retry_delay(error) is None
            assert not is_final(error)

    @pytest.mark.parametrize(("state", "code"), [("output", 66), ("input", 65)])
    def test_an_artifact_that_the_step_has_missed_is_an_error_of_its_own(self, state: Any, code: int) -> None:
        said = StepMessage(
            try_number=1, state=state, exit_code=code, error="output 'table' (Dataset) was never written: nothing."
        )
        outcome = ended(PodEnd.FAILED, exit_code=code, told=said)
        error = failure(outcome)
        assert type(error) is PodFailException
        assert type(error.__cause__) is ArtifactError
        assert "'table' (Dataset) was never written" in str(error)
        assert "retry_exit_codes" not in str(error)
        assert ("do not declare it" in str(error)) is (state == "output")
        assert type(failure(outcome, retry_exit_codes=(code,))) is ArtifactError
        assert type(failure(outcome, own_policy=True)) is ArtifactError

    def test_out_of_memory_is_tried_again_only_with_more(self) -> None:
        more = failure(ended(PodEnd.OUT_OF_MEMORY), memory_gib=2, memory_on_oom=1.5, memory_limit_gib=8)
        assert type(more) is PodOutOfMemoryError
        assert "the next try gets 3 GiB" in str(more)
        for fields in ({"memory_gib": 2}, {"memory_gib": 8, "memory_on_oom": 1.5, "memory_limit_gib": 8}):
            assert isinstance(failure(ended(PodEnd.OUT_OF_MEMORY), **fields), PodFailException)

    def test_events_are_told_where_the_cause_is_in_them(self) -> None:
        event = PodEvent(reason="FailedMount", message="secret nope not found", warning=True)
        assert "FailedMount: secret nope not found" in str(failure(ended(PodEnd.NOT_STARTED), events=[event]))
        assert "FailedMount" not in str(failure(ended(PodEnd.FAILED), events=[event]))

    def test_events_are_told_of_every_failure_where_they_are_asked_for(self) -> None:
        event = PodEvent(reason="Unhealthy", message="Liveness probe failed", warning=True)
        assert "Unhealthy: Liveness probe failed" in str(failure(ended(PodEnd.FAILED), events=[event], all_events=True))

    @pytest.mark.parametrize(("beside", "told"), [(False, True), (True, False)])
    def test_a_half_that_never_began_is_told(self, beside: bool, told: bool) -> None:
        plan = PLAN.model_copy(update={"beside": beside})
        assert ("No module named airflow_ml_step" in str(failure(ended(PodEnd.FAILED, exit_code=1), plan=plan))) is told

    def test_events_that_cannot_be_read_change_nothing(self) -> None:
        assert "it ended" in str(failure(ended(PodEnd.NOT_STARTED), events=RemoteUnavailableError("away")))

    def test_an_output_that_a_program_beside_a_sidecar_has_missed_is_the_same(self) -> None:
        outcome = ended(PodEnd.SUCCEEDED, told=StepMessage(try_number=1, state="succeeded", exit_code=0, manifest=True))
        error = failure(outcome, Verdict(False, ("table",)))
        assert type(error) is PodFailException
        assert type(error.__cause__) is ArtifactError
        assert "output 'table' (Dataset) was never written: there is nothing at $AIRFLOW_ML_OUTPUT_TABLE. Write it" in str(error)
        assert "do not declare it" in str(error)
        assert type(failure(outcome, Verdict(False, ("table",)), own_policy=True)) is ArtifactError

    def test_an_output_that_a_sidecar_could_not_read_is_told_with_its_remedy(self) -> None:
        said = StepMessage(try_number=1, state="output", exit_code=66, error="output 'table': it cannot be read.", manifest=True)
        outcome = ended(PodEnd.FAILED, exit_code=0, told=said, told_beside=True)
        error = failure(outcome, Verdict(False, ("table",)))
        assert type(error.__cause__) is ArtifactError
        assert "output 'table': it cannot be read." in str(error)

    def test_a_program_that_failed_is_told_before_an_output_that_it_left_unreadable(self) -> None:
        said = StepMessage(try_number=1, state="output", exit_code=66, error="output 'table': it cannot be read.", manifest=True)
        outcome = ended(PodEnd.FAILED, exit_code=3, told=said, told_beside=True)
        error = failure(outcome, Verdict(False, ("table",)))
        assert type(error.__cause__) is PodFailedError
        assert "it cannot be read" not in str(error)
        assert type(failure(outcome, Verdict(False, ("table",)), retry_exit_codes=(3,))) is PodFailedError

    @pytest.mark.parametrize("missing", [(), ("table",)])
    def test_an_end_without_a_manifest_is_told_and_tried_again(self, missing: tuple[str, ...]) -> None:
        error = failure(ended(PodEnd.SUCCEEDED), Verdict(False, missing))
        assert type(error) is ArtifactError
        assert "no manifest is in MLflow" in str(error)
        assert ("output 'table' (Dataset) cannot be taken" in str(error)) is bool(missing)


class Task:
    """A task of the pod's operator whose time is up."""

    task_id = "train"
    execution_timeout = timedelta(minutes=5)
    options = PodOptions()

    def __init__(self, *, own_policy: bool = False, on_finish: str = "delete_pod") -> None:
        self.own_policy, self.killed = own_policy, 0
        self.submission: Any = SimpleNamespace(killed=False, pod=None, on_finish=on_finish)

    def on_kill(self) -> None:
        self.killed += 1


class TestTheTimeLimit:
    @pytest.mark.parametrize("own_policy", [False, True])
    def test_it_ends_a_step_in_a_worker_as_a_deferred_one(self, own_policy: bool) -> None:
        with pytest.raises((PodFailException, PodDeadlineError)) as raised, in_time(Task(own_policy=own_policy)):  # type: ignore[arg-type]
            raise AirflowTaskTimeout
        assert type(raised.value) is (PodDeadlineError if own_policy else PodFailException)
        assert isinstance(raised.value if own_policy else raised.value.__cause__, PodDeadlineError)
        assert "its execution_timeout of 0:05:00" in str(raised.value)

    @pytest.mark.parametrize("on_finish", ["delete_pod", "keep_pod", "delete_succeeded_pod"])
    def test_a_pod_that_may_just_have_been_made_does_not_run_on(self, on_finish: str) -> None:
        task = Task(on_finish=on_finish)
        with pytest.raises(PodFailException), parting(task, {}), in_time(task):  # type: ignore[arg-type,typeddict-item]
            raise AirflowTaskTimeout
        assert task.killed == 1


def now(phase: str, **state: Any) -> tuple[int, dict[str, Any]]:
    """The API server's answer about a pod."""
    meta = {"name": "p", "namespace": "n", "uid": "u"}
    return 200, {"metadata": meta, "status": {"phase": phase, "containerStatuses": [{"name": "base", "state": state}]}}


WAITS, RUNS, FAILED = now("Pending", waiting={}), now("Running", running={}), now("Failed", terminated={"exitCode": 3})


class TestParting:
    @pytest.mark.parametrize("deferred", [False, True], ids=["in a worker", "deferred"])
    @pytest.mark.parametrize("on_finish", ["keep_pod", "delete_succeeded_pod"])
    @pytest.mark.parametrize(
        ("end", "error", "pod", "deleted"),
        [
            (PodEnd.NO_ROOM, PodFailException("x"), WAITS, True),
            (PodEnd.CONFIG, PodFailException("x"), WAITS, True),
            (PodEnd.NOT_STARTED, PodNotStartedError("x"), WAITS, True),
            (PodEnd.IMAGE_PULL, ImagePullError("x"), WAITS, True),
            (PodEnd.UNREACHABLE, PodUnreachableError("x"), RUNS, True),
            (PodEnd.DEADLINE, PodFailException("x"), RUNS, True),
            (PodEnd.FAILED, PodFailException("x"), FAILED, False),
            (PodEnd.OUT_OF_MEMORY, PodFailException("x"), FAILED, False),
        ],
    )
    def test_a_pod_that_nobody_waits_for_any_more_is_kept_only_if_it_has_ended(
        self, end: PodEnd, error: Exception, pod: Any, deleted: bool, on_finish: str, deferred: bool
    ) -> None:
        with Answers() as server:
            server.prepared = [pod, (200, {})]
            task, context = Task(on_finish=on_finish), {"ti": SimpleNamespace(try_number=2, max_tries=1)}
            step = StepIdentity(dag_id="d", run_id="r", task_id="t")
            task.submission = PodSubmission(server.jobs(), Store(), step, 1, on_finish=on_finish, patience_s=0)  # type: ignore[arg-type]
            if not deferred:
                task.submission.pod = PodSnapshot(name="p", namespace="n", uid="u")  # as it was when it was made
            with pytest.raises(type(error)), parting(task, context, ended(end) if deferred else None):  # type: ignore[arg-type]
                raise error
            assert [each[0] for each in server.asked] == ["PATCH", *["DELETE"] * deleted]
            assert task.killed == 0
            task.submission.jobs.close()


class TestTheRetry:
    @pytest.mark.parametrize(
        ("error", "delay"),
        [
            (PodPreemptedError("x"), timedelta(0)),
            (NodeLostError("x"), timedelta(0)),
            (ImagePullError("x"), timedelta(minutes=2)),
            (ValueError("x"), None),
        ],
    )
    def test_it_comes_at_once_or_after_a_while_or_as_the_task_says(self, error: Exception, delay: timedelta | None) -> None:
        assert retry_delay(error) == delay

    @pytest.mark.airflow("3.3")
    @pytest.mark.parametrize(
        ("error", "action"),
        [
            (PodPreemptedError("x"), "retry"),
            (ImagePullError("x"), "retry"),
            (ValueError("x"), "default"),
            (FINAL[0][1]("x"), "fail"),
        ],
    )
    def test_airflow_is_told_so_by_the_policy(self, error: Exception, action: str) -> None:
        from airflow_ml_provider.operators.pod_retry_policy import PodRetryPolicy

        decision = PodRetryPolicy().evaluate(error, 1, 3)
        assert decision.action.value == action
        assert decision.retry_delay == retry_delay(error)

    @pytest.mark.parametrize("kind", sorted({kind for _, kind in FINAL}, key=str))
    def test_what_no_retry_mends_gets_none_of_the_policy_either(self, kind: type[PodError]) -> None:
        assert is_final(kind("x"))

    def test_more_memory_is_given_at_once(self) -> None:
        error = PodOutOfMemoryError("x")
        assert retry_delay(error) is None
        error.curable = True
        assert retry_delay(error) == timedelta(0)

    @pytest.mark.airflow("3.3")
    def test_the_policy_survives_its_serialization(self) -> None:
        from airflow_ml_provider.operators.pod_retry_policy import PodRetryPolicy

        assert isinstance(PodRetryPolicy.deserialize(PodRetryPolicy().serialize()), PodRetryPolicy)
