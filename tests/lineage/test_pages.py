"""Answers of several pages, and very many readers: nothing is lost on the way, and it ends."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_ml_provider.lineage import reading, trained
from airflow_ml_provider.lineage.query import trace
from airflow_ml_provider.lineage.reading import Reader
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.tracking.lineage_tags import MARK, key_of_run
from airflow_ml_provider.tracking.runs import RunTree, as_pairs
from tests.lineage.nights import Counted, Night
from tests.lineage.test_query import model_id_of, names

PAGE = 3
MANY = 1_100


def many_models(night: Night, count: int) -> list[ArtifactRef]:
    raw = night.step("prepare", makes={"raw": "Dataset"}, rows=515_151)["raw"]
    parts = [night.step("clean", [raw], {"part": "Dataset"}, map_index=each)["part"] for each in range(count)]
    return [night.step("train", [part], {"model": "Model"}, map_index=index)["model"] for index, part in enumerate(parts)]


def test_answers_of_many_pages_are_read_to_their_end(
    night: Night, counted: Counted, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "FEW_VERSIONS", PAGE)  # more are searched
    models = many_models(night, 7)
    for each in models:
        night.register(unique, each)
    listed = [each.model_copy(update={"name": f"models[{index}]"}) for index, each in enumerate(models)]
    best = night.step("join", listed, {"model": "Model"})["model"]
    up = trace(counted, best.uri, reader=Reader(counted, page=PAGE))
    assert (len(up.runs), len(up.models)) == (16, 8)
    down = trace(counted, f"runs:/{night.runs['prepare']}/raw", direction="down", reader=Reader(counted, page=PAGE))
    assert {each.run_id for each in down.runs} == {each.run_id for each in up.runs} - {night.runs["prepare"]}
    assert {each.model_id for each in down.models} == {model_id_of(each) for each in [*models, best]}
    assert {each.version for each in down.versions} == {str(number) for number in range(1, 8)}
    assert [each.aliases for each in down.versions if each.version == "7"] == [("champion",)]
    assert counted.sent.count("model-versions/search") > 1


def test_models_are_found_over_pages_as_on_one(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = night.step("prepare", makes={"raw": "Dataset"}, rows=828_282)["raw"]
    models = [model_id_of(night.step("train", [raw], {"model": "Model"}, map_index=each)["model"]) for each in range(7)]
    monkeypatch.setattr(trained, "BATCH", PAGE)
    monkeypatch.setattr(trained, "PAGE", PAGE)
    for limit in (None, 7, 5, 1):
        found = trained.trained_on(night.api, "rows = 828282", limit=limit)
        assert [each.model_id for each in found.graph.models] == models[::-1][:limit]
        assert found.more is (limit in {5, 1})


def test_a_cycle_over_pages_ends(night: Night) -> None:
    made = night.step("first", makes={"a": "Dataset"})["a"]
    for each in range(4):
        back = night.step("second", [made], {"b": "Dataset"}, map_index=each)["b"]
        night.step("first", [back], {"a": "Dataset"}, try_number=each + 2)
    found = trace(night.api, made.uri, direction="both", reader=Reader(night.api, page=1))
    assert sorted(names(found)) == ["first", *(f"second[{each}]" for each in range(4))]
    assert found.gaps == ()


def test_a_step_that_has_read_very_much_of_one_run_has_read_all_of_it(night: Night) -> None:
    """Names are left out where a tag has no room for them."""
    made = night.step("loop", makes={f"part_{each}": "Dataset" for each in range(120)})
    listed = [each.model_copy(update={"name": f"parts_of_a_pipeline[{index}]"}) for index, each in enumerate(made.values())]
    night.step("train", listed, {"model": "Model"})
    for each in (listed[0], listed[-1]):
        assert len(trace(night.api, each.uri, direction="down").models) == 1
    assert len(trace(night.api, f"runs:/{night.runs['loop']}", direction="down").into(f"run:{night.runs['train']}")) == 120


@pytest.mark.full
def test_more_readers_than_one_page_of_mlflow_holds_are_all_found_and_not_gone_beyond_the_depth(
    night: Night, counted: Counted
) -> None:
    table = night.step("prepare", makes={"table": "Dataset"})["table"]
    run = RunTree(night.api).get(night.runs["prepare"])
    source = {"name": "table", "digest": (table.sha256 or "")[:36], "source_type": "airflow", "source": "{}"}
    read = as_pairs({"airflow.uri": table.uri, "airflow.source_run_id": night.runs["prepare"], "airflow.try_number": "1"})

    def reader(number: int) -> str:
        tags = {MARK: "1", key_of_run(night.runs["prepare"]): "try-1/table", "airflow.try_number": "1"}
        tags |= {f"airflow.{key}": value for key, value in (("dag_id", "d"), ("run_id", str(number)), ("task_id", "t"))}
        tags[f"airflow.made.try-1/{number}"] = f'{{"uri": "s3://b/{number}"}}'
        body = {"experiment_id": run["info"]["experiment_id"], "run_name": "t", "tags": as_pairs(tags)}
        run_id = str(night.api.post("runs/create", body)["run"]["info"]["run_id"])
        night.api.post("runs/log-inputs", {"run_id": run_id, "datasets": [{"tags": read, "dataset": source}]})
        return run_id

    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(reader, range(MANY)))
    counted.sent.clear()
    found = trace(counted, table.uri, direction="down", depth_limit=1)
    assert {each.run_id for each in found.runs} == made
    assert counted.sent.count("runs/search") == 2
    assert len(found.gaps) == MANY, "each says how to go on"
