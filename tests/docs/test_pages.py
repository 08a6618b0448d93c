from __future__ import annotations

import ast
import importlib
import inspect
import re
import tomllib
from pathlib import Path

import pytest
from airflow.sdk import BaseOperator

from airflow_ml_provider.provider_info import get_provider_info
from tests.docs.pages import PAGES, ROOT, Page, page
from tests.test_exports import PUBLIC

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


def test_every_page_is_in_the_table_of_contents() -> None:
    """``make docs`` says so too, and of broken links on top; this needs no Sphinx."""
    docs = ROOT / "docs"
    trees = re.findall(r"^```\{toctree\}\n(.*?)^```$", (docs / "index.md").read_text(), re.DOTALL | re.MULTILINE)
    listed = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    assert sorted(listed) == sorted({"adr/index", *(file.stem for file in docs.glob("*.md"))} - {"index"})


def test_the_page_about_the_api_has_every_operator_and_sensor() -> None:
    bases = {"MLStepOperator", "MLPodFunctionOperator", "MlflowOperator", "MlflowSensor"}  # of decorators, and of the others
    listed = [name for kind in ("operators", "sensors") for each in get_provider_info()[kind] for name in each["python-modules"]]
    classes = {
        f"{name}.{each.__name__}"
        for name in listed
        for each in vars(importlib.import_module(name)).values()
        if inspect.isclass(each) and issubclass(each, BaseOperator) and each.__module__ == name
    }
    classes = {each for each in classes if each.rpartition(".")[2] not in bases and "._" not in each}
    assert len(classes) > 20
    assert sorted(classes - set(re.findall(r"autoclass:: (\S+)", page("docs/api.md").text))) == []


def test_the_page_about_stability_names_the_public_modules_and_no_other() -> None:
    (said,) = (row[1] for row in page("docs/stability.md").rows("Stable") if row[0] == "names")
    named = set(re.findall(r"`([\w.]+)`", said))
    public = {name.removeprefix("airflow_ml_provider.") for name in PUBLIC} - {"airflow_ml_provider"}
    found = {module: {each for each in named if f"{module}.".startswith(f"{each}.")} for module in public}
    assert [module for module, by in found.items() if not by] == [], "name it on the page"
    assert named - set().union(*found.values()) == set(), "no module of tests/test_exports.py has this name"


def test_the_table_of_extras_has_them_all() -> None:
    made = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(re.findall(r"`(\w+)`", " ".join(row[0] for row in page("docs/quickstart.md").rows("Extra")))) == sorted(made)


@pytest.mark.parametrize(("name", "least"), [("docs/troubleshooting.md", 30), ("docs/cache.md", 10)])
def test_every_message_of_the_troubleshooting_page_is_one_of_ours(name: str, least: int) -> None:
    known = [text for file in (ROOT / "airflow_ml_provider").rglob("*.py") for text in texts_of(file)]
    messages = [each for title in page(name).headings if title.startswith("`") for each in title.strip("`").split("`, `")]
    assert len(messages) > least
    unknown = [each for each in messages if each not in NOT_OURS and not any(says(text, each) for text in known)]
    assert unknown == []
