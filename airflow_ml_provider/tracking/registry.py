"""
MLflow's model registry: versions, and the aliases that say which one serves.

MLflow moves an alias whatever it was before (it has no compare-and-set), so a move reads before and after. Every change
is made in an order that a retry completes: cut anywhere and called again, it ends in the same state.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from airflow_ml_provider.core.model_names import alias_in, check_aliases, check_name
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.hooks.mlflow_api import DeniedError
from airflow_ml_provider.models.reference import model_id_of
from airflow_ml_provider.tracking.artifacts import ELSEWHERE

log = logging.getLogger(__name__)

CHAMPION = "champion"
PREVIOUS_CHAMPION = "previous-champion"
ROLLBACK = "airflow.rollback"
"""Tag of a registered model while it is rolled back: ``<version that leaves>><version that returns>``, and keys of the tasks."""
ROLLED_BACK_BY = "airflow.rolled_back_by."
"""Start of the tags of a registered model that name, by their keys, the tasks that have rolled it back: when, and what."""
ROLLBACKS_KEPT = 20
"""How many of these tags a model has at most."""

LOGICAL_DATE = "airflow.logical_date"
"""Tag of a LoggedModel and of a version: logical date of the DAG run that trained it, in ISO form; not of a run without one."""

WHATEVER = "*"
"""For :meth:`ModelRegistry.promote`: the alias may stand anywhere before the move."""


class AliasMovedError(ConfigError):
    """Somebody else moved the alias meanwhile, and that stands. Look again at what serves now, and decide anew."""


@dataclass(frozen=True)
class RegisteredVersion:
    """
    One version of a registered model.

    :param name: Name of the registered model.
    :param version: Its number, as MLflow writes it.
    :param source: URI of what was registered, for a LoggedModel ``models:/<model id>``.
    :param run_id: MLflow run that made it; empty when unknown.
    :param tags: Tags of the version.
    """

    name: str
    version: str
    source: str
    run_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def uri(self) -> str:
        """The version's own URI, which no alias moves."""
        return f"models:/{self.name}/{self.version}"

    @property
    def model_id(self) -> str:
        """Id of its LoggedModel; empty when it was registered from somewhere else."""
        return model_id_of(self.source)

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> RegisteredVersion:
        """
        Read MLflow's JSON.

        :param answer: A ``model_version``.
        :return: The version.
        """
        return cls(
            name=answer["name"],
            version=str(answer["version"]),
            source=answer.get("source", ""),
            run_id=answer.get("run_id", ""),
            tags={tag["key"]: tag["value"] for tag in answer.get("tags", [])},
        )


@dataclass(frozen=True)
class Promotion:
    """
    How the aliases of a registered model stand after a move.

    :param name: Name of the registered model.
    :param version: The champion.
    :param previous: The champion before it, under its own alias; None when there was none.
    :param changed: Whether the alias was moved; False when it stood there already.
    """

    name: str
    version: str
    previous: str | None
    changed: bool


