"""
The pages that Airflow's API server shows for us: runs of a DAG, their steps, artifacts, models, for those who may read them.

Airflow shows them in a frame whose sandbox opens no tab, and MLflow lets no other site frame it: so links to MLflow are
followed from the document around the frame. Addresses of MLflow come from the connection alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import AfterValidator
from starlette.exceptions import HTTPException

from airflow_ml_provider.exceptions import AirflowMLError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow import MlflowHook
from airflow_ml_provider.hooks.mlflow_api import DeniedError
from airflow_ml_provider.models.run import StepIdentity
from airflow_ml_provider.plugin import answers
from airflow_ml_provider.plugin.addresses import Addresses
from airflow_ml_provider.plugin.internals import LOGIN, default_argument, may_read_runs, may_read_tasks, which_dags
from airflow_ml_provider.plugin.pages import NoRecordError, Pages
from airflow_ml_provider.tracking.last_runs import LastRuns
from airflow_ml_provider.tracking.page_runs import PageApi

log = logging.getLogger(__name__)

ID_LENGTH = 250
"""Characters that Airflow takes of an id."""
OK, UNAUTHORIZED, FORBIDDEN, NOT_FOUND, UNPROCESSABLE, SERVER_ERROR, UNAVAILABLE = 200, 401, 403, 404, 422, 500, 503
SAID = {
    UNAUTHORIZED: "You are not logged in to Airflow.",
    FORBIDDEN: "You may not read the runs of this DAG and what its tasks have done: Airflow's administrator can grant it.",
    NOT_FOUND: "There is no such page. Open a DAG run in Airflow, and its tab MLflow.",
    UNPROCESSABLE: "This address does not name one DAG and one run of it. Open a DAG run in Airflow, and its tab MLflow.",
}
OFFSET = re.compile(r" (\d\d:\d\d)$")
"""End of a run's id as Airflow's UI before 3.2 hands it on: a ``+`` that it does not encode arrives as a blank."""
DagId = Annotated[str, Path(max_length=ID_LENGTH, pattern=r"^[\w.-]+$")]
"""In the path, where every Airflow judges it; of letters that Airflow takes, so that it can be written into a filter."""
RunId = Annotated[str, Query(min_length=1, max_length=ID_LENGTH), AfterValidator(lambda run_id: OFFSET.sub(r"+\1", run_id))]
"""In the query, as all that can hold slashes and dots: a path with them is another path."""
TaskId = Annotated[str, Query(min_length=1, max_length=ID_LENGTH)]
MapIndex = Annotated[str, Query(pattern=r"^(-1|\d{1,9}|\{MAP_INDEX\})$")]
"""Airflow's UI leaves the placeholder where a task is not mapped."""
MlflowRunId = Annotated[str, Query(pattern=r"^[0-9a-f]{32}$")]
FilePath = Annotated[str, Query(min_length=1, max_length=1000)]
More = Annotated[str, Query(max_length=2000, pattern=r"^[\w=+/-]*$")]
ModelName = Annotated[str, Query(min_length=1, max_length=ID_LENGTH)]
Version = Annotated[str, Query(pattern=r"^[0-9]{0,9}$")]
ModelUri = Annotated[str, Query(max_length=2 * ID_LENGTH, pattern=r"^models:/")]


class _Missing(Exception):  # noqa: N818  (nothing has gone wrong)
    """
    There is nothing in MLflow to show.

    :param said: Sentences for people, without what only the log may say.
    :param status: Status of the answer to who asked for a redirection.
    """

    def __init__(self, said: str, status: int = NOT_FOUND) -> None:
        super().__init__(said)
        self.said = said
        self.status = status


