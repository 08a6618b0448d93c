"""
Source files as digests see them: text without comments and blank lines, and the names that a piece of it uses.

Only files are read. Nothing is imported or run.
"""

from __future__ import annotations

import ast
import copy
import io
import linecache
import symtable
import tokenize
import types
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
_STRING_STARTS = {getattr(tokenize, name, None) for name in ("FSTRING_START", "TSTRING_START")} - {None}
_STRING_ENDS = {getattr(tokenize, name, None) for name in ("FSTRING_END", "TSTRING_END")} - {None}


class Import(NamedTuple):
    """
    One import statement.

    :param level: Points before the name.
    :param module: Name of the module.
    :param names: What is taken from it; empty for ``import module``.
    """

    level: int
    module: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Piece:
    """
    A function, a class or a whole file.

    :param text: Its lines without comments, blank lines and common indentation; what stands in strings is untouched.
    :param names: Names that it takes from around it when it runs.
    :param hinted: Names that stand in annotations only.
    :param chains: Dotted names, as ``("helpers", "deep", "f")``.
    :param imports: Import statements in it.
    :param place: What tells it from others in the same lines; empty but for lambdas.
    """

    text: str
    names: frozenset[str] = frozenset()
    hinted: frozenset[str] = frozenset()
    chains: frozenset[tuple[str, ...]] = frozenset()
    imports: frozenset[Import] = frozenset()
    place: str = ""


class SourceFile:
    """
    One file of Python source.

    :param text: Its text, line ends as Python reads them.
    :raises SyntaxError: it is not Python.
    """

    def __init__(self, text: str) -> None:
        with warnings.catch_warnings(action="ignore"):  # they were told when it was loaded
            self.tree = ast.parse(text)
            self._code = compile(text, "<source>", "exec", dont_inherit=True)
        self._lines = list(_bare_lines(text))

    @classmethod
    def read(cls, path: str, module: dict[str, Any] | None = None) -> SourceFile | None:
        """
        Read a file, also one in a zip archive that a module was loaded from.

        :param path: The file.
        :param module: Names of the module that was loaded from it.
        :return: The file; None when there is none, or it is not Python.
        """
        try:
            if Path(path).is_file():
                with tokenize.open(path) as file:  # in its own encoding, any line ends
                    return cls(file.read())
            text = "".join(linecache.getlines(path, module))
            return cls(text) if text else None
        except (OSError, SyntaxError, ValueError, tokenize.TokenError):  # so is a UnicodeError
            return None

    @cached_property
    def whole(self) -> Piece:
        """The file as one piece: its text and its imports."""
        return Piece(self._text(1, len(self._lines), 0), imports=frozenset(_imports(self.tree)))

    def function(self, code: types.CodeType, *, decorators: bool) -> Piece | None:
        """
        Find a function by its code.

        :param code: Of the function, loaded from this file.
        :param decorators: Whether its decorators belong to it.
        :return: The piece; None when it is not here, or not to be told from another.
        """
        if code.co_name == "<lambda>":
            return self._lambda(code)
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _first_line(node) == code.co_firstlineno:
                return self._piece(node, decorators=decorators) if node.name == code.co_name.rpartition(".")[2] else None
        return None

    def classes(self, qualname: str) -> list[tuple[range, Piece]]:
        """
        Find classes by name.

        :param qualname: Name in the module.
        :return: Lines and piece of each; more than one where a class is defined in branches.
        """
        found = [node for name, node in _classes(self.tree, "") if name == qualname]
        return [(range(_first_line(node), (node.end_lineno or 0) + 1), self._piece(node, decorators=True)) for node in found]

    def is_loaded(self, code: types.CodeType) -> bool:
        """
        Say whether a function that runs is the one that stands here.

        :param code: Of the function.
        :return: False when the file has changed since it was loaded, or what was loaded had been rewritten.
        """
        return any(each == code for each in _codes(self._code))

    def _lambda(self, code: types.CodeType) -> Piece | None:
        nodes = [
            node for node in ast.walk(self.tree) if isinstance(node, ast.Lambda) and node.lineno == code.co_firstlineno
        ]  # fmt: skip
        if len(nodes) > 1:
            spots = [(line, column) for line, _, column, _ in code.co_positions() if line and column]
            nodes = [node for node in nodes if spots and all(_spans(node.body, spot) for spot in spots)]
        if len(nodes) != 1:
            return None
        return self._piece(nodes[0], decorators=False)

    def _piece(self, node: Scope, *, decorators: bool) -> Piece:
        first = _first_line(node) if decorators else node.lineno
        text = self._text(first, node.end_lineno or first, 0 if isinstance(node, ast.Lambda) else node.col_offset)
        place = ""
        if isinstance(node, ast.Lambda):
            alike = [each for each in ast.walk(self.tree) if isinstance(each, ast.Lambda) and each.lineno == node.lineno]
            place = str(sorted((each.col_offset, each is node) for each in alike).index((node.col_offset, True)))
        bare = copy.deepcopy(node)
        if not decorators and not isinstance(bare, ast.Lambda):
            bare.decorator_list = []
        hints = _Hints()
        plain = ast.unparse(hints.visit(bare))
        names = frozenset(_names(symtable.symtable(plain, "<piece>", "exec")))
        every = list(ast.walk(node if decorators else bare))
        return Piece(
            text,
            names,
            frozenset(hints.names()) - names,
            frozenset(each for each in map(_chain, every) if each),
            frozenset(_imports(bare)),
            place,
        )

    def _text(self, first: int, last: int, indent: int) -> str:
        rows = []
        for text, inside in self._lines[first - 1 : last]:
            if text is not None:
                rows.append(text[indent:] if not inside and text[:indent].isspace() else text)
        return "\n".join(rows)


