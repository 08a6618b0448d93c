"""DAGs that fail in each way on a real Airflow, and what people get to read of it, by real SMTP and HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from airflow_ml_provider.notifications.reasons import WORDLESS
from tests.stack.alert_case import Ears, plain, subject, title, words
from tests.stack.conftest import Site, until
from tests.stack.dags.alert_cases import MANY

pytestmark = [pytest.mark.stack, pytest.mark.full, pytest.mark.timeout(900)]
TOLD = {
    "raises": "ValueError: the loss is not a number after 3 steps",
    "retried": "OSError: no room on the disk in try 2",
    "out_of_time": "Out of time: the task's execution_timeout of 0:00:02 was up",
    "refused": "'fraud/scores' cannot be the name of a registered model: it must not be empty, and it must not hold a slash",
    "closed_gate": "the gate's verdict is reject: The rule auc >= 0.74 is broken: auc is 0.71",
}
"""Tasks of ``alert_tasks`` that are told, and with which reason; of a long one as much as an e-mail's subject holds."""
EXPECTED = {
    "alert_recovered": 4,
    "alert_tasks": 5,
    "alert_killed": 1,
    "alert_lost": 2,
    "alert_timed_out": 1,
    "alert_late": 1,
    "alert_many": 2,
}
"""Messages by each channel."""
NIGHTS: tuple[tuple[int | None, bool], ...] = ((1, True), (2, False), (3, False), (None, False))
"""Of ``alert_recovered``: day of the logical date, None for a run without one, which comes last; and whether it fails."""


@dataclass
class Story:
    """What became of the DAG runs, all of which went on side by side."""

    runs: dict[str, str]
    states: dict[str, str]


@pytest.fixture(scope="module")
def story(site: Site, ears: Ears) -> Story:
    """Run all of it."""
    for dag_id in EXPECTED:
        site.airflow.wait_for_dag(dag_id, timeout_s=180)
    with site.writing():  # once, before there is anything that it could be in the way of
        nights = [night(site, day, fail=fail) for day, fail in NIGHTS]
        others = [dag_id for dag_id in EXPECTED if dag_id != "alert_recovered"]
        runs = {dag_id: str(site.airflow.trigger(dag_id)["dag_run_id"]) for dag_id in others}
    until("the word of being late", lambda: ears.mails("alert_late") and ears.posts("alert_late"))
    site.signal("late-go")
    states = {dag_id: site.finish(dag_id, run_id) for dag_id, run_id in runs.items()}
    assert [site.finish("alert_recovered", each) for each in nights] == ["failed" if fail else "success" for _, fail in NIGHTS]
    for dag_id, count in EXPECTED.items():
        heard(ears, dag_id, count)
    return Story(runs, states)


def night(site: Site, day: int | None, *, fail: bool) -> str:
    date = datetime(2025, 1, day, tzinfo=UTC) if day else None
    return str(site.airflow.trigger("alert_recovered", logical_date=date, conf={"fail": fail})["dag_run_id"])


def heard(ears: Ears, dag_id: str, count: int) -> None:
    until(f"what is told of {dag_id}", lambda: arrived(ears, dag_id) >= count)


def arrived(ears: Ears, dag_id: str) -> int:
    return min(len(ears.posts(dag_id)), len(ears.mails(dag_id)))


def shown(text: str) -> str:
    """Write a reason as Slack's markup does."""
    return text.replace(">", "&gt;")


@pytest.mark.parametrize("task_id", TOLD)
def test_a_task_that_fails_is_told_once_and_why(story: Story, ears: Ears, task_id: str) -> None:
    wanted = f"[critical] alert_tasks: {task_id} failed: {TOLD[task_id]}"
    posts = [each for each in ears.posts("alert_tasks") if f" {task_id} failed" in title(each)]
    mails = [each for each in ears.mails("alert_tasks") if f" {task_id} failed" in subject(each)]
    assert [title(each)[: len(shown(wanted))] for each in posts] == [shown(wanted)]
    assert [subject(each)[: len(wanted)] for each in mails] == [wanted]
    assert mails[0].recipients == ["ml-team@example.com"]
    assert "/dags/alert_tasks/runs/manual__" in plain(mails[0])
    assert f"/tasks/{task_id}?try_number={2 if task_id == 'retried' else 1}" in plain(mails[0])
    assert "Task log" in words(posts[0])


def test_nobody_hears_of_tasks_that_never_started_nor_of_a_retry(site: Site, story: Story, ears: Ears) -> None:
    states = {each["task_id"]: each["state"] for each in site.instances("alert_tasks", story.runs["alert_tasks"])}
    assert states == dict.fromkeys([*TOLD, "hangs"], "failed") | {"goes_on": "upstream_failed", "fit": "success"}
    assert (len(ears.posts("alert_tasks")), len(ears.mails("alert_tasks"))) == (len(TOLD), len(TOLD))


def test_what_a_retry_cannot_mend_is_told_at_the_first_try(story: Story, ears: Ears) -> None:
    tries = {subject(each).split()[2]: each for each in ears.mails("alert_tasks")}
    assert "Try:     1 of 4" in plain(tries["refused"])
    assert "Try:     1 of 4" in plain(tries["closed_gate"])
    assert "Try:     2 of 2" in plain(tries["retried"])


