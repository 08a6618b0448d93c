"""The picture of a metric's trend."""

from __future__ import annotations

import io
import subprocess
import sys
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from airflow_ml_provider.core.alert_trend import draw_trend
from airflow_ml_provider.core.alert_words import sparkline, trend_in_words
from airflow_ml_provider.models.alert import Trend, TrendPoint
from airflow_ml_provider.notifications.samples import AT, sample_trend

BLUE, RED, AMBER = (37, 99, 235), (220, 38, 38), (180, 83, 9)


def trend(*values: float, limit: float | None = None) -> Trend:
    points = tuple(TrendPoint(at=AT + timedelta(days=day), value=value) for day, value in enumerate(values))
    return Trend(metric="auc", points=points, limit=limit)


def colours(drawn: bytes | None) -> set[str]:
    """Which of the three colours that mean something are in a picture."""
    assert drawn is not None
    with Image.open(io.BytesIO(drawn)) as picture:
        pixels = {each[:3] for _, each in picture.convert("RGBA").getcolors(2**20) or ()}
    return {
        name
        for name, colour in (("value", BLUE), ("bad", RED), ("limit", AMBER))
        if any(sum(abs(a - b) for a, b in zip(each, colour, strict=True)) < 40 for each in pixels)
    }


def test_a_value_below_the_limit_is_red() -> None:
    assert colours(draw_trend(sample_trend(0.712))) == {"value", "bad", "limit"}


def test_a_value_above_it_is_not() -> None:
    assert colours(draw_trend(sample_trend(0.768))) == {"value", "limit"}


def test_without_a_limit_there_is_no_line() -> None:
    assert colours(draw_trend(trend(1, 2, 3))) == {"value"}


@pytest.mark.parametrize("values", [(float("nan"), 1.0), (float("inf"), float("-inf"))])
def test_what_has_no_two_numbers_is_not_drawn(values: tuple[float, float]) -> None:
    assert draw_trend(trend(*values)) is None
    assert draw_trend(None) is None


def test_a_limit_that_is_no_number_is_none() -> None:
    assert colours(draw_trend(trend(1, 2, limit=float("nan")))) == {"value"}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=40), st.none() | st.floats())
def test_any_numbers_can_be_drawn(values: list[float], limit: float | None) -> None:
    drawn = draw_trend(trend(*values, limit=limit))
    assert drawn is not None
    assert len(drawn) < 40_000


def test_without_pillow_there_is_no_picture_and_no_error() -> None:
    code = (
        "import sys; sys.modules['PIL'] = None; from airflow_ml_provider.core.alert_email import render_email; "
        "from airflow_ml_provider.notifications.samples import sample_alerts; "
        "email = render_email(sample_alerts()['gate_rejected']); print(email.picture, 'cid:' in email.html, '0.712' in email.html)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["None", "False", "True"], "")


def test_nothing_heavy_is_imported_before_something_is_rendered() -> None:
    code = (
        "import sys; from airflow_ml_provider.core import alert_email, alert_slack, alert_trend; "
        "print({'PIL', 'jinja2', 'slack_sdk', 'airflow'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("set()", "")


def test_in_words_it_is_the_last_values_and_the_limit() -> None:
    assert trend_in_words(trend(*range(10), limit=3)) == "4, 5, 6, 7, 8, 9; the gate asks for 3"
    assert trend_in_words(trend(0.5, 0.25)) == "0.5, 0.25"


def test_as_bars_it_goes_from_the_least_to_the_greatest() -> None:
    assert sparkline(trend(0, 7, 3, 3.4)) == "▁█▄▄"
    assert sparkline(trend(2, 2)) == "▄▄"
    assert len(sparkline(trend(*range(100)))) == 16
