"""What waits for one pod: one event whatever happens, its log in the right place, and no blocked event loop."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from blockbuster import blockbuster_ctx

from airflow_ml_provider.core import pods
from airflow_ml_provider.core.pod_adoption import MANAGED
from airflow_ml_provider.jobs.pods import PodJobs
from airflow_ml_provider.models.pod import PodEnd, PodOutcome
from airflow_ml_provider.triggers import pods as module
from airflow_ml_provider.triggers.pod_poller import PodPoller
from airflow_ml_provider.triggers.pods import PodTrigger
from tests.jobs.pods_cluster import NAMESPACE, Answers, access, busybox, cluster_pods, evict, on_cluster, status, until
from tests.jobs.test_pods_wait import NO_MOUNT, making

TOLD = '{"version": 1, "try_number": 1, "state": "succeeded", "exit_code": 0}'
TASK: contextvars.ContextVar[str] = contextvars.ContextVar("TASK", default="nobody")


async def events_of(trigger: PodTrigger) -> list[dict[str, Any]]:
    TASK.set(trigger.pod)
    return [event.payload async for event in trigger.run()]


def watch(*triggers: PodTrigger, after_s: float = 0.0, then: Callable[[], object] | None = None) -> list[PodOutcome]:
    """Run triggers to their end, with something that happens in between; blocking the event loop is an error."""

    async def main() -> list[list[dict[str, Any]]]:
        tasks = [asyncio.create_task(events_of(each)) for each in triggers]
        if then is not None:
            await asyncio.sleep(after_s)
            await asyncio.to_thread(then)
        told = await asyncio.gather(*tasks)
        await asyncio.sleep(0.3)
        return told

    with blockbuster_ctx():
        told = asyncio.run(main())
    assert PodPoller._all == {}
    assert [len(each) for each in told] == [1] * len(triggers)
    assert json.loads(json.dumps(told)) == told
    return [PodOutcome.model_validate(each[0]) for each in told]


class Lines(logging.Handler):
    """Keeps each line with the task whose log Airflow would have put it into."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.of: dict[str, list[str]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.of.setdefault(TASK.get(), []).append(record.getMessage())

    def of_pod(self, name: str) -> list[str]:
        return [each.removeprefix("[base] ") for each in self.of[name] if each.startswith("[base] ")]


@pytest.fixture
def lines() -> Iterator[Lines]:
    handler, logger = Lines(), logging.getLogger("airflow_ml_provider")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def cluster() -> Iterator[PodJobs]:
    with cluster_pods() as jobs:
        yield jobs


@pytest.fixture
def make(cluster: PodJobs, unique: str) -> Iterator[Callable[..., PodTrigger]]:
    names: list[str] = []

    def make(script: str, *, pod: dict[str, Any] | None = None, **options: Any) -> PodTrigger:
        name = f"t{unique[-8:]}-{len(names)}"
        names.append(name)
        made = cluster.create(busybox(script, name=name, labels={MANAGED: "true"}, **(pod or {})))
        given = {"poll_interval_s": 1.0, "log_interval_s": 1.0, "access": access().model_dump(mode="json")} | options
        return PodTrigger(pod=name, namespace=NAMESPACE, uid=made.uid, **given)

    yield make
    for each in names:
        cluster.delete(each, grace_s=0)


