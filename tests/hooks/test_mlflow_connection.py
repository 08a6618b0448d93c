"""A connection's fields, whichever way Airflow got them, and what is sent to a server because of them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowHook, MlflowServer
from airflow_ml_provider.hooks.mlflow_connection import EXTRAS, read_server
from airflow_ml_provider.tracking import fluent
from tests.hooks.kfp_local import Asked, Authority, LocalServer, Reply, make_authority

SECRET = "s3cret-passw0rd"
ONCE = Settings(http_retries=0, http_timeout_s=10)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


def answers(asked: Asked) -> Reply:
    return Reply(200, "3.17.2" if asked.path.endswith("/version") else '{"experiments": []}')


def hook(monkeypatch: pytest.MonkeyPatch, value: str) -> MlflowHook:
    monkeypatch.setenv("AIRFLOW_CONN_SERVER", value)
    return MlflowHook("server")


def written(monkeypatch: pytest.MonkeyPatch, **fields: Any) -> MlflowHook:
    return hook(monkeypatch, json.dumps({"conn_type": "mlflow", **fields}))


class TestTheFields:
    def test_json_and_uri_give_the_same_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        extra = {"workspace": "team a", "verify_tls": False, "ca_file": "/etc/ca.pem", "ui_url": "https://ml.example.com/ui"}
        as_json = written(monkeypatch, host="https://ml.example.com/base", login="me", password=SECRET, extra=extra).server()
        text = urlencode(extra | {"verify_tls": "false"})
        host = quote("https://ml.example.com/base", safe="")
        as_uri = hook(monkeypatch, f"mlflow://me:{SECRET}@{host}?{text}").server()
        assert as_uri == as_json
        assert as_json.workspace == "team a"
        assert not as_json.verify_tls

    def test_a_plain_uri_is_enough(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert hook(monkeypatch, "mlflow://mlflow:5000").server() == MlflowServer("server", "http://mlflow:5000")

    def test_what_the_form_leaves_empty_counts_as_not_given(self) -> None:
        left = {name: "" if extra.kind == "string" else None for name, extra in EXTRAS.items()}
        assert read_server("c", host="mlflow", extra=json.dumps(left)) == MlflowServer("c", "http://mlflow")

    @pytest.mark.parametrize(
        ("extra", "words"),
        [
            ("no json", "extra is not valid JSON"),
            ("[1]", "extra is a list, but must be a JSON object"),
            ('{"workspaces": "a"}', "unknown extra 'workspaces'. Did you mean 'workspace'"),
            ('{"verify_tls": "maybe"}', "must be true or false"),
            ('{"workspace": "a\\nb"}', "must be a text in one line"),
            ('{"workspace": "gr\\u00fcn"}', "letters outside of ASCII"),
            ('{"pod_url": "http://me:pw@mlflow"}', "pod_url holds credentials"),
            ('{"ui_url": "ftp://mlflow"}', "ui_url 'ftp://mlflow' is not of http or https"),
        ],
    )
    def test_an_extra_that_means_nothing_is_refused(self, extra: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            read_server("c", host="mlflow", extra=extra)

    @pytest.mark.parametrize("login", [{"login": "me"}, {"password": SECRET}])
    def test_two_ways_to_log_in_are_one_too_many(self, login: dict[str, str]) -> None:
        with pytest.raises(ConfigError, match="token_file and login or password are both set") as refused:
            read_server("c", host="mlflow", extra='{"token_file": "/t"}', **login)
        assert SECRET not in str(refused.value)

    def test_secrets_show_in_no_representation(self) -> None:
        server = read_server("c", host="mlflow", login="me", password=SECRET, extra=json.dumps({"proxy": f"http://u:{SECRET}@p"}))
        assert SECRET not in repr(server)


class TestTheRequests:
    def test_a_tokens_file_is_read_for_each_request(self, tmp_path: Path) -> None:
        token = tmp_path / "token"
        with LocalServer(answers) as server, MlflowApi(MlflowServer("c", server.url, token_file=str(token)), ONCE) as api:
            for each in ("first", "second\n"):
                token.write_text(each)
                api.post("experiments/search", {})
            assert [each.headers["authorization"] for each in server.asked] == ["Bearer first", "Bearer second"]

    @pytest.mark.parametrize(("content", "words"), [(None, "No such file"), ("", "holds no token"), ("a\nb", "holds no token")])
    def test_a_file_without_a_token_is_named(self, tmp_path: Path, content: str | None, words: str) -> None:
        if content is not None:
            (tmp_path / "token").write_text(content)
        with LocalServer(answers) as server:
            address = MlflowServer("c", server.url, token_file=str(tmp_path / "token"))
            with MlflowApi(address, ONCE) as api, pytest.raises(ConfigError, match=words):
                api.post("experiments/search", {})
            assert server.asked == []

    def test_the_workspace_goes_with_every_request(self) -> None:
        with LocalServer(answers) as server, MlflowApi(MlflowServer("c", server.url, workspace="team"), ONCE) as api:
            api.post("experiments/search", {})
            api.list_files("1")
            assert {each.headers["x-mlflow-workspace"] for each in server.asked} == {"team"}

    def test_the_environments_proxy_and_netrc_put_nothing_into_a_request(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login other password {SECRET}\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        with LocalServer(answers) as server, MlflowApi(MlflowServer("c", server.url), ONCE) as api:
            api.post("experiments/search", {})
            assert "authorization" not in server.asked[0].headers

    def test_a_server_of_an_unknown_authority_is_refused_and_the_remedy_named(self, authority: Authority) -> None:
        with LocalServer(answers, authority.server) as server:
            with MlflowApi(MlflowServer("c", server.url), ONCE) as api, pytest.raises(RemoteUnavailableError, match="ca_file"):
                api.post("experiments/search", {})
            for trusting in ({"ca_file": str(authority.ca_file)}, {"verify_tls": False}):
                with MlflowApi(MlflowServer("c", server.url, **trusting), ONCE) as api:  # type: ignore[arg-type]
                    assert api.post("experiments/search", {}) == {"experiments": []}

    def test_a_server_that_waits_for_more_where_tls_begins_is_told_as_perhaps_without(self, mlflow_url: str) -> None:
        address = MlflowServer("c", mlflow_url.replace("http:", "https:"))
        hasty = ONCE.model_copy(update={"http_timeout_s": 2})
        with MlflowApi(address, hasty) as api, pytest.raises(RemoteUnavailableError, match="speak TLS there"):
            api.post("experiments/search", {})

    def test_a_proxy_that_is_away_is_told_from_a_server_that_is(self, mlflow_url: str) -> None:
        with LocalServer(answers) as gone:
            proxy = f"http://me:{SECRET}@{gone.url.removeprefix('http://')}"
        behind = MlflowServer("c", mlflow_url, proxy=proxy)
        with MlflowApi(behind, ONCE) as api, pytest.raises(RemoteUnavailableError, match="by way of the proxy 127") as away:
            api.post("experiments/search", {})
        assert SECRET not in str(away.value)
        with MlflowApi(MlflowServer("c", gone.url), ONCE) as api, pytest.raises(RemoteUnavailableError) as away:
            api.post("experiments/search", {})
        assert "proxy" not in str(away.value)

    def test_a_ca_file_that_is_missing_is_named(self) -> None:
        with pytest.raises(ConfigError, match="there is no file '/nowhere/ca"):
            MlflowApi(MlflowServer("c", "https://mlflow", ca_file="/nowhere/ca.pem"), ONCE)


class TestTheTestButton:
    @pytest.mark.parametrize(
        ("status", "body", "words"),
        [
            (403, "Invalid Host header - possible DNS rebinding attack detected", "--allowed-hosts 127.0.0.1"),
            (401, "You are not authenticated", "Check login and password"),
            (404, "<html>nothing here</html>", "no MLflow API below this address"),
            (200, "<html>hello</html>", "not an MLflow server"),
            (503, "busy", "A retry is safe"),
        ],
    )
    def test_tells_what_to_mend(self, monkeypatch: pytest.MonkeyPatch, status: int, body: str, words: str) -> None:
        with LocalServer(lambda _: Reply(status, body)) as server:
            works, message = written(monkeypatch, host=server.url, login="me", password=SECRET).test_connection()
        assert not works
        assert words in message
        assert SECRET not in message

    def test_tells_of_tls_and_of_a_tokens_file(self, monkeypatch: pytest.MonkeyPatch, authority: Authority) -> None:
        with LocalServer(answers, authority.server) as server:
            assert "ca_file" in written(monkeypatch, host=server.url).test_connection()[1]
            trusted = {"ca_file": str(authority.ca_file)}
            assert written(monkeypatch, host=server.url, extra=trusted).test_connection()[0]
            missing = trusted | {"token_file": "/nowhere/token"}
            assert "(token_file) cannot be read" in written(monkeypatch, host=server.url, extra=missing).test_connection()[1]


class TestTheRealClient:
    def test_is_given_what_the_connection_says(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        token = tmp_path / "token"
        token.write_text("t0ken")
        extra = {"token_file": str(token), "workspace": "team", "ca_file": "/etc/ca.pem"}
        found = written(monkeypatch, host="https://x", extra=extra).client_environment(ONCE)
        assert found["MLFLOW_TRACKING_TOKEN"] == "t0ken"
        assert found["MLFLOW_WORKSPACE"] == "team"
        assert found["MLFLOW_TRACKING_SERVER_CERT_PATH"] == "/etc/ca.pem"
        insecure = written(monkeypatch, host="https://x", extra={"verify_tls": False}).client_environment(ONCE)
        assert insecure["MLFLOW_TRACKING_INSECURE_TLS"] == "true"

    def test_sees_nothing_of_another_connection(self, monkeypatch: pytest.MonkeyPatch) -> None:
        others = {
            "MLFLOW_TRACKING_TOKEN": SECRET,
            "MLFLOW_WORKSPACE": "theirs",
            "MLFLOW_TRACKING_AUTH": "kubernetes",
            "MLFLOW_TRACKING_SERVER_CERT_PATH": "/theirs.pem",
        }
        for name, value in others.items():
            monkeypatch.setenv(name, value)
        ours = written(monkeypatch, host="https://x", extra={"verify_tls": False}).client_environment(ONCE)
        with fluent.active_run(ours, "run", "1", 1):
            assert [name for name in others if name in os.environ] == []
            assert os.environ["MLFLOW_TRACKING_INSECURE_TLS"] == "true"
        assert {name: os.environ[name] for name in others} == others
        assert "MLFLOW_TRACKING_INSECURE_TLS" not in os.environ


class TestThePages:
    def test_are_at_the_address_for_people(self) -> None:
        server = MlflowServer("c", "http://mlflow:5000", ui_url="https://ml.example.com/ui")
        assert server.run_page("1", "abc") == "https://ml.example.com/ui/#/experiments/1/runs/abc"
        assert server.page("models", "a/b c") == "https://ml.example.com/ui/#/models/a%2Fb%20c"

    def test_are_of_the_workspace(self) -> None:
        server = MlflowServer("c", "http://mlflow:5000", workspace="team a")
        assert server.run_page("1", "abc") == "http://mlflow:5000/#/experiments/1/runs/abc?workspace=team%20a"
