"""What scripts/matrix.py makes of its cells; the cells themselves are for ``make matrix`` to run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def matrix() -> Iterator[ModuleType]:
    """The script, by its path: scripts/ is no package."""
    spec = importlib.util.spec_from_file_location("matrix", ROOT / "scripts/matrix.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["matrix"] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["matrix"]


def test_the_corners_are_cells_and_every_cell_has_its_lock(matrix: ModuleType) -> None:
    named = {each.name: each for each in matrix.cells()}
    assert len(named) == 10
    assert set(matrix.CORNERS) <= named.keys()
    assert [each.name for each in named.values() if not each.lock.is_file()] == []


def test_the_table_has_what_passed_and_nothing_else(matrix: ModuleType, tmp_path: Path) -> None:
    named = {each.name: each for each in matrix.cells()}
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- versions -->\nold\n<!-- end: versions -->\nafter\n")
    matrix.write(
        page,
        [
            matrix.Outcome(named["lowest-py3.11"], "passed", "9 passed", "3.1.1"),
            matrix.Outcome(named["3.1-py3.13"], "failed", "1 failed", "3.1.8"),
            matrix.Outcome(named["3.3-py3.12"], "passed", "9 passed", "3.3.2"),
            matrix.Outcome(named["3.3-py3.13"], "lacking", "not run"),
        ],
    )
    lines = page.read_text().splitlines()
    assert lines[:2] + lines[-2:] == ["before", "<!-- versions -->", "<!-- end: versions -->", "after"]
    assert lines[4:-2] == [
        "| lowest (3.1.1) | yes |  |  |",
        "| 3.1 |  |  |  |",
        "| 3.2 |  |  |  |",
        "| 3.3 (3.3.2) |  | yes |  |",
    ]


def test_the_readme_has_the_place_of_the_table(matrix: ModuleType) -> None:
    assert matrix.REGION.search((ROOT / "README.md").read_text())


def test_what_cannot_be_imported_is_told_with_its_reason(
    matrix: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matrix, "HOME", tmp_path)  # not the folder of a matrix that is running
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "airflow.py").write_text("raise ImportError('too old')\n")
    with pytest.raises(matrix.Failed, match=r"(?s)^the wheel cannot be imported:\n.*too old"):
        matrix._release(matrix.cells()[0], Path(sys.executable))
