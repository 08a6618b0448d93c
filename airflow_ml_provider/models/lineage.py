"""
The way from a model back to the raw data: what MLflow has on record, as values.

A lineage is a graph, not a tree: two tables of one step lead to the same run. So steps and models stand in lists, and
point to each other by id.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from airflow_ml_provider.exceptions import ConfigError

LINEAGE_VERSION: Literal[1] = 1
"""Version of the JSON form of a lineage."""

_URI = re.compile(
    r"models:/(?P<model_id>m-[0-9a-f]{32})(?:/.*)?"
    r"|models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<number>\d+))"
    r"|runs:/(?P<run_id>[0-9a-f]{32})(?:/.*)?",
    re.DOTALL,
)


class ModelURI(BaseModel):
    """
    What a URI names: a LoggedModel, a version in the registry, or a run.

    :param model_id: Of ``models:/<model id>``.
    :param name: Registered model, of ``models:/<name>@<alias>`` and ``models:/<name>/<version>``.
    :param alias: Alias, without ``@``.
    :param number: Number of the version.
    :param run_id: Of ``runs:/<run id>/<path>``.
    """

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_id: str | None = None
    name: str | None = None
    alias: str | None = None
    number: str | None = None
    run_id: str | None = None

    @classmethod
    def parse(cls, uri: str) -> ModelURI:
        """
        Read a URI.

        :param uri: As a user writes it.
        :return: Its parts.
        :raises ConfigError: it has none of the known forms; a retry never helps.
        """
        found = _URI.fullmatch(uri)
        if found is None:
            raise ConfigError(
                f"{uri!r} does not name a model. Write models:/<name>@<alias>, models:/<name>/<version>, "
                "models:/<model id> or runs:/<run id>/<path>."
            )
        return cls.model_validate(found.groupdict())


class _Value(BaseModel):
    """Frozen, and with NaN written as JSON takes it."""

    model_config = ConfigDict(frozen=True, protected_namespaces=(), ser_json_inf_nan="strings")


class ModelVersion(_Value):
    """
    A version in MLflow's registry.

    :param name: Registered model.
    :param version: Its number.
    :param aliases: What points to it now.
    :param source: URI of what was registered.
    :param run_id: Run that made it, as the registry says; None when it does not say.
    :param created: When it was registered.
    :param tags: Its tags.
    """

    name: str
    version: str
    aliases: tuple[str, ...] = ()
    source: str = ""
    run_id: str | None = None
    created: datetime | None = None
    tags: dict[str, str] = Field(default_factory=dict)


class LoggedModel(_Value):
    """
    A model, as MLflow keeps it.

    :param model_id: ``m-`` and 32 hexadecimal digits.
    :param name: Name of the output that made it.
    :param sha256: Digest; None for a model that others made.
    :param size: Bytes; None for a model that others made.
    :param created: When.
    :param metrics: Numbers that were logged to the model itself.
    :param run_id: Run that made it; None when nobody has recorded it.
    """

    model_id: str
    name: str
    sha256: str | None = None
    size: int | None = None
    created: datetime | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    run_id: str | None = None


class DatasetRead(_Value):
    """
    An artifact that a step has read.

    :param name: Name of the input.
    :param digest: MLflow's digest, at most 36 characters.
    :param uri: Where it is; None when the source does not say.
    :param sha256: Whole digest; None for data that others have recorded.
    :param size: Bytes; None when unknown.
    :param run_id: Run that made it; None for data from outside.
    """

    name: str
    digest: str
    uri: str | None = None
    sha256: str | None = None
    size: int | None = None
    run_id: str | None = None


class StepRun(_Value):
    """
    One step on the way: a nested run of ours, or any MLflow run.

    :param run_id: MLflow's run.
    :param url: Its page.
    :param name: Name of the run, for a step of ours the task's id and map index.
    :param status: MLflow's status.
    :param deleted: Whether it lies in MLflow's bin, from which it can still be restored.
    :param dag_id: Airflow's DAG; None for a run that is not from Airflow, as all that follow.
    :param dag_run_id: Its run.
    :param task_id: Task.
    :param map_index: Index of a mapped task instance, -1 when it is not mapped.
    :param try_number: The try that was recorded last.
    :param logical_date: Logical date, as Airflow writes it.
    :param log_url: The task's log in Airflow.
    :param git_commit: Commit of the code.
    :param started: When.
    :param ended: When; None while it runs.
    :param params: Parameters.
    :param metrics: Last value of each metric.
    :param datasets: Artifacts that it has read.
    :param models: Ids of the models that it has read.
    """

    run_id: str
    url: str
    name: str
    status: str
    deleted: bool = False
    dag_id: str | None = None
    dag_run_id: str | None = None
    task_id: str | None = None
    map_index: int | None = None
    try_number: int | None = None
    logical_date: str | None = None
    log_url: str | None = None
    git_commit: str | None = None
    started: datetime | None = None
    ended: datetime | None = None
    params: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)
    datasets: tuple[DatasetRead, ...] = ()
    models: tuple[str, ...] = ()


class Gap(_Value):
    """
    Where the way ends although it should go on.

    :param id: Run or model that should be there.
    :param reason: Why it is not shown, and what to do.
    """

    id: str
    reason: str


class Lineage(_Value):
    """
    The way from one model back to the raw data.

    :param version: Version of this form.
    :param uri: What was asked for.
    :param model_version: The version in the registry, if the URI names one.
    :param model: The model, if MLflow keeps it as a LoggedModel.
    :param run_id: Run that made what was asked for; None when nobody has recorded it.
    :param steps: All runs on the way, the nearest first.
    :param models: Models that these have read, the nearest first.
    :param gaps: What should be there and is not.
    """

    version: Literal[1] = LINEAGE_VERSION
    uri: str
    model_version: ModelVersion | None = None
    model: LoggedModel | None = None
    run_id: str | None = None
    steps: tuple[StepRun, ...] = ()
    models: tuple[LoggedModel, ...] = ()
    gaps: tuple[Gap, ...] = ()
