"""May this value go to this parameter? Asked when the DAG is parsed and again when the step runs, with the same words."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.artifact import ARTIFACT_TYPES, Artifact
from airflow_ml_provider.models.reference import ArtifactRef, StepOutputs

SHOWN = 200
_PASSWORD = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://[^/@]*:[^/@]+@")
_URI = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:/|^/")


@dataclass(frozen=True)
class Source:
    """
    Where a value for a parameter comes from, as far as it is known.

    :param text: How an author would write it, ``features["table"]``.
    :param type: Name of its artifact type; None when it is not a single output.
    :param many: It is that output of every instance of a mapped step.
    :param siblings: Artifact type per output of the same step, for "did you mean".
    :param step: Name of the step that makes it.
    """

    text: str
    type: str | None = None
    many: bool = False
    siblings: Mapping[str, str] = field(default_factory=dict)
    step: str = ""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """
    Suggest the nearest known name.

    :param name: What was written.
    :param known: What there is.
    :return: ``" Did you mean 'x'?"``, or the list of what there is, or that there is none.
    """
    import difflib  # 2 ms at parse time, for a message that few DAG files ever need

    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" There are: {', '.join(names)}." if names else " There are none."


def check_choice(task_id: str, name: str, value: str, choices: Collection[str]) -> None:
    """
    Refuse a word that is none of those that there are.

    :param task_id: For the message.
    :param name: The argument.
    :param value: What was given.
    :param choices: What there is.
    :raises ConfigError: it is none of them; a retry never helps.
    """
    if value not in choices:
        raise ConfigError(
            f"task {task_id!r}: {name}={value!r} is none of {', '.join(choices)}.{did_you_mean(str(value), choices)}"
        )


def check_given(task_id: str, name: str, value: Any) -> None:
    """
    Refuse a text that is empty; one that is not there yet (a reference to XCom) is left to the run.

    :param task_id: For the message.
    :param name: The argument.
    :param value: What was given.
    :raises ConfigError: it is empty, or None; a retry never helps.
    """
    if value is None or (isinstance(value, str) and value.strip() in {"", "None"}):
        raise ConfigError(f"task {task_id!r}: {name}={value!r} is none. Give one.")


def check_names(signature: StepSignature, given: Iterable[str]) -> None:
    """
    Refuse arguments that the step does not take.

    :param signature: The step.
    :param given: Names of the arguments of the call.
    :raises ConfigError: a name is unknown, or is an output, which is injected; a retry never helps.
    """
    for name in given:
        parameter = signature.parameters.get(name)
        where = f"step {signature.step!r}"
        if parameter is None:
            takes = signature.inputs.keys() | signature.plain.keys()
            raise ConfigError(f"{where} has no parameter {name!r}.{did_you_mean(name, takes)}")
        if parameter.role == "output":
            raise ConfigError(
                f"{where}: {name!r} is {parameter.wanted}; outputs are injected, never passed. "
                f"Leave it out of the call and take it as {signature.step}(...)[{name!r}]."
            )


def check_missing(signature: StepSignature, given: Iterable[str]) -> None:
    """
    Refuse a call that leaves out what the step needs.

    :param signature: The step.
    :param given: Names of the arguments of the call.
    :raises ConfigError: a parameter without a default is missing; a retry never helps.
    """
    missing = [each for each in signature.parameters.values() if each.required and each.name not in set(given)]
    if missing:
        names = ", ".join(f"{each.name!r} ({each.wanted})" for each in missing)
        raise ConfigError(f"step {signature.step!r}: missing {names}. Pass it by name, or give it a default.")


def check_output(signature: StepSignature, name: str) -> StepParameter:
    """
    Refuse a reference to an output that the step does not make.

    :param signature: The step.
    :param name: What was asked for, ``step(...)[name]``.
    :return: The output's parameter.
    :raises ConfigError: there is no such output; a retry never helps.
    """
    parameter = signature.outputs.get(name)
    if parameter is None:
        raise ConfigError(f"step {signature.step!r} has no output {name!r}.{did_you_mean(name, signature.outputs)}")
    return parameter


def check_source(step: str, parameter: StepParameter, source: Source) -> None:
    """
    Refuse an artifact where another type, a list, or a plain value is wanted.

    :param step: The step that is called.
    :param parameter: The parameter that gets it.
    :param source: Where it comes from.
    :raises ConfigError: the types differ; names step, parameter, both types and the fix; a retry never helps.
    """
    where = f"step {step!r}, parameter {parameter.name!r}"
    if parameter.role == "plain":
        if source.type is not None:
            raise ConfigError(
                f"{where} is a plain value, but {source.text} is a {source.type}. Declare {parameter.name}: Input[{source.type}]."
            )
        return
    if source.type is None:
        raise ConfigError(f"{where} wants {parameter.wanted}, but {source.text} is not one output.{_which(parameter, source)}")
    if source.many != parameter.many:
        raise ConfigError(f"{where} wants {parameter.wanted}, but {_count(parameter, source)}")
    if not fits(parameter.artifact, source.type):
        raise ConfigError(f"{where} wants {parameter.wanted}, but {source.text} is a {source.type}.{_which(parameter, source)}")


def fits(wanted: type[Artifact] | None, given: str) -> bool:
    """
    Say whether an artifact of one type may stand for another.

    :param wanted: Declared type.
    :param given: Name of the type that is there.
    :return: True for the same type, and for any artifact where ``Artifact`` is wanted.
    """
    kind = ARTIFACT_TYPES.get(given)
    return wanted is not None and kind is not None and issubclass(kind, wanted)


def check_text(step: str, parameter: StepParameter, text: str) -> None:
    """
    Refuse a text that cannot be the place of an artifact.

    :param step: The step that is called.
    :param parameter: An artifact input.
    :param text: A URI or an absolute path; a template is looked at when it is rendered.
    :raises ConfigError: it is neither; a retry never helps.
    """
    if _PASSWORD.match(text):
        raise ConfigError(
            f"step {step!r}, parameter {parameter.name!r}: the URI holds a password, and what a step reads is on record. "
            "Name an Airflow connection instead: s3://conn_id@bucket/key."
        )
    if "{{" in text or "{%" in text or _URI.match(text):
        return
    raise ConfigError(
        f"step {step!r}, parameter {parameter.name!r} wants {parameter.wanted}, but {text!r} is not the place of one. "
        "Pass an output of a step, a URI (models:/name@alias, runs:/<id>/path, s3://bucket/key), or an absolute path."
    )


def refs_of(step: str, parameter: StepParameter, value: object) -> list[ArtifactRef]:
    """
    Read the references that came for an artifact input when the step runs.

    :param step: The step.
    :param parameter: An artifact input; one that takes a list takes any sequence.
    :param value: What XCom, a template or the DAG file gave.
    :return: One reference, or one for each element of the list.
    :raises ConfigError: it is no reference, of another type, or nothing came; a retry never helps.
    """
    if not parameter.many:
        return [_ref_of(step, parameter, value)]
    if isinstance(value, str | Mapping) or not isinstance(value, Iterable):
        _refuse_value(step, parameter, value)
    single = replace(parameter, many=False)
    return [_ref_of(step, single, each) for each in value]


def _ref_of(step: str, parameter: StepParameter, value: object) -> ArtifactRef:
    wanted = parameter.artifact or Artifact
    if isinstance(value, str):
        check_text(step, parameter, value)
        return ArtifactRef(type=wanted.type_name, name=parameter.name, uri=value)
    if ArtifactRef.looks_like(value):
        ref = ArtifactRef.from_json(value)  # type: ignore[arg-type]  # a mapping, says looks_like
        check_source(step, parameter, Source(text=f"what came, {ref.uri},", type=ref.type))
        return ref
    if StepOutputs.looks_like(value):
        outputs = StepOutputs.from_json(value).outputs  # type: ignore[arg-type]  # a mapping, says looks_like
        siblings = {name: entry.type for name, entry in outputs.items()}
        check_source(step, parameter, Source(text="what came", siblings=siblings, step="step"))
    return _refuse_value(step, parameter, value)


def _refuse_value(step: str, parameter: StepParameter, value: object) -> NoReturn:
    where = f"step {step!r}, parameter {parameter.name!r} wants {parameter.wanted}"
    if value is None:
        raise ConfigError(
            f"{where}, but nothing came: the step before was skipped, or pushed nothing. Let this one be skipped too."
        )
    shown = textwrap.shorten(repr(value), SHOWN)
    raise ConfigError(f"{where}, but {shown} came. Pass an output of a step, or a URI.")


def _which(parameter: StepParameter, source: Source) -> str:
    """Name the outputs of the same step that would fit."""
    fitting = [name for name, kind in source.siblings.items() if fits(parameter.artifact, kind)]
    if fitting:
        return " Did you mean " + " or ".join(f"{source.step}[{name!r}]" for name in fitting) + "?"
    if source.siblings:
        return f" Its outputs are: {', '.join(f'{name} ({kind})' for name, kind in source.siblings.items())}."
    return " Pass an output of a step, or a URI."


def _count(parameter: StepParameter, source: Source) -> str:
    kind = parameter.artifact.type_name if parameter.artifact else ""
    if source.many:
        return (
            f"{source.text} is one {source.type} for each instance of a mapped step. Declare Input[list[{kind}]] "
            f"to take them all, or map this step as well: .expand({parameter.name}={source.text})."
        )
    return f"{source.text} is one {source.type}. Declare Input[{kind}], or pass a list: [{source.text}]."
