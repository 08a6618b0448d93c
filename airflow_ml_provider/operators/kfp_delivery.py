"""What a pipeline run gave back, handed on as typed references and put on record."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from airflow_ml_provider.core.kfp_outputs import type_of
from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.core.wiring import fits
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.jobs.kfp_connected import run_reference
from airflow_ml_provider.models.artifact import Artifact, MetricPoint, Metrics
from airflow_ml_provider.models.kfp_results import KfpOutput, KfpResults
from airflow_ml_provider.models.reference import METADATA_SUFFIX, MLFLOW_RUN_ID, ArtifactRef, StepOutputs, element_name
from airflow_ml_provider.models.run import OutputFile
from airflow_ml_provider.operators.declared import LISTS
from airflow_ml_provider.operators.kfp_record import TAG
from airflow_ml_provider.operators.kfp_results import KFPS_OWN_STORE, WITHOUT_ROOT, Results

if TYPE_CHECKING:
    from airflow_ml_provider.operators.session import StepSession

MOST_NOTES = 20
"""How many sentences of the search an error repeats; the log has all."""
MOST_RESULTS, MOST_CHARACTERS = 100, 5_000
"""How many undeclared outputs an XCom tells of, and how much of the value or the metadata of one."""
TURN_ON = {
    "number": "Numbers come by KFP's MLflow plugin (server 2.17 or later, switched on by its administrator, writing to the "
    "MLflow of this task's connection), by a server with the artifact API, or from a component made by as_kfp_component",
    "parameter": "Parameters come by a server with the artifact API, or from a component made by as_kfp_component",
    "file": "Files come from the run's pipeline root, which workers must be able to read (options.results_root)",
}
"""What to turn on, by what is missing."""
NOT_MADE = (
    "The run has made none: its task was left out by a condition, or has written no file and logged no number for it. Nothing "
    "has to be turned on for this; see the task's log."
)
"""What to say where a source has told all that there is."""
NOT_JSON = {str(json.dumps(each)): each for each in (math.inf, -math.inf, math.nan)}
"""Numbers that JSON does not have, by the texts that stand for them in a manifest and in KFP's metadata."""
MOST_ELEMENTS = 1000
"""How many artifacts of a loop are handed on, each a reference in one XCom."""


class _MissingError(ConfigError):
    """An output was not found in any source."""


def answer_of(looking: Results, wanted: StepSignature, url: str) -> dict[str, Any]:
    """
    Look for a run's outputs, and write what its task returns.

    :param looking: Where they are looked for.
    :param wanted: What the task declares.
    :param url: Page of the run.
    :return: Keys of the run and of its outputs, to be completed by :func:`finished`.
    :raises ConfigError: as :func:`deliver`.
    :raises RemoteUnavailableError: as :func:`deliver`, or a source did not answer that may have what was not found.
    """
    results = looking.collect()
    try:
        told = deliver(results, wanted, looking.session, f"run {looking.run.run_id}")
    except _MissingError:
        if looking.unavailable is not None:  # it may be there
            raise looking.unavailable from None
        raise
    return run_reference(looking.run, url) | told


def deliver(results: KfpResults, wanted: StepSignature, session: StepSession | None, where: str) -> dict[str, Any]:
    """
    Turn what was found into what the task returns, and put it on record.

    :param results: What was found.
    :param wanted: What the task declares; with none, everything that was found is told by name, and nothing is refused.
    :param session: The task's record; None where there is none.
    :param where: The run, for messages.
    :return: Keys to add to the XCom; those of artifacts on record come when the record is closed (:func:`finished`).
    :raises ConfigError: a declared output was not found, or is another one; says what to turn on. A retry never helps.
    :raises RemoteUnavailableError: a store or MLflow did not answer; a retry is safe.
    """
    if not wanted.outputs:
        told = _undeclared(results)
        return {"results": told} if told else {}
    numbers = {name: _number(results, name, each) for name, each in wanted.outputs.items() if each.artifact is None}
    missing = [name for name, value in numbers.items() if value is None]
    missing += [name for name, each in wanted.outputs.items() if each.artifact and not _is_there(results, name, each)]
    values, refs = dict[str, Any](), dict[str, ArtifactRef]()
    for name, each in wanted.outputs.items() if not missing else ():
        if each.artifact is None:
            values[name] = _as(each, numbers[name], where)
            continue
        found = _all_of(results, name, each)
        if not found:
            values[name] = []
        made = {key: _artifact(one, key, each, session, place) for place, (key, one) in enumerate(_by_key(name, each, found))}
        missing += [name] if None in made.values() else []
        refs |= {key: ref for key, ref in made.items() if isinstance(ref, ArtifactRef)}
    if missing:
        what, notes = [_missing(name, wanted.outputs[name], results) for name in missing], results.notes[:MOST_NOTES]
        raise _MissingError(f"{where} has ended well, but {' '.join(what)} What was found where: {' '.join(notes)}")
    told = StepOutputs.of("", refs).model_copy(update={"values": values or None}).to_json()
    return {key: told[key] for key in ("outputs", "values") if key in told}


