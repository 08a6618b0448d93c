"""The notifiers as Airflow itself calls them: in a task, in the DAG processor, and in the triggerer."""

from __future__ import annotations

import asyncio
import os
import warnings
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog
from airflow.callbacks.callback_requests import DagCallbackRequest, DagRunContext, TaskCallbackRequest
from airflow.dag_processing.processor import _execute_dag_callbacks, _execute_task_callbacks
from airflow.providers.common.compat.sdk import AirflowSkipException
from airflow.sdk import DAG, task
from airflow.sdk.execution_time.comms import GetTaskStates, TaskStatesResult
from airflow.sdk.execution_time.supervisor import InProcessTestSupervisor, set_supervisor_comms
from blockbuster import BlockBuster

from airflow_ml_provider.exceptions import PodOutOfMemoryError
from airflow_ml_provider.hooks.mlflow import MlflowApi
from airflow_ml_provider.notifications.alerts import MLAlertNotifier, ml_alert, ml_alerts
from tests.airflow_releases import DagBag
from tests.alert_servers import Answer, MailServer, SlackEndpoint

RunDag = Callable[..., Any]
INFO = {"severity": "info"}
WORDS = "out of memory at 64 GiB on node x"


@pytest.fixture
def who(slack: SlackEndpoint, mail: MailServer, connect: Callable[[str, str], None]) -> dict[str, Any]:
    """To whom alerts go in these tests."""
    connect("slack_ml", slack.webhook())
    connect("smtp_ml", mail.connection())
    return {"slack": "slack_ml", "email": "a@b.c", "smtp_conn_id": "smtp_ml"}


def night(dag_id: str, arguments: dict[str, Any], *, fails: bool = True) -> DAG:
    with DAG(dag_id, schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), **arguments) as dag:

        @task
        def prepare() -> None: ...

        @task
        def train(number: int) -> None:
            if fails:
                raise PodOutOfMemoryError(f"{WORDS} {number}")

        prepare() >> train.expand(number=[1, 2])
    return dag


def cleaned_up(dag_id: str, arguments: dict[str, Any], failing: int) -> DAG:
    """A DAG whose leaf runs whatever fails, so that it ends well."""
    with DAG(dag_id, schedule=None, start_date=datetime(2026, 1, 1, tzinfo=UTC), **arguments) as dag:

        @task
        def train(number: int) -> None:
            if number < failing:
                raise PodOutOfMemoryError(f"{WORDS} {number}")

        @task(trigger_rule="all_done")
        def clean() -> None: ...

        [train.override(task_id=f"train_{number}")(number) for number in range(2)] >> clean()
    return dag


class StatesOfTasks:
    """The line to a supervisor that asks this process's API server for the states of tasks, and leaves the rest unanswered."""

    def __init__(self, dag: DAG) -> None:
        self.client = InProcessTestSupervisor._api_client(dag)

    def send(self, message: Any) -> Any:
        if isinstance(message, GetTaskStates):
            states = self.client.task_instances.get_task_states(dag_id=message.dag_id, run_ids=message.run_ids)
            return TaskStatesResult.from_api_response(states)
        return None


def of_kind(slack: SlackEndpoint, words: str) -> list[str]:
    return [str(each) for each in slack.messages if words in str(each)]


def orm(dag_id: str) -> tuple[Any, Any]:
    """Read a DAG run of the database, and one task instance of it that has failed."""
    from airflow.models import DagRun
    from airflow.utils.session import create_session
    from sqlalchemy import select

    with create_session(scoped=False) as session:
        dag_run = session.scalars(select(DagRun).where(DagRun.dag_id == dag_id)).one()
        found = sorted(dag_run.get_task_instances(session=session), key=lambda ti: (ti.task_id, ti.map_index))
        assert dag_run.consumed_asset_events == []  # loaded: 3.1's context of a callback has them too
        session.expunge_all()
        return dag_run, found[-1]


def bag_of(dag: DAG) -> DagBag:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bag = DagBag(dag_folder=os.devnull)
        bag.bag_dag(dag)
    return bag


