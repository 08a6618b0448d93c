"""Waiting for something on an MLflow server: the end of a run, a metric, an alias, a version. Nothing is changed there."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowFailException, AirflowSensorTimeout, AirflowSkipException, conf
from airflow.sdk import BaseSensorOperator, PokeReturnValue

from airflow_ml_provider.config import load_settings
from airflow_ml_provider.core.watch import check_watched, read_tags
from airflow_ml_provider.exceptions import ConfigError, RemoteJobError, RemoteUnavailableError
from airflow_ml_provider.links.mlflow import MlflowPageLink, MlflowRunLink
from airflow_ml_provider.models.gate import Rule
from airflow_ml_provider.models.watch import (
    AliasQuestion,
    MetricQuestion,
    RunQuestion,
    Sight,
    Tags,
    VersionQuestion,
    WatchOutcome,
)
from airflow_ml_provider.sensors.soft_fail import unsoftened

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

SHORTEST_S = 1.0
"""Shortest pause between two looks of the triggerer."""
AnyQuestion = RunQuestion | MetricQuestion | AliasQuestion | VersionQuestion


class MlflowSensor(BaseSensorOperator):
    """
    What the sensors of MLflow have in common; not to be used itself.

    An error of the server is borne for ``[ml] patience_s``, whatever the poke interval. With ``soft_fail`` the task is skipped
    when the time is up or what it waits for will never come, and fails when the server is away, or the connection, a name or a
    rule is wrong; with ``never_fail`` it is skipped when the server is away too.

    A retry looks again, with a ``timeout`` of its own.

    :param mlflow_conn_id: Connection of the server.
    :param deferrable: Wait in the triggerer, without a worker's slot, one look per ``poke_interval``; None takes
        ``[operators] default_deferrable``.
    """

    template_fields: Sequence[str] = ("mlflow_conn_id",)
    ui_color = "#e8f0fe"

    def __init__(self, *, mlflow_conn_id: str = "mlflow_default", deferrable: bool | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mlflow_conn_id = mlflow_conn_id
        self.deferrable = deferrable
        self.mlflow_run_url = ""
        self.mlflow_page_url = ""

    @abstractmethod
    def question(self) -> AnyQuestion:
        """
        Say what is waited for, from the rendered fields.

        :return: The question.
        :raises ConfigError: a field holds what cannot be asked for; a retry never helps.
        """

    def execute(self, context: Context) -> Any:
        """
        Wait: in the triggerer, or as ``mode`` says.

        :param context: Airflow's context.
        :return: What was found, as plain JSON.
        :raises AirflowFailException: the connection, a field or the request is wrong; a retry never helps.
        :raises AirflowSensorTimeout: it was not seen within ``timeout``.
        :raises RemoteJobError: it will never be seen; the message says why. A retry looks again.
        :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
        """
        if not self._defers():
            return unsoftened(self, super().execute, context)
        deadline = time.time() + self.timeout
        sight = self._look()
        if sight.state == "waiting":
            log.info("%s Waiting in the triggerer.", sight.message)
            self._defer(deadline)
        return self._finish(WatchOutcome(outcome=sight.state, message=sight.message, value=sight.value))

    def poke(self, context: Context) -> PokeReturnValue:  # noqa: ARG002  (Airflow's signature)
        """
        Look once, patiently.

        :param context: Airflow's context.
        :return: Whether it was seen, and then what was found.
        :raises AirflowFailException: as :meth:`execute`.
        :raises RemoteJobError: as :meth:`execute`.
        :raises RemoteUnavailableError: as :meth:`execute`.
        """
        sight = self._look()
        log.info("%s", sight.message)
        if sight.state == "waiting":
            return PokeReturnValue(is_done=False)
        told = WatchOutcome(outcome=sight.state, message=sight.message, value=sight.value)
        return PokeReturnValue(is_done=True, xcom_value=self._finish(told))

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """
        Go on after the triggerer has waited, or after Airflow could not wait any longer.

        :param next_method: Name of the method that goes on.
        :param next_kwargs: What it is given.
        :param context: Airflow's context.
        :return: As :meth:`execute`.
        :raises AirflowFailException: as :meth:`execute`.
        """
        return unsoftened(self, super().resume_execution, next_method, next_kwargs, context)

    def execute_complete(self, context: Context, event: Mapping[str, Any] | None) -> dict[str, Any]:  # noqa: ARG002  (Airflow's signature)
        """
        Go on after the triggerer has waited.

        :param context: Airflow's context.
        :param event: As :class:`~airflow_ml_provider.triggers.mlflow.MlflowWatchTrigger` gives it.
        :return: As :meth:`execute`.
        :raises AirflowFailException: as :meth:`execute`.
        :raises AirflowSensorTimeout: as :meth:`execute`.
        :raises RemoteJobError: as :meth:`execute`.
        :raises RemoteUnavailableError: as :meth:`execute`.
        """
        try:
            told = WatchOutcome.from_event(event)
        except ConfigError as error:
            raise AirflowFailException(str(error)) from error
        return self._finish(told)

    def _look(self) -> Sight:
        from airflow_ml_provider.hooks.mlflow import MlflowHook
        from airflow_ml_provider.hooks.patience import patiently
        from airflow_ml_provider.tracking.watch import look

        try:
            question, settings = self.question(), load_settings()
            with closing(MlflowHook(self.mlflow_conn_id).api(settings)) as api:
                return patiently(f"look for task {self.task_id}", lambda: look(question, api), settings.patience_s)
        except ConfigError as error:
            raise AirflowFailException(str(error)) from error
        except RemoteUnavailableError as error:
            raise self._verdict(error, soft=False) from error

    def _defer(self, deadline: float) -> NoReturn:
        from airflow_ml_provider.triggers.mlflow import MlflowWatchTrigger

        trigger = MlflowWatchTrigger(
            question=self.question().model_dump(mode="json"),
            mlflow_conn_id=self.mlflow_conn_id,
            deadline=deadline,
            poll_interval_s=max(self.poke_interval, SHORTEST_S),
            patience_s=load_settings().patience_s,
        )
        self.defer(trigger=trigger, method_name="execute_complete")

    def _defers(self) -> bool:
        if self.deferrable is None:
            return bool(conf.getboolean("operators", "default_deferrable", fallback=False))
        return self.deferrable

    def _finish(self, told: WatchOutcome) -> dict[str, Any]:
        """End as it was told."""
        log.info("%s", told.message)
        self._show(told.value)
        if told.outcome == "seen":
            return told.value
        if told.outcome == "refused":
            raise AirflowFailException(told.message)
        if told.outcome == "unreachable":
            raise self._verdict(RemoteUnavailableError(told.message), soft=False)
        if told.outcome == "deadline":
            raise self._verdict(AirflowSensorTimeout(f"{told.message} The sensor's timeout is {self.timeout:.0f} s."))
        raise self._verdict(RemoteJobError(told.message))

    def _verdict(self, error: Exception, *, soft: bool = True) -> Exception:
        """Fail, or skip where the sensor was told to; Airflow itself does so for its own errors alone."""
        skips = self.never_fail or (soft and self.soft_fail)
        return AirflowSkipException(str(error)) if skips else error

    def _show(self, found: Mapping[str, Any]) -> None:
        """Say where the page is of what was found, for Airflow's link; nothing fails for want of a link."""
        from airflow_ml_provider.hooks.mlflow import MlflowHook

        with suppress(ConfigError):
            server = MlflowHook(self.mlflow_conn_id).server()
            run_id, experiment_id = found.get("run_id"), found.get("experiment_id")
            if run_id and experiment_id:
                self.mlflow_run_url = server.run_page(str(experiment_id), str(run_id))
            if model := found.get("model") or getattr(self, "model", ""):
                self.mlflow_page_url = server.model_page(str(model), str(found.get("version", "")))


