"""
A small artifact as plain values: a picture by its first bytes, a table, or text; nothing is run, opened or drawn here.

Whatever a file says that it is, only four forms of pictures leave as bytes. HTML and SVG are text.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from airflow_ml_provider.exceptions import RemoteNotFoundError
from airflow_ml_provider.lineage.values import number
from airflow_ml_provider.tracking.page_runs import PageApi, list_files, read_file

PICTURE_BYTES, TEXT_BYTES = 2 << 20, 64 << 10
"""What is read of a file at most; a larger picture is not shown, of a larger text the beginning."""
FILE_BYTES = 16 << 20
"""Of a larger file nothing is read: MLflow's proxy would bring all of it before the first byte."""
ROWS, COLUMNS, CELL, LINES = 50, 20, 200, 400
INDENTED = 1 << 20
"""Characters of JSON once it is indented; what would be more is shown as it is."""
_CONTROL = frozenset(range(32)) - {9, 10, 12, 13, 27}
_BINARY = 0.02
"""Share of control characters from which on something is no text."""


@dataclass(frozen=True)
class Preview:
    """
    A file, as far as a page shows it.

    :param size: Bytes of all of it; None when the store does not tell.
    :param picture: Media type of a picture; empty for anything else.
    :param table: Rows of a table, the titles first.
    :param text: Text.
    :param cut: Whether there is more.
    :param note: Why it is not shown.
    """

    size: int | None = None
    picture: str = ""
    table: Sequence[Sequence[str]] = ()
    text: str = ""
    cut: bool = False
    note: str = ""


def picture_type(beginning: bytes) -> str:
    """
    Tell a picture by its first bytes.

    :param beginning: At least 12 bytes of it.
    :return: Media type; empty for what is none of the four forms that are shown.
    """
    if beginning.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if beginning.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if beginning.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    return "image/webp" if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP" else ""


def is_path(path: str) -> bool:
    """
    Say whether a path stays below its folder, however a server or a store reads it.

    :param path: As an address names it.
    :return: Whether it does.
    """
    parts = path.split("/")
    return bool(path) and "\\" not in path and path.isprintable() and not {"", ".", ".."} & set(parts) and "%" not in path


def look(api: PageApi, folder: str, path: str) -> Preview:
    """
    Read a file.

    :param api: The server.
    :param folder: Of the run's artifacts, below the proxy's root.
    :param path: Below it.
    :return: What can be shown of it.
    :raises RemoteNotFoundError: there is no such file.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    size = _size(api, folder, path)
    if size is not None and size > FILE_BYTES:
        return Preview(size, note="It is too large to be shown here. Open it in MLflow.")
    found = read_file(api, f"{folder}/{path}", TEXT_BYTES + 1)
    kind = picture_type(found)
    if kind:
        small = size is not None and size <= PICTURE_BYTES
        return Preview(size, kind if small else "", note="" if small else "The picture is too large to be shown here.")
    return read(found[:TEXT_BYTES], PurePosixPath(path).suffix.lower(), size, cut=len(found) > TEXT_BYTES)


def look_at_picture(api: PageApi, folder: str, path: str) -> tuple[bytes, str]:
    """
    Read a picture.

    :param api: The server.
    :param folder: Of the run's artifacts, below the proxy's root.
    :param path: Below it.
    :return: Its bytes and its media type.
    :raises RemoteNotFoundError: there is no such file, or it is no picture, or too large.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    size = _size(api, folder, path)
    found = read_file(api, f"{folder}/{path}", PICTURE_BYTES + 1) if size is not None and size <= PICTURE_BYTES else b""
    kind = picture_type(found)
    if not kind or len(found) > PICTURE_BYTES:
        raise RemoteNotFoundError(f"{path!r} is no PNG, JPEG, GIF or WebP of at most {PICTURE_BYTES} bytes.")
    return found, kind


def read(found: bytes, ending: str, size: int | None = None, *, cut: bool = False) -> Preview:
    """
    Read the beginning of a file as a table or as text.

    :param found: The bytes.
    :param ending: Of its name, in small letters, with the dot.
    :param size: Bytes of all of it.
    :param cut: Whether there is more.
    :return: What can be shown.
    """
    text = _decoded(found, cut=cut)
    if text is None:
        return Preview(size, note="It is no text and no picture that can be shown here. Open it in MLflow.")
    if ending in {".csv", ".tsv"} and (table := _table(text, "\t" if ending == ".tsv" else ",", cut=cut)):
        rows = [[cell[:CELL] for cell in row[:COLUMNS]] for row in table[: ROWS + 1]]
        more = cut or len(table) > ROWS + 1 or any(len(row) > COLUMNS for row in table[: ROWS + 1])
        return Preview(size, table=rows, cut=more)
    if ending == ".json" and not cut:
        text = _indented(text)
    lines = text.splitlines()
    return Preview(size, text="\n".join(lines[:LINES]), cut=cut or len(lines) > LINES)


def _size(api: PageApi, folder: str, path: str) -> int | None:
    """Look a file up in the listing of its folder, which alone tells a file from a folder, and how large it is."""
    parent, _, name = path.rpartition("/")
    for each in list_files(api, f"{folder}/{parent}".rstrip("/")):
        if str(each["path"]).strip("/") == name and not each.get("is_dir"):
            return number(each.get("file_size"))
    raise RemoteNotFoundError(f"There is no file {path!r}.")


def _decoded(found: bytes, *, cut: bool) -> str | None:
    try:
        text = found.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if not cut or error.start < len(found) - 4:  # not the last letter, which was cut
            return None
        text = found[: error.start].decode("utf-8-sig")
    strange = sum(ord(each) in _CONTROL for each in text)
    return text if strange <= _BINARY * len(text) else None


def _table(text: str, delimiter: str, *, cut: bool) -> list[list[str]]:
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    except csv.Error:
        return []
    return rows[:-1] if cut and len(rows) > 1 else rows


def _indented(text: str) -> str:
    found: list[str] = []
    length = 0
    try:
        for piece in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(json.loads(text)):
            found.append(piece)
            length += len(piece)
            if length > INDENTED:  # what lies deep grows a thousandfold
                return text
    except (ValueError, RecursionError):
        return text
    return "".join(found)
