"""
A session behind Dex: what a browser does at the login form, without one.

Both proxies that Kubeflow has put before its services are known: oauth2-proxy (since 1.9), which redirects or shows a page with a
button, and the older AuthService, which redirects. The form is read, not assumed, as Dex's releases differ in its fields.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from airflow_ml_provider.exceptions import ConfigError, UnauthorizedError
from airflow_ml_provider.hooks.kfp_auth import SERVER_ERROR, Headers, unavailable
from airflow_ml_provider.hooks.kfp_server import DexAuth, KfpServer
from airflow_ml_provider.hooks.network import Network

if TYPE_CHECKING:
    import httpx

REFUSED_S = 300.0
"""Seconds for which a refused password is not sent again: a poller would lock the user out where a directory counts failures."""
_SIGN_IN = "/oauth2/start"
_PASSWORD, _APPROVAL = "password", "approval"


@dataclass
class Form:
    """
    One form of a page.

    :param action: Where it is sent, as the page says it; empty for the page's own address.
    :param fields: Value per field, hidden ones too.
    """

    action: str = ""
    fields: dict[str, str] = field(default_factory=dict)


class DexLogin:
    """
    Logs in and returns the session's cookies.

    :param server: The server, whose address leads to the login form.
    :param auth: User, password and connector.
    :param network: Certificates and proxy.
    """

    def __init__(self, server: KfpServer, auth: DexAuth, network: Network) -> None:
        self.server, self.auth, self.network = server, auth, network
        self._refused: tuple[float, str] = (0.0, "")

    def __call__(self) -> tuple[Headers, None]:
        """
        Log in.

        :return: The header with the session's cookies, good until it is refused.
        :raises UnauthorizedError: the password is refused; a retry does not help.
        :raises ConfigError: there is no login form, or it is no Dex; a retry never helps.
        :raises RemoteUnavailableError: somebody on the way did not answer; a retry is safe.
        """
        import httpx

        until, reason = self._refused
        if time.monotonic() < until:
            raise UnauthorizedError(f"{reason} It was not sent again: some directories lock a user out.")
        try:
            with self.network.http(self.server.url) as http:
                self._log_in(http)
                return {"Cookie": self._cookies(http)}, None
        except httpx.HTTPError as error:
            raise unavailable(f"{self._where}: no answer while logging in: {str(error) or type(error).__name__}.") from error

    @property
    def _where(self) -> str:
        return f"connection {self.server.conn_id!r}, login by Dex for {self.server.url}"

    def _log_in(self, http: httpx.Client) -> None:
        page = self._login_page(http)
        form = _form_with(page, _PASSWORD)
        if form is None:
            raise ConfigError(
                f"{self._where}: no login form at {_address(page)} (status {page.status_code}). Check host and connector "
                "of the connection; if nothing asks for a login there, choose another auth."
            )
        answer = self._send(http, page, form, {"login": self.auth.username, _PASSWORD: self.auth.password})
        if _form_with(answer, _PASSWORD) or (answer.is_client_error and not answer.history):
            reason = (
                f"{self._where}: user {self.auth.username!r} was refused by connector {self.auth.connector!r}. Check login, "
                "password and connector of the connection."
            )
            self._refused = (time.monotonic() + REFUSED_S, reason)
            raise UnauthorizedError(reason)
        if approval := _form_with(answer, _APPROVAL):
            self._send(http, answer, approval, {_APPROVAL: "approve"})

    def _login_page(self, http: httpx.Client) -> httpx.Response:
        """Follow the way to the form: the redirects, a page with a button in between, the choice of a connector."""
        page = self._get(http, f"{self.server.url}/")
        if not _at_dex(page):
            page = self._get(http, urljoin(self.server.url, _SIGN_IN), {"rd": urlsplit(self.server.url).path or "/"})
        if _at_dex(page) and _form_with(page, _PASSWORD) is None:
            address = page.url
            chosen = address.copy_with(path=f"{address.path.rstrip('/')}/{self.auth.connector}")
            page = self._get(http, str(chosen))
        return page

    def _get(self, http: httpx.Client, url: str, query: Mapping[str, str] | None = None) -> httpx.Response:
        return self._checked(http.get(url, params=query, headers={"Accept": "text/html"}))

    def _send(self, http: httpx.Client, page: httpx.Response, form: Form, own: Mapping[str, str]) -> httpx.Response:
        target = urljoin(str(page.url), form.action)
        if urlsplit(target).netloc != page.url.netloc.decode() or urlsplit(target).scheme != page.url.scheme:
            raise ConfigError(
                f"{self._where}: the form at {_address(page)} would send the password to {urlsplit(target).netloc!r}. That was "
                "not done."
            )
        return self._checked(http.post(target, data={**form.fields, **own}))

    def _checked(self, answer: httpx.Response) -> httpx.Response:
        if answer.status_code >= SERVER_ERROR:
            raise unavailable(f"{self._where}: {_address(answer)} answered {answer.status_code}.")
        return answer

    def _cookies(self, http: httpx.Client) -> str:
        """Choose the cookies that a browser would send to the API; Dex's own are not among them."""
        request = http.build_request("GET", f"{self.server.url}/apis/v2beta1/runs")
        cookies = str(request.headers.get("Cookie", ""))
        if not cookies:
            raise ConfigError(
                f"{self._where}: the login went well, but set no cookie for that address. The connection's host must be the "
                "one that a browser shows after a login; a cookie that is for https only is not sent to http."
            )
        return cookies


class _Forms(HTMLParser):
    """The forms of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Form] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "form":
            self.found.append(Form(given.get("action", "")))
            self.inside = True
        elif tag == "input" and self.inside and given.get("name"):
            self.found[-1].fields.setdefault(given["name"], given.get("value", ""))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self.inside = False


def _form_with(page: httpx.Response, name: str) -> Form | None:
    """Find the form with a field; of the two that ask for approval the one that approves, which is the first."""
    if "html" not in page.headers.get("content-type", ""):
        return None
    parser = _Forms()
    parser.feed(page.text)
    return next((each for each in parser.found if name in each.fields), None)


def _at_dex(page: httpx.Response) -> bool:
    """Whether a page is Dex's: its form, or its list of connectors at ``/auth``."""
    return _form_with(page, _PASSWORD) is not None or page.url.path.rstrip("/").endswith("/auth")


def _address(page: httpx.Response) -> str:
    """Write a page's address without its query, which holds the state of the login."""
    return str(page.url.copy_with(query=None, fragment=None))
