"""
The gate as a task: reads what was measured, asks :mod:`airflow_ml_provider.core.gate`, lets what follows run or not.

It decides nothing itself, and it promotes nothing: that is
:class:`~airflow_ml_provider.operators.promotion.PromoteModelOperator`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from airflow.providers.common.compat.sdk import AirflowFailException
from airflow.providers.standard.operators.branch import BranchMixIn
from airflow.sdk import BaseOperator
from pydantic import ValidationError

from airflow_ml_provider.core.alert_reasons import why_rejected
from airflow_ml_provider.core.gate import Contender, judge
from airflow_ml_provider.core.model_names import alias_in
from airflow_ml_provider.core.scoring import Rows, check_metric
from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.core.wiring import did_you_mean
from airflow_ml_provider.exceptions import ArtifactError, ConfigError, GateClosedError, RemoteNotFoundError
from airflow_ml_provider.links.mlflow import MlflowRunLink
from airflow_ml_provider.models.artifact import Dataset, Metrics, Model
from airflow_ml_provider.models.gate import DECISIONS, PairedComparison, Rule, Verdict
from airflow_ml_provider.models.reference import model_id_of
from airflow_ml_provider.notifications.alerts import alerts_of
from airflow_ml_provider.operators.references import check_value
from airflow_ml_provider.operators.step import StepOperatorMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.operators.session import StepSession
    from airflow_ml_provider.tracking.registry import ModelRegistry

log = logging.getLogger(__name__)
T = TypeVar("T")

REASONS_LENGTH = 5000  # MLflow keeps 8,000 characters of a tag
UNREADABLE = "champion_unreadable"
"""Key of the scores' metadata under which a step may say why it could not load the champion."""
SCORED = "champion"
"""Key of the scores' metadata under which a step may say the URI of the champion that it has scored."""


