"""
Values that a step's code uses, as text: constants of its module, defaults, what a closure holds.

More than parameters can be, because nobody chose them for a key: objects are taken apart as ``pickle`` does it.
"""

from __future__ import annotations

import copyreg
import enum
import functools
import logging
import types
from collections.abc import Callable, Iterator
from pathlib import PurePath
from typing import Any, Protocol

from airflow_ml_provider.core.canonical import DAG_MODULE, Writer, digest_of, text_of
from airflow_ml_provider.core.code_objects import DEEP, HOLDERS, contents, foreign_name, functions_of
from airflow_ml_provider.core.code_places import Places
from airflow_ml_provider.exceptions import ConfigError

log = logging.getLogger(__name__)

REMEDY = (
    "Pass it as a parameter, make it inside the step, or leave the code out with Cache(code=False) and name its version in "
    "Cache(salt=...)."
)


NO_SETTINGS = ("_thread", "_threading_local", "threading", "_contextvars", "concurrent.futures.thread", "logging")
"""Modules of locks and the like, which nobody's result depends on."""

SHORT = 100
"""Characters of a node that may stand more than once."""


class Known(Protocol):
    """What names functions, classes and modules."""

    places: Places
    home: str

    def thing(self, value: Any, label: str = "") -> list[Any] | None:
        """Name a function, a class or a module, and what wraps one; None for any other value."""

    def class_name(self, kind: type) -> list[Any]:
        """Name a class."""

    def inside(self, value: Any) -> list[Any]:
        """Name the author's functions and classes in something foreign that wraps them."""


class CodeWriter(Writer):
    """Writes constants: functions and classes by what they are, other objects as ``pickle`` takes them apart."""

    def __init__(self, known: Known) -> None:
        # The order of a dictionary may be that of a table's columns.
        super().__init__(REMEDY, ordered=True)
        self._known = known

    def name_of(self, kind: type) -> Any:
        """Name a class; one of the author's is written too."""
        return self._known.class_name(kind)

    def _write(self, value: Any, where: str) -> list[Any]:
        if type(value) is str:
            below = self._known.places.below(PurePath(value)) if value[:1] in "/\\" or value[1:2] == ":" else None
            if below is None:
                return super()._write(DAG_MODULE.sub("", value), where)
            return ["text below the DAG's folder", below]
        below = self._known.places.below(value) if isinstance(value, PurePath) else None
        return super()._write(value, where) if below is None else ["below the DAG's folder", below]

    def other(self, value: Any, where: str) -> list[Any]:
        """Write a value of a kind that parameters do not have."""
        found = self._known.thing(value)
        if found is not None:
            return found
        if isinstance(value, logging.Logger):
            return ["logger", "" if value.name == self._known.home else DAG_MODULE.sub("", value.name)]
        if isinstance(value, types.MethodType):
            return ["method", self._write(value.__func__, where), self._write(value.__self__, where)]
        if isinstance(value, types.MappingProxyType):
            return ["mapping", self._write(dict(value), where)]
        if isinstance(value, staticmethod | classmethod | property | functools.cached_property):
            return [type(value).__name__, *(self._write(each, where) for each in functions_of(value))]
        return self._reduced(value, where)

    def _reduced(self, value: Any, where: str) -> list[Any]:
        try:
            reduce = copyreg.dispatch_table.get(type(value))
            found = reduce(value) if reduce else value.__reduce_ex__(4)
        except Exception as error:  # whatever a class of the author's raises
            raise self.refuse(where, f"cannot be written down for a cache key: {error}") from error
        if isinstance(found, str):
            return ["elsewhere", f"{DAG_MODULE.sub('', getattr(value, '__module__', None) or type(value).__module__)}.{found}"]
        parts = [list(each) if isinstance(each, Iterator) else each for each in found]
        # What a decorator has copied from the function that it wraps.
        parts = [{k: v for k, v in each.items() if k != "__module__"} if type(each) is dict else each for each in parts]
        return ["reduced", *(self._write(each, where) for each in parts)]


class TrialWriter(CodeWriter):
    """Finds out whether a value can be written, and leaves no trace."""

    def name_of(self, kind: type) -> Any:
        """Name a class."""
        return foreign_name(kind)

    def other(self, value: Any, where: str) -> list[Any]:
        """Pass over what is written elsewhere."""
        return [] if isinstance(value, types.FunctionType | type | types.ModuleType) else super().other(value, where)


