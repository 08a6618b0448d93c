"""No message repeats a password that somebody has put where none belongs, however the URL falls apart over it."""

from __future__ import annotations

import json
import traceback

import pytest

from airflow_ml_provider.core.tracking_values import check_uri
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow_connection import read_server
from airflow_ml_provider.hooks.network import Network

SECRET = "s3cr3t/w0rd"
ADDRESSES = (
    f"http://me:{SECRET}@host:5000",
    "http://me:s3cr3t#w0rd@host",
    "http://me:s3cr3t?w0rd@host",
    "http://me:12/s3cr3t@host",
    "http://me:s3cr3t\N{FULLWIDTH COMMERCIAL AT}host",
    "http://me%3As3cr3t%40host",
    "http:///me:s3cr3t@host",
    "me:p://s3cr3t@host",
    "http://host/?token=s3cr3t",
)


def said_by(refused: pytest.ExceptionInfo[BaseException]) -> str:
    return "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("field", ["host", "ui_url", "pod_url"])
def test_of_an_address(field: str, address: str) -> None:
    given = {"host": address} if field == "host" else {"host": "http://host", "extra": json.dumps({field: address})}
    with pytest.raises(ConfigError) as refused:
        read_server("c", **given)
    assert field in str(refused.value)
    assert "s3cr3t" not in said_by(refused)


@pytest.mark.parametrize(
    "proxy", [f"http://me:{SECRET}@proxy:1", "socks5://me:s3cr3t@proxy", "me:s3cr3t:x@proxy:[", "http://:s3cr3t"]
)
def test_of_a_proxy(proxy: str) -> None:
    with pytest.raises(ConfigError) as refused:
        Network("c", proxy=proxy).proxy_for("http://host")
    assert "s3cr3t" not in said_by(refused)


@pytest.mark.parametrize("proxy", ["http://me:s3cr3t@proxy:1\n", ["http://me:s3cr3t@proxy:1"]])
def test_of_an_extra_that_is_no_text(proxy: object) -> None:
    with pytest.raises(ConfigError, match="extra 'proxy' must be a text in one line") as refused:
        read_server("c", host="host", extra=json.dumps({"proxy": proxy}))
    assert "s3cr3t" not in said_by(refused)


@pytest.mark.parametrize(
    "uri", ["s3://me:s3cr3t@bucket/k", "https://me:s3cr3t/w0rd@host/k", "https://me:s3cr3t\N{FULLWIDTH COMMERCIAL AT}host/k"]
)
def test_of_the_uri_of_an_artifact(uri: str) -> None:
    with pytest.raises(ConfigError) as refused:
        check_uri(uri)
    assert "s3cr3t" not in said_by(refused)


def test_an_at_sign_of_the_path_can_be_written() -> None:
    assert read_server("c", host="https://host/a%40b").url == "https://host/a%40b"
