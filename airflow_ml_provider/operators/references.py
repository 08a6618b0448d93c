"""References to what a step makes: ``step(...)["model"]``, typed, so that wrong wiring is refused at parse time."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import attrs
from airflow.sdk import BaseOperator, XComArg
from airflow.sdk.definitions._internal.abstractoperator import AbstractOperator
from airflow.sdk.definitions._internal.mixins import ResolveMixin
from airflow.sdk.definitions.mappedoperator import MappedOperator
from airflow.sdk.definitions.xcom_arg import PlainXComArg

from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.core.wiring import Source, check_output, check_source, check_text, did_you_mean, refs_of
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.reference import StepOutputs

RETURNED = "return_value"
"""Key of what a task returns, in XCom."""


@attrs.define(repr=False)
class StepReference(PlainXComArg):
    """
    What ``step(...)`` returns: the step's XCom, and through ``["name"]`` one of its outputs.

    In the scheduler it is an ordinary reference to the step's return value; the worker parses the DAG file again and so
    finds this class, which picks the output.

    :param operator: The step's operator.
    :param signature: What the step declares.
    :param output: Name of the chosen output; None for the whole.
    """

    signature: StepSignature = attrs.field(kw_only=True)
    output: str | None = attrs.field(default=None, kw_only=True)

    def __getitem__(self, item: str) -> XComArg:
        """
        Choose one output.

        :param item: Its name.
        :return: The reference.
        :raises ConfigError: the step has no such output; a retry never helps.
        """
        if self.output is not None:
            raise ConfigError(
                f"{self!r} is one artifact; [{item!r}] of it means nothing. Read its .metadata in the step that takes it."
            )
        check_output(self.signature, str(item))
        return attrs.evolve(self, output=item)

    def __str__(self) -> str:
        """Write the template that renders an output's URI, for operators that take texts; those of a list with blanks between."""
        pull = super().__str__()
        if self.output is None:
            return pull
        made = f"{{% with made = {pull.removeprefix('{{').removesuffix('}}').strip()} %}}"
        if self.signature.outputs[self.output].artifact is None:
            return f"{made}{{{{ made['values']['{self.output}'] }}}}{{% endwith %}}"
        run = "'runs:/' ~ (made.get('mlflow_run_id') or made['run_id']) ~ '/'"
        if self.signature.outputs[self.output].many:
            each = f"made['outputs'].get('{self.output}[' ~ place ~ ']')"
            one = f"{{% if {each} %}}{{{{ {each}.get('uri') or {run} ~ {each}['path'] }}}} {{% endif %}}"
            return f"{made}{{% for place in range(made['outputs'] | length) %}}{one}{{% endfor %}}{{% endwith %}}"
        uri, path = f"made['outputs']['{self.output}'].get('uri')", f"{run} ~ made['outputs']['{self.output}']['path']"
        return f"{made}{{{{ {uri} or {path} }}}}{{% endwith %}}"

    def __repr__(self) -> str:
        return self.source().text

    def as_setup(self) -> StepReference:
        """
        Make the step a setup task, as in Airflow, whose own method hides that a reference comes back.

        :return: This reference.
        """
        super().as_setup()
        return self

    def source(self) -> Source:
        """
        Say what is referred to, for the checks of wiring.

        :return: Its name, type and number.
        """
        step = self.signature.step
        siblings = {name: each.artifact.type_name for name, each in self.signature.outputs.items() if each.artifact}
        text = step if self.output is None else f'{step}["{self.output}"]'
        kind = siblings.get(self.output) if self.output else None
        many = bool(kind and (self.operator.is_mapped or self.signature.outputs[self.output or ""].many))
        return Source(text, kind, many=many, siblings=siblings, step=step)

    def resolve(self, context: Mapping[str, Any]) -> Any:
        """
        Pull the XCom and pick the output.

        :param context: Airflow's context.
        :return: The reference as plain JSON, or the value of an output that is no artifact; a list of them for a mapped step;
            None where the step pushed nothing.
        """
        value = super().resolve(context)
        if self.output is None or value is None:
            return value
        if StepOutputs.looks_like(value):
            return StepOutputs.from_json(value).pick(self.output)
        return [StepOutputs.from_json(each).pick(self.output) for each in value[:] if each is not None]


