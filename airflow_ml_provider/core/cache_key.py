"""
Keys of the cache, made of plain facts: equal for equal facts, in any process and on any platform, and for no others.

Nothing is read here but the versions of installed distributions. What a step's code is, ``core/code_digest.py`` says.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_ml_provider.core.canonical import canonical, digest_of
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.cache import Cache, CacheKey, CachePart, json_keeps, shorten
from airflow_ml_provider.models.reference import ArtifactRef

Redact = Callable[[Any, str], Any]
"""``redact(value, name)`` takes the secrets out of a value that people may see, as Airflow's does."""

AS_IT_IS: Redact = lambda value, _: value  # noqa: E731
_PLAIN_NAME = re.compile(r"[\w.\-\[\]/:]+", re.ASCII)

_LOGIN = re.compile(r"://\S*@")
DATE = re.compile(
    r"(?<![A-Za-z0-9])\d{4}-(?:0[1-9]|1[0-2])-(?:[0-2]\d|3[01])(?!\d)"
    r"|(?<![A-Za-z0-9])(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:[0-2]\d|3[01])(?!\d)"
)
"""A date that stands for itself; of a variable, nothing else is shown."""


@dataclass(frozen=True)
class InputFact:
    """
    What a step sees of one artifact that it reads.

    :param ref: Its reference; it must have a ``sha256``, or the key is refused.
    :param ending: Ending of the file name, with its point; empty for none.
    :param directory: Whether it is a directory.
    :param metadata: What its maker wrote into ``.metadata``; None when it has none (the same as an empty one).
    """

    ref: ArtifactRef
    ending: str = ""
    directory: bool = False
    metadata: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class KeyFacts:
    """
    All that a key can be made of; the policy says what of it is.

    :param inputs: Per input its artifact, a list of them, or None where none came.
    :param parameters: Value per parameter, as the step gets it.
    :param code: What ``code_digest.code_parts`` gave; empty when the code is not ours.
    :param outputs: Per declared output what describes it (type, ending of its file).
    :param image: Image with its digest, for a pod.
    :param command: Command and arguments of a pod.
    :param environment: Value per environment variable that the author set for a pod.
    :param pipeline: JSON of a KFP pipeline, or its digest.
    :param parts: What else there is, as parts already (:func:`value_part`), whatever the policy.
    """

    inputs: Mapping[str, InputFact | Sequence[InputFact] | None] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, CachePart] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    image: str | None = None
    command: Sequence[str] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    pipeline: Any = None
    parts: Mapping[str, CachePart] = field(default_factory=dict)


def make_key(policy: Cache, facts: KeyFacts, redact: Redact = AS_IT_IS) -> CacheKey:
    """
    Make the key of one try of a step.

    ``code=False`` leaves out the command and the pipeline too.

    :param policy: What is part of it.
    :param facts: What there is.
    :param redact: Takes the secrets out of what people may see.
    :return: The key.
    :raises ConfigError: an input without a digest, a value that cannot be written down, a package that is not installed;
        a retry never helps.
    """
    parts: dict[str, CachePart] = {}
    if policy.inputs:
        for name, fact in facts.inputs.items():
            parts |= {} if name in policy.ignore else _input_parts(name, fact, redact, metadata=policy.metadata)
    if policy.parameters:
        given = {name: value for name, value in facts.parameters.items() if name not in policy.ignore}
        parts |= {
            named("parameter", name): value_part(value, f"parameter {name!r}", redact, name) for name, value in given.items()
        }
    parts |= _what_runs(policy, facts, redact) | dict(facts.parts)
    for name, version in installed(policy.packages).items():
        parts[named("package", name)] = value_part(version, f"package {name!r}", redact)
    for name, value in policy.extras.items():
        parts[named("extra", name)] = value_part(value, f"extras[{name!r}]", redact, name)
    if policy.salt:
        parts["salt"] = value_part(policy.salt, "salt", redact, "salt")
    # Always there: a step with other outputs has another result.
    parts["outputs"] = _unseen(facts.outputs, "outputs")
    return CacheKey(parts=dict(sorted(parts.items(), key=lambda each: (_rank(each[0]), each[0]))))


def check_policy(policy: Cache, inputs: Iterable[str], parameters: Iterable[str], *, elsewhere: bool = False) -> None:
    """
    Refuse a policy that does not fit its step, when the DAG is parsed.

    :param policy: The policy.
    :param inputs: Names of the step's inputs.
    :param parameters: Names of its parameters.
    :param elsewhere: Whether it runs in an image of its own (a pod, KFP), where this interpreter's packages say nothing.
    :raises ConfigError: ``ignore`` has an unknown name, or ``packages`` is set for an image; a retry never helps.
    """
    known = {*inputs, *parameters}
    for name in policy.ignore:
        if name not in known:
            raise ConfigError(
                f"Cache(ignore=[{name!r}]): the step has no input or parameter of that name. There are: {sorted(known)}."
            )
    if elsewhere and policy.packages:
        raise ConfigError(
            f"Cache(packages={list(policy.packages)}): the step runs in an image, and the image decides what is installed. "
            "Leave packages out; the image's digest is part of the key."
        )


