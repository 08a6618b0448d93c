"""Recurring runs of Kubeflow Pipelines as tasks: schedules that the server keeps, which go on when Airflow is away."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from airflow.sdk import BaseOperator

from airflow_ml_provider.core.kfp_names import check_run_name, fitted_run_name
from airflow_ml_provider.core.kfp_schedule import trigger_of
from airflow_ml_provider.core.wiring import check_choice, check_given
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.links.kfp import KfpExperimentLink, KfpPipelineLink, pages
from airflow_ml_provider.links.kfp_recurring import KfpRecurringRunLink, recurring_run_page
from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.models.run import StepIdentity

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.jobs.kfp_connected import Connected
    from airflow_ml_provider.jobs.kfp_recurring import KfpRecurringRuns, RecurringRun

log = logging.getLogger(__name__)

RecurringAction = Literal["enable", "disable", "delete"]
"""What can be done to a recurring run."""
MOST_AT_ONCE = 10
"""The server's limit of ``max_concurrency``."""
TEMPLATE_MARKS = ("{{", "{%")


class KfpCreateRecurringRunOperator(BaseOperator):
    """
    Sees to it that a recurring run is there as defined here, once; the same again changes nothing.

    The name is the key, within the namespace. What is there under the same name with another definition is **disabled, not
    deleted**, since Kubernetes would delete the workflows of its runs with it, running or not; the log names it. Delete
    it with ``KfpRecurringRunOperator`` when its runs are over. A switch that somebody has turned by hand is turned back.

    A pipeline that is named without a version is taken in the version that is the newest now; run the task again to follow.

    The XCom is ``{"version", "recurring_run_id", "name", "enabled", "url", "experiment_id", "pipeline_id",
    "pipeline_version_id"}``.

    :param name: Name of the recurring run, at most 255 characters.
    :param pipeline: A compiled package or the name of a registered pipeline, as for ``KfpRunPipelineOperator``.
    :param schedule: A cron of five fields as in Airflow (minute first), of six (second first), a preset (``@daily``), or a
        timedelta of whole seconds. The server reads a cron in its own time zone, UTC unless it was set up otherwise.
    :param arguments: Value per parameter of the pipeline, checked against its own definitions. The server fills in nothing:
        they are the same for every run.
    :param start: Time before which no run is planned: a datetime with a time zone, or ISO text; None for no limit.
    :param end: Time after which no run is planned, likewise.
    :param max_concurrency: Most runs at once, 1 to 10.
    :param enabled: Whether it starts runs.
    :param catchup: Whether runs that were missed, while it was off or too many ran, are made up for one by one; else the
        latest alone.
    :param experiment: Name of the experiment of its runs, made when there is none; None takes the DAG's id.
    :param kfp_conn_id: Connection of the server.
    :param options: What is rarely said: namespace, pipeline root, service account, description, plugins. The description is
        written when the recurring run is made, and makes no other definition; nor does a service account that is left out.
    """

    template_fields: Sequence[str] = ("name", "pipeline", "schedule", "arguments", "start", "end", "experiment")
    template_fields_renderers: ClassVar[dict[str, str]] = {"arguments": "json"}
    operator_extra_links = (KfpRecurringRunLink(), KfpExperimentLink(), KfpPipelineLink())
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        name: str,
        pipeline: str,
        schedule: str | timedelta,
        arguments: Mapping[str, Any] | None = None,
        start: datetime | str | None = None,
        end: datetime | str | None = None,
        max_concurrency: int = 1,
        enabled: bool = True,
        catchup: bool = False,
        experiment: str | None = None,
        kfp_conn_id: str = "kfp_default",
        options: KfpRunOptions | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.name = name
        self.pipeline = pipeline
        self.schedule = schedule
        self.arguments = arguments
        self.start = start
        self.end = end
        self.max_concurrency = max_concurrency
        self.enabled = enabled
        self.catchup = catchup
        self.experiment = experiment
        self.kfp_conn_id = kfp_conn_id
        self.options = options
        self.kfp_links: dict[str, str] = {}
        self._check()

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Check the definition, compare it with what is there, and change what differs.

        :param context: Airflow's context.
        :return: The recurring run, as plain JSON.
        :raises AirflowFailException: the schedule, an argument, a name or the package is wrong; what was there is as it
            was, and a retry never helps.
        :raises RemoteNotFoundError: there is no such package or pipeline; a retry helps only if somebody makes it.
        :raises RemoteUnavailableError: the server did not answer within ``[ml] patience_s``; a retry is safe.
        """
        from airflow_ml_provider.hooks.patience import patiently
        from airflow_ml_provider.jobs.kfp_connected import connected
        from airflow_ml_provider.jobs.kfp_recurring import KfpRecurringRuns

        with connected(self.kfp_conn_id, self._chosen.namespace) as server:
            body, runs = self._body(context, server), KfpRecurringRuns(server.catalog)
            found = patiently(
                f"put recurring run {self.name!r} in order", lambda: runs.establish(body, enabled=self.enabled), server.patience_s
            )
            ui_url = server.api.server.ui_url
        reference: dict[str, str] = body["pipeline_version_reference"]
        self.kfp_links = {"recurring_run": recurring_run_page(ui_url, found.recurring_run_id)} | pages(
            ui_url,
            experiment_id=found.experiment_id,
            pipeline_id=reference["pipeline_id"],
            version_id=reference["pipeline_version_id"],
        )
        log.info("Recurring run %s: %s", found.recurring_run_id, self.kfp_links["recurring_run"])
        return _reference_of(found, self.kfp_links["recurring_run"]) | reference

    @property
    def _chosen(self) -> KfpRunOptions:
        return self.options or KfpRunOptions()

    def _body(self, context: Context, server: Connected) -> dict[str, Any]:
        from airflow_ml_provider.jobs.kfp_connected import dag_folder
        from airflow_ml_provider.operators.kfp_request import build_request

        check_given(self.task_id, "name", self.name)
        trigger, ti = trigger_of(self.schedule, self.start, self.end), context["ti"]
        told = self._chosen.description or fitted_run_name(f"Airflow task {ti.task_id} of {ti.dag_id}")
        body = build_request(
            server.catalog,
            StepIdentity(dag_id=ti.dag_id, run_id=str(ti.run_id), task_id=ti.task_id),
            pipeline=self.pipeline,
            arguments=self.arguments,
            experiment=self.experiment,
            run_name=self.name,
            options=self._chosen.model_copy(update={"description": told}),
            dag_folder=dag_folder(context),
            patience_s=server.patience_s,
        )
        return body | {"trigger": trigger, "max_concurrency": str(self.max_concurrency), "no_catchup": not self.catchup}

    def _check(self) -> None:
        """Refuse at parse time what could never work; what a template fills in is checked when it has."""
        for name in ("name", "pipeline"):
            check_given(self.task_id, name, getattr(self, name))
        try:
            trigger_of(*(_known(each, rest) for each, rest in ((self.schedule, "@daily"), (self.start, None), (self.end, None))))
        except ConfigError as error:
            raise ConfigError(f"task {self.task_id!r}: {error}") from error
        most = self.max_concurrency
        if not isinstance(most, int) or isinstance(most, bool) or not 1 <= most <= MOST_AT_ONCE:
            raise ConfigError(f"task {self.task_id!r}: max_concurrency={most!r} is out of range. Give 1 to {MOST_AT_ONCE}.")
        if not self._chosen.register_package:
            raise ConfigError(
                f"task {self.task_id!r}: options.register_package=False is for single runs; a recurring run refers to a version, "
                "by which it is told whether its definition has changed. Leave it out."
            )


class KfpRecurringRunOperator(BaseOperator):
    """
    Enables, disables or deletes a recurring run; it may be done again.

    Kubernetes deletes the workflows of its runs with a recurring run, running or not, and such a run is RUNNING for
    ever. So a delete fails while a run of it is active; the recurring run is disabled then, so that a retry finds an end.

    The XCom is ``{"version", "recurring_runs"}``, a list of ``{"version", "recurring_run_id", "name", "enabled", "url",
    "experiment_id"}``; those that were deleted as they were before.

    :param action: ``enable``, ``disable`` or ``delete``.
    :param recurring_run_id: Its id.
    :param name: Its name, in place of the id: all of that name are disabled or deleted; none is enabled if there are several.
    :param even_if_active: Whether it is deleted with the workflows of its active runs.
    :param kfp_conn_id: Connection of the server.
    :param namespace: Its namespace, for a server with users; None takes the connection's.
    """

    template_fields: Sequence[str] = ("recurring_run_id", "name", "namespace")
    operator_extra_links = (KfpRecurringRunLink(), KfpExperimentLink())
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        action: RecurringAction,
        recurring_run_id: str | None = None,
        name: str | None = None,
        even_if_active: bool = False,
        kfp_conn_id: str = "kfp_default",
        namespace: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.action = action
        self.recurring_run_id = recurring_run_id
        self.name = name
        self.even_if_active = even_if_active
        self.kfp_conn_id = kfp_conn_id
        self.namespace = namespace
        self.kfp_links: dict[str, str] = {}
        check_choice(self.task_id, "action", action, get_args(RecurringAction))
        if (recurring_run_id is None) is (name is None):
            raise ConfigError(f"task {self.task_id!r}: give either recurring_run_id or name.")
        check_given(self.task_id, *(("name", name) if name is not None else ("recurring_run_id", recurring_run_id)))

    def execute(self, context: Context) -> dict[str, Any]:  # noqa: ARG002  (Airflow's signature)
        """
        Find it, and do what is left to do.

        :param context: Airflow's context.
        :return: The recurring runs, as plain JSON.
        :raises AirflowFailException: several have the name of what is to be enabled, or the server refuses; a retry never helps.
        :raises RemoteNotFoundError: there is none, and it was not to be deleted.
        :raises RemoteUnavailableError: a run of what is to be deleted is active, and a retry helps when it has ended; or the
            server did not answer within ``[ml] patience_s``, and a retry is safe.
        """
        from airflow_ml_provider.hooks.patience import patiently
        from airflow_ml_provider.jobs.kfp_connected import connected
        from airflow_ml_provider.jobs.kfp_recurring import KfpRecurringRuns

        with connected(self.kfp_conn_id, self.namespace) as server:
            runs, patience_s = KfpRecurringRuns(server.catalog), server.patience_s
            found = patiently(f"find recurring run {self._label}", lambda: self._find(runs), patience_s)
            for each in found:
                self._act(each, runs, server)
            ui_url = server.api.server.ui_url
        for each in found:
            self.kfp_links["recurring_run"] = recurring_run_page(ui_url, each.recurring_run_id)
            self.kfp_links |= pages(ui_url, experiment_id=each.experiment_id)
        told = [_reference_of(each, recurring_run_page(ui_url, each.recurring_run_id)) for each in found]
        if self.action != "delete":
            told = [each | {"enabled": self.action == "enable"} for each in told]
        return {"version": 1, "recurring_runs": told}

    @property
    def _label(self) -> str:
        return repr(self.name) if self.name is not None else str(self.recurring_run_id)

    def _find(self, runs: KfpRecurringRuns) -> list[RecurringRun]:
        if self.name is not None:
            check_given(self.task_id, "name", self.name)
            found = runs.named(check_run_name(self.name))
        else:
            check_given(self.task_id, "recurring_run_id", self.recurring_run_id)
            one = runs.look(str(self.recurring_run_id))
            found = [one] if one else []
        if not found and self.action != "delete":
            raise RemoteNotFoundError(f"the server has no recurring run {self._label} that could be {self.action}d.")
        if len(found) > 1 and self.action == "enable":
            raise ConfigError(
                f"{len(found)} recurring runs are named {self.name!r}: {', '.join(each.recurring_run_id for each in found)}. "
                "Say which to enable by its id; all of them at once would start every run several times."
            )
        if not found:
            log.info("There is no recurring run %s: nothing to delete.", self._label)
        return found

    def _act(self, one: RecurringRun, runs: KfpRecurringRuns, server: Connected) -> None:
        from airflow_ml_provider.hooks.patience import patiently

        what, patience_s = f"{self.action} recurring run {one.recurring_run_id}", server.patience_s
        if self.action != "delete":
            patiently(what, lambda: runs.switch(one.recurring_run_id, on=self.action == "enable"), patience_s)
        elif active := patiently(what, lambda: runs.delete(one, server.jobs, even_if_active=self.even_if_active), patience_s):
            named = ", ".join(f"{each.run_id} ({each.state})" for each in active[:5])
            raise RemoteUnavailableError(
                f"recurring run {one.recurring_run_id} ({one.name!r}) is not deleted: {len(active)} of its runs are active "
                f"({named}), and Kubernetes would delete their workflows with it. It is disabled now, so a retry helps when they "
                "have ended; or terminate them, or set even_if_active=True."
            )
        log.info("%s: done.", what)


def _reference_of(one: RecurringRun, url: str) -> dict[str, Any]:
    """
    Write what a task leaves in XCom of a recurring run.

    :param one: The recurring run.
    :param url: Its page.
    :return: Plain JSON.
    """
    return {
        "version": 1,
        "recurring_run_id": one.recurring_run_id,
        "name": one.name,
        "enabled": one.enabled,
        "url": url,
        "experiment_id": one.experiment_id,
    }


def _known(value: Any, otherwise: Any) -> Any:
    """Take a value as far as it is known at parse time: what a template or another task fills in is not."""
    if isinstance(value, str) and not any(mark in value for mark in TEMPLATE_MARKS):
        return value
    return value if value is None or isinstance(value, (timedelta, datetime)) else otherwise
