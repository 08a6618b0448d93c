"""Recordings 32 and 34 told as events: how many ids fit, and what has finished among 10,000 waiting runs; and that it stays quick."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_ml_provider.testing import FakeKfpServer
from tests.testing.asking import SPEC, ask, one_of
from tests.testing.replay import HERE

WAITING = 10_000


@pytest.fixture(scope="module")
def busy() -> Iterator[FakeKfpServer]:
    """10,000 runs, 9,000 of them RUNNING, and seven that have just finished."""
    with FakeKfpServer() as server:
        catalog = server._routes.catalog
        pipeline = catalog.add_pipeline("p", "", "", "")
        version = catalog.add_version(pipeline.pipeline_id, "p", "", "", SPEC)
        body = {"display_name": "w", "pipeline_version_reference": {"pipeline_version_id": version.pipeline_version_id}}
        for _ in range(WAITING):
            server._runs.create(body)
        for run in server.runs[1000:]:
            server.report(run.run_id, "RUNNING")
        for run in server.runs[-7:]:
            server.finish(run.run_id)
        yield server


def events(name: str) -> list[dict[str, Any]]:
    exchanges = json.loads((HERE / "recordings" / f"{name}.json").read_text())["exchanges"]
    return [each for each in exchanges if "event" in each]


def of_in() -> list[Any]:
    told = [each for each in events("32-runs-list-limits") if each["event"].startswith("run_id IN")]
    return [pytest.param(each, id=each["event"]) for each in told]


@pytest.mark.parametrize("event", of_in())
def test_as_many_ids_fit_as_on_the_recorded_server(busy: FakeKfpServer, event: dict[str, Any]) -> None:
    words = event["event"].split()
    count = int(words[3])
    ids = [f"{number:036d}" for number in range(count)] if "unknown" in words else [each.run_id for each in busy.runs[:count]]
    status, body = ask(busy, "GET", "runs", filter=one_of(*ids), page_size=200)
    assert status == event["status"]
    if "runs" in event:
        assert (len(body["runs"]), body["total_size"]) == (event["runs"], event["total_size"])
    else:
        assert body == (json.loads(event["body"]) if event["body"] == "{}" else event["body"])


def of_since() -> list[Any]:
    return [pytest.param(each, id=each["event"]) for each in events("34-runs-finished-since")]


@pytest.mark.parametrize("event", of_since())
def test_what_has_finished_since_a_moment_is_found_as_recorded(busy: FakeKfpServer, event: dict[str, Any]) -> None:
    query = json.loads(json.dumps(event["query"]))
    now = time.time()
    for predicate in query["filter"]["predicates"]:
        if "timestamp_value" in predicate:
            # The recorded moments are told from the second in which the seven finished.
            shift = 3600 if "nothing" in event["event"] else -60
            predicate["timestamp_value"] = datetime.fromtimestamp(now + shift, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if predicate["key"] == "run_id":
            predicate["string_values"]["values"] = [each.run_id for each in busy.runs[2000:2200]]
            query["page_size"] = 200
    if "experiment_id" in query:
        query["experiment_id"] = busy.runs[0].experiment_id
    query["filter"] = json.dumps(query["filter"])
    status, body = ask(busy, "GET", "runs", **query)
    assert status == event["status"]
    assert (len(body.get("runs", [])), body.get("total_size")) == (event["runs"], event["total_size"])
    assert sorted({each["state"] for each in body.get("runs", [])}) == event["states"]


def best_ms(server: FakeKfpServer, **query: Any) -> float:
    times = []
    for _ in range(15):
        begin = time.perf_counter()
        ask(server, "GET", "runs", **query)
        times.append(time.perf_counter() - begin)
    return min(times) * 1000


def test_the_two_lists_of_a_poller_take_a_few_milliseconds_among_ten_thousand(busy: FakeKfpServer) -> None:
    moment = datetime.fromtimestamp(time.time() - 60, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    since = json.dumps({"predicates": [{"key": "finished_at", "operation": "GREATER_THAN", "timestamp_value": moment}]})
    assert best_ms(busy, filter=since, page_size=200) < 10
    assert best_ms(busy, filter=one_of(*(each.run_id for each in busy.runs[3000:3150])), page_size=200) < 20
