"""Promotion as a task: register the model, move the alias, keep the champion before it within reach."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import BaseOperator

from airflow_ml_provider.assets.events import check_registered
from airflow_ml_provider.core.alert_reasons import why_promoted
from airflow_ml_provider.core.model_names import check_aliases, check_name
from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.links.mlflow import MlflowRunLink
from airflow_ml_provider.models.artifact import Model
from airflow_ml_provider.models.reference import ArtifactRef, model_id_of
from airflow_ml_provider.notifications.alerts import alerts_of
from airflow_ml_provider.operators.references import check_value
from airflow_ml_provider.operators.step import StepOperatorMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.operators.session import StepSession
    from airflow_ml_provider.tracking.registry import ModelRegistry, RegisteredVersion

log = logging.getLogger(__name__)

LOOKS = 5
"""How often a promotion looks anew when somebody else moves the alias between its look and its move."""
TAG = "airflow.promotion"
TAGS = tuple(f"{TAG}.{each}" for each in ("version", "previous", "newer", "reason"))
"""Tags of the run. Each promotion writes them all, so that none stays of a try before."""


class PromoteModelOperator(StepOperatorMixin, BaseOperator):
    """
    Registers a model and makes it the champion.

    A retry, wherever the try before was cut, ends in the same state: one version, the alias on it, the champion before
    it under ``previous_alias``. Back again by ``airflow-ml rollback <name>``.

    The XCom is ``{"name", "version", "alias", "previous_version", "uri", "reason"}``; ``uri`` names the version and never
    moves. A promotion that is skipped for a newer champion pushes it too, with the reason and no version.

    Where the task or its DAG has alerts (:func:`~airflow_ml_provider.notifications.alerts.ml_alert`), people are told of the
    new champion, what it replaces, and what a gate before it has said.

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
        self._moved = False
        wanted = StepParameter.input("model", Model)
        check_value(StepSignature(self.task_id, {"model": wanted}), wanted, model)
        self._check_names()

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Register and promote.

        :param context: Airflow's context.
        :return: What was promoted, as plain JSON.
        :raises AirflowSkipException: the champion is of a later logical date.
        :raises ConfigError: a name is not one that MLflow takes, or others move the alias again and again; a retry
            never helps.
        :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry is safe.
        """
        from airflow_ml_provider.hooks.patience import patiently
        from airflow_ml_provider.operators.execution import open_step

        with open_step(self, context, {"name": self.name, "alias": self.alias}) as session:
            self.session = session
            session.set_tags(dict.fromkeys(TAGS, "none"))
            self._check_names()
            model = session.read("model", self.model, Model)
            # The record's reference is for people: what Airflow's masker knows is masked in it. The model's own URI is whole.
            ref = session.record.inputs[-1].model_copy(update={"uri": model.uri if model else ""})
            answer = patiently(f"promote {self.name}", lambda: self._promote(session, ref), session.settings.patience_s)
            # A try that finds all done may follow one that was cut before it told; a task's first has nothing to tell then.
            news = self._moved or context["ti"].try_number > 1
            session.registered = answer if news else {**answer, "version": None}
            said = {"version": answer["uri"], "previous": answer["previous_version"], "reason": answer["reason"]}
            session.set_tags({f"{TAG}.{key}": value or "none" for key, value in said.items()})
            log.info("%s", answer["reason"])
            if answer["version"] is None:
                if self.do_xcom_push:  # a skip ends the task by raising, and then nothing is pushed for it
                    context["ti"].xcom_push(key="return_value", value=answer)
                raise AirflowSkipException(answer["reason"])
        if news:
            self._tell(context, answer)
        return answer

    def _tell(self, context: Context, answer: Mapping[str, Any]) -> None:
        notifiers = alerts_of(self)
        reasons = _reasons_of_gates(self, context) if notifiers else []
        said = why_promoted(self.name, self.alias, answer["previous_version"], reasons)
        for each in notifiers:
            each.announce("promoted", context, why=said, model=f"{self.name} version {answer['version']}")

    def _promote(self, session: StepSession, ref: ArtifactRef) -> dict[str, Any]:
        """Look and move; when somebody else moves the alias in between, look anew at what serves then."""
        from airflow_ml_provider.tracking.registry import AliasMovedError, ModelRegistry

        registry = ModelRegistry(session.api)
        made = self._describe(registry, ref, session)
        for _ in range(LOOKS - 1):
            try:
                return self._look_and_move(registry, made, session)
            except AliasMovedError as error:
                log.warning("%s Looking again.", error)
        return self._look_and_move(registry, made, session)

    def _look_and_move(self, registry: ModelRegistry, made: _Candidate, session: StepSession) -> dict[str, Any]:
        """Look, register, move; whatever is done already is left as it is."""
        champion = registry.find(self.name, self.alias)
        if why := self._why_not(registry, made, champion):
            session.set_tags({f"{TAG}.newer": champion.uri if champion else "none"})
            return self._answer(None, None, why)
        version = registry.register(self.name, made.source, run_id=made.run_id, model_id=made.model_id, tags=made.tags)
        session.require_current()
        seen = champion.version if champion else None
        # Before the move: whose answer is lost finds all done when it looks again, and others must hear of it all the same.
        self._moved |= seen != version.version
        moved = registry.promote(self.name, version.version, alias=self.alias, previous_alias=self.previous_alias, expected=seen)
        before = f"before it: version {moved.previous}" if moved.previous else "there was none before it"
        now = f"is {self.name}@{self.alias} now; {before}" if moved.changed else f"is {self.name}@{self.alias} now"
        done = now if self._moved else f"was {self.name}@{self.alias} already"
        return self._answer(version, moved.previous, f"Promoted: version {version.version} {done}.")

    def _describe(self, registry: ModelRegistry, ref: ArtifactRef, session: StepSession) -> _Candidate:
        """Say what is to be registered: the LoggedModel if there is one, wherever its bytes are."""
        from airflow_ml_provider.tracking.registry import LOGICAL_DATE, as_date

        model_id = model_id_of(ref.uri) or (registry.find_logged_model(ref.run_id, ref.uri) if ref.run_id else "")
        source = f"models:/{model_id}" if model_id else ref.uri
        attempt = session.record.attempt
        trained_at = registry.trained_at(source) or as_date(attempt.tags.get(LOGICAL_DATE, ""))
        tags = {
            "airflow.dag_id": attempt.identity.dag_id,
            "airflow.run_id": attempt.identity.run_id,
            "airflow.task_id": attempt.identity.task_id,
            LOGICAL_DATE: trained_at.isoformat() if trained_at else "",
            "airflow.sha256": ref.sha256 or "",
        }
        said = {key: value for key, value in tags.items() if value} | dict(self.tags or {})
        return _Candidate(source, model_id, ref.run_id or "", trained_at, said)

    def _why_not(self, registry: ModelRegistry, made: _Candidate, champion: RegisteredVersion | None) -> str:
        """Say that the champion is of a later night; with a gate before, one that came between the gate and here."""
        if self.allow_older or champion is None or champion.source == made.source:
            return ""
        newest = registry.trained_at(champion)
        if not (newest and made.trained_at and made.trained_at < newest):
            return ""
        return (
            f"Not promoted: the model is of {made.trained_at.isoformat()}, and {self.name}@{self.alias}, version "
            f"{champion.version}, of {newest.isoformat()}, which is newer (a backfill, or an old night cleared). "
            "To promote it all the same, set allow_older=True."
        )

    def _answer(self, version: RegisteredVersion | None, previous: str | None, reason: str) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": version.version if version else None,
            "alias": self.alias,
            "previous_version": previous,
            "uri": version.uri if version else None,
            "reason": reason,
        }

    def _check_names(self) -> None:
        """Refuse names that MLflow does not take; when the DAG is parsed, those that are known by then."""
        known = [each for each in (self.alias, self.previous_alias) if _is_known(each)]
        check_aliases(*known)
        if _is_known(self.name):
            check_name(self.name)
            check_registered(self.task_id, self.outlets, self.name, self.mlflow_conn_id)


@dataclass(frozen=True)
class _Candidate:
    """What is to be promoted: its place, its LoggedModel and run if it has any, its logical date, the tags of its version."""

    source: str
    model_id: str
    run_id: str
    trained_at: datetime | None
    tags: Mapping[str, str]


def _reasons_of_gates(task: PromoteModelOperator, context: Context) -> list[str]:
    """Read why the gates before a promotion have let the model through; a promotion without a gate has no reason."""
    from airflow_ml_provider.operators.gate import ModelGateOperator

    found: dict[str, Any] = {}
    left: list[Any] = [task]
    while left:
        new = [each for each in left.pop().get_direct_relatives(upstream=True) if each.task_id not in found]
        found |= {each.task_id: each for each in new}
        left += new
    gates = [name for name, each in found.items() if isinstance(each, ModelGateOperator)]
    try:
        verdicts = [context["ti"].xcom_pull(task_ids=name) for name in gates]
        return [reason for each in verdicts if each and each["decision"] == "promote" for reason in each["reasons"]]
    except Exception:  # an alert with less in it is better than a promotion that fails for it
        log.debug("What the gates have said is not known.", exc_info=True)
        return []


def _is_known(value: object) -> bool:
    """Tell a text from a template and from what another task will give."""
    return isinstance(value, str) and "{{" not in value and "{%" not in value
