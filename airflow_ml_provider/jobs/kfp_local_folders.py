"""The folders of runs on this machine: held while a run lasts, deleted by a later run when they are old."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from airflow_ml_provider.exceptions import ConfigError

log = logging.getLogger(__name__)

NOTES = ".runs"
"""Folder below the root with a file per run: the place of its folder, locked while it runs, as old as its end."""
DAY_S = 86_400.0
TRIES = 20
"""How often a folder is made whose empty parent another run deletes at that moment."""


class RunFolders:
    """
    The folders below one root. What no run of ours has made there is never deleted.

    :param root: The root; tasks of one machine share it.
    :param keep_days: Days for which the folder of a run that has ended is kept; ``inf`` for ever.
    """

    def __init__(self, root: Path, keep_days: float) -> None:
        self.root = root.expanduser().absolute()
        self.keep_days = keep_days

    @contextmanager
    def held(self, folder: Path, run_id: str) -> Iterator[None]:
        """
        Make the folder of a run, and keep it from being deleted while the block lasts, however long that is.

        :param folder: The folder; one that is not below the root is made too, and never deleted.
        :param run_id: Id of the run, which no other has.
        :return: Nothing; the folder is there.
        :raises ConfigError: it cannot be made; a retry never helps.
        """
        note = self.root / NOTES / f"{run_id}.run"
        new = note.with_suffix(f".{uuid.uuid4().hex}")
        try:
            _make(note.parent)
            file = new.open("w")
        except OSError as error:
            raise _unwritable(folder, error) from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # before anybody looks at it, as a run that is deleted at once may
                file.write(os.path.relpath(folder, self.root))
                file.flush()
                new.rename(note)
                _make(folder)
            except OSError as error:
                raise _unwritable(folder, error) from error
            try:
                yield
            finally:
                with suppress(OSError):
                    os.utime(note)

    def delete_old(self) -> None:
        """Delete the folders of runs that ended long ago; what cannot be deleted is left, and said in the log."""
        if not (self.root / NOTES).is_dir():
            return
        before = time.time() - self.keep_days * DAY_S
        for note in sorted((self.root / NOTES).glob("*.run")):
            try:
                if note.stat().st_mtime < before:
                    self._delete(note)
            except FileNotFoundError:  # another run is deleting it
                continue
            except OSError as error:
                log.warning("The folder of the old run %s is not deleted: %s", note.stem, error)

    def _delete(self, note: Path) -> None:
        with note.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # it runs still, or another task is deleting it
                return
            told = file.read()
            folder = Path(os.path.normpath(self.root / told)) if told else self.root
            if self.root in folder.parents and folder != note.parent and self.root.resolve() in folder.resolve().parents:
                log.info("Deleting what run %s has left at %s, after %s days.", note.stem, folder, self.keep_days)
                if folder.is_dir():
                    shutil.rmtree(folder)
                self._delete_empty(folder.parent)
            note.unlink(missing_ok=True)

    def _delete_empty(self, folder: Path) -> None:
        while self.root in folder.parents:
            try:
                folder.rmdir()
            except OSError:  # not empty, or gone
                return
            folder = folder.parent


def _unwritable(folder: Path, error: OSError) -> ConfigError:
    return ConfigError(f"the run's folder {folder} cannot be made: {error}. Name another place in [ml] kfp_local_root.")


def _make(folder: Path) -> None:
    for left in reversed(range(TRIES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except (FileNotFoundError, FileExistsError):  # the second where it was there, and is not any more
            if not left:
                raise
        else:
            return
