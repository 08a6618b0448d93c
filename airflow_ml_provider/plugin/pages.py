"""What each page shows: asked of MLflow with the login of the connection, within the time that a page can wait."""

from __future__ import annotations

from typing import Any

from fastapi.responses import Response

from airflow_ml_provider.config import load_settings
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError
from airflow_ml_provider.lineage.query import trace
from airflow_ml_provider.lineage.reading import Reader
from airflow_ml_provider.lineage.values import moment
from airflow_ml_provider.models.run import DagRunIdentity, StepIdentity
from airflow_ml_provider.plugin import answers, drawing, models, preview, steps
from airflow_ml_provider.plugin.addresses import Addresses
from airflow_ml_provider.plugin.internals import MayRead, default_argument
from airflow_ml_provider.tracking.cache_index import CACHED_FROM
from airflow_ml_provider.tracking.last_runs import LastRuns, find_last_runs
from airflow_ml_provider.tracking.page_models import find_trainings
from airflow_ml_provider.tracking.page_runs import PageApi, find_dag_runs, find_run, find_steps, folder_of, list_files
from airflow_ml_provider.tracking.runs import Run, RunTree, run_id_of, status_of, tags_of

LINEAGE_STEPS = 12
"""Steps to the farthest run of a drawing."""


class NoRecordError(RemoteNotFoundError):
    """
    There is no MLflow run of something.

    :param of: What it is.
    """

    def __init__(self, of: str) -> None:
        super().__init__(f"MLflow has no run of this {of}.")
        self.of = of