class ModelGateOperator(StepOperatorMixin, BaseOperator, BranchMixIn):
    r"""
    Decides whether a new model may replace the champion: ``promote``, ``keep`` or ``reject``, with reasons.

    The verdict is the task's XCom (plain JSON of :class:`~airflow_ml_provider.models.gate.Verdict`), also when what
    follows is skipped or the task fails, and it is on record in the task's MLflow run. Every case has a verdict: no
    champion yet, one that cannot be read, rows that do not pair, NaN, an older challenger
    (:func:`~airflow_ml_provider.core.gate.judge` says which).

    When the champion's model cannot be loaded, the step that scores leaves out its column and may say why in
    ``scores.metadata["champion_unreadable"]``; without that, the gate fetches the model to find out itself.

    When another model became the champion after the scores were made, the two are not compared. The gate knows it from
    the models that the step with the scores has read, or from ``scores.metadata["champion"]``, which that step may set
    to the champion's ``.uri``.

    Where the task or its DAG has alerts (:func:`~airflow_ml_provider.notifications.alerts.ml_alert`), people are told of a
    verdict that is not ``promote``, with its reasons. With ``otherwise="fail"`` it is the failed task that is told of.

    To ask a person first, place Airflow's own approval between the gate and the promotion; it shows the verdict::

        gate = ModelGateOperator(task_id="gate", ...)
        ask = ApprovalOperator(
            task_id="ask",
            subject="Promote {{ ti.xcom_pull(task_ids='gate')['challenger'] }}?",
            body="{{ ti.xcom_pull(task_ids='gate')['reasons'] | join('\n\n') }}",
        )
        gate >> ask >> PromoteModelOperator(task_id="promote", ...)

    :param challenger: Reference to the new model, ``fit["model"]``, or its URI.
    :param champion: The model that serves today, ``models:/<name>@<alias>``; while that alias does not exist there is
        no champion. A reference to a model as well.
    :param metrics: Reference to an ``Output[Metrics]`` with the challenger's final values, for the rules. A rule about
        a metric that is not there is answered from ``scores`` if it can be.
    :param scores: Reference to an ``Output[Dataset]``, Parquet or CSV, with the columns ``label``, ``challenger`` and
        ``champion``: what both say of the same rows. Without the last one while there is no champion.
    :param rules: What the challenger must reach by itself, ``"auc >= 0.7"``; templates allowed.
    :param compare: Metric by which the two are compared, or a
        :class:`~airflow_ml_provider.models.gate.PairedComparison`; None decides by the rules alone.
    :param otherwise: What happens unless the verdict is ``promote``. ``skip`` skips the tasks that follow directly, and
        leaves those behind them to their trigger rules; ``fail`` fails the task without a retry; ``branch`` follows
        ``branches``, for every verdict.
    :param branches: For ``branch``: per verdict the id or ids of the tasks or task groups that follow directly and run;
        for a verdict that is not in it, none does.
    :param unreadable_champion: Verdict for a fit challenger when the champion is there but cannot be read: ``keep``
        waits for a person, ``promote`` treats it as absent.
    :param mlflow_conn_id: Connection of the MLflow server.
    :param experiment: Name of the MLflow experiment, as for ``@task.ml``.
    """

    template_fields: Sequence[str] = ("challenger", "champion", "metrics", "scores", "rules", "experiment")
    operator_extra_links = (MlflowRunLink(),)
    shallow_copy_attrs: Sequence[str] = ("session",)
    inherits_from_skipmixin: ClassVar[bool] = True

    def __init__(
        self,
        *,
        challenger: Any,
        champion: Any,
        metrics: Any = None,
        scores: Any = None,
        rules: Sequence[str | Rule] = (),
        compare: str | PairedComparison | None = None,
        otherwise: Literal["skip", "fail", "branch"] = "skip",
        branches: Mapping[str, str | Sequence[str]] | None = None,
        unreadable_champion: Literal["keep", "promote"] = "keep",
        mlflow_conn_id: str = "mlflow_default",
        experiment: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.challenger = challenger
        self.champion = champion
        self.metrics = metrics
        self.scores = scores
        self.rules = rules
        self.compare = _comparison(compare)
        self.otherwise = otherwise
        self.branches = branches
        self.unreadable_champion = unreadable_champion
        self.mlflow_conn_id = mlflow_conn_id
        self.experiment = experiment
        self._check()

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Judge, record the verdict, and skip, fail or branch.

        :param context: Airflow's context.
        :return: The verdict as plain JSON.
        :raises AirflowFailException: the challenger is not promoted and ``otherwise`` is ``fail``.
        :raises ConfigError: an argument does not fit; a retry never helps.
        :raises ArtifactError: the scores or metrics are not what was recorded.
        :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry is safe.
        """
        from airflow_ml_provider.operators.execution import open_step

        with open_step(self, context, self._params()) as session:
            self.session = session
            verdict = self._judge(session)
            _record(session, verdict)
            if self.otherwise == "fail" and verdict.decision != "promote":
                self._fail(context, verdict)
        answer = verdict.to_json()
        if self.otherwise == "branch" or verdict.decision != "promote":
            self._push(context, answer)  # what skips ends the task by raising, and then nothing is pushed for it
            self._tell(context, verdict)
            self._leave_out(context, verdict)
        return answer

    def _judge(self, session: StepSession) -> Verdict:
        model = _given(session.read("challenger", self.challenger, Model))
        trained_at = _ask(session, lambda registry: registry.trained_at(model.uri)) or _night_of(session)
        scores = session.read("scores", self.scores, Dataset) if self.scores is not None else None
        rows = read_rows(Path(scores.path)) if scores else None
        metrics = session.read("metrics", self.metrics, Metrics) if self.metrics is not None else None
        numbers = _numbers(metrics.metadata) if metrics else None
        _show_with_model(session, model.uri, numbers or {})
        challenger, champion = Contender(_identity(model.uri), trained_at), self._find_champion(session, scores, rows)
        return judge(
            challenger,
            champion,
            scored=_scored(session, scores, challenger, champion) if scores and champion else "",
            rules=[_rule(each) for each in self.rules],
            compare=self.compare,
            metrics=numbers,
            rows=rows,
            unreadable_champion=self.unreadable_champion,
        )

    def _find_champion(self, session: StepSession, scores: Dataset | None, rows: Rows | None) -> Contender | None:
        """Look who serves today, and, where that one was not scored, whether it can be read at all."""
        place, version = self.champion, None
        if isinstance(place, str) and alias_in(place):  # nothing else can be "none yet"
            version = _ask(session, lambda registry: registry.find_uri(self.champion))
            if version is None:
                return None
            place = version.uri  # the alias may move before it is read below
        said = str(scores.metadata.get(UNREADABLE, "")) if scores else ""
        uri = version.source if version else ""
        try:
            model = _given(session.read("champion", place, Model))
            uri = model.uri
            if rows is not None and rows.champion is None and not said:
                log.info("The champion was not scored. Its model at %s is fetched to see whether it can be read.", uri)
                _ = model.path
        except (ArtifactError, ConfigError, RemoteNotFoundError) as error:
            if version is None:
                raise
            said = said or str(error)
        trained_at = _ask(session, lambda registry: registry.trained_at(version or uri))
        return Contender(_identity(uri), trained_at, unreadable=said)

    def _leave_out(self, context: Context, verdict: Verdict) -> None:
        """Skip what does not follow; Airflow ends the task by raising."""
        ti: Any = context["ti"]
        if self.otherwise == "branch":
            self.do_branch(context, (self.branches or {}).get(verdict.decision))
        else:
            self.skip(ti, [each for each in self.get_direct_relatives(upstream=False) if not each.is_teardown])

    def _tell(self, context: Context, verdict: Verdict) -> None:
        """Tell people that the champion stays; where the task fails for it, its failure callback does."""
        if verdict.decision == "promote" or verdict.challenger == verdict.champion:  # the latter was promoted before
            return
        named = alias_in(self.champion) if isinstance(self.champion, str) else None
        model = f"the new {named[0]}" if named else verdict.challenger
        judged = [f"verdict: {verdict.decision}", f"challenger: {verdict.challenger}", f"champion: {verdict.champion or 'none'}"]
        why, about = why_rejected(verdict, [_rule(each) for each in self.rules]), "\n".join([*judged, *verdict.reasons])
        for each in alerts_of(self):
            each.announce("gate_rejected", context, why=why, model=model, detail=about)

    def _fail(self, context: Context, verdict: Verdict) -> None:
        self._push(context, verdict.to_json())
        closed = GateClosedError(f"the gate's verdict is {verdict.decision}: {' '.join(verdict.reasons)}")
        raise AirflowFailException(str(closed)) from closed

    def _push(self, context: Context, answer: dict[str, Any]) -> None:
        if self.do_xcom_push:
            context["ti"].xcom_push(key="return_value", value=answer)

    def _params(self) -> dict[str, Any]:
        """Say what was asked, for the record."""
        asked: dict[str, Any] = {"rules": [str(each) for each in self.rules], "otherwise": self.otherwise}
        if self.compare is not None:
            asked["compare"] = self.compare.model_dump(exclude={"metric"}) | {"metric": self.compare.name}
        return asked | {"unreadable_champion": self.unreadable_champion}

    def _check(self) -> None:
        """Refuse at parse time what could never work."""
        for name, kind in (("challenger", Model), ("champion", Model), ("metrics", Metrics), ("scores", Dataset)):
            value = getattr(self, name)
            if value is not None:
                parameter = StepParameter.input(name, kind)
                check_value(StepSignature(self.task_id, {name: parameter}), parameter, value)
        for each in self.rules:
            if isinstance(each, Rule) or ("{{" not in each and "{%" not in each):
                _rule(each)
        self._check_choices()

    def _check_choices(self) -> None:
        where = f"gate {self.task_id!r}"
        if self.challenger is None or self.champion is None:
            raise ConfigError(f'{where} needs both models: challenger=fit["model"], champion="models:/<name>@<alias>".')
        if not self.rules and self.compare is None:
            raise ConfigError(f'{where} has nothing to judge by. Give it rules=["auc >= 0.7"], or compare="auc", or both.')
        if self.compare is not None and self.scores is None:
            raise ConfigError(f"{where} compares the two by {self.compare.name}, and needs scores= of both to do it.")
        if self.otherwise not in ("skip", "fail", "branch"):
            raise ConfigError(f"{where}: otherwise={self.otherwise!r} is none of skip, fail and branch.")
        if (self.otherwise == "branch") != bool(self.branches):
            raise ConfigError(f'{where}: otherwise="branch" and branches={{"promote": "task_id", ...}} go together.')
        for name in self.branches or {}:
            if name not in DECISIONS:
                raise ConfigError(f"{where}: branches has {name!r}, which is no verdict.{did_you_mean(name, DECISIONS)}")


def read_rows(path: Path) -> Rows:
    """
    Read the table of scores.

    :param path: Parquet, or CSV with a header.
    :return: Its columns ``label``, ``challenger`` and ``champion``, None for one that it does not have.
    :raises ConfigError: pandas is not installed, or the file is neither; a retry never helps.
    :raises ArtifactError: the file is not what its name says.
    """
    try:
        import pandas as pd
    except ModuleNotFoundError as error:
        raise ConfigError(
            "to read scores the gate needs pandas, which is not installed where the gate runs: "
            "pip install 'airflow-ml-provider[gate]'."
        ) from error
    if path.suffix not in (".parquet", ".csv"):
        raise ConfigError(
            f'the scores are in {path.name!r}, which is neither .parquet nor .csv. Name the file: scores.path += ".parquet".'
        )
    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, OSError) as error:
        raise ArtifactError(f"the scores in {path.name!r} cannot be read: {error}. Run the step that made them again.") from error
    label, challenger, champion = (
        frame[name].to_numpy() if name in frame.columns else None for name in ("label", "challenger", "champion")
    )
    return Rows(label, challenger, champion)


def _record(session: StepSession, verdict: Verdict) -> None:
    """Put the verdict on record in the task's MLflow run, and into its log."""
    log.info("Verdict: %s", verdict.decision)
    for reason in verdict.reasons:
        log.info("  %s", reason)
    numbers = dict(verdict.metrics)
    if verdict.gain is not None:
        numbers |= {"gain": verdict.gain.estimate, "gain_low": verdict.gain.low, "gain_high": verdict.gain.high}
    session.log_metrics(numbers)
    reasons = "\n".join(verdict.reasons)[:REASONS_LENGTH]
    session.set_tags({"airflow.gate.decision": verdict.decision, "airflow.gate.reasons": reasons})
    session.log_json("verdict", verdict.to_json())


def _show_with_model(session: StepSession, uri: str, numbers: Mapping[str, float]) -> None:
    """Put the challenger's numbers on its own page in MLflow, where whoever asks for the champion finds them."""
    if model_id := model_id_of(uri):
        own = {name: each for name, each in numbers.items() if not name.startswith("champion_")}
        session.log_metrics(own, model_id=model_id)


def _comparison(compare: str | PairedComparison | None) -> PairedComparison | None:
    try:
        found = PairedComparison(metric=compare) if isinstance(compare, str) else compare
    except ValidationError as error:
        raise ConfigError(f"compare={compare!r}: {error.errors()[0]['msg']}") from error
    if found is not None:
        check_metric(found)
    return found


def _rule(rule: str | Rule) -> Rule:
    return rule if isinstance(rule, Rule) else Rule.parse(rule)


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: each for name, each in values.items() if isinstance(each, int | float)}
    return {name: float(each) for name, each in numbers.items() if not isinstance(each, bool)}


