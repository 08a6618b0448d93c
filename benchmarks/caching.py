"""
A cache's decision on an index of many runs, and a night in which nothing has changed beside the night before it.

The runs are written through MLflow's own database models, and the entries as files of its artifact store: by REST, 100,000 runs
take hours.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.figures import Comparison, Finding, last, take_turns
from benchmarks.lab import Lab, answer_with
from tests import mlflow_forms
from tests.servers import MlflowProcess

SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"
HIT, MISS, SEARCH = "a hit", "a miss", "a search by tag"
FIRST, UNCHANGED = "first night", "unchanged night"
DAG_ID, TASK_ID = "cached", "train"
BATCH = 2_000
SMALL = {"rows": 2_000, "sample": 400, "trees": 5}
LARGE = {"rows": 300_000, "sample": 40_000, "trees": 40}
NEEDS_SKINNY = False
"""Whether the interpreter with this package's own dependencies alone has a part in it."""
NIGHT = """\
import pendulum
from airflow.sdk import dag, task

from airflow_ml_provider import Dataset, Input, Model, Output


@task.ml(cache=True)
def collect(seed: str, rows: str, table: Output[Dataset]) -> None:
    import numpy

    made = numpy.random.default_rng(int(seed)).normal(size=(int(rows), 20)).astype("float32")
    for column in 5 * list(range(20)):  # put in order by one column after the other, five times over
        made = made[numpy.argsort(made[:, column], kind="stable")]
    table.path += ".npy"
    numpy.save(table.path, made)


@task.ml(cache=True)
def features(table: Input[Dataset], sample: str, described: Output[Dataset]) -> None:
    import numpy
    from sklearn.neighbors import NearestNeighbors

    made = numpy.load(table.path)[::5][: int(sample)]
    distances, _ = NearestNeighbors(n_neighbors=8, algorithm="brute").fit(made).kneighbors(made)
    described.path += ".npy"
    numpy.save(described.path, numpy.hstack([made, distances.astype("float32")]))


@task.ml(cache=True)
def train(described: Input[Dataset], trees: str, model: Output[Model]) -> None:
    import pickle

    import numpy
    from sklearn.ensemble import GradientBoostingClassifier

    known = numpy.load(described.path)
    label = known[:, 0] * known[:, 1] > known[:, -1] - known[:, -2]
    fitted = GradientBoostingClassifier(n_estimators=int(trees), random_state=1).fit(known, label)
    with open(model.path, "wb") as target:
        pickle.dump(fitted, target)


@dag(schedule=None, start_date=pendulum.datetime(2024, 1, 1), params={"seed": 0, "rows": 0, "sample": 0, "trees": 0})
def nights():
    table = collect(seed="{{ params.seed }}", rows="{{ params.rows }}")["table"]
    described = features(table=table, sample="{{ params.sample }}")["described"]
    train(described=described, trees="{{ params.trees }}")


nights()
"""


def measure(lab: Lab) -> Finding:
    """
    Ask indexes of several sizes, on both databases, and run a few pairs of nights.

    :param lab: Where.
    :return: The figures.
    """
    sizes = [20, 60, 200] if lab.quick else [1_000, 10_000, 100_000]
    figures: list[Comparison] = []
    notes = ["A decision is two requests; each file of the outputs adds one, which reads it, and each LoggedModel adds one."]
    forms = [SQLITE, POSTGRESQL] if mlflow_forms.postgresql_programs() else [SQLITE]
    for form in forms:
        question = {"form": form, "sizes": sizes, "rounds": lab.rounds(40), "folder": str(lab.folder / "caching")}
        found = lab.ask("benchmarks.caching", question, sys.executable)  # which has all of MLflow
        figures += _decisions(form, sizes, found)
        notes.append(
            f"{form}: {sizes[-1]:,} runs with {found['tags']} tags each and their entries took {found['fill_s']:.0f} s to write."
        )
    if POSTGRESQL not in forms:
        notes.append(f"PostgreSQL was left out: {mlflow_forms.NO_POSTGRESQL}.")
    (lab.dags / "nights.py").write_text(NIGHT)
    asked = {"nights": str(lab.dags / "nights.py"), "rounds": lab.rounds(2), "sizes": SMALL if lab.quick else LARGE}
    nights = lab.ask("benchmarks.caching", asked, sys.executable)
    figures.append(Comparison("a night of three steps, step time", "s", nights["walls"], UNCHANGED, FIRST, aim=0.05))
    notes += [_told(step, times) for step, times in nights["steps"].items()]
    notes.append(f"An unchanged night has looked at {nights['bytes'] / 1e6:.0f} MB of earlier outputs.")
    return Finding(
        "The cache of steps",
        "One experiment with one cached task: so many runs that have ended, each with its entry in one folder, on a real MLflow "
        "with proxied artifacts, one server for each size, asked in turns; a hit is another entry each time, without outputs. "
        "Beside it, what an index by tag would do: a search for the run whose tag is the key. The nights are runs of one DAG of "
        "three cached steps, by `dag.test()` in one process that has done the same before; step time is the sum of Airflow's "
        "durations of the task instances. The steps do real work of some seconds, sorting, a search for neighbours, a fit of "
        "trees, so the last row says what these steps save and not what others do: what stays of any step is the time of a hit.",
        figures,
        notes,
    )


