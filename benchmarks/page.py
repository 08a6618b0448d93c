"""The pages in Airflow's UI about a DAG with many runs on record, from MLflow's answers to HTML."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from airflow_ml_provider.hooks.mlflow_server import MlflowServer
from airflow_ml_provider.models.run import StepIdentity
from airflow_ml_provider.plugin.addresses import Addresses
from airflow_ml_provider.plugin.pages import Pages
from airflow_ml_provider.tracking.page_runs import PageApi
from benchmarks.figures import Comparison, Finding, take_turns
from benchmarks.history import Night, Rows
from benchmarks.lab import Lab
from tests.servers import MlflowProcess

ROUNDS = 5
SECOND_MS = 1000.0
PATIENCE_S = 30.0
NEEDS_SKINNY = False


class PageNight(Night):
    """A night whose runs are found by their identity, as those of steps are."""

    def _run(self, name: str, index: int, minute: int, tags: dict[str, str], run_id: str = "") -> None:
        identity = StepIdentity(dag_id=self.dag_id, run_id=self.run_id, task_id=name.partition("[")[0], map_index=index)
        found = {"airflow.key": identity.key} if name else {"airflow.key": identity.dag_run.key, "airflow.run_type": "scheduled"}
        super()._run(name, index, minute, tags | found, run_id)


class CountingApi(PageApi):
    """
    A client for one page that counts what it sends, and waits: how long it takes is what is measured.

    :param server: Where to, and as whom.
    """

    def __init__(self, server: MlflowServer) -> None:
        super().__init__(server)
        self._http.timeout = PATIENCE_S
        self.requests = 0

    def check_time(self) -> None:
        """Count a request."""
        self.requests += 1


def measure(lab: Lab) -> Finding:
    """
    Make each page about a small and a large DAG.

    :param lab: Where.
    :return: The figures.
    """
    small, large = ("3", "10") if lab.quick else ("10", "1000")
    sizes = (small, large)
    processes = {size: MlflowProcess(lab.folder / f"page-{size}") for size in sizes}
    comparisons, notes = [], []
    try:
        servers = {size: _start(process, int(size)) for size, process in processes.items()}
        for title in PAGES:
            requests: dict[str, int] = {}
            times = take_turns(sizes, partial(_time, servers, title, requests), lab.rounds(ROUNDS))
            second = {"it": times[large], "one second": [SECOND_MS] * len(times[large])}
            comparisons += [
                Comparison(f"{title}, {large} DAG runs: time", "ms", second, "it", "one second", aim=1),
                Comparison(f"{title}: {large} DAG runs, beside {small}", "ms", times, large, small),
            ]
            notes.append(f"{title}: {requests[small]} and {requests[large]} requests to MLflow.")
    finally:
        for process in processes.values():
            process.kill()
    return Finding(
        "Page",
        f"Each page about a DAG of 20 tasks with {small} and with {large} DAG runs on record in the SQLite database "
        "of a real MLflow: its requests and its HTML, without Airflow's own check of the login.",
        comparisons,
        notes,
    )


def _start(process: MlflowProcess, nights: int) -> MlflowServer:
    process.start()
    server = MlflowServer("benchmark", process.url)
    with PageApi(server) as api:
        experiment_id = api.post("experiments/create", {"name": "flights-0"})["experiment_id"]
    _write(process.folder / "mlflow.db", int(experiment_id), nights)
    return server


def _write(database: Path, experiment_id: int, nights: int) -> None:
    """Fill the database of a server with one DAG."""
    from mlflow.store.model_registry.dbmodels import models as registry
    from mlflow.store.tracking.dbmodels import models as tracking
    from sqlalchemy import create_engine, insert

    rows: Rows = defaultdict(list)
    rows["SqlRegisteredModel"] = [{"workspace": "default", "name": "flights-0"}]
    before = None
    for number in range(nights):
        night = PageNight(experiment_id, 0, number, before)
        before = night.write()
        for name, some in night.rows.items():
            rows[name] += some
    engine = create_engine(f"sqlite:///{database}")
    with engine.begin() as connection:
        for name, some in rows.items():
            table = getattr(tracking, name, None) or getattr(registry, name)
            connection.execute(insert(table).prefix_with("OR IGNORE"), some)
    engine.dispose()


def _time(servers: Mapping[str, MlflowServer], title: str, requests: dict[str, int], size: str) -> float:
    begin = time.perf_counter()
    with CountingApi(servers[size]) as api:
        PAGES[title](Pages(api, Addresses(), "flights-0"), f"scheduled__{int(size) - 1:05}")
        requests[size] = api.requests
    return (time.perf_counter() - begin) * 1000


PAGES: dict[str, Callable[[Pages, str], object]] = {
    "a DAG": lambda pages, _: pages.dag(""),
    "a DAG run": lambda pages, night: pages.run(night, ""),
    "comparisons of a DAG run, fetched by its page": lambda pages, night: pages.others(night),
    "a step": lambda pages, night: pages.step(StepIdentity(dag_id="flights-0", run_id=night, task_id="train")),
    "a model": lambda pages, _: pages.model("flights-0", "", lambda _: True),
    "lineage of a model": lambda pages, night: pages.lineage(f"models:/flights-0/{int(night[-5:]) + 1}", lambda _: True),
}
