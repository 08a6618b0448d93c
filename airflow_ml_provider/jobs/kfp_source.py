"""Where a compiled pipeline comes from: a file beside the DAG, an address, an object store, or a function that is compiled."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow_ml_provider.core.kfp_archive import check_size
from airflow_ml_provider.core.kfp_package import shown_source
from airflow_ml_provider.exceptions import (
    AirflowMLError,
    ConfigError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    UnauthorizedError,
)

if TYPE_CHECKING:
    import httpx

SUFFIXES = (".yaml", ".yml", ".json", ".zip", ".tar.gz", ".tgz", ".py")
"""What a package ends in, or what one is compiled from; a ``.py`` at an address is refused, not run."""
PACKAGES = {
    "s3": "apache-airflow-providers-amazon[s3fs]",
    "gs": "apache-airflow-providers-google",
    "abfs": "apache-airflow-providers-microsoft-azure",
}
"""What opens a scheme of URIs, for messages."""
READ_TIMEOUT_S = 30.0
"""Seconds to wait for a connection, and for the next bytes."""
TOTAL_TIMEOUT_S = 300.0
"""Seconds for the whole of it, however steadily it drips."""
MAX_REDIRECTS = 5
FUNCTION = re.compile(
    r"(?P<file>[^:]*\.py)(?::(?P<one>[A-Za-z_]\w*))?|(?P<module>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+):(?P<two>[A-Za-z_]\w*)"
)
"""A pipeline function: ``file.py``, ``file.py:function`` or ``package.module:function``."""
_PASSING = frozenset({408, 425, 429})
_GONE = frozenset({404, 410})


def is_package(text: str) -> bool:
    """
    Tell a compiled package from the name of a registered pipeline.

    A registered pipeline whose own name ends like a file is reached with its version, ``churn.yaml@v1``.

    :param text: What the author of a DAG wrote as ``pipeline``.
    :return: True for an address, for what ends in ``.yaml``, ``.yml``, ``.json``, ``.zip``, ``.tar.gz``, ``.tgz`` or ``.py``, and
        for ``file.py:function`` and ``package.module:function``.
    """
    return "://" in text or text.lower().endswith(SUFFIXES) or is_function(text)


def is_function(text: str) -> bool:
    """
    Tell a pipeline function from a compiled package and a registered pipeline.

    :param text: What the author of a DAG wrote as ``pipeline``.
    :return: True for ``file.py``, ``file.py:function`` and ``package.module:function``; ``module:function`` without a dot is the
        name of a registered pipeline.
    """
    return "://" not in text and FUNCTION.fullmatch(text) is not None


def pipeline_and_version(text: str) -> tuple[str, str | None]:
    """
    Take the name of a registered pipeline apart.

    :param text: ``name`` or ``name@version``; the last ``@`` counts, so a name with one needs its version too.
    :return: Name, and the version's name or None for the latest one.
    :raises ConfigError: one of them is empty; a retry never helps.
    """
    name, at, version = text.rpartition("@")
    if not at:
        name, version = version, ""
    if not name or (at and not version):
        raise ConfigError(f"pipeline {text!r} names no pipeline, or no version after '@'. Write name or name@version.")
    return name, version or None


def fetch_package(source: str, *, relative_to: Path | None) -> bytes:
    """
    Fetch the content of a compiled package, at most 32 MiB of it; a function is compiled.

    :param source: A path, an ``http(s)://`` address, a URI of an object store (``s3://conn_id@bucket/key``), or a function,
        ``file.py:function``.
    :param relative_to: Folder of the DAG file, or the file, beside which a relative path is looked up; None refuses such paths.
    :return: The bytes, unread: :func:`~airflow_ml_provider.core.kfp_package.read_package` says what they are.
    :raises ConfigError: the path is no file, the address is none or refuses us, it is too large, or the function cannot be
        compiled; a retry never helps.
    :raises RemoteNotFoundError: a server or store answered that there is no such file.
    :raises RemoteUnavailableError: it did not answer, or not in time; a retry is safe.
    """
    scheme = source.partition("://")[0].lower() if "://" in source else ""
    if is_function(source):
        from airflow_ml_provider.jobs.kfp_compile import compile_function

        return compile_function(source, relative_to=relative_to)
    if not scheme:
        return _read_file(source, relative_to)
    if scheme in {"http", "https"}:
        return _read_address(source)
    return _read_store(source, scheme)


def _read_file(source: str, relative_to: Path | None) -> bytes:
    path = Path(source)
    try:
        if not path.is_absolute():
            path = _beside(relative_to, source) / path
        if not path.is_file():
            kind = "a folder or a device, not a file" if path.exists() else "not there"
            raise ConfigError(
                f"the package {source!r} is {kind} (looked for {path}). Give a path relative to the DAG file's folder, or an "
                "absolute one, and check that the DAG bundle on the worker holds it."
            )
        with path.open("rb") as stream:
            return _within_limit(iter(lambda: stream.read(1 << 20), b""), str(path))
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the package {source!r:.300} cannot be read: {error}. Check the path and its permissions.") from error


def _beside(relative_to: Path | None, source: str) -> Path:
    if relative_to is None:
        raise ConfigError(f"the path {source!r} is relative, and there is no DAG file to look beside. Give an absolute path.")
    return relative_to.parent if relative_to.is_file() else relative_to


def _within_limit(pieces: Iterable[bytes], shown: str, deadline: float | None = None) -> bytes:
    """Collect pieces, and stop at what is too much or too late."""
    found = bytearray()
    for piece in pieces:
        found += piece
        check_size(len(found), source=shown)
        if deadline is not None and time.monotonic() > deadline:
            raise RemoteUnavailableError(
                f"{shown} was not here after {TOTAL_TIMEOUT_S:.0f} s, but for {len(found)} bytes. Try again."
            )
    return bytes(found)


def _read_address(source: str) -> bytes:
    import httpx

    shown = shown_source(source)
    if not _has_host(source):
        raise ConfigError(f"{shown} is no address: it names no host. Correct it.")
    deadline = time.monotonic() + TOTAL_TIMEOUT_S
    try:
        with (
            httpx.Client(timeout=READ_TIMEOUT_S, follow_redirects=True, max_redirects=MAX_REDIRECTS) as client,
            client.stream("GET", source, headers={"Accept-Encoding": "identity"}) as answer,
        ):
            _check_status(answer, shown)
            check_size(int(answer.headers.get("Content-Length") or 0), source=shown)
            return _within_limit(answer.iter_bytes(), shown, deadline)
    except (httpx.InvalidURL, httpx.UnsupportedProtocol, httpx.TooManyRedirects) as error:
        raise ConfigError(f"{shown} cannot be fetched: {error}. Correct the address.") from error
    except httpx.HTTPError as error:
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            raise ConfigError(
                f"{shown} has a certificate that is not trusted here: {error}. Name your CA's file in SSL_CERT_FILE."
            ) from error
        raise RemoteUnavailableError(f"{shown} did not answer: {type(error).__name__}: {error}. A retry is safe.") from error


def _has_host(source: str) -> bool:
    try:
        return bool(urlsplit(source).hostname)
    except ValueError:
        return False


def _check_status(answer: httpx.Response, shown: str) -> None:
    status = answer.status_code
    if answer.is_success:
        return
    said = f"{shown} was answered with {status} {answer.reason_phrase}".rstrip()
    error: AirflowMLError = ConfigError(f"{said}. Check the address and whether these workers may read it.")
    if status in _GONE:
        error = RemoteNotFoundError(f"{said}: there is no such package. Check the address.")
    elif status == 401:  # noqa: PLR2004  (an HTTP status)
        error = UnauthorizedError(f"{said}. Give an address that needs no login, or put the package in an object store.")
    elif status in _PASSING or status >= 500:  # noqa: PLR2004  (an HTTP status)
        error = RemoteUnavailableError(f"{said}. A retry is safe.")
    error.status = status
    raise error


def _read_store(source: str, scheme: str) -> bytes:
    from airflow.providers.common.compat.sdk import AirflowNotFoundException

    shown = shown_source(source)
    try:
        path = _open_store(source)
        check_size(int(path.stat().st_size or 0), source=shown)
        with path.open("rb") as stream:
            return _within_limit(iter(lambda: stream.read(1 << 20), b""), shown)
    except AirflowMLError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RemoteNotFoundError(f"there is no package {shown}. Check bucket and key.") from error
    except PermissionError as error:
        raise ConfigError(f"{shown} may not be read: {error}. Check the connection's rights.") from error
    except (ImportError, ValueError) as error:
        package = PACKAGES.get(scheme, "the Airflow provider of that object store")
        raise ConfigError(
            f"{shown} cannot be opened: {error}. Install {package} on the workers, or correct the scheme."
        ) from error
    except AirflowNotFoundException as error:
        raise ConfigError(f"{shown} names an Airflow connection that does not exist: {error}. Add it.") from error
    except Exception as error:  # of a store's own client: botocore, gcsfs, adlfs and others share no class
        raise RemoteUnavailableError(
            f"the store of {shown} did not give it: {type(error).__name__}: {error}. Check its address and the credentials; then "
            "retry."
        ) from error


def _open_store(source: str) -> Any:
    from airflow.sdk import ObjectStoragePath

    path = ObjectStoragePath(source)
    _ = path.fs  # looked up at the first use otherwise, in the words of fsspec
    return path
