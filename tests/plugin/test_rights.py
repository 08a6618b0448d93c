"""Whose models, steps and files somebody sees: a model is of the DAGs that have made its versions."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowServer
from airflow_ml_provider.models.run import OpenRun
from airflow_ml_provider.plugin import steps
from airflow_ml_provider.tracking import page_models, page_runs
from airflow_ml_provider.tracking.runs import as_pairs
from tests.lineage.nights import Night
from tests.mlflow_proxy import MlflowProxy
from tests.plugin.conftest import Browser
from tests.plugin.test_web import said
from tests.servers import connection

Person = Callable[..., Browser]
Record = Callable[..., OpenRun]
NIGHT = "manual__1"


def page(person: Browser, dag_id: str, path: str) -> str:
    answer = person.get(f"/airflow-ml/dags/{dag_id}{path}")
    assert answer.status_code == 200
    return unescape(answer.text)


class Registry:
    """Models and versions, as the steps of DAGs make them."""

    def __init__(self, api: MlflowApi) -> None:
        self.api = api

    def version(self, name: str, run: OpenRun, *, auc: float | None = None, tags: dict[str, str] | None = None) -> str:
        made = self.api.post("logged-models", {"experiment_id": run.experiment_id, "name": "m", "source_run_id": run.run_id})
        model_id = made["model"]["info"]["model_id"]
        self.api.post("runs/outputs", {"run_id": run.run_id, "models": [{"model_id": model_id, "step": 0}]})
        if auc is not None:
            point = {"key": "auc", "value": auc, "timestamp": 1, "step": 0, "model_id": model_id}
            self.api.post("runs/log-batch", {"run_id": run.run_id, "metrics": [point]})
        body = {
            "name": name,
            "source": f"models:/{model_id}",
            "run_id": run.run_id,
            "model_id": model_id,
            "tags": as_pairs(tags or {}),
        }
        return str(self.api.post("model-versions/create", body)["model_version"]["version"])


@pytest.fixture
def registry(mlflow_api: MlflowApi, mlflow_connection: str) -> Registry:
    return Registry(mlflow_api)


def shown(text: str) -> list[str]:
    return re.findall(r"<tr[^>]*><td><a href=\"[^\"]*\">(\d+)</a>", text)


class TestAModel:
    @pytest.fixture
    def two(self, registry: Registry, record: Record, unique: str) -> tuple[str, str, str]:
        """A model of which two DAGs have made versions, and somebody by hand."""
        mine, theirs, name = f"mine-{unique}", f"theirs-{unique}", f"a 'model' of {unique} ü"
        registry.api.post("registered-models/create", {"name": name})
        registry.version(name, record(mine, NIGHT), auc=0.7)
        registry.version(name, record(theirs, NIGHT), auc=0.8)
        registry.version(name, record(mine, "manual__2"), auc=0.9)
        registry.version(name, record(mine, "manual__2"), tags={"airflow.dag_id": theirs})
        by_hand = registry.api.post("model-versions/create", {"name": name, "source": "s3://elsewhere/model"})
        assert by_hand["model_version"]["version"] == "5"
        return mine, theirs, name

    def test_versions_of_other_dags_and_of_none_are_not_shown(self, person: Person, two: tuple[str, str, str]) -> None:
        mine, theirs, name = two
        text = page(person(mine), mine, f"/model?name={quote(name)}")
        assert shown(text) == ["3", "1"]
        assert "There are other versions" in text
        assert theirs not in text
        assert ">0.8<" not in text
        assert shown(page(person(f"{mine}+{theirs}"), mine, f"/model?name={quote(name)}")) == ["4", "3", "2", "1"]

    def test_one_that_may_not_be_seen_is_as_one_that_is_not_there(
        self, person: Person, two: tuple[str, str, str], unique: str
    ) -> None:
        mine, _, name = two
        asked = (
            f"name={quote(name)}&version=2",
            f"name={quote(name)}&version=77",
            f"name=none-{unique}",
            "name=a%2Fb",
            "name='%22",
        )
        texts = {said(page(person(mine), mine, f"/model?{each}")) for each in asked}
        assert len(texts) == 1
        assert "no such thing" in texts.pop()

    def test_numbers_of_a_later_try_are_not_those_of_an_earlier_version(
        self, person: Person, mlflow_api: MlflowApi, mlflow_connection: str, tmp_path: Path, unique: str
    ) -> None:
        first, second = (Night(mlflow_api, tmp_path, unique, night, salt=f"{unique}{night}") for night in ("one", "two"))
        for night, number, loss in ((first, 1, 0.5), (first, 2, 0.25), (second, 1, 0.125)):
            night.register(unique, night.step("train", [], {"model": "Model"}, {}, {"loss": loss}, try_number=number)["model"])
        rows = page(person(unique), unique, f"/model?name={unique}").split("<tr")
        told = {
            name[1]: re.findall('class="number">([^<]*)<', row) for row in rows if (name := re.search(r">(\d)</a></td>", row))
        }
        assert told == {"3": ["0.125"], "2": ["0.25"], "1": [""]}

    def test_its_page_shows_the_version_that_was_asked_for(self, person: Person, two: tuple[str, str, str]) -> None:
        mine, _, name = two
        text = page(person(mine), mine, f"/model?name={quote(name)}&version=1")
        assert "Where version 1 comes from" in text
        assert re.findall(r"<title>version (\d): ([\d.]+)</title>", text) == [("1", "0.7"), ("3", "0.9")]

    def test_a_version_that_is_asked_for_is_shown_however_old_it_is(
        self, person: Person, two: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        mine, _, name = two
        monkeypatch.setattr(page_models, "VERSIONS", 3)  # 50 more would take half a minute
        assert shown(page(person(mine), mine, f"/model?name={quote(name)}")) == ["3"]
        text = page(person(mine), mine, f"/model?name={quote(name)}&version=1")
        assert shown(text) == ["3", "1"]
        assert "Where version 1 comes from" in text

    def test_lineage_of_other_dags_is_as_one_that_is_not_there(
        self, person: Person, two: tuple[str, str, str], registry: Registry
    ) -> None:
        mine, _, name = two
        sources = {
            number: registry.api.get("model-versions/get", name=name, version=number)["model_version"]["source"]
            for number in "12"
        }
        assert "<svg" in page(person(mine), mine, f"/lineage?of={quote(sources['1'])}")
        for uri in (sources["2"], "models:/m-" + "0" * 32, "models:/", "models:/../../x"):
            assert "no such thing" in said(page(person(mine), mine, f"/lineage?of={quote(uri)}"))


class TestAFile:
    @pytest.fixture
    def file(self, record: Record, mlflow_api: MlflowApi, mlflow_connection: str, unique: str) -> OpenRun:
        run = record(unique, NIGHT)
        mlflow_api.upload(f"{run.artifact_uri.partition(':')[2].strip('/')}/try-1/notes.txt", iter([b"our secret"]), 10)
        return run

    def test_it_is_shown_below_its_own_dag_alone(self, person: Person, file: OpenRun, unique: str) -> None:
        asked = f"?run={file.run_id}&path=try-1/notes.txt"
        assert "<pre>our secret</pre>" in page(person(unique), unique, f"/artifact{asked}")
        assert "no such thing" in said(page(person("a+b"), "a", f"/artifact{asked}"))
        assert person("a").get(f"/airflow-ml/dags/a/picture{asked}").status_code == 404

    @pytest.mark.parametrize(
        "path", ["../artifacts/try-1/notes.txt", "try-1/../try-1/notes.txt", "try-1", "try-1/", "/etc/passwd", "a%252e", "x"]
    )
    def test_a_path_leads_nowhere_else(self, person: Person, file: OpenRun, unique: str, path: str) -> None:
        text = page(person(unique), unique, f"/artifact?run={file.run_id}&path={quote(path, safe='')}")
        assert "no such thing" in said(text)

    def test_the_step_lists_it(self, person: Person, file: OpenRun, unique: str) -> None:
        text = page(person(unique), unique, f"/run/step?run_id={NIGHT}&task_id=train")
        assert "try-1/notes.txt" in text

    @pytest.mark.form("sqlite")  # others let not everybody name a place
    def test_what_mlflow_does_not_hand_out_is_not_read(
        self, person: Person, mlflow_api: MlflowApi, mlflow_connection: str, record: Record, unique: str, tmp_path: Any
    ) -> None:
        (tmp_path / "secret.txt").write_text("of this machine")
        body = {"name": unique, "artifact_location": f"file://{tmp_path}"}
        mlflow_api.post("experiments/create", body)
        run = record(unique, NIGHT)
        text = page(person(unique), unique, f"/run/step?run_id={NIGHT}&task_id=train")
        assert "which this page does not read" in text
        place = run.artifact_uri.removeprefix(f"file://{tmp_path}")
        text = page(person(unique), unique, f"/artifact?run={run.run_id}&path={quote(f'{place}/secret.txt'.strip('/'), safe='')}")
        assert "no such thing" in said(text)


def test_mlflow_that_hangs_is_given_up_and_said(
    person: Person, record: Record, mlflow_server: MlflowServer, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(unique, NIGHT)
    monkeypatch.setattr(page_runs, "HASTY_S", 0.2)  # so that the test does not take as long
    awake = threading.Event()

    def hang(*_: object) -> tuple[int, bytes]:
        awake.wait(10)
        return 503, b""

    with MlflowProxy(mlflow_server.url) as proxy:
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(replace(mlflow_server, url=proxy.url)))
        monkeypatch.setattr(proxy, "answer", hang)
        texts = [said(page(person(unique), unique, each)) for each in ("", f"/run?run_id={NIGHT}", "/model?name=a")]
        awake.set()
    assert all("does not answer" in each for each in texts)


def test_the_requests_of_a_page_do_not_grow_with_the_steps(
    person: Person,
    record: Record,
    mlflow_server: MlflowServer,
    mlflow_api: MlflowApi,
    unique: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = record(unique, NIGHT)
    asked = []
    with MlflowProxy(mlflow_server.url) as proxy:
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", connection(replace(mlflow_server, url=proxy.url)))
        for number in (0, 12):
            for index in range(number):
                tags = {"mlflow.parentRunId": run.parent_run_id, "airflow.dag_id": unique, "airflow.run_id": NIGHT}
                tags |= {"airflow.task_id": "more", "airflow.map_index": str(index), "airflow.key": f"{index}"}
                mlflow_api.post("runs/create", {"experiment_id": run.experiment_id, "start_time": 9, "tags": as_pairs(tags)})
            proxy.asked.clear()
            text = page(person(unique), unique, f"/run?run_id={NIGHT}")
            assert text.count('<details class="step"') == 1 + number
            asked.append(len(proxy.asked))
    assert asked[0] == asked[1] <= 4


def test_a_time_that_no_calendar_has_is_left_out(
    person: Person, record: Record, mlflow_api: MlflowApi, mlflow_connection: str, unique: str
) -> None:
    run = record(unique, NIGHT)
    tags = {"mlflow.parentRunId": run.parent_run_id, "airflow.dag_id": unique, "airflow.run_id": NIGHT, "airflow.task_id": "late"}
    body = {"experiment_id": run.experiment_id, "start_time": 10**17, "tags": as_pairs(tags)}  # a year with seven digits
    mlflow_api.post("runs/create", body)
    text = page(person(unique), unique, f"/run?run_id={NIGHT}")
    assert re.findall(r'<span class="name">([^<]*)</span>', text) == ["train", "late"]


def test_a_record_that_cannot_be_read_is_said_and_stops_nothing_else(
    person: Person, record: Record, mlflow_connection: str, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(unique, NIGHT)

    def fail(*_: object) -> None:
        raise ValueError("none that is known gets so far")

    monkeypatch.setattr(steps, "read_step", fail)
    assert "cannot be read" in said(page(person(unique), unique, f"/run?run_id={NIGHT}"))
    assert said(page(person(unique), unique, "")) == ""


def test_the_page_of_a_pipeline_run_is_named_by_its_host(
    person: Person, record: Record, mlflow_api: MlflowApi, mlflow_connection: str, unique: str
) -> None:
    run = record(unique, NIGHT)
    tags = as_pairs({"airflow.kfp.url": "https://kfp.example/#/runs/details/1"})
    mlflow_api.post("runs/log-batch", {"run_id": run.run_id, "tags": tags})
    assert ">KFP run at kfp.example</a>" in page(person(unique), unique, f"/run?run_id={NIGHT}")
