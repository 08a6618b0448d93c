"""Ten to ten thousand deferred tasks that wait for runs of one Kubeflow Pipelines server, beside one request for each run."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import resource
import threading
import time
from collections import Counter
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.figures import Comparison, Finding
from benchmarks.lab import Lab, answer_with

OURS, EACH, TEN, INTERVAL = "one poller", "one GET per run", "one poller, 10 runs", "one interval"
SPEED = 4
"""How much faster than usual everything goes: an interval of 2 s takes half a second, a minute a quarter of one."""
INTERVAL_S = 2 / SPEED
OTHERS_PER_S = 2
"""Runs of other people that end in a second."""
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
    sizes = [10, 100] if lab.quick else [10, 100, 1000, 10_000]
    seconds = 3 if lab.quick else 20
    rounds = [
        {"runs": runs}
        | {way: lab.ask("benchmarks.polling", {"way": way, "runs": runs, "seconds": seconds}) for way in (OURS, EACH)}
        for _ in range(lab.rounds(2))
        for runs in sizes
    ]
    by_size = {runs: [each for each in rounds if each["runs"] == runs] for runs in sizes}
    comparisons = [each for runs in sizes for each in _compare(runs, by_size[runs])]
    largest = by_size[sizes[-1]]
    flat = {OURS: _take(largest, OURS, "since"), TEN: _take(by_size[sizes[0]], OURS, "since")}
    comparisons.append(Comparison(f"{sizes[-1]:,} runs against 10, fast path", "a minute", flat, OURS, TEN, aim=1.1))
    cores = {OURS: _take(largest, OURS, "cores"), "one core": [1.0] * len(largest)}
    comparisons.append(
        Comparison(f"{sizes[-1]:,} runs, processor against a whole one", "cores", cores, OURS, "one core", aim=1.0)
    )
    first = max(each[OURS]["first_looks_s"] * SPEED for each in largest)
    return Finding(
        "Waiting for pipeline runs",
        "Tasks of one event loop wait for runs that stay RUNNING on FakeKfpServer, in another process, while "
        f"{OTHERS_PER_S} runs of other people end in each second and some of ours too. Everything goes {SPEED} times as fast as "
        f"usual, so that a minute takes {60 / SPEED:.0f} s: an interval of 2 s that does not grow with age, one request a second "
        "at most, looks by id once a minute. Beside it: each task asks for its own run once per interval, on the threads of the "
        f"same loop, as fast as they can. Requests are counted by the server. Measured for {seconds} s, after all runs had been "
        "looked at.",
        comparisons,
        [f"After a restart with {sizes[-1]:,} runs the first looks at all of them take {first:.0f} s at the usual speed."],
    )


def _take(rounds: list[dict[str, Any]], way: str, what: str) -> list[float]:
    return [each[way][what] for each in rounds]


def _compare(runs: int, rounds: list[dict[str, Any]]) -> list[Comparison]:
    title = f"{runs:,} runs, "
    both = {
        what: {way: _take(rounds, way, what) for way in (OURS, EACH)} for what in ("requests", "cores", "mib", "median", "last")
    }
    seen = {OURS: both["last"][OURS], INTERVAL: [1.0] * len(rounds)}
    parts = {"fast path": _take(rounds, OURS, "since"), "looks": _take(rounds, OURS, "look")}
    return [
        Comparison(title + "requests", "a minute", both["requests"], OURS, EACH),
        Comparison(title + "its looks against its fast path", "a minute", parts, "looks", "fast path"),
        Comparison(title + f"processor at {SPEED} times the speed", "cores", both["cores"], OURS, EACH),
        Comparison(title + "memory on top of the process", "MiB", both["mib"], OURS, EACH),
        Comparison(title + "from a run's end to its task, median", "intervals", both["median"], OURS, EACH),
        Comparison(title + "from a run's end to its task, last", "intervals", seen, OURS, INTERVAL, aim=1.2),
    ]


def work(question: dict[str, Any]) -> dict[str, float]:
    """
    Be the process that waits.

    :param question: ``way``, ``runs``, ``seconds``.
    :return: Figures.
    """
    wait = {OURS: _wait_with_poller, EACH: _wait_each}[question["way"]]
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    server = context.Process(target=serve, args=(there, question["runs"]), daemon=True)
    server.start()
    url, run_ids = here.recv()
    with _client(url) as api:  # what everybody imports is no part of the memory
        api.get(f"/apis/v2beta1/runs/{run_ids[0]}")
    import airflow_ml_provider.triggers.kfp_poller  # noqa: F401

    found = asyncio.run(_observe(wait, url, run_ids, here, question["seconds"]))
    here.send(("stop", None))
    server.join(10)
    return found


async def _observe(wait: Any, url: str, run_ids: list[str], server: Any, seconds: float) -> dict[str, float]:
    """Let all wait, end some, and see when their tasks are told."""
    told: dict[str, float] = {}
    memory = _rss_mib()

    async def one(waits: Any, run_id: str) -> None:
        await waits(run_id)
        told[run_id] = time.time()

    def ask(what: str, of: str | None = None) -> Any:
        server.send((what, of))
        return server.recv()

    began = time.perf_counter()
    with wait(url) as waits:
        tasks = [asyncio.create_task(one(waits, each)) for each in run_ids]
        while wait is _wait_with_poller and (await asyncio.to_thread(ask, "count")).get("looked", 0) < len(run_ids):  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        first_looks_s = time.perf_counter() - began
        await asyncio.sleep(1)
        before, cpu, start = await asyncio.to_thread(ask, "count"), time.process_time(), time.perf_counter()
        ended = await _end_some(run_ids, ask, seconds)
        spent, after = time.perf_counter() - start, await asyncio.to_thread(ask, "count")
        cores, memory = (time.process_time() - cpu) / spent, _rss_mib() - memory
        until = time.perf_counter() + 60
        while ended.keys() - told.keys() and time.perf_counter() < until:  # noqa: ASYNC110  (many tasks fill it)
            await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    late = sorted((told.get(run_id, time.time()) - at) / INTERVAL_S for run_id, at in ended.items())
    minute = 60 / SPEED / spent
    rates = {what: (after.get(what, 0) - before.get(what, 0)) * minute for what in ("since", "look", "get")}
    return rates | {
        "requests": sum(rates.values()),
        "cores": cores,
        "mib": memory,
        "median": late[len(late) // 2],
        "last": late[-1],
        "first_looks_s": first_looks_s,
    }


async def _end_some(run_ids: list[str], ask: Any, seconds: float) -> dict[str, float]:
    """End up to two runs a second, half of all at most, and say when each has ended."""
    ended: dict[str, float] = {}
    start, number = time.perf_counter(), max(3, min(len(run_ids) // 2, int(seconds * 2)))
    moments = sorted(random.uniform(0, seconds * 0.9) for _ in range(number))  # noqa: S311  (spread, not secret)
    for run_id, moment in zip(run_ids, moments, strict=False):
        await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
        ended[run_id] = await asyncio.to_thread(ask, "finish", run_id)
    await asyncio.sleep(max(0.0, start + seconds - time.perf_counter()))
    return ended


def _client(url: str) -> Any:
    from airflow_ml_provider.config import Settings
    from airflow_ml_provider.hooks.kfp import KfpApi
    from airflow_ml_provider.hooks.kfp_server import KfpServer

    return KfpApi(KfpServer("bench", url), Settings(http_retries=0))


@contextmanager
def _wait_with_poller(url: str) -> Any:
    from airflow_ml_provider.core.polling import Pace
    from airflow_ml_provider.jobs.kfp import KfpJobs
    from airflow_ml_provider.triggers.kfp_poller import KfpPoller

    @contextmanager
    def connect() -> Any:
        with _client(url) as api:
            yield KfpJobs(api)

    pace = Pace(quick_s=INTERVAL_S, share=0.0, sweep_s=60 / SPEED, gap_s=1 / SPEED)
    yield lambda run_id: KfpPoller.of("bench", url, connect, pace).wait(run_id)


@contextmanager
def _wait_each(url: str) -> Any:
    from airflow_ml_provider.jobs.kfp import KfpJobs

    with _client(url) as api:
        jobs = KfpJobs(api)

        async def wait(run_id: str) -> None:
            while not (await asyncio.to_thread(partial(jobs.look, run_id))).state.ended:  # type: ignore[union-attr]  # noqa: ASYNC110
                await asyncio.sleep(INTERVAL_S)

        yield wait


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
        created = len(server.requests)
        over = threading.Event()
        threading.Thread(target=_finish_others, args=(server, create, over), daemon=True).start()
        pipe.send((server.url, run_ids))
        counter, read = Counter[str](), created
        while (said := pipe.recv())[0] != "stop":
            if said[0] == "finish":
                server.finish(said[1])
                pipe.send(time.time())
            else:
                read = _count(server, counter, read)
                pipe.send(dict(counter))
        over.set()


def _finish_others(server: Any, create: Any, over: threading.Event) -> None:
    number = 0
    while not over.wait(1 / OTHERS_PER_S):
        number += 1
        server.finish(create(-number))


def _count(server: Any, counter: Counter[str], read: int) -> int:
    """Tell the requests apart: the fast path, looks and how many ids they have, single gets."""
    requests = server.requests[read:]
    for each in requests:
        if each.method == "GET":
            text = str(each.query.get("filter", ""))
            kind = "since" if "finished_at" in text else "look" if "run_id" in text else "get"
            counter[kind] += 1
            counter["looked"] += text.count("-") // 4 if kind == "look" else 0
    return read + len(requests)


def _rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / (1 << 20)


if __name__ == "__main__":
    answer_with(work)
