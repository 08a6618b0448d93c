"""Which right each path needs in multi-user mode, and with which words it is refused. Ids are looked up before rights."""

from __future__ import annotations

import re

from airflow_ml_provider.testing.kfp_answers import KfpError, PlainError, invalid, missing
from airflow_ml_provider.testing.kfp_gate import Gate
from airflow_ml_provider.testing.kfp_store import Store
from airflow_ml_provider.testing.kfp_values import Request

REQUEST = "Failed to authorize the request: "
API = "Failed to authorize with API: "
PATH = re.compile(r"/apis/v2beta1/(runs|experiments|recurringruns|pipelines|workflows)(?:/([^/:]*)(?::(\w+))?)?(/.*)?")
VERBS = {"GET": "get", "DELETE": "delete", "POST": "create"}


class Rights:
    """
    Asks the gate for each request.

    :param store: The tables.
    :param gate: Who may do what.
    """

    def __init__(self, store: Store, gate: Gate) -> None:
        self.store = store
        self.gate = gate

    def check(self, request: Request) -> None:
        """
        Check the right to a request; runs that are created are checked by :meth:`new_run`, when their experiment is known.

        :param request: The request.
        :raises KfpError: 400 without a namespace, 401, 403, 404; 500 or 503 while Kubernetes is away.
        :raises PlainError: 400 for uploads, 403 for artifacts.
        """
        match = PATH.fullmatch(request.path)
        if match is None:
            return
        kind, one, verb, rest = match.groups()
        word = verb or VERBS.get(request.method, "get")
        if kind == "runs" and request.path != "/apis/v2beta1/runs":
            self.run(request, one or "", word, rest or "")
        elif kind == "runs" and request.method == "GET":
            self.list_of_runs(request)
        elif kind == "experiments":
            self.experiment(request, one, word)
        elif kind == "recurringruns":
            self.recurring(request, one, word)
        elif kind == "pipelines":
            self.pipeline(request, one or "", word)
        elif kind == "workflows":
            self.gate.allow(request, "Failed to report workflows due to authorization error.: ", "workflows", "report", "")

    def run(self, request: Request, run_id: str, verb: str, rest: str) -> None:
        """
        Check the right to one run.

        :param request: The request.
        :param run_id: The run.
        :param verb: What is to be done.
        :param rest: The path below the run.
        :raises KfpError: 401, 403, 404.
        :raises PlainError: 403, for every artifact.
        """
        doing = {"unarchive": "unarchive", "archive": "archive"}.get(verb, verb)
        prefix = f"Failed to {doing} a run: {REQUEST}"
        run = self.store.runs.get(run_id)
        if run is None:
            raise missing(f"{prefix}Failed to authorize with the run ID {run_id}: Failed to fetch run {run_id}: ", "Run", run_id)
        access = f"Failed to access run {run_id}. Check if you have access to namespace {run.namespace}: "
        if rest.endswith(":read"):
            try:
                self.gate.user(Request("GET", request.path, {}, {}, b"", request.at), access)
            except KfpError as refused:
                raise PlainError(403, f"{REQUEST}{refused.message}") from None
        name = run.workflow.name if run.workflow else ""
        self.gate.allow(request, prefix + access, "runs", verb, run.namespace, name)

    def list_of_runs(self, request: Request) -> None:
        """
        Check the right to a list of runs.

        :param request: The request.
        :raises KfpError: 400, 401, 403.
        """
        experiment = self.store.experiments.get(request.query.get("experiment_id", ""))
        namespace = experiment.namespace if experiment else request.query.get("namespace", "")
        if request.query.get("experiment_id") and experiment is None:
            return
        permission = f"Check if you have permission to access namespace {namespace}"
        way = f"Failed to list runs: Failed to list runs due to authorization error. {permission}: "
        if not namespace:
            raise invalid(way, "A run cannot have an empty namespace in multi-user mode")
        access = f"Failed to access run . Check if you have access to namespace {namespace}: "
        self.gate.allow(request, way + access, "runs", "list", namespace)

    def new_run(self, request: Request, experiment_id: str) -> None:
        """
        Check the right to create a run.

        :param request: The request.
        :param experiment_id: Its experiment, empty for none.
        :raises KfpError: 400, 401, 403.
        """
        doing = "Failed to create a new run: Failed to create a run due to"
        if not experiment_id:
            raise invalid(
                f"{doing} invalid experimentId and namespace combination: ", "Experiment id can not be empty in multi-user mode"
            )
        experiment = self.store.experiments.get(experiment_id)
        if experiment is None:
            return
        where = experiment.namespace
        way = f"{doing} authorization error. Check if you have write permissions to namespace {where}: "
        self.gate.allow(
            request, f"{way}Failed to access run . Check if you have access to namespace {where}: ", "runs", "create", where
        )

    def experiment(self, request: Request, one: str | None, verb: str) -> None:
        """
        Check the right to an experiment, to a list of them, or to a new one.

        :param request: The request.
        :param one: Its id, None for none.
        :param verb: What is to be done.
        :raises KfpError: 400, 401, 403, 404.
        """
        if one is None:
            self.experiments(request, listing=request.method == "GET")
            return
        doing = {"get": "fetch"}.get(verb, verb)
        experiment = self.store.experiments.get(one)
        if experiment is None:
            raise missing(
                f"Failed to {doing} experiment: {REQUEST}Failed to authorize with the experiment ID: ", "Experiment", one
            )
        prefix = f"Failed to {doing} experiment: {REQUEST}{API}"
        self.gate.allow(request, prefix, "experiments", verb, experiment.namespace, experiment.display_name)

    def experiments(self, request: Request, *, listing: bool) -> None:
        """
        Check the right to a list of experiments or a new one.

        :param request: The request.
        :param listing: Whether they are listed.
        :raises KfpError: 400, 401, 403.
        """
        sent = {} if listing else _json(request)
        namespace = str(request.query.get("namespace", "") if listing else sent.get("namespace") or "")
        prefix = f"List experiments failed: {API}" if listing else f"Failed to create a experiment: {REQUEST}"
        if not namespace:
            raise invalid(prefix, "An experiment cannot have an empty namespace in multi-user mode")
        name = str(sent.get("display_name") or "")
        self.gate.allow(request, prefix + API, "experiments", "list" if listing else "create", namespace, name)

    def recurring(self, request: Request, one: str | None, verb: str) -> None:
        """
        Check the right to a recurring run, to a list of them, or to a new one.

        :param request: The request.
        :param one: Its id, None for none.
        :param verb: What is to be done.
        :raises KfpError: 400, 401, 403.
        """
        row = self.store.recurring.get(one or "")
        listing = one is None and request.method == "GET"
        experiment_id = request.query.get("experiment_id", "") if listing else str(_json(request).get("experiment_id") or "")
        experiment = self.store.experiments.get(experiment_id)
        namespace = row.namespace if row else experiment.namespace if experiment else request.query.get("namespace", "")
        if one is not None and row is None:
            return
        prefix = f"Failed to {'list recurring runs' if listing else verb + ' a recurring run'}: {REQUEST}"
        if not namespace:
            raise invalid(prefix, "A recurring run cannot have an empty namespace in multi-user mode")
        self.gate.allow(request, prefix, "jobs", "list" if listing else verb, namespace)

    def pipeline(self, request: Request, one: str, verb: str) -> None:
        """
        Check the right to a pipeline; shared ones need none to be read.

        :param request: The request.
        :param one: Its id, or ``upload`` and the like.
        :param verb: What is to be done.
        :raises KfpError: 401, 403.
        :raises PlainError: 400, for uploads.
        """
        row = self.store.pipelines.get(request.query.get("pipelineid", "") if one == "upload_version" else one)
        namespace = row.namespace if row else request.query.get("namespace", "")
        if one in {"upload", "upload_version"}:
            try:
                self.gate.allow(request, "", "pipelines", "create", namespace) if namespace else self.gate.user(request, "")
            except KfpError:
                raise PlainError(400, "Failed to create a pipeline" + ("" if one == "upload" else " version")) from None
        elif namespace:
            self.gate.allow(request, f"Failed to {verb} a pipeline: {REQUEST}{API}", "pipelines", verb, namespace)


def _json(request: Request) -> dict[str, object]:
    import json

    try:
        found = json.loads(request.body or b"{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
