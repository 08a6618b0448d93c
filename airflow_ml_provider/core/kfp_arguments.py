"""
Arguments of a pipeline, checked against its own input definitions before anything is sent; pure.

What passes is what the server takes and keeps as it is. A text for a number, a boolean, a list or a struct is taken where it is
exactly that value's JSON, since text is all that a Jinja template gives; ``True`` and ``False`` too, as Jinja writes them. A
reference to an artifact goes to a text parameter as its URI.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from airflow_ml_provider.core.kfp_names import unstorable
from airflow_ml_provider.core.wiring import did_you_mean
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.kfp_package import ParameterType, PipelinePackage, PipelineParameter
from airflow_ml_provider.models.reference import ArtifactRef

MAX_INTEGER = 2**53
"""The server keeps every number as a double; integers above this are rounded."""
MAX_DEPTH = 100
"""Levels of lists and mappings in one value."""
MAX_WORKFLOW_BYTES = 3 << 20
"""What Kubernetes takes as one object, at most; its store takes 1.5 MiB as it comes, which an administrator can raise to this."""
SUGGESTIONS = 20
"""Unknown names that get a "did you mean"; each costs a comparison with all names."""
LONGEST_HINT = 600
"""Characters of a name, and of what is said to help with it."""
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_TEXTS_OF_BOOLEANS = {"true": True, "True": True, "false": False, "False": False}
_MOST_DIGITS = 400
_LONGEST_BITS = 512
_WANTED: dict[ParameterType, tuple[type, ...]] = {
    ParameterType.STRING: (str,),
    ParameterType.NUMBER_INTEGER: (int, float),
    ParameterType.NUMBER_DOUBLE: (int, float),
    ParameterType.BOOLEAN: (bool,),
    ParameterType.LIST: (list,),
    ParameterType.STRUCT: (dict,),
}


class _RefusedError(ValueError):
    """Why one value is refused, for the end of a sentence that names the parameter."""


def check_arguments(package: PipelinePackage, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Check arguments against what the pipeline takes.

    :param package: The pipeline.
    :param arguments: Value per parameter. Tuples become lists; a text may stand for another type as its JSON.
    :return: What to send as ``runtime_config.parameters``: plain JSON values, equal to what was given.
    :raises ConfigError: anything is unknown, missing, of a wrong type, not among the allowed values, or cannot be stored by the
        server; all of it in one message, a line each. A retry never helps.
    """
    problems: list[str] = []
    checked: dict[str, Any] = {}
    unknown = 0
    for name, value in arguments.items():
        parameter = package.parameters.get(name) if isinstance(name, str) else None
        if parameter is None:
            unknown += 1
            problems.append(_unknown(package, name, suggest=unknown <= SUGGESTIONS))
            continue
        try:
            checked[name] = _checked(parameter, value)
        except _RefusedError as error:
            problems.append(f"{name!r} {error}")
    problems += _missing(package, arguments)
    if problems:
        lines = "\n".join(f"- {each}" for each in problems)
        raise ConfigError(
            f"the arguments of pipeline {package.name!r} ({package.source}) are refused; nothing was sent.\n{lines}"
        )
    return checked


def check_run_size(package: PipelinePackage, arguments: Mapping[str, Any]) -> None:
    """
    Refuse a run that no Kubernetes can hold.

    The workflow is one object that contains the whole spec, so what does not fit is known before. What is smaller can still be
    too large: about 1 kB is added for every task (1,000 tasks make 1.2 MB, 2,000 were refused), and most clusters take 1.5 MiB.

    :param package: The pipeline, whether sent with the run or registered.
    :param arguments: What :func:`check_arguments` returned.
    :raises ConfigError: spec and arguments are together larger than 3 MiB; a retry never helps.
    """
    size = package.size + len(json.dumps(dict(arguments), ensure_ascii=False).encode())
    if size > MAX_WORKFLOW_BYTES:
        raise ConfigError(
            f"pipeline {package.name!r} ({package.source}) cannot run: with its arguments it takes {size} bytes, and Kubernetes "
            f"takes at most {MAX_WORKFLOW_BYTES} as one object (1.5 MiB unless an administrator raised it). Move embedded code "
            "and data into an image or an object store, and pass large values by their place."
        )


