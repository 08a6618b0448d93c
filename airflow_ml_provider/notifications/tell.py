"""
From what happened to what was sent, the same in every process of Airflow.

First what asks Airflow, in the calling thread: the channels' connections, without which there is no message, then states.
Then MLflow, in a thread, for half of the time: the claim before all else, then facts. Then the channels, each in a thread, for
the rest. Whatever is slow or away costs the message a fact, never the message. The bound does not cover Airflow's own answers:
one that is slow is waited for, and the next questions are left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace

from airflow_ml_provider.config import Settings, load_settings
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.mlflow import MlflowApi, MlflowHook
from airflow_ml_provider.models.alert import AlertRule, AlertRules, Channel
from airflow_ml_provider.notifications.bounded import Bound, run_together
from airflow_ml_provider.notifications.build import FAILURES, Asked, build_alert
from airflow_ml_provider.notifications.context import AlertSource, as_time
from airflow_ml_provider.notifications.gather import Gathered, Gatherer
from airflow_ml_provider.notifications.send import Letter, Line, Sent, Targets, deliver, log_sent, open_lines
from airflow_ml_provider.notifications.supervisor import ask_previous_run, ask_state, ask_task_states
from airflow_ml_provider.tracking.alert_claims import AlertBoard, claim_name, make_token
from airflow_ml_provider.tracking.local_claims import LocalClaims

log = logging.getLogger(__name__)

ASK_SHARE = 0.3
"""Share of the time after which Airflow is asked for connections alone."""
LOOK_SHARE = 0.5
"""Share of the time that MLflow is given; the rest is the channels'."""
CLAIMED = ("task_failed", "retry")
"""Kinds that many tasks may want to tell at once."""
FAILED = "failed"
ENDED = ("success", FAILED)
"""States of a DAG run that has ended."""


@dataclass(frozen=True)
class Options:
    """
    What the user asked for.

    :param targets: Where alerts go.
    :param mlflow_conn_id: Connection of the MLflow server.
    :param model: Name of the registered model; empty finds it.
    :param rules: Which alerts are wanted.
    """

    targets: Targets
    mlflow_conn_id: str = MlflowHook.default_conn_name
    model: str = ""
    rules: AlertRules = field(default_factory=AlertRules)


def tell(
    source: AlertSource, options: Options, *, closed: Collection[Channel] = (), model: str = "", claims: LocalClaims | None = None
) -> list[Sent]:
    """
    Tell people of what happened, unless it is not wanted, or somebody else tells of it already.

    :param source: What happened.
    :param options: What the user asked for.
    :param closed: Channels on which a message at the DAG run's end tells of the tasks that come later, so that one task speaks
        for all of the DAG run; on the others one speaks for those of its own id.
    :param model: What a gate or a promotion was about.
    :param claims: Files that stand for claims; None means this machine's.
    :return: What became of it on each channel on which it was this process's to tell.
    """
    settings = _settings()
    bound = Bound(settings.alert_timeout_s)
    source = _as_it_ended(source)
    rule = options.rules.of(source.kind)
    if rule is None or not set(rule.channels) & set(options.targets.channels):
        return []
    telling = Telling(source, options, rule, bound, settings, claims or LocalClaims())
    return telling.run(closed=closed, model=model)