def check_value(signature: StepSignature, parameter: StepParameter, value: object) -> None:
    """
    Check at parse time what can be known of an argument then.

    :param signature: The step that is called.
    :param parameter: The parameter that gets it.
    :param value: Reference, URI, literal, template, or any other reference of Airflow's, which is checked when it runs.
    :raises ConfigError: it does not fit; a retry never helps.
    """
    if isinstance(value, StepReference) and value.signature.outputs:
        _check_reference(signature, parameter, value)
        return
    if isinstance(value, ResolveMixin):
        _check_mapped_operators(value)
        return
    if parameter.role == "plain":
        _refuse_hidden(signature, parameter, value)
        return
    if value is None and parameter.optional:
        return
    if value is None:
        raise ConfigError(
            f"step {signature.step!r}, parameter {parameter.name!r} wants {parameter.wanted}, but None was passed. "
            f"Declare {parameter.name}: {parameter.wanted} | None."
        )
    if parameter.many and isinstance(value, list | tuple):
        for each in value:
            check_value(signature, replace(parameter, many=False), each)
        return
    if isinstance(value, str) and not parameter.many:
        check_text(signature.step, parameter, value)
        return
    refs_of(signature.step, parameter, value)


def check_mapped_value(signature: StepSignature, parameter: StepParameter, value: object) -> None:
    """
    Check at parse time one argument of ``.expand``.

    :param signature: The step that is mapped.
    :param parameter: The parameter that is mapped over.
    :param value: What it is mapped over.
    :raises ConfigError: an element does not fit, or Airflow cannot map over it; a retry never helps.
    """
    if isinstance(value, StepReference) and value.signature.outputs:
        source = value.source()
        if value.output is not None and not source.many:
            raise _one_is_no_list(f"step {signature.step!r}: .expand({parameter.name}={source.text})", value)
        _refuse_whole(signature, parameter, value)
        check_source(signature.step, parameter, replace(source, many=False))
    elif isinstance(value, Mapping):
        _refuse_pairs(signature, parameter, value)
    elif isinstance(value, list | tuple):
        for each in value:
            check_value(signature, parameter, each)


def refuse_mapping_over(maker: BaseOperator, other: object) -> None:
    """
    Refuse to map a task or a task group, whoever's it is, over one output of a step or over all of them at once.

    Airflow would map over the fields of the reference. It asks a reference nothing when it is mapped over; it does tell the
    step, which becomes upstream of what is mapped.

    :param maker: The step.
    :param other: What the step was just made upstream of.
    :raises ConfigError: it is mapped over an output of the step; a retry never helps.
    """
    if isinstance(sys.exc_info()[1], ConfigError):
        return  # said already: a task group that is left by an error repeats its arrows, and must get to its own end
    for where, inputs in _mapped_over(other):
        pairs = inputs.items() if isinstance(inputs, Mapping) else [("kwargs", inputs)]
        for name, value in pairs:
            for each in _references_in(value):
                if each.operator is maker and each.signature.outputs:
                    raise _one_is_no_list(f"{where}: .expand({name}={each.source().text})", each)


def _mapped_over(other: object) -> Iterator[tuple[str, object]]:
    """Name what a task, and the task group around it, are mapped over; Airflow has no public way to ask for either."""
    if isinstance(other, MappedOperator):
        yield f"task {other.task_id!r}", other._get_specified_expand_input().value  # noqa: SLF001
    group = other.get_closest_mapped_task_group() if isinstance(other, AbstractOperator) else None
    if group is not None:
        yield f"task group {group.group_id!r}", group._expand_input.value  # noqa: SLF001


