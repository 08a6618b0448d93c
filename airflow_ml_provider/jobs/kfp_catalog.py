"""What runs are made from on a Kubeflow Pipelines server: experiments, pipelines with their versions, recurring runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.hooks.kfp import KfpApi
from airflow_ml_provider.models.kfp_package import PipelinePackage

EXPERIMENTS = "/apis/v2beta1/experiments"
PIPELINES = "/apis/v2beta1/pipelines"
RECURRING = "/apis/v2beta1/recurringruns"
CONFLICT = 409
DIGEST_LENGTH = 16
"""Hexadecimal digits of a package's digest in the name of its version."""


@dataclass(frozen=True)
class PipelineVersion:
    """
    One version of a pipeline on the server.

    :param pipeline_id: Id of the pipeline.
    :param version_id: Id of the version.
    :param name: Name of the version.
    :param spec: Its compiled spec as the server stores it; empty where it was not asked for.
    """

    pipeline_id: str
    version_id: str
    name: str
    spec: Mapping[str, Any]

    @property
    def reference(self) -> dict[str, str]:
        """``pipeline_version_reference`` of a run made from it."""
        return {"pipeline_id": self.pipeline_id, "pipeline_version_id": self.version_id}


@dataclass(frozen=True)
class Experiment:
    """
    One experiment on the server.

    :param experiment_id: Its id.
    :param name: Its name, in the letter case in which it was made.
    :param archived: Whether it was put away; runs can be made in it all the same.
    :param description: What it is for, empty for nothing.
    """

    experiment_id: str
    name: str
    archived: bool = False
    description: str = ""


