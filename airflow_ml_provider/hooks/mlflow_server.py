"""Where an MLflow server is and as whom to speak to it, read from a connection's fields."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from airflow_ml_provider.exceptions import ConfigError


@dataclass(frozen=True)
class MlflowServer:
    """
    Address and credentials of one MLflow server.

    :param conn_id: Airflow connection that it was read from, for messages.
    :param url: Root URL without a slash at the end and without credentials.
    :param username: For basic authentication; empty otherwise.
    :param password: Password, or the bearer token when there is no user name; empty for neither.
    """

    conn_id: str
    url: str
    username: str = ""
    password: str = ""

    def __repr__(self) -> str:
        return f"MlflowServer(conn_id={self.conn_id!r}, url={self.url!r})"


def server_url(conn_id: str, host: str | None, port: int | None, schema: str | None) -> str:
    """
    Build the server's URL from a connection's fields.

    :param conn_id: For messages.
    :param host: A URL with a path if need be, or a host name alone.
    :param port: Port, if it is not in ``host``.
    :param schema: ``http`` or ``https``, if it is not in ``host``; ``http`` by default.
    :return: URL without a slash at the end.
    :raises ConfigError: no host, credentials in the URL, or another scheme; a retry never helps.
    """
    if not host:
        raise ConfigError(f"connection {conn_id!r} has no host. Set it to the URL of the MLflow server, http://mlflow:5000.")
    try:
        parts = urlsplit(host if "://" in host else f"{schema or 'http'}://{host}")
        own_port = parts.port
    except ValueError as error:
        raise ConfigError(f"connection {conn_id!r}: its host is no URL ({error}). Set it to http://mlflow:5000.") from error
    if parts.username or parts.password:
        raise ConfigError(f"connection {conn_id!r}: the host holds credentials. Move them to the login and password fields.")
    if parts.scheme not in {"http", "https"}:
        raise ConfigError(
            f"connection {conn_id!r}: scheme {parts.scheme!r} is not http or https. Give the URL of an MLflow server."
        )
    netloc = parts.netloc if own_port or not port else f"{parts.netloc}:{port}"
    return f"{parts.scheme}://{netloc}{parts.path.rstrip('/')}"
