"""Ten thousand metric points through ``Output[Metrics]``, beside the raw client's best way."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.figures import Comparison, Finding, last, take_turns
from benchmarks.lab import Lab, answer_with

OURS, RAW = "Output[Metrics].log_metric", "MlflowClient.log_batch"
BATCH = 1000


def measure(lab: Lab) -> Finding:
    """
    Log curves to new runs of one server.

    :param lab: Where.
    :return: The figures.
    """
    points = 1000 if lab.quick else 10_000
    answer = lab.ask("benchmarks.points", {"rounds": lab.rounds(15), "points": points, "url": lab.url})
    return Finding(
        "Metric points",
        f"{points:,} points of one metric, each with its step, to a new run each time, by one process that has both clients "
        f"loaded. The raw client's best way: MlflowClient.log_batch, {BATCH} points a request (MLflow's limit), synchronous. "
        "Ours: log_metric once for each point, in a step's session, until the last is at the server.",
        [
            Comparison(f"{points:,} points, {kind}", "s", answer[kind], OURS, RAW, aim=1.1)
            for kind in ("wall time", "processor time of the client")
        ],
    )


def work(question: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """
    Be the process that logs.

    :param question: ``rounds``, ``points``, ``url``.
    :return: Samples per kind and way.
    """
    from airflow_ml_provider.hooks.mlflow import MlflowApi
    from airflow_ml_provider.hooks.mlflow_server import MlflowServer

    api, points = MlflowApi(MlflowServer("bench", question["url"])), question["points"]
    cpu: dict[str, list[float]] = {OURS: [], RAW: []}

    def timed(way: str) -> float:
        run = api.post("runs/create", {"experiment_id": "0", "run_name": way})["run"]
        before, used = time.perf_counter(), time.process_time()
        {OURS: _log_ours, RAW: _log_raw}[way](api, run, points)
        cpu[way].append(time.process_time() - used)
        return time.perf_counter() - before

    walls = take_turns((OURS, RAW), timed, question["rounds"])
    return {"wall time": walls, "processor time of the client": last(cpu, question["rounds"])}


def _log_raw(_: Any, run: dict[str, Any], points: int) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

    client, run_id = MlflowClient(), run["info"]["run_id"]
    for first in range(0, points, BATCH):
        now = time.time_ns() // 1_000_000
        batch = [Metric("loss", 1 / (step + 1), now, step) for step in range(first, min(first + BATCH, points))]
        client.log_batch(run_id, metrics=batch, synchronous=True)


def _log_ours(api: Any, run: dict[str, Any], points: int) -> None:
    from airflow_ml_provider.config import Settings
    from airflow_ml_provider.models.artifact import Metrics
    from airflow_ml_provider.models.run import Attempt, OpenRun, StepIdentity, StepRecord
    from airflow_ml_provider.operators.session import StepSession

    info = run["info"]
    opened = OpenRun(
        run_id=info["run_id"], parent_run_id="", experiment_id=info["experiment_id"], artifact_uri=info["artifact_uri"]
    )
    attempt = Attempt(identity=StepIdentity(dag_id="bench", run_id="bench", task_id="bench"), try_number=1, ti_id="bench")
    record = StepRecord(conn_id="bench", attempt=attempt, run=opened)
    with TemporaryDirectory() as folder:
        session = StepSession(api, Settings(), record, Path(folder))
        metrics = session.write("metrics", Metrics)
        for step in range(points):
            metrics.log_metric("loss", 1 / (step + 1), step=step)
        session.recorder.flush_metrics(record)


if __name__ == "__main__":
    answer_with(work)
