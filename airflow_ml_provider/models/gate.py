"""
What the gate is asked and what it answers: rules, a paired comparison, a verdict.

Values only. The verdict is what travels in XCom, to MLflow, and into the text that a person is asked to approve.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.xcom import XComValue

Decision = Literal["promote", "keep", "reject"]
"""``promote``: surely better. ``keep``: nothing says so, the champion stays. ``reject``: not fit by itself."""

DECISIONS: tuple[Decision, ...] = ("promote", "keep", "reject")

_GRAMMAR = "a metric, one of >= > <= < ==, and a finite number, for example 'auc >= 0.7'"
_RULE = re.compile(r"^\s*(?P<metric>\w[\w./ :-]*?)\s*(?P<sign>>=|<=|==|>|<)\s*(?P<limit>[^\s<>=]+)\s*$")
_HOLDS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    ">": operator.gt,
    "<=": operator.le,
    "<": operator.lt,
    "==": operator.eq,
}


class Rule(BaseModel):
    """
    A limit that the challenger must keep by itself, whatever the champion does.

    :param metric: Name of the metric, as it was logged.
    :param sign: How the metric must stand to the limit; ``==`` is exact, so it is for counts.
    :param limit: A finite number, in the metric's own unit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    sign: Literal[">=", ">", "<=", "<", "=="]
    limit: float = Field(allow_inf_nan=False)

    @classmethod
    def parse(cls, text: str) -> Rule:
        """
        Read a rule as an author writes it.

        :param text: For example ``auc >= 0.7``; blanks do not matter.
        :return: The rule.
        :raises ConfigError: it is not of that form; a retry never helps.
        """
        found = _RULE.match(text)
        try:
            return cls.model_validate(found.groupdict() if found else {})
        except ValidationError as error:
            raise ConfigError(f"{text!r} is not a rule of the gate. A rule is {_GRAMMAR}.") from error

    def holds(self, value: float) -> bool:
        """
        Compare a value with the limit.

        :param value: What the challenger has reached.
        :return: Whether the rule is kept; never for NaN.
        """
        return _HOLDS[self.sign](value, self.limit)

    def __str__(self) -> str:
        limit = repr(self.limit).removesuffix(".0")
        return f"{self.metric} {self.sign} {limit}"


class PairedComparison(BaseModel):
    """
    Challenger against champion on the same rows, with a bootstrap interval of the gain.

    Rows are drawn with replacement, the same ones for both models, so what makes a day easy or hard cancels out. The
    gain is positive when the challenger is better, for every metric: for an error it is champion minus challenger.

    :param metric: ``auc``, ``average_precision``, ``accuracy``, ``log_loss``, ``brier``, ``rmse`` or ``mae``; or a
        function of two arrays (labels, scores), itself or as ``"module:function"``. Scores are probabilities of label 1
        for all but ``rmse`` and ``mae``; ``accuracy`` cuts them at 0.5.
    :param greater_is_better: For a function of one's own, which has no known direction; None for the named metrics.
    :param min_gain: Smallest gain worth a rollout, absolute, in the metric's own unit (0.002 of AUC is 0.2 percentage
        points). The interval's lower end must be above it; 0.0 asks for any sure gain.
    :param confidence: Probability mass of the interval, both sides cut alike.
    :param resamples: Number of bootstrap samples, 100 to 100,000; a function of one's own is called twice for each.
    :param min_rows: With fewer rows the interval is not to be trusted and the champion stays.
    :param seed: Of the random numbers, so that a retry gives the same verdict.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str | Callable[[Any, Any], float]
    greater_is_better: bool | None = None
    min_gain: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    confidence: float = Field(default=0.95, gt=0.5, lt=1.0)
    resamples: int = Field(default=1000, ge=100, le=100_000)
    min_rows: int = Field(default=30, ge=2)
    seed: int = Field(default=20130101, ge=0)

    @model_validator(mode="after")
    def _direction_is_known(self) -> PairedComparison:
        own = not isinstance(self.metric, str) or ":" in self.metric
        if own and self.greater_is_better is None:
            raise ConfigError(f"metric {self.name!r} is your own: say greater_is_better=True, or False for an error.")
        if not own and self.greater_is_better is not None:
            raise ConfigError(f"the direction of metric {self.metric!r} is known: leave out greater_is_better.")
        return self

    @property
    def name(self) -> str:
        """Name of the metric in reasons and in MLflow."""
        if isinstance(self.metric, str):
            return self.metric.rpartition(":")[2]
        return getattr(self.metric, "__name__", type(self.metric).__name__)


class Gain(BaseModel):
    """
    How much better the challenger is; positive is better, for every metric.

    :param estimate: On all rows.
    :param low: Lower end of the interval.
    :param high: Upper end of the interval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    estimate: float
    low: float
    high: float


class Verdict(XComValue):
    """
    What the gate has decided, and why.

    :param decision: What is to be done with the challenger.
    :param reasons: Whole sentences with their numbers; the first ones have decided.
    :param metrics: Numbers that were looked at: those of the rules by their names, and what the comparison found as
        ``challenger_<metric>`` and ``champion_<metric>``. NaN stands for a value that could not be computed.
    :param gain: Gain with its interval; None when the two were not compared.
    :param challenger: URI of the model that was judged.
    :param champion: URI of the model that serves today; None when there is none.
    """

    what: ClassVar[str] = "a verdict"
    remedy: ClassVar[str] = "Run the gate again with this release."

    decision: Decision
    reasons: tuple[str, ...] = Field(min_length=1)
    metrics: dict[str, float] = Field(default_factory=dict)
    gain: Gain | None = None
    challenger: str
    champion: str | None = None

    def to_json(self) -> dict[str, Any]:
        """
        Return the plain JSON form for XCom and MLflow.

        :return: JSON that every reader takes: NaN and infinities are the texts that ``float`` reads.
        """
        plain = self.model_dump(mode="json")
        plain["metrics"] = {name: value if math.isfinite(value) else str(value) for name, value in self.metrics.items()}
        return plain
