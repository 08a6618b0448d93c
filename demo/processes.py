"""
Processes by id and start time, whole sessions of them: find, signal, stop. Never by name.

A process id alone is reused by the kernel; with the start time it names one process only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ProcessId", "Running", "family", "identify", "is_alive", "signal_all", "snapshot", "stop"]

PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessId:
    """
    One process, for as long as this machine is up.

    :param pid: The process id.
    :param started: When it started, as the kernel says it (boot id and clock ticks on Linux): only ever compared.
    """

    pid: int
    started: str


@dataclass(frozen=True)
class Running:
    """
    A process that was alive when the snapshot was taken.

    :param identity: Which process.
    :param parent: Process id of its parent.
    :param session: Id of its session, that is the process id of the session's first process.
    """

    identity: ProcessId
    parent: int
    session: int


def snapshot() -> dict[int, Running]:
    """
    Look at every live process of this machine; zombies are not alive.

    :return: The processes by id. One that ends meanwhile may be missing.
    """
    return _from_proc() if (PROC / "self" / "stat").exists() else _from_ps()


def identify(pid: int) -> ProcessId | None:
    """
    Name the process that has this id now.

    :param pid: A process id.
    :return: Its identity, or None when no live process has the id.
    """
    found = snapshot().get(pid)
    return found.identity if found else None


def is_alive(process: ProcessId) -> bool:
    """
    Say whether exactly this process still runs; another one with the same id does not count.

    :param process: The process.
    :return: False as soon as it is a zombie.
    """
    return identify(process.pid) == process


def family(leaders: Iterable[ProcessId], *, within: Path | None = None) -> set[ProcessId]:
    """
    Find every live process of the sessions that these processes lead, and all descendants of those.

    Members of a session outlive their leader (a task whose supervisor was killed does). A leader that is gone leaves a
    number that could have been given to somebody else since, so its members are taken only if they also work in
    ``within``.

    :param leaders: First processes of the sessions, alive or not.
    :param within: Working directory by which to know the members of a session whose leader is gone. None: this
        process is the parent of the leaders, so the numbers are certain.
    :return: The processes, never this one.
    """
    table = snapshot()
    ours: set[int] = set()
    for leader in leaders:
        holder = table.get(leader.pid)
        if holder and holder.identity != leader:
            continue
        sure = holder is not None or within is None
        members = (pid for pid, running in table.items() if running.session == leader.pid)
        ours.update(pid for pid in members if sure or _works_in(pid, within))
    _add_descendants(ours, table)
    ours.discard(os.getpid())
    return {table[pid].identity for pid in ours}


def signal_all(processes: Iterable[ProcessId], signum: int) -> None:
    """
    Send a signal to each of these processes that still is the one meant.

    :param processes: The processes.
    :param signum: Signal number.
    """
    table = snapshot()
    for process in processes:
        running = table.get(process.pid)
        if running and running.identity == process:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signum)


def stop(leaders: Iterable[ProcessId], *, grace_s: float = 10.0, within: Path | None = None) -> set[ProcessId]:
    """
    End the sessions of these processes: ask all of their processes to stop, then kill what is left.

    :param leaders: First processes of the sessions.
    :param grace_s: Seconds between asking and killing.
    :param within: See :func:`family`.
    :return: What could not be ended, normally empty.
    """
    leaders = list(leaders)
    known = family(leaders, within=within)
    signal_all(known, signal.SIGTERM)
    known = _wait_gone(known, leaders, grace_s, within)
    if known:
        signal_all(known, signal.SIGKILL)
        known = _wait_gone(known, leaders, 5.0, within, kill_new=True)
    return known


def _wait_gone(
    known: set[ProcessId], leaders: list[ProcessId], limit_s: float, within: Path | None, *, kill_new: bool = False
) -> set[ProcessId]:
    deadline = time.monotonic() + limit_s
    while True:
        alive = {running.identity for running in snapshot().values()}
        fresh = family(leaders, within=within) - known
        signal_all(fresh, signal.SIGKILL if kill_new else signal.SIGTERM)
        known = (known | fresh) & alive
        if not known or time.monotonic() > deadline:
            return known
        time.sleep(0.1)


def _add_descendants(ours: set[int], table: dict[int, Running]) -> None:
    while True:
        children = {pid for pid, running in table.items() if running.parent in ours} - ours
        if not children:
            return
        ours |= children


def _works_in(pid: int, folder: Path | None) -> bool:
    try:
        place = (PROC / str(pid) / "cwd").readlink()
    except OSError:
        return False
    return folder is not None and place.is_relative_to(folder.resolve())


def _from_proc() -> dict[int, Running]:
    boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    table: dict[int, Running] = {}
    for entry in PROC.iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            text = (entry / "stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue
        # The name in brackets may hold anything, brackets and spaces too: count from its end.
        state, parent, _group, session, *rest = text.rpartition(")")[2].split()
        if state not in "ZX":
            identity = ProcessId(int(entry.name), f"{boot}:{rest[15]}")
            table[identity.pid] = Running(identity, int(parent), int(session))
    return table


def _from_ps() -> dict[int, Running]:
    """Read the same from ``ps``, for systems without ``/proc``."""
    command = ["ps", "-A", "-o", "pid=,ppid=,stat=,lstart="]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "LC_ALL": "C"}).stdout
    table: dict[int, Running] = {}
    for line in lines.splitlines():
        pid, parent, state, started = line.split(None, 3)
        if state.startswith("Z"):
            continue
        with suppress(ProcessLookupError, PermissionError):
            table[int(pid)] = Running(ProcessId(int(pid), started.strip()), int(parent), os.getsid(int(pid)))
    return table
