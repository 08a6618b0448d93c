"""``airflow-ml kfp``: the result alone on standard output, everything for people on standard error."""

from __future__ import annotations

import json
import logging
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from airflow_ml_provider.cli.main import main
from airflow_ml_provider.core.kfp_package import read_package
from airflow_ml_provider.jobs.kfp_compile import compile_function
from airflow_ml_provider.testing import FakeKfpServer
from tests.jobs.test_kfp_local import all_gone, pids_in

PIPELINES = str(Path(__file__).parents[1] / "jobs/kfp_pipelines.py")
ONE = """
from kfp import dsl

@dsl.component(base_image="python:3.11")
def add(a: int, b: int) -> int:
    print(f"adding {a} and {b}")
    return a + b

@dsl.pipeline
def adds(a: int, b: int = 2) -> int:
    return add(a=a, b=b).output
"""


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AIRFLOW__ML__KFP_LOCAL_ROOT", str(tmp_path / "ml-kfp"))
    (tmp_path / "one.py").write_text(ONE)


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The pipeline, compiled once for the tests that only run it."""
    file = tmp_path_factory.mktemp("once") / "one.py"
    file.write_text(ONE)
    return compile_function(str(file), relative_to=None)


@pytest.fixture
def one(content: bytes, tmp_path: Path) -> str:
    (tmp_path / "one.yaml").write_bytes(content)
    return "one.yaml"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., tuple[int, str, str]]]:
    ours = logging.getLogger("airflow_ml_provider")
    before = ours.handlers[:], ours.level, ours.propagate

    def run(*args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["kfp", *args])
        return status, *capsys.readouterr()

    yield run
    ours.handlers[:], level, ours.propagate = before  # the command's process ends with it; a worker of the tests does not
    ours.setLevel(level)


class TestCompile:
    def test_the_package_is_on_standard_output_or_in_the_file(self, call, tmp_path) -> None:
        status, out, err = call("compile", "one.py")
        assert (status, read_package(out, source="out").name) == (0, "adds")
        assert call("compile", "one.py", "-f", "adds", "-o", "out.yaml")[:2] == (0, "")
        assert (tmp_path / "out.yaml").read_text() == out
        status, out, err = call("compile", "one.py", "-o", "no/such/folder.yaml")
        assert (status, out) == (1, "")
        assert "no/such/folder.yaml cannot be written" in err

    def test_which_pipeline_is_asked_for_where_there_are_several(self, call) -> None:
        status, out, err = call("compile", PIPELINES)
        assert (status, out) == (1, "")
        assert re.search(r"has \d+ pipelines: branches, contained, corners, counted,", err)
        assert "Say which: kfp_pipelines.py:" in err

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            (
                "from kfp import dsl\n\n\ndef helper():\n    return 1 / 0\n\n\n@dsl.pipeline\ndef p():\n    helper()\n",
                ["ZeroDivisionError: division by zero", 'broken.py", line 10, in p', 'broken.py", line 5, in helper'],
            ),
            ("def p(:\n", ["SyntaxError: invalid syntax", 'broken.py", line 1', "def p(:"]),
            (
                "import airflow.sdk\n",
                ["its file imports 'airflow', which the SDK's interpreter does not have", "line 1, in <module>"],
            ),
            pytest.param("x = 1\n", ["has no pipeline. Decorate a function with @dsl.pipeline."], marks=pytest.mark.full),
            pytest.param("raise SystemExit(3)\n", ["SystemExit: 3", 'broken.py", line 1'], marks=pytest.mark.full),
        ],
    )
    def test_what_is_wrong_with_the_file_is_said_with_its_own_lines(self, call, tmp_path, text, said) -> None:
        (tmp_path / "broken.py").write_text(text)
        status, out, err = call("compile", "broken.py")
        assert (status, out) == (1, "")
        assert "pipeline 'broken.py' cannot be compiled" in err
        for each in said:
            assert each in err
        assert "kfp_sdk_" not in err, "our own frames explain nothing"

    def test_a_module_beside_the_file_and_what_it_prints(self, call, tmp_path) -> None:
        (tmp_path / "beside.py").write_text("print('beside is read')\nNUMBER = 7\n")
        (tmp_path / "one.py").write_text("import beside\n" + ONE.replace("b: int = 2", "b: int = beside.NUMBER"))
        status, out, err = call("compile", "one.py")
        assert status == 0, err
        assert read_package(out, source="out").parameters["b"].default == 7
        assert "beside is read" in err


class TestRun:
    def test_here_progress_is_told_and_the_result_is_json(self, call, tmp_path) -> None:
        status, out, err = call("run", "one.py", "-a", "a=40")
        assert status == 0, err
        told = json.loads(out)
        assert (told["state"], told["outputs"]) == ("SUCCEEDED", {"Output": 42, "add.Output": 42})
        assert Path(told["folder"]).parent == tmp_path / "ml-kfp/by-hand"
        assert "Task add started.\n[add] adding 40 and 2\n" in err
        assert json.loads(call("run", "one.py", "--arguments", '{"a": 1, "b": 5}', "-a", "a=2")[1])["outputs"]["Output"] == 7

    def test_a_failure_is_status_1_with_the_components_traceback(self, call) -> None:
        status, out, err = call("run", PIPELINES, "-f", "fails")
        assert status == 1
        assert json.loads(out)["state"] == "FAILED"
        assert "airflow-ml: pipeline fails FAILED: Task exit-handler-1/broken FAILED:" in err
        assert "    return 1 / (value - value)\n" in err

    def test_ctrl_c_leaves_no_process(self, tmp_path) -> None:
        note = tmp_path / "note"
        # What a shell has started with & does not heed it, and hands that on.
        heeds = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        code = f"{heeds}; import sys; from airflow_ml_provider.cli.main import main; sys.exit(main())"
        command = [sys.executable, "-c", code, "kfp", "run", PIPELINES, "-f", "sleeps", "-a", f"note={note}"]
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        pids = pids_in(note)
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
        assert (running.returncode, out) == (130, "")
        assert "Traceback" not in err
        assert all_gone(pids)

    def test_on_a_server_it_is_uploaded_started_and_waited_for(self, call, one, monkeypatch) -> None:
        with FakeKfpServer() as server:
            monkeypatch.setenv("AIRFLOW_CONN_THERE", json.dumps({"conn_type": "kfp", "host": server.url}))
            server.auto(seconds=0.1)
            status, out, err = call("run", one, "-a", "a=1", "--connection", "there")
            assert status == 0, err
            (run,) = server.runs
            assert json.loads(out) == {
                "run_id": run.run_id,
                "state": "SUCCEEDED",
                "url": f"{server.url}/#/runs/details/{run.run_id}",
            }
            server.auto(seconds=0.1, state="FAILED", failed_task="add", log="out of memory\n")
            status, out, err = call("run", one, "-a", "a=1", "--connection", "there")
            assert (status, json.loads(out)["state"]) == (1, "FAILED")
            assert "out of memory" in err

    @pytest.mark.parametrize(
        ("given", "said"),
        [
            (["-a", "a"], "-a 'a' has no value. Write -a name=value."),
            (["--arguments", "[1]"], "--arguments is a list, not a JSON object"),
            (["--arguments", "{"], "--arguments is no JSON"),
            (["-a", "a=1", "-a", "c=1"], "'c' is no parameter of it."),
            (["-o", "x.yaml"], "--output is read by compile, not by run."),
            (["--name", "x"], "--name is read by upload, not by run."),
            (["-f", "nothing"], "has no 'nothing'"),
        ],
    )
    def test_what_is_wrong_with_the_call_is_said(self, call, one, given, said) -> None:
        status, out, err = call("run", "one.py" if "-f" in given else one, *given)
        assert (status, out) == (1, "")
        assert said in err


def test_upload_makes_one_version_of_one_content(call, one, monkeypatch) -> None:
    with FakeKfpServer() as server:
        monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", json.dumps({"conn_type": "kfp", "host": server.url}))
        status, out, err = call("upload", "one.py")
        assert status == 0, err
        told = json.loads(out)
        assert told["pipeline"].startswith("adds@")
        assert json.loads(call("upload", one)[1]) == told
        assert json.loads(call("upload", one, "--name", "sums")[1])["pipeline"].startswith("sums@")
    monkeypatch.setenv("AIRFLOW_CONN_KFP_DEFAULT", '{"conn_type": "kfp", "host": "local://"}')
    status, out, err = call("upload", one)
    assert (status, out) == (1, "")
    assert "connection 'kfp_default' has no server" in err