def installed(packages: Iterable[str]) -> dict[str, str]:
    """
    Look up versions of distributions in this interpreter.

    :param packages: Their names, however they are written (``scikit_learn``, ``Scikit-Learn``).
    :return: Version per normal name, ``scikit-learn``.
    :raises ConfigError: one is not installed; a retry never helps.
    """
    versions = {}
    for name in packages:
        try:
            versions[re.sub(r"[-_.]+", "-", name).lower()] = importlib.metadata.version(name)
        except (importlib.metadata.PackageNotFoundError, ValueError) as error:
            raise ConfigError(
                f"Cache(packages=[{name!r}]): no such distribution is installed in this interpreter. Write the name that pip "
                "knows ('scikit-learn', not 'sklearn'), or install it."
            ) from error
    return versions


def value_part(value: object, where: str, redact: Redact = AS_IT_IS, name: str = "") -> CachePart:
    """
    Make a part of a value.

    :param value: The value.
    :param where: What it is, for messages.
    :param redact: Takes the secrets out of what people may see.
    :param name: Its name, by which secrets are known.
    :return: The part; a text is shown as it is, anything else as Python writes it.
    :raises ConfigError: it cannot be written down; a retry never helps.
    """
    digest = digest_of(canonical(value, where))
    if not json_keeps(value):
        # What redaction does not look into is not shown.
        return CachePart(digest=digest, shown=shorten(f"{type(value).__qualname__} {digest[:8]}"))
    seen = without_logins(redact(value, name))
    return CachePart(digest=digest, shown=shorten(seen if isinstance(seen, str) else repr(seen)))


def without_logins(value: Any) -> Any:
    """
    Take users and passwords out of the addresses in a value that people may see.

    :param value: Plain JSON.
    :return: The same with ``://***@`` in their place.
    """
    if isinstance(value, str):
        return _LOGIN.sub("://***@", value)
    if isinstance(value, Mapping):
        return {key: without_logins(each) for key, each in value.items()}
    return [without_logins(each) for each in value] if isinstance(value, list) else value


def named(kind: str, name: str) -> str:
    """
    Name a part, so that no two things have one name.

    :param kind: As ``parameter``.
    :param name: Any text.
    :return: As ``parameter max_iter``; a name with blanks and the like stands in quotes.
    """
    return f"{kind} {name if _PLAIN_NAME.fullmatch(name) else json.dumps(name)}"


def _what_runs(policy: Cache, facts: KeyFacts, redact: Redact) -> dict[str, CachePart]:
    parts = dict(facts.code) if policy.code else {}
    if policy.code and facts.command is not None:
        parts["command"] = value_part(list(facts.command), "command", redact)
    if policy.code and facts.pipeline is not None:
        parts["pipeline"] = _unseen(facts.pipeline, "pipeline")
    if policy.image and facts.image is not None:
        parts["image"] = value_part(facts.image, "image", redact)
    for name, value in facts.environment.items():
        part = value_part(value, f"environment variable {name!r}")
        # Secrets stand there, under any name. Its dates stay, as they say why a key is new each time.
        dates = dict.fromkeys(DATE.findall(str(redact(value, name))))
        parts[named("environment", name)] = part.model_copy(update={"shown": shorten(" ".join([part.digest[:8], *dates]))})
    return parts


def _input_parts(
    name: str, fact: InputFact | Sequence[InputFact] | None, redact: Redact, *, metadata: bool
) -> dict[str, CachePart]:
    if fact is None:
        return {named("input", name): value_part(None, name)}
    many = [fact] if isinstance(fact, InputFact) else list(fact)
    for each in many:
        if each.ref.sha256 is None:
            raise ConfigError(
                f"input {name!r} has no digest on record ({redact(each.ref.uri, name)}): nobody can say whether it has changed. "
                f"Leave it out with Cache(ignore=[{name!r}]), and name its version in Cache(extras={{...}})."
            )
    facts = [[each.ref.sha256, each.ref.type, each.ending, each.directory] for each in many]
    digests = ", ".join(str(each.ref.sha256)[:8] for each in many)
    whole = canonical(["one" if isinstance(fact, InputFact) else "many", *facts], f"input {name!r}")
    parts = {named("input", name): CachePart(digest=digest_of(whole), shown=shorten(digests))}
    if metadata and any(each.metadata for each in many):
        told = [dict(each.metadata or {}) for each in many]
        shown = told[0] if isinstance(fact, InputFact) else told
        part, seen = value_part(told, f"the metadata of input {name!r}"), without_logins(redact(shown, name))
        parts[named("input", name) + " metadata"] = part.model_copy(update={"shown": shorten(repr(seen))})
    return parts


def _unseen(value: Any, what: str) -> CachePart:
    """Make a part of a value that is too long to be shown."""
    digest = digest_of(canonical(value, what))
    return CachePart(digest=digest, shown=digest[:8])


_RANKS = (
    *("input", "parameter", "code", "image", "command", "pipeline", "environment", "container", "volume"),
    *("package", "extra", "salt", "outputs"),
)


def _rank(name: str) -> int:
    return _RANKS.index(name.split(" ", 1)[0])
