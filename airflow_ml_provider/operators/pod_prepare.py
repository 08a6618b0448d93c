"""From what a step declares to what its pod is given: inputs resolved, places and models made, everything on record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow_ml_provider.core.signature import StepSignature
from airflow_ml_provider.core.wiring import check_missing
from airflow_ml_provider.exceptions import AirflowMLError
from airflow_ml_provider.models.artifact import Artifact
from airflow_ml_provider.models.pod_options import PodOptions
from airflow_ml_provider.models.pod_step import StepFunction
from airflow_ml_provider.models.resources import StepResources
from airflow_ml_provider.operators.pod_body import check_container, with_step
from airflow_ml_provider.operators.pod_request import StepRequest, build_context, container_mlflow, read_refs, secret_data
from airflow_ml_provider.operators.pod_try import Prepared
from airflow_ml_provider.operators.session import StepSession
from airflow_ml_provider.operators.step import plain_values
from airflow_ml_provider.tracking import pod_record
from airflow_ml_provider.tracking.pod_record import StepPlan

if TYPE_CHECKING:
    from airflow_ml_provider.operators.caching import StepCache

GRACE_S = 30
"""What Kubernetes gives a container that is told to stop."""


@dataclass(frozen=True)
class Declared:
    """
    A step as its author wrote it, templates and references rendered.

    :param signature: What it takes and makes.
    :param given: What came for inputs and parameters.
    :param resources: What it asks for.
    :param options: The rest.
    :param tells: Whether the container has its half.
    :param function: Function that runs in the container; None where the image brings its program.
    :param context_keys: Parameters that Airflow filled, which are on record elsewhere.
    :param cache: Where an earlier result may be found; None where none is looked for or kept.
    """

    signature: StepSignature
    given: Mapping[str, Any]
    resources: StepResources
    options: PodOptions
    tells: bool = True
    function: StepFunction | None = None
    context_keys: frozenset[str] = frozenset()
    cache: StepCache | None = None


def prepare(session: StepSession, declared: Declared, pod: Mapping[str, Any], main: str, clears: int) -> Prepared:
    """
    Make everything that a pod needs before it exists.

    :param session: The try, its run open.
    :param declared: The step.
    :param pod: JSON of the pod, as KubernetesPodOperator makes it.
    :param main: Name of its main container.
    :param clears: Airflow's ``max_tries``.
    :return: What goes on record, and the pod.
    :raises CacheHitError: there is an earlier result, so nothing was made.
    :raises ConfigError: something of the step is wrong, or the pod could not reach a place; a retry never helps.
    :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry is safe.
    """
    signature, options, record = declared.signature, declared.options, session.record
    check_missing(signature, declared.given)
    refs = read_refs(session, signature, declared.given)
    plain = plain_values(signature, declared.given)
    session.log_params({name: value for name, value in plain.items() if name not in declared.context_keys})
    kept: dict[str, Any] = {}
    if declared.cache is not None:
        kept = _look(declared.cache, declared, plain, pod, main)
        refs = {name: [ref for _, ref in session.taken.get(name, [])] for name in refs}  # what was read has a digest by now
    session.log_params(_asked(declared.resources, pod, main))
    plan = StepPlan(
        try_number=record.attempt.try_number,
        tells=declared.tells,
        beside=bool(options.sidecar),
        params=record.params,
        inputs=record.inputs,
        memory_gib=declared.resources.memory_gib,
        cache=kept,
    )
    if not declared.tells:
        check_container(next(each for each in pod["spec"]["containers"] if each["name"] == main))
        return Prepared(plan, dict(pod))
    request = StepRequest(
        identity=record.attempt.identity,
        plan=plan,
        refs=refs,
        many=[name for name, each in signature.inputs.items() if each.many],
        parameters=plain,
        function=declared.function,
        clears=clears,
        patience_s=session.settings.patience_s,
        grace_s=pod["spec"].get("terminationGracePeriodSeconds") or GRACE_S,
    )
    return _with_outputs(session, request, declared, pod, main)


def _look(cache: StepCache, declared: Declared, plain: Mapping[str, Any], pod: Mapping[str, Any], main: str) -> dict[str, Any]:
    """Look for an earlier result; gives what the plan keeps where there is none."""
    from airflow_ml_provider.operators.cache_facts import step_facts
    from airflow_ml_provider.operators.pod_cache import look_before_pod

    facts = step_facts(cache.session, declared.signature, cache.policy, plain, {})
    return look_before_pod(cache, facts, pod, main, declared.options, declared.function)


def _with_outputs(session: StepSession, request: StepRequest, declared: Declared, pod: Mapping[str, Any], main: str) -> Prepared:
    """Make the models last, and take them back where the pod then cannot be made."""
    options, recorder, run = declared.options, session.recorder, session.record.run
    mlflow = container_mlflow(session.api.server, run, options)
    build_context(recorder.store, run, request, mlflow, options)  # what cannot be reached is refused before a model is made
    types = {name: (each.artifact or Artifact).type_name for name, each in declared.signature.outputs.items()}
    outputs = pod_record.plan_outputs(recorder, session.record, types, options.artifact_root)
    plan = request.plan.model_copy(update={"outputs": outputs})
    try:
        context = build_context(recorder.store, run, replace(request, plan=plan), mlflow, options)
        body = with_step(pod, context, options, main)
    except AirflowMLError:
        pod_record.abandon_models(recorder, plan)
        raise
    return Prepared(plan, body, secret_data(session.api.server) if options.copy_credentials else {})


def _asked(resources: StepResources, pod: Mapping[str, Any], main: str) -> dict[str, Any]:
    """Say for the record what the pod is."""
    image = next(each.get("image") for each in pod["spec"]["containers"] if each["name"] == main)
    gpu = f"{resources.gpu.count} x {resources.gpu.resource_name}" if resources.gpu else None
    found = {"pod.image": image, "pod.gpu": gpu, "pod.cpu": resources.cpu, "pod.memory_gib": resources.memory_gib}
    return {name: value for name, value in found.items() if value is not None}
