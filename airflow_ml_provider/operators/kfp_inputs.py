"""Which artifacts a pipeline run was given: what its arguments tell, put on record as what a step reads."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.core.signature import StepParameter
from airflow_ml_provider.exceptions import ArtifactError, ConfigError
from airflow_ml_provider.models.artifact import Artifact
from airflow_ml_provider.models.reference import ArtifactRef, element_name

if TYPE_CHECKING:
    from airflow_ml_provider.operators.session import StepSession

log = logging.getLogger(__name__)

MLFLOWS_OWN = ("runs:/", "models:/")
"""Texts that can name nothing but an artifact; any other URI may be a place to write to, or an address."""


def as_given(parameters: Mapping[str, Any], arguments: object) -> dict[str, Any]:
    """
    Put references back where a parameter got the place alone, being a text.

    :param parameters: What a run was given.
    :param arguments: What the author gives, references among it; anything else is left out.
    :return: Value per parameter.
    """
    known = arguments if isinstance(arguments, Mapping) else {}
    refs = {name: each for name, each in known.items() if ArtifactRef.looks_like(each)}
    return {name: refs[name] if name in refs and refs[name]["uri"] == each else each for name, each in parameters.items()}


def note_inputs(session: StepSession, parameters: Mapping[str, Any], arguments: object = None) -> None:
    """
    Put on record what a run has read: references, also in lists and mappings, and the URIs of MLflow's own artifacts.

    What names nothing that there is, is left out: the run may have found its way without it. Safe to repeat.

    :param session: The task's record.
    :param parameters: What the run was given.
    :param arguments: As for :func:`as_given`.
    :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry is safe.
    """
    known = {each.name for each in session.record.inputs}
    given = as_given(parameters, arguments)
    for name, value in (found for each in given for found in _artifacts(each, given[each])):
        if name not in known:
            try:
                session.read_refs(StepParameter.input(name, Artifact, optional=True), value)
            except (ArtifactError, ConfigError) as error:
                log.warning("Argument %s is not on record as something that the run has read: %s", name, error)


def _artifacts(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Find what names an artifact, each with a name of its own: ``table``, ``parts[0]``, ``tables.train``."""
    if ArtifactRef.looks_like(value) or (isinstance(value, str) and value.startswith(MLFLOWS_OWN)):
        yield name, value
    elif isinstance(value, Mapping):
        for key, each in value.items():
            yield from _artifacts(f"{name}.{key}", each)
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from _artifacts(element_name(name, index), each)
