"""A step's cache: what a hit puts on record, when a step runs all the same, and that nothing mixed is ever kept."""

from __future__ import annotations

import errno
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pendulum
import pytest
from airflow.sdk import Asset, dag

from airflow_ml_provider import Cache, Dataset, Input, Metrics, Model, Output, ml_task
from airflow_ml_provider.config import Settings
from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError, SupersededError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.reference import ArtifactRef, StepOutputs
from airflow_ml_provider.operators.cache_parse import mode_of
from airflow_ml_provider.operators.caching import StepCache
from airflow_ml_provider.operators.session import StepSession
from airflow_ml_provider.tracking import places, spool
from airflow_ml_provider.tracking.cleanup import CleanUp, Rules
from airflow_ml_provider.tracking.record import Recorder
from airflow_ml_provider.tracking.runs import RunTree, run_id_of, status_of, tags_of
from tests.mlflow_proxy import MlflowProxy
from tests.operators.cached_steps import Done, Steps, counts, fit, train, write_model, write_table

START = pendulum.datetime(2024, 1, 1)


@pytest.fixture
def step(mlflow_api: MlflowApi, unique: str) -> Steps:
    return Steps(mlflow_api, unique)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger="airflow_ml_provider"):
        yield caplog


@pytest.fixture
def proxy(mlflow_url: str) -> Iterator[MlflowProxy]:
    with MlflowProxy(mlflow_url) as made:
        yield made


# What a hit is


def test_a_hit_leads_to_the_earlier_run_and_the_log_and_tags_say_so(step: Steps, told: Any) -> None:
    first, second = step(1), step(2)
    assert second.xcom == first.xcom
    assert second.xcom["run_id"] == first.run_id
    assert second.tags["airflow.cache"] == "hit"
    assert second.tags["airflow.cached_from"] == first.run_id
    assert second.tags["airflow.cache_key"] == first.tags["airflow.cache_key"]
    assert (first.said, first.url) == ("miss: no earlier result has this key", "")
    assert second.url.endswith(first.run_id)
    assert status_of(second.run) == "FINISHED"
    assert f"Cache: hit. The outputs are those of run {first.run_id} (night-1, made " in told.text
    assert told.text.count("Stored Dataset table") == 1
    assert not second.session.recorder.api.get("artifacts/list", run_id=second.run_id).get("files"), "nothing is stored again"


def test_a_miss_says_which_part_of_the_key_has_changed(step: Steps, told: Any) -> None:
    step(1, given={"depth": 300}, cache=Cache(salt="a"))
    second = step(2, given={"depth": 400}, cache=Cache(extras={"grid": 3}))
    assert second.said.startswith("miss: against the run of night-1 (20")
    for each in ("parameter depth: 300 -> 400", "extra grid: new", "salt: gone"):
        assert each in second.said
    assert f"Cache: miss. {second.said.removeprefix('miss: ').capitalize()[:20]}" in told.text


def test_the_last_values_of_the_metrics_come_with_a_hit_and_its_model_is_an_output(step: Steps, mlflow_api: MlflowApi) -> None:
    first = step(1, function=train, body=write_model)
    second = step(2, function=train, body=write_model)
    assert second.hit is not None
    values = {each["key"]: (each["value"], each["step"]) for each in second.run["data"]["metrics"]}
    assert values == {"loss": (pytest.approx(1 / 3), 2)}
    assert second.run["outputs"]["model_outputs"][0]["model_id"] == first.session.record.outputs[0].model_id
    body = {"experiment_ids": [first.session.record.run.experiment_id], "filter": f"source_run_id = '{second.run_id}'"}
    assert not mlflow_api.post("logged-models/search", body).get("models"), "no second model is made"
    assert [each.name for each in second.session.record.outputs] == ["model", "metrics"]


