"""The server's MLflow plugin, as far as a client of the server sees it, and, where an MLflow is named, what it writes there."""

from __future__ import annotations

import time
import uuid
from typing import Any

from airflow_ml_provider.testing.kfp_answers import KfpError
from airflow_ml_provider.testing.kfp_results import Results, json_text
from airflow_ml_provider.testing.kfp_store import Store
from airflow_ml_provider.testing.kfp_values import Run

DEFAULT = "KFP-Default"
KINDS: dict[str, tuple[type, str]] = {
    "experiment_name": (str, "string"),
    "experiment_id": (str, "string"),
    "disabled": (bool, "bool"),
}
SCHEMA = "plugins_input.mlflow must follow schema {experiment_name?: string, experiment_id?: string, disabled?: bool}"
REFUSED = "dial tcp mlflow.example:5000: connect: connection refused"
API = "http://mlflow.example:5000/api/2.0/mlflow"


class MlflowPlugin:
    """
    Fills ``plugins_output`` of each run, unless the run says no.

    :param store: The tables; ``mlflow`` can be lost like the other surroundings.
    :param url: The MLflow server to write to; empty for none.
    :param results: What tasks have made.
    """

    def __init__(self, store: Store, url: str = "", results: Results | None = None) -> None:
        self.store = store
        self.url = url.rstrip("/")
        self.results = results
        self.experiments: dict[str, str] = {DEFAULT: "1"}

    def begin(self, run: Run) -> None:
        """
        Make the MLflow run of a run, before its workflow.

        :param run: The row to be.
        :raises KfpError: 409 for a wish that is not understood.
        """
        wish = self.wish((run.plugins_input or {}).get("mlflow") or {})
        if wish.get("disabled"):
            return
        name = wish.get("experiment_name") or DEFAULT
        if "mlflow" in self.store.lost:
            path = "experiments/get-by-name"
            failed = f'MLflow request GET /api/2.0/mlflow/{path} failed: Get "{API}/{path}?experiment_name={name}": {REFUSED}'
            self.failed(run, {"experiment_name": {"value": name}}, failed)
        elif wish.get("experiment_id") and wish["experiment_id"] not in self.experiments.values():
            chosen = wish["experiment_id"]
            why = f"MLflow API error (HTTP 404, RESOURCE_DOES_NOT_EXIST): No Experiment with id={chosen} exists"
            self.failed(run, {"experiment_id": {"value": chosen}}, f'experiment ID "{chosen}" not found in MLflow: {why}')
        else:
            self.made(run, name, wish.get("experiment_id", ""))

    def wish(self, given: dict[str, Any]) -> dict[str, Any]:
        """
        Check ``plugins_input.mlflow``.

        :param given: What was sent.
        :return: The same.
        :raises KfpError: 409.
        """
        for key, value in given.items():
            kind, word = KINDS.get(key, (object, ""))
            if word and isinstance(value, kind):
                continue
            why = f"json: cannot unmarshal into Go struct field .{key} of type {word}" if word else f'json: unknown field "{key}"'
            short = "Failed to create a run due to invalid mlflow plugin input"
            way = f"Invalid input error: failed to resolve MLflow plugin input: Invalid input error: {SCHEMA}: {why}"
            raise KfpError(10, f"Failed to create a new run: BadRequestError: {short}: {way}", short)
        return given

    def made(self, run: Run, name: str, experiment_id: str) -> None:
        """
        Tell of an MLflow run.

        :param run: The row.
        :param name: Experiment, made when it is not there.
        :param experiment_id: Id of the experiment that was asked for, empty for none.
        """
        if experiment_id:
            name = next(each for each, number in self.experiments.items() if number == experiment_id)
        number = self.experiments.setdefault(name, str(len(self.experiments) + 1))
        root = uuid.uuid4().hex
        if self.url:
            number = self.experiments[name] = self.experiment(name)
            root = self.start(number, run.display_name, self.tags(run))
        url = f"{self.url or 'https://mlflow.example'}/#/experiments/{number}/runs/{root}"
        entries = {"experiment_id": {"value": number}, "experiment_name": {"value": name}, "root_run_id": {"value": root}}
        told = {**entries, "run_url": {"value": url, "render_type": "URL"}}
        run.plugins_output = {"mlflow": {"entries": told, "state": "PLUGIN_SUCCEEDED"}}

    def failed(self, run: Run, entries: dict[str, Any], why: str) -> None:
        """
        Tell that it did not work; the run starts all the same.

        :param run: The row.
        :param entries: What is known.
        :param why: The server's words.
        """
        run.plugins_output = {"mlflow": {"entries": entries, "state": "PLUGIN_FAILED", "state_message": why}}

    def end(self, run: Run) -> None:
        """
        Close the MLflow run of a run that has ended.

        :param run: The row, which has its state already.
        :raises KfpError: 503 while MLflow is away: the agent repeats its report.
        """
        told = (run.plugins_output or {}).get("mlflow") or {}
        root = (told.get("entries") or {}).get("root_run_id", {}).get("value")
        if "mlflow" not in self.store.lost and root and self.url:
            self.write(run, root, str(told["entries"]["experiment_id"]["value"]))
        if "mlflow" not in self.store.lost or not root:
            return
        update = f'MLflow request POST /api/2.0/mlflow/runs/update failed: Post "{API}/runs/update": {REFUSED}'
        search = f'MLflow request POST /api/2.0/mlflow/runs/search failed: Post "{API}/runs/search": {REFUSED}'
        self.failed(
            run, told["entries"], f"failed to update parent run status: {update}; failed to search child runs of {root}: {search}"
        )
        run.text = None
        name, again = run.workflow.name if run.workflow else "", "plugin terminal sync requested retry"
        skip = f"Skipping terminal workflow report for run {run.run_id} workflow {name}: {again}: {again}"
        raise KfpError(14, f"Failed to report workflow: ServiceUnavailable: {skip}", "Service unavailable")

    def tags(self, run: Run) -> dict[str, str]:
        """
        Tell the tags of the MLflow run of a run.

        :param run: The row to be.
        :return: Value per key.
        """
        told = {
            "kfp.pipeline_run_id": run.run_id,
            "kfp.pipeline_run_url": f"https://kfp.example/#/runs/details/{run.run_id}",
            "kfp.pipeline_id": run.pipeline_id,
            "kfp.pipeline_version_id": run.pipeline_version_id,
            "mlflow.kfp.idempotencyKey": run.run_id,
        }
        return {key: value for key, value in told.items() if value}

    def write(self, run: Run, root: str, experiment_id: str) -> None:
        """
        Write what driver and launcher have logged of each task, and close the runs; a run that was repeated is closed again.

        :param run: The row, which has its state already.
        :param root: Its MLflow run.
        :param experiment_id: Experiment of both.
        """
        done = self.results.of_runs.get(run.run_id, []) if self.results else []
        status = "FINISHED" if run.state == "SUCCEEDED" else "FAILED"
        for each in done:
            child = self.start(experiment_id, each.task, {"mlflow.parentRunId": root})
            numbers = {key: value for some in each.made.metrics.values() for key, value in some.items()}
            metrics = [{"key": key, "value": value, "timestamp": 0, "step": 0} for key, value in numbers.items()]
            given = self.results.inputs(run, each.task) if self.results else {}
            params = [{"key": key, "value": json_text(value)} for key, value in given.items()]
            self.ask("runs/log-batch", {"run_id": child, "metrics": metrics, "params": params})
            self.ask("runs/update", {"run_id": child, "status": status, "end_time": self.store.now * 1000})
        self.ask("runs/update", {"run_id": root, "status": status, "end_time": self.store.now * 1000})

    def experiment(self, name: str) -> str:
        """
        Find an experiment of the real MLflow, or make it.

        :param name: Its name.
        :return: Its id.
        """
        found = self.ask("experiments/search", {"max_results": 1, "filter": f"name = '{name}'"}).get("experiments")
        return str(found[0]["experiment_id"] if found else self.ask("experiments/create", {"name": name})["experiment_id"])

    def start(self, experiment_id: str, name: str, tags: dict[str, str]) -> str:
        """
        Make a run in the real MLflow.

        :param experiment_id: Its experiment.
        :param name: Its name.
        :param tags: Its tags.
        :return: Its id.
        """
        pairs = [{"key": key, "value": value} for key, value in tags.items()]
        body = {"experiment_id": experiment_id, "run_name": name, "start_time": int(time.time() * 1000), "tags": pairs}
        return str(self.ask("runs/create", body)["run"]["info"]["run_id"])

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """
        Send one request to the real MLflow.

        :param path: Below its API.
        :param body: JSON.
        :return: JSON of the answer.
        """
        import httpx

        answer = httpx.post(f"{self.url}/api/2.0/mlflow/{path}", json=body, timeout=30).raise_for_status()
        found: dict[str, Any] = answer.json()
        return found
