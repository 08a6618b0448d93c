"""What may go wrong on a real Airflow while a pipeline runs, scene by scene, and what is left of it: never a false success."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Barrier, Event
from typing import Any
from uuid import uuid4

import httpx
import pytest

from airflow_ml_provider.testing import FakeKfpServer
from tests.stack.conftest import Site, until
from tests.stack.kfp_case import CARRIERS, CREATE, ONE_RUN, Case, Outcome, side_by_side

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
PACKAGE = Path(__file__).parent / "dags/pipelines/one_step.yaml"
IMPATIENT = {"AIRFLOW__ML__PATIENCE_S": "6", "AIRFLOW__ML__HTTP_TIMEOUT_S": "3", "AIRFLOW__ML__HTTP_RETRIES": "0"}
DEFERS: dict[str, Any] = {"deferrable": True}
WAITS: dict[str, Any] = {"deferrable": False}
CARRIED: dict[str, Any] = {"deferrable": True, "exactly_once": "carrier", "options": {"settle_s": 10}}
ASKS_KUBERNETES: dict[str, Any] = {"deferrable": True, "exactly_once": "workflows", "options": {"settle_s": 6}}
UPLOAD = "/pipelines/upload"
Play = Generator[dict[str, Any], Case, Outcome]


def silence(server: FakeKfpServer, times: int) -> Play:
    """The server takes every question of the triggerer and never answers."""
    case = yield DEFERS
    workflow = case.deferred()
    server.fault("hang", times=times)
    until("hanging questions", lambda: not server._faults.orders)
    assert case.state[0] == "deferred"
    server.finish(workflow.run_id)
    return case.outcome()


def outage(server: FakeKfpServer, how: dict[str, Any]) -> Play:
    """The server is away for longer than the patience; the next try finds the run, which has gone on."""
    case = yield {"environment": IMPATIENT, **how}
    workflow = case.deferred() if how is DEFERS else case.polling()
    server.down()
    case.tried_again()
    log = case.log()
    assert "RemoteUnavailableError" in log
    assert f"run {workflow.run_id}" in log
    assert "patience 6 s). The run goes on, and a retry finds it again." in log
    assert not workflow.stopped
    server.up()
    until("the second try", lambda: case.state[1] == 2 and case.state[0] == ("deferred" if how is DEFERS else "running"))
    if how is DEFERS:
        case.deferred()
    server.finish(workflow.run_id)
    found = case.outcome()
    assert case.state[1] == 2
    assert not case.was_asked("POST", ":terminate$")
    return found


def killed_in_the_create(server: FakeKfpServer, fault: str) -> Play:
    """The worker dies after its create was sent and before it knows, or has noted, what became of it."""
    server.fault(fault)
    case = yield ASKS_KUBERNETES
    until("the create", lambda: case.was_asked("POST", CREATE))
    sent = time.time()
    if fault != "hang-after":  # which answers nothing at all
        until("the question after it", lambda: case.was_asked("GET", ONE_RUN, after=sent))
    case.kill_worker()
    case.tried_again()
    if fault != "lost-between":
        server.finish(case.deferred().run_id)
    found = case.outcome()
    assert case.state[1] == 2
    if fault == "lost-between":
        (workflow,) = server.orphans
        assert f"is an orphan: the server has no row of it, but Kubernetes runs workflow {workflow.name}" in case.log(2)
        server.remove_workflow(workflow.run_id)
    return found


def killed_at_its_carrier(server: FakeKfpServer, fault: str) -> Play:
    """The worker dies while its carrier is made: it is made or not, and nobody was told."""
    server.fault(fault, method="POST", path=CARRIERS)
    case = yield CARRIED
    until("the carrier", lambda: case.was_asked("POST", CARRIERS))
    if fault == "hang-after":
        until("its row", lambda: case.carriers)
    case.kill_worker()
    case.tried_again()
    server.finish(case.deferred().run_id)
    found = case.outcome()
    assert case.count("POST", CARRIERS) == (1 if fault == "hang-after" else 2)
    return found


def lost_machine(server: FakeKfpServer) -> Play:
    """The worker and what watches over it die: Airflow notices by the heartbeats that do not come."""
    server.fault("hang-after")
    case = yield WAITS
    workflow = case.started()
    case.lose_machine()
    case.tried_again()
    until("the second try", lambda: case.state[1] == 2)
    server.finish(workflow.run_id)
    return case.outcome()


def marked_as_failed(server: FakeKfpServer, fault: str, path: str) -> Play:
    """Somebody marks the task as failed while it uploads its package, or creates its run."""
    server.fault(fault, method="POST", path=path)
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "package.yaml"  # one that no server has
        package.write_text(PACKAGE.read_text().replace("name: one-step", f"name: one-step-{uuid4()}"))
        case = yield {"pipeline": str(package), **DEFERS}
        until("the request", lambda: case.was_asked("POST", path))
        case.mark("failed")
    return case.outcome()


def terminated(server: FakeKfpServer) -> Play:
    """The worker is told to end, as Kubernetes does when it takes a node away; the next try starts anew."""
    case = yield WAITS
    old = case.polling()
    case.kill_worker(signal.SIGTERM)
    until("the terminate", lambda: case.was_asked("POST", f"{old.run_id}:terminate$"))
    server.report(old.run_id)
    new = until("the new workflow", lambda: len(case.workflows) == 2 and case.workflows[-1])
    assert new.run_id != old.run_id
    assert "was stopped by this task: the task was killed." in case.log()
    server.finish(new.run_id)
    return case.outcome()


def marked_as_success(server: FakeKfpServer, leave: list[str]) -> Play:
    """Somebody marks a task as a success that waits in a worker."""
    case = yield {"leave_running": leave, **WAITS}
    case.polling()
    case.mark("success")
    return case.outcome()


def cleared(server: FakeKfpServer, leave: list[str]) -> Play:
    """Somebody clears a task that waits in a worker."""
    case = yield {"leave_running": leave, **WAITS}
    old = case.polling()
    case.clear()
    new = until("the new workflow", lambda: len(case.workflows) == 2 and case.workflows[-1])
    server.finish(new.run_id)
    found = case.outcome()
    assert case.result()["run_id"] == new.run_id
    assert old.stopped == (not leave)
    return found


def row(name: str, scene: Callable[..., Play], outcome: Outcome, *arguments: Any, full: bool = False) -> Any:
    """One row of the table: what happens, and what is left of it."""

    def play(server: FakeKfpServer) -> Play:
        return scene(server, *arguments)

    return pytest.param(name, play, outcome, marks=[pytest.mark.full] if full else [], id=name)


UNTOUCHED = Outcome("failed", workflows=0, creates=0)
TABLE = [
    row("a hanging server is outlived", silence, Outcome(), 1),
    row("a long hanging server is outlived", silence, Outcome(), 3, full=True),
    row("an outage beyond the patience, deferred", outage, Outcome(), DEFERS),
    row("an outage beyond the patience, in a worker", outage, Outcome(), WAITS),
    row("workflows, killed, an orphan was made", killed_in_the_create, Outcome("failed", running=1), "lost-between"),
    row("workflows, killed, nothing was made", killed_in_the_create, Outcome(creates=2), "lost-before", full=True),
    row("workflows, killed, both were made", killed_in_the_create, Outcome(), "hang-after", full=True),
    row("carrier, killed, it was made", killed_at_its_carrier, Outcome(), "hang-after"),
    row("carrier, killed, it was not made", killed_at_its_carrier, Outcome(), "hang", full=True),
    row("a machine is lost in the create", lost_machine, Outcome(), full=True),
    row("marked as failed while it uploads", marked_as_failed, UNTOUCHED, "hang", UPLOAD),
    row("marked as failed while the create hangs", marked_as_failed, Outcome("failed"), "hang-after", CREATE),
    row("marked as failed while it hangs on its way", marked_as_failed, Outcome("failed", 0), "hang", CREATE, full=True),
    row("a worker told to end", terminated, Outcome(workflows=2, creates=2), full=True),
    row("marked as a success in a worker", marked_as_success, Outcome(), [], full=True),
    row("marked as a success and left running", marked_as_success, Outcome(running=1), ["success"], full=True),
    row("cleared in a worker and left running", cleared, Outcome(workflows=2, creates=2, running=1), ["clear"], full=True),
]


@pytest.fixture(scope="module")
def played(site: Site, request: pytest.FixtureRequest) -> dict[str, Outcome | Exception]:
    """Play the chosen scenes."""
    own: list[Any] = [each for each in request.session.items if getattr(each, "originalname", "") == WHOLE_TABLE]
    chosen = [each.callspec.params for each in own]
    return side_by_side(site, {each["name"]: each["scene"] for each in chosen})


@pytest.mark.parametrize(("name", "scene", "outcome"), TABLE)
def test_what_goes_wrong_leaves_what_is_promised(
    played: dict[str, Outcome | Exception], name: str, scene: Callable[..., Play], outcome: Outcome
) -> None:
    found = played[name]
    if isinstance(found, Exception):
        raise found
    assert found == outcome


WHOLE_TABLE = test_what_goes_wrong_leaves_what_is_promised.__name__


def struck(point: str, reached: Barrier, killed: Event, server: FakeKfpServer) -> Play:
    """Somebody is killed while the task is at a point, where the server holds it; it goes on then, or is tried again."""
    if point == "before the create":
        server.fault("hang", method="GET", path=ONE_RUN, times=1000)
    elif point == "in the create":
        server.fault("hang-after")
    elif point == "at the carrier":
        server.fault("hang-after", method="POST", path=CARRIERS)
    case = yield POINTS[point]
    if point == "before the create":
        until("the question before the create", lambda: case.was_asked("GET", ONE_RUN))
    elif point == "in the create":
        case.started()
    elif point == "at the carrier":
        until("the carrier", lambda: case.carriers)
        server.fault("hang", method="GET", path=CARRIERS, times=1000)
    elif point == "polling":
        case.polling()
    else:
        case.deferred()
    if point == "reading the result":
        server.fault("hang", method="GET", path=ONE_RUN, times=1000)
        now = time.time()
        server.finish(case.started().run_id)
        until("the last question", lambda: case.was_asked("GET", ONE_RUN, after=now))
    reached.wait(300)
    assert killed.wait(180)
    server.clear_faults()
    server.down()  # which ends what hangs
    server.up()
    if not case.started().ended:
        server.finish(case.started().run_id)
    found = case.outcome()
    assert not case.was_asked("POST", ":terminate$")
    return found


POINTS: dict[str, dict[str, Any]] = {
    "before the create": DEFERS,
    "in the create": DEFERS,
    "at the carrier": CARRIED,
    "polling": WAITS,
    "deferred": DEFERS,
    "deferred with a carrier": CARRIED,
    "reading the result": DEFERS,
}


@pytest.mark.full
@pytest.mark.parametrize("victim", ["scheduler", "scheduler and its workers", "triggerer"])
def test_who_is_killed_at_whatever_point_loses_and_doubles_nothing(site: Site, victim: str) -> None:
    reached, killed, component = Barrier(len(POINTS) + 1), Event(), victim.partition(" ")[0]
    with ThreadPoolExecutor(1) as playing:
        scenes = playing.submit(side_by_side, site, {each: partial(struck, each, reached, killed) for each in POINTS})
        reached.wait(300)
        site.stack.kill(component, whole=victim != "scheduler")
        site.stack.restart(component, keep_orphans=victim == "scheduler")
        killed.set()
        assert scenes.result() == dict.fromkeys(POINTS, Outcome())


def run_elsewhere(server: FakeKfpServer, pipeline: str) -> str:
    """Start a pipeline as somebody else would."""
    with httpx.Client(base_url=f"{server.url}/apis/v2beta1", timeout=30) as client:
        package = PACKAGE.read_text().replace("name: one-step", f"name: {pipeline}")
        found = client.get("/pipelines").json().get("pipelines") or []
        made = next((each for each in found if each["display_name"] == pipeline), None)
        made = made or client.post("/pipelines/upload", params={"name": pipeline}, files={"uploadfile": package}).json()
        reference = {"pipeline_id": made["pipeline_id"]}
        body = {"display_name": f"{pipeline} of somebody", "pipeline_version_reference": reference}
        return str(client.post("/runs", json=body).raise_for_status().json()["run_id"])


def test_an_asset_that_watches_a_pipeline_starts_a_dag_once_for_each_run(site: Site) -> None:
    dag_id, sent = "kfp_watched", []
    site.airflow.wait_for_dag(dag_id, timeout_s=180)

    def send(pipeline: str, state: str) -> str:
        run_id = run_elsewhere(site.watched, pipeline)
        site.watched.finish(run_id, state)
        return run_id

    def told() -> list[dict[str, Any]]:
        runs = [str(each["dag_run_id"]) for each in site.airflow.dag_runs(dag_id) if each["state"] == "success"]
        return [payload for run_id in runs for payload in site.airflow.xcom(dag_id, run_id, "read")]

    def watched() -> bool:
        """Send a run every few seconds: what ends before the watching begins is none of its business."""
        sent.append(send("one-step", "SUCCEEDED"))
        end = time.monotonic() + 15
        while time.monotonic() < end and not site.airflow.dag_runs(dag_id):
            time.sleep(0.5)
        return bool(site.airflow.dag_runs(dag_id))

    until("the first DAG run", watched)
    send("one-step", "FAILED")
    send("another", "SUCCEEDED")
    sent.append(send("one-step", "SUCCEEDED"))
    until("the last run", lambda: sent[-1] in {each["run_id"] for each in told()})
    heard = told()
    assert sorted(each["run_id"] for each in heard) == sorted(sent[-len(heard) :])
    assert {(each["name"], each["state"]) for each in heard} == {("one-step of somebody", "SUCCEEDED")}
