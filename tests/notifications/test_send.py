"""Real messages to a Slack endpoint and to mail servers on loopback, and every way in which these fail."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.header import decode_header, make_header
from pathlib import Path
from typing import Any

import pytest

from airflow_ml_provider.models.alert import Alert, Trend, TrendPoint
from airflow_ml_provider.notifications.bounded import Bound
from airflow_ml_provider.notifications.mail import compose
from airflow_ml_provider.notifications.send import BareContent, Letter, Line, Sent, Targets, deliver, open_lines, send
from airflow_ml_provider.notifications.slack import mask
from airflow_ml_provider.notifications.supervisor import KnownConnection
from tests.alert_servers import Answer, MailServer, SilentServer, SlackEndpoint
from tests.notifications.conftest import ADDRESSES
from tests.notifications.secrets_backend import use_backend

SHORT_S = 0.4
"""A bound for what never answers: no test waits longer for it."""
Connect = Callable[[str, str], None]


def one(alert: Alert, targets: Targets, limit_s: float = 20.0) -> Sent:
    (sent,) = send(alert, targets, limit_s)
    return sent


class TestSlack:
    def test_a_webhook_gets_text_and_blocks(self, slack: SlackEndpoint, slack_targets: Targets, alert: Alert) -> None:
        assert one(alert, slack_targets).ok
        (message,) = slack.messages
        assert "train[3]" in message["text"]
        assert message["blocks"]
        assert slack.posted[0].path == "/services/T000/B000/secretsecretsecret"

    def test_a_bot_posts_to_the_channel_of_its_connection(self, slack: SlackEndpoint, connect: Connect, alert: Alert) -> None:
        connect("bot", slack.bot(channel="#nights"))
        sent = one(alert, Targets(slack="bot"))
        assert (sent.ok, sent.thread) == (True, slack.posted[0].ts)
        assert slack.posted[0].path == "/api/chat.postMessage"
        assert slack.posted[0].authorization == "Bearer xoxb-secret-token"
        assert slack.messages[0]["channel"] == "#nights"

    def test_a_channel_that_was_asked_for_comes_before_the_connection_s(
        self, slack: SlackEndpoint, connect: Connect, alert: Alert
    ) -> None:
        connect("bot", slack.bot(channel="#nights"))
        one(alert, Targets(slack="bot", slack_channel="#days"))
        assert slack.messages[0]["channel"] == "#days"

    def test_a_bot_answers_in_the_thread_and_in_the_channel(self, slack: SlackEndpoint, connect: Connect, alert: Alert) -> None:
        connect("bot", slack.bot(channel="#nights"))
        line = open_lines(Targets(slack="bot"), ("slack",))["slack"]
        assert isinstance(line, Line)
        deliver([Letter(line, alert, answers="1700.5")], Bound(20))
        assert (slack.messages[0]["thread_ts"], slack.messages[0]["reply_broadcast"]) == ("1700.5", True)

    @pytest.mark.parametrize("kind", ["webhook", "bot"])
    def test_slack_s_wish_to_wait_is_granted(self, kind: str, connect: Connect, alert: Alert) -> None:
        with SlackEndpoint(Answer("limited", retry_after="0")) as slack:
            connect("slack_ml", slack.webhook() if kind == "webhook" else slack.bot(channel="#nights"))
            assert one(alert, Targets(slack="slack_ml")).ok
            assert [each.taken for each in slack.posted] == [False, True]

    @pytest.mark.parametrize("kind", ["webhook", "bot"])
    def test_a_wait_that_is_too_long_is_told_and_not_waited_for(self, kind: str, connect: Connect, alert: Alert) -> None:
        with SlackEndpoint(always=Answer("limited", retry_after="3000")) as slack:
            connect("slack_ml", slack.webhook() if kind == "webhook" else slack.bot(channel="#nights"))
            sent = one(alert, Targets(slack="slack_ml"))
            assert "429" in sent.why
            assert "3000 s" in sent.why
            assert len(slack.posted) == 1

    @pytest.mark.parametrize("kind", ["webhook", "bot"])
    @pytest.mark.parametrize("unreadable", ["soon", "Wed, 21 Oct 2026 07:28:00 GMT"])
    def test_an_unreadable_wish_to_wait_is_a_refusal(self, kind: str, unreadable: str, connect: Connect, alert: Alert) -> None:
        with SlackEndpoint(always=Answer("limited", retry_after=unreadable)) as slack:
            connect("slack_ml", slack.webhook() if kind == "webhook" else slack.bot(channel="#nights"))
            assert "429" in one(alert, Targets(slack="slack_ml")).why

    @pytest.mark.parametrize("kind", ["webhook", "bot"])
    def test_one_fault_of_slack_s_is_tried_again(self, kind: str, connect: Connect, alert: Alert) -> None:
        with SlackEndpoint(Answer("broken")) as slack:
            connect("slack_ml", slack.webhook() if kind == "webhook" else slack.bot(channel="#nights"))
            assert one(alert, Targets(slack="slack_ml")).ok
            assert [each.taken for each in slack.posted] == [False, True]

    @pytest.mark.parametrize("kind", ["webhook", "bot"])
    def test_a_slack_that_is_broken_is_told(self, kind: str, connect: Connect, alert: Alert) -> None:
        with SlackEndpoint(always=Answer("broken")) as slack:
            connect("slack_ml", slack.webhook() if kind == "webhook" else slack.bot(channel="#nights"))
            assert "500" in one(alert, Targets(slack="slack_ml")).why

    @pytest.mark.parametrize("manner", ["hang", "drip"])
    @pytest.mark.parametrize("kind", ["webhook", "bot"])
    def test_a_slack_that_hangs_is_given_up(self, manner: Any, kind: str, connect: Connect, alert: Alert) -> None:
        with SlackEndpoint(always=Answer(manner)) as slack:
            connect("slack_ml", slack.webhook() if kind == "webhook" else slack.bot(channel="#nights"))
            sent = one(alert, Targets(slack="slack_ml"), SHORT_S)
            assert not sent.ok
            assert "gave up" in sent.why
            assert slack.posted

    @pytest.mark.parametrize(("kind", "remedy"), [("webhook", "make a new one"), ("bot", "invite the app")])
    def test_a_refusal_is_told_with_the_remedy_and_without_the_secret(
        self, kind: str, remedy: str, connect: Connect, alert: Alert
    ) -> None:
        with SlackEndpoint(always=Answer("refuse")) as slack:
            connect("slack_ml", slack.webhook() if kind == "webhook" else slack.bot(channel="#nights"))
            sent = one(alert, Targets(slack="slack_ml"))
            assert remedy in sent.why
            assert "secret" not in sent.why

    @pytest.mark.parametrize(
        "address", ["http://127.0.0.1:9/services/T0/B0/verysecret", "ftp://127.0.0.1/services/T0/B0/verysecret"]
    )
    def test_an_error_never_shows_the_webhook(
        self, address: str, connect: Connect, alert: Alert, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")
        connect("slack_ml", f'{{"conn_type": "slackwebhook", "password": "{address}"}}')
        sent = one(alert, Targets(slack="slack_ml"))
        assert not sent.ok
        assert "verysecret" not in sent.why + caplog.text

    def test_a_bot_without_a_channel_is_told(self, slack: SlackEndpoint, connect: Connect, alert: Alert) -> None:
        connect("bot", slack.bot())
        sent = one(alert, Targets(slack="bot"))
        assert "slack_channel=" in sent.why
        assert not slack.posted

    @pytest.mark.parametrize(
        ("connection", "said"),
        [
            ('{"conn_type": "http", "host": "x"}', "must be 'slackwebhook'"),
            ('{"conn_type": "slackwebhook"}', "no password"),
            ("{not json", "set by AIRFLOW_CONN_SLACK_ML, and Airflow cannot read it"),
        ],
    )
    def test_an_unusable_connection_is_told(self, connection: str, said: str, connect: Connect, alert: Alert) -> None:
        connect("slack_ml", connection)
        sent = one(alert, Targets(slack="slack_ml"))
        assert said in sent.why
        assert sent.defined
        assert not sent.ok

    def test_a_vault_that_fails_is_not_taken_for_a_connection_that_nobody_has_defined(
        self, airflow_db: None, alert: Alert, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with use_backend(monkeypatch, "broken"):
            sent = one(alert, Targets(slack="nobody_has_this"))
        assert sent.defined
        assert "the vault is sealed" in sent.why

    @pytest.mark.parametrize(
        ("code", "body", "said"),
        [(code, "", "a proxy") for code in (200, 204, 301, 302, 307, 308)]
        + [(code, "", "without a reason") for code in (400, 403, 404)]
        + [(200, "<html>sign in</html>", "a proxy"), (200, '{"ok": false}', "Slack refuses"), (201, "ok", "a proxy")],
    )
    @pytest.mark.parametrize("kind", ["webhook", "bot"])
    def test_only_slack_s_own_yes_counts_as_sent(
        self, kind: str, code: int, body: str, said: str, connect: Connect, alert: Alert
    ) -> None:
        with SlackEndpoint(always=Answer("raw", code=code, body=body)) as slack:
            connect("slack_ml", slack.webhook() if kind == "webhook" else slack.bot(channel="#nights"))
            sent = one(alert, Targets(slack="slack_ml"))
            assert not sent.ok
            assert said in sent.why
            assert "str)" not in sent.why

    def test_a_bot_is_not_answered_ok_in_plain_text(self, connect: Connect, alert: Alert) -> None:
        with SlackEndpoint(always=Answer("raw", body="ok")) as slack:
            connect("bot", slack.bot(channel="#nights"))
            assert not one(alert, Targets(slack="bot")).ok

    def test_a_connection_that_nobody_has_defined_is_told_apart(self, airflow_db: None, alert: Alert) -> None:
        sent = one(alert, Targets(slack="nobody_has_this"))
        assert not sent.defined
        assert "nobody_has_this" in sent.why


@pytest.mark.parametrize(
    "password", ["https://hooks.example.com/services/T9/B9/abcabc", "/T9/B9/abcabc", "T9/B9/abcabc", "abcabc"]
)
def test_the_mask_hides_what_airflow_s_own_has_not_heard_of(password: str) -> None:
    connection = KnownConnection("c", "slackwebhook", password=password)
    said = "<urlopen error> POST hooks.example.com/services/T9/B9/abcabc, T9/B9/abcabc"
    assert "abcabc" not in mask(said, connection)
    assert "abcabc" not in repr(connection)


class TestEmail:
    def targets(self, connect: Connect, server: MailServer, **extra: Any) -> Targets:
        connect("smtp_ml", server.connection(**extra))
        return Targets(email=ADDRESSES, smtp_conn_id="smtp_ml")

    def test_it_has_a_plain_part_html_and_the_headers(self, mail: MailServer, connect: Connect, alert: Alert) -> None:
        sent = one(alert, self.targets(connect, mail))
        (got,) = mail.mails
        assert sent.ok, sent.why
        assert got.recipients == list(ADDRESSES)
        assert got.sender == "airflow@example.com"
        assert got.message.get_content_type() == "multipart/alternative"
        assert "out of memory at 64 GiB" in got.part("text/plain")
        assert "out of memory at 64 GiB" in got.part("text/html")
        assert got.message["Auto-Submitted"] == "auto-generated"
        assert got.message["Date"] == "Wed, 01 Jul 2026 03:00:00 +0000"
        assert got.message["Message-ID"] == sent.thread
        assert got.message["From"] == "Airflow <airflow@example.com>"
        assert got.message["In-Reply-To"] is None

    def test_the_trend_is_a_picture_that_the_html_refers_to(self, mail: MailServer, connect: Connect, alert: Alert) -> None:
        start = datetime(2026, 6, 1, tzinfo=UTC)
        points = tuple(TrendPoint(at=start + timedelta(days=day), value=0.7 + day / 100) for day in range(5))
        one(alert.model_copy(update={"trend": Trend(metric="auc", points=points, limit=0.7)}), self.targets(connect, mail))
        (got,) = mail.mails
        picture = next(each for each in got.message.walk() if each.get_content_type() == "image/png")
        assert picture["Content-ID"] == "<trend>"
        assert picture.get_content().startswith(b"\x89PNG")  # type: ignore[attr-defined]
        assert "cid:trend" in got.part("text/html")

    def test_opening_and_closing_are_a_thread(self, mail: MailServer, connect: Connect, alert: Alert) -> None:
        line = open_lines(self.targets(connect, mail), ("email",))["email"]
        assert isinstance(line, Line)
        deliver([Letter(line, alert, name="night 1/é")], Bound(20))
        deliver([Letter(line, alert, name="night 1/é.end", answers="night 1/é")], Bound(20))
        opening, closing = (each.message for each in mail.mails)
        assert closing["In-Reply-To"] == closing["References"] == opening["Message-ID"]
        assert closing["Message-ID"] != opening["Message-ID"]

    @pytest.mark.parametrize("security", ["starttls", "ssl"])
    def test_it_goes_encrypted_and_with_a_login(
        self, security: Any, tmp_path: Path, connect: Connect, alert: Alert, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        login = ("airflow", "pa ss") if security == "starttls" else None
        with MailServer(security, tmp_path, login) as server:
            monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate))
            sent = one(alert, self.targets(connect, server))
            assert sent.ok, sent.why
            assert len(server.mails) == 1

    def test_a_certificate_that_nobody_has_signed_is_refused(self, tmp_path: Path, connect: Connect, alert: Alert) -> None:
        with MailServer("ssl", tmp_path) as server:
            sent = one(alert, self.targets(connect, server))
            assert "certificate" in sent.why.lower()
            assert not server.mails

    def test_a_login_without_encryption_works_too(self, connect: Connect, alert: Alert) -> None:
        with MailServer(login=("airflow", "secret-word")) as server:
            assert one(alert, self.targets(connect, server)).ok
            assert len(server.mails) == 1

    def test_a_wrong_password_is_told_without_it(self, connect: Connect, alert: Alert) -> None:
        with MailServer(login=("airflow", "right")) as server:
            connect("smtp_ml", server.connection().replace("right", "wrong-secret"))
            sent = one(alert, Targets(email=ADDRESSES, smtp_conn_id="smtp_ml"))
            assert "refuses the login" in sent.why
            assert "wrong-secret" not in sent.why

    def test_starttls_with_a_server_that_has_none_is_told_with_the_remedy(
        self, mail: MailServer, connect: Connect, alert: Alert
    ) -> None:
        sent = one(alert, self.targets(connect, mail, disable_tls=False))
        assert "disable_tls" in sent.why

    def test_one_refused_recipient_does_not_keep_it_from_the_others(
        self, connect: Connect, alert: Alert, caplog: pytest.LogCaptureFixture
    ) -> None:
        with MailServer(refused=ADDRESSES[:1]) as server:
            assert one(alert, self.targets(connect, server)).ok
            assert server.mails[0].recipients == list(ADDRESSES[1:])
            assert ADDRESSES[0] in caplog.text

    def test_when_all_recipients_are_refused_it_is_told(self, connect: Connect, alert: Alert) -> None:
        with MailServer(refused=ADDRESSES) as server:
            assert "every recipient" in one(alert, self.targets(connect, server)).why

    def test_a_missing_sender_is_told_with_the_remedy(self, mail: MailServer, connect: Connect, alert: Alert) -> None:
        sent = one(alert, self.targets(connect, mail, from_email=None))
        assert '{"from_email"' in sent.why

    def test_a_mail_server_that_hangs_is_given_up(self, connect: Connect, alert: Alert) -> None:
        with SilentServer() as server:
            connect("smtp_ml", server.mail_connection())
            assert "gave up" in one(alert, Targets(email=ADDRESSES, smtp_conn_id="smtp_ml"), SHORT_S).why

    def test_what_has_nothing_to_do_with_tls_is_told_without_a_word_of_it(self, connect: Connect, alert: Alert) -> None:
        with SilentServer() as server:
            connection = server.mail_connection()
        connect("smtp_ml", connection)
        sent = one(alert, Targets(email=ADDRESSES, smtp_conn_id="smtp_ml"))
        assert "was not reached" in sent.why
        assert "disable_tls" not in sent.why

    def test_the_plain_part_can_be_read_in_the_source_of_the_mail(self, mail: MailServer, connect: Connect, alert: Alert) -> None:
        one(alert.model_copy(update={"why": "ошибка чтения файла данных " * 20}), self.targets(connect, mail))
        (part,) = [each for each in mail.mails[0].message.walk() if each.get_content_type() == "text/plain"]
        assert part["Content-Transfer-Encoding"] == "quoted-printable"
        assert "ошибка чтения файла" in mail.mails[0].part("text/plain")

    def test_hostile_text_neither_adds_headers_nor_stops_it(self, mail: MailServer, connect: Connect, alert: Alert) -> None:
        hostile = "x\r\nBcc: evil@example.com\r\n\r\n<script>\0\ud800" + "\u202e" * 5 + "A" * 100_000
        one(
            alert.model_copy(update={"why": hostile, "dag_id": "a\r\nBcc: evil@example.com", "detail": hostile}),
            self.targets(connect, mail),
        )
        (got,) = mail.mails
        assert got.message["Bcc"] is None
        assert got.recipients == list(ADDRESSES)
        assert "<script>" not in got.part("text/html")


@pytest.mark.parametrize(
    "reason",
    [
        "the table of this night is empty, and so is the one of the night before",
        "Datei für Müller nicht gefunden: größer als erlaubt",
        "ошибка чтения файла данных",
        "no such file “a b.csv” in “raw data”",
        "\u2068לא ניתן לקרוא את הקובץ\u2069",
        "the table is empty and so on and …",
        "\u2068emoji 🎉 שלום\u2069",
        "=?utf-8?q?not_ours?= and =?",
        "a" * 200,
        "",
    ],
)
def test_a_subject_arrives_as_it_was_written_at_any_length(reason: str, alert: Alert) -> None:
    for length in range(1, 90):
        title = f"[critical] {'d' * length}: train failed: {reason}".strip()
        message = compose(BareContent(title, "", ""), alert, "a@b.c", ["d@e.f"], "<1@b.c>", "")
        written = message.as_bytes()
        head = written.partition(b"\r\n\r\n")[0]
        assert max(map(len, head.split(b"\r\n"))) <= 78
        assert str(message_from_bytes(written, policy=policy.default)["Subject"]) == title
        folded = str(message_from_bytes(written)["Subject"]).replace("\r\n", "")
        assert title.isascii() or str(make_header(decode_header(folded))) == title


def test_a_channel_that_hangs_does_not_keep_the_other_from_being_sent(mail: MailServer, connect: Connect, alert: Alert) -> None:
    with SlackEndpoint(always=Answer("hang")) as slack:
        connect("slack_ml", slack.webhook())
        connect("smtp_ml", mail.connection())
        targets = Targets(slack="slack_ml", email=ADDRESSES, smtp_conn_id="smtp_ml")
        sent = send(alert, targets, 3 * SHORT_S)
        assert [(each.channel, each.ok) for each in sent] == [("slack", False), ("email", True)]
