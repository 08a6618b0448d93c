from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_ml_provider.core.podspec import render
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.models.resources import GpuRequest, StepResources
from airflow_ml_provider.tracking.places import ProxyPlace
from tests.cluster.dags.pod_cases import CASES
from tests.docs.pages import PAGES, ROOT, Page, page
from tests.step.conftest import new_pod, pod  # noqa: F401  (fixtures)
from tests.step.pods import Pod, proxy

FAILURES, STEP = page("docs/pod-failures.md"), page("docs/pod-step.md")
BLOCK = re.compile(r"^```(py|sh)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WRITTEN = re.compile(r"`((?:gpu|options)=(?:[0-9]+|(?:GpuRequest|PodOptions)\((?!\.\.\.)[^`]*\)))`")
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(?:Test\w+::)?(\w+)`")


def programs(kind: str) -> list[str]:
    return [text for found, text in BLOCK.findall(STEP.text) if found == kind]


def examples() -> Iterator[str]:
    for path in PAGES:
        if path.name.startswith("pod"):
            yield from WRITTEN.findall(Page(path).text)


@pytest.mark.parametrize("text", sorted(set(examples())))
def test_what_a_page_says_to_write_can_be_written(text: str) -> None:
    known = {"GpuRequest": GpuRequest, "PodOptions": PodOptions}
    given: dict[str, Any] = eval(f"dict({text})", known)  # noqa: S307  (our own page)
    assert render(StepResources(**given)).arguments()


def test_every_test_that_a_page_names_is_there() -> None:
    named = [(file, test) for path in PAGES for file, test in NAMED.findall(Page(path).text)]
    assert len(named) > 20
    assert [each for each in named if not re.search(rf"def {each[1]}\(", (ROOT / each[0]).read_text())] == []


def test_every_row_of_the_table_of_faults_is_played_on_a_real_cluster() -> None:
    rows = FAILURES.rows("Fault")
    cases = {name for row in rows for name in re.findall(r"`(\w+)`", row[3])}
    assert len(rows) > 20
    assert all(row[3] for row in rows)
    assert cases <= CASES.keys()


def test_a_program_of_the_page_about_the_step_runs(mlflow_api: MlflowApi, pod: Pod) -> None:  # noqa: F811
    give_table(mlflow_api, pod)
    pod.output("model", "Model", flat=True)
    pod.fields["parameters"] = {"epochs": 3}
    assert pod.run(programs("py")[0]) == 0, pod.text
    manifest = pod.manifest(mlflow_api)
    assert manifest.outputs.keys() == {"model"}
    assert manifest.metrics["loss"] == pytest.approx(1 / 3)
    assert manifest.params == {"rows": "2"}


def test_a_program_of_the_page_goes_on_from_its_checkpoint(
    mlflow_api: MlflowApi,
    new_pod: Callable[..., Pod],  # noqa: F811
) -> None:
    program = programs("py")[1]
    for number in (1, 2):
        made = new_pod(f"try-{number}")
        place = proxy(f"{made.root}/try-{number}/manifest.json")
        made.fields |= {"try_number": number, "manifest": place, "checkpoints": proxy(f"{made.root}/checkpoints")}
        assert made.run(program) == 0, made.text
        assert "epochs 40.0" in made.text
    assert made.manifest(mlflow_api).checkpoint.startswith("1-"), "the second try has not gone on where the first one ended"


def test_a_shell_without_python_does_it_with_lines_and_files(mlflow_api: MlflowApi, pod: Pod) -> None:  # noqa: F811
    give_table(mlflow_api, pod)
    pod.output("count", "Dataset")
    (program,) = programs("sh")
    assert pod.end(pod.start("run", "--", "sh", "-c", program)) == 0, pod.text
    assert pod.read(mlflow_api, "try-1/count.txt").split() == [b"2"]
    assert pod.manifest(mlflow_api).metrics == {"seconds": 1.5}


def test_every_variable_that_the_tests_on_a_cluster_read_is_on_the_page() -> None:
    read = {
        name
        for folder in ("cluster", "deploy")
        for file in (ROOT / "tests" / folder).rglob("*.py")
        for name in re.findall(r"environ(?:\.get\(|\[)\"(CLUSTER_\w+|KUBECONFIG)\"", file.read_text())
    }
    assert read == {row[0].strip("`") for row in FAILURES.rows("Variable")}


def give_table(api: MlflowApi, pod: Pod) -> None:  # noqa: F811
    """Give a pod an input of two lines."""
    (pod.folder / "table.csv").write_text("1\n2\n")
    ProxyPlace(api, pod.root).write("given/table.csv", pod.folder / "table.csv")
    pod.input("table", "table.csv", "given/table.csv", directory=False)
