"""A connection's fields: what becomes of them, and what is refused."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import airflow
import jsonschema
import pytest

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.kfp import KfpHook
from airflow_ml_provider.hooks.kfp_connection import EXTRAS, kfp_connection, read_server
from airflow_ml_provider.hooks.kfp_server import (
    BearerAuth,
    DexAuth,
    KfpServer,
    NoAuth,
    OidcAuth,
    ServiceAccountAuth,
    UserHeaderAuth,
)

SECRET = "s3cret-passw0rd"
HOST = "https://kf.example.com/pipeline"
TOKEN_URL = "https://id.example.com/token"


def read(host: str | None = HOST, *, login: str | None = None, password: str | None = None, **extra: Any) -> KfpServer:
    return read_server("c", host=host, login=login, password=password, extra=json.dumps(extra))


def refusal(**fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(**fields)
    assert SECRET not in str(caught.value)
    return str(caught.value)


class TestTheAddress:
    @pytest.mark.parametrize(
        ("host", "port", "schema", "url"),
        [
            ("http://ml-pipeline:8888", None, None, "http://ml-pipeline:8888"),
            ("https://kf.example.com/pipeline/", None, None, "https://kf.example.com/pipeline"),
            ("https://kf.example.com/pipeline/apis/v2beta1/", None, None, "https://kf.example.com/pipeline"),
            ("https://kf.example.com/apis", None, None, "https://kf.example.com"),
            ("ml-pipeline", 8888, None, "http://ml-pipeline:8888"),
            ("kf.example.com", None, "https", "https://kf.example.com"),
            (" http://h:1 ", 2, None, "http://h:1"),
        ],
    )
    def test_it_is_built_from_the_fields(self, host: str, port: int | None, schema: str | None, url: str) -> None:
        assert read_server("c", host=host, port=port, schema=schema).url == url

    @pytest.mark.parametrize(
        ("host", "words"),
        [
            (None, "has no host"),
            ("ftp://x", "not of http or https"),
            ("http://", "not of http or https"),
            (f"http://me:{SECRET}@x", "holds credentials"),
            ("http://h:88O8", "is no URL"),
            ("https://kf.example.com/?ns=a", "something after ? or #"),
            ("https://kf.example.com/#/runs", "something after ? or #"),
        ],
    )
    def test_what_is_none_is_refused(self, host: str | None, words: str) -> None:
        assert words in refusal(host=host)

    def test_the_pages_have_the_same_address_unless_it_is_said(self) -> None:
        assert read().ui_url == HOST
        assert KfpServer("c", "http://x").ui_url == "http://x"
        assert read(ui_url="https://kf.example.com/_/pipeline/").ui_url == "https://kf.example.com/_/pipeline"
        assert "ui_url" in refusal(ui_url="ftp://x")


class TestAuthentication:
    @pytest.mark.parametrize(
        ("fields", "auth"),
        [
            ({}, NoAuth()),
            ({"auth": "none"}, NoAuth()),
            ({"password": f" {SECRET}\n"}, BearerAuth(token=SECRET)),
            ({"auth": "bearer", "token_variable": "TOKEN"}, BearerAuth(variable="TOKEN")),
            ({"auth": "bearer", "token_file": "/run/token"}, BearerAuth(file="/run/token")),
            ({"auth": "service-account"}, ServiceAccountAuth()),
            ({"auth": "service-account", "token_file": "/t", "audience": "a"}, ServiceAccountAuth(file="/t", audience="a")),
            (
                {"auth": "service-account", "kubernetes_conn_id": "k8s", "service_account": "runner", "namespace": "team-a", "token_lifetime_s": "900"},
                ServiceAccountAuth(kubernetes_conn_id="k8s", name="runner", namespace="team-a", lifetime_s=900),
            ),
            (
                {"auth": "service-account", "kubernetes_conn_id": "k8s", "service_account": "r", "namespace": "a", "service_account_namespace": "b"},
                ServiceAccountAuth(kubernetes_conn_id="k8s", name="r", namespace="b"),
            ),
            ({"auth": "user-header", "user": "alice@example.com"}, UserHeaderAuth("alice@example.com")),
            ({"auth": "user-header", "login": "al", "user_header": "X-User"}, UserHeaderAuth("al", "X-User")),
            (
                {"auth": "oidc", "login": "id", "password": SECRET, "token_url": f"{TOKEN_URL}?p=x", "scope": "a b", "client_auth": "body"},
                OidcAuth(f"{TOKEN_URL}?p=x", "id", SECRET, scope="a b", in_body=True),
            ),
            ({"auth": "dex", "login": "me", "password": SECRET, "connector": "ldap"}, DexAuth("me", SECRET, "ldap")),
        ],
    )  # fmt: skip
    def test_it_is_read_and_shows_no_secret(self, fields: dict[str, Any], auth: object) -> None:
        server = read(**fields)
        assert server.auth == auth
        assert SECRET not in repr(server)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"auth": "beerer"}, "there is no auth 'beerer'. Did you mean 'bearer'?"),
            ({"auth": "bearer"}, "needs one of password, token_variable and token_file, but has none"),
            ({"auth": "bearer", "password": SECRET, "token_file": "/t"}, "but has password and token_file"),
            ({"auth": "bearer", "login": "me", "password": SECRET}, "has no user, but login is set"),
            ({"login": "me", "password": SECRET}, "password is set, but auth 'none' does not read it"),
            ({"login": "me"}, "login is set, but auth 'none' does not read it"),
            ({"auth": "none", "password": SECRET}, "remove it, or choose"),
            ({"auth": "service-account", "service_account": "r"}, "with kubernetes_conn_id only"),
            ({"auth": "service-account", "kubernetes_conn_id": "k"}, "needs service_account"),
            ({"auth": "service-account", "kubernetes_conn_id": "k", "service_account": "r"}, "needs service_account_namespace"),
            ({"auth": "service-account", "kubernetes_conn_id": "k", "token_file": "/t"}, "choose where tokens come from"),
            ({"auth": "service-account", "kubernetes_conn_id": "k", "service_account": "r", "namespace": "n", "token_lifetime_s": 60}, "at least 600"),
            ({"auth": "user-header"}, "needs user, or login"),
            ({"auth": "user-header", "user": "ällice"}, "cannot be sent"),
            ({"auth": "user-header", "user": "a", "user_header": "a: b"}, "cannot be sent"),
            ({"auth": "user-header", "user": "a", "password": SECRET}, "has no password"),
            ({"auth": "oidc", "login": "a", "password": SECRET}, "needs token_url"),
            ({"auth": "oidc", "password": SECRET, "token_url": TOKEN_URL}, "needs login, the client's id"),
            ({"auth": "oidc", "login": "a", "token_url": TOKEN_URL}, "needs password, the client's secret"),
            ({"auth": "oidc", "login": "a", "password": SECRET, "token_url": TOKEN_URL, "client_auth": "post"}, "must be 'header' or 'body'"),
            ({"auth": "dex", "login": "me"}, "needs password"),
            ({"token_url": TOKEN_URL}, "extra 'token_url' is read by auth 'oidc' only, but auth is 'none'"),
            ({"password": SECRET, "connector": "ldap"}, "read by auth 'dex' only, but auth is 'bearer'"),
        ],
    )  # fmt: skip
    def test_what_does_not_fit_together_is_refused(self, fields: dict[str, Any], words: str) -> None:
        assert words in refusal(**fields)


class TestExtras:
    def test_an_unknown_one_is_refused_with_a_suggestion(self) -> None:
        assert "has an unknown extra 'name_space'. Did you mean 'namespace'?" in refusal(name_space="a")

    @pytest.mark.parametrize(("text", "words"), [("{", "not valid JSON"), ("[1]", "is a list"), ('"x"', "is a str")])
    def test_what_is_no_object_is_refused_and_not_taken_for_none(self, text: str, words: str) -> None:
        with pytest.raises(ConfigError, match=words):
            read_server("c", host=HOST, extra=text)

    def test_what_the_form_leaves_empty_is_the_default(self) -> None:
        empty = {name: None if extra.kind != "string" else "" for name, extra in EXTRAS.items()}
        assert read(**empty) == read() == read_server("c", host=HOST, extra=" ") == read_server("c", host=HOST)

    @pytest.mark.parametrize(("value", "read_as"), [(False, False), ("False", False), ("true", True), (True, True)])
    def test_a_switch_can_be_a_text(self, value: object, read_as: bool) -> None:
        assert read(verify_tls=value).verify_tls is read_as

    @pytest.mark.parametrize("extra", [{"verify_tls": "maybe"}, {"verify_tls": 0}, {"namespace": 5}, {"ca_file": "a\nb"}])
    def test_a_value_of_another_kind_is_refused(self, extra: dict[str, Any]) -> None:
        assert "must be" in refusal(**extra)

    def test_the_others_are_read(self) -> None:
        server = read(namespace="team-a", ca_file="/ca.pem", proxy=f"http://me:{SECRET}@proxy:3128")
        assert (server.namespace, server.ca_file, server.proxy) == ("team-a", "/ca.pem", f"http://me:{SECRET}@proxy:3128")
        assert SECRET not in repr(server)


class TestTheForm:
    def test_it_is_valid_by_airflows_own_schema(self) -> None:
        schema = json.loads((Path(airflow.__file__).parent / "provider_info.schema.json").read_text())
        info = {
            "package-name": "p",
            "name": "P",
            "description": "d",
            "versions": ["1.0.0"],
            "connection-types": [kfp_connection()],
        }
        jsonschema.validate(info, schema)
        assert json.loads(json.dumps(info)) == info

    def test_it_has_every_extra_with_its_meaning_and_default(self) -> None:
        fields = kfp_connection()["conn-fields"]
        assert list(fields) == list(EXTRAS)
        for name, each in fields.items():
            assert "Default: " in each["description"] or "needed" in each["description"], name
            jsonschema.Draft202012Validator.check_schema(each["schema"])
            jsonschema.validate(each["schema"].get("default"), each["schema"])

    def test_it_names_the_hook(self) -> None:
        form = kfp_connection()
        assert form["hook-class-name"] == f"{KfpHook.__module__}.{KfpHook.__name__}"
        assert (form["connection-type"], form["hook-name"]) == (KfpHook.conn_type, KfpHook.hook_name)


class TestTheDocumentation:
    TEXT = (Path(__file__).resolve().parents[2] / "docs" / "kfp-connection.md").read_text()

    def test_every_example_is_a_connection_that_can_be_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        kinds = set()
        examples = re.findall(r"AIRFLOW_CONN_KFP_DEFAULT='(.*)'", self.TEXT)
        for each in examples:
            monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", each)
            kinds.add(type(KfpHook().server().auth))
        assert kinds == {NoAuth, BearerAuth, ServiceAccountAuth, UserHeaderAuth, OidcAuth, DexAuth}

    def test_its_table_has_every_extra_and_who_reads_it(self) -> None:
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.+?) \| (.+?) \|$", self.TEXT, re.MULTILINE)
        said = {name: tuple(re.findall(r"`([\w-]+)`", readers)) for name, readers, _, _ in rows}
        assert said == {name: extra.auths for name, extra in EXTRAS.items()}


def test_neither_the_form_nor_the_hook_imports_a_client() -> None:
    code = """
    import json, sys
    from airflow_ml_provider.hooks.kfp_connection import kfp_connection
    kfp_connection()
    form = sorted(sys.modules)
    import airflow.sdk
    before = set(sys.modules)
    import airflow_ml_provider.hooks.kfp
    print(json.dumps([form, sorted(set(sys.modules) - before)]))
    """
    lines = "\n".join(each.strip() for each in code.splitlines())
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True, env=dict(os.environ))
    form, hook = json.loads(done.stdout.splitlines()[-1])
    heavy = {"kfp_server_api", "urllib3", "httpx", "airflow", "kubernetes", "certifi"}
    assert heavy & {each.partition(".")[0] for each in form} == set()
    assert heavy & {each.partition(".")[0] for each in hook} - {"airflow"} == set()
