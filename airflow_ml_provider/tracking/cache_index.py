"""
The index of a step's earlier results: one file per key in the artifact store of the experiment, and no database.

``<experiment root>/airflow-ml-cache/<dag>/<task>/<key>.json`` is the entry of a key, ``latest-<map index>.json`` beside it a copy
of the newest one. An entry is a claim; it counts only if the MLflow run that it names says the same, and if what it names is
still there: read by key, so that a decision takes as long with 100,000 runs as with ten.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow_ml_provider.exceptions import AirflowMLError, ArtifactError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.hooks.mlflow_api import DeniedError
from airflow_ml_provider.models.artifact import MetricPoint
from airflow_ml_provider.models.cache import Cache, CacheEntry, CacheKey
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.models.run import OpenRun, StepIdentity, StepRecord
from airflow_ml_provider.tracking.artifacts import ArtifactStore
from airflow_ml_provider.tracking.places import Place, place_for
from airflow_ml_provider.tracking.runs import TRY, Run, now_ms, status_of, tags_of
from airflow_ml_provider.tracking.sizes import size_in_store

log = logging.getLogger(__name__)

CACHE, CACHED_FROM = "airflow.cache", "airflow.cached_from"
"""Tags of a nested run: hit, or miss and why; the run whose result it has."""
CACHE_KEY, CACHE_ENTRY = "airflow.cache_key", "airflow.cache_entry"
"""Tags of a nested run: key of its result; sha256 of the entry that was written of it, so that no other is taken for it."""
FOLDER = "airflow-ml-cache"
METADATA = "metadata"
"""Key in an entry's ``extra``: digest per output that has metadata."""
NAME_LENGTH = 150
"""Characters of a name in a path; file systems and object stores take more."""


@dataclass(frozen=True)
class Answer:
    """
    What the index says of a key.

    :param entry: The earlier result, checked; None for a miss.
    :param why: Why it is a miss, in words; empty for a hit.
    :param absent: Whether it is a miss because there is no entry of that key.
    :param metrics: Last value of each metric of the run that made it.
    """

    entry: CacheEntry | None
    why: str = ""
    absent: bool = False
    metrics: tuple[MetricPoint, ...] = ()


class UnreadableError(RemoteUnavailableError):
    """The index could not be read. A retry is safe; unreadable is neither a hit nor known to be a miss."""

    lasting: bool = False
    """Whether waiting does not help."""


class BrokenIndexError(UnreadableError):
    """What stands in the index is no entry, or not the one that was asked for. The step's next result takes its place."""

    lasting = True


class _MissError(Exception):
    """There is an entry, and it is no hit."""


