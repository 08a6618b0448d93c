"""Parse time and memory of a DAG of typed steps, beside the same DAG of plain ``@task``."""

from __future__ import annotations

import gc
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.figures import Comparison, Finding, last, take_turns
from benchmarks.lab import Lab, answer_with

HEAD = """\
import pendulum
from airflow.sdk import dag, task
{imports}

@dag(schedule=None, start_date=pendulum.datetime(2024, 1, 1))
def {name}():
    made = None
"""
PLAIN = """
    @task(task_id="step_{index}")
    def step_{index}(table: dict{default}, number: int) -> dict: ...

    made = step_{index}(table=made, number={index})
"""
OURS = """
    @task.ml(task_id="step_{index}")
    def step_{index}(table: Input[Dataset]{optional}, number: int, out: Output[Dataset]) -> None: ...

    made = step_{index}(table=made, number={index})["out"]
"""
PARSE = """
import sys
from pathlib import Path
from airflow.dag_processing.dagbag import BundleDagBag
file = Path(sys.argv[1])
bag = BundleDagBag(dag_folder=str(file), bundle_path=file.parent, bundle_name="bench")
assert not bag.import_errors and len(bag.dags) == 1, bag.import_errors
"""
SIZES = (10, 100)
PLAIN_WAY, OUR_WAY = "plain Airflow", "typed steps"


def measure(lab: Lab) -> Finding:
    """
    Parse in fresh processes and in forked ones.

    :param lab: Where.
    :return: The figures.
    """
    sizes = SIZES[:1] if lab.quick else SIZES
    files = write_dags(lab.dags / "parsing")
    found = [figure for size in sizes for figure in _fresh(lab, size, files)]
    return Finding(
        "Parsing a DAG file",
        "A chain of steps, each with one input, one output and one plain parameter, against the same chain of `@task`. Fresh: "
        "a new interpreter imports Airflow and parses the file (BundleDagBag), all of it counted (wait4). Forked: as the DAG "
        "processor does, forked for each file from a process that has Airflow and its plugins loaded; parsing and serializing "
        "are counted.",
        found + [figure for size in sizes for figure in _forked(lab, size, files)],
    )


def write_dags(folder: Path) -> dict[str, str]:
    """
    Write the DAG files.

    :param folder: Where to.
    :return: File per way and size, ``"typed steps 10"``.
    """
    folder.mkdir(parents=True)
    files = {}
    for size in SIZES:
        plain = HEAD.format(imports="", name="chain")
        ours = HEAD.format(imports="from airflow_ml_provider import Dataset, Input, Output", name="chain")
        for index in range(size):
            plain += PLAIN.format(index=index, default=" | None" if not index else "")
            ours += OURS.format(index=index, optional=" | None" if not index else "")
        for way, text in ((PLAIN_WAY, plain), (OUR_WAY, ours)):
            file = folder / f"{way.replace(' ', '_')}_{size}.py".lower()
            file.write_text(text + "\n\nchain()\n")
            files[f"{way} {size}"] = str(file)
    return files


def _fresh(lab: Lab, size: int, files: dict[str, str]) -> list[Comparison]:
    """Wall and processor time and peak memory of whole processes."""
    seen: dict[str, list[tuple[float, float, float]]] = {PLAIN_WAY: [], OUR_WAY: []}

    def process(way: str) -> float:
        before = time.perf_counter()
        argv = [lab.python, "-c", PARSE, files[f"{way} {size}"]]
        child = os.posix_spawn(lab.python, argv, lab.environment)
        _, status, usage = os.wait4(child, 0)
        assert status == 0, f"{way}, {size} steps: status {status}"
        wall = time.perf_counter() - before
        seen[way].append((wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024))
        return wall

    rounds = lab.rounds(12)
    take_turns(seen, process, rounds)
    kept = last(seen, rounds)
    figures = []
    for place, (kind, unit) in enumerate((("wall time", "s"), ("processor time", "s"), ("peak memory", "MiB"))):
        samples = {way: [each[place] for each in values] for way, values in kept.items()}
        figures.append(Comparison(f"{size} steps, fresh process, {kind}", unit, samples, OUR_WAY, PLAIN_WAY, aim=1.02))
    return figures


def _forked(lab: Lab, size: int, files: dict[str, str]) -> list[Comparison]:
    """Milliseconds that our file adds in the DAG processor's forks."""
    mine = {way: files[f"{way} {size}"] for way in (PLAIN_WAY, OUR_WAY)}
    answer = lab.ask("benchmarks.parsing", {"files": mine, "rounds": lab.rounds(40)})
    return [
        Comparison(f"{size} steps, forked process, {kind}", unit, answer[kind], OUR_WAY, PLAIN_WAY, added=True)
        for kind, unit in (("wall time", "ms"), ("processor time", "ms"), ("memory of its own", "MiB"))
    ]


def fork_and_parse(question: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """
    Be a DAG processor: load Airflow once, fork for each parse.

    :param question: ``files`` per way, ``rounds``.
    :return: Samples per kind and way.
    """
    import structlog
    from airflow.dag_processing import manager, processor  # noqa: F401  (what the DAG processor has loaded)
    from airflow.plugins_manager import ensure_plugins_loaded

    ensure_plugins_loaded()
    gc.freeze()  # as the DAG processor does
    log = structlog.get_logger()
    kinds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def arm(way: str) -> float:
        file = question["files"][way]
        processor._pre_import_airflow_modules(file, log)  # noqa: SLF001  (what it does before each fork)
        wall, cpu, memory = in_a_fork(_parse, file)
        kinds["processor time"][way].append(cpu)
        kinds["memory of its own"][way].append(memory)
        return float(wall)

    walls = take_turns(question["files"], arm, question["rounds"])
    return {"wall time": walls} | {kind: last(ways, question["rounds"]) for kind, ways in kinds.items()}


def _parse(file: str) -> list[float]:
    """Milliseconds of wall and processor time to parse and serialize one file, and the MiB that this took."""
    import structlog
    from airflow.dag_processing.processor import DagFileParseRequest, _parse_file

    before, began, kept = time.perf_counter(), time.process_time(), _own_memory()
    request = DagFileParseRequest(file=file, bundle_path=Path(file).parent, bundle_name="bench")
    result = _parse_file(request, structlog.get_logger())
    assert result is not None
    assert not result.import_errors, result.import_errors
    return [(time.perf_counter() - before) * 1e3, (time.process_time() - began) * 1e3, _own_memory() - kept]


def in_a_fork(work: Callable[[str], list[float]], file: str) -> list[float]:
    """
    Run a function in a fork of this process.

    :param work: The function.
    :param file: Its argument.
    :return: What it returned.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writing, json.dumps(work(file)).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    _, status = os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read()
    assert status == 0, "the fork failed; its traceback stands above"
    numbers: list[float] = json.loads(text)
    return numbers


def _own_memory() -> float:
    """MiB that this process does not share with the one that it was forked from."""
    fields = dict(line.split(":") for line in Path("/proc/self/smaps_rollup").read_text().splitlines()[1:])
    return sum(int(fields[name].split()[0]) for name in ("Private_Clean", "Private_Dirty")) / 1024


if __name__ == "__main__":
    answer_with(fork_and_parse)
