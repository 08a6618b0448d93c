"""Predicting over a table with a model, here or in an interpreter of the model's own."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from airflow_ml_provider.exceptions import ConfigError, PredictionError
from airflow_ml_provider.interpreters import ChildProcess, Environments
from airflow_ml_provider.tracking import predict_table
from airflow_ml_provider.tracking.environments import model_requirements


@dataclass(frozen=True)
class PredictionRequest:
    """
    What is to be predicted.

    :param model: Local folder of the model.
    :param table: Local table.
    :param predictions: File to write.
    :param batch_rows: Rows that the model gets at once, and that are in memory.
    :param keep: Columns of the table that stand beside the predictions; None for all.
    :param parameters: For the model's ``predict``; None for none.
    """

    model: str
    table: str
    predictions: str
    batch_rows: int
    keep: list[str] | None = None
    parameters: dict[str, Any] | None = None


def predict_here(request: PredictionRequest) -> dict[str, Any]:
    """
    Predict in this process.

    :param request: What is to be predicted.
    :return: ``rows``, ``batches`` and ``columns``.
    :raises ConfigError: the table and the model do not fit, or the worker lacks a package; a retry never helps.
    :raises PredictionError: the model failed.
    """
    try:
        return predict_table.predict_table(asdict(request))
    except predict_table.TableError as error:
        raise ConfigError(str(error)) from error
    except ImportError as error:
        raise ConfigError(
            f"the worker lacks what the model needs: {error}. Predict with interpreter='model', which makes an interpreter with "
            "the model's requirements, or install it on the workers (mlflow, pandas and pyarrow are needed in any case)."
        ) from error
    except Exception as error:
        raise PredictionError(f"the model failed: {type(error).__name__}: {error}") from error


def predict_apart(request: PredictionRequest, root: Path, child: ChildProcess) -> dict[str, Any]:
    """
    Predict in an interpreter that has the model's requirements.

    :param request: What is to be predicted.
    :param root: Folder where interpreters are kept.
    :param child: Runs the installer and the prediction; kill it to end either.
    :return: As of :func:`predict_here`.
    :raises ConfigError: the table and the model do not fit, or the model has no requirements; a retry never helps.
    :raises PredictionError: the model failed; the log has what it said.
    :raises RemoteUnavailableError: the interpreter could not be made; a retry is safe.
    """
    python = Environments(root, child).python(model_requirements(Path(request.model)))
    with tempfile.TemporaryDirectory(prefix="airflow-ml-") as folder:
        asked, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        asked.write_text(json.dumps(asdict(request)))
        code, tail = child.run([str(python), "-I", str(predict_table.__file__), str(asked), str(answer)], cwd=Path(folder))
        said: dict[str, Any] = json.loads(answer.read_text()) if answer.exists() else {}
    if "error" in said:
        raise ConfigError(str(said["error"]))
    if code or not said:
        raise PredictionError(f"the model's interpreter ended with code {code}. The last that it said:\n{tail}")
    return said