def finished(answer: Mapping[str, Any], session: StepSession | None) -> dict[str, Any]:
    """
    Complete an XCom with what is known when the record is closed.

    :param answer: What the task returns.
    :param session: The task's record, closed; None where there is none.
    :return: The XCom: the keys of the pipeline run, and those of its outputs.
    """
    told: dict[str, Any] = dict(answer) | {MLFLOW_RUN_ID: session.record.run.run_id if session else ""}
    if "outputs" in answer and session is not None:
        stored = session.outputs()
        told |= {key: stored[key] for key in ("outputs", "metadata") if key in stored}
    return told if session is not None or "outputs" in answer else dict(answer)


def push_by_name(ti: Any, answer: Mapping[str, Any], names: Iterable[str]) -> None:
    """
    Push each output by its name too, where the task is mapped: Airflow takes ``task.output["model"]`` for such a key.

    :param ti: Airflow's task instance.
    :param answer: The XCom.
    :param names: The outputs.
    """
    if ti.map_index is not None and ti.map_index >= 0:
        made = StepOutputs.from_json(answer)
        for name in names:
            ti.xcom_push(key=name, value=made.pick(name))


def _all_of(results: KfpResults, name: str, each: StepParameter) -> list[KfpOutput]:
    """Find an artifact, or all that a loop has made of it; what is not clear is the caller's to hear of."""
    if not each.many:
        found = _found(results, name)
        return [found] if found else []
    some = results.find_all(name) if results.named(name) else []
    if len(some) > MOST_ELEMENTS:
        raise ConfigError(
            f"outputs[{name!r}]: the loop has made {len(some)}, and a task hands on {MOST_ELEMENTS} at most, each a reference of "
            "its own. Collect them in a component of the pipeline (dsl.Collected), and take what that makes."
        )
    return some


def _by_key(name: str, each: StepParameter, found: Sequence[KfpOutput]) -> list[tuple[str, KfpOutput]]:
    """Name what was found as it stands in the XCom and on record."""
    return [(element_name(name, place) if each.many else name, one) for place, one in enumerate(found)]


def _artifact(
    found: KfpOutput, name: str, each: StepParameter, session: StepSession | None, place: int
) -> ArtifactRef | bool | None:
    """Make the reference of one output; True where it comes when the record is closed, None for what is not there."""
    kind = each.artifact or Artifact
    if not fits(kind, type_of(found.type)):
        raise ConfigError(f"outputs[{name!r}]={kind.type_name}, but {found.label} is a {found.type}.")
    if kind is Metrics or (found.type == "Metrics" and not found.uri and not found.path):
        return _metrics(found, name, session, place)
    if found.path:
        return _local(found, name, kind, session)
    return _file(found, name, kind, session) if found.uri else None


def _metrics(found: KfpOutput, name: str, session: StepSession | None, place: int) -> bool | None:
    """
    Keep numbers as a file of our own, since KFP has none.

    In MLflow's charts they are the plugin's, where it wrote them; else those of a loop are points of one curve.
    """
    from airflow_ml_provider.tracking.record import write_metrics
    from airflow_ml_provider.tracking.runs import now_ms

    given = {key: NOT_JSON.get(value, value) if isinstance(value, str) else value for key, value in found.metadata.items()}
    numbers = {key: float(each) for key, each in given.items() if isinstance(each, int | float) and not isinstance(each, bool)}
    if not numbers:
        return None
    if session is None:
        raise ConfigError(
            f"outputs[{name!r}]=Metrics is kept in MLflow, and there is no connection 'mlflow_default'. Add it, or take single "
            "numbers: outputs={'auc': float}."
        )
    artifact = session.write(name, Metrics)
    artifact.metadata |= numbers
    artifact.path += ".json"
    write_metrics(Path(artifact.path), numbers)
    if f"{TAG}.mlflow_run_id" not in session.record.tags:
        for key, value in numbers.items():
            session.metrics.add(MetricPoint(key=key, value=value, timestamp_ms=now_ms(), step=place))
    return True


