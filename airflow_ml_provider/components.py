"""Steps as components of Kubeflow pipelines; imported where pipelines are written, with the KFP SDK and without Airflow."""

from __future__ import annotations

import inspect
import linecache
import typing
from collections.abc import Callable, Sequence
from typing import Any

from airflow_ml_provider.core.function_source import read_function
from airflow_ml_provider.core.kfp_component import component_source
from airflow_ml_provider.core.signature import read_signature
from airflow_ml_provider.exceptions import ConfigError
from airflow_ml_provider.step import packed

__all__ = ["as_kfp_component"]

BASE_IMAGE = "python:3.11"


def as_kfp_component(
    step: Callable[..., Any], *, base_image: str = BASE_IMAGE, packages: Sequence[str] = (), **component: Any
) -> Any:
    """
    Make a component of a Kubeflow pipeline from a step, for use in a ``@dsl.pipeline``.

    The function runs as in a pod: its text alone travels, so it imports what it needs inside. Beside the step's own outputs the
    component has one more, ``airflow_ml_manifest``, from which the task that waits for the run reads what the step has told.

    :param step: The step's function, plain or decorated with ``@task.ml`` or ``@task.ml_pod``.
    :param base_image: Image that it runs in, with Python 3.9 or later.
    :param packages: What is installed before it runs, as pip takes it; nothing by default but the SDK's own runtime.
    :param component: What else ``kfp.dsl.component`` takes: ``pip_index_urls``, ``install_kfp_package`` and so on.
    :return: The component.
    :raises ConfigError: the function cannot travel, KFP has no type for a parameter, or the SDK is not installed; a retry never
        helps.
    """
    try:
        import kfp.dsl
    except ImportError as error:
        raise ConfigError(
            "as_kfp_component needs the KFP SDK, which is not installed beside Airflow: its requirements contradict those of "
            "Airflow's Kubernetes provider. Put the pipeline into a file of its own and give its path to the operator "
            "(pipeline='pipelines/churn.py:churn'), or compile it with `airflow-ml kfp compile`."
        ) from error
    function = inspect.unwrap(getattr(step, "function", step))
    signature = read_signature(function)
    returns = typing.get_type_hints(function, include_extras=True).get("return", inspect.Parameter.empty)
    source = component_source(read_function(function, signature), signature, returns, packed())
    file = f"<component {signature.step}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # where the SDK reads sources
    names = {**vars(typing), **vars(kfp.dsl), "__name__": file}
    exec(compile(source, file, "exec", dont_inherit=True), names)  # noqa: S102  (written above)
    made = kfp.dsl.component(base_image=base_image, packages_to_install=list(packages) or None, **component)
    return made(names[signature.step])