class CacheIndex:
    """
    The earlier results of one task.

    :param api: The MLflow server.
    :param run: Nested run of the try that asks; its experiment holds the index.
    :param identity: The task instance.
    """

    def __init__(self, api: MlflowApi, run: OpenRun, identity: StepIdentity) -> None:
        self.api = api
        self.run = run
        self.identity = identity
        self.folder = task_folder(identity.dag_id, identity.task_id)

    def look(self, key: CacheKey, policy: Cache, outputs: Collection[str], scratch: Path) -> Answer:
        """
        Look for the result of a key: two requests, and one for each file and each LoggedModel of the result.

        :param key: The key.
        :param policy: How old it may be, and how it is verified.
        :param outputs: Names of the outputs that it must have.
        :param scratch: Folder for what is read; left as it was.
        :return: A hit, or why it is a miss.
        :raises UnreadableError: what is there could not be read, so nothing is known; a retry is safe.
        """
        try:
            with _unreadable_told():
                try:
                    entry = self._read(key.digest, scratch)
                except RemoteNotFoundError:
                    return Answer(None, "no earlier result has this key", absent=True)
                _check_age(entry, policy.max_age)
                _check_names(entry, outputs)
                run = self._made_by(entry)
                self._check_outputs(entry, run, policy, scratch)
        except _MissError as miss:
            return Answer(None, str(miss))
        return Answer(entry, metrics=_metrics(run))

    def latest(self, scratch: Path) -> CacheEntry | None:
        """
        Read the newest entry of the task instance, to compare a key with.

        :param scratch: Folder for what is read.
        :return: The entry; None where there is none that can be read.
        """
        try:
            return self._read_file(latest_name(self.identity.map_index), scratch)
        except (AirflowMLError, OSError) as error:
            log.debug("The newest entry of the cache could not be read: %s", error)
            return None

    def keep(self, entry: CacheEntry, scratch: Path) -> None:
        """
        Write an entry, and let it be the newest.

        :param entry: Of a run that is closed and says so.
        :param scratch: Folder for what is written.
        :raises AirflowMLError: it could not be written, in part perhaps; nothing else is affected.
        """
        place = self._place()
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            local = Path(folder) / "entry.json"
            local.write_text(entry.to_text())
            for name in (entry_name(entry.key), latest_name(entry.map_index)):
                place.write(f"{self.folder}/{name}", local)

    def _place(self) -> Place:
        return place_for(self.api, experiment_root(self.run), of_mlflow=True)

    def _read(self, key: str, scratch: Path) -> CacheEntry:
        entry = self._read_file(entry_name(key), scratch)
        found = (entry.key, entry.dag_id, entry.task_id)
        if found != (key, self.identity.dag_id, self.identity.task_id):
            raise BrokenIndexError(
                f"{self.folder}/{entry_name(key)} is the entry of task {entry.task_id!r} of DAG {entry.dag_id!r} with the key "
                f"{entry.key[:12]}: somebody has put it there. {_MEND}"
            )
        return entry

    def _read_file(self, name: str, scratch: Path) -> CacheEntry:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            local = Path(folder) / name
            self._place().read(f"{self.folder}/{name}", local, 0)
            try:
                return CacheEntry.from_text(local.read_bytes())
            except ArtifactError as error:
                raise BrokenIndexError(f"{self.folder}/{name}: {error} {_MEND}") from error

    def _made_by(self, entry: CacheEntry) -> Run:
        """Ask the run that has made a result whether it says so too."""
        try:
            run: Run = self.api.get("runs/get", run_id=entry.run_id)["run"]
        except (RemoteNotFoundError, DeniedError) as error:
            raise _MissError(f"run {entry.run_id}, which made the earlier result, is gone") from error
        tags, which = tags_of(run), f"run {entry.run_id} ({entry.dag_run_id})"
        if run["info"].get("lifecycle_stage") != "active":
            raise _MissError(f"{which}, which made the earlier result, was deleted")
        if status_of(run) == "RUNNING" or tags.get(TRY) != str(entry.try_number):
            raise _MissError(f"{which}, which made the earlier result, is run again, or was")
        if status_of(run) != "FINISHED":
            raise _MissError(f"{which}, which made the earlier result, is {status_of(run)} by now")
        if (tags.get(CACHE_KEY), tags.get(CACHE_ENTRY)) != (entry.key, digest_of(entry)):
            raise _MissError(f"{which} does not say that it made this earlier result")
        return run

    def _check_outputs(self, entry: CacheEntry, run: Run, policy: Cache, scratch: Path) -> None:
        """Compare what is stored now with what was recorded then."""
        store = ArtifactStore(self.api)
        store.know_root(f"runs:/{entry.run_id}", run["info"]["artifact_uri"])
        for model_id in entry.model_ids.values():
            try:
                store.root_of(f"models:/{model_id}")
            except (RemoteNotFoundError, DeniedError) as error:
                raise _MissError(f"LoggedModel {model_id} of the earlier result was deleted") from error
        for name, ref in entry.outputs.items():
            try:
                _check_output(store, ref, entry.extra.get(METADATA, {}).get(name), policy, scratch)
            except (ArtifactError, RemoteNotFoundError) as error:
                raise _MissError(f"output {name!r} of the earlier result: {error}") from error


_MEND = "The next run with ml_cache=refresh replaces it."


def _check_output(store: ArtifactStore, ref: ArtifactRef, metadata: str | None, policy: Cache, scratch: Path) -> None:
    if policy.verify == "size":
        size = size_in_store(store, ref)
        if size != ref.size:
            raise ArtifactError(f"{ref.uri} has {size} bytes, on record are {ref.size}")
    else:
        if ref.sha256 is None:
            raise ArtifactError(f"nobody has recorded a digest of {ref.uri}")
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            store.fetch(ref, Path(folder))
    if ref.metadata is not None:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            if metadata_digest(store.read_metadata(ref, Path(folder) / "metadata.json")) != metadata:
                raise ArtifactError(f"its metadata at {ref.metadata} was changed in the store after it was recorded")


@contextmanager
def _unreadable_told() -> Iterator[None]:
    """Say of every way in which a server or a store does not answer that nothing is known."""
    try:
        yield
    except UnreadableError:
        raise
    except RemoteUnavailableError as error:
        raise UnreadableError(f"the cache could not be read: {error}") from error
    except AirflowMLError as error:
        raise BrokenIndexError(f"the cache could not be read: {error}") from error
    except OSError as error:
        raise BrokenIndexError(f"the cache could not be read: this worker's disk refused what came of it: {error}") from error


def _check_age(entry: CacheEntry, max_age: timedelta | None) -> None:
    age = timedelta(milliseconds=now_ms() - entry.made_at_ms)
    if max_age is not None and age > max_age:
        made = when(entry.made_at_ms)
        raise _MissError(f"the earlier result was made at {made}, which is longer ago than max_age={max_age}")


def _check_names(entry: CacheEntry, outputs: Collection[str]) -> None:
    missing = sorted(set(outputs) - entry.outputs.keys())
    if missing:
        raise _MissError(f"the earlier result has no {', '.join(missing)}")


