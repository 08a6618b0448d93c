"""Fetching packages: from beside the DAG, from a real HTTP server, and through Airflow's object storage."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from airflow_ml_provider.core.kfp_archive import MAX_BYTES
from airflow_ml_provider.core.kfp_package import read_package
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError, UnauthorizedError
from airflow_ml_provider.jobs import kfp_source
from airflow_ml_provider.jobs.kfp_source import fetch_package, is_package, pipeline_and_version

CONTENT = b"pipelineInfo: {name: churn}\n" * 100


class Handler(BaseHTTPRequestHandler):
    """Answers by path: ``/status/404``, ``/huge``, ``/endless``, ``/short``, ``/drip``, ``/loop``, ``/moved``, anything else: the content."""

    def do_GET(self) -> None:
        name, _, rest = self.path.split("?")[0].strip("/").partition("/")
        answers: dict[str, Callable[[str], None]] = {
            "status": self.answer_status, "huge": self.answer_huge, "endless": self.answer_endless, "short": self.answer_short,
            "drip": self.answer_drip, "loop": self.answer_loop, "moved": self.answer_moved, "elsewhere": self.answer_elsewhere,
        }  # fmt: skip
        answers.get(name, self.answer_content)(rest)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def answer_content(self, _: str) -> None:
        self.server.encodings = self.headers["Accept-Encoding"]  # type: ignore[attr-defined]
        self.head(200, Content_Length=len(CONTENT))
        self.wfile.write(CONTENT)

    def answer_status(self, status: str) -> None:
        self.head(int(status), Content_Length=4)
        self.wfile.write(b"oops")

    def answer_huge(self, _: str) -> None:
        self.head(200, Content_Length=MAX_BYTES + 1)

    def answer_endless(self, _: str) -> None:
        self.head(200)
        self.server.sent = 0  # type: ignore[attr-defined]
        try:
            while True:
                self.server.sent += self.wfile.write(bytes(1 << 20))  # type: ignore[attr-defined]
        except OSError:
            pass

    def answer_short(self, _: str) -> None:
        self.head(200, Content_Length=1000)
        self.wfile.write(b"too short")

    def answer_drip(self, _: str) -> None:
        self.head(200)
        try:
            while not self.server.stopping.wait(0.02):  # type: ignore[attr-defined]
                self.wfile.write(b"#")
        except OSError:
            pass

    def answer_loop(self, _: str) -> None:
        self.head(302, Location="/loop", Content_Length=0)

    def answer_moved(self, _: str) -> None:
        self.head(301, Location="/pipeline.yaml", Content_Length=0)

    def answer_elsewhere(self, _: str) -> None:
        self.head(302, Location="file:///etc/passwd", Content_Length=0)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.stopping = threading.Event()  # type: ignore[attr-defined]
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.stopping.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def url(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


class TestWhatIsAPackage:
    @pytest.mark.parametrize(
        "text",
        [
            "pipelines/churn.yaml", "churn.yml", "/abs/churn.json", "churn.zip", "churn.tar.gz", "churn.tgz", "CHURN.YAML", "churn.py",
            "https://host.example/churn", "s3://aws@bucket/churn", "file:///churn.yaml",
            "pipelines/churn.py:churn", "/abs/churn.py:_churn2", "package.module:churn",
        ],
    )  # fmt: skip
    def test_files_and_addresses_are(self, text: str) -> None:
        assert is_package(text)

    @pytest.mark.parametrize(
        "text",
        [
            "churn",
            "churn@v2",
            "team/churn",
            "churn.yaml@v1",
            "Bad Name/with:chars \u00e9",
            "yaml",
            "",
            "churn:churn",
            "a.b:c d",
            "x.py:",
        ],
    )
    def test_names_of_registered_pipelines_are_not(self, text: str) -> None:
        assert not is_package(text)

    @pytest.mark.parametrize(
        ("text", "parts"),
        [
            ("churn", ("churn", None)), ("churn@v2", ("churn", "v2")), ("churn.yaml@v1", ("churn.yaml", "v1")),
            ("me@team@v1", ("me@team", "v1")), ("a b/c:d@1.0 (new)", ("a b/c:d", "1.0 (new)")),
        ],
    )  # fmt: skip
    def test_a_name_comes_with_or_without_a_version(self, text: str, parts: tuple[str, str | None]) -> None:
        assert pipeline_and_version(text) == parts

    @pytest.mark.parametrize("text", ["", "@", "@v1", "churn@"])
    def test_half_a_name_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="Write name or name@version"):
            pipeline_and_version(text)


class TestFiles:
    def test_a_relative_path_is_looked_up_beside_the_dag(self, tmp_path: Path) -> None:
        (tmp_path / "pipelines").mkdir()
        (tmp_path / "pipelines" / "churn.yaml").write_bytes(CONTENT)
        (tmp_path / "dag.py").touch()
        for beside in (tmp_path, tmp_path / "dag.py"):
            assert fetch_package("pipelines/churn.yaml", relative_to=beside) == CONTENT
        assert fetch_package(str(tmp_path / "pipelines" / "churn.yaml"), relative_to=None) == CONTENT

    def test_without_a_dag_a_relative_path_is_refused_and_not_looked_up_anywhere(self) -> None:
        with pytest.raises(ConfigError, match="there is no DAG file to look beside"):
            fetch_package("pyproject.toml", relative_to=None)

    @pytest.mark.parametrize(
        ("path", "said"),
        [
            ("absent.yaml", "is not there"), (".", "is a folder"), ("/dev/zero", "is a folder or a device"), ("a\0b", "is not there"),
            ("x" * 5000, r"cannot be read: .*File name too long"), ("dag.py/churn.yaml", "is not there"),
        ],
    )  # fmt: skip
    def test_what_is_no_file_is_told_with_the_place_that_was_looked_at(self, tmp_path: Path, path: str, said: str) -> None:
        (tmp_path / "dag.py").touch()
        with pytest.raises(ConfigError, match=said) as caught:
            fetch_package(path, relative_to=tmp_path)
        assert len(str(caught.value)) < 6000

    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.yaml")
        with pytest.raises(ConfigError, match="not a file"):
            fetch_package("pipe.yaml", relative_to=tmp_path)

    def test_a_file_beyond_the_limit_is_not_read_to_its_end(self, tmp_path: Path) -> None:
        with (tmp_path / "huge.yaml").open("wb") as out:
            out.truncate(1 << 40)  # a terabyte of nothing takes no room
        with pytest.raises(ConfigError, match=r"is larger than 33554432 bytes \(32 MiB\)"):
            fetch_package("huge.yaml", relative_to=tmp_path)


class TestAddresses:
    def test_the_bytes_come_as_they_are(self, url: str, server: ThreadingHTTPServer) -> None:
        assert fetch_package(f"{url}/pipeline.yaml", relative_to=None) == CONTENT
        assert server.encodings == "identity", "a .tar.gz is not to be unpacked on the way"  # type: ignore[attr-defined]

    def test_a_redirect_is_followed(self, url: str) -> None:
        assert fetch_package(f"{url}/moved", relative_to=None) == CONTENT

    @pytest.mark.parametrize("path", ["loop", "elsewhere"])
    def test_a_redirect_in_circles_or_to_another_scheme_is_refused(self, url: str, path: str) -> None:
        with pytest.raises(ConfigError, match=r"cannot be fetched: .* Correct the address"):
            fetch_package(f"{url}/{path}", relative_to=None)

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, ConfigError), (401, UnauthorizedError), (403, ConfigError), (404, RemoteNotFoundError), (410, RemoteNotFoundError),
            (408, RemoteUnavailableError), (418, ConfigError), (429, RemoteUnavailableError), (500, RemoteUnavailableError),
            (502, RemoteUnavailableError), (503, RemoteUnavailableError), (599, RemoteUnavailableError), (304, ConfigError),
        ],
    )  # fmt: skip
    def test_each_status_is_told_by_its_remedy(self, url: str, status: int, error: type[Exception]) -> None:
        with pytest.raises(error, match=rf"/status/{status} was answered with {status}") as caught:
            fetch_package(f"{url}/status/{status}", relative_to=None)
        assert type(caught.value) is error
        assert caught.value.status == status  # type: ignore[attr-defined]

    def test_a_size_beyond_the_limit_is_believed(self, url: str) -> None:
        with pytest.raises(ConfigError, match="is larger than 33554432 bytes"):
            fetch_package(f"{url}/huge", relative_to=None)

    def test_an_answer_without_end_is_given_up_at_the_limit(self, url: str, server: ThreadingHTTPServer) -> None:
        with pytest.raises(ConfigError, match="is larger than 33554432 bytes"):
            fetch_package(f"{url}/endless", relative_to=None)
        assert server.sent < 2 * MAX_BYTES  # type: ignore[attr-defined]

    def test_an_answer_that_breaks_off_is_safe_to_retry(self, url: str) -> None:
        with pytest.raises(RemoteUnavailableError, match="did not answer: RemoteProtocolError"):
            fetch_package(f"{url}/short", relative_to=None)

    def test_an_answer_that_drips_is_given_up_when_its_time_is_over(self, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kfp_source, "TOTAL_TIMEOUT_S", 0.2)
        with pytest.raises(RemoteUnavailableError, match="was not here after 0 s"):
            fetch_package(f"{url}/drip", relative_to=None)

    def test_a_server_that_says_nothing_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kfp_source, "READ_TIMEOUT_S", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(RemoteUnavailableError, match="ReadTimeout"):
            fetch_package(f"http://127.0.0.1:{silent.getsockname()[1]}/p.yaml", relative_to=None)

    @pytest.mark.parametrize("host", ["127.0.0.1:1", "no-such-host.invalid"])
    def test_a_server_that_is_not_there_is_safe_to_retry(self, host: str) -> None:
        with pytest.raises(RemoteUnavailableError, match="did not answer: ConnectError"):
            fetch_package(f"http://{host}/p.yaml", relative_to=None)

    @pytest.mark.parametrize("address", ["http://", "http://host:port/p.yaml", "https://[broken/p.yaml"])
    def test_what_is_no_address_is_refused(self, address: str) -> None:
        with pytest.raises(ConfigError):
            fetch_package(address, relative_to=None)

    def test_no_password_or_token_of_an_address_is_told(self, url: str) -> None:
        address = url.replace("//", "//user:hunter2@") + "/status/500?token=hunter2"
        with pytest.raises(RemoteUnavailableError) as caught:
            fetch_package(address, relative_to=None)
        assert "hunter2" not in str(caught.value)


class TestObjectStorage:
    def test_airflow_opens_what_it_has_a_provider_for(self, tmp_path: Path) -> None:
        (tmp_path / "churn.yaml").write_bytes(CONTENT)
        assert fetch_package(f"file://{tmp_path}/churn.yaml", relative_to=None) == CONTENT

    @pytest.mark.parametrize("name", ["absent.yaml", ""])
    def test_what_is_not_there_is_told_so(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(RemoteNotFoundError, match="there is no package file://"):
            fetch_package(f"file://{tmp_path}/{name}", relative_to=None)

    def test_an_object_beyond_the_limit_is_not_read(self, tmp_path: Path) -> None:
        with (tmp_path / "huge.yaml").open("wb") as out:
            out.truncate(1 << 40)
        with pytest.raises(ConfigError, match="is larger than"):
            fetch_package(f"file://{tmp_path}/huge.yaml", relative_to=None)

    @pytest.mark.parametrize(
        ("uri", "package"),
        [
            ("s3://bucket/p.yaml", r"apache-airflow-providers-amazon\[s3fs\]"),
            ("nosuch://bucket/p.yaml", "the Airflow provider of that"),
        ],
    )
    def test_a_scheme_without_a_provider_names_what_to_install(self, uri: str, package: str) -> None:
        with pytest.raises(ConfigError, match=rf"{uri} cannot be opened: .* Install {package}"):
            fetch_package(uri, relative_to=None)


class TestFunctions:
    """What is compiled on the way; what the compiler says is in tests/cli/test_kfp.py."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        text = (
            "from kfp import dsl\n\n\n@dsl.component(base_image='python:3.11')\ndef add(a: int) -> int:\n    return a\n\n\n"
            "@dsl.pipeline\ndef adds(a: int) -> int:\n    return add(a=a).output\n"
        )
        (tmp_path / "dags" / "team").mkdir(parents=True)
        (tmp_path / "dags" / "team" / "pipelines.py").write_text(text)
        (tmp_path / "dags" / "dag.py").touch()
        return tmp_path / "dags"

    @pytest.mark.parametrize("source", ["team/pipelines.py:adds", "team/pipelines.py", "team.pipelines:adds"])
    def test_are_found_beside_the_dag_file_and_compiled(self, folder: Path, source: str) -> None:
        compiled = read_package(fetch_package(source, relative_to=folder / "dag.py"), source=source)
        assert (compiled.name, set(compiled.parameters)) == ("adds", {"a"})

    @pytest.mark.parametrize(
        ("source", "relative", "said"),
        [
            ("team/none.py:adds", True, "the pipeline file 'team/none.py' is not there (looked for "),
            ("team/pipelines.py:adds", False, "is relative, and there is no DAG file to look beside"),
            ("team.none:adds", True, "there is no module 'team.none' beside the DAG file"),
            ("team.pipelines:subtracts", True, "has no 'subtracts'. Decorate it with @dsl.pipeline. Its pipelines are: adds."),
            ("team.pipelines:dsl", True, "has no pipeline, but a plain 'dsl'. Decorate it with @dsl.pipeline."),
        ],
    )
    def test_that_are_not_there_are_said(self, folder: Path, source: str, relative: bool, said: str) -> None:
        with pytest.raises(ConfigError) as caught:
            fetch_package(source, relative_to=folder if relative else None)
        assert said in str(caught.value)

    def test_a_python_file_at_an_address_is_refused_not_run(self, url: str) -> None:
        source = f"{url}/churn.py"
        assert fetch_package(source, relative_to=None) == CONTENT
        with pytest.raises(ConfigError, match="is Python, not what was compiled from it"):
            read_package(b"# a comment\nfrom kfp import dsl\n", source=source)
