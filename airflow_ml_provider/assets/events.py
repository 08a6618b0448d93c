"""
What the events of our assets say, and whether there is one: a step's output, or a version of a registered model.

Airflow makes an event for each asset in ``outlets`` when a task succeeds. Where nothing came of an asset, as of a model that was
not promoted, it is taken off the try's outlets, so that nobody is told of what did not happen.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any, cast

from airflow.providers.common.compat.sdk import redact

from airflow_ml_provider.assets.mlflow import MLAsset
from airflow_ml_provider.exceptions import ConfigError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.lineage.facts import Known, StepFacts

log = logging.getLogger(__name__)

METRICS_KEPT = 20
EXTRA_BYTES = 4096
"""Bytes that an event's extra has at most, as JSON; metrics and numbers are left out before anything else."""
TYPES = {"model": "Model", "dataset": "Dataset"}
"""Type of the output that an asset of a kind stands for."""


def assets_in(outlets: Iterable[Any]) -> list[MLAsset]:
    """
    Pick our assets of a task.

    :param outlets: Its outlets.
    :return: Those that are ours.
    """
    return [each for each in outlets if isinstance(each, MLAsset)]


def check_outlets(task_id: str, outlets: Iterable[Any], outputs: Mapping[str, str], mlflow_conn_id: str | None) -> None:
    """
    Refuse at parse time assets that no output of a step can be.

    :param task_id: The step.
    :param outlets: Its outlets.
    :param outputs: Type per output that it declares, lists left out.
    :param mlflow_conn_id: Its server; None where that is not known yet.
    :raises ConfigError: one fits no output, or several, or is of another server; a retry never helps.
    """
    for each in assets_in(outlets):
        if mlflow_conn_id not in (None, each.says.conn_id):
            made = f"{each.says.kind}_asset({each.says.name!r}, mlflow_conn_id={mlflow_conn_id!r})"
            raise ConfigError(
                f"task {task_id!r} is on record at connection {mlflow_conn_id!r}, and its outlets have {each.uri}. Say {made}."
            )
        try:
            output_of(each, outputs)
        except ConfigError as error:
            raise ConfigError(f"task {task_id!r}: {error}") from None


def check_registered(task_id: str, outlets: Iterable[Any], name: str, mlflow_conn_id: str) -> None:
    """
    Refuse at parse time assets that are not the model which a task registers or promotes.

    :param task_id: The task.
    :param outlets: Its outlets.
    :param name: The registered model, known by then.
    :param mlflow_conn_id: Its server.
    :raises ConfigError: one is another model, or none; a retry never helps.
    """
    for each in assets_in(outlets):
        if each.says != (mlflow_conn_id, "model", name):
            raise ConfigError(
                f"task {task_id!r} is about the registered model {name!r} of connection {mlflow_conn_id!r}, and its outlets have "
                f"{each.uri}. Say outlets=[model_asset({name!r}{_and_connection(mlflow_conn_id)})]."
            )


def output_of(asset: MLAsset, outputs: Mapping[str, str]) -> str:
    """
    Find the output that an asset stands for.

    :param asset: The asset.
    :param outputs: Type per output.
    :return: Name of the output.
    :raises ConfigError: there is none, or it is not clear which one.
    """
    kind, name = asset.says.kind, asset.says.name
    fitting = [each for each, of in outputs.items() if of == TYPES[kind]]
    if asset.output is not None:
        if asset.output in fitting:
            return asset.output
        raise ConfigError(
            f"{asset.uri} is to be output {asset.output!r}, which is no {TYPES[kind]} of this step. {_known(outputs)}"
        )
    if len(fitting) == 1 or name in fitting:
        return name if name in fitting else fitting[0]
    if not fitting:
        raise ConfigError(f"{asset.uri} is in its outlets, and it makes no {TYPES[kind]}. {_known(outputs)}")
    raise ConfigError(
        f"{asset.uri} may be any of its outputs {', '.join(fitting)}. Say which: {kind}_asset({name!r}, output={fitting[0]!r})."
    )


