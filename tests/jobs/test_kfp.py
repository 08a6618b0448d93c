"""Runs, against the fake server over HTTP: asked for, listed, stopped, and told why they failed."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.jobs.kfp import KfpJobs, describe_failure, failed_tasks
from airflow_ml_provider.models.kfp import RunState, WaitOutcome
from tests.jobs.conftest import SPEC

NOWHERE = "00000000-0000-0000-0000-000000000000"


@pytest.fixture
def start(jobs):
    """Start a run."""

    def begin(**body: Any) -> str:
        return jobs.submit({"display_name": "a run", "pipeline_spec": SPEC} | body).run_id

    return begin


def ended(run_id: str, outcome: str = "ended", **more: Any) -> WaitOutcome:
    return WaitOutcome(run_id=run_id, outcome=outcome, **more)


class TestLooking:
    def test_finds_a_run_or_none(self, jobs, start):
        run_id = start(run_id="chosen-1")
        assert (jobs.look(run_id).run_id, jobs.look(run_id).state) == ("chosen-1", RunState.PENDING)
        assert jobs.look(NOWHERE) is None

    def test_never_takes_an_error_for_an_absence(self, jobs, start, server):
        run_id = start()
        server.fault("status-503", times=2)
        with pytest.raises(RemoteUnavailableError):
            jobs.look(run_id)

    def test_at_many_takes_one_request_for_each_150(self, jobs, start, server):
        made = [start(run_id=f"run-{each:03}") for each in range(160)]
        before = len(server.requests)
        found = jobs.find([*made, NOWHERE, made[0]])
        assert set(found) == set(made)
        asked = server.requests[before:]
        assert len(asked) == 2
        assert all(len(str(each.query)) < 8000 for each in asked)
        assert jobs.find([]) == {}
        assert len(server.requests) == before + 2

    def test_at_many_leaves_their_tasks_on_the_server_which_a_look_at_one_brings(self, jobs, start, server):
        server.finish(run_id := start())
        assert jobs.look(run_id).tasks
        assert jobs.find([run_id])[run_id].tasks == ()
        (listed,) = jobs.finished_since(datetime.now(UTC) - timedelta(minutes=1))
        assert (listed.run_id, listed.state, listed.tasks) == (run_id, RunState.SUCCEEDED, ())

    def test_at_large_ones_asks_for_a_few_at_once(self, jobs, start, server):
        large = SPEC | {"components": SPEC["components"] | {"comp-large": {"executorLabel": "x" * 1_000_000}}}
        made = [start(pipeline_spec=large) for _ in range(20)]
        assert jobs.page_size == 25
        assert set(jobs.find(made)) == set(made)
        assert jobs.page_size == 7
        before, pages = len(server.requests), jobs.pages
        assert set(jobs.find(made)) == set(made)
        assert len(server.requests) - before == jobs.pages - pages == 3
        assert all("page_token" not in each.query for each in server.requests), "it would make the URL too long"

    def test_for_what_has_ended_goes_on_over_pages(self, jobs, start, server):
        made = [start() for _ in range(203)]
        for each in made[:201]:
            server.finish(each)
        since = datetime.now(UTC) - timedelta(minutes=1)
        assert {each.run_id for each in jobs.finished_since(since)} == set(made[:201])
        assert jobs.finished_since(datetime.now(UTC) + timedelta(minutes=1)) == []

    def test_for_the_active_ones_of_a_recurring_run_leaves_out_all_others(self, jobs, api, catalog, start, server):
        from tests.jobs.test_kfp_catalog import package_of

        reference = catalog.upload(package_of()).reference
        nightly = {"display_name": "nightly", "pipeline_version_reference": reference, "max_concurrency": "1"}
        mine, other = (catalog.create_recurring_run(nightly) for _ in range(2))
        names = ("over", "waits", "stops")
        over, waits, stops = (
            jobs.submit({"display_name": each, "recurring_run_id": mine, "pipeline_version_reference": reference}).run_id
            for each in names
        )
        start()
        jobs.submit({"display_name": "theirs", "recurring_run_id": other, "pipeline_version_reference": reference})
        server.finish(over)
        jobs.cancel(stops)
        assert {each.run_id for each in jobs.active_of(mine)} == {waits, stops}


class TestStopping:
    def test_is_asked_for_once_and_may_be_asked_for_again(self, jobs, start, server):
        run_id = start()
        jobs.cancel(run_id)
        jobs.cancel(run_id)
        assert jobs.look(run_id).state is RunState.CANCELING
        server.report(run_id)
        jobs.cancel(run_id)
        assert jobs.look(run_id).state is RunState.FAILED

    def test_of_a_run_that_is_not_there_is_said(self, jobs):
        with pytest.raises(RemoteNotFoundError):
            jobs.cancel(NOWHERE)

    def test_that_kubernetes_does_not_follow_is_a_safe_retry(self, jobs, start, server):
        run_id = start()
        server.lose("kubernetes")
        with pytest.raises(RemoteUnavailableError):
            jobs.cancel(run_id)


class TestRepeating:
    def test_what_has_not_failed_is_refused(self, jobs, start, server):
        run_id = start()
        server.finish(run_id)
        with pytest.raises(ConfigError) as refused:
            jobs.retry(run_id)
        assert refused.value.status == 409

    def test_what_has_failed_keeps_its_id(self, jobs, start, server):
        run_id = start()
        server.finish(run_id, "FAILED")
        jobs.retry(run_id)
        assert jobs.look(run_id).state is RunState.RUNNING


class TestPuttingAway:
    def test_and_bringing_back_may_be_repeated(self, jobs, start):
        run_id = start()
        for act, away in ((jobs.archive, True), (jobs.archive, True), (jobs.unarchive, False), (jobs.unarchive, False)):
            act(run_id)
            assert jobs.look(run_id).archived is away
        assert jobs.look(run_id).state is RunState.PENDING

    def test_for_good_may_be_repeated(self, jobs, start, server):
        run_id = start()
        jobs.delete(run_id)
        jobs.delete(run_id)
        assert jobs.look(run_id) is None
        assert server.workflows[0].deleted

    def test_of_a_run_that_is_not_there_is_said(self, jobs):
        for act in (jobs.archive, jobs.unarchive):
            with pytest.raises(RemoteNotFoundError):
                act(NOWHERE)


class TestAFailure:
    def test_names_the_task_and_the_end_of_its_log(self, jobs, start, server):
        run_id = start()
        server.finish(run_id, "FAILED", failed_task="step", log="".join(f"line {each}\n" for each in range(50)))
        run = jobs.look(run_id)
        assert [each.name for each in failed_tasks(run)] == ["step"]
        said = describe_failure(jobs, run, ended(run_id), "http://page")
        assert said.startswith(f"run {run_id} FAILED")
        assert "Task step FAILED" in said
        assert said.endswith("line 49")
        assert "line 29" not in said

    def test_without_a_log_is_told_all_the_same(self, jobs, start, server):
        run_id = start()
        server.finish(run_id, "FAILED", failed_task="step")
        server.fault("status-500", path="/log$", times=9)
        assert "Task step FAILED" in describe_failure(jobs, jobs.look(run_id), ended(run_id), "http://page")

    def test_of_a_run_that_was_terminated_by_somebody_names_no_task(self, jobs, start, server):
        run_id = start()
        jobs.cancel(run_id)
        server.report(run_id)
        said = describe_failure(jobs, jobs.look(run_id), ended(run_id), "http://page")
        assert "terminated by somebody else" in said

    @pytest.mark.parametrize(
        ("told", "said"),
        [
            ({"outcome": "deadline", "stopped": True, "message": "Too slow."}, "stopped by this task: Too slow."),
            ({"outcome": "stuck", "message": "For ever."}, r"is waited for no longer \(stuck\): For ever."),
        ],
    )
    def test_of_the_waiting_is_told_as_such(self, jobs, start, told, said):
        run_id = start()
        text = describe_failure(jobs, jobs.look(run_id), ended(run_id, **told), "http://page")
        assert re.search(said, text)

    def test_of_a_run_that_is_gone_is_told(self, jobs):
        assert "was deleted on the server" in describe_failure(jobs, None, ended(NOWHERE, "gone"), "")


class TestTheNamespace:
    def test_of_the_connection_is_taken_unless_another_is_given(self, api):
        assert KfpJobs(api).namespace == ""
        assert KfpJobs(api, "team").namespace == "team"
