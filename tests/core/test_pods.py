"""What became of a pod: every stage of pods that a real Kubernetes 1.36 has reported, and what no cluster could be made to say."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.core.pod_events import PodEvent, needs_events, warnings, with_events
from airflow_ml_provider.core.pod_signs import REASONS, order
from airflow_ml_provider.core.pods import CONFIRM_S, EVENTS_EVERY_S, GRACE_S, SILENT_S, TERMINATING_S, PodWatch
from airflow_ml_provider.models.pod import ContainerStatus, PodCondition, PodEnd, PodOutcome, PodSnapshot

RECORDED = Path(__file__).parent / "pods"
T0 = datetime(2026, 1, 1, tzinfo=UTC)
NOW = T0.timestamp()
TOLD = '{"version": 1, "try_number": 1, "state": "%s", "exit_code": 0}'

ENDS: dict[str, tuple[PodEnd, int | None, str]] = {
    "active-deadline": (PodEnd.DEADLINE, 0, "longer than its activeDeadlineSeconds"),
    "delete": (PodEnd.DELETED, 137, "it was deleted"),
    "delete-after-end": (PodEnd.SUCCEEDED, 0, "exit code 0"),
    "delete-at-once": (PodEnd.DELETED, None, "not there any more"),
    "delete-exit0": (PodEnd.DELETED, 0, "before its program had ended by itself"),
    "delete-kept": (PodEnd.DELETED, 0, "before its program had ended by itself"),
    "delete-pending": (PodEnd.DELETED, 137, "it was deleted"),
    "emptydir": (PodEnd.EVICTED, 137, 'Usage of EmptyDir volume "v" exceeds the limit "1Mi"'),
    "emptydir-exit0": (PodEnd.SUCCEEDED, 0, ""),  # Kubernetes leaves no trace in the pod: see the events
    "evict": (PodEnd.EVICTED, 137, "EvictionByEvictionAPI"),
    "evict-exit0": (PodEnd.EVICTED, 0, "EvictionByEvictionAPI"),
    "evict-kept": (PodEnd.EVICTED, 0, "EvictionByEvictionAPI"),
    "exit127": (PodEnd.FAILED, 127, "exit code 127"),
    "exit3": (PodEnd.FAILED, 3, "exit code 3 and said: lost my keys"),
    "gated": (PodEnd.SUCCEEDED, 0, ""),
    "init-fails": (PodEnd.FAILED, None, "container prepare ended with exit code 5; it is an init container"),
    "invalid-name": (PodEnd.IMAGE, None, "must be lowercase"),
    "kubelet-away": (PodEnd.SUCCEEDED, 0, ""),
    "missing-image": (PodEnd.IMAGE_PULL, None, "connection refused"),
    "never-pull": (PodEnd.IMAGE, None, "is not present with pull policy of Never"),
    "no-python": (PodEnd.CONFIG, 128, 'exec: "python3": executable file not found'),
    "no-room": (PodEnd.NO_ROOM, None, "1 Insufficient nvidia.com/gpu"),
    "no-secret": (PodEnd.CONFIG, None, 'secret "nope" not found'),
    "no-secret-volume": (PodEnd.NOT_STARTED, None, "within 600 s of its scheduling (startup_timeout)"),
    "node-affinity": (PodEnd.NOT_STARTED, None, "NodeAffinity"),
    "node-lost": (PodEnd.NODE_LOST, 137, "DeletionByTaintManager"),
    "node-lost-ended": (PodEnd.SUCCEEDED, 0, ""),
    "node-lost-exit0": (PodEnd.NODE_LOST, 0, "DeletionByTaintManager"),
    "node-lost-pending": (PodEnd.NODE_LOST, 137, "DeletionByTaintManager"),
    "oom": (PodEnd.OUT_OF_MEMORY, 137, "OOMKilled, exit code 137"),
    "oom-child": (PodEnd.OUT_OF_MEMORY, 0, "its parent went on to exit code 0"),
    "out-of-cpu": (PodEnd.NOT_STARTED, None, "requested: 99000"),
    "preempt-exit0": (PodEnd.PREEMPTED, 0, "PreemptionByScheduler"),
    "preempt-killed": (PodEnd.PREEMPTED, 137, "PreemptionByScheduler"),
    "pull-401": (PodEnd.IMAGE, None, "401 Unauthorized"),
    "pull-404": (PodEnd.IMAGE, None, "localhost:5111/s404/x:1: not found"),
    "pull-429": (PodEnd.IMAGE_PULL, None, "429 Too Many Requests"),
    "pull-500": (PodEnd.IMAGE_PULL, None, "500 Internal Server Error"),
    "run-as-root": (PodEnd.CONFIG, None, "container has runAsNonRoot and image will run as root"),
    "sidecar": (PodEnd.SUCCEEDED, 0, ""),
    "sidecar-failed": (PodEnd.FAILED, 0, "ended with exit code 4 and said nothing"),
    "start-error": (PodEnd.CONFIG, 128, "stat /no/such/file: no such file or directory"),
    "success": (PodEnd.SUCCEEDED, 0, ""),
    "success-told": (PodEnd.SUCCEEDED, 0, ""),
}
"""Per recorded case what it is, its exit code, and what must be said."""
WELL = {case for case, (end, _, _) in ENDS.items() if end is PodEnd.SUCCEEDED}


def stages(case: str) -> list[PodSnapshot]:
    files = sorted(RECORDED.glob(f"{case}-[0-9].json"))
    return [PodSnapshot.from_json(json.loads(file.read_text())) for file in files]


def watch_for(case: str, **options: Any) -> PodWatch:
    sidecar = "airflow-ml-sidecar" if case.startswith("sidecar") else None
    return PodWatch(**{"sidecar": sidecar, "capacity_timeout_s": 1800.0, "now": NOW} | options)


def replay(watch: PodWatch, looks: list[PodSnapshot | None], began: float) -> PodOutcome | None:
    """Show a watch some looks, a second apart, and the last one again later, as long as it wants to."""
    now = began
    for each in (*looks, *[looks[-1]] * 3):
        if (told := watch.on_pod(each, now)) is not None:
            return told
        now += 1.0 if each is not looks[-1] else 900.0
    return None


def began(looks: list[PodSnapshot]) -> float:
    assert looks[0].created_at is not None
    return looks[0].created_at.timestamp()


class TestEveryRecordedPod:
    def test_has_a_line_in_the_table(self) -> None:
        assert {file.stem.rpartition("-")[0] for file in RECORDED.glob("*.json")} == set(ENDS)

    @pytest.mark.parametrize("case", ENDS)
    def test_is_told_with_its_reason(self, case: str) -> None:
        looks = stages(case)
        gone = [None] if looks[-1].deleted_at is not None and case != "delete-after-end" else []
        told = replay(watch_for(case), [*looks, *gone], began(looks))
        assert told is not None
        end, code, words = ENDS[case]
        assert (told.end, told.exit_code, told.pod, told.namespace) == (end, code, case, "c-test")
        assert words in told.message
        assert told.gone is (case == "delete-at-once")
        assert (told.told is not None) is (case in {"success-told", "delete-after-end", "node-lost-ended", "sidecar"})

    @pytest.mark.parametrize("case", sorted(set(ENDS) - WELL))
    @given(data=st.data())
    @settings(max_examples=12, deadline=None)
    def test_that_came_to_a_bad_end_is_no_success_however_little_of_it_was_seen(self, case: str, data: st.DataObject) -> None:
        looks = stages(case)
        seen: list[PodSnapshot | None] = [each for each in looks if data.draw(st.booleans())]
        told = replay(
            watch_for(case), [*seen, *data.draw(st.sampled_from([[None], [looks[-1]], [looks[-1], None]]))], began(looks)
        )
        assert told is None or told.end is not PodEnd.SUCCEEDED

    @pytest.mark.parametrize("case", ["evict", "evict-exit0", "preempt-exit0", "preempt-killed", "node-lost", "node-lost-exit0"])
    def test_that_was_disturbed_is_told_so_when_it_is_gone_at_the_next_look(self, case: str) -> None:
        for last in (each for each in stages(case) if "DisruptionTarget" in each.conditions):
            told = replay(watch_for(case), [last, None], began(stages(case)))
            assert told is not None
            assert told.end is ENDS[case][0]

    @pytest.mark.parametrize(
        "case", ["evict", "evict-exit0", "preempt-exit0", "preempt-killed", "delete-exit0", "delete-after-end"]
    )
    def test_that_was_gone_before_anybody_looked_again_is_told_by_its_past(self, case: str) -> None:
        first, *past = stages(case)
        end, code, _ = ENDS[case]
        watch, late = watch_for(case, deadline=began([first])), began([first]) + 90_000  # and no limit is held against it
        watch.uid = first.uid
        other = first.model_copy(update={"uid": "another", "phase": "Failed", "conditions": {}, "containers": []})
        told = watch.on_past([other, first, *past], late)
        assert told is not None
        assert (told.end, told.exit_code, told.gone) == (end, code, True)
        assert (told.told is not None) is (case == "delete-after-end")

    @pytest.mark.parametrize("case", ["evict", "preempt-killed", "delete-exit0"])
    def test_whose_past_has_no_end_is_told_by_who_sent_it(self, case: str) -> None:
        first, *rest = stages(case)
        past = [each for each in rest if each.containers and each.containers[0].state == "running"]
        watch, late = watch_for(case), began([first]) + 90_000
        watch.uid = first.uid
        assert watch.on_past([first, *past], late) is None
        told = watch.on_pod(None, late)
        assert told is not None
        assert (told.end, told.gone) == (ENDS[case][0], True)
        assert "may run on" not in told.message

    @pytest.mark.parametrize("case", sorted(WELL - {"emptydir-exit0"}))
    def test_that_has_ended_well_is_a_success_at_the_first_look_too(self, case: str) -> None:
        looks = stages(case)
        told = watch_for(case).on_pod(looks[-1], began(looks))
        assert told is not None
        assert told.end is PodEnd.SUCCEEDED

    def test_whose_init_container_has_told_why_it_failed_is_told_so(self) -> None:
        last = stages("init-fails")[-1]
        fetch = last.init_containers[0].model_copy(update={"message": TOLD % "input"})
        told = watch_for("init-fails").on_pod(last.model_copy(update={"init_containers": [fetch]}), began([last]))
        assert told is not None
        assert told.told is not None
        assert (told.end, told.told.state, told.told_beside) == (PodEnd.FAILED, "input", True)

    def test_is_done_as_soon_as_its_container_is(self) -> None:
        looks = stages("success")
        assert looks[-1].phase == "Succeeded"
        assert looks[-2].phase == "Running"
        told = replay(watch_for("success"), looks[:-1], began(looks))
        assert told is not None
        assert told.end is PodEnd.SUCCEEDED

    def test_with_a_sidecar_waits_for_what_that_stores(self) -> None:
        looks = stages("sidecar")
        base_ended = next(each for each in looks if (base := each.container("base")) and base.state == "terminated")
        watch = watch_for("sidecar")
        assert {watch.on_pod(each, began(looks)) for each in looks[: looks.index(base_ended) + 1]} == {None}
        told = watch.on_pod(None, began(looks) + 60)
        assert told is not None
        assert (told.end, told.gone, told.exit_code) == (PodEnd.DELETED, True, 0)
        assert "before all was stored" in told.message

    def test_says_what_it_does(self) -> None:
        notes = {}
        for case in ("gated", "missing-image", "kubelet-away", "evict", "init-fails", "no-room"):
            watch = watch_for(case)
            notes[case] = []
            for index, each in enumerate(stages(case)):
                watch.on_pod(each, began(stages(case)) + index)
                notes[case] += [watch.note] if watch.note not in notes[case] else []
        refused = (
            'failed to pull and unpack image "localhost/missing:1": failed to resolve reference "localhost/missing:1": failed to do '
            'request: Head "http://localhost/v2/missing/manifests/1": dial tcp 127.0.0.1:80: connect: connection refused'
        )
        made = "on node node1, its image is pulled and its container made"
        assert notes["gated"] == [
            "waiting for room: Scheduling is blocked due to non-empty scheduling gates",
            made,
            "running on node node1",
            "container base has ended with exit code 0",
        ]
        assert notes["missing-image"] == [made, f"on node node1, the image of container base cannot be pulled: {refused}"]
        assert notes["kubelet-away"][-3:] == [
            "running on node node1",
            "running on node node1, but node node1 has stopped reporting",
            "container base has ended with exit code 0",
        ]
        assert "terminating: it was evicted (EvictionByEvictionAPI: Eviction API: evicting)" in notes["evict"]
        assert "on node node1, init container prepare runs" in notes["init-fails"]
        assert notes["no-room"][0].startswith("waiting for room: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")


def at(seconds: float | None) -> datetime | None:
    return None if seconds is None else T0 + timedelta(seconds=seconds)


def pod(
    state: str = "running",
    *,
    phase: str = "Running",
    reason: str = "",
    message: str = "",
    code: int | None = None,
    finished: float | None = None,
    deleted: float | None = None,
    grace: int | None = 30,
    disruption: tuple[str, float | None] | None = None,
    pod_reason: str = "",
    uid: str = "u1",
    **conditions: tuple[str, str],
) -> PodSnapshot:
    """Make a pod by hand; times are seconds after T0, ``deleted`` is when the deletion was asked for."""
    found: dict[str, Any] = {"PodScheduled": {"status": "True", "at": T0}}
    found |= {kind: {"status": status, "reason": why} for kind, (status, why) in conditions.items()}
    if disruption is not None:
        found["DisruptionTarget"] = {"status": "True", "reason": disruption[0], "message": "m", "at": at(disruption[1])}
    base = {"name": "base", "state": state, "reason": reason, "message": message, "exit_code": code, "finished_at": at(finished)}
    return PodSnapshot.model_validate(
        {
            "name": "p",
            "namespace": "ns",
            "uid": uid,
            "phase": phase,
            "reason": pod_reason,
            "node": "n1",
            "created_at": T0,
            "deleted_at": None if deleted is None else at(deleted + (grace or 0)),
            "deletion_grace_s": None if deleted is None else grace,
            "conditions": found,
            "containers": [base],
        }
    )


def ended(code: int = 0, finished: float | None = 100, **options: Any) -> PodSnapshot:
    return pod("terminated", code=code, finished=finished, phase="Failed" if code else "Succeeded", **options)


def end_of(snapshot: PodSnapshot, now: float = NOW + 101) -> PodEnd | None:
    told = PodWatch(now=NOW).on_pod(snapshot, now)
    return None if told is None else told.end


class TestAPodThatWasToldToGo:
    @pytest.mark.parametrize(
        ("deleted", "grace", "state", "end"),
        [
            (99, 30, None, PodEnd.DELETED),
            (100, 30, None, PodEnd.DELETED),  # whole seconds: it may have been just before
            (100, 30, "succeeded", PodEnd.SUCCEEDED),
            (100, 30, "terminated", PodEnd.DELETED),
            (104, 30, None, PodEnd.DELETED),  # within what clocks may differ by
            (104, 30, "succeeded", PodEnd.SUCCEEDED),
            (106, 30, None, PodEnd.SUCCEEDED),
            (106, 30, "terminated", PodEnd.DELETED),
            (99, 30, "succeeded", PodEnd.DELETED),
            (106, 0, None, PodEnd.DELETED),  # the kubelet's last step: it writes over when it was asked for
            (106, None, None, PodEnd.DELETED),
            (106, 0, "succeeded", PodEnd.SUCCEEDED),
            (90, 0, "succeeded", PodEnd.DELETED),
        ],
    )
    def test_and_ended_with_exit_0_has_succeeded_only_if_it_was_done_before(
        self, deleted: float, grace: int | None, state: str | None, end: PodEnd
    ) -> None:
        assert end_of(ended(deleted=deleted, grace=grace, message="" if state is None else TOLD % state)) is end

    @pytest.mark.parametrize(
        ("when", "end"), [(None, PodEnd.PREEMPTED), (99, PodEnd.PREEMPTED), (103, PodEnd.PREEMPTED), (106, PodEnd.SUCCEEDED)]
    )
    def test_by_the_scheduler_is_judged_the_same(self, when: float | None, end: PodEnd) -> None:
        assert end_of(ended(disruption=("PreemptionByScheduler", when))) is end

    @pytest.mark.parametrize(
        ("reason", "end"),
        [
            ("DeletionByPodGC", PodEnd.NODE_LOST),
            ("DeletionByTaintManager", PodEnd.NODE_LOST),
            ("TerminationByKubelet", PodEnd.EVICTED),
            ("InventedByANewerKubernetes", PodEnd.EVICTED),
        ],
    )
    def test_is_told_by_whom(self, reason: str, end: PodEnd) -> None:
        assert end_of(ended(143, disruption=(reason, 99))) is end

    def test_by_kueue_is_preempted(self) -> None:
        assert end_of(ended(143, TerminationTarget=("True", "WorkloadEvictedDueToPreempted"))) is PodEnd.PREEMPTED

    @pytest.mark.parametrize("reason", REASONS)
    def test_by_its_node_has_not_succeeded_whatever_its_exit_code(self, reason: str) -> None:
        assert end_of(ended(0, pod_reason=reason)) is REASONS[reason][0]

    def test_and_was_not_in_the_end_may_succeed(self) -> None:
        watch = PodWatch(now=NOW)
        assert watch.on_pod(pod(disruption=("EvictionByEvictionAPI", 10)), NOW + 11) is None
        told = watch.on_pod(ended(DisruptionTarget=("False", "")), NOW + 101)
        assert told is not None
        assert told.end is PodEnd.SUCCEEDED

    def test_while_it_ran_has_not_succeeded_whatever_the_clocks_say_later(self) -> None:
        watch = PodWatch(now=NOW)
        assert watch.on_pod(pod(deleted=50), NOW + 50) is None
        told = watch.on_pod(ended(finished=60, deleted=90, message=TOLD % "succeeded"), NOW + 61)
        assert told is not None
        assert told.end is PodEnd.DELETED

    def test_and_had_failed_by_itself_keeps_its_exit_code(self) -> None:
        assert end_of(ended(3, deleted=101)) is PodEnd.FAILED
        assert end_of(ended(3, deleted=99)) is PodEnd.DELETED
        assert end_of(ended(143, deleted=101)) is PodEnd.DELETED

    def test_is_waited_for_until_it_should_have_gone(self) -> None:
        watch, going = PodWatch(now=NOW), pod(deleted=50)
        assert watch.on_pod(going, NOW + 80 + TERMINATING_S - 1) is None
        told = watch.on_pod(going, NOW + 80 + TERMINATING_S)
        assert told is not None
        assert (told.end, "may run on" in told.message) == (PodEnd.DELETED, True)

    def test_by_a_node_that_is_away_is_given_up_sooner(self) -> None:
        watch, going = PodWatch(now=NOW), pod(deleted=50, disruption=("DeletionByTaintManager", 50))
        assert watch.on_pod(going, NOW + 80 + SILENT_S - 1) is None
        told = watch.on_pod(going, NOW + 80 + SILENT_S)
        assert told is not None
        assert told.end is PodEnd.NODE_LOST

    def test_with_nobody_saying_it_but_the_step(self) -> None:
        assert end_of(ended(0, message=TOLD % "terminated")) is PodEnd.DELETED

    @pytest.mark.parametrize(("deleted", "end"), [(100, PodEnd.DELETED), (106, PodEnd.SUCCEEDED)])
    def test_is_not_vouched_for_by_its_sidecar(self, deleted: float, end: PodEnd) -> None:
        side = ended(message=TOLD % "succeeded").containers[0].model_copy(update={"name": "side"})
        watch = PodWatch(now=NOW, sidecar="side")
        told = watch.on_pod(ended(deleted=deleted).model_copy(update={"init_containers": [side]}), NOW + 110)
        assert told is not None
        assert (told.end, told.told_beside, needs_events(told)) == (end, True, end is PodEnd.SUCCEEDED)

    def test_with_a_reason_to_come_waits_for_it(self) -> None:
        coming = pod("terminated", code=0, finished=100, Ready=("False", "PodFailed"))
        assert end_of(coming) is None
        assert end_of(coming.model_copy(update={"phase": "Failed", "reason": "DeadlineExceeded"})) is PodEnd.DEADLINE

    def test_order_is_none_without_a_sign(self) -> None:
        assert order(ended(), at(100)) == "none"


class TestAPodThatIsNotThere:
    def test_and_was_never_seen_needs_two_looks(self) -> None:
        watch = PodWatch(now=NOW, name="ns/p")
        assert watch.on_pod(None, NOW + 1) is None
        assert watch.on_pod(None, NOW + 2) is None
        told = watch.on_pod(None, NOW + 1 + CONFIRM_S)
        assert told is not None
        assert (told.end, told.gone, told.pod, told.namespace) == (PodEnd.DELETED, True, "p", "ns")

    def test_may_appear_late(self) -> None:
        watch = PodWatch(now=NOW)
        assert watch.on_pod(None, NOW + 1) is None
        assert watch.on_pod(pod(), NOW + 10) is None
        assert watch.note == "running on node n1"

    def test_any_more_was_deleted(self) -> None:
        watch = PodWatch(now=NOW)
        assert watch.on_pod(pod(), NOW) is None
        told = watch.on_pod(None, NOW + 1)
        assert told is not None
        assert (told.end, told.gone, told.uid) == (PodEnd.DELETED, True, "u1")

    @pytest.mark.parametrize("known", ["", "u1"])
    def test_and_another_has_its_name_is_gone(self, known: str) -> None:
        watch = PodWatch(now=NOW, uid=known)
        assert watch.on_pod(pod(), NOW) is None
        told = watch.on_pod(ended(uid="u2"), NOW + 1)
        assert told is not None
        assert (told.end, told.gone, told.uid, "another pod has its name" in told.message) == (PodEnd.DELETED, True, "u1", True)

    def test_and_had_failed_before_its_sidecar_is_told_with_its_exit_code(self) -> None:
        watch = PodWatch(now=NOW, sidecar="side")
        assert watch.on_pod(pod("terminated", code=3, finished=90), NOW + 91) is None
        told = watch.on_pod(None, NOW + 95)
        assert told is not None
        assert (told.end, told.exit_code, told.gone) == (PodEnd.FAILED, 3, True)


class TestWaiting:
    def test_for_room_lasts_as_long_as_it_may(self) -> None:
        waiting = stages("no-room")[0]
        start = began([waiting])
        assert PodWatch(now=NOW).on_pod(waiting, start + 10**7) is None
        watch = PodWatch(now=NOW, capacity_timeout_s=600)
        assert watch.on_pod(waiting, start + 599) is None
        told = watch.on_pod(waiting, start + 600)
        assert told is not None
        assert (told.end, "600 s (capacity_timeout)" in told.message) == (PodEnd.NO_ROOM, True)

    def test_for_room_is_no_part_of_starting(self) -> None:
        late = pod("waiting", reason="ContainerCreating", phase="Pending")
        late.conditions["PodScheduled"] = late.conditions["PodScheduled"].model_copy(update={"at": at(5000)})
        watch = PodWatch(now=NOW, startup_timeout_s=60, capacity_timeout_s=100)
        assert watch.on_pod(late, NOW + 5059) is None
        told = watch.on_pod(late, NOW + 5060)
        assert told is not None
        assert told.end is PodEnd.NOT_STARTED

    def test_ends_with_the_deadline(self) -> None:
        watch = PodWatch(now=NOW, deadline=NOW + 100)
        assert watch.on_pod(pod(), NOW + 99) is None
        told = watch.on_pod(pod(), NOW + 100)
        assert told is not None
        assert (told.end, "running on node n1" in told.message) == (PodEnd.DEADLINE, True)

    def test_that_is_over_at_the_deadline_has_succeeded(self) -> None:
        told = PodWatch(now=NOW, deadline=NOW + 100).on_pod(ended(), NOW + 200)
        assert told is not None
        assert told.end is PodEnd.SUCCEEDED

    def test_once_begun_is_not_starting_any_more(self) -> None:
        watch = PodWatch(now=NOW, startup_timeout_s=60)
        assert watch.on_pod(pod(), NOW + 10) is None
        assert watch.on_pod(pod("waiting", reason="ContainerCreating"), NOW + 1000) is None

    def test_bears_errors_for_its_patience(self) -> None:
        watch = PodWatch(now=NOW, patience_s=300)
        watch.on_pod(pod(), NOW)
        assert watch.on_error("502 Bad Gateway", NOW + 10) is None
        assert watch.on_error("502 Bad Gateway", NOW + 309) is None
        told = watch.on_error("connection refused", NOW + 310)
        assert told is not None
        assert (told.end, told.gone, told.uid, "connection refused" in told.message) == (PodEnd.UNREACHABLE, False, "u1", True)

    def test_counts_errors_in_a_row_only(self) -> None:
        watch = PodWatch(now=NOW, patience_s=300)
        assert watch.on_error("502", NOW + 10) is None
        assert watch.on_pod(pod(), NOW + 200) is None
        assert watch.on_error("502", NOW + 400) is None

    def test_ends_with_the_deadline_when_nobody_answers(self) -> None:
        told = PodWatch(now=NOW, deadline=NOW + 5, name="ns/p").on_error("502", NOW + 6)
        assert told is not None
        assert (told.end, told.pod) == (PodEnd.DEADLINE, "p")

    def test_gives_up_a_node_that_says_nothing(self) -> None:
        watch, unknown = PodWatch(now=NOW), pod(phase="Unknown")
        assert watch.on_pod(unknown, NOW + 10) is None
        assert watch.on_pod(unknown, NOW + 9 + TERMINATING_S) is None
        told = watch.on_pod(unknown, NOW + 10 + TERMINATING_S)
        assert told is not None
        assert told.end is PodEnd.NODE_LOST

    def test_forgets_a_silence_that_is_over(self) -> None:
        watch = PodWatch(now=NOW)
        looks = [pod(phase="Unknown"), pod(), pod(phase="Unknown")]
        assert [watch.on_pod(each, NOW + 50 * index) for index, each in enumerate(looks)] == [None] * 3

    def test_looks_often_while_something_happens_and_seldom_in_a_long_run(self) -> None:
        watch = PodWatch(now=NOW)
        watch.on_pod(pod(), NOW)
        assert [watch.pause_s(NOW + each) for each in (0, 9, 10, 60, 100, 10_000)] == [1.0, 1.0, 2.0, 3.0, 5.0, 10.0]
        assert watch.pause_s(NOW + 10_000, base_s=30) == 150
        watch.on_pod(pod(deleted=5_000), NOW + 5_000)
        assert watch.pause_s(NOW + 5_030) == 1.0

    def test_backs_off_from_an_api_server_that_is_away(self) -> None:
        watch = PodWatch(now=NOW)
        pauses = []
        for each in range(7):
            watch.on_error("502", NOW + each)
            pauses.append(watch.pause_s(NOW + each))
        assert pauses == [2, 4, 8, 16, 30, 30, 30]


def starting(reason: str, message: str = "") -> PodSnapshot:
    return pod("waiting", reason=reason, message=message, phase="Pending")


class TestAContainerThatDoesNotStart:
    @pytest.mark.parametrize(
        "message",
        [
            'failed to pull and unpack image "r/a:1": no match for platform in manifest: not found',
            "rpc error: code = Unknown desc = reading manifest 1 in r/a: manifest unknown",
            "Error response from daemon: pull access denied for r/a, repository does not exist or may require 'docker login'",
            'failed to authorize: failed to fetch oauth token: unexpected status from GET request to "https://r/token": 403 Forbidden',
            "initializing source docker://r/a:1: reading manifest 1 in r/a: unauthorized: access to the resource is not authorized",
            "pull access denied, repository does not exist or may require authorization: server message: insufficient_scope",
        ],
    )
    def test_for_an_image_that_is_not_there_or_not_ours_is_told_after_a_grace(self, message: str) -> None:
        watch = PodWatch(now=NOW)
        assert watch.on_pod(starting("ErrImagePull", message), NOW + 1) is None
        assert (
            watch.on_pod(starting("ImagePullBackOff", f'Back-off pulling image "r/a:1": ErrImagePull: {message}'), NOW + 10)
            is None
        )
        told = watch.on_pod(starting("ErrImagePull", message), NOW + 1 + GRACE_S)
        assert told is not None
        assert told.end is PodEnd.IMAGE

    @pytest.mark.parametrize(
        "message",
        [
            'failed to do request: Head "https://r/v2/not-found/manifests/1": dial tcp: lookup r on 10.0.0.1:53: no such host',
            'failed to do request: Head "https://r/v2/a/manifests/1": net/http: TLS handshake timeout',
            "registry/team/denied/a:1: context deadline exceeded",
            "toomanyrequests: You have reached your pull rate limit as unauthorized user",
            'failed to resolve reference "r/a:not found": unexpected status: 503 Service Unavailable',
            "read tcp 10.0.0.1:5->10.0.0.2:443: read: connection reset by peer",
            "something that nobody has thought of",
            'failed to pull "r/a: not found": something that nobody has thought of',
            "",
        ],
    )
    def test_for_a_registry_that_does_not_answer_waits_until_it_should_have_started(self, message: str) -> None:
        watch = PodWatch(now=NOW, startup_timeout_s=600)
        assert watch.on_pod(starting("ErrImagePull", message), NOW + 1) is None
        assert watch.on_pod(starting("ErrImagePull", message), NOW + 599) is None
        told = watch.on_pod(starting("ErrImagePull", message), NOW + 600)
        assert told is not None
        assert told.end is PodEnd.IMAGE_PULL

    def test_keeps_the_reason_where_an_older_kubernetes_forgets_it(self) -> None:
        watch = PodWatch(now=NOW)
        assert watch.on_pod(starting("ErrImagePull", "manifest unknown"), NOW + 1) is None
        told = watch.on_pod(starting("ImagePullBackOff", 'Back-off pulling image "r/a:1"'), NOW + 20)
        assert told is not None
        assert (told.end, "manifest unknown" in told.message) == (PodEnd.IMAGE, True)

    def test_for_a_secret_that_comes_a_moment_later_is_not_told(self) -> None:
        watch = PodWatch(now=NOW)
        looks = [starting("CreateContainerConfigError", 'secret "s" not found'), starting("ContainerCreating"), pod()]
        assert [watch.on_pod(each, NOW + 10 * index) for index, each in enumerate(looks)] == [None] * 3

    def test_because_it_was_told_to_go_is_not_blamed_on_its_image(self) -> None:
        watch = PodWatch(now=NOW)
        going = pod("waiting", reason="ErrImageNeverPull", phase="Pending", deleted=5)
        assert watch.on_pod(going, NOW + 6) is None
        told = watch.on_pod(None, NOW + 7)
        assert told is not None
        assert (told.end, told.gone) == (PodEnd.DELETED, True)

    @pytest.mark.parametrize("reason", ["CreateContainerConfigError", "CreateContainerError", "RunContainerError"])
    def test_for_the_nodes_own_trouble_may_take_its_time(self, reason: str) -> None:
        watch, stuck = PodWatch(now=NOW), starting(reason, "failed to sync secret cache: timed out waiting for the condition")
        assert watch.on_pod(stuck, NOW + 1) is None
        assert watch.on_pod(stuck, NOW + 500) is None
        told = watch.on_pod(stuck, NOW + 600)
        assert told is not None
        assert told.end is PodEnd.NOT_STARTED

    def test_for_a_broken_driver_may_start_elsewhere(self) -> None:
        broken = ended(128, reason="StartError", message="OCI runtime create failed: nvidia-container-cli: initialization error")
        assert end_of(broken) is PodEnd.NOT_STARTED

    def test_that_is_started_over_and_over_has_failed(self) -> None:
        assert end_of(starting("CrashLoopBackOff", "back-off 10s restarting failed container")) is PodEnd.FAILED


NO_MOUNT = PodEvent("FailedMount", 'MountVolume.SetUp failed for volume "v" : secret "nope" not found', warning=True)


class TestAPodWhoseVolumeIsMissing:
    def watch(self, snapshot: PodSnapshot | None = None) -> PodWatch:
        watch = PodWatch(now=NOW)
        watch.on_pod(starting("ContainerCreating") if snapshot is None else snapshot, NOW)
        return watch

    def test_is_told_after_a_grace_in_the_words_of_kubernetes(self) -> None:
        last = stages("no-secret-volume")[-1]
        start = began([last])
        watch = PodWatch(now=start)
        asked: list[float] = []
        for second in range(120):
            assert watch.on_pod(last, start + second) is None
            if watch.wants_events(start + second):
                asked.append(second)
                if (told := watch.on_events([NO_MOUNT], start + second)) is not None:
                    break
        assert asked == [GRACE_S, GRACE_S + EVENTS_EVERY_S]
        assert told is not None
        assert told.end is PodEnd.CONFIG
        assert 'FailedMount: MountVolume.SetUp failed for volume "v" : secret "nope" not found' in told.message

    @pytest.mark.parametrize(
        "missing",
        [
            'configmap "settings" not found',
            "references non-existent secret key: token",
            'error getting PVC: persistentvolumeclaims "data" not found',
        ],
    )
    def test_may_miss_other_things_too(self, missing: str) -> None:
        watch, event = self.watch(), PodEvent("FailedMount", f'MountVolume.SetUp failed for volume "v" : {missing}', warning=True)
        assert watch.on_events([event], NOW + 20) is None
        assert missing in watch.note
        told = watch.on_events([event], NOW + 50)
        assert told is not None
        assert told.end is PodEnd.CONFIG

    @pytest.mark.parametrize(
        "events",
        [
            [],
            [NO_MOUNT, PodEvent("Pulling", "Pulling image x")],
            [PodEvent("FailedMount", "MountVolume.SetUp failed for volume v : mount.nfs: server not found", warning=True)],
            [PodEvent("FailedMount", "timed out waiting for the condition", warning=True)],
        ],
    )
    def test_by_now_or_for_another_reason_is_waited_for(self, events: list[PodEvent]) -> None:
        watch = self.watch()
        assert watch.on_events([NO_MOUNT], NOW + 20) is None
        assert [watch.on_events(events, NOW + second) for second in (50, 80, 400)] == [None] * 3
        assert watch.on_events([NO_MOUNT], NOW + 430) is None, "its grace begins anew"

    @pytest.mark.parametrize(
        "snapshot",
        [
            pod(),
            starting("ErrImagePull", "no such host"),
            pod("waiting", reason="ContainerCreating", phase="Pending", deleted=5),
            pod("waiting", phase="Pending").model_copy(update={"node": "", "conditions": {}}),
            starting("PodInitializing").model_copy(
                update={"init_containers": [ContainerStatus(name="prepare", state="running")]}
            ),
        ],
    )
    def test_is_not_what_keeps_any_other_pod(self, snapshot: PodSnapshot) -> None:
        assert not self.watch(snapshot).wants_events(NOW + 500)

    def test_is_waited_for_where_events_may_not_be_read(self) -> None:
        watch = self.watch()
        assert not watch.wants_events(NOW + 14)
        assert watch.wants_events(NOW + 15)
        assert watch.on_events(None, NOW + 15) is None
        assert not watch.wants_events(NOW + 500)
        told = watch.on_pod(starting("ContainerCreating"), NOW + 600)
        assert told is not None
        assert told.end is PodEnd.NOT_STARTED

    def test_for_which_no_node_can_be_found_is_told_after_a_grace(self) -> None:
        words = '0/3 nodes are available: persistentvolumeclaim "data" not found. not found'
        reason = PodCondition(status="False", reason="Unschedulable", message=words)
        waits = pod("waiting", phase="Pending").model_copy(update={"node": "", "conditions": {"PodScheduled": reason}})
        watch = PodWatch(now=NOW, capacity_timeout_s=3600)
        assert watch.on_pod(waits, NOW + 1) is None
        room = waits.model_copy(update={"conditions": {"PodScheduled": reason.model_copy(update={"message": "no room"})}})
        assert watch.on_pod(room, NOW + 10) is None
        assert watch.on_pod(waits, NOW + 20) is None
        told = watch.on_pod(waits, NOW + 20 + GRACE_S)
        assert told is not None
        assert (told.end, 'persistentvolumeclaim "data" not found' in told.message) == (PodEnd.CONFIG, True)


class TestAnEnd:
    @pytest.mark.parametrize(
        ("snapshot", "end"),
        [
            (ended(137, reason="ContainerStatusUnknown", finished=None), PodEnd.NODE_LOST),
            (ended(255, reason="Unknown"), PodEnd.NODE_LOST),
            (ended(255, reason="Error"), PodEnd.FAILED),
            (ended(1, reason="Unknown"), PodEnd.FAILED),
            (ended(0, reason="OOMKilled", disruption=("PreemptionByScheduler", 50)), PodEnd.OUT_OF_MEMORY),
            (ended(1, message=TOLD % "out_of_memory"), PodEnd.OUT_OF_MEMORY),
            (ended(0, message=TOLD % "output"), PodEnd.FAILED),
            (pod("running", phase="Succeeded"), PodEnd.NODE_LOST),
            (pod("waiting", phase="Succeeded"), PodEnd.NODE_LOST),
            (pod("waiting", phase="Failed", pod_reason="UnexpectedAdmissionError"), PodEnd.NOT_STARTED),
            (pod("terminated", code=0, finished=100, phase="Failed"), PodEnd.FAILED),
            (ended(0, message='{"state": "succeeded"}'), PodEnd.SUCCEEDED),  # the user's own text
        ],
    )
    def test_that_no_cluster_could_be_made_to_show(self, snapshot: PodSnapshot, end: PodEnd) -> None:
        assert end_of(snapshot) is end


LOOKS = st.builds(
    pod,
    st.sampled_from(["waiting", "running", "terminated"]),
    phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed", "Unknown"]),
    reason=st.sampled_from(["", "Error", "Completed", "OOMKilled", "StartError", "ErrImagePull", "ContainerStatusUnknown"]),
    message=st.sampled_from(["", "text", *(TOLD % each for each in ("succeeded", "failed", "terminated", "out_of_memory"))]),
    code=st.sampled_from([None, 0, 0, 0, 1, 137, 143]),
    finished=st.none() | st.integers(0, 60),
    deleted=st.none() | st.integers(0, 60),
    grace=st.sampled_from([None, 0, 1, 30]),
    disruption=st.none()
    | st.tuples(st.sampled_from(["PreemptionByScheduler", "DeletionByTaintManager", "X"]), st.none() | st.integers(0, 60)),
    pod_reason=st.sampled_from(["", "", "Evicted", "NodeLost", "X"]),
)


class TestAnySequenceOfLooks:
    @given(st.lists(LOOKS | st.none(), min_size=1, max_size=6))
    @settings(max_examples=400, deadline=None)
    def test_gives_no_success_that_was_none(self, looks: list[PodSnapshot | None]) -> None:
        watch, seen = PodWatch(now=NOW), []
        for index, each in enumerate(looks):
            seen.append(each)
            told = watch.on_pod(each, NOW + index)
            if told is None:
                continue
            if told.end is PodEnd.SUCCEEDED:
                assert each is not None
                self.assert_success(each, [one for one in seen if one is not None])
            break

    @staticmethod
    def assert_success(last: PodSnapshot, seen: list[PodSnapshot]) -> None:
        base = last.containers[0]
        assert (base.state, base.exit_code, last.reason in REASONS) == ("terminated", 0, False)
        assert last.phase != "Failed"
        assert base.reason not in {"OOMKilled", "StartError", "ContainerStatusUnknown"}
        assert base.message in {"", "text", TOLD % "succeeded"}
        assert not any(each.deleted_at is not None and each.containers[0].state == "running" for each in seen)
        found = last.conditions.get("DisruptionTarget")
        asked = [found.at] if found is not None else []
        if last.deleted_at is not None:
            asked.append(last.deleted_at - timedelta(seconds=last.deletion_grace_s or 0))
        told = base.message == TOLD % "succeeded"
        for when in asked:
            assert when is not None
            assert base.finished_at is not None
            assert base.finished_at <= when if told else base.finished_at < when - timedelta(seconds=5)
        assert told or last.deleted_at is None or last.deletion_grace_s


EVICTED = {
    "reason": "Evicted",
    "type": "Warning",
    "message": 'Usage of EmptyDir volume "v" exceeds the limit "1Mi". ',
    "involvedObject": {"kind": "Pod", "name": "emptydir-exit0"},
}
KILLING = {
    "reason": "Killing",
    "type": "Normal",
    "message": "Stopping container base",
    "involvedObject": {"kind": "Pod", "fieldPath": "spec.containers{base}"},
}
SIDECAR = {**KILLING, "involvedObject": {"kind": "Pod", "fieldPath": "spec.initContainers{airflow-ml-sidecar}"}}
OTHER = {**KILLING, "involvedObject": {"kind": "Pod", "fieldPath": "spec.containers{istio-proxy}"}}


class TestTheEventsOfAPod:
    def success(self, message: str = "") -> PodOutcome:
        told = PodWatch(now=NOW).on_pod(ended(message=message), NOW + 101)
        assert told is not None
        return told

    def test_tell_of_an_eviction_that_the_pod_itself_does_not(self) -> None:
        looks = stages("emptydir-exit0")
        told = watch_for("emptydir-exit0").on_pod(looks[-1], began(looks))
        assert told is not None
        assert needs_events(told)
        found = with_events(told, map(PodEvent.from_json, [KILLING, EVICTED]), "base")
        assert (found.end, "exceeds the limit" in found.message) == (PodEnd.EVICTED, True)

    def test_tell_of_a_container_that_was_stopped(self) -> None:
        assert with_events(self.success(), [PodEvent.from_json(KILLING)], "base").end is PodEnd.DELETED

    @pytest.mark.parametrize(
        "event",
        [SIDECAR, OTHER, {"reason": "Started"}, {"reason": "TaintManagerEviction", "message": "Cancelling deletion of Pod a/b"}],
    )
    def test_that_speak_of_something_else_change_nothing(self, event: dict[str, Any]) -> None:
        found = PodEvent.from_json(event)
        assert with_events(self.success(), [found], "base").end is PodEnd.SUCCEEDED

    def test_are_not_needed_where_the_step_itself_has_told(self) -> None:
        told = self.success(TOLD % "succeeded")
        assert not needs_events(told)
        assert with_events(told, [PodEvent.from_json(KILLING)], "base") is told

    def test_that_warn_are_put_into_words(self) -> None:
        events = [PodEvent("FailedMount", "no secret", warning=True)] * 3 + [
            PodEvent("Pulled", "x"),
            PodEvent("BackOff", "b", warning=True),
        ]
        assert warnings(events) == "FailedMount: no secret; BackOff: b"