def test_lineage_goes_through_a_hit_without_a_hole(step: Steps) -> None:
    def read(raw: Input[Dataset], model: Input[Model], other: Output[Model]) -> None: ...

    def body(session: StepSession) -> None:
        Path(session.write("other", Model).path).write_text("w")

    first, second = step(1), step(2)
    models = [step(night, function=train, body=write_model, task_id="fit") for night in (1, 2)]
    assert (second.ran, models[1].ran) == (False, False)
    table, model = (StepOutputs.from_json(each.xcom) for each in (second, models[1]))
    given = {"raw": table.ref("table").to_json(), "model": model.ref("model").to_json()}
    reads = [step(night, function=read, given=given, body=body, task_id="read") for night in (2, 3)]
    assert [each.ran for each in reads] == [True, False]
    for each in reads:
        inputs = each.run["inputs"]
        assert json.loads(inputs["dataset_inputs"][0]["dataset"]["source"])["run_id"] == first.run_id
        assert [one["model_id"] for one in inputs["model_inputs"]] == [models[0].session.record.outputs[0].model_id]
        assert [one["model_id"] for one in each.run["outputs"]["model_outputs"]] == [reads[0].session.record.outputs[0].model_id]


def test_a_step_without_outputs_gives_what_it_has_returned(step: Steps) -> None:
    value = {"scores": [0.5, 1.0], "name": "x", "none": None}
    first = step(1, function=counts, body=lambda _: value)
    second = step(2, function=counts, body=lambda _: value)
    assert (first.ran, second.ran, second.xcom) == (True, False, value)


def test_a_result_that_json_changes_is_not_kept(step: Steps, told: Any) -> None:
    for night in (1, 2):
        assert step(night, function=counts, body=lambda _: {"pair": (1, 2)}).ran
    assert "the result of this step is not kept" in told.text


# What a key is made of


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"given": {"depth": 4}}, id="parameter"),
        pytest.param({"cache": Cache(salt="v2")}, id="salt", marks=pytest.mark.full),
        pytest.param({"cache": Cache(extras={"grid": 1})}, id="extra", marks=pytest.mark.full),
        pytest.param({"cache": Cache(packages=["pytest"])}, id="package", marks=pytest.mark.full),
        pytest.param({"function": train, "body": write_model}, id="outputs", marks=pytest.mark.full),
    ],
)
def test_another_key_is_another_step(step: Steps, change: dict[str, Any]) -> None:
    step(1)
    assert step(2, **change).ran
    assert step(3, **change).hit is not None


def test_inputs_count_by_their_bytes_wherever_they_lie(step: Steps, tmp_path: Path, told: Any) -> None:
    for name, content in (("a.csv", "rows"), ("b.csv", "rows"), ("c.csv", "ROWS"), ("d.txt", "rows")):
        (tmp_path / name).write_text(content)
    first = step(1, given={"raw": str(tmp_path / "a.csv")})
    assert first.session.record.inputs[0].sha256, "what nobody has recorded a digest of is read"
    assert step(2, given={"raw": str(tmp_path / "b.csv")}).hit is not None
    third = step(3, given={"raw": str(tmp_path / "c.csv")})
    assert third.ran
    assert "input raw: " in third.said
    assert step(4, given={"raw": str(tmp_path / "d.txt")}).ran, "a step can go by the ending"
    fifth = step(5)
    assert fifth.ran, "no input at all"
    assert "input raw: " in fifth.said
    assert step(6).hit is not None


def test_an_input_is_read_once_for_its_digest_and_for_the_step(step: Steps, tmp_path: Path) -> None:
    (tmp_path / "raw.csv").write_text("rows")
    seen: list[str] = []

    def body(session: StepSession) -> None:
        (tmp_path / "raw.csv").write_text("changed meanwhile")
        _, ref = session.taken["raw"][0]
        seen.append(Path(session.fetch(ref, 0)).read_text())
        write_table(session)

    step(1, given={"raw": str(tmp_path / "raw.csv")}, body=body)
    assert seen == ["rows"], "the step reads what stands in the key"
    assert step(2, given={"raw": str(tmp_path / "raw.csv")}).ran


