"""
Registered models and their versions as tasks handle them: registered, copied, read, listed, changed, deleted, rolled back.

What moves a champion in a night of steps is :class:`~airflow_ml_provider.tracking.registry.ModelRegistry`; this builds on it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from airflow_ml_provider.core.model_names import check_aliases, check_name
from airflow_ml_provider.core.tracking_values import check_uri, check_version, model_in, quoted, shown, tags_filter
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.models.reference import model_id_of
from airflow_ml_provider.models.run import StepIdentity
from airflow_ml_provider.tracking.artifacts import SHA256, ArtifactStore
from airflow_ml_provider.tracking.experiments import pages_of
from airflow_ml_provider.tracking.places import place_for
from airflow_ml_provider.tracking.registry import ROLLED_BACK_BY, ModelRegistry, begun_in

log = logging.getLogger(__name__)

COPIED_FROM = "airflow.copied_from"
"""Tag of a version that was copied: ``models:/<name>/<version>`` of the one that it is a copy of."""
LAST_ROLLED_BACK_BY = "airflow.rolled_back_by"
"""Tag of a registered model, by releases that remembered one task alone: its key, and ``<version that leaves>><that returns>``,
written before anything was moved."""
_RUN = re.compile(r"^runs:/([0-9a-zA-Z][\w-]{0,255})/(.+)$", re.ASCII)


class RegistryVersions:
    """
    The registered models of one MLflow server.

    :param api: The server.
    """

    def __init__(self, api: MlflowApi) -> None:
        self.api = api
        self.registry = ModelRegistry(api)

    def register(
        self,
        name: str,
        source: str,
        *,
        run_id: str = "",
        tags: Mapping[str, str] | None = None,
        description: str | None = None,
        aliases: Sequence[str] = (),
    ) -> dict[str, Any]:
        """
        Register a model, once: what has a version of this name already keeps it. From another version, that is a copy.

        :param name: Name of the registered model; made when there is none.
        :param source: ``runs:/<run>/<path>``, ``models:/<model id>``, ``models:/<name>/<version>``,
            ``models:/<name>@<alias>``, or any URI of an artifact.
        :param run_id: Run that made it, where the source does not say so; empty for none.
        :param tags: Value per key; a copy has those of the version that it is copied from too.
        :param description: Text of the version; None leaves it.
        :param aliases: Aliases that are to stand for it.
        :return: The version, as plain JSON.
        :raises ConfigError: a name, an alias or the source is wrong; a retry never helps.
        :raises RemoteNotFoundError: there is no such run, artifact, model or version.
        :raises RemoteUnavailableError: MLflow did not answer; a retry is safe and finds what was made.
        """
        check_name(name)
        if aliases:
            check_aliases(*aliases)
        uri, run_id, copied = self._source(check_uri(source), run_id)
        written = {**copied, **{key: str(value) for key, value in (tags or {}).items()}}
        made = self.registry.register(name, uri, run_id=run_id, model_id=model_id_of(uri), tags=written)
        if description is not None:
            self.api.patch("model-versions/update", {"name": name, "version": made.version, "description": description})
        for alias in aliases:
            self.api.post("registered-models/alias", {"name": name, "alias": alias, "version": made.version})
        return self.version(name, made.version)

    def get(self, uri: str) -> dict[str, Any]:
        """
        Read a registered model, or one of its versions.

        :param uri: ``models:/<name>``, ``models:/<name>/<version>`` or ``models:/<name>@<alias>``.
        :return: It, as plain JSON.
        :raises ConfigError: it names none of these; a retry never helps.
        :raises RemoteNotFoundError: there is no such model, version or alias.
        """
        name, version, alias = model_in(uri)
        check_name(name)
        if alias:
            found = self.api.get("registered-models/alias", name=name, alias=alias)["model_version"]
            version = str(found["version"])
        return self.version(name, version) if version else self.model(name)

    def model(self, name: str) -> dict[str, Any]:
        """
        Read a registered model.

        :param name: Its name.
        :return: It, as plain JSON.
        :raises RemoteNotFoundError: there is none.
        """
        return self._plain_model(self.api.get("registered-models/get", name=name)["registered_model"])

    def version(self, name: str, version: str) -> dict[str, Any]:
        """
        Read one version.

        :param name: Name of the registered model.
        :param version: Its number.
        :return: It, as plain JSON, with the aliases that stand for it.
        :raises RemoteNotFoundError: there is none.
        """
        return self._plain_version(self.api.get("model-versions/get", name=name, version=version)["model_version"])

    def search_models(
        self, filter_string: str, tags: Mapping[str, Any] | None, order_by: str, max_results: int
    ) -> list[dict[str, Any]]:
        """
        List registered models.

        :param filter_string: In MLflow's search language; empty for all.
        :param tags: Values that tags must have.
        :param order_by: In that language; empty for MLflow's order.
        :param max_results: How many at most.
        :return: The models, as plain JSON.
        """
        body = {"filter": tags_filter(filter_string, tags)} | ({"order_by": order_by} if order_by else {})
        found = pages_of(self.api, "registered-models/search", body, "registered_models", max_results)
        return [self._plain_model(each) for each in found]

    def search_versions(
        self, name: str, filter_string: str, tags: Mapping[str, Any] | None, order_by: str, max_results: int
    ) -> list[dict[str, Any]]:
        """
        List the versions of a registered model.

        :param name: Its name.
        :param filter_string: In MLflow's search language; empty for all.
        :param tags: Values that tags must have.
        :param order_by: In that language; empty for the newest first.
        :param max_results: How many at most.
        :return: The versions, as plain JSON; none of a model that is not there.
        """
        check_name(name)
        clauses = " and ".join(filter(None, (f"name = {quoted(name)}", tags_filter(filter_string, tags))))
        body = {"filter": clauses, "order_by": order_by or "version_number DESC"}
        found = pages_of(self.api, "model-versions/search", body, "model_versions", max_results)
        aliases = self._aliases(name) if found else {}
        held: dict[str, list[str]] = {}
        for alias, version in aliases.items():
            held.setdefault(version, []).append(alias)
        return [self._plain_version(each | {"aliases": sorted(held.get(str(each["version"]), []))}) for each in found]

    def update(
        self,
        name: str,
        version: str | None,
        *,
        aliases: Mapping[str, Any],
        tags: Mapping[str, Any],
        description: str | None,
    ) -> dict[str, Any]:
        """
        Set and delete aliases and tags.

        :param name: Name of the registered model.
        :param version: Version that the tags and the description are of; None for the model itself.
        :param aliases: Version per alias; None deletes it.
        :param tags: Value per key; None deletes it.
        :param description: Text; None leaves it.
        :return: The model or the version as it is now, as plain JSON.
        :raises ConfigError: a name, an alias or a number is wrong; nothing was changed, a retry never helps.
        :raises RemoteNotFoundError: there is no such model or version.
        """
        check_name(name)
        number = check_version(version) if version is not None else ""
        moves = {alias: None if to is None else check_version(to) for alias, to in aliases.items()}
        if moves:
            check_aliases(*moves)
        wanted = [each for each in (*moves.values(), number) if each]
        _ = [self.version(name, each) for each in dict.fromkeys(wanted)] or self.model(name)  # asked before anything changes
        kind, whose = ("model-versions", {"name": name, "version": number}) if number else ("registered-models", {"name": name})
        for key, value in tags.items():
            if value is None:
                self.api.delete(f"{kind}/delete-tag", whose | {"key": key})
            else:
                self.api.post(f"{kind}/set-tag", whose | {"key": key, "value": str(value)})
        if description is not None:
            self.api.patch(f"{kind}/update", whose | {"description": description})
        for alias, to in moves.items():
            if to is None:
                self.api.delete("registered-models/alias", {"name": name, "alias": alias})
            else:
                self.api.post("registered-models/alias", {"name": name, "alias": alias, "version": to})
        return self.version(name, number) if number else self.model(name)

    def delete(self, name: str, versions: Sequence[Any] | None, *, delete_aliased: bool) -> dict[str, Any]:
        """
        Delete versions of a registered model, or all of it; what is gone is left alone.

        :param name: Name of the registered model.
        :param versions: Numbers of the versions; None for the model with all of them.
        :param delete_aliased: Whether also what an alias stands for, alias and all.
        :return: Name and versions that are not there any more, as plain JSON.
        :raises ConfigError: an alias stands for one of them; nothing was deleted, a retry never helps.
        """
        check_name(name)
        wanted = None if versions is None else [check_version(each) for each in versions]
        try:
            aliases = self._aliases(name)
        except RemoteNotFoundError:
            log.info("There is no registered model %r: nothing to delete.", name)
            return {"name": name, "versions": wanted or [], "url": self.api.server.model_page()}
        held = {alias: version for alias, version in aliases.items() if wanted is None or version in wanted}
        if held and not delete_aliased:
            said = ", ".join(f"{alias} (version {version})" for alias, version in sorted(held.items()))
            raise ConfigError(
                f"model {shown(name)}: aliases stand for what would be deleted: {said}. Move them first, or set "
                "delete_aliased=True. Nothing was deleted."
            )
        if wanted is None:
            found = pages_of(self.api, "model-versions/search", {"filter": f"name = {quoted(name)}"}, "model_versions", None)
            wanted = sorted((str(each["version"]) for each in found), key=int)
            self._gone("registered-models/delete", {"name": name})
        else:
            for each in wanted:
                self._gone("model-versions/delete", {"name": name, "version": each})
        return {"name": name, "versions": wanted, "url": self.api.server.model_page(name if versions is not None else "")}

    def roll_back(self, name: str, identity: StepIdentity, *, alias: str, previous_alias: str) -> dict[str, Any]:
        """
        Swap the champion and the one before it, once for one task: asked again, it says how the aliases stand.

        :param name: Name of the registered model.
        :param identity: The task; the model's tags name the newest 20 that have rolled it back.
        :param alias: Alias of the champion.
        :param previous_alias: Alias of the champion before it.
        :return: Name, version that serves, version that was rolled back, and whether this call did it, as plain JSON.
        :raises ConfigError: there is no champion, or none before it; a retry never helps.
        :raises RemoteNotFoundError: there is no such registered model.
        """
        check_name(name)
        check_aliases(alias, previous_alias)
        model = self.model(name)
        now, before = model["aliases"].get(alias), model["aliases"].get(previous_alias)
        changed = not _has_rolled_back(model["tags"], identity.key, now, before)
        if changed:
            done = self.registry.rollback(name, alias=alias, previous_alias=previous_alias, task=identity.key)
            now, before = done.version, done.previous
        else:
            log.info("This task has rolled back %s already; nothing is moved again.", name)
        return {"name": name, "alias": alias, "version": now, "rolled_back": before, "changed": changed} | {
            "uri": f"models:/{name}/{now}",
            "url": self.api.server.model_page(name, now or ""),
        }

    def _source(self, uri: str, run_id: str) -> tuple[str, str, dict[str, str]]:
        """Find what is to be registered: its own place, the run that made it, and the tags that a copy takes along."""
        if model_id := model_id_of(uri):
            info = self.api.get(f"logged-models/{model_id}")["model"]["info"]
            return f"models:/{model_id}", run_id or info.get("source_run_id", ""), {}
        if uri.startswith("models:"):
            return self._copied(uri)
        found = _RUN.match(uri)
        if found is None:
            return uri, run_id, {}
        return self._of_run(uri, found[1], found[2])

    def _copied(self, uri: str) -> tuple[str, str, dict[str, str]]:
        """Follow a version to what it was made of, also when it is a copy that MLflow's own client has made."""
        version = self.get(uri)
        if "version" not in version:
            raise ConfigError(f"{shown(uri)} names no version: write models:/<name>/<version> or models:/<name>@<alias>.")
        tags = {**version["tags"], COPIED_FROM: version["uri"]}
        while version["source"].startswith("models:/") and not model_id_of(version["source"]):
            version = self.get(version["source"])
        return version["source"], version["run_id"], tags

    def _of_run(self, uri: str, run_id: str, path: str) -> tuple[str, str, dict[str, str]]:
        """Look whether a run has such an artifact; what MLflow 3 logs as a model is a LoggedModel of that name."""
        run = self.api.get("runs/get", run_id=run_id)["run"]
        store = ArtifactStore(self.api)
        place = place_for(self.api, store.root_of(f"runs:/{run_id}"), of_mlflow=True)
        folder, _, name = path.strip("/").rpartition("/")
        if place.files(path.strip("/")) or name in place.files(folder):
            return uri.rstrip("/"), run_id, {}
        for each in run.get("outputs", {}).get("model_outputs", []):
            info = self.api.get(f"logged-models/{each['model_id']}")["model"]["info"]
            if info.get("name") == path.strip("/"):
                return f"models:/{each['model_id']}", run_id, {}
        raise RemoteNotFoundError(f"run {run_id} has neither an artifact nor a model {shown(path)}. Log it first.")

    def _aliases(self, name: str) -> dict[str, str]:
        found: dict[str, str] = self.model(name)["aliases"]
        return found

    def _gone(self, path: str, body: dict[str, Any]) -> None:
        try:
            self.api.delete(path, body)
        except RemoteNotFoundError:
            log.info("%s is gone already.", " ".join(map(str, body.values())))

    def _plain_model(self, found: Mapping[str, Any]) -> dict[str, Any]:
        newest = [str(each["version"]) for each in found.get("latest_versions", [])]
        return {
            "name": found["name"],
            "description": found.get("description", ""),
            "tags": {each["key"]: each.get("value", "") for each in found.get("tags", [])},
            "aliases": {each["alias"]: str(each["version"]) for each in found.get("aliases", [])},
            "latest_version": max(newest, key=int, default=None),
            "url": self.api.server.model_page(found["name"]),
        }

    def _plain_version(self, found: Mapping[str, Any]) -> dict[str, Any]:
        name, version, source = found["name"], str(found["version"]), found.get("source", "")
        tags = {each["key"]: each.get("value", "") for each in found.get("tags", [])}
        return {
            "name": name,
            "version": version,
            "uri": f"models:/{name}/{version}",
            "source": source,
            "run_id": found.get("run_id", ""),
            "model_id": model_id_of(source),
            "status": found.get("status", ""),
            "description": found.get("description", ""),
            "aliases": sorted(found.get("aliases", [])),
            "tags": tags,
            "sha256": tags.get(SHA256, ""),
            "url": self.api.server.model_page(name, version),
        }


def _has_rolled_back(tags: Mapping[str, str], task: str, now: str | None, before: str | None) -> bool:
    """Say whether nothing is left for a task to do, by the model's tags and how its aliases stand."""
    begun, tasks = begun_in(tags)
    if ROLLED_BACK_BY + task in tags:  # all is moved; a try that was cut right after has left its mark
        return task not in tasks or begun != f"{before}>{now}"
    by, _, swap = tags.get(LAST_ROLLED_BACK_BY, "").partition(" ")
    return by == task and not begun and swap != f"{now}>{before}"
