"""The trigger in a real triggerer: ``airflow triggerer`` on a database whose deferred tasks the test has written; no scheduler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_ml_provider.testing import FakeKfpServer
from airflow_ml_provider.triggers.kfp import KfpRunTrigger
from tests.triggers.test_kfp import start_run

LIMIT_S = 60


class Triggerer:
    """Deferred tasks, one for each run, and the triggerer that they wait in."""

    def __init__(self, dag_id: str, triggers: list[KfpRunTrigger]) -> None:
        self.dag_id = dag_id
        self._defer(triggers)
        self.other = self._job()
        command = [sys.executable, "-m", "airflow", "triggerer", "--skip-serve-logs", "--capacity", "100"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, start_new_session=True
        )

    def turn_until(self, done: Callable[[], bool]) -> None:
        until = time.monotonic() + LIMIT_S
        while not done():
            assert time.monotonic() < until
            assert self.process.poll() is None
            time.sleep(0.2)

    def task(self, number: int) -> Any:
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        with create_session() as session:
            found = session.query(TaskInstance).filter_by(dag_id=self.dag_id, task_id=f"t{number}").one()
            session.expunge(found)
            return found

    def mark(self, number: int, state: str | None) -> None:
        """Do what the API server does with a deferred task that a person marks or clears."""
        from airflow.models.taskinstance import TaskInstance
        from airflow.utils.session import create_session

        with create_session() as session:
            session.query(TaskInstance).filter_by(dag_id=self.dag_id, task_id=f"t{number}").update(
                {"state": state, "trigger_id": None}
            )

    def give_away(self, number: int) -> None:
        """Do what another triggerer does when it takes this one for dead."""
        from airflow.models import Trigger
        from airflow.utils.session import create_session

        with create_session() as session:
            session.query(Trigger).filter_by(id=self.task(number).trigger_id).update({"triggerer_id": self.other})

    def stop(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _defer(self, triggers: list[KfpRunTrigger]) -> None:
        from airflow._shared.timezones import timezone
        from airflow.models import Trigger
        from airflow.models.serialized_dag import SerializedDagModel
        from airflow.utils.session import create_session
        from airflow.utils.types import DagRunTriggeredByType, DagRunType

        self._write_dag(len(triggers))
        now = timezone.utcnow()
        with create_session() as session:
            dag = SerializedDagModel.get(self.dag_id, session=session).dag
            run = dag.create_dagrun(
                run_id="night",
                run_after=now,
                logical_date=now,
                data_interval=(now, now),
                run_type=DagRunType.MANUAL,
                triggered_by=DagRunTriggeredByType.TEST,
                state="running",
                session=session,
            )
            for ti in run.get_task_instances(session=session):
                row = Trigger(*triggers[int(ti.task_id[1:])].serialize())
                session.add(row)
                session.flush()
                ti.state, ti.next_method, ti.trigger_id, ti.try_number, ti.start_date = "deferred", "resume", row.id, 1, now

    def _write_dag(self, tasks: int) -> None:
        from airflow.dag_processing.bundles.manager import DagBundlesManager
        from airflow.providers.standard.operators.empty import EmptyOperator
        from airflow.sdk import DAG

        from tests.airflow_releases import DagBag, sync_bag_to_db

        with DAG(self.dag_id, schedule=None) as dag:
            for number in range(tasks):
                EmptyOperator(task_id=f"t{number}")
        DagBundlesManager().sync_bundles_to_db()
        bag = DagBag(dag_folder=os.devnull)
        bag.bag_dag(dag)
        sync_bag_to_db(bag, "dags-folder", None)

    def _job(self) -> int:
        """Another triggerer that lives, as far as the database knows."""
        from datetime import timedelta

        from airflow._shared.timezones import timezone
        from airflow.jobs.job import Job
        from airflow.utils.session import create_session

        job = Job()
        job.job_type, job.state, job.latest_heartbeat = "TriggererJob", "running", timezone.utcnow() + timedelta(hours=1)
        with create_session() as session:
            session.add(job)
            session.flush()
            return int(job.id)


@pytest.fixture
def in_database(airflow_db: None, kfp: FakeKfpServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Move the connection into the database: the runner must ask its supervisor for it."""
    from airflow.models import Connection
    from airflow.utils.session import create_session

    def move() -> None:
        monkeypatch.delenv("AIRFLOW_CONN_KFP_DEFAULT")
        with create_session() as session:
            session.add(Connection(conn_id="kfp_default", conn_type="kfp", host=kfp.url))

    yield move
    with create_session() as session:
        session.query(Connection).filter_by(conn_id="kfp_default").delete()


@pytest.fixture
def _nobody_else_defers(airflow_db: None) -> None:
    """Delete the triggers that DAG runs of other tests have left in this worker's database: this triggerer would run them."""
    from airflow.models.trigger import Trigger
    from airflow.utils.session import create_session

    with create_session() as session:
        session.query(Trigger).delete()


def is_quiet(kfp: FakeKfpServer) -> bool:
    asked = len(kfp.requests)
    time.sleep(3)
    return len(kfp.requests) == asked


@pytest.mark.airflow("3.3")  # which tells a trigger why it is ended
@pytest.mark.usefixtures("_nobody_else_defers")
def test_marks_stop_the_run_and_a_change_of_the_triggerer_does_not(
    kfp: FakeKfpServer, in_database: Callable[[], None], unique: str
) -> None:
    ends, failed, succeeded, cleared, left, moved = ids = [start_run(str(number)) for number in range(6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Airflow itself
        in_database()
        triggerer = Triggerer(
            unique[:200],
            [KfpRunTrigger(run_id=each, poll_interval_s=0.5, leave_running=["clear"] if each == left else ()) for each in ids],
        )
        try:
            before = len(kfp.requests)
            triggerer.turn_until(lambda: len(kfp.requests) >= before + 2)
            kfp.finish(ends)
            triggerer.turn_until(lambda: triggerer.task(0).state == "scheduled")
            for number, state in ((1, "failed"), (2, "success"), (3, None), (4, None)):
                triggerer.mark(number, state)
            triggerer.give_away(5)
            triggerer.turn_until(lambda: len(terminated(kfp)) >= 3)
            triggerer.turn_until(lambda: is_quiet(kfp))  # nobody waits any more
        finally:
            triggerer.stop()
    assert terminated(kfp) == {failed, succeeded, cleared}, "left was to be left, moved waits in another triggerer"
    assert moved not in terminated(kfp)
    assert triggerer.task(0).next_kwargs["event"]["outcome"] == "ended"


def terminated(kfp: FakeKfpServer) -> set[str]:
    return {each.path.split("/")[-1].removesuffix(":terminate") for each in kfp.requests if each.path.endswith(":terminate")}
