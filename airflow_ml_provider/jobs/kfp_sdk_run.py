"""Running a pipeline by the SDK's local runner, in the SDK's interpreter; a part of :mod:`kfp_sdk_main`."""

from __future__ import annotations

import collections
import contextvars
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

EXECUTOR = "kfp.dsl.executor_main"
MARK = "_ML_COMPONENT_PROCESS"
"""Variable by which all that a component has started is told from what others have that run beside it."""
TAIL_LINES = 60
GRACE_S = 2.0
"""Seconds to read on after a component has ended, whose own processes may hold its output open."""
_SDK_LINE = re.compile(r"\[KFP Executor [^\]]* INFO\]: ")
_current: contextvars.ContextVar[Task | None] = contextvars.ContextVar("task", default=None)


class Task:
    """One task of the run, with what became of it."""

    def __init__(self, path: str, label: str) -> None:
        self.path = path
        self.label = label
        self.tries = 0
        self.began = time.monotonic()
        self.tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._in_input = False

    def of_the_sdk(self, line: str) -> bool:
        """
        Tell what the SDK itself says in each component, the whole of its input among it, from what the component says.

        :param line: The next line.
        :return: Whether it is the SDK's.
        """
        if self._in_input:
            self._in_input = line != "}"
            return True
        own = _SDK_LINE.match(line) is not None
        self._in_input = own and line.endswith("Got executor_input:")
        return own