def _local(found: KfpOutput, name: str, kind: type[Artifact], session: StepSession | None) -> ArtifactRef | bool:
    """Store a file of this machine as a step's own; without a record it is referred to where it lies."""
    if session is None:
        return ArtifactRef(type=kind.type_name, name=name, uri=found.path + ("/" if Path(found.path).is_dir() else ""))
    artifact = session.write(name, kind)
    artifact.path = found.path
    artifact.metadata |= found.metadata
    return True


def _file(found: KfpOutput, name: str, kind: type[Artifact], session: StepSession | None) -> ArtifactRef | bool | None:
    """Refer to a file in an object store, with its digest where it is not too large."""
    from airflow_ml_provider.tracking.kfp_files import seen_at

    if found.uri.startswith(KFPS_OWN_STORE):
        raise ConfigError(f"output {found.label}: {WITHOUT_ROOT.format(root=found.uri)}")
    patience_s = session.settings.patience_s if session else 0.0
    seen = patiently(f"read {found.label}", partial(seen_at, found), patience_s)
    if not seen.uri:
        return None
    ref = ArtifactRef(type=kind.type_name, name=name, uri=seen.uri, sha256=seen.sha256 or None, size=seen.size)
    if session is None:
        return ref
    ref = ref.model_copy(update={"run_id": session.record.run.run_id})
    session.record.outputs.append(patiently(f"record {found.label}", partial(_recorded, session, ref, found), patience_s))
    return True


def _recorded(session: StepSession, ref: ArtifactRef, found: KfpOutput) -> OutputFile:
    """Put an output that lies elsewhere on record: its metadata, and for a model a LoggedModel."""
    from tempfile import TemporaryDirectory

    from airflow_ml_provider.tracking.places import Written
    from airflow_ml_provider.tracking.record import MODEL_TYPES
    from airflow_ml_provider.tracking.registry import ModelRegistry

    record, recorder, model_id = session.record, session.recorder, ""
    if found.metadata:
        path = f"try-{record.attempt.try_number}/{ref.name}{METADATA_SUFFIX}"
        with TemporaryDirectory(prefix="airflow-ml-") as folder:
            local = Path(folder) / "metadata.json"
            local.write_text(json.dumps(found.metadata, indent=2, default=str))
            recorder.store.store(record.run.artifact_uri, path, local)
        ref = ref.model_copy(update={"metadata": f"runs:/{record.run.run_id}/{path}"})
    if ref.type in MODEL_TYPES:
        model_id = ModelRegistry(session.api).find_logged_model(record.run.run_id, ref.uri) or recorder.make_model(
            record, ref.name
        )
        file = "" if ref.uri.endswith("/") else found.file_name
        recorder.finish_model(model_id, Written(ref.sha256 or "", ref.size or 0), file, ref.uri.rstrip("/"), ref.metadata)
    return OutputFile(name=ref.name, type=ref.type, path="", target="", model_id=model_id or None, stored=ref)


def _found(results: KfpResults, name: str) -> KfpOutput | None:
    """Find an output; what is there several times is the caller's to hear of."""
    try:
        return results.find(name)
    except ConfigError:
        if any(name in {each.name, each.label} for each in results.outputs):
            raise
        return None


def _is_there(results: KfpResults, name: str, each: StepParameter) -> bool:
    """Ask whether an artifact can be had at all, before anything of the others is put on record."""
    found = _all_of(results, name, each)
    if not found:
        return each.many and name in results.empty
    return all(one.kind == "artifact" and bool(one.uri or one.path or one.metadata) for one in found)


