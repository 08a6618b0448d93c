"""The container's half as a process, against a real MLflow server."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.artifact import load_metrics
from airflow_ml_provider.models.pod_step import StepPlace
from airflow_ml_provider.tracking.places import ProxyPlace, hash_file, hash_tree
from tests.step.pods import FILE, PYTHON, Pod, answer, lines, proxy, serving


def stored(api: MlflowApi, pod: Pod, path: str, content: bytes) -> str:
    local = pod.folder / "sent"
    local.write_bytes(content)
    return ProxyPlace(api, pod.root).write(path, local).sha256


TRAIN = """
import airflow_ml_step, os, pathlib
given = airflow_ml_step.load()
rows = open(given.inputs["table"].path).read().split()
assert open(os.environ["AIRFLOW_ML_INPUT_TABLE"]).read().split() == rows
names = sorted(os.listdir(given.inputs["folder"].path))
model = given.outputs["model"]
pathlib.Path(model.path, "deep").mkdir(parents=True)
pathlib.Path(model.path, "deep", "weights.bin").write_bytes(b"w" * given.parameters["width"])
pathlib.Path(model.path, "MLmodel").write_text(",".join(names))
model.metadata["rows"] = len(rows)
open(os.environ["AIRFLOW_ML_OUTPUT_TABLE2"] + ".csv", "w").write("\\n".join(rows))
for step in range(3):
    airflow_ml_step.log_metric("loss", 1 / (step + 1), step)
