"""Steps in pods on a real Airflow and a real Kubernetes, beside KubernetesPodOperator with the same pods."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.figures import Comparison, Finding
from benchmarks.lab import Lab
from benchmarks.wire import CountingProxy
from demo.stack import LocalStack

IMAGE = os.environ.get("CLUSTER_SMALL_IMAGE", "localhost/base:1")
POLL_S = 2
OURS, PLAIN = "MLPodOperator", "KubernetesPodOperator"
MODES = {"worker": "tasks that wait in a worker", "deferred": "tasks that wait in the triggerer"}
LIMIT_S = 240
OUR_IMPORTS = """\
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.operators.pod import MLPodOperator"""
PLAIN_IMPORTS = "from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator"
FILES = {
    OURS: (OUR_IMPORTS, 'options=PodOptions(step="none"),'),
    PLAIN: (PLAIN_IMPORTS, f"startup_check_interval_seconds={POLL_S},"),
}
"""What a DAG file imports, and what it says besides: one file for each way, as a task pays for all that its file imports."""
DAG = """\
from airflow.sdk import DAG
{imports}

with DAG("{dag_id}", schedule=None, max_active_tasks={pods}):
    {way}.partial(
        task_id="step",
        image="{image}",
        cmds=["sh", "-c"],
        arguments=["for number in $(seq {seconds}); do echo line $number of $NAME; sleep 1; done"],
        deferrable={deferrable},
        poll_interval={poll},
        get_logs=True,
        on_finish_action="delete_pod",
        {more}
    ).expand(env_vars=[{{"NAME": f"pod-{{number}}"}} for number in range({pods})])
"""
HOW = (
    "{pods} mapped tasks, each with a pod of busybox that writes a line a second for {seconds} s, on a real Airflow "
    "(LocalExecutor, room for all of them at once), a real MLflow server and the Kubernetes of KUBECONFIG, one run after "
    "the other{first}. Both operators have the same arguments: image, log on, pod deleted at the end, {poll} s between two "
    "looks. KubernetesPodOperator, deferred, brings the log at the end, as it does by default; ours brings it while the pod "
    "runs. Ours also opens a run in MLflow for each task, and closes it: that is in its figures. Kubernetes' client and "
    "KubernetesPodOperator, which both import, are loaded before the tasks are forked. A request is what passes a proxy in "
    "front of the API server; a followed log is one. Time is from the creation of the DAG run until its last task has "
    "ended; processor time is that of all processes of Airflow, tasks included."
)
PRELOAD = """\
import kubernetes.client
import airflow.providers.cncf.kubernetes.operators.pod
"""
"""Of all processes of Airflow, from which tasks are forked: else the imports of twenty tasks at once are what is measured."""


@dataclass(frozen=True)
class Sample:
    """
    What one run of one DAG has taken.

    :param wall_s: Seconds from the run's creation until its last task has ended.
    :param requests: To Kubernetes, by what they ask for.
    :param answered: Bytes of the answers to these.
    :param airflow_s: Seconds of processor time, of all of Airflow, its tasks included.
    :param mlflow_s: The same of the MLflow server.
    """

    wall_s: float
    requests: Counter[str]
    answered: int
    airflow_s: float
    mlflow_s: float


def lacks() -> str | None:
    """
    Say what is missing for this benchmark.

    :return: The reason to leave it out; None for none.
    """
    return None if os.environ.get("KUBECONFIG") else "it needs a Kubernetes: set KUBECONFIG"


def measure(lab: Lab) -> Finding:
    """
    Run the same pods with both operators, in a worker and deferred.

    :param lab: Where.
    :return: The figures.
    """
    pods, seconds, rounds = (4, 4, 1) if lab.quick else (20, 10, 2)
    ways = [(way, mode) for mode in MODES for way in (PLAIN, OURS)]
    found: dict[tuple[str, str], list[Sample]] = {each: [] for each in ways}
    with CountingProxy() as proxy, _namespace(proxy.api) as namespace:
        config = proxy.write_config(lab.folder / "counted.yaml")
        dags = _write_dags(lab.folder / "pods/dags", ways, pods, seconds)
        _write_preload(lab.folder / "pods/state/airflow/config")
        with LocalStack(lab.folder / "pods/state", dags=(dags,), environment=_settings(config, namespace, pods)) as stack:
            bench = _Bench(stack, proxy, namespace)
            if not lab.quick:
                bench.run(_dag_id(OURS, "deferred"))  # the first run has to start Airflow's workers, and is not counted
            for turn in range(rounds):
                for each in ways[:: -1 if turn % 2 else 1]:
                    found[each].append(bench.run(_dag_id(*each)))
    return Finding(
        "Steps in pods",
        HOW.format(pods=pods, seconds=seconds, poll=POLL_S, first="" if lab.quick else "; the first of all is not counted"),
        [each for mode in MODES for each in _compare(mode, found)],
        [_describe(way, mode, found[way, mode], pods) for way, mode in ways],
    )


def _compare(mode: str, found: dict[tuple[str, str], list[Sample]]) -> list[Comparison]:
    def both(what: Any) -> dict[str, list[float]]:
        return {way: [what(each) for each in found[way, mode]] for way in (OURS, PLAIN)}

    figures: list[tuple[str, str, Any, float | None]] = [
        ("time until the last has ended", "s", lambda each: each.wall_s, 1.05),
        ("requests to Kubernetes", "requests", lambda each: each.requests.total(), 1.0),
        ("answers of Kubernetes", "KiB", lambda each: each.answered / 1024, None),
        ("processor, Airflow", "s", lambda each: each.airflow_s, None),
        ("processor, Airflow and MLflow", "s", lambda each: each.airflow_s + each.mlflow_s, None),
    ]
    return [Comparison(f"{MODES[mode]}, {title}", unit, both(what), OURS, PLAIN, aim=aim) for title, unit, what, aim in figures]


def _describe(way: str, mode: str, samples: list[Sample], pods: int) -> str:
    """Say which requests a pod has cost."""
    total = sum((each.requests for each in samples), Counter[str]())
    parts = [f"{what} {number / len(samples) / pods:.2g}" for what, number in total.most_common()]
    return f"Requests for each pod, {way}, {MODES[mode]}: {', '.join(parts)}."


class _Bench:
    """
    Runs DAGs and looks at what they take.

    :param stack: Airflow and MLflow, running.
    :param proxy: Between Airflow and Kubernetes.
    :param namespace: Where the pods are.
    """

    def __init__(self, stack: LocalStack, proxy: CountingProxy, namespace: str) -> None:
        self.stack = stack
        self.proxy = proxy
        self.namespace = namespace

    def run(self, dag_id: str) -> Sample:
        """
        Run a DAG once.

        :param dag_id: Its id.
        :return: What it has taken.
        :raises RuntimeError: a task has failed; says which, with the end of its log.
        """
        with self.stack.api() as airflow:
            if airflow.wait_for_dag(dag_id, timeout_s=120)["is_paused"]:
                airflow.pause(dag_id, paused=False)
            self.proxy.take()
            before = self._used()
            run_id = airflow.trigger(dag_id)["dag_run_id"]
            run = airflow.wait_for_run(dag_id, run_id, timeout_s=LIMIT_S)
            tasks = airflow.task_instances(dag_id, run_id)
            for each in tasks:
                if each["state"] != "success":
                    lines = airflow.task_log(dag_id, run_id, "step", map_index=each["map_index"])["content"]
                    text = "\n".join(str(line.get("event", line)) for line in lines[-30:])
                    raise RuntimeError(f"task {each['map_index']} of {dag_id} ended as {each['state']}:\n{text}")
        self._wait_until_gone()
        used = [after - sooner for after, sooner in zip(self._used(), before, strict=True)]
        requests, answered = self.proxy.take()
        wall = max(_moment(each["end_date"]) for each in tasks) - _moment(run["queued_at"])
        return Sample(wall, requests, answered, *used)

    def _used(self) -> tuple[float, float]:
        """Say how long Airflow and MLflow have computed, with their children that have ended."""
        airflow = ("scheduler", "dag-processor", "triggerer", "api-server")
        return sum(map(self._cpu_s, airflow)), self._cpu_s("mlflow")

    def _cpu_s(self, component: str) -> float:
        ticks = 0
        for each in self.stack.processes(component):
            with _ended():
                ticks += sum(map(int, Path(f"/proc/{each.pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def _wait_until_gone(self) -> None:
        until = time.monotonic() + LIMIT_S
        while self.proxy.api.list_namespaced_pod(self.namespace).items:
            if time.monotonic() > until:
                raise TimeoutError(f"pods are left in {self.namespace} after {LIMIT_S} s")
            time.sleep(0.2)


def _moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@contextmanager
def _ended() -> Iterator[None]:
    """Bear that a process ends while it is looked at: its time is its parent's then."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError):
        return


