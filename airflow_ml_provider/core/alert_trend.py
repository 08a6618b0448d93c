"""
The picture of a metric's trend in an e-mail, drawn with Pillow, which may be missing.

No text of the user's is in it: what a font cannot show is never asked of it. It is drawn on a light ground of its own, so
that it can be read in a dark inbox too.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from airflow_ml_provider.core.alert_text import MONTHS, in_utc, number
from airflow_ml_provider.core.alert_words import finite, limit_of
from airflow_ml_provider.models.alert import Trend, TrendPoint

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

WIDTH, HEIGHT = 480, 190
"""Size at which it is shown, in pixels of a page; it is drawn twice as large, for the screens of phones."""
HUGE = 1e300
"""Values beyond it, and below one part of it, have no round numbers near them that a float can hold."""
MOST = 30
"""Points that are drawn, the last ones."""

_DRAWN, _KEPT = 4, 2  # drawn at four times the size and brought down to two: smooth lines
_TOP, _BOTTOM, _SIDE = 22, 34, 28
CLOSE = 17
"""Pixels between two labels at which they would touch."""
_GROUND, _GRID, _TEXT = "#f8fafc", "#e2e8f0", "#475569"
_LINE, _BAD, _LIMIT = "#2563eb", "#dc2626", "#b45309"


class _Scale(NamedTuple):
    """Where values and points are on the canvas, in pixels of the page."""

    low: float
    high: float
    runs: int
    left: float
    right: float

    def x(self, index: int) -> float:
        return self.left + (self.right - self.left) * index / (self.runs - 1)

    def y(self, value: float) -> float:
        # Halves first: the distance between two very large values may be more than a float holds.
        share = (value / 2 - self.low / 2) / (self.high / 2 - self.low / 2)
        return HEIGHT - _BOTTOM - (HEIGHT - _TOP - _BOTTOM) * share


def draw_trend(trend: Trend | None) -> bytes | None:
    """
    Draw a trend: the values, the limit, the dates of the first, the middle and the last run, and the last value.

    :param trend: The trend, or None.
    :return: A PNG of 960 x 380 pixels, to be shown at 480 x 190; None where there is nothing to draw, or no Pillow.
    """
    points = finite(trend)[-MOST:]
    if trend is None or not points:
        return None
    try:
        from PIL import Image, ImageDraw, ImageFont

        size = (WIDTH * _DRAWN, HEIGHT * _DRAWN)
        image = Image.new("RGBA", size, (0, 0, 0, 0))
        draw = ImageDraw.Draw(image)
        font = ImageFont.load_default(14 * _DRAWN)
    except (ImportError, OSError):  # Pillow, or its reader of fonts, is not there
        return None
    if not isinstance(font, ImageFont.FreeTypeFont):
        return None
    draw.rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius=8 * _DRAWN, fill=_GROUND)
    _Chart(draw, font, points, limit_of(trend)).draw()
    small = image.resize((WIDTH * _KEPT, HEIGHT * _KEPT), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.quantize(128, method=Image.Quantize.FASTOCTREE).save(file, "PNG", optimize=True)
    return file.getvalue()


class _Chart:
    def __init__(self, canvas: ImageDraw, font: FreeTypeFont, points: Sequence[TrendPoint], limit: float | None) -> None:
        self.canvas, self.font, self.points, self.limit = canvas, font, points, limit
        values = [each.value for each in points] + ([] if limit is None else [limit])
        self.ticks = _ticks(min(values), max(values))
        left = max(_SIDE, 20 + self.widest(_alike(self.ticks)))
        right = WIDTH - 28 - self.widest([number(points[-1].value), "" if limit is None else _words(limit)])
        self.scale = _Scale(self.ticks[0], self.ticks[-1], len(points), left, right)
        self.near = limit is not None and abs(self.scale.y(limit) - self.scale.y(points[-1].value)) < CLOSE

    def widest(self, texts: Sequence[str]) -> float:
        return max(self.font.getlength(each) for each in texts) / _DRAWN

    def draw(self) -> None:
        self.draw_grid()
        self.draw_dates()
        if self.limit is not None:
            self.draw_limit(self.limit)
        self.draw_values()

    def draw_grid(self) -> None:
        for tick, text in zip(self.ticks, _alike(self.ticks), strict=True):
            y = self.scale.y(tick)
            self.line([(self.scale.left - 4, y), (self.scale.right + 8, y)], _GRID, 1)
            self.write(self.scale.left - 10, y, text, _TEXT, "rm")

    def draw_dates(self) -> None:
        last = len(self.points) - 1
        for index in sorted({0, last // 2, last} if last > 3 else {0, last}):  # noqa: PLR2004  (the middle stands free)
            at = in_utc(self.points[index].at)
            self.write(self.scale.x(index), HEIGHT - 15, f"{at.day} {MONTHS[at.month - 1]}", _TEXT, "mm")

    def draw_limit(self, limit: float) -> None:
        y, x, end = self.scale.y(limit), self.scale.left - 4, self.scale.right + 8
        while x < end:
            self.line([(x, y), (min(x + 6, end), y)], _LIMIT, 1.5)
            x += 10
        aside = (9 if limit <= self.points[-1].value else -9) if self.near else 0
        self.write(self.scale.right + 14, y + aside, _words(limit), _LIMIT, "lm")

    def draw_values(self) -> None:
        places = [(self.scale.x(index), self.scale.y(each.value)) for index, each in enumerate(self.points)]
        self.line(places, _LINE, 2)
        for place, each in zip(places, self.points, strict=True):
            self.dot(place, 3 if len(places) <= MOST // 2 else 2, self.colour(each.value))
        (x, y), last = places[-1], self.points[-1].value
        self.dot(places[-1], 7, _GROUND)
        self.dot(places[-1], 5, self.colour(last))
        aside = (-9 if self.limit is not None and last >= self.limit else 9) if self.near else 0
        self.write(x + 14, y + aside, number(last), self.colour(last), "lm", bold=True)

    def colour(self, value: float) -> str:
        return _BAD if self.limit is not None and value < self.limit else _LINE

    def line(self, places: Sequence[tuple[float, float]], colour: str, width: float) -> None:
        self.canvas.line([(x * _DRAWN, y * _DRAWN) for x, y in places], colour, round(width * _DRAWN), joint="curve")

    def dot(self, place: tuple[float, float], radius: float, colour: str) -> None:
        x, y = place
        self.canvas.ellipse([(each * _DRAWN) for each in (x - radius, y - radius, x + radius, y + radius)], fill=colour)

    def write(self, x: float, y: float, text: str, colour: str, anchor: str, *, bold: bool = False) -> None:
        stroke = _DRAWN // 4 if bold else 0
        self.canvas.text((x * _DRAWN, y * _DRAWN), text, colour, self.font, anchor, stroke_width=stroke, stroke_fill=colour)


def _words(limit: float) -> str:
    return f"limit {number(limit)}"


def _alike(ticks: Sequence[float]) -> list[str]:
    """Write the values of the grid with the same number of decimals."""
    texts = [number(each) for each in ticks]
    if any("e" in each or "," in each for each in texts):
        return texts
    decimals = max(len(each.partition(".")[2]) for each in texts)
    return [f"{each:.{decimals}f}" for each in ticks]


def _ticks(low: float, high: float) -> list[float]:
    """Choose three to six round values that hold all between them."""
    size = max(abs(low), abs(high))
    if size > HUGE:
        return [low, high] if low < high else sorted((low / 2, low))
    if high - low <= max(size * 1e-9, 1 / HUGE):
        room = size / 20 if size > 1 / HUGE else 1.0
        return [low - room, low, low + room]
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    while (high - low) / step > 4:  # noqa: PLR2004
        step *= 2.5 if round(step / 10.0 ** math.floor(math.log10(step))) == 2 else 2  # noqa: PLR2004  (1, 2, 5, 10)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]
