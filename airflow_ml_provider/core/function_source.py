"""
Reading a function's source for an image that has neither the DAG file nor this package.

What runs there is the text of the function alone, so whatever it takes from around it is refused while the DAG is parsed.
"""

from __future__ import annotations

import ast
import builtins
import collections.abc
import inspect
import json
import symtable
import types
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.artifact import ARTIFACT_TYPES, Input, Output
from airflow_ml_provider.models.pod_step import StepFunction

SOURCE_BYTES = 64 * 1024
"""Linux takes 128 KiB for one environment variable, and the source travels in one, escaped as JSON."""
KNOWN: dict[str, Any] = {
    **{name: getattr(typing, name) for name in typing.__all__},
    **ARTIFACT_TYPES,
    "Input": Input,
    "Output": Output,
}
"""What a function finds in the container without an import; nothing else of its module."""
OURS = "airflow_ml_provider"
_PLAIN = {bool, int, float, str, list, dict, type(None), Any, object, collections.abc.Mapping, collections.abc.Sequence}


def read_function(function: Callable[..., Any], signature: StepSignature) -> StepFunction:
    """
    Read a function's source, and refuse what could not run in a container.

    The text is the author's own, decorators left out. An indented one is put under ``if True:`` and not moved to the left:
    that would change the texts in triple quotes that it holds.

    :param function: A plain function; what wraps it is looked through.
    :param signature: What it declares.
    :return: What goes into the container's context.
    :raises ConfigError: there is no source, it is a lambda or larger than 64 KiB, it uses names of its module or of a function
        around it, imports this package, or has parameters or defaults that are not plain JSON; a retry never helps.
    """
    function = inspect.unwrap(function)
    step = signature.step
    if getattr(function, "__name__", "") == "<lambda>":
        raise ConfigError(f"step {step!r} is a lambda, whose source cannot be sent. Write a function with def.")
    definition, source = _definition(step, function)
    if len(source.encode()) > SOURCE_BYTES:
        raise ConfigError(
            f"step {step!r}: its source has {len(source.encode())} bytes, the limit is {SOURCE_BYTES}. Put most of it into a "
            "module of the image, and import that inside the function."
        )
    _refuse_closure(step, function)
    _refuse_imports_of_ours(step, definition)
    _refuse_free_names(step, function, definition)
    for each in signature.plain.values():
        _refuse_unplain(step, each)
    return StepFunction(
        name=definition.name,
        source=source,
        roles={name: each.role for name, each in signature.parameters.items()},
        optional=[name for name, each in signature.inputs.items() if each.optional],
    )


