"""The server's MLflow plugin, as far as a client of the server sees it. No MLflow is asked."""

from __future__ import annotations

import uuid
from typing import Any

from airflow_ml_provider.testing.kfp_answers import KfpError
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
    """

    def __init__(self, store: Store) -> None:
        self.store = store
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
        url = f"https://mlflow.example/#/experiments/{number}/runs/{root}"
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
