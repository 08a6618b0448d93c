"""Which fields the server knows in the bodies of requests."""

from __future__ import annotations

from airflow_ml_provider.testing.kfp_proto import Field

STATES = frozenset(
    {"RUNTIME_STATE_UNSPECIFIED", "PENDING", "RUNNING", "SUCCEEDED", "SKIPPED", "FAILED", "CANCELING", "CANCELED", "PAUSED"}
)
STORAGE = frozenset({"STORAGE_STATE_UNSPECIFIED", "AVAILABLE", "ARCHIVED"})
MODES = frozenset({"MODE_UNSPECIFIED", "ENABLE", "DISABLE"})
STATUSES = frozenset({"STATUS_UNSPECIFIED", "ENABLED", "DISABLED"})

_REFERENCE = {"pipeline_id": Field(), "pipeline_version_id": Field()}


def _source(message: str) -> dict[str, Field]:
    group = f"{message}.pipeline_source"
    return {
        "pipeline_version_id": Field(oneof=group),
        "pipeline_spec": Field("map", oneof=group),
        "pipeline_version_reference": Field("message", message=_REFERENCE, oneof=group),
    }


_CONFIG = Field("message", message={"parameters": Field("map"), "pipeline_root": Field()})
_STATUS = Field("message", message={"update_time": Field("time"), "state": Field("enum", values=STATES), "error": Field("map")})
_HISTORY = Field("list", message=_STATUS.message)

RUN = {
    **_source("Run"),
    "experiment_id": Field(),
    "run_id": Field(),
    "display_name": Field(),
    "storage_state": Field("enum", values=STORAGE),
    "description": Field(),
    "runtime_config": _CONFIG,
    "service_account": Field(),
    "created_at": Field("time"),
    "scheduled_at": Field("time"),
    "finished_at": Field("time"),
    "state": Field("enum", values=STATES),
    "error": Field("map"),
    "run_details": Field("map"),
    "recurring_run_id": Field(),
    "state_history": _HISTORY,
    "plugins_input": Field("structs"),
    "plugins_output": Field("map"),
}

EXPERIMENT = {
    "experiment_id": Field(),
    "display_name": Field(),
    "description": Field(),
    "created_at": Field("time"),
    "namespace": Field(),
    "storage_state": Field("enum", values=STORAGE),
    "last_run_created_at": Field("time"),
}

PIPELINE = {
    "pipeline_id": Field(),
    "display_name": Field(),
    "name": Field(),
    "description": Field(),
    "created_at": Field("time"),
    "namespace": Field(),
    "error": Field("map"),
    "tags": Field("map"),
}

_TIMES = {"start_time": Field("time"), "end_time": Field("time")}
_CRON = Field("message", message={**_TIMES, "cron": Field()}, oneof="Trigger.trigger")
_PERIODIC = Field("message", message={**_TIMES, "interval_second": Field("int64")}, oneof="Trigger.trigger")

RECURRING = {
    **_source("RecurringRun"),
    "recurring_run_id": Field(),
    "display_name": Field(),
    "description": Field(),
    "runtime_config": _CONFIG,
    "service_account": Field(),
    "max_concurrency": Field("int64"),
    "trigger": Field("message", message={"cron_schedule": _CRON, "periodic_schedule": _PERIODIC}),
    "mode": Field("enum", values=MODES),
    "created_at": Field("time"),
    "updated_at": Field("time"),
    "status": Field("enum", values=STATUSES),
    "error": Field("map"),
    "no_catchup": Field("bool"),
    "namespace": Field(),
    "experiment_id": Field(),
}
