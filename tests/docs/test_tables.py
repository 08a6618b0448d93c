from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest

from tests.docs.pages import PAGES, ROOT, Page

README_LINES = 150


@pytest.fixture(scope="module")
def docs_tables() -> ModuleType:
    """The generator, by its path: scripts/ is no package."""
    spec = importlib.util.spec_from_file_location("docs_tables", ROOT / "scripts/docs_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(Page(path)))
def test_a_page_is_what_the_generator_makes_of_it(docs_tables: ModuleType, path: object) -> None:
    found = Page(path).text  # type: ignore[arg-type]
    assert found == docs_tables.render(found), "run: .venv/bin/python scripts/docs_tables.py"


def test_every_part_is_on_a_page(docs_tables: ModuleType) -> None:
    text = "".join(path.read_text() for path in PAGES)
    assert [name for name in docs_tables.PARTS if f"<!-- begin: {name} -->" not in text] == []


def test_every_argument_of_ours_is_described(docs_tables: ModuleType) -> None:
    for name in ("step-arguments", "gate-arguments", "promotion-arguments"):
        assert "`mlflow_conn_id`" in docs_tables.PARTS[name]()
    assert len(docs_tables.PARTS["gate-arguments"]().splitlines()) == 2 + 11


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES
