"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent

PATCHES_ALLOWED: dict[str, str] = {
    "fluent.py": "the product itself: the one active run of MLflow's client, and a retry's parameters, have no public way",
}
"""Test files that may replace a part of Airflow or MLflow, each with the reason why the real thing cannot serve."""

PATCHING = {"setattr", "setitem", "delattr", "delitem", "patch", "object"}
FOREIGN = {"airflow", "mlflow"}


def imported_from_foreign(tree: ast.AST) -> set[str]:
    """Names that a file imports from Airflow or MLflow."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FOREIGN:
            names |= {each.asname or each.name for each in node.names}
        if isinstance(node, ast.Import):
            names |= {(each.asname or each.name).split(".")[0] for each in node.names if each.name.split(".")[0] in FOREIGN}
    return names


def patches_foreign(node: ast.AST, foreign: set[str]) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in PATCHING and node.args):
        return False
    target = ast.unparse(node.args[0]).strip("'\"").split(".")[0].split("[")[0]
    return ast.unparse(node.func.value).startswith(("monkeypatch", "mock", "patch")) and target in foreign | FOREIGN


def test_nothing_of_airflow_or_mlflow_is_patched() -> None:
    found = []
    for file in TESTS.rglob("*.py"):
        tree = ast.parse(file.read_text())
        foreign = imported_from_foreign(tree)
        found += [
            f"{file.relative_to(ROOT)}:{node.lineno}"
            for node in ast.walk(tree)
            if patches_foreign(node, foreign) and file.name not in PATCHES_ALLOWED
        ]
    assert found == [], "run it against the real Airflow and MLflow, or name the file in PATCHES_ALLOWED with its reason"


def test_the_rule_above_sees_a_patch() -> None:
    tree = ast.parse("import mlflow\nmonkeypatch.setattr(mlflow.tracking, 'x', 1)\nmonkeypatch.setattr('airflow.sdk.x', 1)")
    assert sum(patches_foreign(node, imported_from_foreign(tree)) for node in ast.walk(tree)) == 2


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for file in (ROOT / "airflow_ml_provider").rglob("*.py")
        if (lines := file.read_text().count("\n")) > 400
    }
    assert long == {}
