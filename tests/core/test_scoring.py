"""Numbers from rows: scikit-learn is the oracle, for the value and for each sample of the bootstrap."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from airflow_ml_provider.core.scoring import METRICS, Rows, check_metric, measure
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.gate import PairedComparison

ORACLE = {
    "auc": sklearn.metrics.roc_auc_score,
    "average_precision": sklearn.metrics.average_precision_score,
    "accuracy": lambda labels, scores: sklearn.metrics.accuracy_score(labels, scores >= 0.5),
    "log_loss": lambda labels, scores: sklearn.metrics.log_loss(labels, scores, labels=[0, 1]),
    "brier": sklearn.metrics.brier_score_loss,
    "rmse": sklearn.metrics.root_mean_squared_error,
    "mae": sklearn.metrics.mean_absolute_error,
}
ERRORS = {"log_loss", "brier", "rmse", "mae"}


def compared(metric="auc", **more):
    return PairedComparison(metric=metric, **more)


def noisy_rows(n=2000, challenger=0.25, champion=0.2, seed=1):
    """Scores around the label, the further apart the better the model."""
    random = np.random.default_rng(seed)
    label = (random.random(n) < 0.3).astype(float)
    first, second = (np.clip(random.normal(0.3 + apart * label, 0.15), 0, 1) for apart in (challenger, champion))
    return Rows(label, first, second)


def test_every_metric_has_an_oracle():
    assert METRICS.keys() == ORACLE.keys()


@pytest.mark.parametrize("metric", METRICS)
def test_the_value_is_that_of_scikit_learn(metric):
    rows = noisy_rows()
    found = measure(compared(metric), rows, against_champion=True)
    ours, theirs = ORACLE[metric](rows.label, rows.challenger), ORACLE[metric](rows.label, rows.champion)
    assert found.metrics == {f"challenger_{metric}": pytest.approx(ours), f"champion_{metric}": pytest.approx(theirs)}
    sign = -1 if metric in ERRORS else 1
    assert found.gain.estimate == pytest.approx(sign * (ours - theirs))
    assert found.gain.low < found.gain.estimate < found.gain.high


@pytest.mark.parametrize("metric", METRICS)
@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]) | st.floats(0, 1), st.integers(0, 4)),
        min_size=2,
        max_size=30,
    )
)
def test_the_value_of_a_sample_is_that_of_scikit_learn_on_the_rows_drawn(metric, rows):
    labels, scores, drawn = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    picked = np.repeat(np.arange(len(rows)), drawn.astype(int))
    assume(set(labels[picked]) == {0.0, 1.0})
    drawn *= len(rows) / drawn.sum()  # a sample has as many rows as the table; the weights say so
    found = METRICS[metric].resampled(labels, scores)(drawn[None, :])
    assert found == pytest.approx(ORACLE[metric](labels[picked], scores[picked]))


@pytest.mark.parametrize("metric", ["auc", "log_loss"])
def test_a_function_of_ones_own_has_the_same_interval_as_the_named_metric(metric):
    rows = noisy_rows(300)
    own = compared(ORACLE[metric], greater_is_better=metric not in ERRORS, resamples=200)
    named = compared(metric, resamples=200)
    theirs, ours = (measure(each, rows, against_champion=True).gain for each in (own, named))
    assert theirs.model_dump() == pytest.approx(ours.model_dump())


def test_a_function_is_found_by_its_place():
    found = measure(compared("math:dist", greater_is_better=False, resamples=100), noisy_rows(50), against_champion=True)
    assert found.metrics.keys() == {"challenger_dist", "champion_dist"}


@pytest.mark.parametrize(
    ("place", "said"),
    [("no_such_module:profit", "No module named"), ("math:profit", "no attribute 'profit'"), ("math:pi", "is a float")],
)
def test_a_function_that_is_not_there_is_refused(place, said):
    with pytest.raises(ConfigError, match=said):
        measure(compared(place, greater_is_better=True), noisy_rows(50), against_champion=True)


def test_an_unknown_metric_is_refused_with_the_nearest_known():
    with pytest.raises(ConfigError, match="Did you mean 'auc'"):
        check_metric(compared("uac"))


def test_a_place_is_not_imported_to_check_it():
    check_metric(compared("no_such_module:profit", greater_is_better=True))


def test_the_same_rows_give_the_same_interval_again():
    first, again = (measure(compared(), noisy_rows(), against_champion=True) for _ in range(2))
    assert first == again


def test_a_model_against_itself_gains_exactly_nothing():
    rows = noisy_rows()
    gain = measure(compared(), Rows(rows.label, rows.champion, rows.champion), against_champion=True).gain
    assert (gain.estimate, gain.low, gain.high) == (0, 0, 0)


def test_pairing_makes_the_interval_narrow():
    rows = noisy_rows()
    close = Rows(rows.label, rows.champion + 0.001 * rows.label * (1 - rows.champion), rows.champion)
    gain = measure(compared("brier"), close, against_champion=True).gain
    assert gain.high - gain.low < 0.0002


@pytest.mark.parametrize("confidence", [0.8, 0.9])
def test_the_interval_holds_the_true_gain_as_often_as_it_says(confidence):
    compare, held, nights = compared("mae", confidence=confidence, resamples=200), 0, 300
    for seed in range(nights):
        random = np.random.default_rng(seed)
        label = np.zeros(200)
        rows = Rows(label, random.exponential(1.0, 200), random.exponential(1.2, 200))
        gain = measure(compare, rows, against_champion=True).gain
        held += gain.low <= 0.2 <= gain.high
    assert held / nights == pytest.approx(confidence, abs=0.06)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (None, "no scores were given"),
        (Rows(None, [0.1], [0.1]), "no column 'label'"),
        (Rows([], [], []), "no rows"),
        (Rows([0, 1, 1], [0.1, 0.2], [0.1, 0.2, 0.3]), "'challenger' has 2 rows, and there are 3 labels"),
        (Rows([0, 1], [0.1, 0.2], [0.1]), "'champion' has 1 rows, and there are 2 labels"),
        (Rows([0, 1], [0.1, 0.2], None), "no column 'champion'"),
        (Rows([0, 1], [0.1, 0.2], [0.1, math.nan]), "1 of 2 rows in column 'champion' are NaN"),
        (Rows([0, math.nan], [0.1, 0.2], [0.1, 0.2]), "1 of 2 rows in column 'label' are NaN"),
        (Rows([0, 1], [0.1, 0.2], ["high", "low"]), "'champion' holds something that is not a number"),
        (Rows([0, 0], [0.1, 0.2], [0.1, 0.2]), "all 2 labels are 0"),
        (Rows([0, 2], [0.1, 0.2], [0.1, 0.2]), "must be 0 and 1, and there are also [2.0]"),
        (Rows([0, 1], [0.1, 0.2], [0.1, 0.2]), "2 rows are fewer than the 30"),
        (Rows([0] * 29 + [1], [0.1] * 30, [0.2] * 30), "too few rows of one class"),
    ],
)
def test_rows_that_do_not_pair_are_a_reason_and_no_crash(rows, said):
    found = measure(compared(), rows, against_champion=True)
    assert said in found.unpaired
    assert (found.gain, found.unfit) == (None, "")


@pytest.mark.parametrize(
    ("metric", "challenger", "said"),
    [
        ("auc", None, "no column 'challenger'"),
        ("auc", [0.1, math.nan], "1 of 2 rows in column 'challenger' are NaN"),
        ("auc", [0.1, math.inf], "1 of 2 rows in column 'challenger' are NaN or infinite"),
        ("auc", [None, "x"], "not a number"),
        ("log_loss", [0.1, 1.2], "no value for column 'challenger'"),
        ("brier", [-0.1, 0.2], "no value for column 'challenger'"),
    ],
)
def test_a_challenger_at_fault_is_told_from_rows_at_fault(metric, challenger, said):
    found = measure(compared(metric), Rows([0, 1], challenger, [0.1, 0.2]), against_champion=True)
    assert said in found.unfit
    assert (found.gain, found.unpaired) == (None, "")
    assert math.isnan(found.metrics[f"challenger_{metric}"])


def test_a_function_that_gives_nan_makes_the_challenger_unfit():
    own = compared(lambda *_: math.nan, greater_is_better=True)
    assert "is nan" in measure(own, noisy_rows(50), against_champion=True).unfit


def test_without_a_champion_its_column_does_not_matter():
    found = measure(compared(), Rows([0, 1], [0.1, 0.2], [math.nan, 0.2]), against_champion=False)
    assert found.metrics == {"challenger_auc": 1.0}
    assert found.unpaired == ""


@pytest.mark.parametrize("metric", ["brier", "log_loss", "accuracy", "rmse", "mae"])
def test_metrics_that_need_no_second_class_do_without(metric):
    rows = Rows([0] * 40, np.linspace(0, 0.4, 40), np.linspace(0, 0.3, 40))
    assert measure(compared(metric), rows, against_champion=True).gain is not None


def test_columns_of_a_table_are_taken_as_they_come():
    import pandas as pd

    frame = pd.DataFrame({"label": pd.array([False, True] * 20), "challenger": np.linspace(0, 1, 40).astype("float32")})
    found = measure(compared(), Rows(frame["label"], frame["challenger"], list(frame["challenger"])), against_champion=True)
    assert found.gain.estimate == 0


def test_numpy_and_scikit_learn_are_imported_only_when_models_are_compared():
    said = subprocess.run(
        [sys.executable, "-c", "import sys, airflow_ml_provider.core.gate; print({'numpy', 'sklearn'} & sys.modules.keys())"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "set()\n"


def test_without_numpy_the_remedy_is_said():
    code = (
        "import sys; sys.modules['numpy'] = None\n"
        "from airflow_ml_provider.core.scoring import Rows, measure\n"
        "from airflow_ml_provider.models.gate import PairedComparison\n"
        "measure(PairedComparison(metric='auc'), Rows([0], [0], [0]), against_champion=True)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'airflow-ml-provider[gate]'" in said.stderr
