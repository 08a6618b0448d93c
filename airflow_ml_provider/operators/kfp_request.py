"""The JSON of a create: the pipeline found or uploaded, the arguments checked, the names within the server's limits."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from airflow_ml_provider.core.kfp_names import (
    EXPERIMENT_NAME_BYTES,
    check_description,
    check_experiment_name,
    check_pipeline_name,
    check_run_name,
    check_version_name,
    fitted_run_name,
    unstorable,
)
from airflow_ml_provider.core.kfp_outputs import check_wanted, read_outputs
from airflow_ml_provider.core.kfp_package import check_arguments, check_run_size, read_package, read_spec, shown_source
from airflow_ml_provider.core.signature import StepSignature
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.hooks.patience import patiently
from airflow_ml_provider.jobs.kfp_catalog import KfpCatalog
from airflow_ml_provider.jobs.kfp_source import fetch_package, is_package, pipeline_and_version
from airflow_ml_provider.models.kfp import KfpRunOptions
from airflow_ml_provider.models.kfp_package import PipelinePackage
from airflow_ml_provider.models.run import StepIdentity


def build_request(
    catalog: KfpCatalog,
    identity: StepIdentity,
    *,
    pipeline: str,
    arguments: Mapping[str, Any] | None,
    experiment: str | None,
    run_name: str | None,
    options: KfpRunOptions,
    dag_folder: Path | None,
    patience_s: float,
    outputs: StepSignature | None = None,
    before: Callable[[PipelinePackage, Mapping[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """
    Check everything that can be checked here, then make on the server what the run needs.

    :param catalog: The server.
    :param identity: The task instance, for the names that were not given.
    :param pipeline: Package or registered name.
    :param arguments: Value per parameter.
    :param experiment: Name of the experiment; None takes the DAG's id.
    :param run_name: Name of the run; None makes one.
    :param options: The rest.
    :param dag_folder: Where a relative path starts.
    :param patience_s: Seconds to wait for a server that is away.
    :param outputs: What the run is to give; None for nothing.
    :param before: Told of the pipeline and its checked arguments before anything is made on the server; may raise.
    :return: JSON of the create, without ``run_id``.
    :raises ConfigError: an argument, a name or the package is wrong; nothing was sent, a retry never helps.
    :raises RemoteNotFoundError: there is no such package, pipeline or version.
    :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
    """
    name = check_run_name(str(run_name)) if run_name else fitted_run_name(f"{identity.dag_id} {identity.label} {identity.run_id}")
    told = options.description or fitted_run_name(f"Airflow task {identity.label} of {identity.dag_id}, run {identity.run_id}")
    wanted = check_experiment_name(str(experiment)) if experiment else _fitted(identity.dag_id)
    body: dict[str, Any] = {"display_name": name, "description": check_description(told)}
    package, source = find_pipeline(catalog, pipeline, dag_folder, patience_s)
    if arguments is not None and not isinstance(arguments, Mapping):
        raise ConfigError(f"arguments={arguments!r:.200} is no dict of values by name; templates go into the values.")
    if outputs is not None:
        check_wanted(read_outputs(package.spec), outputs, package.source)
    given = check_arguments(package, arguments or {})
    check_run_size(package, given)
    if before is not None:
        before(package, given)
    body |= source or _uploaded(catalog, package, options, patience_s)
    config: dict[str, Any] = {"parameters": given} if given else {}
    if options.pipeline_root:
        config["pipeline_root"] = options.pipeline_root
    if config:
        body["runtime_config"] = config
    if options.service_account:
        body["service_account"] = options.service_account
    if options.plugins_input:
        body["plugins_input"] = dict(options.plugins_input)
    _check_storable(options)
    body["experiment_id"] = patiently(f"find experiment {wanted}", lambda: catalog.experiment_id(wanted), patience_s)
    return body


def _fitted(dag_id: str) -> str:
    """Make an experiment's name of a DAG's id, which may be longer than the server takes."""
    return fitted_run_name(dag_id).encode()[:EXPERIMENT_NAME_BYTES].decode(errors="ignore")


def _check_storable(options: KfpRunOptions) -> None:
    """Refuse what the server's database cannot store, and would find out when the workflow runs already."""
    for name in ("pipeline_root", "service_account", "plugins_input"):
        value = getattr(options, name)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        if found := unstorable(text):
            raise ConfigError(f"options.{name} holds {found}, which takes 4 bytes in UTF-8; the server's database takes 3.")


def find_pipeline(
    catalog: KfpCatalog, pipeline: str, dag_folder: Path | None, patience_s: float
) -> tuple[PipelinePackage, dict[str, Any]]:
    """
    Read a pipeline, wherever it is.

    :param catalog: The server.
    :param pipeline: Package or registered name.
    :param dag_folder: Where a relative path starts.
    :param patience_s: Seconds to wait for a server that is away.
    :return: The pipeline, and what a create says of it; empty for a package, which is not on the server yet.
    :raises ConfigError: it is no compiled pipeline, or no name that a pipeline can have; a retry never helps.
    :raises RemoteNotFoundError: there is no such package, pipeline or version.
    :raises RemoteUnavailableError: the server did not answer within the patience; a retry is safe.
    """
    if is_package(pipeline):
        content = patiently(f"read {shown_source(pipeline)}", lambda: fetch_package(pipeline, relative_to=dag_folder), patience_s)
        return read_package(content, source=pipeline), {}
    name, version = pipeline_and_version(pipeline)
    check_pipeline_name(name)
    if version is not None:
        check_version_name(version)
    found = patiently(f"find pipeline {pipeline}", lambda: catalog.version(name, version), patience_s)
    return read_spec(found.spec, source=f"pipeline {pipeline!r} of the server"), {"pipeline_version_reference": found.reference}


def _uploaded(catalog: KfpCatalog, package: PipelinePackage, options: KfpRunOptions, patience_s: float) -> dict[str, Any]:
    """Say what is run of a package: a version of it on the server, or the whole spec."""
    if not options.register_package:
        return {"pipeline_spec": package.body}
    made = patiently(f"upload {package.source}", lambda: catalog.upload(package), patience_s)
    return {"pipeline_version_reference": made.reference}
