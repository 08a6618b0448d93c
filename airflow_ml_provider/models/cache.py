"""
What a step's cache is asked and what it keeps: the policy, the key and its parts, the entry of an index.

Values only, without I/O. ``core/cache_key.py`` makes keys of facts, ``tracking/cache_index.py`` finds and keeps entries.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from airflow_ml_provider.exceptions import ArtifactError, ConfigError
from airflow_ml_provider.models.reference import ArtifactRef

KEY_VERSION = 1
"""Version of how keys are made; it is part of each of them, so a release that makes them otherwise finds no old entry."""
SHOWN_LENGTH = 80
"""Characters of :attr:`CachePart.shown`."""
LATEST_MS = 253_370_764_800_000
"""The year 9999: what is later is no time that anybody has made something at, and cannot be written as one."""
LONGEST_INT = 10_000
"""Bits of an integer that Python writes and reads as decimal digits in any case."""

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Cache(BaseModel):
    """
    When a step's earlier result may stand for a new one.

    Policies compose: in ``a | b``, what ``b`` sets explicitly wins, ``packages`` and ``ignore`` are united and ``extras`` merged.

    :param inputs: The digests of the artifacts that the step reads are part of the key.
    :param parameters: Its parameters are.
    :param code: Its source and what that uses are; for a pod or a KFP run, its command or its pipeline.
    :param metadata: So is what the makers of its inputs wrote into ``.metadata``. False when that holds the time, or the like.
    :param image: Its image is, as it is named, by digest or by tag, for a step in a pod.
    :param packages: Names of distributions whose installed versions are part of the key, as ``["scikit-learn"]``.
    :param extras: JSON value per name, part of the key: what else the result depends on.
    :param salt: Any text, part of the key; another one forgets all earlier results.
    :param ignore: Names of inputs and parameters that are no part of the key.
    :param max_age: Older results are not used; None for any age.
    :param refresh: Run in any case, and let the result take the place of the earlier one.
    :param unreadable: What it means that the index cannot be read. ``miss``: the step runs. ``error``: the try fails, and a
        retry is safe.
    :param verify: ``digest`` reads every byte of the earlier outputs and compares. ``size`` looks at their sizes only, for
        outputs that are too large to be read; a change that keeps the size goes unnoticed.
    :raises ConfigError: a field is unknown or not of its form; a retry never helps.
    """

    # Built when first used, not when a DAG file is parsed.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    inputs: bool = True
    parameters: bool = True
    code: bool = True
    metadata: bool = True
    image: bool = True
    packages: tuple[str, ...] = ()
    extras: dict[str, Any] = Field(default_factory=dict)
    salt: str = ""
    ignore: tuple[str, ...] = ()
    max_age: timedelta | None = Field(default=None, gt=timedelta(0))
    refresh: bool = False
    unreadable: Literal["miss", "error"] = "miss"
    verify: Literal["digest", "size"] = "digest"

    def __init__(self, **data: Any) -> None:
        try:
            super().__init__(**data)
        except ValidationError as error:
            raise ConfigError(_refusal(type(self), error)) from error

    @field_validator("packages", "ignore", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ConfigError(f"Cache takes a list of names, not the text {value!r}. Write [{value!r}].")
        # A set is sorted, so that the policy is the same in every process.
        value = sorted(value) if isinstance(value, set | frozenset) else value
        return tuple(dict.fromkeys(value)) if isinstance(value, list | tuple) else value

    @field_validator("extras")
    @classmethod
    def _plain(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, each in value.items():
            if not json_keeps(each):
                raise ConfigError(
                    f"Cache: extras[{name!r}]={each!r} is not plain JSON. Use None, a number, a text, a list or a dictionary of "
                    "these with texts as keys."
                )
        return value

    @classmethod
    def read(cls, value: object) -> Cache | None:
        """
        Read the ``cache`` argument of a step.

        :param value: True, a policy, or False or None for no cache.
        :return: The policy; None for no cache.
        :raises ConfigError: it is anything else; a retry never helps.
        """
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if isinstance(value, cls):
            return value
        raise ConfigError(f"cache={value!r} is no policy. Use True, False or Cache(...) of airflow_ml_provider.")

    def __or__(self, other: object) -> Cache:
        if not isinstance(other, Cache):
            return NotImplemented
        chosen = {name: getattr(self, name) for name in self.model_fields_set}
        chosen |= {name: getattr(other, name) for name in other.model_fields_set}
        for name in ("packages", "ignore"):
            if name in chosen:
                chosen[name] = (*getattr(self, name), *getattr(other, name))
        if "extras" in chosen:
            chosen["extras"] = self.extras | other.extras
        return Cache(**chosen)


class CachePart(BaseModel):
    """
    One thing that a key is made of.

    :param digest: 64 hexadecimal digits over its value.
    :param shown: The value as people may see it, redacted and cut to 80 characters.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    digest: Digest
    shown: str = Field(max_length=SHOWN_LENGTH)


