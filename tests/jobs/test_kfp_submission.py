"""What is promised of a create, each promise against a server that loses it in another place."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from airflow_ml_provider._compat import state_store
from airflow_ml_provider.core.submission import Generation, run_id_of
from airflow_ml_provider.exceptions import (
    ConfigError,
    RemoteJobError,
    RemoteNotFoundError,
    RemoteUnavailableError,
    SubmissionUnknownError,
    UnauthorizedError,
)
from airflow_ml_provider.jobs import kfp_submission
from airflow_ml_provider.models.kfp import RunState
from airflow_ml_provider.models.run import StepIdentity
from tests.jobs.conftest import SPEC, Store

STEP = StepIdentity(dag_id="nightly", run_id="night one", task_id="train")
RUN = run_id_of(STEP, Generation(clears=1))
AFTER_A_CLEAR = run_id_of(STEP, Generation(clears=3))
RENEWED = run_id_of(STEP, Generation(clears=1, renewals=1))
BODY: dict[str, Any] = {"display_name": "night one", "pipeline_spec": SPEC}


@pytest.fixture
def body(api) -> dict[str, Any]:
    """A create of a registered version, which a carrier needs."""
    import json

    api.upload("/apis/v2beta1/pipelines/upload", json.dumps(SPEC).encode(), "one-step.yaml", name="one-step")
    pipeline = api.get("/apis/v2beta1/pipelines/names/one-step")["pipeline_id"]
    (version,) = api.get(f"/apis/v2beta1/pipelines/{pipeline}/versions")["pipeline_versions"]
    reference = {"pipeline_id": pipeline, "pipeline_version_id": version["pipeline_version_id"]}
    return {"display_name": "night one", "pipeline_version_reference": reference}


def workflows(server) -> int:
    return len(server.workflows)


class TestATryAfterAnother:
    def test_it_finds_the_run_that_an_earlier_one_has_left(self, submission, server):
        first = submission().start(STEP, 1, lambda: BODY)
        again = submission().start(STEP, 1, lambda: BODY)
        assert first.run_id == again.run_id == RUN
        assert workflows(server) == 1

    def test_it_takes_the_result_of_a_run_that_ended_meanwhile(self, submission, server):
        submission().start(STEP, 1, lambda: BODY)
        server.finish(RUN)
        assert submission().start(STEP, 1, lambda: BODY).state is RunState.SUCCEEDED
        assert workflows(server) == 1

    def test_a_clear_starts_a_new_run(self, submission, server):
        submission().start(STEP, 1, lambda: BODY)
        server.finish(RUN)
        assert submission().start(STEP, 3, lambda: BODY).run_id == AFTER_A_CLEAR
        assert workflows(server) == 2

    @pytest.mark.parametrize("before", ["failed", "stopped", "canceling", "deleted", "unknown", "nothing"])
    def test_a_clear_starts_a_new_run_whatever_was_there(self, submission, server, jobs, before):
        if before == "unknown":
            server.fault("lost-before")
            with pytest.raises(SubmissionUnknownError):
                submission().start(STEP, 1, lambda: BODY)
        elif before != "nothing":
            first = submission()
            first.start(STEP, 1, lambda: BODY)
            if before in {"stopped", "canceling"}:
                first.stop_at_once()
            if before == "stopped":
                server.report(RUN)
            if before == "failed":
                server.finish(RUN, "FAILED")
            if before == "deleted":
                jobs.delete(RUN)
        again = submission().start(STEP, 3, lambda: BODY)
        assert (again.run_id, again.state) == (AFTER_A_CLEAR, RunState.PENDING)

    @pytest.mark.parametrize("stop", [True, False])
    def test_a_clear_stops_what_still_runs_unless_told_otherwise(self, submission, server, stop):
        submission().start(STEP, 1, lambda: BODY)
        submission(stop_replaced=stop).start(STEP, 3, lambda: BODY)
        states = {each.run_id: each.state for each in server.runs}
        assert states == {RUN: "CANCELING" if stop else "PENDING", AFTER_A_CLEAR: "PENDING"}

    def test_a_failed_run_is_repeated_in_place(self, submission, server):
        submission().start(STEP, 1, lambda: BODY)
        server.finish(RUN, "FAILED")
        again = submission(on_retry="resume").start(STEP, 1, lambda: BODY)
        assert (again.run_id, again.state) == (RUN, RunState.RUNNING)
        assert [each.run_id for each in server.runs] == [RUN]

    def test_or_a_new_one_is_started(self, submission, server):
        submission().start(STEP, 1, lambda: BODY)
        server.finish(RUN, "FAILED")
        assert submission(on_retry="new").start(STEP, 1, lambda: BODY).run_id == RENEWED
        server.finish(RENEWED, "FAILED")
        third = submission(on_retry="new").start(STEP, 1, lambda: BODY)
        assert third.run_id == run_id_of(STEP, Generation(clears=1, renewals=2))

    @pytest.mark.parametrize("fault", ["status-503", "lost-before"])
    def test_a_repetition_that_was_not_done_is_asked_for_again(self, submission, server, fault):
        submission().start(STEP, 1, lambda: BODY)
        server.finish(RUN, "FAILED")
        server.fault(fault, method="POST", path=":retry$")
        assert submission(on_retry="resume").start(STEP, 1, lambda: BODY).state is RunState.RUNNING

    def test_the_end_before_a_repetition_is_not_taken_for_its_end(self, submission, server):
        submission().start(STEP, 1, lambda: BODY)
        server.finish(RUN, "FAILED")
        tried = submission(on_retry="resume", sleep=lambda _: server.report(RUN, "RUNNING"))
        ended_at = server.runs[0].finished_at
        tried.start(STEP, 1, lambda: BODY)
        server.finish(RUN, "FAILED", finished_at=ended_at)  # the report of the end before comes late
        assert tried.look_again(RUN).state is RunState.RUNNING

    def test_the_answer_to_the_repetition_may_be_lost(self, submission, server):
        submission().start(STEP, 1, lambda: BODY)
        server.finish(RUN, "FAILED")
        server.fault("lost-after", method="POST", path=":retry$")
        assert submission(on_retry="resume").start(STEP, 1, lambda: BODY).state is RunState.RUNNING

    def test_a_run_that_is_being_cancelled_is_left_alone(self, submission, server, jobs):
        submission().start(STEP, 1, lambda: BODY)
        jobs.cancel(RUN)
        assert jobs.look(RUN).state is RunState.CANCELING
        assert submission().start(STEP, 1, lambda: BODY).run_id == RENEWED

    def test_a_run_that_we_stopped_is_not_repeated_though_the_server_says_failed(self, submission, server):
        killed = submission()
        killed.start(STEP, 1, lambda: BODY)
        killed.stop_at_once()
        server.report(RUN)
        assert submission().look(RUN).state is RunState.FAILED
        assert submission(on_retry="resume").start(STEP, 1, lambda: BODY).run_id == RENEWED

    def test_a_run_that_was_deleted_is_not_started_under_its_old_id(self, submission, server, jobs):
        submission().start(STEP, 1, lambda: BODY)
        jobs.delete(RUN)
        assert submission().start(STEP, 1, lambda: BODY).run_id == RENEWED

    def test_an_archived_run_is_still_ours(self, submission, server, jobs):
        submission().start(STEP, 1, lambda: BODY)
        jobs.archive(RUN)
        assert submission().start(STEP, 1, lambda: BODY).run_id == RUN
        assert workflows(server) == 1

    def test_without_a_store_as_before_airflow_3_3_it_is_found_all_the_same(self, submission, server):
        submission(memory=Store()).start(STEP, 1, lambda: BODY)
        server.finish(RUN, "FAILED")
        assert submission(memory=Store(), on_retry="new").start(STEP, 1, lambda: BODY).run_id == RENEWED
        assert submission(memory=Store(), on_retry="new").start(STEP, 1, lambda: BODY).run_id == RENEWED
        assert workflows(server) == 2


class TestTheNewestRunCounts:
    """A run that was left is left for good, whatever its state says later."""

    @pytest.fixture(params=["noted", "before Airflow 3.3"])
    def a_try(self, request, submission):
        def make(**kwargs):
            return submission(**kwargs) if request.param == "noted" else submission(memory=Store(), **kwargs)

        return make

    def is_adopted(self, a_try, server, **kwargs):
        assert a_try(**kwargs).start(STEP, 1, lambda: BODY).run_id == RENEWED
        assert not [each for each in server.requests if each.path.endswith(":retry")]
        states = {each.run_id: each.state for each in server.runs}
        assert states[RENEWED] == "RUNNING"
        assert len(states) == len(server.workflows) == 2

    def test_after_somebody_terminated_the_one_before(self, a_try, server, jobs):
        a_try().start(STEP, 1, lambda: BODY)
        jobs.cancel(RUN)
        a_try().start(STEP, 1, lambda: BODY)
        server.report(RENEWED, "RUNNING")
        server.report(RUN)  # it was CANCELING, and has ended FAILED
        self.is_adopted(a_try, server)

    def test_after_we_stopped_the_one_before(self, a_try, server):
        killed = a_try()
        killed.start(STEP, 1, lambda: BODY)
        killed.stop_at_once()
        a_try().start(STEP, 1, lambda: BODY)
        server.report(RENEWED, "RUNNING")
        server.report(RUN)
        self.is_adopted(a_try, server)

    def test_after_the_one_before_ended_well_though_it_was_being_stopped(self, a_try, server, jobs):
        a_try().start(STEP, 1, lambda: BODY)
        jobs.cancel(RUN)
        a_try().start(STEP, 1, lambda: BODY)
        server.report(RENEWED, "RUNNING")
        server.report(RUN, "SUCCEEDED")
        self.is_adopted(a_try, server)

    def test_after_the_author_has_changed_on_retry(self, a_try, server):
        a_try().start(STEP, 1, lambda: BODY)
        server.finish(RUN, "FAILED")
        a_try(on_retry="new").start(STEP, 1, lambda: BODY)
        server.report(RENEWED, "RUNNING")
        self.is_adopted(a_try, server, on_retry="resume")

    def test_after_the_one_before_was_deleted(self, a_try, server, jobs):
        a_try().start(STEP, 1, lambda: BODY)
        server.finish(RUN, "FAILED")
        a_try(on_retry="new").start(STEP, 1, lambda: BODY)
        server.report(RENEWED, "RUNNING")
        jobs.delete(RUN)
        assert a_try().start(STEP, 1, lambda: BODY).run_id == RENEWED
        assert [each.run_id for each in server.runs] == [RENEWED]

    def test_also_as_an_orphan_that_nobody_has_noted(self, submission, server, body):
        def carried(**kwargs):
            return submission(memory=Store(), exactly_once="carrier", **kwargs)

        carried().start(STEP, 1, lambda: body)
        server.finish(RUN, "FAILED")
        server.fault("lost-between")
        carried()._send(RENEWED, body)  # and then the worker dies
        threading.Timer(0.3, lambda: server.report(RENEWED, "RUNNING")).start()
        assert carried(on_retry="resume").start(STEP, 1, lambda: body).run_id == RENEWED
        assert workflows(server) == 2

    def test_and_what_a_crash_kept_from_being_stopped_is_stopped(self, submission, server):
        first = submission()
        first.start(STEP, 1, lambda: BODY)
        first.remember_stop(RUN)
        first.notes.set_generation(Generation(clears=1, renewals=1))  # and then the worker dies
        assert submission(stop_replaced=False).start(STEP, 1, lambda: BODY).run_id == RENEWED
        assert {each.run_id: each.state for each in server.runs} == {RUN: "CANCELING", RENEWED: "PENDING"}

    def test_though_a_crash_came_before_its_create(self, submission, server, jobs):
        def crash():
            raise KeyboardInterrupt

        submission().start(STEP, 1, lambda: BODY)
        jobs.cancel(RUN)
        with pytest.raises(KeyboardInterrupt):
            submission().start(STEP, 1, crash)
        server.report(RUN)
        assert submission(on_retry="resume").start(STEP, 1, lambda: BODY).run_id == RENEWED

    def test_of_the_clears_that_there_are_now(self, submission, server, jobs):
        submission().start(STEP, 1, lambda: BODY)
        jobs.cancel(RUN)
        submission().start(STEP, 1, lambda: BODY)
        assert submission().start(STEP, 3, lambda: BODY).run_id == AFTER_A_CLEAR


class TestARunOfADagRunThatWasDeleted:
    def test_is_told_from_one_that_an_earlier_try_has_left(self, submission, server, jobs, caplog):
        submission().start(STEP, 1, lambda: BODY)
        submission().start(STEP, 1, lambda: BODY)
        assert "has no note" not in caplog.text
        server.finish(RUN)
        assert submission(memory=Store()).start(STEP, 1, lambda: BODY).state is RunState.SUCCEEDED
        assert f"Run {RUN} was made at {jobs.look(RUN).created_at}, and now, at 20" in caplog.text

    def test_is_not_asked_about_before_airflow_3_3_which_notes_nothing(self, submission, caplog):
        submission(memory=state_store({})).start(STEP, 1, lambda: BODY)
        submission(memory=state_store({})).start(STEP, 1, lambda: BODY)
        assert "has no note" not in caplog.text


class TestAServerThatSays401:
    def test_may_have_lost_kubernetes_and_is_asked_again(self, submission, server):
        server.fault("status-401", method="GET", path=RUN, times=2)
        assert submission().start(STEP, 1, lambda: BODY).run_id == RUN

    def test_to_the_end_is_told_as_that(self, submission, server):
        server.fault("status-401", method="GET", path=RUN, times=99)
        with pytest.raises(UnauthorizedError):
            submission(patience_s=0.5).start(STEP, 1, lambda: BODY)
        assert len([each for each in server.requests if each.status == 401]) > 1
        assert workflows(server) == 0


class TestAKill:
    @pytest.fixture(autouse=True)
    def quickly(self, monkeypatch):
        """A killed task has a second, in the place of the usual four."""
        monkeypatch.setattr(kfp_submission, "STOP_WITHIN_S", 1.0)

    def test_in_the_middle_of_the_create_stops_what_it_has_started(self, submission, server):
        server.fault("slow", method="POST", path="runs$", seconds=1.0)
        killed = submission()
        threading.Timer(0.5, killed.stop_at_once).start()
        with pytest.raises(RemoteJobError, match="was killed"):
            killed.start(STEP, 1, lambda: BODY)
        (run,) = server.runs
        assert run.state == "CANCELING"

    def test_before_the_create_sends_nothing(self, submission, server):
        killed = submission()

        def body():
            killed.stop_at_once()
            return BODY

        with pytest.raises(RemoteJobError):
            killed.start(STEP, 1, body)
        assert workflows(server) == 0

    @pytest.mark.parametrize("fault", ["status-401", "status-503", "lost-before", "lost-after"])
    def test_asks_again_when_the_server_does_not_agree(self, submission, server, fault):
        killed = submission()
        killed.start(STEP, 1, lambda: BODY)
        server.fault(fault, method="POST", path=":terminate$")
        killed.stop_at_once()
        assert server.runs[0].state == "CANCELING"
        server.report(RUN)
        assert submission(on_retry="resume").start(STEP, 1, lambda: BODY).run_id == RENEWED

    def test_that_kubernetes_never_heard_of_is_not_taken_for_done(self, submission, server, jobs):
        killed = submission()
        killed.start(STEP, 1, lambda: BODY)
        server.lose("kubernetes")
        killed.stop_at_once()
        server.restore()
        server.report(RUN, "RUNNING")
        assert submission().start(STEP, 1, lambda: BODY).run_id == RENEWED
        assert jobs.look(RUN).state is RunState.CANCELING
        assert server.workflows_of(RUN)[0].stopped


class TestALostAnswer:
    @pytest.mark.parametrize("how", ["look", "carrier", "workflows"])
    def test_of_a_run_that_was_made_is_found_by_its_id(self, submission, server, body, how):
        server.fault("lost-after")
        run = submission(exactly_once=how, find_workflows=lambda _: []).start(STEP, 1, lambda: body)
        assert run.run_id == RUN
        assert workflows(server) == 1

    def test_with_neither_help_an_unknown_fate_fails_and_nothing_is_sent_again(self, submission, server):
        server.fault("lost-before")
        with pytest.raises(SubmissionUnknownError, match=f"kubectl get workflows -A -l pipeline/runid={RUN}") as first:
            submission().start(STEP, 1, lambda: BODY)
        assert "clear the task" in str(first.value)
        with pytest.raises(SubmissionUnknownError):
            submission().start(STEP, 1, lambda: BODY)
        assert workflows(server) == 0
        creates = [each for each in server.requests if (each.method, each.path) == ("POST", "/apis/v2beta1/runs")]
        assert len(creates) == 1

    def test_and_a_clear_starts_it_after_somebody_has_looked(self, submission, server):
        server.fault("lost-before")
        with pytest.raises(SubmissionUnknownError):
            submission().start(STEP, 1, lambda: BODY)
        assert submission().start(STEP, 3, lambda: BODY).run_id == AFTER_A_CLEAR
        assert workflows(server) == 1

    def test_an_orphan_is_never_doubled(self, submission, server):
        server.fault("lost-between")
        for _ in range(2):
            with pytest.raises(SubmissionUnknownError):
                submission().start(STEP, 1, lambda: BODY)
        assert (workflows(server), len(server.runs)) == (1, 0)

    @pytest.mark.parametrize("status", [500, 502, 503, 504])
    def test_an_error_of_the_server_may_mean_anything(self, submission, server, status):
        server.fault(f"status-{status}", method="POST", path="runs$")
        with pytest.raises(SubmissionUnknownError):
            submission().start(STEP, 1, lambda: BODY)

    def test_a_rate_limit_may_have_let_it_through(self, submission, server):
        server.fault("status-429", method="POST", path="runs$")
        with pytest.raises(SubmissionUnknownError):
            submission().start(STEP, 1, lambda: BODY)
        assert workflows(server) == 0

    @pytest.mark.parametrize("how", ["carrier", "workflows"])
    def test_that_nobody_remembers_is_found_out_too(self, submission, server, body, how):
        ways = {"exactly_once": how, "find_workflows": lambda run_id: names(server, run_id)}
        server.fault("lost-between")
        first = submission(memory=Store(), **ways)
        first._send(RUN, body)  # and then the worker dies, and with it what it knew
        assert (workflows(server), len(server.runs)) == (1, 0)
        if how == "carrier":
            server.report(RUN, "RUNNING")
            assert submission(memory=Store(), **ways).start(STEP, 1, lambda: body).run_id == RUN
        else:
            with pytest.raises(SubmissionUnknownError, match="is an orphan"):
                submission(memory=Store(), **ways).start(STEP, 1, lambda: body)
        assert workflows(server) == 1

    def test_a_refused_connection_proves_that_nothing_was_sent(self, submission, server, store):
        tried = submission(patience_s=30)
        server.down()
        timer = threading.Timer(1.5, server.up)
        timer.start()
        assert tried.start(STEP, 1, lambda: BODY).run_id == RUN
        timer.join()
        assert workflows(server) == 1


class TestWithAccessToKubernetes:
    def test_no_workflow_proves_that_it_can_be_sent_again(self, submission, server):
        server.fault("lost-before", times=2)
        found = submission(exactly_once="workflows", find_workflows=lambda run_id: names(server, run_id))
        assert found.start(STEP, 1, lambda: BODY).run_id == RUN
        assert workflows(server) == 1

    def test_an_orphan_is_named_and_stays_the_only_one(self, submission, server):
        server.fault("lost-between")
        tried = submission(exactly_once="workflows", find_workflows=lambda run_id: names(server, run_id))
        with pytest.raises(SubmissionUnknownError, match=r"is an orphan: .* runs workflow one-step-"):
            tried.start(STEP, 1, lambda: BODY)
        with pytest.raises(SubmissionUnknownError, match="is an orphan"):
            tried.start(STEP, 1, lambda: BODY)
        assert workflows(server) == 1

    def test_a_server_that_loses_every_create_is_given_up(self, submission, server):
        server.fault("lost-before", times=9)
        tried = submission(exactly_once="workflows", find_workflows=lambda _: [], settle_s=0)
        with pytest.raises(SubmissionUnknownError, match="was sent 3 times"):
            tried.start(STEP, 1, lambda: BODY)


class TestWithACarrier:
    def test_an_orphan_becomes_our_run(self, submission, server, body):
        server.fault("lost-between")
        threading.Timer(0.5, lambda: server.report(RUN, "RUNNING")).start()  # the agent, within seconds
        run = submission(exactly_once="carrier", settle_s=5).start(STEP, 1, lambda: body)
        assert (run.run_id, run.state) == (RUN, RunState.RUNNING)
        assert workflows(server) == 1

    def test_what_was_never_made_is_sent_again_with_the_same_key(self, submission, server, body):
        server.fault("lost-before")
        assert submission(exactly_once="carrier").start(STEP, 1, lambda: body).run_id == RUN
        assert workflows(server) == 1

    def test_a_crash_between_the_carrier_and_the_run_leaves_one_of_each(self, submission, server, body, catalog):
        submission(exactly_once="carrier")._carriers.find_or_make(RUN, body)
        assert submission(exactly_once="carrier").start(STEP, 1, lambda: body).run_id == RUN
        assert len(catalog.carriers(RUN)) == 1
        assert workflows(server) == 1

    def test_the_carrier_is_deleted_when_the_run_is_over(self, submission, server, body, catalog):
        tried = submission(exactly_once="carrier")
        tried.start(STEP, 1, lambda: body)
        server.finish(RUN)
        tried.clean_up(RUN)
        assert catalog.carriers(RUN) == []
        assert tried.look(RUN).state is RunState.SUCCEEDED

    def test_an_outage_is_not_taken_for_the_time_that_the_agent_needs(self, submission, server, body):
        def then_the_server_goes_away():
            server.fault("lost-between")
            server.fault("status-503", method="GET", path=RUN, times=4)
            threading.Thread(target=report_after_it, daemon=True).start()
            return body

        def report_after_it():
            while not [each for each in server.requests if each.status == 503]:
                time.sleep(0.01)
            while server.requests[-1].status != 404:
                time.sleep(0.01)
            time.sleep(0.3)
            server.report(RUN, "RUNNING")

        run = submission(exactly_once="carrier", settle_s=0.8).start(STEP, 1, then_the_server_goes_away)
        assert (run.run_id, run.state) == (RUN, RunState.RUNNING)
        assert workflows(server) == 1

    def test_a_server_that_goes_away_again_and_again_proves_nothing(self, submission, server, body, monkeypatch):
        monkeypatch.setattr(kfp_submission, "SLOW_S", 0.0)  # each answer is the first after an outage
        server.fault("lost-between")
        with pytest.raises(RemoteUnavailableError, match="A retry looks again"):
            submission(exactly_once="carrier", settle_s=0.2, patience_s=0.2).start(STEP, 1, lambda: body)
        assert workflows(server) == 1
        server.report(RUN, "RUNNING")
        assert submission(exactly_once="carrier").start(STEP, 1, lambda: body).run_id == RUN

    def test_a_run_whose_carrier_is_gone_is_not_repeated(self, submission, server, body):
        ended = submission(exactly_once="carrier")
        ended.start(STEP, 1, lambda: body)
        server.finish(RUN, "FAILED")
        ended.clean_up(RUN)
        for _ in range(2):
            assert submission(exactly_once="carrier", on_retry="resume").start(STEP, 1, lambda: body).run_id == RENEWED
        assert {each.run_id: each.state for each in server.runs} == {RUN: "FAILED", RENEWED: "PENDING"}

    @pytest.mark.parametrize("clears", [1, 3])
    @pytest.mark.parametrize("stop", [True, False])
    def test_of_a_run_that_was_given_up_it_is_deleted_with_the_next(self, submission, server, body, catalog, clears, stop):
        killed = submission(exactly_once="carrier")
        killed.start(STEP, 1, lambda: body)
        killed.stop_at_once()
        tried = submission(exactly_once="carrier", stop_replaced=stop)
        run = tried.start(STEP, clears, lambda: body)
        tried.clean_up(run.run_id)
        assert len(catalog.carriers(RUN)) == 1  # its run is still CANCELING
        server.report(RUN)
        tried.clean_up(run.run_id)
        assert catalog.carriers(RUN) == []
        assert tried.notes.left == []

    def test_of_a_run_that_a_clear_left_running_it_is_deleted_when_that_is_over(self, submission, server, body, catalog):
        submission(exactly_once="carrier").start(STEP, 1, lambda: body)
        tried = submission(exactly_once="carrier", stop_replaced=False)
        tried.start(STEP, 3, lambda: body)
        server.finish(RUN)
        server.finish(AFTER_A_CLEAR)
        tried.clean_up(AFTER_A_CLEAR)
        assert (catalog.carriers(RUN), catalog.carriers(AFTER_A_CLEAR)) == ([], [])


class TestWhatIsRefused:
    def test_nothing_was_started_and_the_next_try_may_send_it(self, submission, server):
        broken = BODY | {"runtime_config": {"parameters": {"unknown": 1}}}
        with pytest.raises(ConfigError, match="unknown"):
            submission().start(STEP, 1, lambda: broken)
        assert submission().start(STEP, 1, lambda: BODY).run_id == RUN
        assert workflows(server) == 1

    def test_a_workflow_that_kubernetes_cannot_hold_is_refused_and_not_unknown(self, submission, server):
        image = {"container": {"image": "busybox:1.36", "command": ["echo", "x" * 4_000_000]}}
        huge = SPEC | {"deploymentSpec": {"executors": {"exec-step": image}}}
        with pytest.raises(ConfigError, match="nothing was started"):
            submission().start(STEP, 1, lambda: BODY | {"pipeline_spec": huge})
        assert submission().start(STEP, 1, lambda: BODY).run_id == RUN
        assert workflows(server) == 1

    def test_a_server_that_stays_away_is_a_safe_retry(self, submission, server):
        server.down()
        with pytest.raises(RemoteUnavailableError) as away:
            submission(patience_s=0).start(STEP, 1, lambda: BODY)
        assert not away.value.sent

    def test_what_is_not_there_is_said(self, catalog):
        with pytest.raises(RemoteNotFoundError, match=r"has no pipeline 'churn'.*It has: none"):
            catalog.version("churn")


def names(server, run_id: str) -> list[str]:
    return [each.name for each in server.workflows_of(run_id)]
