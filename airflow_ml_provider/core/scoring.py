"""
What rows of scores say in numbers: a metric of each model, and the bootstrap interval of the gain.

numpy and scikit-learn are the user's: they are imported when two models are compared and not before.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from airflow_ml_provider.core.wiring import did_you_mean
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.gate import Gain, PairedComparison

Array: TypeAlias = Any  # numpy.ndarray of float64; numpy may be absent when this is imported
Resampled: TypeAlias = Callable[[Array], Array]
"""From how often each row was drawn, ``float64[k, n]``, to the metric of each of the ``k`` samples."""

_CELLS = 1_000_000  # of one batch of samples: 8 MB


@dataclass(frozen=True)
class Rows:
    """
    What both models said of the same rows: three columns of ``n`` numbers.

    :param label: What was right, for classifiers 0 or 1; None when the table has no such column.
    :param challenger: Scores of the challenger; None when the table has no such column.
    :param champion: Scores of the champion; None when the table has no such column.
    """

    label: Sequence[float] | Array | None
    challenger: Sequence[float] | Array | None
    champion: Sequence[float] | Array | None = None


@dataclass(frozen=True)
class Measured:
    """
    What the rows say, or why they do not.

    :param metrics: ``challenger_<metric>`` and ``champion_<metric>``, as far as they were computed.
    :param gain: Gain of the challenger; None when the two were not compared.
    :param rows: Number of rows.
    :param unfit: What is wrong with the challenger's scores; empty when nothing is.
    :param unpaired: What is wrong with the rows, the labels or the champion's scores; empty when nothing is.
    """

    metrics: Mapping[str, float]
    gain: Gain | None = None
    rows: int = 0
    unfit: str = ""
    unpaired: str = ""


@dataclass(frozen=True)
class _Metric:
    """One metric: its direction, its value by scikit-learn, its values on many samples at once."""

    greater_is_better: bool
    value: Callable[[Array, Array], float]
    resampled: Callable[[Array, Array], Resampled]
    labels: Literal["numbers", "0 and 1", "both 0 and 1"] = "0 and 1"


class _UnfitError(Exception):
    """The challenger is at fault."""


class _UnpairedError(Exception):
    """The rows, the labels or the champion's scores are at fault."""


class _UndefinedError(Exception):
    """A metric of scikit-learn has no value for these scores."""


def measure(compare: PairedComparison, rows: Rows | None, *, against_champion: bool) -> Measured:
    """
    Compute the metric of both models and the gain, as far as the rows allow.

    :param compare: Which metric, and how sure.
    :param rows: Scores on the same rows; None when nobody gave any.
    :param against_champion: Whether the champion's column counts; without it, there is no gain.
    :return: Values, or what is wrong and with what.
    :raises ConfigError: numpy or scikit-learn is not installed, or the metric is unknown; a retry never helps.
    """
    metric, found = _metric_of(compare), Measured({})
    if rows is None:
        return replace(found, unpaired="no scores were given")
    try:
        labels = _labels(rows, metric)
        found = replace(found, rows=len(labels))
        challenger = _scores(rows.challenger, "challenger", len(labels), _UnfitError)
        ours = _value(metric, labels, challenger, "challenger", _UnfitError)
        found = replace(found, metrics={f"challenger_{compare.name}": ours})
        if not against_champion:
            return found
        champion = _scores(rows.champion, "champion", len(labels), _UnpairedError)
        theirs = _value(metric, labels, champion, "champion", _UnpairedError)
        found = replace(found, metrics={**found.metrics, f"champion_{compare.name}": theirs})
        return replace(found, gain=_gain(compare, metric, labels, (challenger, champion), (ours, theirs)))
    except _UnfitError as fault:
        return replace(found, unfit=str(fault), metrics={f"challenger_{compare.name}": math.nan})
    except _UnpairedError as fault:
        return replace(found, unpaired=str(fault))


def _labels(rows: Rows, metric: _Metric) -> Array:
    labels = _scores(rows.label, "label", None, _UnpairedError)
    if len(labels) == 0:
        raise _UnpairedError("the table of scores has no rows")
    seen = set(_library("numpy").unique(labels).tolist()) if metric.labels != "numbers" else set()
    if not seen <= {0.0, 1.0}:
        raise _UnpairedError(f"the labels must be 0 and 1, and there are also {sorted(seen - {0.0, 1.0})[:3]}")
    if metric.labels == "both 0 and 1" and len(seen) == 1:
        raise _UnpairedError(f"all {len(labels):,} labels are {seen.pop():g}, and this metric needs both 0 and 1")
    return labels