def test_a_list_of_inputs_counts_in_its_order(step: Steps, tmp_path: Path) -> None:
    files = []
    for name in "abc":
        (tmp_path / name).write_text(name)
        files.append(str(tmp_path / name))
    step(1, given={"many": files})
    assert step(2, given={"many": files}).hit is not None
    assert step(3, given={"many": files[::-1]}).ran
    assert step(4, given={"many": files[:2]}).ran
    assert step(5, given={"many": files, "raw": files[0]}).ran


def test_the_metadata_of_an_input_counts_unless_it_is_left_out(step: Steps) -> None:
    def with_metadata(value: int) -> Any:
        def body(session: StepSession) -> None:
            write_table(session)
            Path(session._outputs["table"].path).write_text("the same rows")
            session._outputs["table"].metadata["made"] = value

        return body

    tables = [
        StepOutputs.from_json(step(night, task_id="make", given={"depth": night}, body=with_metadata(night)).xcom).ref("table")
        for night in (1, 2)
    ]
    assert tables[0].sha256 == tables[1].sha256
    without = Cache(metadata=False)
    step(1, given={"raw": tables[0].to_json()})
    second = step(2, given={"raw": tables[1].to_json()})
    assert "input raw metadata: " in second.said
    step(3, given={"raw": tables[0].to_json()}, cache=without)
    assert step(4, given={"raw": tables[1].to_json()}, cache=without).hit is not None


def test_metadata_that_cannot_be_read_at_once_are_waited_for(step: Steps, proxy: MlflowProxy, told: Any) -> None:
    made = StepOutputs.from_json(step(1, task_id="make").xcom).ref("table").to_json()
    answer, lost = proxy.answer, [b"away"]
    proxy.answer = lambda method, target, body: (  # type: ignore[method-assign]  # as its docstring offers
        (503, lost.pop()) if lost and target.endswith("table.metadata.json") else answer(method, target, body)
    )
    patient = Settings(patience_s=5, http_retries=0, spool=step.settings.spool)
    with MlflowApi(replace(step.api.server, url=proxy.url), patient) as api:
        assert Steps(api, step.dag_id, patient)(2, given={"raw": made}).ran
    assert "Could not read the metadata of raw" in told.text
    assert not lost


def test_what_is_ignored_is_not_read_and_does_not_count(step: Steps, tmp_path: Path) -> None:
    cache = Cache(ignore=["raw", "day"])
    step(1, given={"raw": str(tmp_path / "not there"), "day": "2024-01-01"}, cache=cache)
    assert step(2, given={"day": "2024-01-02"}, cache=cache).hit is not None


def test_an_input_that_changes_while_the_step_runs_leaves_no_result(step: Steps, told: Any) -> None:
    ref = ArtifactRef(type="Dataset", name="raw", uri="s3://bucket/raw", sha256="a" * 64)

    def changed(session: StepSession, _: Any) -> None:
        session.record.inputs[0] = session.record.inputs[0].model_copy(update={"sha256": "b" * 64})

    step(1, given={"raw": ref.to_json()}, before_end=changed, cache=Cache(metadata=False))
    assert "input 'raw' was changed while the step ran" in told.text
    assert step(2, given={"raw": ref.to_json()}, cache=Cache(metadata=False)).ran


@pytest.mark.parametrize(
    "moment",
    [
        "2024-01-02",
        pytest.param("20240102", marks=pytest.mark.full),
        pytest.param("scheduled__2024-01-02", marks=pytest.mark.full),
        pytest.param("from 2024-01-02T00:00:00+00:00 on", marks=pytest.mark.full),
    ],
)
def test_a_parameter_that_is_new_in_each_dag_run_is_pointed_out(step: Steps, told: Any, moment: str) -> None:
    now = datetime(2024, 1, 2, tzinfo=UTC)
    context = {"ds": "2024-01-02", "run_id": "scheduled__2024-01-02", "logical_date": now, "data_interval_start": now}
    step(1, given={"day": "2024-01-01"}, context=context)
    assert "new each time" not in told.text, "there is nothing to compare with"
    step(2, given={"day": moment}, context=context)
    assert "Parameter 'day' (" in told.text
    assert "Cache(ignore=['day'])" in told.text
    told.clear()
    step(3, given={"day": moment, "depth": 9}, context=context)
    assert "new each time" not in told.text, "it was the same this time"


