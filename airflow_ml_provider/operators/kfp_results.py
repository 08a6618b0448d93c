"""What a pipeline run gave back, looked for in every source that there is."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_ml_provider.core.kfp_outputs import DeclaredOutputs, read_outputs, recipe_of
from airflow_ml_provider.exceptions import AirflowMLError, RemoteUnavailableError
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.jobs.kfp import KfpJobs
from airflow_ml_provider.jobs.kfp_results import results_of_server, spec_of_run
from airflow_ml_provider.models.kfp import KfpRunOptions, PipelineRun
from airflow_ml_provider.models.kfp_results import KfpOutput, KfpResults
from airflow_ml_provider.operators.kfp_record import TAG

if TYPE_CHECKING:
    from airflow_ml_provider.operators.session import StepSession

log = logging.getLogger(__name__)
T = TypeVar("T")

KFPS_OWN_STORE = "minio://"
"""Scheme that only KFP's own pods read."""
LOCAL_SCHEMES = frozenset({"file", "local"})
MOST_LINES = 100
"""How many outputs the log tells of."""
DEFAULT_ROOT = "minio://mlpipeline/v2/artifacts"
"""Pipeline root of a server whose administrator has set none."""
WITHOUT_ROOT = (
    "Its files are below {root}, which only KFP's own pods read. Say how workers reach that store: "
    "options=KfpRunOptions(results_root='s3://<connection>@<bucket>/<path>')."
)


