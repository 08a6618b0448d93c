"""An empty typed step beside a task whose author logs the same by hand, in the processes that Airflow runs tasks in."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import resource
import time
import uuid
from typing import Any

from benchmarks.figures import Comparison, Finding, last, take_turns
from benchmarks.lab import Lab, answer_with

EMPTY, OURS, BY_HAND = "empty @task", "typed step", "@task with MlflowClient"
HEAD = """\
import pendulum
from airflow.sdk import dag, task
"""
TAIL = """

@dag(schedule=None, start_date=pendulum.datetime(2024, 1, 1))
def {name}():
    step({arguments})


{name}()
"""
EMPTY_STEP = """

@task
def step(number: int) -> None: ...
"""
OUR_STEP = """
from airflow_ml_provider import Dataset, Input, Output


@task.ml
def step(table: Input[Dataset], number: int, out: Output[Dataset]) -> None:
    with open(table.path, "rb") as source, open(out.path, "wb") as target:
        target.write(source.read())
"""
HAND_STEP = '''
@task
def step(uri: str, sha256: str, number: int) -> dict:
    """Do by hand what a typed step records, with as few requests as the client allows."""
    import hashlib
    import os
    import tempfile
    import time

    from airflow.sdk import get_current_context
    from mlflow import MlflowClient
    from mlflow.entities import Dataset, DatasetInput, InputTag, Param, RunTag

    context = get_current_context()
    ti, dag_run = context["ti"], context["dag_run"]
    client = MlflowClient()
    experiment = client.get_experiment_by_name("by_hand")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("by_hand")
    key = {"airflow.dag_id": ti.dag_id, "airflow.run_id": ti.run_id}
    found = client.search_runs([experiment_id], f"tags.`airflow.dag_run` = '{ti.dag_id} {ti.run_id}'")
    parent = found[0] if found else client.create_run(
        experiment_id, tags=key | {"airflow.dag_run": f"{ti.dag_id} {ti.run_id}"}, run_name=ti.run_id
    )
    tags = key | {
        "mlflow.parentRunId": parent.info.run_id,
        "airflow.task_id": ti.task_id,
        "airflow.map_index": str(ti.map_index),
        "airflow.try_number": str(ti.try_number),
        "airflow.log_url": ti.log_url,
        "airflow.logical_date": str(context["logical_date"]),
    }
    run = client.create_run(experiment_id, run_name=ti.task_id, tags=tags)
    run_id = run.info.run_id
    client.log_batch(run_id, params=[Param("number", str(number))])
    with tempfile.TemporaryDirectory() as folder:
        made_by, _, path = uri.removeprefix("runs:/").partition("/")
        local = client.download_artifacts(made_by, path, folder)
        with open(local, "rb") as source:
            content = source.read()
        assert hashlib.sha256(content).hexdigest() == sha256
        dataset = Dataset("table", sha256[:36], "airflow", uri)
        client.log_inputs(run_id, datasets=[DatasetInput(dataset, [InputTag("mlflow.data.context", "table")])])
        out = os.path.join(folder, "out")
        with open(out, "wb") as target:
            target.write(content)
        client.log_artifact(run_id, out)
    digest = hashlib.sha256(content).hexdigest()
    client.log_batch(run_id, tags=[RunTag("out.sha256", digest), RunTag("airflow.state", "success")])
    client.set_terminated(run_id, "FINISHED")
    return {"uri": f"runs:/{run_id}/out", "sha256": digest}
'''
ARMS = {EMPTY: "empty_step", OURS: "our_step", BY_HAND: "hand_step"}
BYTES = b"what a step reads\n" * 1000


def measure(lab: Lab) -> Finding:
    """
    Run the tasks through Airflow's supervisor, each in a fork.

    :param lab: Where.
    :return: The figures.
    """
    write_dags(lab)
    answer = lab.ask("benchmarks.steps", {"rounds": lab.rounds(25), "url": lab.url})
    figures = [
        Comparison(f"one step, {kind} on top of an empty @task", "ms", answer[kind], OURS, BY_HAND, aim=0.5, empty=EMPTY)
        for kind in ("wall time", "processor time")
    ]
    return Finding(
        "A typed step that does nothing",
        "One input of 18 kB, one output, one parameter. Each task is run by Airflow's own supervisor and task runner "
        "(supervise_task): a fork of a process that has the scheduler, the LocalExecutor and the plugins loaded, and mlflow not; "
        "it parses the DAG file and executes. The execution API is answered in memory, alike for all; a task ends when it is "
        "told so. The processor time is that of the whole fork. MLflow is a real server on loopback; "
        f"the client by hand is {'mlflow-skinny' if lab.skinny else 'the full mlflow package'}.",
        figures,
    )


def write_dags(lab: Lab) -> None:
    """
    Upload what the steps read, and write their DAG files.

    :param lab: Where.
    """
    made = lab.ask("benchmarks.steps", {"upload": True, "url": lab.url})
    sha256 = hashlib.sha256(BYTES).hexdigest()
    reference = {"version": 1, "type": "Dataset", "name": "table", "uri": made["uri"], "sha256": sha256, "size": len(BYTES)}
    for way, (text, arguments) in {
        EMPTY: (EMPTY_STEP, "number=1"),
        OURS: (OUR_STEP, f"table={reference!r}, number=1"),
        BY_HAND: (HAND_STEP, f"uri={made['uri']!r}, sha256={sha256!r}, number=1"),
    }.items():
        name = ARMS[way]
        (lab.dags / f"{name}.py").write_text(HEAD + text + TAIL.format(name=name, arguments=arguments))


def work(question: dict[str, Any]) -> dict[str, Any]:
    """
    Be the process that uploads the input, or the one that forks the tasks.

    :param question: ``upload``, or ``rounds`` and ``url``.
    :return: The input's URI, or samples per kind and way.
    """
    return _upload(question["url"]) if question.get("upload") else _supervise_all(question["rounds"])


def _upload(url: str) -> dict[str, str]:
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from airflow_ml_provider.hooks.mlflow import MlflowApi
    from airflow_ml_provider.hooks.mlflow_server import MlflowServer
    from airflow_ml_provider.tracking.artifacts import ArtifactStore

    with MlflowApi(MlflowServer("bench", url)) as api, TemporaryDirectory() as folder:
        run = api.post("runs/create", {"experiment_id": "0", "run_name": "input"})["run"]["info"]
        (Path(folder) / "table").write_bytes(BYTES)
        ArtifactStore(api).store(run["artifact_uri"], "table", Path(folder) / "table")
        return {"uri": f"runs:/{run['run_id']}/table"}


def _supervise_all(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Load what a worker of the LocalExecutor has, then run task after task."""
    from airflow.executors import local_executor, workloads  # noqa: F401
    from airflow.jobs import scheduler_job_runner  # noqa: F401
    from airflow.plugins_manager import ensure_plugins_loaded

    ensure_plugins_loaded()
    gc.freeze()  # as the LocalExecutor does
    cpu: dict[str, list[float]] = {}
    numbers = iter(range(1_000_000))

    def arm(way: str) -> float:
        before, used = time.perf_counter(), _children_cpu()
        supervise_one(ARMS[way], next(numbers))
        cpu.setdefault(way, []).append((_children_cpu() - used) * 1e3)
        return float(_ends["at"] - before) * 1e3

    walls = take_turns(ARMS, arm, rounds)
    return {"wall time": walls, "processor time": last(cpu, rounds)}


