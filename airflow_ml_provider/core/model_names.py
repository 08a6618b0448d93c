"""Names and aliases of registered models: which ones MLflow takes, and which URI names an alias. Nothing is asked of a server."""

from __future__ import annotations

import re

from airflow_ml_provider.exceptions import ConfigError

NAME_LENGTH = 256
"""Characters of a registered model's name: MLflow's column has no more, which SQLite does not mind and PostgreSQL does."""
_SHOWN = 80
_ALIAS = re.compile(r"^(?!latest\Z)(?!v\d+\Z)[\w-]{1,255}\Z", re.ASCII | re.IGNORECASE)
_NAMED = re.compile(r"^models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)$")


def alias_in(uri: str) -> tuple[str, str] | None:
    """
    Read the alias that a URI names; an ``@`` elsewhere (``s3://conn@bucket/key``) is none.

    :param uri: Any URI or path.
    :return: Name of the registered model and alias, for ``models:/<name>@<alias>``; None for anything else.
    """
    found = _NAMED.match(uri)
    return (found["name"], found["alias"]) if found else None


def check_name(name: str) -> None:
    """
    Refuse a name that MLflow does not take, or that could not be quoted in its search or written with an alias.

    :param name: Name of a registered model.
    :raises ConfigError: it is empty, too long, or has a slash, a colon, an ``@``, a quote or a sign that cannot be printed; a
        retry never helps.
    """
    if not name.strip() or set(name) & set("/:@'\"`\\") or len(name) > NAME_LENGTH or not name.isprintable():
        raise ConfigError(
            f"{_short(name)} cannot be the name of a registered model: it must not be empty, and it must not hold "
            f"a slash, a colon, an @, a quote or a backslash; at most {NAME_LENGTH} characters, all printable."
        )


def check_aliases(*aliases: str) -> None:
    """
    Refuse aliases that MLflow does not take, or that are the same.

    :param aliases: Aliases of one registered model that are to mean different versions.
    :raises ConfigError: one is malformed or reserved, or there are two of a kind; a retry never helps.
    """
    for alias in aliases:
        if not _ALIAS.match(alias):
            raise ConfigError(
                f"{_short(alias)} cannot be an alias: at most 255 letters, digits, _ and -, and neither 'latest' nor 'v1'."
            )
    if len(set(aliases)) != len(aliases):
        raise ConfigError(f"the aliases {', '.join(aliases)} must differ: one is the champion, one the version before it.")


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}... ({len(shown)} characters)"