def _scores(column: Sequence[float] | Array | None, name: str, length: int | None, fault: type[Exception]) -> Array:
    """Read one column as finite numbers, or say what is wrong with it."""
    numpy = _library("numpy")
    if column is None:
        raise fault(f"the table of scores has no column {name!r}")
    try:
        array = numpy.asarray(column, dtype=numpy.float64)
    except (TypeError, ValueError) as error:
        raise fault(f"column {name!r} holds something that is not a number: {error}") from error
    if length is not None and len(array) != length:
        raise _UnpairedError(f"column {name!r} has {len(array):,} rows, and there are {length:,} labels")
    wrong = int(numpy.count_nonzero(~numpy.isfinite(array)))
    if wrong:
        raise fault(f"{wrong:,} of {len(array):,} rows in column {name!r} are NaN or infinite")
    return array


def _value(metric: _Metric, labels: Array, scores: Array, name: str, fault: type[Exception]) -> float:
    try:
        value = float(metric.value(labels, scores))
    except _UndefinedError as error:
        raise fault(f"the metric has no value for column {name!r}: {error}") from error
    if math.isfinite(value):
        return value
    raise fault(f"the metric of column {name!r} is {value}")


def _gain(
    compare: PairedComparison, metric: _Metric, labels: Array, scores: tuple[Array, Array], values: tuple[float, float]
) -> Gain:
    """Draw the rows again and again, the same ones for both models, and take the interval of the difference."""
    numpy, rows = _library("numpy"), len(labels)
    if rows < compare.min_rows:
        raise _UnpairedError(f"{rows:,} rows are fewer than the {compare.min_rows:,} that an interval needs (min_rows)")
    sign = 1.0 if metric.greater_is_better else -1.0
    ours, theirs = (metric.resampled(labels, each) for each in scores)
    gains = numpy.concatenate([sign * (ours(drawn) - theirs(drawn)) for drawn in _draws(compare, rows)])
    undefined, tail = int(numpy.count_nonzero(numpy.isnan(gains))), (1.0 - compare.confidence) / 2
    if undefined > tail * compare.resamples:
        raise _UnpairedError(
            f"{compare.name} has no value in {undefined:,} of {compare.resamples:,} samples of the rows: "
            "too few rows of one class"
        )
    low, high = numpy.nanquantile(gains, [tail, 1.0 - tail])
    return Gain(estimate=sign * (values[0] - values[1]), low=float(low), high=float(high))


