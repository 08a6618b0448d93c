"""Promotion as a task: register the model, move the alias, keep the champion before it within reach."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.links.mlflow import MlflowRunLink
from airflow_ml_provider.models.artifact import Model
from airflow_ml_provider.models.reference import ArtifactRef
from airflow_ml_provider.operators.references import check_value
from airflow_ml_provider.operators.step import StepOperatorMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.operators.session import StepSession
    from airflow_ml_provider.tracking.registry import ModelRegistry, Promotion, RegisteredVersion

log = logging.getLogger(__name__)


class PromoteModelOperator(StepOperatorMixin, BaseOperator):
    """
    Registers a model and makes it the champion.

    A retry, wherever the try before was cut, ends in the same state: one version, the alias on it, the champion before
    it under ``previous_alias``. Back again by ``airflow-ml rollback <name>``.

    The XCom is ``{"name", "version", "alias", "previous_version", "uri"}``; ``uri`` names the version and never moves.

    :param model: Reference to the model, ``fit["model"]``, or its URI.
    :param name: Name of the registered model; made when there is none.
    :param alias: The alias that says which version serves.
    :param previous_alias: Alias under which the version that leaves is kept.
    :param tags: Tags of the version, beside those that say where it comes from.
    :param allow_older: Whether a model may replace one of a later logical date. By default it may not, since that is
        what a backfill or an old night cleared would do: the task is skipped, and its log and its run say why.
    :param mlflow_conn_id: Connection of the MLflow server.
    :param experiment: Name of the MLflow experiment, as for ``@task.ml``.
    """

    template_fields: Sequence[str] = ("model", "name", "alias", "previous_alias", "tags", "experiment")
    operator_extra_links = (MlflowRunLink(),)
    shallow_copy_attrs: Sequence[str] = ("session",)

    def __init__(
        self,
        *,
        model: Any,
        name: str,
        alias: str = "champion",
        previous_alias: str = "previous-champion",
        tags: Mapping[str, str] | None = None,
        allow_older: bool = False,
        mlflow_conn_id: str = "mlflow_default",
        experiment: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.name = name
        self.alias = alias
        self.previous_alias = previous_alias
        self.tags = tags
        self.allow_older = allow_older
        self.mlflow_conn_id = mlflow_conn_id
        self.experiment = experiment
        wanted = StepParameter.input("model", Model)
        check_value(StepSignature(self.task_id, {"model": wanted}), wanted, model)

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Register and promote.

        :param context: Airflow's context.
        :return: What was promoted, as plain JSON.
        :raises AirflowSkipException: the champion is of a later logical date.
        :raises ConfigError: a name is not one that MLflow takes, or somebody else moved the alias meanwhile; a retry
            never helps.
        :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry is safe.
        """
        from airflow_ml_provider.hooks.patience import patiently
        from airflow_ml_provider.operators.execution import open_step
        from airflow_ml_provider.tracking.registry import ModelRegistry

        with open_step(self, context, {"name": self.name, "alias": self.alias}) as session:
            self.session = session
            session.read("model", self.model, Model)
            registry, ref = ModelRegistry(session.api), session.record.inputs[-1]

            def promote() -> tuple[RegisteredVersion, Promotion]:
                return self._promote(registry, ref, session)

            version, promotion = patiently(f"promote {self.name}", promote, session.settings.patience_s)
            session.set_tags(
                {"airflow.promotion.version": version.uri, "airflow.promotion.previous": promotion.previous or "none"}
            )
        return {
            "name": self.name,
            "version": version.version,
            "alias": self.alias,
            "previous_version": promotion.previous,
            "uri": version.uri,
        }

    def _promote(self, registry: ModelRegistry, ref: ArtifactRef, session: StepSession) -> tuple[RegisteredVersion, Promotion]:
        """Look, register, move; whatever is done already is left as it is."""
        from airflow_ml_provider.tracking.registry import LOGICAL_DATE, as_date, model_id_of

        model_id = model_id_of(ref.uri)
        source = f"models:/{model_id}" if model_id else ref.uri
        attempt = session.record.attempt
        identity, trained_at = attempt.identity, registry.trained_at(ref.uri) or as_date(attempt.tags.get(LOGICAL_DATE, ""))
        self._leave_newer(registry, source, trained_at, session)
        tags = {
            "airflow.dag_id": identity.dag_id,
            "airflow.run_id": identity.run_id,
            "airflow.task_id": identity.task_id,
            LOGICAL_DATE: trained_at.isoformat() if trained_at else "",
            "airflow.sha256": ref.sha256 or "",
        }
        said = {key: value for key, value in tags.items() if value} | dict(self.tags or {})
        version = registry.register(self.name, source, run_id=ref.run_id or "", model_id=model_id, tags=said)
        session.require_current()
        moved = registry.promote(self.name, version.version, alias=self.alias, previous_alias=self.previous_alias)
        return version, moved

    def _leave_newer(self, registry: ModelRegistry, source: str, trained_at: datetime | None, session: StepSession) -> None:
        """Skip when the champion is of a later night; with a gate before, one that came between the gate and here."""
        from airflow.sdk.exceptions import AirflowSkipException

        champion = registry.find(self.name, self.alias)
        if self.allow_older or champion is None or champion.source == source:
            return
        newest = registry.trained_at(champion)
        if newest and trained_at and trained_at < newest:
            session.set_tags({"airflow.promotion.version": "none", "airflow.promotion.newer": champion.uri})
            raise AirflowSkipException(
                f"Not promoted: the model is of {trained_at.isoformat()}, and {self.name}@{self.alias}, version "
                f"{champion.version}, of {newest.isoformat()}, which is newer (a backfill, or an old night cleared). "
                "To promote it all the same, set allow_older=True."
            )
