"""
The requests that questions are made of: runs and models by id, many at once; readers by the key of their tag; versions.

Everything is looked up by a primary key, so an answer takes as long among 100,000 runs as among 1,000 (docs/adr/0013).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from airflow_ml_provider.exceptions import RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.hooks.mlflow_api import DeniedError
from airflow_ml_provider.lineage.values import model_tags, version_node, versions_in
from airflow_ml_provider.models.lineage import VersionNode
from airflow_ml_provider.models.reference import MODEL_ID
from airflow_ml_provider.tracking.artifacts import ELSEWHERE
from airflow_ml_provider.tracking.lineage_tags import MARK, RUN_ID
from airflow_ml_provider.tracking.runs import Run, RunTree, batches, run_id_of, tags_of

AT_ONCE = 8
IDS_PER_SEARCH = 100
PAGE = 1000
FEW_VERSIONS = 20
"""Up to so many versions are read one by one; more are searched by the runs that made them."""
Model = dict[str, Any]
"""A LoggedModel as MLflow's REST API answers it."""
T = TypeVar("T")
R = TypeVar("R")


class Reader:
    """
    Reads from one MLflow server what a question needs, each thing once.

    :param api: The server.
    :param page: Entries of one answer, at most 1,000; what is more is read page after page.
    """

    def __init__(self, api: MlflowApi, page: int = PAGE) -> None:
        self.api = api
        self.page = page
        self._runs: dict[str, Run | None] = {}
        self._models: dict[str, Model | None] = {}
        self._readers: dict[str, list[Run]] = {}
        self._near: set[str] = set()
        """Experiments of what was found so far, in which most of the rest is."""
        self._all: list[str] | None = None
        self._versions: dict[tuple[str, str], VersionNode | None] = {}
        self._denied: set[str] = set()

    def runs(self, run_ids: Iterable[str]) -> dict[str, Run]:
        """
        Read runs, also those in the bin.

        :param run_ids: Ids.
        :return: Run per id, with all that it has read and made; those that are gone for good are missing.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        """
        asked = list(dict.fromkeys(run_ids))
        new = [each for each in asked if each not in self._runs and RUN_ID.fullmatch(each)]
        if len(new) > 1 and not self._near:
            self._get_runs([new.pop()])
        if len(new) > 1:
            for some in batches(new, IDS_PER_SEARCH):
                for page in self._pages(sorted(self._near), f"attributes.run_id IN ({_quoted(some)})"):
                    self._note(page)
        # A search does not tell which models a run has read; our tags do, where the run has them.
        self._get_runs([each for each in new if (run := self._runs.get(each)) is None or MARK not in tags_of(run)])
        return {each: run for each in asked if (run := self._runs.get(each)) is not None}

    def readers(self, key: str) -> list[Run]:
        """
        Find the runs that have read something.

        :param key: Of the tag that says so.
        :return: The runs, the newest first; also those in the bin.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        """
        if key not in self._readers:
            self._readers[key] = [run for page in self.pages(f"tags.`{key}` != ''") for run in page]
        return self._readers[key]

    def seen(self, run_id: str) -> Run | None:
        """
        Look whether a run was read already.

        :param run_id: Its id.
        :return: The run; None for one that was not, or is gone.
        """
        return self._runs.get(run_id)

    def absence(self, key: str) -> str:
        """
        Say why a run or a model is not there.

        :param key: Its id.
        :return: The end of a sentence. MLflow does not tell who is no admin what is deleted from what is not theirs.
        """
        return "deleted in MLflow" + (", or not to be read by the user of this connection" if key in self._denied else "")

    def pages(self, words: str, size: int | None = None) -> Iterator[list[Run]]:
        """
        Search the runs of all experiments.

        :param words: In MLflow's search language; the caller quotes values.
        :param size: Runs of one page, at most 1,000; None takes the reader's own.
        :return: Page after page, each read when it is asked for; the newest run first.
        """
        for some in self._pages(self.experiments(), words, size):
            self._note(some)
            yield some

    def _pages(self, experiments: Sequence[str], words: str, size: int | None = None) -> Iterator[list[Run]]:
        body: dict[str, Any] = {"experiment_ids": list(experiments), "filter": words, "run_view_type": "ALL"}
        body["max_results"] = size or self.page
        while experiments:
            answer = self.api.post("runs/search", body)
            yield answer.get("runs", [])
            if not answer.get("next_page_token"):
                return
            body["page_token"] = answer["next_page_token"]

    def experiments(self) -> list[str]:
        """
        List all experiments, which are asked for once.

        :return: Their ids, those in the bin too.
        """
        if self._all is None:
            self._all, body = [], {"max_results": self.page, "view_type": "ALL"}
            while True:
                answer = self.api.post("experiments/search", body)
                self._all += [str(each["experiment_id"]) for each in answer.get("experiments", [])]
                if not answer.get("next_page_token"):
                    break
                body["page_token"] = answer["next_page_token"]
        return self._all

    def models(self, model_ids: Iterable[str]) -> dict[str, Model]:
        """
        Read LoggedModels.

        :param model_ids: Ids.
        :return: Model per id; those that were deleted are missing.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        """
        asked = list(dict.fromkeys(model_ids))
        new = [each for each in asked if each not in self._models and MODEL_ID.fullmatch(each)]
        if len(new) > 1 and self._near:
            for some in batches(new, IDS_PER_SEARCH):
                words = f"model_id IN ({_quoted(some)})"
                body = {"experiment_ids": sorted(self._near), "filter": words, "max_results": len(some)}
                for each in self.api.post("logged-models/search", body).get("models", []):
                    self._models[each["info"]["model_id"]] = each
        missing = [each for each in new if each not in self._models]
        for model_id, found in zip(missing, self._at_once(self._get_model, missing), strict=True):
            self._models[model_id] = found
            if found is not None:
                self._near.add(str(found["info"]["experiment_id"]))
        return {each: model for each in asked if (model := self._models.get(each)) is not None}

    def versions(self, models: Iterable[Model]) -> dict[str, list[VersionNode]]:
        """
        Say which versions were registered of models.

        :param models: LoggedModels.
        :return: Versions per model id; deleted ones are missing.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        """
        listed = {each["info"]["model_id"]: versions_in(each) for each in models}
        listed |= self._registered_from_elsewhere([each for each in models if not listed[each["info"]["model_id"]]])
        self._read_versions({each for some in listed.values() for each in some}, models)
        found = {key: [self._versions.get(each) for each in some] for key, some in listed.items()}
        return {key: [each for each in some if each is not None] for key, some in found.items()}

    def version(self, name: str, *, alias: str | None = None, number: str | None = None) -> VersionNode:
        """
        Read a version.

        :param name: Registered model.
        :param alias: Its alias, or None.
        :param number: Its number, where there is no alias.
        :return: The version.
        :raises RemoteNotFoundError: there is none; says where to look.
        """
        try:
            if alias:
                found = self.api.get("registered-models/alias", name=name, alias=alias)["model_version"]
            else:
                found = self.api.get("model-versions/get", name=name, version=number or "")["model_version"]
        except RemoteNotFoundError as error:
            raise RemoteNotFoundError(f"{error} What there is: {self.api.server.page('models', name)}") from error
        return version_node(found)

    def all_readers(self, keys: Sequence[str]) -> list[list[Run]]:
        """
        Find the runs that have read things, several at the same time.

        :param keys: Of the tags that say so.
        :return: The runs per key, in the order of the keys.
        """
        self.experiments()
        return self._at_once(self.readers, keys)

    def _at_once(self, work: Callable[[T], R], items: Sequence[T]) -> list[R]:
        if len(items) <= 1:
            return [work(each) for each in items]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(work, items))

    def _get_runs(self, run_ids: Sequence[str]) -> None:
        for run_id, run in zip(run_ids, self._at_once(self._get_run, run_ids), strict=True):
            self._runs[run_id] = run
            self._note([run] if run else [])

    def _get_run(self, run_id: str) -> Run | None:
        try:
            return RunTree(self.api).get(run_id)
        except RemoteNotFoundError:
            return None
        except DeniedError:
            self._denied.add(run_id)
            return None

    def _get_model(self, model_id: str) -> Model | None:
        try:
            found: Model = self.api.get(f"logged-models/{model_id}")["model"]
        except RemoteNotFoundError:
            return None
        except DeniedError:
            self._denied.add(model_id)
            return None
        return found

    def _note(self, runs: Iterable[Run]) -> None:
        for run in runs:
            self._runs[run_id_of(run)] = run
            self._near.add(str(run["info"]["experiment_id"]))

    def _registered_from_elsewhere(self, models: Iterable[Model]) -> dict[str, list[tuple[str, str]]]:
        """Find the versions of models whose bytes lie in an object store: MLflow notes on the model only those of its own."""
        outside: dict[str, list[Model]] = {}
        for each in models:
            if ELSEWHERE in model_tags(each):
                outside.setdefault(str(each["info"].get("source_run_id", "")), []).append(each)
        found: dict[str, list[tuple[str, str]]] = {}
        for some in batches([each for each in outside if RUN_ID.fullmatch(each)], IDS_PER_SEARCH):
            for version in self._all_versions(f"run_id IN ({_quoted(some)})"):
                for model in outside[version["run_id"]]:
                    if version.get("source", "").rstrip("/") == model_tags(model)[ELSEWHERE].rstrip("/"):
                        found.setdefault(model["info"]["model_id"], []).append((version["name"], str(version["version"])))
        return found

    def _read_versions(self, wanted: set[tuple[str, str]], models: Iterable[Model]) -> None:
        if len(wanted - self._versions.keys()) > FEW_VERSIONS:
            self._search_versions({str(each["info"].get("source_run_id", "")) for each in models})
        rest = sorted(wanted - self._versions.keys())
        self._versions |= zip(rest, self._at_once(self._get_version, rest), strict=True)

    def _search_versions(self, run_ids: Iterable[str]) -> None:
        """Read all versions of what runs have made; a search does not tell their aliases, the registered models do."""
        found: list[dict[str, Any]] = []
        for some in batches(sorted(each for each in run_ids if RUN_ID.fullmatch(each)), IDS_PER_SEARCH):
            found += self._all_versions(f"run_id IN ({_quoted(some)})")
        names = sorted({each["name"] for each in found})
        aliases = dict(zip(names, self._at_once(self._get_aliases, names), strict=True))
        for each in found:
            number = str(each["version"])
            self._versions[each["name"], number] = version_node(each, aliases[each["name"]].get(number, ()))

    def _get_version(self, wanted: tuple[str, str]) -> VersionNode | None:
        name, number = wanted
        try:
            return version_node(self.api.get("model-versions/get", name=name, version=number)["model_version"])
        except (RemoteNotFoundError, DeniedError):
            return None

    def _get_aliases(self, name: str) -> dict[str, list[str]]:
        aliases: dict[str, list[str]] = {}
        try:
            model = self.api.get("registered-models/get", name=name)["registered_model"]
        except (RemoteNotFoundError, DeniedError):
            return aliases
        for each in model.get("aliases", []):
            aliases.setdefault(str(each["version"]), []).append(each["alias"])
        return aliases

    def _all_versions(self, words: str) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            answer = self.api.get("model-versions/search", filter=words, max_results=self.page, **token)
            yield from answer.get("model_versions", [])
            if not answer.get("next_page_token"):
                return
            token = {"page_token": answer["next_page_token"]}


def _quoted(ids: Iterable[str]) -> str:
    return ",".join(f"'{each}'" for each in ids)