def can_be_written(known: Known, value: Any) -> bool:
    """
    Say whether all of a value can be written.

    :param known: Names functions, classes and modules.
    :param value: The value.
    """
    try:
        TrialWriter(known).write(value, "")
    except ConfigError:
        return False
    return True


class LenientWriter(CodeWriter):
    """Writes of what cannot be written all that can be: fields of the author's objects, and what is in containers."""

    def __init__(self, known: Known) -> None:
        super().__init__(known)
        self._done: dict[int, tuple[Any, list[Any]]] = {}

    def _write(self, value: Any, where: str) -> list[Any]:
        if id(value) in self._open:
            return ["around it"]
        if id(value) not in self._done:
            node = super()._write(value, where)
            if len(text := text_of(node)) < SHORT:
                return node
            # Objects that know each other would be written once for each way to them.
            self._done[id(value)] = (value, ["written", digest_of(text)])
        return self._done[id(value)][1]

    def _reduced(self, value: Any, where: str) -> list[Any]:
        if type(value) in HOLDERS or self._known.class_name(type(value))[0] == "own":
            try:
                return super()._reduced(value, where)
            except ConfigError:  # it does not let itself be taken apart
                return ["fields", foreign_name(type(value)), self._write(getattr(value, "__dict__", None), where)]
        if can_be_written(self._known, value):
            return super()._reduced(value, where)
        if type(value).__module__ not in NO_SETTINGS:
            log.warning("Cache: %s cannot be part of its key, so a change in it is not seen. %s", where, REMEDY)
        return ["unreadable", foreign_name(type(value)), *self._known.inside(value)]


def made_class(kind: type, writer: Writer) -> list[Any]:
    """
    Write a class that was made by a call.

    :param kind: The class.
    :param writer: Writes its values.
    :return: What an enum or a named tuple is made of.
    :raises ConfigError: it is neither, and has no source; a retry never helps.
    """
    fields = getattr(kind, "_fields", None)
    if issubclass(kind, enum.Enum):
        return ["enum", members(kind, writer)]
    if issubclass(kind, tuple) and fields is not None:
        return ["named tuple", list(fields), writer.write(getattr(kind, "_field_defaults", {}), "its defaults")]
    raise ConfigError(
        f"the source of class {kind.__qualname__!r}, which the step uses, cannot be read. Write it with class. {REMEDY}"
    )


def members(kind: type, writer: Writer) -> list[Any]:
    """
    Write the members of an enum.

    :param kind: Any class.
    :param writer: Writes their values.
    :return: Name and value of each; none for another class.
    :raises ConfigError: a value cannot be written; a retry never helps.
    """
    found = kind.__members__ if issubclass(kind, enum.Enum) else {}
    return [[name, writer.write(each.value, f"{kind.__qualname__}.{name}")] for name, each in found.items()]


def unlooked(name: str, error: Exception) -> ConfigError:
    """
    Make the error about an object that does not let itself be looked at, such as a proxy that stands for nothing yet.

    :param name: Its name.
    :param error: What it raised.
    :return: The error, to be raised.
    """
    return ConfigError(f"the step's code uses {name!r}, and looking at it raises {type(error).__name__}: {error}. {REMEDY}")


def refuse_circle(function: types.FunctionType, own: Callable[[types.FunctionType], bool]) -> None:
    """
    Refuse a closure that contains itself.

    :param function: The function.
    :param own: Whether a function is the author's; what others wrap around one may contain itself.
    :raises ConfigError: it does; a retry never helps.
    """
    _refuse_circle(function, own, (), set())


def _refuse_circle(
    function: types.FunctionType,
    own: Callable[[types.FunctionType], bool],
    inside: tuple[types.FunctionType, ...],
    done: set[int],
) -> None:
    if any(each is function for each in inside):
        names = " -> ".join(each.__name__ for each in (*inside, function))
        raise ConfigError(
            f"the closure of function {function.__qualname__!r} contains itself ({names}), so it has no end that a cache key "
            f"could reach. Define it at the top of the file. {REMEDY}"
        )
    if id(function) in done:  # decorators keep what they wrap twice, and a stack of them would be walked 2**n times
        return
    for each in _functions_below(function, own, 0):
        _refuse_circle(each, own, (*inside, function), done)
    done.add(id(function))


def _functions_below(value: Any, own: Callable[[types.FunctionType], bool], depth: int) -> Iterator[types.FunctionType]:
    for each in contents(value):
        if isinstance(each, types.FunctionType) and own(each):
            yield each
        elif depth < DEEP and not isinstance(each, type | types.ModuleType):
            yield from _functions_below(each, own, depth + 1)
