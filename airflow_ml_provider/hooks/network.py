"""How a server is reached: certificates and proxies, the same for the API and for where its tokens come from."""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from airflow_ml_provider.exceptions import ConfigError

if TYPE_CHECKING:
    import httpx

NO_PROXY = "none"
"""What the connection's proxy says to go without one, whatever the environment says."""
TIMEOUT_S = 30.0
"""Seconds that one request for a token or a session may take."""


@dataclass(frozen=True)
class Network:
    """
    Certificates and proxy of one connection.

    :param conn_id: For messages.
    :param verify_tls: Whether certificates are verified.
    :param ca_file: PEM file of the authorities to trust; empty for ``SSL_CERT_FILE`` of the environment, else certifi's.
    :param proxy: URL; empty for what the environment says; ``none``.
    """

    conn_id: str
    verify_tls: bool = True
    ca_file: str = ""
    proxy: str = ""

    def authorities(self) -> str:
        """
        Find the file of trusted authorities.

        :return: Its path.
        :raises ConfigError: the connection, or the environment, names a file that is not there; a retry never helps.
        """
        import certifi

        path = self.ca_file or os.environ.get("SSL_CERT_FILE") or certifi.where()
        if not Path(path).is_file():
            raise ConfigError(
                f"connection {self.conn_id!r}: there is no file {path!r} with the certificates to trust (ca_file, or "
                "SSL_CERT_FILE of the environment). It must be on every machine that runs tasks or triggers."
            )
        return path

    def proxy_for(self, url: str) -> str | None:
        """
        Choose the proxy for a URL; ``NO_PROXY`` and the like of the environment are honoured for its proxies only.

        :param url: Where to.
        :return: The proxy's URL, None for none. It can hold a password.
        :raises ConfigError: it is no HTTP proxy; a retry never helps.
        """
        parts = urlsplit(url)
        found = self.proxy
        if not found:
            found = getproxies_environment().get(parts.scheme, "")
            found = "" if found and proxy_bypass(parts.netloc) else found
        if not found or found == NO_PROXY:
            return None
        full = found if "://" in found else f"http://{found}"
        scheme = _scheme(full)
        if scheme not in {"http", "https"}:
            raise ConfigError(
                f"connection {self.conn_id!r}: a proxy of the kind {scheme or 'unknown'!r} is not supported. Give an HTTP "
                f"proxy, http://proxy:3128, or {NO_PROXY!r} to go without the one of the environment."
            )
        return full

    @contextmanager
    def http(self, url: str) -> Iterator[httpx.Client]:
        """
        Make a client for tokens and sessions; it follows redirects, keeps cookies, and logs nothing.

        :param url: Where to, for the proxy.
        :return: The client, closed at the end.
        :raises ConfigError: as for :meth:`authorities` and :meth:`proxy_for`.
        """
        import httpx

        verify: ssl.SSLContext | bool = False
        if self.verify_tls:
            verify = ssl.create_default_context(cafile=self.authorities())
        # trust_env would bring the environment's proxies back, and .netrc, which puts another user's password into a request.
        timeout = httpx.Timeout(TIMEOUT_S)
        with (
            httpx.Client(
                verify=verify, proxy=self.proxy_for(url), trust_env=False, follow_redirects=True, timeout=timeout
            ) as http,
            unlogged("httpx", "httpcore.connection", "httpcore.http11", "httpcore.proxy"),
        ):
            yield http


@contextmanager
def unlogged(*names: str) -> Iterator[None]:
    """
    Keep what this thread does meanwhile out of other packages' logs: at the level DEBUG they write tokens and cookies.

    :param names: Names of their loggers.
    """
    thread = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    loggers = [logging.getLogger(name) for name in names]
    for each in loggers:
        each.addFilter(others)
    try:
        yield
    finally:
        for each in loggers:
            each.removeFilter(others)


def _scheme(url: str) -> str:
    """Read the scheme of a URL; empty for what is none, and nothing of it is repeated: it can hold a password."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # fails over one that is no number
    except ValueError:
        return ""
    return parts.scheme if parts.hostname else ""
