"""
What a stack leaves on disk about itself, so that the next one can tell whether it is still there.

One file with the processes and ports, one lock. No decision about what to start.
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from demo.errors import DemoError
from demo.processes import ProcessId, family, stop

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["StackState", "StateFolder"]

VERSION = 1


@dataclass
class StackState:
    """
    The processes and ports of one run of the stack.

    :param token: Random text that tells this run from the ones before it in the same folder.
    :param processes: First process of each component, by the component's name.
    :param ports: Port of each server, by name; kept after the end, so that the next run can have the same.
    """

    token: str = ""
    processes: dict[str, ProcessId] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)


class StateFolder:
    """
    The folder in which one stack at a time keeps its state.

    :param path: The folder; made, readable by this user alone, when missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.resolve()
        self._lock: IO[str] | None = None
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise DemoError(f"Cannot make the folder {self.path}: {error.strerror}.") from error

    @property
    def file(self) -> Path:
        """Where the state is written."""
        return self.path / "state.json"

    def lock(self) -> None:
        """
        Take the folder for this process until it calls :meth:`unlock` or ends, however it ends.

        :raises DemoError: another process has it; a retry helps when that one has ended.
        """
        stream = (self.path / "lock").open("a+", encoding="utf-8")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            stream.close()
            message = f"Process {holder} already runs a stack in {self.path}: use that one, or end it with Ctrl-C first."
            raise DemoError(message) from error
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        self._lock = stream

    def unlock(self) -> None:
        """Give the folder back; harmless when it is not held."""
        if self._lock:
            self._lock.close()
            self._lock = None

    def load(self) -> StackState:
        """
        Read the state of the run that wrote last.

        :return: The state, empty when there never was a run.
        :raises DemoError: the file is not one of ours, so nothing can be said about left-over processes.
        """
        try:
            return _parse(json.loads(self.file.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return StackState()
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = f"If no process of an earlier demo is left (`ps -ef | grep {self.path}`), delete that file."
            raise DemoError(f"{self.file} cannot be read ({error!r}). {remedy}") from error

    def save(self, state: StackState) -> None:
        """
        Write the state, whole or not at all.

        :param state: What to write.
        """
        processes = {name: {"pid": p.pid, "started": p.started} for name, p in state.processes.items()}
        document = {"version": VERSION, "token": state.token, "processes": processes, "ports": state.ports}
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps(document, indent=1), encoding="utf-8")
        fresh.replace(self.file)

    def clean_up(self, *, only_token: str | None = None) -> list[str]:
        """
        End what an earlier run in this folder left behind, as far as it is surely of that run.

        A process counts as such when both its id and its start time are the recorded ones, or when it is in the
        session or the offspring of one of those.

        :param only_token: Do nothing unless the state is that of the run with this token.
        :return: Names of the components that were still there, sorted.
        :raises DemoError: some of them cannot be ended.
        """
        state = self.load()
        if only_token is not None and state.token != only_token:
            return []
        found = [name for name, leader in state.processes.items() if family([leader], within=self.path)]
        stubborn = stop(_leaders(state.processes, found), grace_s=5.0, within=self.path)
        if stubborn:
            pids = " ".join(str(process.pid) for process in sorted(stubborn, key=lambda process: process.pid))
            raise DemoError(f"Processes {pids} of an earlier demo cannot be ended: end them by hand (kill -9 {pids}).")
        if state.processes:
            self.save(StackState(state.token, {}, state.ports))
        return sorted(found)


def _parse(document: Any) -> StackState:
    if document["version"] != VERSION:
        raise ValueError(document["version"])
    processes = {name: ProcessId(int(p["pid"]), str(p["started"])) for name, p in document["processes"].items()}
    return StackState(str(document["token"]), processes, {name: int(port) for name, port in document["ports"].items()})


def _leaders(processes: Mapping[str, ProcessId], names: list[str]) -> list[ProcessId]:
    return [processes[name] for name in names]