def _draws(compare: PairedComparison, rows: int) -> Iterator[Array]:
    """Draw with replacement: how often each row is in each sample, in batches that fit in memory."""
    numpy = _library("numpy")
    random, batch = numpy.random.default_rng(compare.seed), max(1, _CELLS // rows)
    for start in range(0, compare.resamples, batch):
        size = min(batch, compare.resamples - start)
        yield numpy.stack([numpy.bincount(random.integers(0, rows, rows), minlength=rows).astype(float) for _ in range(size)])


def _ranked(values: Callable[[Array, Array], Array]) -> Callable[[Array, Array], Resampled]:
    """Resample a metric of the order of the scores, which is the same in every sample: sort once, count often."""

    def of(labels: Array, scores: Array) -> Resampled:
        numpy = _library("numpy")
        order = numpy.argsort(-scores, kind="stable")
        falls = numpy.diff(scores[order]) != 0
        ties, positive = numpy.flatnonzero(numpy.concatenate([[True], falls])), labels[order] == 1

        def on(drawn: Array) -> Array:
            ranked = drawn[:, order]
            hits = numpy.add.reduceat(ranked * positive, ties, axis=1)
            misses = numpy.add.reduceat(ranked * ~positive, ties, axis=1)
            with numpy.errstate(invalid="ignore", divide="ignore"):
                return values(hits, misses)

        return on

    return of


def _auc(hits: Array, misses: Array) -> Array:
    worse = misses.sum(axis=1, keepdims=True) - misses.cumsum(axis=1)
    return (hits * (worse + misses / 2)).sum(axis=1) / (hits.sum(axis=1) * misses.sum(axis=1))


def _average_precision(hits: Array, misses: Array) -> Array:
    found = hits.cumsum(axis=1)
    precision = _library("numpy").nan_to_num(found / (found + misses.cumsum(axis=1)))
    return (hits * precision).sum(axis=1) / hits.sum(axis=1)


def _mean(loss: Callable[[Array, Array], Array], root: bool = False) -> Callable[[Array, Array], Resampled]:
    """Resample a metric that is the mean of something of each row."""

    def of(labels: Array, scores: Array) -> Resampled:
        each = loss(labels, scores)
        return lambda drawn: (drawn @ each / len(each)) ** (0.5 if root else 1.0)

    return of


def _log_loss(labels: Array, scores: Array) -> Array:
    numpy = _library("numpy")
    tiny = numpy.finfo(scores.dtype).eps
    sure = scores.clip(tiny, 1.0 - tiny)
    return -numpy.where(labels == 1, numpy.log(sure), numpy.log(1.0 - sure))


def _square(labels: Array, scores: Array) -> Array:
    return (scores - labels) ** 2


def _sklearn(name: str, **options: Any) -> Callable[[Array, Array], float]:
    def value(labels: Array, scores: Array) -> float:
        try:
            return float(getattr(_library("sklearn.metrics"), name)(labels, scores, **options))
        except ValueError as error:
            raise _UndefinedError(str(error)) from error

    return value


def _accuracy(labels: Array, scores: Array) -> float:
    return _sklearn("accuracy_score")(labels, (scores >= _CUT).astype(float))


_CUT = 0.5  # a probability from which on the prediction is 1

METRICS: dict[str, _Metric] = {
    "auc": _Metric(True, _sklearn("roc_auc_score"), _ranked(_auc), "both 0 and 1"),
    "average_precision": _Metric(True, _sklearn("average_precision_score"), _ranked(_average_precision), "both 0 and 1"),
    "accuracy": _Metric(True, _accuracy, _mean(lambda labels, scores: (scores >= _CUT) == labels)),
    "log_loss": _Metric(False, _sklearn("log_loss", labels=[0, 1]), _mean(_log_loss)),
    "brier": _Metric(False, _sklearn("brier_score_loss", pos_label=1), _mean(_square)),
    "rmse": _Metric(False, _sklearn("root_mean_squared_error"), _mean(_square, root=True), "numbers"),
    "mae": _Metric(False, _sklearn("mean_absolute_error"), _mean(lambda labels, scores: abs(scores - labels)), "numbers"),
}
"""The metrics by name. Their values are scikit-learn's own; so are, to the last digits, those of the samples."""


def check_metric(compare: PairedComparison) -> None:
    """
    Refuse a metric that is not known; a function of one's own is not imported for that.

    :param compare: The comparison.
    :raises ConfigError: there is no metric of that name; a retry never helps.
    """
    if isinstance(compare.metric, str) and ":" not in compare.metric and compare.metric not in METRICS:
        raise ConfigError(
            f"{compare.metric!r} is not a metric of the gate.{did_you_mean(compare.metric, METRICS)} "
            'A function of your own is written "module:function".'
        )


def _metric_of(compare: PairedComparison) -> _Metric:
    """Find the metric that a comparison names; a function of one's own is called for every sample."""
    check_metric(compare)
    if isinstance(compare.metric, str) and compare.metric in METRICS:
        return METRICS[compare.metric]
    function = _own(compare.metric) if isinstance(compare.metric, str) else compare.metric

    def resampled(labels: Array, scores: Array) -> Resampled:
        numpy = _library("numpy")
        at = numpy.arange(len(labels))

        def one(counts: Array) -> float:
            drawn = numpy.repeat(at, counts.astype(int))
            return float(function(labels[drawn], scores[drawn]))

        return lambda drawn: numpy.array([one(counts) for counts in drawn])

    return _Metric(bool(compare.greater_is_better), function, resampled, "numbers")


def _own(place: str) -> Callable[[Array, Array], float]:
    module, _, name = place.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"the gate's metric {place!r} is not there: {error}. Write it as module:function, importable where the gate runs."
        ) from error
    if not callable(function):
        raise ConfigError(f"the gate's metric {place!r} is a {type(function).__name__}, not a function of (labels, scores).")
    found: Callable[[Array, Array], float] = function
    return found


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"to compare two models the gate needs {name!r}, and it is not installed where the gate runs: "
            "pip install 'airflow-ml-provider[gate]'."
        ) from error
