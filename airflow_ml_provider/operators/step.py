"""The operator behind ``@task.ml``: a typed function, run in the Airflow worker, with everything on record in MLflow."""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import DecoratedOperator
from pydantic import TypeAdapter, ValidationError

from airflow_ml_provider._compat import redact
from airflow_ml_provider.core.signature import StepParameter, StepSignature, read_signature
from airflow_ml_provider.core.wiring import check_missing
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.links.mlflow import MlflowRunLink
from airflow_ml_provider.models.artifact import Artifact
from airflow_ml_provider.models.reference import ArtifactRef, StepOutputs
from airflow_ml_provider.operators.references import StepReference, refuse_mapping_over

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_ml_provider.operators.session import StepSession

log = logging.getLogger(__name__)


class StepOperatorMixin:
    """
    What all operators have that run in the worker with a record in MLflow.

    A killed task closes its run while it has seconds left; the rest is ``airflow-ml reconcile``'s.
    """

    mlflow_conn_id: str
    experiment: str | None
    artifact_root: str | None = None
    mlflow_run_url: str = ""
    session: StepSession | None = None

    def on_kill(self) -> None:
        """Close the run as KILLED."""
        if self.session is not None:
            self.session.kill()


class MLStepOperator(StepOperatorMixin, DecoratedOperator):
    """
    Runs a typed function in the worker; made by ``@task.ml``, seldom by hand.

    A retry opens the same nested MLflow run again; what the try before has recorded stays.

    :param python_callable: Function whose parameters are ``Input[...]``, ``Output[...]`` and plain JSON values.
    :param mlflow_conn_id: Connection of the MLflow server.
    :param experiment: Name of the MLflow experiment; None means ``[ml] experiment``, which is the DAG's id by default. All
        steps of a DAG run need the same: set it in ``default_args``.
    :param artifact_root: URI that ``ObjectStoragePath`` opens, below which outputs are stored; None means MLflow's own store.
    """

    custom_operator_name: ClassVar[str] = "@task.ml"
    template_fields: Sequence[str] = ("op_args", "op_kwargs", "experiment", "artifact_root")
    template_fields_renderers: ClassVar[dict[str, str]] = {"op_args": "py", "op_kwargs": "py"}
    operator_extra_links = (MlflowRunLink(),)
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
        **kwargs: Any,
    ) -> None:
        self.mlflow_conn_id = mlflow_conn_id
        self.experiment = experiment
        self.artifact_root = artifact_root
        # Told apart before templates are rendered: a None that the DAG file says, and one that came from a skipped step.
        self.nones = frozenset(name for name, value in (op_kwargs or {}).items() if value is None)
        super().__init__(python_callable=python_callable, task_id=task_id, op_args=op_args, op_kwargs=op_kwargs, **kwargs)

    @cached_property
    def signature(self) -> StepSignature:
        """What the function declares, outputs included: what Airflow is given is a wrapper without them."""
        return read_signature(getattr(self.python_callable, "__wrapped__", self.python_callable))

    @property
    def output(self) -> StepReference:
        """The step's outputs: ``task.output["model"]``."""
        return StepReference(self, signature=self.signature)

    def update_relative(self, other: Any, upstream: bool = True, edge_modifier: Any = None) -> None:
        """
        Look at what the step becomes upstream of; Airflow calls this for every arrow from it.

        :param other: The task.
        :param upstream: As in Airflow.
        :param edge_modifier: As in Airflow.
        :raises ConfigError: it is mapped over one output of this step; a retry never helps.
        """
        super().update_relative(other, upstream, edge_modifier)
        refuse_mapping_over(self, other)

    def execute(self, context: Context) -> Any:
        """
        Run the function and record it.

        :param context: Airflow's context.
        :return: What the function returned; for a step with outputs, their references.
        :raises AirflowFailException: an argument does not fit; a retry never helps, and there is none.
        :raises ArtifactError: an input is not what was recorded, or an output was never written.
        :raises RemoteUnavailableError: MLflow did not answer within the patience; a retry is safe.
        """
        from airflow_ml_provider.operators.execution import open_step

        with open_step(self, context) as session:
            self.session = session
            filled = context_keys(self.signature, self.op_kwargs)
            given: dict[str, Any] = {**{key: context.get(key) for key in filled}, **self.op_kwargs}
            check_missing(self.signature, given)
            plain = plain_values(self.signature, given)
            session.log_params({name: value for name, value in plain.items() if name not in filled})
            result = self.python_callable(**self._artifacts(session, given), **plain)
            if self.signature.outputs and result is not None:
                raise ConfigError(
                    f"step {self.signature.step!r} has outputs and returned {type(result).__name__}; the XCom of such a step "
                    "is its outputs. Return None, and hand the value on as another output or as .metadata of one."
                )
            _refuse_unplain(self.signature.step, result)
        return session.outputs() if self.signature.outputs else result

    def _artifacts(self, session: StepSession, given: Mapping[str, Any]) -> dict[str, Any]:
        """Bind inputs and outputs; an input that is not given keeps the function's default."""
        bound: dict[str, Any] = {}
        for name, each in self.signature.inputs.items():
            value = given.get(name, None if each.default is inspect.Parameter.empty else each.default)
            missing = value is None and each.optional and (name not in given or name in self.nones)
            bound[name] = None if missing else session.read_parameter(each, value)
        for name, each in self.signature.outputs.items():
            bound[name] = session.write(name, each.artifact or Artifact)
        return bound


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
