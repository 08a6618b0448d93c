"""The fields of a connection of type ``kfp``: which there are, what they mean, and how they become a :class:`KfpServer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.connection_fields import Extra, Fields, form_field, read_url, suggest
from airflow_ml_provider.hooks.kfp_server import (
    AUDIENCE,
    LOCAL,
    USER_HEADER,
    BearerAuth,
    DexAuth,
    KfpAuth,
    KfpServer,
    NoAuth,
    OidcAuth,
    ServiceAccountAuth,
    UserHeaderAuth,
)

AUTHS = ("none", "bearer", "service-account", "user-header", "oidc", "dex")
EXAMPLE = "https://kubeflow.example.com/pipeline"
SHORTEST_TOKEN_S = 600
"""Seconds; Kubernetes refuses to give tokens of a shorter life."""


EXTRAS: dict[str, Extra] = {
    "auth": Extra(
        "string",
        "Authentication",
        "none, bearer, service-account, user-header, oidc or dex. Default: bearer with a password and no login, else none.",
    ),
    "namespace": Extra("string", "Namespace", "Namespace of runs and experiments, on a server with users. Default: none."),
    "ui_url": Extra("string", "URL of the pages", "URL of the server's pages, for links. Default: the host's URL."),
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
    "token_variable": Extra(
        "string",
        "Token's environment variable",
        "Environment variable with the token, read at each request. Default: none.",
        ("bearer",),
    ),
    "token_file": Extra(
        "string",
        "Token's file",
        "File with the token, read at each request. Default: for service-account what KF_PIPELINES_SA_TOKEN_PATH of the "
        "environment says, else /var/run/secrets/kubeflow/pipelines/token.",
        ("bearer", "service-account"),
    ),
    "kubernetes_conn_id": Extra(
        "string",
        "Kubernetes connection",
        "Connection by which tokens are asked of the Kubernetes API. Default: none, the file is read.",
        ("service-account",),
    ),
    "service_account": Extra(
        "string", "Service account", "Name of the service account, needed with kubernetes_conn_id.", ("service-account",)
    ),
    "service_account_namespace": Extra(
        "string", "Service account's namespace", "Its namespace. Default: the connection's namespace.", ("service-account",)
    ),
    "token_lifetime_s": Extra(
        "integer",
        "Token's lifetime (s)",
        "Seconds that a token is asked for with kubernetes_conn_id, at least 600. Default: 3600.",
        ("service-account",),
    ),
    "audience": Extra(
        "string",
        "Audience",
        "Audience of the token. Default: pipelines.kubeflow.org for service-account, none for oidc.",
        ("service-account", "oidc"),
    ),
    "user": Extra("string", "User", "Name in the header. Default: the login.", ("user-header",)),
    "user_header": Extra("string", "User header", "Name of the header. Default: kubeflow-userid.", ("user-header",)),
    "token_url": Extra("string", "Token endpoint", "URL of the provider's token endpoint; needed.", ("oidc",)),
    "scope": Extra("string", "Scope", "Scopes, divided by blanks. Default: none.", ("oidc",)),
    "client_auth": Extra(
        "string", "Client authentication", "header (basic) or body: where client and secret are sent. Default: header.", ("oidc",)
    ),
    "connector": Extra("string", "Dex connector", "Id of Dex's connector. Default: local, its static passwords.", ("dex",)),
}
"""All extras by name, in the order of the form."""


def kfp_connection() -> dict[str, Any]:
    """
    Describe the connection type, for Airflow's provider metadata.

    :return: Type, hook, labels and placeholders of the standard fields, and the extras as a form.
    """
    return {
        "connection-type": "kfp",
        "hook-class-name": "airflow_ml_provider.hooks.kfp.KfpHook",
        "hook-name": "Kubeflow Pipelines",
        "ui-field-behaviour": {
            "hidden-fields": ["schema", "port"],
            "relabeling": {
                "host": "URL",
                "login": "User or client id",
                "password": "Token, password or client secret",
            },
            "placeholders": {"host": "https://kubeflow.example.com/pipeline, or local://"},
        },
        "conn-fields": {name: _form_field(name, extra) for name, extra in EXTRAS.items()},
    }


def _form_field(name: str, extra: Extra) -> dict[str, Any]:
    field = form_field(name, extra)
    if name == "auth":
        field["schema"]["enum"] = [*AUTHS, None]
    if name == "token_lifetime_s":
        field["schema"]["minimum"] = SHORTEST_TOKEN_S
    return field


def read_server(
    conn_id: str,
    *,
    host: str | None,
    port: int | None = None,
    schema: str | None = None,
    login: str | None = None,
    password: str | None = None,
    extra: str | None = None,
) -> KfpServer:
    """
    Read a connection's fields.

    :param conn_id: For messages.
    :param host: A URL with a path if need be, or a host name alone; ``local://`` for no server but this machine.
    :param port: Port, if it is not in ``host``.
    :param schema: ``http`` or ``https``, if it is not in ``host``; ``http`` by default.
    :param login: User, or client id.
    :param password: Token, password, or client secret.
    :param extra: JSON object of the extras.
    :return: The server. No file is read and nothing is asked.
    :raises ConfigError: a field is missing, unknown, or not what it should be; a retry never helps.
    """
    fields = Fields(conn_id, "docs/kfp-connection.md", EXTRAS, login=login, password=password, extra=extra)
    if (host or "").strip().lower().startswith("local:/"):
        return _local(fields, str(host).strip(), port)
    url = read_url(conn_id, "host", host, example=EXAMPLE, port=port, schema=schema)
    name = fields.text("auth") or ("bearer" if fields.password and not fields.login else "none")
    if name not in AUTHS:
        raise ConfigError(f"connection {conn_id!r}: there is no auth {name!r}.{suggest(name, AUTHS)}")
    _refuse_strangers(fields, name)
    ui_url = fields.text("ui_url")
    return KfpServer(
        conn_id=conn_id,
        url=url.removesuffix("/apis/v2beta1").removesuffix("/apis"),
        namespace=fields.text("namespace"),
        ui_url=read_url(conn_id, "ui_url", ui_url, example=EXAMPLE) if ui_url else "",
        auth=_READERS[name](fields),
        verify_tls=fields.flag("verify_tls", default=True),
        ca_file=fields.text("ca_file"),
        proxy=fields.text("proxy"),
    )


def _local(fields: Fields, host: str, port: int | None) -> KfpServer:
    """Read a connection without a server: there is nothing to say but that."""
    given = [name for name, value in (("login", fields.login), ("password", fields.password), ("port", port)) if value]
    given += [f"extra {name!r}" for name in fields.extras]
    if host.lower() != LOCAL:
        fields.refuse(f"host {host!r} is neither {LOCAL!r}, which runs pipelines on this machine, nor the URL of a server")
    if given:
        fields.refuse(f"host {LOCAL!r} has no server that would read {' and '.join(given)}: remove that")
    return KfpServer(conn_id=fields.conn_id, url=LOCAL)


def _refuse_strangers(fields: Fields, auth: str) -> None:
    """Refuse what the chosen authentication does not read: it would be ignored without a word."""
    for name in fields.extras:
        readers = EXTRAS[name].auths
        if readers and auth not in readers:
            fields.refuse(f"extra {name!r} is read by auth {' and '.join(map(repr, readers))} only, but auth is {auth!r}")
    if auth in {"none", "service-account"} and (fields.password or fields.login):
        field = "password" if fields.password else "login"
        fields.refuse(
            f"{field} is set, but auth {auth!r} does not read it: remove it, or choose auth bearer, oidc, dex or user-header"
        )


def _bearer(fields: Fields) -> KfpAuth:
    variable, file = fields.text("token_variable"), fields.text("token_file")
    sources = [
        name for name, value in (("password", fields.password), ("token_variable", variable), ("token_file", file)) if value
    ]
    if len(sources) != 1:
        fields.refuse(
            f"auth bearer needs one of password, token_variable and token_file, but has {' and '.join(sources) or 'none'}"
        )
    if fields.login:
        fields.refuse("auth bearer has no user, but login is set: remove it, or choose auth oidc or dex")
    return BearerAuth(token=fields.password, variable=variable, file=file)


def _service_account(fields: Fields) -> KfpAuth:
    connection, name, file = fields.text("kubernetes_conn_id"), fields.text("service_account"), fields.text("token_file")
    audience = fields.text("audience") or AUDIENCE
    if not connection:
        if name:
            fields.refuse("service_account is read with kubernetes_conn_id only; a projected file is of the pod's own account")
        return ServiceAccountAuth(file=file, audience=audience)
    if file:
        fields.refuse("token_file and kubernetes_conn_id are both set: choose where tokens come from")
    return ServiceAccountAuth(
        kubernetes_conn_id=connection,
        name=fields.needed("service_account, the account whose token is asked for", name),
        namespace=fields.needed(
            "service_account_namespace, or namespace", fields.text("service_account_namespace") or fields.text("namespace")
        ),
        audience=audience,
        lifetime_s=fields.seconds("token_lifetime_s", ServiceAccountAuth.lifetime_s, SHORTEST_TOKEN_S),
    )


def _user_header(fields: Fields) -> KfpAuth:
    user = fields.needed("user, or login: the name to send", fields.text("user") or fields.login)
    header = fields.text("user_header") or USER_HEADER
    if (
        not user.isascii()
        or not user.isprintable()
        or not header.replace("-", "").replace("_", "").isalnum()
        or not header.isascii()
    ):
        fields.refuse(f"user {user!r} or user_header {header!r} cannot be sent: letters outside of ASCII, blanks, or signs")
    if fields.password:
        fields.refuse("auth user-header has no password: remove it, or choose auth dex or oidc")
    return UserHeaderAuth(user=user, header=header)


def _oidc(fields: Fields) -> KfpAuth:
    place = fields.text("client_auth") or "header"
    if place not in {"header", "body"}:
        fields.refuse(f"client_auth is {place!r}, but must be 'header' or 'body'")
    return OidcAuth(
        token_url=read_url(
            fields.conn_id,
            "token_url",
            fields.needed("token_url, the provider's token endpoint", fields.text("token_url")),
            example="https://keycloak.example.com/realms/ml/protocol/openid-connect/token",
            query=True,
        ),
        client_id=fields.needed("login, the client's id", fields.login),
        client_secret=fields.needed("password, the client's secret", fields.password),
        scope=fields.text("scope"),
        audience=fields.text("audience"),
        in_body=place == "body",
    )


def _dex(fields: Fields) -> KfpAuth:
    return DexAuth(
        username=fields.needed("login, the user's name", fields.login),
        password=fields.needed("password", fields.password),
        connector=fields.text("connector") or DexAuth.connector,
    )


_READERS: dict[str, Callable[[Fields], KfpAuth]] = {
    "none": lambda _: NoAuth(),
    "bearer": _bearer,
    "service-account": _service_account,
    "user-header": _user_header,
    "oidc": _oidc,
    "dex": _dex,
}