def _definition(step: str, function: Callable[..., Any]) -> tuple[ast.FunctionDef, str]:
    """Find the ``def`` of a function, and its text."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError) as error:
        raise ConfigError(f"step {step!r}: its source cannot be read ({error}). Define it with def in the DAG file.") from error
    text = _under_if(text)
    try:
        body: list[ast.stmt] = ast.parse(text).body
    except SyntaxError as error:
        raise ConfigError(
            f"step {step!r}: its source cannot be read ({error}). Define it with def, on lines of its own."
        ) from error
    first = body[0].body[0] if isinstance(body[0], ast.If) else body[0]
    if not isinstance(first, ast.FunctionDef):
        raise ConfigError(f"step {step!r} is not a plain function. Define it with def in the DAG file.")
    lines = text.splitlines(keepends=True)[first.lineno - 1 : first.end_lineno]
    return first, _under_if("".join(lines)).rstrip() + "\n"


def _under_if(text: str) -> str:
    return "if True:\n" + text if text[:1] in " \t" else text


def _refuse_closure(step: str, function: Callable[..., Any]) -> None:
    code = getattr(function, "__code__", None)
    if code is not None and code.co_freevars:
        raise ConfigError(
            f"step {step!r} uses {_names(code.co_freevars)} of the function around it, which stays behind. Pass it as a "
            "parameter, or define it inside the step."
        )


def _refuse_imports_of_ours(step: str, definition: ast.FunctionDef) -> None:
    for node in ast.walk(definition):
        modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if any(each.partition(".")[0] == OURS for each in modules):
            raise ConfigError(
                f"step {step!r} imports {OURS}, which the image does not have. Artifact types are known there without an "
                "import; for checkpoints and the like, import airflow_ml_step."
            )


def _refuse_free_names(step: str, function: Callable[..., Any], definition: ast.FunctionDef) -> None:
    found = getattr(function, "__globals__", {})
    free = sorted(name for name in _globals_of(definition) if not _comes_along(name, found) and name != definition.name)
    modules = [name for name in free if isinstance(found.get(name), types.ModuleType)]
    if not free:
        return
    remedy = f"Import {_names(modules)} inside the function. " if modules else ""
    if len(free) > len(modules):
        remedy += f"Define {_names(set(free) - set(modules))} or import it inside the function, or pass it as a parameter."
    raise ConfigError(f"step {step!r} uses {_names(free)} of its DAG file, which is not in the container. {remedy.strip()}")


def _comes_along(name: str, found: dict[str, Any]) -> bool:
    """Say whether a name means the same in the container; a builtin or a type that the DAG file has replaced does not."""
    if name == "__name__":
        return True
    if name in KNOWN:
        return found.get(name, KNOWN[name]) is KNOWN[name]
    return hasattr(builtins, name) and name not in found


def _globals_of(definition: ast.FunctionDef) -> set[str]:
    """List the names that a function takes from its module, defaults included, annotations (never evaluated there) not."""
    bare = _WithoutAnnotations().visit(ast.parse(ast.unparse(definition)))
    module = symtable.symtable(ast.unparse(bare), definition.name, "exec")
    used: set[str] = set()
    for table in _tables(module):
        top = table.get_type() == "module"
        used |= {each.get_name() for each in table.get_symbols() if each.is_referenced() and (top or each.is_global())}
    set_here = {name for node in ast.walk(bare) if isinstance(node, ast.Global) for name in node.names}
    return used - set_here


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for each in table.get_children():
        yield from _tables(each)


class _WithoutAnnotations(ast.NodeTransformer):
    """Takes away what the container does not evaluate: annotations and the step's own decorators."""

    def __init__(self) -> None:
        self._outer = True

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        if self._outer:
            self._outer, node.decorator_list = False, []
        return self.generic_visit(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(value=None)
        return self.generic_visit(node)


def _refuse_unplain(step: str, parameter: StepParameter) -> None:
    """Refuse a parameter that would be another value after its way as JSON than the function gets in a worker."""
    where = f"step {step!r}, parameter {parameter.name!r}"
    if not _is_plain(parameter.annotation):
        raise ConfigError(
            f"{where}: {parameter.annotation} does not travel as JSON into a container. Declare bool, int, float, str, list or "
            "dict (of these), and convert inside the function."
        )
    default = parameter.default
    if default is inspect.Parameter.empty:
        return
    try:
        same = json.loads(json.dumps(default, allow_nan=False)) == default
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ConfigError(
            f"{where}: its default {default!r} is not plain JSON. Use None, a number, a text, a list or a dictionary of these "
            "with texts as keys, and convert inside the function."
        )


def _is_plain(annotation: Any) -> bool:
    """Say whether values of a type are the same after JSON."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _is_plain(inner[0])
    if origin is Literal:
        return all(isinstance(each, bool | int | str | None) for each in inner)
    if origin in (typing.Union, types.UnionType):
        return all(map(_is_plain, inner))
    if origin is not None:
        keys_are_texts = inner[:-1] in ((), (str,), (Any,))
        return origin in _PLAIN and keys_are_texts and all(map(_is_plain, inner))
    return annotation in _PLAIN or annotation is inspect.Parameter.empty or typing.is_typeddict(annotation)


def _names(names: collections.abc.Iterable[str]) -> str:
    return ", ".join(repr(each) for each in sorted(names))