def _ask(session: StepSession, question: Callable[[ModelRegistry], T]) -> T:
    """Ask the registry, within the patience."""
    from airflow_ml_provider.hooks.patience import patiently
    from airflow_ml_provider.tracking.registry import ModelRegistry

    registry = ModelRegistry(session.api)
    return patiently("read the registry", lambda: question(registry), session.settings.patience_s)


def _night_of(session: StepSession) -> datetime | None:
    """Say which night the gate's own DAG run stands for; a model without a date of its own is of that night."""
    from airflow_ml_provider.tracking.registry import LOGICAL_DATE, as_date

    return as_date(session.record.attempt.tags.get(LOGICAL_DATE, ""))


def _scored(session: StepSession, scores: Dataset, challenger: Contender, champion: Contender) -> str:
    """Say whose scores stand in the column of the champion, empty when nobody knows."""
    said = scores.metadata.get(SCORED)
    if isinstance(said, str) and said and not alias_in(said):
        return _identity(said)
    run_id = next((each.run_id for each in session.record.inputs if each.name == "scores"), None)
    ours, theirs = model_id_of(challenger.uri), model_id_of(champion.uri)
    if not (run_id and ours and theirs):
        return ""
    others = _ask(session, lambda registry: registry.models_read_by(run_id)) - {ours}
    return champion.uri if theirs in others else " and ".join(f"models:/{each}" for each in sorted(others))


def _given(model: Model | None) -> Model:
    """Tell the type checker what holds: without ``optional``, a session never reads None."""
    if model is None:
        raise AssertionError("a session reads None only where optional=True was said")
    return model


def _identity(uri: str) -> str:
    """Name a model whatever its file is called."""
    model_id = model_id_of(uri)
    return f"models:/{model_id}" if model_id else uri
