"""What the server does with recurring runs. None of them starts a run by itself here: a test posts what the controller would."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from airflow_ml_provider.testing.kfp_answers import answer, internal, invalid, missing, recurring_json
from airflow_ml_provider.testing.kfp_catalog import Catalog
from airflow_ml_provider.testing.kfp_columns import RECURRING as LISTED
from airflow_ml_provider.testing.kfp_engine import SIGNS, Engine
from airflow_ml_provider.testing.kfp_filter import read_query
from airflow_ml_provider.testing.kfp_messages import RECURRING
from airflow_ml_provider.testing.kfp_parameters import check_parameters
from airflow_ml_provider.testing.kfp_proto import normal, read_message
from airflow_ml_provider.testing.kfp_runs import REFUSED
from airflow_ml_provider.testing.kfp_store import Store
from airflow_ml_provider.testing.kfp_values import Answer, RecurringRun

DOING = "Failed to create a recurring run"
CONCURRENCY = 10


class Recurring:
    """
    The operations on recurring runs.

    :param store: The tables.
    :param catalog: Pipelines and experiments.
    :param engine: Where workflows run, which belong to the ScheduledWorkflow object that started them.
    """

    def __init__(self, store: Store, catalog: Catalog, engine: Engine) -> None:
        self.store = store
        self.catalog = catalog
        self.engine = engine

    def create(self, body: bytes) -> Answer:
        """
        Make a recurring run; an id that the client chose is replaced.

        :param body: JSON.
        :return: The recurring run.
        :raises KfpError: 400, 404, 500.
        """
        data = read_message(body.decode() or "{}", RECURRING)
        self.check(data)
        experiment = self.catalog.experiment_for(data.get("experiment_id", ""), f"{DOING}: {DOING} ")
        spec, pipeline_id, version_id = self.catalog.source(data)
        config = normal(data.get("runtime_config") or {})
        way = f"{DOING}: {DOING} during scheduled workflow creation: "
        check_parameters(spec, config.get("parameters") or {}, way)
        if "kubernetes" in self.store.lost:
            where = "https://kubernetes.example:6443/apis/kubeflow.org/v1beta1/namespaces/kubeflow/scheduledworkflows"
            raise internal(f'Internal error: Post "{where}": {REFUSED}\n{DOING} during scheduling a workflow')
        row = self.row(data, experiment.experiment_id, experiment.namespace or "kubeflow")
        named = (data.get("pipeline_version_reference") or {}).get("pipeline_version_id") or data.get("pipeline_version_id")
        row.pipeline_id, row.pipeline_version_id = pipeline_id, version_id if named else ""
        row.pipeline_spec, row.runtime_config = None if pipeline_id else spec, config or None
        row.service_account = data.get("service_account") or ("" if pipeline_id and not named else "pipeline-runner")
        self.store.recurring[row.recurring_run_id] = row
        return answer(shown(row))

    def row(self, data: Mapping[str, Any], experiment_id: str, namespace: str) -> RecurringRun:
        """
        Make a row of what was sent.

        :param data: What was sent.
        :param experiment_id: Its experiment.
        :param namespace: Its namespace.
        :return: The row, without its pipeline.
        """
        name, now = data["display_name"], self.store.now
        row_id, object_name = self.store.new_id("recurring-run"), self.object_name(name)
        row = RecurringRun(row_id, name, now, experiment_id, namespace, object_name, data["max_concurrency"])
        row.description, row.updated_at = data.get("description", ""), now
        row.trigger, row.enabled = _trigger(data.get("trigger") or {}), data.get("mode") == "ENABLE"
        row.no_catchup = bool(data.get("no_catchup"))
        return row

    def check(self, data: Mapping[str, Any]) -> None:
        """
        Refuse what cannot be scheduled.

        :param data: What was sent.
        :raises KfpError: 400, or 500 for an empty name.
        """
        converting = f"{DOING} due to conversion error: "
        concurrency = data.get("max_concurrency", 0)
        if not data.get("display_name"):
            raise internal(f"{converting}InternalServerError: Invalid input error: Recurring run name cannot be empty")
        if not 1 <= concurrency <= CONCURRENCY:
            limits = f"Max concurrency of a recurring run must be at least 1 and at most {CONCURRENCY}. Received {concurrency}"
            raise invalid(converting, limits)
        trigger = data.get("trigger") or {}
        cron = (trigger.get("cron_schedule") or {}).get("cron")
        if cron is not None and len(cron.split()) not in {5, 6}:
            about = "Schedule cron is not a supported format(https://godoc.org/github.com/robfig/cron)"
            raise invalid(converting, f"{about}. Error: Expected 5 to 6 fields, found {len(cron.split())}: {cron}")
        periodic = trigger.get("periodic_schedule")
        if periodic is not None and periodic.get("interval_second", 0) < 1:
            interval = periodic.get("interval_second", 0)
            raise invalid(converting, f"Found invalid period schedule interval {interval}. Set at interval to least 1 second")

    def object_name(self, display_name: str) -> str:
        """
        Make up the name of the ScheduledWorkflow object.

        :param display_name: Name of the recurring run.
        :return: Its letters and digits, and five signs.
        """
        plain = "".join(each for each in display_name.lower() if each.isascii() and each.isalnum()) or "job"
        return plain[:24] + "".join(random.choices(SIGNS, k=5))  # noqa: S311  (a name, no secret)

    def find(self, recurring_run_id: str, prefix: str) -> RecurringRun:
        """
        Find a recurring run.

        :param recurring_run_id: Its id.
        :param prefix: What is being done.
        :return: The row.
        :raises KfpError: 404.
        """
        self.store.check_database(f"{prefix}InternalServerError: Failed to get recurring run")
        if recurring_run_id not in self.store.recurring:
            raise missing(prefix, "Job", recurring_run_id)
        return self.store.recurring[recurring_run_id]

    def get(self, recurring_run_id: str) -> Answer:
        """
        Look at a recurring run.

        :param recurring_run_id: Its id.
        :return: The recurring run.
        :raises KfpError: 404.
        """
        return answer(shown(self.find(recurring_run_id, "Failed to fetch a recurring run: ")))

    def list(self, query: Mapping[str, str]) -> Answer:
        """
        List recurring runs, under the name ``recurringRuns``.

        :param query: Query parameters.
        :return: A page.
        :raises KfpError: 400.
        """
        wanted = read_query(LISTED, query)
        self.store.check_database("Failed to list jobs: InternalServerError: Failed to list jobs")
        rows = list(self.store.recurring.values())
        if query.get("experiment_id"):
            rows = [each for each in rows if each.experiment_id == query["experiment_id"]]
        elif self.store.multi_user:
            rows = [each for each in rows if each.namespace == query.get("namespace", "")]
        page, total, token = wanted.page(rows)
        body: dict[str, Any] = {"recurringRuns": [shown(each) for each in page]} if page else {}
        body |= {"total_size": total} if total else {}
        return answer(body | ({"next_page_token": token} if token else {}))

    def switch(self, recurring_run_id: str, *, on: bool) -> Answer:
        """
        Enable or disable a recurring run; it can be repeated.

        :param recurring_run_id: Its id.
        :param on: Whether it is to be enabled.
        :return: Nothing.
        :raises KfpError: 404; 500 when Kubernetes is away.
        """
        word, flag = ("enable", "true") if on else ("disable", "false")
        doing = f"Failed to {word} a recurring run: "
        missing_way = (
            f"Failed to change recurring run's mode to enable:{flag}. Check if recurring run {recurring_run_id} exists: "
        )
        row = self.find(recurring_run_id, doing + missing_way)
        changing = f"{doing}InternalServerError: Failed to change recurring run's {recurring_run_id} mode to enable:{flag}"
        if "kubernetes" in self.store.lost:
            raise internal(f"{changing}: {REFUSED}")
        if row.object_gone:
            why = f'scheduledworkflows.kubeflow.org "{row.workflow_name}" not found'
            raise internal(f"{changing}: {why}")
        row.enabled, row.updated_at = on, self.store.now
        return answer({})

    def delete(self, recurring_run_id: str) -> Answer:
        """
        Delete a recurring run. Its runs stay; their workflows go, running or not, and those runs are never reported again.

        :param recurring_run_id: Its id.
        :return: Nothing.
        :raises KfpError: 404; 500 when Kubernetes is away, and nothing is deleted.
        """
        doing, what = "Failed to delete a recurring run: ", f"Failed to delete recurring run {recurring_run_id}. Check if "
        self.find(recurring_run_id, f"{doing}{what}exists: ")
        if "kubernetes" in self.store.lost:  # in no recording; so says the server's source, which keeps the row then
            raise internal(f"{doing}InternalServerError: {what}the scheduled workflow exists: {REFUSED}")
        del self.store.recurring[recurring_run_id]
        self.engine.collect_ownerless()
        return answer({})


def shown(row: RecurringRun) -> dict[str, Any]:
    """
    Show a recurring run, with its trigger even when that is empty.

    :param row: The row.
    :return: JSON.
    """
    return {**recurring_json(row), "trigger": row.trigger or {}}


def _trigger(data: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: dict(each) for name, each in data.items()}
    periodic = found.get("periodic_schedule")
    if periodic is not None:
        periodic["interval_second"] = str(periodic.get("interval_second", 0))
    return found
