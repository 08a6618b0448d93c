"""What a model needs to be loaded, as MLflow has written it beside the model; :mod:`..interpreters` makes it."""

from __future__ import annotations

import re
from pathlib import Path

from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.interpreters import Requirements

NEEDED = {"mlflow.pyfunc": "mlflow", "pandas": "pandas", "pyarrow.parquet": "pyarrow"}
"""What predicting over a table imports, and the package that brings it where the model's requirements do not."""
_PYTHON = re.compile(r"^python:\s*[\"']?(\d+\.\d+)", re.MULTILINE)


def model_requirements(folder: Path) -> Requirements:
    """
    Read what MLflow has written beside a model.

    :param folder: The model.
    :return: What an interpreter needs to predict with it over a table.
    :raises ConfigError: it has none; a retry never helps.
    """
    file, python = folder / "requirements.txt", folder / "python_env.yaml"
    if not file.is_file():
        raise ConfigError(
            f"the model at {folder.name!r} has no requirements.txt, so no interpreter can be made for it. Log it with a "
            "flavour of MLflow, or predict with interpreter='worker'."
        )
    found = _PYTHON.search(python.read_text()) if python.is_file() else None
    return Requirements(
        file.read_text(),
        found[1] if found else "",
        imports=NEEDED,
        of="the model's requirements",
        remedy="If a version is not to be had, mend the model's requirements, or predict with interpreter='worker'.",
    )
