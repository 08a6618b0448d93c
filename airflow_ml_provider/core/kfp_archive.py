"""The text of a compiled package out of what was stored: plain, or packed as ``.zip`` or ``.tar.gz``; pure."""

from __future__ import annotations

import io

from airflow_ml_provider.exceptions import ConfigError

MAX_BYTES = 32 << 20
"""Bytes of a package, packed or not: the server's own limit. Its database may take less: 10 MB passed, 33 MB did not."""
PREFERRED = "pipeline.yaml"
"""The file of an archive that is the pipeline; without it the first file is, if it is YAML."""
_BROKEN_REMEDY = "Pack it again, or give the .yaml file itself"


def unpacked(data: bytes, *, source: str) -> bytes:
    """
    Take the YAML or JSON out of what was stored.

    Archives are told by their first bytes, and the file in them is chosen as the server does it.

    :param data: Content of the file.
    :param source: Where it comes from, for messages.
    :return: The text, at most 32 MiB.
    :raises ConfigError: it is too large, packed or not; the archive is broken, or has no YAML where it must be; a retry never
        helps.
    """
    check_size(len(data), source=source)
    if data[:2] in {b"PK", b"\x1f\x8b"}:
        data = _opened(data, source)
        check_size(len(data), source=source)
    return data


def check_size(size: int, *, source: str) -> None:
    """
    Refuse what the server would refuse for its size.

    :param size: Bytes, or the count at which reading was given up.
    :param source: Where it comes from, for messages.
    :raises ConfigError: it is more than 32 MiB; a retry never helps.
    """
    if size > MAX_BYTES:
        raise ConfigError(
            f"{source} is larger than {MAX_BYTES} bytes (32 MiB), which is all that the server takes. "
            "Move what is embedded (code, notebooks, data) into an image or an object store."
        )


def _opened(data: bytes, source: str) -> bytes:
    import tarfile  # with all kinds of packing behind it, which no DAG file needs
    import zipfile
    import zlib

    try:
        return _unzipped(data, source) if data[:2] == b"PK" else _untarred(data, source)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        KeyError,  # a link to what is not in the archive
        NotImplementedError,  # a way of packing that Python does not know
        RuntimeError,  # a password is wanted
        OSError,
    ) as error:
        raise ConfigError(f"the archive {source} cannot be read: {type(error).__name__}: {error}. {_BROKEN_REMEDY}.") from error


def _unzipped(data: bytes, source: str) -> bytes:
    import zipfile

    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        name = _chosen(archive.namelist(), source)
        with archive.open(name) as stream:
            return stream.read(MAX_BYTES + 1)


def _untarred(data: bytes, source: str) -> bytes:
    import gzip
    import tarfile

    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        plain = stream.read(2 * MAX_BYTES + 1)
    if len(plain) > 2 * MAX_BYTES:
        check_size(len(plain), source=source)
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
        name = _chosen(archive.getnames(), source)
        member = archive.extractfile(name)
        if member is None:
            raise ConfigError(f"{name!r} in {source} is no file. {_BROKEN_REMEDY}.")
        return member.read(MAX_BYTES + 1)


def _chosen(names: list[str], source: str) -> str:
    first = PREFERRED if PREFERRED in names else next(iter(names), "")
    if not first.endswith((".yaml", ".yml")):
        raise ConfigError(
            f"the archive {source} has no {PREFERRED}, and its first file is {first!r:.100}. Put {PREFERRED} at its top."
        )
    return first
