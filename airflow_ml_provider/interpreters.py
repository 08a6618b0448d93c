"""
Interpreters with requirements of their own: made once for equal requirements, kept, and shared by the tasks of a worker.

What is made is marked as ready last, and made under a lock, so that two tasks that want it at once make it once, and what a
killed task has left is made anew. A ready one is used without any request to a package index.
"""

from __future__ import annotations

import configparser
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError

log = logging.getLogger(__name__)

SECRET_VARIABLES = ("AIRFLOW", "_AIRFLOW", "MLFLOW_TRACKING_")
"""Beginnings of variables that an interpreter of its own is not given: connections and passwords are among them."""
MARK = "_ML_CHILD_PROCESS"
"""Variable by which all that a child has started is found again, also what has left its session and lost its parent."""
TAIL_LINES = 20
READY = "ready"
"""File that says that an interpreter is whole; its age is the time since it was last asked for."""
_LOGIN = re.compile(r"(?<=://)[^/\s@]+@")
_INDEXES = {"index-url": "UV_DEFAULT_INDEX", "extra-index-url": "UV_INDEX", "find-links": "UV_FIND_LINKS"}
"""Where pip is told to look for packages, and what uv reads instead; it knows nothing of pip's settings."""
_COMMAS = {"UV_FIND_LINKS"}
_PIP_FILES = ("/etc/pip.conf", "~/.pip/pip.conf", "~/.config/pip/pip.conf", f"{sys.prefix}/pip.conf")
_UV_FILES = ("/etc/uv/uv.toml", "~/.config/uv/uv.toml")


@dataclass(frozen=True)
class Requirements:
    """
    What an interpreter must have.

    :param text: A ``requirements.txt``.
    :param python: Version of Python, ``3.11``; empty for that of the worker.
    :param bare: A second ``requirements.txt``, installed after the first and without what it requires itself.
    :param imports: Package to install per module that cannot be imported after that.
    :param of: Whose they are, for messages.
    :param remedy: What to do when they are not to be had, for messages.
    """

    text: str
    python: str = ""
    bare: str = ""
    imports: Mapping[str, str] = field(default_factory=dict)
    of: str = "the given requirements"
    remedy: str = "If a version is not to be had, mend the requirements."

    @property
    def digest(self) -> str:
        """32 hexadecimal digits, equal for equal requirements on machines of a kind; order, spaces and comments count not."""
        machine = [platform.system(), platform.machine(), self.python or platform.python_version()]
        parts = (
            [_lines(self.text), machine]
            + ([_lines(self.bare)] if self.bare else [])
            + ([sorted(self.imports)] if self.imports else [])
        )
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Kept:
    """
    An interpreter that is kept.

    :param folder: Where.
    :param requirements: The packages that it was made with, in one line; empty for one that was never finished.
    :param size: Bytes on the disk.
    :param used_at: When a task has last asked for it, seconds since the epoch.
    """

    folder: Path
    requirements: str
    size: int
    used_at: float


