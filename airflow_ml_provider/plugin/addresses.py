"""Where our pages are, and those of Airflow's that they lead to; every part that comes from outside is quoted here."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urlencode, urlsplit

PREFIX = "/airflow-ml"


@dataclass(frozen=True)
class Addresses:
    """
    Addresses below those of one Airflow.

    :param root: Path of Airflow's UI, without a slash at the end; empty at the root of its host.
    """

    root: str = ""

    def dag(self, dag_id: str, more: str = "") -> str:
        """
        Name the page of a DAG.

        :param dag_id: Id of the DAG.
        :param more: What MLflow has given for older runs.
        :return: Address.
        """
        return self._ours(dag_id, "", **({"more": more} if more else {}))

    def run(self, dag_id: str, run_id: str, more: str = "") -> str:
        """
        Name the page of a DAG run.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the DAG run.
        :param more: What MLflow has given for later steps.
        :return: Address.
        """
        return self._ours(dag_id, "/run", run_id=run_id, **({"more": more} if more else {}))

    def others(self, dag_id: str, run_id: str) -> str:
        """
        Name the page of comparisons of a DAG run.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the DAG run.
        :return: Address.
        """
        return self._ours(dag_id, "/run/others", run_id=run_id)

    def step(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
        """
        Name the page of a step.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the DAG run.
        :param task_id: Id of the task.
        :param map_index: Its index, -1 when it is not mapped.
        :return: Address.
        """
        return self._ours(dag_id, "/run/step", run_id=run_id, task_id=task_id, map_index=str(map_index))

    def artifact(self, dag_id: str, mlflow_run: str, path: str) -> str:
        """
        Name the page of a file.

        :param dag_id: Id of the DAG.
        :param mlflow_run: Id of the MLflow run.
        :param path: Below the run's artifacts.
        :return: Address.
        """
        return self._ours(dag_id, "/artifact", run=mlflow_run, path=path)

    def picture(self, dag_id: str, mlflow_run: str, path: str) -> str:
        """
        Name the bytes of a picture.

        :param dag_id: Id of the DAG.
        :param mlflow_run: Id of the MLflow run.
        :param path: Below the run's artifacts.
        :return: Address.
        """
        return self._ours(dag_id, "/picture", run=mlflow_run, path=path)

    def model(self, dag_id: str, name: str, version: str = "") -> str:
        """
        Name the page of a registered model.

        :param dag_id: Id of a DAG that makes versions of it.
        :param name: Name of the model.
        :param version: Number of the version to show; empty for the champion, or the newest.
        :return: Address.
        """
        return self._ours(dag_id, "/model", name=name, **({"version": version} if version else {}))

    def lineage(self, dag_id: str, uri: str) -> str:
        """
        Name the page of what a model comes from.

        :param dag_id: Id of a DAG.
        :param uri: URI of the model.
        :return: Address.
        """
        return self._ours(dag_id, "/lineage", of=uri)

    def log(self, dag_id: str, run_id: str, task_id: str, map_index: int, try_number: str) -> str:
        """
        Name Airflow's page of a task's log.

        :param dag_id: Id of the DAG.
        :param run_id: Id of the DAG run.
        :param task_id: Id of the task.
        :param map_index: Its index, -1 when it is not mapped.
        :param try_number: Number of the try; empty for the last.
        :return: Address.
        """
        parts = ["dags", dag_id, "runs", run_id, "tasks", task_id, *(["mapped", str(map_index)] if map_index >= 0 else [])]
        query = f"?{urlencode({'try_number': try_number})}" if try_number else ""
        return f"{self.root}/" + "/".join(quote(each, safe="") for each in parts) + query

    def login(self, login: str, back: str) -> str:
        """
        Name Airflow's page to log in.

        :param login: Its path.
        :param back: Where to go then.
        :return: Address.
        """
        return f"{self.root}{login}?{urlencode({'next': back})}"

    def _ours(self, dag_id: str, below: str, /, **query: str) -> str:
        asked = f"?{urlencode(query, quote_via=quote)}" if query else ""
        return f"{self.root}{PREFIX}/dags/{quote(dag_id, safe='')}{below}{asked}"


def outside(address: str) -> str:
    """
    Let through what a browser may be led to.

    :param address: As somebody has written it into a tag.
    :return: It, if it is of ``http`` or ``https`` and names a host; else empty.
    """
    try:
        parts = urlsplit(address)
        return (
            address
            if parts.scheme in {"http", "https"} and parts.hostname and " " not in address and address.isprintable()
            else ""
        )
    except ValueError:
        return ""