@on_cluster
class TestRealCluster:
    def test_a_success_is_one_event_and_its_log_is_in_its_tasks_log(self, make: Callable[..., PodTrigger], lines: Lines) -> None:
        trigger = make("for i in 1 2 3 4 5 6; do echo line $i; sleep 0.5; done; echo -n end")
        (told,) = watch(trigger)
        assert (told.end, told.exit_code, told.uid) == (PodEnd.SUCCEEDED, 0, trigger.uid)
        assert lines.of_pod(trigger.pod) == [*(f"line {each}" for each in range(1, 7)), "end"]
        assert told.log["done"] is True
        assert "nobody" not in lines.of, "nothing of it lands in the triggerer's own log"

    def test_a_burst_of_lines_comes_whole(self, make: Callable[..., PodTrigger], lines: Lines) -> None:
        trigger = make("seq 1 160000; sleep 3")  # 6 MB as they are read; without the sleep the container runtime loses the end
        (told,) = watch(trigger)
        assert told.end is PodEnd.SUCCEEDED
        assert lines.of_pod(trigger.pod) == [str(each) for each in range(1, 160_001)]

    def test_several_share_the_lists_and_each_line_finds_its_task(
        self, make: Callable[..., PodTrigger], lines: Lines, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lists: list[float] = []
        find = PodJobs.find

        def counted(jobs: PodJobs, *args: Any, **options: Any) -> Any:
            lists.append(time.monotonic())
            return find(jobs, *args, **options)

        monkeypatch.setattr(PodJobs, "find", counted)
        triggers = [make(f"for i in 1 2 3; do echo of {each} $i; sleep 1; done; exit {each}") for each in range(5)]
        began = time.monotonic()
        told = watch(*triggers)
        assert len(lists) <= time.monotonic() - began + 2
        assert [each.exit_code for each in told] == [0, 1, 2, 3, 4]
        for number, each in enumerate(triggers):
            assert lines.of_pod(each.pod) == [f"of {number} {line}" for line in (1, 2, 3)]

    def test_a_later_trigger_reads_on_where_an_earlier_one_was(self, make: Callable[..., PodTrigger], lines: Lines) -> None:
        trigger = make("echo one; sleep 4; echo two")

        async def killed() -> None:
            task = asyncio.create_task(events_of(trigger))
            await asyncio.sleep(3)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(killed())
        assert lines.of_pod(trigger.pod) == ["one"]
        (told,) = watch(PodTrigger(**trigger.serialize()[1]))
        assert lines.of_pod(trigger.pod) == ["one", "one", "two"], "the triggerer has died with its cursor: at least once"
        (told,) = watch(PodTrigger(**(trigger.serialize()[1] | {"cursor": told.log})))
        assert lines.of_pod(trigger.pod)[3:] == []

    def test_a_pod_that_is_deleted_is_told_with_the_last_words_that_could_be_read(
        self, make: Callable[..., PodTrigger], lines: Lines, cluster: PodJobs
    ) -> None:
        script = "trap 'echo last words; sleep 3; exit 0' TERM; echo up; while true; do sleep 0.1; done"
        trigger = make(script, pod={"grace_s": 20}, log_interval_s=60.0)
        (told,) = watch(trigger, after_s=4, then=lambda: cluster.delete(trigger.pod))
        assert told.end is PodEnd.DELETED
        assert lines.of_pod(trigger.pod) == ["up", "last words"]

    def test_a_pod_that_vanishes_is_an_event(self, make: Callable[..., PodTrigger], cluster: PodJobs) -> None:
        trigger = make("sleep 300")
        (told,) = watch(trigger, after_s=3, then=lambda: cluster.delete(trigger.pod, grace_s=0))
        assert (told.end, told.gone) == (PodEnd.DELETED, True)

    def test_pods_that_obey_an_eviction_at_once_are_told_as_evicted(
        self, make: Callable[..., PodTrigger], cluster: PodJobs
    ) -> None:
        script = "trap 'exit 0' TERM; while true; do sleep 0.1; done"
        triggers = [make(script, pod={"grace_s": 30}, poll_interval_s=8.0) for _ in range(4)]

        def happens() -> None:
            for each in triggers:
                until(lambda name=each.pod: (found := cluster.look(name)) and found.phase == "Running")  # type: ignore[misc]
                evict(cluster, each.pod)

        told = watch(*triggers, after_s=0.5, then=happens)
        assert [(each.end, each.exit_code) for each in told] == [(PodEnd.EVICTED, 0)] * 4

    def test_a_pod_that_succeeded_and_was_deleted_between_two_lists_is_a_success(
        self, make: Callable[..., PodTrigger], cluster: PodJobs
    ) -> None:
        trigger = make(f"sleep 1; echo '{TOLD}' > /dev/termination-log", poll_interval_s=10.0)

        def happens() -> None:
            until(lambda: (found := cluster.look(trigger.pod)) and found.phase == "Succeeded")
            cluster.delete(trigger.pod)
            until(lambda: cluster.look(trigger.pod) is None)

        (told,) = watch(trigger, after_s=0.5, then=happens)
        assert (told.end, told.exit_code) == (PodEnd.SUCCEEDED, 0)
        assert told.told is not None
        assert told.told.state == "succeeded"

    def test_no_room_is_logged_as_it_changes_and_ends_with_the_time_for_it(
        self, make: Callable[..., PodTrigger], lines: Lines
    ) -> None:
        trigger = make("true", pod={"resources": {"limits": {"nvidia.com/gpu": "99"}}}, limits={"capacity_timeout_s": 4})
        (told,) = watch(trigger)
        assert told.end is PodEnd.NO_ROOM
        assert len([each for each in lines.of[trigger.pod] if "Insufficient nvidia.com/gpu" in each]) == 1

    def test_the_deadline_is_an_event_and_the_pod_is_left_to_the_operator(
        self, make: Callable[..., PodTrigger], lines: Lines, cluster: PodJobs
    ) -> None:
        trigger = make("echo up; sleep 300", limits={"deadline": time.time() + 4})
        (told,) = watch(trigger)
        assert told.end is PodEnd.DEADLINE
        assert lines.of_pod(trigger.pod) == ["up"]
        assert cluster.look(trigger.pod) is not None

    @pytest.mark.parametrize(
        ("state", "leave_running", "stays"),
        [
            ("failed", [], False),
            ("success", [], False),
            ("success", ["success"], True),
            (None, ["clear"], True),
            ("deferred", [], True),
        ],
    )
    def test_a_mark_deletes_the_pod_unless_it_is_to_be_left(
        self,
        make: Callable[..., PodTrigger],
        cluster: PodJobs,
        monkeypatch: pytest.MonkeyPatch,
        state: str | None,
        leave_running: list[str],
        stays: bool,
    ) -> None:
        trigger = make("sleep 300", leave_running=leave_running)

        async def told(*_: object) -> str | None:
            return state

        monkeypatch.setattr(module, "task_state", told)
        asyncio.run(trigger.on_kill())
        if stays:
            assert (found := cluster.look(trigger.pod)) is not None
            assert found.deleted_at is None
        else:
            until(lambda: cluster.look(trigger.pod) is None)


def quick(server: Answers, **options: Any) -> PodTrigger:
    given: dict[str, Any] = {"pod": "a", "namespace": "n", "uid": "u", "poll_interval_s": 0.1, "log_interval_s": 0.1}
    return PodTrigger(**(given | options))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    """A server that answers what it is told, reached by whatever asks for a client."""
    from airflow_ml_provider.triggers import pod_poller

    with Answers() as server:
        monkeypatch.setattr(pod_poller, "connected", lambda *_: server.jobs(timeout_s=0.5))
        yield server


def test_a_server_that_is_away_longer_than_the_patience_is_an_event(server: Answers) -> None:
    server.prepared = [(503, b"")]
    (told,) = watch(quick(server, limits={"patience_s": 1.0}))
    assert (told.end, told.pod, told.namespace) == (PodEnd.UNREACHABLE, "a", "n")


def test_a_server_that_hangs_is_borne_within_the_patience(server: Answers) -> None:
    pod = {"metadata": {"name": "a", "namespace": "n", "uid": "u", "labels": {}}, "status": {"phase": "Succeeded"}}
    ended = {"name": "base", "state": {"terminated": {"exitCode": 0, "finishedAt": "2030-01-01T00:00:00Z"}}}
    pod["status"]["containerStatuses"] = [ended]  # type: ignore[index]

    def hangs() -> Any:
        time.sleep(1.0)
        return 200, {"items": []}

    server.prepared = [hangs, hangs, (200, {"items": [pod]}), (200, b"2030-01-01T00:00:00Z x\n")]
    (told,) = watch(quick(server, limits={"patience_s": 30}))
    assert told.end is PodEnd.SUCCEEDED


def test_a_pod_that_is_missing_from_the_list_is_asked_for_by_its_name(server: Answers) -> None:
    def answer() -> Any:
        return status(404, "not found", "NotFound") if server.asked[-1][1].endswith("/pods/a") else (200, {"items": []})

    server.prepared = [answer]
    (told,) = watch(quick(server, log_interval_s=None))
    assert told.end is PodEnd.DELETED
    assert server.asked[0][2]["labelSelector"] == ["airflow-ml/managed=true,!airflow-ml/read"]
    assert server.asked[1][1].endswith("/pods/a")


def test_a_pod_whose_past_is_not_told_is_gone_all_the_same(server: Answers) -> None:
    def answer() -> Any:
        _, path, query, _ = server.asked[-1]
        if "watch" in query:
            return (503, b"")
        return status(404, "not found", "NotFound") if path.endswith("/pods/a") else (200, {"items": []})

    server.prepared = [answer]
    (told,) = watch(quick(server, log_interval_s=None, cursor={"version": "7"}))
    assert (told.end, told.gone) == (PodEnd.DELETED, True)
    assert any(each[2].get("resourceVersion") == ["7"] for each in server.asked)


@pytest.mark.parametrize(
    ("events", "end", "asked"),
    [((200, {"items": [NO_MOUNT]}), PodEnd.CONFIG, 2), (status(403, "events is forbidden"), PodEnd.DEADLINE, 1)],
)
def test_a_pod_that_is_long_being_made_is_asked_for_its_events(
    server: Answers, monkeypatch: pytest.MonkeyPatch, events: Any, end: PodEnd, asked: int
) -> None:
    monkeypatch.setattr(pods, "EVENTS_EVERY_S", 0.4)
    monkeypatch.setattr(pods, "GRACE_S", 0.3)
    making(server, events)
    (told,) = watch(quick(server, limits={"startup_timeout_s": 1e9, "deadline": time.time() + 3}))
    assert told.end is end
    assert ('secret "s" not found' in told.message) is (end is PodEnd.CONFIG)
    assert sum(each[1].endswith("/events") for each in server.asked) == asked


def test_a_missing_connection_is_an_event_after_the_patience() -> None:
    (told,) = watch(PodTrigger(pod="a", access={"conn_id": "missing"}, poll_interval_s=0.1, limits={"patience_s": 0.5}))
    assert told.end is PodEnd.UNREACHABLE
    assert "missing" in told.message


def test_what_is_stored_makes_the_same_trigger_and_holds_no_secret() -> None:
    os.environ.pop("AIRFLOW_CONN_K", None)
    trigger = PodTrigger(
        pod="a",
        namespace="n",
        uid="u",
        access={"conn_id": "k", "config_file": "/etc/kube"},
        sidecar="s",
        limits={"deadline": 1.5, "patience_s": 7},
        cursor={"since": "2030-01-01T00:00:00"},
        leave_running=("clear",),
    )
    path, arguments = trigger.serialize()
    assert path == "airflow_ml_provider.triggers.pods.PodTrigger"
    assert json.loads(json.dumps(arguments)) == arguments
    assert PodTrigger(**arguments).serialize() == (path, arguments)


def test_a_row_of_an_older_release_still_makes_a_trigger() -> None:
    arguments = PodTrigger(pod="a").serialize()[1]
    for name in set(arguments) - {"pod"}:
        fewer = {key: value for key, value in arguments.items() if key != name}
        assert PodTrigger(**fewer).serialize()[1] == arguments


def test_limits_of_a_newer_release_are_not_in_the_way(server: Answers) -> None:
    server.prepared = [(503, b"")]
    (told,) = watch(quick(server, limits={"patience_s": 0.3, "of_tomorrow": 1}))
    assert told.end is PodEnd.UNREACHABLE


def test_a_cancelled_trigger_ends_at_once_and_deletes_nothing(server: Answers) -> None:
    server.prepared = [(503, b"")]

    async def main() -> None:
        task = asyncio.create_task(events_of(quick(server)))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.3)

    asyncio.run(main())
    assert PodPoller._all == {}
    assert {each[0] for each in server.asked} == {"GET"}
