"""What is shown of a file, judged by its bytes alone."""

from __future__ import annotations

import json

import pytest

from airflow_ml_provider.plugin import preview
from tests.plugin import hostile
from tests.plugin.nightly import png


@pytest.mark.parametrize(
    ("beginning", "kind"),
    [
        (png(2, 2), "image/png"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 20, "image/jpeg"),
        (b"GIF89a" + b"\0" * 20, "image/gif"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\0\0\0\0WAVEfmt ", ""),
        (b"GIF8<script>", ""),
        (hostile.SVG.encode(), ""),
        (hostile.HTML.encode(), ""),
        (b"", ""),
    ],
)
def test_a_picture_is_one_by_its_first_bytes(beginning: bytes, kind: str) -> None:
    assert preview.picture_type(beginning) == kind


@pytest.mark.parametrize("path", ["a.txt", "try-1/a b.txt", "<b>/ä.png", "a/..b"])
def test_a_path_stays_below_its_folder(path: str) -> None:
    assert preview.is_path(path)


@pytest.mark.parametrize(
    "path", ["", "/a", "a/", "..", "../../x", "a/../b", "a/./b", "a//b", "..\\x", "a%2f..", "%2e%2e/x", "a\0b", "a\nb"]
)
def test_a_path_that_climbs_is_none(path: str) -> None:
    assert not preview.is_path(path)


def test_a_table_is_cut_in_rows_columns_and_cells() -> None:
    wide = ",".join(["x" * 300] * 30)
    found = preview.read("\n".join([wide] * 200).encode(), ".csv", 1_000_000)
    assert (len(found.table), len(found.table[0]), len(found.table[0][0])) == (
        preview.ROWS + 1,
        preview.COLUMNS,
        preview.CELL,
    )
    assert found.cut


def test_the_last_row_of_a_table_that_was_cut_off_is_left_out() -> None:
    assert preview.read(b"a,b\n1,2\n3,", ".csv", cut=True).table == [["a", "b"], ["1", "2"]]


def test_a_small_table_is_whole() -> None:
    found = preview.read(b"a\tb\n1\t2\n", ".tsv", 8)
    assert (found.table, found.cut) == ([["a", "b"], ["1", "2"]], False)


def test_json_is_indented_and_what_is_none_is_text() -> None:
    assert json.loads(preview.read(b'{"a":[1,2]}', ".json").text) == {"a": [1, 2]}
    assert "\n" in preview.read(b'{"a":[1,2]}', ".json").text
    assert preview.read(b"{'a'", ".json").text == "{'a'"
    deep = b"[" * 30_000 + b"]" * 30_000
    assert preview.read(deep, ".json").text == deep.decode()
    grows = b"[" * 300 + b"1," * 30_000 + b"1" + b"]" * 300
    assert preview.read(grows, ".json").text == grows.decode(), "18 MB once it is indented"


def test_a_letter_that_was_cut_in_two_does_not_make_a_text_unreadable() -> None:
    found = "aä".encode()[:2]
    assert preview.read(found, ".txt", cut=True).text == "a"
    assert preview.read(found, ".txt").note


def test_what_is_no_text_says_so() -> None:
    for found in (bytes(range(256)), b"\0\1\2" * 100):
        assert "no text" in preview.read(found, ".txt").note


def test_a_long_text_is_cut_in_lines() -> None:
    found = preview.read(b"a\n" * 1000, ".txt", 2000)
    assert (len(found.text.splitlines()), found.cut) == (preview.LINES, True)
