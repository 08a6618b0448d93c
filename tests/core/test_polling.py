"""When to ask and what the answers mean: values in, values out, no clock."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.core.polling import (
    APPEAR_S,
    CONFIRM_S,
    ROWS_AGAIN,
    ROWS_PER_PAGE,
    SURE_S,
    EngineClock,
    Pace,
    PollPlan,
    Request,
    Waiting,
)
from airflow_ml_provider.models.kfp import PipelineRun, RunState

WAITS = ["PENDING", "RUNNING", "PAUSED", "CANCELING", "RUNTIME_STATE_UNSPECIFIED", "INVENTED_BY_A_NEWER_SERVER"]
ENDS = ["SUCCEEDED", "FAILED", "SKIPPED", "CANCELED"]


def run(run_id: str = "a", state: str = "RUNNING", finished_at: float | None = None) -> PipelineRun:
    moment = None if finished_at is None else datetime.fromtimestamp(int(finished_at), UTC)
    return PipelineRun(run_id=run_id, state=RunState.read(state), finished_at=moment)


def waiting(**options: object) -> Waiting:
    return Waiting("a", 1000.0, seen=True, **options)  # type: ignore[arg-type]


class TestOneWaiter:
    @pytest.mark.parametrize("state", ENDS)
    def test_a_final_state_ends_the_waiting(self, state: str) -> None:
        told = waiting().on_run(run(state=state), 1001)
        assert told is not None
        assert (told.outcome, told.state, told.stopped) == ("ended", state, False)

    @pytest.mark.parametrize("state", WAITS)
    def test_every_other_state_waits(self, state: str) -> None:
        assert waiting().on_run(run(state=state), 1001) is None

    def test_a_run_that_is_absent_twice_is_gone(self) -> None:
        waiter = waiting()
        assert waiter.on_run(None, 1001) is None
        told = waiter.on_run(None, 1001 + CONFIRM_S)
        assert told is not None
        assert (told.outcome, told.message) == ("gone", "The server answers, and has no run a: it was deleted there.")

    def test_two_answers_of_the_same_moment_prove_nothing(self) -> None:
        waiter = waiting()
        assert waiter.on_run(None, 1001) is None
        assert waiter.on_run(None, 1002) is None

    def test_a_run_that_comes_back_is_not_gone(self) -> None:
        waiter = waiting()
        assert waiter.on_run(None, 1001) is None
        assert waiter.on_run(run(), 1011) is None
        assert waiter.on_run(None, 1021) is None

    def test_a_run_that_was_never_seen_may_appear_late(self) -> None:
        waiter = Waiting("a", 1000.0)
        assert [waiter.on_run(None, 1000 + each) for each in (1, 30, APPEAR_S - 1)] == [None] * 3
        told = waiter.on_run(None, 1000 + APPEAR_S)
        assert told is not None
        assert (told.outcome, "never appeared" in told.message) == ("gone", True)

    def test_a_run_that_stays_in_canceling_is_stuck(self) -> None:
        waiter = waiting(stuck_s=600)
        assert waiter.on_run(run(state="CANCELING"), 2000) is None
        assert waiter.on_run(run(state="CANCELING"), 2599) is None
        told = waiter.on_run(run(state="CANCELING"), 2600)
        assert told is not None
        assert (told.outcome, told.state) == ("stuck", "CANCELING")

    def test_a_terminate_that_was_lost_starts_the_count_anew(self) -> None:
        waiter = waiting(stuck_s=600)
        states = [("CANCELING", 2000), ("RUNNING", 2500), ("CANCELING", 2600), ("CANCELING", 3100)]
        assert [waiter.on_run(run(state=state), at) for state, at in states] == [None] * 4

    def test_a_deadline_is_told_with_the_newest_state(self) -> None:
        waiter = waiting(deadline=1010.0)
        waiter.on_run(run(), 1001)
        assert waiter.on_time(1009.9) is None
        told = waiter.on_time(1010)
        assert told is not None
        assert (told.outcome, told.state) == ("deadline", "RUNNING")

    def test_a_blip_does_not_fail_a_running_job(self) -> None:
        assert waiting(patience_s=300).on_time(1299, failing_since=1000) is None

    def test_patience_runs_out_after_errors_in_a_row_and_the_message_has_the_newest(self) -> None:
        told = waiting(patience_s=300).on_time(1500, failing_since=1200, error="401 Unauthorized")
        assert told is not None
        assert told.outcome == "unreachable"
        assert "300 s (patience 300 s)" in told.message
        assert "401 Unauthorized" in told.message

    def test_who_came_in_the_middle_of_an_outage_has_all_of_its_patience(self) -> None:
        assert Waiting("a", 5000.0, patience_s=300).on_time(5299, failing_since=10) is None

    def test_silence_without_an_error_is_no_outage(self) -> None:
        assert waiting(patience_s=1).on_time(9_000_000, failing_since=None) is None


class TestPace:
    @pytest.mark.parametrize(("age", "interval"), [(0, 5), (100, 5), (200, 10), (1e6, 50)])
    def test_a_young_run_is_asked_for_quickly_and_an_old_one_slowly(self, age: float, interval: float) -> None:
        assert Pace().interval_s(age) == interval

    @pytest.mark.parametrize(("failures", "pause"), [(1, 10), (2, 20), (3, 40), (4, 60), (5000, 60)])
    def test_errors_slow_it_down_up_to_a_limit(self, failures: int, pause: float) -> None:
        assert Pace().backoff_s(failures) == pause

    @given(st.floats(0, 1e7), st.floats(0, 1))
    def test_jitter_only_shortens_and_by_a_tenth_at_most(self, age: float, jitter: float) -> None:
        assert 0.9 * Pace().interval_s(age) <= Pace().interval_s(age, jitter) <= Pace().interval_s(age)


class TestEngineClock:
    @given(st.lists(st.tuples(st.floats(0, 50), st.floats(0, 900)), min_size=1, max_size=30), st.floats(-250, 5000))
    def test_it_is_never_ahead_of_the_engine(self, finishes: list[tuple[float, float]], behind: float) -> None:
        clock, now = EngineClock(300), 1e9
        for pause, late in finishes:
            now += pause
            clock.learn(now - behind - late, now)
            assert clock.bound(now) <= max(now - behind, now - 300) + 1e-3

    def test_it_goes_on_by_itself(self) -> None:
        clock = EngineClock(300)
        clock.learn(990, 1000)
        assert clock.bound(1100) == 1090

    def test_a_time_far_ahead_is_not_believed(self) -> None:
        clock = EngineClock(300)
        clock.learn(4e9, 1000)
        assert clock.bound(1000) == 700


class TestPlan:
    def test_nobody_asks_when_nobody_waits(self) -> None:
        plan = PollPlan()
        assert plan.take(0) is None
        assert plan.next_at() == float("inf")
        plan.join("a", 0)
        plan.leave("a")
        assert plan.take(1e6) is None

    def test_who_joins_is_looked_at_soon_and_together_with_others(self) -> None:
        plan = PollPlan()
        for number in range(20):
            plan.join(str(number), number / 10)
        asked = drive(plan, 12)
        looks = [each for each in asked if each.kind == "look"]
        assert len(looks[0].run_ids) == 20
        assert looks[0].sent <= 6

    def test_the_fast_path_asks_from_before_its_own_last_question(self) -> None:
        plan = PollPlan()
        plan.join("a", 1e9)
        first = take(plan, 1e9 + 10, "since")
        plan.answered(first, [run("b", "FAILED", 1e9 + 4)], 1e9 + 11)
        second = take(plan, 1e9 + 30, "since")
        assert first.moment == 1e9 + 10 - 300 - 30
        assert second.moment == 1e9 + 4 - 1 - 30  # the engine was at +4 or later by +11, so at +3 or later by +10

    def test_a_look_that_finds_what_the_fast_path_has_missed_sets_it_back(self) -> None:
        plan = PollPlan()
        plan.join("a", 1e9)
        plan.answered(take(plan, 1e9 + 5, "look"), [run("a")], 1e9 + 5)
        plan.answered(take(plan, 1e9 + 20, "since"), [run("b", "FAILED", 1e9 + 20)], 1e9 + 20)
        plan.answered(take(plan, 1e9 + 40, "since"), [], 1e9 + 40)
        assert plan.clock.bound(1e9 + 70) == 1e9 + 70
        plan.answered(take(plan, 1e9 + 70, "look"), [run("a", "SUCCEEDED", 1e9 - 4000)], 1e9 + 70)
        assert plan.clock.bound(1e9 + 70) == 1e9 - 4000

    @pytest.mark.parametrize("quick", [0.5, 2.0, 5.0])
    def test_where_much_ends_the_overlap_is_cut_to_what_fills_a_page_with_the_new(self, quick: float) -> None:
        asked = ask_with_others(12, quick, 60)
        assert max(rows for _, rows in asked) <= ROWS_PER_PAGE, "one request for each question"
        assert all(SURE_S <= overlap <= ROWS_AGAIN / 12 + quick + 1 for overlap, _ in asked)

    def test_where_little_ends_the_whole_overlap_is_asked_for(self) -> None:
        assert {overlap for overlap, _ in ask_with_others(1, 2.0, 60)} == {30.0}

    def test_the_overlap_is_never_less_than_what_is_sure_to_be_needed(self) -> None:
        assert {overlap for overlap, _ in ask_with_others(100, 2.0, 60)} == {SURE_S}

    def test_the_whole_overlap_comes_back_when_the_rush_is_over(self) -> None:
        assert ask_with_others(12, 2.0, 60, until=20)[-1] == (30.0, 0)

    def test_many_pages_of_an_answer_are_paid_for(self) -> None:
        plan = PollPlan()
        plan.join("a", 1000)
        request = take(plan, 1010, "since")
        plan.answered(request, [run(str(number), "FAILED", 900) for number in range(1000)], 1010.5, 0.0, (5, 200))
        assert plan.next_at() >= 1015

    def test_where_runs_are_large_a_look_asks_for_no_more_than_an_answer_holds(self) -> None:
        plan = PollPlan()
        for number in range(300):
            plan.join(f"{number:03}", 0)
        first = take(plan, 5, "look")
        plan.answered(first, [run(each) for each in first.run_ids], 6, 0.0, (22, 7))
        assert plan.next_at() >= 27, "each request is paid for"
        second = take(plan, 30, "look")
        assert (len(first.run_ids), len(second.run_ids)) == (150, 7)
        plan.answered(second, [run(each) for each in second.run_ids], 31, 0.0, (1, 200))
        assert len(take(plan, 40, "look").run_ids) == 150, "small ones bring it back"

    @pytest.mark.parametrize(("fit", "overlap"), [(200, 30.0), (16, 14.0), (1, SURE_S)])
    def test_where_runs_are_large_fewer_ends_are_asked_for_again(self, fit: int, overlap: float) -> None:
        plan = PollPlan(Pace(share=0.0))
        plan.join("a", 1000)
        ends = [run(str(at), "SUCCEEDED", at) for at in range(900, 1000, 2)]
        plan.answered(take(plan, 1006, "since"), ends, 1006, 0.0, (1, fit))
        asked = take(plan, 1011, "since")
        assert plan.clock.bound(1006) - asked.moment == overlap

    def test_a_proxy_that_refuses_long_urls_gets_shorter_ones(self) -> None:
        plan = PollPlan()
        for number in range(300):
            plan.join(f"{number:03}", 0)
        request = take(plan, 5, "look")
        sizes = [len(request.run_ids)]
        for at in (100, 200, 300):
            plan.failed(request, at)
            request = take(plan, at + 70, "look")
            sizes.append(len(request.run_ids))
        assert sizes == [150, 75, 37, 18]

    def test_an_absent_run_is_looked_at_again_before_its_minute_is_over(self) -> None:
        plan = PollPlan()
        plan.join("a", 0)
        plan.answered(take(plan, 5, "look"), [], 5)
        assert take(plan, 5 + CONFIRM_S, "look").run_ids == ("a",)

    def test_an_answer_to_an_older_question_does_not_count_for_who_came_anew(self) -> None:
        plan = PollPlan()
        plan.join("a", 0)
        request = take(plan, 5, "look")
        plan.leave("a")
        plan.join("a", 5.5)
        plan.answered(request, [run("a", "FAILED", 3)], 6)
        assert take(plan, 11, "look").run_ids == ("a",)

    @pytest.mark.parametrize("quick", [0.01, 5.0])
    def test_the_budget_is_kept_in_an_outage_too(self, quick: float) -> None:
        plan, sent, now = PollPlan(Pace(quick_s=quick)), [], 0.0
        plan.join("a", now)
        while now < 300:
            if request := plan.take(now):
                sent.append(now)
                plan.failed(request, now)
            now = max(now + 0.01, plan.next_at())
        assert all(later - earlier >= 1 - 1e-6 for earlier, later in pairwise(sent))
        assert len(sent) <= 20

    def test_errors_of_the_fast_path_alone_do_not_stop_the_looks(self) -> None:
        plan = PollPlan()
        plan.join("a", 0)
        kinds = []
        for second in range(1, 600):
            if request := plan.take(second):
                kinds.append(request.kind)
                if request.kind == "since":
                    plan.failed(request, second)
                else:
                    plan.answered(request, [run("a")], second)
        assert kinds.count("look") >= 9
        assert kinds.count("since") <= 20


def take(plan: PollPlan, now: float, kind: str) -> Request:
    """Take the next question of a kind; another that comes before it is answered with nothing new."""
    for step in range(20):
        request = plan.take(now + step * 1e-6)
        assert request is not None, f"no {kind} is due at {now}"
        if request.kind == kind:
            return request
        plan.answered(request, [run(each) for each in request.run_ids], now, 0.0, (1, plan._fit))
        plan._slot = now  # the test's own time stands still
    raise AssertionError(f"no {kind} at {now}")


def ask_with_others(ends_per_s: int, quick: float, seconds: int, until: float = float("inf")) -> list[tuple[float, int]]:
    """Ask what has ended, while runs of others end evenly; returns overlap and rows of each question after the first 20 s."""
    plan, now, asked = PollPlan(Pace(quick_s=quick, gap_s=quick / 2, share=0.0)), 0.0, []
    plan.join("a", now)
    ends = [number / ends_per_s for number in range(int(min(until, seconds) * ends_per_s))]
    while now < seconds:
        if request := plan.take(now):
            before, rows = plan._asked, [run(each) for each in request.run_ids]
            if request.kind == "since":
                rows = [run(str(at), "SUCCEEDED", at) for at in ends if int(request.moment) < int(at) and at <= now]
                if before and now > 20:
                    asked.append((round(plan.clock.bound(before[0]) - request.moment, 6), len(rows)))
            plan.answered(request, rows, now)
        now = max(now + 0.01, plan.next_at())
    return asked


def drive(plan: PollPlan, seconds: float, start: float = 0.0) -> list[Request]:
    """Let a plan ask a server on which nothing ever ends."""
    asked, now = [], start
    while now < start + seconds:
        if request := plan.take(now):
            asked.append(request)
            plan.answered(request, [run(each) for each in request.run_ids], now + 0.01)
        now = max(now + 0.01, min(plan.next_at(), start + seconds))
    return asked


@given(st.lists(st.floats(0, 100), min_size=1, max_size=400), st.sampled_from([0.1, 2.0, 5.0, 60.0]))
@settings(max_examples=25, deadline=None)
def test_the_budget_is_kept_and_everybody_is_looked_at_within_a_minute(joins: list[float], quick: float) -> None:
    plan, asked, now = PollPlan(Pace(quick_s=quick, share=0.0)), [], 0.0
    coming = sorted((at, f"run-{number}") for number, at in enumerate(joins))
    members = dict.fromkeys((run_id for _, run_id in coming), 0.0)
    while now < 300:
        while coming and coming[0][0] <= now:
            _, run_id = coming.pop(0)
            plan.join(run_id, now)
            members[run_id] = now
        if request := plan.take(now):
            asked.append(request)
            plan.answered(request, [run(each) for each in request.run_ids], now)
        now = max(now + 1e-3, min(plan.next_at(), coming[0][0] if coming else 300))
    sent = [each.sent for each in asked]
    assert all(later - earlier >= 1 - 1e-6 for earlier, later in pairwise(sent))
    fast = [each.sent for each in asked if each.kind == "since"]
    assert all(later - earlier <= max(quick, 2) + 0.01 for earlier, later in pairwise(fast)), "looks do not delay it"
    for run_id, joined in members.items():
        looks = [joined, *(each.sent for each in asked if run_id in each.run_ids), 300.0]
        assert max(later - earlier for earlier, later in pairwise(looks)) <= 62 + 2 * len(members) / 150
        assert len(looks) - 2 <= (300 - joined) / 30 + 2, "about once a minute"


@given(
    skew=st.floats(-20_000, 200),
    report_lag=st.floats(0, 25),
    ends=st.lists(st.floats(1, 900), min_size=1, max_size=40),
    others=st.lists(st.floats(-100, 900), max_size=40),
)
@settings(max_examples=60, deadline=None)
def test_every_end_is_seen_whatever_the_engines_clock_says(
    skew: float, report_lag: float, ends: list[float], others: list[float]
) -> None:
    """``skew`` is how far the engine is ahead of us, negative for behind; reports lag as they do."""
    epoch = 1_700_000_000.0
    finishes = {f"run-{n}": epoch + at for n, at in enumerate(ends)} | {f"other-{n}": epoch + at for n, at in enumerate(others)}
    plan, now = PollPlan(Pace(quick_s=2.0)), epoch
    seen: dict[str, float] = {}
    for number in range(len(ends)):
        plan.join(f"run-{number}", now)
    while now < epoch + 1100 and len(seen) < len(ends):
        if request := plan.take(now):
            rows = []
            for run_id, at in finishes.items():
                ended = at + report_lag <= now
                stamp = int(at + skew)
                if (request.kind == "look" and run_id in request.run_ids) or (
                    request.kind == "since" and ended and stamp > int(request.moment)
                ):
                    rows.append(run(run_id, "SUCCEEDED" if ended else "RUNNING", stamp if ended else None))
            plan.answered(request, rows, now)
            for each in rows:
                if each.state.ended and each.run_id.startswith("run") and each.run_id not in seen:
                    seen[each.run_id] = now - finishes[each.run_id] - report_lag
                    plan.leave(each.run_id)
        now = max(now + 1e-3, plan.next_at() if plan.next_at() < 1e300 else now + 1)
    assert len(seen) == len(ends)
    assert max(seen.values()) <= 65
    if skew >= -250:
        assert max(seen.values()) <= 20 * 1.2, "by the fast path, not by the sweep"