class ModelRegistry:
    """
    The registry of one MLflow server.

    :param api: The server.
    """

    def __init__(self, api: MlflowApi) -> None:
        self._api = api

    def find(self, name: str, alias: str) -> RegisteredVersion | None:
        """
        Look up which version an alias stands for.

        :param name: Name of the registered model.
        :param alias: Alias, without ``@``.
        :return: The version; None only when the server says that there is no such model or alias.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        check_name(name)
        try:
            return RegisteredVersion.of(self._api.get("registered-models/alias", name=name, alias=alias)["model_version"])
        except RemoteNotFoundError:
            return None

    def find_uri(self, uri: str) -> RegisteredVersion | None:
        """
        Look up the version that a URI with an alias names.

        :param uri: ``models:/<name>@<alias>``; anything else names no alias.
        :return: The version; None when the server says that there is no such model or alias, or for another URI.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        named = alias_in(uri)
        return self.find(*named) if named else None

    def trained_at(self, model: RegisteredVersion | str) -> datetime | None:
        """
        Say of which logical date a model is.

        :param model: A registered version, whose own tag counts first, or a URI.
        :return: Logical date of the DAG run that trained it; None when nobody recorded one.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        tags = dict(model.tags) if isinstance(model, RegisteredVersion) else {}
        model_id = model_id_of(model.source if isinstance(model, RegisteredVersion) else model)
        if LOGICAL_DATE not in tags and model_id:
            tags = self._tags_of(model_id)
        return as_date(tags.get(LOGICAL_DATE, ""))

    def models_read_by(self, run_id: str) -> set[str]:
        """
        Say which LoggedModels a run has read.

        :param run_id: Any MLflow run.
        :return: Their ids; none for a run that is not there.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        return self._models_of(run_id, "inputs", "model_inputs")

    def find_logged_model(self, run_id: str, uri: str) -> str:
        """
        Find the LoggedModel of a model whose bytes lie outside of MLflow.

        :param run_id: MLflow run that made it.
        :param uri: Where its bytes are.
        :return: Id of the LoggedModel; empty when that run has made none that lies there.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        made = sorted(self._models_of(run_id, "outputs", "model_outputs"))
        return next((each for each in made if self._tags_of(each).get(ELSEWHERE) == uri.rstrip("/")), "")

    def register(
        self, name: str, source: str, *, run_id: str = "", model_id: str = "", tags: Mapping[str, str] | None = None
    ) -> RegisteredVersion:
        """
        Register a model, once: what has a version of this name already keeps it.

        :param name: Name of the registered model; made when there is none.
        :param source: URI of the model, for a LoggedModel ``models:/<model id>``.
        :param run_id: MLflow run that made it.
        :param model_id: Id of its LoggedModel, which MLflow wants when ``source`` is one.
        :param tags: Tags of the version; set as well on a version that was there already.
        :return: The version. When two register the same model at once, both get the older version and the other one is
            deleted.
        :raises ConfigError: the name is not one that MLflow takes, or the source is refused; a retry never helps.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe and adopts what was made.
        """
        check_name(name)
        self._ensure(name)
        version = self._oldest(name, source) or self._create(name, source, run_id, model_id, tags or {})
        for key, value in (tags or {}).items():
            if version.tags.get(key) != value:
                body = {"name": name, "version": version.version, "key": key, "value": value}
                self._api.post("model-versions/set-tag", body)
        return replace(version, tags={**version.tags, **(tags or {})})

    def promote(
        self,
        name: str,
        version: str,
        *,
        alias: str = CHAMPION,
        previous_alias: str = PREVIOUS_CHAMPION,
        expected: str | None = WHATEVER,
    ) -> Promotion:
        """
        Move the alias to a version, and keep the one before it under its own alias.

        Promoting what is the champion already changes nothing, above all not the previous alias. Cut between its two
        moves and called again, it ends in the same state.

        :param name: Name of the registered model.
        :param version: Number of the version.
        :param alias: The alias to move.
        :param previous_alias: Alias of the version that it leaves.
        :param expected: Version under the alias by which the caller has decided, None when there was none; by default
            the alias may stand anywhere.
        :return: How the aliases stand, read after the move.
        :raises AliasMovedError: the alias stands elsewhere than expected, or somebody else moved it during the move.
        :raises ConfigError: an alias is not one that MLflow takes; a retry never helps.
        :raises RemoteNotFoundError: there is no such version; a retry never helps.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        check_name(name)
        check_aliases(alias, previous_alias)
        self._api.get("model-versions/get", name=name, version=version)  # else the previous alias would move for nothing
        aliases = self._state(name)[0]
        before = aliases.get(alias)
        if before == version:
            return Promotion(name, version, aliases.get(previous_alias), changed=False)
        if expected not in (WHATEVER, before):
            raise _moved(name, alias, found=before, wanted=expected)
        if before is not None:
            self._point(name, previous_alias, before)
        self._expect(name, alias, before)
        self._point(name, alias, version)
        self._expect(name, alias, version)
        log.info("%s@%s is version %s now; before: %s", name, alias, version, before or "none")
        return Promotion(name, version, before, changed=True)

    def rollback(self, name: str, *, alias: str = CHAMPION, previous_alias: str = PREVIOUS_CHAMPION, task: str = "") -> Promotion:
        """
        Swap the champion and the one before it; a second call swaps them back.

        A tag on the registered model says what is being done, so a call that was cut is completed by the next one and
        not undone.

        :param name: Name of the registered model.
        :param alias: Alias of the champion.
        :param previous_alias: Alias of the champion before it.
        :param task: Key of the task that does it, which gets a tag that says so; empty for a person.
        :return: How the aliases stand; ``previous`` is the version that was rolled back.
        :raises ConfigError: there is no champion, or none before it, or they are the same; a retry never helps.
        :raises RemoteNotFoundError: there is no such registered model; a retry never helps.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        check_name(name)
        check_aliases(alias, previous_alias)
        aliases, tags = self._state(name)
        begun, others = begun_in(tags)
        leaves, returns = _swap(name, aliases, alias, previous_alias, begun)
        swap = f"{leaves}>{returns}"
        tasks = list(dict.fromkeys([*(others if begun == swap else ()), *filter(None, [task])]))
        self._tag(name, ROLLBACK, " ".join([swap, *tasks]))  # keeps the names until each has a tag of its own
        self._point(name, alias, returns)
        self._point(name, previous_alias, leaves)
        self._expect(name, alias, returns)
        for key in self._remembered(name, swap, tasks, tags):
            self._api.delete("registered-models/delete-tag", {"name": name, "key": key})
        log.info("%s@%s is version %s again; rolled back: %s", name, alias, returns, leaves)
        return Promotion(name, returns, leaves, changed=True)

    def _remembered(self, name: str, swap: str, tasks: Sequence[str], tags: Mapping[str, str]) -> list[str]:
        """Note the tasks that have rolled back, and name the tags that are over: the mark, and those of the oldest."""
        mine = {ROLLED_BACK_BY + each: f"{datetime.now(UTC).isoformat()} {swap}" for each in tasks}
        for key, value in mine.items():
            self._tag(name, key, value)
        others = sorted((each for each in tags if each.startswith(ROLLED_BACK_BY) and each not in mine), key=tags.__getitem__)
        return [ROLLBACK, *others[: max(0, len(others) + len(mine) - ROLLBACKS_KEPT)]]

    def _ensure(self, name: str) -> None:
        """Make the registered model unless there is one."""
        try:
            self._state(name)
        except (RemoteNotFoundError, DeniedError):  # who may see nothing that is not theirs is not told what is missing
            try:
                self._api.post("registered-models/create", {"name": name}, repeatable=False)
            except ConfigError as refused:
                try:
                    self._state(name)  # somebody else was quicker
                except RemoteNotFoundError:
                    raise refused from None

    def _create(self, name: str, source: str, run_id: str, model_id: str, tags: Mapping[str, str]) -> RegisteredVersion:
        """Make a version, and settle with whoever did the same at the same time: the older one wins."""
        body: dict[str, Any] = {"name": name, "source": source}
        body |= {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        body |= {key: value for key, value in (("run_id", run_id), ("model_id", model_id)) if value}
        made = RegisteredVersion.of(self._api.post("model-versions/create", body, repeatable=False)["model_version"])
        oldest = self._oldest(name, source) or made
        if oldest.version != made.version:
            self._api.delete("model-versions/delete", {"name": name, "version": made.version})
        return oldest

    def _oldest(self, name: str, source: str) -> RegisteredVersion | None:
        """Find the version that was made of a source."""
        if "'" in source:
            raise ConfigError(f"model URI {source!r} has a quote in it, which MLflow's search cannot take. Rename it.")
        query = f"name='{name}' and source_path='{source}'"
        answer = self._api.get("model-versions/search", filter=query, max_results=1, order_by="version_number ASC")
        return next((RegisteredVersion.of(each) for each in answer.get("model_versions", [])), None)

    def _models_of(self, run_id: str, side: str, kind: str) -> set[str]:
        try:
            run = self._api.get("runs/get", run_id=run_id)["run"]
        except RemoteNotFoundError:
            return set()
        return {str(each["model_id"]) for each in run.get(side, {}).get(kind, [])}

    def _tags_of(self, model_id: str) -> dict[str, str]:
        """Read the tags of a LoggedModel; none for a deleted one: whether that matters is not asked here."""
        try:
            info = self._api.get(f"logged-models/{model_id}")["model"]["info"]
        except RemoteNotFoundError:
            return {}
        return {each["key"]: each["value"] for each in info.get("tags", [])}

    def _state(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        """Read the aliases and the tags of a registered model, both at once."""
        model = self._api.get("registered-models/get", name=name)["registered_model"]
        aliases = {each["alias"]: str(each["version"]) for each in model.get("aliases", [])}
        return aliases, {each["key"]: each.get("value", "") for each in model.get("tags", [])}

    def _point(self, name: str, alias: str, version: str) -> None:
        self._api.post("registered-models/alias", {"name": name, "alias": alias, "version": version})

    def _tag(self, name: str, key: str, value: str) -> None:
        self._api.post("registered-models/set-tag", {"name": name, "key": key, "value": value})

    def _expect(self, name: str, alias: str, version: str | None) -> None:
        """Look whether an alias stands where it should."""
        found = self._state(name)[0].get(alias)
        if found != version:
            raise _moved(name, alias, found=found, wanted=version)


def begun_in(tags: Mapping[str, str]) -> tuple[str, list[str]]:
    """
    Read what rollback was begun, and not ended.

    :param tags: Tags of a registered model.
    :return: What :data:`ROLLBACK` says of versions, empty for none, and of tasks.
    """
    begun, *tasks = tags.get(ROLLBACK, "").split() or [""]
    return begun, tasks


def as_date(text: str) -> datetime | None:
    """
    Read a logical date from a tag.

    :param text: ISO form; without a time zone it is UTC.
    :return: The date; None when it is none.
    """
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _moved(name: str, alias: str, *, found: str | None, wanted: str | None) -> AliasMovedError:
    return AliasMovedError(
        f"{name}@{alias} is version {found or 'none'} and not {wanted or 'none'}: somebody else moved it at "
        "the same time, and that stands. Move it from one task at a time: a pool of one slot, or max_active_runs=1."
    )


def _swap(name: str, aliases: Mapping[str, str], alias: str, previous_alias: str, begun: str) -> tuple[str, str]:
    """Decide which version leaves and which one returns; a swap that was begun and not ended decides it."""
    champion, previous = aliases.get(alias), aliases.get(previous_alias)
    leaves, _, returns = begun.partition(">")
    if champion == returns and previous in (leaves, returns):
        return leaves, returns
    if champion and previous and champion != previous:
        return champion, previous
    raise ConfigError(
        f"model {name!r} cannot be rolled back: {alias!r} is version {champion or 'none'}, and {previous_alias!r} is "
        f"version {previous or 'none'}. Point {alias!r} to the version that you want, on MLflow's page of the model."
    )
