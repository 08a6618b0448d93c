"""
The files of a pipeline run: ``<pipeline root>/<pipeline>/<run>/<task>/<uuid>/<output>``, as KFP's launcher writes them.

Only what a component has written as a file is there: no parameter, and no number of a ``Metrics`` output. A task that was
served from the cache has its files below the run that made them.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from airflow_ml_provider.core.kfp_component import MANIFEST
from airflow_ml_provider.core.kfp_outputs import LOGS, DeclaredOutput
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.artifact import load_metrics
from airflow_ml_provider.models.kfp_results import KfpOutput, KfpResults
from airflow_ml_provider.models.pod_step import StepManifest
from airflow_ml_provider.tracking.places import ObjectStoragePlace, hash_tree, store_told

log = logging.getLogger(__name__)

HASH_BYTES = 1 << 30
"""Outputs up to this size are read once, so that their digest is on record."""
WITHOUT_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "ClientAuthenticationError"}
)
"""What the clients of object stores raise where a worker has no credentials, by name, since they share no class."""
MOST_RUNS = 3000
"""How many runs of a pipeline the server is asked about, at most, 150 in one request."""
EARLIER_RUNS = 50
"""How many earlier runs are asked for, newest first, to find the one that a cached task's file is of."""
PARTS = 4
Earlier = Callable[[str, list[str]], list[str]]


@dataclass(frozen=True)
class FoundFile:
    """
    One output of one task, as files.

    :param run_id: Run below which it lies.
    :param task: The task.
    :param uuid: Which execution of the task.
    :param name: Name of the output.
    :param files: Relative path and bytes of each file; the path is empty where the output is a single file.
    :param modified: When the newest of them was written, as the store says; for comparison only.
    """

    run_id: str
    task: str
    uuid: str
    name: str
    files: tuple[tuple[str, int], ...]
    modified: str

    @property
    def path(self) -> str:
        """Its place below the pipeline's folder."""
        return "/".join((self.run_id, self.task, self.uuid, self.name))

    @property
    def size(self) -> int:
        """Its bytes."""
        return sum(size for _, size in self.files)

    @property
    def directory(self) -> bool:
        """Whether it is a folder."""
        return self.files[0][0] != ""


class PipelineFiles:
    """
    The files of one pipeline's runs.

    :param root: URI of the pipeline root, as workers read it.
    :param pipeline: Name of the pipeline (``pipelineInfo.name``).
    """

    def __init__(self, root: str, pipeline: str) -> None:
        self.uri = f"{root.partition('?')[0].rstrip('/')}/{pipeline}"
        self.place = ObjectStoragePlace(self.uri)
        self._of_runs: dict[str, list[FoundFile]] = {}
        self._runs: list[str] | None = None

    def of_run(self, run_id: str) -> list[FoundFile]:
        """
        List what a run has written.

        :param run_id: The run.
        :return: Its outputs; of a task that ran several times all of them.
        :raises ConfigError: the store cannot be opened, or refuses us; a retry never helps.
        :raises RemoteUnavailableError: it did not answer; a retry is safe.
        """
        if run_id in self._of_runs:
            return self._of_runs[run_id]
        folder = self.place.root / run_id
        with store_told(folder), _rights_told(str(folder)):
            base = _plain(self.place.root)
            folder.fs.invalidate_cache()
            found = folder.fs.find(_plain(folder), detail=True)
            self._of_runs[run_id] = list(_group(_relative(found, base)))
        return self._of_runs[run_id]

    def runs(self) -> list[str]:
        """
        List the runs of the pipeline that have files.

        :return: Their ids, in no promised order.
        :raises ConfigError: as :meth:`of_run`.
        :raises RemoteUnavailableError: as :meth:`of_run`.
        """
        if self._runs is None:
            with store_told(self.uri), _rights_told(self.uri):
                base, fs = _plain(self.place.root), self.place.root.fs
                fs.invalidate_cache()
                self._runs = [PurePosixPath(each).name for each in fs.ls(base, detail=False)] if fs.exists(base) else []
        return self._runs

    def manifest(self, found: FoundFile) -> StepManifest:
        """
        Read the manifest of one of our steps.

        :param found: Its file.
        :return: The manifest.
        :raises ConfigError: it is of another version; a retry never helps.
        """
        return StepManifest.read_text(self._content(found))

    def numbers(self, found: FoundFile) -> dict[str, Any]:
        """
        Read the numbers of a ``Metrics`` output of one of our steps.

        :param found: Its file.
        :return: Value per name, infinities and NaN as texts, as in a manifest; none where the step has written what is no JSON.
        """
        with suppress(ValueError, AttributeError):
            told = load_metrics(self._content(found).decode())
            numbers = {key: each for key, each in told.items() if isinstance(each, int | float)}
            return {key: each if abs(each) < math.inf else json.dumps(each) for key, each in numbers.items()}
        return {}

    def _content(self, found: FoundFile) -> bytes:
        with TemporaryDirectory(prefix="airflow-ml-") as folder:
            local = Path(folder) / "content"
            self.place.read(found.path, local)
            return local.read_bytes()

    def uri_of(self, found: FoundFile) -> str:
        """
        Name an output for a reference.

        :param found: The output.
        :return: Its URI; that of a folder ends in a slash.
        """
        return f"{self.uri}/{found.path}{'/' if found.directory else ''}"


