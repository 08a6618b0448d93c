"""
Who hears of a failed night in the demo: a small mail server and a small Slack on loopback, which keep what they are sent.

The alerts are really sent to them; nothing leaves this machine.
"""

from __future__ import annotations

import base64
import email
import json
import threading
from dataclasses import dataclass
from email import policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

from aiosmtpd.controller import Controller

from demo.ports import HOST, free_ports

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

__all__ = ["AlertCatcher", "Caught"]

TOKEN = "T000/B000/demo"  # noqa: S105  (of a Slack that takes any)


@dataclass(frozen=True)
class Caught:
    """
    An alert that has arrived.

    :param channel: ``email`` or ``slack``.
    :param title: The e-mail's subject, or the first line of the message.
    :param text: What it says in plain text; empty for Slack.
    :param files: Where it lies now.
    """

    channel: str
    title: str
    text: str
    files: tuple[Path, ...]


class AlertCatcher:
    """
    A context manager: entering starts both servers, leaving stops them.

    :param folder: Where the alerts are put; made when missing, and emptied of the alerts of an earlier demo.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.caught: list[Caught] = []
        self._lock = threading.Lock()
        self._ports = dict(zip(("smtp", "slack"), free_ports(2), strict=True))

    @property
    def environment(self) -> dict[str, str]:
        """The connections that ``dags/nightly_flight_delays.py`` names, leading here."""
        extra = {"disable_ssl": True, "disable_tls": True, "from_email": "airflow@example.com"}
        smtp = {"conn_type": "smtp", "host": HOST, "port": self._ports["smtp"], "extra": extra}
        slack = {"conn_type": "slackwebhook", "host": f"http://{HOST}:{self._ports['slack']}/services", "password": TOKEN}
        return {"AIRFLOW_CONN_SMTP_DEFAULT": json.dumps(smtp), "AIRFLOW_CONN_SLACK_ML": json.dumps(slack)}

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        for ending in (".eml", ".html", ".slack.json"):
            for file in self.folder.glob(f"[0-9][0-9]-*{ending}"):
                file.unlink()
        self._mail = Controller(_Inbox(self), hostname=HOST, port=self._ports["smtp"])
        self._mail.start()
        self._slack = ThreadingHTTPServer((HOST, self._ports["slack"]), _handler_of(self))
        threading.Thread(target=self._slack.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._slack.shutdown()
        self._slack.server_close()
        self._mail.stop()

    def keep_mail(self, content: bytes) -> None:
        """
        Keep an e-mail: as it came, and its page with the picture in it.

        :param content: The e-mail.
        """
        message = email.message_from_bytes(content, policy=policy.default)
        leaves = [each for each in message.walk() if not each.is_multipart()]
        parts: dict[str, Any] = {each.get_content_type(): each.get_content() for each in leaves}
        page = str(parts.get("text/html", ""))
        if "image/png" in parts:  # a file has no other part to refer to
            page = page.replace("cid:trend", f"data:image/png;base64,{base64.b64encode(parts['image/png']).decode()}")
        title = " ".join(str(message["Subject"]).split())
        self._keep("email", title, str(parts.get("text/plain", "")), {".eml": content, ".html": page.encode()})

    def keep_post(self, body: dict[str, Any]) -> None:
        """
        Keep a message to Slack, as its Block Kit Builder takes it.

        :param body: The message.
        """
        content = json.dumps(body, indent=2, ensure_ascii=False) + "\n"
        self._keep("slack", str(body.get("text", "")), "", {".slack.json": content.encode()})

    def _keep(self, channel: str, title: str, text: str, contents: dict[str, bytes]) -> None:
        with self._lock:
            files = {self.folder / f"{len(self.caught) + 1:02}-{channel}{ending}": each for ending, each in contents.items()}
            for file, content in files.items():
                file.write_bytes(content)
            self.caught.append(Caught(channel, title, text, tuple(files)))


class _Inbox:
    def __init__(self, catcher: AlertCatcher) -> None:
        self._catcher = catcher

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: ARG002, N802  (aiosmtpd's)
        self._catcher.keep_mail(envelope.content)
        return "250 OK"


def _handler_of(catcher: AlertCatcher) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            catcher.keep_post(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the name in the standard library)
            """Say nothing: the demo's screen is for the demo."""

    return Handler
