"""The tasks of a run beside recording 95, where Argo and not a script ran them."""

from __future__ import annotations

import json
from typing import Any

import yaml

from airflow_ml_provider.testing import FakeKfpServer
from tests.testing.asking import ask
from tests.testing.differences import WORKFLOW
from tests.testing.replay import HERE

RECORDED = json.loads((HERE / "recordings" / "95-real-execution.json").read_text())["exchanges"]


def shape(details: list[dict[str, Any]]) -> list[tuple[str, str | None, bool, int]]:
    """Name, state, whether it has ended, and how many come after it; the launcher's item of the cache has no name."""
    return sorted(
        (
            WORKFLOW.pattern.sub(WORKFLOW.word, each["display_name"]),
            each.get("state", ""),
            each["end_time"].startswith("0001"),
            len(each.get("child_tasks", [])),
        )
        for each in details
        if "display_name" in each
    )


def recorded(number: int) -> list[dict[str, Any]]:
    return list(RECORDED[number]["response"]["body"]["run_details"]["task_details"])


def start(server: FakeKfpServer, file: str) -> None:
    spec = yaml.safe_load((HERE / "pipelines" / file).read_text())
    ask(server, "POST", "runs", {"display_name": "r", "run_id": "a", "pipeline_spec": spec})
    server.report("a", "RUNNING")


def details(server: FakeKfpServer) -> list[dict[str, Any]]:
    return list(ask(server, "GET", "runs/a")[1]["run_details"]["task_details"])


def test_the_tasks_of_a_run_that_succeeds_are_those_of_argo(server: FakeKfpServer) -> None:
    start(server, "container_no_input.yaml")
    server.finish("a")
    assert shape(details(server)) == shape(recorded(2))


def test_the_tasks_of_a_run_that_is_terminated_are_those_of_argo(server: FakeKfpServer) -> None:
    start(server, "container_no_input.yaml")
    ask(server, "POST", "runs/a:terminate")
    server.report("a")
    assert shape(details(server)) == shape(recorded(20))


def without_ends(found: list[tuple[str, str | None, bool, int]]) -> list[tuple[str, str | None]]:
    return [(name, state) for name, state, _, _ in found]


def test_the_states_of_a_run_whose_second_task_fails_are_those_of_argo(server: FakeKfpServer) -> None:
    start(server, "pipeline_with_after.yaml")
    server.finish("a", "FAILED", failed_task="print-text-2")
    assert without_ends(shape(details(server))) == without_ends(shape(recorded(11)))


def test_the_executor_of_a_task_is_found_by_the_link_that_argo_has(server: FakeKfpServer) -> None:
    start(server, "container_no_input.yaml")
    server.finish("a", log="done\n")
    task = next(each for each in details(server) if each["display_name"] == "container-no-input")
    [link] = task["child_tasks"]
    assert ask(server, "GET", f"/apis/v1alpha1/runs/a/nodes/{link['pod_name']}/log") == (200, "done\n")
