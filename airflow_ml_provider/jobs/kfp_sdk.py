"""
The worker's side of the SDK's interpreter: it gives an order, follows what is told, and reads the answer.

The other side is ``kfp_sdk_main.py`` with the files that it loads, ``kfp_sdk_compile``, ``_run``, ``_fixes`` and ``_values``: the
SDK's interpreter runs them by path, and nothing in this package imports them.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from airflow_ml_provider.config import Settings, load_settings
from airflow_ml_provider.hooks.kfp_interpreter import KfpInterpreter
from airflow_ml_provider.interpreters import TAIL_LINES, ChildProcess, mask_logins

log = logging.getLogger(__name__)

HALF = Path(__file__).with_name("kfp_sdk_main.py")
MARK = "\x1e"
"""Before each event that the other half tells of; what has none is text for the log."""
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

Event = Callable[[Mapping[str, Any]], None]


class KfpSdk:
    """
    The SDK, in its interpreter.

    :param settings: Where the interpreter is kept and what it has; None reads the section ``[ml]``.
    :param child: Runs it; kill it to end whatever is under way, with all that was started.
    """

    def __init__(self, settings: Settings | None = None, child: ChildProcess | None = None) -> None:
        self.settings = settings or load_settings()
        self.child = child or ChildProcess()
        self.interpreter = KfpInterpreter(self.settings, self.child)

    def ask(self, order: Mapping[str, Any], on_event: Event | None = None) -> tuple[dict[str, Any], int, str]:
        """
        Have an order carried out; what the user's code says goes to the log.

        :param order: JSON, with ``do``.
        :param on_event: Called with each event that is no line for the log.
        :return: The answer, empty when there is none; the exit status; the last lines that were said.
        :raises RemoteUnavailableError: the interpreter could not be made; a retry is safe.
        :raises ConfigError: it cannot be kept where ``[ml] interpreters`` says; a retry never helps.
        """
        python = self.interpreter.python()
        follow = Follower(on_event or (lambda _: None))
        with tempfile.TemporaryDirectory(prefix="airflow-ml-kfp-") as name:
            file, answer = Path(name) / "order.json", Path(name) / "answer.json"
            file.write_text(json.dumps({**order, "answer": str(answer)}))
            command = [str(python), "-I", str(HALF), str(file)]
            code, _ = self.child.run(command, cwd=Path(name), on_line=follow.line, lifeline=True)
            said: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
        return said, code, "\n".join(follow.tail)


class Follower:
    """
    Reads what the other half tells, line by line.

    :param on_event: Called with each event that is no line for the log.
    """

    def __init__(self, on_event: Event) -> None:
        self.tail: list[str] = []
        self._on_event = on_event

    def line(self, line: str) -> None:
        """
        Take one line.

        :param line: Without its end.
        """
        text, _, event = line.partition(MARK)
        told = _read(event)
        if text or (event and not told):
            self._log({"text": text or event})
        if told:
            (self._log if told.get("event") == "log" else self._on_event)(told)

    def _log(self, told: Mapping[str, Any]) -> None:
        task, text = str(told.get("task") or ""), mask_logins(str(told.get("text") or ""))
        self.tail = [*self.tail[1 - TAIL_LINES :], text]
        log.log(LEVELS.get(str(told.get("level")), logging.INFO), "%s%s", f"[{task}] " if task else "", text)


def _read(event: str) -> dict[str, Any]:
    """Read an event; what a native library wrote in the middle of one makes it a text."""
    try:
        told = json.loads(event) if event else {}
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
