"""What a Kubeflow Pipelines server holds, as tasks: pipelines uploaded, experiments made, runs stopped, repeated, put away."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from airflow.sdk import BaseOperator

from airflow_ml_provider.core.kfp_names import check_description, check_experiment_name, check_pipeline_name, check_version_name
from airflow_ml_provider.core.wiring import check_choice, check_given
from airflow_ml_provider.links.kfp import KfpExperimentLink, KfpPipelineLink, KfpRunLink, pages

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

RunAction = Literal["terminate", "retry", "archive", "unarchive", "delete"]
"""What can be done to a run that was started elsewhere."""


class KfpUploadPipelineOperator(BaseOperator):
    """
    Uploads a compiled package as a version of a pipeline, once for the same content.

    The pipeline is made when there is none of its name. A retry, or another task with the same package, finds the version
    that is there; spaces, comments and the order of keys make no other content.

    The XCom is ``{"version", "pipeline", "name", "version_name", "pipeline_id", "pipeline_version_id", "digest", "url"}``;
    ``pipeline`` is ``name@version_name``, as ``KfpRunPipelineOperator`` takes it.

    :param package: The package: path beside the DAG file, URL, or any URI that ``ObjectStoragePath`` opens.
    :param name: Name of the pipeline, at most 128 bytes; None takes the one in the package.
    :param version_name: Name of the version, at most 127 bytes; None names it by the digest of its content, the first of a
        pipeline like the pipeline. A name that is there with another content is refused, since a version cannot be changed.
    :param kfp_conn_id: Connection of the server.
    :param namespace: Namespace of the pipeline, for a server with users; None takes the connection's.
    """

    template_fields: Sequence[str] = ("package", "name", "version_name", "namespace")
    operator_extra_links = (KfpPipelineLink(),)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        package: str,
        name: str | None = None,
        version_name: str | None = None,
        kfp_conn_id: str = "kfp_default",
        namespace: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.package = package
        self.name = name
        self.version_name = version_name
        self.kfp_conn_id = kfp_conn_id
        self.namespace = namespace
        self.kfp_links: dict[str, str] = {}
        check_given(self.task_id, "package", package)

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Read the package, and upload it unless its content is there.

        :param context: Airflow's context.
        :return: What is there now, as plain JSON.
        :raises AirflowFailException: the package or a name is wrong, or the version's name is taken; a retry never helps.
        :raises RemoteNotFoundError: there is no such package; a retry helps only if somebody writes it.
        :raises RemoteUnavailableError: the server did not answer within ``[ml] patience_s``; a retry is safe.
        """
        from airflow_ml_provider.core.kfp_package import read_package, shown_source
        from airflow_ml_provider.hooks.patience import patiently
        from airflow_ml_provider.jobs.kfp_connected import connected, dag_folder
        from airflow_ml_provider.jobs.kfp_source import fetch_package

        with connected(self.kfp_conn_id, self.namespace) as server:
            name = check_pipeline_name(self.name) if self.name else None
            version = check_version_name(self.version_name) if self.version_name else None
            folder = dag_folder(context)
            shown, patience_s = shown_source(self.package), server.patience_s
            content = patiently(f"read {shown}", lambda: fetch_package(self.package, relative_to=folder), patience_s)
            package = read_package(content, source=self.package)
            made = patiently(f"upload {shown}", lambda: server.catalog.upload(package, name=name, version=version), patience_s)
            ui_url = server.api.server.ui_url
        name = name or package.name
        found = pages(ui_url, pipeline_id=made.pipeline_id, version_id=made.version_id)
        self.kfp_links = {"pipeline": found["pipeline"]}
        log.info("Pipeline %r has %s as version %r: %s", name, package.source, made.name, found["pipeline"])
        return {
            "version": 1,
            "pipeline": f"{name}@{made.name}",
            "name": name,
            "version_name": made.name,
            "pipeline_id": made.pipeline_id,
            "pipeline_version_id": made.version_id,
            "digest": package.digest,
            "url": found["pipeline"],
        }