# Off, on, refresh


@pytest.mark.parametrize(
    "context",
    [
        pytest.param({"params": {"ml_cache": "off"}}, marks=pytest.mark.full),
        pytest.param({"params": {"ml_cache": False}}, marks=pytest.mark.full),
        pytest.param({"params": {"ml_cache": {"train": "off"}}}, marks=pytest.mark.full),
        {"dag_run": SimpleNamespace(conf={"ml_cache": "off"}), "params": {"ml_cache": "on"}},
    ],
)
def test_a_dag_run_goes_without_cache(step: Steps, context: dict[str, Any]) -> None:
    step(1)
    off = step(2, context=context)
    assert (off.ran, off.said, off.requests) == (True, "off", [])
    third = step(3)
    assert third.hit is not None
    assert third.hit.dag_run_id == "night-1", "what ran without cache is not kept"


@pytest.mark.parametrize(
    ("change", "said"), [({"cache": None}, ""), ({"context": {"params": {"ml_cache": "off"}}}, "off")], ids=["taken away", "off"]
)
def test_a_retry_without_cache_is_no_hit_any_longer(step: Steps, change: dict[str, Any], said: str) -> None:
    step(1)
    assert step(2).said == "hit"
    retried = step(2, number=2, **change)
    assert (retried.ran, retried.said, retried.tags["airflow.cached_from"]) == (True, said, "")


def test_a_refresh_runs_and_takes_the_place_of_the_earlier_result(step: Steps) -> None:
    step(1)
    for night, how in ((2, {"cache": Cache(refresh=True)}), (3, {"context": {"params": {"ml_cache": {"train": "refresh"}}}})):
        done = step(night, **how)  # type: ignore[arg-type]  # a dictionary of several arguments
        assert (done.ran, done.said, done.requests) == (True, "refresh", [])
        hit = step(night * 10).hit
        assert hit is not None
        assert hit.run_id == done.run_id
    assert step(4, cache=Cache(refresh=True), context={"params": {"ml_cache": "on"}}).hit is not None


def test_what_a_dag_run_says_of_other_tasks_is_not_for_this_one(told: Any) -> None:
    task = SimpleNamespace(dag=SimpleNamespace(task_ids=["train", "features"]))
    context: dict[str, Any] = {"ti": SimpleNamespace(task=task), "params": {"ml_cache": {"features": "off", "trian": "off"}}}
    assert mode_of(Cache(), context, "train") == "on"
    assert mode_of(Cache(), context, "features") == "off"
    assert "names 'trian', which is no task of this DAG. Did you mean 'train'?" in told.text
    with pytest.raises(ConfigError, match="ml_cache='offf' of this DAG run is none of on, off, refresh"):
        mode_of(Cache(), {"params": {"ml_cache": "offf"}}, "train")


# MLflow away


@pytest.mark.parametrize("status", [pytest.param(503, id="503"), pytest.param(None, id="no answer", marks=pytest.mark.full)])
@pytest.mark.parametrize("unreadable", ["miss", "error"])
def test_an_index_that_cannot_be_read_is_what_the_policy_says(
    step: Steps, proxy: MlflowProxy, mlflow_api: MlflowApi, unreadable: Any, status: int | None, told: Any
) -> None:
    step(1)
    cache = Cache(unreadable=unreadable)
    with MlflowApi(replace(mlflow_api.server, url=proxy.url), Settings(http_retries=0)) as api:
        answer = proxy.answer

        def away(method: str, target: str, body: bytes) -> tuple[int, bytes]:
            if "airflow-ml-cache" in target and method == "GET":
                if status is None:
                    proxy.lose.append(target.rpartition("/")[2].partition("?")[0])
                return 503, b"away"
            return answer(method, target, body)

        proxy.answer = away  # type: ignore[method-assign]  # as its docstring offers
        if unreadable == "error":
            with pytest.raises(RemoteUnavailableError, match="the cache could not be read"):
                step(2, cache=cache, api=api)
        else:
            second = step(2, cache=cache, api=api)
            assert second.ran
            assert second.said.startswith("miss: the cache could not be read")
            assert "WARNING" in told.text


