"""
The container's half of a step: brings the inputs, runs the program, takes the outputs away, and says how it ended.

Copied into an image and run as ``python -m airflow_ml_step run -- CMD``, or handed to ``python3 -c`` by the operator. So it is
one file, for Python 3.8 and later, without any package: that is why it is longer than the 400 lines of other modules. What it
reads and writes is described in ``airflow_ml_provider/models/pod_step.py``.

A program may also ``import airflow_ml_step`` (it is on its path): :func:`load`, :func:`log_metric`, :func:`log_param`,
:func:`upload`, :func:`save_checkpoint`, :func:`last_checkpoint`. Programs in other languages find ``AIRFLOW_ML_INPUT_<NAME>``,
``AIRFLOW_ML_OUTPUT_<NAME>`` and ``AIRFLOW_ML_PARAMETERS`` in their environment, and append lines such as
``{"key": "loss", "value": 0.3, "step": 7}`` to ``$AIRFLOW_ML_FOLDER/metrics.jsonl``.
"""

from __future__ import annotations
import __future__

import atexit
import base64
import contextlib
import hashlib
import http.client
import importlib
import json
import linecache
import math
import os
import posixpath
import random
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import typing
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = [
    "Artifact", "Dataset", "Metrics", "Model", "last_checkpoint", "load", "log_metric", "log_param", "save_checkpoint", "upload",
]  # fmt: skip

