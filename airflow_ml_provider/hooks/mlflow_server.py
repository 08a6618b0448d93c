"""Where an MLflow server is, as whom to speak to it, and where its pages are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from airflow_ml_provider.exceptions import ConfigError


@dataclass(frozen=True)
class MlflowServer:
    """
    Address and credentials of one MLflow server. Secrets are in no ``repr``.

    :param conn_id: Airflow connection that it was read from, for messages.
    :param url: Root URL without a slash at the end and without credentials.
    :param username: For basic authentication; empty otherwise.
    :param password: Password, or the bearer token when there is no user name; empty for neither.
    :param token_file: File with the bearer token, read at each request; empty for none.
    :param workspace: Workspace on a server that has them; empty for its default.
    :param ui_url: URL of its pages for people, for links; ``url`` when empty.
    :param pod_url: URL at which pods reach it; ``url`` when empty.
    :param verify_tls: Whether the server's certificate is verified.
    :param ca_file: PEM file of the authorities to trust; empty for ``SSL_CERT_FILE`` of the environment, else certifi's.
    :param proxy: URL of an HTTP proxy, which can hold a password; empty for what the environment says, ``none`` for none.
    """

    conn_id: str
    url: str
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token_file: str = ""
    workspace: str = ""
    ui_url: str = ""
    pod_url: str = ""
    verify_tls: bool = True
    ca_file: str = ""
    proxy: str = field(default="", repr=False)

    def token(self) -> str:
        """
        Read the bearer token.

        :return: The token; empty for a server without one, and for one with a login.
        :raises ConfigError: its file cannot be read, or holds none; a retry helps only once somebody has written it.
        """
        if not self.token_file:
            return "" if self.username else self.password
        try:
            token = Path(self.token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(
                f"connection {self.conn_id!r}: the token's file {self.token_file!r} (token_file) cannot be read: {reason}. It "
                "must be on every machine that runs tasks or triggers."
            ) from error
        if not token or not token.isascii() or not token.isprintable():
            raise ConfigError(
                f"connection {self.conn_id!r}: the token's file {self.token_file!r} (token_file) holds no token that can be "
                "sent: it is empty, or has several lines, or letters outside of ASCII."
            )
        return token

    def page(self, *parts: str) -> str:
        """
        Give the address of a page, for people.

        :param parts: What leads there, ``"models", "flight-delays"``; each is quoted, empty ones are left out.
        :return: URL.
        """
        path = "/".join(quote(each, safe="") for each in parts if each)
        where = f"?workspace={quote(self.workspace, safe='')}" if self.workspace else ""
        return f"{self.ui_url or self.url}/#/{path}{where}"

    def experiment_page(self, experiment_id: str = "") -> str:
        """
        Give the address of an experiment's page.

        :param experiment_id: The experiment; empty for the list of all.
        :return: URL.
        """
        return self.page("experiments", experiment_id)

    def model_page(self, name: str = "", version: str = "") -> str:
        """
        Give the address of a registered model's page.

        :param name: The model; empty for the list of all.
        :param version: Number of a version; empty for the model itself.
        :return: URL.
        """
        return self.page("models", name, *(("versions", version) if version else ()))

    def compare_page(self, experiment_id: str, run_ids: Sequence[str]) -> str:
        """
        Give the address of the page that compares runs.

        :param experiment_id: Their experiment.
        :param run_ids: Two runs, or more.
        :return: URL.
        """
        page = self.page("compare-runs")
        runs, experiments = quote(json.dumps(list(run_ids))), quote(json.dumps([experiment_id]))
        return f"{page}{'&' if '?' in page else '?'}runs={runs}&experiments={experiments}"

    def run_page(self, experiment_id: str, run_id: str) -> str:
        """
        Give the address of a run's page.

        :param experiment_id: Its experiment.
        :param run_id: The run.
        :return: URL.
        """
        return self.page("experiments", experiment_id, "runs", run_id)
