"""How few searches tell of many models: filters for MLflow's registry, written so that nothing in a name can leave its quotes."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from airflow_ml_provider.models.watch import Tags

ROWS = 1000
"""Rows of one page, the most that MLflow gives of registered models."""
FILTER_BYTES = 4000
"""Bytes of the names in one filter, as they are sent: a URL stays below the 8 kB that proxies take."""
_ESCAPED = 3
"""Bytes of one byte in a URL that has to be escaped."""


def model_filters(names: Collection[str], pages: int) -> list[str]:
    """
    Say what to ask for the aliases of models.

    :param names: Their names, checked.
    :param pages: Pages that the whole registry takes, as far as it is known; 1 otherwise.
    :return: Filters that name them, if those are no more than the pages; else one that is empty and lists all models.
    """
    parts = list(_parts(names))
    return [_named(part) for part in parts] if len(parts) <= max(1, pages) else [""]


def version_filter(names: Collection[str], tags: Tags) -> str:
    """
    Say what to ask for the versions of models.

    :param names: Names of the models, checked; more than fit are left out, so that all models are asked for.
    :param tags: Tags of the versions, checked.
    :return: The filter, which may be empty.
    """
    parts = list(_parts(names))
    terms = [_named(parts[0])] if len(parts) == 1 else []
    return " AND ".join([*terms, *(f"tags.`{key}` = {_quoted(value)}" for key, value in tags)])


def run_filter(tags: Tags) -> str:
    """
    Say what to ask for a run.

    :param tags: Its tags, checked.
    :return: The filter.
    """
    return " AND ".join(f"tags.`{key}` = {_quoted(value)}" for key, value in tags)


def _named(names: Collection[str]) -> str:
    listed = sorted(names)
    return f"name = {_quoted(listed[0])}" if len(listed) == 1 else f"name IN ({', '.join(map(_quoted, listed))})"


def _quoted(text: str) -> str:
    """Put into the quotes that it does not hold itself; what holds both was refused before."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def _parts(names: Collection[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for name in sorted(names):
        cost = _ESCAPED * len(name.encode()) + 12
        if part and size + cost > FILTER_BYTES:
            yield part
            part, size = [], 0
        part.append(name)
        size += cost
    if part:
        yield part
