"""
The half that runs in the SDK's interpreter: ``python -I kfp_sdk_main.py order.json``. Standard library and kfp only.

It is started by path, never imported by the rest of this package. The order says what to do (``compile`` or ``run``), and where
to write the answer. What happens meanwhile goes to standard output, a line each: JSON behind ``MARK``; what has no mark is text
for the log. Standard input is a lifeline: when it ends, the worker has died, and everything here ends with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import json
import logging
import os
import signal
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

MARK = "\x1e"
"""Before each event, as in JSON text sequences (RFC 7464)."""
LONGEST_LINE = 20_000
"""Characters of one line of a log; the rest of it is dropped."""
SUBREAPER = 36
"""``PR_SET_CHILD_SUBREAPER`` of prctl: what a component leaves behind becomes our child, and is found again."""


class Events:
    """Says what happens, for the worker."""

    def __init__(self) -> None:
        self._out = os.dup(1)
        self._lock = threading.Lock()

    def tell(self, **event: Any) -> None:
        """
        Write one event.

        :param event: JSON values by name.
        """
        line = memoryview((MARK + json.dumps(event) + "\n").encode())
        with self._lock:
            while line:
                line = line[os.write(self._out, line) :]

    def log(self, text: str, task: str = "", level: str = "info") -> None:
        """
        Write a line for the log.

        :param text: The line.
        :param task: Task that has said it; empty for none.
        :param level: ``debug``, ``info``, ``warning`` or ``error``.
        """
        self.tell(event="log", text=text[:LONGEST_LINE], task=task, level=level)


class _Lines(io.TextIOBase):
    """In place of ``sys.stdout``: what the user's file prints while it is read is for the log."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._rest = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._events.log(line)
        return len(text)

    def close(self) -> None:
        if self._rest:
            self.write("\n")
        super().close()


class _Handler(logging.Handler):
    """Takes what the SDK warns of into the log."""

    def __init__(self, events: Events) -> None:
        super().__init__(logging.WARNING)
        self._events = events

    def emit(self, record: logging.LogRecord) -> None:
        if record.module == "task_dispatcher":  # that a task has failed is told, and why
            return
        level = "error" if record.levelno >= logging.ERROR else "warning"
        self._events.log(f"kfp: {record.getMessage()}", level=level)


def main() -> int:
    """
    Do what the order says.

    :return: Exit status: 0 when there is an answer, be it that the pipeline has failed.
    """
    events = Events()
    _hold_together()
    order = json.loads(Path(sys.argv[1]).read_text())
    logging.basicConfig(handlers=[_Handler(events)], level=logging.WARNING, force=True)
    with contextlib.closing(_Lines(events)) as lines, contextlib.redirect_stdout(lines):
        try:
            answer = _sibling(f"kfp_sdk_{order['do']}").work(order, events)
        except Exception as error:  # noqa: BLE001  (the worker says it, whatever it is)
            answer = {"error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    end_the_rest()
    new = Path(order["answer"] + ".new")
    new.write_text(json.dumps(answer))
    new.rename(order["answer"])
    return 0


def end_the_rest() -> None:
    """End the processes that we have started, and that they have started, in whatever session."""
    _end([os.getpid()], spared=os.getpid())


def end_marked(variable: str) -> None:
    """
    End the processes that have a variable in their environment, and that they have started, whoever their parent is by now.

    :param variable: Name, ``=`` and value.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError, ValueError):  # of another user, or gone
            if variable.encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    _end(found)


def _end(todo: list[int], spared: int = 0) -> None:
    """End processes with all that they have started."""
    children, ended = _children(), {spared}
    while todo:
        pid = todo.pop()
        todo += children.pop(pid, [])
        if pid not in ended:
            ended.add(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


def _hold_together() -> None:
    """Live no longer than the worker, and let nothing that we start live longer than we do."""
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
    threading.Thread(target=_wait_for_the_end, daemon=True).start()


def _wait_for_the_end() -> None:
    while os.read(0, 1):
        pass
    end_the_rest()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _children() -> dict[int, list[int]]:
    """List the children of each process; empty where there is no ``/proc``."""
    found: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parent = int(entry.read_text(errors="replace").rpartition(")")[2].split()[1])
            found.setdefault(parent, []).append(int(entry.parent.name))
    return found


def _sibling(name: str) -> Any:
    """Load a file beside this one, whose folder is not on the path: a module there is named ``kfp`` too."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    sys.modules["kfp_sdk_main"] = sys.modules["__main__"]
    sys.exit(main())
