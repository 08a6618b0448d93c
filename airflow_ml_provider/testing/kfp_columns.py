"""Which columns each kind of list can be filtered and sorted by, and how the database calls them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """
    A column that a list can be filtered or sorted by.

    :param field: Attribute of the value.
    :param sql: Name in the database, which errors and page tokens show.
    :param sortable: Whether a list can be sorted by it.
    """

    field: str
    sql: str
    sortable: bool = True


@dataclass(frozen=True)
class Kind:
    """
    A kind of thing that can be listed.

    :param name: As errors call it.
    :param key: Attribute that holds the id.
    :param columns: API name to column.
    """

    name: str
    key: str
    columns: Mapping[str, Column]


def _columns(**extra: Column) -> dict[str, Column]:
    created = Column("created_at", "CreatedAtInSec")
    name, description = Column("display_name", "DisplayName"), Column("description", "Description")
    return {"created_at": created, "display_name": name, "name": name, "description": description, **extra}


RUNS = Kind(
    "Run",
    "run_id",
    _columns(
        run_id=Column("run_id", "UUID"),
        id=Column("run_id", "UUID"),
        state=Column("state", "State"),
        storage_state=Column("storage_state", "StorageState"),
        scheduled_at=Column("scheduled_at", "ScheduledAtInSec"),
        finished_at=Column("finished_at", "FinishedAtInSec"),
        experiment_id=Column("experiment_id", "ExperimentUUID", sortable=False),
        recurring_run_id=Column("recurring_run_id", "JobUUID", sortable=False),
        namespace=Column("namespace", "Namespace", sortable=False),
    ),
)
EXPERIMENTS = Kind(
    "Experiment",
    "experiment_id",
    _columns(
        experiment_id=Column("experiment_id", "UUID"),
        id=Column("experiment_id", "UUID"),
        storage_state=Column("storage_state", "StorageState"),
        last_run_created_at=Column("last_run_created_at", "LastRunCreatedAtInSec"),
        namespace=Column("namespace", "Namespace"),
    ),
)
_NAME = Column("name", "Name")
PIPELINES = Kind(
    "Pipeline",
    "pipeline_id",
    {**_columns(pipeline_id=Column("pipeline_id", "UUID"), id=Column("pipeline_id", "UUID")), "name": _NAME},
)
VERSIONS = Kind(
    "PipelineVersion",
    "pipeline_version_id",
    {
        **_columns(
            pipeline_version_id=Column("pipeline_version_id", "UUID"),
            id=Column("pipeline_version_id", "UUID"),
            pipeline_id=Column("pipeline_id", "PipelineId"),
        ),
        "name": _NAME,
    },
)
RECURRING = Kind(
    "Job",
    "recurring_run_id",
    _columns(
        recurring_run_id=Column("recurring_run_id", "UUID"),
        id=Column("recurring_run_id", "UUID"),
        updated_at=Column("updated_at", "UpdatedAtInSec"),
        experiment_id=Column("experiment_id", "ExperimentUUID", sortable=False),
        namespace=Column("namespace", "Namespace"),
        status=Column("status", "Conditions"),
    ),
)
