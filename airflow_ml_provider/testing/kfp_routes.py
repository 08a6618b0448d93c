"""Which path leads where, and what stands beside the gateway: health, logs, reports and the view of Kubernetes."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import Any

from airflow_ml_provider.testing.kfp_answers import KfpError, PlainError, answer, dump, invalid
from airflow_ml_provider.testing.kfp_catalog import Catalog
from airflow_ml_provider.testing.kfp_engine import Engine
from airflow_ml_provider.testing.kfp_kubernetes import kubernetes
from airflow_ml_provider.testing.kfp_recurring import Recurring
from airflow_ml_provider.testing.kfp_results import Results
from airflow_ml_provider.testing.kfp_rights import Rights
from airflow_ml_provider.testing.kfp_runs import Runs
from airflow_ml_provider.testing.kfp_store import Store
from airflow_ml_provider.testing.kfp_uploads import Uploads
from airflow_ml_provider.testing.kfp_values import Answer, Node, Request, Workflow

Act = Callable[..., Answer]
COMMIT = "7b70c7b95f6832772efd6fd0029a4024491a0f44"
PAGE_404 = b"404 page not found\n"


class Routes:
    """
    The paths of the server.

    :param store: The tables.
    :param engine: Where workflows run.
    :param runs: Operations on runs.
    :param catalog: Operations on experiments and pipelines.
    :param rights: Who may do what.
    :param results: What runs have made, where the server has the artifact API; None where it has not.
    """

    def __init__(
        self, store: Store, engine: Engine, runs: Runs, catalog: Catalog, rights: Rights, results: Results | None = None
    ) -> None:
        self.store = store
        self.rights = rights
        self.engine = engine
        self.runs = runs
        self.catalog = catalog
        self.recurring = Recurring(store, catalog, engine)
        self.uploads = Uploads(catalog)
        api = "/apis/v2beta1"
        self.beside: list[tuple[re.Pattern[str], Act]] = [
            (re.compile(f"{api}/healthz"), lambda _: Answer(200, dump(self.health(full=True)))),
            (re.compile("/apis/v1beta1/healthz"), lambda _: Answer(200, dump(self.health(full=False)))),
            (re.compile(f"{api}/pipelines/upload"), self.uploads.pipeline),
            (re.compile(f"{api}/pipelines/upload_version"), self.uploads.version),
            (re.compile("/apis/v1alpha1/runs/([^/]+)/nodes/([^/]+)/log"), lambda _, run, node: self.log(run, node)),
            (re.compile(f"{api}/runs/([^/]+)/nodes/([^/]+)/artifacts/([^/]+):read"), lambda _, *names: self.artifact(*names)),
            (re.compile("/apis/argoproj.io/v1alpha1/.*"), lambda request: kubernetes(self.store, request)),
        ]
        self.table: list[tuple[str, re.Pattern[str], Act]] = [
            (method, re.compile(f"{api}/{path}"), act)
            for method, path, act in [*self.of_runs(), *self.of_catalog(), *self.of_recurring()]
        ]
        if results is not None:
            self.table.append(("GET", re.compile(f"{api}/runs/([^/]*)/tasks"), lambda _, run_id: results.tasks(run_id)))

    def of_runs(self) -> list[tuple[str, str, Act]]:
        """
        Tell the paths of runs.

        :return: Method, path and what to do.
        """
        runs = self.runs
        return [
            ("GET", "runs", lambda request: runs.list(request.query)),
            ("POST", "runs/([^/]*):terminate", lambda _, run_id: runs.terminate(run_id)),
            ("POST", "runs/([^/]*):retry", lambda _, run_id: runs.retry(run_id)),
            ("POST", "runs/([^/]*):archive", lambda _, run_id: runs.store_state(run_id, "ARCHIVED")),
            ("POST", "runs/([^/]*):unarchive", lambda _, run_id: runs.store_state(run_id, "AVAILABLE")),
            ("GET", "runs/([^/]*)", lambda _, run_id: runs.get(run_id)),
            ("DELETE", "runs/([^/]*)", lambda _, run_id: runs.delete(run_id)),
            ("POST", "workflows", lambda request: self.take_report(request.body)),
        ]

    def of_catalog(self) -> list[tuple[str, str, Act]]:
        """
        Tell the paths of experiments, pipelines and versions.

        :return: Method, path and what to do.
        """
        catalog = self.catalog
        return [
            ("GET", "experiments", lambda request: catalog.list_experiments(request.query)),
            ("POST", "experiments", lambda request: catalog.create_experiment(request.body)),
            ("POST", "experiments/([^/]*):archive", lambda _, one: catalog.store_experiment(one, "ARCHIVED")),
            ("POST", "experiments/([^/]*):unarchive", lambda _, one: catalog.store_experiment(one, "AVAILABLE")),
            ("GET", "experiments/([^/]*)", lambda _, one: catalog.get_experiment(one)),
            ("DELETE", "experiments/([^/]*)", lambda _, one: catalog.delete_experiment(one)),
            ("GET", "pipelines", lambda request: catalog.list_pipelines(request.query)),
            (
                "GET",
                "pipelines/names/([^/]+)",
                lambda request, name: catalog.get_pipeline_by_name(name, request.query.get("namespace", "")),
            ),
            ("GET", "pipelines/([^/]*)", lambda _, one: catalog.get_pipeline(one)),
            ("DELETE", "pipelines/([^/]*)", lambda request, one: catalog.delete_pipeline(one, cascade=_true(request, "cascade"))),
            ("GET", "pipelines/([^/]*)/versions", lambda request, one: catalog.list_versions(one, request.query)),
            ("GET", "pipelines/[^/]*/versions/([^/]*)", lambda _, one: catalog.get_version(one)),
            ("DELETE", "pipelines/[^/]*/versions/([^/]*)", lambda _, one: catalog.delete_version(one)),
        ]

    def of_recurring(self) -> list[tuple[str, str, Act]]:
        """
        Tell the paths of recurring runs.

        :return: Method, path and what to do.
        """
        recurring = self.recurring
        return [
            ("GET", "recurringruns", lambda request: recurring.list(request.query)),
            ("POST", "recurringruns", lambda request: recurring.create(request.body)),
            ("POST", "recurringruns/([^/]*):enable", lambda _, one: recurring.switch(one, on=True)),
            ("POST", "recurringruns/([^/]*):disable", lambda _, one: recurring.switch(one, on=False)),
            ("GET", "recurringruns/([^/]*)", lambda _, one: recurring.get(one)),
            ("DELETE", "recurringruns/([^/]*)", lambda _, one: recurring.delete(one)),
        ]

    def answer(self, request: Request, *, strike: str = "") -> Answer:
        """
        Answer a request.

        :param request: The request.
        :param strike: A fault that hits a create of a run in its middle.
        :return: The answer, errors included.
        :raises LostError: a fault that loses the answer struck.
        """
        try:
            if request.method == "POST" and request.path == "/apis/v2beta1/runs":
                data = self.runs.read(request.body)
                if self.store.multi_user:
                    self.rights.new_run(request, data.get("experiment_id", ""))
                return self.runs.create(data, strike=strike)
            with self.store.lock:
                if self.store.multi_user:
                    self.rights.check(request)
                return self.plain(request) or self.gateway(request)
        except (KfpError, PlainError) as told:
            return told.answer()

    def plain(self, request: Request) -> Answer | None:
        """
        Answer what the gateway has no part in.

        :param request: The request.
        :return: The answer, None for a path of the gateway.
        :raises PlainError: what those paths say.
        """
        path = request.path
        if not path.startswith("/apis/"):
            return Answer(404, PAGE_404, "text/plain; charset=utf-8")
        for pattern, act in self.beside:
            match = pattern.fullmatch(path)
            if match:
                return act(request, *match.groups())
        return None

    def gateway(self, request: Request) -> Answer:
        """
        Answer a path of the gateway.

        :param request: The request.
        :return: The answer.
        :raises KfpError: what the operation says; 404 for an unknown path, 501 for a wrong method.
        """
        other = False
        for method, pattern, act in self.table:
            match = pattern.fullmatch(request.path)
            if match and method == request.method:
                return act(request, *match.groups())
            other = other or bool(match)
        if other:
            raise KfpError(12, "Method Not Allowed")
        raise KfpError(5, "Not Found")

    def health(self, *, full: bool) -> dict[str, Any]:
        """
        Tell what the server is.

        :param full: Whether to tell where pipelines are kept, as v2beta1 does.
        :return: JSON.
        """
        told = {"commit_sha": COMMIT, "tag_name": "2.17.0", "multi_user": self.store.multi_user}
        return {**told, "pipeline_store": "database"} if full else told

    def log(self, run_id: str, node: str) -> Answer:
        """
        Give the log of a node.

        :param run_id: The run.
        :param node: Id of the node, or name of its pod.
        :return: Text; for one that is not there an error with status 200.
        """
        found = self.node(run_id, node)
        if found is None:
            text = f"failed to read the log of node {node} of run {run_id}: it is neither in a pod nor in the archive"
            return Answer(200, dump({"error_message": text, "error_details": text}))
        return Answer(200, found.log.encode(), "text/plain; charset=utf-8")

    def artifact(self, run_id: str, node: str, name: str) -> Answer:
        """
        Give an artifact that the workflow lists, such as ``main-logs``.

        :param run_id: The run.
        :param node: Id of the node.
        :param name: Name of the artifact.
        :return: Its content in base64.
        :raises PlainError: 404; 500 for a run that was never reported.
        """
        run = self.store.runs.get(run_id)
        if run is not None and run.nodes is None:
            raise PlainError(500, "Invalid input error: read artifact from run with v2 IR spec is not supported")
        found = self.node(run_id, node)
        listed = {} if found is None else {"main-logs": found.log.encode(), **found.artifacts}
        if not listed.get(name):
            raise PlainError(404, "artifact not found: <nil>")
        return Answer(200, dump({"data": base64.b64encode(listed[name]).decode()}))

    def node(self, run_id: str, name: str) -> Node | None:
        """
        Find a node of a run.

        :param run_id: The run.
        :param name: Id of the node, or name of its pod.
        :return: The node, None for none.
        """
        run = self.store.runs.get(run_id)
        plain = re.sub(r"-system-(container-impl|dag-driver|container-driver)-", "-", name)
        return next((each for each in (run.nodes or () if run else ()) if each.node_id == plain), None)

    def take_report(self, body: bytes) -> Answer:
        """
        Take the manifest that an agent posts.

        :param body: A JSON string that holds the manifest.
        :return: Nothing.
        :raises KfpError: 400, 404, 503.
        """
        manifest = _manifest(body)
        name = str((manifest.get("metadata") or {}).get("name") or "")
        run_id = ((manifest.get("metadata") or {}).get("labels") or {}).get("pipeline/runid")
        if not run_id:
            raise invalid("Failed to report workflow: ", f"Workflow[{name}] missing the Run ID label")
        workflow = next((each for each in self.store.workflows_by_run.get(run_id, ()) if each.name == name), None)
        status = manifest.get("status") or {}
        if workflow is None:
            raise KfpError(5, f"Failed to report workflow: Run {run_id} not found", f"Run {run_id} not found")
        self.check_fresh(workflow, manifest)
        workflow.phase = str(status.get("phase") or workflow.phase)
        workflow.finished_at = self.store.now if workflow.ended else None
        self.engine.report(workflow)
        return answer({})

    def check_fresh(self, workflow: Workflow, manifest: dict[str, Any]) -> None:
        """
        Refuse an end that was seen before the workflow changed again.

        :param workflow: The workflow.
        :param manifest: What was posted.
        :raises KfpError: 503.
        """
        version = manifest["metadata"].get("resourceVersion")
        final = (manifest.get("status") or {}).get("phase") in {"Succeeded", "Failed", "Error"}
        if final and version is not None and version != str(workflow.version):
            stale = "workflow resource version changed before terminal report was persisted"
            skip = f"Skipping terminal workflow report for run {workflow.run_id} workflow {workflow.name}: {stale}: {stale}"
            raise KfpError(14, f"Failed to report workflow: ServiceUnavailable: {skip}", "Service unavailable")


def _manifest(body: bytes) -> dict[str, Any]:
    try:
        outer = json.loads(body)
    except ValueError:
        raise KfpError(3, "unexpected EOF") from None
    if not isinstance(outer, str):
        kind = {dict: "object", list: "array", bool: "bool", int: "number", float: "number"}.get(type(outer), "null")
        raise KfpError(3, f"json: cannot unmarshal {kind} into Go value of type string")
    try:
        manifest = json.loads(outer)
    except ValueError:
        why = f"invalid character '{outer[:1]}' looking for beginning of value: {outer}"
        short = f"Could not unmarshal workflow: InvalidInputError: Failed to unmarshal the inputs: {why}"
        raise invalid("Report workflow failed: ", short) from None
    return manifest if isinstance(manifest, dict) else {}


def _true(request: Request, name: str) -> bool:
    return request.query.get(name, "").lower() in {"true", "1", "t"}
