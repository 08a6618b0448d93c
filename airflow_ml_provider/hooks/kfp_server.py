"""Where a Kubeflow Pipelines server is and as whom to speak to it, as values. Secrets are in no ``repr``."""

from __future__ import annotations

from dataclasses import dataclass, field

AUDIENCE = "pipelines.kubeflow.org"
"""Audience of a service account's token that the server asks for."""
TOKEN_FILE = "/var/run/secrets/kubeflow/pipelines/token"  # noqa: S105  (a path)
"""Where a projected token of a service account is mounted by default."""
TOKEN_FILE_VARIABLE = "KF_PIPELINES_SA_TOKEN_PATH"  # noqa: S105  (a name)
"""Environment variable that says where it is mounted instead."""
LOCAL = "local://"
"""Host of a connection without a server: pipelines run on the worker."""
USER_HEADER = "kubeflow-userid"
"""Header in which a gateway tells the server who the user is, by default."""


@dataclass(frozen=True)
class NoAuth:
    """No credentials: a server without users."""


@dataclass(frozen=True)
class BearerAuth:
    """
    A bearer token; exactly one of the three.

    :param token: The token itself.
    :param variable: Environment variable that holds it, read at each request.
    :param file: File that holds it, read at each request.
    """

    token: str = field(default="", repr=False)
    variable: str = ""
    file: str = ""


@dataclass(frozen=True)
class ServiceAccountAuth:
    """
    A service account's token, from a file that Kubernetes keeps fresh, or asked of the Kubernetes API.

    :param file: Projected file; empty takes what ``KF_PIPELINES_SA_TOKEN_PATH`` says when a request is made.
    :param kubernetes_conn_id: Connection to Kubernetes by which tokens are asked for; empty reads the file.
    :param name: Name of the service account, with ``kubernetes_conn_id``.
    :param namespace: Its namespace.
    :param audience: Audience of the tokens.
    :param lifetime_s: Seconds that a token is asked for; Kubernetes gives at least 600.
    """

    file: str = ""
    kubernetes_conn_id: str = ""
    name: str = ""
    namespace: str = ""
    audience: str = AUDIENCE
    lifetime_s: int = 3600


@dataclass(frozen=True)
class UserHeaderAuth:
    """
    The user's name in a header, where the network keeps others from sending it.

    :param user: Name, for example ``alice@example.com``.
    :param header: Name of the header.
    """

    user: str
    header: str = USER_HEADER


@dataclass(frozen=True)
class OidcAuth:
    """
    An access token for client credentials, from an OpenID Connect provider.

    :param token_url: Token endpoint.
    :param client_id: Client.
    :param client_secret: Its secret.
    :param scope: Scopes, divided by blanks; empty for none.
    :param audience: Parameter ``audience``, empty for none.
    :param in_body: Whether client and secret are sent in the body; else by basic authentication.
    """

    token_url: str
    client_id: str
    client_secret: str = field(repr=False)
    scope: str = ""
    audience: str = ""
    in_body: bool = False


@dataclass(frozen=True)
class DexAuth:
    """
    A session behind Dex's login form, with oauth2-proxy or the older AuthService before the server.

    :param username: User, usually an e-mail address.
    :param password: Password.
    :param connector: Id of Dex's connector: ``local`` for static passwords, often ``ldap``.
    """

    username: str
    password: str = field(repr=False)
    connector: str = "local"


KfpAuth = NoAuth | BearerAuth | ServiceAccountAuth | UserHeaderAuth | OidcAuth | DexAuth


@dataclass(frozen=True)
class KfpServer:
    """
    Address and credentials of one server.

    :param conn_id: Airflow connection that it was read from, for messages.
    :param url: URL before ``/apis/``, without a slash at the end and without credentials.
    :param namespace: Namespace on a server with users; empty on one without.
    :param ui_url: URL of its pages for people, for links; ``url`` when empty.
    :param auth: As whom.
    :param verify_tls: Whether the server's certificate is verified.
    :param ca_file: PEM file of the authorities to trust; empty for ``SSL_CERT_FILE`` of the environment, else certifi's.
    :param proxy: URL of an HTTP proxy, which can hold a password; empty for what the environment says, ``none`` for none.
    """

    conn_id: str
    url: str
    namespace: str = ""
    ui_url: str = ""
    auth: KfpAuth = NoAuth()
    verify_tls: bool = True
    ca_file: str = ""
    proxy: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if not self.ui_url:
            object.__setattr__(self, "ui_url", self.url)

    @property
    def local(self) -> bool:
        """Whether there is no server, and pipelines run on this machine."""
        return self.url == LOCAL

    @property
    def where(self) -> str:
        """Server and connection, for messages."""
        return f"Kubeflow Pipelines at {self.url} (connection {self.conn_id!r})"