class ChildProcess:
    """One process at a time, in a session of its own, so that it can be ended with all that it has started."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[str] | None = None
        self._mark = uuid.uuid4().hex
        self.killed = False
        """Whether :meth:`kill` was called."""

    def run(
        self, command: Sequence[str], *, cwd: Path, on_line: Callable[[str], None] | None = None, lifeline: bool = False
    ) -> tuple[int, str]:
        """
        Run a command to its end; what it says goes to the log, line by line, logins in addresses masked.

        :param command: Program and arguments.
        :param cwd: Folder to run it in.
        :param on_line: Called with each line in place of the log; None logs it.
        :param lifeline: Whether its standard input is a pipe that nobody writes to and that ends with this process, however it
            ends; else there is none.
        :return: Exit code, and the last lines that it has said.
        """
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        if self.killed:
            return -signal.SIGKILL, ""
        with subprocess.Popen(  # noqa: S603  (our own commands; the code that they run is the user's)
            list(command),
            cwd=cwd,
            env=environment_for(os.environ) | {MARK: self._mark},
            stdin=subprocess.PIPE if lifeline else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            self._running = process
            try:
                for line in process.stdout or ():
                    tail.append(mask_logins(line.rstrip()))
                    (on_line or _log_line)(tail[-1])
                process.wait()
            finally:
                self._end()  # also what it has left behind
                self._running = None  # its id may be another's soon
        return process.returncode, "\n".join(tail)

    def kill(self) -> None:
        """End what runs, and run nothing more."""
        self.killed = True
        self._end()

    def _end(self) -> None:
        """End the process with all that it has started, those that have a session of their own too."""
        process = self._running
        if process is None:
            return
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in marked(self._mark):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)


class Environments:
    """
    The interpreters below one folder.

    :param root: The folder; made when it is not there. Tasks of one worker share it; it needs a file system with locks.
    :param child: Runs the installer.
    :param installer: ``uv`` or ``pip``; None takes uv where it is installed.
    """

    def __init__(self, root: Path, child: ChildProcess | None = None, installer: str | None = None) -> None:
        self.root = root
        self.child = child or ChildProcess()
        self.installer = installer or ("uv" if shutil.which("uv") else "pip")

    def ready(self, requirements: Requirements) -> Path | None:
        """
        Look for an interpreter.

        :param requirements: What it must have.
        :return: Path of the interpreter, None when it has to be made first.
        """
        folder = self.root / requirements.digest
        return folder / "venv/bin/python" if (folder / READY).exists() else None

    def problem(self) -> str:
        """
        Say why no interpreter can be made here, without making one.

        :return: A sentence with the remedy; empty when nothing is in the way, but for the package index, which is not asked.
        """
        if self.installer == "pip" and importlib.util.find_spec("ensurepip") is None:
            return "there is no uv, and this Python has no ensurepip. Install uv on the workers."
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            (self.root / f".try-{os.getpid()}").touch()
            (self.root / f".try-{os.getpid()}").unlink()
        except OSError as error:
            return f"interpreters cannot be kept at {self.root}: {error}. Give another folder."
        return ""

    def python(self, requirements: Requirements) -> Path:
        """
        Give an interpreter that has the requirements; make it when there is none.

        :param requirements: What it must have.
        :return: Path of the interpreter.
        :raises ConfigError: the folder cannot be written; a retry never helps.
        :raises RemoteUnavailableError: the installer failed; its last lines say why. A retry is safe, and helps where the
            package index did not answer.
        """
        folder = self.root / requirements.digest
        if (found := self.ready(requirements)) is not None:
            with suppress(OSError):  # made beforehand in a folder that tasks only read
                os.utime(folder / READY)
            return found
        python = folder / "venv/bin/python"
        with self._locked(requirements.digest):
            if not (folder / READY).exists():
                log.info("Making an interpreter with %s, with %s, at %s", requirements.of, self.installer, folder)
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir(parents=True)
                self._make(folder, python, requirements)
                (folder / "ready.new").write_text(requirements.text)
                (folder / "ready.new").rename(folder / READY)
        return python

    def kept(self) -> list[Kept]:
        """
        List what is kept.

        :return: The interpreters, the one that was used last first; those that a killed task left unfinished are among them.
        :raises ConfigError: the folder cannot be read; a retry never helps.
        """
        try:
            folders = [each for each in self.root.iterdir() if each.is_dir()] if self.root.exists() else []
        except OSError as error:
            raise ConfigError(f"the interpreters at {self.root} cannot be read: {error}.") from error
        return sorted(map(_look_at, folders), key=lambda each: each.used_at, reverse=True)

    def remove(self, one: Kept) -> bool:
        """
        Delete an interpreter; the next task that needs it makes it again.

        :param one: The interpreter, as it was listed.
        :return: Whether it was deleted: False when it is being made, or was asked for since.
        :raises ConfigError: it cannot be deleted; a retry never helps.
        """
        with self._locked(one.folder.name, wait=False) as ours:
            if not ours or _look_at(one.folder).used_at > one.used_at:
                return False
            try:
                (one.folder / READY).unlink(missing_ok=True)  # first: what is half deleted must not be taken for a whole one
                shutil.rmtree(one.folder)
            except OSError as error:
                raise ConfigError(f"the interpreter at {one.folder} cannot be deleted: {error}.") from error
        return True

    def _make(self, folder: Path, python: Path, requirements: Requirements) -> None:
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        wanted = requirements.python or own
        venv = str(folder / "venv")
        if self.installer == "uv":
            self._run(
                ["uv", "venv", "--quiet", "--python", sys.executable if wanted == own else wanted, venv], folder, requirements
            )
            install = ["uv", "pip", "install", "--quiet", "--python", str(python)]
        else:
            if wanted != own:
                log.warning("%s want Python %s, and get %s: install uv on the worker for others.", requirements.of, wanted, own)
            self._run([sys.executable, "-m", "venv", venv], folder, requirements)
            install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        for name, text, options in (("requirements.txt", requirements.text, []), ("bare.txt", requirements.bare, ["--no-deps"])):
            if text:
                (folder / name).write_text(text)
                self._run([*install, *options, "-r", name], folder, requirements)
        missing = [package for module, package in requirements.imports.items() if self._lacks(python, module, folder)]
        if missing:
            self._run([*install, *missing], folder, requirements)

    def _lacks(self, python: Path, module: str, folder: Path) -> bool:
        code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module.partition('.')[0]!r}) is None)"
        return self.child.run([str(python), "-I", "-c", code], cwd=folder)[0] != 0

    def _run(self, command: Sequence[str], folder: Path, requirements: Requirements) -> None:
        code, tail = self.child.run(command, cwd=folder)
        if code:
            raise RemoteUnavailableError(
                f"{self.installer} failed (exit code {code}) to make an interpreter with {requirements.of}:\n{tail}\n"
                f"A retry is safe. {requirements.remedy}"
            )

    @contextmanager
    def _locked(self, digest: str, *, wait: bool = True) -> Iterator[bool]:
        """Hold the lock of an interpreter; False where another has it, and this one is not to wait."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / f"{digest}.lock").open("w")
        except OSError as error:
            raise ConfigError(f"interpreters cannot be kept at {self.root}: {error}. Give another folder.") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    yield False
                    return
                log.info("Another task is making the same interpreter: waiting for it.")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield True


