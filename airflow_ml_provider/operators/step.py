"""The operator behind ``@task.ml``: a typed function, run in the Airflow worker, with everything on record in MLflow."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import redact
from airflow.sdk.bases.decorator import DecoratedOperator
from pydantic import TypeAdapter, ValidationError

from airflow_ml_provider.assets.events import check_outlets
from airflow_ml_provider.core.signature import StepParameter, StepSignature, read_signature
from airflow_ml_provider.core.wiring import check_missing
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.lineage.openlineage_mixin import OpenLineageMixin
from airflow_ml_provider.links.mlflow import MlflowCachedFromLink, MlflowRunLink
from airflow_ml_provider.models.artifact import Artifact
from airflow_ml_provider.models.cache import Cache
from airflow_ml_provider.models.reference import ArtifactRef, StepOutputs
from airflow_ml_provider.operators.cache_parse import check_cached_step, read_policy
from airflow_ml_provider.operators.references import StepReference, refuse_mapping_over

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.core.cache_key import KeyFacts
    from airflow_ml_provider.operators.caching import StepCache
    from airflow_ml_provider.operators.session import StepSession

log = logging.getLogger(__name__)


class StepOperatorMixin(OpenLineageMixin):
    """
    What all operators have that run in the worker with a record in MLflow.

    A killed task closes its run while it has seconds left; the rest is ``airflow-ml reconcile``'s.
    """

    mlflow_conn_id: str
    experiment: str | None
    artifact_root: str | None = None
    mlflow_run_url: str = ""
    cache: Cache | None = None
    cached_from_url: str = ""
    session: StepSession | None = None

    def on_kill(self) -> None:
        """Close the run as KILLED."""
        if self.session is not None:
            self.session.kill()


class TypedStepMixin(StepOperatorMixin):
    """What steps add that declare their inputs and outputs: references to the outputs, and the checks of where they go."""

    if TYPE_CHECKING:

        @property
        def signature(self) -> StepSignature:
            """What the step declares."""
            ...

    @property
    def output(self) -> StepReference:
        """The step's outputs: ``task.output["model"]``."""
        me: Any = self
        return StepReference(me, signature=self.signature)

    def update_relative(self, other: Any, upstream: bool = True, edge_modifier: Any = None) -> None:
        """
        Look at what the step becomes upstream of; Airflow calls this for every arrow from it.

        :param other: The task.
        :param upstream: As in Airflow.
        :param edge_modifier: As in Airflow.
        :raises ConfigError: it is mapped over one output of this step; a retry never helps.
        """
        airflows: Any = super()
        airflows.update_relative(other, upstream, edge_modifier)
        me: Any = self
        refuse_mapping_over(me, other)

    def check_outlets(self, mlflow_conn_id: str | None) -> None:
        """
        Refuse at parse time assets among the outlets that no output of the step can be.

        :param mlflow_conn_id: Connection of its server; None where that is not known yet.
        :raises ConfigError: one fits no output, or several, or is of another server; a retry never helps.
        """
        me: Any = self
        declared = {name: each.artifact for name, each in self.signature.outputs.items() if not each.many}
        check_outlets(me.task_id, me.outlets, {name: kind.type_name for name, kind in declared.items() if kind}, mlflow_conn_id)

    def push_by_name(self, context: Context, session: StepSession) -> None:
        """
        Push each output by its name too, where the operator is mapped: Airflow takes ``task.output["model"]`` for such a key.

        :param context: Airflow's context.
        :param session: The step's, ended well.
        """
        me: Any = self
        ti: Any = context["ti"]
        if me.do_xcom_push and ti.map_index is not None and ti.map_index >= 0:
            for each in session.record.outputs:
                if each.stored is not None:
                    ti.xcom_push(key=each.name, value=each.stored.to_json())


