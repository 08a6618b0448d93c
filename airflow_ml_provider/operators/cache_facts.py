"""The facts that go into a step's key: what came for its inputs and parameters, and where its own code lies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.core.cache_key import InputFact, KeyFacts
from airflow_ml_provider.core.signature import StepSignature
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.models.cache import Cache, CachePart
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.operators.cache_parse import RUN_PARAM
from airflow_ml_provider.tracking.artifacts import is_directory

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.operators.session import StepSession


def input_facts(session: StepSession, signature: StepSignature, policy: Cache) -> dict[str, InputFact | list[InputFact] | None]:
    """
    Say what a step reads, for its key; what has no digest on record is read to get one.

    :param session: The try; its inputs were taken by ``read_parameter`` or ``read_refs``.
    :param signature: What the step declares.
    :param policy: Says what is part of the key; what is not is not read either.
    :return: Fact per input, a list for ``Input[list[...]]``, None where none came.
    :raises ArtifactError: an input is gone or was changed; a retry does not help.
    :raises RemoteUnavailableError: a store did not answer within the patience; a retry is safe.
    """
    found: dict[str, InputFact | list[InputFact] | None] = {}
    for name, parameter in signature.inputs.items():
        if not policy.inputs or name in policy.ignore:
            continue
        facts = [_input_fact(session, index, policy) for index, _ in session.taken.get(name, [])]
        found[name] = facts if parameter.many else next(iter(facts), None)
    return found


def _input_fact(session: StepSession, index: int, policy: Cache) -> InputFact:
    ref = _taken(session, index)
    local = None
    if ref.sha256 is None:
        local = Path(session.fetch(ref, index))
        ref = _taken(session, index)
    directory = local.is_dir() if local is not None else bool(is_directory(ref))
    wants = policy.metadata and ref.type != "Metrics"  # whose metadata is its bytes
    return InputFact(
        ref=ref,
        ending="" if directory else PurePosixPath(ref.uri).suffix,
        directory=directory,
        metadata=_metadata(session, ref, index) if wants else None,
    )


def _metadata(session: StepSession, ref: ArtifactRef, index: int) -> dict[str, Any]:
    """Read what the step itself may never ask for: that must not cost it a try."""
    what = f"read the metadata of {ref.name}"
    return patiently(what, lambda: session.metadata_of(ref, index), session.settings.patience_s)


def _taken(session: StepSession, index: int) -> ArtifactRef:
    return next(ref for refs in session.taken.values() for place, ref in refs if place == index)


def step_facts(
    session: StepSession,
    signature: StepSignature,
    policy: Cache,
    parameters: Mapping[str, Any],
    code: Mapping[str, CachePart],
) -> KeyFacts:
    """
    Gather the facts that steps of all kinds with a signature have.

    :param session: The try; its inputs were taken.
    :param signature: What the step declares.
    :param policy: Its policy.
    :param parameters: Value per plain parameter.
    :param code: What ``code_parts`` gave; empty where the code is not ours.
    :return: The facts; ``dataclasses.replace`` adds image, command, environment and pipeline.
    :raises AirflowMLError: as :func:`input_facts`.
    """
    return KeyFacts(
        inputs=input_facts(session, signature, policy),
        parameters={name: _without_own(value) if name == "params" else value for name, value in parameters.items()},
        code=code,
        outputs={name: each.artifact.type_name if each.artifact else "value" for name, each in signature.outputs.items()},
    )


def dag_folder(context: Context | Mapping[str, Any]) -> Path:
    """
    Find the folder whose modules are the step's own code: that of the DAG bundle which holds the DAG file, else the file's.

    :param context: Airflow's context.
    :return: The folder.
    """
    ti: Any = context["ti"]
    file = Path(getattr(ti.task.dag, "fileloc", "") or ".").resolve()
    bundle = getattr(getattr(ti, "bundle_instance", None), "path", None)
    if bundle is not None and file.is_relative_to(top := Path(bundle).resolve()):
        return top
    return file.parent


def _without_own(value: Any) -> Any:
    """Leave out of the DAG run's params what says how caches behave: a refreshed result is found by the next run."""
    return {key: each for key, each in value.items() if key != RUN_PARAM} if isinstance(value, Mapping) else value
