"""
What can become of a step in a pod, as a table: the task, what is done to it, and what is to come of it.

The DAG file makes the tasks of it, the tests do what is to be done and hold what they see against it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from airflow_ml_provider import Dataset, Metrics, Model
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.models.resources import GpuRequest

IMAGE = os.environ.get("CLUSTER_IMAGE", "localhost/python:3.11")
SMALL_IMAGE = os.environ.get("CLUSTER_SMALL_IMAGE", "localhost/base:1")
WAYS = ("waits", "defers")
LINES = 400

GATE = """
import os, signal, sys, time, urllib.request
def wait(gate="go"):
    place = "/".join([os.environ["GATES"], os.environ["TASK"], os.environ["TRY"], gate])
    while True:
        try:
            return urllib.request.urlopen(place, timeout=900).read()
        except OSError:
            time.sleep(0.2)
def polite():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
"""
STEP = GATE + "import airflow_ml_step as step\n"

TRAIN = (
    STEP
    + f"""
view = step.load()
rows = open(view.inputs["table"].path).read().split()
for number in range({LINES // 2}):
    print("line", number, flush=number % 7 == 0)
sys.stdout.flush()
wait()
for number in range({LINES // 2}, {LINES}):
    print("line", number)
for epoch in range(3):
    step.log_metric("loss", 1 / (epoch + 1), step=epoch)
os.makedirs(view.outputs["model"].path)
open(view.outputs["model"].path + "/weights", "w").write("w" * view.parameters["width"])
open(os.environ["AIRFLOW_ML_OUTPUT_REPORT"] + ".txt", "w").write(str(len(rows)))
"""
)
STORES = STEP + "wait(); open(os.environ['AIRFLOW_ML_OUTPUT_SAID'], 'w').write('all of it'); print('last words', flush=True)"
FAILS = STEP + "step.log_metric('loss', 0.5); wait(); print('almost', flush=True); sys.exit(3)"
WAITS = GATE + "print('it runs', flush=True); wait()"
WAITS_POLITELY = GATE + "polite(); print('it runs', flush=True); wait()"
TELLS_AND_WAITS = STEP + "polite(); step.log_metric('loss', 0.25); print('it runs', flush=True); wait()"
HOGS = GATE + "wait(); block = bytearray(250 << 20); print('held', flush=True)"
HOGS_IN_A_CHILD = GATE + (
    "import subprocess; wait(); subprocess.call([sys.executable, '-c', 'block = bytearray(250 << 20)']); print('went on', flush=True)"
)
FILLS = (
    GATE
    + """
polite(); wait()
with open(os.environ["FILL"], "wb") as file:
    file.write(b"x" * (8 << 20))
time.sleep(600)
"""
)
RESUMES = (
    STEP
    + """
polite()
found = step.last_checkpoint()
if found is None:
    open("state", "w").write("half way")
    step.save_checkpoint("state", 1)
    wait()
    time.sleep(600)
print("goes on from", open(found).read(), flush=True)
wait()
open(os.environ["AIRFLOW_ML_OUTPUT_SAID"], "w").write(open(found).read())
"""
)

SAID: dict[str, Any] = {"outputs": {"said": Dataset}}
AGAIN: dict[str, Any] = {"retries": 1, "retry_delay": timedelta(0)}
IN_VAIN: dict[str, Any] = {"retries": 3, "retry_delay": timedelta(0)}
TELLS: dict[str, Any] = {"parameters": {"told": 1}}
"""Whatever it is, it gives the container its half."""


@dataclass(frozen=True)
class Case:
    """
    One thing that can happen.

    :param program: Text of a Python program; empty where the arguments say the command.
    :param arguments: Of the operator.
    :param act: What the test does, by its name in ``tests/cluster/actions.py``.
    :param state: Of the task in the end.
    :param words: What its log says, of the try that ``told_in`` names.
    :param tries: How many there are.
    :param pods: How many pods it has had in the end.
    :param run: Status of its run in MLflow.
    :param metrics: What is on record of the step.
    :param ways: How it waits.
    :param needs: Commands that must be given.
    :param slot: Whether it asks for a resource of our own invention, of which the node has one.
    :param held: Whether an init container stands at the gate, as its program cannot.
    :param group: What is played together in one DAG run.
    """

    program: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    act: str = "opens"
    state: str = "failed"
    words: tuple[str, ...] = ()
    told_in: int = 1
    tries: int = 1
    pods: int = 1
    run: str = "FAILED"
    metrics: Mapping[str, float] = field(default_factory=dict)
    ways: tuple[str, ...] = WAYS
    needs: tuple[str, ...] = ()
    slot: bool = False
    held: bool = False
    group: str = "together"


def good(**more: Any) -> dict[str, Any]:
    """Say what a success is, whatever has led to it."""
    return {"state": "success", "run": "FINISHED", **more}


CASES: dict[str, Case] = {
    "writes": Case(
        TRAIN,
        {"outputs": {"model": Model, "metrics": Metrics, "report": Dataset}, "parameters": {"width": 7}, "inputs": {}},
        metrics={"loss": 1 / 3},
        **good(),
    ),
    "function": Case(metrics={"rows": 5}, **good()),
    "beside": Case(
        arguments={
            "image": SMALL_IMAGE,
            "cmds": ["sh", "-c", 'sleep 3; wc -l < "$AIRFLOW_ML_INPUT_TABLE" > "$AIRFLOW_ML_OUTPUT_SAID.txt"; echo counted'],
            "inputs": {},
            "options": PodOptions(sidecar=IMAGE),
            **SAID,
        },
        act="nothing",
        words=("counted",),
        **good(),
    ),
    "login": Case(STORES, {"mlflow_conn_id": "mlflow_login", "options": PodOptions(copy_credentials=True), **SAID}, **good()),
    "fails": Case(
        FAILS,
        {"outputs": {"model": Model}},
        words=("PodFailedError", "ended with exit code 3", "almost"),
        metrics={"loss": 0.5},
    ),
    "forgets": Case(GATE + "wait()", SAID, words=("ArtifactError", "output 'said' (Dataset) was never written")),
    "memory": Case(
        HOGS, {"memory_gib": 0.125, **TELLS, **IN_VAIN}, words=("PodOutOfMemoryError", "It had 0.125 GiB (memory_gib)")
    ),
    "memory_plain": Case(HOGS, {"memory_gib": 0.125}, words=("PodOutOfMemoryError", "OOMKilled")),
    "more_memory": Case(
        HOGS,
        {"memory_gib": 0.125, "memory_on_oom": 4, **TELLS, **AGAIN},
        words=("PodOutOfMemoryError", "the next try gets 0.5 GiB"),
        tries=2,
        pods=2,
        **good(),
    ),
    "child_memory": Case(HOGS_IN_A_CHILD, {"memory_gib": 0.125, **TELLS}, words=("PodOutOfMemoryError",)),
    "child_memory_plain": Case(
        HOGS_IN_A_CHILD,
        {"memory_gib": 0.125},
        words=("PodOutOfMemoryError", "OOMKilled"),
    ),
    "evicted": Case(WAITS, TELLS, "evicts", words=("PodEvictedError", "was evicted", "EvictionByEvictionAPI")),
    "evicted_polite": Case(TELLS_AND_WAITS, SAID, "evicts", words=("PodEvictedError", "it runs"), metrics={"loss": 0.25}),
    "evicted_plain": Case(WAITS_POLITELY, {}, "evicts", words=("PodEvictedError", "it runs")),
    "preempted": Case(WAITS, {}, "preempts", slot=True, words=("PodPreemptedError", "PreemptionByScheduler")),
    "preempted_polite": Case(WAITS_POLITELY, {}, "preempts", slot=True, words=("PodPreemptedError",)),
    "preempted_step": Case(TELLS_AND_WAITS, SAID, "preempts", slot=True, words=("PodPreemptedError",)),
    "disk": Case(
        FILLS,
        {"env_vars": {"FILL": "/airflow-ml/full"}, "options": PodOptions(volume_gib=0.002), **TELLS},
        words=("PodEvictedError",),
    ),
    "disk_plain": Case(FILLS, {"env_vars": {"FILL": "/scratch/full"}}, words=("PodEvictedError",)),
    "no_image": Case(
        arguments={"image": "localhost/airflow-ml-missing:1", "image_pull_policy": "Never", "cmds": ["true"], **IN_VAIN},
        held=True,
        words=("PodImageError", "ErrImageNeverPull", "localhost/airflow-ml-missing:1"),
    ),
    "pull": Case(
        arguments={
            "image": "127.0.0.1:9/airflow-ml-missing:1",
            "cmds": ["true"],
            "startup_timeout": timedelta(seconds=20),
        },
        act="nothing",
        words=("ImagePullError", "startup_timeout", "127.0.0.1:9/airflow-ml-missing:1"),
    ),
    "no_secret": Case(WAITS, {**IN_VAIN}, "nothing", words=("PodConfigError", "airflow-ml-nope")),
    "no_program": Case(
        arguments={"cmds": ["/no/such/file"], **IN_VAIN}, held=True, words=("PodConfigError", "could not be started")
    ),
    "no_program_step": Case(arguments={"cmds": ["/no/such/file"], **TELLS}, held=True, words=("/no/such/file",)),
    "room": Case(
        WAITS, {"gpu": 12}, "makes_room", words=("waiting for room", "Insufficient nvidia.com/gpu"), needs=("GPUS",), **good()
    ),
    "no_room": Case(
        WAITS,
        {"gpu": GpuRequest(count=64), "capacity_timeout": timedelta(seconds=12)},
        "nothing",
        words=("NoRoomError", "Insufficient nvidia.com/gpu", "capacity_timeout"),
    ),
    "quota": Case(WAITS, {}, "allows", slot=True, words=("No room in the quota", "exceeded quota"), **good()),
    "no_quota": Case(
        WAITS,
        {"capacity_timeout": timedelta(seconds=8)},
        "nothing",
        slot=True,
        words=("NoRoomError", "exceeded quota"),
        pods=0,
    ),
    "deleted": Case(WAITS, TELLS, "deletes", words=("PodDeletedError", "it runs")),
    "deleted_polite": Case(WAITS_POLITELY, {}, "deletes", words=("PodDeletedError",)),
    "deleted_at_once": Case(WAITS, {}, "deletes_at_once", words=("PodDeletedError",)),
    "unread": Case(
        STORES, SAID, "freezes_and_deletes", ways=("waits",), words=("container base has ended with exit code 0",), **good()
    ),
    "unread_killed": Case(
        STORES,
        {**SAID, "retries": 1, "retry_delay": timedelta(seconds=15)},
        "kills_worker_and_deletes",
        ways=("waits",),
        words=("is gone and had stored everything",),
        told_in=2,
        tries=2,
        **good(),
    ),
    "marked": Case(WAITS, {}, "marks", run="KILLED", ways=("waits",)),
    "marked_deferred": Case(WAITS, {}, "marks", ways=("defers",), words=("The task was killed, marked or cleared",)),
    "cleared": Case(WAITS, {}, "clears", told_in=2, tries=2, pods=2, **good()),
    "killed": Case(
        STORES,
        {**SAID, **AGAIN},
        "kills_worker",
        ways=("waits",),
        words=("is there already", "last words"),
        told_in=2,
        tries=2,
        **good(),
    ),
    "killed_later": Case(
        STORES, {**SAID, **AGAIN}, "kills_worker_after", ways=("defers",), words=(), told_in=2, tries=2, **good()
    ),
    "too_long": Case(WAITS, {"execution_timeout": timedelta(seconds=50)}, "nothing", words=()),
    "resumes": Case(
        RESUMES, {**SAID, **AGAIN}, "evicts_once", words=("goes on from half way",), told_in=2, tries=2, pods=2, **good()
    ),
    # The triggerer is killed; then the API server is away for a minute.
    "adopted": Case(STORES, SAID, "director", group="away", words=("last words",), **good()),
    "unread_deferred": Case(
        STORES, SAID, "director", group="away", ways=("defers",), words=("container base has ended with exit code 0",), **good()
    ),
    "ends_meanwhile": Case(STORES, SAID, "director", group="away", words=("last words",), **good()),
    "fails_meanwhile": Case(
        FAILS, SAID, "director", group="away", words=("PodFailedError", "exit code 3"), metrics={"loss": 0.5}
    ),
    # The kubelet is stopped for half a minute; then the node is lost.
    "survives": Case(STORES, SAID, "director", group="node", words=("last words",), **good()),
    "lost": Case(WAITS, {}, "director", group="node", words=("NodeLostError",)),
    "lost_once": Case(STORES, {**SAID, **AGAIN}, "director", group="node", words=("NodeLostError",), tries=2, pods=2, **good()),
}

ONLY = os.environ.get("CLUSTER_CASES", "")
"""Names of the cases to play, with commas between them, for who works on one; all of them without."""
PLAYED = [(name, way) for name, case in CASES.items() for way in case.ways if not ONLY or name in ONLY.split(",")]


def resource_of(name: str, way: str) -> str:
    return f"airflow-ml.example.com/{name}-{way}".replace("_", "-")


def task_id(name: str, way: str) -> str:
    return f"{name}_{way}"