def _unknown(package: PipelinePackage, name: object, *, suggest: bool) -> str:
    if isinstance(name, str) and name in package.artifacts:
        kind = package.artifacts[name].type or "artifact"
        return (
            f"{name!r} is an artifact input ({kind}), which a run cannot be given: the API takes parameters only. Give the "
            "pipeline a parameter for the artifact's URI, and import it inside with dsl.importer."
        )
    shown = _short(name)
    if not isinstance(name, str):
        return f"{shown} is no parameter: names are texts, and this is {_typed(name)}."
    hint = did_you_mean(name[:LONGEST_HINT], package.parameters) if suggest else ""
    hint = f"{hint[:LONGEST_HINT]}..." if len(hint) > LONGEST_HINT else hint
    return f"{name!r:.{LONGEST_HINT}} is no parameter of it.{hint}"


def _missing(package: PipelinePackage, arguments: Mapping[str, Any]) -> list[str]:
    absent = [each for each in package.parameters.values() if each.required and each.name not in arguments]
    lines = [f"{each.name!r} ({each.type}) is missing, and has no default." for each in absent]
    artifacts = [each for each in package.artifacts.values() if not each.optional and each.name not in arguments]
    return lines + [_unknown(package, each.name, suggest=False) for each in artifacts]


def _checked(parameter: PipelineParameter, value: Any) -> Any:
    wanted = parameter.type
    if not wanted.given_by_clients:
        raise _RefusedError(f"is of type {wanted}, which no client can give. Leave it out.")
    if value is None:
        remedy = f"Leave it out to take its default, {_short(parameter.default)}" if parameter.has_default else "Give a value"
        remedy = "Leave it out" if parameter.optional and not parameter.has_default else remedy
        raise _RefusedError(f"wants {wanted}, but is None, which the server refuses also where there is a default. {remedy}.")
    if isinstance(value, str) and wanted is not ParameterType.STRING:
        value = _from_text(value, wanted)
    if ArtifactRef.looks_like(value) and wanted is ParameterType.STRING:
        value = value["uri"]
    plain = _plain(value, MAX_DEPTH)
    if not isinstance(plain, _WANTED[wanted]) or (isinstance(plain, bool) and wanted is not ParameterType.BOOLEAN):
        _refuse_type(value, wanted)
    if parameter.literals and not any(_same(plain, each) for each in parameter.literals):
        allowed = ", ".join(repr(each) for each in parameter.literals)
        raise _RefusedError(f"is {_short(plain)}; allowed are {allowed}.")
    return plain


def _refuse_type(value: object, wanted: ParameterType) -> NoReturn:
    remedy = ""
    if wanted is ParameterType.STRING:
        remedy = " Pass str(...) of it; with render_template_as_native_obj a template gives no text: put | string in it."
    raise _RefusedError(f"wants {wanted}, but {_short(value)} is {_typed(value)}.{remedy}")


def _from_text(text: str, wanted: ParameterType) -> Any:
    """Read the JSON of a value of the wanted type; a template gives nothing but text."""
    readers: dict[ParameterType, Callable[[str], Any]] = {
        ParameterType.NUMBER_INTEGER: _integer_of,
        ParameterType.NUMBER_DOUBLE: _number_of,
        ParameterType.BOOLEAN: _TEXTS_OF_BOOLEANS.__getitem__,
        ParameterType.LIST: lambda json_text: _json_of(json_text, list),
        ParameterType.STRUCT: lambda json_text: _json_of(json_text, dict),
    }
    try:
        return readers[wanted](text)
    except (ValueError, KeyError, RecursionError):
        hint = " In a template, write {{ ... | tojson }}." if wanted in {ParameterType.LIST, ParameterType.STRUCT} else ""
        raise _RefusedError(f"wants {wanted}, but {_short(text)} is a text (str), and not the JSON of one.{hint}") from None


def _integer_of(text: str) -> int:
    if not _INTEGER.fullmatch(text) or len(text) > _MOST_DIGITS:
        raise ValueError(text)
    return int(text)


