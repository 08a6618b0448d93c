"""
Digest of a step's code: its own source, and what that uses of its author's other code.

Each function, class, module and constant is written once, and names the others by their names, so code that uses itself has an
end. Names of modules and paths of folders are not part of it: Airflow calls a DAG file otherwise on each worker.
"""

from __future__ import annotations

import builtins
import hashlib
import inspect
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from airflow_ml_provider.core.cache_key import without_logins
from airflow_ml_provider.core.canonical import digest_of, text_of
from airflow_ml_provider.core.code_objects import (
    BUILTINS,
    HOLDERS,
    MODULE_NAMES,
    Around,
    Task,
    attributes_of,
    byte_code,
    contents,
    distinct,
    foreign_name,
    functions_of,
    is_plain,
    join,
    made_by_call,
    numbered,
    own_below,
    wrapped,
)
from airflow_ml_provider.core.code_places import Found, Places
from airflow_ml_provider.core.code_source import Piece, SourceFile
from airflow_ml_provider.core.code_values import (
    REMEDY,
    CodeWriter,
    LenientWriter,
    can_be_written,
    made_class,
    members,
    refuse_circle,
    unlooked,
)
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.cache import CachePart, json_keeps, shorten

Node = list[Any]
Redact = Callable[[Any, str], Any]
_OURS = ("airflow", "airflow_ml_provider")


def code_parts(function: Callable[..., Any], folder: Path, redact: Redact = lambda value, _: value) -> dict[str, CachePart]:
    """
    Digest a function's source and what it uses of its author's code.

    Nothing is imported or run that is not imported already; values are taken apart as ``pickle`` does it.

    :param function: A plain function; what wraps it counts too.
    :param folder: The DAG's folder.
    :param redact: ``redact(value, name)`` takes the secrets out of a value that people may see, as Airflow's does.
    :return: ``code`` for the function itself, ``code of <name>`` for each thing that it uses, by its name in the step's file, or
        after the path of another file, as ``code of helpers/io.py:load``; ``code of helpers/io.py`` for a whole module.
    :raises ConfigError: there is no source to read, a closure contains itself, or a value that is used cannot be written down;
        a retry never helps.
    """
    inner = inspect.unwrap(function)
    if not isinstance(inner, types.FunctionType):
        raise ConfigError(f"the code of {function!r} cannot be read: it is not a function. Define the step with def.")
    layers: list[Any] = []
    layer: Any = function
    while layer is not inner:
        layers.append(layer)
        layer = layer.__wrapped__
    return _Walk(inner, Places(folder, inner.__code__.co_filename), redact).parts(layers)


