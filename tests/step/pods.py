"""A container without a container: the step's file in a real process, with a folder in place of the pod's volume."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from airflow_ml_provider import step
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.pod_step import (
    StepContext,
    StepFunction,
    StepInput,
    StepManifest,
    StepMessage,
    StepMlflow,
    StepOutput,
    StepPlace,
)

PYTHON = os.environ.get("AIRFLOW_ML_STEP_PYTHON", sys.executable)
"""Interpreter of the "image": another version is tried with this variable."""
FILE = Path(step.__file__).parent / "airflow_ml_step.py"


def proxy(path: str) -> StepPlace:
    """A place behind MLflow's artifact proxy."""
    return StepPlace(kind="proxy", path=path)


class Pod:
    """
    One pod of a step.

    :param folder: Its volume, and its termination log beside it.
    :param url: MLflow, or what stands for it.
    :param run_id: The nested run.
    :param root: Path of the run's artifacts behind the proxy.
    """

    def __init__(self, folder: Path, url: str, run_id: str, root: str) -> None:
        self.folder, self.root = folder, root
        self.volume, self.log = folder / "volume", folder / "termination-log"
        folder.mkdir(parents=True, exist_ok=True)
        self.fields: dict[str, Any] = {
            "step": "train",
            "try_number": 1,
            "mlflow": StepMlflow(url=url, run_id=run_id),
            "folder": str(self.volume),
            "manifest": proxy(f"{root}/try-1/manifest.json"),
            "metadata": proxy(f"{root}/try-1"),
            "patience_s": 1,
        }
        self.environment = {"PATH": os.environ["PATH"], "AIRFLOW_ML_TERMINATION_LOG": str(self.log)}
        self.text = ""

    def output(self, name: str, kind: str, *, flat: bool = False) -> Path:
        """Declare an output; returns where the program writes it."""
        path = self.volume / "outputs" / name / name
        place = proxy(f"{self.root}/models/{name}" if flat else f"{self.root}/try-1")
        self.fields.setdefault("outputs", {})[name] = StepOutput(type=kind, path=str(path), place=place, flat=flat)
        return path

    def input(self, name: str, file: str, path: str, **fields: Any) -> Path:
        """Declare an input; returns where the program finds it."""
        inputs = self.fields.setdefault("inputs", {}).setdefault(name, [])
        local = self.volume / "inputs" / name / str(len(inputs)) / file
        given = {"type": "Dataset", "uri": f"runs:/x/{path}", "path": str(local), "place": proxy(f"{self.root}/{path}"), **fields}
        inputs.append(StepInput(**given))
        return local

    def function(self, source: str, roles: dict[str, Any], **fields: Any) -> None:
        """Ship a function named ``train``."""
        self.fields["function"] = StepFunction(name="train", source=textwrap.dedent(source), roles=roles, **fields)

    def start(self, *arguments: str, injected: bool = False, prefix: list[str] | None = None) -> subprocess.Popen[str]:
        """Start the container's half."""
        variables = {**self.environment, "AIRFLOW_ML_CONTEXT": StepContext(**self.fields).model_dump_json()}
        command = [PYTHON, str(FILE), *arguments]
        if injected:
            variables[step.VARIABLE] = step.packed()
            command = [PYTHON, "-c", step.BOOT, *arguments]
        # In a file: a program that outlives the step would keep a pipe open.
        with (self.folder / "log").open("w") as log:
            return subprocess.Popen([*(prefix or []), *command], env=variables, text=True, stdout=log, stderr=log)

    def end(self, process: subprocess.Popen[str]) -> int:
        """Wait for its end."""
        code = process.wait(timeout=60)
        self.text = (self.folder / "log").read_text()
        return code

    def run(self, program: str = "", *, injected: bool = False) -> int:
        """Run a Python program in it, or the shipped function."""
        command = [PYTHON, "-c", textwrap.dedent(program)] if program else []
        return self.end(self.start("run", "--", *command, injected=injected))

    def await_file(self, name: str, process: subprocess.Popen[str]) -> Path:
        """Wait until the program has written a file in the volume."""
        file = self.volume / name
        while not file.exists():
            assert process.poll() is None, (self.folder / "log").read_text()
            threading.Event().wait(0.02)
        return file

    @property
    def message(self) -> StepMessage:
        """The termination message."""
        found = StepMessage.find(self.log.read_text())
        assert found is not None
        return found

    def read(self, api: MlflowApi, path: str) -> bytes:
        """Read a file of the run's artifacts."""
        with api.download(f"{self.root}/{path}") as pieces:
            return b"".join(pieces)

    def manifest(self, api: MlflowApi) -> StepManifest:
        """The manifest in MLflow."""
        return StepManifest.read_text(self.read(api, f"try-{self.fields['try_number']}/manifest.json"))


Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"{}", *, length: int | None = None) -> None:
    """Send one answer; with a ``length`` that is not the body's, it breaks off."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body) if length is None else length))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving(script: Answer) -> Iterator[str]:
    """A server that answers as told; the script gets the handler and the request's body, read in pieces and cut to 1 MB."""

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            left, body = int(self.headers.get("Content-Length") or 0), b""
            while left:
                piece = self.rfile.read(min(left, 1 << 20))
                if not piece:
                    break
                left -= len(piece)
                body = body or piece
            script(self, body)

        do_GET = do_PUT = do_POST = do_DELETE = _do  # noqa: N815  (http.server's names)

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def lines(*values: Any) -> str:
    """Lines of JSON, as a program without Python would append them."""
    return "".join(json.dumps(each) + "\n" for each in values)