class TestInATask:
    @pytest.mark.airflow("3.3")  # dag.test() of earlier ones hands a callback no exception; their workers do
    def test_failed_tasks_give_an_opening_and_the_dag_run_a_closing(
        self, run_dag: RunDag, who: dict[str, Any], slack: SlackEndpoint, mail: MailServer, unique: str
    ) -> None:
        outcome = run_dag(night(unique, ml_alerts(**who)))
        assert outcome.state == "failed"
        assert len(slack.messages) == 2
        assert len(mail.mails) == 2
        opening, closing = (str(each) for each in slack.messages)
        assert WORDS in opening  # of either: Airflow promises no order
        assert "Task log" in opening
        assert f"/dags/{unique}/runs/" in opening
        assert "PodOutOfMemoryError" in opening  # the traceback
        assert "train[1]" in closing
        assert mail.mails[1].message["In-Reply-To"] == mail.mails[0].message["Message-ID"]

    def test_a_callback_of_tasks_alone_tells_once_per_task_id(
        self, run_dag: RunDag, who: dict[str, Any], slack: SlackEndpoint, unique: str
    ) -> None:
        run_dag(night(unique, {"default_args": {"on_failure_callback": ml_alert(**who)}}))
        assert len(slack.messages) == 1

    def test_a_good_run_says_nothing(self, run_dag: RunDag, who: dict[str, Any], slack: SlackEndpoint, unique: str) -> None:
        assert run_dag(night(unique, ml_alerts(**who), fails=False)).state == "success"
        assert slack.messages == []

    def test_a_good_run_after_a_bad_one_is_told(
        self, run_dag: RunDag, who: dict[str, Any], slack: SlackEndpoint, unique: str, mlflow_api: MlflowApi
    ) -> None:
        run_dag(night(unique, ml_alerts(**who)))
        run_dag(night(unique, ml_alerts(**who), fails=False))
        assert len(slack.messages) == 3

    def test_retries_are_told_only_where_they_are_asked_for(
        self, run_dag: RunDag, who: dict[str, Any], slack: SlackEndpoint, unique: str
    ) -> None:
        retried = {"retries": 1, "retry_delay": timedelta(0)}
        run_dag(night(f"{unique}-off", ml_alerts(**who, default_args=retried)))
        assert len(slack.messages) == 2
        run_dag(night(f"{unique}-on", ml_alerts(**who, default_args=retried, rules={"retry": {"severity": "info"}})))
        assert len(slack.messages) == 5

    def test_a_callback_of_retries_alone_tells_of_retries(
        self, run_dag: RunDag, who: dict[str, Any], slack: SlackEndpoint, unique: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name, callback in (("kind", ml_alert(**who, kind="retry")), ("rule", ml_alert(**who, rules={"retry": INFO}))):
            retried = {"retries": 1, "retry_delay": timedelta(0), "on_retry_callback": callback}
            run_dag(night(f"{unique}-{name}", {"default_args": retried}))
        assert len(slack.messages) == 2
        assert all("try 2 of 2 comes next" in str(each) for each in slack.messages)
        retried = {"retries": 1, "retry_delay": timedelta(0), "on_retry_callback": ml_alert(**who)}
        run_dag(night(f"{unique}-off", {"default_args": retried}))
        assert len(slack.messages) == 2
        assert "retries are off" in caplog.text

    @pytest.mark.parametrize("slot", ["on_success_callback", "on_execute_callback", "on_skipped_callback"])
    def test_a_callback_in_another_slot_tells_nothing_and_says_so(
        self, slot: str, run_dag: RunDag, who: dict[str, Any], slack: SlackEndpoint, unique: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:  # fmt: skip
        with DAG(unique, schedule=None) as dag:

            @task(**{slot: ml_alert(**who)})
            def prepare() -> None:
                if slot == "on_skipped_callback":
                    raise AirflowSkipException("nothing to do")

            prepare()
        run_dag(dag)
        assert slack.messages == []
        assert f"{slot}=ml_alert(...)" in caplog.text

    def test_a_slack_that_hangs_changes_nothing_for_the_dag_run(
        self, run_dag: RunDag, connect: Callable[[str, str], None], unique: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW__ML__ALERT_TIMEOUT_S", "0.5")
        with SlackEndpoint(always=Answer("hang")) as slack:
            connect("slack_ml", slack.webhook())
            outcome = run_dag(night(unique, ml_alerts(slack="slack_ml")))
        assert (outcome.task("prepare"), outcome.task("train", 0)) == ("success", "failed")

    def test_an_operator_tells_of_its_own_accord(
        self, run_dag: RunDag, who: dict[str, Any], slack: SlackEndpoint, unique: str
    ) -> None:
        notifier = ml_alert(**who)
        with DAG(unique, schedule=None) as dag:

            @task
            def promote(**context: Any) -> None:
                (sent, _) = notifier.announce("promoted", context, why="AUC 0.76 beats 0.74.", model="flights version 4")
                assert sent.ok, sent.why

            promote()
        assert run_dag(dag).state == "success"
        assert "flights version 4" in str(slack.messages[0])
        assert "AUC 0.76 beats" in str(slack.messages[0])


class TestInTheDagProcessor:
    @pytest.fixture
    def dag(self, run_dag: RunDag, unique: str, who: dict[str, Any]) -> DAG:
        """A DAG whose run has failed already, without any alert."""
        run_dag(night(unique, {}))
        return night(unique, ml_alerts(**who))

    @pytest.mark.parametrize("known", ["all", "no task", "nothing"])
    @pytest.mark.parametrize(("reason", "words"), [("task_failure", ""), ("timed_out", "dagrun_timeout")])
    def test_the_end_of_a_dag_run(
        self, known: str, reason: str, words: str, dag: DAG, slack: SlackEndpoint, mail: MailServer
    ) -> None:
        dag_run, ti = orm(dag.dag_id)
        told = None if known == "nothing" else DagRunContext(dag_run=dag_run, last_ti=ti if known == "all" else None)
        request = DagCallbackRequest(
            filepath="night.py", bundle_name="dags", bundle_version=None, dag_id=dag.dag_id, run_id=dag_run.run_id,
            context_from_server=told, is_failure_callback=True, msg=reason,
        )  # fmt: skip
        _execute_dag_callbacks(bag_of(dag), request, structlog.get_logger())
        assert len(slack.messages) == len(mail.mails) == 1
        assert words in str(slack.messages[0])
        assert dag.dag_id in str(slack.messages[0])
        assert dag_run.run_id.split("+")[0] in str(slack.messages[0])

    @pytest.mark.airflow("3.3")  # the request of the scheduler that the test makes is of another form before
    def test_a_task_that_the_scheduler_has_lost(self, dag: DAG, slack: SlackEndpoint) -> None:
        from airflow.api_fastapi.execution_api.datamodels.taskinstance import TaskInstance, TIRunContext

        dag_run, ti = orm(dag.dag_id)
        request = TaskCallbackRequest(
            filepath="night.py", bundle_name="dags", bundle_version=None, msg="heartbeat timeout",
            ti=TaskInstance.model_validate(ti, from_attributes=True),
            context_from_server=TIRunContext(dag_run=dag_run.dag_run_data, max_tries=0),
        )  # fmt: skip
        _execute_task_callbacks(bag_of(dag), request, structlog.get_logger())
        (message,) = slack.messages
        assert "it has left no reason" in str(message)
        assert "train[1]" in str(message)

    @pytest.mark.airflow("3.3")  # as above
    @pytest.mark.parametrize("failing", [1, 2])
    def test_of_a_dag_run_that_ended_well_the_failures_that_nobody_told_are_told(
        self, failing: int, run_dag: RunDag, who: dict[str, Any], slack: SlackEndpoint, mail: MailServer, unique: str
    ) -> None:
        dag = cleaned_up(unique, ml_alerts(**who), failing)
        assert run_dag(dag).state == "success"
        assert len(slack.messages) == 1  # whichever failed first
        dag_run, ti = orm(unique)
        request = DagCallbackRequest(
            filepath="night.py", bundle_name="dags", bundle_version=None, dag_id=unique, run_id=dag_run.run_id,
            context_from_server=DagRunContext(dag_run=dag_run, last_ti=ti), is_failure_callback=False, msg="success",
        )  # fmt: skip
        with set_supervisor_comms(StatesOfTasks(dag)):  # dag.test() answers no callback of the DAG
            _execute_dag_callbacks(bag_of(dag), request, structlog.get_logger())
        assert len(slack.messages) == len(mail.mails) == failing
        if failing > 1:
            assert "the DAG run has ended well, although 2 tasks failed" in slack.messages[1]["text"]
            assert all(f"{WORDS} {number}" in str(slack.messages[1]) for number in range(2))
            assert mail.mails[1].message["In-Reply-To"] == mail.mails[0].message["Message-ID"]


@pytest.mark.airflow("3.2")  # whose triggerer runs callbacks of deadlines by a trigger for all kinds
class TestInTheTriggerer:
    @pytest.fixture(autouse=True)
    def _nothing_blocks(self) -> Iterator[None]:
        buster = BlockBuster()
        buster.activate()
        yield
        buster.deactivate()

    def late(self, dag_id: str, state: str) -> dict[str, Any]:
        """The context that ``Deadline.handle_miss`` makes: JSON."""
        dag_run = {
            "dag_run_id": "scheduled__2026-07-01", "dag_id": dag_id, "logical_date": "2026-07-01T00:00:00Z",
            "queued_at": "2026-07-01T00:00:00Z", "start_date": "2026-07-01T00:00:01Z", "end_date": None, "state": state,
        }  # fmt: skip
        return {"dag_run": dag_run, "deadline": {"id": "1", "deadline_time": datetime(2026, 7, 1, 3, tzinfo=UTC)}}

    def run(self, kwargs: dict[str, Any]) -> tuple[list[Any], int]:
        """Run the trigger, and count how often the loop came round meanwhile."""
        from airflow.triggers.callback import CallbackTrigger

        rounds = 0

        async def tick() -> None:
            nonlocal rounds
            while True:
                await asyncio.sleep(0.01)
                rounds += 1

        async def both() -> list[Any]:
            ticking = asyncio.create_task(tick())
            path = f"{MLAlertNotifier.__module__}.{MLAlertNotifier.__qualname__}"
            events = [event async for event in CallbackTrigger(path, kwargs).run()]
            ticking.cancel()
            return events

        return asyncio.run(both()), rounds

    @pytest.mark.parametrize(("state", "messages"), [("running", 1), ("success", 0)])
    def test_a_late_dag_run(
        self, state: str, messages: int, who: dict[str, Any], slack: SlackEndpoint, unique: str, mlflow_connection: str
    ) -> None:
        callback = ml_alerts(**who, late_after=timedelta(hours=3))["deadline"].callback
        events, _ = self.run({**callback.kwargs, "context": self.late(unique, state)})
        assert [str(each.payload["state"].value) for each in events] == ["running", "success"]
        assert len(slack.messages) == messages
        if messages:
            assert "scheduled__2026-07-01" in str(slack.messages[0])
            assert "2026-07-01 03:00 UTC" in str(slack.messages[0])

    def test_the_event_loop_goes_on_while_slack_hangs(
        self, connect: Callable[[str, str], None], unique: str, mlflow_connection: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AIRFLOW__ML__ALERT_TIMEOUT_S", "1")
        with SlackEndpoint(always=Answer("hang")) as slack:
            connect("slack_ml", slack.webhook())
            events, rounds = self.run({"slack": "slack_ml", "kind": "late", "context": self.late(unique, "running")})
            assert slack.posted
        assert str(events[-1].payload["state"].value) == "success"
        assert rounds > 5
