"""
The provider's section ``[ml]`` of Airflow's configuration: every option, its unit and its default, in one place.

Read when a step runs, never when this module is imported.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_ml_provider._compat import read_option
from airflow_ml_provider.exceptions import ConfigError

SECTION = "ml"


class Settings(BaseModel):
    """Options of the section ``[ml]``; the field's description is the option's documentation."""

    model_config = ConfigDict(frozen=True)

    patience_s: float = Field(
        default=300.0,
        ge=0,
        description="Seconds that a step waits for an MLflow server that is away: to open its run, for each look-up or "
        "input that it needs, and to send its record at the end.",
    )
    http_timeout_s: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that one request to MLflow may wait for an answer; for a file through its artifact proxy, 60 s "
        "and the time that the file takes at 5 MB/s, if that is more.",
    )
    http_retries: int = Field(
        default=3,
        ge=0,
        le=20,
        description="Repetitions of one request after a 429, a 5xx or a lost connection; "
        "also given to the user's own mlflow calls in a step.",
    )
    spool: str = Field(
        default="{AIRFLOW_HOME}/ml-spool",
        description="Folder or ObjectStoragePath URI that keeps what could not be sent to MLflow. It must be reachable "
        "from where `airflow-ml resend` is run.",
    )
    experiment: str = Field(
        default="{dag_id}",
        min_length=1,
        description="Name of the MLflow experiment of a DAG's runs; {dag_id} stands for the DAG's id.",
    )
    listeners: bool = Field(
        default=True,
        description="Whether listeners close MLflow runs when Airflow tells of an end that no step saw. A registered "
        "listener makes Airflow refuse DAGs with end_from_trigger=True: switch it off there.",
    )


def load_settings() -> Settings:
    """
    Read the section ``[ml]``, environment variables ``AIRFLOW__ML__<OPTION>`` included.

    :return: The settings, defaults filled in.
    :raises ConfigError: an option has a value out of its range; a retry never helps.
    """
    options = {name: read_option(SECTION, name) for name in Settings.model_fields}
    found = {name: value for name, value in options.items() if value}
    try:
        settings = Settings.model_validate(found)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        raise ConfigError(
            f"option {name} of [{SECTION}] is {found[name]!r}: {first['msg']}. "
            f"It means: {Settings.model_fields[name].description} Default: {Settings.model_fields[name].default!r}."
        ) from error
    return settings.model_copy(update={"spool": _expand_home(settings.spool)})


def _expand_home(place: str) -> str:
    """Do what Airflow does to its defaults only, so that the option means the same wherever it is set."""
    home = os.environ.get("AIRFLOW_HOME") or "~/airflow"
    return place.replace("{AIRFLOW_HOME}", os.path.expandvars(Path(home).expanduser()))
