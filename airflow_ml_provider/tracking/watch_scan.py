"""The registry as all who watch one server see it: a few searches for any number of models."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.core.watch import fits
from airflow_ml_provider.core.watch_search import ROWS, model_filters, version_filter
from airflow_ml_provider.exceptions import ConfigError, RemoteUnavailableError
from airflow_ml_provider.models.watch import SeenModel, SeenVersion, Tags
from airflow_ml_provider.tracking.watch import PAGES, read_version, search_versions

if TYPE_CHECKING:
    from airflow_ml_provider.hooks.mlflow import MlflowApi

ByNumber = dict[str, SeenVersion]


@dataclass(frozen=True)
class Wanted:
    """
    What is watched on one server.

    :param models: Names of the models whose aliases are.
    :param versions: Names of the models whose versions are, by the tags that these must have.
    """

    models: frozenset[str] = frozenset()
    versions: Mapping[Tags, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Snapshot:
    """
    What was seen at one poll.

    :param wanted: What was asked for; about anything else it says nothing.
    :param models: The models that are there, by name.
    :param versions: Versions with their tags, by tags, name of the model and number.
    """

    wanted: Wanted
    models: Mapping[str, SeenModel]
    versions: Mapping[Tags, Mapping[str, ByNumber]]

    def covers(self, model: str, tags: Tags | None = None) -> bool:
        """
        Say whether this poll has asked for something.

        :param model: Name of the registered model.
        :param tags: Tags of its versions; None for its aliases.
        :return: Whether it did.
        """
        return model in (self.wanted.models if tags is None else self.wanted.versions.get(tags, ()))


@dataclass
class _Shelf:
    """The versions that were found with one filter, and the page that is looked at again next."""

    filter_string: str
    found: dict[str, ByNumber] = field(default_factory=dict)
    token: str = ""

    def add(self, rows: Iterable[Mapping[str, Any]], names: Collection[str], tags: Tags) -> None:
        for row in rows:
            if row["name"] in names and fits(version := read_version(row), version.model, tags):
                self.found.setdefault(version.model, {})[version.version] = version


class RegistryScan:
    """
    Polls one server's registry; keeps what makes the next poll cheap.

    A move of an alias, or a new tag, changes no time in MLflow that could be searched by. So each poll lists the aliases of all
    models that are watched: 1,000 models a page, or fewer where their names fit into a search. Of versions each poll asks for
    the newest 1,000 and for one older page in turn: a tag that an old version gets late is seen some polls later.
    """

    def __init__(self) -> None:
        self._pages = 1
        self._by_list = True  # whether the server understands a list of names
        self._present: frozenset[str] = frozenset()
        self._shelves: dict[Tags, _Shelf] = {}

    def scan(self, api: MlflowApi, wanted: Wanted) -> Snapshot:
        """
        Poll once; whole, or not at all.

        :param api: The server.
        :param wanted: What is watched.
        :return: What was seen.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        :raises ConfigError: the request, the credentials or the address are wrong.
        """
        try:
            return self._scan(api, wanted)
        except ConfigError:
            if not self._by_list:
                raise
            self._by_list = False  # an older server takes no list of names in a search
        try:
            return self._scan(api, wanted)
        except ConfigError:
            self._by_list = True  # that was not it
            raise

    def _scan(self, api: MlflowApi, wanted: Wanted) -> Snapshot:
        models = self._models(api, wanted.models)
        self._shelves = {tags: shelf for tags, shelf in self._shelves.items() if tags in wanted.versions}
        versions = {tags: self._versions(api, names, tags) for tags, names in wanted.versions.items()}
        return Snapshot(wanted, models, versions)

    def _models(self, api: MlflowApi, names: frozenset[str]) -> dict[str, SeenModel]:
        if not names:
            return {}
        filters = model_filters(names, self._pages) if self._by_list or len(names) == 1 else [""]
        found, whole = self._listed(api, names, filters), filters == [""]
        if whole and self._pages > 1 and (gone := (self._present & names) - found.keys()):
            # A model that is deleted while the pages are read moves the others up, and one can slip through.
            found |= self._listed(api, gone, [each for name in gone for each in model_filters([name], 1)])
        self._present = frozenset(found)
        return found

    def _listed(self, api: MlflowApi, names: Collection[str], filters: list[str]) -> dict[str, SeenModel]:
        return {row["name"]: _model(row) for each in filters for row in self._rows(api, each) if row["name"] in names}

    def _rows(self, api: MlflowApi, filter_string: str) -> Iterator[Mapping[str, Any]]:
        token, pages = "", 0
        while token or not pages:
            given = {"filter": filter_string, "page_token": token}
            answer = api.get("registered-models/search", max_results=ROWS, **{key: each for key, each in given.items() if each})
            token, pages = _next(answer, token), pages + 1
            yield from answer.get("registered_models", [])
        if not filter_string:
            self._pages = pages

    def _versions(self, api: MlflowApi, names: frozenset[str], tags: Tags) -> Mapping[str, ByNumber]:
        filter_string, shelf = version_filter(names if self._by_list or len(names) == 1 else (), tags), self._shelves.get(tags)
        if shelf is None or shelf.filter_string != filter_string or not names <= shelf.found.keys():
            shelf = self._filled(api, filter_string, names, tags)
        else:
            answer = search_versions(api, filter_string)
            shelf.add(answer.get("model_versions", []), names, tags)
            if token := shelf.token or answer.get("next_page_token", ""):
                older = search_versions(api, filter_string, token)
                shelf.add(older.get("model_versions", []), names, tags)
                shelf.token = older.get("next_page_token", "")
        self._shelves[tags] = shelf
        return {name: dict(found) for name, found in shelf.found.items() if name in names}

    def _filled(self, api: MlflowApi, filter_string: str, names: frozenset[str], tags: Tags) -> _Shelf:
        """Read all pages: what is there before the watching is no news, however old."""
        shelf, token = _Shelf(filter_string, {name: {} for name in names}), ""
        for _ in range(PAGES):
            answer = search_versions(api, filter_string, token)
            shelf.add(answer.get("model_versions", []), names, tags)
            token = _next(answer, token)
            if not token:
                break
        return shelf


def _next(answer: Mapping[str, Any], token: str) -> str:
    found = str(answer.get("next_page_token", ""))
    if found and found == token:
        raise RemoteUnavailableError(f"MLflow's list goes round: its page {token!r} names itself as the next. A retry is safe.")
    return found


def _model(row: Mapping[str, Any]) -> SeenModel:
    return SeenModel(
        name=row["name"],
        created_ms=int(row.get("creation_timestamp", 0)),
        aliases={each["alias"]: str(each["version"]) for each in row.get("aliases", [])},
    )
