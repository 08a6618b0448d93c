"""What a step's function declares: its artifact inputs, its outputs, its plain parameters."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.artifact import Artifact, InputMarker, OutputMarker

Role = Literal["input", "output", "plain"]


@dataclass(frozen=True)
class StepParameter:
    """
    One parameter of a step.

    :param name: Its name.
    :param role: ``input`` and ``output`` are artifacts, ``plain`` is JSON.
    :param artifact: Artifact type; None for a plain one.
    :param many: ``Input[list[...]]``: that output of every mapped instance.
    :param optional: ``| None`` was declared.
    :param default: Default value, or ``inspect.Parameter.empty``.
    :param annotation: What was written, for messages and for conversion of plain values.
    """

    name: str
    role: Role
    artifact: type[Artifact] | None
    many: bool
    optional: bool
    default: Any
    annotation: Any

    @classmethod
    def input(cls, name: str, artifact: type[Artifact], *, optional: bool = False) -> StepParameter:
        """
        Declare an artifact input that stands in no function's signature.

        :param name: Its name.
        :param artifact: Artifact type.
        :param optional: Whether None may come.
        :return: The parameter; a call need not give it.
        """
        return cls(name, "input", artifact, many=False, optional=optional, default=None, annotation=artifact)

    @property
    def required(self) -> bool:
        """Whether a call must give it."""
        return self.role != "output" and self.default is inspect.Parameter.empty

    @property
    def wanted(self) -> str:
        """The declared type as an author writes it."""
        if self.artifact is None:
            return "a plain value"
        inner = f"list[{self.artifact.type_name}]" if self.many else self.artifact.type_name
        return f"{self.role.capitalize()}[{inner}]" + (" | None" if self.optional else "")


@dataclass(frozen=True)
class StepSignature:
    """
    The parameters of one step.

    :param step: Name of the function, for messages.
    :param parameters: Parameter per name, in order.
    """

    step: str
    parameters: dict[str, StepParameter]

    @cached_property
    def inputs(self) -> dict[str, StepParameter]:
        """The artifacts that it reads."""
        return {name: each for name, each in self.parameters.items() if each.role == "input"}

    @cached_property
    def outputs(self) -> dict[str, StepParameter]:
        """The artifacts that it writes."""
        return {name: each for name, each in self.parameters.items() if each.role == "output"}

    @cached_property
    def plain(self) -> dict[str, StepParameter]:
        """The JSON parameters."""
        return {name: each for name, each in self.parameters.items() if each.role == "plain"}


def read_signature(function: Callable[..., Any]) -> StepSignature:
    """
    Read what a function declares.

    :param function: A plain function whose parameters are annotated.
    :return: Its signature.
    :raises ConfigError: an annotation cannot be read, an artifact type is used without ``Input`` or ``Output``, the
        function is async, takes ``*args`` or ``**kwargs``, or returns a value beside outputs; a retry never helps.
    """
    step = getattr(function, "__name__", repr(function))
    hints = _hints(function, step)
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"step {step!r} is async; steps are plain functions. Call asyncio.run inside it.")
    parameters = {
        each.name: _parameter(step, each, hints.get(each.name, Any)) for each in inspect.signature(function).parameters.values()
    }
    signature = StepSignature(step, parameters)
    if signature.outputs and hints.get("return", type(None)) not in (type(None), None, Any):
        raise ConfigError(
            f"step {step!r} has outputs {sorted(signature.outputs)} and is declared to return a value. "
            "Return None, and hand the value on as another output (Output[Artifact], or .metadata of one)."
        )
    return signature


def _hints(function: Callable[..., Any], step: str) -> dict[str, Any]:
    """Resolve annotations, those that are texts and name what the enclosing function imported included."""
    try:
        return typing.get_type_hints(function, localns=_enclosing(function), include_extras=True)
    except (NameError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"step {step!r}: its annotations cannot be read ({error}). Import what they name at the top of the DAG file."
        ) from error


def _enclosing(function: Callable[..., Any]) -> dict[str, Any]:
    """Read what a function takes from the function around it."""
    found = {}
    if inspect.isfunction(function):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with suppress(ValueError):  # an empty cell: only its body needs it, and it is bound further down
                found[name] = cell.cell_contents
    return found


def _parameter(step: str, parameter: inspect.Parameter, hint: Any) -> StepParameter:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.POSITIONAL_ONLY):
        raise ConfigError(f"step {step!r}: {parameter} is not a named parameter. Name each parameter of a step.")
    inner, optional = _without_none(hint)
    role, inner = _role(inner)
    if role == "plain":
        _refuse_bare_artifact(step, parameter.name, inner)
        return StepParameter(parameter.name, role, None, False, optional, parameter.default, hint)
    many = typing.get_origin(inner) is list
    kind = typing.get_args(inner)[0] if many else inner
    _refuse_bad_artifact(step, parameter, role, kind, many=many, optional=optional)
    return StepParameter(parameter.name, role, kind, many, optional, parameter.default, hint)


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Split ``X | None`` into ``X`` and True; ``Input[X | None]`` counts as ``Input[X] | None``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rest = [each for each in typing.get_args(hint) if each is not type(None)]
        if len(rest) == 1 and len(rest) < len(typing.get_args(hint)):
            return rest[0], True
    if typing.get_origin(hint) is Annotated:
        inner, optional = _without_none(typing.get_args(hint)[0])
        if optional:
            return Annotated[(inner, *typing.get_args(hint)[1:])], True
    return hint, False


def _role(hint: Any) -> tuple[Role, Any]:
    if typing.get_origin(hint) is Annotated:
        inner, *marks = typing.get_args(hint)
        if InputMarker in marks:
            return "input", inner
        if OutputMarker in marks:
            return "output", inner
    return "plain", hint


def _refuse_bare_artifact(step: str, name: str, hint: Any) -> None:
    """Refuse an artifact that does not say its role, and one inside of a list or a dictionary."""
    kind = _artifact_in(hint)
    if kind is None:
        return
    if kind is hint:
        raise ConfigError(
            f"step {step!r}, parameter {name!r}: {kind.type_name} alone does not say whether it is read or written. "
            f"Declare Input[{kind.type_name}] or Output[{kind.type_name}]."
        )
    raise ConfigError(
        f"step {step!r}, parameter {name!r}: {kind.type_name} stands inside of another type, where it is not seen. "
        f"Write Input[list[{kind.type_name}]] for many, Input[{kind.type_name}] or Output[{kind.type_name}] for one."
    )


def _artifact_in(hint: Any) -> type[Artifact] | None:
    """Find the first artifact type that an annotation names, however deep."""
    if typing.get_origin(hint) is None and isinstance(hint, type) and issubclass(hint, Artifact):
        return hint
    return next(filter(None, map(_artifact_in, typing.get_args(hint))), None)


def _refuse_bad_artifact(step: str, parameter: inspect.Parameter, role: Role, kind: Any, *, many: bool, optional: bool) -> None:
    where = f"step {step!r}, {role} {parameter.name!r}"
    if not (isinstance(kind, type) and issubclass(kind, Artifact)):
        raise ConfigError(f"{where}: {kind!r} is not an artifact type. Use Dataset, Model, Metrics or Artifact.")
    if role == "output" and (many or optional or parameter.default is not inspect.Parameter.empty):
        raise ConfigError(
            f"{where}: an output is one artifact, never a list, optional or with a default. Declare Output[{kind.type_name}]."
        )
    if role == "input" and parameter.default is None and not optional:
        raise ConfigError(f"{where}: None is not what it is declared to take. Declare Input[{kind.type_name}] | None.")
    if role == "input" and parameter.default not in (inspect.Parameter.empty, None):
        raise ConfigError(
            f"{where}: the default of an artifact can only be None, not {parameter.default!r}. Pass it in the call."
        )
