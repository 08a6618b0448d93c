"""What can be waited for on an MLflow server, what was seen there, and what became of the waiting: values only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from airflow_ml_provider.exceptions import ConfigError

Tags = tuple[tuple[str, str], ...]
"""Tags that a version must have, sorted by key, so that the same tags are equal."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class RunQuestion(_Frozen):
    """
    Whether a run has ended.

    :param run_id: Id of the run; empty for the newest with the tags.
    :param experiment: Name of its experiment, for a search.
    :param tags: Tags that it has, for a search.
    :param bad_end: Whether a run that FAILED or was KILLED fails the waiting; False takes any end.
    """

    kind: Literal["run"] = "run"
    run_id: str = ""
    experiment: str = ""
    tags: Tags = ()
    bad_end: bool = True


class MetricQuestion(_Frozen):
    """
    Whether a run's metric keeps a rule.

    :param run_id: Id of the run; empty for the newest with the tags.
    :param experiment: Name of its experiment, for a search.
    :param tags: Tags that it has, for a search.
    :param rule: As :meth:`~airflow_ml_provider.models.gate.Rule.parse` reads it, ``auc >= 0.8``.
    """

    kind: Literal["metric"] = "metric"
    run_id: str = ""
    experiment: str = ""
    tags: Tags = ()
    rule: str


class AliasQuestion(_Frozen):
    """
    Whether an alias exists, or has moved.

    :param model: Name of the registered model.
    :param alias: The alias.
    :param away_from: Version that it must have left; empty for none.
    """

    kind: Literal["alias"] = "alias"
    model: str
    alias: str
    away_from: str = ""


class VersionQuestion(_Frozen):
    """
    Whether there is a version with these tags.

    :param model: Name of the registered model.
    :param tags: Tags that it must have; none for any version.
    :param newer_than: Number that its number must be above; 0 for any.
    """

    kind: Literal["version"] = "version"
    model: str
    tags: Tags = ()
    newer_than: int = Field(default=0, ge=0)


Question = Annotated[RunQuestion | MetricQuestion | AliasQuestion | VersionQuestion, Field(discriminator="kind")]
_QUESTION: TypeAdapter[RunQuestion | MetricQuestion | AliasQuestion | VersionQuestion] = TypeAdapter(Question)


def read_question(value: Mapping[str, Any]) -> RunQuestion | MetricQuestion | AliasQuestion | VersionQuestion:
    """
    Read a question as a trigger keeps it.

    :param value: Plain JSON, as ``model_dump(mode="json")`` wrote it.
    :return: The question.
    :raises ConfigError: it is none that this release knows; a retry never helps.
    """
    try:
        return _QUESTION.validate_python(dict(value))
    except ValidationError as error:
        raise ConfigError(
            f"{dict(value)!r} is nothing that this release can wait for: clear the task, to defer it anew."
        ) from error


class SeenRun(_Frozen):
    """
    A run, as far as somebody waits for it.

    :param run_id: Its id.
    :param experiment_id: Its experiment.
    :param status: MLflow's own word: RUNNING, SCHEDULED, FINISHED, FAILED, KILLED.
    :param metrics: Newest value per metric.
    :param error: Why it failed, as far as its tags say so.
    :param deleted: Whether it is in MLflow's bin.
    """

    run_id: str
    experiment_id: str = ""
    status: str = "RUNNING"
    metrics: dict[str, float] = Field(default_factory=dict)
    error: str = ""
    deleted: bool = False


class SeenVersion(_Frozen):
    """
    A version of a registered model.

    :param model: Name of the registered model.
    :param version: Its number, as MLflow writes it.
    :param created_ms: When it was made, milliseconds since the epoch by the server's clock.
    :param run_id: MLflow run that made it; empty when unknown.
    :param source: URI of what was registered.
    :param tags: Its tags.
    """

    model: str
    version: str
    created_ms: int = 0
    run_id: str = ""
    source: str = ""
    tags: dict[str, str] = Field(default_factory=dict)


class SeenModel(_Frozen):
    """
    A registered model, as far as its aliases go.

    :param name: Its name.
    :param created_ms: When it was made, milliseconds since the epoch by the server's clock; tells a model that was deleted and
        made again from the one before.
    :param aliases: Version per alias.
    """

    name: str
    created_ms: int = 0
    aliases: dict[str, str] = Field(default_factory=dict)


class Sight(_Frozen):
    """
    What a look comes to.

    :param state: ``waiting`` goes on; ``seen`` is what was waited for; ``failed`` will never be seen.
    :param message: A sentence with what was found.
    :param value: Plain JSON of what was found, for XCom; empty while it is waited for.
    """

    state: Literal["waiting", "seen", "failed"]
    message: str
    value: dict[str, Any] = Field(default_factory=dict)


class WatchOutcome(BaseModel):
    """
    What a trigger tells its sensor.

    :param outcome: ``seen`` and ``failed`` as of :class:`Sight`; ``deadline``, the time was up; ``unreachable``, the server did
        not answer within the patience; ``refused``, it answered for as long that the request or the credentials are wrong.
    :param message: A sentence.
    :param value: Plain JSON of what was found.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    outcome: Literal["seen", "failed", "deadline", "unreachable", "refused"]
    message: str = ""
    value: dict[str, Any] = Field(default_factory=dict)

    @classmethod
    def from_event(cls, event: Mapping[str, Any] | None) -> WatchOutcome:
        """
        Read what came with a trigger's event.

        :param event: Its payload.
        :return: The outcome.
        :raises ConfigError: no outcome came, or one of another release; a retry looks anew.
        """
        try:
            return cls.model_validate(dict(event or {}))
        except ValidationError as error:
            raise ConfigError(f"the trigger told {event!r}, which this release cannot read. Clear the task.") from error
