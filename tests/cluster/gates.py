"""Gates at which programs in pods wait until a test lets them go on: over HTTP, so that it works while Kubernetes is away."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PIECE = 65_536


class Gates:
    """A server; a program asks for ``/task/try/gate`` and gets its answer when that gate is open."""

    def __init__(self) -> None:
        self.waiting: set[str] = set()
        self.opened: set[str] = set()
        self.closed = False
        self.change = threading.Condition()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # http.server's name
                with suppress(OSError):  # the pod is gone
                    owner.pass_through(self.path.strip("/"))
                    self.send_response(200)
                    self.send_header("Content-Length", "0")
                    self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = int(self.server.server_address[1])

    def pass_through(self, name: str) -> None:
        with self.change:
            self.waiting.add(name)
            self.change.wait_for(lambda: self.closed or name in self.opened)

    def reached(self, name: str) -> bool:
        return name in self.waiting

    def open(self, name: str) -> None:
        with self.change:
            self.opened.add(name)
            self.change.notify_all()

    def close(self) -> None:
        """Let everybody through, and tell those who act that it is over."""
        with self.change:
            self.closed = True
            self.change.notify_all()

    @contextmanager
    def serving(self) -> Iterator[Gates]:
        thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.close()
            self.server.shutdown()
            self.server.server_close()
            thread.join()


@contextmanager
def relayed(port: int, address: str) -> Iterator[str]:
    """Let others than this machine reach a port of its loopback interface; for clusters that have no command for that."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port)) as inner:
                back = threading.Thread(target=_copy, args=(inner, self.request), daemon=True)
                back.start()
                _copy(self.request, inner)
                back.join()

    server = socketserver.ThreadingTCPServer((address, 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield f"{address}:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(PIECE):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
