"""
Walks the exchanges of a recording against the fake, and tells where the two differ.

Ids have names in a recording (``run-1``). The first answer that shows one ties it to the fake's id; from then on both must agree.
What is not compared stands in :mod:`tests.testing.differences`, and nowhere else.
"""

from __future__ import annotations

import http.client
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import yaml

from airflow_ml_provider.testing import FakeKfpServer
from tests.testing.differences import FIELDS, NUMBERS, PARTLY, SHORTENED, SHORTENED_LISTS, TIME_TOLERANCE_S, UNCOMPARED
from tests.testing.models import complaints

HERE = Path(__file__).parent
TIME = re.compile(r"20(2[6-9]|[3-9]\d)-\d\d-\d\dT\d\d:\d\d:\d\dZ")
NAME = re.compile(
    r"(?:experiment|pipeline|version|recurring-run|run|task|page-token|mlflow-run)-\d+|run-derived|orphan-run|[0-9a-f]{32}"
)
WORKFLOW = re.compile(
    r"\b(container-no-input|pipeline-with-after|typed-parameters|concat-message)-[2456789bcdfghjklmnpqrstvwxz]{5}\b(-\d+)?"
)
LONG = 200_000
"""Characters above which a text holds padding and no names, and a body is not read by the client's models (minutes otherwise)."""
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