@contextmanager
def _namespace(core: Any) -> Iterator[str]:
    """Make a namespace; it is deleted in the end, with all that is in it."""
    name = f"bench-test-{secrets.token_hex(3)}"
    core.create_namespace({"metadata": {"name": name}})
    try:
        until = time.monotonic() + LIMIT_S
        while not core.list_namespaced_service_account(name).items and time.monotonic() < until:
            time.sleep(0.2)
        yield name
    finally:
        core.delete_namespace(name)


def _settings(config: Path, namespace: str, pods: int) -> dict[str, str]:
    cluster = {"kube_config_path": str(config), "namespace": namespace}
    return {
        "KUBECONFIG": "",  # a trigger of KubernetesPodOperator refuses two
        "AIRFLOW_CONN_KUBERNETES_DEFAULT": json.dumps({"conn_type": "kubernetes", "extra": cluster}),
        "AIRFLOW__CORE__DAGBAG_IMPORT_TIMEOUT": "300",
        "AIRFLOW__CORE__PARALLELISM": str(pods + 4),
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "3600",  # the processors are for the tasks
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "120",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "120",
    }


def _dag_id(way: str, mode: str) -> str:
    return f"{way}-{mode}"


def _write_dags(folder: Path, ways: list[tuple[str, str]], pods: int, seconds: int) -> Path:
    folder.mkdir(parents=True)
    for way, mode in ways:
        imports, more = FILES[way]
        settings = {"way": way, "imports": imports, "more": more, "dag_id": _dag_id(way, mode), "image": IMAGE, "pods": pods}
        text = DAG.format(**settings, seconds=seconds, poll=POLL_S, deferrable=mode == "deferred")
        (folder / f"{_dag_id(way, mode)}.py").write_text(text)
    return folder


def _write_preload(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "airflow_local_settings.py").write_text(PRELOAD)
