"""What is never a hit, on a real MLflow: every way in which an entry, its run or its artifacts may be other than they were."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from airflow_ml_provider import Cache
from airflow_ml_provider.exceptions import RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.cache import CacheEntry, CacheKey, CachePart
from airflow_ml_provider.tracking.cache_index import CACHE_ENTRY, CacheIndex, digest_of, entry_name, latest_name, task_folder
from tests.operators.cached_steps import Done, Steps, fit, train, write_model


@pytest.fixture
def step(mlflow_api: MlflowApi, unique: str) -> Steps:
    return Steps(mlflow_api, unique)


@pytest.fixture
def put(mlflow_api: MlflowApi) -> Callable[[Done, str, bytes], None]:
    """Write a file of the proxied store behind everybody's back; the path is below the experiment's folder."""

    def write(of: Done, path: str, content: bytes) -> None:
        root = of.session.record.run.artifact_uri.removeprefix("mlflow-artifacts:/").rpartition(f"/{of.run_id}/")[0]
        mlflow_api.upload(f"{root}/{path}", [content], len(content))

    return write


def entry_of(done: Done) -> CacheEntry:
    index = CacheIndex(done.session.api, done.session.record.run, done.session.record.attempt.identity)
    entry = index.latest(done.session.scratch.parent)
    assert entry is not None
    return entry


def file_of(done: Done) -> str:
    identity = done.session.record.attempt.identity
    return f"{task_folder(identity.dag_id, identity.task_id)}/{entry_name(done.tags['airflow.cache_key'])}"


def test_a_hit_takes_two_requests_and_one_for_each_file(step: Steps) -> None:
    first, second = step(1), step(2)
    assert (first.ran, second.ran) == (True, False)
    assert second.hit is not None
    assert second.hit.run_id == first.run_id
    asked = [each.split("?", maxsplit=1)[0].rpartition("/")[2] for each in second.requests]
    assert asked == [f"{second.hit.key}.json", "get", "table.csv", "table.metadata.json"]


def test_a_miss_takes_two_requests(step: Steps) -> None:
    assert len(step(1).requests) == 2
    assert len(step(2, given={"depth": 4}).requests) == 2


def test_a_hit_of_a_model_takes_one_request_more_and_a_listing_of_its_folder(step: Steps) -> None:
    first, second = step(1, function=train, body=write_model), step(2, function=train, body=write_model)
    assert second.hit is not None
    assert (second.hit.run_id, second.hit.model_ids) == (first.run_id, {"model": first.session.record.outputs[0].model_id})
    # entry, run, model, listing, two files of the model, the file of the metrics
    assert len(second.requests) == 7


def test_a_hit_with_sizes_only_reads_no_output(step: Steps) -> None:
    cache = Cache(verify="size", metadata=False)
    step(1, function=train, body=write_model, cache=cache)
    second = step(2, function=train, body=write_model, cache=cache)
    assert second.hit is not None
    assert not any("weights" in each or "metrics" in each.rpartition("/")[2] for each in second.requests)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(("runs/delete", {}), "was deleted", id="deleted"),
        pytest.param(("runs/update", {"status": "FAILED"}), "is FAILED by now", id="failed", marks=pytest.mark.full),
        pytest.param(("runs/update", {"status": "KILLED"}), "is KILLED by now", id="killed", marks=pytest.mark.full),
        pytest.param(("runs/update", {"status": "RUNNING"}), "is run again, or was", id="running", marks=pytest.mark.full),
        pytest.param(("runs/set-tag", {"key": "airflow.try_number", "value": "2"}), "is run again, or was", id="cleared"),
        pytest.param(("runs/set-tag", {"key": CACHE_ENTRY, "value": "f" * 64}), "does not say that it made", id="unsealed"),
        pytest.param(
            ("runs/set-tag", {"key": "airflow.cache_key", "value": "f" * 64}),
            "does not say that it made",
            id="other key",
            marks=pytest.mark.full,
        ),
    ],
)
def test_a_run_that_is_not_what_it_was_is_no_hit(step: Steps, mlflow_api: MlflowApi, change: Any, said: str) -> None:
    first = step(1)
    path, body = change
    mlflow_api.post(path, {"run_id": first.run_id, **body})
    second = step(2)
    assert second.ran
    assert said in second.said
    if path != "runs/set-tag":
        assert step(3).hit is not None, "the new result has taken the place"


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        pytest.param("table.csv", b"ROWS of night-1, try 1\n", "was changed in the store", id="altered, same size"),
        pytest.param("table.csv", b"rows of", "was changed in the store", id="truncated"),
        pytest.param("table.csv", None, "is not at", id="deleted"),
        pytest.param("table.metadata.json", b'{"rows": 2}', "metadata at", id="other metadata"),
        pytest.param("table.metadata.json", b'{"rows"', "was changed in the store", id="torn metadata", marks=pytest.mark.full),
        pytest.param("table.metadata.json", None, "not at", id="no metadata", marks=pytest.mark.full),
    ],
)
def test_an_output_that_is_not_what_it_was_is_no_hit(
    step: Steps, mlflow_api: MlflowApi, put: Any, path: str, content: bytes | None, said: str
) -> None:
    first = step(1)
    if content is None:
        root = first.session.record.run.artifact_uri.removeprefix("mlflow-artifacts:/")
        mlflow_api.delete_files(f"{root}/try-1/{path}")
    else:
        put(first, f"{first.run_id}/artifacts/try-1/{path}", content)
    second = step(2)
    assert second.ran
    assert said in second.said


@pytest.mark.parametrize(
    "content", [pytest.param(b"rows of", id="truncated"), pytest.param(None, id="deleted", marks=pytest.mark.full)]
)
def test_sizes_alone_tell_a_truncated_file_from_a_whole_one(
    step: Steps, mlflow_api: MlflowApi, put: Any, content: bytes | None
) -> None:
    cache = Cache(verify="size")
    first = step(1, cache=cache)
    if content is None:
        mlflow_api.delete_files(first.session.record.run.artifact_uri.removeprefix("mlflow-artifacts:/") + "/try-1/table.csv")
    else:
        put(first, f"{first.run_id}/artifacts/try-1/table.csv", content)
    assert step(2, cache=cache).ran


def test_a_model_with_a_file_altered_missing_or_too_many_is_no_hit(step: Steps, mlflow_api: MlflowApi) -> None:
    model: dict[str, Any] = {"function": train, "body": write_model}
    for night, change in enumerate([("weights", b"W" * 50), ("weights", None), ("more", b"x")], start=1):
        made = step(night * 10, **model)
        assert made.ran, "what was altered is no hit"
        info = mlflow_api.get(f"logged-models/{made.session.record.outputs[0].model_id}")["model"]["info"]
        path = f"{info['artifact_uri'].removeprefix('mlflow-artifacts:/')}/{change[0]}"
        if change[1] is None:
            mlflow_api.delete_files(path)
        else:
            mlflow_api.upload(path, [change[1]], len(change[1]))
    assert step(99, **model).ran


def test_a_deleted_model_is_no_hit_though_its_files_are_there(step: Steps, mlflow_api: MlflowApi, tmp_path: Any) -> None:
    first = step(1, function=train, body=write_model)
    mlflow_api.delete(f"logged-models/{first.session.record.outputs[0].model_id}", {})
    second = step(2, function=train, body=write_model)
    assert second.ran
    assert "was deleted" in second.said


def forge_other_output(entry: CacheEntry) -> CacheEntry:
    other = entry.outputs["table"].model_copy(update={"sha256": "0" * 64})
    return entry.model_copy(update={"outputs": {"table": other}})


def forge_other_key(entry: CacheEntry) -> CacheEntry:
    key = CacheKey(parts={"salt": CachePart(digest="a" * 64, shown="a")})
    return entry.model_copy(update={"key": key.digest, "parts": key.parts})


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(lambda entry: entry.to_text()[:-40], id="torn"),
        pytest.param(lambda _: "", id="empty", marks=pytest.mark.full),
        pytest.param(lambda _: "\0\xff{}", id="no JSON", marks=pytest.mark.full),
        pytest.param(lambda _: "{}", id="no entry", marks=pytest.mark.full),
        pytest.param(lambda entry: entry.to_text().replace('"try_number": 1', '"try_number": 2'), id="altered"),
        pytest.param(lambda entry: entry.to_text().replace('"version": 1', '"version": 2'), id="version", marks=pytest.mark.full),
        pytest.param(lambda entry: forge_other_output(entry).to_text(), id="forged whole"),
        pytest.param(lambda entry: forge_other_key(entry).to_text(), id="of another key", marks=pytest.mark.full),
        pytest.param(
            lambda entry: entry.model_copy(update={"task_id": "other"}).to_text(), id="of another task", marks=pytest.mark.full
        ),
        pytest.param(
            lambda entry: entry.model_copy(update={"run_id": "0" * 32}).to_text(), id="of no run", marks=pytest.mark.full
        ),
    ],
)
def test_an_entry_that_was_not_written_so_is_no_hit(step: Steps, put: Any, forge: Callable[[CacheEntry], str]) -> None:
    first = step(1)
    put(first, file_of(first), forge(entry_of(first)).encode())
    second = step(2)
    assert second.ran
    assert second.said.startswith("miss: ")
    third = step(3)
    assert third.hit is not None, "the next result has taken its place"
    assert third.hit.run_id == second.run_id


@pytest.mark.parametrize("other", [{"given": {"depth": 4}}, {"task_id": "other"}], ids=["of another key", "of another task"])
def test_a_good_entry_in_the_place_of_another_is_no_hit(step: Steps, put: Any, other: dict[str, Any]) -> None:
    first, second = step(1), step(2, **{"task_id": "train", **other})
    put(first, file_of(first), entry_of(second).to_text().encode())
    third = step(3)
    assert third.ran
    assert "somebody has put it there" in third.said


def test_a_torn_entry_is_an_error_for_who_wants_one_and_a_refresh_mends_it(step: Steps, put: Any) -> None:
    first, strict = step(1), Cache(unreadable="error")
    put(first, file_of(first), b"{")
    with pytest.raises(RemoteUnavailableError, match=r"It counts as no result.*ml_cache=refresh"):
        step(2, cache=strict)
    assert step(3, cache=strict | Cache(refresh=True)).ran
    assert step(4, cache=strict).hit is not None


def test_an_entry_without_an_output_of_the_step_is_no_hit(step: Steps, put: Any, mlflow_api: MlflowApi) -> None:
    first = step(1)
    partial = entry_of(first).model_copy(update={"outputs": {}})
    put(first, file_of(first), partial.to_text().encode())
    mlflow_api.post("runs/set-tag", {"run_id": first.run_id, "key": CACHE_ENTRY, "value": digest_of(partial)})
    assert "has no table" in step(2).said


def test_a_result_that_is_too_old_is_no_hit(step: Steps) -> None:
    step(1)
    assert "longer ago than max_age=" in step(2, cache=Cache(max_age=timedelta(microseconds=1))).said
    assert step(3, cache=Cache(max_age=timedelta(days=1))).hit is not None


def test_a_file_that_a_store_answers_500_for_is_absent_where_its_listing_lacks_it(
    mlflow_url: str, mlflow_api: MlflowApi, unique: str
) -> None:
    from dataclasses import replace

    from tests.mlflow_proxy import MlflowProxy

    class OfAnObjectStore(MlflowProxy):
        """An artifact proxy in front of S3, which tells nobody that a key is missing."""

        def answer(self, method: str, target: str, body: bytes) -> tuple[int, bytes]:
            status, content = super().answer(method, target, body)
            return (500, b"An error occurred (404)") if status == 404 and "/artifacts/" in target else (status, content)

    with OfAnObjectStore(mlflow_url) as proxy, MlflowApi(replace(mlflow_api.server, url=proxy.url), mlflow_api.settings) as api:
        step = Steps(api, unique)
        strict = Cache(unreadable="error")
        assert step(1, cache=strict).ran
        assert step(2, cache=strict).hit is not None


def test_no_two_tasks_share_a_folder_and_no_name_climbs(step: Steps) -> None:
    names = ["a/b", "a_b", "a b", "..", ".", "a.b", "Ä", "x" * 250, "x" * 249, "a_b~1", "/etc", "%41", "A#"]
    folders = {task_folder("dag", each) for each in names} | {task_folder(each, "task") for each in names}
    assert len(folders) == 2 * len(names)
    for each in folders:
        assert ".." not in each.split("/")
        assert all(part and len(part) < 200 and part.isascii() for part in each.split("/"))
    assert step(1, task_id="täsk.with spaces").ran
    assert step(2, task_id="täsk.with spaces").hit is not None


def test_the_newest_entry_of_each_mapped_instance_is_its_own(step: Steps) -> None:
    for index in (0, 1):
        step(1, map_index=index, given={"depth": index})
    said = [step(2, map_index=index, given={"depth": index + 10}).said for index in (0, 1)]
    assert ["parameter depth: 0 -> 10" in said[0], "parameter depth: 1 -> 11" in said[1]] == [True, True]
    assert latest_name(1) == "latest-1.json"
    assert step(3, map_index=7, given={"depth": 1}).hit is not None, "what any instance has made"


def test_an_entry_says_where_it_comes_from(step: Steps) -> None:
    first = step(5, function=fit)
    entry = entry_of(first)
    assert (entry.dag_run_id, entry.task_id, entry.try_number, entry.run_id) == ("night-5", "train", 1, first.run_id)
    assert json.loads(entry.to_text())["outputs"]["table"]["sha256"] == first.session.record.outputs[0].stored.sha256  # type: ignore[union-attr]
    assert first.tags[CACHE_ENTRY] == digest_of(entry)
