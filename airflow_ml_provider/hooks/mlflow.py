"""The connection ``mlflow``: who reads it gets a small REST client, or what configures the real one."""

from __future__ import annotations

from typing import ClassVar

from airflow.providers.common.compat.sdk import AirflowNotFoundException
from airflow.sdk import BaseHook

from airflow_ml_provider.config import Settings, load_settings
from airflow_ml_provider.exceptions import ConfigError, RemoteNotFoundError, RemoteUnavailableError
from airflow_ml_provider.hooks.mlflow_api import MlflowApi
from airflow_ml_provider.hooks.mlflow_connection import read_server
from airflow_ml_provider.hooks.mlflow_server import MlflowServer

__all__ = ["MlflowApi", "MlflowHook", "MlflowServer"]

USERS_TIMEOUT_S = 120
"""MLflow's own default for one request of its client, which has one bound for artifacts and all else."""


class MlflowHook(BaseHook):
    """
    Connection of type ``mlflow``.

    :param mlflow_conn_id: Id of the connection. Its host is the server's URL; login and password are basic
        authentication; a password alone is sent as a bearer token. docs/mlflow-connection.md lists its extras.
    """

    conn_name_attr: ClassVar[str] = "mlflow_conn_id"
    default_conn_name: ClassVar[str] = "mlflow_default"
    conn_type: ClassVar[str] = "mlflow"
    hook_name: ClassVar[str] = "MLflow"

    def __init__(self, mlflow_conn_id: str = default_conn_name) -> None:
        super().__init__()
        self.mlflow_conn_id = mlflow_conn_id

    def server(self) -> MlflowServer:
        """
        Read the connection.

        :return: Address and credentials.
        :raises ConfigError: there is no such connection, or it holds no usable address; a retry never helps.
        """
        try:
            found = self.get_connection(self.mlflow_conn_id)
        except AirflowNotFoundException as error:
            raise ConfigError(
                f"there is no connection {self.mlflow_conn_id!r}. Add it: airflow connections add {self.mlflow_conn_id} "
                "--conn-type mlflow --conn-host http://<mlflow server>:5000"
            ) from error
        return read_server(
            self.mlflow_conn_id,
            host=found.host,
            port=found.port,
            schema=found.schema,
            login=found.login,
            password=found.password,
            extra=found.extra,
        )

    def api(self, settings: Settings | None = None) -> MlflowApi:
        """
        Make a client of the server; no request is sent.

        :param settings: Timeouts and retries; None reads the section ``[ml]``.
        :return: The client; close it when done.
        :raises ConfigError: the connection is missing or unusable; a retry never helps.
        """
        return MlflowApi(self.server(), settings)

    def get_conn(self) -> MlflowApi:
        """
        Make a client of the server, as Airflow's hooks name it; the same as :meth:`api`.

        :return: The client.
        """
        return self.api()

    def client_environment(self, settings: Settings | None = None) -> dict[str, str]:
        """
        Say what configures the real MLflow client in a process of its own.

        It reads no file of tokens: it is given the token of now, and of proxies it knows the environment's alone.

        :param settings: Timeouts and retries; None reads the section ``[ml]``.
        :return: Environment variables, the credentials among them: never log them.
        """
        server, bounds = self.server(), settings or load_settings()
        variables = {
            "MLFLOW_TRACKING_URI": server.url,
            "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(USERS_TIMEOUT_S, int(bounds.http_timeout_s))),
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": str(bounds.http_retries),
            "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
        }
        if server.username:
            variables |= {"MLFLOW_TRACKING_USERNAME": server.username, "MLFLOW_TRACKING_PASSWORD": server.password}
        elif token := server.token():
            variables["MLFLOW_TRACKING_TOKEN"] = token
        if server.workspace:
            variables["MLFLOW_WORKSPACE"] = server.workspace
        if not server.verify_tls:
            variables["MLFLOW_TRACKING_INSECURE_TLS"] = "true"
        elif server.ca_file:
            variables["MLFLOW_TRACKING_SERVER_CERT_PATH"] = server.ca_file
        return variables

    def test_connection(self) -> tuple[bool, str]:
        """
        Try the connection, for the button in Airflow's UI.

        :return: Whether it works, and a sentence: the server's version, or what to mend.
        """
        try:
            with self.api(Settings(http_timeout_s=10, http_retries=0)) as api:
                # The version answers without a login and under any Host header; only a real call tells.
                api.post("experiments/search", {"max_results": 1})
                return True, f"MLflow {api.version()} at {api.server.url} answers."
        except (ConfigError, RemoteUnavailableError, RemoteNotFoundError) as error:
            return False, str(error)