def _decisions(form: str, sizes: list[int], found: dict[str, Any]) -> list[Comparison]:
    small, large = (f"{size:,} runs" for size in (sizes[0], sizes[-1]))
    rows = []
    for way in (HIT, MISS):
        asked = {way: [float(each) for each in found["requests"][way]], "aim": [2.0] * len(found["requests"][way])}
        rows.append(Comparison(f"{form}, {way}, requests of a decision", "requests", asked, way, "aim", aim=1))
        walls = found["walls"][way]
        rows += [Comparison(f"{form}, {way}, time", "ms", walls, f"{size:,} runs", small, aim=1.1) for size in sizes[1:]]
    beside = {HIT: found["walls"][HIT][large], SEARCH: found["walls"][SEARCH][large]}
    rows.append(Comparison(f"{form}, {large}, by key or by tag", "ms", beside, HIT, SEARCH))
    return rows


def _told(step: str, times: dict[str, list[float]]) -> str:
    shown = {night: ", ".join(f"{each:.2f}" for each in seconds) for night, seconds in times.items()}
    return f"`{step}`: {shown[FIRST]} s in first nights, {shown[UNCHANGED]} s in unchanged ones."


def work(question: dict[str, Any]) -> dict[str, Any]:
    """
    Be the process that asks, or the one that runs the nights.

    :param question: ``form``, ``sizes``, ``rounds`` and ``folder``; or ``nights``, ``sizes`` and ``rounds``.
    :return: Samples.
    """
    if "nights" in question:
        return _nights(Path(question["nights"]), question["sizes"], question["rounds"])
    with contextlib.ExitStack() as opened:
        return _ask(opened, question)


# Decisions


def _ask(opened: contextlib.ExitStack, question: dict[str, Any]) -> dict[str, Any]:
    """Start a server for each size, fill it, and ask them in turns."""
    folder, sizes = Path(question["folder"]) / question["form"], question["sizes"]
    databases = opened.enter_context(_postgresql(sizes)) if question["form"] == POSTGRESQL else {}
    indexes: dict[str, Any] = {}
    opened.callback(shutil.rmtree, folder, ignore_errors=True)
    for size in sizes:
        own = databases.get(size, f"sqlite:///{folder / str(size)}/mlflow.db")
        server = MlflowProcess(folder / str(size), options=("--backend-store-uri", own))
        opened.enter_context(server)
        began = time.perf_counter()
        indexes[f"{size:,} runs"] = index = _Index(server, own, size)
        fill_s = time.perf_counter() - began
    rounds = question["rounds"]
    walls = {
        way: take_turns(indexes, lambda name, way=way: indexes[name].timed(way), rounds)  # type: ignore[misc]  # its default
        for way in (HIT, MISS, SEARCH)
    }
    requests = {way: [count for each in indexes.values() for count in each.requests[way]] for way in (HIT, MISS)}
    return {"walls": walls, "requests": requests, "fill_s": fill_s, "tags": index.tags}


