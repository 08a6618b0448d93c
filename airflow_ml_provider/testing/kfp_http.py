"""HTTP on loopback: reads requests, writes answers, can be taken away and given back. Knows nothing of pipelines."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Callable
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, unquote

from airflow_ml_provider.testing.kfp_values import Answer, Request

HEAD_LIMIT = 1024 * 1024
"""Bytes of request line and headers together, above which the server answers 431."""

Handle = Callable[[Request], Answer | None]


class Listener(socketserver.ThreadingTCPServer):
    """
    One open port.

    :param port: Port, 0 for a free one.
    :param handle: Makes an answer of a request; None closes the connection without one.
    :param clock: Seconds since 1970.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(self, port: int, handle: Handle, clock: Callable[[], float]) -> None:
        super().__init__(("127.0.0.1", port), Connection)
        self.handle = handle
        self.clock = clock
        self.live: set[socket.socket] = set()
        self.guard = threading.Lock()
        self.worker = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.worker.start()

    def close(self) -> None:
        """Stop listening and cut every connection, as a killed process does."""
        self.shutdown()
        self.server_close()
        with self.guard:
            live = list(self.live)
        for each in live:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self.worker.join()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that went away."""


class Connection(socketserver.StreamRequestHandler):
    """One connection, with one request after the other."""

    server: Listener
    disable_nagle_algorithm = True

    def handle(self) -> None:
        """Serve until either side closes."""
        with self.server.guard:
            self.server.live.add(self.connection)
        try:
            with contextlib.suppress(ConnectionError, TimeoutError, ValueError):
                while self.one():
                    pass
        finally:
            with self.server.guard:
                self.server.live.discard(self.connection)

    def one(self) -> bool:
        """
        Serve one request.

        :return: Whether another may follow.
        """
        request, refused = self.read()
        if request is None:
            if refused:
                self.write(Answer(431, b"431 Request Header Fields Too Large", "text/plain; charset=utf-8"), close=True)
            return False
        answer = self.server.handle(request)
        if answer is None:
            self.cut()
            return False
        close = request.headers.get("connection", "").lower() == "close"
        self.write(answer, close=close, head=request.method == "HEAD")
        return not close

    def read(self) -> tuple[Request | None, bool]:
        """
        Read a request.

        :return: The request, None at the end of the connection; and whether it was refused for its length.
        """
        line = self.rfile.readline(HEAD_LIMIT + 1)
        if len(line) > HEAD_LIMIT:
            self.drain()
            return None, True
        parts = line.decode("latin-1").split()
        if len(parts) != 3:  # noqa: PLR2004  (method, target, version)
            return None, False
        headers = self.headers()
        if headers is None:
            return None, True
        body = self.rfile.read(int(headers.get("content-length") or 0))
        path, _, query = parts[1].partition("?")
        found = dict(parse_qsl(query, keep_blank_values=True))
        return Request(parts[0], unquote(path), found, headers, body, self.server.clock()), False

    def headers(self) -> dict[str, str] | None:
        """
        Read the headers.

        :return: Headers with names in small letters, None when they are too long.
        """
        headers: dict[str, str] = {}
        size = 0
        while (line := self.rfile.readline(HEAD_LIMIT + 1)) not in {b"\r\n", b"\n", b""}:
            size += len(line)
            if size > HEAD_LIMIT:
                return None
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.strip().lower()] = value.strip()
        return headers

    def drain(self) -> None:
        """Read what a client still sends, so that it can read the refusal."""
        self.connection.settimeout(0.2)
        with contextlib.suppress(OSError):
            while self.connection.recv(1 << 20):
                pass

    def cut(self) -> None:
        """Close without an answer, so that the client sees a reset."""
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            self.connection.shutdown(socket.SHUT_RDWR)

    def write(self, answer: Answer, *, close: bool, head: bool = False) -> None:
        """
        Send an answer in one piece.

        :param answer: What to send.
        :param close: Whether the connection ends with it.
        :param head: Whether to send no body.
        """
        try:
            reason = HTTPStatus(answer.status).phrase
        except ValueError:
            reason = "Unknown"
        lines = [f"HTTP/1.1 {answer.status} {reason}", f"Content-Type: {answer.kind}", f"Content-Length: {len(answer.body)}"]
        if answer.gateway:
            lines.append("Grpc-Metadata-Content-Type: application/grpc")
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        if close:
            lines.append("Connection: close")
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head else answer.body))