def supervise_one(dag_id: str, map_index: int) -> None:
    """
    Run one task as a worker of the LocalExecutor does.

    :param dag_id: The DAG, and its file; the task is called ``step``.
    :param map_index: Makes it another task instance of the same DAG run.
    """
    import httpx
    from airflow.executors.workloads.base import BundleInfo
    from airflow.sdk.api.client import Client
    from airflow.sdk.api.datamodels._generated import TaskInstance
    from airflow.sdk.execution_time.supervisor import supervise_task

    ti = TaskInstance(
        id=uuid.uuid4(),
        task_id="step",
        dag_id=dag_id,
        run_id="manual__bench",
        try_number=1,
        dag_version_id=uuid.uuid4(),
        map_index=map_index,
    )
    client = Client(base_url=None, dry_run=True, token="", transport=httpx.MockTransport(lambda asked: _answer(asked, dag_id)))
    log = f"{os.environ['AIRFLOW_HOME']}/logs/{dag_id}-{map_index}.log"
    bundle = BundleInfo(name="bench")
    status = supervise_task(ti=ti, bundle_info=bundle, dag_rel_path=f"{dag_id}.py", token="", client=client, log_path=log)
    assert status == 0, f"{dag_id} ended with status {status}"
    assert _ends["state"] == "success", f"{dag_id} ended as {_ends}"


_ends: dict[str, Any] = {}
"""How and when the last task ended, as the execution API was told."""


def _answer(request: Any, dag_id: str) -> Any:
    """Be the execution API: just what a task needs to start, to push its XCom, and to end."""
    import httpx

    path, now = request.url.path, "2024-01-01T00:00:00Z"
    if path.endswith("/run"):
        run = dict.fromkeys(("data_interval_start", "data_interval_end", "end_date", "partition_key"))
        run |= {
            "dag_id": dag_id,
            "run_id": "manual__bench",
            "run_type": "manual",
            "state": "running",
            "consumed_asset_events": [],
        }
        run |= dict.fromkeys(("logical_date", "run_after", "start_date"), now)
        return httpx.Response(200, json={"dag_run": run, "max_tries": 0, "should_retry": False})
    if path.endswith("/state"):
        _ends.update(json.loads(request.content), at=time.perf_counter())
    if request.method == "GET":
        return httpx.Response(404, json={"detail": {"reason": "not_found", "message": path}})
    return httpx.Response(200, json={"ok": True})


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    answer_with(work)
