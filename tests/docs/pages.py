"""The pages of the documentation, and what stands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[2]
TOP = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
PAGES = (*(ROOT / name for name in TOP), *sorted((ROOT / "docs").rglob("*.md")))
_PART = re.compile(r"<!-- begin: .*?<!-- end: ", re.DOTALL)
_COMMAND = re.compile(r"`(airflow-ml [^`]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """What stands between two fences of a page."""

    page: str
    line: int
    """How many lines of the page stand above it, its fence not counted."""
    language: str
    text: str
    made: bool
    """Whether it stands in a part that scripts/docs_tables.py makes."""

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{self.page}:{self.line + 1}"


@dataclass(frozen=True)
class Page:
    """One page; its snippets are parts of one file, in their order."""

    path: Path

    def __str__(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def code(self) -> str:
        """All Python snippets, each in the line where it stands, so that an error names the line of the page."""
        lines = [""] * (self.text.count("\n") + 1)
        for block in self.blocks:
            if block.language == "python":
                lines[block.line + 1 : block.line + 1 + block.text.count("\n")] = block.text.splitlines()
        return "\n".join(lines) + "\n"

    @property
    def blocks(self) -> list[Block]:
        """All between fences, also of lists; directives of Sphinx left out."""
        parts = [part.span() for part in _PART.finditer(self.text)]
        made = [range(self.text.count("\n", 0, start), self.text.count("\n", 0, end)) for start, end in parts]
        return [
            Block(str(self), line, token.info, token.content, any(line in part for part in made))
            for token, (line, _) in self._code
            if token.type == "fence" and not token.info.startswith("{")
        ]

    @property
    def indented(self) -> list[str]:
        """What Markdown shows as code without a fence, so that nothing says what it is."""
        return [token.content for token, _ in self._code if token.type == "code_block"]

    @property
    def prose(self) -> str:
        """The page without code."""
        lines = self.text.splitlines()
        for _, (start, end) in self._code:
            lines[start:end] = [""] * (end - start)
        return "\n".join(lines) + "\n"

    @property
    def _code(self) -> list[tuple[Token, tuple[int, int]]]:
        tokens = MarkdownIt("commonmark").parse(self.text)
        return [(each, (each.map[0], each.map[1])) for each in tokens if each.type in {"fence", "code_block"} and each.map]

    @property
    def commands(self) -> list[str]:
        """Commands of ours within the text."""
        return _COMMAND.findall(self.prose)

    @property
    def links(self) -> list[str]:
        """Links to other files, and to headings."""
        return [each for each in _LINK.findall(self.prose) if "://" not in each]

    @property
    def headings(self) -> list[str]:
        return [title for _, title in _HEADING.findall(self.prose)]

    @property
    def anchors(self) -> set[str]:
        """What a link may name after ``#``: headings in small letters, blanks as dashes, other signs left out."""
        return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in self.headings}

    def rows(self, first_title: str) -> list[list[str]]:
        """Return the cells of the table whose first column has that title."""
        lines = self.text.splitlines()
        start = next(number for number, line in enumerate(lines) if line.startswith(f"| {first_title} |"))
        body = []
        for line in lines[start + 2 :]:
            if not line.startswith("|"):
                break
            body.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        return body


def page(name: str) -> Page:
    """Return a page by its path from the root."""
    return Page(ROOT / name)
