"""A small client for the tests: one connection per request, JSON in and out."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlencode

from airflow_ml_provider.testing import FakeKfpServer

API = "/apis/v2beta1"
SPEC: dict[str, Any] = {
    "pipelineInfo": {"name": "train"},
    "schemaVersion": "2.1.0",
    "root": {
        "dag": {
            "tasks": {
                "prepare": {"componentRef": {"name": "comp"}},
                "fit": {"componentRef": {"name": "comp"}, "dependentTasks": ["prepare"]},
                "score": {"componentRef": {"name": "comp"}, "dependentTasks": ["fit"]},
            }
        }
    },
}


def ask(
    server: FakeKfpServer,
    method: str,
    path: str,
    body: Any = None,
    *,
    timeout_s: float = 30.0,
    headers: dict[str, str] | None = None,
    **query: Any,
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout_s)
    target = (path if path.startswith("/") else f"{API}/{path}") + (f"?{urlencode(query)}" if query else "")
    try:
        connection.request(method, target, None if body is None else json.dumps(body), headers or {})
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    try:
        return answer.status, json.loads(data)
    except ValueError:
        return answer.status, data.decode()


def create(server: FakeKfpServer, run_id: str = "", name: str = "r", **more: Any) -> tuple[int, Any]:
    body = {"display_name": name, "pipeline_spec": SPEC, **({"run_id": run_id} if run_id else {}), **more}
    return ask(server, "POST", "runs", body)


def carrier(server: FakeKfpServer) -> str:
    body = {"display_name": "carrier", "pipeline_spec": SPEC, "max_concurrency": "1", "mode": "DISABLE"}
    return str(ask(server, "POST", "recurringruns", body)[1]["recurring_run_id"])


def where(*predicates: dict[str, Any]) -> str:
    return json.dumps({"predicates": predicates})


def one_of(*run_ids: str) -> str:
    return where({"key": "run_id", "operation": "IN", "string_values": {"values": run_ids}})


def tasks(server: FakeKfpServer, run_id: str) -> dict[str, Any]:
    details = ask(server, "GET", f"runs/{run_id}")[1].get("run_details", {}).get("task_details", [])
    return {each["display_name"]: each for each in details}
