"""What Airflow imports for us when it parses a DAG file, lists providers, or starts a command: nothing heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {
    "mlflow",
    "kfp",
    "kubernetes",
    "kubernetes_asyncio",
    "pandas",
    "pyarrow",
    "numpy",
    "sklearn",
    "torch",
    "scipy",
    "matplotlib",
}
"""Named by themselves, not by the modules below them."""
DAGS = sorted((ROOT / "dags").glob("*.py"))

PARSE = """
import json, os, sys
from airflow.dag_processing.dagbag import DagBag
for file in sys.argv[1:]:  # each in a process of its own, which has imported what Airflow imports by itself and no more
    if os.fork() == 0:
        bag = DagBag(dag_folder=file)
        dags = {each.dag_id: each.task_ids for each in bag.dags.values()}
        print(json.dumps({"errors": bag.import_errors, "dags": dags, "modules": sorted(sys.modules)}), flush=True)
        os._exit(0)
    assert os.wait()[1] == 0, file
"""

PLAIN = """
from airflow.sdk import dag, task

@task
def make(day: str) -> dict: ...

@task
def train(table: dict, depth: int) -> dict: ...

@dag(schedule=None)
def plain():
    train.partial(table=make(day="{{ ds }}")).expand(depth=[1, 2])

plain()
"""

PODS = """
from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator
from airflow.sdk import dag

@dag(schedule=None)
def pods():
    KubernetesPodOperator(task_id="x", image="a")

pods()
"""

OF_PODS = {"gpu_training.py"}
"""DAG files with steps in pods: their operator is a KubernetesPodOperator, whose import is what it is."""

OURS = """
from airflow.sdk import dag, task, task_group
from airflow_ml_provider import Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.operators.gate import ModelGateOperator
from airflow_ml_provider.operators.promotion import PromoteModelOperator

@task.ml
def make(day: str, table: Output[Dataset]) -> None:
    import pandas

@ml_task(retries=2)
def train(table: Input[Dataset], depth: int, model: Output[Model], metrics: Output[Metrics]) -> None: ...

@ml_task
def pick(models: Input[list[Model]], champion: Input[Model] | None, best: Output[Model], scores: Output[Dataset]) -> None: ...

@dag(schedule=None)
def ours():
    table = make(day="{{ ds }}")["table"]
    fits = train.partial(table=table).expand(depth=[1, 2])
    one = train(table, depth=3)

    @task_group
    def choice():
        return pick(models=fits["model"], champion="models:/flights@champion")

    chosen = choice()
    gate = ModelGateOperator(
        task_id="gate", challenger=chosen["best"], champion="models:/flights@champion", metrics=one["metrics"],
        scores=chosen["scores"], rules=["auc >= 0.6"], compare="auc",
    )
    gate >> PromoteModelOperator(task_id="promote", model=chosen["best"], name="flights")

ours()
"""


def lines(code: str, *arguments: str) -> list[str]:
    """Run code in a fresh interpreter, and read what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def run(code: str, *arguments: str) -> dict[str, object]:
    """Run code in a fresh interpreter, and read the last line of what it prints."""
    said: dict[str, object] = json.loads(lines(code, *arguments)[-1])
    return said


def heavy(modules: object) -> set[str]:
    assert isinstance(modules, list)
    return HEAVY & {str(each).partition(".")[0] for each in modules}


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What parsing each file says, by its name."""
    folder = tmp_path_factory.mktemp("dags")
    for name, text in {"plain.py": PLAIN, "pods.py": PODS, "synthetic.py": OURS}.items():
        (folder / name).write_text(text)
    files = [*sorted(folder.iterdir()), *DAGS]
    said = [each for each in lines(PARSE, *map(str, files)) if each.startswith("{")]
    return dict(zip([each.name for each in files], map(json.loads, said), strict=True))


@pytest.fixture(scope="module")
def airflows_own(parsed: dict[str, dict[str, Any]]) -> set[str]:
    """What Airflow imports by itself when it parses a DAG file of plain tasks."""
    said = parsed["plain.py"]
    assert (said["errors"], said["dags"]) == ({}, {"plain": ["make", "train"]})
    return set(said["modules"])


@pytest.fixture(scope="module")
def of_a_pod(parsed: dict[str, dict[str, Any]]) -> set[str]:
    """What is imported for a DAG file with a KubernetesPodOperator."""
    said = parsed["pods.py"]
    assert (said["errors"], said["dags"]) == ({}, {"pods": ["x"]})
    return set(said["modules"])


@pytest.mark.parametrize("name", ["synthetic.py", *(each.name for each in DAGS)])
def test_parsing_a_dag_file_imports_nothing_heavy(
    name: str, parsed: dict[str, dict[str, Any]], airflows_own: set[str], of_a_pod: set[str]
) -> None:
    before = airflows_own | of_a_pod if name in OF_PODS else airflows_own
    said = parsed[name]
    assert said["errors"] == {}
    assert said["dags"], "the file has no DAG"
    modules = said["modules"]
    assert any(each.startswith("airflow_ml_provider.operators.") for each in modules)
    assert heavy(modules) - heavy(sorted(before)) == set()
    later = {"httpx", "difflib", "airflow_ml_provider.hooks.mlflow", "airflow_ml_provider.operators.session"}
    assert later & set(modules) - before == set()


def test_there_is_a_dag_to_parse() -> None:
    assert DAGS


@pytest.mark.parametrize(
    ("airflow", "ours"),
    [
        ("pass", "from airflow_ml_provider.provider_info import get_provider_info as look"),
        ("pass", "from airflow_ml_provider.cli import definition; look = lambda: definition.COMMANDS"),
        ("import airflow.cli.cli_config", "from airflow_ml_provider.cli.definition import get_commands as look"),
        ("import airflow.plugins_manager, airflow.listeners", "from airflow_ml_provider.plugin import AirflowMLPlugin as look"),
    ],
    ids=["provider", "commands", "commands of airflow", "plugin"],
)
def test_being_discovered_imports_neither_a_client_nor_anything_heavy(airflow: str, ours: str) -> None:
    code = f"""
    import json, sys
    {airflow}
    before = set(sys.modules)
    {ours}
    assert look()
    print(json.dumps(sorted(set(sys.modules) - before)))
    """
    added = run(code)
    assert heavy(added) == set()
    assert isinstance(added, list)
    assert {"httpx", "tenacity", "rich", "airflow_ml_provider.hooks.mlflow"} & set(added) == set()
    if airflow == "pass":
        assert not any(each.partition(".")[0] == "airflow" for each in added), "it would cost Airflow's own import"
