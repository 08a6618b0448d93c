"""One request a call, and what its answer means: against a server that answers what it is told, and against a real cluster."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_ml_provider.core.pod_adoption import MANAGED, READ
from airflow_ml_provider.core.pod_log import LogCursor
from airflow_ml_provider.exceptions import (
    AirflowMLError,
    ConfigError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    UnauthorizedError,
)
from airflow_ml_provider.hooks.kubernetes import ConflictError, KubernetesAccess
from airflow_ml_provider.jobs.pods import PodJobs, QuotaExceededError
from tests.jobs.pods_cluster import Answers, busybox, cluster_pods, on_cluster, status, until

POD = {"metadata": {"name": "a", "namespace": "n", "uid": "u"}, "spec": {}, "status": {"phase": "Running"}}
CALLS: dict[str, Callable[[PodJobs], Any]] = {
    "create": lambda jobs: jobs.create({"metadata": {"name": "a"}}),
    "look": lambda jobs: jobs.look("a"),
    "find": lambda jobs: jobs.find({"l": "v"}),
    "delete": lambda jobs: jobs.delete("a", uid="u"),
    "read_log": lambda jobs: jobs.read_log("a", "base", LogCursor()),
    "label": lambda jobs: jobs.label("a", {"l": "v"}),
}


@pytest.fixture
def server() -> Iterator[Answers]:
    with Answers() as server:
        yield server


@pytest.fixture
def asked(server: Answers) -> Iterator[PodJobs]:
    jobs = server.jobs()
    yield jobs
    jobs.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (status(400, "no"), ConfigError),
        (status(401, "Unauthorized"), UnauthorizedError),
        (status(403, 'pods is forbidden: User "x" cannot do that'), ConfigError),
        (status(413, "too large"), ConfigError),
        (status(422, "spec.containers: Required value"), ConfigError),
        (status(429, "slow down"), RemoteUnavailableError),
        (status(500, "etcd is away"), RemoteUnavailableError),
        (status(503, "starting"), RemoteUnavailableError),
        ((504, b"<html>gateway</html>"), RemoteUnavailableError),
        ((0, b""), RemoteUnavailableError),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_an_error_is_told_by_its_remedy_in_the_servers_words_after_one_request(
    server: Answers, asked: PodJobs, call: str, answer: Any, error: type[AirflowMLError]
) -> None:
    server.prepared = [answer]
    with pytest.raises(error) as caught:
        CALLS[call](asked)
    assert type(caught.value) is error
    assert len(server.asked) == 1
    assert "t0ken" not in str(caught.value)
    if isinstance(answer[1], dict):
        assert answer[1]["message"] in str(caught.value)
        assert caught.value.status == answer[0]


@pytest.mark.parametrize("call", CALLS)
def test_a_server_that_hangs_is_away_after_one_timeout(server: Answers, call: str) -> None:
    server.prepared = [lambda: (time.sleep(1.0), (200, POD))[1]]
    jobs = server.jobs(timeout_s=0.2)
    with pytest.raises(RemoteUnavailableError):
        CALLS[call](jobs)
    assert len(server.asked) == 1
    jobs.close()


def test_it_is_known_of_an_error_whether_the_request_was_sent(server: Answers, asked: PodJobs) -> None:
    for answer, sent in ((status(429, "slow down"), False), (status(500, "x"), True), ((0, b""), True)):
        server.prepared = [answer]
        with pytest.raises(RemoteUnavailableError) as caught:
            asked.create({"metadata": {"name": "a"}})
        assert caught.value.sent is sent
    nobody = Answers()
    nobody.server.server_close()
    with pytest.raises(RemoteUnavailableError) as caught:
        nobody.jobs().look("a")
    assert not caught.value.sent


def test_a_page_of_a_proxy_is_no_pod(server: Answers, asked: PodJobs) -> None:
    server.prepared = [(200, b"<html>please log in</html>")]
    with pytest.raises(RemoteUnavailableError, match="please log in"):
        asked.look("a")


def test_a_full_quota_has_an_error_of_its_own_and_a_quota_that_wants_more_words_has_not(server: Answers, asked: PodJobs) -> None:
    server.prepared = [status(403, 'pods "a" is forbidden: exceeded quota: q, requested: requests.nvidia.com/gpu=5', "Forbidden")]
    with pytest.raises(QuotaExceededError, match=r"requested: requests\.nvidia\.com/gpu=5"):
        asked.create({"metadata": {"name": "a"}})
    server.prepared = [status(403, 'pods "a" is forbidden: failed quota: q: must specify cpu', "Forbidden")]
    with pytest.raises(ConfigError, match="must specify cpu"):
        asked.create({"metadata": {"name": "a"}})


def test_a_create_of_what_exists_gives_what_exists(server: Answers, asked: PodJobs) -> None:
    server.prepared = [status(409, 'pods "a" already exists', "AlreadyExists"), (200, POD)]
    assert asked.create({"metadata": {"name": "a"}}).uid == "u"
    assert [each[0] for each in server.asked] == ["POST", "GET"]
    server.prepared = [status(409, 'pods "a" already exists', "AlreadyExists"), status(404, "gone", "NotFound")]
    with pytest.raises(RemoteUnavailableError, match="gone since"):
        asked.create({"metadata": {"name": "a"}})


def test_two_creates_that_meet_at_the_quota_are_worth_a_repetition(server: Answers, asked: PodJobs) -> None:
    server.prepared = [status(409, "Operation cannot be fulfilled on resourcequotas: the object has been modified", "Conflict")]
    with pytest.raises(ConflictError) as caught:
        asked.create({"metadata": {"name": "a"}})
    assert isinstance(caught.value, RemoteUnavailableError)
    assert len(server.asked) == 1


def test_a_list_is_read_page_by_page_and_a_cheap_one_says_so(server: Answers, asked: PodJobs) -> None:
    server.prepared = [(200, {"metadata": {"continue": "next"}, "items": [POD]}), (200, {"metadata": {}, "items": [POD]})]
    assert len(asked.find({"l": "v"}, without=["gone"], fresh=False)) == 2
    first, second = (each[2] for each in server.asked)
    assert first == {"labelSelector": ["l=v,!gone"], "limit": ["250"], "resourceVersion": ["0"]}
    assert second == {"labelSelector": ["l=v,!gone"], "limit": ["250"], "continue": ["next"]}


def events(*kinds: str) -> bytes:
    return b"".join(json.dumps({"type": each, "object": POD}).encode() + b"\n" for each in kinds)


def test_how_a_pod_went_is_asked_for_from_where_it_was_seen_last(server: Answers, asked: PodJobs) -> None:
    assert asked.since("a", "") == []
    assert server.asked == []
    server.prepared = [(200, events("MODIFIED", "DELETED", "ADDED"))]
    assert [each.uid for each in asked.since("a", "7")] == ["u", "u"], "what came after it was deleted is another pod"
    assert server.asked[0][2] == {
        "watch": ["true"],
        "fieldSelector": ["metadata.name=a"],
        "resourceVersion": ["7"],
        "timeoutSeconds": ["1"],
    }


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (status(403, 'User "x" cannot watch resource "pods"'), "cannot watch resource"),
        (status(410, "too old resource version: 7 (9)", "Expired"), "too old resource version"),
        (
            (200, json.dumps({"type": "ERROR", "object": {"code": 410, "message": "too old: 7 (9)"}}).encode() + b"\n"),
            "too old: 7",
        ),
        (status(503, "starting"), "starting"),
        ((200, b"<html>please log in</html>\n"), ""),
        ((200, b"[]\n"), ""),
        ((200, b'{"kind": "PodList"}\n'), "'type'"),
        ((0, b""), "was not answered"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, tuple) else "",
)
def test_how_a_pod_went_is_worth_no_error_and_one_line(
    server: Answers, asked: PodJobs, caplog: pytest.LogCaptureFixture, answer: Any, why: str
) -> None:
    server.prepared = [answer]
    with caplog.at_level(logging.INFO, logger="airflow_ml_provider.jobs.pods"):
        assert [asked.since("a", "7"), asked.since("b", "7")] == [[], []]
    assert len(server.asked) == 2
    (line,) = caplog.messages
    assert "How pod a went is not known" in line
    assert why in line


@pytest.mark.parametrize("uid", ["u", ""])
def test_a_delete_of_what_is_gone_or_another_is_no_error(server: Answers, asked: PodJobs, uid: str) -> None:
    server.prepared = [status(404, "not found", "NotFound")]
    asked.delete("a", uid=uid, grace_s=0)
    assert server.asked[-1][3] == {"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0} | (
        {"preconditions": {"uid": "u"}} if uid else {}
    )
    server.prepared = [status(409, "Precondition failed: UID in precondition: u, UID in object meta: v", "Conflict")]
    if uid:
        asked.delete("a", uid=uid)
    else:
        with pytest.raises(ConflictError):
            asked.delete("a")


def test_a_log_that_has_not_begun_is_empty_and_one_that_cannot_begin_is_an_error(server: Answers, asked: PodJobs) -> None:
    server.prepared = [status(400, 'container "base" in pod "a" is waiting to start: ContainerCreating', "BadRequest")]
    assert asked.read_log("a", "base", LogCursor()) == b""
    server.prepared = [status(400, "container nope is not valid for pod a", "BadRequest")]
    with pytest.raises(ConfigError, match="not valid"):
        asked.read_log("a", "nope", LogCursor())
    server.prepared = [status(404, 'pods "a" not found', "NotFound")]
    with pytest.raises(RemoteNotFoundError):
        asked.read_log("a", "base", LogCursor())
    server.prepared = [(200, b"2030-01-01T00:00:00Z x\n")]
    asked.read_log("a", "base", LogCursor(since="2030-01-01T00:00:00", limit_bytes=1))
    assert server.asked[-1][2] == {
        "container": ["base"],
        "timestamps": ["true"],
        "sinceTime": ["2030-01-01T00:00:00Z"],
        "limitBytes": ["1"],
    }


def test_a_log_whose_second_is_more_than_a_reading_is_read_in_pieces(server: Answers, asked: PodJobs) -> None:
    server.prepared = [(200, b"".join(b"2030-01-01T00:00:00.%09dZ %d\n" % (each, each) for each in range(20_000)))]
    stuck = LogCursor(since="2030-01-01T00:00:00", limit_bytes=1, stuck=True)
    lines, cursor = asked.read_lines("a", "base", stuck, complete=True)
    assert lines == [str(each) for each in range(20_000)]
    assert (cursor.taken, cursor.behind, cursor.stuck) == (20_000, False, False)
    assert "limitBytes" not in server.asked[-1][2]
    server.prepared = [(200, b"2030-01-01T00:00:00Z x\n")]
    assert asked.read_lines("a", "base", LogCursor())[0] == ["x"]
    assert "limitBytes" in server.asked[-1][2]


def test_credentials_that_cannot_be_renewed_are_a_reason_to_wait(server: Answers, asked: PodJobs) -> None:
    def renew(_: object) -> None:
        raise OSError("no such program: get-token")

    asked.api.client.configuration.refresh_api_key_hook = renew
    with pytest.raises(RemoteUnavailableError, match="get-token") as caught:
        asked.look("a")
    assert not caught.value.sent
    assert server.asked == []


def test_the_way_to_a_cluster_is_a_value_without_secrets() -> None:
    way = KubernetesAccess(conn_id="k", cluster_context="c")
    assert KubernetesAccess.model_validate(way.model_dump(mode="json")) == way
    assert hash(way) == hash(way.model_copy())


@pytest.mark.parametrize(
    ("way", "why"),
    [
        (KubernetesAccess(conn_id="nowhere"), "connection 'nowhere'"),
        (KubernetesAccess(conn_id=None, config_file="/no/such/file"), "kubeconfig '/no/such/file'"),
        (KubernetesAccess(conn_id=None, in_cluster=True), "Service host/port is not set"),
    ],
    ids=["connection", "file", "cluster"],
)
def test_a_cluster_that_is_not_configured_is_told_with_its_remedy(
    way: KubernetesAccess, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigError, match=why) as caught:
        way.client()
    assert "airflow connections add" in str(caught.value)


@pytest.fixture(scope="module")
def jobs() -> Iterator[PodJobs]:
    with cluster_pods() as jobs:
        yield jobs


@on_cluster
class TestRealCluster:
    def test_a_pod_from_its_making_to_its_end(self, jobs: PodJobs, unique: str) -> None:
        name = f"a{unique[-8:]}"
        body = busybox("for i in 1 2 3; do echo line $i; done", name=name, labels={MANAGED: name})
        made = jobs.create(body)
        assert (made.name, made.phase) == (name, "Pending")
        assert jobs.create(body).uid == made.uid, "a repeated create makes no second pod"
        with pytest.raises(ConfigError, match="not valid for pod"):
            jobs.read_log(name, "nope", LogCursor())
        until(lambda: (found := jobs.look(name)) and found.phase == "Succeeded")
        assert [each.split(b" ", 1)[1] for each in jobs.read_log(name, "base", LogCursor()).splitlines()] == [
            b"line 1",
            b"line 2",
            b"line 3",
        ]
        assert len(jobs.read_log(name, "base", LogCursor(limit_bytes=10))) == 10
        assert [each.uid for each in jobs.find({MANAGED: name})] == [made.uid]
        assert not jobs.label(name, {READ: "true"}, uid="another")
        assert jobs.label(name, {READ: "true"}, uid=made.uid)
        assert jobs.find({MANAGED: name}, without=[READ]) == []
        jobs.delete(name, uid="another")
        assert jobs.look(name) is not None
        jobs.delete(name, uid=made.uid)
        until(lambda: jobs.look(name) is None)
        jobs.delete(name)
        assert not jobs.label(name, {READ: "true"})
        with pytest.raises(RemoteNotFoundError):
            jobs.read_log(name, "base", LogCursor())

    def test_a_followed_log_comes_while_it_is_written_and_ends_with_the_container(self, jobs: PodJobs, unique: str) -> None:
        name = f"a{unique[-8:]}"
        jobs.create(busybox("echo one; sleep 2; echo two", name=name))
        until(lambda: jobs.read_log(name, "base", LogCursor()))
        with jobs.follow_log(name, "base", LogCursor()) as response:
            pieces = [piece for piece in response.stream(65536) if piece]
        assert b"".join(pieces).count(b"\n") == 2
        assert len(pieces) == 2
        jobs.delete(name, grace_s=0)

    def test_what_is_wrong_with_a_pod_is_told_in_the_words_of_the_server(self, jobs: PodJobs) -> None:
        with pytest.raises(ConfigError, match="image: Required value"):
            jobs.create(busybox("true", image=""))
        with pytest.raises(ConfigError, match='namespaces "nowhere" not found'):
            PodJobs(access_client(jobs), "nowhere").create(busybox("true"))

    def test_another_client_of_the_same_cluster_shares_no_connection(self, jobs: PodJobs) -> None:
        other = jobs.again(timeout_s=3)
        assert other.find({"no": "such"}) == []
        assert other.api.client.rest_client.pool_manager is not jobs.api.client.rest_client.pool_manager
        other.close()


def access_client(jobs: PodJobs) -> Any:
    from kubernetes.client import CoreV1Api

    return CoreV1Api(jobs.api.client)
