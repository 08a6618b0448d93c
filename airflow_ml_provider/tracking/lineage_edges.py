"""
Which runs have read what other runs have made: datasets by what MLflow keeps of their source, models by their ids.

A step's tags name what it has read too, also a model that it may not edit, and so cannot log as an input. A step whose result was
found by its cache stands on the run that made it: that is an edge too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from airflow_ml_provider.exceptions import RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.tracking.cache_index import CACHED_FROM
from airflow_ml_provider.tracking.lineage_tags import READ
from airflow_ml_provider.tracking.runs import Run, age, run_id_of, tags_of

AT_ONCE = 4
"""Requests at a time; MLflow's search names no models that were read, so each reader has to be asked for."""
_ID = re.compile(r"(?<![0-9a-f])(?:m-)?[0-9a-f]{32}(?![0-9a-f])")


class SomeRuns(Protocol):
    """Runs that go or stay together."""

    runs: list[Run]


class Edges:
    """
    The edges from runs to the runs whose datasets or models they have read.

    :param api: The server.
    :param runs: All runs that are not deleted.
    :param makers: Run per LoggedModel, of the models that matter.
    """

    def __init__(self, api: MlflowApi, runs: Iterable[Run], makers: Mapping[str, str]) -> None:
        self.api = api
        self.known = {run_id_of(each): each for each in runs}
        self.makers = {model: run for model, run in makers.items() if run in self.known}
        starts = [age(self.known[run])[0] for run in self.makers.values()]
        self._first_model_ms = min(starts, default=None)

    def keep(self, trees: Sequence[SomeRuns], stay: dict[str, str]) -> None:
        """
        Let what is read by a tree that stays stay too, and what that has read, and so on.

        :param trees: All trees of runs.
        :param stay: Reason per top run of what stays; those that are read are added with the reason ``read``.
        """
        top_of = {run_id_of(each): run_id_of(tree.runs[0]) for tree in trees for each in tree.runs}
        members = {run_id_of(tree.runs[0]): tree.runs for tree in trees}
        new = list(stay)
        while new:
            readers = [run for top in new for run in members[top]]
            read = {top_of[each] for each in self.read_by(readers) if each in top_of}
            new = [top for top in sorted(read) if top not in stay]
            stay |= dict.fromkeys(new, "read")

    def read_by(self, readers: Sequence[Run]) -> set[str]:
        """
        Say what runs have read.

        :param readers: Runs as a search answers them.
        :return: Ids of the runs that made it.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        """
        found: set[str] = set()
        for each in readers:
            tags = tags_of(each)
            found |= {tags.get(CACHED_FROM, "")} & self.known.keys()
            found |= self._makers_in([key for key in tags if key.startswith(READ)])
            found |= self._makers_in(each.get("inputs", {}).get("dataset_inputs", []))
        first = self._first_model_ms
        late = [run_id_of(each) for each in readers if first is not None and _end_ms(each) >= first]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for models in pool.map(self._models_of, late):
                found |= {self.makers[each] for each in models if each in self.makers}
        return found

    def _makers_in(self, said: Sequence[Any]) -> set[str]:
        """Find the ids of runs and models in what is on record of datasets and tags, whoever wrote it in whatever form."""
        ids = set(_ID.findall(json.dumps(said)))
        return (ids & self.known.keys()) | {self.makers[each] for each in ids if each in self.makers}

    def _models_of(self, run_id: str) -> set[str]:
        try:
            run = self.api.get("runs/get", run_id=run_id)["run"]
        except RemoteNotFoundError:
            return set()
        return {str(each["model_id"]) for each in run.get("inputs", {}).get("model_inputs", [])}


def _end_ms(run: Run) -> int:
    """When a run may have read its last; one that has not ended may still."""
    return int(run["info"].get("end_time") or 1 << 62)