def test_a_slack_and_a_mail_server_that_hang_hold_a_task_up_no_longer_than_the_bound(site: Site, story: Story) -> None:
    began, ended = (float((site.signals / f"hanging-{each}").read_text()) for each in ("began", "ended"))
    assert ended - began < 12  # the bound is 2 s; left to themselves, the providers wait for 30 s, and again
    log = str(site.airflow.task_log("alert_tasks", story.runs["alert_tasks"], "hangs"))
    assert "not sent by slack: gave up after 2 s ([ml] alert_timeout_s)" in log
    assert "not sent by email: " in log


def test_a_killed_last_try_is_told_by_the_dag(story: Story, ears: Ears) -> None:
    """Airflow calls no callback of such a task."""
    assert story.states["alert_killed"] == "failed"
    (post,), (mail,) = ears.posts("alert_killed"), ears.mails("alert_killed")
    assert title(post).startswith("[critical] alert_killed: killed failed")
    assert "- killed\n" in plain(mail)
    assert "thread_ts" not in post.body


def test_a_task_whose_machine_was_lost_is_told_by_the_scheduler(story: Story, ears: Ears) -> None:
    opening, closing = ears.posts("alert_lost")
    assert title(opening).startswith(f"[critical] alert_lost: lost failed: {WORDLESS.split(',')[0]}")
    assert title(closing).startswith("[critical] alert_lost: the DAG run has ended, lost failed")
    assert closing.body["thread_ts"] == opening.ts


def test_a_dag_run_that_takes_too_long_is_told(story: Story, ears: Ears) -> None:
    wanted = "[critical] alert_timed_out: the DAG run failed: The DAG run took longer than its dagrun_timeout allows"
    assert [title(each) for each in ears.posts("alert_timed_out")] == [wanted]
    assert [subject(each) for each in ears.mails("alert_timed_out")] == [wanted]
    assert story.states["alert_timed_out"] == "failed"


def test_a_late_dag_run_is_told_by_its_own_name_while_it_runs(story: Story, ears: Ears) -> None:
    (post,), (mail,) = ears.posts("alert_late"), ears.mails("alert_late")
    assert title(post).startswith("[warning] alert_late: the DAG run is late: It should have ended by ")
    assert f"DAG run: {story.runs['alert_late']}\n" in plain(mail)
    assert f"*DAG run*\\n`{story.runs['alert_late']}`" in words(post)
    assert "Not done yet: reach." in plain(mail)
    assert story.states["alert_late"] == "success"


def test_a_night_that_works_again_is_told_once(story: Story, ears: Ears) -> None:
    wanted = [
        "[info] alert_recovered: fails_if_asked failed, try 2 of 2 comes next: ValueError: the table of this night is empty",
        "[critical] alert_recovered: fails_if_asked failed: ValueError: the table of this night is empty",
        "[critical] alert_recovered: the DAG run has ended, fails_if_asked failed: ValueError: the table of this night is empty",
        "[info] alert_recovered: works again",
    ]
    titles = [title(each) for each in ears.posts("alert_recovered")]
    assert [subject(each) for each in ears.mails("alert_recovered")] == titles
    # Since when and why is behind it where the records say so.
    assert [each[: len(start)] for each, start in zip(titles, wanted, strict=True)] == wanted


def test_many_tasks_that_fail_at_once_are_an_opening_and_a_closing_message(site: Site, story: Story, ears: Ears) -> None:
    failed = [each for each in site.instances("alert_many", story.runs["alert_many"]) if each["state"] == "failed"]
    assert len(failed) == MANY
    opening, closing = ears.posts("alert_many")
    assert title(opening).startswith("[critical] alert_many: fails[")
    assert title(closing).startswith(f"[critical] alert_many: the DAG run has ended, {MANY} tasks failed")
    assert "the table is empty" in words(closing)
    assert "the table has no column 'label'" in words(closing)
    first, last = ears.mails("alert_many")
    assert [subject(first), subject(last)[:60]] == [title(opening), title(closing)[:60]]


def test_a_bot_closes_in_the_thread_that_it_has_opened(story: Story, ears: Ears) -> None:
    opening, closing = ears.posts("alert_many")
    assert {each.path for each in (opening, closing)} == {"/api/chat.postMessage"}
    assert {each.body["channel"] for each in (opening, closing)} == {"#ml-alerts"}
    assert "thread_ts" not in opening.body
    assert (closing.body["thread_ts"], closing.body["reply_broadcast"]) == (opening.ts, True)
    first, last = ears.mails("alert_many")
    assert last.message["In-Reply-To"] == first.message["Message-ID"]


def test_a_webhook_sends_both_by_themselves(story: Story, ears: Ears) -> None:
    posts = ears.posts("alert_recovered")
    assert all(each.path.startswith("/services/") for each in posts)
    assert all(keys_of_bots(each.body) == set() for each in posts)


def keys_of_bots(body: dict[str, Any]) -> set[str]:
    wanted: Sequence[str] = ("thread_ts", "reply_broadcast", "channel")
    return set(wanted) & body.keys()
