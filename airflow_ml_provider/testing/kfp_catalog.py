"""What the server does with experiments, pipelines and their versions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from airflow_ml_provider.testing.kfp_answers import (
    KfpError,
    answer,
    experiment_json,
    internal,
    invalid,
    missing,
    pipeline_json,
    version_json,
)
from airflow_ml_provider.testing.kfp_columns import EXPERIMENTS, PIPELINES, VERSIONS
from airflow_ml_provider.testing.kfp_filter import collated, read_query
from airflow_ml_provider.testing.kfp_messages import EXPERIMENT
from airflow_ml_provider.testing.kfp_proto import normal, read_message
from airflow_ml_provider.testing.kfp_store import Store
from airflow_ml_provider.testing.kfp_values import Answer, Experiment, Pipeline, Version

MANIFEST = (
    "Failed to create a run due to error fetching manifest: Failed to fetch a template due to error retrieving pipeline version"
)
FETCH = "Failed to fetch a pipeline version and its manifest from pipeline"
NAME_LIMIT = 128


def named(items: Iterable[Any], name: str, field: str = "name") -> Any:
    """
    Find something by name, without letter case.

    :param items: Where.
    :param name: The name.
    :param field: Attribute that holds it.
    :return: The first, None for none.
    """
    return next((each for each in items if collated(getattr(each, field)) == collated(name)), None)


class Catalog:
    """
    The operations on experiments, pipelines and versions.

    :param store: The tables.
    """

    def __init__(self, store: Store) -> None:
        self.store = store

    def create_experiment(self, body: bytes) -> Answer:
        """
        Make an experiment.

        :param body: JSON.
        :return: The experiment.
        :raises KfpError: 400, 409 for a name that is taken, 500 for a name that is empty or too long.
        """
        data = read_message(body.decode() or "{}", EXPERIMENT)
        name, doing = data.get("display_name", ""), "Failed to create a experiment"
        way = (
            f"[ExperimentServer]: {doing} due to conversion error: InternalServerError: Failed to convert API experiment to model"
        )
        if not name:
            raise internal(f"{way} experiment: Invalid input error: Experiment must have a non-empty name")
        if len(name) > NAME_LIMIT:
            raise internal(f"{way} experiment: Invalid input error: Experiment.Name length cannot exceed {NAME_LIMIT}")
        self.store.check_database(f"{doing}: InternalServerError: Failed to add experiment to experiment table")
        namespace = data.get("namespace", "") if self.store.multi_user else ""
        same = [each for each in self.store.experiments.values() if each.namespace == namespace]
        if named(same, name, "display_name"):
            short = f"Failed to create a new experiment. The name {name} already exists. Please specify a new name"
            raise KfpError(6, f"{doing}: Already exist error: {short}", short)
        return answer(experiment_json(self.store.add_experiment(name, data.get("description", ""), namespace)))

    def experiment(self, experiment_id: str, prefix: str) -> Experiment:
        """
        Find an experiment.

        :param experiment_id: Its id.
        :param prefix: What is being done.
        :return: The row.
        :raises KfpError: 404.
        """
        self.store.check_database(f"{prefix}InternalServerError: Failed to get experiment")
        if experiment_id not in self.store.experiments:
            raise missing(prefix, "Experiment", experiment_id)
        return self.store.experiments[experiment_id]

    def experiment_for(self, experiment_id: str, doing: str) -> Experiment:
        """
        Find the experiment of a new run.

        :param experiment_id: Its id, empty for the default one.
        :param doing: What is being done.
        :return: The row; an archived one will do.
        :raises KfpError: 404; 400 without an id in multi-user mode.
        """
        combination = f"{doing}due to invalid experimentId and namespace combination: "
        if not experiment_id and not self.store.multi_user:
            default = "Specify experiment id or check if the default experiment exists in namespace : InternalServerError"
            self.store.check_database(f"{combination}{default}: Error when getting default experiment ID")
            return self.store.default_experiment()
        way = (
            f"Failed to fetch namespace for experiment {experiment_id}: Failed to fetch namespace from experiment {experiment_id}"
        )
        return self.experiment(experiment_id, f"{combination}{way}: ")

    def get_experiment(self, experiment_id: str) -> Answer:
        """
        Look at an experiment.

        :param experiment_id: Its id.
        :return: The experiment.
        :raises KfpError: 404.
        """
        return answer(experiment_json(self.experiment(experiment_id, "Failed to fetch experiment: ")))

    def list_experiments(self, query: Mapping[str, str]) -> Answer:
        """
        List experiments.

        :param query: Query parameters.
        :return: A page.
        :raises KfpError: 400.
        """
        wanted = read_query(EXPERIMENTS, query)
        self.store.check_database("List experiments failed: InternalServerError: Failed to list experiments")
        items = list(self.store.experiments.values())
        if self.store.multi_user:
            items = [each for each in items if each.namespace == query.get("namespace", "")]
        page, total, token = wanted.page(items)
        return listed("experiments", [experiment_json(each) for each in page], total, token)

    def store_experiment(self, experiment_id: str, state: str) -> Answer:
        """
        Archive an experiment with its runs, or bring it back alone.

        :param experiment_id: Its id.
        :param state: ``ARCHIVED`` or ``AVAILABLE``.
        :return: Nothing.
        :raises KfpError: 404.
        """
        word = "archive" if state == "ARCHIVED" else "unarchive"
        self.experiment(experiment_id, f"Failed to {word} experiment: ").storage_state = state
        if state == "ARCHIVED":
            for run in self.store.runs.values():
                if run.experiment_id == experiment_id:
                    run.storage_state, run.text = state, None
        return answer({})

    def delete_experiment(self, experiment_id: str) -> Answer:
        """
        Delete an experiment; its runs stay.

        :param experiment_id: Its id.
        :return: Nothing.
        :raises KfpError: 404.
        """
        doing = f"Failed to delete experiment: Failed to delete experiment {experiment_id} due to error fetching it: "
        del self.store.experiments[self.experiment(experiment_id, doing).experiment_id]
        return answer({})

    def source(self, data: Mapping[str, Any]) -> tuple[dict[str, Any], str, str]:
        """
        Find the pipeline of a new run.

        :param data: What was sent.
        :return: Spec, pipeline id and version id; the ids are empty for an inline spec.
        :raises KfpError: 500 for an id that is not known.
        """
        reference = data.get("pipeline_version_reference") or {}
        version_id = data.get("pipeline_version_id") or reference.get("pipeline_version_id") or ""
        pipeline_id = reference.get("pipeline_id") or ""
        if version_id:
            version = self.store.versions.get(version_id)
            if version is None:
                way = f"{FETCH} version {version_id}: Failed to get a pipeline version with id {version_id}"
                raise _lost_source(way, f"PipelineVersion {version_id}")
            return version.spec, version.pipeline_id, version_id
        if pipeline_id:
            version = self.latest(pipeline_id)
            return version.spec, pipeline_id, version.pipeline_version_id
        return normal(data.get("pipeline_spec") or {}), "", ""

    def latest(self, pipeline_id: str) -> Version:
        """
        Find the latest version of a pipeline.

        :param pipeline_id: Its id.
        :return: The version.
        :raises KfpError: 500.
        """
        if pipeline_id not in self.store.pipelines:
            way = f"{FETCH} {pipeline_id}: Failed to get the latest pipeline version as pipeline was not found"
            raise _lost_source(way, f"Pipeline {pipeline_id}")
        versions = [each for each in self.store.versions.values() if each.pipeline_id == pipeline_id]
        if not versions:
            raise _lost_source(f"{FETCH} {pipeline_id}", f"PipelineVersion of {pipeline_id}")
        return max(versions, key=lambda each: each.created_at)

    def add_pipeline(self, name: str, display_name: str, description: str, namespace: str) -> Pipeline:
        """
        Write a pipeline.

        :param name: Its name.
        :param display_name: The name that is shown.
        :param description: What it is for.
        :param namespace: Where it belongs, empty for a shared one.
        :return: The row.
        """
        row = Pipeline(self.store.new_id("pipeline"), name, display_name or name, self.store.now, description, namespace)
        self.store.pipelines[row.pipeline_id] = row
        return row

    def add_version(self, pipeline_id: str, name: str, display_name: str, description: str, spec: dict[str, Any]) -> Version:
        """
        Write a version.

        :param pipeline_id: Its pipeline.
        :param name: Its name.
        :param display_name: The name that is shown.
        :param description: What it is for.
        :param spec: The pipeline itself.
        :return: The row.
        """
        row = Version(
            self.store.new_id("version"), pipeline_id, name, display_name or name, self.store.now, normal(spec), description
        )
        self.store.versions[row.pipeline_version_id] = row
        return row

    def pipeline(self, pipeline_id: str, prefix: str) -> Pipeline:
        """
        Find a pipeline.

        :param pipeline_id: Its id.
        :param prefix: What is being done.
        :return: The row.
        :raises KfpError: 404.
        """
        self.store.check_database(f"{prefix}InternalServerError: Failed to get pipeline")
        if pipeline_id not in self.store.pipelines:
            raise missing(prefix, "Pipeline", pipeline_id)
        return self.store.pipelines[pipeline_id]

    def get_pipeline(self, pipeline_id: str) -> Answer:
        """
        Look at a pipeline.

        :param pipeline_id: Its id.
        :return: The pipeline.
        :raises KfpError: 404.
        """
        doing = f"Failed to get a pipeline {pipeline_id}. Check error stack: Failed to get a pipeline with id {pipeline_id}: "
        return answer(pipeline_json(self.pipeline(pipeline_id, doing)))

    def get_pipeline_by_name(self, name: str, namespace: str) -> Answer:
        """
        Look at a pipeline by its name.

        :param name: The name.
        :param namespace: Where, empty for shared pipelines.
        :return: The pipeline.
        :raises KfpError: 404.
        """
        found = named((each for each in self.store.pipelines.values() if each.namespace == namespace), name)
        if found is None:
            way = f"Failed to get a pipeline with name {name} and namespace {namespace}. Check error stack."
            prefix = f"{way}: Failed to get a pipeline named {name} in namespace {namespace}: "
            raise missing(prefix, "Namespace/Pipeline", f"{namespace}/{name}")
        return answer(pipeline_json(found))

    def list_pipelines(self, query: Mapping[str, str]) -> Answer:
        """
        List pipelines.

        :param query: Query parameters.
        :return: A page.
        :raises KfpError: 400.
        """
        wanted = read_query(PIPELINES, query)
        way = "Failed to list pipelines in namespace . Check error stack: Failed to list pipelines with context &{0x0}"
        self.store.check_database(
            f"{way}, options &{{20 0x0}}: InternalServerError: Failed to start transaction to list pipelines"
        )
        namespace = query.get("namespace", "") if self.store.multi_user else ""
        page, total, token = wanted.page(each for each in self.store.pipelines.values() if each.namespace == namespace)
        return listed("pipelines", [pipeline_json(each) for each in page], total, token)

    def delete_pipeline(self, pipeline_id: str, *, cascade: bool) -> Answer:
        """
        Delete a pipeline.

        :param pipeline_id: Its id.
        :param cascade: Whether its versions go too.
        :return: Nothing.
        :raises KfpError: 404; 400 while it has versions.
        """
        doing = f"Failed to delete pipeline {pipeline_id}. Check error stack: "
        self.pipeline(pipeline_id, f"{doing}Failed to delete pipeline with id {pipeline_id} as it was not found: ")
        versions = [key for key, each in self.store.versions.items() if each.pipeline_id == pipeline_id]
        if versions and not cascade:
            why = f"as it has existing pipeline versions (e.g. {max(versions)}). Set cascade=true to delete all versions"
            raise invalid(doing, f"Failed to delete pipeline with id {pipeline_id} {why}")
        for each in versions:
            del self.store.versions[each]
        del self.store.pipelines[pipeline_id]
        return answer({})

    def version(self, version_id: str, doing: str) -> Version:
        """
        Find a version.

        :param version_id: Its id.
        :param doing: What is being done.
        :return: The row.
        :raises KfpError: 404.
        """
        way = f"{doing}Failed to get a pipeline version with id {version_id}: "
        self.store.check_database(
            f"{way}InternalServerError: Failed fetching pipeline version with UUID={version_id} and status=READY"
        )
        if version_id not in self.store.versions:
            raise missing(way, "PipelineVersion", version_id)
        return self.store.versions[version_id]

    def get_version(self, version_id: str) -> Answer:
        """
        Look at a version.

        :param version_id: Its id.
        :return: The version with its spec.
        :raises KfpError: 404.
        """
        return answer(version_json(self.version(version_id, f"Failed to get a pipeline version {version_id}: ")))

    def list_versions(self, pipeline_id: str, query: Mapping[str, str]) -> Answer:
        """
        List the versions of a pipeline, each with its spec.

        :param pipeline_id: The pipeline.
        :param query: Query parameters.
        :return: A page.
        :raises KfpError: 400, 404.
        """
        wanted = read_query(VERSIONS, query)
        self.pipeline(pipeline_id, "Failed to list pipeline versions: ")
        page, total, token = wanted.page(each for each in self.store.versions.values() if each.pipeline_id == pipeline_id)
        return listed("pipeline_versions", [version_json(each) for each in page], total, token)

    def delete_version(self, version_id: str) -> Answer:
        """
        Delete a version.

        :param version_id: Its id.
        :return: Nothing.
        :raises KfpError: 404.
        """
        doing = f"Failed to delete a pipeline version {version_id}: "
        del self.store.versions[self.version(version_id, doing).pipeline_version_id]
        return answer({})


def listed(name: str, items: list[Any], total: int, token: str) -> Answer:
    """
    Answer a list.

    :param name: Name of the items.
    :param items: A page of them.
    :param total: How many there are.
    :param token: Token of the next page, empty for none.
    :return: JSON; what is empty is left out.
    """
    page: dict[str, Any] = {name: items} if items else {}
    if total:
        page["total_size"] = total
    if token:
        page["next_page_token"] = token
    return answer(page)


def _lost_source(way: str, what: str) -> KfpError:
    return internal(
        f"Failed to create a new run: InternalServerError: {MANIFEST}: {way}: ResourceNotFoundError: {what} not found"
    )
