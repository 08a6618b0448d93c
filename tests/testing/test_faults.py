"""Answers that are lost, late or wrong; a server that goes away; who may ask and how often."""

from __future__ import annotations

import http.client
import threading
import time

import pytest

from airflow_ml_provider.testing import FakeKfpServer
from tests.testing.asking import SPEC, ask, create

LOST = (ConnectionError, http.client.HTTPException)


@pytest.mark.parametrize(
    ("kind", "workflows", "runs"), [("lost-before", 0, 0), ("reset", 0, 0), ("lost-between", 1, 0), ("lost-after", 1, 1)]
)
def test_a_lost_answer_leaves_what_its_name_says(server: FakeKfpServer, kind: str, workflows: int, runs: int) -> None:
    server.fault(kind)
    with pytest.raises(LOST):
        create(server, "a")
    assert (len(server.workflows), len(server.runs)) == (workflows, runs)
    assert server.requests[-1].status is None


def test_an_orphan_can_come_with_an_answer_of_500(server: FakeKfpServer) -> None:
    server.fault("orphan-500")
    assert create(server, "a")[0] == 500
    assert (len(server.orphans), server.runs) == (1, [])


def create_in_a_hurry(server: FakeKfpServer) -> None:
    ask(server, "POST", "runs", {"display_name": "a", "pipeline_spec": SPEC}, timeout_s=0.1)


def test_a_create_can_be_done_and_answered_too_late(server: FakeKfpServer) -> None:
    server.fault("hang-after")
    with pytest.raises(TimeoutError):
        create_in_a_hurry(server)
    assert (len(server.workflows), len(server.runs)) == (1, 1)


def test_a_hanging_server_does_nothing(server: FakeKfpServer) -> None:
    server.fault("hang", method="POST")
    with pytest.raises(TimeoutError):
        create_in_a_hurry(server)
    assert server.workflows == []


def test_a_slow_server_answers_in_the_end(server: FakeKfpServer) -> None:
    server.fault("slow", seconds=0.1)
    begin = time.monotonic()
    assert ask(server, "GET", "healthz")[0] == 200
    assert time.monotonic() - begin >= 0.1


@pytest.mark.parametrize("status", [401, 404, 429, 500, 503])
def test_any_status_can_be_had_as_often_as_wanted_for_the_path_that_was_named(server: FakeKfpServer, status: int) -> None:
    server.fault(f"status-{status}", method="GET", path="/runs", times=2)
    assert ask(server, "GET", "healthz")[0] == 200
    assert [ask(server, "GET", "runs")[0] for _ in range(3)] == [status, status, 200]
    assert [each.status for each in server.requests] == [200, status, status, 200]


def test_faults_can_be_taken_back(server: FakeKfpServer) -> None:
    server.fault("status-500", times=100)
    server.clear_faults()
    assert ask(server, "GET", "runs")[0] == 200


def test_a_fault_that_is_not_known_is_refused(server: FakeKfpServer) -> None:
    with pytest.raises(ValueError, match="fault 'explode' is not known"):
        server.fault("explode")
    with pytest.raises(ValueError, match="can be lost"):
        server.lose("temper")


def test_down_refuses_connections_and_up_serves_the_same_runs_on_the_same_port(server: FakeKfpServer) -> None:
    create(server, "a")
    url = server.url
    server.down()
    with pytest.raises(ConnectionRefusedError):
        ask(server, "GET", "runs/a")
    server.up()
    assert (ask(server, "GET", "runs/a")[0], server.url) == (200, url)


def test_down_cuts_connections_that_are_open_or_hang(server: FakeKfpServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    connection.request("GET", "/apis/v2beta1/healthz")
    connection.getresponse().read()
    server.fault("hang", method="GET", path="runs")
    caught: list[type[BaseException]] = []

    def hang() -> None:
        try:
            ask(server, "GET", "runs")
        except LOST as lost:
            caught.append(type(lost))

    thread = threading.Thread(target=hang)
    thread.start()
    while len(server.requests) < 2:
        time.sleep(0.005)
    server.down()
    thread.join(5)
    assert len(caught) == 1
    with pytest.raises(LOST):
        read_again(connection)
    connection.close()


def read_again(connection: http.client.HTTPConnection) -> None:
    connection.request("GET", "/apis/v2beta1/healthz")
    connection.getresponse()


def test_latency_holds_every_answer() -> None:
    with FakeKfpServer(latency_s=0.05) as server:
        begin = time.monotonic()
        ask(server, "GET", "healthz")
        assert time.monotonic() - begin >= 0.05


def test_a_multi_user_server_lets_a_burst_pass_and_then_its_rate_healthz_apart() -> None:
    with FakeKfpServer(multi_user=True, requests_per_second=20) as server:
        begin = time.monotonic()
        for _ in range(46):
            ask(server, "GET", "runs", namespace="n", headers={"kubeflow-userid": "a"})
        taken = time.monotonic() - begin
        for _ in range(50):
            ask(server, "GET", "healthz")
        assert 0.25 <= taken < 1.0
        assert time.monotonic() - begin - taken < 0.25


def test_a_single_user_server_holds_up_creates_alone() -> None:
    with FakeKfpServer(requests_per_second=20) as server:
        begin = time.monotonic()
        for _ in range(60):
            ask(server, "GET", "runs")
        assert time.monotonic() - begin < 0.3
        for _ in range(46):
            create(server)
        assert time.monotonic() - begin >= 0.25


def test_a_single_user_server_can_stand_behind_a_gateway_that_asks_for_a_token() -> None:
    with FakeKfpServer(tokens=["good"]) as server:
        asked = {"none": {}, "bad": {"Authorization": "Bearer bad"}, "good": {"Authorization": "Bearer good"}}
        assert [ask(server, "GET", "runs", headers=each)[0] for each in asked.values()] == [401, 401, 200]
        server.refuse_token("good")
        assert ask(server, "GET", "runs", headers=asked["good"])[0] == 401
        assert ask(server, "GET", "healthz")[0] == 200


def test_a_user_sees_the_runs_of_the_namespace_that_was_asked_for() -> None:
    rights = {"ann": ["a"], "bob": {"b": "edit", "a": "view"}}
    with FakeKfpServer(multi_user=True, rights=rights) as server:
        ids = {}
        for user, namespace in (("ann", "a"), ("bob", "b")):
            headers = {"kubeflow-userid": user}
            body = {"display_name": "e", "namespace": namespace}
            ids[namespace] = ask(server, "POST", "experiments", body, headers=headers)[1]["experiment_id"]
        body = {"display_name": "r", "pipeline_spec": SPEC, "experiment_id": ids["a"]}
        assert ask(server, "POST", "runs", body, headers={"kubeflow-userid": "bob"})[0] == 403
        assert ask(server, "POST", "runs", body, headers={"kubeflow-userid": "ann"})[0] == 200
        bob = {"kubeflow-userid": "bob"}
        assert [ask(server, "GET", "runs", headers=bob, namespace=each)[1].get("total_size") for each in "ab"] == [1, None]
        assert [each.namespace for each in server.workflows] == ["a"]
