"""Runs on this machine, by the SDK itself: the shapes that users write, and what is left when a run ends before its time."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.config import load_settings
from airflow_ml_provider.core.kfp_package import check_arguments, read_package
from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError
from airflow_ml_provider.hooks.kfp_interpreter import KfpInterpreter
from airflow_ml_provider.jobs.kfp_compile import compile_function
from airflow_ml_provider.jobs.kfp_local import KfpLocal, LocalOutcome
from airflow_ml_provider.models.kfp import RunState
from airflow_ml_provider.models.kfp_package import PipelinePackage

PIPELINES = Path(__file__).with_name("kfp_pipelines.py")
GONE_S = 10


@cache
def compiled(name: str) -> PipelinePackage:
    """One of the pipelines beside this file, compiled as a DAG's would be."""
    return read_package(compile_function(f"{PIPELINES}:{name}", relative_to=None), source=f"{name}.yaml")


def run(name: str, folder: Path, **arguments: Any) -> LocalOutcome:
    package = compiled(name)
    return KfpLocal().run(package, check_arguments(package, arguments), folder, run_id=str(uuid.uuid4()))


def values(outcome: LocalOutcome, task: str = "") -> dict[str, Any]:
    return {each.name: each.value for each in outcome.results.outputs if each.task == task and each.kind == "parameter"}


def states(outcome: LocalOutcome) -> dict[str, str]:
    return {each.name: str(each.state) for each in outcome.run.tasks}


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pids_in(note: Path) -> list[int]:
    """Wait for the component that sleeps: its id, and that of what it has started in a session of its own."""
    end = time.monotonic() + 60
    while not note.exists() and time.monotonic() < end:
        time.sleep(0.05)
    found = [int(each) for each in note.read_text().split()]
    assert all(map(alive, found))
    return found


def noted(note: Path) -> list[int]:
    """What :func:`pids_in` waits for, of a run that has ended; nothing where the machine was too busy to get so far."""
    return [int(each) for each in note.read_text().split()] if note.exists() else []


def all_gone(pids: list[int]) -> bool:
    end = time.monotonic() + GONE_S
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


class TestValues:
    def test_a_parameter_of_each_type_arrives_as_its_type_and_what_is_left_out_as_its_default(self, tmp_path: Path) -> None:
        outcome = run("every_type", tmp_path, required='it\'s {{x}} "python3"\nü')
        assert outcome.run.state is RunState.SUCCEEDED, outcome.problem
        found = values(outcome)
        seen = json.loads(found.pop("seen"))
        assert seen == ['it\'s {{x}} "python3"\nü', 3, 2.0, True, [1, "two", 2.5], {"a": {"b": [True, 2]}}, None, "own"]
        kinds = [str, int, float, bool, list, dict, type(None), str]
        assert [type(each) for each in seen] == kinds
        assert [type(each) for each in seen[4]] == [int, str, float]
        assert found == dict(zip(("text", "number", "rate", "flag", "items", "settings"), seen, strict=False))
        assert [type(found[name]) for name in ("number", "rate", "flag")] == [int, float, bool]
        assert type(found["settings"]["a"]["b"][1]) is int

    def test_values_that_are_given_go_through_as_they_are(self, tmp_path: Path) -> None:
        given = {
            "required": "",
            "number": -(2**53),
            "rate": 1e300,
            "flag": False,
            "items": [],
            "settings": {"n": None, "deep": [[1, 1.5]]},
            "maybe": 0,
            "word": "",
        }
        seen = json.loads(values(run("every_type", tmp_path, **given))["seen"])
        assert seen == list(given.values())
        assert [type(each) for each in seen] == [type(each) for each in given.values()]


