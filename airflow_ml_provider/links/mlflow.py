"""Links to pages of MLflow."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from airflow.sdk import BaseOperatorLink

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator
    from airflow.sdk.types import TaskInstanceKey


class _NotedLink(BaseOperatorLink):
    """A page whose address the operator has noted; asked for in the worker, so it costs the API server nothing."""

    noted_as: ClassVar[str]
    """Attribute of the operator that has the address."""

    def get_link(self, operator: BaseOperator, *, ti_key: TaskInstanceKey) -> str:  # noqa: ARG002  (Airflow's signature)
        """
        Return the page's address.

        :param operator: The operator that ran.
        :param ti_key: The task instance.
        :return: URL, empty when the operator has noted none.
        """
        return getattr(operator, self.noted_as, "")


class MlflowRunLink(_NotedLink):
    """The nested MLflow run of a task; empty when the run was never opened."""

    name: ClassVar[str] = "MLflow run"
    noted_as: ClassVar[str] = "mlflow_run_url"


class MlflowPageLink(_NotedLink):
    """The page of MLflow that shows what a task has made; empty when nothing was made."""

    name: ClassVar[str] = "MLflow page"
    noted_as: ClassVar[str] = "mlflow_page_url"


class MlflowCachedFromLink(_NotedLink):
    """The nested MLflow run whose result a cached task has taken; empty when the task has made its result itself."""

    name: ClassVar[str] = "Cached from"
    noted_as: ClassVar[str] = "cached_from_url"
