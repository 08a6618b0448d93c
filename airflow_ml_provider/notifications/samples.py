"""
An alert of each kind for ``airflow-ml alert preview`` and ``test``: one bad week of one nightly DAG.

They are made as real ones are, out of what a context, Airflow and MLflow would have said, so that they say what people will get.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow_ml_provider.core.alert_reasons import why_promoted, why_rejected
from airflow_ml_provider.core.pod_failures import explain
from airflow_ml_provider.models.alert import Alert, AlertKind, AlertRule, AlertRules, Failure, Trend, TrendPoint
from airflow_ml_provider.models.gate import Rule, Verdict
from airflow_ml_provider.models.pod import PodEnd, PodOutcome
from airflow_ml_provider.models.run import StepIdentity
from airflow_ml_provider.notifications.build import Asked, build_alert, build_rolled_back
from airflow_ml_provider.notifications.context import AlertSource
from airflow_ml_provider.notifications.gather import Gathered
from airflow_ml_provider.notifications.reasons import LOG_MARK, reason_and_log, reason_of, traceback_of
from airflow_ml_provider.tracking.registry import Promotion

AT = datetime(2026, 11, 21, 2, 41, 7, tzinfo=UTC)
DAG_ID, RUN_ID = "nightly_flight_delays", "scheduled__2026-11-21T02:00:00+00:00"
MODEL = "flight-delays"
HOME, MLFLOW, KFP = "https://airflow.example.com", "https://mlflow.example.com", "https://kfp.example.com"

_POD = PodOutcome(
    end=PodEnd.OUT_OF_MEMORY,
    pod="nightly-flight-delays-train-7c2e",
    namespace="ml",
    node="gpu-7",
    message="Pod ml/nightly-flight-delays-train-7c2e on node gpu-7: container main was killed for its memory (OOMKilled, exit "
    "code 137).",
)
_ERROR = explain(_POD, try_number=3, memory_gib=64.0).make()
_OOM = reason_of(_ERROR)
_FULL = "MemoryError: Unable to allocate 41.3 GiB for an array with shape (1178, 4702135) and data type float64"
_LAST_LINES = f"""\
Traceback (most recent call last):
  (11 frames of Airflow left out)
  File "/opt/steps/train.py", line 118, in train
    features = pd.read_parquet(flights.path)
  File "/usr/lib/python3.12/site-packages/pandas/io/parquet.py", line 669, in read_parquet
    return impl.read(path, columns=columns, filters=filters)
{_FULL}
"""
_KFP_ERROR = f"""\
run 0b9f3a52 FAILED. See {KFP}/#/runs/details/0b9f3a52
Task evaluate FAILED: Error (exit code 1).
{LOG_MARK}
    delay = table["dep_delay"]
KeyError: 'dep_delay'"""
_RULE = Rule(metric="roc_auc", sign=">=", limit=0.74)


@dataclass(frozen=True)
class _Source(AlertSource):
    """What happened, on a server whose pages are not those of this machine's Airflow."""

    @property
    def dag_run_page(self) -> str:
        return f"{HOME}/dags/{DAG_ID}/runs/scheduled__2026-11-21T02%3A00%3A00%2B00%3A00"


def sample_trend(last: float = 0.712, at: datetime = AT) -> Trend:
    """
    Give the trend of a metric over ten nights.

    :param last: Value of the last night.
    :param at: The last night.
    :return: The trend, with a limit of 0.74.
    """
    values = (0.751, 0.754, 0.749, 0.757, 0.761, 0.758, 0.752, 0.755, 0.747, last)
    points = tuple(TrendPoint(at=at - timedelta(days=9 - index), value=value) for index, value in enumerate(values))
    return Trend(metric="roc_auc", points=points, limit=_RULE.limit)


def sample_alerts(at: datetime = AT) -> dict[str, Alert]:
    """
    Give a sample of each kind of alert, and of the message that closes what was told.

    :param at: When they are said to happen; what came before them moves along.
    :return: Per name of a sample, the alert; the name is its kind, or ``dag_failed_told``.
    """
    found = (*_of_tasks(at), *_of_ends(at), *_of_models(at))
    return {f"{each.kind}_told" if each.told else each.kind: each for each in found}


