"""Each way to be let in, against a server that behaves so; and what is sent again, and what is not, when it is refused."""

from __future__ import annotations

import base64
import itertools
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import AirflowMLError, ConfigError, RemoteUnavailableError, UnauthorizedError
from airflow_ml_provider.hooks.kfp import KfpApi
from airflow_ml_provider.hooks.kfp_connection import read_server
from airflow_ml_provider.hooks.kfp_server import TOKEN_FILE_VARIABLE
from tests.hooks.kfp_local import RESET, Act, Asked, LocalServer, Reply, make_authority, page, redirect
from tests.servers import free_port

RUNS = "/apis/v2beta1/runs"
SECRET = "s3cret-passw0rd"
REFUSED = Reply(401, json.dumps({"code": 16, "message": "no", "details": [{"message": "Failed to check authorization"}]}))


@pytest.fixture(autouse=True)
def no_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Holds for every test here, with everything logged that can be."""
    caplog.set_level(logging.DEBUG)
    yield
    logged = "\n".join(each.getMessage() for each in caplog.get_records("call"))
    assert not [each for each in (SECRET, "token-", "session-", "code1") if each in logged]


def client(host: str, retries: int = 0, login: str | None = None, password: str | None = None, **extra: Any) -> KfpApi:
    server = read_server("c", host=host, login=login, password=password, extra=json.dumps(extra))
    return KfpApi(server, Settings(http_retries=retries, http_timeout_s=5))


def error_of(call: Callable[[], object]) -> AirflowMLError:
    with pytest.raises(AirflowMLError) as caught:
        call()
    assert SECRET not in str(caught.value)
    assert "token-" not in str(caught.value)
    return caught.value


class Guarded:
    """An API that lets in who has one of its tokens."""

    def __init__(self, *tokens: str) -> None:
        self.tokens = set(tokens)

    def __call__(self, asked: Asked) -> Act:
        scheme, _, token = asked.headers.get("authorization", "").partition(" ")
        return Reply(200, '{"runs": []}') if scheme == "Bearer" and token in self.tokens else REFUSED


class TestBearerAndHeader:
    def test_without_credentials_no_header_is_sent(self) -> None:
        with LocalServer(lambda _: Reply()) as server, client(server.url) as api:
            api.get(RUNS)
        assert not {"authorization", "cookie", "kubeflow-userid"} & server.asked[0].headers.keys()

    def test_a_token_of_the_password_field(self) -> None:
        with LocalServer(Guarded(SECRET)) as server, client(server.url, password=SECRET) as api:
            assert api.get(RUNS) == api.post(RUNS) == {"runs": []}

    def test_a_wrong_one_is_tried_once_and_the_reason_is_told(self) -> None:
        message = "Unauthenticated: x: [invalid bearer token, service account token has expired]"
        refusal = Reply(401, json.dumps({"code": 16, "message": message}))
        with LocalServer(lambda _: refusal) as server, client(server.url, retries=3, password="token-1") as api:
            error = error_of(lambda: api.get(RUNS))
            assert len(server.asked) == 1
        assert isinstance(error, UnauthorizedError)
        assert error.status == 401
        assert "service account token has expired" in str(error)
        assert "cannot reach Kubernetes answers the same" in str(error)

    def test_a_401_of_an_outage_of_kubernetes_is_told_as_such(self) -> None:
        message = (
            'Failed to review the token provided: Post "https://k:6443/apis/authentication.k8s.io/v1/tokenreviews": dial tcp'
        )
        with LocalServer(lambda _: Reply(401, json.dumps({"code": 16, "message": message}))) as server:
            assert "an outage there, not a bad token" in str(error_of(lambda: client(server.url, password="x").get(RUNS)))

    def test_a_token_of_the_environment_is_read_at_each_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        variable = {"auth": "bearer", "token_variable": "MY_TOKEN"}
        with LocalServer(Guarded("token-1", "token-2")) as server, client(server.url, **variable) as api:
            assert "there is no environment variable 'MY_TOKEN'" in str(error_of(lambda: api.get(RUNS)))
            for token in ("token-1", "token-2"):
                monkeypatch.setenv("MY_TOKEN", f"{token}\n")
                api.get(RUNS)
        assert [each.headers["authorization"] for each in server.asked] == ["Bearer token-1", "Bearer token-2"]

    @pytest.mark.parametrize("auth", ["bearer", "service-account"])
    def test_a_token_of_a_file_is_read_at_each_request(self, auth: str, tmp_path: Path) -> None:
        file = tmp_path / "token"
        with LocalServer(Guarded("token-1", "token-2")) as server, client(server.url, auth=auth, token_file=str(file)) as api:
            error = error_of(lambda: api.get(RUNS))
            assert isinstance(error, ConfigError)
            assert f"the token's file {str(file)!r} cannot be read: No such file" in str(error)
            for token in ("token-1", "token-2"):
                file.write_text(f"{token}\n")
                api.get(RUNS)
        assert [each.headers["authorization"] for each in server.asked] == ["Bearer token-1", "Bearer token-2"]

    def test_the_projected_token_is_found_by_the_environment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(TOKEN_FILE_VARIABLE, raising=False)
        with LocalServer(Guarded("token-1")) as server, client(server.url, auth="service-account") as api:
            assert "Mount a projected token" in str(error_of(lambda: api.get(RUNS)))
            (tmp_path / "token").write_text("token-1")
            monkeypatch.setenv(TOKEN_FILE_VARIABLE, str(tmp_path / "token"))
            assert api.get(RUNS) == {"runs": []}

    def test_a_file_that_was_replaced_meanwhile_saves_a_create(self, tmp_path: Path) -> None:
        file = tmp_path / "token"
        file.write_text("token-1")
        guard = Guarded("token-2")

        def handler(asked: Asked) -> Act:
            file.write_text("token-2")
            return guard(asked)

        with LocalServer(handler) as server, client(server.url, auth="bearer", token_file=str(file)) as api:
            assert api.post(RUNS, {"display_name": "x"}) == {"runs": []}
            assert [each.body for each in server.asked] == [b'{"display_name": "x"}'] * 2

    @pytest.mark.parametrize("token", ["", " \n", "tök", "a\nb", "a\x07"])
    def test_what_cannot_be_sent_is_refused_and_not_shown(self, token: str, tmp_path: Path) -> None:
        (tmp_path / "t").write_text(token)
        with client("http://127.0.0.1:1", auth="bearer", token_file=str(tmp_path / "t")) as api:
            error = error_of(lambda: api.get(RUNS))
        assert isinstance(error, ConfigError)
        assert "tök" not in str(error)

    def test_a_file_that_is_no_text_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "t").write_bytes(b"\xff\xfe")
        with client("http://127.0.0.1:1", auth="bearer", token_file=str(tmp_path / "t")) as api:
            assert "it is no text" in str(error_of(lambda: api.get(RUNS)))

    def test_a_user_in_a_header_of_any_name(self) -> None:
        with LocalServer(lambda _: Reply()) as server:
            client(server.url, auth="user-header", user="alice@example.com").get(RUNS)
            client(server.url, auth="user-header", login="bob", user_header="X-Goog-User").get(RUNS)
        assert server.asked[0].headers["kubeflow-userid"] == "alice@example.com"
        assert server.asked[1].headers["x-goog-user"] == "bob"


class Provider:
    """An OpenID Connect provider that gives tokens to one client, and an API that takes them."""

    def __init__(self, lifetime_s: float | None = 300) -> None:
        self.numbers = itertools.count(1)
        self.good: set[str] = set()
        self.lifetime_s = lifetime_s
        self.fault: Act | None = None

    def __call__(self, asked: Asked) -> Act:
        return self.token(asked) if asked.path == "/token" else Guarded(*self.good)(asked)

    def token(self, asked: Asked) -> Act:
        if self.fault:
            return self.fault
        basic = base64.b64decode(asked.headers.get("authorization", "").removeprefix("Basic ")).decode()
        given = basic or ":".join(asked.form.get(each, "") for each in ("client_id", "client_secret"))
        if given not in {"air+flow:s3cret-passw0rd%26", "air flow:s3cret-passw0rd&"}:
            return Reply(401, '{"error": "invalid_client", "error_description": "Invalid client or Invalid client credentials"}')
        token = f"token-{next(self.numbers)}"
        self.good = {token}
        lifetime = {} if self.lifetime_s is None else {"expires_in": self.lifetime_s}
        return Reply(200, json.dumps({"access_token": token, "token_type": "Bearer", **lifetime}))


def oidc(server: LocalServer, password: str = f"{SECRET}&", retries: int = 0, **extra: Any) -> KfpApi:
    token_url = extra.pop("token_url", f"{server.url}/token")
    return client(server.url, retries, "air flow", password, auth="oidc", token_url=token_url, **extra)


class TestOidc:
    @pytest.mark.parametrize("place", ["header", "body"])
    def test_a_token_is_asked_for_once_and_kept(self, place: str) -> None:
        with LocalServer(Provider()) as server, oidc(server, client_auth=place, scope="kfp openid", audience="kfp") as api:
            for _ in range(3):
                api.get(RUNS)
            (asked,) = server.to("POST", "/token")
        assert ("authorization" in asked.headers) == (place == "header")
        assert ("client_secret" in asked.form) == (place == "body")
        assert {"grant_type": "client_credentials", "scope": "kfp openid", "audience": "kfp"}.items() <= asked.form.items()

    def test_it_is_replaced_before_its_end(self) -> None:
        with LocalServer(Provider(lifetime_s=0.5)) as server, oidc(server) as api:
            api.get(RUNS)
            time.sleep(0.45)
            api.get(RUNS)
            assert len(server.to("POST", "/token")) == 2
            assert len(server.to("GET", RUNS)) == 2

    def test_one_of_untold_life_is_kept_for_a_while(self) -> None:
        with LocalServer(Provider(lifetime_s=None)) as server, oidc(server) as api:
            api.get(RUNS)
            api.get(RUNS)
            assert len(server.to("POST", "/token")) == 1

    def test_one_that_is_refused_is_renewed_once_for_a_create_too(self) -> None:
        provider = Provider()
        with LocalServer(provider) as server, oidc(server) as api:
            api.get(RUNS)
            provider.good.clear()
            assert api.post(RUNS, {}) == {"runs": []}
            assert len(server.to("POST", "/token")) == 2
            assert len(server.to("POST", RUNS)) == 2

    def test_if_the_new_one_is_refused_too_that_is_the_end(self) -> None:
        provider = Provider()
        with (
            LocalServer(lambda asked: provider(asked) if asked.path == "/token" else REFUSED) as server,
            oidc(server, retries=3) as api,
        ):
            error = error_of(lambda: api.post(RUNS, {}))
            assert (len(server.to("POST", "/token")), len(server.to("POST", RUNS))) == (2, 2)
            error_of(lambda: api.get(RUNS))
            assert len(server.to("GET", RUNS)) == 2
        assert isinstance(error, UnauthorizedError)

    def test_many_threads_renew_it_once(self) -> None:
        provider = Provider()
        with LocalServer(provider) as server, oidc(server) as api:
            api.get(RUNS)
            provider.good.clear()
            threads = [threading.Thread(target=api.get, args=(RUNS,)) for _ in range(8)]
            for each in threads:
                each.start()
            for each in threads:
                each.join()
            assert len(server.to("POST", "/token")) == 2

    def test_a_provider_that_refuses_says_why(self) -> None:
        with LocalServer(Provider()) as server, oidc(server, password=f"{SECRET}-wrong") as api:
            error = error_of(lambda: api.get(RUNS))
            assert not server.to("GET", RUNS)
        assert isinstance(error, UnauthorizedError)
        assert "(invalid_client: Invalid client or Invalid client credentials)" in str(error)

    @pytest.mark.parametrize(
        ("fault", "kind"),
        [
            (Reply(503), RemoteUnavailableError),
            (Reply(429), RemoteUnavailableError),
            (RESET, RemoteUnavailableError),
            (Reply(200, "{}"), ConfigError),
            (page("Welcome"), ConfigError),
            (redirect("/login"), UnauthorizedError),
            (Reply(200, '{"access_token": "a b\\n c"}'), ConfigError),
        ],
        ids=["503", "429", "reset", "no token", "a page", "redirect", "unsendable"],
    )
    def test_a_provider_that_is_away_or_is_none_is_told(self, fault: Act, kind: type[AirflowMLError]) -> None:
        provider = Provider()
        provider.fault = fault
        with LocalServer(provider) as server, oidc(server) as api:
            error = error_of(lambda: api.post(RUNS, {}))
            assert not server.to("POST", RUNS)
        assert type(error) is kind
        assert not getattr(error, "sent", False)

    def test_a_provider_that_comes_back_is_asked_again_by_a_read(self) -> None:
        provider = Provider()
        faults = [Reply(503)]

        def handler(asked: Asked) -> Act:
            return faults.pop() if faults and asked.path == "/token" else provider(asked)

        with LocalServer(handler) as server, oidc(server, retries=1) as api:
            assert api.get(RUNS) == {"runs": []}

    def test_the_providers_certificate_is_verified_by_the_same_authority(self, tmp_path: Path) -> None:
        authority = make_authority(tmp_path)
        with LocalServer(Provider(), tls=authority.server) as server:
            assert "CERTIFICATE_VERIFY_FAILED" in str(error_of(lambda: oidc(server).get(RUNS)))
            with oidc(server, ca_file=str(authority.ca_file)) as api:
                assert api.get(RUNS) == {"runs": []}


class TestTokenRequest:
    @pytest.fixture
    def kubernetes(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalServer]:
        """A Kubernetes API that gives tokens, and the API that takes them."""
        self.lifetime_s: float = 3600
        self.fault: Act | None = None
        self.good: set[str] = set()

        def handler(asked: Asked) -> Act:
            if "/serviceaccounts/" not in asked.path:
                return Guarded(*self.good)(asked)
            if self.fault:
                return self.fault
            token = f"token-{len(server.to('POST', '/serviceaccounts/'))}"
            self.good = {token}
            until = datetime.now(UTC) + timedelta(seconds=self.lifetime_s)
            status = {"token": token, "expirationTimestamp": until.isoformat()}
            return Reply(201, json.dumps({"kind": "TokenRequest", "spec": {"audiences": ["x"]}, "status": status}))

        with LocalServer(handler) as server:
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "x",
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
                "clusters": [{"name": "x", "cluster": {"server": server.url}}],
                "users": [{"name": "x", "user": {"token": "token-of-airflow"}}],
            }
            connection = {"conn_type": "kubernetes", "extra": {"kube_config": json.dumps(config)}}
            monkeypatch.setenv("AIRFLOW_CONN_K8S", json.dumps(connection))
            yield server

    def api(self, server: LocalServer) -> KfpApi:
        extra = {"service_account": "runner", "namespace": "team-a", "token_lifetime_s": 900}
        return client(server.url, auth="service-account", kubernetes_conn_id="k8s", **extra)

    def test_a_token_of_the_right_audience_is_asked_for_and_kept(self, kubernetes: LocalServer) -> None:
        with self.api(kubernetes) as api:
            api.get(RUNS)
            api.get(RUNS)
        (asked,) = kubernetes.to("POST")
        assert asked.path == "/api/v1/namespaces/team-a/serviceaccounts/runner/token"
        assert asked.headers["authorization"] == "Bearer token-of-airflow"
        assert json.loads(asked.body)["spec"] == {"audiences": ["pipelines.kubeflow.org"], "expirationSeconds": 900}

    def test_it_is_replaced_before_its_end_and_after_a_refusal(self, kubernetes: LocalServer) -> None:
        self.lifetime_s = 1
        with self.api(kubernetes) as api:
            api.get(RUNS)
            time.sleep(0.9)
            api.get(RUNS)
            assert len(kubernetes.to("POST", "/serviceaccounts/")) == 2
            self.good.clear()
            assert api.post(RUNS, {}) == {"runs": []}

    @pytest.mark.parametrize(
        ("status", "kind", "words"),
        [
            (401, ConfigError, "credentials of the connection to Kubernetes"),
            (403, ConfigError, "the right to create serviceaccounts/token"),
            (404, ConfigError, "Check service_account"),
            (422, ConfigError, "token_lifetime_s"),
            (503, RemoteUnavailableError, "a retry is safe"),
        ],
    )
    def test_a_refusal_names_the_remedy(
        self, kubernetes: LocalServer, status: int, kind: type[AirflowMLError], words: str
    ) -> None:
        self.fault = Reply(status, '{"kind": "Status"}')
        with self.api(kubernetes) as api:
            error = error_of(lambda: api.get(RUNS))
        assert type(error) is kind
        assert words in str(error)
        assert "team-a/runner" in str(error)


LOGIN = """
<form method="get" action="/search"><input name="q"></form>
<form method="post" action="{action}"><input type="hidden" name="hmac" value="h1">
<input required id="login" name="login" type="text" value=""/><input name="password" type="password"/><button>Login</button></form>
"""
APPROVAL = """
<form method="post"><input type="hidden" name="req" value="r1"/><input type="hidden" name="approval" value="approve"></form>
<form method="post"><input type="hidden" name="req" value="r1"/><input type="hidden" name="approval" value="rejected"></form>
"""


class Kubeflow:
    """
    Dex and the API behind a gateway: oauth2-proxy as Kubeflow configures it since 1.9, or AuthService as before.

    The former answers 401 below ``/apis/`` and shows a page with a button elsewhere; the latter redirects everything.
    """

    def __init__(
        self, gateway: str = "oauth2-proxy", *, approval: bool = False, connectors: tuple[str, ...] = ("local",)
    ) -> None:
        self.gateway, self.approval, self.connectors = gateway, approval, connectors
        self.numbers = itertools.count(1)
        self.sessions: set[str] = set()
        self.fault: Act | None = None
        self.cookie = "oauth2_proxy_kubeflow" if gateway == "oauth2-proxy" else "authservice_session"
        self.secure = ""
        self.action = "{self}"

    def __call__(self, asked: Asked) -> Act:
        if asked.path.startswith("/dex/"):
            return self.fault or self.dex(asked)
        if asked.path == "/oauth2/start":
            return redirect("/dex/auth?client_id=kf&state=s1", 302, "_csrf=c1; Path=/; HttpOnly")
        if asked.path in {"/oauth2/callback", "/login/oidc"}:
            return self.callback(asked)
        if asked.cookies.get(self.cookie) in self.sessions:
            assert "dex_csrf" not in asked.cookies, "a cookie that is not for this path"
            return Reply(200, '{"runs": []}') if "/apis/" in asked.path else page("Kubeflow")
        if self.gateway == "authservice":
            return redirect("/dex/auth?client_id=kf&state=s1", 302, "_csrf=c1; Path=/; HttpOnly")
        return (
            Reply(401, "", kind="text/plain")
            if "/apis/" in asked.path
            else page("Sign In", "<form action='/oauth2/start'></form>", 403)
        )

    def callback(self, asked: Asked) -> Act:
        if asked.cookies.get("_csrf") != "c1" or asked.query.get("code") != "code1":
            return page("CSRF", status=403)
        session = f"session-{next(self.numbers)}"
        self.sessions = {session}
        return redirect("/pipeline/", 302, f"{self.cookie}={session}; Path=/; HttpOnly{self.secure}", "_csrf=; Path=/; Max-Age=0")

    def dex(self, asked: Asked) -> Act:
        done = redirect(
            "/oauth2/callback?code=code1&state=s1" if self.gateway == "oauth2-proxy" else "/login/oidc?code=code1", 303
        )
        if asked.path == "/dex/auth":
            if len(self.connectors) == 1:
                return redirect(f"/dex/auth/{self.connectors[0]}?state=s1")
            links = "".join(f'<a href="/dex/auth/{each}?state=s1">{each}</a>' for each in self.connectors)
            return page("Log in to dex", links)
        if asked.path.split("/")[3:4] and asked.path.split("/")[3] not in self.connectors:
            return page("Bad Request", "Requested resource does not exist.", 400)
        if asked.path == "/dex/approval":
            return (
                done if asked.method == "POST" and asked.form == {"req": "r1", "approval": "approve"} else page("Grant", APPROVAL)
            )
        if asked.path.removeprefix("/dex/auth/") in self.connectors:
            return redirect(f"{asked.path}/login?state=s1", 302, "dex_csrf=d; Path=/dex")
        return self.form(asked, redirect("/dex/approval?req=r1", 303) if self.approval else done)

    def form(self, asked: Asked, done: Reply) -> Act:
        action = self.action.format(self=asked.target.replace("&", "&amp;"))
        if asked.method == "POST":
            assert asked.form.pop("hmac") == "h1"
            if asked.form == {"hmac": "h1", "login": "me@example.com", "password": SECRET} and asked.query["state"] == "s1":
                return done
            return page(
                "Login",
                LOGIN.format(action=action) + "Invalid Email Address and password.",
                401 if self.gateway == "oauth2-proxy" else 200,
            )
        return page("Login", LOGIN.format(action=action))


def dex(server: LocalServer, password: str = SECRET, retries: int = 0, **extra: Any) -> KfpApi:
    return client(f"{server.url}/pipeline", retries, "me@example.com", password, auth="dex", **extra)


class TestDex:
    @pytest.mark.parametrize("approval", [False, True], ids=["", "with approval"])
    @pytest.mark.parametrize("gateway", ["oauth2-proxy", "authservice"])
    def test_one_login_serves_all_requests(self, gateway: str, approval: bool) -> None:
        with LocalServer(Kubeflow(gateway, approval=approval)) as server, dex(server) as api:
            assert api.get(RUNS) == api.post(RUNS, {}) == api.get(RUNS) == {"runs": []}
            assert len(server.to("POST", "/login")) == 1
            assert len(server.to("GET", RUNS)) == 2

    @pytest.mark.parametrize("gateway", ["oauth2-proxy", "authservice"])
    def test_a_session_that_ends_is_renewed_once_for_a_create_too(self, gateway: str) -> None:
        kubeflow = Kubeflow(gateway)
        with LocalServer(kubeflow) as server, dex(server) as api:
            api.get(RUNS)
            kubeflow.sessions.clear()
            assert api.post(RUNS, {"display_name": "x"}) == {"runs": []}
            assert len(server.to("POST", "/login")) == 2
            assert len(server.to("POST", RUNS)) == 2

    def test_one_of_several_connectors_is_chosen(self) -> None:
        with LocalServer(Kubeflow(connectors=("github", "ldap"))) as server:
            assert dex(server, connector="ldap").get(RUNS) == {"runs": []}
            error = error_of(lambda: dex(server).get(RUNS))
        assert isinstance(error, ConfigError)
        assert "Check host and connector" in str(error)

    @pytest.mark.parametrize("gateway", ["oauth2-proxy", "authservice"])
    def test_a_wrong_password_is_sent_once_and_told(self, gateway: str) -> None:
        with LocalServer(Kubeflow(gateway)) as server, dex(server, password=f"{SECRET}-wrong", retries=3) as api:
            for _ in range(3):
                error = error_of(lambda: api.get(RUNS))
                assert isinstance(error, UnauthorizedError)
                assert "user 'me@example.com' was refused by connector 'local'" in str(error)
            assert len(server.to("POST", "/login")) == 1, "some directories lock a user out"
            assert not server.to("GET", RUNS)

    @pytest.mark.parametrize("fault", [Reply(500), RESET], ids=["500", "reset"])
    def test_dex_that_is_away_is_an_outage(self, fault: Act) -> None:
        kubeflow = Kubeflow()
        kubeflow.fault = fault
        with LocalServer(kubeflow) as server, dex(server) as api:
            error = error_of(lambda: api.post(RUNS, {}))
            assert isinstance(error, RemoteUnavailableError)
            assert not error.sent
            kubeflow.fault = None
            assert api.post(RUNS, {}) == {"runs": []}

    def test_a_server_that_asks_for_no_login_is_told(self) -> None:
        with LocalServer(lambda _: page("Pipelines")) as server:
            error = error_of(lambda: dex(server).get(RUNS))
        assert isinstance(error, ConfigError)
        assert "no login form at" in str(error)

    def test_a_dead_server_is_an_outage(self) -> None:
        with client(f"http://127.0.0.1:{free_port()}", login="me", password=SECRET, auth="dex") as api:
            error = error_of(lambda: api.get(RUNS))
        assert isinstance(error, RemoteUnavailableError)
        assert not error.sent

    def test_the_password_goes_nowhere_but_to_the_host_of_the_form(self) -> None:
        kubeflow = Kubeflow()
        with LocalServer(lambda _: Reply()) as thief, LocalServer(kubeflow) as server:
            kubeflow.action = f"{thief.url}/collect"
            error = error_of(lambda: dex(server).get(RUNS))
            assert not thief.asked
        assert isinstance(error, ConfigError)
        assert "That was not done" in str(error)

    def test_a_cookie_for_https_alone_is_not_sent_to_http(self) -> None:
        kubeflow = Kubeflow()
        kubeflow.secure = "; Secure"
        with LocalServer(kubeflow) as server:
            error = error_of(lambda: dex(server).get(RUNS))
        assert "set no cookie for that address" in str(error)

    def test_it_works_over_https_with_an_authority_of_ones_own(self, tmp_path: Path) -> None:
        authority = make_authority(tmp_path)
        kubeflow = Kubeflow()
        kubeflow.secure = "; Secure"
        with LocalServer(kubeflow, tls=authority.server) as server, dex(server, ca_file=str(authority.ca_file)) as api:
            assert api.get(RUNS) == {"runs": []}
        with LocalServer(Kubeflow(), tls=authority.server) as server, dex(server, verify_tls=False) as api:
            assert api.get(RUNS) == {"runs": []}

    def test_the_query_of_a_login_never_shows(self) -> None:
        kubeflow = Kubeflow()
        kubeflow.fault = Reply(500)
        with LocalServer(kubeflow) as server:
            assert "state" not in str(error_of(lambda: dex(server).get(RUNS)))
