"""A large artifact up and down, beside the raw client and beside ``cp``."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figures import Comparison, Finding, last, take_turns
from benchmarks.lab import Lab, answer_with

MIB = 1 << 20
OURS, RAW, RAW_HASH, COPY = "ArtifactStore", "MlflowClient", "MlflowClient + sha256sum", "cp + sha256sum"


def measure(lab: Lab) -> Finding:
    """
    Send and fetch a large file in turns, each way in a process of its own.

    :param lab: Where.
    :return: The figures.
    """
    large = 8 * MIB if lab.quick else 1024 * MIB
    small = large // 16
    figures: list[Comparison] = []
    for what in ("up", "down"):
        walls, memory = _one_way(lab, what, large)
        names = f"{large // MIB} MiB {what}"
        figures += [
            Comparison(f"{names}, against the raw client", "s", walls, OURS, RAW, aim=1.1),
            Comparison(f"{names}, against the raw client with a digest", "s", walls, OURS, RAW_HASH, aim=1.1),
            Comparison(f"{names}, against a local copy with a digest", "s", walls, OURS, COPY, aim=1.1),
        ]
        figures.append(_by_size(lab, what, small, large, memory))
    return Finding(
        "A large artifact",
        "Random bytes through the artifact proxy of a real server on loopback, which stores in the same temporary folder; each "
        "transfer in a new process that has sent and fetched a small file before. Ours computes and verifies the sha256; the raw "
        "client does neither. The local copy crosses neither server nor network.",
        figures,
    )


def _by_size(lab: Lab, what: str, small: int, large: int, memory: list[float]) -> Comparison:
    """Compare the peaks of our process at two sizes."""
    ours, base = f"{large / MIB:g} MiB", f"{small / MIB:g} MiB"
    peaks = {ours: memory, base: [_ask(lab, (OURS,), what, small)[OURS]["peak"] for _ in memory]}
    return Comparison(f"{what}, peak memory of our process", "MiB", peaks, ours, base, aim=1.1)


def _one_way(lab: Lab, what: str, size: int) -> tuple[dict[str, list[float]], list[float]]:
    """Transfer in turns; in a smoke test one process does all."""
    ways, rounds = (OURS, RAW, RAW_HASH, COPY), lab.rounds(7)
    memory: dict[str, list[float]] = {way: [] for way in ways}
    known = _ask(lab, ways, what, size) if lab.quick else {}

    def arm(way: str) -> float:
        answer = known.get(way) or _ask(lab, (way,), what, size)[way]
        memory[way].append(answer["peak"])
        return answer["wall"]

    return take_turns(ways, arm, rounds), last(memory, rounds)[OURS]


def _ask(lab: Lab, ways: tuple[str, ...], what: str, size: int) -> dict[str, dict[str, float]]:
    """Do transfers in a process of their own, and leave nothing of them on the disk."""
    source = lab.folder / f"{size}.bin"
    if not source.exists():
        _write_random(source, size)
    folder = lab.folder / "transfer"
    folder.mkdir()
    question = {"ways": ways, "what": what, "source": str(source), "folder": str(folder), "url": lab.url}
    try:
        os.sync()
        answer: dict[str, dict[str, float]] = lab.ask("benchmarks.artifacts", question)
        return answer
    finally:
        shutil.rmtree(folder)
        if what == "up" and lab.store is not None:
            shutil.rmtree(lab.store, ignore_errors=True)


def work(question: dict[str, Any]) -> dict[str, dict[str, float]]:
    """
    Be the process that sends or fetches one file.

    :param question: ``ways``, ``what``, ``source``, ``folder``, ``url``.
    :return: Per way seconds, and MiB at the peak.
    """
    answers: dict[str, dict[str, float]] = {}
    source = Path(question["source"])
    for way in question["ways"]:
        folder = Path(question["folder"]) / str(len(answers))
        folder.mkdir()
        go = {OURS: _ours, RAW: _raw, RAW_HASH: _raw_hash, COPY: _copy}[way](question["url"], question["what"], source, folder)
        before = time.perf_counter()
        go()
        wall = time.perf_counter() - before
        answers[way] = {"wall": wall, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
    return answers


def _ours(url: str, what: str, source: Path, folder: Path) -> Callable[[], object]:
    from airflow_ml_provider.config import Settings
    from airflow_ml_provider.hooks.mlflow import MlflowApi
    from airflow_ml_provider.hooks.mlflow_server import MlflowServer
    from airflow_ml_provider.models.reference import ArtifactRef
    from airflow_ml_provider.tracking.artifacts import ArtifactStore

    api = MlflowApi(MlflowServer("bench", url), Settings(http_timeout_s=60))
    store, run = ArtifactStore(api), _run_for(what, url, source)
    note = source.with_suffix(".sha256")
    store.store(run["artifact_uri"], note.name, note)
    store.fetch(ArtifactRef(type="Dataset", name="note", uri=f"runs:/{run['run_id']}/{note.name}"), folder)
    if what == "up":
        return lambda: store.store(run["artifact_uri"], source.name, source)
    ref = ArtifactRef(type="Dataset", name="big", uri=f"runs:/{run['run_id']}/{source.name}", sha256=note.read_text())
    return lambda: store.fetch(ref, folder)


def _raw(url: str, what: str, source: Path, folder: Path) -> Callable[[], object]:
    from mlflow import MlflowClient

    client, run = MlflowClient(url), _run_for(what, url, source)
    note = source.with_suffix(".sha256")
    client.log_artifact(run["run_id"], str(note))
    client.download_artifacts(run["run_id"], note.name, str(folder))
    if what == "up":
        return lambda: client.log_artifact(run["run_id"], str(source))
    return lambda: client.download_artifacts(run["run_id"], source.name, str(folder))


def _raw_hash(url: str, what: str, source: Path, folder: Path) -> Callable[[], object]:
    """Transfer with the raw client, then run sha256sum, as an author would have to."""
    transfer = _raw(url, what, source, folder)

    def both() -> None:
        transfer()
        subprocess.run(["sha256sum", source if what == "up" else folder / source.name], check=True, capture_output=True)

    return both


def _copy(url: str, what: str, source: Path, folder: Path) -> Callable[[], object]:  # noqa: ARG001  (as the others)
    def both() -> None:
        subprocess.run(["cp", source, folder / "copy"], check=True)
        subprocess.run(["sha256sum", folder / "copy"], check=True, capture_output=True)

    return both


def _run_for(what: str, url: str, source: Path) -> dict[str, str]:
    """Make a run to send to; to fetch from, one run that holds the file, made once. By hand: it must import neither client."""
    import httpx

    note = source.with_suffix(".run")
    if what == "down" and note.exists():
        return dict(json.loads(note.read_text()))
    asked = {"experiment_id": "0", "run_name": source.name}
    made = httpx.post(f"{url}/api/2.0/mlflow/runs/create", json=asked, timeout=60).raise_for_status()
    run: dict[str, str] = made.json()["run"]["info"]
    if what == "down":
        path = run["artifact_uri"].removeprefix("mlflow-artifacts:/")
        with source.open("rb") as stream:
            to = f"{url}/api/2.0/mlflow-artifacts/artifacts/{path}/{source.name}"
            httpx.put(to, content=stream, timeout=600).raise_for_status()
        note.write_text(json.dumps(run))
    return run


def _write_random(file: Path, size: int) -> None:
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for _ in range(size // (MIB // 2)):
            piece = os.urandom(MIB // 2)
            digest.update(piece)
            out.write(piece)
    file.with_suffix(".sha256").write_text(digest.hexdigest())


if __name__ == "__main__":
    answer_with(work)
