"""Steps that scripts of recordings are made of: what was there, what the engine does, what an event tells."""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path
from typing import Any

import yaml

from airflow_ml_provider.testing.kfp_answers import KfpError
from tests.testing.differences import RACE
from tests.testing.replay import HERE, Replay, Step, seconds

TOKENS = {
    "token_of_system:serviceaccount:team-a:runner,_audience_pipelines.kubeflow.org": "system:serviceaccount:team-a:runner",
    "token_of_system:serviceaccount:default:nobody": "system:serviceaccount:default:nobody",
}
AUDIENCE = '[invalid bearer token, token audiences ["{}"] is invalid for the target audiences ["pipelines.kubeflow.org"]]'
RIGHTS = {user: {"team-a": "edit", "team-b": "view"} for user in ("system:serviceaccount:team-a:runner", "alice@example.com")}
KEYS = uuid.UUID("c2f3a9d4-1e6b-4c8a-9f7d-0b5e3a1c2d4f")


def spec(file: str) -> dict[str, Any]:
    return yaml.safe_load(Path(HERE / "pipelines" / file).read_text())


def upload(
    pipeline: str = "pipeline-1", version: str = "version-1", file: str = "container_no_input.yaml", name: str = "p"
) -> Step:
    def step(replay: Replay) -> None:
        catalog = replay.server._routes.catalog
        row = catalog.add_pipeline(name, "", "", "")
        replay.ids[pipeline] = row.pipeline_id
        replay.ids[version] = catalog.add_version(row.pipeline_id, name, "", "", spec(file)).pipeline_version_id

    return step


def experiment(name: str) -> Step:
    def step(replay: Replay) -> None:
        replay.ids[name] = replay.server.store.add_experiment(name, "", "").experiment_id

    return step


def run(name: str, display_name: str, state: str = "", run_id: str = "", experiment_id: str = "", inline: bool = False) -> Step:
    """Start a run that the recording does not show being started."""

    def step(replay: Replay) -> None:
        body: dict[str, Any] = {
            "display_name": display_name,
            "run_id": run_id,
            "experiment_id": replay.ids.get(experiment_id, ""),
        }
        source = (
            {"pipeline_spec": spec("container_no_input.yaml")}
            if inline
            else {
                "pipeline_version_reference": {
                    "pipeline_id": replay.ids["pipeline-1"],
                    "pipeline_version_id": replay.ids["version-1"],
                }
            }
        )
        replay.server._runs.create({**{key: value for key, value in body.items() if value}, **source})
        found = replay.server.runs[-1].run_id
        replay.ids[name] = found
        if state:
            replay.server.finish(found, state)

    return step


def finish(name: str, state: str = "SUCCEEDED", task: str | None = None) -> Step:
    return lambda replay: replay.server.finish(replay.ids.get(name, name), state, task)


def report(name: str, state: str | None = None) -> Step:
    return lambda replay: replay.server.report(replay.ids.get(name, name), state)


def finish_second(name: str, state: str) -> Step:
    return lambda replay: replay.server.finish(replay.server.workflows_of(replay.ids.get(name, name))[1].name, state)


def gone(name: str) -> Step:
    return lambda replay: replay.server.remove_workflow(replay.ids.get(name, name))


def steps(*each: Step) -> Step:
    def step(replay: Replay) -> None:
        for one in each:
            one(replay)

    return step


def workflows(name: str, count: int) -> Step:
    """Check how many Workflow objects carry an id, as an event of the recording tells."""

    def step(replay: Replay) -> None:
        found = [one for one in replay.server.workflows_of(replay.ids.get(name, name)) if not one.deleted]
        replay.same(name, "workflows", count, len(found))

    return step


def named_workflows(display_name: str, count: int) -> Step:
    def step(replay: Replay) -> None:
        found = [one for one in replay.server.workflows if one.display_name == display_name and not one.deleted]
        replay.same(display_name, "workflows", count, len(found))

    return step


def fault(kind: str) -> Step:
    return lambda replay: replay.server.fault(kind)


def lose(part: str) -> Step:
    return lambda replay: replay.server.lose(part)


def restore(replay: Replay) -> None:
    replay.server.restore()


def orphan_label(replay: Replay) -> None:
    """The id of the newest workflow is read from its label."""
    replay.ids["orphan-run"] = replay.server.workflows[-1].run_id


