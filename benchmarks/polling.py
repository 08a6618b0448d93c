"""
Ten to ten thousand deferred tasks that wait for runs of one Kubeflow Pipelines server, beside one request for each run.

They wait in a whole ``airflow triggerer`` with its capacity set, supervisor and runner, on an SQLite database whose deferred
tasks are written here: 10,000 rows are no trouble to it. There is no scheduler, so a task's time ends when it may be scheduled.
One setting is not the usual one: a triggerer takes up 50 triggers a second, which is 200 s for 10,000; here all at once.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks.figures import Comparison, Finding
from benchmarks.lab import ROOT, Lab, answer_with

OURS, EACH, TEN, INTERVAL = "one poller", "one GET per run", "one poller, 10 runs", "one interval"
TRIGGERS = {OURS: "benchmarks.triggers.OnePoller", EACH: "benchmarks.triggers.OneGetPerRun"}
INTERVAL_S = 5.0
"""The operator's own; the poller's budget is its own too, one request a second."""
OTHERS_PER_S = 5
"""Runs of other people that end in a second."""
LIMIT_S = 120
SPEC: dict[str, Any] = {
    "components": {"comp-a": {"executorLabel": "exec-a"}},
    "deploymentSpec": {"executors": {"exec-a": {"container": {"image": "python:3.11", "command": ["true"]}}}},
    "pipelineInfo": {"name": "one-step"},
    "root": {"dag": {"tasks": {"a": {"cachingOptions": {}, "componentRef": {"name": "comp-a"}, "taskInfo": {"name": "a"}}}}},
    "schemaVersion": "2.1.0",
    "sdkVersion": "kfp-2.17.0",
}


def measure(lab: Lab) -> Finding:
    """
    Wait for many runs, in both ways.

    :param lab: Where.
    :return: The figures.
    """
    sizes = [10] if lab.quick else [10, 100, 1000, 10_000]
    seconds = {OURS: 3, EACH: 3} if lab.quick else {OURS: 20, EACH: 10}
    found: dict[tuple[str, int], dict[str, float]] = {}
    for runs in sizes:
        for way in (OURS, EACH):
            question = {"way": way, "runs": runs, "seconds": seconds[way]}
            # not the lab's interpreter: that one has no client of Kubeflow Pipelines
            found[way, runs] = lab.ask("benchmarks.polling", question, sys.executable)
    comparisons = [each for runs in sizes for each in _compare(runs, found)]
    largest, smallest = found[OURS, sizes[-1]], found[OURS, sizes[0]]
    flat = {OURS: [largest["since"]], TEN: [smallest["since"]]}
    comparisons.append(Comparison(f"{sizes[-1]:,} runs against 10, fast path", "a minute", flat, OURS, TEN, aim=1.1))
    cores = {OURS: [largest["cores"]], "one core": [1.0]}
    comparisons.append(
        Comparison(f"{sizes[-1]:,} runs, processor against a whole one", "cores", cores, OURS, "one core", aim=1.0)
    )
    return Finding(
        "Waiting for pipeline runs",
        "Tasks wait in a real `airflow triggerer`, its capacity set to their number, for runs that stay RUNNING on FakeKfpServer "
        f"in another process, while {OTHERS_PER_S} runs of other people end in each second, and up to two of ours. Everything is "
        f"as it is by default: an interval of {INTERVAL_S:.0f} s while runs are young, one request a second at most, looks by id "
        "once a minute. Beside it: a trigger that asks for its own run once per interval, on the threads of the same loop, as "
        "fast as they can. Requests are counted by the server. The processor time and the peak memory are those of the "
        f"triggerer's two processes, Airflow's own work included. Measured for {seconds[OURS]} s and {seconds[EACH]} s, once, "
        "from when all triggers run. An end is seen when the trigger fires; the task's time is when Airflow has noted the event.",
        comparisons,
        [f"{sizes[-1]:,} triggers ran {largest['start_s']:.0f} s after the start of the triggerer."],
    )


def _compare(runs: int, found: dict[tuple[str, int], dict[str, float]]) -> list[Comparison]:
    title = f"{runs:,} runs, "

    def both(what: str) -> dict[str, list[float]]:
        return {way: [found[way, runs][what]] for way in (OURS, EACH)}

    ours = found[OURS, runs]
    parts = {"fast path": [ours["since"]], "looks": [ours["look"]]}
    seen = {OURS: [ours["last"]], INTERVAL: [1.0]}
    return [
        Comparison(title + "requests", "a minute", both("requests"), OURS, EACH),
        Comparison(title + "its looks against its fast path", "a minute", parts, "looks", "fast path"),
        Comparison(title + "processor", "s a minute", both("cpu"), OURS, EACH),
        Comparison(title + "processor without the supervisor", "s a minute", both("runner_cpu"), OURS, EACH),
        Comparison(title + "peak memory", "MiB", both("mib"), OURS, EACH),
        Comparison(title + "from a run's end to its task, median", "intervals", both("task"), OURS, EACH),
        Comparison(title + "from a run's end to its task, last", "intervals", both("last_task"), OURS, EACH),
        Comparison(title + "from a run's end until it is seen, last", "intervals", seen, OURS, INTERVAL, aim=1.2),
    ]


def work(question: dict[str, Any]) -> dict[str, float]:
    """
    Set up server, database and triggerer, end some runs, and look at what becomes of it.

    :param question: ``way``, ``runs``, ``seconds``.
    :return: Figures.
    """
    os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{_database()}"
    with _server(question["runs"]) as (url, run_ids, ask):
        os.environ["AIRFLOW_CONN_KFP_DEFAULT"] = json.dumps({"conn_type": "kfp", "host": url})
        _defer(TRIGGERS[question["way"]], run_ids)
        with Triggerer(len(run_ids)) as triggerer:
            return _observe(triggerer, run_ids, ask, question["seconds"])


def _observe(triggerer: Triggerer, run_ids: list[str], ask: Any, seconds: float) -> dict[str, float]:
    """End some runs, and see what that costs and when their tasks are told."""
    time.sleep(2)
    ask("requests")
    cpu, start = triggerer.cpu_s(), time.perf_counter()
    ended = _end_some(run_ids, ask, seconds)
    spent = time.perf_counter() - start
    asked, used = ask("requests"), [later - sooner for later, sooner in zip(triggerer.cpu_s(), cpu, strict=True)]
    _until(lambda: ended.keys() <= _told().keys(), fail=False)
    told, late = _told(), (time.time(), time.time())
    seen, task = (sorted((told.get(each, late)[which] - at) / INTERVAL_S for each, at in ended.items()) for which in (0, 1))
    rates = {what: len(asked[what]) * 60 / spent for what in ("look", "get")} | {"since": _rate(asked["since"])}
    return rates | {
        "requests": sum(rates.values()),
        "cores": sum(used) / spent,
        "cpu": sum(used) * 60 / spent,
        "runner_cpu": sum(used[1:]) * 60 / spent,
        "mib": triggerer.peak_mib(),
        "last": seen[-1],
        "task": task[len(task) // 2],
        "last_task": task[-1],
        "start_s": triggerer.start_s,
    }


def _rate(moments: list[float]) -> float:
    """Say how many a minute: by their distance, as there are few in so short a time."""
    return (len(moments) - 1) * 60 / (moments[-1] - moments[0]) if len(moments) > 1 else 0.0


def _end_some(run_ids: list[str], ask: Any, seconds: float) -> dict[int, float]:
    """End up to two runs a second, half of all at most, and say when each has ended."""
    ended: dict[int, float] = {}
    start, number = time.perf_counter(), max(3, min(len(run_ids) // 2, int(seconds * 2)))
    moments = sorted(random.uniform(0, seconds) for _ in range(number))  # noqa: S311  (spread, not secret)
    for place, moment in zip(random.sample(range(len(run_ids)), number), moments, strict=True):
        time.sleep(max(0.0, start + moment - time.perf_counter()))
        ended[place] = ask("finish", run_ids[place])
    time.sleep(max(0.0, start + seconds - time.perf_counter()))
    return ended


def _until(done: Callable[[], bool], *, fail: bool = True) -> None:
    until = time.monotonic() + LIMIT_S
    while not done():
        if time.monotonic() > until:
            if fail:
                raise TimeoutError(f"waited {LIMIT_S} s in vain")
            return
        time.sleep(0.2)


def _database() -> Path:
    """Make a database: migrated once, copied for each."""
    home = Path(os.environ["AIRFLOW_HOME"])
    empty, mine = home / "polling-empty.db", home / "polling.db"
    if not empty.exists():
        environment = {**os.environ, "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{empty}"}
        home.mkdir(parents=True, exist_ok=True)
        subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, env=environment)
    for each in home.glob("polling.db*"):
        each.unlink()
    shutil.copy(empty, mine)
    return mine


def _defer(classpath: str, run_ids: list[str]) -> None:
    """Write a DAG run with a deferred task for each run: one task, mapped."""
    from airflow._shared.timezones import timezone
    from airflow.models import Trigger
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    _write_dag()
    now = timezone.utcnow()
    with create_session() as session:
        dag: Any = SerializedDagModel.get("waits", session=session).dag  # type: ignore[union-attr]
        moments = {"run_after": now, "logical_date": now, "data_interval": (now, now)}
        kind = {"run_type": DagRunType.MANUAL, "triggered_by": DagRunTriggeredByType.TEST, "state": "running"}
        run = dag.create_dagrun(run_id="night", session=session, **moments, **kind)
        (first,) = run.get_task_instances(session=session)
        rows = [Trigger(classpath, {"run_id": each, "poll_interval_s": INTERVAL_S}) for each in run_ids]
        session.add_all(rows)
        session.flush()
        for place, row in enumerate(rows):
            version, task = first.dag_version_id, dag.get_task("wait")
            ti = TaskInstance(task, dag_version_id=version, run_id="night", map_index=place) if place else first
            ti.state, ti.next_method, ti.trigger_id, ti.map_index = "deferred", "resume", row.id, place
            ti.try_number, ti.start_date = 1, now
            session.add(ti)


def _write_dag() -> None:
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG

    with DAG("waits", schedule=None) as dag:
        EmptyOperator(task_id="wait")
    DagBundlesManager().sync_bundles_to_db()  # type: ignore[no-untyped-call]  # Airflow's
    bag = DagBag(dag_folder=os.devnull)
    bag.bag_dag(dag)
    sync_bag_to_db(bag, "bench", None)


def _told() -> dict[int, tuple[float, float]]:
    """Say which tasks have been told: when the trigger saw the end, and when that was noted, by map index."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    with create_session() as session:
        rows: list[Any] = session.query(TaskInstance).filter_by(dag_id="waits", state="scheduled").all()
        return {each.map_index: (each.next_kwargs["event"]["seen_at"], each.updated_at.timestamp()) for each in rows}


