"""
Alerts as Slack messages and e-mails, against files.

``UPDATE_GOLDEN=1`` writes the files anew; look at the difference before it is kept.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from airflow_ml_provider.core.alert_email import render_email
from airflow_ml_provider.core.alert_slack import render_slack
from airflow_ml_provider.models.alert import Alert, AlertKind, AlertLink, Failure
from airflow_ml_provider.notifications.samples import sample_alerts
from tests.core.alerts.cases import GOLDEN, KINDS, TRACEBACK, hostile, many, nothing_known
from tests.core.alerts.reading import TAGS, WHOLE_BLOCKS, WHOLE_HTML, Page, texts, units, validate

FILES = Path(__file__).parent / "golden"


def rendered(alert: Alert) -> dict[str, str]:
    """What is kept of an alert: one file per ending. Pictures are not: they change with Pillow's release."""
    email, slack = render_email(alert), render_slack(alert)
    return {
        "slack.json": json.dumps(slack._asdict(), indent=1, ensure_ascii=False) + "\n",
        "email.txt": f"Subject: {email.subject}\nPicture: {'yes' if email.picture else 'no'}\n\n{email.plain}",
        "email.html": email.html,
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_a_message_is_what_its_file_says(name: str) -> None:
    for ending, text in rendered(GOLDEN[name]).items():
        file = FILES / f"{name}.{ending}"
        if os.environ.get("UPDATE_GOLDEN"):
            file.write_text(text, encoding="utf-8", newline="\n")
        assert text == file.read_text(encoding="utf-8"), f"UPDATE_GOLDEN=1 writes {file.name} anew"


def test_the_page_in_the_docs_says_what_the_samples_say() -> None:
    page = (Path(__file__).parents[3] / "docs" / "alerts.md").read_text(encoding="utf-8")
    for name, alert in sample_alerts().items():
        label = "`dag_failed`, closing" if alert.told else f"`{name}`"
        assert f"| {label} | `{render_email(alert).subject}` |" in page


def test_no_file_is_left_over() -> None:
    assert {each.name for each in FILES.iterdir()} == {f"{name}.{ending}" for name, a in GOLDEN.items() for ending in rendered(a)}


@pytest.mark.parametrize("name", GOLDEN)
def test_slacks_own_models_take_it(name: str) -> None:
    message = render_slack(GOLDEN[name])
    validate(message.blocks)
    assert message.blocks[0]["type"] == "header"
    assert 1 <= units(message.text) <= 300
    assert "\n" not in message.text
    assert len(json.dumps(message.blocks, ensure_ascii=False).encode()) < WHOLE_BLOCKS


@pytest.mark.parametrize("name", GOLDEN)
def test_gmail_does_not_cut_it_off(name: str) -> None:
    email = render_email(GOLDEN[name])
    assert len(email.html.encode()) < WHOLE_HTML
    assert set(Page(email.html).tags) <= TAGS


class TestTheFirstLine:
    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("task_failed", "[critical] nightly_flight_delays: train failed: out of memory at 64 GiB on node gpu-7"),
            ("dag_failed", "[critical] nightly_flight_delays: 8 tasks failed: 7 times out of memory at 64 GiB on node gpu-7"),
            ("gate_rejected", "[warning] nightly_flight_delays: the gate rejected the new flight-delays: roc_auc 0.712 < 0.74"),
            ("rolled_back", "[warning] flight-delays version 4 was rolled back: version 3 is flight-delays@champion again"),
        ],
    )
    def test_it_says_what_failed_and_why(self, name: str, says: str) -> None:
        alert = sample_alerts()[name]
        email, slack = render_email(alert), render_slack(alert)
        assert email.subject == email.plain.partition("\n")[0] == slack.blocks[0]["text"]["text"] == says
        assert slack.text == says.replace("<", "&lt;")

    @pytest.mark.parametrize("kind", KINDS)
    def test_it_is_one_line_of_150_characters_whatever_is_known(self, kind: AlertKind) -> None:
        long = "x" * 5000
        for alert in (nothing_known(kind), hostile(kind), hostile(kind, long), hostile(kind, "שלום " * 900)):
            subject = render_email(alert).subject
            assert units(subject) <= 150
            assert subject.splitlines() == [subject]
            assert subject.startswith(f"[{alert.severity}] ")

    def test_a_long_dag_id_leaves_room_for_what_failed_and_why(self) -> None:
        subject = render_email(
            Alert(**dict(nothing_known("task_failed")) | {"dag_id": "d" * 250, "task": "t" * 250, "why": "no disk"})
        ).subject
        assert "ttt" in subject
        assert "failed: no disk" in subject

    def test_where_every_task_failed_of_something_else_one_of_them_is_named(self) -> None:
        assert render_email(many(3, reasons=3)).subject.endswith("3 tasks failed, among them train[0]: reason 0")


class TestWhatIsNotKnown:
    @pytest.mark.parametrize("kind", KINDS)
    def test_the_message_is_silent_about_it(self, kind: AlertKind) -> None:
        email, slack = render_email(nothing_known(kind)), render_slack(nothing_known(kind))
        assert [each["type"] for each in slack.blocks] == ["header", "context"]
        assert email.plain.count("\n\n") == 1
        assert email.picture is None
        for text in (email.plain, email.html, *texts(slack.blocks)):
            assert "None" not in text

    def test_nothing_is_said_twice_in_slack(self) -> None:
        first, _, rest = sample_alerts()["task_failed"].why.partition(". ")
        shown = "\n".join(texts(render_slack(sample_alerts()["task_failed"]).blocks))
        assert shown.count(first) == shown.count(rest) == 1

    def test_a_reason_that_the_header_had_to_cut_stands_below_as_a_whole(self) -> None:
        why = f"the table {'very ' * 60}large has no rows."
        blocks = render_slack(nothing_known("task_failed").model_copy(update={"why": why})).blocks
        assert blocks[0]["text"]["text"].endswith("…")
        assert why in list(texts(blocks))


