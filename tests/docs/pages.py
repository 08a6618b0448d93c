"""The pages of the documentation, and what stands in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
_SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^(#+) (.+)$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```$|^    [^\n]*$", re.DOTALL | re.MULTILINE)


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
        for found in _SNIPPET.finditer(self.text):
            start = self.text.count("\n", 0, found.start(1))
            for number, line in enumerate(found[1].splitlines(), start):
                lines[number] = line
        return "\n".join(lines) + "\n"

    @property
    def links(self) -> list[str]:
        """Links to other files, and to headings."""
        return [each for each in _LINK.findall(_FENCE.sub("", self.text)) if "://" not in each]

    @property
    def headings(self) -> list[str]:
        return [title for _, title in _HEADING.findall(_FENCE.sub("", self.text))]

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
