from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, Page, page

HOLE = "\0"
NOT_OURS = {"Listeners are not supported with end_from_trigger=True"}


def texts_of(file: Path) -> list[str]:
    """All texts of a module, with a hole where a value is written in."""

    def text(node: ast.AST) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        return "".join(text(each) for each in node.values) if isinstance(node, ast.JoinedStr) else HOLE

    return [text(each) for each in ast.walk(ast.parse(file.read_text())) if isinstance(each, ast.JoinedStr | ast.Constant)]


def says(said: str, wanted: str) -> bool:
    """Whether a text has the pieces of a message, in their order; a value of the code matches what is written for it."""
    place = 0
    for piece in wanted.split("…"):
        place = said.find(piece.strip(), place)
        if place < 0:
            return False
        place += len(piece.strip())
    return True


@pytest.mark.parametrize("where", PAGES, ids=lambda path: str(Page(path)))
def test_every_link_leads_somewhere(where: Path) -> None:
    for link in Page(where).links:
        target, _, anchor = link.partition("#")
        file = (where.parent / target).resolve() if target else where
        assert file.exists(), link
        assert not anchor or anchor in Page(file).anchors, link


def test_every_message_of_the_troubleshooting_page_is_one_of_ours() -> None:
    known = [text for file in (ROOT / "airflow_ml_provider").rglob("*.py") for text in texts_of(file)]
    messages = [
        each
        for title in page("docs/troubleshooting.md").headings
        if title.startswith("`")
        for each in title.strip("`").split("`, `")
    ]
    assert len(messages) > 30
    unknown = [each for each in messages if each not in NOT_OURS and not any(says(text, each) for text in known)]
    assert unknown == []
