"""
``@task.ml_pod`` and ``ml_pod_task``: the typed function of ``@task.ml``, run in a pod.

The same function, the same references, the same checks of wiring; in addition its source must be able to travel, which is
checked when the DAG is parsed. For type checkers the two differ as ``@task.ml`` and ``ml_task`` do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec

from airflow_ml_provider.decorators.ml import MLTask, Step, make_task, refuse_multiple_outputs
from airflow_ml_provider.operators.pod_function import MLPodFunctionOperator
from airflow_ml_provider.operators.pod_parse import check_partial

P = ParamSpec("P")


def ml_pod_task(*, multiple_outputs: bool | None = None, **kwargs: Any) -> Callable[[Callable[P, Any]], Step[P]]:
    """
    Turn a typed function into a task that runs in a pod, with everything on record in MLflow.

    :param multiple_outputs: Not for steps: their outputs are declared. Only None or False.
    :param kwargs: ``image``, ``gpu``, ``cpu``, ``memory_gib``, ``options`` and all else that
        :class:`~airflow_ml_provider.operators.pod.MLPodOperator` and KubernetesPodOperator take; no ``inputs``, ``outputs``,
        ``parameters``, ``cmds`` or ``arguments``, which the function says.
    :return: A decorator; what it makes is called inside a DAG.
    :raises ConfigError: the function cannot be a step's, or cannot travel; a retry never helps.
    """
    refuse_multiple_outputs(multiple_outputs)
    check_partial(kwargs)

    def decorate(function: Callable[P, Any]) -> Any:
        return make_task(function, MLPodFunctionOperator, kwargs)

    return decorate


def ml_pod_decorator(
    python_callable: Callable[..., Any] | None = None, multiple_outputs: bool | None = None, **kwargs: Any
) -> MLTask | Callable[[Callable[..., Any]], MLTask]:
    """
    Make ``task.ml_pod``, as Airflow calls it; the same as :func:`ml_pod_task`.

    :param python_callable: The function, where the decorator was written without brackets.
    :param multiple_outputs: As for :func:`ml_pod_task`.
    :param kwargs: As for :func:`ml_pod_task`.
    :return: The step, or a decorator.
    :raises ConfigError: as :func:`ml_pod_task`.
    """
    decorate: Any = ml_pod_task(multiple_outputs=multiple_outputs, **kwargs)
    made: MLTask | Callable[[Callable[..., Any]], MLTask] = decorate if python_callable is None else decorate(python_callable)
    return made
