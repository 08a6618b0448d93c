"""Names and texts that the server can store; the limits are those that were recorded."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_ml_provider.core.kfp_names import (
    check_description,
    check_experiment_name,
    check_pipeline_name,
    check_run_name,
    check_version_name,
    fitted_run_name,
)
from airflow_ml_provider.exceptions import ConfigError

CHECKS = [check_run_name, check_description, check_experiment_name, check_pipeline_name, check_version_name]


@pytest.mark.parametrize(
    "name", ["x" * 255, "\u00e9" * 255, "Zo\u00eb \u2615 \u65e5\u672c / a:b", "a\nb\tc\x01", "   ", "\uffff"]
)
def test_a_run_may_be_named_so(name: str) -> None:
    assert check_run_name(name) == check_description(name) == name


@pytest.mark.parametrize("check", [check_run_name, check_description])
@pytest.mark.parametrize("length", [256, 300, 100_000])
def test_a_run_with_more_than_255_characters_is_refused_with_both_numbers(check: Callable[[str], str], length: int) -> None:
    with pytest.raises(ConfigError, match=rf"has {length} characters; the server's database holds 255.*Shorten it") as caught:
        check("\u65e5" * length)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("text", ["rocket \U0001f680", "\ud83d", "\U00010000"])
def test_a_character_of_4_bytes_is_refused_in_every_name(check: Callable[[str], str], text: str) -> None:
    with pytest.raises(ConfigError, match="takes 4 bytes in UTF-8; the server's database takes 3") as caught:
        check(text)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("check", [each for each in CHECKS if each is not check_description])
def test_an_empty_name_is_refused(check: Callable[[str], str]) -> None:
    with pytest.raises(ConfigError, match="is empty, which the server refuses"):
        check("")


def test_an_empty_description_is_none() -> None:
    assert check_description("") == ""


@pytest.mark.parametrize(
    ("check", "limit"), [(check_experiment_name, 128), (check_pipeline_name, 128), (check_version_name, 127)]
)
def test_the_names_of_other_things_are_counted_in_bytes(check: Callable[[str], str], limit: int) -> None:
    assert check("x" * limit) == "x" * limit
    with pytest.raises(ConfigError, match=rf"takes {limit + 1} bytes in UTF-8; the server takes {limit}"):
        check("x" * (limit + 1))
    with pytest.raises(ConfigError, match=r"takes 130 bytes in UTF-8"):
        check("\u00e9" * 65)


def test_a_pipeline_may_be_registered_under_any_other_name() -> None:
    assert check_pipeline_name("Bad Name/with:chars \u00e9") == "Bad Name/with:chars \u00e9"


@given(st.text(max_size=400))
def test_a_fitted_name_always_passes_and_stays_as_it_is_where_it_can(text: str) -> None:
    fitted = fitted_run_name(text)
    assert check_run_name(fitted) == fitted
    assert fitted_run_name(text) == fitted
    assert check_description(fitted) == fitted


def test_a_name_that_fits_is_not_touched_and_two_long_ones_stay_two() -> None:
    assert fitted_run_name("churn train 2024") == "churn train 2024"
    assert fitted_run_name("rocket \U0001f680") == "rocket ?"
    assert fitted_run_name("") == "run"
    one, two = (fitted_run_name("d" * 300 + end) for end in "ab")
    assert one != two
    assert len(one) == len(two) == 255
