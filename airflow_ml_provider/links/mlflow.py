"""Links to pages of MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class MlflowRunLink(BaseOperatorLink):
    """The nested MLflow run of a task; asked for in the worker when a try ends, so it costs the API server nothing."""

    name: ClassVar[str] = "MLflow run"

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002  (Airflow's signature)
        """
        Return the page's address.

        :param operator: The operator that ran.
        :param ti_key: The task instance.
        :return: URL, empty when the run was never opened.
        """
        return getattr(operator, "mlflow_run_url", "")
