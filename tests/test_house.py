"""Rules of the house that no linter knows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROOT = TESTS.parent

SCANNED = (TESTS, ROOT / "airflow_ml_provider", ROOT / "demo", ROOT / "benchmarks")

PATCHES_ALLOWED: dict[str, str] = {
    "airflow_ml_provider/tracking/fluent.py": (
        "the product itself: the one active run of MLflow's client, and a retry's parameters, have no public way"
    ),
}
"""Files that may replace a part of Airflow or MLflow, each with the reason why there is no other way."""

PATCHING = {"setattr", "setitem", "delattr", "delitem", "patch", "object"}
FOREIGN = {"airflow", "mlflow"}


def is_foreign(module: str | None) -> bool:
    return (module or "").split(".")[0] in FOREIGN


def root(node: ast.AST) -> str:
    """Name at the start of ``name.a.b[c]``, or of the text ``"name.a.b"``."""
    return re.split(r"[.\[(]", ast.unparse(node).strip("'\""))[0]


def names_of_foreign(tree: ast.AST) -> set[str]:
    """Names in a file that stand for something of Airflow or MLflow: imported, or looked up by the text of a module."""
    names = set(FOREIGN)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and is_foreign(node.module):
            names |= {each.asname or each.name for each in node.names}
        if isinstance(node, ast.Import):
            names |= {each.asname or each.name.split(".")[0] for each in node.names if is_foreign(each.name)}
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call | ast.Subscript):
            lookup = re.match(r"(importlib\.)?(import_module|sys\.modules)\b.*?['\"]([\w.]+)", ast.unparse(node.value))
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {ast.unparse(each) for each in targets if lookup and is_foreign(lookup[3])}
    return names


def changed_by(node: ast.AST) -> list[ast.expr]:
    """What a statement replaces: the target of an assignment to an attribute, or the first argument of what patches."""
    if isinstance(node, ast.Call) and node.args:
        name = node.func.attr if isinstance(node.func, ast.Attribute) else ast.unparse(node.func)
        return [node.args[0]] if name in PATCHING else []
    targets = getattr(node, "targets", None) or [getattr(node, "target", None)]
    if not isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
        return []
    flat = [each for target in targets for each in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return [each for each in flat if isinstance(each, ast.Attribute | ast.Subscript)]


def patches(text: str) -> list[int]:
    """Lines of a file that replace a part of Airflow or MLflow."""
    tree = ast.parse(text)
    foreign = names_of_foreign(tree)
    return [each.lineno for node in ast.walk(tree) for each in changed_by(node) if root(each) in foreign]


def test_nothing_of_airflow_or_mlflow_is_patched() -> None:
    found = {
        str(file.relative_to(ROOT)): lines
        for folder in SCANNED
        for file in folder.rglob("*.py")
        if (lines := patches(file.read_text()))
    }
    assert found.keys() == PATCHES_ALLOWED.keys(), (
        "run it against the real Airflow and MLflow, or name the file in PATCHES_ALLOWED with its reason; "
        f"what is named there and patches nothing goes: {found}"
    )


@pytest.mark.parametrize(
    "patch",
    [
        "monkeypatch.setattr(mlflow.tracking, 'x', 1)",
        "monkeypatch.setattr('airflow.sdk.x', 1)",
        "mp = monkeypatch; mp.setattr(mlflow, 'x', 1)",
        "patch.object(BaseOperator, 'execute')",
        "patch('airflow.sdk.x')",
        "setattr(mlflow, 'x', 1)",
        "mlflow.x = 1",
        "mlflow.a.b, y = 1, 2",
        "BaseOperator.execute: object = None",
        "tracking.x += 1",
        "del mlflow.x",
        "mlflow.registry['x'] = 1",
        "fluent = importlib.import_module('mlflow.tracking.fluent'); fluent.x = 1",
        "client = sys.modules.get('mlflow.client'); client.x = 1",
    ],
)
def test_the_rule_above_sees_a_patch(patch: str) -> None:
    imports = "import mlflow\nimport mlflow.tracking as tracking\nfrom airflow.sdk import BaseOperator\n"
    assert patches(imports + patch) == [4]


def test_the_rule_above_leaves_own_things_alone() -> None:
    own = "made = mlflow.start_run()\nself.mlflow = 1\nmonkeypatch.setattr(ours, 'x', 1)\nrows['mlflow'] = 1"
    assert patches("import mlflow\n" + own) == []


def test_no_module_is_longer_than_four_hundred_lines() -> None:
    long = {
        str(file.relative_to(ROOT)): lines
        for file in (ROOT / "airflow_ml_provider").rglob("*.py")
        if (lines := file.read_text().count("\n")) > 400
        and file.name != "airflow_ml_step.py"  # one file, to be copied into images
    }
    assert long == {}
