"""
Where the bytes of artifacts lie: MLflow's artifact proxy, an object store of Airflow's, or a store that only MLflow knows.

One contract for the three: write a file, read a file, list the files below; each by stream, hashed on the way.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import unquote, urlsplit

from airflow.providers.common.compat.sdk import AirflowNotFoundException

from airflow_ml_provider.exceptions import AirflowMLError, ArtifactError, ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi

CHUNK = 1 << 20
PACKAGES = {
    "s3": "apache-airflow-providers-amazon[s3fs]",
    "gs": "apache-airflow-providers-google",
    "abfs": "apache-airflow-providers-microsoft-azure",
}
"""What opens a scheme of URIs for Airflow, for messages."""
CLIENTS = {
    "s3": "boto3",
    "gs": "google-cloud-storage",
    "wasbs": "azure-storage-blob azure-identity",
    "abfss": "azure-storage-file-datalake azure-identity",
    "hdfs": "pyarrow",
    "sftp": "pysftp",
}
"""What opens a scheme of URIs for MLflow's own client, for messages."""
FULL = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Written:
    """
    What was read or written.

    :param sha256: 64 hexadecimal digits.
    :param size: Bytes.
    """

    sha256: str
    size: int


class Place(Protocol):
    """A root below which files lie; paths are relative, with slashes; "" is the root itself."""

    def write(self, path: str, local: Path) -> Written:
        """
        Store one file.

        :param path: Below the root.
        :param local: File to read.
        :return: Digest and size of the bytes that were sent.
        """

    def read(self, path: str, local: Path, size: int | None = None) -> Written:
        """
        Fetch one file.

        :param path: Below the root.
        :param local: File to write; its folder exists.
        :param size: Bytes that are expected, so that the store need not be asked how long to wait for it; None when unknown.
        :return: Digest and size of the bytes that came.
        :raises RemoteNotFoundError: there is no such file.
        """

    def files(self, path: str) -> list[str]:
        """
        List all files below a folder, however deep.

        :param path: Folder below the root.
        :return: Paths relative to the folder; empty where it is a file or nothing.
        """


def place_for(api: MlflowApi, root: str, *, of_mlflow: bool) -> Place:
    """
    Choose the place for a root URI.

    :param api: The MLflow server, for what it proxies.
    :param root: URI of a folder or of a file.
    :param of_mlflow: Whether MLflow named this root, so that it is MLflow's credentials that open it.
    :return: The place.
    """
    scheme = urlsplit(root).scheme
    if scheme == "mlflow-artifacts":
        return ProxyPlace(api, urlsplit(root).path.strip("/"))
    if not of_mlflow or scheme in {"", "file"}:
        return ObjectStoragePlace(root)
    return MlflowStorePlace(root)


class ProxyPlace:
    """
    A folder behind the artifact proxy of the MLflow server.

    :param api: The server.
    :param root: Path below the proxy's root.
    """

    def __init__(self, api: MlflowApi, root: str) -> None:
        self.api = api
        self.root = root
        self._sizes: dict[str, int] = {}

    def write(self, path: str, local: Path) -> Written:
        """Send one file; as :meth:`Place.write`."""
        if "#" in path or unquote(path) != path or not path.isprintable():
            raise ConfigError(
                f"MLflow's artifact proxy does not keep the name {path!r}: it takes no '#', and reads '%41' as 'A'. Rename the "
                "file, or give the step an artifact_root= in an object store."
            )
        meter = _Meter()
        with _local_told(local):
            size = local.stat().st_size
        self.api.upload(_below(self.root, path), meter.through(_pieces(local)), size)
        return meter.written()

    def read(self, path: str, local: Path, size: int | None = None) -> Written:
        """Fetch one file; as :meth:`Place.read`."""
        meter = _Meter()
        try:
            with self.api.download(_below(self.root, path), self._size(path) if size is None else size) as pieces:
                _write_pieces(local, meter.through(pieces))
        except RemoteUnavailableError as error:
            # In front of some object stores the proxy answers 500 for a file that is not there: its listing tells.
            if error.status is not None and not self._lists(path):
                raise RemoteNotFoundError(f"there is no file {_below(self.root, path)}") from error
            raise
        return meter.written()

    def files(self, path: str) -> list[str]:
        """List a folder; as :meth:`Place.files`."""
        found: list[str] = []
        for relative, is_directory in self._list(path):
            found += [f"{relative}/{each}" for each in self.files(_below(path, relative))] if is_directory else [relative]
        return sorted(found)

    def _list(self, folder: str) -> list[tuple[str, bool]]:
        entries = [(_safe(each["path"]), each) for each in self.api.list_files(_below(self.root, folder))]
        self._sizes |= {_below(folder, name): int(each.get("file_size") or 0) for name, each in entries}
        return [(name, bool(each.get("is_dir"))) for name, each in entries]

    def _lists(self, path: str) -> bool:
        folder, _, name = path.rpartition("/")
        return name in {each for each, _ in self._list(folder)}

    def _size(self, path: str) -> int:
        """Look up how large a file is, by which it is waited for; 0 for what is not there."""
        if path not in self._sizes:
            self._list(path.rpartition("/")[0])
        return self._sizes.get(path, 0)


