"""From what happened to what arrived: groups, claims, the closing message, and what is slow or away."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.models.alert import CHANNELS, AlertRules
from airflow_ml_provider.models.run import StepIdentity
from airflow_ml_provider.notifications.context import AlertSource
from airflow_ml_provider.notifications.send import Targets
from airflow_ml_provider.notifications.tell import Options, tell
from airflow_ml_provider.tracking.local_claims import LocalClaims
from tests.alert_servers import Answer, MailServer, SilentServer, SlackEndpoint
from tests.notifications.secrets_backend import use_backend

MANY = 200
BEGAN = datetime(2026, 7, 1, 3, 0, tzinfo=UTC)
Connect = Callable[[str, str], None]


@pytest.fixture
def failing(unique: str) -> Callable[..., AlertSource]:
    """Make the source of a task that has failed."""

    def make(task_id: str = "train", map_index: int = -1, **fields: Any) -> AlertSource:
        step = StepIdentity(dag_id=unique, run_id="scheduled__1", task_id=task_id, map_index=map_index)
        given: dict[str, Any] = {"kind": "task_failed", "place": "task", "at": datetime.now(UTC), "began": BEGAN}
        given |= {"dag_id": unique, "run_id": "scheduled__1", "step": step, "going": "0-1", "try_number": 1}
        given |= {"why": f"ValueError: bad {step.label}", "task_log": f"http://airflow/{step.task_id}/{map_index}"}
        return AlertSource(**given | fields)

    return make


@pytest.fixture
def ended(unique: str) -> AlertSource:
    """The end of that DAG run."""
    return AlertSource(
        kind="dag_failed", place="dag_processor", at=datetime.now(UTC), dag_id=unique, run_id="scheduled__1", going="0-1"
    )


@pytest.fixture
def machine(tmp_path: Path) -> Callable[[str], LocalClaims]:
    return lambda name: LocalClaims(tmp_path / name)


def texts(slack: SlackEndpoint) -> list[str]:
    return [str(each) for each in slack.messages]


@pytest.mark.full
@pytest.mark.usefixtures("_at_once")
def test_two_hundred_tasks_that_fail_at_once_give_one_opening_and_one_closing(
    both_targets: Targets,
    slack: SlackEndpoint,
    mail: MailServer,
    failing: Callable[..., AlertSource],
    ended: AlertSource,
    mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:
    ready, claims = threading.Barrier(MANY), machine("one")

    def fail(index: int) -> None:
        ready.wait()
        tell(failing(map_index=index), Options(both_targets), closed=CHANNELS, claims=claims)

    with ThreadPoolExecutor(MANY) as pool:
        list(pool.map(fail, range(MANY)))
    assert (len(slack.messages), len(mail.mails)) == (1, 1)
    tell(ended, Options(both_targets), closed=CHANNELS, claims=machine("another"))
    assert (len(slack.messages), len(mail.mails)) == (2, 2)
    assert "ValueError: bad train[" in texts(slack)[0]
    assert mail.mails[1].message["In-Reply-To"] == mail.mails[0].message["Message-ID"]


@pytest.mark.usefixtures("_at_once")
def test_tasks_on_several_machines_give_one_opening(
    slack_targets: Targets,
    slack: SlackEndpoint,
    failing: Callable[..., AlertSource],
    mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:
    ready = threading.Barrier(8)

    def fail(index: int) -> None:
        ready.wait()
        tell(failing(map_index=index), Options(slack_targets), closed=CHANNELS, claims=machine(str(index)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fail, range(8)))
    assert len(slack.messages) == 1


@pytest.mark.parametrize("away", ["refused", "hanging", "not defined"])
def test_without_mlflow_there_is_one_opening_per_machine_and_none_is_dropped(
    away: str,
    slack_targets: Targets,
    slack: SlackEndpoint,
    failing: Callable[..., AlertSource],
    ended: AlertSource,
    connect: Connect,
    machine: Callable[[str], LocalClaims],
    monkeypatch: pytest.MonkeyPatch,
    airflow_db: None,
) -> None:
    monkeypatch.setenv("AIRFLOW__ML__ALERT_TIMEOUT_S", "2")
    with SilentServer() as silent:
        port = silent.port if away == "hanging" else 9
        if away != "not defined":
            connect("mlflow_default", f'{{"conn_type": "mlflow", "host": "http://127.0.0.1:{port}"}}')
        for name in ("one", "one", "two"):
            tell(failing(), Options(slack_targets), closed=CHANNELS, claims=machine(name))
        assert len(slack.messages) == 2
        assert all("ValueError: bad train" in each for each in texts(slack))
        tell(ended, Options(slack_targets), closed=CHANNELS, claims=machine("three"))
    assert len(slack.messages) == 3


def test_the_closing_is_in_the_opening_s_thread(
    slack: SlackEndpoint, connect: Connect, failing: Callable[..., AlertSource], ended: AlertSource, mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    connect("bot", slack.bot(channel="#nights"))
    options = Options(Targets(slack="bot"))
    tell(failing(), options, closed=CHANNELS, claims=machine("worker"))
    tell(ended, options, closed=CHANNELS, claims=machine("processor"))
    opening, closing = slack.messages
    assert closing["thread_ts"] == slack.posted[0].ts
    assert closing["reply_broadcast"] is True
    assert "thread_ts" not in opening


def test_where_the_opening_was_not_sent_the_closing_tells_it_all(
    connect: Connect, failing: Callable[..., AlertSource], ended: AlertSource, mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    with SlackEndpoint(Answer("refuse")) as slack:
        connect("slack_ml", slack.webhook())
        options = Options(Targets(slack="slack_ml"))
        (sent,) = tell(failing(), options, closed=CHANNELS, claims=machine("worker"))
        assert not sent.ok
        tell(ended, options, closed=CHANNELS, claims=machine("processor"))
        (closing,) = slack.messages
        assert "ValueError: bad train" in str(closing)


def test_without_a_closing_each_task_id_is_told_once_per_try(
    slack_targets: Targets, slack: SlackEndpoint, failing: Callable[..., AlertSource], mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    options, claims = Options(slack_targets), machine("one")
    for source in (
        failing("train", 0), failing("train", 1), failing("evaluate"),
        failing("train", 0, try_number=2), failing("train", 0, going="1-2"),
    ):  # fmt: skip
        tell(source, options, claims=claims)
    assert len(slack.messages) == 4


def test_two_teams_of_one_dag_are_both_told(
    slack: SlackEndpoint, connect: Connect, failing: Callable[..., AlertSource], mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    connect("one_team", slack.webhook())
    connect("other_team", slack.webhook())
    for name in ("one_team", "other_team"):
        tell(failing(), Options(Targets(slack=name)), closed=CHANNELS, claims=machine("one"))
    assert len(slack.messages) == 2


def test_a_kind_that_is_off_is_not_sent_and_a_rule_chooses_the_channel(
    both_targets: Targets, slack: SlackEndpoint, mail: MailServer, failing: Callable[..., AlertSource], mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    off = AlertRules(task_failed=None)
    assert tell(failing(), Options(both_targets, rules=off), claims=machine("one")) == []
    only = AlertRules.model_validate({"task_failed": {"severity": "info", "channels": ["email"]}})
    tell(failing(), Options(both_targets, rules=only), claims=machine("one"))
    assert (len(slack.messages), len(mail.mails)) == (0, 1)


def test_a_slack_that_hangs_holds_a_task_up_no_longer_than_the_bound(
    connect: Connect, failing: Callable[..., AlertSource], machine: Callable[[str], LocalClaims], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture, mlflow_connection: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("AIRFLOW__ML__ALERT_TIMEOUT_S", "1")
    with SlackEndpoint(always=Answer("drip")) as slack, SilentServer() as mail:
        connect("slack_ml", slack.webhook())
        connect("smtp_ml", mail.mail_connection())
        targets = Targets("slack_ml", ("a@b.c",), smtp_conn_id="smtp_ml")
        sent = tell(failing(), Options(targets), claims=machine("one"))
        assert [each.ok for each in sent] == [False, False]
        assert caplog.text.count("gave up after 1 s") == 2


@pytest.mark.parametrize(("state", "messages"), [("success", 0), ("failed", 0), ("running", 1), ("", 1)])
def test_late_is_told_only_of_a_dag_run_that_has_not_ended(
    state: str, messages: int, slack_targets: Targets, slack: SlackEndpoint, ended: AlertSource, mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    late = replace(ended, kind="late", place="triggerer", state=state, due=BEGAN)
    tell(late, Options(slack_targets), claims=machine("one"))
    assert len(slack.messages) == messages
    if messages:
        assert "2026-07-01 03:00 UTC" in texts(slack)[0]


def test_a_wrong_option_of_the_configuration_does_not_cost_the_message(
    slack_targets: Targets, slack: SlackEndpoint, failing: Callable[..., AlertSource], machine: Callable[[str], LocalClaims],
    monkeypatch: pytest.MonkeyPatch, mlflow_connection: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("AIRFLOW__ML__ALERT_TIMEOUT_S", "soon")
    tell(failing(), Options(slack_targets), claims=machine("one"))
    assert len(slack.messages) == 1


def test_a_recovery_is_told_once_also_where_no_step_of_ours_leaves_a_record(
    slack_targets: Targets, slack: SlackEndpoint, failing: Callable[..., AlertSource], ended: AlertSource, mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    options, claims = Options(slack_targets), machine("one")
    good = replace(ended, kind="recovered", dated=False)
    tell(replace(good, run_id="before"), options, claims=claims)
    assert slack.messages == []
    tell(failing(), options, closed=CHANNELS, claims=claims)
    for run_id in ("night-2", "night-3"):
        tell(replace(good, run_id=run_id), options, claims=claims)
    assert len(slack.messages) == 2


def test_a_dag_run_that_was_cleared_and_went_well_has_recovered(
    slack_targets: Targets, slack: SlackEndpoint, failing: Callable[..., AlertSource], ended: AlertSource, mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    options, claims = Options(slack_targets), machine("one")
    tell(failing(), options, closed=CHANNELS, claims=claims)
    tell(replace(ended, kind="recovered", going="1-2", cleared=True), options, claims=claims)
    assert len(slack.messages) == 2


def test_each_failure_of_a_cleared_dag_run_is_made_good_once(
    slack_targets: Targets, slack: SlackEndpoint, failing: Callable[..., AlertSource], ended: AlertSource, mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    options, claims = Options(slack_targets), machine("one")
    well = replace(ended, kind="recovered", cleared=True, dated=False)
    told = []
    for going in ("0-1", "3-4"):
        number, began = (int(each) for each in going.split("-"))
        tell(failing(going=going), options, closed=CHANNELS, claims=claims)
        for more in (1, 2):
            tell(replace(well, going=f"{number + more}-{began + more}"), options, claims=claims)
            told.append(len(slack.messages))
    assert told == [2, 2, 4, 4]
    tell(replace(well, run_id="night-2", going="0-9", cleared=False), options, claims=claims)
    assert len(slack.messages) == 4


def test_of_two_teams_each_is_told_that_a_cleared_dag_run_works_again(
    slack: SlackEndpoint, connect: Connect, failing: Callable[..., AlertSource], ended: AlertSource, mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    well = replace(ended, kind="recovered", going="1-2", cleared=True)
    for source in (failing(), well):
        for name in ("one_team", "other_team"):
            connect(name, slack.webhook())
            tell(source, Options(Targets(slack=name)), closed=CHANNELS, claims=machine("one"))
    assert len(slack.messages) == 4


def test_a_retry_that_was_told_is_no_failure_to_recover_from(
    slack_targets: Targets, slack: SlackEndpoint, failing: Callable[..., AlertSource], ended: AlertSource, mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    options = Options(slack_targets, rules=AlertRules.model_validate({"retry": {"severity": "info"}}))
    tell(failing(kind="retry"), options, closed=CHANNELS, claims=machine("one"))
    tell(replace(ended, kind="recovered", going="1-2", cleared=True), options, claims=machine("one"))
    assert len(slack.messages) == 1


def test_a_good_old_night_that_was_cleared_does_not_make_good_the_newest_one(
    slack_targets: Targets, slack: SlackEndpoint, failing: Callable[..., AlertSource], ended: AlertSource, mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    options, claims = Options(slack_targets), machine("one")
    tell(failing(), options, closed=CHANNELS, claims=claims)
    tell(replace(ended, kind="recovered", run_id="old", going="1-2", cleared=True), options, claims=claims)
    assert len(slack.messages) == 1
    tell(replace(ended, kind="recovered", run_id="night-2", dated=False), options, claims=claims)
    assert len(slack.messages) == 2


class AsksNothing:
    """A task instance that remembers whether it was asked for the DAG run before."""

    asked = False

    def get_previous_dagrun(self, state: str) -> None:
        self.asked = True


def test_an_airflow_that_is_slow_to_give_connections_costs_facts_and_not_the_message(
    both_targets: Targets, slack: SlackEndpoint, mail: MailServer, failing: Callable[..., AlertSource], mlflow_connection: str,
    machine: Callable[[str], LocalClaims], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("AIRFLOW__ML__ALERT_TIMEOUT_S", "1")
    ti = AsksNothing()
    with use_backend(monkeypatch, "slow 1.05"):
        sent = tell(failing(ti=ti), Options(both_targets), claims=machine("one"))
    assert [(each.channel, each.ok) for each in sent] == [("slack", True), ("email", True)]
    assert (len(slack.messages), len(mail.mails)) == (1, 1)
    assert not ti.asked
    assert "to look up the connection 'slack_ml'" in caplog.text
    assert "goes without what MLflow knows" in caplog.text


def test_with_time_enough_the_run_before_is_asked_for(
    slack_targets: Targets, slack: SlackEndpoint, failing: Callable[..., AlertSource], machine: Callable[[str], LocalClaims],
    mlflow_connection: str,
) -> None:  # fmt: skip
    ti = AsksNothing()
    tell(failing(ti=ti), Options(slack_targets), claims=machine("one"))
    assert ti.asked


def test_where_slack_was_not_reached_the_log_says_how_long_it_had(
    connect: Connect, failing: Callable[..., AlertSource], machine: Callable[[str], LocalClaims],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("AIRFLOW__ML__ALERT_TIMEOUT_S", "1")
    with SlackEndpoint(always=Answer("hang")) as slack, use_backend(monkeypatch, "slow 1.05"):
        connect("slack_ml", slack.webhook())
        (sent,) = tell(failing(), Options(Targets("slack_ml")), claims=machine("one"))
    assert "gave up after 2 s" in sent.why
    assert "had 0.5 s to answer" in sent.why


def test_a_claim_is_free_again_once_sending_has_failed(
    connect: Connect, failing: Callable[..., AlertSource], mlflow_connection: str, machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    with SlackEndpoint(Answer("refuse"), Answer("refuse")) as slack:
        connect("slack_ml", slack.webhook())
        for index, name in enumerate(("one", "two", "one", "two", "three")):
            tell(failing(map_index=index), Options(Targets(slack="slack_ml")), claims=machine(name))
        assert [each.taken for each in slack.posted] == [False, False, True]
        assert "bad train[2]" in texts(slack)[0]


def test_one_channel_s_failure_gives_back_its_own_claim_alone(
    mail: MailServer, connect: Connect, failing: Callable[..., AlertSource], mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    with SlackEndpoint(Answer("refuse")) as slack:
        connect("slack_ml", slack.webhook())
        connect("smtp_ml", mail.connection())
        targets = Targets("slack_ml", ("a@b.c",), smtp_conn_id="smtp_ml")
        for name in ("one", "two"):
            tell(failing(), Options(targets), claims=machine(name))
        assert (len(slack.messages), len(mail.mails)) == (1, 1)


def test_where_only_one_channel_is_closed_the_other_tells_each_task(
    both_targets: Targets, slack: SlackEndpoint, mail: MailServer, failing: Callable[..., AlertSource], mlflow_connection: str,
    machine: Callable[[str], LocalClaims],
) -> None:  # fmt: skip
    for task_id in ("train", "evaluate"):
        tell(failing(task_id), Options(both_targets), closed=("slack",), claims=machine("one"))
    assert (len(slack.messages), len(mail.mails)) == (1, 2)


def test_a_rule_without_channels_is_off(
    both_targets: Targets, failing: Callable[..., AlertSource], machine: Callable[[str], LocalClaims]
) -> None:
    rules = AlertRules.model_validate({"task_failed": {"severity": "info", "channels": []}})
    assert tell(failing(), Options(both_targets, rules=rules), claims=machine("one")) == []


def test_that_nobody_will_hear_is_said_only_where_nobody_is_told(
    slack: SlackEndpoint, connect: Connect, failing: Callable[..., AlertSource], machine: Callable[[str], LocalClaims],
    mlflow_connection: str, airflow_db: None, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO")
    connect("slack_ml", slack.webhook())
    targets, claims = Targets("slack_ml", ("a@b.c",), smtp_conn_id="nobody_has_this"), machine("one")
    for index in range(2):
        tell(failing(map_index=index), Options(targets), claims=claims)
    assert "Nobody will hear" not in caplog.text
    assert caplog.text.count("there is no connection 'nobody_has_this'") == 1
    tell(failing("other"), Options(Targets("nor_this")), claims=claims)
    assert "Nobody will hear" in caplog.text