VERSION = 1
EXIT_CODES = {"config": 64, "input": 65, "output": 66, "store": 69}
MESSAGE_BYTES = 4096
CHUNK = 1 << 20
FLUSH_EVERY_S, PAUSE_S, SEND_S, DRAIN_S = 5.0, 30.0, 4.0, 20.0
POINTS_PER_BATCH, UNSENT_POINTS = 1000, 10_000
"""MLflow's limit of one request; how many points the manifest holds that MLflow did not take, the newest."""
REQUEST_S, TRANSFER_S, TRANSFER_BYTES_PER_S = 30.0, 60.0, 5_000_000
STOPS, PASSED_ON = (signal.SIGTERM, signal.SIGINT), (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
API, PROXY = "/api/2.0/mlflow/", "/api/2.0/mlflow-artifacts/artifacts"
TEXT_LENGTH = 6000
SERVER_ERROR = 500

Written = typing.Tuple[str, int]  # noqa: UP006  (evaluated, which Python 3.8 cannot)
Fields = typing.Dict[str, Any]  # noqa: UP006


class StepError(Exception):
    """What ends a step and is not its program's doing; ``state`` is the protocol's word for it."""

    state = "config"


class ConfigError(StepError, ValueError):
    """The context, the image or the program's use of this file is wrong, or a server refused; a retry never helps."""


class InputError(StepError):
    """An input is gone or altered."""

    state = "input"


class OutputError(StepError):
    """An output was never written, or cannot be read."""

    state = "output"


class NeverWrittenError(OutputError):
    """There is nothing where an output belongs."""


class UnavailableError(StepError):
    """A server did not answer; a retry is safe."""

    state = "store"


class NotFoundError(StepError):
    """A store answered that it has no such file."""

    state = "store"


class Told(BaseException):
    """A signal told this process to stop while it could be interrupted."""


def say(text: str) -> None:
    """Write a line of our own into the pod's log."""
    sys.stderr.write("airflow_ml_step: " + text.encode("utf-8", "replace").decode() + "\n")
    sys.stderr.flush()


# Texts and numbers


def plain_number(value: float) -> float | str:
    """Write a number as MLflow's JSON and the manifest take it: NaN and infinities are texts there."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def mlflow_name(name: str) -> str:
    """Write a name as MLflow takes one, what it refuses replaced by ``_``; as the provider does for steps in workers."""
    plain = re.sub(r"[^\w./: -]", "_", name)[:250]
    return posixpath.normpath(plain).lstrip("/.") or "_" if "/" in plain or plain.startswith(".") else plain or "_"


def dump_metrics(values: Mapping[str, Any]) -> str:
    """Write the file of an ``Output[Metrics]``, as a step in a worker does."""
    plain = {key: str(each) if isinstance(each, float) and not math.isfinite(each) else each for key, each in values.items()}
    return json.dumps(plain, indent=2, sort_keys=True, default=str)


def load_metrics(text: str) -> Fields:
    """Read what :func:`dump_metrics` wrote: texts that are numbers are floats again, NaN included."""
    found: Fields = json.loads(text)
    for key, value in found.items():
        if isinstance(value, str):
            with contextlib.suppress(ValueError):
                found[key] = float(value)
    return found


def oom_kills(text: str) -> int:
    """Read the kernel's count of killed processes from ``memory.events`` (cgroup v2) or ``memory.oom_control`` (v1)."""
    found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
    return int(found.group(1)) if found else 0


def oom_files(cgroups: str) -> list[str]:
    """Say where that count may lie, from ``/proc/self/cgroup``; in a container mostly at the root of the mount."""
    lines = [each.split(":", 2) for each in cgroups.splitlines() if each.count(":") > 1]
    old = [path.rstrip("/") for _, names, path in lines if "memory" in names.split(",")]
    new = [path.rstrip("/") for number, _, path in lines if number == "0"]
    files = [f"memory{path}/memory.oom_control" for path in [*old, ""]] + [f".{path}/memory.events" for path in [*new, ""]]
    return [posixpath.normpath(f"/sys/fs/cgroup/{each}") for each in files]


def count_oom_kills() -> int:
    """Count the processes of this container that the kernel has killed for memory so far; 0 where nobody says."""
    try:
        files = [os.environ["AIRFLOW_ML_OOM_FILE"]] if "AIRFLOW_ML_OOM_FILE" in os.environ else None
        for each in files or oom_files(Path("/proc/self/cgroup").read_text()):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                return oom_kills(Path(each).read_text())
    except OSError as error:
        say(f"kills for memory cannot be counted: {error}")
    return 0


def message_text(fields: Fields, metrics: Mapping[str, Any]) -> bytes:
    """Write the termination message: valid JSON in 4,096 bytes; the error is cut, then as many metrics as there is room for."""

    def dump(error: str, some: Mapping[str, Any]) -> bytes:
        told = {**fields, "error": error, "metrics": some}
        return json.dumps(told, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")

    error, room = str(fields.get("error", "")), MESSAGE_BYTES
    if len(dump(error, {})) > room:
        fits, too_long = 0, min(len(error), room)  # letters take one to six bytes, so the place of the cut is searched
        while too_long - fits > 1:
            middle = (fits + too_long) // 2
            fits, too_long = (middle, too_long) if len(dump(error[:middle] + "...", {})) <= room else (fits, middle)
        error = error[:fits] + "..."
    room -= len(dump(error, {}))
    kept: Fields = {}
    for key, value in metrics.items():
        room -= len(json.dumps({key: value}, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace"))
        if room < 0:
            break
        kept[key] = value
    return dump(error, kept)


# Files


def hash_tree(files: Iterable[tuple[str, Written]]) -> Written:
    """Fold the digests of a directory's files into one: sha256 over what ``sha256sum`` prints, sorted by path."""
    listed = sorted(files)
    text = "".join(f"{sha256}  {path}\n" for path, (sha256, _) in listed)
    return hashlib.sha256(text.encode()).hexdigest(), sum(size for _, (_, size) in listed)


class Meter:
    """Counts and hashes the bytes that go through it."""

    def __init__(self) -> None:
        self.digest, self.size = hashlib.sha256(), 0

    def send(self, local: Path) -> Iterator[bytes]:
        """Read a file in pieces, no more than it had when that began: the server was told that number."""
        try:
            with local.open("rb") as stream:
                left = os.fstat(stream.fileno()).st_size
                while left:
                    piece = stream.read(min(CHUNK, left))
                    if not piece:
                        raise OutputError(f"{local} became shorter while it was stored. End what still writes to it.")
                    left -= len(piece)
                    self._take(piece)
                    yield piece
        except OSError as error:
            raise unreadable(local, error) from error

    def receive(self, stream: Any, local: Path) -> None:
        """Write a stream to a file."""
        try:
            out = local.open("wb")
        except OSError as error:
            raise InputError(f"{local} cannot be written: {error}. Look at the pod's volume.") from error
        with out:
            for piece in iter(lambda: stream.read(CHUNK), b""):
                self._take(piece)
                out.write(piece)

    def _take(self, piece: bytes) -> None:
        self.digest.update(piece)
        self.size += len(piece)

    def written(self) -> Written:
        """Say what went through."""
        return self.digest.hexdigest(), self.size


def unreadable(local: Path, error: OSError) -> OutputError:
    """Say what keeps something that was written from being stored; the user who wrote it may be another than this one."""
    remedy = "Write it as a plain file."
    if isinstance(error, PermissionError):
        remedy = (
            "It is another user's: let the program write what all may read (umask 022, chmod -R a+rX), or name its user by "
            "runAsUser in container_security_context, and a sidecar is that user too."
        )
    return OutputError(f"{local} cannot be read, so it cannot be stored: {error}. {remedy}")


def hash_file(local: Path) -> Written:
    """Hash a file in pieces."""
    meter = Meter()
    for _ in meter.send(local):
        pass
    return meter.written()


def as_text(name: str) -> str:
    """Refuse a file name whose bytes are no UTF-8: neither a digest nor a manifest could name it."""
    if name != name.encode("utf-8", "replace").decode():
        raise OutputError(f"the name of the file {name!r} is not UTF-8. Rename it.")
    return name


def files_of(folder: Path) -> list[tuple[str, Path]]:
    """List the files of a directory by relative path; a link to a folder, or to nothing, is refused: it would be left out."""
    found = []
    try:
        for parent, folders, names in os.walk(str(folder), onerror=_not_listed):
            for each in [Path(parent, name) for name in (*folders, *names)]:
                if each.is_file():
                    found.append((as_text(each.relative_to(folder).as_posix()), each))
                elif each.is_symlink():
                    raise OutputError(
                        f"{each} is a link to a folder, or to nothing, and cannot be stored. Copy what it points to, or "
                        "remove it."
                    )
    except OSError as error:
        raise unreadable(Path(error.filename or folder), error) from error
    return sorted(found)


def _not_listed(error: OSError) -> None:
    """Let a folder that may not be listed be told: what is in it would be left out in silence."""
    raise error


def hash_any(local: Path) -> Written:
    """Hash a file or a directory."""
    return hash_tree((name, hash_file(each)) for name, each in files_of(local)) if local.is_dir() else hash_file(local)


def write_file(file: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"{file.name}.{os.getpid()}")
    part.write_bytes(text.encode())
    part.replace(file)


def below(root: str, path: str) -> str:
    """Join two paths with slashes, either of which may be empty."""
    return "/".join(part for part in (root.strip("/"), path.strip("/")) if part)


def safe(path: str) -> str:
    """Refuse a name from a store's listing that would climb out of its folder."""
    if path.startswith("/") or ".." in path.split("/"):
        raise InputError(f"the artifact store lists {path!r}, which would be written outside of the step's folder. Refused.")
    return path


# HTTP


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Credentials go to the server that they are for, and to no other."""

    def redirect_request(self, *_: Any) -> None:
        """Follow nothing: the answer becomes an error."""


def exchange(request: urllib.request.Request, timeout_s: float, *, follow: bool = False) -> http.client.HTTPResponse:
    """Send one request once; what goes wrong becomes an error by remedy. A URL's query, which may sign it, is never told."""
    where = f"{request.get_method()} {request.full_url.partition('?')[0]}"
    opener = urllib.request.build_opener(*([] if follow else [_NoRedirects]))
    try:
        answer: http.client.HTTPResponse = opener.open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        raise refusal(error, where) from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise UnavailableError(f"{where}: no answer: {reason or type(error).__name__}. A retry is safe.") from None
    return answer


def refusal(answer: urllib.error.HTTPError, where: str) -> StepError:
    """Say what an error answer means for who has to mend it."""
    text, code = "", ""
    with contextlib.suppress(OSError, http.client.HTTPException), answer:
        text = answer.read(4000).decode("utf-8", "replace")
    with contextlib.suppress(ValueError, AttributeError):
        body = json.loads(text)
        code, text = str(body.get("error_code", "")), str(body.get("message", ""))
    said = f"{where} answered {answer.code}: {' '.join(text.split())[:500] or answer.reason}"
    if answer.code in (408, 425, 429) or answer.code >= SERVER_ERROR:
        return UnavailableError(f"{said}. A retry is safe.")
    if code == "RESOURCE_DOES_NOT_EXIST" or "<Code>NoSuchKey</Code>" in text:
        return NotFoundError(said)
    remedy = {401: "Check the credentials that the pod mounts.", 403: "Grant that user the permission."}
    return ConfigError(f"{said}. {remedy.get(answer.code, 'A retry gives the same answer.')}")


class Patience:
    """How long a server that does not answer is asked again; counted anew after every answer."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._until: float | None = None
        self._end = math.inf

    def hurry(self, seconds: float) -> None:
        """Ask once from now on, and wait for no answer beyond that time."""
        self.limit_s, self._end = 0.0, time.monotonic() + seconds

    def timeout_s(self, wanted_s: float) -> float:
        """Bound the time for one request."""
        return max(0.5, min(wanted_s, self._end - time.monotonic()))

    def run(self, action: Callable[[], Any]) -> Any:
        """Do something until it is through, or the patience is at its end."""
        wait_s = 0.5
        while True:
            try:
                result = action()
            except UnavailableError as error:
                now, pause_s = time.monotonic(), wait_s * (1 + random.random())  # noqa: S311  (spreads the load)
                self._until = self._until or now + self.limit_s
                if now + pause_s > self._until:
                    raise
                say(f"{error} Trying again in {pause_s:.1f} s.")
                time.sleep(pause_s)
                wait_s = min(wait_s * 2, 10.0)
            else:
                self._until = None
                return result


class Server:
    """The MLflow server of the context, as whoever the mounted credentials name at that moment."""

    def __init__(self, spec: Fields, patience: Patience) -> None:
        self.url, self.run_id = str(spec.get("url") or "").rstrip("/"), str(spec.get("run_id") or "")
        self.workspace, self.credentials = str(spec.get("workspace") or ""), str(spec.get("credentials") or "")
        self.patience = patience

    def secrets(self) -> dict[str, str]:
        """Read the credentials anew: a mounted token changes while the step runs."""
        if not self.credentials:
            return {}
        files = [each for each in (Path(self.credentials, name) for name in ("username", "password", "token")) if each.is_file()]
        try:
            found = {each.name: each.read_text().strip() for each in files}
        except OSError as error:
            raise ConfigError(f"the credentials of MLflow cannot be read: {error}. Check the Secret's mode and keys.") from error
        if "token" not in found and "username" not in found:
            raise ConfigError(f"{self.credentials} holds neither 'token' nor 'username' and 'password'. Check the Secret's keys.")
        return found

    def headers(self) -> dict[str, str]:
        """Say who asks."""
        secrets, headers = self.secrets(), {"X-MLFLOW-WORKSPACE": self.workspace} if self.workspace else {}
        if "username" in secrets:
            both = f"{secrets['username']}:{secrets.get('password', '')}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(both).decode()}"
        elif secrets:
            headers["Authorization"] = f"Bearer {secrets['token']}"
        return headers

    def json(self, method: str, path: str, body: Fields | None = None, timeout_s: float = REQUEST_S) -> Fields:
        """Exchange JSON, once."""
        headers = {**self.headers(), "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers, method=method)  # noqa: S310  (the operator's URL)
        with exchange(request, self.patience.timeout_s(timeout_s)) as answer:
            try:
                found: Fields = json.loads(answer.read())
            except ValueError:
                raise ConfigError(f"{self.url} did not answer with JSON; that is not an MLflow server. Check its URL.") from None
            except (OSError, http.client.HTTPException) as error:
                raise UnavailableError(f"the answer of {self.url} broke off: {error}. A retry is safe.") from None
        return found

    def put(self, url: str, headers: dict[str, str], local: Path, *, follow: bool = False) -> Written:
        """Send one file by stream, once."""
        meter, size = Meter(), local.stat().st_size
        headers = {**headers, "Content-Length": str(size), "Content-Type": "application/octet-stream"}
        timeout_s = self.patience.timeout_s(TRANSFER_S + size / TRANSFER_BYTES_PER_S)
        request = urllib.request.Request(url, meter.send(local), headers, method="PUT")  # noqa: S310
        with exchange(request, timeout_s, follow=follow) as answer:
            if not follow and answer.read(200).strip() not in {b"", b"{}"}:
                raise ConfigError(f"{self.url} took no file: a proxy or a login page answered. Use an address behind it.")
        return meter.written()

    def get(self, url: str, headers: dict[str, str], local: Path, size: int = 0, *, follow: bool = False) -> Written:
        """Fetch one file by stream, once; one that breaks off is an error."""
        meter, request = Meter(), urllib.request.Request(url, headers=headers)  # noqa: S310
        timeout_s = self.patience.timeout_s(TRANSFER_S + size / TRANSFER_BYTES_PER_S)
        with exchange(request, timeout_s, follow=follow) as answer:
            try:
                meter.receive(answer, local)
            except http.client.HTTPException as error:
                raise UnavailableError(f"a file broke off after {meter.size} bytes: {error!r}. A retry is safe.") from None
            except OSError as error:
                if error.errno in (28, 122):  # no space, or a quota
                    raise InputError(f"no space left for {local}. Give the pod's volume more, or the node.") from error
                raise UnavailableError(f"a file broke off after {meter.size} bytes: {error}. A retry is safe.") from None
            length = answer.headers.get("Content-Length")
        if length is not None and int(length) != meter.size:
            raise UnavailableError(f"a file broke off after {meter.size} of {length} bytes. A retry is safe.")
        return meter.written()


# Stores: write a file, read a file, list the files below, delete a file


class ProxyStore:
    """A folder behind MLflow's artifact proxy."""

    def __init__(self, server: Server, root: str) -> None:
        self.server, self.root = server, root
        self._sizes: dict[str, int] = {}

    def _url(self, path: str) -> str:
        return f"{self.server.url}{PROXY}/{urllib.parse.quote(below(self.root, path))}"

    def write(self, path: str, local: Path) -> Written:
        """Send one file, again until it is through."""
        if "#" in path or urllib.parse.unquote(path) != path or not path.isprintable():
            raise OutputError(
                f"MLflow's artifact proxy does not keep the name {path!r}: it takes no '#', and reads '%41' as 'A'. Rename "
                "the file."
            )
        server = self.server
        return typing.cast("Written", server.patience.run(lambda: server.put(self._url(path), server.headers(), local)))

    def read(self, path: str, local: Path) -> Written:
        """Fetch one file, again until it is whole; the proxy answers only once it has all of it, so a large one takes long."""
        server, whole = self.server, below(self.root, path)
        if whole not in self._sizes:
            self._list(whole.rpartition("/")[0])
        size = self._sizes.get(whole, 0)
        return typing.cast("Written", server.patience.run(lambda: server.get(self._url(path), server.headers(), local, size)))

    def _list(self, folder: str) -> list[tuple[str, bool]]:
        query = f"{PROXY}?path={urllib.parse.quote(folder, safe='')}"
        found = self.server.patience.run(lambda: self.server.json("GET", query)).get("files", [])
        self._sizes.update({below(folder, each["path"]): int(each.get("file_size") or 0) for each in found})
        return [(safe(each["path"]), bool(each.get("is_dir"))) for each in found]

    def files(self, path: str) -> list[str]:
        """List all files below a folder, however deep; nothing for a file."""
        found: list[str] = []
        for name, is_folder in self._list(below(self.root, path)):
            found += [f"{name}/{more}" for more in self.files(below(path, name))] if is_folder else [name]
        return sorted(found)

    def delete(self, path: str) -> None:
        """Delete one file."""
        self.server.patience.run(lambda: self.server.json("DELETE", self._url(path)[len(self.server.url) :]))


class UrlStore:
    """One file behind a presigned URL, which is never told."""

    def __init__(self, server: Server, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError("a presigned URL does not begin with http:// or https://.")
        self.server, self.url = server, url

    def write(self, _: str, local: Path) -> Written:
        """Send the file."""
        return typing.cast("Written", self.server.patience.run(lambda: self.server.put(self.url, {}, local, follow=True)))

    def read(self, _: str, local: Path) -> Written:
        """Fetch the file."""
        return typing.cast("Written", self.server.patience.run(lambda: self.server.get(self.url, {}, local, follow=True)))

    def files(self, _: str) -> list[str]:
        """List nothing: it is a file."""
        return []


def package(name: str, uri: str) -> Any:
    """Import what only the image can have."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"{uri} needs the package {name.partition('.')[0]!r} in the image: {error}. Install it there, or keep artifacts "
            "behind MLflow's artifact proxy (mlflow server --serve-artifacts), which needs none."
        ) from error


class PackageStore:
    """A folder that a package of the image opens, with its own credentials; each raises its own kinds of errors."""

    def __init__(self, uri: str, opened: Callable[[], Any], patience: Patience) -> None:
        self.root, self.patience = uri.rstrip("/"), patience
        self.opened = self._told(opened)

    def _told(self, action: Callable[[], Any]) -> Any:
        def translated() -> Any:
            try:
                return action()
            except (StepError, MemoryError):
                raise
            except ImportError as error:
                raise ConfigError(f"{self.root} cannot be opened: {error}. Install that in the image.") from error
            except NotImplementedError as error:
                raise ConfigError(f"the store of {self.root} cannot do that: {error}.") from error
            except FileNotFoundError as error:
                raise NotFoundError(f"there is no file {error} in {self.root}") from error
            except Exception as error:  # whatever its client raises
                raise UnavailableError(f"the store of {self.root} answered {type(error).__name__}: {error}.") from error

        return self.patience.run(translated)


class FsspecStore(PackageStore):
    """A folder that ``fsspec`` opens."""

    def __init__(self, uri: str, patience: Patience) -> None:
        module = package("fsspec", uri)
        super().__init__(uri, lambda: module.core.url_to_fs(uri), patience)
        self.system, self.folder = self.opened[0], self.opened[1].rstrip("/")

    def _path(self, path: str) -> str:
        return f"{self.folder}/{path}" if path else self.folder

    def write(self, path: str, local: Path) -> Written:
        """Copy one file there."""

        def copy() -> Written:
            meter = Meter()
            self.system.makedirs(posixpath.dirname(self._path(path)), exist_ok=True)
            with self.system.open(self._path(path), "wb") as out:
                for piece in meter.send(local):
                    out.write(piece)
            return meter.written()

        return typing.cast("Written", self._told(copy))

    def read(self, path: str, local: Path) -> Written:
        """Copy one file from there."""

        def copy() -> Written:
            meter = Meter()
            with self.system.open(self._path(path), "rb") as stream:
                meter.receive(stream, local)
            return meter.written()

        return typing.cast("Written", self._told(copy))

    def files(self, path: str) -> list[str]:
        """List a folder."""
        folder = self._path(path)
        found = self._told(lambda: self.system.find(folder) if self.system.isdir(folder) else [])
        return sorted(safe(each[len(folder) :].lstrip("/")) for each in found)

    def delete(self, path: str) -> None:
        """Delete one file."""
        self._told(lambda: self.system.rm_file(self._path(path)))


class MlflowStore(PackageStore):
    """A folder that MLflow's own client opens."""

    def __init__(self, uri: str, patience: Patience) -> None:
        module = package("mlflow.store.artifact.artifact_repository_registry", uri)
        super().__init__(uri, lambda: module.get_artifact_repository(uri), patience)

    def write(self, path: str, local: Path) -> Written:
        """Let MLflow send one file."""
        written = hash_file(local)
        with tempfile.TemporaryDirectory() as folder:
            named = Path(folder, posixpath.basename(path))
            named.symlink_to(local.resolve())
            self._told(lambda: self.opened.log_artifact(str(named), posixpath.dirname(path) or None))
        return written

    def read(self, path: str, local: Path) -> Written:
        """Let MLflow fetch one file; its own listing says whether one is missing."""
        with tempfile.TemporaryDirectory(dir=str(local.parent)) as folder:
            if path and path not in self._names(posixpath.dirname(path)):
                raise NotFoundError(f"there is no file {self.root}/{path}")
            shutil.move(self._told(lambda: self.opened.download_artifacts(path, folder)), str(local))
        return hash_file(local)

    def _names(self, folder: str) -> dict[str, bool]:
        return {each.path: each.is_dir for each in self._told(lambda: self.opened.list_artifacts(folder or None))}

    def files(self, path: str) -> list[str]:
        """List a folder."""
        found: list[str] = []
        for name, is_folder in self._names(path).items():
            relative = safe(posixpath.relpath(name, path or "."))
            found += [f"{relative}/{each}" for each in self.files(below(path, relative))] if is_folder else [relative]
        return sorted(found)

    def delete(self, path: str) -> None:
        """Let MLflow delete one file."""
        self._told(lambda: self.opened.delete_artifacts(path))


def open_store(place: Fields, server: Server) -> Any:
    """Open a place of the context."""
    kind = place.get("kind")
    if kind == "proxy":
        if not server.url:
            raise ConfigError("the context names MLflow's artifact proxy and no MLflow server.")
        return ProxyStore(server, place["path"])
    if kind == "url":
        return UrlStore(server, place["url"])
    if kind in ("fsspec", "mlflow"):
        return (FsspecStore if kind == "fsspec" else MlflowStore)(place["uri"], server.patience)
    raise ConfigError(f"the context names a place of kind {kind!r}, which this airflow_ml_step.py does not know.")


def open_parent(place: Fields, server: Server) -> tuple[Any, str]:
    """Open a place that may be a file itself: the store, and the path in it; packages open folders only."""
    folder, _, name = str(place.get("uri") or "").rpartition("/")
    if not name or folder.endswith("/"):
        return open_store(place, server), ""
    return open_store({**place, "uri": folder}, server), name


def fetch_any(store: Any, path: str, target: Path, directory: bool | None) -> Written:
    """Bring a file or a directory here; where nobody knows which it is, the store is asked."""
    names = store.files(path) if directory is not False else []
    if not names and not directory:
        return typing.cast("Written", store.read(path, target))
    if not names:
        raise NotFoundError("the folder is empty or gone")
    found = []
    for name in names:
        local = target / name
        local.parent.mkdir(parents=True, exist_ok=True)
        found.append((name, store.read(below(path, name), local)))
    return hash_tree(found)


def store_any(store: Any, path: str, local: Path) -> Written:
    """Take a file or a directory away."""
    if not local.is_dir():
        return typing.cast("Written", store.write(path, local))
    if isinstance(store, UrlStore):
        raise OutputError(f"{local} is a directory, and a presigned URL takes one file. Pack it, or use another store.")
    return hash_tree([(name, store.write(below(path, name), each)) for name, each in files_of(local)])


# Artifacts as the program sees them


class Artifact:
    """
    A file or directory that a step reads or writes; the same as ``airflow_ml_provider``'s in a worker.

    :param name: Name of the input or output.
    :param path: Local place.
    :param uri: Where its bytes are kept; empty for an output.
    :param metadata: JSON object that travels with it.
    :param readonly: Whether it is an input.
    """

    type_name = "Artifact"

    def __init__(self, name: str, *, path: str, uri: str = "", metadata: Fields | None = None, readonly: bool = False) -> None:
        self.name, self.uri, self._path, self._metadata, self._readonly = name, uri, path, metadata or {}, readonly

    @property
    def path(self) -> str:
        """Local file or directory; setting it on an output names the file: ``report.path += ".html"``."""
        return self._path

    @path.setter
    def path(self, value: str | Path) -> None:
        if self._readonly:
            raise ConfigError(f"input {self.name!r} is read-only: its path cannot be set. Copy it if you must change it.")
        self._path = str(value)

    @property
    def metadata(self) -> Fields:
        """JSON object that the maker of the artifact set; on an output, set keys of it."""
        return self._metadata

    @metadata.setter
    def metadata(self, value: Fields) -> None:
        if self._readonly:
            raise ConfigError(f"input {self.name!r} is read-only: its metadata cannot be set.")
        self._metadata = value

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"{self.type_name}({self.name!r}, uri={self.uri!r})"


class Dataset(Artifact):
    """Anything to learn from."""

    type_name = "Dataset"


class Model(Artifact):
    """A trained model."""

    type_name = "Model"


class Metrics(Artifact):
    """Numbers of a step."""

    type_name = "Metrics"

    def log_metric(self, metric: str, value: float, step: int = 0) -> None:
        """
        Record one point of a metric; sent to MLflow in batches while the step runs.

        :param metric: Name; what MLflow refuses in it is replaced by ``_``.
        :param value: A number.
        :param step: Position on the curve.
        :raises ConfigError: it is not a number, or this is an input; a retry never helps.
        """
        if self._readonly:
            raise ConfigError(f"metrics {self.name!r} are an input, which is read-only. Declare an Output[Metrics] to log to.")
        self.metadata[metric] = _append_point(metric, value, step, self.name)


KINDS = {each.type_name: each for each in (Artifact, Dataset, Model, Metrics)}


class View:
    """
    What a program is given.

    ``inputs`` and ``outputs`` are artifacts by name (a list of them for an input of many, None for an optional one that is
    missing), ``parameters`` JSON values by name.
    """

    def __init__(self, context: Fields) -> None:
        folder = notes(context)
        self.parameters: Fields = dict(context.get("parameters") or {})
        self.outputs = {name: KINDS.get(each["type"], Artifact)(name, path=each["path"]) for name, each in _outputs(context)}
        self.inputs: Fields = {}
        for name, each in (context.get("inputs") or {}).items():
            made = [_input(label, spec, folder) for label, spec in labelled(context, name, each)]
            self.inputs[name] = made if name in (context.get("many") or []) else made[0] if made else None
        self._context = context

    @property
    def last_checkpoint(self) -> str | None:
        """Local path of the last complete checkpoint; as :func:`last_checkpoint`."""
        return last_checkpoint()

    def save(self) -> None:
        """Note what the program has made of its outputs' paths and metadata; done when it ends."""
        for name, spec in _outputs(self._context):
            made = self.outputs[name]
            note = {"path": str(Path(made.path).absolute()), "metadata": _plain(made)}
            if made.path != spec["path"] or note["metadata"]:
                write_file(notes(self._context) / f"{name}.output.json", json.dumps(note))


def _outputs(context: Fields) -> list[tuple[str, Fields]]:
    return list((context.get("outputs") or {}).items())


def labelled(context: Fields, name: str, items: list[Fields]) -> list[tuple[str, Fields]]:
    """Name the artifacts of an input: ``table``, or ``table[0]`` and so on for one of many."""
    many = name in (context.get("many") or [])
    return [(f"{name}[{index}]" if many else name, each) for index, each in enumerate(items)]


def _input(label: str, spec: Fields, folder: Path) -> Artifact:
    kind = KINDS.get(spec["type"], Artifact)
    is_metrics = kind is Metrics
    metadata = load_metrics(Path(spec["path"]).read_text()) if is_metrics else read_note(folder, f"{label}.input.json") or {}
    return kind(label, path=spec["path"], uri=spec["uri"], metadata=metadata, readonly=True)


def _plain(artifact: Artifact) -> Fields:
    try:
        if isinstance(artifact, Metrics):
            return typing.cast("Fields", json.loads(dump_metrics(artifact.metadata)))
        return typing.cast("Fields", json.loads(json.dumps(dict(artifact.metadata), default=str)))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the metadata of output {artifact.name!r} is not plain JSON ({error}). Use texts as keys, and numbers, texts, lists "
            "and dictionaries of these as values."
        ) from error


# What programs call


def read_context() -> Fields:
    """Read the environment variable that holds everything that the operator tells."""
    text = os.environ.get("AIRFLOW_ML_CONTEXT")
    if not text:
        raise ConfigError(
            "the environment variable AIRFLOW_ML_CONTEXT is missing: this runs in pods that an MLPodOperator makes."
        )
    try:
        context: Fields = json.loads(text)
        version, missing = context.get("version"), {"step", "try_number", "mlflow", "manifest", "metadata"} - context.keys()
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"AIRFLOW_ML_CONTEXT is not a JSON object: {error}.") from error
    if version != VERSION or missing:
        raise ConfigError(
            f"AIRFLOW_ML_CONTEXT is of version {version!r} (wanted {VERSION}) and lacks {sorted(missing)}. Copy the "
            "airflow_ml_step.py of the provider's release into the image, or let it be injected."
        )
    return context


def home(context: Fields) -> Path:
    """Say where the pod's own volume is."""
    return Path(context.get("folder") or "/airflow-ml")


def notes(context: Fields) -> Path:
    """Say where the program's process leaves word for this one."""
    return home(context) / "step" / "notes"


def read_note(folder: Path, name: str) -> Any:
    """Read one note; None where there is none."""
    with contextlib.suppress(FileNotFoundError):
        return json.loads((folder / name).read_text())
    return None


def open_server(context: Fields, patience: Patience | None = None) -> Server:
    """Open the context's MLflow server."""
    return Server(context["mlflow"], patience or Patience(float(context.get("patience_s", 300))))


_loaded: list[View] = []


def load() -> View:
    """
    Say what the step was given.

    :return: Inputs, outputs and parameters; always the same object, and what is set on it is kept as the program ends.
    :raises ConfigError: this process was not started by ``airflow_ml_step run``.
    """
    if not _loaded:
        _loaded.append(View(read_context()))
        atexit.register(_loaded[0].save)
    return _loaded[0]


def log_metric(key: str, value: float, step: int = 0) -> None:
    """
    Record one point of a metric of the step; sent to MLflow in batches while the step runs.

    :param key: Name.
    :param value: A number.
    :param step: Position on the curve.
    :raises ConfigError: it is not a number; a retry never helps.
    """
    _append_point(key, value, step, "")


def log_param(key: str, value: Any) -> None:
    """
    Record a parameter of the step.

    :param key: Name.
    :param value: JSON value; kept as text of at most 6,000 characters.
    """
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    _append({"param": mlflow_name(key), "value": text[:TEXT_LENGTH]})


def _append_point(key: str, value: float, step: int, output: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"metric {key!r} must be a number, not {value!r}. Log texts in metadata.") from error
    if int(step) != step:
        raise ConfigError(f"metric {key!r} cannot be logged: step {step!r} is not a whole number. Count rounds or batches.")
    point = {"key": key, "value": plain_number(number), "step": int(step), "timestamp": time.time_ns() // 1_000_000}
    _append({**point, "output": output} if output else point)
    return number


def _append(line: Fields) -> None:
    """Add one line in one write, so that those of several processes do not mix."""
    file = os.open(str(home(read_context()) / "metrics.jsonl"), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        os.write(file, json.dumps(line).encode() + b"\n")
    finally:
        os.close(file)


def upload(name: str) -> None:
    """
    Store an output now, so that it is kept whatever becomes of the step.

    :param name: Name of the output.
    :raises OutputError: it was not written yet.
    :raises UnavailableError: the store did not answer; a retry is safe.
    """
    context = read_context()
    if _loaded:
        _loaded[0].save()
    if name not in (context.get("outputs") or {}):
        raise ConfigError(f"there is no output {name!r}. Declared are: {sorted(context.get('outputs') or {})}.")
    store_output(context, open_server(context), name, {})


def save_checkpoint(path: str | Path, step: int | None = None) -> None:
    """
    Store a checkpoint, which a later try of the step gets by :func:`last_checkpoint`.

    It takes the place of the one before only once all of it is stored.

    :param path: File or directory.
    :param step: Position in the training, for people.
    :raises ConfigError: the step keeps none; a retry never helps.
    :raises UnavailableError: the store did not answer; a retry is safe.
    """
    context, local = read_context(), Path(os.path.normpath(path))
    if not context.get("checkpoints"):
        raise ConfigError("this step keeps no checkpoints. Ask for them in the DAG.")
    store, name = open_store(context["checkpoints"], open_server(context)), f"{context['try_number']}-{time.time_ns()}"
    if not local.exists():
        raise OutputError(f"there is no checkpoint at {local}.")
    sha256, size = store_any(store, f"{name}/{local.name}", local)
    latest = {"path": f"{name}/{local.name}", "sha256": sha256, "size": size, "step": step, "try": context["try_number"]}
    file = notes(context) / "checkpoint.json"
    write_file(file.with_name(f"checkpoint-{os.getpid()}.json"), json.dumps({**latest, "directory": local.is_dir()}))
    store.write("latest.json", file.with_name(f"checkpoint-{os.getpid()}.json"))
    file.with_name(f"checkpoint-{os.getpid()}.json").replace(file)


def last_checkpoint() -> str | None:
    """
    Bring the last complete checkpoint of this step, whichever try has stored it.

    :return: Local file or directory; None when there is none, or when it was altered in the store (with a warning).
    :raises UnavailableError: the store did not answer, so whether there is one is not known; a retry is safe.
    """
    context = read_context()
    if not context.get("checkpoints"):
        return None
    store, folder = open_store(context["checkpoints"], open_server(context)), home(context) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=str(folder)) as scratch:
        try:
            store.read("latest.json", Path(scratch, "latest.json"))
            latest = json.loads(Path(scratch, "latest.json").read_text())
            target, part = folder / safe(latest["path"]), Path(scratch, "checkpoint")
            if not target.exists():
                _fetch_checkpoint(store, latest, part)
                target.parent.mkdir(exist_ok=True)
                if not target.exists():  # another process of the pod may have been quicker
                    part.replace(target)
        except ConfigError:
            raise
        except NotFoundError:
            return None
        except (ValueError, LookupError, TypeError) as error:
            say(f"the last checkpoint is left alone: {error}")
            return None
    write_file(notes(context) / "checkpoint.json", json.dumps(latest))
    return str(target)


def _fetch_checkpoint(store: Any, latest: Fields, part: Path) -> None:
    try:
        sha256, size = fetch_any(store, latest["path"], part, latest.get("directory"))
    except NotFoundError as error:
        raise ValueError(f"{latest['path']} is gone: {error}") from error
    if sha256 != latest["sha256"]:
        raise ValueError(f"{latest['path']} was altered: {sha256} ({size} bytes), on record is {latest['sha256']}")


# Inputs and outputs


def fetch_inputs(context: Fields, server: Server) -> dict[str, Written]:
    """Bring and verify all inputs; the digests that nobody had recorded are noted and returned."""
    read = {}
    for name, items in (context.get("inputs") or {}).items():
        for label, spec in labelled(context, name, items):
            written = fetch_input(label, spec, notes(context), server)
            if spec.get("sha256") is None:
                read[label] = written
    write_file(notes(context) / "read.json", json.dumps(read))
    return read


def fetch_input(label: str, spec: Fields, folder: Path, server: Server) -> Written:
    """Bring and verify one input, and its metadata."""
    target, what = Path(spec["path"]), f"{spec['type']} {label!r}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        written = fetch_any(*open_parent(spec["place"], server), target, spec.get("directory"))
        if spec.get("metadata"):
            store, path = open_parent(spec["metadata"], server)
            store.read(path, folder / f"{label}.input.json")
    except NotFoundError as error:
        raise InputError(f"{what} is not at {spec['uri']} any more: {error}. Run the step that made it again.") from error
    except OSError as error:
        raise InputError(f"{what} cannot be written: {error}. Look at the pod's volume.") from error
    if spec.get("sha256") not in (None, written[0]):
        raise InputError(
            f"{what} at {spec['uri']} was changed in the store after it was recorded: it has sha256 {written[0]} ({written[1]} "
            f"bytes), on record is {spec['sha256']} ({spec.get('size')} bytes). Restore it, or run the step that made it again."
        )
    return written


def find_output(context: Fields, name: str, points: Mapping[str, Fields]) -> tuple[Path, Fields]:
    """Find what was written for an output, and the metadata that was set; the numbers of Metrics become its file."""
    spec, note = context["outputs"][name], read_note(notes(context), f"{name}.output.json") or {}
    path, metadata = Path(os.path.normpath(note.get("path") or spec["path"])), note.get("metadata") or {}
    if spec["type"] == "Metrics" and not path.exists():
        metadata = {**(points.get(name) or ({} if context.get("function") else points.get("", {}))), **metadata}
        if metadata:
            path = path.with_suffix(".json")
            path.write_text(dump_metrics(metadata))
    if not path.exists() and not context.get("function"):
        others = sorted(path.parent.glob(f"{path.name}.*"))
        if len(others) > 1:
            raise OutputError(f"output {name!r} could be each of {[each.name for each in others]}. Leave one.")
        path = others[0] if others else path
    if not path.exists():
        written_by = "log_metric" if spec["type"] == "Metrics" else "a file or a directory"
        raise NeverWrittenError(
            f"output {name!r} ({spec['type']}) was never written: there is nothing at {path}. Write it there ({written_by})."
        )
    if path.is_dir() and not files_of(path):
        raise OutputError(
            f"output {name!r} ({spec['type']}) was never written: {path} is a directory without a file. Write a file into it."
        )
    return path, metadata


def make_room(context: Fields, store: Any, name: str, path: str, local: Path) -> None:
    """Delete what an earlier upload has left in the place of a directory, and would be read as part of it."""
    sent, whole = notes(context) / f"{name}.sent.json", local.is_dir() and not isinstance(store, UrlStore)
    now = [below(path, each) for each, _ in files_of(local)] if whole else [path]
    before = [each for each in read_note(notes(context), sent.name) or [] if each not in now]
    old = [each for each in before if whole and (not path or each.startswith(f"{path}/"))]
    for each in old:
        try:
            with contextlib.suppress(NotFoundError):
                store.delete(each)
        except ConfigError as error:
            raise OutputError(
                f"output {name!r}: {each!r} was stored by an earlier upload and is not in the directory any more, and the store "
                f"does not delete it: {error} Keep the names of its files, or upload it once."
            ) from error
    if whole:  # from here on it is neither what it was nor what it will be
        write_file(notes(context) / f"{name}.stored.json", "null")
    write_file(sent, json.dumps([each for each in before if each not in old] + now))


def store_output(context: Fields, server: Server, name: str, points: Mapping[str, Fields]) -> Fields:
    """Store one output and its metadata, unless just that was stored before; noted when it is whole."""
    spec, (local, metadata) = context["outputs"][name], find_output(context, name, points)
    file = "" if local.is_dir() else as_text(local.name)
    if file and not spec.get("flat") and file.split(".")[0] != name:
        file = f"{name}/{file}"
    earlier = read_note(notes(context), f"{name}.stored.json") or {}
    if not (earlier and earlier["file"] == file and earlier["sha256"] == hash_any(local)[0]):
        path, store = file or ("" if spec.get("flat") else name), open_store(spec["place"], server)
        make_room(context, store, name, path, local)
        sha256, size = store_any(store, path, local)
        earlier = {"type": spec["type"], "file": file, "sha256": sha256, "size": size}
    kept = {**earlier, "metadata": bool(metadata) and spec["type"] != "Metrics"}
    if kept["metadata"]:
        write_file(notes(context) / f"{name}.metadata.json", json.dumps(metadata, indent=2))
        open_store(context["metadata"], server).write(f"{name}.metadata.json", notes(context) / f"{name}.metadata.json")
    write_file(notes(context) / f"{name}.stored.json", json.dumps(kept))
    say(f"stored {spec['type']} {name!r}: {kept['size']} bytes, sha256 {kept['sha256']}")
    return kept


# Metrics


def read_line(line: bytes) -> Fields | None:
    """Read one line of the metrics file; None for what is none, since any program may write there."""
    try:
        found = json.loads(line)
        if "param" in found:
            return {"param": str(found["param"]), "value": str(found["value"])}
        now = time.time_ns() // 1_000_000
        numbers = {"step": int(found.get("step", 0)), "timestamp": int(found.get("timestamp", now))}
        if max(map(abs, numbers.values())) >= 1 << 63:  # MLflow would refuse all that is sent with it
            return None
        point = {"key": mlflow_name(str(found["key"])), "value": plain_number(float(found["value"])), **numbers}
        return {**point, "output": str(found.get("output", "")), "name": str(found["key"])}
    except (ValueError, LookupError, TypeError, OverflowError, AttributeError):
        return None


class Feed:
    """Follows the file that the program appends its metrics to, and sends what is new; the program never waits for it."""

    def __init__(self, context: Fields, server: Server) -> None:
        self.file, self.server = home(context) / "metrics.jsonl", server
        self._sent_to, self._due = 0, time.monotonic() + FLUSH_EVERY_S

    def _next(self) -> tuple[list[Fields], int]:
        """Read the points that come next, and how far that goes in the file."""
        points: list[Fields] = []
        end = self._sent_to
        with contextlib.suppress(FileNotFoundError), self.file.open("rb") as stream:
            stream.seek(end)
            for line in stream:
                if not line.endswith(b"\n") or len(points) == POINTS_PER_BATCH:
                    break
                end += len(line)
                found = read_line(line)
                points += [found] if found and "key" in found else []
        return points, end

    def _send(self) -> bool:
        """Send one batch, once; False when there was none."""
        points, end = self._next()
        if points and self.server.url:
            metrics = [{key: each[key] for key in ("key", "value", "timestamp", "step")} for each in points]
            body = {"run_id": self.server.run_id, "metrics": metrics}
            self.server.json("POST", f"{API}runs/log-batch", body, timeout_s=SEND_S)
            self._sent_to = end
            return True
        return False

    def tick(self) -> None:
        """Send what is new, where that is due; whatever is not taken waits."""
        if time.monotonic() < self._due:
            return
        pause_s = FLUSH_EVERY_S
        try:
            for _ in range(5):
                if not self._send():
                    break
        except StepError as error:  # a refusal too: during a rollout, an ingress answers 404 for MLflow
            say(f"{error} The metrics are kept.")
            pause_s = PAUSE_S
        self._due = time.monotonic() + pause_s

    def drain(self, limit_s: float) -> None:
        """Send the rest; what MLflow does not take in that time is for the manifest."""
        until = time.monotonic() + limit_s
        while True:
            try:
                if not self._send():
                    return
            except StepError as error:
                if not isinstance(error, UnavailableError) or time.monotonic() + 1 > until:
                    say(f"{error} The metrics are left to the manifest.")
                    return
                time.sleep(1)

    def summary(self) -> tuple[dict[str, Fields], dict[str, str], list[Any]]:
        """Read the whole file once: last value per metric and output, parameters, and the newest points not sent."""
        latest: dict[str, Fields] = {"": {}}
        params: dict[str, str] = {}
        unsent: deque[Any] = deque(maxlen=UNSENT_POINTS)
        end = 0
        with contextlib.suppress(FileNotFoundError), self.file.open("rb") as stream:
            for line in stream:
                found, end = read_line(line), end + len(line)
                if found and "param" in found:
                    params[found["param"]] = found["value"]
                elif found:
                    latest.setdefault(found["output"], {})[found["name"]] = float(found["value"])
                    if end > self._sent_to:
                        unsent.append([found["key"], found["value"], found["timestamp"], found["step"]])
        return latest, params, list(unsent)


# Signals and the child


class Watch:
    """Signals to this process: passed on to the child's group at once, and remembered."""

    def __init__(self) -> None:
        self.told, self.told_at = 0, 0.0
        self.child: subprocess.Popen[bytes] | None = None
        self._raises = False
        self._pipe, wakes = os.pipe()
        os.set_blocking(self._pipe, False)
        os.set_blocking(wakes, False)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        for number in (*STOPS, *PASSED_ON):
            signal.signal(number, self._receive)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to be woken

    def _receive(self, number: int, _: Any) -> None:
        if number in STOPS and not self.told:
            self.told, self.told_at = number, time.monotonic()
        self.pass_on(number)
        if self._raises and self.told:
            self._raises = False
            raise Told

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let a signal end what is done in here, at once."""
        if self.told:
            raise Told
        self._raises = True
        try:
            yield
        finally:
            self._raises = False

    def pass_on(self, number: int) -> None:
        """Give a signal to the child's process group."""
        if self.child is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.child.pid, number)

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        """Start the child; its output is the pod's log."""
        try:
            self.child = subprocess.Popen(command, env=environment, start_new_session=True)  # noqa: S603  (the user's program)
        except OSError as error:
            raise ConfigError(f"{command[0]!r} cannot be run: {error}. Check cmds and arguments against the image.") from error
        if self.told:
            self.pass_on(self.told)

    def ended(self) -> int | None:
        """Collect the processes that have ended, as the first process of a container has to; None while the child runs."""
        code = None
        while self.child is not None:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            if pid == self.child.pid:
                code = 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
                self.child.returncode = code
        if code is not None:
            self.pass_on(signal.SIGKILL)  # what it left behind; with the container these would end anyway
            self.child = None
        return code

    def rest(self) -> None:
        """Sleep until a signal comes, one second at most."""
        if select.select([self._pipe], [], [], 1.0)[0]:
            os.read(self._pipe, 1024)


def child_environment(context: Fields, server: Server) -> dict[str, str]:
    """Say what the program finds in its environment."""
    variables = {key: each for key, each in os.environ.items() if key != "AIRFLOW_ML_STEP"}
    path = [str(home(context) / "step"), *filter(None, [variables.get("PYTHONPATH")])]
    variables.update(PYTHONPATH=os.pathsep.join(path), AIRFLOW_ML_FOLDER=str(home(context)))
    variables["AIRFLOW_ML_PARAMETERS"] = json.dumps(context.get("parameters") or {})
    for name, items in (context.get("inputs") or {}).items():
        if items:
            variables[f"AIRFLOW_ML_INPUT_{name.upper()}"] = "\n".join(each["path"] for each in items)
    variables.update({f"AIRFLOW_ML_OUTPUT_{name.upper()}": each["path"] for name, each in _outputs(context)})
    if server.url:
        variables.update(MLFLOW_TRACKING_URI=server.url, MLFLOW_RUN_ID=server.run_id)
        variables.update({"MLFLOW_WORKSPACE": server.workspace} if server.workspace else {})
        variables.update({f"MLFLOW_TRACKING_{name.upper()}": each for name, each in server.secrets().items()})
    return variables


# One life of the container


class Session:
    """What this process does for one try of a step, and what it tells of it."""

    def __init__(self, context: Fields, watch: Watch) -> None:
        self.context, self.watch = context, watch
        self.patience = Patience(float(context.get("patience_s", 300)))
        self.server = open_server(context, self.patience)
        self.feed = Feed(context, self.server)
        self.started_ms, self.kills = time.time_ns() // 1_000_000, count_oom_kills()
        self.reported = False

    def prepare(self) -> None:
        """Make the folders, and lay a copy of this file where the program can import it."""
        folder = home(self.context)
        try:
            for each in [folder, notes(self.context), *(Path(spec["path"]).parent for _, spec in _outputs(self.context))]:
                each.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(PermissionError):
                    each.chmod(0o777)  # containers of one pod may run as different users
            write_file(folder / "step" / "airflow_ml_step.py", own_source())
        except OSError as error:
            raise ConfigError(
                f"{folder} cannot be written: {error}. Mount a volume there that the container may write."
            ) from error

    def run(self, command: list[str]) -> tuple[str, int, str]:
        """Bring the inputs, run the program, store the outputs; say how it ended: state, exit code, error."""
        self.prepare()
        with self.watch.interruptible():
            fetch_inputs(self.context, self.server)
        calls = not command
        if calls:
            if not self.context.get("function"):
                raise ConfigError("there is neither a program to run nor a function. Set cmds= of the operator.")
            command = [sys.executable, "-u", str(home(self.context) / "step" / "airflow_ml_step.py"), "call"]
        self.watch.start(command, child_environment(self.context, self.server))
        state, code, error = self.ending(self.wait())
        if state == "succeeded" and calls and not (home(self.context) / "result.json").is_file():
            state, code, error = "failed", 1, "the process ended with exit code 0 before the function had returned"
        if state == "succeeded":
            with self.watch.interruptible():
                self.feed.drain(min(DRAIN_S, self.patience.limit_s))
                self.store(list(self.context.get("outputs") or {}))
        return state, code, error

    def wait(self) -> int:
        """Wait for the child; one that does not heed a signal to stop is killed while there is time to tell of it."""
        grace_s = float(self.context.get("grace_s", 30))
        while True:
            code = self.watch.ended()
            if code is not None:
                return code
            if self.watch.told:
                if not self.reported:  # at once, since the program may take all the time that is left
                    self.patience.hurry(min(5.0, grace_s / 4))
                    self.report(*self.ending(0))
                self.patience.hurry(self.watch.told_at + grace_s - 1 - time.monotonic())
                if time.monotonic() > self.watch.told_at + max(grace_s / 2, grace_s - 8):
                    self.watch.pass_on(signal.SIGKILL)
            self.feed.tick()
            self.watch.rest()

    def ending(self, code: int) -> tuple[str, int, str]:
        """Say how the program ended, from its exit code and what else was seen."""
        if self.watch.told:
            number = self.watch.told
            return "terminated", 128 + number, f"told to stop by {signal.Signals(number).name}"
        if count_oom_kills() > self.kills:
            with_code = f"; the program itself ended with {code}"
            return "out_of_memory", 137, f"the kernel killed a process of the container: its memory limit was reached{with_code}"
        if code:
            how = f"killed by {signal.Signals(code - 128).name}" if code - 128 in set(signal.Signals) else f"exit code {code}"
            return "failed", code, read_note(notes(self.context), "error.json") or how
        return "succeeded", 0, ""

    def store(self, names: list[str]) -> None:
        """Store outputs."""
        points = self.feed.summary()[0]
        for name in names:
            store_output(self.context, self.server, name, points)

    def keep(self) -> None:
        """Store what a step that did not succeed leaves: its metrics; uploads that had finished are kept anyway."""
        self.feed.drain(0 if self.watch.told else min(DRAIN_S, self.patience.limit_s))
        for name, spec in _outputs(self.context):
            try:
                self.store([name] if spec["type"] == "Metrics" else [])
            except OutputError:
                continue
            except (StepError, OSError) as error:
                say(f"output {name!r} is not kept: {error}")

    def finish(self, state: str, code: int, error: str) -> int:
        """Tell how it ended, whatever can still be reached; return what to exit with."""
        if self.watch.told:
            self.patience.hurry(self.watch.told_at + float(self.context.get("grace_s", 30)) - 1 - time.monotonic())
            if not self.reported:  # first of all, since there may be seconds left
                self.report(state, code, error)
        if state != "succeeded":
            self.keep()
        trouble = self.report(state, code, error)
        if trouble and state == "succeeded":
            state, code, error = "store", EXIT_CODES["store"], f"the manifest could not be stored: {trouble}"
            self.message(state, code, error, b"")
        say(f"{state}, exit code {code}{': ' if error else ''}{error}")
        return code

    def report(self, state: str, code: int, error: str) -> str:
        """Write the termination message, store the manifest, and write the message again; say what went wrong."""
        self.reported = True
        self.message(state, code, error, b"")
        try:
            text = self.manifest(state, code, error)
            file = home(self.context) / "step" / "manifest.json"
            write_file(file, text)
            store, path = open_parent(self.context["manifest"], self.server)
            store.write(path, file)
        except (StepError, OSError) as trouble:
            say(f"the manifest is not stored: {trouble}")
            return str(trouble)
        self.message(state, code, error, text.encode())
        return ""

    def manifest(self, state: str, code: int, error: str) -> str:
        """Write the manifest."""
        folder, (latest, params, unsent) = notes(self.context), self.feed.summary()
        stored = {name: read_note(folder, f"{name}.stored.json") for name, _ in _outputs(self.context)}
        result = read_note(home(self.context), "result.json") if state == "succeeded" else None
        fields = {
            "version": VERSION, "try_number": self.context["try_number"], "state": state, "exit_code": code, "error": error,
            "outputs": {name: each for name, each in stored.items() if each}, "metrics": last_values(latest), "unsent": unsent,
            "params": params, "result": result, "read": read_note(folder, "read.json") or {},
            "checkpoint": (read_note(folder, "checkpoint.json") or {}).get("path", ""),
            "started_ms": self.started_ms, "ended_ms": time.time_ns() // 1_000_000,
        }  # fmt: skip
        # Half of a pair of surrogates, as an undecodable file name has them, is nothing that a reader of JSON has to take.
        return json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace").decode()

    def message(self, state: str, code: int, error: str, manifest: bytes) -> None:
        """Write the termination message."""
        digest = hashlib.sha256(manifest).hexdigest() if manifest else ""
        fields = {"try_number": self.context["try_number"], "state": state, "exit_code": code, "error": error}
        write_message({**fields, "manifest": bool(manifest), "sha256": digest}, last_values(self.feed.summary()[0]))


def last_values(latest: Mapping[str, Fields]) -> Fields:
    """Write the last value per metric as JSON takes it; where outputs share a name, the later one counts."""
    return {mlflow_name(key): plain_number(value) for values in latest.values() for key, value in values.items()}


def write_message(fields: Fields, metrics: Fields) -> None:
    """Write the termination message where the kubelet reads it."""
    try:
        text = message_text({"version": VERSION, **fields}, metrics)
        Path(os.environ.get("AIRFLOW_ML_TERMINATION_LOG", "/dev/termination-log")).write_bytes(text)
    except OSError as error:
        say(f"the termination message cannot be written: {error}")


def own_source() -> str:
    """Read this very file, which may have come by an environment variable."""
    if "__file__" in globals():
        return Path(__file__).read_text()
    return zlib.decompress(base64.b64decode(os.environ["AIRFLOW_ML_STEP"])).decode()


# Commands


def live(work: Callable[[Session], tuple[str, int, str]], *, told: bool = True) -> int:
    """Do the work of a container and tell how it ended, whatever happens; with ``told=False`` only what went wrong."""
    watch = Watch()
    session: Session | None = None
    try:
        session = Session(read_context(), watch)
        ending = work(session)
    except Told:
        ending = session.ending(0) if session else ("terminated", 128 + watch.told, "told to stop")
    except StepError as error:
        ending = error.state, EXIT_CODES[error.state], str(error)
    except Exception as error:  # noqa: BLE001  (a mistake of ours is told too, not only printed)
        traceback.print_exc()
        ending = "config", EXIT_CODES["config"], f"airflow_ml_step.py failed: {type(error).__name__}: {error}"
    if session is None:
        say(ending[2])
        write_message({"try_number": 0, "state": ending[0], "exit_code": ending[1], "error": ending[2]}, {})
        return ending[1]
    return session.finish(*ending) if told or ending[0] != "succeeded" else 0


def command_run(arguments: list[str]) -> int:
    """Run a program, or the shipped function, with everything around it."""
    command = arguments[1:] if arguments[:1] == ["--"] else arguments
    return live(lambda session: session.run(command))


def command_fetch(_: list[str]) -> int:
    """Only bring the inputs, for a program in another image."""

    def work(session: Session) -> tuple[str, int, str]:
        session.prepare()
        with session.watch.interruptible():
            fetch_inputs(session.context, session.server)
        return "succeeded", 0, ""

    return live(work, told=False)


def command_collect(_: list[str]) -> int:
    """
    Wait beside a program in another image for the kubelet's signal that it has ended, then store what outputs there are.

    The program must not start before the file ``step/collecting`` is there: a signal that comes earlier is not heard.
    """

    def work(session: Session) -> tuple[str, int, str]:
        write_file(home(session.context) / "step" / "collecting", "")  # for a startup probe: from now on signals are heard
        while not session.watch.told:
            session.feed.tick()
            session.watch.rest()
        session.watch.told = 0  # no end before its time, but what was waited for
        session.feed.drain(DRAIN_S)
        refused = []
        for name, _spec in _outputs(session.context):
            try:
                session.store([name])
            except NeverWrittenError as error:  # the program may have failed, which is then what is to be told
                say(str(error))
            except OutputError as error:
                refused.append(str(error) if str(error).startswith("output ") else f"output {name!r}: {error}")
        return ("output", EXIT_CODES["output"], " ".join(refused)) if refused else ("succeeded", 0, "")

    return live(work)


def command_call(_: list[str]) -> int:
    """Call the shipped function in this process, the child of ``run``."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the function's own ``finally`` runs
    sys.path.append(os.getcwd())  # noqa: PTH109  (what lies in the image's working directory)
    context, view = read_context(), load()
    atexit.unregister(view.save)
    try:
        result = call_function(context, view)
        view.save()
        write_file(home(context) / "result.json", plain_result(context, result))
    except Exception as error:  # noqa: BLE001  (the user's function)
        traceback.print_exception(type(error), error, error.__traceback__)
        write_file(notes(context) / "error.json", json.dumps(in_words(error)))
        return 1
    finally:
        with contextlib.suppress(ConfigError):
            view.save()
    return 0


def in_words(error: BaseException) -> str:
    """Write an error, one that cannot be written as text included."""
    try:
        return f"{type(error).__name__}: {error}"[:TEXT_LENGTH]
    except Exception:  # noqa: BLE001  (its own __str__ fails)
        return type(error).__name__


def call_function(context: Fields, view: View) -> Any:
    """Define the function and call it; its annotations are never evaluated, so their names need not exist here."""
    spec, name = context["function"], context["function"]["name"]
    file = f"<function {name}>"
    linecache.cache[file] = (len(spec["source"]), None, spec["source"].splitlines(True), file)  # lines in tracebacks
    namespace = function_namespace()
    flags = __future__.annotations.compiler_flag
    exec(compile(spec["source"], file, "exec", flags=flags, dont_inherit=True), namespace)  # noqa: S102  (what it is for)
    given = {"input": view.inputs, "output": view.outputs, "plain": view.parameters}
    missing = [each for each in spec.get("optional") or [] if each not in view.inputs]
    arguments = {each: given[role][each] for each, role in spec["roles"].items() if each in given[role]}
    return namespace[name](**arguments, **dict.fromkeys(missing))


class _Form:
    """Stands for ``Input`` and ``Output``: can be subscripted, and means nothing here."""

    def __getitem__(self, item: Any) -> Any:
        return item


def function_namespace() -> Fields:
    """Say which names a shipped function finds without importing them."""
    names: Fields = {each: getattr(typing, each) for each in typing.__all__}
    return {"Annotated": _Form(), **names, **KINDS, "Input": _Form(), "Output": _Form(), "__name__": "airflow_ml_function"}


def plain_result(context: Fields, result: Any) -> str:
    """Write what the function returned; refuse what would not come through as it is."""
    name = context["function"]["name"]
    if result is not None and context.get("outputs"):
        raise ConfigError(
            f"step {name!r} has outputs and returned {type(result).__name__}; the XCom of such a step is its outputs. Return "
            "None, and hand the value on as another output or as .metadata of one."
        )
    try:
        return json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"step {name!r} returned {type(result).__name__}, which is not plain JSON ({error}). Write it to an Output[Dataset] "
            "or Output[Artifact], or return numbers, texts, lists and dictionaries of these."
        ) from error


# As a component of a Kubeflow pipeline


def run_component(function: Fields, inputs: Fields, outputs: Fields, parameters: Fields) -> Any:
    """
    Call a shipped function with the artifacts of a Kubeflow component as its own, and write a manifest beside its outputs.

    :param function: Name, source and roles, as in a pod's context.
    :param inputs: Per name an artifact of ``kfp.dsl``, a list of them, or None.
    :param outputs: Per name an artifact of ``kfp.dsl``; the one named ``airflow_ml_manifest`` takes the manifest.
    :param parameters: JSON value per name.
    :return: What the function returned.
    :raises OutputError: an output was never written; a retry may help.
    :raises ConfigError: what it returned or set as metadata is not plain JSON; a retry never helps.
    """
    manifest = outputs.pop("airflow_ml_manifest")
    with tempfile.TemporaryDirectory(prefix="airflow-ml-") as folder:
        context: Fields = {
            "version": VERSION, "step": function["name"], "try_number": 1, "function": function, "parameters": parameters,
            "mlflow": {"url": "", "run_id": ""}, "manifest": {}, "metadata": {}, "folder": folder,
            "many": [name for name, each in inputs.items() if isinstance(each, list)],
            "outputs": {name: {"type": _kind(each), "path": each.path} for name, each in outputs.items()},
        }  # fmt: skip
        notes(context).mkdir(parents=True)
        context["inputs"] = {name: _component_inputs(context, name, each) for name, each in inputs.items()}
        os.environ["AIRFLOW_ML_CONTEXT"] = json.dumps(context)
        started_ms, view = time.time_ns() // 1_000_000, View(context)
        _loaded[:] = [view]
        result = json.loads(plain_result(context, call_function(context, view)))
        view.save()
        latest, params, _ = Feed(context, open_server(context)).summary()
        stored = {name: _component_output(context, name, each, latest) for name, each in outputs.items()}
        fields = {
            "version": VERSION, "try_number": 1, "state": "succeeded", "exit_code": 0, "error": "", "outputs": stored,
            "metrics": last_values(latest), "unsent": [], "params": params, "result": result, "read": {}, "checkpoint": "",
            "started_ms": started_ms, "ended_ms": time.time_ns() // 1_000_000,
        }  # fmt: skip
        write_file(Path(manifest.path), json.dumps(fields, ensure_ascii=False).encode("utf-8", "replace").decode())
        return result


def _kind(artifact: Any) -> str:
    name = type(artifact).__name__
    return name if name in KINDS else "Artifact"


def _component_inputs(context: Fields, name: str, given: Any) -> list[Fields]:
    """Lay out what is known of an input: its metadata as a note, the numbers of Metrics as the file that ours have."""
    items = given if isinstance(given, list) else [given] if given is not None else []
    specs = [{"type": _kind(each), "path": each.path or "", "uri": each.uri or ""} for each in items]
    for artifact, (label, spec) in zip(items, labelled(context, name, specs)):  # noqa: B905  (Python 3.8)
        if spec["type"] == "Metrics":
            spec["path"] = str(notes(context) / f"{label}.metrics.json")
            write_file(Path(spec["path"]), json.dumps(dict(artifact.metadata)))
        write_file(notes(context) / f"{label}.input.json", json.dumps(dict(artifact.metadata)))
    return specs


def _component_output(context: Fields, name: str, artifact: Any, points: Mapping[str, Fields]) -> Fields:
    """Put one output where Kubeflow takes it from; its name for people is kept in the manifest alone."""
    local, metadata = find_output(context, name, points)
    target = Path(artifact.path)
    file = "" if local.is_dir() else as_text(local.name)
    if local != target:
        shutil.move(str(local), str(target))
    artifact.metadata.update({key: plain_number(each) if isinstance(each, float) else each for key, each in metadata.items()})
    sha256, size = hash_any(target)
    noted = bool(metadata) and context["outputs"][name]["type"] != "Metrics"
    return {"type": context["outputs"][name]["type"], "file": file, "sha256": sha256, "size": size, "metadata": noted}


def command_checkpoint(arguments: list[str]) -> int:
    """Store a checkpoint: ``checkpoint PATH [--step N]``."""
    if len(arguments) not in (1, 3) or arguments[1:2] not in ([], ["--step"]):
        raise ConfigError("usage: checkpoint PATH [--step N]")
    save_checkpoint(arguments[0], int(arguments[2]) if arguments[2:] else None)
    return 0


def command_last_checkpoint(_: list[str]) -> int:
    """Print the local path of the last complete checkpoint; exit code 1 when there is none."""
    found = last_checkpoint()
    sys.stdout.write(f"{found}\n" if found else "")
    return 0 if found else 1


COMMANDS = {
    "run": command_run, "call": command_call, "fetch": command_fetch, "collect": command_collect,
    "checkpoint": command_checkpoint, "last-checkpoint": command_last_checkpoint,
}  # fmt: skip


def main(arguments: list[str]) -> int:
    """Do what the command line says."""
    sys.modules.setdefault("airflow_ml_step", sys.modules[__name__])  # a function's ``import airflow_ml_step`` finds this one
    command = COMMANDS.get(arguments[0] if arguments else "")
    if command is None:
        say(f"usage: {' | '.join(COMMANDS)}")
        return EXIT_CODES["config"]
    try:
        return command(arguments[1:])
    except StepError as error:
        say(str(error))
        return EXIT_CODES[error.state]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
