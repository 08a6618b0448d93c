"""MLflow experiments by name: found, made, listed, deleted; each so that doing it twice is doing it once."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_ml_provider.core.tracking_values import check_experiment_name, check_uri, shown, tags_filter
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.tracking.runs import as_pairs

log = logging.getLogger(__name__)

VIEWS: dict[str, str] = {"active": "ACTIVE_ONLY", "deleted": "DELETED_ONLY", "all": "ALL"}
"""What MLflow calls a :data:`~airflow_ml_provider.core.tracking_values.View`."""
PAGE = 1000
"""What MLflow gives at most in one page of runs or experiments."""


class Experiments:
    """
    The experiments of one MLflow server.

    :param api: The server.
    """

    def __init__(self, api: MlflowApi) -> None:
        self.api = api

    def make(
        self, name: str, *, artifact_location: str | None = None, tags: Mapping[str, str] | None = None, restore: bool = True
    ) -> dict[str, Any]:
        """
        Find an experiment, or make it; its tags are set either way.

        :param name: Its name.
        :param artifact_location: Where its artifacts go; None leaves it to the server. It cannot be changed later.
        :param tags: Value per key.
        :param restore: Whether a deleted one is brought back; else it is refused.
        :return: The experiment, as plain JSON.
        :raises ConfigError: the name or place is wrong, it has another place, or is deleted; a retry never helps.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe and finds what was made.
        """
        check_experiment_name(name)
        place = check_uri(artifact_location) if artifact_location else ""
        found = self._found(name) or self._create(name, place, tags or {})
        if found["lifecycle_stage"] != "active":
            if not restore:
                raise ConfigError(f"MLflow experiment {shown(name)} is deleted. Set restore=True, or take another name.")
            log.info("Experiment %r was deleted, and is brought back.", name)
            self.api.post("experiments/restore", {"experiment_id": found["experiment_id"]})
        if place and found["artifact_location"].rstrip("/") != place.rstrip("/"):
            raise ConfigError(
                f"MLflow experiment {shown(name)} keeps its artifacts at {found['artifact_location']!r}, and not at {place!r}; "
                "that cannot be changed. Take another name, or leave artifact_location out."
            )
        has = {each["key"]: each.get("value") for each in found.get("tags", [])}
        for key, value in (tags or {}).items():
            if has.get(key) != str(value):
                body = {"experiment_id": found["experiment_id"], "key": key, "value": str(value)}
                self.api.post("experiments/set-experiment-tag", body)
        return self.get(name)

    def get(self, name: str) -> dict[str, Any]:
        """
        Find an experiment.

        :param name: Its name.
        :return: The experiment, as plain JSON; a deleted one too, which its ``lifecycle_stage`` says.
        :raises RemoteNotFoundError: there is none of that name.
        """
        check_experiment_name(name)
        return self._plain(self.api.get("experiments/get-by-name", experiment_name=name)["experiment"])

    def search(
        self, filter_string: str = "", *, tags: Mapping[str, Any] | None = None, view: str = "active", max_results: int = 100
    ) -> list[dict[str, Any]]:
        """
        List experiments.

        :param filter_string: In MLflow's search language; empty for all.
        :param tags: Values that tags must have.
        :param view: ``active``, ``deleted`` or ``all``.
        :param max_results: How many at most.
        :return: The experiments, the newest first.
        :raises ConfigError: MLflow does not take the filter; a retry never helps.
        """
        body = {"filter": tags_filter(filter_string, tags), "view_type": VIEWS[view], "order_by": ["creation_time DESC"]}
        found = pages_of(self.api, "experiments/search", body, "experiments", max_results)
        return [self._plain(each) for each in found]

    def delete(self, name: str) -> dict[str, Any]:
        """
        Delete an experiment with its runs, softly; one that is gone is left alone.

        :param name: Its name.
        :return: The experiment as it is now; without an id when there is none of that name.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
        """
        check_experiment_name(name)
        found = self._found(name)
        if found is None:
            log.info("There is no experiment %r: nothing to delete.", name)
            return {"experiment_id": None, "name": name, "lifecycle_stage": "gone", "url": self.api.server.experiment_page("")}
        if found["lifecycle_stage"] == "active":
            try:
                self.api.post("experiments/delete", {"experiment_id": found["experiment_id"]})
            except RemoteNotFoundError:
                log.info("Somebody else has deleted experiment %r.", name)
        return self.get(name)

    def ids(self, names: Sequence[str]) -> list[str]:
        """
        Find the ids of experiments.

        :param names: Their names.
        :return: Their ids, in that order.
        :raises ConfigError: no name is given, or one is none; a retry never helps.
        :raises RemoteNotFoundError: there is none of a name.
        """
        if isinstance(names, str) or not names:
            raise ConfigError(f"experiments={shown(names)} must be a list of names, with at least one in it.")
        return [self.get(each)["experiment_id"] for each in names]

    def _found(self, name: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self.api.get("experiments/get-by-name", experiment_name=name)["experiment"]
        except RemoteNotFoundError:
            return None
        return found

    def _create(self, name: str, place: str, tags: Mapping[str, str]) -> dict[str, Any]:
        body = {"name": name, "tags": as_pairs({key: str(value) for key, value in tags.items()})}
        body |= {"artifact_location": place} if place else {}
        try:
            self.api.post("experiments/create", body, repeatable=False)
        except ConfigError as refused:
            found = self._found(name)
            if found is None:
                raise refused from None
            return found  # another task was quicker
        found = self._found(name)
        if found is None:
            raise RemoteNotFoundError(f"experiment {shown(name)} was made, and is gone again: somebody removes it.")
        return found

    def _plain(self, found: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "experiment_id": str(found["experiment_id"]),
            "name": found["name"],
            "artifact_location": found.get("artifact_location", ""),
            "lifecycle_stage": found.get("lifecycle_stage", ""),
            "tags": {each["key"]: each.get("value", "") for each in found.get("tags", [])},
            "url": self.api.server.experiment_page(str(found["experiment_id"])),
        }


def pages_of(api: MlflowApi, path: str, body: Mapping[str, Any], key: str, max_results: int | None) -> list[dict[str, Any]]:
    """
    Search page by page.

    :param api: The server.
    :param path: Below ``/api/2.0/mlflow/``; runs and experiments are searched by POST, the registry by GET.
    :param body: The search, without its page.
    :param key: Where the answer has its rows.
    :param max_results: How many at most; None for all.
    :return: The rows.
    :raises ConfigError: the search is refused, or the number is below 1; a retry never helps.
    :raises RemoteUnavailableError: MLflow did not answer; a retry is safe.
    """
    if max_results is not None and max_results < 1:
        raise ConfigError(f"max_results={max_results!r} must be at least 1.")
    rows: list[dict[str, Any]] = []
    token = ""
    while max_results is None or len(rows) < max_results:
        asked = dict(body) | {"max_results": PAGE if max_results is None else min(PAGE, max_results - len(rows))}
        asked |= {"page_token": token} if token else {}
        by_get = path.startswith(("registered-models", "model-versions"))
        answer = api.get(path, **asked) if by_get else api.post(path, asked)
        rows += answer.get(key, [])
        token = answer.get("next_page_token", "")
        if not token:
            break
    return rows
