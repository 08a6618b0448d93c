"""
What lies in the index of the cache: the entries of all tasks, with what has become of their runs; and how they are deleted.

No step reads this: a step asks by its key (``cache_index``). An entry that is deleted makes the next run of its key a miss, and
touches no run and no artifact.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow_ml_provider.core.tracking_values import quoted
from airflow_ml_provider.exceptions import AirflowMLError, ArtifactError, ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.hooks.mlflow_api import DeniedError
from airflow_ml_provider.models.cache import CacheEntry
from airflow_ml_provider.tracking.cache_index import (
    CACHE_ENTRY,
    CACHE_KEY,
    FOLDER,
    digest_of,
    entry_name,
    latest_name,
    task_folder,
)
from airflow_ml_provider.tracking.experiments import pages_of
from airflow_ml_provider.tracking.places import MlflowStorePlace, ObjectStoragePlace, Place, ProxyPlace, place_for, store_told
from airflow_ml_provider.tracking.runs import TRY, Run, batches, now_ms, run_id_of, status_of, tags_of

log = logging.getLogger(__name__)

AT_ONCE = 8
"""Entries that are read at the same time."""
IDS_PER_SEARCH = 100
LATEST = "latest-"
NOT_AT_HOME = "is of another task, or has another key"
OURS = re.compile(r"[0-9a-f]{64}\.json|latest--?\d+\.json")
"""Names of the files of an index; what else lies there is somebody else's, and stays."""
DEPTH = 3
"""Folders above an entry: the index, the DAG, the task."""


@dataclass(frozen=True)
class Filters:
    """
    Which entries are meant; all that is given must hold.

    :param dag_id: Those of this DAG.
    :param task_id: Those of this task.
    :param model: Those whose result is this model: the name of a registered one for all of its versions,
        ``models:/<name>/<version>``, ``models:/<name>@<alias>``, or the id of a LoggedModel.
    :param older_than: Those made longer ago.
    :param stale: Those alone that can never be a hit again.
    """

    dag_id: str | None = None
    task_id: str | None = None
    model: str | None = None
    older_than: timedelta | None = None
    stale: bool = False

    def __bool__(self) -> bool:
        return self != Filters()


@dataclass(frozen=True)
class Shelved:
    """
    One file of the index.

    :param experiment: Name of its experiment.
    :param root: URI of the experiment's artifacts.
    :param path: Its path below.
    :param entry: What it says; None where it cannot be read.
    :param stale: Why it can never be a hit; empty for one that can.
    :param copies: Paths of its copies, each that of a task instance whose newest result it is.
    """

    experiment: str
    root: str
    path: str
    entry: CacheEntry | None = None
    stale: str = ""
    copies: tuple[str, ...] = ()

    @property
    def newest(self) -> bool:
        """Whether it is what the next miss of a task instance is compared with."""
        return bool(self.copies)

    @property
    def folder(self) -> str:
        """Folder of its task."""
        return self.path.rpartition("/")[0]

    @property
    def names(self) -> tuple[str, str]:
        """Its DAG and its task; where it cannot be read, as its folder calls them."""
        if self.entry is not None:
            return self.entry.dag_id, self.entry.task_id
        dag, task = self.folder.split("/")[-2:]
        return dag, task


