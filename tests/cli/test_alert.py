"""``airflow-ml alert``: samples as files, and samples on their way, against a real mail server and an HTTP endpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from slack_sdk.models.blocks import Block

from airflow_ml_provider.cli.main import main
from airflow_ml_provider.notifications.samples import sample_alerts
from tests.alert_servers import MailServer, SlackEndpoint
from tests.servers import free_port

SAMPLES = sample_alerts()


@pytest.fixture
def mail(monkeypatch: pytest.MonkeyPatch) -> Iterator[MailServer]:
    """A mail server, to which the connection ``smtp_default`` leads."""
    with MailServer() as server:
        monkeypatch.setenv("AIRFLOW_CONN_SMTP_DEFAULT", server.connection())
        yield server


@pytest.fixture
def slack(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlackEndpoint]:
    """A Slack with a webhook, to which the connection ``slack_ml`` leads."""
    with SlackEndpoint() as endpoint:
        monkeypatch.setenv("AIRFLOW_CONN_SLACK_ML", endpoint.webhook())
        yield endpoint


class TestPreview:
    def test_it_writes_three_files_per_sample_and_prints_where(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "new" / "folder"
        assert main(["alert", "preview", "--folder", str(folder)]) == 0
        printed = [Path(line) for line in capsys.readouterr().out.splitlines()]
        assert {each.name for each in printed} == {f"{name}{end}" for name in SAMPLES for end in (".html", ".txt", ".slack.json")}
        assert set(printed) == set(folder.iterdir())

    def test_the_picture_is_in_the_page(self, tmp_path: Path) -> None:
        assert main(["alert", "preview", "--folder", str(tmp_path)]) == 0
        page = (tmp_path / "gate_rejected.html").read_text()
        assert 'src="data:image/png;base64,iVBOR' in page
        assert "cid:" not in page

    def test_the_blocks_are_what_slacks_builder_takes(self, tmp_path: Path) -> None:
        assert main(["alert", "preview", "--folder", str(tmp_path)]) == 0
        for name in SAMPLES:
            message = json.loads((tmp_path / f"{name}.slack.json").read_text())
            assert message["text"]
            for each in Block.parse_all(message["blocks"]):
                each.validate_json()

    def test_without_a_folder_it_makes_one(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["alert", "preview"]) == 0
        assert all(Path(line).is_file() for line in capsys.readouterr().out.splitlines())

    def test_a_folder_that_cannot_be_written_is_said_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("")
        assert main(["alert", "preview", "--folder", str(tmp_path / "file")]) == 1
        assert capsys.readouterr().err.count("\n") == 1


class TestSending:
    def test_a_sample_of_each_kind_arrives_by_both_channels(
        self, mail: MailServer, slack: SlackEndpoint, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["alert", "test", "--slack", "slack_ml", "--email", "a@example.com", "--email", "b@example.com"]) == 0
        said = capsys.readouterr().out
        assert f"slack: {len(SAMPLES)} of {len(SAMPLES)} samples sent\n" in said
        assert f"email: {len(SAMPLES)} of {len(SAMPLES)} samples sent\n" in said
        assert len(slack.messages) == len(mail.mails) == len(SAMPLES)
        assert {str(each.message["To"]) for each in mail.mails} == {"a@example.com, b@example.com"}

    def test_nobody_can_take_a_sample_for_an_alarm(self, mail: MailServer, slack: SlackEndpoint) -> None:
        assert main(["alert", "test", "--slack", "slack_ml", "--email", "a@example.com"]) == 0
        firsts = [str(each.message["Subject"]) for each in mail.mails] + [each["text"] for each in slack.messages]
        assert all(re.match(r"\[\w+\] airflow-ml alert test: ", each) for each in firsts)

    def test_the_picture_comes_inside_of_the_message(self, mail: MailServer) -> None:
        assert main(["alert", "test", "--email", "a@example.com"]) == 0
        (rejected,) = [each for each in mail.mails if "rejected" in str(each.message["Subject"])]
        (picture,) = [part for part in rejected.message.walk() if part.get_content_type() == "image/png"]
        assert picture["Content-ID"] == "<trend>"

    def test_a_channel_that_fails_is_said_and_the_other_goes_on(
        self, mail: MailServer, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["alert", "test", "--slack", "nowhere", "--email", "a@example.com"]) == 1
        said = capsys.readouterr().out
        assert f"slack: 0 of {len(SAMPLES)} samples sent; task_failed not sent: there is no connection 'nowhere'" in said
        assert len(mail.mails) == len(SAMPLES)

    def test_a_server_that_is_away_is_tried_once(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        away = {
            "conn_type": "smtp",
            "host": "127.0.0.1",
            "port": free_port(),
            "extra": {"disable_ssl": True, "from_email": "m@e.com"},
        }
        monkeypatch.setenv("AIRFLOW_CONN_AWAY", json.dumps(away))
        assert main(["alert", "test", "--email", "a@example.com", "--smtp-conn-id", "away"]) == 1
        assert capsys.readouterr().out.startswith(f"email: 0 of {len(SAMPLES)} samples sent; task_failed not sent: ")

    def test_the_samples_are_of_now(self, mail: MailServer) -> None:
        assert main(["alert", "test", "--email", "a@example.com"]) == 0
        today = datetime.now(UTC)
        days = [f"{each.day} {each:%b} {each.year}" for each in (today, today - timedelta(minutes=10))]
        for each in mail.mails:
            assert any(day in each.part("text/plain").splitlines()[-1] for day in days)
            assert abs(parsedate_to_datetime(str(each.message["Date"])) - today) < timedelta(minutes=10)

    def test_an_address_that_ml_alert_refuses_is_refused(self, mail: MailServer, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["alert", "test", "--email", "not an address"]) == 1
        assert "not an address" in capsys.readouterr().err
        assert mail.mails == []

    def test_a_channel_for_a_webhook_is_said_to_be_ignored(
        self, slack: SlackEndpoint, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["alert", "test", "--slack", "slack_ml", "--slack-channel", "#ml"]) == 0
        assert "--slack-channel is ignored: 'slack_ml' is a webhook" in capsys.readouterr().err
        assert len(slack.messages) == len(SAMPLES)

    def test_a_connection_that_is_not_there_comes_with_its_remedy(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["alert", "test", "--email", "a@example.com", "--smtp-conn-id", "no_mail", "--slack", "no_slack"]) == 1
        said = capsys.readouterr().out
        assert "`airflow connections add no_mail --conn-type smtp ...`, or set AIRFLOW_CONN_NO_MAIL; " in said
        assert "`airflow connections add no_slack --conn-type slackwebhook ...`, or set AIRFLOW_CONN_NO_SLACK; " in said

    def test_nowhere_to_send_to_is_said(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["alert", "test"]) == 1
        assert "--slack CONN, --email ADDR, or both" in capsys.readouterr().err