class Triggerer:
    """
    ``airflow triggerer``, from when all its triggers run.

    :param capacity: How many.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.start_s = 0.0

    def __enter__(self) -> Triggerer:
        started, mark = time.monotonic(), Path(os.environ["AIRFLOW_HOME"]) / "all-run"
        mark.unlink(missing_ok=True)
        command = [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs", "--capacity", str(self.capacity)]
        environment = {
            **os.environ,
            "AIRFLOW__TRIGGERER__MAX_TRIGGER_TO_SELECT_PER_LOOP": str(self.capacity),  # the docstring says why
            "BENCH_WHEN_ALL_RUN": f"{mark}:{self.capacity}",
        }
        self._process = subprocess.Popen(command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            _until(lambda: mark.exists() or self._process.poll() is not None)
        except BaseException:
            self.__exit__()
            raise
        self.start_s = time.monotonic() - started
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    @property
    def pids(self) -> list[int]:
        """The supervisor and, behind it, the runner of the triggers."""
        mine = self._process.pid
        return [mine, *map(int, Path(f"/proc/{mine}/task/{mine}/children").read_text().split())]

    def cpu_s(self) -> list[float]:
        """
        Say how long each process has computed.

        :return: Seconds.
        """
        ticks = [Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()[11:13] for each in self.pids]
        return [sum(map(int, each)) / os.sysconf("SC_CLK_TCK") for each in ticks]

    def peak_mib(self) -> float:
        """
        Say how much memory they had at most.

        :return: MiB, of all together.
        """
        lines = [line for each in self.pids for line in Path(f"/proc/{each}/status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


@contextmanager
def _server(runs: int) -> Iterator[Any]:
    """Start the server's process; gives its address, the ids of the runs, and how to ask it."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, runs), daemon=True)
    process.start()

    def ask(what: str, of: str | None = None) -> Any:
        here.send((what, of))
        return here.recv()

    try:
        yield (*here.recv(), ask)
    finally:
        process.kill()
        process.join()


