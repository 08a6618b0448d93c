"""The demo's client of Airflow, against an answer that only a busy Airflow on SQLite gives."""

from __future__ import annotations

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from demo import airflow_api
from demo.airflow_api import AirflowApi
from demo.errors import DemoError

LOCKED = b'{"detail":{"reason":"Database error","statement":"hidden"}}'


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[AirflowApi, list[tuple[int, bytes]]]]:
    """A client, and what the server answers next; the last answer stays."""
    told: list[tuple[int, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            status, body = (201, b'{"access_token": "t"}') if self.path == "/auth/token" else told[0]
            if self.path != "/auth/token" and len(told) > 1:
                told.pop(0)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    monkeypatch.setattr(airflow_api, "LOCKED_PAUSES_S", (0.0, 0.0))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        with AirflowApi(f"http://127.0.0.1:{server.server_port}", "admin", "admin") as api:
            yield api, told
        server.shutdown()
        thread.join()


def test_what_sqlites_lock_was_in_the_way_of_is_asked_for_again(answers: tuple[AirflowApi, list[tuple[int, bytes]]]) -> None:
    api, told = answers
    told += [(500, LOCKED), (500, LOCKED), (200, b'{"ok": 1}')]
    assert api.call("POST", "/dags/d/dagRuns", body={}) == {"ok": 1}


@pytest.mark.parametrize("error", [LOCKED, b'{"detail": "another"}'])
def test_what_stays_wrong_is_an_error(answers: tuple[AirflowApi, list[tuple[int, bytes]]], error: bytes) -> None:
    api, told = answers
    told += [(500, error)]
    with pytest.raises(DemoError, match="Airflow answered 500 to POST /dags/d/dagRuns"):
        api.call("POST", "/dags/d/dagRuns", body={})
