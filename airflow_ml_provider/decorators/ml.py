"""
``@task.ml`` and ``ml_task``: a typed function becomes an Airflow task.

The two are one. ``@task.ml`` is what Airflow's own ``task`` offers at run time; ``ml_task`` is the same with types. The
bodies of both check under any type checker. With ``airflow_ml_provider.mypy_plugin`` their calls do too, alike. Without it,
the calls of an ``@ml_task`` are left alone, and those of a ``@task.ml`` are reported as if outputs were to be passed and
references were not: Airflow's stub takes it for another ``@task``. So for pyright, or for mypy without the plugin, write
``@ml_task``.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, Protocol, cast, overload

import attr
from airflow.sdk import BaseOperator, XComArg
from airflow.sdk.bases.decorator import _TaskDecorator
from airflow.sdk.definitions.context import KNOWN_CONTEXT_KEYS

from airflow_ml_provider.core.signature import StepSignature, read_signature
from airflow_ml_provider.core.wiring import check_missing, check_names
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.operators.references import StepReference, check_mapped_value, check_value
from airflow_ml_provider.operators.step import MLStepOperator

P = ParamSpec("P")


class Step(Protocol[P]):
    """
    A typed step, for type checkers.

    Called, it returns what the step makes; indexed with an output's name, the reference to that output. What the call may
    be given is known to ``airflow_ml_provider.mypy_plugin`` alone, which reads it from the function's own parameters.
    """

    @property
    def function(self) -> Callable[P, Any]:
        """The function itself, to call it in a test."""

    def __call__(self, *args: Any, **kwargs: Any) -> StepReference:
        """Add the step to the DAG."""

    def override(self, **kwargs: Any) -> Step[P]:
        """Give the task other Airflow settings."""

    def partial(self, **kwargs: Any) -> Step[P]:
        """Fix some arguments before ``expand``."""

    def expand(self, **kwargs: Any) -> StepReference:
        """Map over lists."""

    def expand_kwargs(self, kwargs: Any, *, strict: bool = True) -> StepReference:
        """Map over a list of argument dictionaries."""


@attr.define(slots=False)
class MLTask(_TaskDecorator):  # type: ignore[type-arg]  # private and generic in nothing that we use
    """
    What ``@task.ml`` makes of a function: Airflow's own decorator object, with typed references and checks.

    :param signature: What the function declares.
    """

    signature: StepSignature = attr.field(kw_only=True, repr=False)

    def __call__(self, *args: Any, **kwargs: Any) -> StepReference:
        """
        Add the step to the DAG.

        :param args: Inputs and parameters in the order of the function, outputs left out.
        :param kwargs: The same by name.
        :return: What the step makes; ``[name]`` is one output.
        :raises ConfigError: an argument is unknown, missing, or of another type; a retry never helps.
        """
        given = self._by_name(args, kwargs)
        for name, value in given.items():
            check_value(self.signature, self.signature.parameters[name], value)
        self._check_missing(given)
        made: Any = super().__call__(**given)
        return StepReference(made.operator, signature=self.signature)

    def override(self, **kwargs: Any) -> MLTask:
        """
        Give the task other Airflow settings.

        :param kwargs: As for :func:`ml_task`.
        :return: The step with these settings.
        :raises ConfigError: ``multiple_outputs`` is asked for; a retry never helps.
        """
        refuse_multiple_outputs(kwargs.pop("multiple_outputs", None))
        changed: Any = super().override(**kwargs)
        return cast("MLTask", changed)  # attrs evolves an object of our class

    def partial(self, **kwargs: Any) -> MLTask:
        """
        Fix some arguments before ``expand``.

        :param kwargs: Arguments that all instances share.
        :return: The step with these arguments.
        :raises ConfigError: an argument is unknown or of another type; a retry never helps.
        """
        check_names(self.signature, kwargs)
        for name, value in kwargs.items():
            check_value(self.signature, self.signature.parameters[name], value)
        made: Any = super().partial(**kwargs)
        return cast("MLTask", made)  # attrs evolves an object of our class

    def expand(self, **map_kwargs: Any) -> StepReference:
        """
        Map the step over lists.

        :param map_kwargs: Per parameter a list, an output of a mapped step, or the list that a plain task returns.
        :return: What the instances make; ``[name]`` goes to ``Input[list[...]]`` or to another ``expand``.
        :raises ConfigError: an argument is unknown, missing, of another type, or cannot be mapped over.
        """
        check_names(self.signature, map_kwargs)
        self._check_missing(map_kwargs)
        for name, value in map_kwargs.items():
            check_mapped_value(self.signature, self.signature.parameters[name], value)
        return cast("StepReference", super().expand(**map_kwargs))  # made by our _expand

    def expand_kwargs(self, kwargs: Any, *, strict: bool = True) -> StepReference:
        """
        Map the step over argument dictionaries.

        :param kwargs: A list of dictionaries, checked here, or a reference to one, checked when it runs.
        :param strict: As in Airflow: refuse an argument that ``partial`` has given too.
        :return: As :meth:`expand`.
        :raises ConfigError: an argument is unknown, missing, or of another type; a retry never helps.
        """
        for given in kwargs if isinstance(kwargs, list | tuple) else ():
            if isinstance(given, Mapping):
                check_names(self.signature, given)
                self._check_missing(given)
                for name, value in given.items():
                    self._refuse_unresolved(name, value)
                    check_value(self.signature, self.signature.parameters[name], value)
        return cast("StepReference", super().expand_kwargs(kwargs, strict=strict))  # made by our _expand

    def _check_missing(self, given: Mapping[str, Any]) -> None:
        """Refuse a call that leaves something out; Airflow's context fills plain parameters and never an input."""
        filled = KNOWN_CONTEXT_KEYS & self.signature.plain.keys()
        check_missing(self.signature, {*given, *self.kwargs.get("op_kwargs", {}), *filled})

    def _expand(self, expand_input: Any, *, strict: bool) -> StepReference:
        # Airflow makes the operators of a mapped step when they run; what can be said now is said now.
        read_cache = getattr(self.operator_class, "read_cache", None)
        if read_cache is not None and isinstance(expand_input.value, Mapping):
            given = {**self.kwargs.get("op_kwargs", {}), **expand_input.value}
            read_cache(self.kwargs.get("cache"), self.kwargs["task_id"], inspect.unwrap(self.function), given)
        mapped: Any = super()._expand(expand_input, strict=strict)
        return StepReference(mapped.operator, signature=self.signature)

    def _refuse_unresolved(self, name: str, value: Any) -> None:
        """Refuse a reference where Airflow (3.3.2) hands on the reference itself and never its value."""
        if isinstance(value, XComArg):
            raise ConfigError(
                f"step {self.signature.step!r}: {name!r} is a reference, {value!r}, which Airflow does not resolve in the "
                f"dictionaries of .expand_kwargs. Use .partial({name}=...) if all instances share it, else .expand({name}=[...])."
            )

    def _by_name(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        takes = [name for name, each in self.signature.parameters.items() if each.role != "output"]
        if len(args) > len(takes):
            check_names(self.signature, [f"argument {len(takes) + 1}"])
        check_names(self.signature, kwargs)
        by_place = dict(zip(takes, args, strict=False))
        for name in by_place.keys() & kwargs.keys():
            raise ConfigError(f"step {self.signature.step!r}: {name!r} is given by its place and by its name. Give it once.")
        return {**by_place, **kwargs}


def refuse_multiple_outputs(asked: bool | None) -> None:
    """
    Refuse what Airflow's own ``@task`` makes of several results.

    :param asked: Whether it was asked for.
    :raises ConfigError: it was; a retry never helps.
    """
    if asked:
        raise ConfigError("multiple_outputs is not for steps. Declare Output[...] parameters, or return one JSON value.")


def _without_outputs(function: Callable[..., Any], signature: StepSignature) -> Callable[..., Any]:
    """Wrap a function so that Airflow sees the signature that a call has: outputs are injected, never passed."""

    @functools.wraps(function)
    def step(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    # Keyword-only: without the outputs, one with a default may stand before one without.
    step.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=each.annotation)
            for each in signature.parameters.values()
            if each.role != "output"
        ]
    )
    return step