class MLStepOperator(TypedStepMixin, DecoratedOperator):
    """
    Runs a typed function in the worker; made by ``@task.ml``, seldom by hand.

    A retry opens the same nested MLflow run again; what the try before has recorded stays.

    :param python_callable: Function whose parameters are ``Input[...]``, ``Output[...]`` and plain JSON values.
    :param mlflow_conn_id: Connection of the MLflow server.
    :param experiment: Name of the MLflow experiment; None means ``[ml] experiment``, which is the DAG's id by default. All
        steps of a DAG run need the same: set it in ``default_args``.
    :param artifact_root: URI that ``ObjectStoragePath`` opens, below which outputs are stored; None means MLflow's own store.
    :param cache: Whether an earlier result of the same inputs, parameters and code stands for a new one: True, or a ``Cache``
        that says more. None and False run the step each time.
    """

    custom_operator_name: ClassVar[str] = "@task.ml"
    template_fields: Sequence[str] = ("op_args", "op_kwargs", "experiment", "artifact_root")
    template_fields_renderers: ClassVar[dict[str, str]] = {"op_args": "py", "op_kwargs": "py"}
    operator_extra_links = (MlflowRunLink(), MlflowCachedFromLink())
    shallow_copy_attrs: Sequence[str] = ("python_callable", "session")

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        task_id: str,
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        mlflow_conn_id: str = "mlflow_default",
        experiment: str | None = None,
        artifact_root: str | None = None,
        cache: Cache | bool | None = None,
        **kwargs: Any,
    ) -> None:
        self.mlflow_conn_id = mlflow_conn_id
        self.experiment = experiment
        self.artifact_root = artifact_root
        # Told apart before templates are rendered: a None that the DAG file says, and one that came from a skipped step.
        self.nones = frozenset(name for name, value in (op_kwargs or {}).items() if value is None)
        super().__init__(python_callable=python_callable, task_id=task_id, op_args=op_args, op_kwargs=op_kwargs, **kwargs)
        self.cache = self.read_cache(cache, task_id, self.function, op_kwargs or {})
        self.check_outlets(mlflow_conn_id)

    @classmethod
    def read_cache(cls, cache: object, task_id: str, function: Callable[..., Any], given: Mapping[str, Any]) -> Cache | None:
        """
        Read the argument ``cache``, and check that it fits the step.

        :param cache: True or a policy; False or None for no cache.
        :param task_id: The task.
        :param function: Its function, outputs included.
        :param given: Arguments of the call, by name.
        :return: The policy; None for no cache.
        :raises ConfigError: it could never work; a retry never helps.
        """
        policy = read_policy(task_id, cache)
        if policy is not None:
            signature = read_signature(function)
            check_cached_step(task_id, policy, signature, function, context_keys(signature, given))
        return policy

    @property
    def function(self) -> Callable[..., Any]:
        """The function as it was written: what Airflow is given is a wrapper without its outputs."""
        function: Callable[..., Any] = getattr(self.python_callable, "__wrapped__", self.python_callable)
        return function

    @cached_property
    def signature(self) -> StepSignature:
        """What the function declares, outputs included."""
        return read_signature(self.function)

    def execute(self, context: Context) -> Any:
        """
        Run the function and record it.

        :param context: Airflow's context.
        :return: What the function returned; for a step with outputs, their references.
        :raises AirflowFailException: an argument does not fit; a retry never helps, and there is none.
        :raises ArtifactError: an input is not what was recorded, or an output was never written.
        :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry is safe.
        """
        from airflow_ml_provider.operators.caching import open_cache
        from airflow_ml_provider.operators.execution import open_step

        with open_step(self, context) as session:
            self.session = session
            filled = context_keys(self.signature, self.op_kwargs)
            given: dict[str, Any] = {**{key: context.get(key) for key in filled}, **self.op_kwargs}
            check_missing(self.signature, given)
            plain = plain_values(self.signature, given)
            session.log_params({name: value for name, value in plain.items() if name not in filled})
            inputs = self._inputs(session, given)
            cache = open_cache(self, session, context)
            hit = cache.look(self._facts(cache, plain, context)) if cache else None
            result = hit.result if hit else self._run(session, inputs | plain)
            if cache and not hit:
                cache.keep(result)
        return session.outputs() if self.signature.outputs else result

    def _run(self, session: StepSession, arguments: Mapping[str, Any]) -> Any:
        """Call the function, and look at what it returns."""
        outputs = {name: session.write(name, each.artifact or Artifact) for name, each in self.signature.outputs.items()}
        result = self.python_callable(**arguments, **outputs)
        if outputs and result is not None:
            raise ConfigError(
                f"step {self.signature.step!r} has outputs and returned {type(result).__name__}; the XCom of such a step "
                "is its outputs. Return None, and hand the value on as another output or as .metadata of one."
            )
        _refuse_unplain(self.signature.step, result)
        return result

    def _inputs(self, session: StepSession, given: Mapping[str, Any]) -> dict[str, Any]:
        """Bind inputs; one that is not given keeps the function's default."""
        bound: dict[str, Any] = {}
        for name, each in self.signature.inputs.items():
            value = given.get(name, None if each.default is inspect.Parameter.empty else each.default)
            missing = value is None and each.optional and (name not in given or name in self.nones)
            bound[name] = None if missing else session.read_parameter(each, value)
        return bound

    def _facts(self, cache: StepCache, plain: Mapping[str, Any], context: Context) -> KeyFacts:
        """Gather what the result depends on."""
        from airflow_ml_provider.core.code_digest import code_parts
        from airflow_ml_provider.operators.cache_facts import dag_folder, step_facts

        policy = cache.policy
        code = code_parts(self.function, dag_folder(context), redact) if policy.code else {}
        return step_facts(cache.session, self.signature, policy, plain, code)