def tell_assets(context: Context, facts: StepFacts) -> dict[str, str]:
    """
    Write the events of a task that has ended well; an asset of which nothing came is taken off its outlets.

    :param context: Airflow's context.
    :param facts: What is known of the task.
    :return: Path of the asset that an output is, by the output's name.
    """
    task: Any = context["ti"].task
    paths: dict[str, str] = {}
    for asset in assets_in(task.outlets):
        extra, output = event_of(asset, facts)
        if extra is None:
            task.outlets = [each for each in task.outlets if each is not asset]
            log.info("No event of %s: nothing came of it in this task.", asset.uri)
            continue
        context["outlet_events"][asset].extra.update(extra)
        if output:
            paths[output] = asset.says.path
    return paths


def event_of(asset: MLAsset, facts: StepFacts) -> tuple[dict[str, Any] | None, str]:
    """
    Say what the event of an asset holds.

    :param asset: The asset.
    :param facts: What is known of the task.
    :return: The extra as plain JSON, None where nothing came of the asset; and the name of the output that it is about, empty
        where it is a registered version.
    """
    if asset.says.conn_id != facts.server.conn_id:
        ours = facts.server.conn_id
        log.warning("%s names another server than this task's. Say mlflow_conn_id=%r in the asset.", asset.uri, ours)
        return None, ""
    registered = facts.registered
    if registered is not None and asset.says.kind == "model" and registered.get("name") == asset.says.name:
        return (_bounded(_of_version(facts, registered)) if registered.get("version") else None), ""
    try:
        # Elements of lists are left out, as they are when the DAG file is parsed.
        output = output_of(asset, {each.output: each.ref.type for each in facts.outputs if not each.output.endswith("]")})
    except ConfigError:
        return None, ""
    known = next(each for each in facts.outputs if each.output == output)
    return _bounded(_of_output(asset, facts, known)), output


def _of_version(facts: StepFacts, version: Mapping[str, Any]) -> dict[str, Any]:
    source = next((each for each in facts.inputs if each.ref.type == "Model"), None)
    run_id = (source.ref.run_id if source else None) or version.get("run_id")
    name, number = str(version["name"]), str(version["version"])
    return {
        "name": name,
        "version": number,
        "alias": version.get("alias"),
        "aliases": list(version.get("aliases") or ()) or None,
        "previous_version": version.get("previous_version") or version.get("rolled_back"),
        "uri": f"models:/{name}/{number}",
        "model_id": (source.model_id if source else "") or version.get("model_id"),
        "sha256": (source.ref.sha256 if source else None) or version.get("sha256"),
        "size": source.ref.size if source else None,
        "mlflow_run_id": run_id,
        "url": facts.server.model_page(name, number),
        "metrics": dict(source.metrics) if source else None,
    }


def _of_output(asset: MLAsset, facts: StepFacts, known: Known) -> dict[str, Any]:
    run = facts.record.run if facts.record else None
    return {
        "name": asset.says.name,
        "output": known.output,
        "uri": known.ref.uri,
        "model_id": known.model_id,
        "sha256": known.ref.sha256,
        "size": known.ref.size,
        "rows": known.rows,
        "mlflow_run_id": known.ref.run_id,
        "cached": True if facts.cached_from else None,
        "url": facts.server.run_page(run.experiment_id, known.ref.run_id or run.run_id) if run else None,
        "metrics": dict(known.metrics) if known.model_id else None,
        "numbers": dict(known.numbers) if not known.model_id else None,
    }


def _bounded(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is not known, hide what Airflow hides in a log, and keep within what an event may hold."""
    told = {key: value for key, value in extra.items() if value not in (None, "", {})}
    told |= {key: dict(islice(told[key].items(), METRICS_KEPT)) for key in ("metrics", "numbers") if key in told}
    kept = cast("dict[str, Any]", redact(told))
    for each in ("numbers", "metrics", "url", "uri"):
        if len(json.dumps(kept)) > EXTRA_BYTES:
            kept.pop(each, None)
    return kept


def _known(outputs: Mapping[str, str]) -> str:
    if not outputs:
        return "It declares no outputs that are one artifact: put the asset on the task that makes it."
    return f"Its outputs are {', '.join(f'{name} ({kind})' for name, kind in outputs.items())}."


def _and_connection(conn_id: str) -> str:
    return "" if conn_id == "mlflow_default" else f", mlflow_conn_id={conn_id!r}"