def _build(source: AlertSource, asked: Asked, found: Gathered, **more: Any) -> Alert:
    rule = AlertRules().of(source.kind) or AlertRule(severity="info")
    return build_alert(source, asked, found, severity=rule.severity, **more)


def _known(at: datetime, **more: Any) -> Gathered:
    """Give what MLflow says of any night."""
    return Gathered(
        run_page=f"{MLFLOW}/#/experiments/12/runs/5d1a9f0c2b7e4c55a0a4f6f0c9d1e2f3",
        champion=f"{MODEL} version 3",
        last_worked=at - timedelta(days=1, minutes=9),
        **more,
    )


def _source(kind: AlertKind, at: datetime, took_s: float, task_id: str = "", **more: Any) -> _Source:
    found = _Source(kind, "task", at, DAG_ID, RUN_ID, began=at - timedelta(seconds=took_s), **more)
    if not task_id:
        return found
    step = StepIdentity(dag_id=DAG_ID, run_id=RUN_ID, task_id=task_id)
    number = found.try_number or 1
    return replace(found, step=step, try_number=number, task_log=f"{found.dag_run_page}/tasks/{task_id}?try_number={number}")


def _of_tasks(at: datetime) -> Iterator[Alert]:
    pod = {"why": _OOM, "detail": traceback_of(_ERROR), "try_number": 3, "tries": 3}
    yield _build(_source("task_failed", at, 2304.6, "train", **pod), Asked(), _known(at))
    python = {"why": _FULL, "detail": _LAST_LINES, "try_number": 1, "tries": 3}
    yield _build(_source("retry", at, 431.2, "train", **python), Asked(), _known(at))


def _of_ends(at: datetime) -> Iterator[Alert]:
    ended = _source("dag_failed", at, 3127.0, task_ids=frozenset({"train", "evaluate"}))
    log = f"{ended.dag_run_page}/tasks"
    failures = (
        *(Failure(task=f"train[{index}]", why=_OOM, url=f"{log}/train/mapped/{index}") for index in range(7)),
        Failure(task="evaluate", why=reason_and_log(_KFP_ERROR)[0], url=f"{log}/evaluate"),
    )
    states = dict.fromkeys([*(f"train_{index}" for index in range(7)), "evaluate"], "failed")
    for told in (False, True):
        yield _build(ended, Asked(states), _known(at, failures=failures), told=told)
    yield _build(_source("late", at, 10_800.0, due=at), Asked({"train": "running"}), _known(at))
    before = {"failed_at": at - timedelta(days=1), "failed_why": _OOM, "had_failed": True, "recovered_run": "0c77b1aa"}
    well = replace(_known(at, trend=sample_trend(0.753, at), **before), last_worked=at - timedelta(days=2, minutes=9))
    yield _build(_source("recovered", at, 2710.0), Asked(), well)


def _of_models(at: datetime) -> Iterator[Alert]:
    page = f"{MLFLOW}/#/compare-runs?runs=%5B%225d1a9f0c%22%2C%220c77b1aa%22%5D"
    said = "The rule roc_auc >= 0.74 is broken: roc_auc is 0.712."
    verdict = Verdict(decision="reject", reasons=(said,), metrics={"roc_auc": 0.712}, challenger="models:/m-5d1a9f0c")
    detail = f"verdict: reject\nchallenger: models:/m-5d1a9f0c\nchampion: models:/m-0c77b1aa\n{said}"
    gate = _source("gate_rejected", at, 12.4, "gate", why=why_rejected(verdict, [_RULE]), detail=detail, tries=1)
    yield _build(gate, Asked(), _known(at, trend=sample_trend(at=at), compare_page=page), model=f"the new {MODEL}")
    gain = (
        "roc_auc is 0.768 against the champion's 0.755 on the same 48,112 rows: a gain of +0.013 with the 95 % interval "
        "[+0.006, +0.02], which lies above the wanted 0."
    )
    promotion = _source("promoted", at, 3.1, "promote", why=why_promoted(MODEL, "champion", "3", [gain]), tries=1)
    yield _build(promotion, Asked(), _known(at, trend=sample_trend(0.768, at), compare_page=page), model=f"{MODEL} version 4")
    yield build_rolled_back(Promotion(MODEL, "3", "4", changed=True), "champion", f"{MLFLOW}/#/models/{MODEL}", at)