given.outputs["scores"].log_metric("auc", float("nan"))
airflow_ml_step.log_param("depth", 7)
assert os.environ["MLFLOW_RUN_ID"] and "AIRFLOW_ML_STEP" not in os.environ
print("trained")
"""


def with_everything(api: MlflowApi, pod: Pod) -> None:
    sha256 = stored(api, pod, "given/rows.txt", b"a b c")
    pod.input("table", "rows.txt", "given/rows.txt", sha256=sha256, directory=False)
    stored(api, pod, "many/x/1.txt", b"1")
    stored(api, pod, "many/2 ü.txt", b"22")
    pod.input("folder", "many", "many")
    pod.output("model", "Model", flat=True)
    pod.output("table2", "Dataset")
    pod.output("scores", "Metrics")
    pod.fields["parameters"] = {"width": 9}


@pytest.mark.parametrize("injected", [False, True])
def test_a_step_that_ends_well_leaves_all_it_made(mlflow_api: MlflowApi, pod: Pod, injected: bool) -> None:
    with_everything(mlflow_api, pod)
    assert pod.run(TRAIN, injected=injected) == 0, pod.text
    manifest, message = pod.manifest(mlflow_api), pod.message
    assert (manifest.state, manifest.exit_code, manifest.error) == ("succeeded", 0, "")
    assert (message.state, message.manifest) == ("succeeded", True)
    assert message.sha256 == hashlib.sha256(pod.read(mlflow_api, "try-1/manifest.json")).hexdigest()
    assert pod.text.splitlines()[0] == "trained"

    model = pod.volume / "outputs/model/model"
    tree = hash_tree((name, hash_file(model / name)) for name in ("MLmodel", "deep/weights.bin"))
    assert manifest.outputs["model"].model_dump() == {
        "type": "Model", "file": "", "sha256": tree.sha256, "size": tree.size, "metadata": True
    }  # fmt: skip
    assert ProxyPlace(mlflow_api, pod.root).files("models/model") == ["MLmodel", "deep/weights.bin"]
    assert pod.read(mlflow_api, "models/model/MLmodel") == b"2 \xc3\xbc.txt,x"
    assert json.loads(pod.read(mlflow_api, "try-1/model.metadata.json")) == {"rows": 3}
    assert manifest.outputs["table2"].file == "table2.csv"
    assert pod.read(mlflow_api, "try-1/table2.csv") == b"a\nb\nc"
    assert manifest.outputs["scores"].file == "scores.json"
    assert str(load_metrics(pod.read(mlflow_api, "try-1/scores.json").decode())) == "{'auc': nan}"

    assert manifest.read["folder"] == (
        hash_tree([("2 ü.txt", hash_file(pod.volume / "inputs/folder/0/many/2 ü.txt")),
                   ("x/1.txt", hash_file(pod.volume / "inputs/folder/0/many/x/1.txt"))]).sha256, 3,
    )  # fmt: skip
    assert "table" not in manifest.read
    assert (manifest.metrics["auc"], manifest.metrics["loss"]) == ("NaN", pytest.approx(1 / 3))
    assert (manifest.unsent, manifest.params) == ([], {"depth": "7"})
    assert manifest.started_ms <= manifest.ended_ms
    history = mlflow_api.get("metrics/get-history", run_id=pod.fields["mlflow"].run_id, metric_key="loss")["metrics"]
    assert sorted(each["step"] for each in history) == [0, 1, 2]


def test_a_step_that_fails_keeps_its_metrics_and_what_it_uploaded_itself(mlflow_api: MlflowApi, pod: Pod) -> None:
    pod.output("early", "Dataset")
    pod.output("late", "Dataset")
    pod.output("scores", "Metrics")
    code = pod.run(
        """
        import airflow_ml_step, sys
        given = airflow_ml_step.load()
        for name in ("early", "late"):
            open(given.outputs[name].path, "w").write(name)
        given.outputs["early"].metadata["rows"] = 1
        airflow_ml_step.upload("early")
        airflow_ml_step.log_metric("loss", 0.5)
        sys.exit(3)
        """
    )
    manifest = pod.manifest(mlflow_api)
    assert (code, manifest.exit_code, manifest.state, manifest.error) == (3, 3, "failed", "exit code 3")
    assert sorted(manifest.outputs) == ["early", "scores"]
    assert manifest.outputs["early"].metadata
    assert pod.read(mlflow_api, "try-1/early") == b"early"
    assert json.loads(pod.read(mlflow_api, "try-1/scores.json")) == {"loss": 0.5}
    assert pod.message.metrics == {"loss": 0.5}


def test_an_output_that_changed_after_its_early_upload_is_stored_again(mlflow_api: MlflowApi, pod: Pod) -> None:
    path = pod.output("table", "Dataset")
    program = f"import airflow_ml_step\nopen({str(path)!r}, 'w').write('1')\nairflow_ml_step.upload('table')\n"
    assert pod.run(program) == 0
    assert pod.text.count("stored Dataset") == 2, "one early, one note that it is there"
    assert pod.run(program + f"open({str(path)!r}, 'w').write('22')") == 0
    assert pod.manifest(mlflow_api).outputs["table"].size == 2
    assert pod.read(mlflow_api, "try-1/table") == b"22"


@pytest.mark.parametrize(
    ("answer", "number", "code"),
    [("sys.exit(0)", signal.SIGTERM, 143), ("sys.exit(5)", signal.SIGTERM, 143), ("sys.exit(0)", signal.SIGINT, 130)],
)
def test_a_step_that_is_told_to_stop_never_succeeds(mlflow_api: MlflowApi, pod: Pod, answer: str, number: int, code: int) -> None:
    pod.output("table", "Dataset")
    process = pod.start(
        "run", "--", "python3", "-c",
        "import airflow_ml_step, os, signal, sys, time\n"
        "given = airflow_ml_step.load()\n"
        "open(given.outputs['table'].path, 'w').write('x')\n"
        "airflow_ml_step.log_metric('loss', 1)\n"
        f"for each in (signal.SIGTERM, signal.SIGINT): signal.signal(each, lambda *_: {answer})\n"
        "open(os.environ['AIRFLOW_ML_FOLDER'] + '/ready', 'w')\n"
        "time.sleep(60)",
    )  # fmt: skip
    pod.await_file("ready", process)
    process.send_signal(number)
    assert pod.end(process) == code
    manifest = pod.manifest(mlflow_api)
    assert (manifest.state, manifest.exit_code, manifest.outputs) == ("terminated", code, {})
    assert manifest.metrics == {"loss": 1.0}
    assert (pod.message.state, pod.message.manifest) == ("terminated", True)
    assert signal.Signals(number).name in pod.message.error


def test_a_program_that_does_not_heed_the_signal_is_killed_while_there_is_time_to_tell(mlflow_api: MlflowApi, pod: Pod) -> None:
    pod.fields["grace_s"] = 2
    process = pod.start("run", "--", "sh", "-c", f"trap '' TERM; touch {pod.volume}/ready; sleep 60 & sleep 60; wait")
    pod.await_file("ready", process)
    process.terminate()
    assert pod.end(process) == 143
    assert pod.manifest(mlflow_api).state == pod.message.state == "terminated"


def test_the_message_of_a_terminated_step_is_there_though_mlflow_hangs(new_pod: Callable[..., Pod]) -> None:
    def hang(handler: object, body: bytes) -> None:
        asked.append(body)
        released.wait(20)

    asked: list[bytes] = []
    released = threading.Event()
    with serving(hang) as url:
        pod = new_pod("hanging", url)
        process = pod.start("run", "--", "sh", "-c", f"touch {pod.volume}/ready; sleep 60")
        pod.await_file("ready", process)
        process.terminate()
        while not asked:
            assert process.poll() is None
            threading.Event().wait(0.02)
        message = pod.message
        process.kill()  # as the kubelet does in the end
        process.wait()
        released.set()
    assert (message.state, message.exit_code, message.manifest) == ("terminated", 143, False)


def test_a_step_that_is_told_to_stop_while_it_fetches_ends_at_once(new_pod: Callable[..., Pod]) -> None:
    released = threading.Event()

    def hang(*_: object) -> None:
        released.wait(20)

    with serving(hang) as url:
        pod = new_pod("fetching", url)
        pod.fields["grace_s"] = 2
        pod.input("table", "rows", "rows", directory=False)
        process = pod.start("run", "--", "touch", str(pod.volume / "ran"))
        pod.await_file("step/airflow_ml_step.py", process)
        process.terminate()
        assert pod.end(process) == 143
        released.set()
    assert pod.message.state == "terminated"
    assert not (pod.volume / "ran").exists()


def test_a_program_that_is_killed_says_so(mlflow_api: MlflowApi, pod: Pod) -> None:
    assert pod.run("import os, signal; os.kill(os.getpid(), signal.SIGKILL)") == 137
    assert (pod.manifest(mlflow_api).state, pod.message.error) == ("failed", "killed by SIGKILL")


@pytest.mark.parametrize("code", [0, 1, 137])
def test_a_kill_for_memory_is_never_a_success(mlflow_api: MlflowApi, pod: Pod, code: int) -> None:
    counted = pod.folder / "memory.events"
    counted.write_text("oom 3\noom_kill 3\n")
    pod.environment["AIRFLOW_ML_OOM_FILE"] = str(counted)
    program = f"import os, signal\nopen({str(counted)!r}, 'w').write('oom 4\\noom_kill 4\\n')\n"
    program += f"os._exit({code})" if code < 128 else "os.kill(os.getpid(), signal.SIGKILL)"
    assert pod.run(program) == 137
    assert pod.manifest(mlflow_api).state == "out_of_memory"
    assert f"the program itself ended with {code}" in pod.message.error


def test_what_was_killed_before_the_step_started_does_not_count(pod: Pod) -> None:
    counted = pod.folder / "memory.events"
    counted.write_text("oom_kill 3\n")
    pod.environment["AIRFLOW_ML_OOM_FILE"] = str(counted)
    assert pod.run("pass") == 0


def test_an_altered_input_is_refused_before_the_program_runs(mlflow_api: MlflowApi, pod: Pod) -> None:
    stored(mlflow_api, pod, "rows", b"altered")
    pod.input("table", "rows", "rows", sha256="0" * 64, size=3)
    assert pod.run(f"open({str(pod.volume / 'ran')!r}, 'w')") == 65
    assert not (pod.volume / "ran").exists()
    message = pod.message
    assert message.state == pod.manifest(mlflow_api).state == "input"
    assert hashlib.sha256(b"altered").hexdigest() in message.error
    assert "0" * 64 in message.error


def test_an_input_that_is_gone_is_told_with_its_remedy(pod: Pod) -> None:
    pod.input("table", "rows", "nowhere/rows", directory=False)
    assert pod.run("pass") == 65
    assert "Dataset 'table' is not at runs:/x/nowhere/rows any more" in pod.message.error
    assert "Run the step that made it again" in pod.message.error


@pytest.mark.parametrize("kind", ["Dataset", "Metrics"])
def test_an_output_that_was_never_written_is_no_success(mlflow_api: MlflowApi, pod: Pod, kind: str) -> None:
    pod.output("written", "Dataset")
    path = pod.output("table", kind)
    assert pod.run(f"open({str(pod.volume / 'outputs/written/written')!r}, 'w').write('x')") == 66
    manifest = pod.manifest(mlflow_api)
    assert (manifest.state, list(manifest.outputs)) == ("output", ["written"])
    assert f"output 'table' ({kind}) was never written: there is nothing at {path}" in pod.message.error


def test_a_directory_without_a_file_is_said_to_be_one(pod: Pod) -> None:
    path = pod.output("table", "Dataset")
    assert pod.run(f"import os\nos.makedirs({str(path / 'empty')!r})") == 66
    assert f"output 'table' (Dataset) was never written: {path} is a directory without a file." in pod.message.error


def test_two_files_for_one_output_are_refused(pod: Pod) -> None:
    path = pod.output("table", "Dataset")
    assert pod.run(f"[open({str(path)!r} + each, 'w') for each in ('.a', '.b')]") == 66
    assert "could be each of ['table.a', 'table.b']" in pod.message.error


@pytest.mark.parametrize(
    ("name", "words"), [(b"/\xff.csv", "'\\udcff.csv' is not UTF-8"), (b"/a#b.csv", "does not keep the name 'table/a#b.csv'")]
)
def test_a_file_with_a_name_that_cannot_be_kept_is_refused(mlflow_api: MlflowApi, pod: Pod, name: bytes, words: str) -> None:
    path = pod.output("table", "Dataset")
    assert pod.run(f"import os\nos.mkdir({str(path)!r})\nopen({os.fsencode(path)!r} + {name!r}, 'w')") == 66
    assert words in pod.message.error
    assert pod.manifest(mlflow_api).state == "output"


def test_an_error_with_a_name_that_is_no_text_can_be_read(mlflow_api: MlflowApi, pod: Pod) -> None:
    path = pod.output("table", "Dataset")
    assert pod.run(f"import os\nos.mkdir({str(path)!r})\nos.symlink('nowhere', {os.fsencode(path)!r} + b'/\\xff')") == 66
    assert "/? is a link to a folder, or to nothing" in pod.manifest(mlflow_api).error
    assert "/? is a link to a folder, or to nothing" in pod.message.error


def test_what_an_orphan_leaves_is_collected(pod: Pod) -> None:
    reaper = "import ctypes, os, sys; ctypes.CDLL(None).prctl(36, 1, 0, 0, 0); os.execvp(sys.argv[1], sys.argv[1:])"
    program = "(sleep 0.1 & echo $! > $0/pid); while [ -e /proc/$(cat $0/pid) ]; do :; done"
    process = pod.start("run", "--", "sh", "-c", program, str(pod.folder), prefix=[sys.executable, "-c", reaper])
    assert pod.end(process) == 0, "as the first process of a container it would wait for ever"


def test_mlflow_that_is_away_at_the_end_is_no_success_and_the_message_says_so(new_pod: Callable[..., Pod]) -> None:
    with serving(lambda handler, _: answer(handler, 200)) as url:
        pod = new_pod("away", url)
        pod.output("table", "Dataset")
        path, go = pod.volume / "outputs/table/table", pod.folder / "go"
        log = 'echo \'{"key": "loss", "value": 2}\' >> $AIRFLOW_ML_FOLDER/metrics.jsonl'
        wait = f"touch {pod.volume}/ready; while [ ! -e {go} ]; do sleep 0.05; done"
        process = pod.start("run", "--", "sh", "-c", f"{log}; echo x > {path}; {wait}")
        pod.await_file("ready", process)
    go.touch()
    assert pod.end(process) == 69
    message = pod.message
    assert (message.state, message.exit_code, message.manifest, message.metrics) == ("store", 69, False, {"loss": 2.0})
    assert "no answer" in message.error


def test_points_that_mlflow_does_not_take_are_in_the_manifest(new_pod: Callable[..., Pod]) -> None:
    manifests = []

    def refuse(handler: object, body: bytes) -> None:
        manifests.append(body)
        answer(handler, 404 if "log-batch" in handler.path else 200)  # type: ignore[attr-defined, arg-type]

    with serving(refuse) as url:
        pod = new_pod("refusing", url)
        points = lines(
            {"key": "a?", "value": "NaN", "step": 3, "timestamp": 5},
            "no point",
            {"key": "c", "value": 1, "step": 1 << 63},
            {"param": "p", "value": 1},
        )
        many = lines(*({"key": "b", "value": each, "timestamp": each} for each in range(10_005)))
        (pod.folder / "points").write_text(points + many)
        assert pod.end(pod.start("run", "--", "cp", str(pod.folder / "points"), str(pod.volume / "metrics.jsonl"))) == 0, pod.text
    manifest = json.loads((pod.volume / "step/manifest.json").read_text())
    assert len(manifest["unsent"]) == 10_000
    assert manifest["unsent"][-1] == ["b", 10_004.0, 10_004, 0]
    assert manifest["metrics"] == {"a_": "NaN", "b": 10_004.0}
    assert manifest["params"] == {"p": "1"}


def test_metrics_are_in_mlflow_while_the_step_runs(mlflow_api: MlflowApi, pod: Pod) -> None:
    point = lines({"key": "loss", "value": 3})
    process = pod.start("run", "--", "sh", "-c", f"echo '{point}' >> {pod.volume}/metrics.jsonl; sleep 60")
    run_id = pod.fields["mlflow"].run_id
    while not mlflow_api.get("metrics/get-history", run_id=run_id, metric_key="loss").get("metrics"):
        assert process.poll() is None
    process.terminate()
    assert pod.end(process) == 143


def test_files_for_and_from_a_program_without_python(mlflow_api: MlflowApi, pod: Pod) -> None:
    sha256 = stored(mlflow_api, pod, "rows", b"rows")
    local = pod.input("table", "rows", "rows", sha256=sha256)
    other = pod.input("seen", "rows", "rows")
    made = pod.output("table2", "Dataset")
    pod.output("never", "Dataset")
    assert pod.end(pod.start("fetch")) == 0, pod.text
    assert local.read_bytes() == other.read_bytes() == b"rows"
    assert not pod.log.exists(), "the main container's end is what counts"
    collecting = pod.start("collect")
    made.write_text("made")
    pod.await_file("step/collecting", collecting)
    collecting.terminate()
    assert pod.end(collecting) == 0, pod.text
    manifest = pod.manifest(mlflow_api)
    assert (manifest.state, list(manifest.outputs), manifest.read) == ("succeeded", ["table2"], {"seen": (sha256, 4)})
    assert pod.message.manifest


def test_an_output_that_cannot_be_read_beside_a_program_is_told_and_the_others_are_stored(
    mlflow_api: MlflowApi, pod: Pod
) -> None:
    paths = [pod.output(name, "Dataset") for name in ("closed", "table", "never")]
    assert pod.end(pod.start("fetch")) == 0, pod.text
    collecting = pod.start("collect")
    pod.await_file("step/collecting", collecting)
    folder = os.open(paths[0].parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:  # not even root can read one
        made.bind(f"/proc/self/fd/{folder}/{paths[0].name}")  # its whole path would be too long
    os.close(folder)
    paths[1].write_text("rows")
    collecting.terminate()
    assert pod.end(collecting) == 66, pod.text
    manifest = pod.manifest(mlflow_api)
    assert (manifest.state, list(manifest.outputs)) == (pod.message.state, ["table"]) == ("output", ["table"])
    assert f"output 'closed': {paths[0]} cannot be read, so it cannot be stored" in pod.message.error
    assert "never" not in pod.message.error, "the program that has not written it may have failed, and tells why"


def test_an_input_that_cannot_be_fetched_is_told_by_the_init_container(mlflow_api: MlflowApi, pod: Pod) -> None:
    pod.input("table", "rows", "rows", directory=False)
    assert pod.end(pod.start("fetch")) == 65
    assert pod.message.state == pod.manifest(mlflow_api).state == "input"


@pytest.mark.parametrize(
    ("variable", "words"),
    [(None, "AIRFLOW_ML_CONTEXT is missing"), ("{", "not a JSON object"), ('{"version": 2}', "version 2 (wanted 1)")],
)
def test_a_context_that_cannot_be_read_is_told(pod: Pod, variable: str | None, words: str) -> None:
    context = {} if variable is None else {"AIRFLOW_ML_CONTEXT": variable}
    ended = subprocess.run([PYTHON, str(FILE), "run", "--", "true"], env={**pod.environment, **context}, check=False)
    assert ended.returncode == 64
    assert (pod.message.state, pod.message.exit_code) == ("config", 64)
    assert words in pod.message.error


def test_a_program_that_is_not_in_the_image_is_told(mlflow_api: MlflowApi, pod: Pod) -> None:
    assert pod.end(pod.start("run", "--", "no-such-program")) == 64
    assert "'no-such-program' cannot be run" in pod.manifest(mlflow_api).error


def test_nothing_that_a_program_leaves_behind_goes_on(pod: Pod) -> None:
    assert pod.end(pod.start("run", "--", "sh", "-c", f"sleep 500 & echo $! > {pod.folder}/pid")) == 0
    status = Path(f"/proc/{(pod.folder / 'pid').read_text().strip()}/status")
    for _ in range(500):
        if not status.exists() or "State:\tZ" in status.read_text():
            return
        threading.Event().wait(0.02)
    pytest.fail("it still runs")


def test_a_manifest_that_cannot_be_stored_is_no_success(new_pod: Callable[..., Pod]) -> None:
    with serving(lambda handler, _: answer(handler, 503 if "manifest" in handler.path else 200)) as url:
        pod = new_pod("manifest", url)
        assert pod.end(pod.start("run", "--", "touch", str(pod.output("table", "Dataset")))) == 69
    assert (pod.message.state, pod.message.manifest) == ("store", False)
    assert "the manifest could not be stored" in pod.message.error


def test_a_step_that_fails_before_it_logged_a_metric_says_why(mlflow_api: MlflowApi, pod: Pod) -> None:
    pod.output("scores", "Metrics")
    assert pod.end(pod.start("run", "--", "sh", "-c", "exit 7")) == 7
    assert (pod.manifest(mlflow_api).error, pod.message.error) == ("exit code 7", "exit code 7")


def test_an_output_that_was_named_anew_after_its_early_upload_is_stored_again(mlflow_api: MlflowApi, pod: Pod) -> None:
    path = pod.output("table", "Dataset")
    program = f"""
        import airflow_ml_step, os
        open({str(path)!r}, "w").write("1")
        airflow_ml_step.upload("table")
        os.rename({str(path)!r}, {str(path)!r} + ".csv")
    """
    assert pod.run(program) == 0
    assert pod.manifest(mlflow_api).outputs["table"].file == "table.csv"
    assert pod.read(mlflow_api, "try-1/table.csv") == b"1"


EPOCHS = """
import airflow_ml_step, os, pathlib
folder = pathlib.Path(airflow_ml_step.load().outputs["model"].path)
(folder / "deep").mkdir(parents=True)
(folder / "config").write_text("c")
for epoch in range(3):
    (folder / f"deep/epoch-{epoch}").write_text(str(epoch))
    (folder / f"deep/epoch-{epoch}0").write_text(str(epoch))
    airflow_ml_step.upload("model")
    (folder / f"deep/epoch-{epoch}").unlink()
