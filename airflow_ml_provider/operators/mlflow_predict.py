"""Predictions over a whole table, as a step: model and table on record as inputs, the predictions as output."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from airflow.sdk import BaseOperator

from airflow_ml_provider.core.signature import StepParameter, StepSignature
from airflow_ml_provider.core.wiring import check_choice
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.links.mlflow import MlflowRunLink
from airflow_ml_provider.models.artifact import Dataset, Model
from airflow_ml_provider.operators.references import check_value
from airflow_ml_provider.operators.step import TypedStepMixin

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.interpreters import ChildProcess
    from airflow_ml_provider.operators.session import StepSession

Interpreter = Literal["worker", "model"]
"""Where a model predicts: in the task's own process, or in an interpreter that has the model's requirements."""
OUTPUT = "predictions"


class MlflowBatchPredictOperator(TypedStepMixin, BaseOperator):
    """
    Predicts over a table with a model that MLflow can load as ``pyfunc``, by stream, and keeps the predictions as Parquet.

    A step: it has a nested MLflow run, with the model and the table as inputs. The model gets the columns that its signature
    names, or all. An answer with names keeps them; one without is ``prediction``, or ``prediction_0`` and so on.

    A retry predicts anew and writes its own file; an interpreter that the try before has made is used again.

    The XCom is as of a step with outputs: ``predict.output["predictions"]`` is a reference to the Parquet file, for
    ``Input[Dataset]`` of another step.

    :param model: Reference to the model, ``fit["model"]``, or its URI, ``models:/flight-delays@champion``.
    :param table: Reference to the table, or its URI; a Parquet or CSV file, or a folder of Parquet files.
    :param keep_columns: Columns of the table that stand beside the predictions; None keeps all.
    :param batch_rows: Rows that the model gets at once, and that are in memory.
    :param parameters: For the model's ``predict``, as its signature has them; None for none.
    :param interpreter: ``worker`` predicts in the task's process. ``model`` makes an interpreter with the model's requirements
        (uv, else venv and pip): once for equal requirements, and without the network after that. It gets neither Airflow's
        variables nor MLflow's login.
    :param interpreters: Folder on the worker that keeps these interpreters; None takes ``[ml] interpreters``, which is
        ``ml-interpreters`` in Airflow's home by default.
    :param mlflow_conn_id: Connection of the MLflow server.
    :param experiment: Name of the MLflow experiment, as for ``@task.ml``.
    :param artifact_root: URI below which the predictions are stored; None means MLflow's own store.
    """

    template_fields: Sequence[str] = (
        *("model", "table", "keep_columns", "batch_rows", "parameters", "interpreter", "interpreters"),
        *("experiment", "artifact_root"),
    )
    operator_extra_links = (MlflowRunLink(),)
    shallow_copy_attrs: Sequence[str] = ("session", "child")
    ui_color = "#e6f4ff"

    def __init__(
        self,
        *,
        model: Any,
        table: Any,
        keep_columns: Sequence[str] | None = None,
        batch_rows: int | str = 10_000,
        parameters: Mapping[str, Any] | None = None,
        interpreter: Interpreter = "worker",
        interpreters: str | None = None,
        mlflow_conn_id: str = "mlflow_default",
        experiment: str | None = None,
        artifact_root: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.model = model
        self.table = table
        self.keep_columns = keep_columns
        self.batch_rows = batch_rows
        self.parameters = parameters
        self.interpreter = interpreter
        self.interpreters = interpreters
        self.mlflow_conn_id = mlflow_conn_id
        self.experiment = experiment
        self.artifact_root = artifact_root
        self.child: ChildProcess | None = None
        for name in ("model", "table"):
            check_value(self.signature, self.signature.parameters[name], getattr(self, name))
        self.check_outlets(mlflow_conn_id)

    @property
    def signature(self) -> StepSignature:
        """What the step reads and makes."""
        read = {"model": StepParameter.input("model", Model), "table": StepParameter.input("table", Dataset)}
        empty = inspect.Parameter.empty
        made = StepParameter(OUTPUT, "output", Dataset, many=False, optional=False, default=empty, annotation=Dataset)
        return StepSignature(self.task_id, read | {OUTPUT: made})

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Fetch model and table, predict, and store the predictions.

        :param context: Airflow's context.
        :return: The outputs, as plain JSON.
        :raises ConfigError: table and model do not fit, an argument is wrong, or the worker lacks a package; there is no retry.
        :raises ArtifactError: the model or the table is not what was recorded.
        :raises PredictionError: the model failed; a retry helps only where the reason passes.
        :raises RemoteUnavailableError: MLflow did not answer within the patience, or the model's interpreter could not be made.
        """
        from airflow_ml_provider.interpreters import ChildProcess
        from airflow_ml_provider.operators.execution import open_step

        self.child = ChildProcess()
        params = {"batch_rows": self.batch_rows, "interpreter": self.interpreter, "keep_columns": self.keep_columns}
        with open_step(self, context, params, in_worker=self.interpreter == "worker") as session:
            self.session = session
            check_choice(self.task_id, "interpreter", self.interpreter, get_args(Interpreter))
            said = self._predict(session, self.child)
            session.log_metrics({"rows": said["rows"], "batches": said["batches"]})
        return session.outputs()

    def on_kill(self) -> None:
        """End the model's interpreter, or its making, and close the run as KILLED."""
        if self.child is not None:
            self.child.kill()
        super().on_kill()

    def _predict(self, session: StepSession, child: ChildProcess) -> dict[str, Any]:
        from airflow_ml_provider.tracking.predict import PredictionRequest, predict_apart, predict_here

        rows, keep = self._rows(), self._keep()
        model, table = session.read("model", self.model, Model), session.read("table", self.table, Dataset)
        if model is None or table is None:  # neither is optional
            raise ConfigError(f"task {self.task_id!r}: there is no model or no table.")
        output = session.write(OUTPUT, Dataset)
        output.path += ".parquet"
        request = PredictionRequest(model.path, table.path, output.path, rows, keep, dict(self.parameters or {}) or None)
        if self.interpreter == "worker":
            return predict_here(request)
        return predict_apart(request, self._root(), child)

    def _rows(self) -> int:
        try:
            rows = int(self.batch_rows)
        except (TypeError, ValueError):
            rows = 0
        if rows < 1:
            raise ConfigError(f"task {self.task_id!r}: batch_rows={self.batch_rows!r:.80} must be a whole number, at least 1.")
        return rows

    def _keep(self) -> list[str] | None:
        if self.keep_columns is None:
            return None
        if isinstance(self.keep_columns, str):
            raise ConfigError(f"task {self.task_id!r}: keep_columns={self.keep_columns!r:.80} must be a list of names.")
        return [str(each) for each in self.keep_columns]

    def _root(self) -> Any:
        from pathlib import Path

        from airflow_ml_provider.config import load_settings

        return Path(self.interpreters or load_settings().interpreters).expanduser()