@dataclass
class CacheShelf:
    """
    The index of a whole MLflow server.

    :param api: The server.
    :param experiment: Name of the only experiment to look at; None for all that are not deleted.
    """

    api: MlflowApi
    experiment: str | None = None
    problems: list[str] = field(default_factory=list)
    """What could not be read: those entries are missing in what was found."""

    def find(self, filters: Filters) -> list[Shelved]:
        """
        List entries: one request for each of them, and for each folder.

        :param filters: Which.
        :return: By DAG and task, the newest first; without those that :attr:`problems` tells of.
        :raises ConfigError: there is no such model, or experiment; a retry never helps.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        """
        wanted = self._makers(filters.model) if filters.model else None
        found: list[Shelved] = []
        for each in self.experiments():
            try:
                found += self._in_experiment(each, filters, wanted)
            except AirflowMLError as error:
                self.problems.append(f"experiment {each['name']!r}: {error}")
        return sorted(found, key=lambda one: (*one.names, -(one.entry.made_at_ms if one.entry else 0), one.path))

    def clear(self, found: Sequence[Shelved]) -> int:
        """
        Delete entries, and the copies of those that were the newest of a task instance.

        :param found: What :meth:`find` gave.
        :return: How many are gone; of the others :attr:`problems` tells.
        """
        gone = 0
        for each in found:
            place = place_for(self.api, each.root, of_mlflow=True)
            try:
                for path in (each.path, *each.copies):
                    _remove(place, path)
            except AirflowMLError as error:
                self.problems.append(f"{each.root}/{each.path} stays: {error}")
            else:
                gone += 1
        return gone

    def entry(self, experiment: Mapping[str, Any], dag_id: str, task_id: str, key: str) -> CacheEntry | None:
        """
        Read the entry of a key.

        :param experiment: The experiment.
        :param dag_id: Id of the DAG.
        :param task_id: Id of the task.
        :param key: The key.
        :return: The entry; None where there is none that can be read.
        :raises RemoteUnavailableError: the store did not answer; a retry is safe.
        """
        place = place_for(self.api, str(experiment["artifact_location"]), of_mlflow=True)
        with tempfile.TemporaryDirectory(prefix="airflow-ml-") as folder:
            try:
                return _read(place, f"{task_folder(dag_id, task_id)}/{entry_name(key)}", Path(folder))
            except (RemoteNotFoundError, ArtifactError):
                return None

    def experiments(self) -> list[dict[str, Any]]:
        """
        List the experiments that are looked at.

        :return: As MLflow answers them.
        :raises RemoteNotFoundError: there is none of the name.
        """
        if self.experiment is not None:
            return [self.api.get("experiments/get-by-name", experiment_name=self.experiment)["experiment"]]
        return pages_of(self.api, "experiments/search", {"view_type": "ACTIVE_ONLY"}, "experiments", None)

    def _in_experiment(self, experiment: Mapping[str, Any], filters: Filters, wanted: set[str] | None) -> Iterator[Shelved]:
        root = str(experiment["artifact_location"]).rstrip("/")
        place = place_for(self.api, root, of_mlflow=True)
        top = _folder(filters)
        paths = [f"{top}/{each}" for each in place.files(top)]
        read = self._read_all(place, [Shelved(str(experiment["name"]), root, path) for path in paths if _is_ours(path)])
        latest: dict[tuple[str, str], list[str]] = {}
        for each in read:
            if _is_latest(each) and each.entry is not None:
                latest.setdefault((each.folder, each.entry.key), []).append(each.path)
        listed = [
            replace(each, copies=tuple(latest.get((each.folder, each.entry.key), ())) if each.entry is not None else ())
            for each in read
            if not _is_latest(each)
        ]
        experiment_id = str(experiment["experiment_id"])
        runs = self._runs(experiment_id, {each.entry.run_id for each in listed if each.entry is not None})
        for each in listed:
            run = runs.get(each.entry.run_id) if each.entry is not None else None
            if run is not None and str(run["info"]["experiment_id"]) != experiment_id:
                continue  # of an experiment that keeps its artifacts at the same place
            one = replace(each, stale=each.stale or (each.entry and why_stale(each.entry, run)) or "")
            if _is_meant(one, filters, wanted):
                yield one

    def _read_all(self, place: Place, files: Sequence[Shelved]) -> list[Shelved]:
        def one(each: Shelved) -> Shelved | None:
            with tempfile.TemporaryDirectory(prefix="airflow-ml-") as folder:
                try:
                    entry = _read(place, each.path, Path(folder))
                    return replace(each, entry=entry) if _is_at_home(each, entry) else replace(each, stale=NOT_AT_HOME)
                except RemoteNotFoundError:  # deleted since it was listed
                    return None
                except ArtifactError as error:
                    log.debug("%s: %s", each.path, error)
                    return replace(each, stale="cannot be read")
                except AirflowMLError as error:
                    self.problems.append(f"{each.root}/{each.path}: {error}")
                    return None

        with ThreadPoolExecutor(AT_ONCE) as pool:
            return [each for each in pool.map(one, files) if each is not None]

    def _runs(self, experiment_id: str, run_ids: set[str]) -> dict[str, Run]:
        found: dict[str, Run] = {}
        for some in batches(sorted(run_ids), IDS_PER_SEARCH):
            asked = f"attributes.run_id IN ({', '.join(map(quoted, some))})"
            body = {"experiment_ids": [experiment_id], "filter": asked, "run_view_type": "ALL"}
            found |= {run_id_of(each): each for each in pages_of(self.api, "runs/search", body, "runs", None)}
        for each in sorted(run_ids - found.keys()):  # gone, or of another experiment at the same place
            try:
                found[each] = self.api.get("runs/get", run_id=each)["run"]
            except RemoteNotFoundError:
                log.debug("Run %s is gone.", each)
            except DeniedError:
                found[each] = {"info": {"run_id": each, "experiment_id": ""}}
        return found

    def _makers(self, model: str) -> set[str]:
        """Find what can stand in an entry for a model: ids of LoggedModels, and of the runs that made versions."""
        name = model.removeprefix("models:/")
        versions: list[dict[str, Any]] = []
        if "@" in name:
            registered, _, alias = name.rpartition("@")
            versions = [self.api.get("registered-models/alias", name=registered, alias=alias)["model_version"]]
        elif name != model and "/" in name:
            registered, _, version = name.rpartition("/")
            versions = [self.api.get("model-versions/get", name=registered, version=version)["model_version"]]
        else:
            versions = pages_of(self.api, "model-versions/search", {"filter": f"name = {quoted(name)}"}, "model_versions", None)
        if not versions and not name.startswith("m-"):
            raise ConfigError(
                f"--model {model!r}: there is no version of a registered model of that name. Give its name, "
                "models:/<name>/<version>, models:/<name>@<alias>, or the id of a LoggedModel (m-...)."
            )
        sources = {str(each.get("source", "")).removeprefix("models:/") for each in versions}
        return {name, *sources, *(str(each["run_id"]) for each in versions if each.get("run_id"))}