class TestTooMuch:
    def test_of_a_long_traceback_the_first_line_and_the_end_are_kept(self) -> None:
        alert = nothing_known("task_failed").model_copy(update={"detail": TRACEBACK})
        for shown in (render_email(alert).plain, next(text for text in texts(render_slack(alert).blocks) if "\n" in text)):
            lines = [each.strip() for each in shown.split("\n")]
            start = lines.index("Traceback (most recent call last):")
            assert "lines left out" in lines[start + 1]
            assert "ValueError: the table has 0 rows" in lines

    def test_of_an_error_on_one_huge_line_the_beginning_and_the_end_are_kept(self) -> None:
        alert = nothing_known("task_failed").model_copy(update={"detail": f"Traceback:\nKeyError: {'k' * 100_000} is missing"})
        shown = render_email(alert).plain
        assert "KeyError: kkk" in shown
        assert "kkk is missing" in shown
        assert len(shown) < 2000

    def test_200_failures_of_one_reason_are_one_line_that_says_how_many(self) -> None:
        for shown in (render_email(many()).plain, "".join(texts(render_slack(many()).blocks))):
            assert "train[0], train[1], " in shown
            assert "train[9]" not in shown
            assert shown.count("200 tasks failed") >= 1
        assert "and 195 more" in "".join(texts(render_slack(many()).blocks))
        assert "and 192 more" in render_email(many()).plain

    def test_of_150_reasons_the_first_are_listed_and_the_rest_is_counted(self) -> None:
        slack, email = render_slack(many(reasons=150)), render_email(many(reasons=150))
        assert list(texts(slack.blocks))[-2].startswith("and 188 tasks more") or "and 188 tasks more" in list(texts(slack.blocks))
        assert "and 180 tasks more" in email.plain

    def test_tasks_that_nobody_listed_are_counted_too(self) -> None:
        alert = many(5).model_copy(update={"failed": 200})
        assert "and 195 tasks more" in list(texts(render_slack(alert).blocks))
        assert "and 195 tasks more" in render_email(alert).plain

    def test_the_list_loses_its_links_before_slack_refuses_the_message(self) -> None:
        failures = tuple(Failure(task=f"t{n}", why=f"reason {n % 6}", url=f"https://a.example/{'x' * 480}{n}") for n in range(60))
        blocks = render_slack(many().model_copy(update={"failures": failures, "failed": 60})).blocks
        validate(blocks)
        assert len(json.dumps(blocks).encode()) < WHOLE_BLOCKS
        assert "t0" in list(texts(blocks))
        assert "xxx" not in json.dumps(blocks)


class TestClosing:
    def test_it_is_short_since_all_of_it_was_told(self) -> None:
        told, untold = sample_alerts()["dag_failed_told"], sample_alerts()["dag_failed"]
        assert "Still in production" in render_email(untold).plain
        assert "Still in production" not in render_email(told).plain
        assert "Last worked" not in "".join(texts(render_slack(told).blocks))
        assert "the DAG run has ended, 8 tasks failed" in render_email(told).subject

    def test_it_repeats_no_log(self) -> None:
        told = sample_alerts()["dag_failed_told"].model_copy(update={"detail": TRACEBACK})
        assert "Traceback" not in render_email(told).plain
        assert "Traceback" not in "".join(texts(render_slack(told).blocks))


class TestLinks:
    def test_an_address_that_cannot_be_one_is_left_out(self) -> None:
        wrong = (
            "javascript:alert(1)",
            "//evil",
            "https://",
            "http://[::1",
            "",
            "file:///etc/passwd",
            "https://a.example/" + "x" * 3000,
        )
        links = (*(AlertLink(text="No", url=each) for each in wrong), AlertLink(text="Yes", url="https://a.example/ü?a=b c\n#d"))
        alert = nothing_known("task_failed").model_copy(update={"links": links})
        (actions,) = [each for each in render_slack(alert).blocks if each["type"] == "actions"]
        assert [each["url"] for each in actions["elements"]] == ["https://a.example/%C3%BC?a=b%20c%0A#d"]
        assert Page(render_email(alert).html).addresses == ["https://a.example/%C3%BC?a=b%20c%0A#d"]

    def test_every_button_of_slack_has_an_id_of_its_own(self) -> None:
        links = tuple(AlertLink(text="Log", url="https://a.example") for _ in range(40))
        validate(render_slack(nothing_known("late").model_copy(update={"links": links})).blocks)


class TestThePicture:
    def test_it_is_a_png_of_twice_the_size_at_which_it_is_shown(self) -> None:
        email = render_email(sample_alerts()["gate_rejected"])
        assert email.picture is not None
        assert email.picture.startswith(b"\x89PNG")
        assert len(email.picture) < 30_000
        with Image.open(io.BytesIO(email.picture)) as picture:
            assert picture.size == (960, 380)
        assert Page(email.html).sources == ["cid:trend"]

    def test_without_a_trend_there_is_none_and_nothing_refers_to_it(self) -> None:
        email = render_email(sample_alerts()["task_failed"])
        assert email.picture is None
        assert "cid:" not in email.html
