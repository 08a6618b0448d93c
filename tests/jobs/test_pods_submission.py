"""One pod for a task instance: found again after every crash, never two alive at once. On a real cluster, where there is one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_ml_provider.core.pod_adoption import GENERATION, KEY, READ, has_ended, labels_of, pod_name
from airflow_ml_provider.core.submission import Generation
from airflow_ml_provider.exceptions import ConfigError, RemoteJobError, RemoteUnavailableError, SupersededError
from airflow_ml_provider.jobs.pod_submission import PodSubmission
from airflow_ml_provider.jobs.pods import PodJobs
from airflow_ml_provider.models.pod import PodEnd, PodOutcome, PodSnapshot
from airflow_ml_provider.models.run import StepIdentity
from tests.jobs.conftest import Store
from tests.jobs.pods_cluster import Answers, busybox, cluster_pods, on_cluster, status, until

SLEEPS = "sleep 300"


@pytest.fixture(scope="module")
def cluster() -> Iterator[PodJobs]:
    with cluster_pods() as jobs:
        yield jobs


@pytest.fixture
def step(cluster: PodJobs, unique: str) -> Iterator[StepIdentity]:
    step = StepIdentity(dag_id=unique, run_id="night", task_id="Train")
    yield step
    for each in cluster.find({KEY: step.key}):
        cluster.delete(each.name, grace_s=0)


@pytest.fixture
def attempt(cluster: PodJobs, step: StepIdentity, store: Store) -> Callable[..., PodSubmission]:
    """Make what a try has; the store outlives it."""

    def make(clears: int = 0, **options: Any) -> PodSubmission:
        return PodSubmission(
            **({"jobs": cluster, "memory": store, "identity": step, "clears": clears, "patience_s": 5} | options)
        )

    return make


def runs(script: str = SLEEPS) -> Callable[[Generation], Any]:
    return lambda _: busybox(script)


def started(found: PodSnapshot | PodOutcome) -> PodSnapshot:
    assert isinstance(found, PodSnapshot)
    return found


def ended(cluster: PodJobs, name: str) -> PodSnapshot:
    def look() -> PodSnapshot | None:
        found = cluster.look(name)
        return found if found and found.phase in {"Succeeded", "Failed"} else None

    found = until(look)
    assert isinstance(found, PodSnapshot)
    return found


@on_cluster
class TestRealCluster:
    def test_a_pod_has_its_derived_name_and_the_labels_of_its_task(
        self, attempt: Callable[..., PodSubmission], step: StepIdentity
    ) -> None:
        body = busybox(SLEEPS, labels={"team": "a"})
        body["metadata"]["generateName"] = "other-"
        pod = started(attempt(3).start(lambda _: body))
        assert pod.name == pod_name(step, Generation(clears=3))
        assert pod.labels == {"team": "a"} | labels_of(step, Generation(clears=3))

    def test_a_worker_that_was_killed_after_its_create_finds_its_pod(
        self, attempt: Callable[..., PodSubmission], cluster: PodJobs
    ) -> None:
        first = started(attempt().start(runs()))
        without_memory = attempt(memory=Store())
        again = started(without_memory.start(lambda _: pytest.fail("nothing is to be made")))
        assert again.uid == first.uid

    def test_two_workers_at_once_make_one_pod(
        self, attempt: Callable[..., PodSubmission], cluster: PodJobs, step: StepIdentity
    ) -> None:
        found: list[PodSnapshot] = []
        both = threading.Barrier(2)

        def body(_: Generation) -> Any:
            both.wait(10)  # both have looked, and found none
            return busybox(SLEEPS)

        def work() -> None:
            found.append(started(attempt(memory=Store()).start(body)))

        threads = [threading.Thread(target=work) for _ in range(2)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert len({each.uid for each in found}) == 1
        assert len(cluster.find({KEY: step.key})) == 1

    def test_a_success_that_nobody_has_read_is_taken_up_and_one_that_was_read_is_not(
        self, attempt: Callable[..., PodSubmission], cluster: PodJobs
    ) -> None:
        first = started(attempt(on_finish="keep_pod").start(runs("true")))
        done = ended(cluster, first.name)
        again = attempt(on_finish="keep_pod")
        assert started(again.start(runs())).uid == first.uid
        again.finish(done, succeeded=True)
        assert (kept := cluster.look(first.name)) is not None
        assert kept.labels[READ] == "true"
        later = started(attempt(on_finish="keep_pod").start(runs()))
        assert (later.labels[GENERATION], later.uid != first.uid) == ("0-1", True)

    def test_a_failure_that_nobody_has_read_is_put_away_and_another_pod_is_made(
        self, attempt: Callable[..., PodSubmission], cluster: PodJobs
    ) -> None:
        first = ended(cluster, started(attempt().start(runs("exit 3"))).name)
        later = attempt()
        plan = later.plan()
        assert [each.uid for each in plan.over] == [first.uid]
        second = started(later.start(runs(), plan))
        assert second.labels[GENERATION] == "0-1"
        until(lambda: cluster.look(first.name) is None)

    def test_a_clear_sees_the_pod_of_before_off_before_it_makes_its_own(
        self, attempt: Callable[..., PodSubmission], cluster: PodJobs, step: StepIdentity
    ) -> None:
        first = started(attempt(0).start(runs()))

        def body(_: Generation) -> Any:
            assert (found := cluster.look(first.name)) is None or has_ended(found), "two would run at once"
            return busybox(SLEEPS)

        second = started(attempt(1).start(body))
        assert second.labels[GENERATION] == "1-0"
        until(lambda: [each.uid for each in cluster.find({KEY: step.key})] == [second.uid])
        with pytest.raises(SupersededError):
            attempt(0).start(runs())

    def test_a_pod_that_is_being_deleted_is_waited_for(
        self, attempt: Callable[..., PodSubmission], cluster: PodJobs, caplog: pytest.LogCaptureFixture
    ) -> None:
        first = started(attempt().start(runs("trap '' TERM; sleep 300")))
        until(lambda: (found := cluster.look(first.name)) and found.phase == "Running")
        cluster.delete(first.name)

        def body(_: Generation) -> Any:
            assert (found := cluster.look(first.name)) is None or has_ended(found), "two would run at once"
            return busybox(SLEEPS)

        with caplog.at_level(logging.INFO):
            second = started(attempt().start(body))
        assert second.labels[GENERATION] == "0-1"
        assert caplog.text.count("must not run at once") == 1

    def test_a_pod_that_is_gone_and_whose_end_nobody_has_read_is_told(
        self, attempt: Callable[..., PodSubmission], cluster: PodJobs
    ) -> None:
        first = started(attempt().start(runs()))
        cluster.delete(first.name, grace_s=0)
        until(lambda: cluster.look(first.name) is None)
        plan = attempt().plan()
        assert (plan.action, plan.lost, plan.generation) == ("create", first.uid, Generation(clears=0, renewals=1))

    def test_a_full_quota_is_waited_for_until_there_is_room(
        self, attempt: Callable[..., PodSubmission], cluster: PodJobs, caplog: pytest.LogCaptureFixture
    ) -> None:
        quotas = f"/api/v1/namespaces/{cluster.namespace}/resourcequotas"
        cluster.api.json("POST", quotas, {"metadata": {"name": "no-room"}, "spec": {"hard": {"count/pods": "0"}}})
        until(lambda: cluster.api.json("GET", f"{quotas}/no-room").get("status", {}).get("hard"))
        try:
            out = attempt(capacity_timeout_s=3, sleep=lambda _: None).start(runs())
            assert isinstance(out, PodOutcome)
            assert (out.end, out.gone) == (PodEnd.NO_ROOM, True)
            assert "exceeded quota: no-room, requested: count/pods=1" in out.message
            late = attempt(deadline=0.0).start(runs())
            assert isinstance(late, PodOutcome)
            assert late.end is PodEnd.DEADLINE
            lifted: list[float] = []

            def sleep(pause: float) -> None:
                lifted.append(pause)
                if len(lifted) == 2:
                    cluster.api.json("DELETE", f"{quotas}/no-room")

            with caplog.at_level(logging.INFO):
                assert started(attempt(sleep=sleep).start(runs())).phase == "Pending"
            assert lifted == [15.0, 15.0]
            assert caplog.text.count("No room in the quota") == 1
        finally:
            cluster.api.json("DELETE", quotas + "?labelSelector=")

    @pytest.mark.parametrize(
        ("on_finish", "succeeded", "stays"),
        [
            *(("delete_pod", True, False), ("delete_pod", False, False), ("keep_pod", True, True)),
            *(("delete_succeeded_pod", True, False), ("delete_succeeded_pod", False, True), ("delete_active_pod", True, True)),
        ],
    )
    def test_what_becomes_of_a_pod_is_the_operators_choice(
        self, attempt: Callable[..., PodSubmission], cluster: PodJobs, on_finish: str, succeeded: bool, stays: bool
    ) -> None:
        work = attempt(on_finish=on_finish)
        pod = ended(cluster, started(work.start(runs("true"))).name)
        work.finish(pod, succeeded=succeeded)
        if stays:
            assert (found := cluster.look(pod.name)) is not None
            assert READ in found.labels
        else:
            until(lambda: cluster.look(pod.name) is None)
        assert attempt().plan().lost == ""

    def test_a_killed_task_deletes_its_pod_at_once(
        self, attempt: Callable[..., PodSubmission], cluster: PodJobs, step: StepIdentity
    ) -> None:
        work = attempt()
        started(work.start(runs()))
        work.stop_at_once()
        until(lambda: cluster.find({KEY: step.key}) == [])

    def test_a_task_that_is_killed_while_it_makes_its_pod_leaves_none(
        self, attempt: Callable[..., PodSubmission], cluster: PodJobs, step: StepIdentity
    ) -> None:
        work = attempt()
        send = cluster.create

        def create(body: Any) -> PodSnapshot:
            work.stop_at_once()  # the signal comes while the request is on its way
            return send(body)

        cluster.create = create  # type: ignore[method-assign]
        try:
            with pytest.raises(RemoteJobError, match="was killed"):
                work.start(runs())
        finally:
            del cluster.create
        until(lambda: cluster.find({KEY: step.key}) == [])

    def test_a_pod_of_the_same_name_that_is_somebody_elses_is_left_alone(
        self, attempt: Callable[..., PodSubmission], cluster: PodJobs, step: StepIdentity
    ) -> None:
        name = pod_name(step, Generation(clears=0))
        cluster.create(busybox(SLEEPS, name=name))
        with pytest.raises(ConfigError, match="is not this task's"):
            attempt().start(runs())
        cluster.delete(name, grace_s=0)


POD: dict[str, Any] = {"spec": {}, "status": {"phase": "Pending"}}


def made(step: StepIdentity, **meta: Any) -> dict[str, Any]:
    name, labels = pod_name(step, Generation(clears=0)), labels_of(step, Generation(clears=0))
    return POD | {"metadata": {"name": name, "namespace": "n", "uid": "u", "labels": labels} | meta}


ALICE = StepIdentity(dag_id="d", run_id="r", task_id="t")


def test_a_create_whose_answer_was_lost_is_sent_again_and_finds_the_pod(store: Store) -> None:
    with Answers() as server:
        server.prepared = [
            *((200, {"items": []}), (0, b""), status(409, "already exists", "AlreadyExists"), (200, made(ALICE))),
            (500, b""),
        ]
        work = PodSubmission(server.jobs(), store, ALICE, 0, patience_s=20)
        assert started(work.start(runs())).uid == "u"
        assert [each[0] for each in server.asked] == ["GET", "POST", "POST", "GET"]
        work.jobs.close()


def test_an_api_server_that_stays_away_is_an_error_that_a_retry_may_mend(store: Store) -> None:
    with Answers() as server:
        server.prepared = [(503, b"")]
        work = PodSubmission(server.jobs(), store, ALICE, 0, patience_s=0)
        with pytest.raises(RemoteUnavailableError):
            work.start(runs())
        assert len(server.asked) == 1
        assert not store
        server.prepared = [(0, b"")]
        work.finish(PodSnapshot(name="a", namespace="n", uid="u", phase="Succeeded"), succeeded=True)  # only a warning
        work.jobs.close()


def test_a_pod_that_does_not_go_is_told_and_nothing_is_made(store: Store) -> None:
    stuck = made(ALICE, deletionTimestamp="2030-01-01T00:00:00Z", deletionGracePeriodSeconds=30)
    times = iter(range(0, 100_000, 50))
    with Answers() as server:
        server.prepared = [(200, {"items": [stuck]})]
        work = PodSubmission(server.jobs(), store, ALICE, 0, patience_s=0, clock=lambda: float(next(times)), sleep=lambda _: None)
        told = work.start(lambda _: pytest.fail("nothing is to be made"))
        assert isinstance(told, PodOutcome)
        assert told.end is PodEnd.NODE_LOST
        assert "still there after 150 s" in told.message
        assert {each[0] for each in server.asked} == {"GET"}
        work.jobs.close()


def seen(phase: str, *, main: str = "waiting") -> dict[str, Any]:
    container = {"name": "base", "state": {main: {"exitCode": 3} if main == "terminated" else {}}}
    return made(ALICE) | {"status": {"phase": phase, "containerStatuses": [container]}}


@pytest.mark.parametrize("on_finish", ["keep_pod", "delete_succeeded_pod", "delete_active_pod"])
@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        ((200, seen("Pending")), ["PATCH", "DELETE"]),
        ((200, seen("Running", main="running")), ["PATCH", "DELETE"]),
        ((200, seen("Running", main="terminated")), ["PATCH"]),
        ((200, seen("Failed", main="terminated")), ["PATCH"]),
        ((200, seen("Failed")), ["PATCH"]),
        (status(404, "not found", "NotFound"), ["PATCH"]),
        (status(403, "forbidden", "Forbidden"), ["PATCH"]),
    ],
    ids=["waits for room", "runs", "has just ended", "failed", "evicted", "gone", "unknown"],
)
def test_what_is_kept_is_a_pod_that_has_ended(store: Store, on_finish: Any, answer: Any, asked: list[str]) -> None:
    with Answers() as server:
        server.prepared = [answer, (200, {})]
        work = PodSubmission(server.jobs(), store, ALICE, 0, on_finish=on_finish, patience_s=0)
        work.finish(PodSnapshot(name="p", namespace="n", uid="u"), succeeded=False)
        assert [each[0] for each in server.asked] == asked
        assert {each[1] for each in server.asked} == {"/api/v1/namespaces/n/pods/p"}
        if "DELETE" in asked:
            assert server.asked[1][3]["preconditions"] == {"uid": "u"}
        work.jobs.close()


@pytest.mark.parametrize("known", [True, False], ids=["taken up", "deferred"])
@pytest.mark.parametrize(
    ("on_finish", "phase", "read", "deleted"),
    [
        ("delete_pod", "Succeeded", False, True),
        ("delete_pod", "Failed", False, True),
        ("delete_pod", "Failed", True, False),
        ("delete_succeeded_pod", "Succeeded", False, True),
        ("delete_succeeded_pod", "Failed", False, False),
        ("keep_pod", "Succeeded", False, False),
        ("keep_pod", "Running", False, True),
    ],
)
def test_a_task_that_is_killed_while_it_records_leaves_no_pod_that_would_not_be_kept(
    store: Store, on_finish: Any, phase: str, read: bool, deleted: bool, known: bool
) -> None:
    pod = seen(phase)
    pod["metadata"]["labels"] = pod["metadata"]["labels"] | ({READ: "true"} if read else {})
    with Answers() as server:
        server.prepared = [*([] if known else [(200, {"items": [pod]})]), (200, {})]
        work = PodSubmission(server.jobs(), store, ALICE, 0, on_finish=on_finish, patience_s=0)
        work.pod = PodSnapshot.from_json(pod) if known else None
        work.stop_at_once()
        assert [each[0] for each in server.asked if each[0] != "GET"] == ["DELETE"] * deleted
        work.jobs.close()