def make_task(function: Callable[..., Any], operator_class: type[BaseOperator], kwargs: dict[str, Any]) -> MLTask:
    """
    Make the decorator object of a typed function.

    :param function: The function.
    :param operator_class: What runs it.
    :param kwargs: Arguments of the operator.
    :return: The step.
    :raises ConfigError: its signature cannot be a step's; a retry never helps.
    """
    signature = read_signature(function)
    return MLTask(
        function=_without_outputs(function, signature),
        signature=signature,
        multiple_outputs=False,
        operator_class=operator_class,
        kwargs={**kwargs},  # Airflow writes the task's id into it, and one decorator may be used for many functions
    )


@overload
def ml_task(python_callable: Callable[P, Any]) -> Step[P]: ...


@overload
def ml_task(*, multiple_outputs: None = None, **kwargs: Any) -> Callable[[Callable[P, Any]], Step[P]]: ...


def ml_task(
    python_callable: Callable[..., Any] | None = None,
    multiple_outputs: bool | None = None,
    **kwargs: Any,
) -> Any:
    """
    Turn a typed function into an Airflow task whose inputs, outputs, metrics and models are on record in MLflow.

    :param python_callable: Function whose parameters are ``Input[...]``, ``Output[...]`` and plain JSON values.
    :param multiple_outputs: Not for steps: their outputs are declared. Only None or False.
    :param kwargs: ``mlflow_conn_id``, ``experiment``, ``artifact_root``, ``cache``, and anything that an Airflow operator takes.
    :return: The step; call it inside a DAG.
    :raises ConfigError: the function's signature cannot be a step's; a retry never helps.
    """
    refuse_multiple_outputs(multiple_outputs)

    def decorate(function: Callable[..., Any]) -> MLTask:
        return make_task(function, MLStepOperator, kwargs)

    return decorate if python_callable is None else decorate(python_callable)