@contextlib.contextmanager
def _postgresql(sizes: list[int]) -> Iterator[dict[int, str]]:
    """Start a PostgreSQL with a database for each size."""
    from sqlalchemy import create_engine, text

    server = mlflow_forms.PostgresProcess()
    try:
        server.start()
        engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for size in sizes:
                connection.execute(text(f"CREATE DATABASE runs_{size:d}"))
        engine.dispose()
        yield {size: server.url.replace("/postgres?", f"/runs_{size}?") for size in sizes}
    finally:
        if server.process is not None:
            mlflow_forms.stop_postgresql(server.folder, server.process.pid)
            server.process.wait()
        shutil.rmtree(server.folder, ignore_errors=True)


class _Index:
    """
    An index with many entries.

    :param server: Its MLflow.
    :param database: URI of that one's database.
    :param size: Number of runs.
    """

    def __init__(self, server: MlflowProcess, database: str, size: int) -> None:
        from airflow_ml_provider.config import Settings
        from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
        from airflow_ml_provider.models.cache import Cache
        from airflow_ml_provider.tracking.cache_index import CacheIndex
        from tests.operators.cached_steps import Steps, counts

        self.api = MlflowApi(MlflowServer("bench", server.url), Settings(http_timeout_s=60))
        self.policy, self.requests = Cache(), {HIT: list[int](), MISS: list[int](), SEARCH: list[int]()}
        made = Steps(self.api, DAG_ID)(1, function=counts, body=lambda _: 1, task_id=TASK_ID)
        record = made.session.record
        self.index = CacheIndex(self.api, record.run, record.attempt.identity)
        self.experiment_id = record.run.experiment_id
        self.scratch = Path(tempfile.mkdtemp(prefix="airflow-ml-bench-", dir=server.folder))
        first = self.index.latest(self.scratch)
        assert first is not None
        self.tags = len(made.tags)
        self.keys = iter(_fill(server.folder / "artifacts", database, made.run, first, size - 1) * 20)

    def timed(self, way: str) -> float:
        """Decide once; gives milliseconds."""
        from airflow_ml_provider.models.cache import CacheKey, CachePart
        from tests.operators.cached_steps import counted

        key = next(self.keys)
        if way == MISS:
            key = CacheKey(parts={"salt": CachePart(digest=uuid.uuid4().hex * 2, shown="new")})
        asked: list[str] = []
        with counted(self.api, asked):
            before = time.perf_counter()
            if way == SEARCH:
                body = {"experiment_ids": [self.experiment_id], "filter": f"tags.`airflow.cache_key` = '{key.digest}'"}
                assert len(self.api.post("runs/search", body | {"max_results": 1})["runs"]) == 1
            else:
                answer = self.index.look(key, self.policy, (), self.scratch)
                if way == MISS:  # what it is compared with
                    assert self.index.latest(self.scratch) is not None
                assert (answer.entry is not None) == (way == HIT), answer.why
            spent = time.perf_counter() - before
        self.requests[way].append(len(asked))
        return spent * 1e3


