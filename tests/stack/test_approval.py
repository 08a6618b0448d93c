"""The gate's verdict is put to a person, and the answer decides."""

from __future__ import annotations

import pytest

from airflow_ml_provider.tracking.registry import ModelRegistry
from tests.stack.conftest import Site, until

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]
DAG = "approval"


@pytest.mark.parametrize(("answer", "promoted"), [("Reject", "skipped"), ("Approve", "success")])
def test_the_answer_of_a_person_decides_over_the_promotion(site: Site, answer: str, promoted: str) -> None:
    run_id = site.start(DAG)
    question = f"/dags/{DAG}/dagRuns/{run_id}/taskInstances/ask/-1/hitlDetails"

    def asked() -> bool:
        return site.task_state(DAG, run_id, "ask")[0] in {"awaiting_input", "deferred"}

    until("the question", asked)
    until("the executor's word", lambda: site.heard(run_id, "ask"))
    said = site.airflow.call("GET", question)
    assert "models:/m-" in said["subject"]
    assert "no champion" in said["body"]
    site.airflow.call("PATCH", question, body={"chosen_options": [answer], "params_input": {}})
    site.finish(DAG, run_id)
    assert site.task_state(DAG, run_id, "promote")[0] == promoted
    champion = ModelRegistry(site.mlflow).find("approved", "champion")
    assert (champion is not None) == (promoted == "success")
