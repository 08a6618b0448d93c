"""
The spool: what could not be sent to MLflow, kept whole until ``airflow-ml resend`` or the step itself sends it.

One folder per try: ``record.json`` and the files of its outputs. A folder on disk, or any ``ObjectStoragePath``.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import ValidationError

from airflow_ml_provider.exceptions import ArtifactError, ConfigError
from airflow_ml_provider.models.run import StepRecord
from airflow_ml_provider.tracking.places import ObjectStoragePlace
from airflow_ml_provider.tracking.record import Recorder

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

RECORD = "record.json"


def keep(spool: str, record: StepRecord) -> str:
    """
    Write a record and its files to the spool.

    :param spool: Folder or URI of the spool.
    :param record: What could not be sent; it is not changed.
    :return: The folder, to be named to people and to :func:`resend`.
    :raises ArtifactError: the spool cannot be written; the record is in memory only.
    """
    place = f"{spool.rstrip('/')}/{_folder_name(record)}"
    try:
        folder = _open(place)
        kept = record.model_copy(deep=True)
        for output in kept.outputs:
            if output.stored is None:
                output.path = _keep_file(folder, Path(output.path), output.name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD).write_text(kept.model_dump_json(indent=2))
    except Exception as error:  # whatever the store raises, it must not hide why the spool was needed
        raise ArtifactError(
            f"the record of step {record.attempt.identity.label!r} could not be kept at {place}: {error}. "
            "Set [ml] spool to a place that this worker can write."
        ) from error
    return str(folder)


def drop(place: str) -> None:
    """
    Remove a record that was sent.

    :param place: What :func:`keep` returned; one that is gone already is fine.
    """
    folder = _open(place)
    if urlsplit(place).scheme in {"", "file"}:
        shutil.rmtree(folder.path, ignore_errors=True)
    elif folder.exists():
        folder.rmdir(recursive=True)


def read(place: str) -> StepRecord:
    """
    Read a record from the spool.

    :param place: What :func:`keep` returned.
    :return: The record; the paths of its outputs are relative to ``place``.
    :raises ConfigError: there is no record, or another release wrote it; a retry never helps.
    """
    file = _open(place) / RECORD
    try:
        return StepRecord.model_validate_json(file.read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no record at {place!r} ({RECORD} is missing). Give the folder that the task's log names."
        ) from error
    except ValidationError as error:
        raise ConfigError(f"{file} is not a record that this release reads: {error.errors()[0]['msg']}.") from error


def resend(place: str, recorder: Recorder) -> StepRecord:
    """
    Send a record from the spool, and remove it.

    :param place: What :func:`keep` returned.
    :param recorder: Where to.
    :return: What was sent.
    :raises SupersededError: a later try has recorded the step; the record stays in the spool.
    :raises RemoteUnavailableError: MLflow did not answer; the record stays, a retry is safe.
    :raises ConfigError: there is no readable record; a retry never helps.
    """
    record, folder = read(place), _open(place)
    places = [output.path for output in record.outputs]
    with tempfile.TemporaryDirectory(prefix="airflow-ml-") as scratch:
        for output in record.outputs:
            if output.stored is None:
                output.path = str(_fetch(folder, output.path, Path(scratch)))
        try:
            recorder.send(record)
        except BaseException:
            # What is through must not be made a second time by the next resend.
            for output, path in zip(record.outputs, places, strict=True):
                output.path = path
            (folder / RECORD).write_text(record.model_dump_json(indent=2))
            raise
    drop(place)
    return record


def _open(place: str) -> ObjectStoragePath:
    return ObjectStoragePlace(place).root


def _keep_file(folder: ObjectStoragePath, local: Path, name: str) -> str:
    place = ObjectStoragePlace(str(folder))
    base = f"files/{name}/{local.name}"
    if local.is_file():
        place.write(base, local)
        return base
    for each in sorted(local.rglob("*")):
        if each.is_file():
            place.write(f"{base}/{each.relative_to(local).as_posix()}", each)
    return base + "/"


def _fetch(folder: ObjectStoragePath, path: str, scratch: Path) -> Path:
    place, local = ObjectStoragePlace(str(folder)), scratch / path.rstrip("/")
    names = place.files(path.rstrip("/")) if path.endswith("/") else [""]
    for name in names:
        target = local / name if name else local
        target.parent.mkdir(parents=True, exist_ok=True)
        place.read(f"{path}{name}", target)
    return local


def _folder_name(record: StepRecord) -> str:
    identity = record.attempt.identity
    return f"{identity.path}-try-{record.attempt.try_number}-{record.run.run_id[:12]}"
