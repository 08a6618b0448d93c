"""Each question about lineage on histories of two sizes, beside one raw search of the same server."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.hooks.mlflow_server import MlflowServer
from airflow_ml_provider.lineage.difference import diff
from airflow_ml_provider.lineage.impact import impact
from airflow_ml_provider.lineage.query import between, trace
from airflow_ml_provider.lineage.trained import trained_on
from benchmarks.figures import Comparison, Finding, take_turns
from benchmarks.history import DAGS, write_history
from benchmarks.lab import Lab
from tests.servers import MlflowProcess

DAG = "flights-3"
ROUNDS = 5
PER_HOP = 3
"""Requests that one step on the way may cost."""


class CountingApi(MlflowApi):
    """A client that counts what it sends."""

    requests = 0

    def _send(self, *args: Any, **kwargs: Any) -> Any:
        self.requests += 1
        return super()._send(*args, **kwargs)


@dataclass
class Server:
    """
    A server with a history.

    :param size: Runs, about.
    :param api: The server.
    :param experiments: Ids of its experiments.
    :param nights: Nights of each DAG.
    """

    size: int
    api: CountingApi
    experiments: list[str]
    nights: int

    @property
    def champion(self) -> str:
        """URI of a model in production."""
        return f"models:/{DAG}@champion"

    def search(self, words: str) -> int:
        """
        Search the runs once, as a client would that has no keys.

        :param words: In MLflow's search language.
        :return: How many were found, of the first page.
        """
        body = {"experiment_ids": self.experiments, "filter": words, "max_results": 1000}
        return len(self.api.post("runs/search", body).get("runs", []))


Question = Callable[[Server], int]
"""Asks, and says how many steps were on the way."""


def measure(lab: Lab) -> Finding:
    """
    Ask each question on both histories.

    :param lab: Where.
    :return: The figures.
    """
    sizes = (210, 630) if lab.quick else (1_000, 100_000)
    small, large = (_start(lab, size) for size in sizes)
    try:
        asked = [(title, *_ask(lab, small, large, question, raw)) for title, (question, raw) in QUESTIONS.items()]
    finally:
        for _, process in (small, large):
            process.kill()
    comparisons = []
    for title, times, counts in asked:
        comparisons += _figures(title, sizes, times, counts)
    return Finding(
        "Lineage",
        f"Each question on {sizes[0]:,} and on {sizes[1]:,} runs: {DAGS} DAGs of 20 tasks (mapped tasks, fan-out, fan-in, the "
        "model of the night before), written into the SQLite database of a real MLflow. The times are those of the function that "
        "the command calls. Beside it: one raw search on the same server, by which a client without keys would begin: by DAG "
        "run, by digest, by a metric. A hop is a step on the way, so the requests are divided by the steps.",
        comparisons,
        [f"{title}: {counts[sizes[0]][0]} and {counts[sizes[1]][0]} requests." for title, _, counts in asked],
    )


def _ask(
    lab: Lab, small: tuple[Server, MlflowProcess], large: tuple[Server, MlflowProcess], question: Question, raw: str
) -> tuple[dict[str, list[float]], dict[int, tuple[int, int]]]:
    servers = {f"{kind} {each.size}": (each, kind) for each, _ in (small, large) for kind in ("ours", "raw")}
    counts: dict[int, tuple[int, int]] = {}

    def one(way: str) -> float:
        server, kind = servers[way]
        words = raw.format(run=f"scheduled__{server.nights - 1:05}", digest=_digest(server)[:36], last=server.nights - 2)
        server.api.requests = 0
        begin = time.perf_counter()
        if kind == "raw":
            server.search(words)
        else:
            steps = question(server)
            counts[server.size] = (server.api.requests, steps)
        return (time.perf_counter() - begin) * 1000

    return take_turns(servers, one, lab.rounds(ROUNDS)), counts


def _figures(
    title: str, sizes: tuple[int, int], times: dict[str, list[float]], counts: dict[int, tuple[int, int]]
) -> list[Comparison]:
    small, large = sizes
    requests, steps = counts[large]
    per_hop = {"requests": [float(requests)], "steps": [float(max(steps, 1))]}
    beside = {"ours": times[f"ours {large}"], "one raw search": times[f"raw {large}"]}
    found = [
        Comparison(f"{title}, {large:,} runs: requests for each step", "", per_hop, "requests", "steps", aim=PER_HOP),
        Comparison(f"{title}, {large:,} runs: time", "ms", beside, "ours", "one raw search"),
    ]
    for kind, name, aim in (("ours", "time", 2), ("raw", "time of one raw search", None)):
        grown = {f"{size:,}": times[f"{kind} {size}"] for size in (large, small)}
        found.append(
            Comparison(f"{title}: {name} on {large:,} runs, beside {small:,}", "ms", grown, f"{large:,}", f"{small:,}", aim)
        )
    return found


def _start(lab: Lab, size: int) -> tuple[Server, MlflowProcess]:
    process = MlflowProcess(lab.folder / f"lineage-{size}")
    process.start()
    api = CountingApi(MlflowServer("benchmark", process.url))
    made = [api.post("experiments/create", {"name": f"flights-{dag}"})["experiment_id"] for dag in range(DAGS)]
    nights = write_history(process.folder / "mlflow.db", [int(each) for each in made], size)
    return Server(size, api, [str(each) for each in made], nights), process


def _digest(server: Server) -> str:
    """Find the digest of the raw data of the champion's night, once."""
    if server.size not in _digests:
        read = [each for each in trace(server.api, server.champion).datasets if each.name == "source"]
        _digests[server.size] = read[0].sha256 or ""
    return _digests[server.size]


_digests: dict[int, str] = {}


def _up(server: Server) -> int:
    return len(trace(server.api, server.champion).runs)


def _down(server: Server) -> int:
    return len(trace(server.api, _digest(server), direction="down").runs)


def _between(server: Server) -> int:
    return len(between(server.api, _digest(server), server.champion).runs)


def _diff(server: Server) -> int:
    changes = diff(server.api, server.champion, f"models:/{DAG}/{server.nights - 1}").changes
    return 2 * len({each.where for each in changes})


def _impact(server: Server) -> int:
    return sum(each.runs for each in impact(server.api, _digest(server)).tasks)


def _few(server: Server) -> int:
    return trained_on(server.api, f"rows > {server.nights - 2}").looked_at


def _many(server: Server) -> int:
    return trained_on(server.api, "rows > 0").looked_at


QUESTIONS: dict[str, tuple[Question, str]] = {
    "the way up from the champion": (_up, "tags.`airflow.run_id` = '{run}'"),
    "the way down from raw data": (_down, "dataset.digest = '{digest}'"),
    "between raw data and the champion": (_between, "dataset.digest = '{digest}'"),
    "champion against the one before": (_diff, "tags.`airflow.run_id` = '{run}'"),
    "impact of raw data": (_impact, "dataset.digest = '{digest}'"),
    "models on rows > n, few": (_few, "metrics.rows > {last}"),
    "models on rows > n, the newest 50 of all": (_many, "metrics.rows > {last}"),
}
"""What is asked, and by which raw search one would begin."""