def _bare_lines(text: str) -> Iterator[tuple[str | None, bool]]:
    """Give each line without its comment, None for one that was nothing else, and whether it starts inside a string."""
    starts_inside: set[int] = set()
    cuts: dict[int, int] = {}
    opened: list[int] = []
    for kind, _, (row, column), (end, _), _ in tokenize.generate_tokens(io.StringIO(text).readline):
        if kind in _STRING_STARTS:
            opened.append(row)
        elif kind in _STRING_ENDS:
            starts_inside.update(range(opened.pop() + 1, end + 1))
        elif kind == tokenize.STRING:
            starts_inside.update(range(row + 1, end + 1))
        elif kind == tokenize.COMMENT and not opened:
            cuts[row] = column
    for row, line in enumerate(text.split("\n"), start=1):
        if row + 1 in starts_inside:
            yield line, row in starts_inside
        else:
            bare = line[: cuts.get(row)].rstrip()
            yield bare or None, row in starts_inside


def _first_line(node: Scope) -> int:
    decorators = [] if isinstance(node, ast.Lambda) else node.decorator_list
    return min([node.lineno, *(each.lineno for each in decorators)])


def _spans(node: ast.expr, spot: tuple[int, int]) -> bool:
    return (node.lineno, node.col_offset) <= spot <= (node.end_lineno or 0, node.end_col_offset or 0)


def _classes(node: ast.AST, inside: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for each in ast.iter_child_nodes(node):
        if isinstance(each, ast.ClassDef):
            yield inside + each.name, each
            yield from _classes(each, f"{inside}{each.name}.")
        elif isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes(each, f"{inside}{each.name}.<locals>.")
        else:
            yield from _classes(each, inside)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield each
            yield from _codes(each)


def _names(table: symtable.SymbolTable) -> Iterator[str]:
    everything = table.get_type() in ("module", "class")  # there, a name may be taken from around and set under the same name
    for each in table.get_symbols():
        if each.is_referenced() and (everything or each.is_global()):
            yield each.get_name()
    for inner in table.get_children():
        yield from _names(inner)


def _chain(node: ast.AST) -> tuple[str, ...]:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return (node.id, *reversed(names)) if names and isinstance(node, ast.Name) else ()


def _imports(node: ast.AST) -> Iterator[Import]:
    """List imports, and what is reached through one by points: a module in a package may be loaded by somebody else."""
    known: dict[str, Import] = {}
    for each in ast.walk(node):
        if isinstance(each, ast.Import):
            for alias in each.names:
                yield Import(0, alias.name, ())
                known[alias.asname or alias.name.partition(".")[0]] = Import(
                    0, alias.name if alias.asname else alias.name.partition(".")[0], ()
                )
        elif isinstance(each, ast.ImportFrom):
            yield Import(each.level, each.module or "", tuple(sorted(alias.name for alias in each.names)))
            base = f"{each.module}." if each.module else ""
            known |= {alias.asname or alias.name: Import(each.level, base + alias.name, ()) for alias in each.names}
        elif isinstance(each, ast.Call) and each.args and isinstance(each.args[0], ast.Constant):
            called = getattr(each.func, "attr", getattr(each.func, "id", ""))
            name = each.args[0].value
            if called in ("import_module", "__import__") and isinstance(name, str) and not name.startswith("."):
                yield Import(0, name, ())
    for chain in filter(None, map(_chain, ast.walk(node))):
        start = known.get(chain[0])
        if start is not None:
            yield start._replace(module=".".join([start.module, *chain[1:]]))


class _Hints(ast.NodeTransformer):
    """Takes annotations away, and keeps the names in them, those in texts included."""

    def __init__(self) -> None:
        self._found: list[ast.expr] = []

    def names(self) -> Iterator[str]:
        for hint in self._found:
            for node in ast.walk(hint):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield from _names_in_text(node.value)
                elif isinstance(node, ast.Name):
                    yield node.id

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        self._keep([node.annotation])
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        self._keep([node.annotation])
        node.annotation = ast.Constant(value=None)
        return self.generic_visit(node)

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> ast.AST:
        self._keep([node.returns])
        node.returns = None
        return self.generic_visit(node)

    def _keep(self, hints: Iterable[ast.expr | None]) -> None:
        self._found += [each for each in hints if each is not None]


def _names_in_text(text: str) -> Iterator[str]:
    try:
        hint = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError):
        return
    yield from (node.id for node in ast.walk(hint) if isinstance(node, ast.Name))
