"""What the server does with runs: create, look, list, stop, retry, put away, delete."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any

from airflow_ml_provider.testing.kfp_answers import KfpError, answer, internal, invalid, missing, moment, run_text
from airflow_ml_provider.testing.kfp_catalog import Catalog
from airflow_ml_provider.testing.kfp_checks import check_label, check_plugins, check_size
from airflow_ml_provider.testing.kfp_columns import RUNS
from airflow_ml_provider.testing.kfp_engine import Engine
from airflow_ml_provider.testing.kfp_filter import read_query
from airflow_ml_provider.testing.kfp_messages import RUN
from airflow_ml_provider.testing.kfp_parameters import check_parameters, check_spec
from airflow_ml_provider.testing.kfp_proto import normal, read_message, seconds_of
from airflow_ml_provider.testing.kfp_store import DuplicateError, Store
from airflow_ml_provider.testing.kfp_values import Answer, Run, Workflow

KEY_NAMESPACE = uuid.UUID("c2f3a9d4-1e6b-4c8a-9f7d-0b5e3a1c2d4f")
"""Of the ids of runs that are created with a recurring run and no id."""

CREATE = "Failed to create a new run: "
REFUSED = "dial tcp kubernetes.example:6443: connect: connection refused"
OBJECTS = "https://kubernetes.example:6443/apis/argoproj.io/v1alpha1/namespaces"


class LostError(Exception):
    """The answer is lost on purpose, between the workflow and its row."""


class Runs:
    """
    The operations on runs.

    :param store: The tables.
    :param engine: Where workflows run.
    :param catalog: Pipelines and experiments.
    :param gap_s: Seconds between the look for a key and the row of a create with a recurring run; in them simultaneous creates
        miss each other.
    """

    def __init__(self, store: Store, engine: Engine, catalog: Catalog, gap_s: float) -> None:
        self.store = store
        self.engine = engine
        self.catalog = catalog
        self.gap_s = gap_s
        self.plugin: Callable[[Run], None] | None = None

    def read(self, body: bytes) -> dict[str, Any]:
        """
        Read the body of a create.

        :param body: JSON.
        :return: Its fields.
        :raises KfpError: 400.
        """
        return read_message(body.decode() or "{}", RUN)

    def create(self, data: Mapping[str, Any], *, strike: str = "") -> Answer:
        """
        Start a run: first the workflow, then the row, and nothing is undone.

        :param data: What was sent.
        :param strike: ``lost-between`` or ``orphan-500`` to fail between the two.
        :return: The run.
        :raises KfpError: every way in which a real server refuses or fails.
        :raises LostError: the answer is to be lost.
        """
        with self.store.lock:
            prepared = self.prepare(data)
            if isinstance(prepared, Answer):
                return prepared
            run, spec = prepared
            workflow = self.launch(run, spec)
        if strike == "lost-between":
            raise LostError
        if strike == "orphan-500":
            failed = "Failed to create a run: InternalServerError: Failed to create a new transaction to create run"
            raise internal(f"{CREATE}{failed}: invalid connection")
        if run.recurring_run_id:
            time.sleep(self.gap_s)
        with self.store.lock:
            run.created_at = self.store.now
            run.workflow = workflow
            return self.insert(run)

    def insert(self, run: Run) -> Answer:
        """
        Write the row of a run that has a workflow.

        :param run: The row.
        :return: The run that is under the id.
        :raises KfpError: 500.
        """
        try:
            self.store.add_run(run)
        except DuplicateError as twice:
            if not run.recurring_run_id:
                raise internal(str(twice)) from None
            return answer(run_text(self.store.runs[run.run_id]))
        return answer(run_text(run))

    def prepare(self, data: Mapping[str, Any]) -> tuple[Run, dict[str, Any]] | Answer:
        """
        Check a create, before anything is started.

        :param data: What was sent.
        :return: The row and its pipeline; or the answer, when the key is known already.
        :raises KfpError: 400, 404, 409, 500.
        """
        if not data.get("display_name"):
            empty = (
                "Failed to convert a API run detail to its internal representation: Invalid input error: Run name cannot be empty"
            )
            raise internal(f"CreateJob(job.ToV2())Failed to create a run due to conversion error: InternalServerError: {empty}")
        check_plugins(data)
        experiment = self.catalog.experiment_for(data.get("experiment_id", ""), f"{CREATE}Failed to create a run ")
        recurring = data.get("recurring_run_id", "")
        if recurring:
            if recurring not in self.store.recurring:
                why = f"Invalid input error: RecurringRunId doesn't exist: {recurring}"
                raise internal(f"{CREATE}InternalServerError: Failed to create a run due to invalid recurring run id: {why}")
            known = self.store.keyed(recurring, data["display_name"])
            if known is not None:
                return answer(run_text(known))
        spec, pipeline_id, version_id = self.catalog.source(data)
        check_spec(spec)
        config = normal(data.get("runtime_config") or {})
        check_parameters(spec, config.get("parameters") or {}, f"{CREATE}Failed to generate the ExecutionSpec: ")
        run = self.row(data, experiment.experiment_id, experiment.namespace)
        run.pipeline_id, run.pipeline_version_id = pipeline_id, version_id
        run.pipeline_spec = None if version_id else spec
        run.runtime_config = config or None
        return run, spec

    def row(self, data: Mapping[str, Any], experiment_id: str, namespace: str) -> Run:
        """
        Make a row of what was sent.

        :param data: What was sent.
        :param experiment_id: Its experiment.
        :param namespace: Its namespace.
        :return: The row, without its pipeline.
        """
        now, recurring = self.store.now, data.get("recurring_run_id", "")
        derived = str(uuid.uuid5(KEY_NAMESPACE, f"{recurring}/{data['display_name']}")) if recurring else self.store.new_id("run")
        run = Run(data.get("run_id") or derived, data["display_name"], now, experiment_id, namespace)
        run.description, run.recurring_run_id = data.get("description", ""), recurring
        run.storage_state = data.get("storage_state", "AVAILABLE")
        run.service_account = data.get("service_account") or "pipeline-runner"
        run.scheduled_at = seconds_of(data.get("scheduled_at", "")) or now
        run.finished_at = seconds_of(data.get("finished_at", "")) or 0
        run.state_history = [*data.get("state_history", []), {"update_time": moment(now), "state": "PENDING"}]
        run.plugins_input = normal(data.get("plugins_input"))
        return run

    def launch(self, run: Run, spec: dict[str, Any]) -> Workflow:
        """
        Start the workflow of a run.

        :param run: The row to be.
        :param spec: Its pipeline.
        :return: The workflow.
        :raises KfpError: 409 from the plugin; 500 when Kubernetes refuses it or is away.
        """
        if self.plugin is not None:
            self.plugin(run)
        namespace = run.namespace or "kubeflow"
        failed = f"{CREATE}InternalServerError: Failed to create a workflow for (): "
        if "kubernetes" in self.store.lost:
            raise internal(f'{failed}Post "{OBJECTS}/{namespace}/workflows": {REFUSED}')
        check_label(run.run_id, self.engine.new_name(spec), failed)
        check_size(spec, failed)
        return self.engine.start(spec, run.run_id, run.display_name, namespace, run.recurring_run_id)

    def find(self, run_id: str, prefix: str) -> Run:
        """
        Find a row.

        :param run_id: Its id; letter case does not count, as in every comparison of the database.
        :param prefix: What is being done.
        :return: The row.
        :raises KfpError: 404.
        """
        self.store.check_database(f"{prefix}Failed to fetch run {run_id}: InternalServerError: Failed to get run", twice=True)
        if run_id not in self.store.runs:
            raise missing(f"{prefix}Failed to fetch run {run_id}: ", "Run", run_id)
        return self.store.runs[run_id]

    def get(self, run_id: str) -> Answer:
        """
        Look at a run.

        :param run_id: Its id.
        :return: The run.
        :raises KfpError: 404.
        """
        return answer(run_text(self.find(run_id, "Failed to get a run: ")))

    def list(self, query: Mapping[str, str]) -> Answer:
        """
        List runs.

        :param query: Query parameters.
        :return: A page.
        :raises KfpError: 400, 404 for an unknown experiment.
        """
        wanted = read_query(RUNS, query)
        self.store.check_database(
            "Failed to list runs: Failed to list runs: InternalServerError: Failed to list runs", twice=True
        )
        experiment = query.get("experiment_id", "")
        if experiment and experiment not in self.store.experiments:
            fetching = f"error fetching namespace for experiment {experiment}. Try filtering based on namespace"
            way = f"Failed to list runs due to {fetching}"
            where = f"Failed to fetch namespace from experiment {experiment}"
            raise missing(f"Failed to list runs: {way}: {where}: ", "Experiment", experiment)
        items = self.store.candidates(wanted)
        if experiment:
            items = [each for each in items if each.experiment_id == experiment]
        elif self.store.multi_user:
            items = [each for each in items if each.namespace == query.get("namespace", "")]
        page, total, token = wanted.page(items)
        if not page:
            return answer({"total_size": total} if total else {})
        parts = [b'{"runs":[', b",".join(run_text(each) for each in page), b'],"total_size":%d' % total]
        return answer(b"".join([*parts, b',"next_page_token":"%s"}' % token.encode() if token else b"}"]))

    def terminate(self, run_id: str) -> Answer:
        """
        Ask a run to stop: it is CANCELING at once, and FAILED when its workflow has ended.

        :param run_id: Its id.
        :return: Nothing.
        :raises KfpError: 404; 400 for a run that has ended or is CANCELING; 500 when the workflow cannot be reached.
        """
        doing = "Failed to terminate a run: "
        run = self.find(run_id, f"{doing}Failed to terminate run {run_id} due to error fetching the run: ")
        if run.state in {"CANCELING", "SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"}:
            raise invalid(f"{doing}Failed to terminate run {run_id}: ", f"Failed to terminate a run {run_id}. Row not found")
        run.state = "CANCELING"
        self.store.touch(run)
        self.stop(run, f"{doing}InternalServerError: Failed to terminate run {run_id} due to error terminating its workflow: ")
        return answer({})

    def stop(self, run: Run, failed: str) -> None:
        """
        Tell the workflow of a run to stop.

        :param run: The row.
        :param failed: What to say when that is impossible.
        :raises KfpError: 500.
        """
        workflow = run.workflow
        name = workflow.name if workflow else ""
        tried = f"Failed to terminate workflow {name} due to patching error"
        if "kubernetes" in self.store.lost:
            way = f'Patch "{OBJECTS}/{run.namespace or "kubeflow"}/workflows/{name}": {REFUSED}'
            raise internal(f"{failed}{tried} after multiple retries: {tried}: {way}")
        if workflow is None or workflow.deleted:
            raise internal(f'{failed}{tried} after multiple retries: {tried}: workflows.argoproj.io "{name}" not found')
        workflow.stopped = True
        workflow.fate += 1
        fate = self.engine.fate_of(workflow)
        if fate is not None and not workflow.ended:
            self.engine.plan(self.store.clock() + fate.seconds, lambda at: self.end(workflow, at))

    def end(self, workflow: Workflow, at: float) -> None:
        """
        End a workflow that was told to stop.

        :param workflow: The workflow.
        :param at: When.
        """
        if workflow.stopped and not workflow.ended:
            self.engine.move(workflow, "FAILED", at=at)
            self.engine.quietly(workflow)

    def retry(self, run_id: str) -> Answer:
        """
        Repeat what failed in a run, under the same id.

        :param run_id: Its id.
        :return: Nothing.
        :raises KfpError: 404; 409 for a run whose workflow has not failed; 500 when Kubernetes is away.
        """
        doing = "Failed to retry a run: "
        run = self.find(run_id, f"{doing}Failed to retry run {run_id} due to error fetching the run: ")
        workflow = run.workflow
        if workflow is None or (run.nodes is None and run.state == "PENDING"):
            short = f"Failed to retry run {run_id} due to error fetching workflow manifest"
            raise KfpError(10, f"{doing}BadRequestError: {short}: Invalid input error: Workflow manifest cannot be empty", short)
        if workflow.phase not in {"Failed", "Error"}:
            short = "Workflow must be Failed/Error to retry"
            raise KfpError(
                10, f"{doing}Failed to retry run {run_id}: BadRequestError: {short}: workflow cannot be retried", short
            )
        if "kubernetes" in self.store.lost:
            cleaning = f"Failed to retry run {run_id} due to error cleaning up the failed pods from the previous attempt"
            raise internal(
                f"{doing}InternalServerError: {cleaning}: InternalServerError: Failed to delete pods: Delete: {REFUSED}"
            )
        self.again(run, workflow)
        return answer({})

    def again(self, run: Run, workflow: Workflow) -> None:
        """
        Let a workflow run again.

        :param run: Its row.
        :param workflow: The workflow, which is made anew when it is gone; to no avail when its owner is gone too.
        """
        workflow.deleted = workflow.stopped = workflow.persisted = False
        self.engine.move(workflow, "RUNNING")
        self.engine.write(run, "RUNNING", 0)
        self.engine.schedule(workflow)
        self.engine.collect_ownerless(workflow)

    def store_state(self, run_id: str, state: str) -> Answer:
        """
        Archive a run, or bring it back; neither touches its workflow.

        :param run_id: Its id.
        :param state: ``ARCHIVED`` or ``AVAILABLE``.
        :return: Nothing.
        :raises KfpError: 404.
        """
        word = "archive" if state == "ARCHIVED" else "unarchive"
        why = "it failed to be retrieved" if word == "archive" else "it does not exist"
        run = self.find(run_id, f"Failed to {word} a run: Failed to {word} run {run_id} as {why}: ")
        run.storage_state = state
        self.store.touch(run)
        return answer({})

    def delete(self, run_id: str) -> Answer:
        """
        Delete a run in any state, with its workflow if Kubernetes can be reached.

        :param run_id: Its id.
        :return: Nothing.
        :raises KfpError: 404.
        """
        run = self.find(run_id, f"Failed to delete a run: Failed to delete run {run_id} as it does not exist: ")
        if run.workflow is not None and "kubernetes" not in self.store.lost:
            run.workflow.deleted = True
            run.workflow.fate += 1
        self.store.drop_run(run_id)
        return answer({})