class CacheKey(BaseModel):
    """
    What a step's result depends on.

    :param parts: Part per name, as ``input features``, ``parameter max_iter``, ``code``, ``package scikit-learn``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    parts: dict[str, CachePart]

    @property
    def digest(self) -> str:
        """64 hexadecimal digits over names and digests of all parts, whatever their order; the key by which an entry is found."""
        return _sha256({"version": KEY_VERSION, "parts": {name: part.digest for name, part in self.parts.items()}})


def changes(now: CacheKey, before: CacheKey) -> list[str]:
    """
    Say in which parts two keys differ.

    :param now: The key that was looked for.
    :param before: An earlier one.
    :return: Words per part, in the order of the parts, those that are gone last: ``parameter max_iter: 300 -> 400``,
        ``package x: new``, ``image: gone``. Empty when the keys are the same.
    """
    said = []
    for name, part in now.parts.items():
        earlier = before.parts.get(name)
        if earlier is None:
            said.append(f"{name}: new")
        elif earlier.digest != part.digest:
            # Two texts may look alike once they are redacted or cut.
            alike = earlier.shown == part.shown
            was, is_now = (earlier.digest[:8], part.digest[:8]) if alike else (earlier.shown, part.shown)
            said.append(f"{name}: {was} -> {is_now}")
    return said + [f"{name}: gone" for name in before.parts if name not in now.parts]


class CacheEntry(BaseModel):
    """
    The result of one try of a step, kept under its key.

    :param version: Version of this form.
    :param key: :attr:`CacheKey.digest`.
    :param parts: What the key was made of.
    :param dag_id: DAG of the step.
    :param task_id: Task of the step.
    :param map_index: Index of the mapped task instance, -1 when it was not mapped.
    :param dag_run_id: DAG run that made the result.
    :param try_number: Try that made it.
    :param run_id: Nested MLflow run that made it.
    :param made_at_ms: End of the step, milliseconds since the epoch.
    :param outputs: Complete reference per output.
    :param model_ids: LoggedModel per output that is one.
    :param result: JSON value that the step returned; None when it returned none.
    :param extra: JSON object of the kind of step, for KFP its run id and values.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), defer_build=True)

    version: Literal[1] = 1
    key: Digest
    parts: dict[str, CachePart]
    dag_id: str
    task_id: str
    map_index: int = -1
    dag_run_id: str
    try_number: int
    run_id: str = Field(min_length=1)
    made_at_ms: int = Field(ge=0, lt=LATEST_MS)
    outputs: dict[str, ArtifactRef] = Field(default_factory=dict)
    model_ids: dict[str, str] = Field(default_factory=dict)
    result: Any = None
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _is_whole(self) -> CacheEntry:
        if self.key != self.cache_key.digest:
            raise ValueError(f"its parts do not give its key {self.key}")
        for name, value in {"result": self.result, "extra": self.extra}.items():
            if not json_keeps(value):
                raise ValueError(f"{name} is not a value that JSON keeps as it is")
        return self

    @property
    def cache_key(self) -> CacheKey:
        """The key with its parts, to be compared with another."""
        return CacheKey(parts=self.parts)

    def to_text(self) -> str:
        """
        Write the entry as the file of an index.

        :return: JSON with a ``sha256`` over all the rest.
        """
        plain = self.model_dump(mode="json")
        # As they are: pydantic would make None of NaN.
        plain |= {"result": self.result, "extra": self.extra}
        return json.dumps({**plain, "sha256": _sha256(plain)})

    @classmethod
    def from_text(cls, text: str | bytes) -> CacheEntry:
        """
        Read what :meth:`to_text` wrote.

        :param text: The file.
        :return: The entry.
        :raises ArtifactError: it is torn, altered, of another version, or no entry at all; a retry never helps, the step's next
            result takes its place.
        """
        try:
            plain = json.loads(text)
            whole = isinstance(plain, dict) and plain.pop("sha256", None) == _sha256(plain)
            entry = cls.model_validate(plain) if whole else None
            problem = "it is not what its sha256 says"
        except (ValueError, RecursionError) as error:  # so are errors of JSON, of Unicode and of pydantic
            entry, problem = None, error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        if entry is None:
            raise ArtifactError(
                f"an entry of the cache cannot be read: {problem}. It counts as no result; the step's next one takes its place."
            )
        return entry


def json_keeps(value: object) -> bool:
    """
    Say whether a value is the same after its way as JSON.

    :param value: Any value.
    :return: True for None, texts, numbers (NaN and infinities too), lists of these, and dictionaries with texts as keys.
    """
    try:
        return _keeps(value)
    except RecursionError:
        return False


def _keeps(value: object) -> bool:
    if type(value) is dict:
        return all(type(key) is str and _keeps(each) for key, each in value.items())
    if type(value) is list:
        return all(map(_keeps, value))
    if type(value) is int:
        return value.bit_length() < LONGEST_INT
    return value is None or type(value) in (bool, float, str)


def shorten(text: str) -> str:
    """
    Cut a text to what :attr:`CachePart.shown` takes.

    :param text: Any text, already redacted.
    :return: One line of at most 80 characters; the middle of a longer one is left out.
    """
    line = re.sub(r"\s+", " ", text.encode("utf-8", "backslashreplace").decode()).strip()
    half = (SHOWN_LENGTH - 3) // 2
    return line if len(line) <= SHOWN_LENGTH else f"{line[:half]}...{line[-half:]}"


def _sha256(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _refusal(policy: type[BaseModel], error: ValidationError) -> str:
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError):
        return str(cause)
    field = ".".join(map(str, first["loc"]))
    if first["type"] == "extra_forbidden":
        return f"Cache has no field {field!r}. There are: {', '.join(policy.model_fields)}."
    return f"Cache: {field}={first['input']!r}: {first['msg']}."