class ObjectStoragePlace:
    """
    A folder that Airflow's ``ObjectStoragePath`` opens: ``s3://``, ``gs://``, ``file://``, an absolute path.

    :param root: URI; ``s3://aws_default@bucket/key`` names an Airflow connection.
    """

    def __init__(self, root: str) -> None:
        from airflow.sdk import ObjectStoragePath

        scheme = urlsplit(root).scheme
        try:
            self.root = ObjectStoragePath(root if scheme else f"file://{root}")
            _ = self.root.fs  # looked up at the first use otherwise, in the words of fsspec
        except (ValueError, ImportError, AirflowNotFoundException) as error:
            package = PACKAGES.get(scheme, "the Airflow provider of that object store")
            raise ConfigError(
                f"{root!r} cannot be opened: {error}. Install {package} on the workers, or use a URI that MLflow keeps "
                "(models:/, runs:/)."
            ) from error

    def write(self, path: str, local: Path) -> Written:
        """Copy one file there; as :meth:`Place.write`."""
        meter, target = _Meter(), self.root / path
        with store_told(target), _full_disk_told(str(target), "Free some there"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                for piece in meter.through(_pieces(local)):
                    out.write(piece)
        return meter.written()

    def read(self, path: str, local: Path, size: int | None = None) -> Written:  # noqa: ARG002  (the protocol)
        """Copy one file from there; as :meth:`Place.read`."""
        meter, source = _Meter(), self.root / path if path else self.root
        with store_told(source), source.open("rb") as stream:
            _write_pieces(local, meter.through(iter(lambda: stream.read(CHUNK), b"")))
        return meter.written()

    def files(self, path: str) -> list[str]:
        """List a folder; as :meth:`Place.files`."""
        folder = self.root / path if path else self.root
        with store_told(folder):
            if not folder.is_dir():
                return []
            base = str(folder).rstrip("/") + "/"
            return sorted(_safe(str(each).removeprefix(base)) for each in folder.rglob("*") if each.is_file())


class MlflowStorePlace:
    """
    A folder in a store that MLflow's own client opens with its own credentials (S3 without proxy, DBFS, HDFS, ...).

    :param root: URI of the folder.
    """

    def __init__(self, root: str) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self.root = root
        with store_told(root, CLIENTS):
            try:
                self.repository = get_artifact_repository(root)
            except MlflowException as error:
                raise ConfigError(f"MLflow's client on this worker cannot open {root!r}: {error}") from error

    def write(self, path: str, local: Path) -> Written:
        """Let MLflow send one file; as :meth:`Place.write`."""
        written, target = hash_file(local), f"{self.root}/{path}"
        with (
            store_told(target, CLIENTS),
            _full_disk_told(target, "Free some there"),
            tempfile.TemporaryDirectory(prefix="airflow-ml-") as folder,
        ):
            named = Path(folder) / PurePosixPath(path).name
            named.symlink_to(local.resolve())
            self.repository.log_artifact(str(named), str(PurePosixPath(path).parent).removeprefix("."))
        return written

    def read(self, path: str, local: Path, size: int | None = None) -> Written:  # noqa: ARG002  (the protocol)
        """Let MLflow fetch one file; as :meth:`Place.read`."""
        source = f"{self.root}/{path}"
        with (
            store_told(source, CLIENTS),
            _full_disk_told(str(local), _more_space()),
            tempfile.TemporaryDirectory(prefix="airflow-ml-", dir=local.parent) as folder,
        ):
            try:
                shutil.move(self.repository.download_artifacts(path, folder), local)
            except Exception as error:
                # MLflow downloads in threads of its own, and hands their errors on as text.
                if any(os.strerror(each) in str(error) for each in FULL):
                    raise OSError(errno.ENOSPC, str(error)) from error
                if self._lacks(path):
                    raise RemoteNotFoundError(f"there is no file {source}") from error
                raise
        return hash_file(local)

    def _lacks(self, path: str) -> bool:
        """Say whether the store's own listing lacks a file: only that tells a missing one from a store that is away."""
        folder = path.rpartition("/")[0]
        return path != "" and path not in {entry.path for entry in self.repository.list_artifacts(folder or None)}

    def files(self, path: str) -> list[str]:
        """List a folder; as :meth:`Place.files`."""
        found: list[str] = []
        with store_told(f"{self.root}/{path}", CLIENTS):
            for entry in self.repository.list_artifacts(path or None):
                relative = _safe(str(PurePosixPath(entry.path).relative_to(path or ".")))
                below = _below(path, relative)
                found += [f"{relative}/{each}" for each in self.files(below)] if entry.is_dir else [relative]
        return sorted(found)


def hash_file(local: Path) -> Written:
    """
    Hash a local file by stream.

    :param local: The file.
    :return: Digest and size.
    """
    meter = _Meter()
    for _ in meter.through(_pieces(local)):
        pass
    return meter.written()


def hash_tree(files: Iterable[tuple[str, Written]]) -> Written:
    r"""
    Fold the digests of a directory's files into one.

    :param files: Relative path with slashes, and what it holds; in any order.
    :return: sha256 over the lines ``<sha256>  <path>\n`` sorted by path (what ``sha256sum`` prints), and the summed size.
    """
    listed = sorted(files)
    text = "".join(f"{written.sha256}  {path}\n" for path, written in listed)
    return Written(hashlib.sha256(text.encode()).hexdigest(), sum(written.size for _, written in listed))


class _Meter:
    """Counts and hashes what flows through it."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.size = 0

    def through(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self.digest.update(piece)
            self.size += len(piece)
            yield piece

    def written(self) -> Written:
        return Written(self.digest.hexdigest(), self.size)


def _pieces(local: Path) -> Iterator[bytes]:
    with _local_told(local), local.open("rb") as stream:
        while piece := stream.read(CHUNK):
            yield piece


def _write_pieces(local: Path, pieces: Iterable[bytes]) -> None:
    with _full_disk_told(str(local), _more_space()), local.open("wb") as out:
        for piece in pieces:
            out.write(piece)


def _more_space() -> str:
    return f"Free some, or point TMPDIR (now {tempfile.gettempdir()}) to a larger disk"


@contextmanager
def _local_told(local: Path) -> Iterator[None]:
    """Turn a file of the step that cannot be read into an error that says so, whatever client was to send it."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{local} cannot be read, so it cannot be stored: {error}. Write it as a plain file.") from error


