"""Whatever a stranger writes: the limits are kept, nothing of it is markup, and nothing turns the line round."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_ml_provider.core.alert_email import render_email
from airflow_ml_provider.core.alert_slack import cut_mrkdwn, mrkdwn, render_slack
from airflow_ml_provider.models.alert import Alert, AlertLink, Failure, Trend, TrendPoint
from tests.core.alerts.cases import HOSTILE, KINDS, SEVERITIES, hostile
from tests.core.alerts.reading import TAGS, WHOLE_BLOCKS, WHOLE_HTML, Page, marked, texts, turned, units, validate, wrong_in

HEBREW = "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd"
PARTS = (
    "a", " ", "\n", "\r", "\t", "_", "*", "`", "```", "~", "&", "<", ">", "&lt;", "<!here>", "@channel", "<b>", "</td>", "\"'", "{{ 1 }}",
    "ש", "م", "\u202e", "\u2066", "\u2069", "\u200f", "\ud83d", "\udc00", "\x00", "\x1b[1m", "\x1b]0;", "\u2028", "\ufffe",
    "\U0001f1e9", "\U0001f44d\U0001f3fd", "\u200d", "e\u0301", "\u0301" * 30, "한", "क्षि", "word. Word ", "字" * 100, "x" * 500,
)  # fmt: skip
written = st.one_of(
    st.lists(st.sampled_from(PARTS), max_size=40).map("".join),
    st.text(st.characters(), max_size=60),  # lone surrogates as well
    st.sampled_from([HOSTILE, "", "字" * 20_000, "&" * 20_000, "שלום " * 5000]),
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
times = st.datetimes(timezones=st.none() | st.timezones())
links = st.builds(AlertLink, text=written, url=written | written.map(lambda each: f"https://a.example/{each}"))
trends = st.builds(
    Trend,
    metric=written,
    points=st.lists(st.builds(TrendPoint, at=times, value=numbers), min_size=2, max_size=40).map(tuple),
    limit=st.none() | numbers,
)
alerts = st.builds(
    Alert,
    kind=st.sampled_from(KINDS),
    severity=st.sampled_from(SEVERITIES),
    at=times,
    **dict.fromkeys(("dag_id", "run_id", "task", "why", "detail", "champion", "model"), written),
    try_number=st.none() | st.integers(0, 10**6),
    tries=st.none() | st.integers(0, 10**6),
    failures=st.lists(st.builds(Failure, task=written, why=written, url=written), max_size=12).map(tuple),
    failed=st.integers(0, 10**6),
    told=st.booleans(),
    last_worked=st.none() | times,
    took_s=st.none() | st.floats(),
    trend=st.none() | trends,
    links=st.lists(links, max_size=8).map(tuple),
)


@settings(max_examples=100, deadline=None)
@given(alerts)
def test_slack_takes_it_and_reads_no_markup_in_it(alert: Alert) -> None:
    message = render_slack(alert)
    validate(message.blocks)
    assert len(json.dumps(message.blocks, ensure_ascii=False).encode()) <= WHOLE_BLOCKS
    assert units(message.text) <= 300
    for text in marked(message.blocks):
        # The one thing in angle brackets is a date of ours.
        assert text.count("<") == text.count("<!date^")
    assert "<" not in message.text
    for text in (message.text, *texts(message.blocks)):
        assert wrong_in(text) == []


@settings(max_examples=100, deadline=None)
@given(alerts)
def test_a_mail_client_shows_it_and_runs_nothing_of_it(alert: Alert) -> None:
    email = render_email(alert)
    page = Page(email.html)
    assert set(page.tags) <= TAGS
    assert not {each for each in page.attributes if each.startswith("on")}
    assert all(each.startswith(("https://", "http://")) for each in page.addresses)
    assert set(page.sources) <= {"cid:trend"}
    assert len(email.html.encode()) < WHOLE_HTML
    assert units(email.subject) <= 150
    assert email.subject.splitlines() == [email.subject]
    for text in (email.subject, email.html, email.plain):
        assert wrong_in(text) == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_runs_from_right_to_left_turns_nothing_round(kind: str) -> None:
    alert = hostile(kind, HEBREW).model_copy(update={"detail": "", "links": ()})  # type: ignore[arg-type]
    email, slack = render_email(alert), render_slack(alert)
    assert not turned(email.subject)
    assert not turned(email.html)
    assert not turned(email.plain)
    assert not any(turned(each) for each in (slack.text, *texts(slack.blocks)))
    assert f"\u2068{HEBREW}" in email.html


def test_text_that_runs_from_left_to_right_is_copied_as_it_was() -> None:
    alert = hostile("task_failed", "train")
    assert "\u2068" not in "".join(texts(render_slack(alert).blocks)) + render_email(alert).html


class TestMarkup:
    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("a & b < c > d &amp;", "a &amp; b &lt; c &gt; d &amp;amp;"),
            ("<!here> <@U1>", "&lt;!here&gt; &lt;@U1&gt;"),
            ("nightly_flight_delays", "nightly_flight_delays"),
            ("*bold*", "\u2060*\u2060bold\u2060*\u2060"),
            ("`rm`", "\u2060`\u2060rm\u2060`\u2060"),
            ("_a_b_", "\u2060_\u2060a_b\u2060_\u2060"),
            ("@channel @here @joe", "@\u2060channel @\u2060here @joe"),
        ],
    )
    def test_it_is_what_it_was_to_the_eye_and_no_markup(self, text: str, says: str) -> None:
        assert mrkdwn(text) == says

    @given(st.text("a&<>*_`~@\U0001f44d ", max_size=80), st.integers(10, 60))
    def test_no_escape_is_split(self, text: str, limit: int) -> None:
        shown = cut_mrkdwn(text.strip(), limit)
        assert units(shown) <= limit
        rest = shown.replace("&amp;", "").replace("&lt;", "").replace("&gt;", "")
        assert not {"&", "<", ">"} & set(rest)

    def test_a_fence_in_a_log_stays_a_part_of_the_log(self) -> None:
        alert = hostile("task_failed").model_copy(update={"detail": "before\n```\n<!channel> *after*"})
        (log,) = [
            each
            for block in render_slack(alert).blocks
            for each in block.get("elements", [])
            if each["type"] == "rich_text_preformatted"
        ]
        assert log["elements"] == [{"type": "text", "text": "before\n```\n<!channel> *after*"}]
