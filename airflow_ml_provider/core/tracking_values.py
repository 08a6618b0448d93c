"""What an MLflow server is told by a task: names, ids, paths and filters that are checked before a request is made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from airflow_ml_provider.exceptions import ConfigError

View = Literal["active", "deleted", "all"]
"""Which of what MLflow has: what is deleted stays until ``mlflow gc``."""
EXPERIMENT_NAME_LENGTH = 256
"""Characters of an experiment's name that fit into every database; SQLite and MLflow itself would take 500."""
PATH_LENGTH = 1000
"""Characters of an artifact's path; stores of objects take 1,024 bytes with what stands before it."""
_SHOWN = 80
_RUN_ID = re.compile(r"^[A-Za-z0-9][\w-]{0,255}\Z", re.ASCII)
_VERSION = re.compile(r"^[1-9]\d{0,9}\Z", re.ASCII)
_NAMED = re.compile(r"^models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))?$")


def shown(value: object) -> str:
    """
    Write a value for a message: quoted, and cut where it is long.

    :param value: Anything.
    :return: At most some 100 characters.
    """
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


def check_run_id(value: object) -> str:
    """
    Refuse what cannot be the id of a run.

    :param value: What was given.
    :return: The id.
    :raises ConfigError: it is none; a retry never helps.
    """
    if not isinstance(value, str) or not _RUN_ID.match(value):
        raise ConfigError(f"{shown(value)} cannot be the id of an MLflow run: letters, digits, _ and -, at most 256.")
    return value


def check_experiment_name(value: object) -> str:
    """
    Refuse what MLflow does not take as the name of an experiment; slashes and any letters are fine.

    :param value: What was given.
    :return: The name.
    :raises ConfigError: it is empty, too long, or has signs that cannot be printed; a retry never helps.
    """
    if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > EXPERIMENT_NAME_LENGTH:
        raise ConfigError(
            f"{shown(value)} cannot be the name of an MLflow experiment: 1 to {EXPERIMENT_NAME_LENGTH} characters, all printable."
        )
    return value


def check_version(value: object) -> str:
    """
    Refuse what cannot be the number of a model version.

    :param value: What was given; a number is taken too.
    :return: The number, as MLflow writes it.
    :raises ConfigError: it is none; a retry never helps.
    """
    if isinstance(value, bool) or not _VERSION.match(str(value)):
        raise ConfigError(
            f"{shown(value)} cannot be a model version, which is a whole number from 1. An alias is written @alias."
        )
    return str(value)


def check_artifact_path(value: object) -> str:
    """
    Refuse a path that would leave the folder of a run's artifacts.

    :param value: Path below the folder, with slashes.
    :return: The path, without a slash at its end.
    :raises ConfigError: it is empty, absolute, too long, or climbs, also when it is written with percent signs; a retry
        never helps.
    """
    text = str(value)
    plain = text
    while unquote(plain) != plain:
        plain = unquote(plain)
    parts = PurePosixPath(plain).parts
    climbs = ".." in parts or plain.startswith(("/", "~")) or "\\" in plain or re.match(r"^[A-Za-z]:", plain)
    if not parts or climbs or not plain.isprintable() or len(text) > PATH_LENGTH:
        raise ConfigError(
            f"{shown(value)} cannot be the path of an artifact: relative, with slashes, without '..', printable, and at most "
            f"{PATH_LENGTH} characters."
        )
    return text.rstrip("/")


def check_uri(value: object) -> str:
    """
    Refuse a URI that holds a password, or a path that climbs; MLflow would show either to everybody.

    :param value: The URI of an artifact, of a model or of a dataset.
    :return: The URI.
    :raises ConfigError: it is empty, holds a password, or climbs; the message does not repeat it. A retry never helps.
    """
    text = str(value).strip() if value is not None else ""
    try:
        parts = urlsplit(text)
        secret, _ = parts.password, parts.port  # a password with a slash in it stands where a port would
    except ValueError:
        raise ConfigError("a URI of an artifact is malformed; it is not shown here, since it may hold a password.") from None
    if secret is not None:
        raise ConfigError(
            f"a URI of scheme {parts.scheme!r} holds a password, and MLflow would show it to everybody. Name an Airflow "
            "connection in its place (s3://my_conn@bucket/key), or leave the login to the store."
        )
    plain = unquote(unquote(text))
    if not text or not plain.isprintable() or ".." in re.split(r"[/\\]", plain):
        raise ConfigError(f"{shown(text)} cannot be the URI of an artifact: not empty, printable, and without '..' in it.")
    return text


def model_in(uri: object) -> tuple[str, str, str]:
    """
    Read which registered model, version or alias is meant.

    :param uri: ``models:/<name>``, ``models:/<name>/<version>`` or ``models:/<name>@<alias>``; a bare name is taken too.
    :return: Name, version and alias; the last two empty where they are not said.
    :raises ConfigError: it is none of these; a retry never helps.
    """
    text = str(uri)
    found = _NAMED.match(text if text.startswith("models:/") else f"models:/{text}")
    if not found or text.startswith("models:/m-"):
        raise ConfigError(
            f"{shown(uri)} names no registered model: write models:/<name>, models:/<name>/<version> or models:/<name>@<alias>."
        )
    return found["name"], found["version"] or "", found["alias"] or ""


def quoted(value: object) -> str:
    """
    Write a value for MLflow's search language, which has no escapes.

    :param value: Any text.
    :return: The text within quotes.
    :raises ConfigError: it has both kinds of quotes; a retry never helps.
    """
    text = str(value)
    mark = next((each for each in "'\"" if each not in text), None)
    if mark is None or "\x00" in text:
        raise ConfigError(
            f"{shown(value)} cannot be searched for: it has both kinds of quotes, or a zero byte, and MLflow knows no escape."
        )
    return f"{mark}{text}{mark}"


def tags_filter(filter_string: str, tags: Mapping[str, Any] | None) -> str:
    """
    Add tags to a filter, as MLflow's search language writes them.

    :param filter_string: In that language; may be empty.
    :param tags: Value per key; what they hold never becomes a part of the language.
    :return: The filter.
    :raises ConfigError: a key or a value cannot be quoted; a retry never helps.
    """
    clauses = [filter_string.strip()] if filter_string.strip() else []
    for key, value in (tags or {}).items():
        if not key or "`" in key or not key.isprintable():
            raise ConfigError(f"{shown(key)} cannot be the key of a tag that is searched for: not empty, and no backquote in it.")
        clauses.append(f"tags.`{key}` = {quoted(value)}")
    return " and ".join(clauses)
