"""All entries of the index: what is listed, what is stale, what deleting leaves; on a real MLflow, and in a store beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider import Cache
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.tracking.cache_index import CACHE_ENTRY, CACHE_KEY, entry_name, latest_name, task_folder
from airflow_ml_provider.tracking.cache_shelf import CacheShelf, Filters, Shelved
from airflow_ml_provider.tracking.runs import run_id_of
from tests import mlflow_forms
from tests.operators.cached_steps import Done, Steps

ANY_PLACE = pytest.mark.form(mlflow_forms.SQLITE, mlflow_forms.POSTGRESQL, mlflow_forms.BASIC_AUTH)
"""With workspaces, an experiment's place is the server's to say."""


@pytest.fixture
def step(mlflow_api: MlflowApi, unique: str) -> Steps:
    return Steps(mlflow_api, unique)


@pytest.fixture
def find(mlflow_api: MlflowApi, step: Steps) -> Callable[..., list[Shelved]]:
    def found(**filters: Any) -> list[Shelved]:
        shelf = CacheShelf(mlflow_api, step.dag_id)
        listed = shelf.find(Filters(**filters))
        assert shelf.problems == []
        return listed

    return found


def files_of(done: Done, api: MlflowApi, task_id: str = "train") -> set[str]:
    """Names in the folder of a task's entries."""
    root = done.session.record.run.artifact_uri.removeprefix("mlflow-artifacts:/").rpartition(f"/{done.run_id}/")[0]
    return {
        each["path"] for each in api.list_files(f"{root}/{task_folder(done.session.record.attempt.identity.dag_id, task_id)}")
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(("runs/delete", {}), "its run was deleted", id="deleted"),
        pytest.param(("runs/update", {"status": "FAILED"}), "its run is FAILED by now", id="failed"),
        pytest.param(("runs/update", {"status": "RUNNING"}), "its run is run again, or was", id="running"),
        pytest.param(("runs/set-tag", {"key": "airflow.try_number", "value": "2"}), "its run is run again, or was", id="cleared"),
        pytest.param(("runs/set-tag", {"key": CACHE_ENTRY, "value": "f" * 64}), "another result by now", id="unsealed"),
        pytest.param(("runs/set-tag", {"key": CACHE_KEY, "value": "f" * 64}), "another result by now", id="other key"),
        pytest.param(None, "", id="usable"),
    ],
)
def test_what_can_never_be_a_hit_is_stale_and_nothing_else(
    step: Steps, mlflow_api: MlflowApi, find: Any, change: Any, said: str
) -> None:
    first = step(1)
    if change is not None:
        mlflow_api.post(change[0], {"run_id": first.run_id, **change[1]})
    (found,) = find()
    assert said in found.stale
    assert bool(found.stale) == bool(said)
    assert find(stale=True) == ([found] if said else [])
    assert (step(2).hit is None) == bool(said), "the index itself says the same"


def test_filters_must_all_hold(step: Steps, find: Any) -> None:
    made = [step(1), step(2, given={"depth": 4}), step(3, task_id="a task of its own", given={"depth": 5})]

    def runs(**filters: Any) -> set[str]:
        return {each.entry.run_id for each in find(**filters)}

    ids = [each.run_id for each in made]
    assert runs() == runs(dag_id=step.dag_id) == set(ids)
    assert runs(task_id="train") == runs(dag_id=step.dag_id, task_id="train") == set(ids[:2])
    assert runs(dag_id=step.dag_id, task_id="a task of its own") == {ids[2]}
    assert runs(dag_id="another") == runs(task_id="another") == runs(older_than=timedelta(hours=1)) == set()
    assert runs(older_than=timedelta(0), task_id="train") == set(ids[:2])
    assert [each.newest for each in find(task_id="train")] == [True, False], "the newest first"


def test_a_torn_entry_is_listed_by_its_folder_and_can_be_cleared(step: Steps, mlflow_api: MlflowApi, find: Any) -> None:
    first = step(1)
    root = first.session.record.run.artifact_uri.removeprefix("mlflow-artifacts:/").rpartition(f"/{first.run_id}/")[0]
    name = entry_name(first.tags[CACHE_KEY])
    mlflow_api.upload(f"{root}/{task_folder(step.dag_id, 'train')}/{name}", [b'{"key'], 5)
    (torn,) = find(dag_id=step.dag_id, task_id="train", stale=True)
    assert (torn.entry, torn.stale, torn.names[1]) == (None, "cannot be read", "train")
    assert find(older_than=timedelta(0)) == [], "nobody knows how old it is"
    assert CacheShelf(mlflow_api, step.dag_id).clear([torn]) == 1
    assert files_of(first, mlflow_api) == {latest_name(-1)}


