"""
A thousand registered models whose champion is watched, in one scan of the registry, beside one request for each model.

The watchers are those of assets, in a whole ``airflow triggerer`` on an SQLite database; the models are on a real MLflow, behind
a small proxy that counts. There is no scheduler, so what is measured ends with the asset's event. One setting is not the usual
one: the triggerer takes up all triggers at once.
"""

from __future__ import annotations

import http.server
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.figures import Comparison, Finding
from benchmarks.lab import Lab, answer_with
from benchmarks.polling import Triggerer, _database, _until

OURS, EACH, INTERVAL = "one scan", "one GET per model", "one interval"
WATCHERS = {OURS: "OneScan", EACH: "OneGetPerModel"}
ALIAS = "champion"
REMEMBER_S = 600.0
"""Seconds that all watchers may take to begin; a thousand take about 60 where other work goes on."""
EVENT_S = 10.0
"""Seconds that Airflow may take to note an event; one that has not come by then has not come."""


def measure(lab: Lab) -> Finding:
    """
    Watch many models, in both ways.

    :param lab: Where.
    :return: The figures.
    """
    models, seconds, interval_s = (10, 6, 2.0) if lab.quick else (1000, 60, 10.0)
    names = [f"watched-{time.time_ns()}-{number:04}" for number in range(models)]
    found: dict[str, dict[str, float]] = {}
    try:
        _in_threads(lab.url, _make, names)
        for way in (OURS, EACH):
            question = {"way": way, "names": names, "url": lab.url, "seconds": seconds, "interval_s": interval_s}
            found[way] = lab.ask("benchmarks.watching", question, sys.executable)  # which has all of Airflow
    finally:
        if lab.store is None:  # somebody else's server
            _in_threads(lab.url, _delete, names)

    def both(what: str) -> dict[str, list[float]]:
        return {way: [found[way][what]] for way in (OURS, EACH)}

    title = f"{models:,} models, "
    seen = {OURS: [found[OURS]["seen"]], INTERVAL: [1.0]}
    return Finding(
        "Watching the model registry",
        "The champion of each model is watched by an asset in a real `airflow triggerer`, every "
        f"{interval_s:.0f} s. Beside it: a trigger that asks for its own alias once per interval, on the threads of the same "
        f"loop, with one client for all. Up to 20 aliases move in {seconds} s, measured once, from when all triggers run, ours "
        "have written down where each alias stands, and two intervals are over. Requests are counted by a proxy before a real "
        "MLflow. The processor time and the peak memory are those of the triggerer's two processes, Airflow's own work included. "
        "A move is seen when the trigger fires; the event is there when Airflow has noted it.",
        [
            Comparison(title + "requests", "a minute", both("requests"), OURS, EACH, aim=0.01),
            Comparison(title + "processor", "s a minute", both("cpu"), OURS, EACH),
            Comparison(title + "processor without the supervisor", "s a minute", both("runner_cpu"), OURS, EACH),
            Comparison(title + "peak memory", "MiB", both("mib"), OURS, EACH),
            Comparison(title + "from a move until it is seen, last", "intervals", seen, OURS, INTERVAL, aim=1.2),
            Comparison(title + "from a move to the asset's event, median", "intervals", both("event"), OURS, EACH),
            Comparison(title + "from a move to the asset's event, last", "intervals", both("last_event"), OURS, EACH),
        ],
        [
            "The requests of ours are those of the polls, and one for each move.",
            *(f"{way}: {found[way]['told']:.0f} events for {found[way]['moved']:.0f} moves." for way in (OURS, EACH)),
        ],
    )


def work(question: dict[str, Any]) -> dict[str, float]:
    """
    Set up proxy, database and triggerer, move some aliases, and look at what becomes of it.

    :param question: ``way``, ``names``, ``url``, ``seconds``, ``interval_s``.
    :return: Figures.
    """
    os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{_database()}"
    os.environ["AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION"] = "False"
    with _proxy(question["url"]) as (url, ask):
        os.environ["AIRFLOW_CONN_MLFLOW_DEFAULT"] = json.dumps({"conn_type": "mlflow", "host": url})
        _write_watchers(WATCHERS[question["way"]], question["names"], question["interval_s"])
        with Triggerer(len(question["names"])) as triggerer:
            return _observe(triggerer, question, ask)


