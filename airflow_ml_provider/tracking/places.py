"""
Where the bytes of artifacts lie: MLflow's artifact proxy, an object store of Airflow's, or a store that only MLflow knows.

One contract for the three: write a file, read a file, list the files below; each by stream, hashed on the way.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import unquote, urlsplit

from airflow_ml_provider.exceptions import AirflowMLError, ArtifactError, ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowApi

CHUNK = 1 << 20
PACKAGES = {
    "s3": "apache-airflow-providers-amazon[s3fs]",
    "gs": "apache-airflow-providers-google",
    "abfs": "apache-airflow-providers-microsoft-azure",
}
"""What opens a scheme of URIs, for messages."""


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

    def read(self, path: str, local: Path) -> Written:
        """
        Fetch one file.

        :param path: Below the root.
        :param local: File to write; its folder exists.
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

    def write(self, path: str, local: Path) -> Written:
        """Send one file; as :meth:`Place.write`."""
        if "#" in path or unquote(path) != path or not path.isprintable():
            raise ConfigError(
                f"MLflow's artifact proxy does not keep the name {path!r}: it takes no '#', and reads '%41' as 'A'. Rename the "
                "file, or give the step an artifact_root= in an object store."
            )
        meter = _Meter()
        size = local.stat().st_size
        self.api.upload(_below(self.root, path), meter.through(_pieces(local)), size)
        return meter.written()

    def read(self, path: str, local: Path) -> Written:
        """Fetch one file; as :meth:`Place.read`."""
        meter = _Meter()
        with self.api.download(_below(self.root, path)) as pieces:
            _write_pieces(local, meter.through(pieces))
        return meter.written()

    def files(self, path: str) -> list[str]:
        """List a folder; as :meth:`Place.files`."""
        found: list[str] = []
        for entry in self.api.list_files(_below(self.root, path)):
            relative = _safe(entry["path"])
            if entry.get("is_dir"):
                found += [f"{relative}/{each}" for each in self.files(_below(path, relative))]
            else:
                found.append(relative)
        return sorted(found)


class ObjectStoragePlace:
    """
    A folder that Airflow's ``ObjectStoragePath`` opens: ``s3://``, ``gs://``, ``file://``, an absolute path.

    :param root: URI; ``s3://aws_default@bucket/key`` names an Airflow connection.
    """

    def __init__(self, root: str) -> None:
        from airflow.sdk import ObjectStoragePath
        from airflow.sdk.exceptions import AirflowNotFoundException

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
        with _store_told(target), _full_disk_told(str(target), "Free some there"):
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as out:
                for piece in meter.through(_pieces(local)):
                    out.write(piece)
        return meter.written()

    def read(self, path: str, local: Path) -> Written:
        """Copy one file from there; as :meth:`Place.read`."""
        meter, source = _Meter(), self.root / path if path else self.root
        with _store_told(source), source.open("rb") as stream:
            _write_pieces(local, meter.through(iter(lambda: stream.read(CHUNK), b"")))
        return meter.written()

    def files(self, path: str) -> list[str]:
        """List a folder; as :meth:`Place.files`."""
        folder = self.root / path if path else self.root
        with _store_told(folder):
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
        from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

        self.repository = get_artifact_repository(root)

    def write(self, path: str, local: Path) -> Written:
        """Let MLflow send one file; as :meth:`Place.write`."""
        with tempfile.TemporaryDirectory(prefix="airflow-ml-") as folder:
            named = Path(folder) / PurePosixPath(path).name
            named.symlink_to(local.resolve())
            self.repository.log_artifact(str(named), str(PurePosixPath(path).parent).removeprefix("."))
        return hash_file(local)

    def read(self, path: str, local: Path) -> Written:
        """Let MLflow fetch one file; as :meth:`Place.read`."""
        from mlflow.exceptions import MlflowException

        with tempfile.TemporaryDirectory(prefix="airflow-ml-", dir=local.parent) as folder:
            try:
                shutil.move(self.repository.download_artifacts(path, folder), local)
            except (MlflowException, OSError) as error:
                raise RemoteNotFoundError(f"MLflow could not fetch {path!r}: {error}") from error
        return hash_file(local)

    def files(self, path: str) -> list[str]:
        """List a folder; as :meth:`Place.files`."""
        found: list[str] = []
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
    with local.open("rb") as stream:
        while piece := stream.read(CHUNK):
            yield piece


def _write_pieces(local: Path, pieces: Iterable[bytes]) -> None:
    remedy = f"Free some, or point TMPDIR (now {tempfile.gettempdir()}) to a larger disk"
    with _full_disk_told(str(local), remedy), local.open("wb") as out:
        for piece in pieces:
            out.write(piece)


@contextmanager
def _full_disk_told(where: str, remedy: str) -> Iterator[None]:
    """Turn a full disk into an error that says which."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise ArtifactError(f"no space left while writing {where}. {remedy}; then retry.") from error


@contextmanager
def _store_told(place: object) -> Iterator[None]:
    """Turn what an object store raises, each store its own errors, into ours."""
    try:
        yield
    except AirflowMLError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RemoteNotFoundError(f"there is no file {place}") from error
    except ImportError as error:
        raise ConfigError(f"{place} cannot be opened: {error}. Install it (or the Airflow provider).") from error
    except (ConnectionError, TimeoutError) as error:
        raise RemoteUnavailableError(f"the store of {place} did not answer: {error}. A retry is safe.") from error
    except OSError as error:
        raise ArtifactError(f"{place} cannot be read or written: {error}. Check its space and its permissions.") from error
    except Exception as error:
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
