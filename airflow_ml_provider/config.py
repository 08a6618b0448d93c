"""
The provider's section ``[ml]`` of Airflow's configuration: every option, its unit and its default, in one place.

Read when a step runs, never when this module is imported: Airflow does so while it is being imported itself, for the options.
"""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airflow_ml_provider.exceptions import ConfigError

SECTION = "ml"
PLACES = ("spool", "interpreters", "kfp_local_root")
"""Options in which ``{AIRFLOW_HOME}`` stands for Airflow's home."""


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
    interpreters: str = Field(
        default="{AIRFLOW_HOME}/ml-interpreters",
        description="Folder on the worker that keeps interpreters: that of the Kubeflow Pipelines SDK, those of the components "
        "that a local run executes, and those of models. `airflow-ml interpreters` lists them and deletes unused ones.",
    )
    kfp_requirements: str = Field(
        default="kfp==2.17.0",
        min_length=1,
        description="Requirements, divided by blanks, of the interpreter that compiles pipelines and runs them on this machine; "
        "kfp-kubernetes==2.17.0, or what your pipeline files import, can stand beside kfp. They come from the package index that "
        "pip or uv is set to.",
    )
    kfp_local_root: str = Field(
        default="{AIRFLOW_HOME}/ml-kfp",
        description="Folder on the worker below which each run by a local:// connection has a folder of its own, with what its "
        "components have written.",
    )
    kfp_local_keep_days: float = Field(
        default=14.0,
        ge=0,
        description="Days for which the folder of such a run is kept after its end. The next local run on the machine deletes "
        "older ones, never that of a run that has not ended, and nothing that such runs have not made; inf keeps all of them.",
    )
    alert_timeout_s: float = Field(
        default=10.0,
        gt=0,
        allow_inf_nan=False,
        description="Seconds that one alert may take, all its channels together; what has not come to an end by then is given "
        "up, and the log says so. A task that has ended is held up for so long at most; keep it below [core] "
        "task_success_overtime (20 s), after which Airflow ends the task's process.",
    )


def load_settings() -> Settings:
    """
    Read the section ``[ml]``, environment variables ``AIRFLOW__ML__<OPTION>`` included.

    :return: The settings, defaults filled in.
    :raises ConfigError: an option has a value out of its range; a retry never helps.
    """
    from airflow.providers.common.compat.sdk import conf

    options = {name: conf.get(SECTION, name, fallback=None) for name in Settings.model_fields}
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
    return settings.model_copy(update={name: _expand_home(getattr(settings, name)) for name in PLACES})


def ui_address() -> str:
    """
    Return the root URL of this Airflow's pages, as the log links of its tasks begin.

    :return: ``[api] base_url`` without a slash at the end; Airflow's own default where it is not set.
    """
    from airflow.providers.common.compat.sdk import conf

    return (conf.get("api", "base_url", fallback=None) or "http://localhost:8080/").rstrip("/")


def _expand_home(place: str) -> str:
    """Do what Airflow does to its defaults only, so that the option means the same wherever it is set."""
    home = os.environ.get("AIRFLOW_HOME") or "~/airflow"
    return place.replace("{AIRFLOW_HOME}", os.path.expandvars(Path(home).expanduser()))
