"""Where the alerts of the stack's DAGs arrive, and what arrived of one DAG."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.alert_servers import Answer, Mail, MailServer, Posted, SilentServer, SlackEndpoint

JOINER = "\u2060"
"""What the rendering puts into names, so that Slack reads no markup in them."""
LIMIT_S = "18"
"""Time of one alert: what is asserted is what a message says, and the machine may be busy."""


@dataclass(frozen=True)
class Ears:
    """The servers that the stack's connections lead to: one that listens and one that does not, of each kind."""

    slack: SlackEndpoint
    mail: MailServer
    deaf_slack: SlackEndpoint
    deaf_mail: SilentServer

    def environment(self) -> dict[str, str]:
        """Connections of ``dags/alert_cases.py``; those that other DAGs name are left out."""
        return {
            "AIRFLOW_CONN_SLACK_HOOK": self.slack.webhook(),
            "AIRFLOW_CONN_SLACK_BOT": self.slack.bot(),
            "AIRFLOW_CONN_SMTP_ALERTS": self.mail.connection(),
            "AIRFLOW_CONN_SLACK_SILENT": self.deaf_slack.webhook(),
            "AIRFLOW_CONN_SMTP_SILENT": self.deaf_mail.mail_connection(),
            "AIRFLOW__ML__ALERT_TIMEOUT_S": LIMIT_S,
        }

    def posts(self, dag_id: str) -> list[Posted]:
        """What Slack was sent of a DAG, in order."""
        return [each for each in list(self.slack.posted) if f"] {dag_id}: " in title(each)]

    def mails(self, dag_id: str) -> list[Mail]:
        """What was mailed of a DAG, in order."""
        return [each for each in list(self.mail.mails) if f"] {dag_id}: " in subject(each)]


@contextmanager
def listening() -> Iterator[Ears]:
    """Run the servers."""
    always = Answer("hang")
    with SlackEndpoint() as slack, MailServer() as mail, SlackEndpoint(always=always) as deaf, SilentServer() as silent:
        yield Ears(slack, mail, deaf, silent)


def title(post: Posted) -> str:
    """The first line of a message in Slack, which is also what a phone shows."""
    return str(post.body["text"]).replace(JOINER, "")


def words(post: Posted) -> str:
    """All of a message in Slack."""
    return json.dumps(post.body, ensure_ascii=False).replace(JOINER, "")


def subject(mail: Mail) -> str:
    """The subject, however it was folded."""
    return " ".join(str(mail.message["Subject"]).split())


def plain(mail: Mail) -> str:
    """The plain part."""
    found: Any = mail.part("text/plain")
    return str(found).replace(JOINER, "").replace("\r\n", "\n")
