"""``airflow-ml kfp``: compile a pipeline, run it here or on a server, upload it; what happens is on standard error."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
import uuid
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_ml_provider.cli.connection import PROCESS_CONTEXT
from airflow_ml_provider.config import load_settings
from airflow_ml_provider.core.kfp_names import check_pipeline_name
from airflow_ml_provider.core.kfp_package import check_arguments, check_run_size, read_package
from airflow_ml_provider.exceptions import AirflowMLError, ConfigError
from airflow_ml_provider.hooks.kfp import KfpApi, KfpHook
from airflow_ml_provider.jobs.kfp import KfpJobs, describe_failure
from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog
from airflow_ml_provider.jobs.kfp_local import KfpLocal
from airflow_ml_provider.jobs.kfp_source import fetch_package, is_function
from airflow_ml_provider.jobs.kfp_wait import wait_for_run
from airflow_ml_provider.models.kfp_package import PipelinePackage
from airflow_ml_provider.models.kfp_results import KfpOutput

log = logging.getLogger(__name__)

KFP_CONN_ID = "kfp_default"
EXPERIMENT = "Default"
"""Experiment of runs that are started by hand; the one that a server has from the beginning."""
POLL_INTERVAL_S = 1.0
"""Seconds between two questions about a run that is young: somebody sits there and waits."""
READ_BY = {
    "output": ("compile",),
    "argument": ("run",),
    "arguments": ("run",),
    "connection": ("run", "upload"),
    "name": ("upload",),
}
"""Which actions read an option; elsewhere it would be ignored without a word."""


def run(args: Namespace) -> int:
    """
    Compile, run or upload.

    :param args: ``action``, ``file``, ``function``, ``output``, ``argument``, ``arguments``, ``connection`` and ``name``.
    :return: 0, or 1 when the pipeline has failed or cannot be had; why is said, over as many lines as it takes.
    :raises ConfigError: the arguments do not fit together; a retry never helps.
    """
    for name, actions in READ_BY.items():
        if getattr(args, name) and args.action not in actions:
            raise ConfigError(f"--{name} is read by {' and '.join(actions)}, not by {args.action}.")
    _tell_people()
    os.environ.setdefault(PROCESS_CONTEXT, "server")  # connections may be read from Airflow's database
    try:
        return {"compile": _compile, "run": _run, "upload": _upload}[args.action](args)
    except AirflowMLError as error:
        print(f"airflow-ml: {error}", file=sys.stderr)  # a traceback is no line
        return 1


def _tell_people() -> None:
    """Show on standard error what the package logs, as it is."""
    ours = logging.getLogger("airflow_ml_provider")
    if not any(isinstance(each, _PlainHandler) for each in ours.handlers):
        ours.addHandler(_PlainHandler())
    ours.setLevel(logging.INFO)
    ours.propagate = False


class _PlainHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)


def _source(args: Namespace) -> str:
    """Name the file, and the function in it."""
    file = str(args.file)
    if args.function:
        if not file.endswith(".py"):
            raise ConfigError(f"--function is read with a Python file, and {file!r} is none.")
        file = f"{file}:{args.function}"
    return file


def _package(args: Namespace) -> PipelinePackage:
    source = _source(args)
    return read_package(fetch_package(source, relative_to=Path.cwd()), source=source)


def _compile(args: Namespace) -> int:
    source = _source(args)
    if not is_function(source):
        raise ConfigError(f"{args.file!r} is no Python file. Give the file that has the @dsl.pipeline function.")
    content = fetch_package(source, relative_to=Path.cwd())
    read_package(content, source=source)  # what a server would refuse is said now
    if not args.output:
        print(content.decode(), end="")
        return 0
    try:
        Path(args.output).write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{args.output} cannot be written: {error}. Give another place with -o.") from error
    log.info("%s is compiled to %s.", source, args.output)
    return 0


def _run(args: Namespace) -> int:
    package = _package(args)
    arguments = check_arguments(package, _arguments(args))
    if args.connection and not KfpHook(args.connection).server().local:
        with KfpHook(args.connection).api(load_settings()) as api:
            return _run_there(api, package, arguments)
    run_id, local = str(uuid.uuid4()), KfpLocal()
    folder = Path(local.settings.kfp_local_root).expanduser().absolute() / "by-hand" / f"{package.name}-{run_id[:8]}"
    log.info("Pipeline %s runs on this machine, below %s", package.name, folder)
    outcome = local.run(package, arguments, folder, run_id=run_id)
    outputs = {each.full_label: _shown(each) for each in outcome.results.outputs}
    _print({"run_id": run_id, "state": str(outcome.run.state), "folder": str(folder), "outputs": outputs})
    if not outcome.run.state.good:
        print(f"airflow-ml: pipeline {package.name} {outcome.run.state}: {outcome.problem}", file=sys.stderr)
    return 0 if outcome.run.state.good else 1


def _arguments(args: Namespace) -> dict[str, Any]:
    """Read the arguments: a JSON object, and texts by name, which stand for JSON where the pipeline wants no text."""
    try:
        found = json.loads(args.arguments or "{}")
    except ValueError as error:
        raise ConfigError(f"--arguments is no JSON ({error}). Write it as an object: --arguments '{{\"day\": 1}}'.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"--arguments is a {type(found).__name__}, not a JSON object of values by name.")
    for each in args.argument or ():
        name, equals, value = each.partition("=")
        if not equals:
            raise ConfigError(f"-a {each!r} has no value. Write -a name=value.")
        found[name] = value
    return found


def _shown(output: KfpOutput) -> Any:
    if output.kind == "parameter":
        return output.value
    told = {"type": output.type, "path": output.path or None, "metadata": output.metadata or None}
    return {key: value for key, value in told.items() if value is not None}


def _run_there(api: KfpApi, package: PipelinePackage, arguments: Mapping[str, Any]) -> int:
    """Run on a server, and wait; Ctrl-C leaves it running."""
    check_run_size(package, arguments)
    jobs, catalog, run_id = KfpJobs(api), KfpCatalog(api), str(uuid.uuid4())
    body = {
        "run_id": run_id,
        "display_name": f"{package.name} {time.strftime('%Y-%m-%d %H:%M:%S')}",
        "description": "Started by airflow-ml kfp run.",
        "pipeline_version_reference": catalog.upload(package).reference,
        "experiment_id": catalog.experiment_id(EXPERIMENT),
        "runtime_config": {"parameters": dict(arguments)},
    }
    url = f"{api.server.ui_url}/#/runs/details/{run_id}"
    log.info("Run %s: %s", run_id, url)  # before it is sent: whoever loses the answer can look
    jobs.submit(body)
    told = wait_for_run(jobs, run_id, poll_interval_s=POLL_INTERVAL_S)
    run = jobs.look(run_id)
    state = run.state if run else told.state
    _print({"run_id": run_id, "state": str(state), "url": url})
    if state.good:
        return 0
    print(f"airflow-ml: {describe_failure(jobs, run, told, url)}", file=sys.stderr)
    return 1


def _upload(args: Namespace) -> int:
    package = _package(args)
    name = check_pipeline_name(args.name) if args.name else None
    with KfpHook(args.connection or KFP_CONN_ID).api(load_settings()) as api:
        made = KfpCatalog(api).upload(package, name=name)
    pipeline = name or package.name
    log.info("Pipeline %s has %s as version %s.", pipeline, package.source, made.name)
    _print({"pipeline": f"{pipeline}@{made.name}", "digest": package.digest} | made.reference)
    return 0


def _print(answer: Mapping[str, Any]) -> None:
    print(json.dumps(answer, indent=2, ensure_ascii=False))