class LocalRun:
    """
    One run: what is told of its tasks, and what is kept of their outputs.

    :param order: As :func:`work` takes it.
    :param events: Where to tell.
    """

    def __init__(self, order: Mapping[str, Any], events: Any) -> None:
        self.order = order
        self.events = events
        self.root = Path(order["folder"])
        self.tasks: dict[str, dict[str, Any]] = {}
        self.outputs: list[dict[str, Any]] = []
        self.running: set[int] = set()
        self._lock = threading.Lock()
        self._starting = threading.Lock()

    def begin(self, path: str, label: str) -> Task:
        """
        Note that a task starts.

        :param path: Its name, behind those of the groups that it is in.
        :param label: Its executor.
        :return: The task.
        """
        task = Task(path, label)
        _current.set(task)
        self._tell(task, "RUNNING")
        return task

    def end(self, task: Task, *, good: bool, outputs: Mapping[str, Any], definitions: Any, error: str = "") -> None:
        """
        Note that a task has ended.

        :param task: The task.
        :param good: Whether well.
        :param outputs: What it gave.
        :param definitions: Its component's definitions of them.
        :param error: What went wrong outside of the component; its own words are known.
        """
        told = error or ("" if good else "\n".join(task.tail))
        self.keep(outputs, definitions, task.path)
        self._tell(task, "SUCCEEDED" if good else "FAILED", told)

    def keep(self, outputs: Mapping[str, Any], definitions: Any, task: str = "") -> None:
        """
        Keep outputs, as plain JSON.

        :param outputs: Value or artifact per name.
        :param definitions: What the package says of them.
        :param task: Whose they are; empty for the pipeline.
        """
        found = [each for name, value in outputs.items() for each in _described(name, value, definitions)]
        with self._lock:
            self.outputs += [each | {"task": task} for each in found]

    def execute(self, command: list[str], variables: Mapping[str, str]) -> bool:
        """
        Run a component's function.

        :param command: As it was compiled, placeholders filled in.
        :param variables: More environment variables, of the task.
        :return: Whether it ended well.
        """
        task = _current.get()
        if task is None:
            raise RuntimeError("a component is run outside of a task")
        task.tries += 1
        if task.tries > 1:
            self.events.log(f"Task {task.path} is tried again ({task.tries}).")
        python = self.order["pythons"].get(task.label, sys.executable)
        folder = self.root / "tmp" / task.path
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        places = {"TMPDIR": str(folder), "PATH": f"{Path(python).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"}
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **places, **variables}
        code = self._wait(task, _without_installing(command, python), environment, folder)
        if code and not _tells_why(task.tail):
            task.tail.append(_ended(code))
            self.events.log(_ended(code), task.path, "error")
        return code == 0

    def _wait(self, task: Task, command: list[str], environment: dict[str, str], folder: Path) -> int:
        mark = uuid.uuid4().hex
        with self._starting:  # so that nothing is ended between its start and our knowing of it
            process = subprocess.Popen(  # noqa: S603  (what the user's pipeline runs)
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                env={**environment, MARK: mark},
                cwd=folder,
            )
            self.running.add(process.pid)
        with process:
            reader = threading.Thread(target=self._read, args=(task, process), daemon=True)
            reader.start()
            code = process.wait()
            reader.join(GRACE_S)
            self._end_rest_of(process.pid, mark)
            reader.join()
        return code

    def _end_rest_of(self, pid: int, mark: str) -> None:
        """End what a component has left behind, as a pod ends with its first process."""
        from kfp_sdk_main import end_marked, end_the_rest

        with self._starting:
            self.running.discard(pid)
            end_marked(f"{MARK}={mark}")
            if not self.running:
                end_the_rest()  # also what has taken off the mark; none that runs can miss it

    def _read(self, task: Task, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            text = line.rstrip()
            if own := not task.of_the_sdk(text):
                task.tail.append(text)
            self.events.log(text, task.path, "info" if own else "debug")

    def _tell(self, task: Task, state: str, error: str = "") -> None:
        told = {"name": task.path, "state": state, "error": error, "seconds": round(time.monotonic() - task.began, 3)}
        with self._lock:
            self.tasks[task.path] = told
        self.events.tell(event="task", **told)


def _tells_why(tail: Collection[str]) -> bool:
    """Say whether a component has said itself what is wrong: with a traceback."""
    return any(each.startswith("Traceback (most recent call last)") for each in tail)


def _ended(code: int) -> str:
    """Say how a component's process has ended; through a shell, a signal is 128 and its number."""
    number = -code if code < 0 else code - 128 if code > 128 else 0  # noqa: PLR2004  (the shell's)
    try:
        name = signal.Signals(number).name
    except ValueError:
        return f"Its process ended with exit code {code}, without a traceback."
    memory = ": perhaps for want of memory, see the kernel's log" if number == signal.SIGKILL else ""
    return f"Its process was ended by {name}{memory}."


def work(order: dict[str, Any], events: Any) -> dict[str, Any]:
    """
    Run a pipeline.

    :param order: ``spec`` (JSON of the package), ``arguments``, ``folder`` (its own), and ``pythons`` (interpreter per executor).
    :param events: Where to tell what happens.
    :return: ``state``, ``error``, ``tasks`` and ``outputs``.
    """
    from kfp_sdk_main import _sibling

    run = LocalRun(order, events)
    _sibling("kfp_sdk_values")
    spec = _sibling("kfp_sdk_fixes").prepare(run, order["spec"])
    from kfp.local import pipeline_orchestrator

    error = ""
    try:
        outputs = pipeline_orchestrator.run_local_pipeline(spec, order["arguments"])
        run.keep(outputs, spec.root.output_definitions)
    except Exception as problem:  # noqa: BLE001  (of a component, or of the SDK itself)
        failed = [each for each in run.tasks.values() if each["state"] == "FAILED"]
        error = "" if failed else f"{type(problem).__name__}: {problem}\n{traceback.format_exc()}"
        state = "FAILED"
    else:
        state = "SUCCEEDED"
    shutil.rmtree(run.root / "tmp", ignore_errors=True)
    tasks = list(run.tasks.values()) + [
        {"name": name, "state": "SKIPPED" if state == "SUCCEEDED" else "", "error": "", "seconds": 0.0}
        for name in spec.root.dag.tasks
        if not any(each == name or each.startswith((f"{name}/", f"{name}-iteration-")) for each in run.tasks)
    ]
    return {"state": state, "error": error, "tasks": tasks, "outputs": run.outputs}


def _without_installing(command: list[str], python: str) -> list[str]:
    """Take off the shell that installs packages: the interpreter has them. What the function gets is left as it is."""
    index = next(index for index, each in enumerate(command) if EXECUTOR in each)
    program = command[index].replace("python3", shlex.quote(python))
    return [*command[max(0, index - 2) : index], program, *command[index + 1 :]]


def _described(name: str, value: Any, definitions: Any) -> Iterator[dict[str, Any]]:
    if name in definitions.parameters:
        yield {"name": name, "kind": "parameter", "type": _type_name(definitions.parameters[name]), "value": value}
        return
    if not isinstance(value, list):
        yield _artifact(name, value)
        return
    for index, artifact in enumerate(value):
        yield _artifact(name, artifact) | {"loop": [index]}


def _artifact(name: str, artifact: Any) -> dict[str, Any]:
    path = str(getattr(artifact, "custom_path", "") or artifact.path or "")
    there = bool(path) and os.path.exists(path)  # noqa: PTH110  (a text, which may be no path)
    uri = Path(path).resolve().as_uri() if there else artifact.uri if "://" in str(artifact.uri) else ""
    kind = str(artifact.schema_title).removeprefix("system.")
    numbers = [each for each in artifact.metadata.values() if isinstance(each, int | float) and not isinstance(each, bool)]
    value = numbers[0] if kind == "Metrics" and len(numbers) == 1 else None
    described = {"name": name, "kind": "artifact", "type": kind, "uri": uri, "path": path if there else ""}
    return described | {"metadata": artifact.metadata, "value": value}


def _type_name(definition: Any) -> str:
    from kfp.pipeline_spec import pipeline_spec_pb2

    return str(pipeline_spec_pb2.ParameterType.ParameterTypeEnum.Name(definition.parameter_type))