class Replay:
    """
    One recording and one fake.

    :param name: Name of the recording, without ``.json``.
    :param script: What the recording does not say.
    """

    def __init__(self, name: str, script: Script) -> None:
        self.name = name
        self.script = script
        self.exchanges = json.loads((HERE / "recordings" / f"{name}.json").read_text())["exchanges"]
        self.ids: dict[str, str] = {}
        self.counts: dict[str, int] = {}
        self.time = self.first_time()
        self.server = FakeKfpServer(clock=lambda: float(self.time), **script.options)
        self.server.store.new_id = self.new_id
        self.compared = 0
        self.left_out = ""
        self.skipped: list[str] = []
        self.differences: list[str] = []

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
                if "request" in exchange:
                    self.one(number, exchange)
        return self

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
        reason = UNCOMPARED.get((self.name, number)) or UNCOMPARED.get((self.name, None))
        if reason is not None and reason.startswith("not sent"):
            self.skipped.append(f"{where}: {reason}")
            return
        request = exchange["request"]
        status, headers, body = self.send(self.filled(number, request))
        if status == 200 and len(body) < LONG:
            self.differences += [f"{where}: {each}" for each in complaints(request["method"], request["path"], body)]
        if reason is not None:
            self.same(where, "status", exchange["response"].get("status"), status)
            self.skipped.append(f"{where}: {reason}")
            return
        self.left_out = PARTLY.get((self.name, number), ("",))[0]
        self.compared += 1
        self.compare(where, exchange["response"], status, headers, body)

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
        return head.encode() + _variant(part["filename"], _file(part["content"])) + b"\r\n"

    def bound(self, text: str) -> str:
        """Put the fake's ids in the place of the recording's names."""
        names = sorted(self.ids, key=len, reverse=True)
        if not names or len(text) > LONG:
            return text
        return re.sub("|".join(rf"(?<![\w-]){re.escape(each)}(?![\w-])" for each in names), lambda m: self.ids[m.group()], text)

    def bound_value(self, value: Any) -> Any:
        if isinstance(value, str):
            if value.startswith("<spec of "):
                return yaml.safe_load(_file(value.replace("<spec of", "<content of")))
            return self.bound(value)
        if isinstance(value, dict):
            return {key: self.bound_value(each) for key, each in value.items()}
        return [self.bound_value(each) for each in value] if isinstance(value, list) else value

    def compare(
        self, where: str, expected: Mapping[str, Any], status: int | None, headers: Mapping[str, str], body: bytes
    ) -> None:
        if "no_response" in expected:
            self.same(where, "status", None, status)
            return
        self.same(where, "status", expected["status"], status)
        kind = (expected.get("headers") or {}).get("Content-Type")
        self.same(where, "content type", kind, headers.get("Content-Type"))
        if "body" not in expected:
            self.same(where, "text", expected.get("text", ""), body.decode())
            return
        try:
            found = json.loads(body)
        except ValueError:
            self.differences.append(f"{where}: no JSON: {body[:200]!r}")
            return
        self.walk(where, expected["body"], found)

    def same(self, where: str, what: str, expected: Any, found: Any) -> None:
        if expected != found:
            self.differences.append(f"{where} {what}: recorded {expected!r}, fake {found!r}")

    def walk(self, where: str, expected: Any, found: Any) -> None:
        """Compare two values in depth."""
        if isinstance(expected, dict) and isinstance(found, dict):
            if set(expected) == {"keys"}:
                self.same(where, "keys", expected["keys"], sorted(found))
                return
            if "states" in expected:
                found = {
                    "total_size": found.get("total_size"),
                    "states": [each["storage_state"] for each in found.get("runs", [])],
                }
            if "has_next_page_token" in expected:
                token = found.pop("next_page_token", "")
                found = {**found, "has_next_page_token": bool(token)}
            if "task_details" in expected:
                found = {**found, **found.get("run_details", {})}
            self.walk_object(where, expected, found)
        elif isinstance(expected, list) and isinstance(found, list):
            self.walk_list(where, expected, found)
        elif isinstance(expected, str) and isinstance(found, str):
            self.walk_text(where, expected, found)
        elif isinstance(expected, str) and re.fullmatch(r"<\d+ (runs?|items)>", expected) and isinstance(found, list):
            self.same(where, "length", int(re.findall(r"\d+", expected)[0]), len(found))
        elif isinstance(expected, str) and expected.startswith("<spec of "):
            self.same(where, "spec", self.bound_value(expected), found)
        else:
            self.same(where, "value", expected, found)

    def walk_object(self, where: str, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        may_be_more = {*SHORTENED, *(SHORTENED_LISTS if "runs" in expected else ())}
        shortened = "run_id" in expected and "experiment_id" not in expected and "task_id" not in expected
        for key in sorted(set(expected) | set(found)):
            if key in FIELDS or key == self.left_out or (shortened and key not in expected):
                continue
            if key not in found:
                self.differences.append(f"{where}.{key}: recorded {str(expected[key])[:200]!r}, missing in the fake")
            elif key not in expected:
                if key not in may_be_more:
                    self.differences.append(f"{where}.{key}: only in the fake: {str(found[key])[:200]!r}")
            elif key == "task_details":
                self.walk_tasks(f"{where}.{key}", expected[key], found[key])
            else:
                self.walk(f"{where}.{key}", expected[key], found[key])

    def walk_list(self, where: str, expected: list[Any], found: list[Any]) -> None:
        self.same(where, "length", len(expected), len(found))
        for number, (left, right) in enumerate(zip(expected, found, strict=False)):
            self.walk(f"{where}[{number}]", left, right)

    def walk_tasks(self, where: str, expected: Any, found: Any) -> None:
        if isinstance(expected, str):
            self.walk(where, expected, found)
            return
        whole = all(each.get("state") == "SUCCEEDED" for each in expected if WORKFLOW.fullmatch(each["display_name"]))
        left, right = (Counter(_task(each, whole=whole) for each in side) for side in (expected, found))
        for each in (left - right) if whole else ():
            self.differences.append(f"{where}: task missing in the fake: {each}")
        for each in right - left:
            self.differences.append(f"{where}: task only in the fake: {each}")
        self.same(where, "the fake has tasks", True, bool(found))

    def walk_text(self, where: str, expected: str, found: str) -> None:
        if TIME.fullmatch(expected) and TIME.fullmatch(found):
            if abs(seconds(expected) - seconds(found)) > TIME_TOLERANCE_S:
                self.differences.append(f"{where}: recorded {expected}, fake {found}")
            return
        if NAME.fullmatch(expected) and expected not in self.ids and found not in self.ids.values():
            self.ids[expected] = found
            return
        left, right = (NUMBERS.sub("<number>", WORKFLOW.sub("<workflow>", each)) for each in (self.bound(expected), found))
        if expected in self.ids and not expected.startswith(("page-token", "task-")):
            left = self.ids[expected]
        self.same(where, "text", left, right)


def seconds(text: str) -> int:
    return int(datetime.fromisoformat(text).astimezone(UTC).timestamp())


def _made(body: Any) -> Any:
    """Leave out what a client chose or what an answer only repeats."""
    if isinstance(body, dict):
        return {key: _made(each) for key, each in body.items() if key not in {"trigger", "scheduled_at", "message", "details"}}
    return [_made(each) for each in body] if isinstance(body, list) else body


def _task(item: Mapping[str, Any], *, whole: bool) -> tuple[Any, ...]:
    name = WORKFLOW.sub("<workflow>", item.get("display_name", ""))
    state = (item.get("state"), item["end_time"].startswith("0001")) if whole else ()
    return name, *state, tuple(sorted(set(item) - {"child_tasks", "state"}))


def _plain(value: str) -> str:
    return value.replace("<", "").replace(">", "").replace(" ", "_").replace("Bearer_", "Bearer ").replace("Basic_", "Basic ")


VARIANTS: dict[str, tuple[str, str]] = {
    "no_name.yaml": ("{name: container-no-input}\nroot", "{name: null}\nroot"),
    "invalid_yaml.yaml": ("components:", "componets:"),
    "schema9.yaml": ("schemaVersion: 2.1.0", "schemaVersion: 9.9.9"),
    "extra.yaml": ("schemaVersion:", "extra: 1\nschemaVersion:"),
    "badname.yaml": ("{name: container-no-input}\nroot", "{name: Bad_Näme x}\nroot"),
    "longname.yaml": ("{name: container-no-input}\nroot", "{name: " + "a" * 200 + "}\nroot"),
    "norootcomp.yaml": ("componentRef: {name: comp-container-no-input}", "componentRef: {name: comp-absent}"),
}
"""Uploads that recording 04 spoils in a way that only its notes tell, by the name of the file."""


def _variant(filename: str, content: bytes) -> bytes:
    before, after = VARIANTS.get(filename, ("", ""))
    return content.decode().replace(before, after).encode() if before else content


def _file(text: str) -> bytes:
    match = re.fullmatch(r"<content of pipelines/(.+)>", text.replace("echo.yaml", "container_no_input.yaml"))
    if match:
        return (HERE / "pipelines" / match.group(1)).read_bytes()
    sized = re.fullmatch(r"<(\d+) bytes>", text)
    return bytes(range(256)) if sized else text.encode()
