"""MLflow experiments, as tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, get_args

from airflow_ml_provider.core.tracking_values import View
from airflow_ml_provider.core.wiring import check_choice, check_given
from airflow_ml_provider.operators.mlflow import MlflowOperator

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.hooks.mlflow import MlflowApi


class MlflowCreateExperimentOperator(MlflowOperator):
    """
    Makes an experiment, or finds the one of that name; with ``must_exist`` it only finds.

    A retry finds the experiment that the try before has made, and sets its tags again.

    The XCom is ``{"experiment_id", "name", "artifact_location", "lifecycle_stage", "tags", "url"}``.

    :param name: Name of the experiment, at most 256 characters; slashes are fine.
    :param artifact_location: URI below which artifacts of its runs go; None leaves it to the server. It cannot be changed
        afterwards, so an experiment that is there with another one is refused.
    :param tags: Tags of the experiment; others that it has stay.
    :param restore: Whether an experiment that somebody has deleted is brought back, with its runs; else it is refused.
    :param must_exist: Whether to make none: then an experiment that is not there is an error, and nothing of it is changed.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    handles: ClassVar[tuple[str, ...]] = ("experiment_id",)
    template_fields: Sequence[str] = ("name", "artifact_location", "tags")

    def __init__(
        self,
        *,
        name: str,
        artifact_location: str | None = None,
        tags: Mapping[str, str] | None = None,
        restore: bool = True,
        must_exist: bool = False,
        mlflow_conn_id: str = "mlflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.name = name
        self.artifact_location = artifact_location
        self.tags = tags
        self.restore = restore
        self.must_exist = must_exist
        check_given(self.task_id, "name", name)

    def act(self, api: MlflowApi, context: Context) -> dict[str, Any]:  # noqa: ARG002  (the base's signature)
        """
        Find it or make it.

        :param api: The server.
        :param context: Airflow's context.
        :return: The experiment, as plain JSON.
        :raises ConfigError: the name is not one that MLflow takes, the experiment is deleted and ``restore`` is off, or it
            keeps its artifacts elsewhere.
        :raises RemoteNotFoundError: ``must_exist``, and there is none.
        """
        from airflow_ml_provider.tracking.experiments import Experiments

        found = Experiments(api)
        if self.must_exist:
            made = found.get(self.name)
        else:
            made = found.make(self.name, artifact_location=self.artifact_location, tags=self.tags, restore=self.restore)
        self.mlflow_page_url = made["url"]
        return made


class MlflowSearchExperimentsOperator(MlflowOperator):
    """
    Lists experiments, the newest first.

    A retry asks again; the answer is what the server has then.

    The XCom is a list, one entry an experiment, each as of ``MlflowCreateExperimentOperator``.

    :param filter_string: In MLflow's search language, ``name LIKE 'flights/%'``; empty for all.
    :param tags: Tags with the value that they must have. What a template puts there never becomes a part of the language.
    :param view: ``active``, ``deleted`` or ``all``.
    :param max_results: How many at most.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    template_fields: Sequence[str] = ("filter_string", "tags", "view")

    def __init__(
        self,
        *,
        filter_string: str = "",
        tags: Mapping[str, str] | None = None,
        view: View = "active",
        max_results: int = 100,
        mlflow_conn_id: str = "mlflow_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.filter_string = filter_string
        self.tags = tags
        self.view = view
        self.max_results = max_results

    def act(self, api: MlflowApi, context: Context) -> list[dict[str, Any]]:  # noqa: ARG002  (the base's signature)
        """
        Search.

        :param api: The server.
        :param context: Airflow's context.
        :return: The experiments, as plain JSON.
        :raises ConfigError: MLflow does not take the filter, or the view is none.
        """
        from airflow_ml_provider.tracking.experiments import Experiments

        check_choice(self.task_id, "view", self.view, get_args(View))
        self.mlflow_page_url = api.server.experiment_page("")
        return Experiments(api).search(self.filter_string, tags=self.tags, view=self.view, max_results=self.max_results)


class MlflowDeleteExperimentOperator(MlflowOperator):
    """
    Deletes an experiment and its runs, softly: ``MlflowCreateExperimentOperator`` brings them back until ``mlflow gc``.

    A retry leaves alone what is deleted; an experiment that was never there is a success too, and the log says so.

    The XCom is as of ``MlflowCreateExperimentOperator``, with ``lifecycle_stage`` ``deleted``, or ``gone`` for none.

    :param name: Name of the experiment.
    :param mlflow_conn_id: Connection of the MLflow server.
    """

    template_fields: Sequence[str] = ("name",)

    def __init__(self, *, name: str, mlflow_conn_id: str = "mlflow_default", **kwargs: Any) -> None:
        super().__init__(mlflow_conn_id=mlflow_conn_id, **kwargs)
        self.name = name
        check_given(self.task_id, "name", name)

    def act(self, api: MlflowApi, context: Context) -> dict[str, Any]:  # noqa: ARG002  (the base's signature)
        """
        Delete it unless it is gone.

        :param api: The server.
        :param context: Airflow's context.
        :return: The experiment as it is now, as plain JSON.
        :raises ConfigError: the name is not one that MLflow takes, or the experiment must not be deleted (the default one).
        """
        from airflow_ml_provider.tracking.experiments import Experiments

        found = Experiments(api).delete(self.name)
        self.mlflow_page_url = found["url"]
        return found