def _metrics(run: Run) -> tuple[MetricPoint, ...]:
    return tuple(
        MetricPoint(
            key=each["key"],
            value=float(each.get("value", 0)),
            timestamp_ms=int(each.get("timestamp", 0)),
            step=int(each.get("step", 0)),
        )
        for each in run["data"].get("metrics", [])
    )


def make_entry(
    record: StepRecord,
    key: CacheKey,
    policy: Cache,
    store: ArtifactStore,
    result: Any = None,
    extra: Mapping[str, Any] | None = None,
) -> CacheEntry:
    """
    Make the entry of a step that has ended well, its outputs stored.

    :param record: What it did.
    :param key: Its key.
    :param policy: How a result is verified.
    :param store: Artifacts of the server, for the metadata of outputs that were written elsewhere.
    :param result: What it returned.
    :param extra: JSON object of the kind of step.
    :return: The entry.
    :raises ArtifactError: an output has no digest (or size) on record, or the result changes on its way as JSON.
    :raises RemoteUnavailableError: the metadata of an output could not be read.
    """
    identity, refs = record.attempt.identity, {each.name: each.stored for each in record.outputs if each.stored is not None}
    for name, ref in refs.items():
        what = "digest" if policy.verify == "digest" else "size"
        if (ref.sha256 if policy.verify == "digest" else ref.size) is None:
            raise ArtifactError(
                f"there is no {what} of output {name!r} on record, so nobody could tell later whether it is the same."
            )
    metadata = {}
    with tempfile.TemporaryDirectory(prefix="airflow-ml-") as folder:
        for each in record.outputs:
            if each.stored is not None and each.stored.metadata is not None:
                found = each.metadata or store.read_metadata(each.stored, Path(folder) / "metadata.json")
                metadata[each.name] = metadata_digest(found)
    try:
        return CacheEntry(
            key=key.digest,
            parts=key.parts,
            dag_id=identity.dag_id,
            task_id=identity.task_id,
            map_index=identity.map_index,
            dag_run_id=identity.run_id,
            try_number=record.attempt.try_number,
            run_id=record.run.run_id,
            made_at_ms=record.end_time_ms or now_ms(),
            outputs=refs,
            model_ids={each.name: each.model_id for each in record.outputs if each.stored and each.model_id},
            result=result,
            extra={**(extra or {}), **({METADATA: metadata} if metadata else {})},
        )
    except ValueError as error:
        raise ArtifactError(f"the result of the step cannot be kept: {error}") from error


def digest_of(entry: CacheEntry) -> str:
    """
    Digest an entry as it stands in its file.

    :param entry: The entry.
    :return: 64 hexadecimal digits.
    """
    return hashlib.sha256(entry.to_text().encode()).hexdigest()


def metadata_digest(metadata: Mapping[str, Any]) -> str:
    """
    Digest an output's metadata.

    :param metadata: JSON object.
    :return: 64 hexadecimal digits, equal whatever the order.
    """
    return hashlib.sha256(json.dumps(metadata, sort_keys=True).encode()).hexdigest()


def experiment_root(run: OpenRun) -> str:
    """
    Find the folder of an experiment's artifacts.

    :param run: A run of it.
    :return: Its URI.
    :raises BrokenIndexError: the run's artifacts do not lie where MLflow puts them; a retry never helps.
    """
    root, found, end = run.artifact_uri.rstrip("/").rpartition(f"/{run.run_id}/")
    if not found or end != "artifacts":
        raise BrokenIndexError(f"the artifacts of run {run.run_id} lie at {run.artifact_uri}, beside which there is no cache.")
    return root


def task_folder(dag_id: str, task_id: str) -> str:
    """
    Name the folder of a task's entries.

    :param dag_id: Id of the DAG.
    :param task_id: Id of the task.
    :return: Path below :func:`experiment_root`; no two tasks have the same.
    """
    return f"{FOLDER}/{_part(dag_id)}/{_part(task_id)}"


def entry_name(key: str) -> str:
    """
    Name the file of a key's entry.

    :param key: Digest of the key.
    :return: Name in :func:`task_folder`.
    """
    return f"{key}.json"


def latest_name(map_index: int) -> str:
    """
    Name the copy of the newest entry of a task instance.

    :param map_index: Its index, -1 when it is not mapped.
    :return: Name in :func:`task_folder`.
    """
    return f"latest-{map_index}.json"


def when(ms: int) -> str:
    """
    Write a time for people.

    :param ms: Milliseconds since the epoch.
    :return: For example ``2024-01-01 07:00:00 UTC``.
    """
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _part(name: str) -> str:
    """Write a name as one safe part of a path; one that is changed gets a digest, so that no two meet."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip(".")[:NAME_LENGTH] or "_"
    return plain if plain == name else f"{plain}~{hashlib.sha256(name.encode()).hexdigest()[:12]}"