def _number(results: KfpResults, name: str, wanted: StepParameter) -> Any:
    """Find a value: that of a parameter, else a number of that name among the metrics; a list of them where a loop made it."""
    if wanted.annotation is list or wanted.annotation in LISTS:
        return _numbers(results, name)
    found = _found(results, name)
    if found is not None and (found.kind == "parameter" or found.value is not None):
        return found.value
    named = [each for each in results.outputs if each.type == "Metrics" and name in each.metadata]
    values = {json.dumps(each.metadata[name], default=str): each.metadata[name] for each in named}
    if len(values) > 1:
        where = ", ".join(sorted({each.label for each in named}))
        raise ConfigError(f"outputs[{name!r}]: several outputs have a number of that name: {where}. Take one of them as Metrics.")
    return next(iter(values.values()), None)


def _numbers(results: KfpResults, name: str) -> Any:
    """Find a list: the value of a parameter that is one, or what a loop has made, in the order of its iterations."""
    if some := results.named(name):
        found = results.find_all(name)
        values = [each.value for each in found]
        return values[0] if len(some) == 1 and some[0].loop == () else None if None in values else values
    labels = {each.label for each in results.outputs if each.type == "Metrics" and name in each.metadata}
    if len(labels) == 1 and (found := results.find_all(labels.pop())):
        return [each.metadata.get(name) for each in found]
    return [] if name in results.empty else None


def _as(each: StepParameter, value: Any, where: str) -> Any:
    """Give a value the type that is declared: the server has one kind of number, and XCom none that JSON has not."""
    kind, plain = each.annotation, isinstance(value, int | float) and not isinstance(value, bool)
    if kind in LISTS and isinstance(value, list):
        one = replace(each, annotation=get_args(kind)[0])
        return [_as(one, element, where) for element in value]
    if not _is_json(value):
        raise ConfigError(
            f"outputs[{each.name!r}]: {where} gave {value!r:.100}, and JSON, in which a task hands on a value, has no infinity "
            "and no NaN. Take it as Metrics, which has, or let the component return something else for it."
        )
    if kind is float and plain:
        return float(value)
    if kind is int and plain and float(value).is_integer():
        return int(value)
    if kind not in {int, float, *LISTS} and isinstance(value, kind):
        return value
    raise ConfigError(f"outputs[{each.name!r}]={kind.__name__}, but {where} gave {value!r:.100}, a {type(value).__name__}.")


def _missing(name: str, each: StepParameter, results: KfpResults) -> str:
    """Say of a declared output that it is not there, and what to turn on."""
    kind = each.artifact.type_name if each.artifact else each.annotation.__name__
    kind = f"list[{kind}]" if each.many else kind
    said = f"output {name!r} ({kind}) was not found among {results.labels}."
    if results.complete and not results.named(name):
        return f"{said} {NOT_MADE}"
    number = each.artifact is Metrics or each.annotation in {float, int}
    how = TURN_ON["number" if number else "parameter" if each.artifact is None else "file"]
    more = f"; {TURN_ON['parameter'][0].lower()}{TURN_ON['parameter'][1:]}" if number and each.artifact is None else ""
    return f"{said} {how}{more}."


def _undeclared(results: KfpResults) -> dict[str, Any]:
    """Tell by name what was found; of a loop a list, in the order of the iterations as far as that is known."""
    told: dict[str, Any] = {}
    for each in sorted(results.outputs[:MOST_RESULTS], key=lambda each: each.loop or ()):
        if each.loop == () and each.label not in told:
            told[each.label] = _shown(each)
        else:
            before = told.setdefault(each.label, [])
            told[each.label] = [*(before if isinstance(before, list) else [before]), _shown(each)]
    return told


def _shown(found: KfpOutput) -> Any:
    """Tell an undeclared output in an XCom."""
    if found.kind == "parameter":
        return found.value if _is_small(found.value) else None
    told = {"type": found.type, "uri": found.uri, "path": found.path, "metadata": found.metadata, "size": found.size}
    return {key: value for key, value in told.items() if value not in ("", None, {}) and _is_small(value)}


def _is_small(value: Any) -> bool:
    return _is_json(value) and len(json.dumps(value, default=str)) <= MOST_CHARACTERS


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, default=str, allow_nan=False)
    except ValueError:
        return False
    return True
