"""The folders of runs on this machine: what is deleted, and what never is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.jobs.kfp_local_folders import NOTES, RunFolders

DAYS = 86_400


@pytest.fixture
def folders(tmp_path: Path) -> RunFolders:
    return RunFolders(tmp_path / "root", keep_days=14)


def ended(folders: RunFolders, name: str, *, days_ago: float) -> Path:
    """A run that has ended, with what it has written."""
    folder = folders.root / name
    with folders.held(folder, folder.name):
        (folder / "artifacts/model").mkdir(parents=True)
        (folder / "artifacts/model/weights").write_bytes(b"x")
    moment = time.time() - days_ago * DAYS
    os.utime(folders.root / NOTES / f"{folder.name}.run", (moment, moment))
    return folder


def test_a_folder_is_deleted_when_it_is_old_with_its_empty_parents(folders):
    old, young = ended(folders, "dag/night-1/train/1-a", days_ago=15), ended(folders, "dag/night-2/train/1-b", days_ago=13)
    folders.delete_old()
    assert not old.parents[1].exists()
    assert (young / "artifacts/model/weights").exists()
    assert [each.name for each in (folders.root / NOTES).iterdir()] == ["1-b.run"]


@pytest.mark.parametrize("keep_days", [0.0, float("inf")])
def test_how_long_is_the_options(folders, keep_days):
    folder = ended(folders, "dag/a", days_ago=1)
    RunFolders(folders.root, keep_days).delete_old()
    assert folder.exists() is (keep_days > 0)


def test_one_that_runs_is_kept_however_long_it_takes_in_this_process_and_in_others(folders):
    code = (
        "import sys, time; from pathlib import Path; from airflow_ml_provider.jobs.kfp_local_folders import RunFolders\n"
        "folders = RunFolders(Path(sys.argv[1]), 14)\n"
        "with folders.held(folders.root / 'dag/theirs', 'theirs'): print('held', flush=True); time.sleep(600)"
    )
    theirs = subprocess.Popen([sys.executable, "-c", code, str(folders.root)], stdout=subprocess.PIPE, text=True)
    assert theirs.stdout is not None
    assert theirs.stdout.readline() == "held\n"
    try:
        with folders.held(folders.root / "dag/ours", "ours"):
            for name in ("ours", "theirs"):
                os.utime(folders.root / NOTES / f"{name}.run", (0, 0))
            folders.delete_old()
            assert (folders.root / "dag/ours").exists()
            assert (folders.root / "dag/theirs").exists()
    finally:
        theirs.kill()  # as a worker dies
        theirs.communicate()
    os.utime(folders.root / NOTES / "theirs.run", (0, 0))
    folders.delete_old()
    assert (folders.root / "dag/ours").exists(), "it ended just now"
    assert not (folders.root / "dag/theirs").exists()


def test_what_no_run_has_made_is_never_deleted(folders, tmp_path):
    (folders.root / "mine").mkdir(parents=True)
    (folders.root / "mine/file").touch()
    (tmp_path / "outside").mkdir()
    ended(folders, "dag/a", days_ago=99)
    (folders.root / "link").symlink_to(tmp_path)
    for number, place in enumerate(("", ".", "..", "../outside", "mine/../..", NOTES, str(tmp_path / "outside"), "link/outside")):
        note = folders.root / NOTES / f"{number}.run"
        note.write_text(place)
        os.utime(note, (0, 0))
    folders.delete_old()
    assert (folders.root / "mine/file").exists()
    assert (tmp_path / "outside").exists()
    assert list((folders.root / NOTES).iterdir()) == []


def test_a_link_that_a_component_has_made_is_not_followed(folders, tmp_path):
    (tmp_path / "kept").write_text("kept")
    folder = ended(folders, "dag/a", days_ago=99)
    (folder / "artifacts/away").symlink_to(tmp_path)
    folders.delete_old()
    assert not folder.exists()
    assert (tmp_path / "kept").exists()


def test_what_cannot_be_deleted_is_said_and_stops_nobody(folders, caplog):
    first, second = ended(folders, "dag/a", days_ago=99), ended(folders, "dag/b", days_ago=99)
    (folders.root / NOTES / "a.run").unlink()
    (folders.root / NOTES / "a.run").mkdir()
    os.utime(folders.root / NOTES / "a.run", (0, 0))
    folders.delete_old()
    assert first.exists()
    assert not second.exists()
    assert "The folder of the old run a is not deleted" in caplog.text


def test_many_runs_that_begin_while_others_are_deleted_all_find_their_folders(folders):
    problems: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for each in range(30):
                with RunFolders(folders.root, 0.0).held(folder := folders.root / f"dag/{each % 3}/{number}-{each}", folder.name):
                    RunFolders(folders.root, 0.0).delete_old()
                    assert folder.is_dir()
        except Exception as problem:  # noqa: BLE001  (of a thread, which the test says)
            problems.append(problem)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert problems == []
    RunFolders(folders.root, 0.0).delete_old()
    assert not list(folders.root.glob("dag/*/*"))


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    folders = RunFolders(tmp_path / "file/root", 1)
    folders.delete_old()
    with (
        pytest.raises(ConfigError, match=r"cannot be made: .* Name another place in \[ml\] kfp_local_root"),
        folders.held(folders.root / "run", "one"),
    ):
        pass
