"""The fields of a connection of type ``mlflow``: which there are, what they mean, how they become an :class:`MlflowServer`."""

from __future__ import annotations

from typing import Any

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.connection_fields import Extra, Fields, form_field, read_url
from airflow_ml_provider.hooks.mlflow_server import MlflowServer

EXAMPLE = "http://mlflow:5000"
PAGE = "docs/mlflow-connection.md"

EXTRAS: dict[str, Extra] = {
    "token_file": Extra(
        "string",
        "Token's file",
        "File with a bearer token, read at each request: a service account's projected token, for example. Default: none.",
    ),
    "workspace": Extra("string", "Workspace", "Workspace, on a server that has them. Default: the server's default."),
    "ui_url": Extra("string", "URL of the pages", "URL of the server's pages, for links. Default: the host's URL."),
    "pod_url": Extra("string", "URL for pods", "URL at which pods of a cluster reach the server. Default: the host's URL."),
    "verify_tls": Extra("boolean", "Verify certificates", "Whether the server's certificate is verified. Default: true."),
    "ca_file": Extra(
        "string",
        "CA file",
        "PEM file with the authorities to trust. Default: SSL_CERT_FILE of the environment, else certifi's list.",
    ),
    "proxy": Extra(
        "string",
        "Proxy",
        "URL of an HTTP proxy, or none to go without. Default: HTTP_PROXY, HTTPS_PROXY and NO_PROXY of the environment.",
    ),
}
"""All extras by name, in the order of the form."""


def mlflow_connection() -> dict[str, Any]:
    """
    Describe the connection type, for Airflow's provider metadata.

    :return: Type, hook, labels and placeholders of the standard fields, and the extras as a form.
    """
    return {
        "connection-type": "mlflow",
        "hook-class-name": "airflow_ml_provider.hooks.mlflow.MlflowHook",
        "hook-name": "MLflow",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "port"],
            "relabeling": {
                "host": "Tracking URL",
                "login": "Login (empty for a token)",
                "password": "Password or token",
            },
            "placeholders": {"host": "https://mlflow.example.com"},
        },
        "conn-fields": {name: form_field(name, extra) for name, extra in EXTRAS.items()},
    }


def read_server(
    conn_id: str,
    *,
    host: str | None,
    port: int | None = None,
    schema: str | None = None,
    login: str | None = None,
    password: str | None = None,
    extra: str | None = None,
) -> MlflowServer:
    """
    Read a connection's fields.

    :param conn_id: For messages.
    :param host: A URL with a path if need be, or a host name alone.
    :param port: Port, if it is not in ``host``.
    :param schema: ``http`` or ``https``, if it is not in ``host``; ``http`` by default.
    :param login: User; empty for a token.
    :param password: Password, or token.
    :param extra: JSON object of the extras.
    :return: The server. No file is read and nothing is asked.
    :raises ConfigError: a field is missing, unknown, or not what it should be; a retry never helps.
    """
    fields = Fields(conn_id, PAGE, EXTRAS, login=login, password=password, extra=extra)
    url = read_url(conn_id, "host", host, example=EXAMPLE, port=port, schema=schema)
    user, secret = fields.login, fields.password
    if not (user + secret).isprintable() or not (user or secret.isascii()):
        raise ConfigError(
            f"connection {conn_id!r}: login or password holds characters that cannot be sent (a line end, or letters outside of "
            "ASCII in a token). Enter it again."
        )
    token_file, workspace = fields.text("token_file"), fields.text("workspace")
    if token_file and (user or secret):
        fields.refuse("token_file and login or password are both set: choose who asks")
    if not workspace.isascii():
        fields.refuse(f"workspace {workspace!r} has letters outside of ASCII, which no header can hold")
    addresses = {name: fields.text(name) for name in ("ui_url", "pod_url")}
    return MlflowServer(
        conn_id=conn_id,
        url=url,
        username=user,
        password=secret,
        token_file=token_file,
        workspace=workspace,
        verify_tls=fields.flag("verify_tls", default=True),
        ca_file=fields.text("ca_file"),
        proxy=fields.text("proxy"),
        **{name: read_url(conn_id, name, value, example=EXAMPLE) if value else "" for name, value in addresses.items()},
    )