def results_of_files(
    files: PipelineFiles, run_id: str, declared: Iterable[DeclaredOutput], earlier: Earlier | None = None
) -> KfpResults:
    """
    Find the outputs of a run that are files.

    :param files: Files of its pipeline.
    :param run_id: The run.
    :param declared: What its tasks declare.
    :param earlier: Given for a run with cached tasks: for a task and the ids of other runs, those of them in which the task was
        to make the same, newest first.
    :return: What was found. Of a task that ran several times outside of a loop the newest counts; of one in a loop all, without
        their order, which the files do not tell.
    :raises ConfigError: the store cannot be opened, or refuses us; a retry never helps.
    :raises RemoteUnavailableError: it did not answer; a retry is safe.
    """
    there, some = files.of_run(run_id), list(declared)
    looped = {each.task for each in some if each.looped}
    manifests, notes = _manifests(files, run_id, some, earlier)
    outputs = [
        _placed(output, several)
        for each, several in _counted(manifests, looped)
        for output in _of_manifest(files, each, files.of_run(each.run_id))
    ]
    told = {(each.task, each.name) for each in outputs}
    for one in some:
        if one.kind != "artifact" or (one.task, one.name) in told or one.name == MANIFEST:
            continue
        made = [each for each in there if (each.task, each.name) == (one.task, one.name)]
        if not made and earlier is not None:
            made, note = _of_cache(files, run_id, one, earlier)
            notes += [note] if note else []
        counted = _counted(made, looped)
        outputs += [_placed(_output(files, each, one.type), several) for each, several in counted]
    return KfpResults(
        outputs=tuple(outputs), notes=(f"{len(there)} outputs of the run lie as files below {files.uri}/{run_id}.", *notes)
    )


def _counted(found: Iterable[FoundFile], looped: Collection[str]) -> list[tuple[FoundFile, int]]:
    """Keep of each task the newest, of one in a loop all; and say how many there are, 0 for one that is in no loop."""
    by_task: dict[str, list[FoundFile]] = {}
    for each in found:
        by_task.setdefault(each.task, []).append(each)
    return [
        (each, len(some) if task in looped else 0)
        for task, some in by_task.items()
        for each in (some if task in looped else [max(some, key=lambda each: each.modified)])
    ]


def _placed(output: KfpOutput, several: int) -> KfpOutput:
    """Say of which iteration an output is as far as that is known: of the only one, or of none."""
    return output.model_copy(update={"loop": {0: (), 1: (0,)}.get(several)})


def seen_at(output: KfpOutput) -> KfpOutput:
    """
    Look at the files of an output: whether there are any, how large they are and, up to 1 GiB, their digest.

    :param output: An artifact with a URI that workers can read.
    :return: The output with size and digest, its URI ending in a slash where it is a folder; without URI where nothing is there.
    :raises ConfigError: the store cannot be opened, or refuses us; a retry never helps.
    :raises RemoteUnavailableError: it did not answer; a retry is safe.
    """
    place = ObjectStoragePlace(output.uri.rstrip("/"))
    base = _plain(place.root)
    with store_told(output.uri), _rights_told(output.uri):
        place.root.fs.invalidate_cache()
        entries = {path: each for path, each in place.root.fs.find(base, detail=True).items() if each.get("type") != "directory"}
        if not entries:
            return output.model_copy(update={"uri": "", "size": None, "sha256": ""})
        size = sum(int(each.get("size") or 0) for each in entries.values())
        names = [path.removeprefix(base).lstrip("/") for path in entries]
        whole = names != [""]
        told = {"uri": f"{output.uri.rstrip('/')}/" if whole else output.uri, "size": size}
        if output.sha256 or size > HASH_BYTES:
            return output.model_copy(update=told)
        nowhere = Path("/dev/null")  # only the digest of what is read is wanted
        written = hash_tree((each, place.read(each, nowhere)) for each in names) if whole else place.read("", nowhere)
    return output.model_copy(update=told | {"sha256": written.sha256})


