"""The hook and its JSON client, against the fake server."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from kfp_server_api import RunServiceApi

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError, UnauthorizedError
from airflow_ml_provider.hooks.kfp import KfpApi, KfpHook, filter_text
from airflow_ml_provider.hooks.kfp_server import BearerAuth, KfpServer, UserHeaderAuth
from airflow_ml_provider.testing import FakeKfpServer
from tests.hooks.kfp_local import Asked, LocalServer, Reply, page
from tests.servers import free_port

RUNS = "/apis/v2beta1/runs"
EXPERIMENTS = "/apis/v2beta1/experiments"
SPEC = {
    "components": {},
    "deploymentSpec": {},
    "pipelineInfo": {"name": "p"},
    "root": {"dag": {"tasks": {}}},
    "schemaVersion": "2.1.0",
    "sdkVersion": "kfp-2.17.0",
}


def hook(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> KfpHook:
    monkeypatch.setenv("AIRFLOW_CONN_SERVER", json.dumps({"conn_type": "kfp", **fields}))
    return KfpHook("server")


def named(name: str, operation: str = "EQUALS") -> dict[str, Any]:
    return {"key": "display_name", "operation": operation, "string_value": name}


class TestTheConnection:
    def test_a_missing_one_says_how_to_add_it(self) -> None:
        with pytest.raises(ConfigError, match="airflow connections add nowhere --conn-type kfp"):
            KfpHook("nowhere").server()

    def test_it_is_read_from_what_airflow_has(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = hook(monkeypatch, host="http://h:1", password="t", extra={"namespace": "team-a"})
        assert made.server() == KfpServer("server", "http://h:1", "team-a", auth=BearerAuth(token="t"))

    def test_a_broken_extra_is_not_taken_for_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigError, match="not valid JSON"):
            hook(monkeypatch, host="http://h:1", extra='{"auth": "dex"').server()

    def test_without_the_client_package_the_remedy_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "airflow_ml_provider.hooks.kfp_client", None)
        works, message = hook(monkeypatch, host="http://h:1").test_connection()
        assert not works
        assert "Install airflow-ml-provider[kfp]" in message

    def test_the_generated_methods_use_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with FakeKfpServer(tokens=["good"]) as server:
            with hook(monkeypatch, host=server.url, password="good").get_conn() as client:
                assert RunServiceApi(client).run_service_list_runs().runs is None
            with hook(monkeypatch, host=server.url, password="bad").get_conn() as client, pytest.raises(UnauthorizedError):
                RunServiceApi(client).run_service_list_runs()


class TestTheTestButton:
    def test_it_names_the_version_of_a_server_that_answers(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with FakeKfpServer() as server:
            works, message = hook(monkeypatch, host=server.url).test_connection()
            assert [each.path for each in server.requests] == ["/apis/v2beta1/healthz", RUNS]
        assert works, message
        assert message.startswith("Kubeflow Pipelines 2.")
        assert message.endswith("answers.")

    def test_it_asks_for_what_needs_rights(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with FakeKfpServer(multi_user=True, tokens={"t": "alice"}, rights={"alice": ["team-a"]}) as server:
            right = hook(monkeypatch, host=server.url, password="t", extra={"namespace": "team-a"}).test_connection()
            assert right[0], right[1]
            assert "lets us list runs in namespace 'team-a'" in right[1]
            other = hook(monkeypatch, host=server.url, password="t", extra={"namespace": "team-b"}).test_connection()
            assert not other[0]
            assert "lacks the right" in other[1]
            nobody = hook(monkeypatch, host=server.url, password="x", extra={"namespace": "team-a"}).test_connection()
            assert not nobody[0]
            assert "Check the connection's credentials" in nobody[1]
            nowhere = hook(monkeypatch, host=server.url, password="t").test_connection()
            assert not nowhere[0]
            assert "set the connection's namespace" in nowhere[1]

    def test_it_tells_an_outage_of_kubernetes_from_a_bad_token(self, monkeypatch: pytest.MonkeyPatch) -> None:
        message = "Failed to review the token provided: Post tokenreviews: dial tcp: connect: connection refused"
        refusal = Reply(401, json.dumps({"code": 16, "message": message}))
        health = Reply(200, '{"multi_user": true}')
        with LocalServer(lambda asked: health if "healthz" in asked.path else refusal) as server:
            works, said = hook(monkeypatch, host=server.url, password="t", extra={"namespace": "a"}).test_connection()
        assert not works
        assert "an outage there, not a bad token" in said

    @pytest.mark.parametrize(
        ("reply", "words"), [(page("Kubeflow"), "often /pipeline"), (Reply(404, "404 page not found"), "often /pipeline")]
    )
    def test_it_tells_another_site(self, reply: Reply, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
        with LocalServer(lambda _: reply) as server:
            works, said = hook(monkeypatch, host=server.url).test_connection()
        assert not works
        assert words in said

    def test_it_tells_a_dead_server_and_an_unusable_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        works, message = hook(monkeypatch, host=f"http://127.0.0.1:{free_port()}").test_connection()
        assert not works
        assert "Check that the server runs" in message
        assert hook(monkeypatch, host="http://h", extra={"namspace": "a"}).test_connection() == (
            False,
            "connection 'server' has an unknown extra 'namspace'. Did you mean 'namespace'?",
        )


class TestTheClient:
    def test_json_goes_in_and_comes_out(self) -> None:
        with FakeKfpServer() as server, KfpApi(KfpServer("c", server.url), Settings()) as api:
            assert api.get(EXPERIMENTS, page_size=5, namespace=None)["experiments"]
            made = api.post(EXPERIMENTS, {"display_name": "größer"})
            assert api.get(f"{EXPERIMENTS}/{made['experiment_id']}")["display_name"] == "größer"
            assert api.delete(f"{EXPERIMENTS}/{made['experiment_id']}") == {}
            with pytest.raises(RemoteNotFoundError) as caught:
                api.get(f"{EXPERIMENTS}/{made['experiment_id']}")
        assert caught.value.status == 404

    def test_an_upload_arrives(self) -> None:
        with FakeKfpServer() as server, KfpApi(KfpServer("c", server.url), Settings()) as api:
            made = api.upload("/apis/v2beta1/pipelines/upload", json.dumps(SPEC).encode(), "p.yaml", name="churn")
            assert api.get(f"/apis/v2beta1/pipelines/{made['pipeline_id']}")["display_name"] == "churn"
            with pytest.raises(ConfigError) as caught:
                api.upload("/apis/v2beta1/pipelines/upload", json.dumps(SPEC).encode(), "p.yaml", name="churn")
        assert caught.value.status == 409

    def test_a_user_header_is_enough_where_the_server_believes_it(self) -> None:
        with FakeKfpServer(multi_user=True, rights={"alice": ["team-a"]}) as server:
            with KfpApi(KfpServer("c", server.url, "team-a", auth=UserHeaderAuth("alice")), Settings()) as api:
                assert api.get(RUNS, namespace="team-a") == {}
            with KfpApi(KfpServer("c", server.url, "team-a"), Settings()) as api, pytest.raises(UnauthorizedError):
                api.get(RUNS, namespace="team-a")

    def test_a_server_that_comes_back_answers_the_same_client(self) -> None:
        with FakeKfpServer() as server, KfpApi(KfpServer("c", server.url), Settings(http_retries=0)) as api:
            api.get(RUNS)
            server.down()
            with pytest.raises(RemoteUnavailableError):
                api.get(RUNS)
            server.up()
            assert api.get(RUNS) == {}


class TestFilters:
    @pytest.mark.parametrize(
        "name", ["plain", "100% sure", "a+b", "%41", "50%25", "a & b = c?#/", '"quoted" \\ back', "größe", "line\nend", "+%2B "]
    )
    def test_a_name_finds_itself_and_nothing_else(self, name: str) -> None:
        with FakeKfpServer() as server, KfpApi(KfpServer("c", server.url), Settings(http_retries=0)) as api:
            for each in (name, "another"):
                api.post(EXPERIMENTS, {"display_name": each})
            found = api.get(EXPERIMENTS, filter=filter_text([named(name)]))
            assert [each["display_name"] for each in found["experiments"]] == [name]

    def test_predicates_are_joined(self) -> None:
        assert json.loads(filter_text([named("a"), named("b", "NOT_EQUALS")])) == {
            "predicates": [named("a"), named("b", "NOT_EQUALS")]
        }
        assert filter_text([named("a%b+c")]).count("a%25b%2Bc") == 1


class TestLists:
    def test_a_page_that_leads_to_itself_is_an_error(self) -> None:
        again = Reply(200, json.dumps({"runs": [{"run_id": "a"}], "next_page_token": "same"}))
        with (
            LocalServer(lambda _: again) as server,
            KfpApi(KfpServer("c", server.url), Settings(http_retries=0)) as api,
            pytest.raises(RemoteUnavailableError, match=r"same page token of /apis/v2beta1/runs twice \('same'"),
        ):
            list(zip(range(50), api.items(RUNS, "runs", []), strict=False))
        assert len(server.asked) == 2

    def test_a_page_is_as_large_as_its_items_allow(self) -> None:
        sizes = iter([4_000_000, 1_000_000, 10, 10, 10, 10])

        def reply(asked: Asked) -> Reply:
            token = str(int(asked.query.get("page_token", "0")) + 1)
            return Reply(200, json.dumps({"runs": [{"a": "x" * next(sizes)}], "next_page_token": "" if token == "6" else token}))

        with LocalServer(reply) as server, KfpApi(KfpServer("c", server.url), Settings(http_retries=0)) as api:
            assert len(list(api.items(RUNS, "runs", []))) == 6
            assert (api.pages, api.page_size(RUNS), api.page_size(EXPERIMENTS)) == (6, 63, 25)
        assert [int(each.query["page_size"]) for each in server.asked] == [25, 1, 3, 7, 15, 31]

    def test_what_is_left_out_is_left_out_at_every_depth_and_only_where_asked(self) -> None:
        answer = Reply(200, json.dumps({"runs": [{"run_id": "a", "big": [1], "in": {"big": 2, "b": 3}}]}))
        with LocalServer(lambda _: answer) as server, KfpApi(KfpServer("c", server.url), Settings(http_retries=0)) as api:
            assert list(api.items(RUNS, "runs", [], leave_out=["big"])) == [{"run_id": "a", "in": {"b": 3}}]
            assert list(api.items(RUNS, "runs", [])) == [{"run_id": "a", "big": [1], "in": {"big": 2, "b": 3}}]

    @pytest.mark.parametrize("body", ["", "[]", "null", '{"runs": ['])
    def test_a_list_that_is_no_json_object_is_no_empty_list(self, body: str) -> None:
        with (
            LocalServer(lambda _: Reply(200, body)) as server,
            KfpApi(KfpServer("c", server.url), Settings(http_retries=0)) as api,
            pytest.raises(RemoteUnavailableError, match="no JSON object") as caught,
        ):
            list(api.items(RUNS, "runs", []))
        assert caught.value.status == 200
