"""How values are written for people."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_ml_provider.plugin import answers
from airflow_ml_provider.plugin.addresses import Addresses, outside

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("a\nb\tc", "a\nb\tc"),
        ("שלום ä 漢", "שלום ä 漢"),
        ("txt.\u202egnp", "txt.\\u202egnp"),
        ("a\u200bb\u2028c\0", "a\\u200bb\\u2028c\\u0000"),
        ("\ud800", "\\ud800"),
        (5, 5),
    ],
)
def test_letters_that_are_not_seen_or_turn_others_around_are_numbers(value: object, written: object) -> None:
    assert answers.plain(value) == written


def test_every_page_escapes_whatever_it_is_given() -> None:
    page = answers.page("said", {"title": "<t>", "said": "<script>\u202e", "login": '"><img>'})
    text = bytes(page.body).decode()
    assert "<title>&lt;t&gt;</title>" in text
    assert "&lt;script&gt;\\u202e" in text
    assert 'href="&#34;&gt;&lt;img&gt;"' in text


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (5.0, "5"),
        (1234567.0, "1,234,567"),
        (0.7123456789, "0.712346"),
        (1e300, "1e+300"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_numbers(value: float, written: str) -> None:
    assert answers.number(value) == written


@pytest.mark.parametrize(
    ("count", "written"), [(None, ""), (0, "0 B"), (1023, "1023 B"), (2048, "2.0 kB"), (5 << 30, "5.0 GB"), (-1, "-1 B")]
)
def test_sizes(count: int | None, written: str) -> None:
    assert answers.size(count) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0.04, "0.0 s"), (59.9, "59.9 s"), (61, "1 min 1 s"), (3700, "1 h 1 min"), (200_000, "2 d 7 h 33 min"), (-5, "0.0 s")],
)
def test_how_long_something_took(seconds: float, written: str) -> None:
    assert answers.duration(NOON, NOON + timedelta(seconds=seconds)) == written
    assert answers.duration(NOON, None) == ""


@pytest.mark.parametrize(
    ("address", "taken"),
    [
        ("https://kfp.example/#/runs/details/1", True),
        ("http://10.0.0.1:8080/x", True),
        ("javascript:alert(1)", False),
        ("data:text/html,x", False),
        ("//evil.test", False),
        ("https:evil", False),
        (" https://a.b", False),
        ("https://a.b/\u202e", False),
        ("http://[", False),
        ("", False),
    ],
)
def test_only_addresses_of_the_web_leave_a_tag(address: str, taken: bool) -> None:
    assert outside(address) == (address if taken else "")


def test_ids_are_quoted_in_addresses() -> None:
    to = Addresses("/below")
    assert to.step("d", "a/b?c&d", "x#y", 3) == "/below/airflow-ml/dags/d/run/step?run_id=a%2Fb%3Fc%26d&task_id=x%23y&map_index=3"
    assert to.log("d", "../r", "t", 2, "1") == "/below/dags/d/runs/..%2Fr/tasks/t/mapped/2?try_number=1"