def test_outputs_that_cannot_be_read_now_are_not_known_to_be_gone(step: Steps, proxy: MlflowProxy, mlflow_api: MlflowApi) -> None:
    step(1)
    with MlflowApi(replace(mlflow_api.server, url=proxy.url), Settings(http_retries=0)) as api:
        answer = proxy.answer
        proxy.answer = lambda method, target, body: (  # type: ignore[method-assign]
            (503, b"away") if target.endswith("table.csv") else answer(method, target, body)
        )
        with pytest.raises(RemoteUnavailableError, match="the cache could not be read"):
            step(2, cache=Cache(unreadable="error"), api=api)


@pytest.mark.parametrize("part", [pytest.param("entry", marks=pytest.mark.full), "output"])
def test_a_worker_without_space_for_what_the_cache_reads_runs_the_step(
    step: Steps, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, write = step(1), places._write_pieces

    def full(local: Path, pieces: Iterator[bytes]) -> None:
        if (part == "output") == (local.suffix == ".csv"):
            raise OSError(errno.ENOSPC, "No space left on device", str(local))
        write(local, pieces)

    monkeypatch.setattr(places, "_write_pieces", full)
    second = step(2)
    assert (second.ran, second.tags["airflow.cache_key"]) == (True, first.tags["airflow.cache_key"])
    assert "this worker's disk refused what came of it: [Errno 28] No space left" in second.said


def test_an_entry_that_cannot_be_written_costs_the_step_nothing(
    step: Steps, proxy: MlflowProxy, mlflow_api: MlflowApi, told: Any
) -> None:
    with MlflowApi(replace(mlflow_api.server, url=proxy.url), Settings(http_retries=0)) as api:
        answer = proxy.answer
        proxy.answer = lambda method, target, body: (  # type: ignore[method-assign]
            (507, b"full") if method == "PUT" and "airflow-ml-cache" in target else answer(method, target, body)
        )
        first = step(1, api=api)
    assert status_of(mlflow_api.get("runs/get", run_id=first.run_id)["run"]) == "FINISHED"
    assert "could not be kept" in told.text
    assert step(2).ran


def test_a_record_in_the_spool_leaves_no_entry(step: Steps, proxy: MlflowProxy, mlflow_api: MlflowApi) -> None:
    def go_away(*_: Any) -> None:
        proxy.away = 503

    with (
        MlflowApi(replace(mlflow_api.server, url=proxy.url), Settings(http_retries=0)) as api,
        pytest.raises(RemoteUnavailableError, match="airflow-ml resend"),
    ):
        step(1, api=api, before_end=go_away)
    (kept,) = Path(step.settings.spool).rglob("record.json")
    spool.resend(str(kept.parent), Recorder(mlflow_api))
    second = step(2)
    assert (second.ran, second.said) == (True, "miss: no earlier result has this key")


# Two at once, and crashes


def test_two_that_race_with_one_key_both_run_and_both_results_are_whole(step: Steps, mlflow_api: MlflowApi) -> None:
    both_have_looked = threading.Barrier(2, timeout=30)

    def body(session: StepSession) -> None:
        both_have_looked.wait()
        write_table(session)

    def one(night: int) -> Done:
        with MlflowApi(mlflow_api.server, mlflow_api.settings) as api:
            return step(night, body=body, api=api)

    RunTree(mlflow_api).experiment_id(step.dag_id)
    with ThreadPoolExecutor(2) as pool:
        raced = list(pool.map(one, (1, 2)))
    assert [each.ran for each in raced] == [True, True]
    third = step(3)
    assert third.hit is not None
    assert third.hit.run_id in {each.run_id for each in raced}
    for each in (*raced, third):
        ref = StepOutputs.from_json(each.xcom).ref("table")
        (folder := Path(step.settings.spool) / each.run_id).mkdir()
        local, _ = Recorder(mlflow_api).store.fetch(ref, folder)
        run_id = tags_of(mlflow_api.get("runs/get", run_id=ref.run_id or "")["run"])["airflow.run_id"]
        assert local.read_text() == f"rows of {run_id}, try 1\n"


def test_an_overtaken_try_writes_no_entry(step: Steps) -> None:
    def overtake(*_: Any) -> None:
        step(1, number=2)

    with pytest.raises(SupersededError):
        step(1, before_end=overtake)
    second = step(2)
    assert second.hit is not None
    assert second.hit.try_number == 2


@pytest.mark.parametrize("depth", [pytest.param(3, id="same key"), pytest.param(4, id="another key", marks=pytest.mark.full)])
def test_a_try_that_is_overtaken_between_its_record_and_its_entry_is_never_a_hit(step: Steps, depth: int) -> None:
    def overtake(_: StepSession, cache: StepCache | None) -> None:
        assert cache is not None
        own = cache.write

        def late() -> None:
            step(1, number=2, given={"depth": depth})
            own()

        cache.write = late  # type: ignore[method-assign]  # the moment between the two

    step(1, before_end=overtake)
    second = step(2)
    assert second.ran
    assert "is run again, or was" in second.said


def test_a_task_that_is_cleared_runs_again_and_its_new_result_is_found(step: Steps) -> None:
    step(1)
    cleared = step(1, number=2)
    assert cleared.ran
    assert "is run again, or was" in cleared.said
    hit = step(2).hit
    assert hit is not None
    assert hit.try_number == 2
    assert step(2, number=2).hit is not None, "a hit that is cleared is looked for once more"


def test_a_try_that_runs_is_not_marked_with_what_an_earlier_try_had_found(step: Steps) -> None:
    step(1)
    step(2)
    again = step(2, number=2, given={"depth": 9})
    assert again.ran
    assert again.tags["airflow.cached_from"] == ""


@pytest.mark.parametrize("where", ["upload", pytest.param("record", marks=pytest.mark.full)])
def test_a_worker_that_is_killed_before_its_entry_leaves_no_hit(step: Steps, where: str) -> None:
    told = [where, json.dumps(asdict(step.api.server)), step.dag_id]
    killed = subprocess.run([sys.executable, "-m", "tests.operators.cached_steps", *told], check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    tree = RunTree(step.api)
    (run,) = tree.search([tree.experiment_id(step.dag_id)], "tags.`airflow.task_id` = 'train'")
    assert status_of(run) == {"upload": "RUNNING", "record": "FINISHED"}[where]
    assert step.api.get("artifacts/list", run_id=run_id_of(run)).get("files"), "it had stored its output"
    second = step(2)
    assert second.ran
    assert step(3).hit is not None


def test_a_step_that_fails_keeps_nothing(step: Steps) -> None:
    def body(session: StepSession) -> None:
        write_table(session)
        raise RuntimeError("out of ideas")

    with pytest.raises(RuntimeError):
        step(1, body=body)
    assert step(2).said == "miss: no earlier result has this key"


# Over a deferral


def test_a_key_outlives_the_process_that_made_it_and_what_a_kind_of_step_adds_comes_back(step: Steps) -> None:
    def in_another_process(session: StepSession, cache: StepCache | None) -> None:
        assert cache is not None
        kept = json.loads(json.dumps(cache.to_json()))
        session.keeper = None
        StepCache.from_json(cache.policy, session, kept).keep({"n": 1}, {"run": "of KFP"})

    step(1, before_end=in_another_process)
    second = step(2)
    assert second.hit is not None
    assert (second.hit.result, second.hit.extra["run"]) == ({"n": 1}, "of KFP")


# What others make of it


def end_dag_run(of: Done) -> None:
    of.session.recorder.tree.close(of.session.record.run.parent_run_id, "FINISHED")


def test_a_clean_up_keeps_what_a_hit_stands_on(step: Steps, mlflow_api: MlflowApi) -> None:
    # A step without outputs has nothing else that would lead from one run to the other.
    first = step(1, function=counts, body=lambda _: 1)
    other = step(1, function=counts, body=lambda _: 1, given={"depth": 8}, task_id="other")
    second = step(2, function=counts, body=lambda _: 1)
    lone = step(3, function=counts, body=lambda _: 1, given={"depth": 99})
    run = first.session.record.run
    for each in (first, second, lone):
        end_dag_run(each)
    RunTree(mlflow_api).set_tags(second.session.record.run.parent_run_id, {"keep": "yes"})
    said = CleanUp(mlflow_api, Rules([run.experiment_id], None, 0, keep_tag="keep")).run(dry_run=False, delete_artifacts=True)
    assert set(said.runs) == {lone.run_id, lone.session.record.run.parent_run_id}
    assert said.kept == {"tag": 2, "read": 3}
    assert other.run["info"]["lifecycle_stage"] == "active"
    assert step(4, function=counts, body=lambda _: 1).hit is not None


def test_a_hit_of_what_a_clean_up_has_deleted_is_a_miss(step: Steps, mlflow_api: MlflowApi) -> None:
    first = step(1)
    end_dag_run(first)
    experiment = first.session.record.run.experiment_id
    CleanUp(mlflow_api, Rules([experiment], None, 0)).run(dry_run=False, delete_artifacts=True)
    assert "was deleted" in step(2).said


# In Airflow

LINK = "_link_MlflowCachedFromLink"
DONE = Asset("test-of-the-cache")


def note_that_it_ran(name: str) -> None:
    """Write it to a file: a list of this module would be part of the key of each step, and new each time."""
    with Path(os.environ["TEST_RAN"]).open("a") as notes:
        notes.write(f"{name}\n")


@ml_task(cache=True)
def table_of(rows: int, table: Output[Dataset]) -> None:
    note_that_it_ran("table_of")
    table.path += ".csv"
    Path(table.path).write_text("x\n" * rows)


@ml_task(cache=True, outlets=[DONE])
def model_of(table: Input[Dataset], champion: Input[Model] | None, model: Output[Model], metrics: Output[Metrics]) -> None:
    note_that_it_ran("model_of")
    metrics.log_metric("rows", len(Path(table.path).read_text()))
    Path(model.path).write_text("weights")


@ml_task(cache=True)
def score_of(model: Input[Model], times: int) -> dict[str, int]:
    note_that_it_ran("score_of")
    return {"length": len(Path(model.path).read_text()) * times}


def asset_events(dag_id: str) -> int:
    from airflow.models.asset import AssetEvent
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    with create_session() as session:
        return session.scalar(select(func.count()).where(AssetEvent.source_dag_id == dag_id)) or 0


def test_an_unchanged_night_runs_no_step_and_a_changed_one_runs_what_depends_on_it(
    run_dag: Any, unique: str, mlflow_api: MlflowApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    monkeypatch.setenv("TEST_RAN", str(ran))

    @dag(dag_id=unique, schedule=None, start_date=START, params={"rows": 3})
    def example() -> None:
        fit = model_of(table=table_of(rows="{{ params.rows }}")["table"], champion=f"models:/{unique}@champion")
        score_of.partial(model=fit["model"]).expand(times=[1, 2])

    ran.write_text("")
    night = example()
    first = run_dag(night)
    assert (first.state, sorted(ran.read_text().split())) == ("success", ["model_of", "score_of", "score_of", "table_of"])
    ran.write_text("")
    second = run_dag(night)
    assert (second.state, ran.read_text().split()) == ("success", [])
    assert [second.xcom("score_of", index) for index in (0, 1)] == [{"length": 7}, {"length": 14}]
    assert second.xcom("model_of") == first.xcom("model_of")
    assert asset_events(unique) == 2, "a hit is an event too"
    assert not first.xcom("table_of", key=LINK)
    third = run_dag(night, run_conf={"rows": 4, "ml_cache": {"score_of": "refresh"}})
    # The model is the same, so the scores would be known.
    assert (third.state, ran.read_text().split()) == ("success", ["table_of", "model_of", "score_of", "score_of"])

    runs = RunTree(mlflow_api).search([RunTree(mlflow_api).experiment_id(unique)], "tags.`airflow.task_id` = 'table_of'")
    said = {tags_of(each)["airflow.run_id"]: tags_of(each)["airflow.cache"] for each in runs}
    assert said[second.run_id] == "hit"
    assert "parameter rows: 3 -> 4" in said[third.run_id]
    (made,) = [run_id_of(each) for each in runs if tags_of(each)["airflow.run_id"] == first.run_id]
    assert second.xcom("table_of", key=LINK).endswith(made)


def test_a_context_that_fills_a_parameter_with_an_object_has_to_be_left_out() -> None:
    def step(rows: int, ti: Any, table: Output[Dataset]) -> None: ...

    said = r"fills 'ti' with an object that no key can hold.*cache=Cache\(ignore=\['ti'\]\)"
    with parsed_dag(), pytest.raises(ConfigError, match=said):
        ml_task(cache=True)(step)(rows=1)
    with parsed_dag():
        ml_task(cache=Cache(ignore=["ti"]))(step)(rows=1)
        ml_task(cache=True)(step).override(task_id="given")(rows=1, ti="a text")
        ml_task(step).override(task_id="none")(rows=1)


def parsed_dag() -> Any:
    from airflow.sdk import DAG

    return DAG(dag_id="parsed", schedule=None, start_date=START)


def test_what_could_never_be_cached_is_refused_when_the_dag_is_parsed() -> None:
    def nothing(rows: int) -> None: ...

    def something(rows: int): ...

    for cache, said in (
        (True, "there is nothing to keep"),
        ("yes", "task 'nothing': cache='yes' is no policy"),
        (Cache(ignore=["row"]), "nothing to keep"),
    ):
        with parsed_dag(), pytest.raises(ConfigError, match=said):
            ml_task(cache=cache)(nothing)(rows=1)
    with parsed_dag(), pytest.raises(ConfigError, match=r"task 'something': .*'row'"):
        ml_task(cache=Cache(ignore=["row"]))(something)(rows=1)
    with parsed_dag(), pytest.raises(ConfigError, match="nothing to keep"):
        ml_task(cache=True)(nothing).expand(rows=[1, 2])
    with parsed_dag():
        ml_task(cache=False)(nothing)(rows=1)
        ml_task(cache=True)(something)(rows=1)


def test_the_policy_of_default_args_and_of_a_task_compose() -> None:
    from airflow.sdk import DAG

    def step(rows: int, table: Output[Dataset]) -> None: ...

    shared = Cache(salt="v2", max_age=timedelta(days=7))
    with DAG(dag_id="parsed", schedule=None, start_date=START, default_args={"cache": shared}):
        plain = ml_task(step)(rows=1)
        own = ml_task(cache=shared | Cache(ignore=["rows"]))(step).override(task_id="own")(rows=1)
        off = ml_task(cache=False)(step).override(task_id="off")(rows=1)
    policies: list[Any] = [each.operator.cache for each in (plain, own, off)]
    assert policies == [shared, Cache(salt="v2", max_age=timedelta(days=7), ignore=["rows"]), None]


def test_fit_declares_what_these_tests_say() -> None:
    assert [*fit.__annotations__] == ["raw", "many", "depth", "day", "table", "return"]