def _number_of(text: str) -> int | float:
    found = _NUMBER.fullmatch(text)
    if not found:
        raise ValueError(text)
    return float(text) if found[2] or found[3] else _integer_of(text)


def _json_of(text: str, kind: type) -> Any:
    value = json.loads(text, object_pairs_hook=_without_doubles, parse_constant=_no_constant)
    if not isinstance(value, kind):
        raise ValueError(text)  # noqa: TRY004  (one kind of refusal for all of them)
    return value


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(text: str) -> NoReturn:
    raise ValueError(text)


def _plain(value: Any, depth: int) -> Any:
    """Turn a value into what JSON gives back as it was; refuse what it would change."""
    if depth < 0:
        raise _RefusedError(f"has more than {MAX_DEPTH} levels of lists and mappings, or contains itself. Pass it by its place.")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return _plain_integer(int(value))
    if isinstance(value, float):
        return _plain_float(float(value))
    if isinstance(value, str):
        return _plain_text(str.__str__(value))
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(each, depth - 1) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each, depth - 1) for each in value]
    raise _RefusedError(f"holds {_short(value)}, {_typed(value)}, which JSON does not have. Pass {_instead(value)}.")


def _plain_integer(value: int) -> int:
    if abs(value) > MAX_INTEGER:
        raise _RefusedError(
            f"holds the integer {_short(value)}; the server keeps numbers as doubles and rounds integers above 2^53 "
            f"({MAX_INTEGER}). Make it a STRING parameter and pass it as a text; write 1e20 where a rounded number is meant."
        )
    return value


def _plain_float(value: float) -> float:
    if not math.isfinite(value):
        raise _RefusedError(f"holds {value}, which JSON does not have. Leave it out, or pass it as a text to a STRING parameter.")
    return value


def _plain_text(text: str) -> str:
    if found := unstorable(text):
        raise _RefusedError(
            f"holds {found}, which takes 4 bytes in UTF-8; the server's database takes 3, and finds out only when the workflow "
            "runs already, without a run. Write it without."
        )
    return text


def _plain_key(key: Any) -> str:
    if not isinstance(key, str):
        raise _RefusedError(
            f"holds a mapping with the key {_short(key)}, {_typed(key)}; keys of JSON are texts. Pass str(...) of it."
        )
    return _plain_text(str.__str__(key))


def _instead(value: object) -> str:
    """Say what to pass for a value of a type that JSON does not have."""
    remedies = {
        "tolist": "its .tolist()",
        "isoformat": "its .isoformat()",
        "__fspath__": "str(...) of it",
        "decode": "its .decode()",
        "isdisjoint": "sorted(...) of it",
    }
    return next((remedy for name, remedy in remedies.items() if hasattr(value, name)), "a text, a number, a list or a dictionary")


def _same(value: Any, literal: Any) -> bool:
    """Compare as the server does: a number equals its double, and no boolean is a number."""
    if isinstance(value, bool) or isinstance(literal, bool):
        return value is literal
    if isinstance(value, dict) and isinstance(literal, dict):
        return value.keys() == literal.keys() and all(_same(each, literal[key]) for key, each in value.items())
    if isinstance(value, list) and isinstance(literal, list):
        return len(value) == len(literal) and all(map(_same, value, literal))
    return bool(value == literal)


class _ShortRepr(reprlib.Repr):
    """Shows little of everything, also of integers that Python refuses to write."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 30
        self.maxlevel = 2
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 3

    def repr_int(self, x: int, level: int) -> str:
        bits = x.bit_length()
        return f"<integer of {bits} bits>" if bits > _LONGEST_BITS else super().repr_int(x, level)


_reprs = _ShortRepr()


def _short(value: object) -> str:
    """Show a little of a value: it may be large, or a secret."""
    return " ".join(_reprs.repr(value).split())


def _typed(value: object) -> str:
    names = {str: "a text", bool: "a boolean", int: "an integer", float: "a number", list: "a list", dict: "a mapping"}
    kind = type(value)
    return (
        f"{names[kind]} ({kind.__name__})"
        if kind in names
        else f"a {kind.__module__}.{kind.__qualname__}".replace("builtins.", "")
    )
