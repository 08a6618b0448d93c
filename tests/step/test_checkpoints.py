"""Checkpoints of a step, from one try to the next."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.tracking.places import ProxyPlace
from tests.step.pods import PYTHON, Pod, proxy

RESUME = """
import airflow_ml_step, os, pathlib
found = airflow_ml_step.load().last_checkpoint
print("found", found and sorted(each.name for each in pathlib.Path(found).iterdir()) if found and os.path.isdir(found) else found)
"""


def with_checkpoints(pod: Pod, try_number: int = 1) -> Pod:
    pod.fields["checkpoints"] = proxy(f"{pod.root}/checkpoints")
    pod.fields["try_number"] = try_number
    return pod


SAVE = """
import airflow_ml_step, os, sys
os.makedirs("{folder}/state", exist_ok=True)
for step in (1, 2):
    open("{folder}/state/weights", "w").write(str(step))
    airflow_ml_step.save_checkpoint("{folder}/state", step=step)
sys.exit(1)
"""


def test_a_retry_goes_on_from_the_last_complete_checkpoint(mlflow_api: MlflowApi, new_pod: Callable[..., Pod]) -> None:
    first = with_checkpoints(new_pod("first"))
    assert first.run(SAVE.format(folder=first.folder)) == 1
    latest = json.loads(first.read(mlflow_api, "checkpoints/latest.json"))
    assert (latest["step"], latest["try"], latest["size"]) == (2, 1, 1)
    assert first.manifest(mlflow_api).checkpoint == latest["path"]
    second = with_checkpoints(new_pod("second"), 2)
    second.run(RESUME)
    assert "found ['weights']" in second.text
    assert (second.volume / "checkpoints" / latest["path"] / "weights").read_text() == "2"


def test_a_first_try_finds_none(pod: Pod) -> None:
    with_checkpoints(pod).run(RESUME)
    assert "found None" in pod.text


def test_a_checkpoint_that_was_altered_is_left_alone(mlflow_api: MlflowApi, new_pod: Callable[..., Pod]) -> None:
    first = with_checkpoints(new_pod("first"))
    first.run(SAVE.format(folder=first.folder))
    latest = json.loads(first.read(mlflow_api, "checkpoints/latest.json"))
    (first.folder / "other").write_text("x")
    ProxyPlace(mlflow_api, first.root).write(f"checkpoints/{latest['path']}/weights", first.folder / "other")
    second = with_checkpoints(new_pod("second"), 2)
    second.run(RESUME)
    assert "found None" in second.text
    assert f"the last checkpoint is left alone: {latest['path']} was altered" in second.text


def test_a_checkpoint_that_broke_off_never_takes_the_place_of_the_one_before(
    mlflow_api: MlflowApi, new_pod: Callable[..., Pod]
) -> None:
    first = with_checkpoints(new_pod("first"))
    first.run(SAVE.format(folder=first.folder))
    before = first.read(mlflow_api, "checkpoints/latest.json")
    second = with_checkpoints(new_pod("second"), 2)
    program = """
        import airflow_ml_step, os, signal
        os.makedirs("{folder}/state")
        open("{folder}/state/a", "w").write("whole")
        os.mkfifo("{folder}/state/b")  # is not sent, and
        os.symlink("{folder}/nowhere", "{folder}/state/c")  # this cannot be
        airflow_ml_step.save_checkpoint("{folder}/state")
    """
    assert second.run(program.format(folder=second.folder)) == 1
    assert "is a link to a folder, or to nothing" in second.text
    assert first.read(mlflow_api, "checkpoints/latest.json") == before


def test_a_kill_after_the_files_and_before_the_last_word_leaves_the_older_one(
    mlflow_api: MlflowApi, new_pod: Callable[..., Pod]
) -> None:
    first = with_checkpoints(new_pod("first"))
    first.run(SAVE.format(folder=first.folder))
    before = json.loads(first.read(mlflow_api, "checkpoints/latest.json"))
    second = with_checkpoints(new_pod("second"), 2)
    program = """
        import airflow_ml_step, os, signal
        write = airflow_ml_step.write_file
        airflow_ml_step.write_file = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
        open("{folder}/state", "w").write("newer")
        airflow_ml_step.save_checkpoint("{folder}/state", step=9)
    """
    assert second.run(program.format(folder=second.folder)) == 137
    stored = {each.split("/")[0] for each in ProxyPlace(mlflow_api, second.root).files("checkpoints")}
    assert {each.split("-")[0] for each in stored} == {"1", "2", "latest.json"}, "the files of the second try are there"
    third = with_checkpoints(new_pod("third"), 3)
    third.run(RESUME)
    assert "found ['weights']" in third.text
    assert json.loads(first.read(mlflow_api, "checkpoints/latest.json")) == before


def test_a_program_without_python_uses_the_command(mlflow_api: MlflowApi, new_pod: Callable[..., Pod]) -> None:
    pod = with_checkpoints(new_pod("shell"))
    (pod.folder / "state").write_text("weights")
    shell = f"{PYTHON} -m airflow_ml_step"
    program = f"{shell} last-checkpoint || {shell} checkpoint {pod.folder}/state --step 4 && cat $({shell} last-checkpoint)"
    assert pod.end(pod.start("run", "--", "sh", "-c", program)) == 0, pod.text
    assert "weights" in pod.text
    assert json.loads(pod.read(mlflow_api, "checkpoints/latest.json"))["step"] == 4


def test_a_step_that_keeps_none_says_so(pod: Pod, tmp_path: Path) -> None:
    assert pod.run(f"import airflow_ml_step\nairflow_ml_step.save_checkpoint({str(tmp_path)!r})") == 1
    assert "this step keeps no checkpoints" in pod.text


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["a", "--step"], ["a", "--stop", "1"]])
def test_a_wrong_command_line_is_refused(pod: Pod, arguments: list[str]) -> None:
    assert pod.end(pod.start("checkpoint", *arguments)) == 64
    assert "usage: checkpoint PATH [--step N]" in pod.text