class KfpCreateExperimentOperator(BaseOperator):
    """
    Makes an experiment, or finds the one of that name.

    The server does not tell letter case apart in names. A description is written when the experiment is made, and never
    changed afterwards, since the server has no way to.

    The XCom is ``{"version", "experiment_id", "name", "url"}``.

    :param name: Name of the experiment, at most 128 bytes.
    :param description: What it is for, at most 255 characters; None for nothing.
    :param unarchive: Whether an experiment that somebody has put away is brought back. Its runs stay away: the server brings
        back the experiment alone. Runs can be made in one that is away too, but nobody sees it in the list.
    :param kfp_conn_id: Connection of the server.
    :param namespace: Namespace of the experiment, for a server with users; None takes the connection's.
    """

    template_fields: Sequence[str] = ("name", "description", "namespace")
    operator_extra_links = (KfpExperimentLink(),)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        name: str,
        description: str | None = None,
        unarchive: bool = True,
        kfp_conn_id: str = "kfp_default",
        namespace: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.description = description
        self.unarchive = unarchive
        self.kfp_conn_id = kfp_conn_id
        self.namespace = namespace
        self.kfp_links: dict[str, str] = {}
        check_given(self.task_id, "name", name)

    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002  (Airflow's signature)
        """
        Find it or make it.

        :param context: Airflow's context.
        :return: The experiment, as plain JSON.
        :raises AirflowFailException: the name or the description is not one that the server takes; a retry never helps.
        :raises RemoteUnavailableError: the server did not answer within ``[ml] patience_s``; a retry is safe.
        """
        from airflow_ml_provider.hooks.patience import patiently
        from airflow_ml_provider.jobs.kfp_connected import connected

        with connected(self.kfp_conn_id, self.namespace) as server:
            name, told = check_experiment_name(self.name), check_description(self.description or "")
            what, patience_s = f"find experiment {name}", server.patience_s
            found = patiently(what, lambda: server.catalog.experiment(name, told), patience_s)
            if found.archived and self.unarchive:
                log.info("Experiment %r was put away, and is brought back.", found.name)
                patiently(what, lambda: server.catalog.unarchive_experiment(found.experiment_id), patience_s)
            ui_url = server.api.server.ui_url
        if told and told != found.description:
            log.warning("Experiment %r is there with the description %r, which cannot be changed.", found.name, found.description)
        page = pages(ui_url, experiment_id=found.experiment_id)["experiment"]
        self.kfp_links = {"experiment": page}
        return {"version": 1, "experiment_id": found.experiment_id, "name": found.name, "url": page}


class KfpRunActionOperator(BaseOperator):
    """
    Does something to a run that was started elsewhere; it may be done again.

    ``terminate`` leaves alone what has ended; the run is CANCELING until its workflow has ended, and FAILED then. ``retry`` has
    repeated what failed, under the same id, and leaves alone what runs or has succeeded: wait for it with ``KfpRunSensor``.
    ``archive`` does not stop a run. ``delete`` stops it, and leaves alone what is gone.

    Do not ``retry`` a run whose recurring run was deleted, such as one of ``exactly_once="carrier"`` whose task has failed for
    good: Kubernetes deletes its workflow again, and it stays RUNNING.

    The XCom is as of ``KfpRunPipelineOperator``: the run as it is now, or as it was before it was deleted.

    :param run_id: The run.
    :param action: ``terminate``, ``retry``, ``archive``, ``unarchive`` or ``delete``.
    :param kfp_conn_id: Connection of the server.
    :param namespace: Namespace of the run, for a server with users; None takes the connection's.
    """

    template_fields: Sequence[str] = ("run_id", "namespace")
    operator_extra_links = (KfpRunLink(), KfpExperimentLink(), KfpPipelineLink())
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        run_id: str,
        action: RunAction,
        kfp_conn_id: str = "kfp_default",
        namespace: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.run_id = run_id
        self.action = action
        self.kfp_conn_id = kfp_conn_id
        self.namespace = namespace
        self.kfp_links: dict[str, str] = {}
        check_choice(self.task_id, "action", action, get_args(RunAction))
        check_given(self.task_id, "run_id", run_id)

    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002  (Airflow's signature)
        """
        Look at the run, and do what is left to do.

        :param context: Airflow's context.
        :return: The run, as plain JSON.
        :raises AirflowFailException: the id is empty, or the server refuses the action; a retry never helps.
        :raises RemoteNotFoundError: there is no such run, and it was not to be deleted.
        :raises RemoteUnavailableError: the server has not done it within ``[ml] patience_s``; a retry is safe.
        """
        from airflow_ml_provider.jobs.kfp_actions import RunActions
        from airflow_ml_provider.jobs.kfp_connected import connected, run_reference

        with connected(self.kfp_conn_id, self.namespace) as server:
            check_given(self.task_id, "run_id", self.run_id)
            run = getattr(RunActions(server.jobs, server.patience_s), self.action)(self.run_id)
            self.kfp_links = pages(server.api.server.ui_url, run)
        log.info("%s of run %s: done. It is %s: %s", self.action, run.run_id, run.state, self.kfp_links["run"])
        return run_reference(run, self.kfp_links["run"])
