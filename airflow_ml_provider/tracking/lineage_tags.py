"""
What a step's run says of its lineage in tags, so that MLflow finds it by key, and upstream of it is not written.

``airflow.made.try-1/table`` says what a try has made; ``airflow.read.<key>`` that it has read something with that key: of a run,
of a LoggedModel, with a digest, at a URI. The key is part of the tag's own name, since the tags' primary key begins with it: "who
has read this" is a look-up, while a search for a tag's value goes through all runs. Why: docs/adr/0013.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from airflow_ml_provider.models.reference import ArtifactRef, model_id_of
from airflow_ml_provider.models.run import OutputFile, mlflow_name

MARK = "airflow.lineage"
"""Tag of a run whose tags name all that it has read and made; its value is the version of this form."""
VERSION = "1"
MADE, READ = "airflow.made.", "airflow.read."
TRAINED = "airflow.trained"
"""Tag of a run that has made a model: names of those outputs."""
TRAINED_ON, LEAST = "trained_on.", ".min"
"""Metrics of such a run, which MLflow can compare: ``trained_on.rows`` is the largest number of rows among what it has read,
``trained_on.rows.min`` the smallest where that is another."""
NUMBER_NAME = re.compile(r"[A-Za-z_][\w.-]{0,200}", re.ASCII)
DIGEST_KEY_LENGTH = 12
"""Characters of a sha256 that a look-up needs; as many as ``airflow-ml lineage`` shows."""
NUMBERS_KEPT, NAME_LENGTH, NAMES_LENGTH, TRIES_KEPT, VALUE_LENGTH = 50, 200, 1000, 300, 5000
OTHERS = "*"
"""Stands for names that were left out."""
RUN_ID = re.compile(r"[0-9a-f]{32}")
_TRY = re.compile(r"try-([0-9]{1,9})/(.*)", re.DOTALL)


class Made(NamedTuple):
    """
    An output on record.

    :param try_number: Try that made it.
    :param name: Name of the output.
    :param facts: ``type``, ``uri``, ``sha256``, ``size``, ``run_id`` where another run has made it (a cache hit), and
        ``numbers``: what its metadata has of these.
    """

    try_number: int
    name: str
    facts: dict[str, Any]

    @property
    def numbers(self) -> dict[str, float]:
        """What its metadata has of numbers."""
        found = self.facts.get("numbers")
        return numbers_in(found) if isinstance(found, dict) else {}


def key_of_run(run_id: str) -> str:
    """
    Name the tag of those that have read what a run has made.

    :param run_id: The run.
    :return: Key of the tag.
    """
    return READ + run_id


def key_of_model(model_id: str) -> str:
    """
    Name the tag of those that have read a LoggedModel.

    :param model_id: Its id.
    :return: Key of the tag.
    """
    return READ + model_id


def key_of_digest(digest: str) -> str:
    """
    Name the tag of those that have read bytes of a digest.

    :param digest: sha256, or its first 12 characters or more.
    :return: Key of the tag.
    """
    return f"{READ}sha256-{digest[:DIGEST_KEY_LENGTH]}"


def key_of_uri(uri: str) -> str:
    """
    Name the tag of those that have read from a place outside of MLflow.

    :param uri: The place; slashes at its end do not count.
    :return: Key of the tag.
    """
    return f"{READ}uri-{hashlib.sha256(uri.rstrip('/').encode()).hexdigest()[:DIGEST_KEY_LENGTH]}"


def keys_of(ref: ArtifactRef) -> list[str]:
    """
    Name all tags by which the reader of an artifact is found.

    :param ref: What is read.
    :return: Keys of tags.
    """
    if model_id := model_id_of(ref.uri):
        return [key_of_model(model_id)]
    keys = [key_of_run(ref.run_id)] if ref.run_id else []
    keys += [key_of_digest(ref.sha256)] if ref.sha256 else []
    return keys if ref.uri.startswith("runs:/") and ref.run_id else [*keys, key_of_uri(ref.uri)]


def lineage_tags(
    inputs: Iterable[ArtifactRef], outputs: Iterable[OutputFile], try_number: int, earlier: Mapping[str, str], run_id: str
) -> dict[str, str]:
    """
    Write the tags of a try.

    :param inputs: What it has read.
    :param outputs: What it has made; what was not stored is left out.
    :param try_number: Its number.
    :param earlier: The run's tags so far: what other tries have read stays.
    :param run_id: Its run.
    :return: Value per tag.
    """
    tags = {MARK: VERSION} | read_tags(inputs, try_number, earlier)
    for each in outputs:
        if each.stored is not None:
            tags[f"{MADE}try-{try_number}/{mlflow_name(each.name)[:NAME_LENGTH]}"] = _facts(each, each.stored, run_id)
            if each.model_id and each.stored.run_id == run_id:
                tags[TRAINED] = ",".join([*filter(None, [tags.get(TRAINED)]), each.name])[:VALUE_LENGTH]
    return tags


def read_tags(inputs: Iterable[ArtifactRef], try_number: int, earlier: Mapping[str, str], *, add: bool = False) -> dict[str, str]:
    """
    Write the tags that say what a try has read.

    :param inputs: What it has read.
    :param try_number: Its number.
    :param earlier: The run's tags so far: what other tries have read stays.
    :param add: Whether what this try has read so far stays too; else these inputs are all of it.
    :return: Value per tag.
    """
    names: dict[str, list[str]] = {}
    for ref in inputs:
        for key in keys_of(ref):
            names.setdefault(key, []).append(name_in_tag(ref.name))
    tags = {}
    for key, read in names.items():
        said = tries_in(earlier.get(key, ""))
        known = said.get(try_number, "").split(",") if add else []
        said[try_number] = _short(dict.fromkeys(filter(None, [*known, *read])))
        tags[key] = _tries(said)
    return tags


def name_in_tag(name: str) -> str:
    """
    Write the name of an input as it stands among others in the value of a tag.

    :param name: The name.
    :return: The same without spaces and commas; one that is too long is cut.
    """
    return re.sub(r"[\s,]", "_", name)[:NAME_LENGTH]


def tries_in(value: str) -> dict[int, str]:
    """
    Read which tries of a run have read something.

    :param value: Of a tag that says so.
    :return: Name of the input per try, names that are several with commas between, :data:`OTHERS` where they are too many.
    """
    found = (_TRY.fullmatch(each) for each in value.split(" "))
    return {int(each[1]): each[2] for each in found if each}


def models_read(tags: Mapping[str, str]) -> dict[str, dict[int, str]]:
    """
    Read which LoggedModels a run has read.

    :param tags: Its tags.
    :return: Name of the input per try, per model id.
    """
    start = READ + "m-"
    return {key.removeprefix(READ): tries_in(value) for key, value in tags.items() if key.startswith(start)}


def made_by(tags: Mapping[str, str]) -> list[Made]:
    """
    Read what a run has made.

    :param tags: Its tags.
    :return: Its outputs, of all tries; what cannot be read is left out.
    """
    found = []
    for key, value in tags.items():
        made = _TRY.fullmatch(key.removeprefix(MADE)) if key.startswith(MADE) else None
        facts = as_object(value) if made else {}
        if made and isinstance(facts.get("uri"), str):
            found.append(Made(int(made[1]), str(facts.get("name") or made[2]), facts))
    return sorted(found, key=lambda each: (each.try_number, each.name))


def as_object(text: str) -> dict[str, Any]:
    """
    Read a JSON object that others may have written.

    :param text: Any text.
    :return: What it says; empty for anything else.
    """
    found = as_json(text)
    return {key: value for key, value in found.items() if value not in (None, "")} if isinstance(found, dict) else {}


def as_json(text: str) -> Any:
    """
    Read JSON that others may have written.

    :param text: Any text.
    :return: What it says; None for what is none, and for letters that no terminal, page or address can be given.
    """
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()  # half of a surrogate pair is JSON, and no UTF-8
    except (ValueError, RecursionError):
        return None
    return found


def numbers_in(metadata: Mapping[str, Any]) -> dict[str, float]:
    """
    Pick what can be compared from an artifact's metadata.

    :param metadata: Any JSON object.
    :return: Its finite numbers that a float can be, at most 50 of them.
    """
    found = {str(key): value for key, value in metadata.items() if _is_finite(value)}
    return dict(list(found.items())[:NUMBERS_KEPT])


def trained_on_metrics(known: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """
    Sum up the numbers of what a model was trained on.

    :param known: Numbers in the metadata of each.
    :return: Value per metric.
    """
    values: dict[str, list[float]] = {}
    for numbers in known:
        for name, value in numbers.items():
            if NUMBER_NAME.fullmatch(name):
                values.setdefault(name, []).append(float(value))
    found = {TRAINED_ON + name: max(some) for name, some in values.items()}
    return found | {TRAINED_ON + name + LEAST: min(some) for name, some in values.items() if min(some) != max(some)}


def _is_finite(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # JSON knows larger whole numbers than a float
        return False


def _facts(output: OutputFile, stored: ArtifactRef, run_id: str) -> str:
    facts = {
        "name": output.name,
        "type": stored.type,
        "uri": stored.uri,
        "sha256": stored.sha256,
        "size": stored.size,
        "run_id": stored.run_id if stored.run_id != run_id else None,
    }
    known = {key: value for key, value in facts.items() if value is not None}
    # The numbers of Metrics are the run's own.
    numbers = numbers_in(output.metadata) if stored.type != "Metrics" else {}
    text = json.dumps(known | ({"numbers": numbers} if numbers else {}))
    return text if len(text) <= VALUE_LENGTH else json.dumps(known)


def _short(names: Iterable[str]) -> str:
    text = ",".join(names)
    return text if len(text) <= NAMES_LENGTH else f"{text[:NAMES_LENGTH].rpartition(',')[0]},{OTHERS}"


def _tries(said: Mapping[int, str]) -> str:
    """Write what tries have read; of very many tries no names, and the newest alone."""
    text = " ".join(f"try-{number}/{names}" for number, names in sorted(said.items()))
    return text if len(text) <= VALUE_LENGTH else " ".join(f"try-{number}/{OTHERS}" for number in sorted(said)[-TRIES_KEPT:])