@contextmanager
def _full_disk_told(where: str, remedy: str) -> Iterator[None]:
    """Turn a full disk into an error that says which."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise ArtifactError(f"no space left while writing {where}. {remedy}; then retry.") from error


@contextmanager
def store_told(place: object, packages: Mapping[str, str] = PACKAGES) -> Iterator[None]:
    """
    Turn what an object store raises, each store its own errors, into ours.

    :param place: What is read or written, for messages.
    :param packages: What opens a scheme of URIs.
    """
    try:
        yield
    except AirflowMLError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RemoteNotFoundError(f"there is no file {place}") from error
    except ImportError as error:
        package = packages.get(urlsplit(str(place)).scheme, error.name)
        raise ConfigError(f"{place} cannot be opened: {error}. On the workers: pip install {package}") from error
    except OSError as error:
        # Clients make their own kinds of OSError for a connection that is lost; those have no number.
        if error.errno is None or isinstance(error, ConnectionError | TimeoutError):
            raise RemoteUnavailableError(f"the store of {place} did not answer: {error}. A retry is safe.") from error
        raise ArtifactError(f"{place} cannot be read or written: {error}. Check its space and its permissions.") from error
    except Exception as error:
        if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
            raise RemoteNotFoundError(f"there is no file {place}") from error
        raise RemoteUnavailableError(
            f"the store of {place} answered {type(error).__name__}: {error}. Check its address and the credentials; then retry."
        ) from error


def _below(root: str, path: str) -> str:
    return "/".join(part for part in (root.strip("/"), path.strip("/")) if part)


def _safe(path: str) -> str:
    """Refuse a name from a store's listing that would climb out of the folder."""
    if path.startswith("/") or ".." in PurePosixPath(path).parts:
        raise ArtifactError(f"the artifact store lists {path!r}, which would be written outside of the step's folder. Refused.")
    return path
