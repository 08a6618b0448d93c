"""The transport: what is sent how often, over which connections, and what is said when it goes wrong."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import urllib3
from kfp_server_api import HealthzServiceApi, PipelineUploadServiceApi, RunServiceApi, V2beta1Run

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import (
    AirflowMLError,
    ConfigError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    UnauthorizedError,
)
from airflow_ml_provider.hooks.kfp import KfpApi
from airflow_ml_provider.hooks.kfp_client import KfpClient
from airflow_ml_provider.hooks.kfp_retries import seconds_of
from airflow_ml_provider.hooks.kfp_server import BearerAuth, KfpServer
from tests.hooks.kfp_local import (
    CLOSE,
    HANG,
    RESET,
    Act,
    Asked,
    Authority,
    LocalServer,
    Reply,
    Tunnel,
    make_authority,
    page,
    redirect,
)
from tests.servers import free_port

RUNS = "/apis/v2beta1/runs"
ONCE = Settings(http_retries=0, http_timeout_s=5)
OFTEN = Settings(http_retries=3, http_timeout_s=5)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


def always(act: Act) -> Callable[[Asked], Act]:
    return lambda _: act


def script(*acts: Act) -> Callable[[Asked], Act]:
    """Each request the next act; the last one for all that follow."""
    left = list(acts)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


def api(server: LocalServer | str, settings: Settings = OFTEN, **fields: Any) -> KfpApi:
    url = server if isinstance(server, str) else server.url
    return KfpApi(KfpServer("c", url, **fields), settings)


def error_of(call: Callable[[], object]) -> AirflowMLError:
    with pytest.raises(AirflowMLError) as caught:
        call()
    return caught.value


SENT_ONCE: dict[str, Callable[[KfpApi], object]] = {
    "post": lambda it: it.post(RUNS, {"display_name": "x"}),
    "delete": lambda it: it.delete(f"{RUNS}/1"),
    "upload": lambda it: it.upload("/apis/v2beta1/pipelines/upload", b"x" * 200_000, "p.yaml", name="p"),
}


class TestWhatChangesSomething:
    @pytest.mark.parametrize("send", SENT_ONCE.values(), ids=SENT_ONCE)
    @pytest.mark.parametrize(
        "act",
        [
            RESET,
            CLOSE,
            Reply(200, '{"run_id": "1"}', cut=5),
            Reply(500),
            Reply(503, headers=[("Retry-After", "0")]),
            Reply(502, ""),
        ],
        ids=["reset", "closed", "reset in the answer", "500", "503 with Retry-After", "502"],
    )
    def test_it_is_sent_once_whatever_comes_back(self, act: Act, send: Callable[[KfpApi], object]) -> None:
        with LocalServer(always(act)) as server, api(server) as client:
            error = error_of(lambda: send(client))
            assert (server.connections, len(server.asked)) == (1, 1)
        assert isinstance(error, RemoteUnavailableError)
        assert error.sent

    def test_it_is_sent_once_when_no_answer_comes_in_time(self) -> None:
        with LocalServer(always(HANG)) as server, api(server) as client:
            error = error_of(lambda: client.post(RUNS, {}, timeout_s=0.2))
            time.sleep(0.2)
            assert (server.connections, len(server.asked)) == (1, 1)
        assert isinstance(error, RemoteUnavailableError)
        assert error.sent
        assert "Whether the server got it is not known" in str(error)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_a_redirect_is_not_followed(self, status: int) -> None:
        with LocalServer(always(redirect("/elsewhere?state=s3cret", status))) as server, api(server) as client:
            for send in SENT_ONCE.values():
                error = error_of(lambda send=send: send(client))
                assert isinstance(error, ConfigError)
                assert "a redirect to /elsewhere, which is not followed" in str(error)
                assert "s3cret" not in str(error)
            assert len(server.asked) == 3

    def test_it_goes_over_a_connection_of_its_own(self) -> None:
        with LocalServer(always(Reply())) as server, api(server) as client:
            client.get(RUNS)
            client.get(RUNS)
            client.post(RUNS, {})
            client.delete(f"{RUNS}/1")
            client.get(RUNS)
        assert [each.connection for each in server.asked] == [1, 1, 2, 3, 1]

    def test_a_refused_connection_is_told_as_not_sent_and_tried_once(self) -> None:
        started = time.monotonic()
        error = error_of(lambda: api(f"http://127.0.0.1:{free_port()}").post(RUNS, {}))
        assert isinstance(error, RemoteUnavailableError)
        assert not error.sent
        assert "It was not sent" in str(error)
        assert time.monotonic() - started < 0.4

    def test_busy_is_told_as_not_done(self) -> None:
        with LocalServer(always(Reply(429, headers=[("Retry-After", "0")]))) as server, api(server) as client:
            error = error_of(lambda: client.post(RUNS, {}))
            assert len(server.asked) == 1
        assert isinstance(error, RemoteUnavailableError)
        assert (error.sent, error.status) == (False, 429)

    def test_the_body_of_an_upload_arrives_whole_as_the_part_uploadfile(self) -> None:
        content = bytes(range(256)) * 4000
        with LocalServer(always(Reply(200, '{"pipeline_id": "1"}'))) as server, api(server) as client:
            assert client.upload("/apis/v2beta1/pipelines/upload", content, "tränen.yaml", name="a b", shared=True) == {
                "pipeline_id": "1"
            }
        (asked,) = server.asked
        assert asked.query == {"name": "a b", "shared": "true"}
        assert asked.headers["content-type"].startswith("multipart/form-data; boundary=")
        assert asked.body.count(content) == 1
        assert b'name="uploadfile"; filename="' in asked.body

    def test_a_number_that_json_does_not_have_is_refused_before_it_is_sent(self) -> None:
        with LocalServer(always(Reply())) as server, api(server) as client:
            assert isinstance(error_of(lambda: client.post(RUNS, {"rate": float("nan")})), ConfigError)
            assert not server.asked


class TestReads:
    def test_they_are_repeated_after_what_passes(self) -> None:
        """All at once, in threads, as each waits about a second."""
        passing: dict[str, Act] = {
            "reset": RESET,
            "closed": CLOSE,
            "reset in the answer": Reply(200, '{"runs": []}', cut=4),
            **{str(status): Reply(status) for status in (408, 429, 500, 502, 503, 504)},
            "no JSON": Reply(200, "not json"),
            "no object": Reply(200, "[1]"),
        }

        def ask(act: Act) -> tuple[object, int]:
            with LocalServer(script(act, Reply(200, '{"runs": [1]}'))) as server, api(server, Settings(http_retries=1)) as client:
                return client.get(RUNS), len(server.asked)

        with ThreadPoolExecutor(len(passing)) as pool:
            said = dict(zip(passing, pool.map(ask, passing.values()), strict=True))
        assert said == dict.fromkeys(passing, ({"runs": [1]}, 2))

    def test_they_are_repeated_as_often_as_the_option_says(self) -> None:
        with LocalServer(always(Reply(503))) as server, api(server, Settings(http_retries=2)) as client:
            error = error_of(lambda: client.get(RUNS))
            assert len(server.asked) == 3
        assert isinstance(error, RemoteUnavailableError)
        assert error.status == 503

    def test_a_hanging_server_is_given_up_after_the_timeout(self) -> None:
        with LocalServer(always(HANG)) as server, api(server, Settings(http_retries=0, http_timeout_s=0.2)) as client:
            started = time.monotonic()
            assert isinstance(error_of(lambda: client.get(RUNS)), RemoteUnavailableError)
            assert time.monotonic() - started < 2

    def test_a_wait_that_the_server_asks_for_is_kept(self) -> None:
        with (
            LocalServer(script(Reply(429, headers=[("Retry-After", "2")]), Reply())) as server,
            api(server, Settings(http_retries=1)) as client,
        ):
            started = time.monotonic()
            client.get(RUNS)
            assert time.monotonic() - started >= 2

    @pytest.mark.parametrize("status", [400, 403, 405, 409, 413, 431, 501])
    def test_a_refusal_is_final(self, status: int) -> None:
        with LocalServer(always(Reply(status))) as server, api(server) as client:
            error = error_of(lambda: client.get(RUNS))
            assert len(server.asked) == 1
        assert isinstance(error, ConfigError)
        assert error.status == status

    def test_text_is_given_as_it_is(self) -> None:
        with LocalServer(always(Reply(200, "línea\n", kind="text/plain"))) as server, api(server) as client:
            assert client.text("/apis/v1alpha1/runs/1/nodes/n/log") == "línea\n"

    def test_what_is_left_out_of_a_query_and_how_values_are_written(self) -> None:
        with LocalServer(always(Reply())) as server, api(server) as client:
            client.get(RUNS, page_size=5, namespace=None, deep=False, filter='{"a": "b+c%"}')
            client.get(f"{RUNS}/a b:x")
        assert server.asked[0].query == {"page_size": "5", "deep": "false", "filter": '{"a": "b+c%"}'}
        assert server.asked[1].target == f"{RUNS}/a%20b:x"


def test_a_date_or_a_number_or_nonsense_in_retry_after() -> None:
    assert seconds_of("3") == 3
    assert seconds_of("-1") == seconds_of("soon") == seconds_of(None) == seconds_of("nan") == 0
    assert seconds_of("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert 3e9 > seconds_of("Fri, 01 Jan 2100 00:00:00 GMT") > 1e9


def rpc(code: int, message: str, short: str) -> str:
    details = [{"@type": "type.googleapis.com/google.rpc.Status", "code": code, "message": short}]
    return json.dumps({"code": code, "message": message, "details": details})


STACK = "\ngithub.com/kubeflow/pipelines/backend/src/common/util.Wrap\n\tgithub.com/kubeflow/pipelines/error.go:361"


class TestTheServersOwnWords:
    @pytest.mark.parametrize(
        ("reply", "kind", "words", "never"),
        [
            (Reply(400, rpc(3, "Failed: Invalid input error: unknown x", "unknown x")), ConfigError, "/runs: unknown x.", "Invalid"),
            (Reply(400, '{"code":3,"message":"proto: syntax error"}'), ConfigError, "proto: syntax error", "nothing"),
            (Reply(404, rpc(5, "ResourceNotFoundError: Run 1 not found", "Run 1 not found")), RemoteNotFoundError, "Run 1 not found", ":361"),
            (Reply(500, rpc(13, "dial tcp: refused" + STACK, "Internal Server Error")), RemoteUnavailableError, "dial tcp: refused.", "Wrap"),
            (Reply(409, json.dumps({"error_message": "Failed", "error_details": "Failed: name exists" + STACK})), ConfigError, ": Failed: name exists.", ":361"),
            (Reply(404, '{"error_message": "artifact not found: <nil>"}', kind="text/plain"), RemoteNotFoundError, "artifact not found", "HTML"),
            (Reply(400, "Invalid input error: Pipeline.Name length cannot exceed 128\n", kind="text/plain"), ConfigError, "cannot exceed 128", "HTML"),
            (Reply(400, json.dumps({"error_message": "Failed to create a pipeline", "error_details": "Failed to create a pipeline" + STACK})), ConfigError, "may not upload there", ":361"),
            (Reply(503, ""), RemoteUnavailableError, "503 to GET /apis/v2beta1/runs: Said", "HTML"),
        ],
    )  # fmt: skip
    def test_they_are_in_the_error_without_a_stack_trace(
        self, reply: Reply, kind: type[AirflowMLError], words: str, never: str
    ) -> None:
        with LocalServer(always(reply)) as server, api(server, ONCE) as client:
            error = error_of(lambda: client.get(RUNS))
        assert type(error) is kind
        assert error.status == reply.status
        assert words in str(error)
        assert never not in str(error)

    def test_a_path_that_the_server_does_not_have_is_no_absent_run(self) -> None:
        with LocalServer(always(Reply(404, '{"code":5,"message":"Not Found"}'))) as server, api(server, ONCE) as client:
            assert isinstance(error_of(lambda: client.get(f"{RUNS}/1")), ConfigError)

    @pytest.mark.parametrize(
        "reply", [Reply(404, "404 page not found\n", kind="text/plain"), page("nginx", status=404), Reply(404, "")]
    )
    def test_a_404_of_a_proxy_is_no_absent_run(self, reply: Reply) -> None:
        with LocalServer(always(reply)) as server, api(server, ONCE) as client:
            error = error_of(lambda: client.get(f"{RUNS}/1"))
        assert isinstance(error, RemoteUnavailableError)
        assert not error.sent
        assert "check host, port and path" in str(error)

    @pytest.mark.parametrize("status", [200, 403])
    def test_a_login_page_is_recognised(self, status: int) -> None:
        with LocalServer(always(page("Log in to\n your account", status=status))) as server, api(server) as client:
            for call in (lambda: client.get(RUNS), lambda: client.post(RUNS, {}), lambda: client.text("/x")):
                error = error_of(call)
                assert isinstance(error, UnauthorizedError)
                assert "a page in HTML ('Log in to your account') where the API answers JSON" in str(error)
            assert len(server.asked) == 3

    def test_an_error_page_of_a_proxy_is_an_outage(self) -> None:
        with LocalServer(always(page("502 Bad Gateway", status=502))) as server, api(server, ONCE) as client:
            assert isinstance(error_of(lambda: client.get(RUNS)), RemoteUnavailableError)

    def test_a_very_long_answer_is_cut(self) -> None:
        with LocalServer(always(Reply(400, rpc(3, "x", "a" * 99999 + "the end")))) as server, api(server, ONCE) as client:
            said = str(error_of(lambda: client.get(RUNS)))
        assert len(said) < 1500
        assert "the end" in said


class TestCertificatesAndProxies:
    def test_a_server_of_an_unknown_authority_is_refused_and_the_remedy_named(self, authority: Authority) -> None:
        with LocalServer(always(Reply()), tls=authority.server) as server, api(server) as client:
            for call in (lambda: client.get(RUNS), lambda: client.post(RUNS, {})):
                error = error_of(call)
                assert isinstance(error, ConfigError)
                assert "ca_file of the connection" in str(error)
            assert not server.asked

    def test_an_authority_of_ones_own_is_trusted(self, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
        with LocalServer(always(Reply()), tls=authority.server) as server:
            with api(server, ca_file=str(authority.ca_file)) as client:
                assert client.get(RUNS) == client.post(RUNS) == {}
            monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
            with api(server) as client:
                assert client.get(RUNS) == {}

    def test_a_missing_ca_file_is_told(self) -> None:
        error = error_of(lambda: api("https://127.0.0.1:1", ca_file="/nowhere/ca.pem"))
        assert "there is no file '/nowhere/ca.pem'" in str(error)

    def test_verification_can_be_switched_off_and_is_logged_once(
        self, authority: Authority, caplog: pytest.LogCaptureFixture
    ) -> None:
        with LocalServer(always(Reply()), tls=authority.server) as server, api(server, verify_tls=False) as client:
            assert client.get(RUNS) == client.get(RUNS) == client.post(RUNS) == {}
            assert caplog.text.count("does not verify the server's certificate") == 1
        with pytest.raises(urllib3.exceptions.InsecureRequestWarning):
            warnings.warn(
                "Unverified HTTPS request is being made to host 'other'", urllib3.exceptions.InsecureRequestWarning, stacklevel=1
            )

    def test_https_to_a_port_without_it_is_told(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as plain:

            def answer() -> None:
                connection, _ = plain.accept()
                connection.recv(9999)
                connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")
                connection.close()

            thread = threading.Thread(target=answer)
            thread.start()
            error = error_of(lambda: api(f"https://127.0.0.1:{plain.getsockname()[1]}", ONCE).get(RUNS))
            thread.join()
        assert isinstance(error, ConfigError)
        assert "should begin with http://" in str(error)

    def test_a_proxy_of_the_connection_is_used_with_its_password_which_is_not_shown(self, authority: Authority) -> None:
        with Tunnel() as tunnel, LocalServer(always(Reply()), tls=authority.server) as server:
            proxy = tunnel.url.replace("://", "://me:pr%40xy-s3cret@")
            with api(server, ca_file=str(authority.ca_file), proxy=proxy) as client:
                assert client.get(RUNS) == client.post(RUNS) == {}
                assert "s3cret" not in repr(client.server)
        assert len(tunnel.heads) == 2
        assert all(f"CONNECT 127.0.0.1:{server.port} " in each for each in tunnel.heads)
        assert all("Basic bWU6cHJAeHktczNjcmV0" in each.title() or "bWU6cHJAeHktczNjcmV0" in each for each in tunnel.heads)

    def test_the_proxy_of_the_environment_is_used_unless_it_says_otherwise(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with (
            LocalServer(always(Reply(200, '{"by": "proxy"}'))) as proxy,
            LocalServer(always(Reply(200, '{"by": "server"}'))) as server,
        ):
            monkeypatch.setenv("http_proxy", proxy.url)
            monkeypatch.delenv("no_proxy", raising=False)
            monkeypatch.delenv("NO_PROXY", raising=False)
            assert api(server).get(RUNS) == {"by": "proxy"}
            assert proxy.asked[0].target == f"{server.url}{RUNS}"
            assert api(server, proxy="none").get(RUNS) == {"by": "server"}
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            assert api(server).get(RUNS) == {"by": "server"}

    def test_a_proxy_that_is_away_is_told_as_not_sent(self) -> None:
        error = error_of(
            lambda: api("http://127.0.0.1:1", ONCE, proxy=f"http://me:s3cret@127.0.0.1:{free_port()}").post(RUNS, {})
        )
        assert isinstance(error, RemoteUnavailableError)
        assert not error.sent
        assert "by way of the proxy" in str(error)
        assert "s3cret" not in str(error)

    def test_a_proxy_of_another_kind_is_refused(self) -> None:
        assert "'socks5' is not supported" in str(error_of(lambda: api("http://x", proxy="socks5://h:1")))


class TestTheGeneratedMethods:
    def client(self, server: LocalServer, settings: Settings = OFTEN) -> KfpClient:
        return KfpClient(KfpServer("c", server.url, auth=BearerAuth(token="s3cret")), settings)

    def test_they_get_credentials_and_retries(self) -> None:
        answers = script(Reply(503), Reply(200, '{"multi_user": true}'))
        with LocalServer(answers) as server, self.client(server, Settings(http_retries=1)) as client:
            assert HealthzServiceApi(client).healthz_service_get_healthz().multi_user is True
        assert [each.headers["authorization"] for each in server.asked] == ["Bearer s3cret"] * 2
        assert server.asked[0].headers["user-agent"].startswith("airflow-ml-provider/")

    def test_their_creates_and_deletes_are_sent_once(self) -> None:
        with LocalServer(always(RESET)) as server, self.client(server) as client:
            runs = RunServiceApi(client)
            for call in (
                lambda: runs.run_service_create_run(V2beta1Run(display_name="x")),
                lambda: runs.run_service_delete_run("1"),
            ):
                assert isinstance(error_of(call), RemoteUnavailableError)
            assert (server.connections, len(server.asked)) == (2, 2)

    def test_their_answers_are_their_models(self) -> None:
        body = '{"run_id": "1", "display_name": "x", "created_at": "2026-11-21T07:33:25Z"}'
        with LocalServer(always(Reply(200, body))) as server, self.client(server) as client:
            run = RunServiceApi(client).run_service_create_run(V2beta1Run(display_name="x"))
            assert (run.run_id, run.created_at.year) == ("1", 2026)
            _, status, headers = RunServiceApi(client).run_service_get_run_with_http_info("1")
            assert (status, headers["content-type"]) == (200, "application/json")
        assert json.loads(server.asked[0].body) == {"display_name": "x"}

    def test_their_uploads_read_the_file(self, tmp_path: Path) -> None:
        file = tmp_path / "p.yaml"
        file.write_text("a: 1")
        with LocalServer(always(Reply(200, '{"pipeline_id": "1"}'))) as server, self.client(server) as client:
            assert PipelineUploadServiceApi(client).upload_pipeline(str(file), name="p").pipeline_id == "1"
        assert b'filename="p.yaml"' in server.asked[0].body
        assert b"a: 1" in server.asked[0].body

    def test_their_errors_are_ours(self) -> None:
        with LocalServer(always(Reply(404, rpc(5, "x", "Run 1 not found")))) as server, self.client(server) as client:
            assert isinstance(error_of(lambda: RunServiceApi(client).run_service_get_run("1")), RemoteNotFoundError)

    def test_their_unread_answers_and_timeouts_work(self) -> None:
        with LocalServer(always(Reply(200, '{"run_id": "1"}'))) as server, self.client(server) as client:
            response = RunServiceApi(client).run_service_get_run("1", _preload_content=False, _request_timeout=(1, 2))
            assert response.read() == b'{"run_id": "1"}'
        with LocalServer(always(HANG)) as server, self.client(server, ONCE) as client:
            error = error_of(lambda: RunServiceApi(client).run_service_get_run("1", _request_timeout=0.2))
            assert isinstance(error, RemoteUnavailableError)


def test_making_a_client_leaves_the_processs_logging_alone() -> None:
    logger = logging.getLogger("urllib3")
    before = logger.level
    logger.setLevel(logging.DEBUG)
    HTTPConnection.debuglevel = 0
    try:
        api("http://127.0.0.1:1").close()
        assert logger.level == logging.DEBUG
    finally:
        logger.setLevel(before)


def test_many_threads_share_a_client() -> None:
    with LocalServer(lambda asked: Reply(200, json.dumps({"said": asked.query["n"]}))) as server, api(server) as client:
        heard: dict[int, str] = {}
        threads = [threading.Thread(target=lambda n=n: heard.__setitem__(n, client.get(RUNS, n=n)["said"])) for n in range(16)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert heard == {n: str(n) for n in range(16)}


def test_a_name_that_does_not_resolve_was_not_sent_to() -> None:
    error = error_of(lambda: api("http://kfp.invalid", ONCE).post(RUNS, {}))
    assert isinstance(error, RemoteUnavailableError)
    assert not error.sent


def test_a_server_that_accepts_and_reads_nothing_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        error = error_of(lambda: api(f"http://127.0.0.1:{port}", ONCE).post(RUNS, {"x": "y" * 100}, timeout_s=0.2))
    assert isinstance(error, RemoteUnavailableError)
    assert error.sent
