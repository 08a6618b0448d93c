"""MLflow runs that a DAG handles itself, as tasks; the runs of steps (``@task.ml``) come and go with their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args

from airflow.providers.common.compat.sdk import redact

from airflow_ml_provider.core.tracking_values import View
from airflow_ml_provider.core.wiring import check_choice, check_given
from airflow_ml_provider.operators.mlflow import MlflowOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.hooks.mlflow import MlflowApi

EndStatus = Literal["FINISHED", "FAILED", "KILLED"]
"""How a run can end."""
RunAction = Literal["delete", "restore"]
"""What can be done to a run that is there."""


class MlflowStartRunOperator(MlflowOperator):
    """
    Starts an MLflow run that later tasks fill (``MlflowLogOperator``) and end (``MlflowFinishRunOperator``).

    It stays open until it is ended, whatever becomes of the DAG run: end it in a teardown task. A step needs none of this:
    ``@task.ml`` has a run of its own.

    A retry, or a clear, takes up the run that the try before has started, and opens it again if it has ended. One that was
    deleted in MLflow meanwhile stays so, and another is started.

    The XCom is ``{"run_id", "run_name", "experiment_id", "status", "lifecycle_stage", "start_time_ms", "end_time_ms",
    "artifact_uri", "metrics", "params", "tags", "url"}``.

    :param run_name: Name of the run, of which 250 characters are kept; None takes the task's id.
    :param experiment: Name of the experiment, made when there is none; None means ``[ml] experiment``, the DAG's id by default.
    :param parameters: Parameters of the run, JSON values; what Airflow masks in a log is masked.
    :param tags: Tags of the run.
    :param parent_run_id: Run that it is nested below; None for none.
    :param description: Text that MLflow shows with the run; None for none.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    handles: ClassVar[tuple[str, ...]] = ("run_id",)
    template_fields: Sequence[str] = ("run_name", "experiment", "parameters", "tags", "parent_run_id", "description")

    def __init__(
        self,
        *,
        run_name: str | None = None,
        experiment: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
        parent_run_id: str | None = None,
        description: str | None = None,
        mlflow_conn_id: str = "mlflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.run_name = run_name
        self.experiment = experiment
        self.parameters = parameters
        self.tags = tags
        self.parent_run_id = parent_run_id
        self.description = description

    def act(self, api: MlflowApi, context: Context) -> dict[str, Any]:
        """
        Find the run of this task, or start it.

        :param api: The server.
        :param context: Airflow's context.
        :return: The run, as plain JSON.
        :raises ConfigError: a name is not one that MLflow takes, the experiment is deleted, or an earlier try has logged a
            parameter with another value.
        :raises RemoteNotFoundError: there is no run ``parent_run_id``.
        """
        from airflow_ml_provider.config import load_settings
        from airflow_ml_provider.operators.attempt import read_attempt
        from airflow_ml_provider.tracking.experiments import Experiments
        from airflow_ml_provider.tracking.run_records import NOTE, RunRecords

        attempt, runs = read_attempt(context), RunRecords(api)
        experiment = self.experiment or load_settings().experiment.replace("{dag_id}", attempt.identity.dag_id)
        experiment_id = Experiments(api).make(experiment, restore=False)["experiment_id"]
        from_airflow = {key: value for key, value in attempt.tags.items() if not key.startswith("airflow.operator")}
        note = {NOTE: self.description} if self.description else {}
        tags = from_airflow | masked(self.tags) | note
        made = runs.start(experiment_id, attempt, self.run_name or self.task_id, tags=tags, parent_run_id=self.parent_run_id)
        self.mlflow_page_url = str(made["url"])
        runs.log_values(made["run_id"], masked(self.parameters), {})
        return runs.plain(runs.tree.get(made["run_id"]))


class MlflowFinishRunOperator(MlflowOperator):
    """
    Ends a run.

    A retry leaves alone what has ended with that status, and the time at which it did.

    The XCom is as of ``MlflowStartRunOperator``.

    :param run_id: The run.
    :param status: ``FINISHED``, ``FAILED`` or ``KILLED``.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    template_fields: Sequence[str] = ("run_id", "status")

    def __init__(
        self, *, run_id: str, status: EndStatus = "FINISHED", mlflow_conn_id: str = "mlflow_default", **kwargs: Any
    ) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.run_id = run_id
        self.status = status
        check_given(self.task_id, "run_id", run_id)

    def act(self, api: MlflowApi, context: Context) -> dict[str, Any]:  # noqa: ARG002  (the base's signature)
        """
        End it unless it has ended so.

        :param api: The server.
        :param context: Airflow's context.
        :return: The run, as plain JSON.
        :raises ConfigError: the id or the status is none, or the run is deleted.
        :raises RemoteNotFoundError: there is no such run.
        """
        from airflow_ml_provider.tracking.run_records import RunRecords

        check_choice(self.task_id, "status", self.status, get_args(EndStatus))
        found = RunRecords(api).finish(self.run_id, self.status)
        self.mlflow_page_url = str(found["url"])
        return found


class MlflowSearchRunsOperator(MlflowOperator):
    """
    Searches runs, in one experiment or several.

    A retry asks again; the answer is what the server has then.

    The XCom is a list, one entry a run, each as of ``MlflowStartRunOperator``: map over it with
    ``.expand(run_id=search.output.map(lambda run: run["run_id"]))``.

    :param experiments: Names of the experiments; None means that of this DAG (``[ml] experiment``).
    :param filter_string: In MLflow's search language, ``metrics.auc > 0.8``; empty for all.
    :param tags: Tags with the value that they must have. What a template puts there never becomes a part of the language.
    :param order_by: In that language, ``["metrics.auc DESC"]``; empty for the newest first.
    :param view: ``active``, ``deleted`` or ``all``.
    :param max_results: How many at most. All of them go into one XCom.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    template_fields: Sequence[str] = ("experiments", "filter_string", "tags", "order_by", "view")

    def __init__(
        self,
        *,
        experiments: Sequence[str] | None = None,
        filter_string: str = "",
        tags: Mapping[str, str] | None = None,
        order_by: Sequence[str] = (),
        view: View = "active",
        max_results: int = 100,
        mlflow_conn_id: str = "mlflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.experiments = experiments
        self.filter_string = filter_string
        self.tags = tags
        self.order_by = order_by
        self.view = view
        self.max_results = max_results

    def act(self, api: MlflowApi, context: Context) -> list[dict[str, Any]]:
        """
        Search.

        :param api: The server.
        :param context: Airflow's context.
        :return: The runs, as plain JSON.
        :raises ConfigError: MLflow does not take the filter or the order, or a name or the view is none.
        :raises RemoteNotFoundError: there is no experiment of a name.
        """
        from airflow_ml_provider.tracking.experiments import Experiments
        from airflow_ml_provider.tracking.run_records import RunRecords

        check_choice(self.task_id, "view", self.view, get_args(View))
        ids = Experiments(api).ids(self.experiments if self.experiments is not None else [experiment_of(context)])
        self.mlflow_page_url = api.server.experiment_page(ids[0] if len(ids) == 1 else "")
        return RunRecords(api).search(
            ids, self.filter_string, tags=self.tags, order_by=self.order_by, view=self.view, max_results=self.max_results
        )


class MlflowRunActionOperator(MlflowOperator):
    """
    Deletes or restores a run.

    ``delete`` is soft: the run, its metrics and its artifacts stay until ``mlflow gc``, and ``restore`` brings them back until
    then. To delete many, and artifacts, use ``MlflowCleanUpRunsOperator``.

    A retry leaves alone what is done. To delete a run that is not there is a success, and the log says so.

    The XCom is as of ``MlflowStartRunOperator``; of a run that is not there, ``run_id`` and ``lifecycle_stage`` ``gone`` alone.

    :param run_id: The run.
    :param action: ``delete`` or ``restore``.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    template_fields: Sequence[str] = ("run_id",)

    def __init__(self, *, run_id: str, action: RunAction, mlflow_conn_id: str = "mlflow_default", **kwargs: Any) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.run_id = run_id
        self.action = action
        check_choice(self.task_id, "action", action, get_args(RunAction))
        check_given(self.task_id, "run_id", run_id)

    def act(self, api: MlflowApi, context: Context) -> dict[str, Any]:  # noqa: ARG002  (the base's signature)
        """
        Do what is left to do.

        :param api: The server.
        :param context: Airflow's context.
        :return: The run as it is now, as plain JSON.
        :raises ConfigError: the id is none.
        :raises RemoteNotFoundError: there is no such run, and it was to be restored; ``mlflow gc`` may have removed it.
        """
        from airflow_ml_provider.tracking.run_records import RunRecords

        runs = RunRecords(api)
        found = runs.delete(self.run_id) if self.action == "delete" else runs.restore(self.run_id)
        self.mlflow_page_url = str(found.get("url", ""))
        return found


class MlflowLogOperator(MlflowOperator):
    """
    Logs parameters, metrics, tags, files, texts and datasets to a run that is there.

    A retry logs what is not there yet: equal parameters, points of a metric (by step and value) and datasets (by name and
    digest) are not doubled; tags, files and texts are written over.

    The XCom is ``{"run_id", "artifacts", "url"}``; ``artifacts`` are the URIs of what was stored.

    :param run_id: The run; one that has ended is taken too.
    :param parameters: Parameters, JSON values; what Airflow masks in a log is masked. MLflow never changes one.
    :param metrics: Number per name; one point each.
    :param step: Position of these points on their curves.
    :param tags: Tags of the run.
    :param artifacts: Per path in the run, what to store there: an absolute path on the worker (file or folder), a reference to
        an artifact of a step, or a URI.
    :param texts: Per path in the run, a text, or a JSON value that is written as one.
    :param datasets: What the run has read: references to artifacts, or ``{"name", "uri", "digest", "context"}``, of which
        the last two may be left out.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    template_fields: Sequence[str] = ("run_id", "parameters", "metrics", "step", "tags", "artifacts", "texts", "datasets")

    def __init__(
        self,
        *,
        run_id: str,
        parameters: Mapping[str, Any] | None = None,
        metrics: Mapping[str, Any] | None = None,
        step: int | str = 0,
        tags: Mapping[str, str] | None = None,
        artifacts: Mapping[str, Any] | None = None,
        texts: Mapping[str, Any] | None = None,
        datasets: Sequence[Any] = (),
        mlflow_conn_id: str = "mlflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.run_id = run_id
        self.parameters = parameters
        self.metrics = metrics
        self.step = step
        self.tags = tags
        self.artifacts = artifacts
        self.texts = texts
        self.datasets = datasets
        check_given(self.task_id, "run_id", run_id)

    def act(self, api: MlflowApi, context: Context) -> dict[str, Any]:  # noqa: ARG002  (the base's signature)
        """
        Log what is not there yet.

        :param api: The server.
        :param context: Airflow's context.
        :return: What was stored, as plain JSON.
        :raises ConfigError: a name, a number, a path or a URI is wrong, or a parameter is on record with another value.
        :raises ArtifactError: a file is missing; a retry helps only after it was written.
        :raises RemoteNotFoundError: there is no such run.
        """
        from airflow_ml_provider.exceptions import ConfigError
        from airflow_ml_provider.tracking.run_records import RunRecords

        try:
            step = int(self.step)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"task {self.task_id!r}: step={self.step!r:.80} is not a whole number.") from error
        runs = RunRecords(api)
        run = runs.plain(runs.tree.get(checked(self.run_id)))
        self.mlflow_page_url = str(run["url"])
        stored = runs.log_artifacts(self.run_id, self.artifacts or {}, self.texts or {})
        runs.log_values(self.run_id, masked(self.parameters), masked(self.tags))
        runs.log_datasets(self.run_id, self.datasets)
        runs.log_metrics(self.run_id, self.metrics or {}, step)
        return {"run_id": self.run_id, "artifacts": stored, "url": run["url"]}


def masked(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """
    Mask in values what Airflow would mask in a log: MLflow shows them to everybody.

    :param values: JSON value per name; None for none.
    :return: The same, secrets masked.
    """
    return {str(name): redact(value, str(name)) for name, value in (values or {}).items()}


def checked(run_id: str) -> str:
    """
    Refuse what cannot be the id of a run.

    :param run_id: What was given.
    :return: The id.
    :raises ConfigError: it is none; a retry never helps.
    """
    from airflow_ml_provider.core.tracking_values import check_run_id

    return check_run_id(run_id)


def experiment_of(context: Context) -> str:
    """
    Name the experiment of the running DAG.

    :param context: Airflow's context.
    :return: What ``[ml] experiment`` says, by default the DAG's id.
    """
    from airflow_ml_provider.config import load_settings

    return load_settings().experiment.replace("{dag_id}", str(context["ti"].dag_id))