class Pages:
    """
    The pages about a DAG.

    :param api: The server.
    :param to: Addresses of pages.
    :param dag_id: Id of the DAG; whoever asks may read its runs and what its tasks have done.
    :param part: Whether another page fetches them, which has a style and a script already.
    """

    def __init__(self, api: PageApi, to: Addresses, dag_id: str, *, part: bool = False) -> None:
        self.api = api
        self.to = to
        self.dag_id = dag_id
        self.part = part

    def last_runs(self, run_id: str) -> LastRuns:
        """
        Find a DAG run and those before it.

        :param run_id: Id of the DAG run.
        :return: The runs.
        :raises NoRecordError: MLflow has no run of it.
        """
        found = find_last_runs(self.api, self.dag_id, run_id, self._experiment)
        if found is None:
            raise NoRecordError("DAG run")
        return found

    def dag(self, more: str) -> Response:
        """
        Show the newest runs of the DAG, and its models.

        :param more: Where to go on.
        :return: The page.
        :raises NoRecordError: MLflow has none.
        """
        listed = find_dag_runs(self.api, self.dag_id, self._experiment, more)
        if not listed.runs:
            raise NoRecordError("DAG")
        experiment_id = str(listed.runs[0]["info"]["experiment_id"])
        made = steps.models_of(find_trainings(self.api, experiment_id, self.dag_id))
        known: dict[str, str] = {}
        for name, number in models.registered(self.api, experiment_id, made):
            known.setdefault(name, number)
        nights = [self._night(each) for each in listed.runs]
        return self._page("dag", self.dag_id, nights=nights, models=list(known.items()), more=listed.more)

    def run(self, run_id: str, more: str) -> Response:
        """
        Show a DAG run with its steps.

        :param run_id: Id of the DAG run.
        :param more: Where to go on among the steps.
        :return: The page.
        :raises NoRecordError: MLflow has no run of it.
        """
        parent = find_run(self.api, DagRunIdentity(dag_id=self.dag_id, run_id=run_id).key, self._experiment)
        if parent is None:
            raise NoRecordError("DAG run")
        listed = find_steps(self.api, parent, more)
        origins = Reader(self.api).runs(origin for each in listed.runs if (origin := tags_of(each).get(CACHED_FROM)))
        shown = [steps.read_step(self.api, self.to, self.dag_id, each, origins) for each in listed.runs]
        made = models.registered(self.api, str(parent["info"]["experiment_id"]), steps.models_of(listed.runs))
        night = self._night(parent) | {"run_id": run_id, "mlflow_status": status_of(parent)}
        return self._page("run", run_id, steps=shown, models=made, more=listed.more, **night)

    def others(self, run_id: str) -> Response:
        """
        Show what leads to comparisons of a DAG run with those before it.

        :param run_id: Id of the DAG run.
        :return: The page.
        :raises NoRecordError: MLflow has no run of it.
        """
        return self._page("others", run_id, run_id=run_id, found=self.last_runs(run_id))

    def step(self, identity: StepIdentity) -> Response:
        """
        Show a step with all its files.

        :param identity: The task.
        :return: The page.
        :raises NoRecordError: MLflow has no run of it.
        """
        run = find_run(self.api, identity.key, self._experiment)
        if run is None:
            raise NoRecordError("task")
        origin = tags_of(run).get(CACHED_FROM, "")
        step = steps.read_step(self.api, self.to, self.dag_id, run, Reader(self.api).runs([origin] if origin else []))
        folder = folder_of(run)
        files = None if folder is None else self._files(run, folder)
        made = models.registered(self.api, str(run["info"]["experiment_id"]), steps.models_of([run]))
        return self._page("step", identity.label, run_id=identity.run_id, step=step, files=files, models=made)

    def artifact(self, mlflow_run: str, path: str) -> Response:
        """
        Show a file as a picture, a table or text.

        :param mlflow_run: Id of the MLflow run that it is of.
        :param path: Below the run's artifacts.
        :return: The page.
        :raises RemoteNotFoundError: there is no such file of this DAG.
        """
        run, folder = self._folder(mlflow_run, path)
        found = preview.look(self.api, folder, path)
        step = steps.read_step(self.api, self.to, self.dag_id, run)
        return self._page("artifact", path, mlflow_run=mlflow_run, path=path, preview=found, step=step)

    def picture(self, mlflow_run: str, path: str) -> Response:
        """
        Hand out the bytes of a picture.

        :param mlflow_run: Id of the MLflow run that it is of.
        :param path: Below the run's artifacts.
        :return: The picture.
        :raises RemoteNotFoundError: there is no such picture of this DAG.
        """
        _, folder = self._folder(mlflow_run, path)
        return answers.picture(*preview.look_at_picture(self.api, folder, path))

    def model(self, name: str, version: str, may_read: MayRead) -> Response:
        """
        Show a registered model over time.

        :param name: Its name.
        :param version: Number of the version to look at; empty for the champion, else the newest.
        :param may_read: Judges the DAGs that have made its versions.
        :return: The page.
        :raises RemoteNotFoundError: there is no version that may be seen.
        """
        try:
            found = models.read_history(self.api, self.to, self.dag_id, name, version, may_read)
        except ConfigError as error:  # a name that the registry does not take
            raise RemoteNotFoundError(str(error)) from error
        return self._page("model", name, model=found, charts=found.charts, width=models.WIDTH, height=models.HEIGHT)

    def lineage(self, uri: str, may_read: MayRead) -> Response:
        """
        Draw what a model comes from.

        :param uri: URI of the model.
        :param may_read: Judges the DAGs on the way.
        :return: The page.
        :raises RemoteNotFoundError: there is nothing that may be seen.
        """
        try:
            whole = trace(self.api, uri, depth_limit=LINEAGE_STEPS)
        except ConfigError as error:
            raise RemoteNotFoundError(str(error)) from error
        seen = drawing.visible_part(whole, may_read)
        if not seen.nodes:
            raise RemoteNotFoundError(f"{uri!r} comes from nothing that may be seen.")
        drawn = drawing.draw(seen, self.to, self.dag_id, len(whole.nodes) - len(seen.nodes))
        return self._page("lineage", uri, asked=uri, drawing=drawn, box_width=drawing.BOX_WIDTH, box_height=drawing.BOX_HEIGHT)

    @property
    def _experiment(self) -> str:
        named = default_argument(self.dag_id, "experiment") or load_settings().experiment
        return named.replace("{dag_id}", self.dag_id)

    def _page(self, template: str, title: str, **values: Any) -> Response:
        return answers.page(
            template, {"title": f"MLflow: {title}", "dag_id": self.dag_id, "to": self.to, "part": self.part} | values
        )

    def _night(self, run: Run) -> dict[str, Any]:
        info = run["info"]
        return {
            "run_id": tags_of(run).get("airflow.run_id", ""),
            "state": steps.state_of(run),
            "started": moment(info.get("start_time")),
            "ended": moment(info.get("end_time")),
            "page": self.api.server.run_page(str(info["experiment_id"]), run_id_of(run)),
        }

    def _files(self, run: Run, folder: str) -> list[steps.File]:
        """List the files of a run, and of its folders, as far as they lie one below."""
        found: list[steps.File] = []
        for each in list_files(self.api, folder):
            name = str(each["path"]).strip("/")
            inside = list_files(self.api, f"{folder}/{name}") if each.get("is_dir") else [{**each, "path": ""}]
            for entry in inside:
                path = f"{name}/{str(entry['path']).strip('/')}".rstrip("/") + ("/" if entry.get("is_dir") else "")
                found.append(steps.listed_file(self.to, self.dag_id, run_id_of(run), path, entry))
            if len(found) >= steps.ROWS:
                break
        return found[: steps.ROWS]

    def _folder(self, mlflow_run: str, path: str) -> tuple[Run, str]:
        """Find a run of the DAG, and where its files are; a run of another DAG is not there."""
        run = RunTree(self.api).get(mlflow_run)
        folder = folder_of(run)
        if tags_of(run).get("airflow.dag_id") != self.dag_id or folder is None or not preview.is_path(path):
            raise RemoteNotFoundError(f"DAG {self.dag_id!r} has no file {path!r} of a run {mlflow_run}.")
        return run, folder