(folder / "deep/last").write_text("3")
"""


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("kind", ["proxy", "fsspec", "mlflow"])
def test_of_a_directory_whose_files_were_named_anew_after_its_early_upload_the_new_ones_are_left(
    mlflow_api: MlflowApi, pod: Pod, kind: str, flat: bool
) -> None:
    pod.output("model", "Model", flat=flat)
    output = pod.fields["outputs"]["model"]
    place = output.place
    store = pod.folder / "store"
    store.mkdir()
    if kind != "proxy":
        elsewhere = StepPlace(kind=kind, uri=str(store) if kind == "fsspec" else store.as_uri())
        pod.fields["outputs"]["model"] = output.model_copy(update={"place": elsewhere})
    beside = ProxyPlace(mlflow_api, pod.root)
    sent = stored(mlflow_api, pod, f"{place.path.removeprefix(pod.root + '/')}-beside/deep", b"1") if kind == "proxy" else ""
    assert pod.run(EPOCHS) == 0, pod.text
    top = "" if flat else "model/"
    names = ["config", "deep/epoch-00", "deep/epoch-10", "deep/epoch-20", "deep/last"]
    if kind == "proxy":
        folder = f"{place.path.removeprefix(pod.root + '/')}/{top}".rstrip("/")
        assert beside.files(folder) == names
        assert sent
        assert beside.files(f"{place.path.removeprefix(pod.root + '/')}-beside") == ["deep"]
    else:
        assert sorted(each.relative_to(store / top).as_posix() for each in (store / top).rglob("*") if each.is_file()) == names
    tree = hash_tree((each, hash_file(pod.volume / "outputs/model/model" / each)) for each in names)
    assert pod.manifest(mlflow_api).outputs["model"].sha256 == tree.sha256


def test_a_file_and_then_a_directory_leave_the_directory_alone(mlflow_api: MlflowApi, pod: Pod) -> None:
    path = pod.output("table", "Dataset")
    program = f"""
        import airflow_ml_step, pathlib
        given, path = airflow_ml_step.load().outputs["table"], {str(path)!r}
        given.path = path + "-rows.csv"  # which is stored as table/table-rows.csv
        open(given.path, "w").write("1")
        airflow_ml_step.upload("table")
        given.path = path + "-folder"
        pathlib.Path(given.path).mkdir()
        open(given.path + "/rows", "w").write("2")
    """
    assert pod.run(program) == 0, pod.text
    assert ProxyPlace(mlflow_api, pod.root).files("try-1/table") == ["rows"]


def test_a_store_that_deletes_nothing_keeps_the_early_upload_and_the_step_fails(new_pod: Callable[..., Pod]) -> None:
    files: dict[str, bytes] = {}

    def script(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        if handler.command == "DELETE":
            answer(handler, 405, b"no")
            return
        files[handler.path.rpartition("/try-1/")[2]] = body
        answer(handler, 200)

    with serving(script) as url:
        pod = new_pod("kept", url)
        path = pod.output("table", "Dataset")
        program = f"""
            import airflow_ml_step, os
            os.mkdir({str(path)!r})
            open({str(path)!r} + "/old", "w").write("1")
            airflow_ml_step.upload("table")
            os.rename({str(path)!r} + "/old", {str(path)!r} + "/new")
        """
        assert pod.run(program) == 66, pod.text
    assert "'table/old' was stored by an earlier upload and is not in the directory any more" in pod.message.error
    assert "Keep the names of its files" in pod.message.error
    assert "table/new" not in files
    (kept,) = json.loads(files["manifest.json"])["outputs"].values()
    assert kept["sha256"] == hash_tree([("old", hash_file(pod.volume / "outputs/table/table/new"))]).sha256


def test_a_second_upload_of_a_directory_that_breaks_off_leaves_none_on_record(new_pod: Callable[..., Pod]) -> None:
    files: dict[str, bytes] = {}

    def script(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        name = handler.path.rpartition("/try-1/")[2]
        refused = handler.command == "PUT" and name == "table/b" and body == b"2"
        files[name] = body
        answer(handler, 403 if refused else 200)

    with serving(script) as url:
        pod = new_pod("mixed", url)
        path = pod.output("table", "Dataset")
        program = f"""
            import airflow_ml_step, os
            os.mkdir({str(path)!r})
            for epoch in "12":
                for name in "ab":
                    open({str(path)!r} + "/" + name, "w").write(epoch)
                airflow_ml_step.upload("table")
        """
        assert pod.run(program) == 1, pod.text
    assert json.loads(files["manifest.json"])["outputs"] == {}


def test_lists_and_missing_inputs_reach_the_environment(mlflow_api: MlflowApi, pod: Pod) -> None:
    for each in (b"1", b"2"):
        stored(mlflow_api, pod, f"rows{each.decode()}", each)
        pod.input("parts", "rows", f"rows{each.decode()}")
    pod.fields["inputs"]["champion"] = []
    pod.fields["many"] = ["parts"]
    code = pod.run(
        """
        import airflow_ml_step, os
        assert [open(each).read() for each in os.environ["AIRFLOW_ML_INPUT_PARTS"].split()] == ["1", "2"]
        assert "AIRFLOW_ML_INPUT_CHAMPION" not in os.environ
        inputs = airflow_ml_step.load().inputs
        assert inputs["champion"] is None and [each.name for each in inputs["parts"]] == ["parts[0]", "parts[1]"]
        """
    )
    assert code == 0, pod.text
    assert sorted(pod.manifest(mlflow_api).read) == ["parts[0]", "parts[1]"]


def test_the_metadata_of_an_input_is_what_its_maker_set(mlflow_api: MlflowApi, pod: Pod) -> None:
    stored(mlflow_api, pod, "rows", b"1")
    stored(mlflow_api, pod, "rows.metadata.json", b'{"rows": 1}')
    stored(mlflow_api, pod, "scores.json", b'{"auc": "nan"}')
    pod.input("table", "rows", "rows", metadata=proxy(f"{pod.root}/rows.metadata.json"))
    pod.input("scores", "scores.json", "scores.json", type="Metrics")
    code = pod.run(
        """
        import airflow_ml_step
        inputs = airflow_ml_step.load().inputs
        assert inputs["table"].metadata == {"rows": 1} and str(inputs["scores"].metadata) == "{'auc': nan}"
        """
    )
    assert code == 0, pod.text