def _client(url: str) -> Any:
    from airflow_ml_provider.config import Settings
    from airflow_ml_provider.hooks.kfp import KfpApi
    from airflow_ml_provider.hooks.kfp_server import KfpServer

    return KfpApi(KfpServer("bench", url), Settings(http_retries=0))


def serve(pipe: Any, runs: int) -> None:
    """
    Be the process of the server.

    :param pipe: Where it is told what to do.
    :param runs: How many runs are waited for.
    """
    from airflow_ml_provider.testing import FakeKfpServer

    with FakeKfpServer() as server, _client(server.url) as api:
        server.auto(None)
        api.upload("/apis/v2beta1/pipelines/upload", json.dumps(SPEC).encode(), "one-step.yaml", name="one-step")
        version = {"pipeline_id": api.get("/apis/v2beta1/pipelines/names/one-step")["pipeline_id"]}

        def create(number: int) -> str:
            body = {"display_name": f"run {number}", "pipeline_version_reference": version}
            return str(api.post("/apis/v2beta1/runs", body)["run_id"])

        run_ids = [create(number) for number in range(runs)]
        read = len(server.requests)
        threading.Thread(target=_finish_others, args=(server, create), daemon=True).start()
        gc.collect()
        gc.freeze()  # of the runs: to look through them again and again stops the server, which is not what is measured
        pipe.send((server.url, run_ids))
        while True:
            what, run_id = pipe.recv()
            if what == "finish":
                server.finish(run_id)
                pipe.send(time.time())
            else:
                new, read = server.requests[read:], len(server.requests)
                pipe.send(_sorted(new))


def _finish_others(server: Any, create: Any) -> None:
    for number in count(1):
        time.sleep(1 / OTHERS_PER_S)
        server.finish(create(-number))


def _sorted(requests: list[Any]) -> dict[str, list[float]]:
    """Tell the requests apart, and say when they came: the fast path, looks, single gets."""
    found: dict[str, list[float]] = {"since": [], "look": [], "get": []}
    for each in requests:
        if each.method == "GET":
            text = str(each.query.get("filter", ""))
            found["since" if "finished_at" in text else "look" if "run_id" in text else "get"].append(each.at)
    return found


if __name__ == "__main__":
    answer_with(work)
