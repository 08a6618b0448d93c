"""One component of the stack as a process: in a session of its own, with its output in a file."""

from __future__ import annotations

import subprocess
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from demo.errors import DemoError
from demo.processes import ProcessId, identify

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Component", "last_lines", "launch"]


@dataclass(frozen=True)
class Component:
    """
    A started component.

    :param name: Its name, such as ``scheduler``.
    :param process: The child process.
    :param identity: The same as id and start time; it leads the session of all processes of the component.
    :param log: File with its output.
    :param started_at: When it was started, seconds since the epoch.
    """

    name: str
    process: subprocess.Popen[bytes]
    identity: ProcessId
    log: Path
    started_at: float

    def require_alive(self) -> None:
        """
        Check that the component has not ended.

        :raises DemoError: it has; the message has its last lines and the place of the log.
        """
        status = self.process.poll()
        if status is not None:
            raise DemoError(f"{self.name} ended with status {status}:\n{last_lines(self.log)}\nWhole log: {self.log}")


def launch(name: str, command: list[str], environment: Mapping[str, str], log: Path, folder: Path) -> Component:
    """
    Start a component.

    A session of its own keeps the terminal's Ctrl-C away from it, and makes all of its processes, orphans included,
    findable.

    :param name: Its name.
    :param command: Command line.
    :param environment: Whole environment.
    :param log: File to which its output is appended.
    :param folder: Working directory, by which left-over processes are known later.
    :return: The component.
    :raises DemoError: the command cannot be started.
    """
    started_at = time.time()
    try:
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise DemoError(f"{name} cannot be started: {error}.") from error
    # One that has ended already has no start time to be read, and nothing to be cleaned up either.
    identity = identify(process.pid) or ProcessId(process.pid, "ended at once")
    return Component(name, process, identity, log, started_at)


def last_lines(file: Path, count: int = 12) -> str:
    """
    Read the end of a log.

    :param file: The log.
    :param count: How many lines at most.
    :return: The lines, empty when there is no such file.
    """
    try:
        with file.open(encoding="utf-8", errors="replace") as stream:
            return "".join(deque(stream, maxlen=count)).rstrip()
    except OSError:
        return ""