class _RunSensor(MlflowSensor):
    """Waits for something of one run, known by its id, or the newest of an experiment with some tags."""

    template_fields: Sequence[str] = ("mlflow_conn_id", "run_id", "experiment", "tags")
    operator_extra_links = (MlflowRunLink(),)

    def __init__(
        self, *, run_id: str | None = None, experiment: str = "", tags: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.run_id = run_id
        self.experiment = experiment
        self.tags = tags

    def which(self) -> dict[str, Any]:
        """
        Say which run is meant, from the rendered fields.

        :return: ``run_id``, ``experiment`` and ``tags`` of the question.
        :raises ConfigError: neither the id nor experiment and tags are given, or both; a retry never helps.
        """
        tags: Tags = read_tags(self.tags, what="a run")
        given = "" if self.run_id is None else str(self.run_id).strip()
        if given == "None" or (self.run_id is not None and not given):
            raise ConfigError(f"task {self.task_id!r}: run_id={self.run_id!r} is none. Give the id of a run.")
        if bool(given) == bool(self.experiment and tags) or (given and (tags or self.experiment)):
            raise ConfigError(f"task {self.task_id!r}: give run_id=, or experiment= and tags=, and not both.")
        if not (given + self.experiment).isprintable() or len(given + self.experiment) > 500:  # noqa: PLR2004  (MLflow's columns)
            raise ConfigError(f"task {self.task_id!r}: run_id and experiment have at most 500 printable characters.")
        return {"run_id": given, "experiment": self.experiment, "tags": tags}


class MlflowRunSensor(_RunSensor):
    """
    Waits until a run has ended, and succeeds when it has FINISHED.

    The run is known by its id, or is the newest one of an experiment with all of ``tags``, which need not exist yet. The run of a
    step of this provider has the tags ``airflow.dag_id``, ``airflow.run_id`` and ``airflow.task_id``.

    It needs ``run_id``, or ``experiment`` and ``tags``.

    The task fails when the run FAILED or was KILLED, with the reason that its tag ``airflow.error`` gives; so it does when the
    run is gone, or in MLflow's bin.

    The XCom is ``{"run_id", "experiment_id", "status"}``.

    :param run_id: Id of the run; None for a search.
    :param experiment: Name of the experiment, for a search.
    :param tags: Tags of the run, for a search; values are compared exactly.
    :param fail_on_bad_end: Whether a run that FAILED or was KILLED fails the task; False takes any end as the end.
    """

    def __init__(self, *, fail_on_bad_end: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.fail_on_bad_end = fail_on_bad_end

    def question(self) -> RunQuestion:
        """
        Say what is waited for, from the rendered fields.

        :return: The question.
        :raises ConfigError: no run is named, or a tag cannot be searched for; a retry never helps.
        """
        return RunQuestion(**self.which(), bad_end=self.fail_on_bad_end)


class MlflowMetricSensor(_RunSensor):
    """
    Waits until a metric of a run keeps a rule.

    The newest value counts.

    It needs ``rule``, and ``run_id``, or ``experiment`` and ``tags``.

    The task fails when the run has ended without keeping it, as nobody logs to it any more; so it does when the run is gone.

    The XCom is ``{"run_id", "experiment_id", "status", "metric", "value", "rule"}``.

    :param rule: For example ``auc >= 0.8``: a metric, one of ``>= > <= < ==``, and a number.
    :param run_id: Id of the run; None for a search.
    :param experiment: Name of the experiment, for a search.
    :param tags: Tags of the run, for a search; values are compared exactly.
    """

    template_fields: Sequence[str] = (*_RunSensor.template_fields, "rule")

    def __init__(self, *, rule: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rule = rule

    def question(self) -> MetricQuestion:
        """
        Say what is waited for, from the rendered fields.

        :return: The question.
        :raises ConfigError: no run is named, or the rule is not one; a retry never helps.
        """
        return MetricQuestion(**self.which(), rule=str(Rule.parse(str(self.rule))))


class MlflowModelAliasSensor(MlflowSensor):
    """
    Waits until an alias of a registered model exists, or has moved away from a version.

    A model or alias that does not exist is waited for.

    The XCom is ``{"model", "alias", "version", "run_id", "source", "tags"}``.

    :param model: Name of the registered model.
    :param alias: The alias.
    :param away_from: Number of the version that it must have left; None takes any.
    """

    template_fields: Sequence[str] = ("mlflow_conn_id", "model", "alias", "away_from")
    operator_extra_links = (MlflowPageLink(),)

    def __init__(self, *, model: str, alias: str, away_from: str | int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.alias = alias
        self.away_from = away_from

    def question(self) -> AliasQuestion:
        """
        Say what is waited for, from the rendered fields.

        :return: The question.
        :raises ConfigError: no model or alias can have that name, or ``away_from`` is no version; a retry never helps.
        """
        check_watched(self.model, self.alias)
        left = _number(self.away_from, f"task {self.task_id!r}: away_from")
        return AliasQuestion(model=self.model, alias=self.alias, away_from=str(left) if left else "")


class MlflowModelVersionSensor(MlflowSensor):
    """
    Waits until a registered model has a version with some tags; the newest one is given on.

    A model that does not exist is waited for.

    The XCom is ``{"model", "version", "run_id", "source", "tags"}``.

    :param model: Name of the registered model.
    :param tags: Tags that the version must have, values compared exactly; None for any version.
    :param newer_than: Number of a version; only those with a higher one count. None for any.
    """

    template_fields: Sequence[str] = ("mlflow_conn_id", "model", "tags", "newer_than")
    operator_extra_links = (MlflowPageLink(),)

    def __init__(
        self, *, model: str, tags: Mapping[str, str] | None = None, newer_than: str | int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.tags = tags
        self.newer_than = newer_than

    def question(self) -> VersionQuestion:
        """
        Say what is waited for, from the rendered fields.

        :return: The question.
        :raises ConfigError: no model can have that name, or a tag cannot be searched for; a retry never helps.
        """
        check_watched(self.model)
        newer = _number(self.newer_than, f"task {self.task_id!r}: newer_than")
        return VersionQuestion(model=self.model, tags=read_tags(self.tags), newer_than=newer)


def _number(value: str | int | None, what: str) -> int:
    """Read a version's number as a template may give it; 0 for none."""
    text = "" if value is None else str(value).strip()
    if text in {"", "None"}:
        return 0
    if not (text.isascii() and text.isdigit() and len(text) < 10):  # noqa: PLR2004  (MLflow's column is of 32 bits)
        raise ConfigError(f"{what}={text[:60]!r} is no version. Give its number, for example 3.")
    return int(text)