def why_stale(entry: CacheEntry, run: Run | None) -> str:
    """
    Say why an entry can never be a hit again, as far as its run tells; its outputs are not looked at.

    :param entry: The entry.
    :param run: The run that it names; None where MLflow has none.
    :return: In words; empty where it may be a hit.
    """
    if run is None:
        return "its run is gone"
    if run["info"].get("lifecycle_stage") != "active":
        return "its run was deleted"
    tags = tags_of(run)
    if status_of(run) == "RUNNING" or tags.get(TRY) != str(entry.try_number):
        return "its run is run again, or was"
    if status_of(run) != "FINISHED":
        return f"its run is {status_of(run)} by now"
    if (tags.get(CACHE_KEY), tags.get(CACHE_ENTRY)) != (entry.key, digest_of(entry)):
        return "its run has another result by now"
    return ""


def _folder(filters: Filters) -> str:
    if filters.dag_id is None:
        return FOLDER
    folder = task_folder(filters.dag_id, filters.task_id or "any")
    return folder if filters.task_id is not None else folder.rpartition("/")[0]


def _is_ours(path: str) -> bool:
    return path.count("/") == DEPTH and OURS.fullmatch(path.rpartition("/")[2]) is not None


def _is_at_home(each: Shelved, entry: CacheEntry) -> bool:
    """Whether a file is what its path says, and so what a step finds there."""
    name = latest_name(entry.map_index) if _is_latest(each) else entry_name(entry.key)
    return each.path == f"{task_folder(entry.dag_id, entry.task_id)}/{name}"


def _is_latest(each: Shelved) -> bool:
    return each.path.rpartition("/")[2].startswith(LATEST)


def _is_meant(each: Shelved, filters: Filters, wanted: set[str] | None) -> bool:
    entry = each.entry
    if entry is None:  # what it is of, its folder alone says
        folder = task_folder(filters.dag_id or "any", filters.task_id or "any").split("/")
        asked = [filters.dag_id and folder[-2], filters.task_id and folder[-1]]
        fits = all(want in {None, name} for want, name in zip(asked, each.names, strict=True))
        return fits and wanted is None and filters.older_than is None
    return all(
        (
            filters.dag_id in {None, entry.dag_id},
            filters.task_id in {None, entry.task_id},
            wanted is None or bool(wanted & {entry.run_id, *entry.model_ids.values()}),
            filters.older_than is None or now_ms() - entry.made_at_ms > filters.older_than / timedelta(milliseconds=1),
            bool(each.stale) or not filters.stale,
        )
    )


def _read(place: Place, path: str, folder: Path) -> CacheEntry:
    local = folder / "entry.json"
    place.read(path, local, 0)
    return CacheEntry.from_text(local.read_bytes())


def _remove(place: Place, path: str) -> None:
    """Delete one file of a store; one that is gone is left alone."""
    if isinstance(place, ProxyPlace):
        try:
            place.api.delete_files(f"{place.root}/{path}")
        except RemoteNotFoundError:
            log.debug("There is nothing at %s.", path)
    elif isinstance(place, ObjectStoragePlace):
        with store_told(place.root / path):
            (place.root / path).unlink(missing_ok=True)
    elif isinstance(place, MlflowStorePlace):
        with store_told(f"{place.root}/{path}"):
            place.repository.delete_artifacts(path)