@contextmanager
def _rights_told(where: str) -> Iterator[None]:
    """Tell a worker without rights from a store that is away."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, PermissionError) and type(error).__name__ not in WITHOUT_CREDENTIALS:
            raise
        raise ConfigError(
            f"{where} may not be read from this worker: {type(error).__name__}: {error}. Give it a connection that may, in "
            "options=KfpRunOptions(results_root='s3://<connection>@<bucket>/<path>')."
        ) from error


def _of_cache(files: PipelineFiles, run_id: str, one: DeclaredOutput, earlier: Earlier) -> tuple[list[FoundFile], str]:
    """Find what a cached task was served with: the newest file of a run in which the task was to make the same."""
    others = [each for each in files.runs() if each != run_id]
    if len(others) > MOST_RUNS:
        return [], (
            f"Task {one.task!r} may have been served from the cache, and {files.uri} has the files of {len(others)} runs: too "
            f"many to find the one, at most {MOST_RUNS} are looked at. Remove old ones, or switch the task's cache off."
        )
    candidates = earlier(one.task, others)
    for each in candidates[:EARLIER_RUNS]:
        made = [found for found in files.of_run(each) if (found.task, found.name) == (one.task, one.name)]
        if made:
            return made, f"Task {one.task!r} was served from the cache: its {one.name!r} is that of run {each}."
    return [], (
        f"No file of task {one.task!r} for {one.name!r} is there, and none of an earlier run in which the task was to make the "
        "same (code and parameters are compared), from which the cache may have served it."
    )


def _manifests(
    files: PipelineFiles, run_id: str, declared: Iterable[DeclaredOutput], earlier: Earlier | None
) -> tuple[list[FoundFile], list[str]]:
    """Find the manifests of a run; for a task without any file in it, which may be a cached one, that of the earlier run."""
    there = files.of_run(run_id)
    found, notes, ran = [each for each in there if each.name == MANIFEST], list[str](), {each.task for each in there}
    if earlier is None:
        return found, notes
    absent = {one.task: one for one in declared if one.name == MANIFEST and one.task not in ran}
    for one in absent.values():
        made, note = _of_cache(files, run_id, one, earlier)
        found += made
        notes.append(note)
    return found, notes


def _of_manifest(files: PipelineFiles, found: FoundFile, there: Iterable[FoundFile]) -> Iterator[KfpOutput]:
    """Read what a step of ours tells of itself; of several ``Metrics`` the files tell whose which number is."""
    manifest = files.manifest(found)
    beside = {each.name: each for each in there if (each.task, each.uuid) == (found.task, found.uuid)}
    metrics = [name for name, written in manifest.outputs.items() if written.type == "Metrics"]
    numbers: dict[str, dict[str, Any]] = {name: dict(manifest.metrics) for name in metrics}
    if len(metrics) > 1:
        numbers = {name: files.numbers(beside[name]) for name in metrics if name in beside and not beside[name].directory}
    for name, written in manifest.outputs.items():
        uri = files.uri_of(beside[name]) if name in beside else ""
        yield KfpOutput(
            name=name,
            task=found.task,
            type=written.type,
            uri=uri,
            metadata=numbers.get(name, {}),
            sha256=written.sha256,
            size=written.size,
            source="manifest",
        )
    if manifest.result is not None:
        yield KfpOutput(name="Output", task=found.task, kind="parameter", value=manifest.result, source="manifest")


def _output(files: PipelineFiles, found: FoundFile, kind: str) -> KfpOutput:
    return KfpOutput(
        name=found.name, task=found.task, type=kind, uri=files.uri_of(found), size=found.size, source="pipeline-root"
    )


def _relative(entries: Mapping[str, Mapping[str, Any]], base: str) -> dict[str, Mapping[str, Any]]:
    """Name files by their place below a folder; what a listing names elsewhere is left out."""
    prefix = base.rstrip("/") + "/"
    found = {path.removeprefix(prefix): info for path, info in entries.items() if path.startswith(prefix)}
    return {path: info for path, info in found.items() if ".." not in PurePosixPath(path).parts}


def _group(entries: Mapping[str, Mapping[str, Any]]) -> Iterator[FoundFile]:
    """Put the files of each output together."""
    groups: dict[tuple[str, ...], list[tuple[str, int, str]]] = {}
    for path, info in sorted(entries.items()):
        parts = path.split("/", PARTS)
        if info.get("type") != "directory" and len(parts) >= PARTS and not parts[PARTS - 1].startswith(LOGS):
            rest = parts[PARTS] if len(parts) > PARTS else ""
            groups.setdefault(tuple(parts[:PARTS]), []).append((rest, int(info.get("size") or 0), _moment(info)))
    for (run_id, task, uuid, name), some in groups.items():
        yield FoundFile(
            run_id, task, uuid, name, tuple((path, size) for path, size, _ in some), max(moment for _, _, moment in some)
        )


def _moment(info: Mapping[str, Any]) -> str:
    """Read when a file was written, which each store calls something else; comparable within one store."""
    value = next((info[key] for key in ("LastModified", "last_modified", "updated", "mtime", "created") if info.get(key)), "")
    if isinstance(value, datetime):
        return value.isoformat()
    return f"{value:020.6f}" if isinstance(value, int | float) else str(value)


def _plain(path: Any) -> str:
    """Write a path as its file system takes it, without scheme and connection."""
    return str(path.path).rstrip("/")