def make_app() -> FastAPI:
    """
    Make the application with our pages.

    :return: It; without the pages about its routes that FastAPI makes, which nothing would guard.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(may_read_runs())])
    for error in (HTTPException, RequestValidationError):
        app.exception_handler(error)(_refuse)
    tasks, judge = [Depends(may_read_tasks())], Depends(which_dags())

    def show_model(request: Request, dag_id: DagId, name: ModelName, version: Version = "", may: Any = judge) -> Response:
        return _show(request, dag_id, lambda pages: pages.model(name, version, may))

    def show_lineage(request: Request, dag_id: DagId, of: ModelUri, may: Any = judge) -> Response:
        return _show(request, dag_id, lambda pages: pages.lineage(of, may))

    shown: dict[str, Callable[..., Response]] = {
        "": show_dag,
        "/run": show_run,
        "/run/step": show_step,
        "/run/others": show_others,
        "/artifact": show_artifact,
        "/picture": show_picture,
        "/model": show_model,
        "/lineage": show_lineage,
    }
    for path, answer in shown.items():
        app.get(f"/dags/{{dag_id}}{path}", response_model=None, dependencies=tasks)(answer)
    for path, answer in (("mlflow", go_to_run), ("compare", go_to_comparison)):
        app.get(f"/dags/{{dag_id}}/run/{path}", response_model=None)(answer)
    return app


def show_dag(request: Request, dag_id: DagId, more: More = "") -> Response:
    """
    Show the newest runs of a DAG, and its models.

    :param request: What was asked.
    :param dag_id: Id of the DAG.
    :param more: Where to go on.
    :return: The page; where there is nothing to show, it says why.
    """
    return _show(request, dag_id, lambda pages: pages.dag(more))


def show_run(request: Request, dag_id: DagId, run_id: RunId, more: More = "") -> Response:
    """
    Show what MLflow has of a DAG run: its steps, with links.

    :param request: What was asked.
    :param dag_id: Id of the DAG.
    :param run_id: Id of the DAG run.
    :param more: Where to go on among the steps.
    :return: The page; where there is nothing to show, it says why.
    """
    return _show(request, dag_id, lambda pages: pages.run(run_id, more))


def show_others(request: Request, dag_id: DagId, run_id: RunId) -> Response:
    """
    Show what leads to comparisons of a DAG run with those before it.

    :param request: What was asked.
    :param dag_id: Id of the DAG.
    :param run_id: Id of the DAG run.
    :return: The page; where there is nothing to show, it says why.
    """
    return _show(request, dag_id, lambda pages: pages.others(run_id))


def show_step(request: Request, dag_id: DagId, run_id: RunId, task_id: TaskId, map_index: MapIndex = "-1") -> Response:
    """
    Show one step, with all its files.

    :param request: What was asked.
    :param dag_id: Id of the DAG.
    :param run_id: Id of the DAG run.
    :param task_id: Id of the task.
    :param map_index: Its index.
    :return: The page; where there is nothing to show, it says why.
    """
    index = -1 if map_index.startswith("{") else int(map_index)
    identity = StepIdentity(dag_id=dag_id, run_id=run_id, task_id=task_id, map_index=index)
    return _show(request, dag_id, lambda pages: pages.step(identity))


def show_artifact(request: Request, dag_id: DagId, run: MlflowRunId, path: FilePath) -> Response:
    """
    Show a file as a picture, a table or text.

    :param request: What was asked.
    :param dag_id: Id of the DAG.
    :param run: Id of the MLflow run that it is of.
    :param path: Below the run's artifacts.
    :return: The page; where there is nothing to show, it says why.
    """
    return _show(request, dag_id, lambda pages: pages.artifact(run, path))


def show_picture(request: Request, dag_id: DagId, run: MlflowRunId, path: FilePath) -> Response:
    """
    Hand out the bytes of a picture.

    :param request: What was asked.
    :param dag_id: Id of the DAG.
    :param run: Id of the MLflow run that it is of.
    :param path: Below the run's artifacts.
    :return: The picture; a page that says why not, otherwise.
    """
    try:
        with _asking(request, dag_id) as pages:
            return pages.picture(run, path)
    except _Missing as missing:
        return _said(missing.said, missing.status)


def go_to_run(request: Request, dag_id: DagId, run_id: RunId) -> Response:
    """
    Redirect to the MLflow run of a DAG run; for links from outside of Airflow.

    :param request: What was asked.
    :param dag_id: Id of the DAG.
    :param run_id: Id of the DAG run.
    :return: The redirection; a page that says why not, otherwise.
    """
    return _go(request, dag_id, run_id, lambda found: found.page)


def go_to_comparison(request: Request, dag_id: DagId, run_id: RunId) -> Response:
    """
    Redirect to MLflow's comparison of a DAG run with those before it; for links from outside of Airflow.

    :param request: What was asked.
    :param dag_id: Id of the DAG.
    :param run_id: Id of the DAG run.
    :return: The redirection; a page that says why not, otherwise.
    """
    return _go(request, dag_id, run_id, lambda found: found.compare)


def _go(request: Request, dag_id: str, run_id: str, where: Callable[[LastRuns], str]) -> Response:
    try:
        with _asking(request, dag_id) as pages:
            found = pages.last_runs(run_id)
    except _Missing as missing:
        return _said(missing.said, missing.status)
    address = where(found)
    return answers.redirect(address) if address else _said("There is no earlier run of this DAG to compare with.", NOT_FOUND)


def _show(request: Request, dag_id: str, look: Callable[[Pages], Response]) -> Response:
    try:
        with _asking(request, dag_id) as pages:
            return look(pages)
    except _Missing as missing:
        return _said(missing.said)


@contextmanager
def _asking(request: Request, dag_id: str) -> Iterator[Pages]:
    """Ask MLflow, in haste: a thread of the API server waits for it. What goes wrong becomes a sentence."""
    conn_id = default_argument(dag_id, "mlflow_conn_id") or MlflowHook.default_conn_name
    try:
        with PageApi(MlflowHook(conn_id).server()) as api:
            yield Pages(api, _to(request), dag_id, part="x-part" in request.headers)
    except RemoteUnavailableError as error:
        log.warning("A page about %s cannot be shown: %s", dag_id, error)
        raise _Missing(f"MLflow (connection {conn_id!r}) does not answer. Try again in a while.", UNAVAILABLE) from error
    except NoRecordError as error:
        raise _Missing(
            f"MLflow (connection {conn_id!r}) has no run of this {error.of}. The first step that starts makes it; tasks that are "
            "no steps of airflow-ml-provider make none. Runs on the server of another connection are found only if the DAG names "
            "it in its default_args (mlflow_conn_id)."
        ) from error
    except (RemoteNotFoundError, DeniedError) as error:  # to all but its admins MLflow tells no missing run from a forbidden one
        log.info("A page about %s has nothing to show: %s", dag_id, error)
        raise _Missing(f"MLflow (connection {conn_id!r}) has no such thing, or it is not of DAGs that you may read.") from error
    except AirflowMLError as error:  # what exactly, only those may know who mend it
        log.warning("A page about %s cannot be shown: %s", dag_id, error)
        said = f"The connection {conn_id!r} is missing, or MLflow refuses it. The log of Airflow's API server says what to mend."
        raise _Missing(said, SERVER_ERROR) from error
    except (ArithmeticError, LookupError, OSError, TypeError, ValueError) as error:  # whoever may write there writes anything
        log.exception("A page about %s cannot be shown.", dag_id)
        said = (
            "What is on record in MLflow cannot be read as what a step leaves there. The log of Airflow's API server says more."
        )
        raise _Missing(said, SERVER_ERROR) from error


def _to(request: Request) -> Addresses:
    return Addresses(str(request.scope.get("app_root_path", "")).rstrip("/"))


def _said(said: str, status: int = OK, login: str = "") -> Response:
    return answers.page("said", {"title": "MLflow", "said": said, "login": login}, status)


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer with a page of words what a dependency or a wrong address has ended."""
    status = error.status_code if isinstance(error, HTTPException) else UNPROCESSABLE
    login = _to(request).login(LOGIN, str(request.url)) if status == UNAUTHORIZED else ""
    return _said(SAID.get(status, "Airflow does not answer this."), status, login)