def context_keys(signature: StepSignature, given: Mapping[str, Any]) -> set[str]:
    """
    Name the parameters that Airflow's context fills, such as ``ti`` or ``logical_date``, where the call does not.

    :param signature: What the step declares.
    :param given: Arguments of the call.
    :return: Names.
    """
    from airflow.sdk.definitions.context import KNOWN_CONTEXT_KEYS

    return (KNOWN_CONTEXT_KEYS & signature.plain.keys()) - given.keys()


def plain_values(signature: StepSignature, given: Mapping[str, Any]) -> dict[str, Any]:
    """
    Give plain parameters their declared types; defaults are as much on record as what was passed.

    :param signature: What the step declares.
    :param given: Arguments of the call, and what the context fills.
    :return: Value per plain parameter.
    :raises ConfigError: a value does not fit its annotation; a retry never helps.
    """
    return {
        name: _convert(signature, each, given[name]) if name in given else each.default for name, each in signature.plain.items()
    }


def _convert(signature: StepSignature, parameter: StepParameter, value: Any) -> Any:
    """Give a plain value its declared type: what a template rendered is a text, and 300 is meant."""
    if ArtifactRef.looks_like(value) or StepOutputs.looks_like(value):
        kind = value.get("type", "Dataset")
        raise ConfigError(
            f"step {signature.step!r}, parameter {parameter.name!r} is a plain value, but what came is a {kind}. "
            f"Declare {parameter.name}: Input[{kind}]."
        )
    if parameter.annotation is Any:
        return value
    try:
        return TypeAdapter(parameter.annotation, config={"arbitrary_types_allowed": True}).validate_python(value)
    except ValidationError as error:
        # Masked before repr, which writes quotes and backslashes so that no masker knows them; the same stands in the cause.
        shown = redact(value, parameter.name)
        raise ConfigError(
            f"step {signature.step!r}, parameter {parameter.name!r}: {shown!r} is not {parameter.annotation}: "
            f"{error.errors()[0]['msg']}. Pass a value of that type."
        ) from None


def _refuse_unplain(step: str, value: Any) -> None:
    """Refuse a return value that is not plain JSON, before Airflow makes something else of it."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"step {step!r} returned {type(value).__name__}, which is not plain JSON ({error}). Write it to an Output[Dataset] "
            "or Output[Artifact], or return numbers, texts, lists and dictionaries of these."
        ) from error
