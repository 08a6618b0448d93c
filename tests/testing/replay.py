"""
Walks the exchanges of a recording against the fake.

What is not compared stands in :mod:`tests.testing.differences`, and nowhere else; here and in :mod:`tests.testing.comparison` it is
applied, and noted as needed.
"""

from __future__ import annotations

import http.client
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlencode

from airflow_ml_provider.testing import FakeKfpServer
from tests.testing import differences
from tests.testing.comparison import HERE, TIME, Comparison, file_content, seconds
from tests.testing.differences import NOT_READ, SENT

READ = {"request", "response", "note", "status", "headers", "body", "text", "no_response"}
"""Parts of an exchange that are compared, and the note that tells a reader what it shows."""
Step = Callable[["Replay"], None]


@dataclass
class Script:
    """
    What a recording does not say of itself.

    :param setup: Done before the first exchange: what was there already.
    :param before: Done before the exchange of that number: what the engine did.
    :param ranks: Order of the ids, which decides between rows of the same second: names in ascending order.
    :param options: Options of the fake.
    :param bodies: Bodies that the recording only describes, by the number of the exchange.
    """

    setup: Step | None = None
    before: Mapping[int, Step] = field(default_factory=dict)
    ranks: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    bodies: Mapping[int, Callable[[Replay], Any]] = field(default_factory=dict)


class Replay(Comparison):
    """
    One recording and one fake.

    :param name: Name of the recording, without ``.json``.
    :param script: What the recording does not say.
    """

    def __init__(self, name: str, script: Script) -> None:
        super().__init__()
        self.name = name
        self.script = script
        self.exchanges = json.loads((HERE / "recordings" / f"{name}.json").read_text())["exchanges"]
        self.counts: dict[str, int] = {}
        self.time = self.first_time()
        self.server = FakeKfpServer(clock=lambda: float(self.time), **script.options)
        self.server.store.new_id = self.new_id
        self.compared = 0

    def new_id(self, kind: str) -> str:
        self.counts[kind] = number = self.counts.get(kind, 0) + 1
        name = f"{kind}-{number}"
        rank = self.script.ranks.index(name) + 1 if name in self.script.ranks else 0
        return f"{rank:08x}-0000-4000-8000-{zlib.crc32(name.encode()):012x}"

    def first_time(self) -> int:
        found = TIME.findall(json.dumps(self.exchanges)) and [m.group() for m in TIME.finditer(json.dumps(self.exchanges))]
        return min(map(seconds, found)) if found else 1_795_000_000

    def run(self) -> Replay:
        with self.server:
            self.server.store.experiments.clear()
            self.server.store.default_experiment()
            if self.script.setup:
                self.script.setup(self)
            for number, exchange in enumerate(self.exchanges):
                self.pass_time(number)
                if number in self.script.before:
                    self.script.before[number](self)
                self.read_parts(number, exchange)
                if "request" in exchange:
                    self.one(number, exchange)
        return self

    def read_parts(self, number: int, exchange: Mapping[str, Any]) -> None:
        """Complain of a part of an exchange that is neither compared nor in the list."""
        if "event" in exchange:
            self.use("event")
            return
        there = set(exchange) | set(exchange.get("response", {}))
        unread = {each.name for each in NOT_READ}
        self.used |= there & unread
        self.same(f"{self.name}[{number}]", "parts that nobody reads", set(), there - READ - unread)

    def pass_time(self, number: int) -> None:
        """Let the clock show what the next answer shows; it never goes back."""
        for exchange in self.exchanges[number:]:
            if "request" in exchange:
                body = exchange.get("response", {}).get("body")
                made = exchange["request"]["method"] == "POST" and isinstance(body, dict) and body.get("created_at")
                shown = [made] if made else [each.group() for each in TIME.finditer(json.dumps(_made(body)))]
                self.time = max([self.time, *map(seconds, shown)])
                return

    def one(self, number: int, exchange: Mapping[str, Any]) -> None:
        where = f"{self.name}[{number}]"
        self.rule = rule = differences.of(self.name, number)
        if rule is not None and not rule.sent:
            self.use(rule)
            return
        request, expected = exchange["request"], exchange["response"]
        status, headers, body = self.send(self.filled(number, request))
        if status == 200:
            self.ask_models(where, request, body)
        if rule is not None and not rule.field:
            self.same(where, "status", expected.get("status"), status)
            if self.would_differ(lambda: self.compare(where, expected, status, headers, body)):
                self.use(rule)
            return
        self.compared += 1
        self.compare(where, expected, status, headers, body)

    def filled(self, number: int, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Put a body in the place of its description."""
        if number not in self.script.bodies:
            return request
        made = self.script.bodies[number](self)
        if "multipart" in request:
            part = {**request["multipart"]["uploadfile"], "content": made}
            return {**request, "multipart": {"uploadfile": part}}
        return {**request, "body": made}

    def send(self, request: Mapping[str, Any]) -> tuple[int | None, Mapping[str, str], bytes]:
        headers = {name: _plain(value) for name, value in (request.get("headers") or {}).items()}
        target = quote(self.bound(request["path"]), safe="/:%?=&") if "%" not in request["path"] else self.bound(request["path"])
        query = {
            key: self.bound(value) if isinstance(value, str) else value for key, value in (request.get("query") or {}).items()
        }
        if query:
            target += "?" + urlencode(query)
        content = self.content(request, headers)
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port, timeout=20)
        try:
            connection.request(request["method"], target, content, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        except (ConnectionError, http.client.HTTPException):
            return None, {}, b""
        finally:
            connection.close()

    def content(self, request: Mapping[str, Any], headers: dict[str, str]) -> bytes | None:
        if "multipart" in request:
            headers["Content-Type"] = "multipart/form-data; boundary=cut"
            return b"".join(self.part(name, part) for name, part in request["multipart"].items()) + b"--cut--\r\n"
        if "raw_body" in request:
            return self.bound(request["raw_body"]).encode()
        if "body" not in request:
            return None
        return json.dumps(self.bound_value(request["body"])).encode()

    def part(self, name: str, part: Mapping[str, Any]) -> bytes:
        head = f'--cut\r\nContent-Disposition: form-data; name="{name}"; filename="{part["filename"]}"\r\n\r\n'
        return head.encode() + self.spoiled(part["filename"], file_content(self.replaced(part["content"]))) + b"\r\n"

    def replaced(self, content: str) -> str:
        """Name another file for one that is not there."""
        for rule in SENT:
            if not rule.before and f"/{rule.file}>" in content:
                self.use(rule)
                return content.replace(rule.file, rule.after)
        return content

    def spoiled(self, filename: str, content: bytes) -> bytes:
        """Do to a file what only a note tells."""
        for rule in SENT:
            if rule.before and rule.file == filename:
                self.use(rule)
                return content.decode().replace(rule.before, rule.after).encode()
        return content


def _made(body: Any) -> Any:
    """Leave out what a client chose or what an answer only repeats."""
    if isinstance(body, dict):
        return {key: _made(each) for key, each in body.items() if key not in {"trigger", "scheduled_at", "message", "details"}}
    return [_made(each) for each in body] if isinstance(body, list) else body


def _plain(value: str) -> str:
    return value.replace("<", "").replace(">", "").replace(" ", "_").replace("Bearer_", "Bearer ").replace("Basic_", "Basic ")
