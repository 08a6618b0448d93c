"""A proxy in front of the real MLflow: it counts, loses answers, can be away, cuts pages short, and can be an older server."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx

REFUSED = b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "Invalid clause(s) in filter string"}'
KEPT = ("Accept", "Authorization", "Content-Type", "X-MLFLOW-WORKSPACE")
"""Headers that are handed on."""


class MlflowProxy:
    """
    Hands every request on to MLflow, but for what it is told; a test may put its own function in the place of :meth:`answer`.

    :param url: The real server.
    """

    def __init__(self, url: str) -> None:
        self.lose: list[str] = []
        """Ends of the paths whose next answer is lost, each once: what was asked for has happened, and nobody is told."""
        self.away: int | None = None
        """Status that is answered to everything."""
        self.rows: int | None = None
        """Rows of a page."""
        self.takes_lists = True
        """Whether a search takes a list of names; older servers do not."""
        self.asked: list[tuple[str, dict[str, str]]] = []
        """Path and query of each request."""
        self._sent = threading.local()
        self._http = httpx.Client(base_url=url, timeout=30)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._http.close()

    def count(self, end: str) -> int:
        """Count the requests whose path ends so."""
        return sum(each.endswith(end) for each, _ in self.asked)

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
        """Answer a request."""
        parts = urlsplit(target)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.asked.append((parts.path, query))
        if self.away is not None:
            return self.away, b"away"
        if not self.takes_lists and " IN (" in query.get("filter", ""):
            return 400, REFUSED
        if self.rows is not None and "max_results" in query:
            query["max_results"] = str(self.rows)
            target = f"{parts.path}?{urlencode(query)}"
        answered = self._http.request(method, target, content=body or None, headers=self._sent.headers)
        return answered.status_code, answered.content

    def handle(self, method: str, target: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes] | None:
        """Answer a request; None for an answer that is lost."""
        self._sent.headers = headers  # beside the arguments, as tests replace what answers
        answered = self.answer(method, target, body)
        lost = next((each for each in self.lose if urlsplit(target).path.endswith(each)), None)
        if lost is None:
            return answered
        self.lose.remove(lost)
        return None


def _handler(proxy: MlflowProxy) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {each: self.headers[each] for each in KEPT if each in self.headers}
            answered = proxy.handle(self.command, self.path, headers, body)
            if answered is None:
                self.close_connection = True
                return
            status, content = answered
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = handle_any  # noqa: N815  (as the standard library calls them)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    return Handler
