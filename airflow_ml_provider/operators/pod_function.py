"""The operator behind ``@task.ml_pod``: the typed function that runs in a worker with ``@task.ml``, in a pod."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk.bases.decorator import DecoratedOperator

from airflow_ml_provider.core.function_source import read_function
from airflow_ml_provider.core.signature import StepSignature, read_signature
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.models.cache import Cache
from airflow_ml_provider.models.pod_step import StepFunction
from airflow_ml_provider.operators.pod import MLPodOperator
from airflow_ml_provider.operators.pod_cache import read_pod_cache
from airflow_ml_provider.operators.pod_checks import check_outputs
from airflow_ml_provider.operators.step import context_keys

if TYPE_CHECKING:
    from airflow.sdk import Context

SAID_BY_THE_FUNCTION = ("inputs", "outputs", "parameters", "cmds", "arguments")


class MLPodFunctionOperator(DecoratedOperator, MLPodOperator):
    """
    Runs a typed function in a pod; made by ``@task.ml_pod``, seldom by hand.

    The image needs Python 3.8 and what the function imports, neither Airflow nor this package nor the DAG file: the function's
    source travels with the pod.

    :param python_callable: Function whose parameters are ``Input[...]``, ``Output[...]`` and plain JSON values; it imports what
        it needs inside, and takes nothing from the module or function around it.
    """

    custom_operator_name: ClassVar[str] = "@task.ml_pod"
    template_fields: Sequence[str] = (
        "op_args",
        "op_kwargs",
        *(each for each in MLPodOperator.template_fields if each not in SAID_BY_THE_FUNCTION),
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **MLPodOperator.template_fields_renderers,
        "op_args": "py",
        "op_kwargs": "py",
    }
    shallow_copy_attrs: Sequence[str] = ("python_callable", "session")

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        task_id: str,
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        said = [each for each in SAID_BY_THE_FUNCTION if kwargs.get(each) is not None]
        if said:
            raise ConfigError(f"step {task_id!r}: {', '.join(said)} cannot be given: the function says it, by its parameters.")
        # Told apart before templates are rendered: a None that the DAG file says, and one that came from a skipped step.
        self.nones = frozenset(name for name, value in (op_kwargs or {}).items() if value is None)
        super().__init__(python_callable=python_callable, task_id=task_id, op_args=op_args, op_kwargs=op_kwargs, **kwargs)

    @classmethod
    def read_cache(cls, cache: object, task_id: str, function: Callable[..., Any], given: Mapping[str, Any]) -> Cache | None:
        """
        Read the argument ``cache`` of a mapped step, and check what can be checked before its instances are made.

        :param cache: True or a policy; False or None for no cache.
        :param task_id: The task.
        :param function: Its function, outputs included.
        :param given: Arguments of the call, by name.
        :return: The policy; None for no cache.
        :raises ConfigError: it could never work; a retry never helps.
        """
        signature = read_signature(function)
        return read_pod_cache(task_id, cache, signature, function, context_keys(signature, given))

    @property
    def _written(self) -> Callable[..., Any]:
        """The function as it was written: what Airflow is given is a wrapper without its outputs."""
        function: Callable[..., Any] = getattr(self.python_callable, "__wrapped__", self.python_callable)
        return function

    @cached_property
    def signature(self) -> StepSignature:
        """What the function declares, outputs included."""
        found = read_signature(self._written)
        check_outputs(found)
        return found

    @cached_property
    def function(self) -> StepFunction | None:
        """The function's source, as it travels."""
        return read_function(self.python_callable, self.signature)

    @property
    def tells(self) -> bool:
        """Whether the container has its half; a function cannot do without."""
        return self.options.step != "none"

    def execute(self, context: Context) -> Any:
        """
        Run the function in a pod and record it; as :meth:`MLPodOperator.execute`.

        :param context: Airflow's context.
        :return: What the function returned; for a step with outputs, their references.
        :raises AirflowFailException: as :meth:`MLPodOperator.execute`.
        :raises PodError: as :meth:`MLPodOperator.execute`.
        :raises ArtifactError: as :meth:`MLPodOperator.execute`.
        :raises RemoteUnavailableError: as :meth:`MLPodOperator.execute`.
        """
        return MLPodOperator.execute(self, context)

    def _rendered(self, context: Context) -> Mapping[str, Any]:
        """Give the call's arguments; an optional input that the DAG file says is None counts as not given."""
        given = {name: value for name, value in self.op_kwargs.items() if not (value is None and self._is_left_out(name))}
        return {**{name: context.get(name) for name in self._filled()}, **given}

    def _is_left_out(self, name: str) -> bool:
        return name in self.nones and name in self.signature.inputs

    def _filled(self) -> frozenset[str]:
        return frozenset(context_keys(self.signature, self.op_kwargs))
