"""The fields of a connection, whatever its type: what an extra is, how it is shown in a form, and how each is read or refused."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple, NoReturn
from unicodedata import normalize
from urllib.parse import unquote, urlsplit

from airflow_ml_provider.exceptions import ConfigError


class Extra(NamedTuple):
    """
    One extra of a connection.

    :param kind: JSON type.
    :param title: Label in the form.
    :param meaning: What it means, with its default.
    :param auths: Values of ``auth`` that read it; empty for all.
    """

    kind: Literal["string", "boolean", "integer"]
    title: str
    meaning: str
    auths: tuple[str, ...] = ()


class Fields:
    """
    Login, password and extras of one connection, asked for by name and type.

    :param conn_id: For messages.
    :param page: Page of the docs that lists the fields, for messages.
    :param known: All extras of its type.
    :param login: Login.
    :param password: Password or token.
    :param extra: JSON object of the extras.
    :raises ConfigError: the extra is no JSON object, or has a name that is not known; a retry never helps.
    """

    def __init__(
        self,
        conn_id: str,
        page: str,
        known: Mapping[str, Extra],
        *,
        login: str | None = None,
        password: str | None = None,
        extra: str | None = None,
    ) -> None:
        self.conn_id = conn_id
        self.page = page
        self.known = known
        self.login = (login or "").strip()
        self.password = (password or "").strip()
        self.extras = self._read(extra)

    def text(self, name: str, default: str = "") -> str:
        """
        Read a text.

        :param name: Name of the extra.
        :param default: What it is where it is not given.
        :return: The text, without blanks around it.
        :raises ConfigError: it is no text in one line; a retry never helps.
        """
        value = self.extras.get(name, default)
        if not isinstance(value, str) or not value.isprintable():
            self.refuse(f"extra {name!r} must be a text in one line, without signs that cannot be printed")  # perhaps a password
        return str(value).strip()

    def flag(self, name: str, *, default: bool) -> bool:
        """
        Read a switch.

        :param name: Name of the extra.
        :param default: What it is where it is not given.
        :return: Its value; ``"true"`` and ``"false"`` are taken too, as a URI writes them.
        :raises ConfigError: it is neither; a retry never helps.
        """
        value = self.extras.get(name, default)
        known = {"true": True, "false": False}
        if isinstance(value, str) and value.lower() in known:
            return known[value.lower()]
        if not isinstance(value, bool):
            self.refuse(f"extra {name!r} is {value!r}, but must be true or false")
        return bool(value)

    def seconds(self, name: str, default: int, least: int) -> int:
        """
        Read a whole number of seconds.

        :param name: Name of the extra.
        :param default: What it is where it is not given.
        :param least: Least value that is taken.
        :return: Its value.
        :raises ConfigError: it is none, or less; a retry never helps.
        """
        value = self.extras.get(name, default)
        if isinstance(value, str) and value.isascii() and value.isdecimal():
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            self.refuse(f"extra {name!r} is {value!r}, but must be a whole number of seconds, at least {least}")
        return int(value)

    def needed(self, what: str, value: str) -> str:
        """
        Insist on a value.

        :param what: What it is, for the message.
        :param value: The value.
        :return: It.
        :raises ConfigError: it is empty; a retry never helps.
        """
        if not value:
            self.refuse(f"auth needs {what}")
        return value

    def refuse(self, reason: str) -> NoReturn:
        """
        Refuse the connection.

        :param reason: Why.
        :raises ConfigError: always; a retry never helps.
        """
        raise ConfigError(f"connection {self.conn_id!r}: {reason}. See {self.page}.")

    def _read(self, extra: str | None) -> dict[str, Any]:
        """Read the extras ourselves: Airflow takes what is no JSON for empty, a connection without credentials."""
        if not (extra or "").strip():
            return {}
        try:
            found = json.loads(str(extra))
        except ValueError as error:
            raise ConfigError(
                f"connection {self.conn_id!r}: extra is not valid JSON ({error}). Write it as an object."
            ) from error
        if not isinstance(found, dict):
            raise ConfigError(f"connection {self.conn_id!r}: extra is a {type(found).__name__}, but must be a JSON object.")
        for name in found:
            if name not in self.known:
                raise ConfigError(f"connection {self.conn_id!r} has an unknown extra {name!r}.{suggest(name, self.known)}")
        return {name: value for name, value in found.items() if value not in (None, "")}  # as the form leaves what is empty


def form_field(name: str, extra: Extra) -> dict[str, Any]:
    """
    Describe an extra for the form in Airflow's UI, by Airflow's ``conn-fields``.

    :param name: Its name.
    :param extra: The extra.
    :return: Label, JSON schema and description.
    """
    schema: dict[str, Any] = {"type": [extra.kind, "null"]}
    if name == "verify_tls":
        schema = {"type": "boolean", "default": True}  # a switch without a value looks switched off
    if name == "proxy":
        schema["format"] = "password"  # it can hold one
    read_by = f" Read by {' and '.join(extra.auths)}." if extra.auths else ""
    return {"label": extra.title, "schema": schema, "description": extra.meaning + read_by}


def suggest(name: str, known: Iterable[str]) -> str:
    """
    Offer what may have been meant.

    :param name: What was written.
    :param known: What there is.
    :return: A sentence with a blank before it.
    """
    from airflow_ml_provider.core.wiring import did_you_mean  # only for a message: every process of Airflow imports this module

    return did_you_mean(name, known)


def read_url(
    conn_id: str,
    field: str,
    text: str | None,
    *,
    example: str,
    port: int | None = None,
    schema: str | None = None,
    query: bool = False,
) -> str:
    """
    Read the address of a server.

    :param conn_id: For messages.
    :param field: Name of the field that holds it.
    :param text: A URL with a path if need be, or a host name alone.
    :param example: A URL of the kind, for messages.
    :param port: Port, if it is not in ``text``.
    :param schema: ``http`` or ``https``, if it is not in ``text``; ``http`` by default.
    :param query: Whether it may have something after ``?``.
    :return: URL without a slash at the end.
    :raises ConfigError: there is none, it is no URL, it holds credentials, or another scheme; a retry never helps.
    """
    whole = (text or "").strip()
    if not whole:
        raise ConfigError(f"connection {conn_id!r} has no {field}. Set it to the URL of the server, {example}.")
    if _holds_login(whole.partition("?")[0] if query else whole):
        raise ConfigError(
            f"connection {conn_id!r}: its {field} holds credentials. Move them to the login and password fields; an @ that "
            "belongs to the path is written %40."
        )
    try:
        parts = urlsplit(whole if "://" in whole else f"{schema or 'http'}://{whole}")
        own_port = parts.port
    except ValueError:  # whose text, and the URL, are not repeated: there may be a password in them
        raise ConfigError(f"connection {conn_id!r}: its {field} is no URL (its port, perhaps). Set it to {example}.") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ConfigError(f"connection {conn_id!r}: its {field} {whole!r} is not of http or https. Set it to {example}.")
    if parts.fragment or (parts.query and not query):
        raise ConfigError(f"connection {conn_id!r}: its {field} has something after ? or #. Leave that out: {example}.")
    netloc = parts.netloc if own_port or not port else f"{parts.netloc}:{port}"
    return f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}{f'?{parts.query}' if parts.query else ''}"


def _holds_login(address: str) -> bool:
    """Look for an @ anywhere: a password with a slash in it makes a path of what follows, and a port of what stands before."""
    authority = address.partition("://")[2] if "://" in address else address
    return "@" in normalize("NFKC", address) or "@" in unquote(authority.partition("/")[0])
