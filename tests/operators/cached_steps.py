"""Cached steps without Airflow around them: real sessions, real records, a real MLflow server."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from airflow_ml_provider import Cache, Dataset, Input, Metrics, Model, Output
from airflow_ml_provider.config import Settings
from airflow_ml_provider.core.signature import read_signature
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.cache import CacheEntry
from airflow_ml_provider.models.run import Attempt, StepIdentity, StepRecord
from airflow_ml_provider.operators.cache_facts import step_facts
from airflow_ml_provider.operators.caching import StepCache, open_cache
from airflow_ml_provider.operators.session import StepSession
from airflow_ml_provider.tracking.runs import Run, RunTree, tags_of

DEFAULT = Cache()


def fit(raw: Input[Dataset] | None, many: Input[list[Dataset]], depth: int, day: str, table: Output[Dataset]) -> None:
    """What most of these steps declare."""


def counts(depth: int) -> int:
    """A step without outputs."""
    return depth


def train(depth: int, model: Output[Model], metrics: Output[Metrics]) -> None:
    """A step that makes a model."""


def write_table(session: StepSession) -> None:
    table = session.write("table", Dataset)
    table.path += ".csv"
    Path(table.path).write_text(f"rows of {session.record.attempt.identity.run_id}, try {session.record.attempt.try_number}\n")
    table.metadata["rows"] = 1


def write_model(session: StepSession) -> None:
    model, metrics = session.write("model", Model), session.write("metrics", Metrics)
    Path(model.path).mkdir()
    (Path(model.path) / "weights").write_text("w" * 50)
    (Path(model.path) / "MLmodel").write_text("flavors: {}")
    for step in range(3):
        metrics.log_metric("loss", 1 / (step + 1), step=step)


@dataclass
class Done:
    """
    What one try did.

    :param session: Its session, ended.
    :param hit: The earlier result that it has taken.
    :param ran: Whether its body ran.
    :param url: Page of the run whose result it has taken.
    :param requests: Method and path of what was asked of MLflow while it decided.
    :param xcom: What it returns.
    """

    session: StepSession
    hit: CacheEntry | None = None
    ran: bool = False
    url: str = ""
    requests: list[str] = field(default_factory=list)
    xcom: Any = None

    @property
    def run_id(self) -> str:
        return self.session.record.run.run_id

    @property
    def run(self) -> Run:
        return self.session.recorder.tree.get(self.session.record.run.run_id)

    @property
    def tags(self) -> dict[str, str]:
        return tags_of(self.run)

    @property
    def said(self) -> str:
        return self.tags.get("airflow.cache", "")


class Steps:
    """
    Runs tries of cached steps on one server.

    :param api: The server.
    :param dag_id: DAG of the steps, and name of their experiment.
    :param settings: The section ``[ml]``.
    """

    def __init__(self, api: MlflowApi, dag_id: str, settings: Settings | None = None) -> None:
        self.api = api
        self.dag_id = dag_id
        self.settings = settings or Settings(patience_s=0, http_retries=0, spool=tempfile.mkdtemp(prefix="airflow-ml-spool-"))

    def __call__(
        self,
        night: int = 1,
        *,
        function: Callable[..., Any] = fit,
        body: Callable[[StepSession], Any] = write_table,
        cache: Cache | None = DEFAULT,
        number: int = 1,
        given: Mapping[str, Any] | None = None,
        context: Mapping[str, Any] | None = None,
        task_id: str = "train",
        map_index: int = -1,
        api: MlflowApi | None = None,
        before_end: Callable[[StepSession, StepCache | None], Any] = lambda *_: None,
    ) -> Done:
        api, signature = api or self.api, read_signature(function)
        identity = StepIdentity(dag_id=self.dag_id, run_id=f"night-{night}", task_id=task_id, map_index=map_index)
        attempt = Attempt(identity=identity, try_number=number, ti_id=f"{night}-{task_id}-{map_index}-{number}")
        values = {"raw": None, "many": [], "depth": 3, "day": "any"} | dict(given or {})
        record = StepRecord(conn_id="mlflow_default", attempt=attempt, run=RunTree(api).open(self.dag_id, attempt))
        operator = SimpleNamespace(cache=cache, cached_from_url="")
        with tempfile.TemporaryDirectory() as scratch:
            done = Done(StepSession(api, self.settings, record, Path(scratch)))
            session = done.session
            for name, each in signature.inputs.items():
                if values[name] is not None:
                    session.read_parameter(each, values[name])
            plain = {name: values[name] for name in signature.plain}
            cache_of_try = open_cache(operator, session, context or {})
            if cache_of_try is not None and cache is not None:
                facts = step_facts(session, signature, cache, plain, {})
                with counted(api, done.requests):
                    done.hit = cache_of_try.look(facts)
            result = done.hit.result if done.hit else None
            if done.hit is None:
                done.ran, result = True, body(session)
                if cache_of_try is not None:
                    cache_of_try.keep(result)
            before_end(session, cache_of_try)
            session.succeed()
            done.url = operator.cached_from_url
            done.xcom = session.outputs() if signature.outputs else result
        return done


class counted:  # noqa: N801  (used as a function)
    """Write down what a client asks."""

    def __init__(self, api: MlflowApi, requests: list[str]) -> None:
        self.hooks, self.requests = api._http.event_hooks, requests

    def __enter__(self) -> None:
        self.before = self.hooks
        self.hooks["request"].append(self._note)

    def __exit__(self, *_: object) -> None:
        self.hooks["request"].remove(self._note)

    def _note(self, request: Any) -> None:
        self.requests.append(f"{request.method} {request.url.raw_path.decode()}")


def die(where: str, server: str, dag_id: str) -> None:
    """Run a step in this process, and kill it -9 between its upload and its record, or between its record and its entry."""

    def before_end(session: StepSession, cache: StepCache | None) -> None:
        def kill(*_: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        assert cache is not None
        setattr(cache, {"upload": "seal", "record": "write"}[where], kill)

    with MlflowApi(MlflowServer(**json.loads(server)), Settings(patience_s=0)) as api:
        Steps(api, dag_id)(before_end=before_end)


if __name__ == "__main__":
    die(*sys.argv[1:])
