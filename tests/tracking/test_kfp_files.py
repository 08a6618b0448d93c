"""The files of a pipeline run below its root: which of them is which output, in a folder of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.core.kfp_component import MANIFEST
from airflow_ml_provider.core.kfp_outputs import DeclaredOutput
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.kfp_results import KfpOutput
from airflow_ml_provider.step import airflow_ml_step
from airflow_ml_provider.tracking import kfp_files
from airflow_ml_provider.tracking.kfp_files import PipelineFiles, results_of_files, seen_at

MODEL = DeclaredOutput("train", "model", "artifact", "Model")
DATA = DeclaredOutput("prepare", "data", "artifact", "Dataset")
TOLD = DeclaredOutput("train", MANIFEST, "artifact", "Artifact")
MANIFEST_OF_ALL = {
    "version": 1,
    "try_number": 1,
    "state": "succeeded",
    "exit_code": 0,
    "outputs": {
        "model": {"type": "Model", "file": "model", "sha256": "a" * 64, "size": 7},
        "metrics": {"type": "Metrics", "file": "metrics.json", "sha256": "b" * 64, "size": 9},
    },
    "metrics": {"auc": 0.9},
    "result": {"rows": 3},
}


SEVERAL_METRICS = """
def train(on_train, on_valid, custom):
    on_train.log_metric("auc", 0.99)
    on_train.log_metric("loss", float("inf"))
    on_valid.log_metric("auc", 0.61)
    on_valid.metadata["fold"] = "last"
    with open(custom.path, "w") as file:
        file.write("no JSON")
"""
COMPONENT = """
import sys

half, folder, manifest, source = sys.argv[1:]
sys.path.insert(0, half)
import airflow_ml_step


class Metrics:
    def __init__(self, name):
        self.path, self.uri, self.metadata = f"{folder}/{name}", "", {}


names = ("on_train", "on_valid", "custom")
function = {"name": "train", "source": source, "roles": dict.fromkeys(names, "output"), "optional": []}
airflow_ml_step.run_component(function, {}, {name: Metrics(name) for name in (*names, manifest)}, {})
"""
"""What a component does in its pod, without the SDK."""


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file below the root, as old as a test says."""

    def made(path: str, content: bytes = b"x", *, age_s: float = 0.0) -> Path:
        file = tmp_path / "churn" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        moment = 1_700_000_000 - age_s
        os.utime(file, (moment, moment))
        return file

    return made


@pytest.fixture
def files(tmp_path: Path) -> PipelineFiles:
    return PipelineFiles(f"file://{tmp_path}", "churn")


def found(files: PipelineFiles, *declared: DeclaredOutput, run_id: str = "run", **more: Any) -> dict[str, KfpOutput]:
    return {each.label: each for each in results_of_files(files, run_id, declared, **more).outputs}


def test_an_output_is_a_file_or_a_folder_and_a_log_is_none(files, write):
    write("run/train/u1/model", b"weights")
    write("run/train/u1/executor-logs-0")
    write("run/prepare/u2/data/part-0", b"1")
    write("run/prepare/u2/data/more/part-1", b"22")
    some = found(files, MODEL, DATA)
    assert some.keys() == {"train.model", "prepare.data"}
    assert some["train.model"].uri.endswith("/churn/run/train/u1/model")
    assert some["prepare.data"].uri.endswith("/churn/run/prepare/u2/data/")
    assert (some["train.model"].size, some["prepare.data"].size) == (7, 3)


def test_of_a_task_that_ran_again_the_newest_counts(files, write):
    write("run/train/u1/model", b"new")
    write("run/train/u2/model", b"older", age_s=100)
    assert found(files, MODEL)["train.model"].uri.endswith("/u1/model")


def test_of_a_loop_all_are_told(files, write):
    write("run/train/u1/model")
    write("run/train/u2/model")
    looped = DeclaredOutput("train", "model", "artifact", "Model", looped=True)
    assert [each.loop for each in results_of_files(files, "run", [looped]).outputs] == [None, None]


def test_of_a_loop_over_one_thing_the_place_is_known(files, write):
    write("run/train/u1/model")
    looped = DeclaredOutput("train", "model", "artifact", "Model", looped=True)
    assert [each.loop for each in results_of_files(files, "run", [looped]).outputs] == [(0,)]
    assert [each.loop for each in results_of_files(files, "run", [MODEL]).outputs] == [()]


def test_a_run_that_wrote_nothing_is_not_an_error(files):
    results = results_of_files(files, "run", [MODEL])
    assert results.outputs == ()
    assert results.notes[0].startswith("0 outputs of the run lie as files below")


@pytest.mark.parametrize("task", ["*", "tr[a]in", "a b", "train?x=1", "ü", "%2e%2e", "'"])
def test_names_stand_for_themselves(files, write, task):
    write(f"run/{task}/u1/model", b"mine")
    write("run/train/u1/model", b"not mine")
    some = found(files, DeclaredOutput(task, "model", "artifact", "Model"))
    assert list(some) == [f"{task}.model"]
    assert seen_at(some[f"{task}.model"]).sha256 == hashlib.sha256(b"mine").hexdigest()