def _fill(artifacts: Path, database: str, like: dict[str, Any], first: Any, count: int) -> list[Any]:
    """Write runs that are like one that was really made, and an entry of each; gives the keys of some."""
    from mlflow.store.tracking.dbmodels.models import SqlRun, SqlTag
    from sqlalchemy import create_engine, insert

    from airflow_ml_provider.models.cache import CacheKey, CachePart
    from airflow_ml_provider.tracking.cache_index import CACHE_ENTRY, CACHE_KEY, entry_name, task_folder
    from airflow_ml_provider.tracking.runs import tags_of

    info, tags = like["info"], tags_of(like)
    folder = artifacts / str(info["experiment_id"]) / task_folder(DAG_ID, TASK_ID)
    assert (folder / entry_name(first.key)).exists()
    engine, keys = create_engine(database), []
    every = max(1, count // 200)
    for start in range(0, count, BATCH):
        runs, rows = [], []
        for number in range(start, min(start + BATCH, count)):
            run_id = uuid.uuid4().hex
            key = CacheKey(parts=first.parts | {"salt": CachePart(digest=uuid.uuid4().hex * 2, shown=str(number))})
            made = {"key": key.digest, "parts": key.parts, "run_id": run_id, "dag_run_id": f"night-{number + 2}"}
            entry = first.model_copy(update=made)
            text = entry.to_text()
            (folder / entry_name(entry.key)).write_text(text)
            if number % every == 0:
                keys.append(key)
            own = {CACHE_KEY: entry.key, CACHE_ENTRY: hashlib.sha256(text.encode()).hexdigest(), "airflow.key": uuid.uuid4().hex}
            own |= {"airflow.run_id": entry.dag_run_id, "airflow.ti_id": run_id}
            rows += [{"key": name, "value": value, "run_uuid": run_id} for name, value in (tags | own).items()]
            runs.append(_row(info, run_id, number))
        with engine.begin() as connection:
            connection.execute(insert(SqlRun.__table__), runs)
            connection.execute(insert(SqlTag.__table__), rows)
    engine.dispose()
    return keys


def _row(info: dict[str, Any], run_id: str, number: int) -> dict[str, Any]:
    return {
        "run_uuid": run_id,
        "name": TASK_ID,
        "source_type": "UNKNOWN",
        "source_name": "",
        "entry_point_name": "",
        "user_id": info.get("user_id", ""),
        "status": "FINISHED",
        "start_time": int(info["start_time"]) + number,
        "end_time": int(info["end_time"]) + number,
        "source_version": "",
        "lifecycle_stage": "active",
        "artifact_uri": info["artifact_uri"].replace(info["run_id"], run_id),
        "experiment_id": int(info["experiment_id"]),
    }


# Nights


def _nights(file: Path, sizes: dict[str, int], rounds: int) -> dict[str, Any]:
    """Run pairs of nights: one whose data is new, and one after it for which nothing has changed."""
    import os

    from benchmarks.polling import _database

    os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = f"sqlite:///{_database()}"
    del os.environ["AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST"]  # the DAG is in no bundle of that list
    from airflow.dag_processing.dagbag import DagBag

    dag = DagBag(dag_folder=str(file)).dags["nights"]
    taken: dict[str, list[dict[str, float]]] = {FIRST: [], UNCHANGED: []}
    seed, size = time.time_ns() % 1_000_000, 0
    for number in range(rounds + 1):  # the first pair pays for all imports with little work, and is dropped
        for night, source in ((FIRST, set[bool]({False})), (UNCHANGED, {True})):
            times, hits, size = _night(dag, {"seed": seed + number} | (sizes if number else SMALL))
            assert hits == source, f"{night}: {hits}"
            taken[night].append(times)
    kept = last(taken, rounds)
    steps = {step: {night: [each[step] for each in times] for night, times in kept.items()} for step in kept[FIRST][0]}
    return {
        "walls": {night: [sum(each.values()) for each in times] for night, times in kept.items()},
        "steps": steps,
        "bytes": size,
    }


def _night(dag: Any, conf: dict[str, int]) -> tuple[dict[str, float], set[bool], int]:
    """Run the DAG once: seconds per step, whether they were hits, and bytes of what they made."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.session import create_session

    from tests.airflow_runs import run

    done = run(dag, run_conf=conf)
    assert done.state == "success", done
    with create_session() as session:
        rows = session.query(TaskInstance).filter_by(dag_id=done.dag_id, run_id=done.run_id).all()
        times = {each.task_id: each.duration or 0.0 for each in rows}
    made = [done.xcom(task) for task in times]
    size = sum(output["size"] for each in made for output in each["outputs"].values())
    return times, {_is_hit(done.dag_id, done.run_id, task, each["run_id"]) for task, each in zip(times, made, strict=True)}, size


def _is_hit(dag_id: str, run_id: str, task_id: str, made_by: str) -> bool:
    """Say whether the outputs of a step are those of another run."""
    from mlflow import MlflowClient

    tags = MlflowClient().get_run(made_by).data.tags
    return (tags["airflow.dag_id"], tags["airflow.run_id"], tags["airflow.task_id"]) != (dag_id, run_id, task_id)


if __name__ == "__main__":
    answer_with(work)
