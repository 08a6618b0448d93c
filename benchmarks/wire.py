"""What goes over the wire to a Kubernetes API server: a proxy that clients reach over plain HTTP, and that counts."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections import Counter
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

PIECE = 65_536
OURS_TO_SET = {"host", "connection", "authorization", "content-length", "transfer-encoding"}
WHOLE = re.compile(r"/api/v1(?:/namespaces/[^/]+)?/(?P<kind>[^/]+)(?:/(?P<name>[^/]+)(?:/(?P<part>[^/]+))?)?")


class CountingProxy:
    """
    Forwards to the API server of ``KUBECONFIG`` with the credentials from there, piece by piece as the answer comes.

    A request is one request, whoever sends it and with which library: a client's own retries and its log-ins count too.
    """

    def __init__(self) -> None:
        self.api = _client()
        self._counts: Counter[str] = Counter()
        self._bytes = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"proxy": self}))

    def __enter__(self) -> CountingProxy:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.api.api_client.close()

    def write_config(self, file: Path) -> Path:
        """
        Write a kubeconfig that leads here.

        :param file: Where to.
        :return: The file.
        """
        address = {"server": f"http://127.0.0.1:{self._server.server_address[1]}"}
        context = {"cluster": "counted", "user": "counted"}
        file.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "clusters": [{"name": "counted", "cluster": address}],
                    "users": [{"name": "counted", "user": {}}],
                    "contexts": [{"name": "counted", "context": context}],
                    "current-context": "counted",
                }
            )
        )
        return file

    def take(self) -> tuple[Counter[str], int]:
        """
        Give what was counted since the last time.

        :return: Requests by what they ask for, and bytes of all answers.
        """
        with self._lock:
            taken = self._counts, self._bytes
            self._counts, self._bytes = Counter(), 0
        return taken

    def count(self, request: str = "", size: int = 0) -> None:
        """
        Count a request, or bytes of an answer.

        :param request: What it asks for; empty for none.
        :param size: Bytes.
        """
        with self._lock:
            self._bytes += size
            if request:
                self._counts[request] += 1


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256  # twenty tasks knock at once, and one that is not let in tries again a second later

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that has gone: a task that ends does not close what it has opened."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    proxy: CountingProxy

    def _forward(self) -> None:
        if "Transfer-Encoding" in self.headers or "Upgrade" in self.headers:
            self.send_error(501, "neither chunked requests nor upgrades pass here")
            return
        self.proxy.count(asked_for(self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        client = self.proxy.api.api_client
        headers = {name: value for name, value in self.headers.items() if name.lower() not in OURS_TO_SET}
        client.update_params_for_auth(headers, [], ["BearerToken"])
        answer = client.rest_client.pool_manager.request(
            self.command,
            client.configuration.host + self.path,
            body=body or None,
            headers=headers,
            preload_content=False,
            redirect=False,
            retries=False,
        )
        with suppress(OSError):  # whoever asked has gone; the connection to the API server ends with the answer
            self._relay(answer)
            answer.release_conn()
            return
        answer.close()
        self.close_connection = True

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _forward  # noqa: N815  (http.server's names)

    def _relay(self, answer: Any) -> None:
        length = answer.headers.get("Content-Length")
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in OURS_TO_SET | {"server", "date"}:
                self.send_header(name, value)
        self.send_header(*(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", length)))
        self.end_headers()
        for piece in answer.stream(PIECE, decode_content=False):
            self.proxy.count(size=len(piece))
            self.wfile.write(piece if length is not None else b"%x\r\n%b\r\n" % (len(piece), piece))
        if length is None:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        """Say nothing on the terminal."""


def asked_for(method: str, url: str) -> str:
    """
    Say in a few words what a request asks for.

    :param method: HTTP method.
    :param url: Path and query.
    :return: For example ``create pod``, ``list pods``, ``follow log``, ``watch events``.
    """
    split = urlsplit(url)
    query, found = parse_qs(split.query), WHOLE.fullmatch(split.path)
    if found is None:
        return f"{method} {split.path}"
    kind, name, part = found["kind"], found["name"], found["part"]
    if part == "log":
        return "follow log" if query.get("follow") in (["true"], ["True"]) else "read log"
    if method == "GET" and query.get("watch") in (["true"], ["True"]):
        return f"watch {kind}"
    if name is None:
        return {"GET": f"list {kind}", "POST": f"create {kind[:-1]}"}.get(method, f"{method} {kind}")
    return f"{ {'GET': 'read'}.get(method, method.lower()) } {part or kind[:-1]}"


def _client() -> Any:
    from kubernetes import client, config

    settings = client.Configuration()
    config.load_kube_config(client_configuration=settings)
    settings.connection_pool_maxsize = 256
    settings.retries = False
    return client.CoreV1Api(client.ApiClient(settings))