def _references_in(value: object) -> Iterator[StepReference]:
    """Find the reference that is mapped over, also through ``.map``, ``.zip`` and ``.concat``; one in a list is an element."""
    if isinstance(value, StepReference):
        yield value
    elif isinstance(value, XComArg):
        for each in (getattr(value, "arg", None), *getattr(value, "args", ())):
            yield from _references_in(each)


def _one_is_no_list(where: str, value: StepReference) -> ConfigError:
    source = value.source()
    one = f"a list of {source.type}s that is one part of an XCom" if source.many else f"one {source.type}"
    what = one if source.type else f"the outputs of a step, {', '.join(source.siblings)}"
    name = value.output or next(iter(source.siblings))
    return ConfigError(
        f"{where} cannot map over {what}. Map over a list of references ([a[{name!r}], b[{name!r}]]), over that output of a "
        "mapped step, or over the list that a plain @task returns."
    )


def _check_mapped_operators(value: ResolveMixin) -> None:
    """Refuse an output that a mapped operator does not declare: Airflow takes it for a key of XCom, and finds nothing there."""
    maker = value.operator if isinstance(value, PlainXComArg) else None
    if isinstance(maker, MappedOperator) and isinstance(value, PlainXComArg) and value.key != RETURNED:
        outputs = maker.partial_kwargs.get("outputs")
        if isinstance(outputs, Mapping) and value.key not in outputs:
            raise ConfigError(f"step {maker.task_id!r} has no output {value.key!r}.{did_you_mean(value.key, outputs)}")


def _refuse_pairs(signature: StepSignature, parameter: StepParameter, value: Mapping[Any, Any]) -> None:
    """Refuse artifacts in a dictionary that is mapped over: Airflow gives each instance a pair of key and value."""
    if parameter.role == "plain":
        _refuse_hidden(signature, parameter, value)
        return
    raise ConfigError(
        f"step {signature.step!r}: .expand({parameter.name}={{...}}) over a dictionary gives each instance a pair of key and "
        f"value, and {parameter.name!r} wants {parameter.wanted}. Map over a list: [*{{...}}.values()]."
    )


def _check_reference(signature: StepSignature, parameter: StepParameter, value: StepReference) -> None:
    _refuse_whole(signature, parameter, value)
    source = value.source()
    if value.output is not None and source.type is None and parameter.role != "plain":
        kind = getattr(value.signature.outputs[value.output].annotation, "__name__", "value")
        raise ConfigError(
            f"step {signature.step!r}, parameter {parameter.name!r} wants {parameter.wanted}, but {source.text} is a plain value "
            f"({kind}). Declare {parameter.name}: {kind}, or pass an output that is an artifact."
        )
    if value.operator.get_closest_mapped_task_group() is not None:
        # One for steps of the same mapped task group, many for all others: told apart when it runs.
        source = replace(source, many=parameter.many)
    check_source(signature.step, parameter, source)


def _refuse_whole(signature: StepSignature, parameter: StepParameter, value: StepReference) -> None:
    """Refuse all outputs of a step at once where a plain value is wanted; for an input, the check of its type says more."""
    if value.output is None and parameter.role == "plain":
        outputs = ", ".join(f"{name} ({kind})" for name, kind in value.source().siblings.items())
        raise ConfigError(
            f"step {signature.step!r}, parameter {parameter.name!r} is a plain value, but {value!r} makes artifacts: {outputs}. "
            f"Declare {parameter.name}: Input[...], and pass one of them."
        )


def _refuse_hidden(signature: StepSignature, parameter: StepParameter, value: object) -> None:
    """Refuse artifacts in the lists and dictionaries of a plain parameter."""
    if isinstance(value, Mapping):
        inner = list(value.values())
    elif isinstance(value, list | tuple):
        inner = list(value)
    else:
        inner = []
    for each in inner:
        if isinstance(each, StepReference):
            check_value(signature, parameter, each)