class Telling:
    """
    One alert on its way.

    :param source: What happened.
    :param options: What the user asked for.
    :param rule: Where it goes and how grave it is.
    :param bound: The time for all of it.
    :param settings: The section ``[ml]``.
    :param claims: Files that stand for claims.
    """

    def __init__(
        self, source: AlertSource, options: Options, rule: AlertRule, bound: Bound, settings: Settings, claims: LocalClaims
    ) -> None:
        self.source = source
        self.options = options
        self.rule = rule
        self.bound = bound
        self.settings = settings
        self.claims = claims
        self.board: AlertBoard | None = None
        self.names: dict[Channel, str] = {}
        self.token = make_token()

    def run(self, *, closed: Collection[Channel], model: str) -> list[Sent]:
        """
        Ask, look, and send.

        :param closed: As for :func:`tell`.
        :param model: As for :func:`tell`.
        :return: As :func:`tell`.
        """
        lines = open_lines(self.options.targets, self.rule.channels)
        if not self._is_worth_telling(asked := self._ask_airflow()):
            return []
        ready: dict[Channel, Line] = {channel: each for channel, each in lines.items() if isinstance(each, Line)}
        sent = [each for each in lines.values() if isinstance(each, Sent)]
        if ready:
            self.names = {channel: self._claim_name(channel, closed=closed) for channel in ready}
            sent += self._look_and_send(ready, asked, closed=closed, model=model)
        what = f"{self.source.kind} of {self.source.dag_id} {self.source.run_id} {self.source.label}".strip()
        log_sent(sent, what, told=bool(ready))
        return sent

    def _look_and_send(self, ready: dict[Channel, Line], asked: Asked, *, closed: Collection[Channel], model: str) -> list[Sent]:
        source = self.source
        mine = dict(ready)
        if source.kind in CLAIMED:
            mine = {channel: line for channel, line in ready.items() if self.claims.take(self._file(channel))}
            if not mine and not (self._leaves_reason(closed=closed) and self._has_place()):
                return []
        api = self._mlflow()
        try:
            found = self._look(api, tuple(mine), closed=closed) if api else Gathered()
            mine = {channel: line for channel, line in mine.items() if found.mine.get(channel, True)}
            if source.kind == "recovered" and not (asked.had_failed or found.had_failed):
                return []
            if source.ended_well and list(asked.states.values()).count(FAILED) == 1:  # whoever was told knows of that one
                mine = {channel: line for channel, line in mine.items() if self._opening(channel, found) is None}
            letters = [self._letter(channel, line, asked, found, model) for channel, line in mine.items()]
            return list(deliver(letters, self.bound).values())
        finally:
            if api is not None:
                api.close()

    def _letter(self, channel: Channel, line: Line, asked: Asked, found: Gathered, model: str) -> Letter:
        """Write the message of one channel: what was told before on that one, it need not tell again."""
        source, name, thread = self.source, "", None
        if source.kind == "dag_failed":
            thread = self._opening(channel, found)
            name = f"{self._file(channel)}.end"
        elif source.kind in CLAIMED:
            name = self._file(channel)
        alert = build_alert(source, asked, found, severity=self.rule.severity, told=thread is not None, model=model)
        answers = ""
        if thread is not None:
            answers = self._file(channel) if channel == "email" else thread
        if_failed = self._free(channel) if source.kind in CLAIMED else None
        return Letter(line, alert, name, answers, self._afterwards(channel, found), if_failed)

    def _opening(self, channel: Channel, found: Gathered) -> str | None:
        """Give the thread of the message that has told of the DAG run's first failure; None when nobody knows of one."""
        thread = found.told.get(channel)
        return self.claims.told(self._file(channel)) if thread is None else thread

    def _free(self, channel: Channel) -> Callable[[], None]:
        """Give the claim back, so that the next task that fails may tell."""

        def free() -> None:
            self.claims.free(self._file(channel))
            if self.board is None:
                return
            try:
                self.board.free(self.names[channel], self.token)
            except Exception as error:  # noqa: BLE001  (then the claim is free after a minute)
                log.info("MLflow was not told that an alert could not be sent: %s", error)

        return free

    def _afterwards(self, channel: Channel, found: Gathered) -> Callable[[str], None] | None:
        """Say what is noted once the message was sent."""

        def mark(thread: str) -> None:
            note = thread if channel == "slack" else ""
            if self.source.kind in CLAIMED:
                self.claims.mark_told(self._file(channel), note)
            if self.board is None:
                return
            try:
                if self.source.kind in CLAIMED:
                    self.board.mark_told(self.names[channel], note)
                elif found.had_failed:
                    self.board.mark_recovered(found.recovered_run)
            except Exception as error:  # noqa: BLE001  (then a later message tells it once more)
                log.info("MLflow was not told that an alert was sent: %s", error)

        return mark if self.source.kind in (*CLAIMED, "recovered") else None

    def _look(self, api: MlflowApi, mine: tuple[Channel, ...], *, closed: Collection[Channel]) -> Gathered:
        """Ask MLflow, for its share of the time."""
        source = self.source
        experiment = self.settings.experiment.replace("{dag_id}", source.dag_id)
        self.board = AlertBoard(api, source.dag_run, experiment, source.going)
        gatherer = Gatherer(self.board, source, self.options.model)
        names = {channel: self.names[channel] for channel in mine}

        def look() -> None:
            if source.kind in CLAIMED:
                gatherer.claim(names, self.token)
                tells = any(gatherer.found.mine.get(channel, True) for channel in mine)
                if tells:
                    gatherer.read_task()
                if self._leaves_reason(closed=closed):
                    gatherer.leave_reason(tells=tells)
                if not tells:
                    return
            elif source.kind == "dag_failed":
                gatherer.look_at_opening(names)
                gatherer.read_dag_run()
            elif source.kind == "recovered":
                gatherer.read_before()
            elif source.step is not None:
                gatherer.read_task()
            gatherer.read_facts()

        late = run_together({"mlflow": look}, self.bound.part(LOOK_SHARE))
        if late:
            log.warning("An alert does not wait for MLflow any longer, and goes with what is known.")
        return gatherer.found

    def _ask_airflow(self) -> Asked:
        """Ask Airflow what the kind needs, before anything else runs beside; what there is no time for is left out."""
        source = self.source
        states: Mapping[str, str] = {}
        if source.kind in ("dag_failed", "late") and self._has_time():
            states = ask_task_states(source.place, source.dag_id, source.run_id)
        good = had_failed = None
        if source.dated and source.kind != "late" and self._has_time():
            good = ask_previous_run(source.place, source.ti, "success")
            if source.kind == "recovered" and not source.cleared and self._has_time():  # without it, MLflow may know
                bad = ask_previous_run(source.place, source.ti, "failed")
                had_failed = _date_of(bad) > _date_of(good) if good or bad else None
        return Asked(states=states, last_worked=as_time(getattr(good, "end_date", None)), had_failed=had_failed)

    def _has_time(self) -> bool:
        """Say whether Airflow has answered fast enough so far to be asked for more."""
        return self.bound.part(ASK_SHARE).left_s() > 0

    def _is_worth_telling(self, asked: Asked) -> bool:
        source = self.source
        if source.kind == "recovered":
            return asked.had_failed is not False
        if source.kind != "late":
            return True
        # Airflow sees a missed deadline only when it looks, which may be after the end (apache/airflow#60927).
        asked_state = ask_state(source.place, source.dag_id, source.run_id) if self._has_time() else ""
        state = asked_state or source.state
        if state in ENDED:
            log.info("%s %s was late, and has ended by now: nobody is told.", source.dag_id, source.run_id)
        return state not in ENDED

    def _mlflow(self) -> MlflowApi | None:
        """Make a client that is as hasty as the bound; None where there is no MLflow to ask, or no time for it."""
        if not self.bound.part(LOOK_SHARE).left_s():
            log.warning("Airflow was so slow that an alert goes without what MLflow knows, and may be sent twice.")
            return None
        try:
            server = MlflowHook(self.options.mlflow_conn_id).server()
        except Exception as error:  # noqa: BLE001  (without MLflow an alert has less to say, and is sent all the same)
            log.info("An alert goes without what MLflow knows: %s", error)
            return None
        longest_s = self.bound.limit_s * LOOK_SHARE
        bounds = {"http_retries": 1, "http_timeout_s": max(0.1, min(self.settings.http_timeout_s, longest_s))}
        return MlflowApi(server, self.settings.model_copy(update=bounds))

    def _leaves_reason(self, *, closed: Collection[Channel]) -> bool:
        """Say whether somebody will read at the DAG run's end why this task has failed."""
        return bool(closed) and self.source.kind == "task_failed"

    def _has_place(self) -> bool:
        """Say whether this machine's tasks leave few enough reasons for a message to hold, and for MLflow to bear."""
        return self.claims.take_place(f"{self.source.dag_run.key}.{self.source.going}.why", FAILURES)

    def _claim_name(self, channel: Channel, *, closed: Collection[Channel]) -> str:
        source, group = self.source, ""
        if source.kind in CLAIMED and source.step and (source.kind == "retry" or channel not in closed):
            group = f"{source.kind} {source.step.task_id} {source.try_number}"
        return claim_name(source.going, group, self.options.targets.of(channel), channel)

    def _file(self, channel: Channel) -> str:
        return f"{self.source.dag_run.key}.{self.names[channel]}"


def _as_it_ended(source: AlertSource) -> AlertSource:
    """Tell of failures where a DAG run has ended well although tasks have failed: Airflow calls for its success alone."""
    if source.kind != "recovered" or not source.lenient:
        return source
    states = ask_task_states(source.place, source.dag_id, source.run_id)
    return replace(source, kind="dag_failed", ended_well=True) if FAILED in states.values() else source


def _date_of(dag_run: object) -> float:
    found = as_time(getattr(dag_run, "logical_date", None))
    return found.timestamp() if found else float("-inf")


def _settings() -> Settings:
    """Read the options; a wrong one must not cost the message."""
    with suppress(ConfigError):
        return load_settings()
    log.warning("The section [ml] holds a value out of its range. This alert goes by the defaults.")
    return Settings()
