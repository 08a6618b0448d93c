"""The tasks of the table: one DAG for each group of cases that is played together, and one with twenty pods at once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pendulum
from airflow.sdk import DAG
from kubernetes.client import models as k8s
from pod_cases import CASES, GATE, IMAGE, PLAYED, WAYS, Case, resource_of, task_id

from airflow_ml_provider import Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.decorators.ml_pod import ml_pod_task
from airflow_ml_provider.models.resources import GpuRequest
from airflow_ml_provider.operators.pod import MLPodOperator

AT_ONCE = 10
"""Tasks that are queued or run; more than fit into its queue make Airflow's LocalExecutor hold up the scheduler."""
START = pendulum.datetime(2024, 1, 1)
GATES = os.environ.get("TEST_GATES", "http://127.0.0.1:9")
COMMON: dict[str, Any] = {
    "image_pull_policy": "IfNotPresent",
    "termination_grace_period": 3,
    "cpu": 0.01,
    "retries": 0,
    "poll_interval": 1,
}


def at_the_gates(task: str) -> dict[str, str]:
    return {"GATES": GATES, "TASK": task, "TRY": "{{ ti.try_number }}"}


@ml_task
def make(rows: int, table: Output[Dataset]) -> None:
    table.path += ".csv"
    Path(table.path).write_text("x\n" * rows)
    table.metadata["rows"] = rows


def fit(table: Input[Dataset], rate: float, model: Output[Model], scores: Output[Metrics]) -> None:
    import os
    import pathlib
    import urllib.request

    rows = len(pathlib.Path(table.path).read_text().splitlines())
    place = [os.environ[each] for each in ("GATES", "TASK", "TRY")]
    urllib.request.urlopen("/".join([*place, "go"]), timeout=900).read()  # noqa: S310  (the test's own)
    scores.log_metric("rows", rows)
    pathlib.Path(model.path).write_text(str(rate))


@ml_task
def read_all(model: Input[Model], metrics: Input[Metrics], report: Input[Dataset]) -> dict[str, Any]:
    weights = Path(model.path, "weights").read_text()
    return {"weights": len(weights), "loss": metrics.metadata["loss"], "report": Path(report.path).read_text()}


@ml_task
def read_one(text: Input[Dataset]) -> str:
    return Path(text.path).read_text().strip()


@ml_task
def read_model(model: Input[Model]) -> str:
    return Path(model.path).read_text()


def arguments_of(name: str, case: Case, way: str, table: Any) -> dict[str, Any]:
    """Fill in what differs between the ways, and what cannot stand in a table."""
    task = task_id(name, way)
    given = {**COMMON, "image": IMAGE, **case.arguments, "task_id": task, "deferrable": way == "defers"}
    given["env_vars"] = at_the_gates(task) | given.get("env_vars", {})
    if case.program:
        given["cmds"] = ["python3", "-c", case.program]
    if "inputs" in given:
        given["inputs"] = {"table": table}
    if case.held:
        env = [k8s.V1EnvVar(name=key, value=value) for key, value in (at_the_gates(task) | {"TRY": "1"}).items()]
        command = ["python3", "-c", f"{GATE}wait()"]
        given["init_containers"] = [k8s.V1Container(name="gate", image=IMAGE, command=command, env=env)]
    if case.slot:
        given["gpu"] = GpuRequest(resource=resource_of(name, way))
    if name == "no_secret":
        given["env_from"] = [k8s.V1EnvFromSource(secret_ref=k8s.V1SecretEnvSource(name="airflow-ml-nope"))]
    if name == "disk_plain":
        small = k8s.V1EmptyDirVolumeSource(size_limit="2Mi")
        given["volumes"] = [k8s.V1Volume(name="scratch", empty_dir=small)]
        given["volume_mounts"] = [k8s.V1VolumeMount(name="scratch", mount_path="/scratch")]
    return given


def add(name: str, way: str, table: Any) -> None:
    case, task = CASES[name], task_id(name, way)
    if name == "function":
        options = {**COMMON, "image": IMAGE, "deferrable": way == "defers", "env_vars": at_the_gates(task)}
        fitted = ml_pod_task(task_id=task, **options)(fit)(table=table, rate=0.5)
        read_model.override(task_id=f"read_{task}")(model=fitted["model"])
        return
    step = MLPodOperator(**arguments_of(name, case, way, table))
    if name == "writes":
        outputs = {each: step.output[each] for each in ("model", "metrics", "report")}
        read_all.override(task_id=f"read_{task}")(**outputs)
    elif case.state == "success" and "said" in case.arguments.get("outputs", {}):
        read_one.override(task_id=f"read_{task}")(text=step.output["said"])


for group in dict.fromkeys(case.group for case in CASES.values()):
    with DAG(f"pods_{group}", schedule=None, start_date=START, max_active_tasks=AT_ONCE) as made:
        rows = make(5)["table"] if group == "together" else None
        for case_name, case_way in PLAYED:
            if CASES[case_name].group == group:
                add(case_name, case_way, rows)
    globals()[made.dag_id] = made

with DAG("pods_many", schedule=None, start_date=START, max_active_tasks=40) as made:
    for way in WAYS:
        task = f"many_{way}"
        program = GATE + "import airflow_ml_step as step; wait(); step.log_metric('number', step.load().parameters['number'])"
        MLPodOperator.partial(
            **COMMON,
            task_id=task,
            image=IMAGE,
            cmds=["python3", "-c", program],
            outputs={"metrics": Metrics},
            env_vars=at_the_gates(task) | {"TRY": "{{ ti.map_index }}"},
            deferrable=way == "defers",
        ).expand(parameters=[{"number": number} for number in range(20)])
globals()["pods_many"] = made
