from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowHook, MlflowServer
from airflow_ml_provider.hooks.mlflow_connection import read_server
from tests.servers import MlflowProcess, free_port

SECRET = "s3cret-passw0rd"


def connection(monkeypatch: pytest.MonkeyPatch, **fields: object) -> MlflowHook:
    monkeypatch.setenv("AIRFLOW_CONN_SERVER", json.dumps({"conn_type": "mlflow", **fields}))
    return MlflowHook("server")


@pytest.mark.parametrize(
    ("host", "port", "schema", "url"),
    [
        ("http://mlflow:5000", None, None, "http://mlflow:5000"),
        ("https://ml.example.com/base/", None, None, "https://ml.example.com/base"),
        ("mlflow", 5000, None, "http://mlflow:5000"),
        ("mlflow", None, "https", "https://mlflow"),
        ("http://mlflow:1", 2, None, "http://mlflow:1"),
    ],
)
def test_the_address_is_built_from_the_fields(host: str, port: int | None, schema: str | None, url: str) -> None:
    assert read_server("c", host=host, port=port, schema=schema).url == url


@pytest.mark.parametrize(
    ("host", "words"),
    [
        (None, "has no host"),
        ("ftp://x", "is not of http or https"),
        (f"http://me:{SECRET}@x", "holds credentials"),
        ("http://h:50OO", "is no URL"),
    ],
)
def test_an_unusable_address_is_refused_without_showing_a_password(host: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        read_server("c", host=host)
    assert SECRET not in str(caught.value)


def test_a_missing_connection_says_how_to_add_it() -> None:
    with pytest.raises(ConfigError, match="airflow connections add nowhere --conn-type mlflow"):
        MlflowHook("nowhere").server()


@pytest.mark.usefixtures("mlflow_connection")
def test_the_test_button_names_the_version_of_a_server_that_answers() -> None:
    works, message = MlflowHook().test_connection()
    assert works, message
    assert message.startswith("MLflow 3.")


def test_the_test_button_tells_a_dead_server(monkeypatch: pytest.MonkeyPatch) -> None:
    works, message = connection(monkeypatch, host=f"http://127.0.0.1:{free_port()}").test_connection()
    assert not works
    assert "Check that the server runs" in message


def test_a_password_never_shows_in_a_representation_or_an_error() -> None:
    server = MlflowServer("c", f"http://127.0.0.1:{free_port()}", "me", SECRET)
    with MlflowApi(server, Settings(http_retries=0)) as api, pytest.raises(RemoteUnavailableError) as caught:
        api.get("experiments/get", experiment_id="0")
    assert SECRET not in repr(server) + str(caught.value)


def test_the_real_client_gets_address_credentials_and_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    basic = connection(monkeypatch, host="http://x:1", login="me", password="p").client_environment(Settings(http_retries=2))
    assert basic["MLFLOW_TRACKING_USERNAME"] == "me"
    assert basic["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "2"
    assert basic["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "120", "a file through the proxy has no other bound"
    bearer = connection(monkeypatch, host="http://x:1", password="token").client_environment(Settings())
    assert bearer["MLFLOW_TRACKING_TOKEN"] == "token"
    assert "MLFLOW_TRACKING_USERNAME" not in bearer


def test_what_does_not_exist_is_told_from_what_cannot_be_read(mlflow_api: MlflowApi, unique: str) -> None:
    with pytest.raises(RemoteNotFoundError):
        mlflow_api.get("registered-models/alias", name=unique, alias="champion")
    mlflow_api.post("registered-models/create", {"name": unique})
    with pytest.raises(RemoteNotFoundError):
        mlflow_api.get("registered-models/alias", name=unique, alias="champion")
    with pytest.raises(ConfigError):
        mlflow_api.post("runs/search", {"filter": "this is no filter"})


def test_a_wrong_host_header_names_the_servers_option(mlflow_server: MlflowServer) -> None:
    port = mlflow_server.url.rpartition(":")[2]
    with MlflowApi(replace(mlflow_server, url=f"http://mlflow.example.com:{port}"), Settings(http_retries=0)) as api:
        api._http.headers["Host"] = f"mlflow.example.com:{port}"
        api._http.base_url = mlflow_server.url  # that name resolves nowhere; what counts is the header
        with pytest.raises(ConfigError, match=f"--allowed-hosts mlflow.example.com:{port}"):
            api.post("experiments/search", {"max_results": 1})


def test_a_page_that_is_not_mlflow_is_told(scripted: Scripted) -> None:
    scripted.answers = [(200, "<html>hello</html>")]
    with pytest.raises(ConfigError, match="not an MLflow server"):
        scripted.api().get("experiments/get", experiment_id="0")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_fault_that_passes_is_repeated(scripted: Scripted, status: int) -> None:
    scripted.answers = [(status, "{}"), (status, "{}"), (200, '{"ok": 1}')]
    assert scripted.api(retries=2).get("x") == {"ok": 1}
    assert len(scripted.requests) == 3


@pytest.mark.parametrize("answer", [(302, ""), (200, "<html>please log in</html>")])
def test_an_upload_that_a_login_page_answers_is_not_stored(scripted: Scripted, answer: tuple[int, str]) -> None:
    scripted.answers = [answer]
    with pytest.raises(ConfigError, match="a proxy or a login page"):
        scripted.api().upload("1/x/artifacts/file", [b"bytes"], 5)


@pytest.mark.parametrize(("login", "password"), [("", "tok\x07en"), ("", "tökén"), ("me\x00", "qzqz")])
def test_credentials_that_cannot_be_sent_are_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, login: str, password: str
) -> None:
    with pytest.raises(ConfigError, match="Enter it again") as caught:
        connection(monkeypatch, host="http://x:1", login=login, password=password).server()
    assert password not in str(caught.value)


def test_a_line_end_after_a_token_is_not_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert connection(monkeypatch, host="http://x:1", password="token\n").server().password == "token"


class Slow(BaseHTTPRequestHandler):
    """An artifact proxy that moves the whole file to or from its store before it answers."""

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        time.sleep(1)
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_PUT = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None: ...


def test_a_proxy_that_answers_late_is_waited_for_with_files_only() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = MlflowServer("c", f"http://127.0.0.1:{server.server_port}")
        with MlflowApi(address, Settings(http_timeout_s=0.2, http_retries=0)) as api:
            api.upload("file", [b"bytes"], 5)
            with api.download("file") as pieces:
                assert b"".join(pieces) == b"{}"
            with pytest.raises(RemoteUnavailableError, match="timed out"):
                api.get("runs/get", run_id="x")
        server.shutdown()


@pytest.mark.parametrize(("timeout_s", "size", "seconds"), [(10, 0, 60), (10, 10_000_000_000, 2060), (600, 100, 600)])
def test_a_file_is_waited_for_longer_the_larger_it_is(timeout_s: float, size: int, seconds: float) -> None:
    with MlflowApi(MlflowServer("c", "http://x"), Settings(http_timeout_s=timeout_s)) as api:
        assert api._transfer_timeout(size).as_dict() == {
            "connect": timeout_s,
            "read": seconds,
            "write": seconds,
            "pool": timeout_s,
        }


def test_repeating_is_bounded(scripted: Scripted) -> None:
    scripted.answers = [(503, "{}")] * 9
    with pytest.raises(RemoteUnavailableError, match="A retry is safe"):
        scripted.api(retries=1).get("x")
    assert len(scripted.requests) == 2


def test_a_create_is_sent_once(scripted: Scripted) -> None:
    scripted.answers = [(503, "{}")] * 9
    with pytest.raises(RemoteUnavailableError):
        scripted.api(retries=5).post("runs/create", {}, repeatable=False)
    assert len(scripted.requests) == 1


@pytest.mark.parametrize(
    ("status", "words"), [(401, "login and password"), (403, "lacks the permission"), (404, "no MLflow API")]
)
def test_a_refusal_is_not_repeated_and_names_the_remedy(scripted: Scripted, status: int, words: str) -> None:
    scripted.answers = [(status, "You are not authenticated")] * 5
    with pytest.raises(ConfigError, match=words):
        scripted.api(retries=3).get("x")
    assert len(scripted.requests) == 1


def test_a_model_that_is_missing_is_told_from_one_that_may_not_be_seen(scripted: Scripted) -> None:
    denied, missing = (403, "Permission denied"), (404, '{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "none"}')
    scripted.answers = [denied, missing]
    with pytest.raises(RemoteNotFoundError):
        scripted.api().get("registered-models/alias", name="m", alias="champion")
    for last in (denied, (200, "{}")):
        scripted.answers = [denied, last]
        with pytest.raises(ConfigError, match="lacks the permission"):
            scripted.api().post("model-versions/create", {"name": "m", "source": "s3://b/k"})
    assert [each.partition("mlflow/")[2] for each in scripted.requests[1::2]] == ["registered-models/get?name=m"] * 3


@pytest.mark.parametrize(
    "said", ["(psycopg2.errors.UniqueViolation) duplicate key", "(pymysql.err.IntegrityError) (1062, Duplicate entry)"]
)
def test_what_another_has_written_at_the_same_moment_is_sent_again(scripted: Scripted, said: str) -> None:
    scripted.answers = [(400, json.dumps({"error_code": "BAD_REQUEST", "message": said})), (200, "{}")]
    assert scripted.api(retries=1).post("runs/log-inputs", {}) == {}


def test_a_model_that_may_not_be_made_is_not_called_missing(scripted: Scripted) -> None:
    scripted.answers = [(403, "Permission denied")]
    with pytest.raises(ConfigError, match="lacks the permission"):
        scripted.api().post("registered-models/create", {"name": "m"})
    assert len(scripted.requests) == 1


@pytest.mark.full  # a server of its own; test_bad_input gets the same answer
def test_a_wrong_password_on_a_real_server_is_told(tmp_path: Path) -> None:
    environment = {"MLFLOW_FLASK_SERVER_SECRET_KEY": "k" * 32, "MLFLOW_AUTH_ADMIN_PASSWORD": SECRET + "-admin"}
    config = tmp_path / "auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    environment["MLFLOW_AUTH_CONFIG_PATH"] = str(config)
    with MlflowProcess(tmp_path, options=("--app-name", "basic-auth"), environment=environment) as server:
        with MlflowApi(MlflowServer("c", server.url, "admin", SECRET + "-admin"), Settings()) as right:
            assert right.post("experiments/search", {"max_results": 1})["experiments"]
        wrong = MlflowServer("c", server.url, "admin", "wrong")
        with MlflowApi(wrong, Settings()) as api, pytest.raises(ConfigError, match="Check login and password"):
            api.post("experiments/search", {"max_results": 1})


class Scripted:
    """A real HTTP server on loopback that gives the answers of a script, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, str]] = []
        self.requests: list[str] = []
        self.clients: list[MlflowApi] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                script.requests.append(self.path)
                self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, body = script.answers.pop(0)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body.encode())

            do_POST = do_PUT = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def api(self, retries: int = 0) -> MlflowApi:
        server = MlflowServer("c", f"http://127.0.0.1:{self.server.server_port}")
        self.clients.append(MlflowApi(server, Settings(http_retries=retries)))
        return self.clients[-1]

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.close()
