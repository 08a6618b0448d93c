"""The trigger of the sensors, on a real MLflow."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.watch import AliasQuestion, RunQuestion
from airflow_ml_provider.triggers.mlflow import MlflowWatchTrigger
from airflow_ml_provider.triggers.mlflow_line import MlflowLine
from tests.mlflow_proxy import MlflowProxy
from tests.servers import connection

OF_THE_LISTENER = {"/api/2.0/mlflow/experiments/search", "/api/2.0/mlflow/runs/search"}
"""What the listener asks when it settles a DAG run of an earlier test, in a thread of its own."""


@pytest.fixture
def proxy(mlflow_server: MlflowServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowProxy]:
    with MlflowProxy(mlflow_server.url) as proxy:
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(replace(mlflow_server, url=proxy.url)))
        yield proxy
    assert MlflowLine._all == {}


@pytest.fixture
def run_id(mlflow_api: MlflowApi, unique: str) -> str:
    experiment_id = mlflow_api.post("experiments/create", {"name": unique})["experiment_id"]
    return str(mlflow_api.post("runs/create", {"experiment_id": experiment_id})["run"]["info"]["run_id"])


def trigger_of(question: Any, **given: Any) -> MlflowWatchTrigger:
    return MlflowWatchTrigger(question=question.model_dump(mode="json"), **{"poll_interval_s": 0.1, "patience_s": 20.0} | given)


def wait(trigger: MlflowWatchTrigger, then: Callable[[], Any] | None = None) -> dict[str, Any]:
    """Let a trigger wait, and something happen meanwhile."""

    async def main() -> Any:
        task = asyncio.create_task(anext(trigger.run()))  # type: ignore[arg-type]
        await asyncio.sleep(0.5)
        if then is not None:
            await asyncio.to_thread(then)
        return (await asyncio.wait_for(task, 20)).payload

    told: dict[str, Any] = asyncio.run(main())
    assert json.loads(json.dumps(told)) == told
    return told


def test_an_end_is_told_with_the_run(proxy, mlflow_api, run_id):
    told = wait(
        trigger_of(RunQuestion(run_id=run_id)), lambda: mlflow_api.post("runs/update", {"run_id": run_id, "status": "FINISHED"})
    )
    assert (told["outcome"], told["value"]["run_id"], told["value"]["status"]) == ("seen", run_id, "FINISHED")
    assert proxy.count("runs/get") > 2


def test_the_deadline_is_kept_here_also_while_the_server_is_away(proxy, unique):
    question = AliasQuestion(model=unique, alias="champion")
    told = wait(trigger_of(question, deadline=time.time() + 0.2))
    assert (told["outcome"], f"There is no {unique}@champion." in told["message"]) == ("deadline", True)
    proxy.away = 503
    assert wait(trigger_of(question, deadline=time.time() + 0.2))["outcome"] == "deadline"


@pytest.mark.parametrize(("status", "outcome"), [(503, "unreachable"), (401, "refused")])
def test_a_server_that_stays_away_is_borne_for_as_long_as_the_patience(proxy, run_id, status, outcome):
    proxy.away = status
    told = wait(trigger_of(RunQuestion(run_id=run_id), patience_s=0.5))
    assert (told["outcome"], "(patience 0 s)" in told["message"]) == (outcome, True)


def test_a_server_that_comes_back_is_asked_on(proxy, mlflow_api, run_id):
    proxy.away = 401  # a login that somebody mends

    def happen() -> None:
        mlflow_api.post("runs/update", {"run_id": run_id, "status": "FAILED"})
        proxy.away = None

    assert wait(trigger_of(RunQuestion(run_id=run_id)), happen)["outcome"] == "failed"


def test_many_share_one_client_and_nobody_who_leaves_takes_it_away(proxy, mlflow_api, run_id):
    async def main() -> list[Any]:
        question = RunQuestion(run_id=run_id)
        tasks = [asyncio.create_task(anext(trigger_of(question).run())) for _ in range(20)]  # type: ignore[arg-type]
        await asyncio.sleep(0.5)
        (line,) = MlflowLine._all.values()
        assert line._users == 20
        for each in tasks[:10]:
            each.cancel()
        await asyncio.gather(*tasks[:10], return_exceptions=True)
        await asyncio.to_thread(mlflow_api.post, "runs/update", {"run_id": run_id, "status": "FINISHED"})
        return [each.payload["outcome"] for each in await asyncio.wait_for(asyncio.gather(*tasks[10:]), 20)]

    assert asyncio.run(main()) == ["seen"] * 10


def test_a_question_of_another_release_is_refused_at_once(proxy):
    told = wait(MlflowWatchTrigger(question={"kind": "colour"}))
    assert (told["outcome"], "clear the task" in told["message"]) == ("refused", True)
    assert [path for path, _ in proxy.asked if path not in OF_THE_LISTENER] == []


def test_its_arguments_are_plain_and_make_the_same_trigger():
    trigger = trigger_of(AliasQuestion(model="m", alias="champion", away_from="3"), deadline=5.0, mlflow_conn_id="other")
    path, arguments = trigger.serialize()
    assert json.loads(json.dumps(arguments)) == arguments
    assert MlflowWatchTrigger(**arguments).serialize() == (path, arguments)
    assert MlflowWatchTrigger(question=arguments["question"]).deadline is None, "without the newer arguments"
