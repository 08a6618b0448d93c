"""A pipeline on this machine through a ``local://`` connection, beside the SDK's local runner called by hand."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Any

from benchmarks.figures import Comparison, Finding, take_turns
from benchmarks.lab import Lab, answer_with

OURS, BY_HAND = "local://", "kfp.local by hand"
STEPS = 3
SUM = 499500.0
PIPELINE = """
from kfp import dsl


@dsl.component(base_image="python:3.11")
def prepare(rows: int, table: dsl.Output[dsl.Dataset]):
    with open(table.path, "w") as file:
        file.writelines(f"{row}\\n" for row in range(rows))


@dsl.component(base_image="python:3.11")
def train(table: dsl.Input[dsl.Dataset], model: dsl.Output[dsl.Model], metrics: dsl.Output[dsl.Metrics]):
    numbers = [int(line) for line in open(table.path)]
    metrics.log_metric("mean", sum(numbers) / len(numbers))
    with open(model.path, "w") as file:
        file.write(str(sum(numbers)))


@dsl.component(base_image="python:3.11")
def evaluate(model: dsl.Input[dsl.Model]) -> float:
    return float(open(model.path).read())


@dsl.pipeline(name="three-steps")
def three_steps(rows: int = 1000) -> float:
    return evaluate(model=train(table=prepare(rows=rows).outputs["table"]).outputs["model"]).output
"""
BY_HAND_CODE = """
import sys
from kfp import components, local
local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[2])
assert components.load_component_from_file(sys.argv[1])(rows=1000).output == 499500.0
"""


def measure(lab: Lab) -> Finding:
    """
    Run one pipeline in turns by both ways.

    :param lab: Where.
    :return: The figures.
    """
    answer = lab.ask("benchmarks.local_runs", {"rounds": lab.rounds(10), "folder": str(lab.folder / "local-runs")})
    return Finding(
        "Pipelines on this machine",
        f"A compiled pipeline of {STEPS} components that do next to nothing, from its file to its outputs. By hand: a new "
        "process of the SDK's interpreter, local.init with SubprocessRunner(use_venv=False) and the loaded package called. Ours: "
        "the package read, checked and run by the same interpreter, with its outputs, in a process that has this package loaded, "
        "as a task has. Making the interpreter is not counted.",
        [Comparison(f"{STEPS} components", "s", answer["walls"], OURS, BY_HAND, aim=1.1)],
        [f"Making the interpreter with the SDK took {answer['made_s']:.0f} s; it is made once."],
    )


def work(question: dict[str, Any]) -> dict[str, Any]:
    """
    Be the process that runs.

    :param question: ``rounds``, ``folder``.
    :return: Samples per way, and the seconds that the interpreter took.
    """
    from airflow_ml_provider.config import Settings
    from airflow_ml_provider.jobs.kfp_compile import compile_function
    from airflow_ml_provider.jobs.kfp_sdk import KfpSdk

    folder = Path(question["folder"])
    folder.mkdir()
    settings = Settings(interpreters=str(folder / "interpreters"), kfp_local_root=str(folder / "runs"))
    began = time.perf_counter()
    python = KfpSdk(settings).interpreter.python()
    made_s = time.perf_counter() - began
    (folder / "three_steps.py").write_text(PIPELINE)
    package = folder / "three_steps.yaml"
    package.write_bytes(compile_function(f"{folder}/three_steps.py", relative_to=None, settings=settings))

    def timed(way: str) -> float:
        before = time.perf_counter()
        if way == OURS:
            _run_ours(package, settings)
        else:
            _run_by_hand(package, python, folder)
        return time.perf_counter() - before

    return {"walls": take_turns((OURS, BY_HAND), timed, question["rounds"]), "made_s": made_s}


def _run_ours(package: Path, settings: Any) -> None:
    from airflow_ml_provider.core.kfp_package import check_arguments, read_package
    from airflow_ml_provider.jobs.kfp_local import KfpLocal

    read = read_package(package.read_bytes(), source=package.name)
    folder = Path(settings.kfp_local_root) / str(time.time_ns())
    outcome = KfpLocal(settings).run(read, check_arguments(read, {"rows": 1000}), folder, run_id="bench")
    assert outcome.results.find("Output").value == SUM, outcome.problem


def _run_by_hand(package: Path, python: Path, folder: Path) -> None:
    command = [str(python), "-c", BY_HAND_CODE, str(package), str(folder / "by-hand" / str(time.time_ns()))]
    path = f"{python.parent}{os.pathsep}{os.environ['PATH']}"
    # Not here: `python -c` looks for packages where it is started, and the checkout has a folder named docker.
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PATH": path}, cwd=folder)


if __name__ == "__main__":
    answer_with(work)
