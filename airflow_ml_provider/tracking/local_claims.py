"""
Claims as files of one machine, beside those on MLflow (:mod:`~airflow_ml_provider.tracking.alert_claims`).

They come first: of 200 tasks that fail on one machine, one asks MLflow. And they stand in where MLflow cannot store a claim:
then a message may be doubled, once per machine, and none is dropped.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from airflow_ml_provider.tracking.alert_claims import SENT, STALE_S

KEEP_S = 7 * 86_400
"""Seconds after which a file that stood for a claim is removed."""


class LocalClaims:
    """
    Claims as files of this machine, for its user alone.

    :param folder: Where; None means a folder in the machine's temporary one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or Path(tempfile.gettempdir()) / f"airflow-ml-alerts-{os.getuid()}"

    def take(self, name: str) -> bool:
        """
        Take it upon oneself to tell, unless another process of this machine has.

        :param name: What is to be told, and where.
        :return: Whether it is ours; also where no file can be written, since a message is better doubled than dropped.
        """
        try:
            self._make_folder()
            file = self._file(name)
            if self._create(file):
                self._prune()
                return True
            return self._take_over(file)
        except OSError:
            return True

    def take_place(self, name: str, places: int) -> bool:
        """
        Take one of so many places, so that a crowd does not ask a server for the same favour.

        :param name: What they are for.
        :param places: How many there are on this machine.
        :return: Whether there was one left; also where no file can be written.
        """
        return any(self.take(f"{name}.{number}") for number in range(places))

    def mark_told(self, name: str, thread: str) -> None:
        """
        Note that it was told.

        :param name: As for :meth:`take`.
        :param thread: What a later message answers to; empty for nothing.
        """
        with contextlib.suppress(OSError):
            self._make_folder()
            self._file(name).write_text(thread or SENT)

    def free(self, name: str) -> None:
        """
        Give a claim back, since the message could not be sent.

        :param name: As for :meth:`take`.
        """
        with contextlib.suppress(OSError):
            self._make_folder()
            with self._alone():
                file = self._file(name)
                if not file.read_text():
                    file.unlink()

    def told(self, name: str) -> str | None:
        """
        Say whether it was told from this machine.

        :param name: As for :meth:`take`.
        :return: The thread, empty where the message has none; None when nobody knows of one.
        """
        try:
            self._make_folder()
            said = self._file(name).read_text()
        except (OSError, UnicodeDecodeError):
            return None
        return ("" if said == SENT else said) if said else None

    def _make_folder(self) -> None:
        """Make the folder; one that somebody else could write to is not used."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = self.folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
            raise PermissionError(f"{self.folder} belongs to somebody else")

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep the other processes of this machine out of the block."""
        folder = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _file(self, name: str) -> Path:
        return self.folder / hashlib.sha256(name.encode()).hexdigest()[:32]

    def _take_over(self, file: Path) -> bool:
        """Take a claim whose holder says nothing, or has just given it back."""
        try:
            if not _is_stale(file):
                return False
            with self._alone():
                if not _is_stale(file):  # another process has just taken it over
                    return False
                file.unlink()
                return self._create(file)
        except FileNotFoundError:
            return self._create(file)

    def _create(self, file: Path) -> bool:
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        except FileExistsError:
            return False
        return True

    def _prune(self) -> None:
        for each in self.folder.iterdir():
            with contextlib.suppress(OSError):
                if time.time() - each.stat().st_mtime > KEEP_S:
                    each.unlink()


def _is_stale(file: Path) -> bool:
    """Whether whoever has a claim has sent nothing for so long that another may."""
    return not file.read_text() and time.time() - file.stat().st_mtime >= STALE_S