def _observe(triggerer: Triggerer, question: dict[str, Any], ask: Any) -> dict[str, float]:
    """Move some aliases, and see what that costs and when it is told."""
    seconds, interval_s = question["seconds"], question["interval_s"]
    _until(lambda: ask() > 0)
    if question["way"] == OURS:  # which writes down where each alias stands, before any move is one
        _until_all_are_remembered(len(question["names"]))
    time.sleep(2 * interval_s)
    before, cpu, start = ask(), triggerer.cpu_s(), time.perf_counter()
    moved = _move_some(question["url"], question["names"], seconds)
    spent = time.perf_counter() - start
    asked, used = ask() - before, [later - sooner for later, sooner in zip(triggerer.cpu_s(), cpu, strict=True)]
    end = time.monotonic() + 3 * interval_s + EVENT_S
    while time.monotonic() < end and not moved.keys() <= {each[0] for each in _told()}:
        time.sleep(0.2)
    told = {name: (seen_at, noted_at) for name, seen_at, noted_at in _told()}
    late = (time.time(), time.time())
    seen, event = (sorted((told.get(name, late)[which] - at) / interval_s for name, at in moved.items()) for which in (0, 1))
    return {
        "requests": asked * 60 / spent,
        "cpu": sum(used) * 60 / spent,
        "runner_cpu": sum(used[1:]) * 60 / spent,
        "mib": triggerer.peak_mib(),
        "seen": seen[-1],
        "event": event[len(event) // 2],
        "last_event": event[-1],
        "moved": len(moved),
        "told": len(_told()),
    }


def _move_some(url: str, names: list[str], seconds: float) -> dict[str, float]:
    """Move up to 20 aliases, each once, and say when each has moved."""
    from airflow_ml_provider.config import Settings
    from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer

    moved: dict[str, float] = {}
    chosen = random.sample(names, min(20, len(names) // 2))
    start, moments = time.perf_counter(), sorted(random.uniform(0, seconds) for _ in chosen)  # noqa: S311  (spread, not secret)
    with MlflowApi(MlflowServer("bench", url), Settings(http_timeout_s=60)) as api:
        for name, moment in zip(chosen, moments, strict=True):
            time.sleep(max(0.0, start + moment - time.perf_counter()))
            stood = api.get("registered-models/alias", name=name, alias=ALIAS)["model_version"]["version"]
            moved[name] = time.time()
            api.post("registered-models/alias", {"name": name, "alias": ALIAS, "version": "2" if stood == "1" else "1"})
        time.sleep(max(0.0, start + seconds - time.perf_counter()))
        return moved


def _write_watchers(kind: str, names: list[str], interval_s: float) -> None:
    """Write a DAG with an asset for each model, each with its watcher, as Airflow's DAG processor does."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.dagbag import DagBag, sync_bag_to_db
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG, Asset, AssetWatcher

    from benchmarks import watchers

    def asset(name: str) -> Asset:
        trigger = getattr(watchers, kind)(model=name, alias=ALIAS, poll_interval_s=interval_s)
        return Asset(name, watchers=[AssetWatcher(name=name, trigger=trigger)])

    with DAG("watches", schedule=list(map(asset, names))) as dag:
        EmptyOperator(task_id="deploy")
    DagBundlesManager().sync_bundles_to_db()  # type: ignore[no-untyped-call]  # Airflow's
    bag = DagBag(dag_folder=os.devnull)
    bag.bag_dag(dag)
    for _ in range(2):  # watchers are those of a DAG that is there and not paused
        sync_bag_to_db(bag, "bench", None)


def _until_all_are_remembered(watchers: int) -> None:
    """Wait until each watcher has written down where its alias stands: one request for each, through one process."""
    from airflow.models.asset_state_store import AssetStateStoreModel
    from airflow.utils.session import create_session

    until, remembered = time.monotonic() + REMEMBER_S, 0
    while remembered < watchers:
        if time.monotonic() > until:
            raise TimeoutError(f"{remembered} of {watchers} watchers have begun after {REMEMBER_S:.0f} s")
        time.sleep(0.5)
        with create_session() as session:
            remembered = session.query(AssetStateStoreModel).count()


def _told() -> list[tuple[str, float, float]]:
    """List the events: model, when the trigger saw its move, and when that was noted."""
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session

    with create_session() as session:
        rows: list[Any] = session.query(AssetEvent).all()
        payloads = [(each.extra["payload"], each.timestamp.timestamp()) for each in rows]
    return [(payload["model"], payload["seen_at"], noted_at) for payload, noted_at in payloads]


def _in_threads(url: str, call: Any, names: list[str]) -> None:
    from airflow_ml_provider.config import Settings
    from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer

    settings = Settings(http_timeout_s=120)
    with MlflowApi(MlflowServer("bench", url), settings) as api, ThreadPoolExecutor(4) as pool:
        list(pool.map(partial(call, api), names))


def _make(api: Any, name: str) -> None:
    api.post("registered-models/create", {"name": name})
    for _ in range(2):
        api.post("model-versions/create", {"name": name, "source": "s3://bucket/model"})
    api.post("registered-models/alias", {"name": name, "alias": ALIAS, "version": "1"})


def _delete(api: Any, name: str) -> None:
    api.delete("registered-models/delete", {"name": name})


@contextmanager
def _proxy(url: str) -> Iterator[Any]:
    """Start the proxy's process; gives its address, and how to ask it what it has counted."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, url), daemon=True)
    process.start()

    def ask() -> int:
        here.send("count")
        return int(here.recv())

    try:
        yield here.recv(), ask
    finally:
        process.kill()
        process.join()


def serve(pipe: Any, url: str) -> None:
    """
    Be the process of the proxy.

    :param pipe: Where it is asked how many requests it has seen.
    :param url: The real server.
    """
    import threading

    import httpx

    client, seen = httpx.Client(base_url=url, timeout=60), []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            seen.append(self.path)
            found = client.get(self.path)
            self.send_response(found.status_code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(found.content)))
            self.end_headers()
            self.wfile.write(found.content)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    pipe.send(f"http://127.0.0.1:{server.server_port}")
    while pipe.recv():
        pipe.send(len(seen))


if __name__ == "__main__":
    answer_with(work)
