"""What the server, its plugins or Kubernetes refuse in a new run before anything is started."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from airflow_ml_provider.testing.kfp_answers import KfpError, dump, internal, invalid
from airflow_ml_provider.testing.kfp_parameters import pipeline_of

LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
LABEL_LENGTH = 63
RULE = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with "
    "an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    "'(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')"
)
PLUGINS = 16
PLUGIN_BYTES = 65_536
SIZES = (
    (3_145_728, "Request entity too large: limit is 3145728"),
    (2_097_152, "rpc error: code = ResourceExhausted desc = trying to send message larger than max ({size} vs. 2097152)"),
    (1_572_864, "etcdserver: request is too large"),
)
"""Bytes of a Workflow object above which it is refused, and by whom."""
TASK_BYTES = 986
"""What one task adds to a Workflow object, beside its part of the package."""


def check_label(run_id: str, name: str, failed: str) -> None:
    """
    Refuse an id that cannot be the value of a label.

    :param run_id: The id.
    :param name: Name of the workflow to be.
    :param failed: What failed.
    :raises KfpError: 500; nothing was started.
    """
    if LABEL.fullmatch(run_id) and len(run_id) <= LABEL_LENGTH:
        return
    why = f"must be no more than {LABEL_LENGTH} bytes" if len(run_id) > LABEL_LENGTH else RULE
    where = f"Workflow.argoproj.io {json.dumps(name)} is invalid: metadata.labels: Invalid value: {json.dumps(run_id)}"
    raise internal(f"{failed}{where}: {why}")


def check_plugins(data: Mapping[str, Any]) -> None:
    """
    Check what is sent for the plugins of the server.

    :param data: What was sent.
    :raises KfpError: 400 for too much of it, 409 for what the server alone may write.
    """
    if "plugins_output" in data:
        short = "plugins_output is server-owned and populated exclusively via plugin lifecycle hooks"
        raise KfpError(10, f"BadRequestError: {short}: plugins_output must not be set by the client", short)
    given = data.get("plugins_input") or {}
    converting = "CreateJob(job.ToV2())Failed to create a run due to conversion error: "
    if len(given) > PLUGINS:
        raise invalid(
            converting, f"Invalid plugins_input: number of plugins_input entries ({len(given)}) exceeds maximum {PLUGINS}"
        )
    for name, value in given.items():
        if (size := len(dump(value))) > PLUGIN_BYTES:
            what = f"plugins_input[{json.dumps(name)}] size ({size} bytes) exceeds maximum {PLUGIN_BYTES} bytes"
            raise invalid(converting, f"Invalid plugins_input: {what}")


def check_size(spec: Mapping[str, Any], failed: str) -> None:
    """
    Refuse a pipeline whose Workflow object would be too large.

    :param spec: The pipeline.
    :param failed: What failed.
    :raises KfpError: 500; nothing was started.
    """
    size = len(dump(spec)) + TASK_BYTES * len(((pipeline_of(spec).get("root") or {}).get("dag") or {}).get("tasks") or ())
    for limit, words in SIZES:
        if size > limit:
            raise internal(failed + words.format(size=size))