def _look_at(folder: Path) -> Kept:
    ready = folder / READY
    with suppress(OSError):
        words = " ".join(_lines(ready.read_text())) or "no packages"
        return Kept(folder, words, _size(folder), ready.stat().st_mtime)
    with suppress(OSError):
        return Kept(folder, "", _size(folder), folder.stat().st_mtime)
    return Kept(folder, "", 0, 0.0)


def _size(folder: Path) -> int:
    """Add up what a folder takes on the disk; what two names share counts once."""
    found: dict[tuple[int, int], int] = {}
    for each in folder.rglob("*"):
        with suppress(OSError):
            stat = each.lstat()
            found[stat.st_dev, stat.st_ino] = stat.st_blocks * 512
    return sum(found.values())


def environment_for(variables: Mapping[str, str]) -> dict[str, str]:
    """
    Choose the variables that an interpreter of its own gets: without Airflow's, and without MLflow's login.

    :param variables: Those of the worker.
    :return: The rest of them; uv is told of pip's package index where it has none of its own.
    """
    own = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
    found = {key: value for key, value in variables.items() if key not in own and not key.startswith(SECRET_VARIABLES)}
    return _indexes_of_pip(found) | found


def _indexes_of_pip(variables: Mapping[str, str]) -> dict[str, str]:
    """Say to uv where pip would look; nothing where uv has settings of its own."""
    if any(each.startswith("UV_") and "INDEX" in each for each in variables):
        return {}
    if any(Path(each).expanduser().is_file() for each in _UV_FILES):
        return {}
    files = configparser.RawConfigParser(strict=False)
    with suppress(configparser.Error, OSError):
        files.read([str(Path(each).expanduser()) for each in (*_PIP_FILES, variables.get("PIP_CONFIG_FILE", os.devnull))])
    found = {}
    for option, uvs in _INDEXES.items():
        written = [files.get(section, option, fallback="") for section in ("install", "global")]
        value = variables.get(f"PIP_{option.upper().replace('-', '_')}") or next(filter(None, written), "")
        if value:
            found[uvs] = (",".join if uvs in _COMMAS else " ".join)(value.split())
    return found


def marked(value: str) -> list[int]:
    """
    List the processes that were started with a mark, by whomever and in whatever session; empty where there is no ``/proc``.

    :param value: The mark's value.
    :return: Ids.
    """
    wanted, found = f"{MARK}={value}".encode(), []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError, ValueError):  # of another user, or gone
            if wanted in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found


def mask_logins(text: str) -> str:
    """
    Mask logins in addresses, as package indexes often have them.

    :param text: What a program has said.
    :return: The same, ``***`` in place of user and password.
    """
    return _LOGIN.sub("***@", text)


def _lines(text: str) -> list[str]:
    return sorted(filter(None, (re.sub(r"(^|\s)#.*", "", each).strip() for each in text.splitlines())))


def _log_line(line: str) -> None:
    log.info("%s", line)
