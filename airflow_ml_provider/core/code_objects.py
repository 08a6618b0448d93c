"""What is in functions, wrappers and attributes of classes, as digests of code need it; nothing is called or changed."""

from __future__ import annotations

import enum
import functools
import itertools
import sys
import types
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airflow_ml_provider.core.canonical import digest_of, text_of
from airflow_ml_provider.models.cache import json_keeps

BUILTINS = (types.BuiltinFunctionType, types.MethodWrapperType, types.WrapperDescriptorType, types.MethodDescriptorType)
"""Functions that were not written in Python."""
DEEP = 4
"""Levels of foreign wrappers and containers in which the author's functions are looked for."""

HOLDERS = (
    *(dict, list, tuple, set, frozenset, deque, defaultdict, OrderedDict, functools.partial),
    *(types.SimpleNamespace, types.MappingProxyType),
)
"""Kinds of others that hold what they are given."""
MODULE_NAMES = {
    *("__name__", "__file__", "__doc__", "__package__", "__spec__", "__loader__", "__builtins__", "__path__", "__cached__")
}
"""What a module says of itself; other on another worker."""

_HEAP = 1 << 9
"""Flag of a class that was made while Python ran."""


@dataclass(frozen=True)
class Around:
    """
    Where a piece of source takes its names from.

    :param names: Those of its module.
    :param place: Its file, as ``Places.own`` names it.
    :param cells: Those of functions around it.
    :param label: What it is called itself.
    """

    names: Mapping[str, Any]
    place: str
    cells: Mapping[str, types.CellType]
    label: str

    @property
    def package(self) -> str | None:
        """Package that imports with points in it start from."""
        return self.names.get("__package__")


@dataclass(frozen=True)
class Task:
    """
    Something of which the digest is still to be made.

    :param label: Its name for people.
    :param write: Writes it.
    :param shown: Value and name of a constant, to be shown.
    """

    label: str
    write: Callable[[], list[Any]]
    shown: tuple[Any, str] | None = None


def contents(value: Any) -> Iterator[Any]:
    """
    List what is in a closure, a wrapper or a container.

    :param value: Anything.
    :return: What it holds, one level deep.
    """
    if isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            try:
                found = cell.cell_contents
            except ValueError:  # not set yet
                continue
            if name != "__class__":
                yield found
    elif isinstance(value, Mapping) and not isinstance(value, weakref.WeakKeyDictionary | weakref.WeakValueDictionary):
        yield from list(value.values())
    elif isinstance(value, list | tuple | set | frozenset):
        yield from value
    elif isinstance(value, functools.partial):
        yield from (value.func, *value.args, *value.keywords.values())
    elif isinstance(value, types.MethodType):
        yield value.__func__
    inner = wrapped(value)
    if inner is not None:
        yield inner


def wrapped(value: Any) -> Any:
    """
    Find what a decorator has wrapped, as ``functools.wraps``, ``functools.cache`` and Airflow's keep it.

    :param value: Anything.
    :return: What is inside; None when it wraps nothing.
    """
    if isinstance(value, type | types.ModuleType):
        return None
    try:
        return getattr(value, "__wrapped__", None)
    except Exception:  # noqa: BLE001  # a proxy that is not bound may say anything
        return None


def functions_of(attribute: Any) -> list[types.FunctionType]:
    """
    List the functions that an attribute of a class stands for.

    :param attribute: Value in the class.
    :return: A method, those of a property, what a decorator has wrapped; empty for anything else.
    """
    found = [attribute]
    if isinstance(attribute, staticmethod | classmethod):
        found = [attribute.__func__]
    elif isinstance(attribute, property):
        found = [attribute.fget, attribute.fset, attribute.fdel]
    elif isinstance(attribute, functools.cached_property):
        found = [attribute.func]
    inner = [wrapped(each) or each for each in found]
    return [each for each in inner if isinstance(each, types.FunctionType)]


def attributes_of(kind: type) -> dict[str, Any]:
    """
    List what is set on a class, but for its functions.

    :param kind: The class.
    :return: Value per name, members of an enum left out; what Python keeps in one for itself differs from version to version.
    """
    hidden, left = ("_", kind.__members__) if issubclass(kind, enum.Enum) else ("__", {})
    return {
        name: each
        for name, each in vars(kind).items()
        if not name.startswith(hidden) and name not in left and not functions_of(each)
    }


def own_below(value: Any, own: Callable[[types.FunctionType], bool], depth: int = 0) -> Iterator[Any]:
    """
    List classes, and the author's functions, in something that wraps them.

    :param value: Anything.
    :param own: Whether a function is the author's.
    :param depth: Levels above it.
    :return: What is found in up to :data:`DEEP` levels.
    """
    for each in contents(value):
        if isinstance(each, type) or (isinstance(each, types.FunctionType) and own(each)):
            yield each
        elif depth < DEEP:
            yield from own_below(each, own, depth + 1)


def is_plain(value: Any) -> bool:
    """
    Say whether a value is a number, a text or the like, or a container of these.

    :param value: Anything.
    :return: False for objects of classes, which may be the memory of something.
    """
    if type(value) in (list, tuple, set, frozenset):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(is_plain(each) for pair in value.items() for each in pair)
    return type(value) is bytes or json_keeps(value)


def foreign_name(value: Any) -> str:
    """
    Name a function or a class of somebody else.

    :param value: The function or the class.
    :return: Its module and its name in it.
    """
    if isinstance(value, types.FunctionType):
        return f"{value.__globals__.get('__name__')}.{value.__code__.co_qualname}"
    return f"{getattr(value, '__module__', None)}.{getattr(value, '__qualname__', None) or getattr(value, '__name__', '')}"


def made_by_call(kind: type) -> bool:
    """
    Say whether a class of somebody else's is not the one that its name leads to.

    :param kind: The class.
    :return: True for what ``dataclasses.make_dataclass`` and the like made, which its name does not describe.
    """
    module = sys.modules.get(kind.__module__)
    if module is None or not str(getattr(module, "__file__", "")).endswith(".py"):
        return False
    found: Any = module
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is not kind and bool(kind.__flags__ & _HEAP)


def byte_code(code: types.CodeType) -> str:
    """
    Digest what runs, for a function that is not what its file says by now.

    :param code: Its code.
    :return: 64 hexadecimal digits, which hold for one version of Python.
    """
    constants = [byte_code(each) if isinstance(each, types.CodeType) else _constant(each) for each in code.co_consts]
    return digest_of(text_of([code.co_code.hex(), constants, code.co_names, code.co_varnames, code.co_freevars]))


def _constant(value: object) -> str:
    return str(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)


def join(place: str, name: str) -> str:
    """
    Name a thing in a file.

    :param place: The file; empty for that of the step.
    :param name: Name in it.
    :return: As ``helpers/io.py:load``.
    """
    return f"{place}:{name}" if place else name


def numbered(label: str) -> Iterator[str]:
    """
    Make other names for things of one name.

    :param label: The name.
    :return: Itself, then with a number, without an end.
    """
    yield label
    yield from (f"{label} ({number})" for number in itertools.count(2))


def distinct(nodes: Sequence[list[Any] | None]) -> list[Any]:
    """
    Leave out what is there twice.

    :param nodes: What a writer made.
    :return: The same in order.
    """
    return list({text_of(each): each for each in nodes}.values())