class KfpCatalog:
    """
    Experiments, pipelines and recurring runs of one server.

    :param api: Client of the server.
    :param namespace: Namespace in which they are; empty for a server without users.
    """

    def __init__(self, api: KfpApi, namespace: str = "") -> None:
        self.api = api
        self.namespace = namespace or api.server.namespace

    def experiment_id(self, name: str) -> str:
        """
        Find an experiment, or make it when there is none; safe when two tasks do so at once.

        :param name: Display name. The server's database does not tell letter case apart.
        :return: Its id.
        :raises ConfigError: the server refuses the name; a retry never helps.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        return self.experiment(name).experiment_id

    def experiment(self, name: str, description: str = "") -> Experiment:
        """
        Find an experiment, or make it when there is none; safe when two tasks do so at once.

        :param name: Display name. The server's database does not tell letter case apart.
        :param description: What it is for; nothing is changed in one that is there.
        :return: The experiment.
        :raises ConfigError: the server refuses the name; a retry never helps.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        if found := self._experiment(name):
            return found
        body: dict[str, Any] = {"display_name": name}
        if description:
            body["description"] = description
        if self.namespace:
            body["namespace"] = self.namespace
        try:
            return _experiment_of(self.api.post(EXPERIMENTS, body))
        except ConfigError as error:
            if error.status == CONFLICT and (found := self._experiment(name)):
                return found
            raise

    def unarchive_experiment(self, experiment_id: str) -> None:
        """
        Bring back an experiment that was put away; its runs stay away.

        :param experiment_id: Its id.
        :raises RemoteNotFoundError: there is no such experiment.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        self.api.post(f"{EXPERIMENTS}/{experiment_id}:unarchive")

    def version(self, pipeline: str, version: str | None = None) -> PipelineVersion:
        """
        Find a registered pipeline's version, with its spec.

        :param pipeline: Name of the pipeline, in our namespace or shared by all.
        :param version: Name of the version; None takes the newest.
        :return: The version.
        :raises RemoteNotFoundError: there is none of that name; the message names those that there are.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        pipeline_id = self._pipeline_id(pipeline, self.namespace) or self._pipeline_id(pipeline, "")
        if pipeline_id is None:
            raise RemoteNotFoundError(
                f"the server {self.api.server.url} has no pipeline {pipeline!r}. Upload it, or give the path of a compiled "
                f"package (.yaml). It has: {self._some(PIPELINES, 'pipelines')}."
            )
        found = self._version(pipeline_id, version)
        if found is None:
            there = self._some(f"{PIPELINES}/{pipeline_id}/versions", "pipeline_versions")
            raise RemoteNotFoundError(f"pipeline {pipeline!r} has no version {version or 'at all'!r}. It has: {there}.")
        return found

    def upload(self, package: PipelinePackage, *, name: str | None = None, version: str | None = None) -> PipelineVersion:
        """
        Upload a package as a version of its pipeline; the same content again is the same version.

        The version is named after the content's digest, so nothing is uploaded twice, by whomever; only the first one of a
        pipeline has the pipeline's name, which the server gives it. Under a name that was given, the content of what is there
        is compared.

        :param package: The package.
        :param name: Name of the pipeline; None takes the one in the package.
        :param version: Name of the version; None takes the digest. The first upload of a pipeline under another name than its own
            stores the content under both: the server makes no pipeline without a version in one piece.
        :return: The version.
        :raises ConfigError: the server refuses it, or has another content under that version's name; a retry never helps.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        pipeline, label = name or package.name, version or f"sha256-{package.digest[:DIGEST_LENGTH]}"
        pipeline_id = self._pipeline_id(pipeline, self.namespace)
        if pipeline_id is None:
            pipeline_id = self._upload_first(pipeline, package)
        if found := self._version(pipeline_id, label):
            return _same(found, package, pipeline) if version else found
        if not version and (found := self._version(pipeline_id, pipeline)) and _digest_of(found, pipeline) == package.digest:
            return found
        try:
            answer = self.api.upload(
                f"{PIPELINES}/upload_version", package.text, f"{pipeline}.yaml", pipelineid=pipeline_id, name=label
            )
        except ConfigError as error:
            if error.status == CONFLICT and (found := self._version(pipeline_id, label)):
                return _same(found, package, pipeline) if version else found
            raise
        return _version_of(answer)

    def carriers(self, name: str) -> list[str]:
        """
        Find recurring runs by name.

        :param name: Display name.
        :return: Their ids.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        return [str(each["recurring_run_id"]) for each in self.recurring_runs(name)]

    def recurring_runs(self, name: str) -> Iterator[Mapping[str, Any]]:
        """
        Find recurring runs by name, whole.

        :param name: Display name. The server's database does not tell letter case apart.
        :return: JSON of each.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        return self._named(RECURRING, "recurringRuns", "display_name", name)

    def create_recurring_run(self, body: Mapping[str, Any]) -> str:
        """
        Make a recurring run.

        :param body: JSON of it.
        :return: Its id, which the server chooses.
        :raises ConfigError: the server refuses it; a retry never helps.
        :raises RemoteUnavailableError: whether it was made is not known; look for its name.
        """
        own = dict(body) | ({"namespace": self.namespace} if self.namespace else {})
        return str(self.api.post(RECURRING, own)["recurring_run_id"])

    def delete_recurring_run(self, recurring_run_id: str) -> None:
        """
        Delete a recurring run; one that is not there is left so.

        Kubernetes deletes with it the workflows of its runs that still run.

        :param recurring_run_id: Its id.
        :raises RemoteUnavailableError: the server did not answer; a retry is safe.
        """
        try:
            self.api.delete(f"{RECURRING}/{recurring_run_id}")
        except RemoteNotFoundError:
            return

    def _upload_first(self, pipeline: str, package: PipelinePackage) -> str:
        """Make the pipeline with its first version, at once, so that a crash leaves both or neither."""
        query = {"name": pipeline} | ({"namespace": self.namespace} if self.namespace else {})
        try:
            return str(self.api.upload(f"{PIPELINES}/upload", package.text, f"{pipeline}.yaml", **query)["pipeline_id"])
        except ConfigError as error:
            if error.status == CONFLICT and (found := self._pipeline_id(pipeline, self.namespace)):
                return found
            raise

    def _experiment(self, name: str) -> Experiment | None:
        found = self._named(EXPERIMENTS, "experiments", "display_name", name)
        return next((_experiment_of(each) for each in found), None)

    def _pipeline_id(self, name: str, namespace: str) -> str | None:
        """Find a pipeline; those of no namespace are shared by all. By list: a name with a slash fits into no path."""
        for key in ("name", "display_name"):
            found = self._named(PIPELINES, "pipelines", key, name, namespace)
            if first := next((str(each["pipeline_id"]) for each in found), None):
                return first
        return None

    def _version(self, pipeline_id: str, name: str | None) -> PipelineVersion | None:
        path = f"{PIPELINES}/{pipeline_id}/versions"
        if name is None:
            answer = self.api.get(path, sort_by="created_at desc", page_size=1)
            found = list(answer.get("pipeline_versions") or ())
        else:
            found = [*self._named(path, "pipeline_versions", "name", name)]
            found = found or [*self._named(path, "pipeline_versions", "display_name", name)]
        return _version_of(found[0]) if found else None

    def _named(self, path: str, field: str, key: str, name: str, namespace: str | None = None) -> Iterator[Mapping[str, Any]]:
        predicate = {"key": key, "operation": "EQUALS", "string_value": name}
        where = self.namespace if namespace is None else namespace
        return self.api.items(path, field, [predicate], namespace=where or None)

    def _some(self, path: str, field: str) -> str:
        query = {"namespace": self.namespace} if self.namespace else {}
        found = self.api.get(path, page_size=10, **query).get(field) or ()
        return ", ".join(repr(str(each.get("name") or each.get("display_name"))) for each in found) or "none"


def _version_of(answer: Mapping[str, Any]) -> PipelineVersion:
    return PipelineVersion(
        pipeline_id=str(answer["pipeline_id"]),
        version_id=str(answer["pipeline_version_id"]),
        name=str(answer.get("name") or answer.get("display_name") or ""),
        spec=answer.get("pipeline_spec") or {},
    )


def _experiment_of(answer: Mapping[str, Any]) -> Experiment:
    return Experiment(
        experiment_id=str(answer["experiment_id"]),
        name=str(answer.get("display_name") or ""),
        archived=answer.get("storage_state") == "ARCHIVED",
        description=str(answer.get("description") or ""),
    )


def _same(found: PipelineVersion, package: PipelinePackage, pipeline: str) -> PipelineVersion:
    """Refuse a version of that name whose content is another."""
    digest = _digest_of(found, pipeline)
    if digest == package.digest:
        return found
    raise ConfigError(
        f"pipeline {pipeline!r} has a version {found.name!r} with another content (digest {digest[:DIGEST_LENGTH]}, of the "
        f"package {package.digest[:DIGEST_LENGTH]}). A version cannot be changed: give another name, or none, to name it so."
    )


def _digest_of(found: PipelineVersion, pipeline: str) -> str:
    from airflow_ml_provider.core.kfp_package import read_spec

    try:
        return read_spec(found.spec, source=f"version {found.name!r} of pipeline {pipeline!r}").digest
    except ConfigError:
        return "of no pipeline that is known here"
