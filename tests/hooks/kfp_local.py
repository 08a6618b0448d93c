"""A server on loopback that does what a function says, faults of the transport included, and keeps what it was asked."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    connection: int

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(urlsplit(self.target).query, keep_blank_values=True).items()}

    @property
    def form(self) -> dict[str, str]:
        return {name: values[0] for name, values in parse_qs(self.body.decode(), keep_blank_values=True).items()}

    @property
    def cookies(self) -> dict[str, str]:
        pairs = (each.strip().partition("=") for each in self.headers.get("cookie", "").split(";") if each.strip())
        return {name: value for name, _, value in pairs}


@dataclass(frozen=True)
class Reply:
    """An answer; ``cut`` sends only so many bytes of the body, and resets the connection."""

    status: int = 200
    body: str = "{}"
    headers: list[tuple[str, str]] = field(default_factory=list)
    kind: str = "application/json"
    cut: int | None = None


RESET, HANG, CLOSE = "reset", "hang", "close"
Act = Reply | str
Handler = Callable[[Asked], Act]


def page(title: str, body: str = "", status: int = 200) -> Reply:
    return Reply(status, f"<!DOCTYPE html><html><head><title>{title}</title></head><body>{body}</body></html>", kind="text/html")


def redirect(to: str, status: int = 302, *cookies: str) -> Reply:
    return Reply(status, "", [("Location", to), *(("Set-Cookie", each) for each in cookies)], kind="text/plain")


class LocalServer:
    """Keeps connections open as HTTP/1.1 does, one thread for each."""

    def __init__(self, handler: Handler, tls: ssl.SSLContext | None = None) -> None:
        self.handler, self.tls = handler, tls
        self.asked: list[Asked] = []
        self.connections = 0
        self.bytes_received = 0
        self.stopping = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"
        self.threads = [threading.Thread(target=self._accept, daemon=True)]
        self.threads[0].start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stopping.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for each in self.threads:
            each.join(timeout=5)

    def to(self, method: str, path: str = "") -> list[Asked]:
        """What was asked of a path."""
        return [each for each in self.asked if each.method == method and path in each.path]

    def _accept(self) -> None:
        while not self.stopping.is_set():
            try:
                accepted, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(accepted, self.connections), daemon=True)
            self.threads.append(thread)
            thread.start()

    def _serve(self, plain: socket.socket, number: int) -> None:
        connection = plain
        plain.settimeout(0.2)
        try:
            if self.tls:
                connection = self.tls.wrap_socket(plain, server_side=True)
            while (asked := self._read(connection, number)) and self._act(connection, asked):
                pass
        except OSError:  # the client went away, which is what some tests do
            pass
        finally:
            connection.close()

    def _read(self, connection: socket.socket, number: int) -> Asked | None:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (piece := self._receive(connection)):
                return None
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
        while len(body) < int(headers.get("content-length", 0)):
            if not (piece := self._receive(connection)):
                return None
            body += piece
        method, target, _ = first.split(" ")
        asked = Asked(method, target, headers, body, number)
        self.asked.append(asked)
        return asked

    def _receive(self, connection: socket.socket) -> bytes:
        while not self.stopping.is_set():
            with contextlib.suppress(TimeoutError):
                piece = connection.recv(65536)
                self.bytes_received += len(piece)
                return piece
        return b""

    def _act(self, connection: socket.socket, asked: Asked) -> bool:
        act = self.handler(asked)
        if act == HANG:
            self.stopping.wait(5)
            return False
        if act == RESET:
            reset(connection)
            return False
        if isinstance(act, str):
            return False
        body = act.body.encode()
        headers = [("Content-Type", act.kind), ("Content-Length", str(len(body))), *act.headers]
        head = f"HTTP/1.1 {act.status} Said\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers) + "\r\n"
        connection.sendall(head.encode() + body[: act.cut])
        if act.cut is not None:
            time.sleep(0.05)  # what was sent should arrive before the reset does
            reset(connection)
            return False
        return "close" not in asked.headers.get("connection", "")


def reset(connection: socket.socket) -> None:
    """End a connection with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


class Tunnel:
    """A forward proxy that knows CONNECT alone, and says what it was asked."""

    def __init__(self) -> None:
        self.heads: list[str] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.thread = threading.Thread(target=self._accept, daemon=True)
        self.thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(timeout=5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            head = client.recv(65536).decode()
            self.heads.append(head)
            host, _, port = head.split(" ")[1].partition(":")
            server = socket.create_connection((host, int(port)))
            client.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pipe, args=(source, target), daemon=True).start()


def _pipe(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    for each in (source, target):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


@dataclass(frozen=True)
class Authority:
    """An authority of our own, and a server's certificate from it for 127.0.0.1."""

    ca_file: Path
    server: ssl.SSLContext


def make_authority(folder: Path) -> Authority:
    now = datetime.now(UTC)
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Our own authority")])
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kfp")])

    def builder(subject: x509.Name, of: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(of.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    ca = (
        builder(ca_name, ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    leaf = (
        builder(name, key)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    ca_file, chain = folder / "ca.pem", folder / "server.pem"
    ca_file.write_bytes(ca.public_bytes(pem))
    chain.write_bytes(secret + leaf.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return Authority(ca_file, context)