def test_deleting_one_leaves_the_others_and_every_artifact(step: Steps, mlflow_api: MlflowApi, find: Any) -> None:
    first, second = step(1), step(2, given={"depth": 4})
    other = step(3, task_id="other")
    assert CacheShelf(mlflow_api, step.dag_id).clear(find(task_id="train")[1:]) == 1
    assert files_of(second, mlflow_api) == {entry_name(second.tags[CACHE_KEY]), latest_name(-1)}
    assert step(4, given={"depth": 4}).hit is not None
    assert CacheShelf(mlflow_api, step.dag_id).clear(gone := find(task_id="train")) == 1
    assert files_of(second, mlflow_api) == set(), "the copy of the newest goes with it"
    assert CacheShelf(mlflow_api, step.dag_id).clear(gone) == 1, "what is gone already is gone"
    assert files_of(other, mlflow_api, "other") == {entry_name(other.tags[CACHE_KEY]), latest_name(-1)}
    assert mlflow_api.get("artifacts/list", run_id=first.run_id)["files"], "artifacts stay"
    again = step(5)
    assert (again.ran, again.said) == (True, "miss: no earlier result has this key")


@ANY_PLACE
def test_entries_of_a_server_without_proxy_are_listed_and_deleted_in_its_folder(
    step: Steps, mlflow_api: MlflowApi, find: Any, tmp_path: Path
) -> None:
    mlflow_api.post("experiments/create", {"name": step.dag_id, "artifact_location": str(tmp_path)}, repeatable=False)
    made = step(1, cache=Cache(salt="here"))
    (found,) = find(task_id="train")
    assert found.entry is not None
    assert (found.entry.run_id, found.root) == (made.run_id, str(tmp_path))
    (file,) = [each for each in tmp_path.rglob("*.json") if each.name == entry_name(found.entry.key)]
    assert json.loads(file.read_text())["run_id"] == run_id_of(made.run)
    assert CacheShelf(mlflow_api, step.dag_id).clear([found]) == 1
    assert not [each for each in tmp_path.rglob("*.json") if task_folder(step.dag_id, "train") in str(each)]


@ANY_PLACE
def test_an_experiment_at_the_same_place_neither_shows_nor_deletes_what_is_anothers(
    step: Steps, mlflow_api: MlflowApi, find: Any, unique: str, tmp_path: Path
) -> None:
    for name in (step.dag_id, f"{unique}-b"):
        mlflow_api.post("experiments/create", {"name": name, "artifact_location": str(tmp_path)}, repeatable=False)
    step(1)
    assert CacheShelf(mlflow_api, f"{unique}-b").find(Filters(stale=True)) == []
    assert CacheShelf(mlflow_api, f"{unique}-b").find(Filters()) == []
    assert [each.stale for each in find()] == [""]


@ANY_PLACE
def test_what_is_no_file_of_the_index_is_neither_listed_nor_in_the_way(
    step: Steps, mlflow_api: MlflowApi, find: Any, tmp_path: Path
) -> None:
    mlflow_api.post("experiments/create", {"name": step.dag_id, "artifact_location": str(tmp_path)}, repeatable=False)
    step(1)
    mine, other = (tmp_path / task_folder(step.dag_id, each) for each in ("train", "other"))
    entry = next(each for each in mine.iterdir() if not each.name.startswith("latest"))
    other.mkdir()
    for place in (mine.parents[1] / "a.json", mine.parent / entry.name, mine / "notes.json", mine / "deep" / entry.name):
        place.parent.mkdir(exist_ok=True)
        place.write_text("{}")
    (other / entry.name).write_bytes(entry.read_bytes())
    assert len(find(task_id="train")) == 1
    (stranger,) = find(stale=True)
    assert (stranger.names, stranger.stale) == ((step.dag_id, "other"), "is of another task, or has another key")


def test_the_copies_of_all_instances_whose_newest_result_it_was_go_with_an_entry(
    step: Steps, mlflow_api: MlflowApi, find: Any
) -> None:
    first, last = step(1, map_index=0), step(1, map_index=1, context={"params": {"ml_cache": "refresh"}})
    assert files_of(first, mlflow_api) == {entry_name(last.tags[CACHE_KEY]), latest_name(0), latest_name(1)}
    assert CacheShelf(mlflow_api, step.dag_id).clear(find()) == 1
    assert files_of(first, mlflow_api) == set()


@ANY_PLACE
def test_a_store_that_cannot_be_opened_hides_no_other(step: Steps, mlflow_api: MlflowApi, unique: str) -> None:
    step(1)
    created = {"name": f"{unique}-gs", "artifact_location": "gs://nobody/x"}
    experiment_id = mlflow_api.post("experiments/create", created, repeatable=False)["experiment_id"]
    try:
        shelf = CacheShelf(mlflow_api)
        both = [each for name in (created["name"], step.dag_id) for each in CacheShelf(mlflow_api, name).experiments()]
        shelf.experiments = lambda: both  # type: ignore[method-assign]  # of the hundreds on the shared server
        found = shelf.find(Filters(dag_id=step.dag_id))
    finally:
        mlflow_api.post("experiments/delete", {"experiment_id": experiment_id})
    assert [each.experiment for each in found] == [step.dag_id]
    assert any(each.startswith(f"experiment '{unique}-gs': ") for each in shelf.problems)


def test_a_model_that_nobody_knows_is_no_empty_list(step: Steps, find: Any) -> None:
    step(1)
    with pytest.raises(ConfigError, match="there is no version of a registered model of that name"):
        find(model="nobody")
    assert find(model="m-0123") == []
