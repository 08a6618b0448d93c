"""The same steps in the places where steps run, and what they made there, so that it can be compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_ml_provider.core.kfp_component import MANIFEST
from airflow_ml_provider.core.kfp_package import check_arguments, read_package
from airflow_ml_provider.jobs.kfp_compile import compile_function
from airflow_ml_provider.jobs.kfp_local import KfpLocal, LocalOutcome
from airflow_ml_provider.models.kfp import RunState
from airflow_ml_provider.models.pod_step import StepManifest
from tests.airflow_runs import Outcome
from tests.components.churn_steps import gather, score, train

PIPELINE = Path(__file__).with_name("churn.py")
ROWS, RATE, FACTORS = 4, 0.25, [1.0, 2.0]


@dataclass(frozen=True)
class Made:
    """What the steps made: sha256 per output, and what the last of them returned."""

    digests: dict[str, str]
    result: Any


def wire(as_task: Callable[[Callable[..., Any]], Any]) -> None:
    """Put the steps into the DAG that is open."""
    table = as_task(gather)(rows=ROWS)
    trained = as_task(train)(table=table["table"], rate=RATE)
    as_task(score)(model=trained["model"], metrics=trained["metrics"], factors=FACTORS)


def made_in_airflow(outcome: Outcome) -> Made:
    """Read a DAG run."""
    assert outcome.state == "success", outcome.tasks
    outputs = outcome.xcom("gather")["outputs"] | outcome.xcom("train")["outputs"]
    return Made({name: each["sha256"] for name, each in outputs.items()}, outcome.xcom("score"))


def run_on_this_machine(folder: Path) -> LocalOutcome:
    """Run the pipeline of the same steps by the SDK's local runner."""
    package = read_package(compile_function(f"{PIPELINE}:churn", relative_to=None), source="churn.yaml")
    outcome = KfpLocal().run(package, check_arguments(package, {"rows": ROWS, "rate": RATE}), folder, run_id="one")
    assert outcome.run.state is RunState.SUCCEEDED, outcome.problem
    return outcome


def manifests(outcome: LocalOutcome) -> dict[str, StepManifest]:
    """Read what each component has told."""
    told = [each for each in outcome.results.outputs if each.name == MANIFEST and each.task]
    return {each.task: StepManifest.model_validate(json.loads(Path(each.path).read_text())) for each in told}


def made_on_this_machine(outcome: LocalOutcome) -> Made:
    """Read a run of the pipeline."""
    digests = {name: out.sha256 for each in manifests(outcome).values() for name, out in each.outputs.items()}
    (result,) = (each.value for each in outcome.results.outputs if not each.task)
    return Made(digests, result)
