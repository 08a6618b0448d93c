"""What servers do to the container's half: they are away, break off, answer late, or are not what was meant."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from airflow_ml_provider.models.pod_step import StepPlace
from tests.step.pods import PYTHON, Pod, answer, serving


class Faulty:
    """Answers artifacts from memory; each path in ``faults`` first as told there."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.faults: dict[str, list[Callable[[BaseHTTPRequestHandler], None]]] = {}
        self.asked: list[tuple[str, str, dict[str, str]]] = []

    def __call__(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        name = handler.path.partition("?")[0].rpartition("/")[2]
        self.asked.append((handler.command, name, dict(handler.headers)))
        if self.faults.get(name):
            self.faults[name].pop(0)(handler)
        elif handler.command == "GET" and name in self.files:
            answer(handler, 200, self.files[name])
        else:
            self.files[name] = body
            answer(handler, 200)

    def attempts(self, name: str) -> int:
        return sum(each == name for _, each, _ in self.asked)


@pytest.mark.parametrize(
    "fault",
    [
        lambda handler: answer(handler, 503, b"away"),
        lambda handler: answer(handler, 429, b"slowly"),
        lambda handler: answer(handler, 200, b"ro", length=4),
        lambda handler: handler.connection.close(),
    ],
    ids=["503", "429", "cut", "closed"],
)
def test_a_fault_that_passes_is_asked_again(new_pod: Callable[..., Pod], fault: Callable[[BaseHTTPRequestHandler], None]) -> None:
    faulty = Faulty()
    faulty.files["rows"] = b"rows"
    faulty.faults = {"rows": [fault], "table": [lambda handler: answer(handler, 503)]}
    with serving(faulty) as url:
        pod = new_pod("faulty", url)
        pod.fields["patience_s"] = 20
        rows = pod.input("rows", "rows", "rows", directory=False)
        table = pod.output("table", "Dataset")
        assert pod.end(pod.start("run", "--", "cp", str(rows), str(table))) == 0, pod.text
    assert (faulty.files["table"], faulty.attempts("rows"), faulty.attempts("table")) == (b"rows", 2, 2)


def test_a_login_page_is_not_taken_for_a_store(new_pod: Callable[..., Pod]) -> None:
    faulty = Faulty()
    faulty.faults = {"table": [lambda handler: answer(handler, 200, b"<html>Sign in")]}
    with serving(faulty) as url:
        pod = new_pod("login", url)
        assert pod.end(pod.start("run", "--", "touch", str(pod.output("table", "Dataset")))) == 64
    assert "a login page answered" in pod.message.error


def test_credentials_go_nowhere_else(new_pod: Callable[..., Pod]) -> None:
    def redirect(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(302)
        handler.send_header("Location", f"{elsewhere}/stolen")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    thief, faulty = Faulty(), Faulty()
    faulty.faults = {"rows": [redirect]}
    with serving(thief) as elsewhere, serving(faulty) as url:
        pod = new_pod("redirected", url)
        with_credentials(pod, token="secret")
        pod.input("rows", "rows", "rows", directory=False)
        assert pod.run("pass") == 64
    assert (thief.asked, "answered 302" in pod.message.error) == ([], True)


def with_credentials(pod: Pod, **secrets: str) -> Path:
    folder = pod.folder / "credentials"
    folder.mkdir()
    for name, value in secrets.items():
        (folder / name).write_text(value + "\n")
    pod.fields["mlflow"] = pod.fields["mlflow"].model_copy(update={"credentials": str(folder), "workspace": "team"})
    return folder


def test_a_token_that_was_renewed_is_used_at_once(new_pod: Callable[..., Pod]) -> None:
    faulty = Faulty()
    faulty.files["rows"] = b"rows"
    with serving(faulty) as url:
        pod = new_pod("token", url)
        folder = with_credentials(pod, token="old")
        rows, table = pod.input("rows", "rows", "rows", directory=False), pod.output("table", "Dataset")
        program = f"test $MLFLOW_TRACKING_TOKEN = old && echo new > {folder}/token && cp {rows} {table}"
        assert pod.end(pod.start("run", "--", "sh", "-c", program)) == 0, pod.text
    sent = {name: headers for _, name, headers in faulty.asked}
    assert [sent[name]["Authorization"] for name in ("rows", "table")] == ["Bearer old", "Bearer new"]
    assert sent["table"]["X-MLFLOW-WORKSPACE".title()] == "team"
    assert "new" not in pod.text


def test_a_user_and_a_password_are_basic_authentication(new_pod: Callable[..., Pod]) -> None:
    faulty = Faulty()
    with serving(faulty) as url:
        pod = new_pod("basic", url)
        with_credentials(pod, username="jo", password="ü:x")
        assert pod.end(pod.start("run", "--", "sh", "-c", "test $MLFLOW_TRACKING_USERNAME$MLFLOW_TRACKING_PASSWORD = joü:x")) == 0
    assert base64.b64decode(faulty.asked[0][2]["Authorization"].partition(" ")[2]).decode() == "jo:ü:x"


def test_a_secret_without_its_keys_is_told(new_pod: Callable[..., Pod]) -> None:
    with serving(Faulty()) as url:
        pod = new_pod("empty", url)
        with_credentials(pod, user="jo")
        assert pod.run("pass") == 64
    assert "holds neither 'token' nor 'username'" in pod.message.error


def test_presigned_urls_carry_files_and_are_never_told(new_pod: Callable[..., Pod]) -> None:
    faulty = Faulty()
    faulty.files["given"] = b"rows"
    faulty.faults = {"refused": [lambda handler: answer(handler, 403, b"expired")]}
    with serving(faulty) as url:
        pod = new_pod("presigned", url)
        place = StepPlace(kind="url", url=f"{url}/given?signature=secret")
        rows, table = pod.input("rows", "rows", "rows", place=place), pod.output("table", "Dataset")
        made = pod.fields["outputs"]["table"]
        pod.fields["outputs"]["table"] = made.model_copy(
            update={"place": StepPlace(kind="url", url=f"{url}/made?signature=secret")}
        )
        assert pod.end(pod.start("run", "--", "cp", str(rows), str(table))) == 0, pod.text
        assert faulty.files["made"] == b"rows"
        pod.fields["outputs"]["table"] = made.model_copy(
            update={"place": StepPlace(kind="url", url=f"{url}/refused?signature=secret")}
        )
        (pod.volume / "step/notes/table.stored.json").unlink()
        assert pod.run("pass") == 64
    assert "/refused answered 403: expired" in pod.message.error
    assert "secret" not in pod.text + pod.log.read_text()


def test_a_listing_that_climbs_out_of_its_folder_is_refused(new_pod: Callable[..., Pod]) -> None:
    faulty = Faulty()
    faulty.files["artifacts"] = b'{"files": [{"path": "../../etc/passwd"}]}'
    with serving(faulty) as url:
        pod = new_pod("climbing", url)
        pod.input("rows", "rows", "rows")
        assert pod.run("pass") == 65
    assert "'../../etc/passwd', which would be written outside" in pod.message.error


def test_a_store_that_the_image_has_no_package_for_is_told(pod: Pod) -> None:
    place = StepPlace(kind="fsspec", uri="s3://bucket/x")
    pod.input("rows", "rows", "rows", place=place)
    pod.environment["PYTHONPATH"] = str(pod.folder)
    (pod.folder / "fsspec.py").write_text("raise ImportError('no fsspec here')")
    assert pod.run("pass") == 64
    assert "s3://bucket needs the package 'fsspec' in the image: no fsspec here" in pod.message.error


@pytest.mark.parametrize("kind", ["fsspec", "mlflow"])
def test_a_package_of_the_image_opens_other_stores(pod: Pod, kind: str) -> None:
    store = pod.folder / "store"
    (store / "given/deep").mkdir(parents=True)
    (store / "given/deep/1").write_text("1")
    (store / "given/2").write_text("22")
    uri = f"file://{store}"
    given = pod.input("folder", "given", "given", place=StepPlace(kind=kind, uri=f"{uri}/given"))
    made = pod.output("made", "Dataset")
    place = StepPlace(kind=kind, uri=f"{uri}/outputs")
    pod.fields["outputs"]["made"] = pod.fields["outputs"]["made"].model_copy(update={"place": place})
    pod.fields["manifest"] = StepPlace(kind=kind, uri=f"{uri}/manifest.json")
    assert pod.end(pod.start("run", "--", "cp", "-r", str(given), str(made))) == 0, pod.text
    assert (store / "outputs/made/deep/1").read_text() + (store / "outputs/made/2").read_text() == "122"
    assert (store / "manifest.json").is_file()
    pod.input("gone", "gone", "gone", directory=False, place=StepPlace(kind=kind, uri=f"{uri}/gone"))
    assert pod.end(pod.start("run", "--", "true")) == 65, pod.text


def test_a_file_larger_than_the_memory_goes_through(new_pod: Callable[..., Pod]) -> None:
    size = 600 << 20
    got: list[int] = []

    def sink(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        got.append(int(handler.headers["Content-Length"]))
        answer(handler, 200)

    with serving(sink) as url:
        pod = new_pod("large", url)
        table = pod.output("table", "Dataset")
        limited = ["sh", "-c", 'ulimit -v 300000; exec "$@"', "sh"]
        program = f"open({str(table)!r}, 'wb').truncate({size})"
        process = pod.start("run", "--", PYTHON, "-c", program, prefix=limited)
        assert pod.end(process) == 0, pod.text
        tight = subprocess.run([*limited, PYTHON, "-c", f"b'x' * {size}"], capture_output=True, check=False)
        assert b"MemoryError" in tight.stderr, "the limit is one"
    assert size in got