class TestACachedTask:
    def test_has_the_files_of_the_newest_run_that_was_to_make_the_same(self, files, write):
        for run in ("a", "b", "c"):
            write(f"{run}/train/u/model")
        asked = []

        def earlier(task: str, run_ids: list[str]) -> list[str]:
            asked.append((task, sorted(run_ids)))
            return ["b", "a"]

        assert found(files, MODEL, earlier=earlier)["train.model"].uri.endswith("/churn/b/train/u/model")
        assert asked == [("train", ["a", "b", "c"])]

    def test_passes_by_a_run_that_was_itself_served_from_the_cache(self, files, write):
        write("a/train/u/model")
        write("b/prepare/u/data")
        assert found(files, MODEL, earlier=lambda *_: ["b", "a"])["train.model"].uri.endswith("/churn/a/train/u/model")

    def test_whose_earlier_run_is_not_known_has_nothing_and_says_so(self, files, write):
        write("a/train/u/model")
        results = results_of_files(files, "run", [MODEL], lambda *_: [])
        assert results.outputs == ()
        assert "none of an earlier run in which the task was to make the same" in results.notes[1]

    def test_has_the_manifest_of_the_earlier_run_and_all_that_it_tells(self, files, write):
        write(f"a/train/u/{MANIFEST}", json.dumps(MANIFEST_OF_ALL | {"result": "of a"}).encode())
        write(f"b/train/u/{MANIFEST}", json.dumps(MANIFEST_OF_ALL).encode())
        write("b/train/u/model", b"weights")
        write("run/prepare/u/data")
        results = results_of_files(files, "run", [MODEL, TOLD, DATA], lambda *_: ["b", "a"])
        some = {each.label: each for each in results.outputs}
        assert some.keys() == {"train.model", "train.metrics", "train.Output", "prepare.data"}
        assert some["train.model"].uri.endswith("/churn/b/train/u/model")
        assert (some["train.model"].sha256, some["train.model"].source) == ("a" * 64, "manifest")
        assert some["train.metrics"].metadata == {"auc": 0.9}
        assert some["train.Output"].value == {"rows": 3}
        assert f"Task 'train' was served from the cache: its {MANIFEST!r} is that of run b." in results.notes

    def test_is_no_task_that_has_files_in_this_run_whose_manifest_is_gone(self, files, write):
        write(f"a/train/u/{MANIFEST}", json.dumps(MANIFEST_OF_ALL).encode())
        write("a/train/u/model")
        write("run/train/u/model")
        some = found(files, MODEL, TOLD, earlier=lambda *_: ["a"])
        assert list(some) == ["train.model"]
        assert some["train.model"].uri.endswith("/churn/run/train/u/model")

    def test_is_not_looked_for_in_a_run_without_cached_tasks(self, files, write):
        write("a/train/u/model")
        assert found(files, MODEL) == {}


class TestAManifest:
    def test_tells_everything_with_digests(self, files, write):
        write(f"run/train/u1/{MANIFEST}", json.dumps(MANIFEST_OF_ALL).encode())
        write("run/train/u1/model", b"weights")
        some = found(files, MODEL)
        assert some["train.model"].uri.endswith("/u1/model")
        assert (some["train.model"].sha256, some["train.model"].size, some["train.model"].source) == ("a" * 64, 7, "manifest")
        assert some["train.metrics"].metadata == {"auc": 0.9}
        assert (some["train.Output"].kind, some["train.Output"].value) == ("parameter", {"rows": 3})

    def test_of_a_step_in_a_loop_is_one_for_each_iteration_and_else_the_newest_counts(self, files, write):
        told = {"version": 1, "try_number": 1, "state": "succeeded", "exit_code": 0, "outputs": {}, "metrics": {}}
        for number in range(2):
            write(f"run/train/u{number}/{MANIFEST}", json.dumps(told | {"result": number}).encode(), age_s=number)
        looped = DeclaredOutput("train", MANIFEST, "artifact", "Artifact", looped=True)
        some = results_of_files(files, "run", [looped]).outputs
        assert sorted((each.value, each.loop) for each in some) == [(0, None), (1, None)]
        assert [each.value for each in results_of_files(files, "run", [MODEL]).outputs] == [0]

    def test_of_a_step_with_several_metrics_gives_each_its_own_numbers(self, files, tmp_path):
        folder = tmp_path / "churn/run/train/u1"
        folder.mkdir(parents=True)
        half = Path(airflow_ml_step.__file__).parent
        subprocess.run([sys.executable, "-c", COMPONENT, half, folder, MANIFEST, SEVERAL_METRICS], check=True)
        names = ("on_train", "on_valid", "custom")
        some = found(files, *(DeclaredOutput("train", name, "artifact", "Metrics") for name in names))
        told = {name: some[f"train.{name}"].metadata for name in names}
        assert told == {"on_train": {"auc": 0.99, "loss": "Infinity"}, "on_valid": {"auc": 0.61}, "custom": {}}
        (folder / "on_valid").unlink()
        assert found(PipelineFiles(f"file://{tmp_path}", "churn"))["train.on_valid"].metadata == {}

    def test_of_another_version_is_refused(self, files, write):
        write(f"run/train/u1/{MANIFEST}", b'{"version": 9}')
        with pytest.raises(ConfigError, match="manifest cannot be read"):
            results_of_files(files, "run", [MODEL])


class TestADigest:
    def test_of_what_is_gone_is_none_and_so_is_its_place(self, tmp_path):
        assert seen_at(KfpOutput(name="model", uri=f"file://{tmp_path}/nothing", source="artifact-api")).uri == ""

    def test_is_left_out_where_it_would_take_long(self, write, tmp_path, monkeypatch):
        write("run/train/u1/model", b"weights")
        monkeypatch.setattr(kfp_files, "HASH_BYTES", 3)  # not a gibibyte, which nobody wants to write here
        seen = seen_at(KfpOutput(name="model", uri=f"file://{tmp_path}/churn/run/train/u1/model", source="artifact-api"))
        assert (seen.sha256, seen.size) == ("", 7)

    def test_that_is_on_record_is_not_read_again(self, write, tmp_path):
        write("run/train/u1/model", b"weights")
        uri = f"file://{tmp_path}/churn/run/train/u1/model"
        assert seen_at(KfpOutput(name="model", uri=uri, sha256="c" * 64, source="manifest")).sha256 == "c" * 64
