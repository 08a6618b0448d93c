"""The worker's loop: the log in order and once, few requests, and the end, on a real cluster; odd ends with a small server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_ml_provider.core.pod_log import LogCursor
from airflow_ml_provider.core.pods import PodWatch
from airflow_ml_provider.jobs.pod_wait import PodWait, read_last_lines, settle
from airflow_ml_provider.jobs.pods import PodJobs
from airflow_ml_provider.models.pod import PodEnd, PodOutcome, PodSnapshot
from tests.jobs.pods_cluster import Answers, busybox, cluster_pods, evict, on_cluster, status, until

Makes = Callable[..., PodSnapshot]
OBEYS = "trap 'exit 0' TERM; echo up; while true; do sleep 0.1; done"
TOLD = '{"version": 1, "try_number": 1, "state": "succeeded", "exit_code": 0}'


@pytest.fixture(scope="module")
def cluster() -> Iterator[PodJobs]:
    with cluster_pods() as jobs:
        yield jobs


@pytest.fixture
def make(cluster: PodJobs, unique: str) -> Iterator[Makes]:
    name = f"w{unique[-8:]}"

    def make(script: str, **options: Any) -> PodSnapshot:
        return cluster.create(busybox(script, name=name, **options))

    yield make
    cluster.delete(name, grace_s=0)


def waiting(jobs: PodJobs, pod: PodSnapshot, lines: list[str], **options: Any) -> PodWait:
    cursor = options.pop("cursor", LogCursor())
    watch = PodWatch(now=time.time(), **options)
    return PodWait(jobs, pod, watch, lines.append, cursor)


@on_cluster
class TestRealCluster:
    def test_a_success_with_its_whole_log_costs_few_requests(self, cluster: PodJobs, make: Makes) -> None:
        pod, lines = make("for i in $(seq 1 2000); do echo line $i; done; sleep 3; echo -n the end"), []
        sent = cluster.sent  # type: ignore[attr-defined]
        before = len(sent)
        told = waiting(cluster, pod, lines).wait()
        assert (told.end, told.exit_code, told.pod, told.uid) == (PodEnd.SUCCEEDED, 0, pod.name, pod.uid)
        assert lines == [*(f"line {each}" for each in range(1, 2001)), "the end"]
        asked = sent[before:]
        assert sum(each.endswith("/log") for each in asked) == 2, "followed, and the end"
        assert len(asked) <= 7
        more: list[str] = []
        waiting(cluster, pod, more, cursor=LogCursor.from_json(told.log)).wait()
        assert more == [], "a later reader goes on where this one was"

    def test_a_failure_gives_its_exit_code_and_its_log(self, cluster: PodJobs, make: Makes) -> None:
        lines: list[str] = []
        told = waiting(cluster, make("echo before; exit 3"), lines).wait()
        assert (told.end, told.exit_code, lines) == (PodEnd.FAILED, 3, ["before"])

    def test_a_pod_that_is_deleted_while_it_runs_leaves_its_last_words(self, cluster: PodJobs, make: Makes) -> None:
        pod = make("trap 'echo last words; exit 0' TERM; echo up; while true; do sleep 0.1; done", grace_s=5)
        lines: list[str] = []

        def on_line(line: str) -> None:
            lines.append(line)
            if line == "up":
                cluster.delete(pod.name)

        told = PodWait(cluster, pod, PodWatch(now=time.time()), on_line).wait()
        assert told.end is PodEnd.DELETED
        assert lines == ["up", "last words"]

    def test_a_pod_that_was_evicted_and_gone_between_two_looks_still_says_why(self, cluster: PodJobs, make: Makes) -> None:
        pod = make("trap 'exit 0' TERM; echo up; while true; do sleep 0.1; done", grace_s=5)
        path = f"/api/v1/namespaces/{cluster.namespace}/pods/{pod.name}/eviction"
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod.name}}

        def on_line(line: str) -> None:
            cluster.api.json("POST", path, body)
            until(lambda: cluster.look(pod.name) is None)

        told = PodWait(cluster, pod, PodWatch(now=time.time()), on_line).wait()
        assert (told.end, told.gone, told.exit_code) == (PodEnd.EVICTED, True, 0)
        assert "EvictionByEvictionAPI" in told.message
        assert cluster.since(pod.name, "") == []
        assert cluster.since(pod.name, "1") == [], "the API server has forgotten that"

    @pytest.mark.parametrize("number", [1, 2, 3, 4])
    def test_a_pod_that_was_evicted_between_two_looks_is_told_as_evicted(
        self, cluster: PodJobs, make: Makes, number: int
    ) -> None:
        pod = make(OBEYS, grace_s=30)

        def sleep(_: float) -> None:
            until(lambda: (found := cluster.look(pod.name)) and found.phase == "Running")
            evict(cluster, pod.name)
            until(lambda: cluster.look(pod.name) is None)

        told = PodWait(cluster, pod, PodWatch(now=time.time()), sleep=sleep).wait()
        assert (told.end, told.exit_code, told.gone) == (PodEnd.EVICTED, 0, True)

    def test_a_pod_that_succeeded_and_was_deleted_between_two_looks_is_a_success(self, cluster: PodJobs, make: Makes) -> None:
        pod = make(f"echo '{TOLD}' > /dev/termination-log")

        def sleep(_: float) -> None:
            until(lambda: (found := cluster.look(pod.name)) and found.phase == "Succeeded")
            cluster.delete(pod.name)
            until(lambda: cluster.look(pod.name) is None)

        told = PodWait(cluster, pod, PodWatch(now=time.time()), sleep=sleep).wait()
        assert (told.end, told.exit_code, told.gone) == (PodEnd.SUCCEEDED, 0, True)
        assert told.told is not None
        assert told.told.state == "succeeded"

    def test_at_its_deadline_it_is_waited_for_no_longer(self, cluster: PodJobs, make: Makes) -> None:
        lines: list[str] = []
        told = waiting(cluster, make("echo up; sleep 300"), lines, deadline=time.time() + 4).wait()
        assert (told.end, lines) == (PodEnd.DEADLINE, ["up"])

    def test_what_a_pod_waits_for_is_logged_as_it_changes(
        self, cluster: PodJobs, make: Makes, caplog: pytest.LogCaptureFixture
    ) -> None:
        pod = make("true", resources={"limits": {"nvidia.com/gpu": "99"}})
        with caplog.at_level(logging.INFO, logger="airflow_ml_provider.jobs.pod_wait"):
            told = waiting(cluster, pod, [], capacity_timeout_s=4).wait()
        assert told.end is PodEnd.NO_ROOM
        assert caplog.text.count("Insufficient nvidia.com/gpu") == 1

    def test_a_log_that_nobody_wants_is_not_asked_for(self, cluster: PodJobs, make: Makes) -> None:
        sent = cluster.sent  # type: ignore[attr-defined]
        before = len(sent)
        told = PodWait(cluster, make("echo x"), PodWatch(now=time.time())).wait()
        assert told.end is PodEnd.SUCCEEDED
        assert not [each for each in sent[before:] if each.endswith("/log")]

    def test_a_log_of_a_hundred_thousand_lines_comes_whole(self, cluster: PodJobs, make: Makes) -> None:
        pod, lines = make("seq 1 100000; sleep 3"), []  # without the sleep the container runtime itself loses the end
        waiting(cluster, pod, lines).wait()
        assert lines == [str(each) for each in range(1, 100_001)]

    def test_the_last_lines_of_an_init_container_that_failed_can_be_read(self, cluster: PodJobs, unique: str) -> None:
        body = busybox("true", name=f"i{unique[-8:]}")
        prepare = {"name": "prepare", "image": "localhost/base:1", "command": ["sh", "-c", "seq 1 300; echo no disk; exit 5"]}
        body["spec"]["initContainers"] = [prepare]
        lines: list[str] = []
        told = waiting(cluster, cluster.create(body), []).wait()
        read_last_lines(cluster, told, lambda line, container: lines.append(f"{container}: {line}"))
        cluster.delete(told.pod, grace_s=0)
        assert (told.end, told.init_container) == (PodEnd.FAILED, "prepare")
        assert (lines[0], lines[-1], len(lines)) == ("prepare: 102", "prepare: no disk", 200)
        read_last_lines(cluster, told.model_copy(update={"gone": True}), lambda *_: lines.clear())
        assert lines

    def test_the_events_of_a_pod_confirm_its_success(self, cluster: PodJobs, make: Makes) -> None:
        pod = make("trap 'exit 0' TERM; while true; do sleep 0.1; done")
        until(lambda: (found := cluster.look(pod.name)) and found.phase == "Running")
        good = PodOutcome(end=PodEnd.SUCCEEDED, pod=pod.name, namespace=pod.namespace, uid=pod.uid)
        assert settle(cluster, good) == good
        cluster.delete(pod.name)
        until(lambda: cluster.look(pod.name) is None)
        assert settle(cluster, good).end is PodEnd.DELETED
        assert settle(cluster, good.model_copy(update={"end": PodEnd.FAILED})).end is PodEnd.FAILED


def raw(phase: str, state: dict[str, Any], uid: str = "u") -> tuple[int, Any]:
    statuses = [{"name": "base", "state": state}]
    meta = {"name": "a", "namespace": "n", "uid": uid, "creationTimestamp": "2030-01-01T00:00:00Z"}
    return 200, {"metadata": meta, "spec": {"nodeName": "node1"}, "status": {"phase": phase, "containerStatuses": statuses}}


RUNNING = raw("Running", {"running": {"startedAt": "2030-01-01T00:00:00Z"}})
ENDED = raw("Succeeded", {"terminated": {"exitCode": 0, "finishedAt": "2030-01-01T00:01:00Z"}})


class Scene:
    """A server whose pod and whose log a test sets."""

    def __init__(self, server: Answers) -> None:
        self.pod: Any = RUNNING
        self.log: list[Any] = []
        server.prepared = [self.answer]
        self.server = server

    def answer(self) -> Any:
        if not self.server.asked[-1][1].endswith("/log"):
            return self.pod
        return self.log.pop(0) if len(self.log) > 1 else self.log[0]

    def wait(self, lines: list[str], **options: Any) -> PodOutcome:
        jobs = self.server.jobs(timeout_s=1.0)
        pod = PodSnapshot.from_json(RUNNING[1])
        told = PodWait(jobs, pod, PodWatch(now=time.time(), **options), lines.append, poll_interval_s=0.2).wait()
        jobs.close()
        return told


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Answers() as server:
        yield Scene(server)


LINE = b"2030-01-01T00:00:01.5Z one\n"


def test_a_kubelet_that_is_away_costs_the_log_and_not_the_task(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.log = [status(500, "dial tcp 10.0.0.1:10250: connect: connection refused"), (200, LINE)]
    lines: list[str] = []

    def answer() -> Any:
        looks = [each for each in scene.server.asked if not each[1].endswith("/log")]
        scene.pod = ENDED if len(looks) >= 3 else RUNNING
        return scene.answer()

    scene.server.prepared = [answer]
    assert scene.wait(lines).end is PodEnd.SUCCEEDED
    assert lines == ["one"]


def test_an_account_that_may_not_read_logs_is_told_once(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.log = [status(403, "pods/log is forbidden")]

    def answer() -> Any:
        looks = [each for each in scene.server.asked if not each[1].endswith("/log")]
        scene.pod = ENDED if len(looks) >= 3 else RUNNING
        return scene.answer()

    scene.server.prepared = [answer]
    assert scene.wait([]).end is PodEnd.SUCCEEDED
    assert caplog.text.count("cannot be read") == 1
    assert len([each for each in scene.server.asked if each[1].endswith("/log")]) == 1


def test_a_refusal_by_an_api_server_that_is_just_back_costs_no_line(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_ml_provider.jobs import pod_wait

    monkeypatch.setattr(pod_wait, "FOLLOW_AGAIN_S", 0.0)
    roles = 'RBAC: role.rbac.authorization.k8s.io "airflow" not found'
    scene.log = [status(503, "away"), status(403, roles), (200, LINE)]

    def answer() -> Any:
        looks = [each for each in scene.server.asked if not each[1].endswith("/log")]
        logs = [each for each in scene.server.asked if each[1].endswith("/log")]
        scene.pod = status(503, "away") if len(logs) < 2 else ENDED if len(looks) >= 4 and len(logs) >= 3 else RUNNING
        return scene.answer()

    scene.server.prepared = [answer]
    lines: list[str] = []
    assert scene.wait(lines).end is PodEnd.SUCCEEDED
    assert lines == ["one"]


def test_an_api_server_that_stays_away_ends_the_waiting_after_the_patience(scene: Scene) -> None:
    scene.pod, scene.log = (503, b""), [(503, b"")]
    told = scene.wait([], patience_s=1.0)
    assert told.end is PodEnd.UNREACHABLE


def test_another_pod_of_the_same_name_is_not_ours(scene: Scene) -> None:
    scene.pod, scene.log = raw("Running", {"running": {}}, uid="another"), [(200, LINE)]
    lines: list[str] = []
    told = scene.wait(lines)
    assert (told.end, told.gone, told.uid) == (PodEnd.DELETED, True, "u")


def test_a_log_that_ends_before_its_container_is_taken_up_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow_ml_provider.jobs import pod_wait

    monkeypatch.setattr(pod_wait, "FOLLOW_AGAIN_S", 0.0)
    two = LINE + b"2030-01-01T00:00:02.5Z two\n"
    scene.log = [(200, LINE), (200, two), (200, two + b"2030-01-01T00:00:03.5Z three")]
    lines: list[str] = []

    def answer() -> Any:
        looks = [each for each in scene.server.asked if not each[1].endswith("/log")]
        scene.pod = ENDED if len(looks) >= 2 else RUNNING
        return scene.answer()

    scene.server.prepared = [answer]
    assert scene.wait(lines).end is PodEnd.SUCCEEDED
    assert lines == ["one", "two", "three"]


def making(server: Answers, events: Any) -> Any:
    """Answer for a pod whose containers are being made for long, and for its events."""
    waits = {"name": "base", "state": {"waiting": {"reason": "ContainerCreating"}}}
    scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2024-01-01T00:00:00Z"}
    meta = {"name": "a", "namespace": "n", "uid": "u", "labels": {"airflow-ml/managed": "true"}}
    spec = {"nodeName": "node1"}
    pod = {
        "metadata": meta,
        "spec": spec,
        "status": {"phase": "Pending", "conditions": [scheduled], "containerStatuses": [waits]},
    }

    def answer() -> Any:
        path = server.asked[-1][1]
        if path.endswith("/events"):
            return events
        return 200, pod if path.endswith("/a") else {"items": [pod]}

    server.prepared = [answer]
    return pod


NO_MOUNT = {
    "reason": "FailedMount",
    "type": "Warning",
    "message": 'MountVolume.SetUp failed for volume "v" : secret "s" not found',
}


@pytest.mark.parametrize(
    ("events", "end", "asked"),
    [
        ((200, {"items": [NO_MOUNT]}), PodEnd.CONFIG, 2),
        ((200, {"items": []}), PodEnd.NOT_STARTED, 4),
        (status(403, "events is forbidden"), PodEnd.NOT_STARTED, 1),
        (status(503, "not now"), PodEnd.NOT_STARTED, 4),
    ],
)
def test_a_pod_that_is_long_being_made_is_asked_for_its_events(events: Any, end: PodEnd, asked: int) -> None:
    with Answers() as server:
        pod, now = PodSnapshot.from_json(making(server, events)), [time.time()]
        jobs = server.jobs()

        def sleep(seconds: float) -> None:
            now[0] += seconds

        began = pod.conditions["PodScheduled"].at
        assert began is not None
        watch = PodWatch(now=now[0], startup_timeout_s=now[0] - began.timestamp() + 100)
        told = PodWait(jobs, pod, watch, clock=lambda: now[0], sleep=sleep).wait()
        jobs.close()
    assert told.end is end
    assert ('secret "s" not found' in told.message) is (end is PodEnd.CONFIG)
    assert sum(each[1].endswith("/events") for each in server.asked) == asked
