"""What all operators have in common that are about MLflow itself, and not steps with a record of their own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.sdk import BaseOperator

from airflow_ml_provider.lineage.openlineage_mixin import OpenLineageMixin
from airflow_ml_provider.links.mlflow import MlflowPageLink

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.hooks.mlflow import MlflowApi

log = logging.getLogger(__name__)


class MlflowOperator(OpenLineageMixin, BaseOperator):
    """
    Does one thing to an MLflow server; subclasses say what.

    :meth:`act` must be such that doing it twice is doing it once: it is repeated while the server is away, and by a retry.

    :param mlflow_conn_id: Connection of the MLflow server.
    """

    operator_extra_links = (MlflowPageLink(),)
    template_fields: Sequence[str] = ()
    handles: ClassVar[tuple[str, ...]] = ()
    """Keys of the result that are XComs of their own too, so that ``start.output["run_id"]`` is the id."""
    only_reads: ClassVar[bool] = False
    """Whether it makes nothing, so that a version in its result is not told of as its output."""
    ui_color = "#e6f4ff"

    def __init__(self, *, mlflow_conn_id: str = "mlflow_default", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mlflow_conn_id = mlflow_conn_id
        self.mlflow_page_url = ""

    def execute(self, context: Context) -> Any:
        """
        Open the server, act, and keep the page's address for the link.

        :param context: Airflow's context.
        :return: What :meth:`act` returned.
        :raises AirflowFailException: in place of every ``ConfigError``, so that Airflow does not retry what a retry never mends.
        :raises RemoteNotFoundError: what it is about does not exist; a retry helps only if somebody makes it.
        :raises RemoteUnavailableError: the server did not answer within ``[ml] patience_s``; a retry is safe.
        """
        from airflow_ml_provider.config import load_settings
        from airflow_ml_provider.exceptions import ConfigError
        from airflow_ml_provider.hooks.mlflow import MlflowHook
        from airflow_ml_provider.hooks.patience import patiently
        from airflow_ml_provider.operators.outcome import tell_of_version

        try:
            settings = load_settings()
            with MlflowHook(self.mlflow_conn_id).api(settings) as api:
                answer = patiently(f"run task {self.task_id}", lambda: self.act(api, context), settings.patience_s)
                if not self.only_reads:
                    tell_of_version(self, api, answer, context)
        except ConfigError as error:
            raise AirflowFailException(str(error)) from error
        log.info("Done: %s", self.mlflow_page_url)
        if self.do_xcom_push and isinstance(answer, dict):
            for key in self.handles:
                context["ti"].xcom_push(key=key, value=answer.get(key))
        return answer

    def act(self, api: MlflowApi, context: Context) -> Any:
        """
        Do it, or find it done.

        :param api: The server.
        :param context: Airflow's context.
        :return: Plain JSON for XCom.
        """
        raise NotImplementedError(f"{type(self).__name__} says nothing of what it does")
