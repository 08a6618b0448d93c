"""Where alerts arrive in the tests: a Slack endpoint and a mail server on loopback, which also fail in every way."""

from __future__ import annotations

import contextlib
import email
import ipaddress
import json
import socket
import ssl
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email import policy
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

Manner = Literal["ok", "limited", "broken", "hang", "drip", "refuse", "raw"]
"""How a server answers: takes it, 429, 500, never, one byte at a time, no (``no_service`` or ``channel_not_found``), as asked."""


@dataclass
class Answer:
    """
    One answer of the Slack endpoint.

    :param manner: How.
    :param retry_after: Header of a 429.
    :param code: Status of a raw answer; of a redirect, the address is one that answers 200 and nothing.
    :param body: Body of a raw answer.
    """

    manner: Manner = "ok"
    retry_after: str = "1"
    code: int = 200
    body: str = ""


@dataclass(frozen=True)
class Posted:
    """A message that the Slack endpoint was sent, whether it took it or not."""

    path: str
    body: dict[str, Any]
    authorization: str
    taken: bool
    ts: str


class SlackEndpoint:
    """
    A Slack of our own: an incoming webhook at ``/services/...``, ``chat.postMessage`` at ``/api/``.

    :param answers: What it answers to the first requests; every further one is taken.
    """

    def __init__(self, *answers: Answer, always: Answer | None = None) -> None:
        self.answers = list(answers)
        self.always = always or Answer()
        self.posted: list[Posted] = []
        self.gone = threading.Event()
        self._lock = threading.Lock()
        self._server = _Http(("127.0.0.1", 0), _Handler)
        self._server.endpoint = self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def messages(self) -> list[dict[str, Any]]:
        """What it took."""
        return [each.body for each in self.posted if each.taken]

    def webhook(self) -> str:
        """A connection of type ``slackwebhook``, as JSON for an environment variable."""
        token = "T000/B000/secretsecretsecret"
        return json.dumps({"conn_type": "slackwebhook", "host": f"{self.url}/services", "password": token})

    def bot(self, **extra: Any) -> str:
        """A connection of type ``slack``, as JSON for an environment variable."""
        return json.dumps(
            {"conn_type": "slack", "password": "xoxb-secret-token", "extra": {"base_url": f"{self.url}/api/"} | extra}
        )

    def take(self, path: str, body: dict[str, Any], authorization: str) -> tuple[Answer, str]:
        with self._lock:
            answer = self.answers.pop(0) if self.answers else self.always
            ts = f"1700000000.{len(self.posted):06d}"
            self.posted.append(Posted(path, body, authorization, answer.manner == "ok", ts))
            return answer, ts

    def __enter__(self) -> SlackEndpoint:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.gone.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Http(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    endpoint: SlackEndpoint

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has given up is what some tests want."""


class _Handler(BaseHTTPRequestHandler):
    server: _Http

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer, ts = self.server.endpoint.take(self.path, body, self.headers.get("Authorization", ""))
        bot = self.path.startswith("/api/")
        if answer.manner == "hang":
            self.server.endpoint.gone.wait(60)
        elif answer.manner == "drip":
            self._drip()
        elif answer.manner == "limited":
            self._answer(429, {"ok": False, "error": "ratelimited"} if bot else "rate_limited", answer.retry_after)
        elif answer.manner == "broken":
            self._answer(500, "server_error")
        elif answer.manner == "raw":
            self._answer(answer.code, answer.body)
        elif answer.manner == "refuse":
            self._answer(200, {"ok": False, "error": "channel_not_found"}) if bot else self._answer(404, "no_service")
        else:
            self._answer(200, {"ok": True, "ts": ts, "channel": body.get("channel")} if bot else "ok")

    def do_GET(self) -> None:
        self._answer(200, "")

    def _answer(self, code: int, said: Any, retry_after: str = "") -> None:
        content = json.dumps(said).encode() if isinstance(said, dict) else said.encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json" if isinstance(said, dict) else "text/html")
        self.send_header("Content-Length", str(len(content)))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        if 300 <= code < 400:
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(content)

    def _drip(self) -> None:
        """Answer so slowly that no single wait is long."""
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server.endpoint.gone.wait(0.05):
                self.wfile.write(b"o")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the standard library's name)
        """Say nothing."""


@dataclass(frozen=True)
class Mail:
    """An e-mail as it arrived."""

    sender: str
    recipients: list[str]
    message: EmailMessage

    def part(self, kind: str) -> Any:
        """The content of the first part of a type."""
        return next(each.get_content() for each in self.message.walk() if each.get_content_type() == kind)


@dataclass
class _Inbox:
    mails: list[Mail] = field(default_factory=list)
    refused: tuple[str, ...] = ()

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
        if address in self.refused:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
        message: Any = email.message_from_bytes(envelope.content, policy=policy.default)
        self.mails.append(Mail(envelope.mail_from, list(envelope.rcpt_tos), message))
        return "250 OK"


class MailServer:
    """
    A real SMTP server.

    :param security: Whether it speaks in the clear, wants STARTTLS, or speaks TLS from the start.
    :param folder: Where its certificate is made; needed for the last two.
    :param login: User and password that it wants; None for none.
    :param refused: Recipients that it refuses.
    """

    def __init__(
        self,
        security: Literal["none", "starttls", "ssl"] = "none",
        folder: Path | None = None,
        login: tuple[str, str] | None = None,
        refused: tuple[str, ...] = (),
    ) -> None:
        self.security = security
        self.login = login
        self.inbox = _Inbox(refused=refused)
        self.certificate = make_certificate(folder) if folder else None

    @property
    def mails(self) -> list[Mail]:
        """What arrived, in order."""
        return self.inbox.mails

    def connection(self, *, from_email: str | None = "Airflow <airflow@example.com>", **extra: Any) -> str:
        """A connection of type ``smtp``, as JSON for an environment variable."""
        found = {"disable_ssl": self.security != "ssl", "disable_tls": self.security != "starttls"}
        user, password = self.login or ("", "")
        sender = {"from_email": from_email} if from_email else {}
        fields: dict[str, Any] = {"conn_type": "smtp", "host": "localhost", "port": self.port}
        return json.dumps(fields | {"login": user, "password": password, "extra": found | sender | extra})

    def __enter__(self) -> MailServer:
        from aiosmtpd.controller import Controller
        from aiosmtpd.smtp import AuthResult, LoginPassword

        def check(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
            known = isinstance(data, LoginPassword) and self.login == (data.login.decode(), data.password.decode())
            return AuthResult(success=known, handled=False)

        context = None
        if self.certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate)
        options: dict[str, Any] = {"hostname": "localhost", "port": _free_port()}
        if self.security == "starttls":
            options |= {"tls_context": context, "require_starttls": True}
        elif self.security == "ssl":
            options["ssl_context"] = context
        if self.login:
            options |= {"authenticator": check, "auth_required": True, "auth_require_tls": self.security == "starttls"}
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore", UserWarning)  # at each connection, aiosmtpd warns of a login without TLS
        self._controller = Controller(self.inbox, **options)
        self._controller.start()
        self.port: int = options["port"]
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()
        self._warnings.__exit__(None, None, None)


class SilentServer:
    """Takes every connection and never says a word: a mail server, or a Slack, that hangs."""

    def __enter__(self) -> SilentServer:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._socket.getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def mail_connection(self) -> str:
        """A connection of type ``smtp`` to it."""
        extra = {"disable_ssl": True, "disable_tls": True, "from_email": "airflow@example.com"}
        return json.dumps({"conn_type": "smtp", "host": "127.0.0.1", "port": self.port, "extra": extra})


def make_certificate(folder: Path) -> Path:
    """Write a key and a certificate for ``localhost`` that was signed by itself, both in one file."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = folder / "certificate.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + made.public_bytes(serialization.Encoding.PEM))
    return file


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def slack_endpoint(*answers: Answer, always: Answer | None = None) -> Iterator[SlackEndpoint]:
    """Run a Slack endpoint."""
    with SlackEndpoint(*answers, always=always) as endpoint:
        yield endpoint
