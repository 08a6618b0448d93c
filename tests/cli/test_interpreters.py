"""``airflow-ml interpreters``, on interpreters that were really made."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from airflow_ml_provider.cli.main import main
from airflow_ml_provider.interpreters import READY, Environments, Requirements

WEEK_S = 7 * 86_400


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AIRFLOW__ML__INTERPRETERS", str(tmp_path / "kept"))
    return tmp_path / "kept"


def made(root: Path, text: str, *, unused_for_s: float = 0) -> Path:
    """Make one with no packages: its requirements are comments, which are told apart by an import that is there already."""
    python = Environments(root).python(Requirements(f"# {text}", imports={text: text}))
    folder = python.parent.parent.parent
    os.utime(folder / READY, (time.time() - unused_for_s,) * 2)
    return folder


def test_what_is_kept_is_listed_and_what_was_unused_for_the_days_is_deleted(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = made(root, "json", unused_for_s=WEEK_S), made(root, "email")
    unfinished = root / "0123"
    unfinished.mkdir()
    os.utime(unfinished, (1, 1))

    assert main(["interpreters"]) == 0
    listed = capsys.readouterr().out
    assert listed.index(new.name) < listed.index(old.name) < listed.index("1970-01-01 00:00 UTC  never finished")
    assert f"3 at {root}: " in listed
    assert "0.0 MiB  last used 20" not in listed

    assert main(["interpreters", "--unused-for", "6", "--dry-run"]) == 0
    assert f"to delete  {old.name}" in capsys.readouterr().out
    assert old.exists()

    assert main(["interpreters", "--unused-for", "6"]) == 0
    said = capsys.readouterr().out
    assert (old.exists(), unfinished.exists(), new.exists()) == (False, False, True)
    assert f"deleted  {old.name}" in said
    assert f"\n{new.name}" in f"\n{said}"


def test_one_that_a_task_has_asked_for_since_stays(root: Path) -> None:
    old = made(root, "json", unused_for_s=WEEK_S)
    environments = Environments(root)
    (listed,) = environments.kept()
    environments.python(Requirements("# json", imports={"json": "json"}))
    assert not environments.remove(listed)
    assert old.exists()


def test_one_that_is_being_made_stays_and_nobody_waits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unfinished = root / "0123"
    unfinished.mkdir(parents=True)
    os.utime(unfinished, (1, 1))
    with (root / "0123.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(["interpreters", "--unused-for", "1"]) == 0
    assert "in use  0123" in capsys.readouterr().out
    assert unfinished.exists()


@pytest.mark.parametrize("days", ["0.5", "0", "-3", "nan"])
def test_less_than_a_day_is_refused(root: Path, days: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(root, "json", unused_for_s=WEEK_S)
    assert main(["interpreters", "--unused-for", days]) == 1
    assert "Give 1 day or more" in capsys.readouterr().err
    assert folder.exists()


def test_a_folder_that_is_not_there_holds_nothing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["interpreters"]) == 0
    assert capsys.readouterr().out == f"0 at {root}: 0.0 MiB\n"