class TestShapes:
    def test_loops_get_their_own_items_and_what_they_collect_keeps_its_type(self, tmp_path: Path) -> None:
        outcome = run("loops", tmp_path, numbers=[10, 20])
        assert outcome.run.state is RunState.SUCCEEDED, outcome.problem
        assert values(outcome) == {"total": 34, "none": 0, "rows": 6}
        assert {type(each) for each in values(outcome).values()} == {int}
        merged = outcome.results.find("merged")
        assert Path(merged.path).read_text() == "part 1's\n" * 2 + "part 2's\n" * 4, "each part with its rows, times the size"
        assert (merged.type, merged.metadata, merged.uri) == ("Dataset", {"parts": 2}, Path(merged.path).as_uri())
        _, metrics = outcome.results.find_all("write.metrics")
        assert metrics.full_label == "for-loop-2-iteration-1/write.metrics"
        assert (metrics.type, metrics.metadata, metrics.value, metrics.path) == ("Metrics", {"rows": 4}, 4, "")
        assert states(outcome)["for-loop-3"] == "SKIPPED"

    def test_of_branches_one_runs_and_an_exit_task_hears_how_it_ended(self, tmp_path: Path) -> None:
        outcome = run("branches", tmp_path)
        assert outcome.run.state is RunState.SUCCEEDED, outcome.problem
        assert values(outcome) == {"chosen": "second", "once": 12, "twice": 22}
        assert Path(outcome.results.find("model").path).read_text() == "large on 2 rows"
        assert values(outcome, "tell") == {"Output": "over: exit-handler-1 SUCCEEDED None"}
        ran = {name.rpartition("/")[2] for name, state in states(outcome).items() if state == "SUCCEEDED"}
        assert {"said-3", "fit-2"} <= ran
        assert not {"said-2", "said-4", "fit", "fit-3"} & ran
        assert states(outcome)["condition-6"] == "SKIPPED"
        assert values(run("branches", tmp_path / "other", word="no && never"))["chosen"] == "first"

    def test_loops_in_loops_and_over_artifacts_retries_and_files_of_parameters(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        outcome = run("corners", tmp_path, note=str(tmp_path / "note"))
        assert outcome.run.state is RunState.SUCCEEDED, outcome.problem
        assert values(outcome) == {"rows": 3, "deep": 6, "struct": {"a": [1, 2.5]}, "number": 7}
        inmost = [(each.loop, each.value) for each in outcome.results.find_all("add.Output")]
        assert inmost == [((0, 0), 2), ((0, 1), 3), ((1, 0), 4)], "the loop in the loop, flat and in order"
        assert "RuntimeError: the first time" in caplog.text
        assert "Task once-more is tried again (2)." in caplog.text
        ran = {name for name, state in states(outcome).items() if state == "SUCCEEDED" and "condition" in name}
        assert len(ran) == 1

    def test_packages_of_components_do_not_meet_and_are_there_without_an_index(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        assert values(run("packages", tmp_path / "1")) == {"new": "0.9.0", "old": "0.8.10"}
        monkeypatch.setenv("UV_OFFLINE", "1")
        monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/")
        caplog.set_level(logging.INFO)
        caplog.clear()
        assert values(run("packages", tmp_path / "2")) == {"new": "0.9.0", "old": "0.8.10"}
        assert "Making an interpreter" not in caplog.text

    def test_an_importer_reads_files_of_this_machine(self, tmp_path: Path) -> None:
        (tmp_path / "t b.csv").write_text("a\nb\n")
        assert values(run("imported", tmp_path / "1", place=(tmp_path / "t b.csv").as_uri())) == {"Output": 2}
        assert values(run("imported", tmp_path / "2", place=str(tmp_path / "t b.csv"))) == {"Output": 2}
        outcome = run("imported", tmp_path / "3", place="s3://key:secret@bucket/table.csv")
        assert outcome.run.state is RunState.FAILED
        assert "imports s3://bucket/table.csv, and on this machine only files can be imported." in outcome.problem
        assert "there is no such file" in run("imported", tmp_path / "4", place="/no/such/file").problem

    def test_what_cannot_run_here_is_refused_before_anything_is_started(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as caught:
            run("contained", tmp_path / "run")
        said = str(caught.value)
        assert "in-its-image is a container component (image 'alpine')" in said
        assert "importer imports s3://bucket/table.csv" in said
        assert "Use the connection of a server" in said
        assert not (tmp_path / "run").exists()


class TestFailures:
    def test_a_broken_component_shows_its_traceback_and_its_exit_task_runs(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        outcome = run("fails", tmp_path)
        assert outcome.run.state is RunState.FAILED
        for text in (outcome.problem, caplog.text):
            assert "return 1 / (value - value)" in text
            assert "ZeroDivisionError: division by zero" in text
            assert "Got executor_input" not in text, "that is the SDK's own talk"
        assert outcome.problem.startswith("Task exit-handler-1/broken FAILED:")
        assert "[exit-handler-1/broken] about to break" in caplog.text
        assert "Task exit-handler-1/add started." in caplog.text
        assert values(outcome, "tell") == {"Output": "over: exit-handler-1 FAILED 1"}
        assert states(outcome) == {"exit-handler-1/add": "SUCCEEDED", "exit-handler-1/broken": "FAILED", "tell": "SUCCEEDED"}

    @pytest.mark.parametrize(
        ("code", "said"),
        [
            (7, "Its process ended with exit code 7, without a traceback."),
            (0, "Its process was ended by SIGKILL: perhaps for want"),
        ],
    )
    def test_a_component_that_dies_without_a_word_is_told_with_its_exit_code(self, tmp_path: Path, code: int, said: str) -> None:
        outcome = run("goes", tmp_path, code=code)
        assert outcome.problem.startswith("Task leaves FAILED:\nso far, so good\n")
        assert said in outcome.problem

    def test_a_release_of_the_sdk_that_is_not_known_is_refused_not_trusted(self, tmp_path: Path) -> None:
        python = KfpInterpreter(load_settings()).python()
        half = Path(sys.modules[KfpLocal.__module__].__file__ or "").with_name("kfp_sdk_values.py")
        code = (
            f"import importlib.util; s = importlib.util.spec_from_file_location('f', {str(half)!r}); "
            "m = importlib.util.module_from_spec(s); s.loader.exec_module(m); m.replace('local.io', 'Renamed', lambda own: own)"
        )
        ended = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False)
        assert "kfp 2.17.0 has no kfp.local.io.Renamed" in ended.stderr
        assert "Set [ml] kfp_requirements to kfp==2.17.0" in ended.stderr

    def test_an_interpreter_that_cannot_be_made_is_said_with_the_remedy(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = compiled("sleeps")
        monkeypatch.setenv("AIRFLOW__ML__INTERPRETERS", str(tmp_path / "kept"))
        for index in ("UV_DEFAULT_INDEX", "PIP_INDEX_URL"):  # of whichever installer there is
            monkeypatch.setenv(index, "http://ada:hunter22@127.0.0.1:9/simple")
        for name, value in {"UV_NO_CACHE": "1", "UV_HTTP_RETRIES": "0", "PIP_NO_CACHE_DIR": "1", "PIP_RETRIES": "0"}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RemoteUnavailableError, match="to make an interpreter with kfp==2") as caught:
            KfpLocal().run(package, {"note": "x"}, tmp_path / "run", run_id="one")
        assert "hunter22" not in str(caught.value)
        assert "Check that this machine reaches a package index" in str(caught.value)

    def test_a_place_that_cannot_be_written_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigError, match=r"cannot be made: .* Name another place in \[ml\] kfp_local_root"):
            run("sleeps", tmp_path / "file/run", note="x")


class TestEnds:
    def test_a_kill_in_the_middle_leaves_no_process(self, tmp_path: Path) -> None:
        package, local, found = compiled("sleeps"), KfpLocal(), list[LocalOutcome]()
        note = tmp_path / "note"
        thread = threading.Thread(
            target=lambda: found.append(local.run(package, {"note": str(note)}, tmp_path / "run", run_id="one"))
        )
        thread.start()
        pids = pids_in(note)
        local.kill()
        thread.join(GONE_S)
        assert not thread.is_alive()
        assert all_gone(pids)
        assert found[0].run.state is RunState.CANCELED
        assert found[0].problem == "it was ended since the task was killed, with all that it had started."
        assert states(found[0]) == {"sleeper": "CANCELED"}
        assert local.run(package, {"note": "x"}, tmp_path / "again", run_id="two").run.state is RunState.CANCELED

    def test_the_end_of_a_component_ends_its_own_helpers_and_not_those_of_one_that_runs_beside_it(self, tmp_path: Path) -> None:
        outcome = run("daemons", tmp_path / "run", notes=str(tmp_path))
        assert outcome.run.state is RunState.SUCCEEDED, outcome.problem
        slow, quick = (each.value for each in outcome.results.find_all("helped.Output"))
        assert quick == {"quick": True}
        assert slow == {"slow": True, "quick left": False}
        assert all_gone([*noted(tmp_path / "slow"), *noted(tmp_path / "quick")])

    def test_a_timeout_leaves_no_process(self, tmp_path: Path) -> None:
        package, note = compiled("sleeps"), tmp_path / "note"
        began = time.monotonic()
        outcome = KfpLocal().run(package, {"note": str(note)}, tmp_path / "run", run_id="one", timeout_s=4)
        assert time.monotonic() - began < 30
        assert outcome.run.state is RunState.CANCELED
        assert "after its timeout of 4 s" in outcome.problem
        assert all_gone(noted(note))

    @pytest.mark.parametrize("victim", ["worker", "half"])
    def test_a_kill_9_leaves_no_process(self, tmp_path: Path, victim: str) -> None:
        package, note = compiled("sleeps"), tmp_path / "note"
        code = (
            "import json, sys; from pathlib import Path; from airflow_ml_provider.core.kfp_package import read_spec; "
            "from airflow_ml_provider.jobs.kfp_local import KfpLocal; "
            "package = read_spec(json.loads(sys.argv[1]), source='sleeps'); "
            "print(KfpLocal().run(package, {'note': sys.argv[2]}, Path(sys.argv[3]), run_id='one').run.state)"
        )
        command = [sys.executable, "-c", code, json.dumps(package.spec), str(note), str(tmp_path / "run")]
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        pids = pids_in(note)
        half = parent_of(parent_of(pids[0]))
        assert parent_of(half) == worker.pid
        os.kill(worker.pid if victim == "worker" else half, signal.SIGKILL)
        said, _ = worker.communicate(timeout=60)
        assert said.strip() == ("" if victim == "worker" else "FAILED")
        assert all_gone([half, *pids])

    def test_what_a_run_has_left_goes_when_its_days_are_over_and_another_begins(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW__ML__KFP_LOCAL_ROOT", str(tmp_path))
        monkeypatch.setenv("AIRFLOW__ML__KFP_LOCAL_KEEP_DAYS", "0")
        for first, second in (("a", "b"), ("b", "c")):
            run("goes", tmp_path / second, code=7)
            assert (tmp_path / second).exists()
            assert not (tmp_path / first).exists()

    def test_two_at_once_do_not_disturb_each_other(self, tmp_path: Path) -> None:
        compiled("loops")
        found: dict[int, LocalOutcome] = {}

        def work(number: int) -> None:
            found[number] = run("loops", tmp_path / str(number), numbers=[number, number], factor=number)

        threads = [threading.Thread(target=work, args=(number,)) for number in (1, 100)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert {number: values(each)["total"] for number, each in found.items()} == {1: 4, 100: 400}
        assert not list(tmp_path.glob("*/tmp")), "nothing but outputs is kept"


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