class _Walk:
    """One walk through all that a function uses."""

    def __init__(self, root: types.FunctionType, places: Places, redact: Redact) -> None:
        self.places = places
        self.home = str(root.__globals__.get("__name__"))
        self._root = root
        self._redact = redact
        self._files: dict[str, SourceFile | None] = {}
        self._labels: dict[Any, str] = {}
        self._alive: list[Any] = []  # an id stands for nothing once its object is gone
        self._strict: dict[Any, Task] = {}
        self._lenient: dict[Any, Task] = {}
        self._queue = self._strict
        self._at = root.__name__  # what is being looked at
        self._exact, self._rough = CodeWriter(self), LenientWriter(self)

    def parts(self, layers: Sequence[Any]) -> dict[str, CachePart]:
        key = ("function", id(self._root))
        self._labels[key] = ""
        self._strict[key] = Task(
            "", lambda: [self._function(self._root, "", decorators=False), [self.thing(each) for each in layers]]
        )
        found: dict[str, CachePart] = {}
        while self._strict or self._lenient:
            # What only annotations name comes last, so that nothing is taken lightly that the code uses too.
            self._queue = self._strict or self._lenient
            task = self._queue.pop(next(iter(self._queue)))
            try:
                node = task.write()
            except ConfigError:
                if self._queue is self._strict:
                    raise
                node = ["unreadable"]
            except Exception as error:  # whatever an object of the author's raises when it is looked at
                if self._queue is self._strict:
                    raise unlooked(self._at, error) from error
                node = ["unreadable"]
            digest = digest_of(text_of(node))
            found[f"code of {task.label}" if task.label else "code"] = CachePart(digest=digest, shown=self._shown(task, digest))
        return dict(sorted(found.items()))

    @property
    def _writer(self) -> CodeWriter:
        return self._exact if self._queue is self._strict else self._rough

    def _shown(self, task: Task, digest: str) -> str:
        if task.shown is None or not json_keeps(task.shown[0]):
            return digest[:8]
        seen = without_logins(self._redact(*task.shown))
        return shorten(seen if isinstance(seen, str) else repr(seen))

    def thing(self, value: Any, label: str = "") -> Node | None:
        """Name a function, a class or a module, and what wraps one; None for any other value."""
        if isinstance(value, types.ModuleType):
            return self._module_of(value)
        if isinstance(value, type):
            return self.class_name(value)
        if isinstance(value, types.FunctionType):
            return self._function_name(value, label)
        if self._is_foreign_wrapper(value):
            return ["elsewhere", foreign_name(type(value)), *self.inside(value)]
        if isinstance(value, BUILTINS) and isinstance(getattr(value, "__self__", None), types.ModuleType | None):
            return ["elsewhere", foreign_name(value)]
        return None

    def _function_name(self, function: types.FunctionType, label: str) -> Node:
        code, key = function.__code__, ("function", id(function))
        if self._own_function(function):
            own = join(self.places.own(code.co_filename) or "", code.co_qualname)
            # A lambda has no name but the one that it is used by.
            named = label or own if code.co_name == "<lambda>" else own
            return self._use(key, named, function, lambda final: self._function(function, final))
        name = foreign_name(function)
        if not function.__closure__:
            return ["elsewhere", name]
        return self._use(key, name, function, lambda _: self._foreign_closure(function))

    def _is_foreign_wrapper(self, value: Any) -> bool:
        if isinstance(value, BaseModel) or self.class_name(type(value))[0] == "own":
            return False
        return wrapped(value) is not None or type(value).__module__.partition(".")[0] in _OURS

    def _foreign_closure(self, function: types.FunctionType) -> Node:
        """Write what somebody else's function was made with, as far as it can be written."""
        found: Node = [foreign_name(function), self._lightly(function.__defaults__), self._lightly(function.__kwdefaults__)]
        return found + [self._lightly(each) for each in contents(function)]

    def _lightly(self, value: Any) -> Node:
        if can_be_written(self, value):
            return self._writer.write(value, "a closure")
        return ["unreadable", foreign_name(type(value)), *self.inside(value)]

    def class_name(self, kind: type) -> Node:
        """Name a class; one of the author's is written too."""
        file = self._file_of(kind)
        if file is None and not made_by_call(kind):
            return ["elsewhere", foreign_name(kind)]
        label = join(self.places.own(file) or "", kind.__qualname__)
        return self._use(("class", id(kind)), label, kind, lambda final: self._class(kind, file, final))

    def constant(self, owner: Any, label: str, name: str, value: Any) -> Node:
        """Name what a name stands for, in a module or in a closure."""
        where = f"the step's code uses {label!r} (type {type(value).__qualname__}); {label}"
        return self.thing(value, label) or self._use(
            ("constant", owner, name), label, None, lambda _: self._writer.write(value, where), shown=(value, name)
        )

    def _use(self, key: Any, label: str, kept: Any, write: Callable[[str], Node], shown: tuple[Any, str] | None = None) -> Node:
        if key not in self._labels:
            taken = set(self._labels.values())
            final = next(each for each in numbered(label) if each not in taken)
            self._labels[key] = final
            self._alive.append(kept)
            self._queue[key] = Task(final, lambda: write(final), shown)
        elif key in self._lenient and self._queue is self._strict:
            self._strict[key] = self._lenient.pop(key)
        return ["own", self._labels[key]]

    def _function(self, function: types.FunctionType, label: str, *, decorators: bool = True) -> Node:
        refuse_circle(function, self._own_function)
        piece, loaded = self._piece(function, decorators=decorators)
        names = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        place = self.places.own(function.__code__.co_filename) or ""
        around = Around(function.__globals__, place, names, label or function.__name__)
        what = f"function {function.__qualname__!r}"
        return [
            piece.text,
            piece.place,
            loaded,
            self._defaults(function, what),
            self._names(piece, around, function.__code__.co_filename),
            self._attributes(function.__qualname__, {n: each for n, each in vars(function).items() if n != "__wrapped__"}),
            self.thing(wrapped(function)),
        ]

    def _piece(self, function: types.FunctionType, *, decorators: bool) -> tuple[Piece, str]:
        code = function.__code__
        file = self._source(code.co_filename, function.__globals__)
        piece = file.function(code, decorators=decorators) if file else None
        if file is None or piece is None:
            raise ConfigError(
                f"the source of function {function.__qualname__!r}, which the step uses, cannot be read. Define it with def, on "
                f"lines of its own, in a file. {REMEDY}"
            )
        # Normally nothing: one text gives another byte code in another Python.
        return piece, "" if file.is_loaded(code) else byte_code(code)

    def _defaults(self, function: types.FunctionType, what: str) -> Node:
        given = [list(function.__defaults__ or ()), function.__kwdefaults__ or {}]
        return self._writer.write(given, f"the defaults of {what}")

    def _names(self, piece: Piece, around: Around, file: str) -> Node:
        """Write what a piece of source takes from around it."""
        found = {name: self._name(name, around, piece, file) for name in sorted(piece.names - MODULE_NAMES)}
        found |= {name: self._cell(name, around) for name in around.cells if name not in found}
        queue, self._queue = self._queue, self._lenient
        hints = {name: self._name(name, around, piece, file) for name in sorted(piece.hinted - MODULE_NAMES)}
        self._queue = queue
        return [sorted(found.items()), sorted(hints.items()), self._imported(piece, around.package)]

    def _imported(self, piece: Piece, package: str | None) -> Node:
        return distinct([self._module(each) for one in sorted(piece.imports) for each in self.places.files_of(one, package)])

    def _name(self, name: str, around: Around, piece: Piece, file: str) -> Any:
        self._at = name
        if name in around.cells:
            return self._cell(name, around)
        if name not in around.names:
            return None if hasattr(builtins, name) else ["absent"]
        value = around.names[name]
        if value is os.environ:
            return ["elsewhere", "os.environ"]
        if isinstance(value, types.ModuleType) and self.places.own_module(value) is not None:
            return [self._module_of(value), *self._parts_of_module(name, value, piece, file)]
        origin = self._origin(name, file)
        if origin is not None and self.thing(value) is None and not can_be_written(self, value):
            return origin
        return self.constant((around.place, id(around.names)), join(around.place, name), name, value)

    def _cell(self, name: str, around: Around) -> Node:
        self._at = name
        if name == "__class__":
            return ["its class"]
        cell = around.cells[name]
        try:
            value = cell.cell_contents
        except ValueError:
            return ["empty"]
        return self.constant(("closure", id(cell)), f"{around.label}.{name}", name, value)

    def _origin(self, name: str, file: str) -> Node | None:
        """Say which module of others a name was imported from."""
        source = self._source(file)
        for one in source.whole.imports if source else ():
            if one.level == 0 and name in one.names and not list(self.places.files_of(one, None)):
                return ["elsewhere", f"{one.module}.{name}"]
        return None

    def _parts_of_module(self, name: str, module: types.ModuleType, piece: Piece, file: str) -> Iterator[Any]:
        """Write what a piece takes of a module by points: its text does not show what was read from a file or the environment."""
        source = self._source(file)
        for one in sorted(source.whole.imports) if source else ():
            if not one.names and one.module.startswith(f"{name}."):
                yield from (self._module(each) for each in self.places.files_of(one, None))
        for chain in sorted(each for each in piece.chains if each[0] == name):
            value: Any = module
            for attribute in chain[1:]:
                place = self.places.own_module(value)
                value = vars(value).get(attribute)
                if isinstance(value, types.ModuleType):
                    yield self._module_of(value)
                    continue
                if place is not None:
                    yield self._taken(place, attribute, value)
                break

    def _taken(self, place: str, name: str, value: Any) -> Node:
        """Name what is taken of a module whose text counts already: what cannot be written is no reason to refuse it."""
        queue, self._queue = self._queue, self._queue if is_plain(value) else self._lenient
        try:
            return self.constant((place, "module"), join(place, name), name, value)
        finally:
            self._queue = queue

    def _module_of(self, module: types.ModuleType) -> Node:
        place = self.places.own_module(module)
        if place is None:
            return ["elsewhere", module.__name__]
        file = getattr(module, "__file__", None)
        return ["own", place] if file is None else self._module(Found(file, module.__package__ or ""))

    def _module(self, found: Found) -> Node:
        place = self.places.own(found.file)
        return self._use(("module", place), place or "the step's file", None, lambda _: self._text_of(found))

    def _text_of(self, found: Found) -> Node:
        source = self._source(found.file)
        if source is not None:
            return [source.whole.text, self._imported(source.whole, found.package)]
        try:
            return ["bytes", hashlib.sha256(Path(found.file).read_bytes()).hexdigest()]
        except OSError as error:
            raise ConfigError(f"{found.file}, which the step imports, cannot be read ({error}). {REMEDY}") from error

    def _class(self, kind: type, file: str | None, label: str) -> Node:
        source = self._source(file) if file else None
        functions = [each for value in vars(kind).values() for each in functions_of(value)]
        functions = [each for each in functions if self.places.own(each.__code__.co_filename) is not None]
        lines = {each.__code__.co_firstlineno for each in functions if each.__code__.co_filename == file}
        pieces = source.classes(kind.__qualname__) if source else []
        pieces = [(span, piece) for span, piece in pieces if lines & set(span)] or pieces
        if file is None or not pieces:
            return made_class(kind, self._writer)
        spans = {line for span, _ in pieces for line in span}
        written = [each for each in functions if each.__code__.co_filename == file and each.__code__.co_firstlineno in spans]
        cells = {n: cell for each in written for n, cell in zip(each.__code__.co_freevars, each.__closure__ or (), strict=True)}
        module = sys.modules.get(kind.__module__)
        around = Around(vars(module) if module else self._root.__globals__, self.places.own(file) or "", cells, label)
        return [
            [[piece.text, self._names(piece, around, file)] for _, piece in pieces],
            [self.thing(each) for each in (*kind.__bases__, type(kind))],
            [self._defaults(each, f"{kind.__qualname__}.{each.__name__}") for each in written],
            [byte_code(each.__code__) for each in written if source and not source.is_loaded(each.__code__)],
            [self.thing(each) for each in functions if each not in written],
            self._attributes(kind.__qualname__, attributes_of(kind)),
            members(kind, self._writer),
        ]

    def _attributes(self, of: str, values: Mapping[str, Any]) -> Node:
        """Write what is set on a class or a function: it may be its memory, and is no reason to refuse it."""
        named = {name: each for name, each in sorted(values.items()) if not name.startswith("__")}
        plain = {name: each for name, each in named.items() if is_plain(each)}
        queue, self._queue = self._queue, self._lenient
        held = [[name, self._held(f"{of}.{name}", each)] for name, each in named.items() if name not in plain]
        self._queue = queue
        return [self._writer.write(plain, "attributes"), [each for each in held if each[1]]]

    def _held(self, where: str, value: Any) -> Node:
        try:
            if type(value) in HOLDERS or self.class_name(type(value))[0] == "own":
                return self._writer.write(value, where)
            return self.thing(value) or self.inside(value)
        except Exception:  # noqa: BLE001  # whatever an object raises when it is looked at
            return ["unreadable"]

    def inside(self, value: Any) -> list[Node | None]:
        """Name the author's functions and classes in something foreign that wraps them."""
        return distinct([self.thing(each) for each in own_below(value, self._own_function)])

    def _own_function(self, function: types.FunctionType) -> bool:
        file = function.__code__.co_filename
        if file.startswith("<") and wrapped(function) is None:
            file = str(function.__globals__.get("__file__"))  # it was made of a text, in this module
        return self.places.own(file) is not None

    def _file_of(self, kind: type) -> str | None:
        """Find the file of a class of the author's; None for anybody else's."""
        module = sys.modules.get(kind.__module__)
        places = [getattr(module, "__file__", None)] if module else []
        if module is None and kind.__module__ == self.home:
            places.append(self._root.__code__.co_filename)
        if not any(places) and kind.__module__ != "builtins":
            places += [each.__code__.co_filename for value in vars(kind).values() for each in functions_of(value)]
        return next((file for file in places if file and self.places.own(file) is not None), None)

    def _source(self, file: str, module: dict[str, Any] | None = None) -> SourceFile | None:
        if file not in self._files:
            self._files[file] = SourceFile.read(file, module)
        return self._files[file]