class Results:
    """
    Looks for the outputs of one run.

    :param jobs: Runs of the server.
    :param run: The run, which has ended well.
    :param options: Where workers read files.
    :param session: The task's record; None where there is none, and then MLflow is not asked.
    :param patience_s: Seconds to wait for a server that is away.
    """

    def __init__(
        self, jobs: KfpJobs, run: PipelineRun, options: KfpRunOptions, session: StepSession | None, patience_s: float
    ) -> None:
        self.jobs = jobs
        self.run = run
        self.options = options
        self.session = session
        self.patience_s = patience_s
        self.unavailable: RemoteUnavailableError | None = None
        """A source that did not answer, so that what was not found may be there after all."""
        self._others: list[PipelineRun] = []
        self._specs: dict[str, Mapping[str, Any]] = {}

    def collect(self) -> KfpResults:
        """
        Ask every source, the fullest first; one that cannot be read is a note, as another may have what is wanted.

        :return: What was found, each output once, those of the pipeline itself first.
        :raises RemoteUnavailableError: the pipeline server did not give the pipeline within the patience; a retry is safe.
        """
        spec = self._patiently("read the pipeline", partial(spec_of_run, self.jobs.api, self.run))
        declared = read_outputs(spec)
        found, notes, complete = list[KfpOutput](), list[str](), False
        for source in (self._of_server, partial(self._of_plugin, declared), partial(self._of_files, spec, declared)):
            try:
                more = source()
            except AirflowMLError as error:
                self.unavailable = error if isinstance(error, RemoteUnavailableError) else self.unavailable
                more = KfpResults(notes=(str(error),))
            found = _merged(found, [self._readable(each, spec, notes) for each in more.outputs])
            notes += more.notes
            complete = complete or more.complete
        results = declared.gathered(found, notes, complete=complete)
        for note in results.notes:
            log.info("%s", note)
        for each in results.outputs[:MOST_LINES]:
            shown = str(each.uri or (each.metadata if each.value is None else each.value))
            log.info("Output %s (%s), from %s: %.300s", each.label, each.type, each.source, shown)
        return results

    def _of_server(self) -> KfpResults:
        return self._patiently("ask for its artifacts", partial(results_of_server, self.jobs.api, self.run.run_id))

    def _of_plugin(self, declared: DeclaredOutputs) -> KfpResults:
        from airflow_ml_provider.tracking.kfp_plugin import find_plugin_run, results_of_plugin, take_as_child

        if self.session is None:
            return KfpResults(
                notes=("There is no MLflow connection, so what KFP's MLflow plugin may have written is not known.",)
            )
        tree, own = self.session.recorder.tree, self.session.record.run
        look = partial(find_plugin_run, tree, self.run.run_id, self.run.mlflow, own.experiment_id)
        found = self._patiently("ask for what KFP's MLflow plugin wrote", look)
        told = {"mlflow_run_id": self.run.mlflow.get("root_run_id", ""), "mlflow_url": self.run.mlflow.get("run_url", "")}
        if found is None:
            self.session.set_tags({f"{TAG}.{key}": value for key, value in told.items() if value})
            where, said = self.session.api.server.url, "It is off, or the server older than 2.17."
            if told["mlflow_run_id"]:
                said = f"It wrote run {told['mlflow_run_id']} to another MLflow."
            elif self.run.mlflow.get("state_message"):
                said = f"It has failed: {self.run.mlflow['state_message']}"
            return KfpResults(notes=(f"KFP's MLflow plugin has written nothing of this run to {where}. {said}",))
        told |= {"mlflow_run_id": found.run_id}
        told["mlflow_url"] = self.session.api.server.run_page(found.experiment_id, found.run_id)
        self.session.set_tags({f"{TAG}.{key}": value for key, value in told.items()})
        self._patiently("link the plugin's run", partial(take_as_child, tree, found, own.run_id, own.experiment_id))
        return results_of_plugin(found, declared)

    def _of_files(self, spec: Mapping[str, Any], declared: DeclaredOutputs) -> KfpResults:
        from airflow_ml_provider.tracking.kfp_files import PipelineFiles, results_of_files

        name = str((spec.get("pipelineInfo") or {}).get("name") or "")
        if not name:
            return KfpResults(notes=("The server has the pipeline of this run no more, so what files it made is not known.",))
        root = self._mapped(self._root(spec), spec)
        if root.startswith(KFPS_OWN_STORE):
            return KfpResults(notes=(WITHOUT_ROOT.format(root=root),))

        cached = any(each.name == "executor" and each.state == "SKIPPED" for each in self.run.tasks)
        look = partial(
            results_of_files, PipelineFiles(root, name), self.run.run_id, declared.tasks, self._earlier if cached else None
        )
        return self._patiently(f"list {root}", look)

    def _earlier(self, task: str, run_ids: list[str]) -> list[str]:
        """Name the runs, newest first, from which the server's cache may have served a task."""
        if not self._others:
            found = self.jobs.find(run_ids).values()
            self._others = sorted(found, key=lambda run: run.created_at.timestamp() if run.created_at else 0.0, reverse=True)
        wanted = self._recipe(self.run, task)
        return [run.run_id for run in self._others if self._recipe(run, task) == wanted]

    def _recipe(self, run: PipelineRun, task: str) -> str:
        key = run.version_id or run.run_id
        if key not in self._specs:
            known = run if run.version_id or run.pipeline_spec else self.jobs.look(run.run_id) or run  # a list brings no spec
            self._specs[key] = spec_of_run(self.jobs.api, known)
        return recipe_of(self._specs[key], task, run.parameters)

    def _root(self, spec: Mapping[str, Any]) -> str:
        """Say where the run has written, as the server names it."""
        return self.run.pipeline_root or self.options.pipeline_root or str(spec.get("defaultPipelineRoot") or "") or DEFAULT_ROOT

    def _readable(self, output: KfpOutput, spec: Mapping[str, Any], notes: list[str]) -> KfpOutput:
        """Name an output's place as workers read it; one that would be a file of the worker, or climbs, is not taken."""
        uri = self._mapped(output.uri, spec)
        root = (self.options.results_root or "").rstrip("/")
        local = uri.partition(":")[0] in LOCAL_SCHEMES or uri.startswith("/")
        if ".." in uri.split("/") or (local and not (root and uri.startswith(f"{root}/"))):
            notes.append(f"The place of {output.label}, {uri!r:.200}, is on a pod's own disk, or climbs: it is not read.")
            uri = ""
        return output.model_copy(update={"uri": uri})

    def _mapped(self, uri: str, spec: Mapping[str, Any]) -> str:
        root = self._root(spec).partition("?")[0].rstrip("/")
        if self.options.results_root and (uri == root or uri.startswith(f"{root}/")):
            return self.options.results_root.rstrip("/") + uri.removeprefix(root)
        return uri

    def _patiently(self, what: str, call: Callable[[], T]) -> T:
        return patiently(what, call, self.patience_s)


def _merged(found: Iterable[KfpOutput], more: Iterable[KfpOutput]) -> list[KfpOutput]:
    """Add what is new, and to what is known what was not known of it; of several of one name a source tells all or nothing."""
    some, others = list(found), list(more)
    known, often = {each.label: place for place, each in enumerate(some)}, Counter(each.label for each in (*some, *others))
    for each in others:
        place = known.get(each.label)
        if place is None:
            some.append(each)
        elif often[each.label] == 2:  # noqa: PLR2004  (one here and one there)
            fields = ("uri", "path", "metadata", "value", "sha256", "size")
            new = {field: getattr(each, field) for field in fields if getattr(some[place], field) in ("", None, {})}
            some[place] = some[place].model_copy(update=new)
    return some