def reported(number: int, later_s: int = 0) -> Step:
    """Let the agent report the newest orphan, and compare the answer with the event of that number."""

    def step(replay: Replay) -> None:
        replay.time += later_s
        orphan = replay.server.orphans[0 if later_s or len(replay.server.orphans) == 1 else -1]
        replay.ids["orphan-run"] = orphan.run_id
        event = replay.exchanges[number]
        try:
            replay.server.report(orphan.name)
        except KfpError as refused:
            told = refused.answer()
            replay.same(f"event {number}", "status", event["status"], told.status)
            replay.walk(f"event {number}", event["body"], yaml.safe_load(told.body))

    return step


def race(name: str) -> Step:
    """Eight simultaneous creates with one new key: all answer with one run, and nearly all start a workflow."""

    def step(replay: Replay) -> None:
        body = {
            "display_name": name,
            "recurring_run_id": replay.ids["recurring-run-1"],
            "pipeline_version_reference": {"pipeline_version_id": replay.ids["version-1"]},
        }
        replay.time += 1
        before, answers = len(replay.server.workflows), list[tuple[int | None, str]]()

        def create() -> None:
            status, _, found = replay.send({"method": "POST", "path": "/apis/v2beta1/runs", "body": body})
            answers.append((status, yaml.safe_load(found)["run_id"]))

        threads = [threading.Thread(target=create) for _ in range(8)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        replay.same(name, "answers", 1, len(set(answers)))
        replay.same(name, "statuses", {200}, {status for status, _ in answers})
        replay.use(RACE)
        replay.same(name, "more than one workflow", True, len(replay.server.workflows) - before > 1)

    return step


def derived(name: str) -> Step:
    def step(replay: Replay) -> None:
        replay.ids["run-derived"] = str(uuid.uuid5(KEYS, f"{replay.ids['recurring-run-1']}/{name}"))

    return step


def artifacts(replay: Replay) -> None:
    """The engine lists a log and another file, with the executor's node."""
    found = replay.server.runs[0]
    assert found.workflow is not None
    replay.server.finish(found.run_id, log="hello world\n")
    node = next(each for each in found.workflow.nodes.values() if each.name == "executor")
    node.artifacts = {"metrics": bytes(range(256))}
    replay.server.report(found.run_id)
    replay.ids["container-no-input-4xbl6-2095440799"] = node.node_id


def of_thirty(replay: Replay) -> None:
    """The ten runs of recording 30, each in its second; the ids are in the order in which the recorded ones were."""
    order = ("run-2", "run-1", "run-8", "run-3", "run-4", "run-6", "run-7", "run-5", "run-9", "run-10")
    names = ["alpha", "Alpha", "beta-1", "beta-2", "beta_2", "ñandú", "100% sure", "quote'\"x", "x" * 50, "alpha"]
    start = replay.time
    for number, display_name in enumerate(names, 1):
        replay.time = start + (0 if number == 1 else 1 if number < 5 else 2 if number < 8 else 3)
        name = f"run-{number}"
        where = "experiment-1" if number >= 8 else ""
        run(name, display_name, run_id=f"{order.index(name):08d}-0000-4000-8000-000000000000", experiment_id=where)(replay)
    steps(finish("run-1"), finish("run-3", "FAILED"), report("run-4", "RUNNING"))(replay)


def of_thirty_three(replay: Replay) -> None:
    start = replay.time
    upload()(replay)
    for number, name in enumerate(("alpha", "Alpha", "beta-1", "beta-2"), 1):
        replay.time = start + (number > 1)
        run(f"run-{number}", name, run_id=f"{number:08d}-0000-4000-8000-000000000000")(replay)
    replay.time = start + 4
    for _ in range(6):
        run("more", "more")(replay)
    steps(finish("run-1"), finish("run-3", "FAILED"), report("run-4", "RUNNING"))(replay)


def many(replay: Replay) -> None:
    upload()(replay)
    for _ in range(10_010):
        run("many", "many")(replay)


def pad(size: int) -> dict[str, Any]:
    made = spec("container_no_input.yaml")
    made["deploymentSpec"]["executors"]["exec-container-no-input"]["container"]["args"] = ["x" * size]
    return made


def tasks(count: int) -> dict[str, Any]:
    made = spec("container_no_input.yaml")
    one = made["root"]["dag"]["tasks"].popitem()[1]
    made["root"]["dag"]["tasks"] = {f"task-number-{number}": one for number in range(count)}
    return made


def package(made: dict[str, Any]) -> Any:
    return lambda _: json.dumps(made)  # JSON is YAML, and quicker to write


def inline(name: str, size: int) -> Any:
    return lambda _: {"display_name": name, "pipeline_spec": pad(size)}


def of_outage(replay: Replay) -> None:
    first = next(
        each["response"]["body"] for each in replay.exchanges[2:] if "created_at" in each.get("response", {}).get("body", {})
    )
    replay.time = seconds(first["created_at"])
    AFTER(replay)
    run("running-run", "running")(replay)
    run("failed-run", "failed")(replay)
    run("succeeded-run", "succeeded")(replay)
    steps(report("running-run", "RUNNING"), report("failed-run", "RUNNING"), finish("failed-run", "FAILED"))(replay)
    steps(report("succeeded-run", "RUNNING"), finish("succeeded-run"))(replay)
    replay.server.store.pipelines[replay.ids["pipeline-1"]].name = name = replay.exchanges[5]["response"]["body"].get("name", "p")
    replay.server.store.pipelines[replay.ids["pipeline-1"]].display_name = name
    version = replay.server.store.versions[replay.ids["version-1"]]
    version.name = version.display_name = name


def version_reference(replay: Replay, name: str, **more: Any) -> dict[str, Any]:
    reference = {"pipeline_id": replay.ids["pipeline-1"], "pipeline_version_id": replay.ids["version-1"]}
    return {"display_name": name, "pipeline_version_reference": reference, **more}


def refuse_tokens(replay: Replay) -> None:
    replay.server.refuse_token(
        "token_with_the_default_audience_of_the_cluster", AUDIENCE.format("https://kubernetes.default.svc")
    )
    replay.server.refuse_token("token_with_audience_other.example", AUDIENCE.format("other.example"))
    replay.server.refuse_token("token_that_expired_an_hour_ago")


def of_eighty_one(replay: Replay) -> None:
    """What recording 80 left behind."""
    where = replay.server.store.add_experiment("exp", "", "team-a").experiment_id
    upload()(replay)
    body = version_reference(replay, "run", experiment_id=where)
    replay.ids["run-1"] = yaml.safe_load(replay.server._runs.create(body).body)["run_id"]
    replay.server._runs.terminate(replay.ids["run-1"])


def object_gone(replay: Replay) -> None:
    row = replay.server.store.recurring[replay.ids["recurring-run-2"]]
    row.workflow_name = "periodicnhsrr"
    replay.server.remove_workflow(row.recurring_run_id)


def workflow_name(name: str) -> Step:
    def step(replay: Replay) -> None:
        replay.ids[name] = replay.server.workflows[-1].name

    return step


def ends_without_mlflow(replay: Replay) -> None:
    """Compare the answer to the final report of run-2 with the event."""
    found = replay.server.store.runs[replay.ids["run-2"]]
    assert found.workflow is not None
    replay.server.engine.move(found.workflow, "SUCCEEDED")
    try:
        replay.server.report(found.run_id)
    except KfpError as refused:
        replay.walk("event 34", replay.exchanges[34]["body"], yaml.safe_load(refused.answer().body))
        return
    replay.differences.append("event 34: the report was not refused")


def follow(name: str, number: int, task: str | None = None) -> Step:
    """Let a run go, each in its second, through the states that the answer of that number tells of."""

    def step(replay: Replay) -> None:
        now, body = replay.time, replay.exchanges[number]["response"]["body"]
        held = replay.server.store.runs[replay.ids[name]]
        for each in body["state_history"][len(held.state_history) :]:
            replay.time = seconds(each["update_time"])
            if each["state"] in {"SUCCEEDED", "FAILED"}:
                replay.server.finish(held.run_id, each["state"], task, finished_at=min(replay.time, seconds(body["finished_at"])))
            else:
                replay.server.report(held.run_id, "RUNNING")
        replay.time = now

    return step


def without_plugin(replay: Replay) -> None:
    """The server was started anew, without the plugin."""
    replay.server._runs.plugin = None


def only_version(replay: Replay) -> None:
    """The one version of the upload, on a server whose MLflow has another experiment already."""
    replay.server._runs.plugin.__self__.experiments.update({"another": "1", "KFP-Default": "2"})
    [replay.ids["version-1"]] = replay.server.store.versions


def inline_package(name: str, file: str) -> Any:
    return lambda _: {"display_name": name, "pipeline_spec": spec(file)}


AFTER = upload(file="pipeline_with_after.yaml")
BIG = {"runtime_config": {"parameters": {"required_text": "x" * 10_000}}}
MB = {0: 0.3, 3: 1, 6: 2, 9: 4, 12: 10, 15: 33}
LARGE = {
    **{at: package(pad(int(size * 1_000_000))) for at, size in MB.items()},
    **{at + (1 if at == 15 else 2): inline(f"inline-{size}", int(size * 1_000_000)) for at, size in MB.items()},
    **{at: package(tasks(count)) for at, count in {17: 100, 23: 500, 29: 1000, 35: 2000}.items()},
}
