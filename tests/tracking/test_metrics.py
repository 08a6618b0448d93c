from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import SupersededError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.artifact import Metrics
from airflow_ml_provider.models.run import Attempt, OpenRun, StepIdentity, StepRecord
from airflow_ml_provider.operators.session import StepSession
from airflow_ml_provider.tracking import metrics as feed

BATCH = 1000
"""So many points are sent at once, however little time has passed."""


def record() -> StepRecord:
    attempt = Attempt(identity=StepIdentity(dag_id="d", run_id="r", task_id="t"), try_number=1, ti_id="x")
    run = OpenRun(run_id="0" * 32, parent_run_id="1" * 32, experiment_id="0", artifact_uri="mlflow-artifacts:/x")
    return StepRecord(conn_id="c", attempt=attempt, run=run)


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Callable[..., Metrics]]:
    """Give the metrics of a step that runs, against a server of the test's own."""
    apis: list[MlflowApi] = []
    sessions: list[StepSession] = []

    def start(port: int, settings: Settings) -> Metrics:
        apis.append(MlflowApi(MlflowServer("c", f"http://127.0.0.1:{port}"), settings))
        sessions.append(StepSession(apis[-1], settings, record(), tmp_path / f"{len(apis)}"))
        return sessions[-1].write("metrics", Metrics)

    yield start
    for session in sessions:
        session.metrics.stop()
    for api in apis:
        api.close()


class Hanging:
    """A server that accepts, and never answers."""

    def __init__(self) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.server.getsockname()[1])
        self.came: list[float] = []
        self.lines: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            while True:
                self.lines.append(self.server.accept()[0])
                self.came.append(time.monotonic())
        except OSError:
            return

    def close(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        for each in (self.server, *self.lines):
            each.close()


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    made = Hanging()
    yield made
    made.close()


def test_a_server_that_hangs_holds_a_training_up_for_seconds_and_once(training: Any, hanging: Hanging) -> None:
    metrics = training(hanging.port, Settings(http_timeout_s=0.5, http_retries=3))
    begin = time.monotonic()
    for step in range(3 * BATCH):
        metrics.log_metric("loss", 1.0, step=step)
    assert time.monotonic() - begin < 2, "one request of 0.5 s, not repeated, and not at the next calls"
    assert len(hanging.came) == 1


def test_by_default_one_request_costs_two_seconds(training: Any, hanging: Hanging) -> None:
    metrics = training(hanging.port, Settings())
    begin = time.monotonic()
    for step in range(BATCH + 5):
        metrics.log_metric("loss", 1.0, step=step)
    assert 2 <= time.monotonic() - begin < 4


def test_the_pause_begins_when_the_server_was_given_up(training: Any, hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PAUSE_S", 0.4)
    metrics = training(hanging.port, Settings(http_timeout_s=0.5, http_retries=0))
    until = time.monotonic() + 3
    while time.monotonic() < until:
        for step in range(BATCH):
            metrics.log_metric("loss", 1.0, step=step)
        time.sleep(0.01)
    gaps = [later - earlier for earlier, later in zip(hanging.came, hanging.came[1:], strict=False)]
    assert gaps, "it is tried again"
    assert min(gaps) > 0.85, "0.5 s of waiting, and 0.4 s of pause after it"


class Ingress(BaseHTTPRequestHandler):
    """What stands in front of MLflow while it is replaced."""

    def do_GET(self) -> None:
        self.send_error(404, "default backend")

    def log_message(self, *args: Any) -> None: ...


def test_a_refusal_while_it_runs_does_not_fail_a_training(training: Any, caplog: pytest.LogCaptureFixture) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Ingress) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        metrics = training(server.server_port, Settings())
        for step in range(BATCH + 1):
            metrics.log_metric("loss", 1.0, step=step)
        server.shutdown()
    assert [each.message for each in caplog.records if "kept and sent when the step ends" in each.message]


def test_no_point_is_lost_between_threads(make_record: Callable[..., StepRecord], mlflow_api: MlflowApi, tmp_path: Path) -> None:
    running = make_record()
    running.status = "RUNNING"
    session = StepSession(mlflow_api, mlflow_api.settings, running, tmp_path)
    metrics = session.write("metrics", Metrics)

    def train(name: str) -> None:
        for step in range(3000):
            metrics.log_metric(name, step, step=step)

    threads = [threading.Thread(target=train, args=(name,)) for name in "abcd"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    session.succeed()
    for name in "abcd":
        points = mlflow_api.get("metrics/get-history", run_id=running.run.run_id, metric_key=name, max_results=25000)["metrics"]
        assert sorted(int(each["step"]) for each in points) == list(range(3000))


def test_a_try_that_was_overtaken_learns_it_while_it_runs(
    make_record: Callable[..., StepRecord], mlflow_api: MlflowApi, tmp_path: Path
) -> None:
    session = StepSession(mlflow_api, mlflow_api.settings, make_record(), tmp_path)
    metrics = session.write("metrics", Metrics)
    make_record(number=2)
    for step in range(BATCH - 1):
        metrics.log_metric("loss", step, step=step)
    with pytest.raises(SupersededError):
        metrics.log_metric("loss", BATCH, step=BATCH)
    session.metrics.stop()
